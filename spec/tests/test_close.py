"""Trainings that end, fork, share a folder, or meet signals and kills (CLOSE, FILE).

Most tests start a training in a process of its own, and then read the videos that it left.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from typing import Any

import pytest

from spec.suite.child import Harness
from spec.suite.doubles import first_only, never, only_at
from spec.suite.processes import Job, needs_proc, stopped_encoder, wait_for_ends, wait_until
from spec.suite.video_reader import assert_videos

# Arguments of a wrapper with one long recording.
KINDS = {
    "active": "step_trigger=first_only, video_length_sec=100",
    "final": "step_trigger=never, video_length_sec=100",
}
EXTENDED = [pytest.mark.extended]


def case(clauses: str, id: str, *values: Any, marks: Any = ()) -> Any:
    return pytest.param(*values, id=id, marks=[pytest.mark.clause(*clauses.split()), *marks])


PENDING = """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    trigger = lambda n: n == 2
    world.record(5, filename="active.mp4", record_final_episode=False, step_trigger=trigger)
    world.record(7, filename="final.mp4", terminated_at={3}, step_trigger=never)
    """
BOTH = {"active.mp4": range(2, 5), "final.mp4": range(4)}
# Python runs the exit handler of each scene after that of its wrapper.
SCENES = """
    for name in "abc":
        atexit.register(lambda: len(world.files()) == 3 or os._exit(1))
        world.record(5, filename=f"{name}.mp4", video_length_sec=100)
"""
ABC = {"a.mp4": range(5), "b.mp4": range(5), "c.mp4": range(5)}
STEPS_ON = """
    atexit.register(lambda: world.run(wrapper, 20))  # runs after those registered later
    wrapper = world.record(18, step_trigger=lambda n: n % 10 == 5)
"""
CUT = {"5.mp4": range(5, 10), "15.mp4": range(15, 18)}
SAME_NAME = """
    import gc
    older, newer = world.env(), world.env()
    newer.steps = 30
    wrappers = [world.record(5, env, filename="run.mp4", {kind}) for env in (older, newer)]
    world.forget()
    {then}
    gc.collect()
"""
ALL_HELD = SAME_NAME.format(kind=KINDS["active"], then="wrappers.reverse()")
NONE_HELD = SAME_NAME.format(kind=KINDS["final"], then="del wrappers[0], wrappers[0]")
NEWER = {"run.mp4": range(30, 35)}
CHILD_STEPS = """
    wrapper = world.wrap(step_trigger=never, record_final_episode=False)
    wrapper.start_recording("KIND")
    world.run(wrapper, 3)
    child = os.fork()
    if child == 0:
        wrapper.unwrapped.steps = 100
        world.run(wrapper, 2)
        leave()  # runs the exit handlers, which a child of multiprocessing does not
    assert os.waitpid(child, 0)[1] == 0
    assert not world.videos(), "the child saved its parent's recording"
    world.run(wrapper, 6)
    wrapper.close()
"""
CHILD_LIVES_ON = """
    wrapper = world.record(2, record_final_episode=False)
    child = os.fork()
    if child == 0:
        time.sleep(30)  # as a data loader's worker does
        os._exit(0)
    world.run(wrapper, 6)
    assert world.files() == ["0.mp4"]
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it is still alive
    os.kill(child, signal.SIGKILL)
"""
CHILD_RECORDS = """
    wrapper = world.record(2, step_trigger=lambda n: n in (0, 7), record_final_episode=False)
    child = os.fork()
    world.run(wrapper, 13 if child == 0 else 5)
    if child == 0:
        leave()
    assert os.waitpid(child, 0)[1] == 0
"""
FIVE, TWO = {"0.mp4": range(5)}, {"0.mp4": range(5), "7.mp4": range(7, 12)}
SHARED_FOLDER = """
    child = os.fork()
    trigger = lambda n: n % 8 == 0
    wrapper = world.wrap(filename="run.mp4", step_trigger=trigger, record_final_episode=False)
    for i in range(6):
        world.run(wrapper, 8)
        (steps,) = world.videos().values()
        first = round(steps[0] / 8) * 8
        video_reader.assert_steps(steps, range(first, first + 5))
    wrapper.close()
    if child == 0:
        leave()
    assert os.waitpid(child, 0)[1] == 0
