"""Interrupts, signals and kills at random moments of a training (FAIL-5, CLOSE-8, CLOSE-14).

The default run tries fewer moments than --all. VIDEO_WRAPPER_MOMENTS sets another number, and
VIDEO_WRAPPER_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from spec.suite.doubles import never
from spec.suite.processes import (
    check_end,
    encoders,
    lives,
    needs_proc,
    wait_for_ends,
    wait_until,
)
from spec.suite.video_reader import is_video_name, read_video


def moments(config: pytest.Config, few: int, all_of_them: int) -> int:
    """Return how many moments a test tries."""
    count = all_of_them if config.getoption("--all") else few
    return int(os.environ.get("VIDEO_WRAPPER_MOMENTS", count))


def new_seed() -> int:
    """Return the seed of this run."""
    return int(os.environ.get("VIDEO_WRAPPER_SEED", random.randrange(10**6)))


class TestEncoderStart:
    @needs_proc
    @pytest.mark.clause("FAIL-5a", "FAIL-5b", "FAIL-5c")
    @pytest.mark.parametrize("goes_on", [False, True], ids=["closes", "goes on"])
    @pytest.mark.parametrize("moment", ["before", "after"])
    @pytest.mark.parametrize("filename", [None, "run.mp4"])
    @pytest.mark.parametrize("kind", ["active", "background"])
    def test_ctrl_c_in_an_encoders_start_leaves_nothing_behind(
        self,
        fake: Any,
        leave_to: Any,
        monkeypatch: pytest.MonkeyPatch,
        kind: str,
        filename: str | None,
        moment: str,
        goes_on: bool,
    ) -> None:
        """Ctrl-C comes inside Popen, before or after the process starts, at step 12."""
        started, others = [], encoders()

        class Popen(subprocess.Popen):
            def __init__(self, command: Any, *arguments: Any, **options: Any) -> None:
                if moment == "after":
                    super().__init__(command, *arguments, **options)
                if "rawvideo" in command and wrapper.unwrapped.steps == 13 and not started:
                    started.append(command)
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.02)
                if moment == "before":
                    super().__init__(command, *arguments, **options)

        monkeypatch.setattr(subprocess, "Popen", Popen)
        trigger = (lambda n: n == 12) if kind == "active" else never
        wrapper = fake.wrap(
            terminated_at={11}, step_trigger=trigger, filename=filename, video_length_sec=1
        )
        with contextlib.suppress(KeyboardInterrupt):
            fake.run(wrapper, 13)
        if not started:
            leave_to("it starts its encoder in another way")
        if goes_on:
            fake.run(wrapper, 9)
        wrapper.close()
        videos = [video.steps for video in map(fake.video, fake.files())]
        # Ctrl-C may cost the frame of step 12.
        newer = [range(12, 22), range(13, 22)] if goes_on else [range(10), range(12, 13)]
        assert any(list(steps) in videos for steps in newer), videos
        assert len(videos) == 1 or not filename
        assert all(map(is_video_name, fake.files()))
        assert encoders() == others


# Each round has a new wrapper, which is interrupted as it records, and as it is closed.
INTERRUPTED = """
    import gc, random

    dice = random.Random({seed})
    kinds = [dict(filename="run.mp4"), dict(filename="run.mkv"), dict()]
    interrupts = 0

    def interrupt(*_):
        global interrupts
        interrupts += 1
        raise KeyboardInterrupt

    def set_alarm():
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.03))

    def train(wrapper):
        # Not for ever, because Python drops what is raised in a destructor.
        until = time.monotonic() + 1
        while time.monotonic() < until:
            world.run(wrapper, 1)
            if dice.random() < 0.1:
                wrapper.finish_recording()

    def used():
        time.sleep(0.3)  # threads that have done their work need a moment to end
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    def check(first):
        assert not children(), children()
        for name in world.files():
            assert video_reader.is_video_name(name), world.files()
            steps = [*world.video(name).steps]
            # An interrupt between the env's step and its count shifts the steps that are shown.
            assert steps == sorted(set(steps)) and len(steps) <= 3, (name, steps)
            assert steps[0] >= first, (name, steps, first)
            (world.out_dir / name).unlink()

    signal.signal(signal.SIGALRM, interrupt)
    env = world.env(size=(48, 32), terminated_at=range(6, 10**6, 7))
    before = None
    while interrupts < {count}:
        first, options = env.steps, dice.choice(kinds)
        wrapper = world.wrap(
            env, build=False, video_length_sec=0.3, step_trigger=lambda n: n % 5 == 3, **options
        )
        for _ in range(10):
            try:
                set_alarm()
                train(wrapper)
            except KeyboardInterrupt:
                pass
        world.run(wrapper, 10)
        while True:
            try:
                if interrupts < {count}:
                    set_alarm()
                wrapper.close()
                signal.setitimer(signal.ITIMER_REAL, 0)
                break
            except KeyboardInterrupt:
                pass
        assert world.files()
        check(first)
        world.forget()
        if before is None:
            before = used()
    del wrapper
    gc.collect()
    assert used() == before, (used(), before)
    print(interrupts, "interrupts")
