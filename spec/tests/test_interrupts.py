"""Interrupts, signals and kills at random moments of a training (FAIL-5, CLOSE-8, CLOSE-14).

The default run tries fewer moments than --all. VIDEO_WRAPPER_MOMENTS sets another number, and
VIDEO_WRAPPER_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from typing import Any

import pytest

from spec.suite.doubles import never
from spec.suite.processes import Job, check_end, encoders, needs_proc, wait_for_ends, wait_until
from spec.tests.test_close import start_training, steps_of

pytestmark = needs_proc


def draw(config: pytest.Config, few: int, many: int) -> tuple[int, int]:
    """Return a seed, and how many moments a test tries."""
    seed = int(os.environ.get("VIDEO_WRAPPER_SEED", random.randrange(10**6)))
    count = os.environ.get("VIDEO_WRAPPER_MOMENTS", many if config.getoption("--all") else few)
    print("seed", seed)
    return seed, int(count)


@pytest.mark.clause("FAIL-5a", "FAIL-5b", "FAIL-5c")
@pytest.mark.parametrize("goes_on", [False, True], ids=["closes", "goes on"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("filename", [None, "run.mp4"])
@pytest.mark.parametrize("trigger", [lambda n: n == 12, never], ids=["active", "background"])
def test_ctrl_c_in_an_encoders_start_leaves_nothing_behind(
    fake: Any, leave_to: Any, monkeypatch: Any, trigger: Any, filename: Any, moment: str, goes_on: bool
) -> None:  # fmt: skip
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
    options = {"terminated_at": {11}, "filename": filename, "video_length_sec": 1}
    wrapper = fake.wrap(step_trigger=trigger, **options)
    with contextlib.suppress(KeyboardInterrupt):
        fake.run(wrapper, 13)
        with contextlib.suppress(AssertionError):  # a thread may start it soon
            wait_until(lambda: started, seconds=1)
            time.sleep(0.1)
    if not started:
        leave_to("it starts its encoder in another way")
    fake.run(wrapper, 9 if goes_on else 0)
    wrapper.close()
    assert encoders() == others
    videos = [*fake.videos().values()]
    assert len(videos) == len(fake.files())
    assert len(videos) == 1 or not filename
    newest = max(videos)
    first, last = newest[0], newest[-1]
    assert newest == [*range(first, last + 1)]
    # Ctrl-C may cost the frame of step 12.
    assert (first in (12, 13, 14) and last == 21) if goes_on else last in (9, 10, 12)


# Each round has a new wrapper, which is interrupted as it records, and as it is closed.
INTERRUPTED = """
    import gc, random

    dice = random.Random({seed})
    interrupts = 0

    def interrupt(*_):
        global interrupts
        interrupts += 1
        raise KeyboardInterrupt

    def is_interrupted(call):
        try:
            if interrupts < {count}:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.03))
            call()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            return True

    def train():
        # Not for ever, because Python drops what is raised in a destructor.
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            world.run(wrapper, 1)
            if dice.random() < 0.1:
                wrapper.finish_recording()

    def used():
        time.sleep(0.3)  # threads that have done their work need a moment to end
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    signal.signal(signal.SIGALRM, interrupt)
    env = world.env(size=(48, 32), terminated_at=range(6, 10**6, 7))
    before = None
    while interrupts < {count}:
        first, options = env.steps, dict(filename=dice.choice(["run.mp4", "run.mkv", None]))
        options |= dict(step_trigger=lambda n: n % 5 == 3, video_length_sec=0.3)
        wrapper = world.wrap(env, build=False, **options)
        for _ in range(10):
            is_interrupted(train)
        world.run(wrapper, 10)
        while is_interrupted(wrapper.close):
            pass
        assert not children(), children()
        assert world.files() == [*world.videos()] != [], world.files()
        for name, steps in world.videos().items():
            # An interrupt between the env's step and its count shifts the steps that are shown.
            assert steps == sorted(set(steps)) and len(steps) <= 4, (name, steps)
            assert steps[0] >= first, (name, steps, first)
            (world.out_dir / name).unlink()
        world.forget()
        before = before or used()
    del wrapper
    gc.collect()
    assert used() == before, (used(), before)