"""
CTRL_C = """
    wrapper = world.record(20, size=(640, 480), video_length_sec=4)
    try:
        os.killpg(0, signal.SIGINT)  # as a terminal does
        time.sleep(10)
    except KeyboardInterrupt:
        time.sleep(0.3)
    world.run(wrapper, 10)
    wrapper.close()
"""
MANY = """
    import gc

    def used():
        gc.collect()
        time.sleep(0.3)  # a thread that has done its work needs a moment to end
        files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
        status = Path("/proc/self/status").read_text().split()
        return files, threads, len(children()), int(status[status.index("VmRSS:") + 1])

    # The last 45 recordings are background ones of a whole episode, none of which has lasted.
    trigger, ends = (lambda n: n in (10, 60, 110)), range(2, 10**6, 3)
    wrapper = world.wrap(size=(48, 32), filename="run.mp4", step_trigger=trigger, terminated_at=ends)
    world.run(wrapper, 50)
    before = used()
    for _ in range(201):
        world.run(wrapper, 1)  # without keeping the results
    after = used()
    assert after[:3] == before[:3] and after[3] < before[3] + 4096, (before, after)
    wrapper.close()
    assert not children(), children()
"""
FREED = """
    import gc, weakref
    kinds = [(first_only, 100), (never, 100), (never, 0.3)]
    wrappers, envs = weakref.WeakSet(), weakref.WeakSet()
    for i, (trigger, seconds) in enumerate(3 * kinds):
        options = dict(filename=f"{i}.mp4", step_trigger=trigger, video_length_sec=seconds)
        wrapper = world.record(3, **options)
        wrapper.unwrapped.back = wrapper if i % 2 else None  # a cycle
        wrappers.add(wrapper)
        envs.add(wrapper.unwrapped)
        world.forget()
        del wrapper
        gc.collect()  # the fake env and its camera refer to each other
        assert max(map(len, (wrappers, envs, children()))) <= 1
    time.sleep(0.2)  # a thread that has done its work needs a moment to end
    assert len(os.listdir("/proc/self/task")) <= 2