"""


@needs_proc
@pytest.mark.clause("FAIL-5a", "FAIL-5b", "FAIL-5c", "CLOSE-6b")
def test_interrupts_at_random_moments_leave_whole_videos_only(
    script: Any, pytestconfig: pytest.Config
) -> None:
    seed = new_seed()
    print("seed", seed)
    check_end(script(INTERRUPTED.format(seed=seed, count=moments(pytestconfig, 40, 300))))


STEPS = 80  # of a training, if no signal ends it
EPISODE = 13  # steps
ACTIVE = range(5, EPISODE)  # the steps of an episode that are an active recording

# Forks a training for each line of a pipe, because its imports take longer than the training.
# A training writes a byte for each completed step, and ends as any Python does.
TRAININGS = """
    import json

    for line in open(Path(folder).parent / "plans"):
        plan = json.loads(line)
        if os.fork() == 0:
            break
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    break
            except ChildProcessError:
                break
    else:
        sys.exit()
    os.setsid()
    handlers = {
        "is left alone": signal.SIG_DFL,
        "ends it": lambda *_: sys.exit(143),
        "is caught": lambda *_: None,
        "is Ctrl-C": signal.default_int_handler,
    }
    signal.signal(plan["signal"], handlers[plan["handler"]])
    world = World(Path(plan["folder"]), load(implementation), base)
    wrapper = world.wrap(
        size=(48, 32), terminated_at=range(12, 10**6, 13), step_trigger=lambda n: n % 13 == 5,
        video_length_sec=0.8, filename=plan["filename"],
    )
    progress = open(plan["progress"], "wb", buffering=0)
    print("pid of", plan["folder"], os.getpid())
    for _ in range(plan["steps"]):
        world.run(wrapper, 1)
        progress.write(b".")
        time.sleep(0.002)