"""


@pytest.mark.clause("FAIL-5a", "FAIL-5b", "FAIL-5c", "CLOSE-6b")
def test_interrupts_at_random_moments_leave_whole_videos_only(
    script: Any, pytestconfig: pytest.Config
) -> None:
    seed, count = draw(pytestconfig, 40, 300)
    check_end(script(INTERRUPTED.format(seed=seed, count=count)))


STEPS, EPISODE, START = 80, 13, 5  # each episode starts an active recording at its step 5
OPTIONS = """
        size=(48, 32), terminated_at=range(12, 10**6, 13), step_trigger=lambda n: n % 13 == 5,
        video_length_sec=0.8, filename={filename!r}
"""
# Signals with what the training does about them: it has no handler, ends or goes on.
SIGNALS = [
    *((name, None) for name in ("SIGKILL", "SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")),
    *((name, "stop") for name in ("SIGTERM", "SIGHUP", "SIGUSR1")),
    *((name, "go_on") for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT")),
]


def videos_of(done: int, filename: str | None) -> dict[str, list[int]]:
    """Return the videos of a training that ended after so many steps, and was not killed.

    A background recording has the first five steps of an episode. An active one has the other
    eight, and drops the background recording when it is complete.
    """
    videos = {}
    for start in range(0, done, EPISODE):
        active = [*range(start + START, min(start + EPISODE, done))]
        if len(active) < EPISODE - START:
            videos[f"{start}.mp4"] = [*range(start, min(start + START, done))]
        if active:
            videos[f"{active[0]}.mp4"] = active
    return {filename: max(videos.values())} if filename and videos else videos


def check_files(job: Job, filename: str | None, is_killed: bool) -> None:
    """Assert that no video is broken or lost, and that only a kill leaves another file."""
    videos, done = job.world.videos(), steps_of(job)
    if is_killed:
        # Active recordings that were complete. The last may be so before its step is counted.
        whole = [[*range(n, n + EPISODE - START)] for n in range(START, done + 1, EPISODE)]
        assert all(steps in whole for steps in videos.values())
        saved = {f"{steps[0]}.mp4" for steps in whole if steps[-1] < done}
        assert filename or saved <= {*videos}
        return
    assert job.world.files() == [*videos]
    # The step that the signal interrupted may count or not.
    ended = [videos_of(n, filename) for n in {done, min(done + 1, STEPS)}]
    assert all(steps in [found.get(name) for found in ended] for name, steps in videos.items())
    assert {*videos} >= set.intersection(*map(set, ended))


@pytest.mark.clause("CLOSE-8a", "CLOSE-8b", "CLOSE-14a", "CLOSE-4c", "CLOSE-4d", "FILE-3a")
@pytest.mark.extended
def test_random_signals_cost_no_frame(start: Any, leave_to: Any, pytestconfig: Any) -> None:
    seed, count = draw(pytestconfig, 20, 200)
    dice = random.Random(seed)
    job = start_training(start, f"train({STEPS})", {}, OPTIONS.format(filename=None))
    job.wait()
    if job.world.videos() != videos_of(STEPS, None):
        leave_to("without a signal, it has other frames: TIME-4 or FIN-3")
    for i in range(count):
        for file in job.world.files():
            (job.world.out_dir / file).unlink()
        name, handler = dice.choice(SIGNALS)
        filename = dice.choice([None, "run.mp4", "run.mkv", "run.mov"])
        handlers, options = {name: handler} if handler else {}, OPTIONS.format(filename=filename)
        steps = dice.randrange(1, STEPS - 25)
        job = start_training(start, f"train({STEPS})", handlers, options, steps)
        time.sleep(dice.uniform(0, 0.02))
        pid, ffmpeg = job.process.pid, job.processes()[1:]
        victims = dice.choice([[pid], [pid, *ffmpeg], [*ffmpeg, pid], [-pid]])  # which is its group
        print(f"{i}: {name} to {victims} of {pid} after {steps} steps, {handler=}, {filename=}")
        for _ in range(3 if handler == "go_on" else 1):
            job.send(getattr(signal, name), *victims)
        try:
            job.wait()
        except AssertionError as hangs:
            leave_to(str(hangs))
        wait_for_ends(ffmpeg)
        assert handler != "go_on" or steps_of(job) == STEPS
        check_files(job, filename, is_killed=handler is None and name != "SIGINT")