"""
LAST, NINE = {"run.mp4": range(246, 249)}, {f"{i}.mp4": range(3) for i in range(9)}


@pytest.mark.parametrize(
    ("code", "videos", "status"),
    [
        case("CLOSE-4a", "end of script", PENDING, BOTH, 0),
        case("CLOSE-4a", "scenes", SCENES, ABC, 0, marks=EXTENDED),
        case("CLOSE-4b", "sys.exit", PENDING + "sys.exit(3)", BOTH, 3),
        case("CLOSE-4c", "exception", PENDING + "raise KeyError('a')", BOTH, 1),
        case("CLOSE-4c", "Ctrl-C", PENDING + "signal.raise_signal(signal.SIGINT)", BOTH, -2),
        case("CLOSE-4d", "SIGTERM", PENDING + "signal.raise_signal(signal.SIGTERM)", BOTH, 143),
        case("CLOSE-4f", "both wrappers held", ALL_HELD, NEWER, 0),
        case("CLOSE-4f", "no wrapper held", NONE_HELD, NEWER, 0),
        case("CLOSE-4h", "an exit handler steps on", STEPS_ON, CUT, 0),
        case("CLOSE-5a", "child steps, active", CHILD_STEPS.replace("KIND", "active"), FIVE, 0),
        case("CLOSE-5a", "child steps, final", CHILD_STEPS.replace("KIND", "background"), FIVE, 0),
        case("CLOSE-5b", "child lives on", CHILD_LIVES_ON, FIVE, 0),
        case("CLOSE-5c", "child records", CHILD_RECORDS, TWO, 0),
        case("CLOSE-6a", "Ctrl-C in the terminal", CTRL_C, {"0.mp4": range(30)}, 0),
        case("CLOSE-10b", "wrappers that nobody holds", FREED, NINE, 0, marks=[needs_proc]),
        case("FILE-3d", "processes share a name", SHARED_FOLDER, {"run.mp4": range(40, 45)}, 0),
        case("FILE-12b", "many recordings", MANY, LAST, 0, marks=[needs_proc]),
    ],
)
def test_a_training_leaves_whole_videos(start: Any, code: str, videos: Any, status: int) -> None:
    job = start(code)
    assert job.wait() == status, job.output
    assert status or "Traceback" not in job.output, job.output
    assert_videos(job.world, videos)
    assert job.world.files() == sorted(videos)


@pytest.mark.clause("CLOSE-4c")
@pytest.mark.extended
def test_end_without_close_saves_before_genesis_ends(script: Any, real_scene: Any) -> None:
    # Genesis registers its own exit handler when the scene is made, and it destroys the scene.
    code = """
        env, reader = genesis_scenes.GenesisEnv, genesis_scenes.Board.read
        world = type(world)(Path(folder), load(implementation), env, reader)
        active = world.wrap(step_trigger=lambda n: n == 2, record_final_episode=False)
        final = world.wrap(active, step_trigger=never)
        world.run(final, 5)
        raise RuntimeError("training went wrong")
    """
    result = script(code, timeout=600)  # compiles the scene's kernels if none are cached
    world = Harness(result.world.out_dir, Any, reader=real_scene[1])
    assert world.files() == ["0.mp4", "2.mp4"], result.stderr
    assert_videos(world, {"0.mp4": range(5), "2.mp4": range(2, 5)})


@pytest.mark.clause("CLOSE-4g")
def test_an_error_at_the_end_costs_no_other_video(start: Any) -> None:
    job = start("""
        import warnings
        for name in "abc":
            world.record(5, filename=f"{name}.mp4", video_length_sec=100)
        (world.out_dir / "b.mp4").mkdir()
        warnings.simplefilter("error")
    """)
    job.wait()
    assert "b.mp4" in job.output
    (job.world.out_dir / "b.mp4").rmdir()
    assert_videos(job.world, {"a.mp4": range(5), "c.mp4": range(5)})


@needs_proc
@pytest.mark.clause("CLOSE-4h", "FILE-3c")
@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.extended
def test_a_daemon_thread_that_steps_on_leaves_whole_videos(start: Any, attempt: int) -> None:
    job = start("""
        import threading
        wrapper = world.wrap(step_trigger=lambda n: n % 6 == 0, record_final_episode=False)
        threading.Thread(target=world.run, args=(wrapper, 10**6), daemon=True).start()
        time.sleep(0.3)
    """)
    assert job.wait() == 0, job.output
    videos = job.world.videos()
    assert job.world.files() == [*videos]
    assert all(steps == [*range(steps[0], steps[-1] + 1)] for steps in videos.values())


# Each child records a video that is named after its first step.
CHILDREN = """
    import multiprocessing as mp
    from concurrent import futures

    def train(first, fails=False, held=True):
        env = world.env()
        env.steps = first
        world.record(15, env, filename=f"{{first}}.mp4", video_length_sec=100)
        if not held:
            world.forget()
        if fails:
            raise RuntimeError("training went wrong")

    def in_process(*arguments):
        child = context.Process(target=train, args=arguments)
        child.start()
        child.join()
        print("exit code", child.exitcode)

    def in_pool(*tasks):
        with context.Pool(2) as pool:
            pool.starmap_async(train, tasks).wait()
            pool.close()
            pool.join()

    def in_executor(*tasks):
        with futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            futures.wait([pool.submit(train, *task) for task in tasks])

    if __name__ == "__main__":
        context = mp.get_context({method!r})
        {call}