"""

KINDS = [
    *((name, "is left alone") for name in ("SIGKILL", "SIGKILL", "SIGTERM", "SIGHUP")),
    *((name, "ends it") for name in ("SIGTERM", "SIGHUP", "SIGUSR1")),
    *((name, "is caught") for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT")),
    ("SIGINT", "is Ctrl-C"),
]
VICTIMS = ["Python", "Python, then ffmpeg", "ffmpeg, then Python", "the group"]


def videos_of(done: int, filename: str | None) -> dict[str, list[int]]:
    """Return the videos of a training that ended after so many steps, and was not killed.

    A background recording has the first five steps of an episode. An active one has the other
    eight, and drops the background recording when it is complete.
    """
    videos = {}
    for start in range(0, done, EPISODE):
        active = list(range(start + ACTIVE.start, min(start + ACTIVE.stop, done)))
        if len(active) < len(ACTIVE):
            videos[f"{start}.mp4"] = list(range(start, min(start + ACTIVE.start, done)))
        if active:
            videos[f"{active[0]}.mp4"] = active
    if filename and videos:  # each video replaces the one before
        return {filename: max(videos.values())}
    return videos


class Moment:
    """A training that gets a signal at a random moment.

    Attributes:
        what: The moment in words.
        counts: What became of it. Broken, lost, strange and left should stay 0.
    """

    def __init__(self, i: int, dice: random.Random, folder: Path) -> None:
        self._name, self._handler = dice.choice(KINDS)
        self._victims = dice.choice(VICTIMS)
        self._filename = dice.choice([None, "run.mp4", "run.mkv", "run.mov"])
        self._after = dice.randrange(1, STEPS - 25), dice.uniform(0, 0.02)
        self._progress = folder / f"{i}.progress"
        self._folder = folder / str(i)
        where = f"{self._victims}, {self._filename}, after {self._after}"
        self.what = f"{i}: {self._name} that {self._handler}, to {where}"
        self.counts = Counter(moments=1)

    def plan(self) -> str:
        """Return the line that starts the training."""
        name = self._name if self._name != "SIGKILL" else "SIGALRM"  # which is not sent
        return json.dumps(
            {
                "signal": getattr(signal, name),
                "handler": self._handler,
                "folder": str(self._folder),
                "progress": str(self._progress),
                "filename": self._filename,
                "steps": STEPS,
            }
        )

    def _done(self) -> int:
        return self._progress.stat().st_size if self._progress.exists() else 0

    def send(self, pid: int, leave_to: Any) -> None:
        """Wait for the moment, send the signal, and wait until all processes have ended."""
        number, (steps, seconds) = getattr(signal, self._name), self._after
        wait_until(lambda: self._done() >= steps or not lives(pid))
        time.sleep(seconds)
        found = encoders(pid)
        if self._victims == "the group":
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(pid, number)
        else:
            order = {"Python": [pid], VICTIMS[1]: [pid, *found], VICTIMS[2]: [*found, pid]}
            for victim in order[self._victims]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, number)

        def has_ended() -> bool:
            found.update(encoders(pid))  # it may start others
            return not lives(pid)

        try:
            wait_until(has_ended, what=f"the end of the training that met moment {self.what}")
        except AssertionError as hangs:
            os.kill(pid, signal.SIGKILL)
            leave_to(str(hangs))
        wait_for_ends([*found])

    def judge(self) -> None:
        """Count what is wrong with the files."""
        done, is_killed = self._done(), self._handler == "is left alone"
        files = sorted(os.listdir(self._folder))
        videos = self._readable(filter(is_video_name, files))
        others = [name for name in files if not is_video_name(name)]
        # The step that the signal interrupted may count or not.
        sooner, later = (videos_of(n, self._filename) for n in (done, done + 1))
        if self._handler == "is caught":
            later = sooner
            self.counts["strange"] += done != STEPS
        if is_killed:
            # Active recordings that were complete. The last may be so before its step is counted.
            starts = range(ACTIVE.start, done + 1, EPISODE)
            whole = [list(range(n, n + len(ACTIVE))) for n in starts]
            self.counts["strange"] += sum(v not in whole for v in videos.values())
            saved = [v for v in whole if v[-1] < done]
            lost = [v for v in saved if f"{v[0]}.mp4" not in videos] if not self._filename else []
            self.counts["lost"] += 8 * len(lost)
            self.counts["killed"] += 1
        else:
            for name, steps in sooner.items():
                both = set(steps) & set(later.get(name, []))
                self.counts["lost"] += len(both - set(videos.get(name, [])))
                self.counts["frames"] += len(both)
            right = [*sooner.items(), *later.items()]
            self.counts["strange"] += sum(item not in right for item in videos.items())
            self.counts["left"] += len(others)
        self.counts["partial"] += len(others)
        self.what += f"; {done} steps; {videos=} {sooner=} {later=} {others=} {self.counts}"

    def _readable(self, names: Any) -> dict[str, list[int]]:
        videos = {}
        for name in names:
            try:
                videos[name] = [*read_video(self._folder / name).steps]
            except (AssertionError, ValueError):
                self.counts["broken"] += 1
        return videos

    @property
    def is_fault(self) -> bool:
        """Return whether a count that should be 0 is not."""
        return any(self.counts[what] for what in ("broken", "lost", "strange", "left"))


@needs_proc
@pytest.mark.clause("CLOSE-8a", "CLOSE-8b", "CLOSE-14a", "CLOSE-4c", "CLOSE-4d", "FILE-3a")
@pytest.mark.extended
def test_random_signals_break_no_video_and_cost_no_frame(
    start: Any, leave_to: Any, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    count, seed = moments(pytestconfig, 20, 200), new_seed()
    dice, total, faults = random.Random(seed), Counter(), []
    os.mkfifo(tmp_path / "plans")
    job = start(TRAININGS)
    with open(tmp_path / "plans", "w") as plans:
        for i in range(count):
            moment = Moment(i, dice, tmp_path)
            print(moment.plan(), file=plans, flush=True)
            words = f"pid of {tmp_path / str(i)} "
            job.wait_for(words)
            wait_until(lambda: "\n" in job.output.partition(words)[2])  # noqa: B023
            moment.send(int(job.output.partition(words)[2].split()[0]), leave_to)
            moment.judge()
            total += moment.counts
            faults += [moment.what] if moment.is_fault else []
    print(f"seed {seed}: {dict(total)}")
    assert not faults, f"seed {seed}, {dict(total)}:\n" + "\n".join(faults)
