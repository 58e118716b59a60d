"""Kills and signals at random moments of a training: no video is broken, and no signal costs a frame.

An ordinary run tries 20 moments. VIDEO_WRAPPER_MOMENTS sets another number, and VIDEO_WRAPPER_SEED repeats
a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from spec.suite.fake_env import FakeEnv
from spec.suite.harness import Harness, env_class
from spec.suite.plugin import Suite
from spec.suite.processes import encoders, needs_proc, wait_until
from spec.suite.video_reader import is_video_name
from spec.tests.test_close import lives, wait_for_ends

STEPS = 80  # of a training, all of which it makes if no signal ends it

# Forks a training for each line of a pipe: loading what it needs takes longer than the training.
# A training writes a byte for each step that it has completed, and ends as any Python does.
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
    world = harness.Harness("fake", Path(plan["folder"]), harness.load(implementation), base)
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
    """The videos of a training that ended, and was not killed, after so many steps.

    Of an episode of 13 steps, a background recording has the first five, and an active one the
    others.
    """
    starts = range(5, done, 13)
    videos = {f"{n}.mp4": list(range(n, min(n + 8, done))) for n in starts}
    if 0 < done % 13 <= 5:
        first = done - done % 13
        videos[f"{first}.mp4"] = list(range(first, done))
    if filename and videos:  # each has taken the place of the one before
        return {filename: max(videos.values())}
    return videos


class Moment:
    """A training that meets a signal at a random moment.

    Attributes:
        what: The moment in words.
        counts: What became of it; of the broken, lost, strange and left there should be none.
    """

    def __init__(self, i: int, dice: random.Random, folder: Path, suite: Suite) -> None:
        self._name, self._handler = dice.choice(KINDS)
        self._victims = dice.choice(VICTIMS)
        self._filename = dice.choice([None, "run.mp4", "run.mkv", "run.mov"])
        self._after = dice.randrange(1, STEPS - 25), dice.uniform(0, 0.02)
        self._progress = folder / f"{i}.progress"
        self._folder = folder / str(i)
        env = env_class(FakeEnv, suite.env_base)
        self._world = Harness("fake", self._folder, suite.implementation, env)
        where = f"{self._victims}, {self._filename}, after {self._after}"
        self.what = f"{i}: {self._name} that {self._handler}, to {where}"
        self.counts = Counter(moments=1)

    def plan(self) -> str:
        """What the training is told."""
        return json.dumps(
            {
                "signal": getattr(signal, self._name)
                if self._name != "SIGKILL"
                else signal.SIGALRM,
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
        """Waits for the moment, sends the signal, and waits until all processes have ended."""
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
        except AssertionError as hangs:  # as forks do that have loaded Genesis 1.2
            os.kill(pid, signal.SIGKILL)
            leave_to(str(hangs))
        wait_for_ends([*found])

    def judge(self) -> None:
        """Counts."""
        done, is_killed = self._done(), self._handler == "is left alone"
        videos = self._readable(filter(is_video_name, self._world.files()))
        # The step that the signal broke into may count or not.
        sooner, later = (videos_of(n, self._filename) for n in (done, done + 1))
        if self._handler == "is caught":
            later = sooner
            self.counts["strange"] += done != STEPS
        hidden = [name for name in self._world.files() if not is_video_name(name)]
        if is_killed:
            # Active ones that were saved. By the last of them the training may not have said so.
            whole = [[*range(n, n + 8)] for n in range(5, done + 1, 13)]
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
            self.counts["left"] += len(hidden)
        self.counts["hidden"] += len(hidden)
        self.what += f"; {done} steps; {videos=} {sooner=} {later=} {hidden=} {self.counts}"

    def _readable(self, names: Any) -> dict[str, list[int]]:
        videos = {}
        for name in filter(is_video_name, names):
            try:
                videos[name] = [*self._world.video(name).steps]
            except (AssertionError, ValueError):
                self.counts["broken"] += 1
        return videos

    @property
    def is_fault(self) -> bool:
        """Whether something is counted of which there should be none."""
        return any(self.counts[what] for what in ("broken", "lost", "strange", "left"))


@needs_proc
@pytest.mark.clause("CLOSE-8a", "CLOSE-8b", "CLOSE-14a", "CLOSE-4c", "CLOSE-4d", "FILE-3a")
@pytest.mark.extended
def test_kills_and_signals_at_random_moments_break_no_video_and_cost_no_frame(
    start: Any, suite: Suite, leave_to: Any, tmp_path: Path
) -> None:
    count = int(os.environ.get("VIDEO_WRAPPER_MOMENTS", "20"))
    seed = int(os.environ.get("VIDEO_WRAPPER_SEED", random.randrange(10**6)))
    dice, total, faults = random.Random(seed), Counter(), []
    os.mkfifo(tmp_path / "plans")
    job = start(TRAININGS)
    with open(tmp_path / "plans", "w") as plans:
        for i in range(count):
            moment = Moment(i, dice, tmp_path, suite)
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