"""
CALLS = {
    "process": "in_process(0)",
    "raises": "in_process(0, True)",
    "lets go": "in_process(0, False, False)",
    "pool": "in_pool((0,), (20,), (40,))",
    "task raises": "in_pool((0, True))",
    "executor": "in_executor((0,), (20,), (40,))",
}


@pytest.mark.clause("CLOSE-4e")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.extended(default=["process-fork", "raises-spawn", "pool-fork", "executor-spawn"])
def test_children_without_close_save(start: Any, method: str, call: str) -> None:
    job = start(CHILDREN.format(method=method, call=call))
    assert job.wait() == 0, job.output
    if "process" in call:
        assert f"exit code {int('True' in call)}" in job.output, job.output
    firsts = [int(number) for number in re.findall(r"\d+", call)]
    videos = {f"{first}.mp4": range(first, first + 15) for first in firsts}
    assert_videos(job.world, videos)
    assert job.world.files() == sorted(videos)


# A training that writes a zero byte for each completed step.
TRAINING = """
    stop, go_on = (lambda *_: sys.exit(143)), (lambda *_: None)

    def train(steps):
        for _ in range(steps):
            world.run(wrapper, 1)
            os.write(1, bytes(1))
            time.sleep(0.002)

    def train_on():
        try:
            train(100)
        except KeyboardInterrupt:
            train(80)
        wrapper.close()

    def stop_encoder():
        for pid in encoders():
            os.kill(pid, signal.SIGSTOP)
        print("stopped")

    {handlers}
    wrapper = world.wrap({keywords})
    {training}
"""


def start_training(
    start: Any, training: str, handlers: dict[str, str], keywords: str, steps: int = 20
) -> Job:
    """Start `TRAINING`, and wait until it has completed so many steps."""
    handling = "\n    ".join(f"signal.signal(signal.{n}, {h})" for n, h in handlers.items())
    job = start(TRAINING.format(handlers=handling, keywords=keywords, training=training))
    wait_until(lambda: steps_of(job) >= steps or job.process.poll() is not None)
    return job


def steps_of(job: Job) -> int:
    """Return how many steps its training has completed."""
    return job.output.count("\0")


def check_frames(job: Job, broken_off: int = 0) -> None:
    """Assert that its one video shows all completed steps, but for so many that Ctrl-C broke off."""
    assert job.world.files() == ["0.mp4"], job.output
    steps, done = job.world.video("0.mp4").steps, steps_of(job)
    lost = {*range(1, done)} - {*steps}
    assert len(lost) <= broken_off, f"of {done} steps the video lacks {lost}"
    assert steps == sorted({*steps})
    # The signal may have come before the last step was counted.
    assert done <= len({0, *steps}) <= done + 1, f"of {done} steps the video shows {steps}"


@needs_proc
@pytest.mark.clause("CLOSE-14a")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("handler", ["stop", "go_on"], ids=["end", "on"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT"])
@pytest.mark.extended(default=["SIGTERM-end-active", "SIGINT-end-final", "SIGUSR1-on-active"])
def test_a_signal_to_a_job_costs_no_frame(start: Any, name: str, handler: str, kind: str) -> None:
    training = "train(4000)" if handler == "stop" else "train_on()"
    job = start_training(start, training, {name: handler} if name != "SIGINT" else {}, kind)
    job.send(getattr(signal, name))
    code = -signal.SIGINT if name == "SIGINT" else 143
    assert job.wait() == (code if handler == "stop" else 0), job.output
    assert handler == "stop" or steps_of(job) >= 100
    check_frames(job, broken_off=(name, handler) == ("SIGINT", "go_on"))


@needs_proc
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    ("names", "then"),
    [
        case("CLOSE-6b", "in close", "SIGINT", "wrapper.close()"),
        case("CLOSE-6d", "two SIGTERM", "SIGTERM SIGTERM", "train(4000)"),
        case("CLOSE-14a", "one SIGTERM", "SIGTERM", "train(4000)"),
        case("CLOSE-6a", "one SIGINT", "SIGINT", "train(4000)"),
        case("CLOSE-6d", "SIGTERM and SIGHUP", "SIGTERM SIGHUP", "train(4000)"),
        case("CLOSE-6d", "two SIGINT", "SIGINT SIGINT", "train(4000)"),
    ],
)
@pytest.mark.extended(default=["in close-active", "two SIGTERM-active", "two SIGINT-final"])
def test_signals_while_saving_cost_no_frame(start: Any, names: str, then: str, kind: str) -> None:
    training = f"train(20)\n    stop_encoder()\n    {then}"
    job = start_training(start, training, {"SIGTERM": "stop", "SIGHUP": "stop"}, kind)
    job.wait_for("stopped")
    ffmpeg = job.encoder()
    for name in names.split():
        time.sleep(0.3)
        job.send(getattr(signal, name), job.process.pid)
    time.sleep(0.3)
    job.send(signal.SIGCONT, ffmpeg)
    assert job.wait() != 0, job.output
    check_frames(job)


@needs_proc
@pytest.mark.clause("CLOSE-6b", "CLOSE-6c")
@pytest.mark.parametrize("kind", [first_only, never], ids=["active", "final"])
def test_close_resumes_after_ctrl_c(fake: Any, kind: Any) -> None:
    wrapper = fake.wrap(step_trigger=kind, video_length_sec=100)
    fake.run(wrapper, 30)
    with stopped_encoder(0.5):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            wrapper.close()
        assert "close" not in wrapper.unwrapped.calls
        wrapper.close()
    assert wrapper.unwrapped.calls.count("close") == 1
    assert_videos(fake, {"0.mp4": range(30)})
    assert fake.files() == ["0.mp4"]


# Saves a video of five frames, and is killed while the next one has a hundred.
KILLED = """
    options = dict(filename={name!r}, step_trigger=first_only, record_final_episode=False)
    env = world.env(size=(48, 32), dt=0.02)
    world.record(8, env, video_length_sec=0.1, **options)
    world.record(100, env, video_length_sec=20, **options)
    found = encoders()
    print(*found, flush=True)
    for pid in [*(found if {ffmpeg_too} else []), os.getpid()]:
        os.kill(pid, signal.{end})
"""
NAMES = {"mp4": "run.mp4", "mkv": "run.mkv", "MOV": "run.MOV", "long": "größe" * 30 + ".mp4"}


def kill_run(script: Any, name: str, end: str, ffmpeg_too: bool = False) -> Any:
    """Run `KILLED`, and wait until its encoders have ended."""
    result = script(KILLED.format(name=name, end=end, ffmpeg_too=ffmpeg_too))
    assert result.returncode == -getattr(signal, end), result.stderr
    wait_for_ends([*map(int, result.stdout.split())])
    return result.world


@needs_proc
@pytest.mark.clause("CLOSE-8a", "CLOSE-8b")
@pytest.mark.parametrize("name", ["policy.mp4", "policy.mkv"])
@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("ffmpeg_too", [False, True], ids=["Python", "ffmpeg too"])
@pytest.mark.extended(default=["ffmpeg too-SIGKILL-policy.mp4", "Python-SIGTERM-policy.mp4"])
def test_a_killed_run_leaves_whole_videos(
    script: Any, name: Any, end: Any, ffmpeg_too: Any
) -> None:
    assert_videos(kill_run(script, name, end, ffmpeg_too), {name: range(5)})


@needs_proc
@pytest.mark.clause("CLOSE-9a", "CLOSE-9b", "CLOSE-9c")
@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.extended(default=["mp4-SIGKILL"])
def test_a_partial_file_stays_and_plays(script: Any, fake: Any, name: str, end: str) -> None:
    wrapper = fake.record(3, **only_at(0))
    others = ["0.mp4.1a2b3c4d.part", ".0.mp4.part", "0.part", ".1234abcd-0.mp4.part", ".hidden"]
    for other in others:
        (fake.out_dir / other).write_text("somebody's")
    kill_run(script, name, end)
    pattern = re.escape(name[:60]) + r"\.[0-9a-f]{8}\.part"
    (part,) = [file for file in fake.files() if re.fullmatch(pattern, file)]
    fake.record(8, filename=name, **only_at(0))
    fake.run(wrapper, 2)
    fake.close()
    assert fake.video(part).steps == [*range(8, 108)]
    assert_videos(fake, {"0.mp4": range(5), name: range(5)})
    assert fake.files() == sorted(["0.mp4", name, part, *others])
    assert {(fake.out_dir / other).read_text() for other in others} == {"somebody's"}
