"""Ends and faults of whole processes, as trainings meet them, each caused for real (CLOSE, FAIL, FILE).

A test starts a training in a process of its own and lets it meet a signal, a kill, an ffmpeg that fails
or somebody else who cleans up; then it reads the videos that are left.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from conftest import (
    Job,
    encoders,
    first_only,
    is_video_name,
    needs_proc,
    never,
    wait_until,
    warned,
)

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()

# A training that says how many steps are done when it ends, by an exit handler that runs last.
TRAINING = """
    done = 0
    atexit.register(lambda: print("steps:", done))

    def stop(*_):
        sys.exit(143)

    def go_on(*_): ...

    def train(steps):
        global done
        for _ in range(steps):
            world.run(wrapper, 1)
            done += 1
            time.sleep(0.005)
            if done == 20:
                print("under way")

    {handlers}
    wrapper = world.wrap(video_length_sec=100, {keywords})
    {training}
"""
GOES_ON = """
    try:
        train(100)
    except KeyboardInterrupt:
        train(80)
    wrapper.close()
"""


def steps_of(job: Job) -> int:
    """How many steps its training has completed."""
    return int(re.findall(r"steps: (\d+)", job.output)[-1])


def check_frames(job: Job, steps: list[int]) -> None:
    """That no frame of a step that was completed is missing, nor one shown twice."""
    done = steps_of(job)
    assert steps[:done] == list(range(done)), f"of {done} steps the video shows {steps}"
    assert steps in (list(range(done)), list(range(done + 1))), f"after {done} steps: {steps}"


KINDS = {"active": "step_trigger=first_only", "final": "step_trigger=never"}


@needs_proc
class TestSignalsToAJob:
    @pytest.mark.clause("CLOSE-14", "CLOSE-7")
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
    def test_a_signal_that_ends_the_training_costs_no_frame(
        self, start: Any, name: str, kind: str
    ) -> None:
        handlers = f"signal.signal(signal.{name}, stop)" if name != "SIGINT" else ""
        job = start(TRAINING.format(handlers=handlers, keywords=kind, training="train(4000)"))
        job.wait_for("under way")
        job.send(getattr(signal, name))
        # Python ends itself by SIGINT where nothing catches it.
        assert job.wait() == (-signal.SIGINT if name == "SIGINT" else 143), job.output
        assert job.world.files() == ["0.mp4"], job.output
        check_frames(job, job.world.video("0.mp4").steps)

    @pytest.mark.clause("CLOSE-14", "CLOSE-6")
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT"])
    def test_a_signal_that_the_training_goes_on_after_costs_no_frame(
        self, start: Any, name: str
    ) -> None:
        handlers = f"signal.signal(signal.{name}, go_on)" if name != "SIGINT" else ""
        keywords = KINDS["active"]
        job = start(TRAINING.format(handlers=handlers, keywords=keywords, training=GOES_ON))
        job.wait_for("under way")
        job.send(getattr(signal, name))
        assert job.wait() == 0, job.output
        assert job.world.files() == ["0.mp4"], job.output
        steps = job.world.video("0.mp4").steps
        if name == "SIGINT":  # costs at most the frame that it broke into (FAIL-5)
            assert steps == sorted(set(steps))
            assert len(steps) >= steps_of(job) >= 100
        else:
            assert steps == list(range(100))

    @pytest.mark.clause("CLOSE-14")
    def test_many_signals_in_mid_training_cost_no_frame(self, start: Any) -> None:
        numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM, signal.SIGINT]
        handlers = f"[signal.signal(n, go_on) for n in {[*map(int, numbers)]}]"
        training = "train(200); wrapper.close()"
        keywords = "step_trigger=lambda n: n % 40 == 0"
        code = TRAINING.format(handlers=handlers, keywords=keywords, training=training)
        job = start(code.replace("video_length_sec=100", "video_length_sec=3"))
        job.wait_for("under way")
        for number in numbers * 3:
            job.send(number)
            time.sleep(0.03)
        assert job.wait() == 0, job.output
        videos = {f"{n}.mp4": list(range(n, n + 30)) for n in range(0, 200, 40)}
        assert job.world.videos() == videos

    @pytest.mark.clause("CLOSE-7")
    def test_a_sigterm_that_is_left_to_itself_kills(self, start: Any) -> None:
        job = killed_by_sigterm(start)
        assert not [name for name in job.world.files() if is_video_name(name)], job.world.files()

    @pytest.mark.clause("CLOSE-9")
    def test_a_sigterm_that_kills_leaves_what_was_recorded_hidden(self, start: Any) -> None:
        job = killed_by_sigterm(start)
        (left,) = job.world.files()
        assert re.fullmatch(r"\.[0-9a-f]{8}-0\.mp4\.part", left)
        steps = job.world.video(left).steps
        assert steps == list(range(len(steps)))
        assert len(steps) >= 17  # some may have waited for ffmpeg (COST-3)


def killed_by_sigterm(start: Any) -> Job:
    """A training that was sent SIGTERM in mid-recording, and has no handler for it."""
    code = TRAINING.format(handlers="", keywords=KINDS["active"], training="train(4000)")
    job = start(code)
    job.wait_for("under way")
    ffmpeg = job.processes()[1:]
    job.send(signal.SIGTERM)
    assert job.wait() == -signal.SIGTERM, job.output
    wait_for_ends(ffmpeg)
    return job


def encoder_of(job: Job) -> int:
    """The one process that a training has while it records."""
    found = job.processes()[1:]
    if not found:
        pytest.skip("its encoder is no process that could be stopped")
    (encoder,) = found
    return encoder


def wait_for_ends(pids: list[int]) -> None:
    """Waits until none of these processes lives."""
    wait_until(lambda: not any(map(lives, pids)))


def lives(pid: int) -> bool:
    """Whether it runs, and is not only not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# What each child does: its video is named by its first step.
CHILDREN = """
    import multiprocessing as mp
    from concurrent.futures import ProcessPoolExecutor

    def train(first, fails=False, held=True):
        env = world.env()
        wrapper = world.wrap(env, filename=f"{{first}}.mp4", step_trigger=first_only, video_length_sec=100)
        env.steps = first
        world.run(wrapper, 15)
        if not held:
            world.forget()
        if fails:
            raise RuntimeError("training went wrong")

    if __name__ == "__main__":
        method = {method!r}
        context = mp.get_context(method)
        {start}
"""
ONE_CHILD = """
        child = context.Process(target=train, args=(0,), kwargs={keywords})
        child.start()
        child.join()
        print("ended with", child.exitcode)
"""


class TestChildren:
    @pytest.mark.clause("CLOSE-15")
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    @pytest.mark.parametrize(
        "keywords",
        [{}, {"fails": True}, {"held": False}],
        ids=["returns", "raises", "lets go of its wrapper"],
    )
    def test_a_child_that_ends_without_close_saves(
        self, start: Any, method: str, keywords: Any
    ) -> None:
        job = start(CHILDREN.format(method=method, start=ONE_CHILD.format(keywords=keywords)))
        assert job.wait() == 0, job.output
        assert f"ended with {int('fails' in keywords)}" in job.output, job.output
        assert job.world.files() == ["0.mp4"], job.output
        assert job.world.video("0.mp4").steps == list(range(15))

    @pytest.mark.clause("CLOSE-15")
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    @pytest.mark.parametrize(
        "pool",
        [
            "with context.Pool(2) as pool: pool.map(train, [0, 20, 40]); pool.close(); pool.join()",
            "with ProcessPoolExecutor(2, mp_context=context) as pool: [*pool.map(train, [0, 20, 40])]",
        ],
        ids=["pool", "executor"],
    )
    def test_a_worker_that_ends_without_close_saves(
        self, start: Any, method: str, pool: str
    ) -> None:
        job = start(CHILDREN.format(method=method, start=pool))
        assert job.wait() == 0, job.output
        wanted = {f"{first}.mp4": list(range(first, first + 15)) for first in (0, 20, 40)}
        assert job.world.videos() == wanted, job.output
        assert job.world.files() == sorted(wanted)

    @pytest.mark.clause("CLOSE-15")
    def test_a_worker_whose_task_raised_saves(self, start: Any) -> None:
        code = """pool = context.Pool(1)
        failure = pool.apply_async(train, (0, True))
        failure.wait(); pool.close(); pool.join()
        assert not failure.successful()"""
        job = start(CHILDREN.format(method="fork", start=code))
        assert job.wait() == 0, job.output
        assert job.world.videos() == {"0.mp4": list(range(15))}, job.output

    @pytest.mark.clause("CLOSE-15", "CLOSE-5")
    def test_a_child_saves_its_own_recording_and_leaves_its_parents_alone(self, start: Any) -> None:
        code = (
            """wrapper = world.wrap(filename="parent.mp4", video_length_sec=2, step_trigger=first_only)
        world.run(wrapper, 5)"""
            + ONE_CHILD.format(keywords={})
            + """
        world.run(wrapper, 15)
        assert world.videos() == {"0.mp4": list(range(15)), "parent.mp4": list(range(20))}
        """
        )
        job = start(CHILDREN.format(method="fork", start=code))
        assert job.wait() == 0, job.output
        assert job.world.files() == ["0.mp4", "parent.mp4"]


class TestWrappersOfOneProcess:
    @pytest.mark.clause("CLOSE-13")
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize(
        "held",
        ["a, b", "b, a", "a", "b", ""],
        ids=["both", "both, the newer first", "the older", "the newer", "none"],
    )
    def test_of_two_unclosed_wrappers_of_one_name_the_newer_ones_video_stays(
        self, script: Any, kind: str, held: str
    ) -> None:
        result = script(f"""
            import gc

            def run(first):
                env = world.env()
                wrapper = world.wrap(env, filename="run.mp4", video_length_sec=100, {kind})
                env.steps = first
                world.run(wrapper, 5)
                return wrapper

            a, b = run(0), run(30)
            world.forget()
            held = [{held}]
            del a, b
            gc.collect()
            """)
        assert result.returncode == 0, result.stderr
        assert result.world.files() == ["run.mp4"], result.stderr
        assert result.world.video("run.mp4").steps == [30, 31, 32, 33, 34]

    @pytest.mark.clause("CLOSE-13", "CLOSE-4")
    def test_all_are_saved_before_an_exit_handler_of_a_scene_made_for_one_of_them(
        self, script: Any
    ) -> None:
        result = script("""
            def make_scene():
                atexit.register(lambda: print("destroyed with", *world.files()))

            for i in range(3):
                make_scene()
                world.run(world.wrap(filename=f"{i}.mp4", video_length_sec=100), 5)
            """)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines() == ["destroyed with 0.mp4 1.mp4 2.mp4"] * 3

    @pytest.mark.clause("CLOSE-4")
    def test_what_raises_while_one_is_saved_does_not_cost_the_others(self, script: Any) -> None:
        result = script("""
            import warnings
            wrappers = [world.wrap(filename=f"{i}.mp4", video_length_sec=100) for i in range(3)]
            for wrapper in wrappers:
                world.run(wrapper, 5)
            (world.out_dir / "1.mp4").mkdir()
            warnings.simplefilter("error")
            """)
        assert "1.mp4" in result.stderr
        assert result.world.files() == ["0.mp4", "1.mp4", "2.mp4"]
        assert result.world.video("2.mp4").steps == [0, 1, 2, 3, 4]

    @pytest.mark.clause("CLOSE-4")
    def test_no_recording_begins_once_the_end_has_come(self, script: Any) -> None:
        result = script("""
            atexit.register(lambda: world.run(wrapper, 20))  # runs after what is registered later
            wrapper = world.wrap(step_trigger=lambda n: n % 10 == 0)
            world.run(wrapper, 13)
            """)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        assert result.world.videos() == {"0.mp4": [0, 1, 2, 3, 4], "10.mp4": [10, 11, 12]}
        assert result.world.files() == ["0.mp4", "10.mp4"]

    @needs_proc
    @pytest.mark.clause("CLOSE-4")
    def test_a_daemon_thread_that_steps_while_python_exits_leaves_nothing_behind(
        self, start: Any
    ) -> None:
        code = """
            import threading
            env = world.env()

            def step(actions):  # without torch, whose threads end Python if they are ended by it
                env.steps += 1
                env.show(env.steps - 1)
                return None, None, None, None, {}

            env.step = step
            wrapper = world.wrap(env, step_trigger=lambda n: n % 6 == 0, record_final_episode=False)

            def train():
                while True:
                    world.run(wrapper, 1)

            threading.Thread(target=train, daemon=True).start()
            time.sleep(0.3)
            print("ends")
        """
        for _ in range(5):
            job = start(code)
            job.wait_for("ends")
            ffmpeg = job.processes()[1:]
            assert job.wait() == 0, job.output
            wait_for_ends(ffmpeg)
            assert not [name for name in job.world.files() if name[0] == "."], job.world.files()
            for name, steps in job.world.videos().items():
                first = int(name.removesuffix(".mp4"))
                assert steps == list(range(first, first + len(steps)))
                (job.world.out_dir / name).unlink()

    @needs_proc
    @pytest.mark.clause("CLOSE-12")
    @pytest.mark.parametrize("in_cycle", [False, True], ids=["plain", "in a cycle"])
    def test_wrappers_that_nobody_holds_are_saved_and_freed(
        self, script: Any, in_cycle: bool
    ) -> None:
        result = script(f"""
            import gc, threading, weakref

            def children():
                paths = Path("/proc/self/task").glob("*/children")
                return [pid for path in paths for pid in path.read_text().split()]

            wrappers, envs, most = weakref.WeakSet(), weakref.WeakSet(), 0
            before = threading.active_count()
            for i in range(20):
                env = world.env()
                kind = first_only if i % 2 else never  # an active recording, and a final episode
                wrapper = world.wrap(env, filename=f"{{i}}.mp4", step_trigger=kind, video_length_sec=100)
                env.back = wrapper if {in_cycle} else None
                wrappers.add(wrapper), envs.add(env)
                world.run(wrapper, 3)
                world.forget()
                del wrapper, env
                gc.collect()
                most = max(most, len(children()))
            time.sleep(0.3)  # a thread that has done its work needs a moment to end
            assert len(wrappers) <= 1 and len(envs) <= 1, (len(wrappers), len(envs))
            assert most <= 2 and len(children()) <= 1, (most, len(children()))
            assert threading.active_count() <= before + 1, threading.enumerate()
            saved = {{f"{{i}}.mp4": [0, 1, 2] for i in range(19)}}
            assert world.videos() == saved, world.files()
            """)
        assert result.returncode == 0, result.stderr
        assert result.world.videos() == {f"{i}.mp4": [0, 1, 2] for i in range(20)}
        assert len(result.world.files()) == 20


@needs_proc
class TestInterruptedSaving:
    @pytest.mark.clause("CLOSE-11", "CLOSE-2")
    @pytest.mark.parametrize("kind", [first_only, never], ids=["active", "final"])
    def test_after_ctrl_c_in_close_another_call_goes_on(self, fake: Any, kind: Callable) -> None:
        wrapper = fake.wrap(step_trigger=kind, video_length_sec=100)
        fake.run(wrapper, 30)
        with stopped_encoder(0.6):
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                wrapper.close()
            assert "close" not in wrapper.unwrapped.calls
            wrapper.close()
        assert wrapper.unwrapped.calls.count("close") == 1
        assert fake.files() == ["0.mp4"]
        assert fake.video("0.mp4").steps == list(range(30))

    @pytest.mark.clause("CLOSE-11")
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_after_ctrl_c_in_close_the_end_of_the_process_goes_on(
        self, start: Any, kind: str
    ) -> None:
        training = "train(20); time.sleep(1); print('closes'); wrapper.close()"
        job = start(TRAINING.format(handlers="", keywords=kind, training=training))
        job.wait_for("under way")
        ffmpeg = encoder_of(job)
        job.send(signal.SIGSTOP, ffmpeg)
        job.wait_for("closes")
        time.sleep(0.3)
        job.send(signal.SIGINT, job.process.pid)
        time.sleep(0.3)
        job.send(signal.SIGCONT, ffmpeg)
        assert job.wait() == -signal.SIGINT, job.output
        assert job.world.files() == ["0.mp4"], job.output
        assert job.world.video("0.mp4").steps == list(range(20))

    @pytest.mark.clause("CLOSE-11", "CLOSE-14", "CLOSE-7")
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("names", ["SIGTERM SIGTERM", "SIGTERM SIGHUP", "SIGINT SIGINT"])
    def test_a_second_signal_that_comes_while_the_end_saves_costs_no_frame(
        self, start: Any, names: str, kind: str
    ) -> None:
        handlers = "[signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGHUP)]"
        job = start(TRAINING.format(handlers=handlers, keywords=kind, training="train(4000)"))
        job.wait_for("under way")
        ffmpeg = encoder_of(job)
        job.send(signal.SIGSTOP, ffmpeg)
        for name in names.split():
            job.send(getattr(signal, name), job.process.pid)
            time.sleep(0.4)
        job.send(signal.SIGCONT, ffmpeg)
        job.wait()
        assert job.world.files() == ["0.mp4"], job.output
        check_frames(job, job.world.video("0.mp4").steps)


@contextlib.contextmanager
def stopped_encoder(seconds: float) -> Iterator[None]:
    """The encoder of this process stands still, for so many seconds."""
    found = encoders()
    if not found:
        pytest.skip("its encoder is no process that could be stopped")
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, lambda: [os.kill(pid, signal.SIGCONT) for pid in found])
    timer.start()
    yield
    timer.join()


def program(folder: Path, code: str) -> str:
    """Makes an ffmpeg of a shell's code, which is REAL where it calls the real one."""
    path = folder / "ffmpeg"
    path.write_text("#!/bin/sh\n" + code.replace("REAL", f'"{FFMPEG}"'), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


# Ends well but for the file, of which it leaves a part.
TRUNCATES = """
case "$*" in *-encoders*) exec REAL "$@";; esac
REAL "$@"
for last; do :; done
size=$(stat -c %s "$last")
truncate -s $(({cut})) "$last"
exit {code}
"""
NO_STATUS = {
    "SIGCHLD ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "somebody waits for all": "threading.Thread(target=wait_for_all, daemon=True).start()",
}
WITHOUT_STATUS = """
    import threading, warnings

    def wait_for_all():
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.0005)

    def record(name):
        wrapper = world.wrap(filename=name, step_trigger=first_only, record_final_episode=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            world.run(wrapper, 3)
            {at_work}
            world.run(wrapper, 5)
            wrapper.close()
        return [str(w.message) for w in caught if issubclass(w.category, (RuntimeWarning, UserWarning))]

    {status}
    for name in ["a.mp4", "a.mov", "a.mkv", "a.m4v"]:
        said = record(name)
        print(name, said, world.files())
        assert {wanted}, (name, said, world.files())
        for left in world.files():
            (world.out_dir / left).unlink()
"""


@needs_proc
class TestLostExitStatus:
    @pytest.mark.clause("FAIL-7", "FAIL-1")
    @pytest.mark.parametrize("status", NO_STATUS.values(), ids=NO_STATUS)
    @pytest.mark.parametrize("cut", ["0", "300", "size / 2", "size - 1"])
    def test_a_truncated_file_is_not_taken_for_a_video(
        self, script: Any, tmp_path: Path, status: str, cut: str
    ) -> None:
        fails = "len(said) == 1 and name in said[0] and not world.files()"
        code = WITHOUT_STATUS.format(at_work="pass", status=status, wanted=fails)
        ffmpeg = program(tmp_path, TRUNCATES.format(cut=cut, code=1))
        result = script(f'os.environ["IMAGEIO_FFMPEG_EXE"] = {ffmpeg!r}\n' + textwrap.dedent(code))
        assert result.returncode == 0, result.stdout + result.stderr

    @pytest.mark.clause("FAIL-7", "FAIL-1")
    @pytest.mark.parametrize("status", NO_STATUS.values(), ids=NO_STATUS)
    def test_the_file_of_a_killed_encoder_is_not_taken_for_a_video(
        self, script: Any, status: str
    ) -> None:
        kill = "print([os.kill(pid, signal.SIGKILL) for pid in conftest.encoders()])"
        fails = "len(said) == 1 and name in said[0] and not world.files()"
        result = script(WITHOUT_STATUS.format(at_work=kill, status=status, wanted=fails))
        if result.stdout.startswith("[]"):
            pytest.skip("its encoder is no process that could be killed")
        assert result.returncode == 0, result.stdout + result.stderr

    @pytest.mark.clause("FAIL-7")
    @pytest.mark.parametrize("status", NO_STATUS.values(), ids=NO_STATUS)
    def test_a_whole_file_is_taken(self, script: Any, status: str) -> None:
        saves = "not said and world.videos() == {name: [0, 1, 2, 3, 4]}"
        result = script(WITHOUT_STATUS.format(at_work="pass", status=status, wanted=saves))
        assert result.returncode == 0, result.stdout + result.stderr


class TestOtherFaults:
    @pytest.mark.clause("FAIL-1")
    def test_an_encoder_that_says_that_it_failed_is_believed(
        self, script: Any, tmp_path: Path
    ) -> None:
        # As ffmpeg does that runs out of memory in the last frames: the file is whole, but short.
        code = 'case "$*" in *-encoders*) exec REAL "$@";; esac; REAL -t 0.3 "$@"; cat >/dev/null'
        ffmpeg = program(tmp_path, code + '; echo "malloc of size 4194304 failed" >&2; exit 1')
        result = script(f"""
            os.environ["IMAGEIO_FFMPEG_EXE"] = {ffmpeg!r}
            wrapper = world.wrap(record_final_episode=False)
            with conftest.warned(r"\\b0\\.mp4", "malloc of size"):
                world.run(wrapper, 8)
            assert world.files() == [], world.files()
            """)
        assert result.returncode == 0, result.stderr

    @pytest.mark.clause("FILE-20")
    @pytest.mark.parametrize("when", [0, 3, 8])
    def test_a_folder_for_temporary_files_that_goes_away_costs_no_video(
        self, script: Any, tmp_path: Path, when: int
    ) -> None:
        (tmp_path / "job").mkdir()
        result = script(
            f"""
            import shutil, tempfile, warnings
            warnings.simplefilter("error")
            assert tempfile.gettempdir() == os.environ["TMPDIR"]
            wrapper = world.wrap(step_trigger=lambda n: n in (0, 10), video_length_sec=0.5)
            world.run(wrapper, {when})
            shutil.rmtree(os.environ["TMPDIR"])
            world.run(wrapper, {17 - when})
            wrapper.close()
            world.run(world.wrap(filename="another.mp4"), 6)
            """,
            TMPDIR=str(tmp_path / "job"),
        )
        assert result.returncode == 0, result.stderr
        videos = {n: [0, 1, 2, 3, 4] for n in ("0.mp4", "another.mp4")}
        assert result.world.videos() == {**videos, "10.mp4": [10, 11, 12, 13, 14]}

    @needs_proc
    @pytest.mark.clause("FAIL-8")
    @pytest.mark.parametrize("where", ["step", "close"])
    def test_an_encoder_that_stands_still_gives_a_warning_and_is_waited_for(
        self, fake: Any, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        wrapper = fake.wrap(video_length_sec=100, record_final_episode=False)
        fake.run(wrapper, 2)
        clock, start = time.monotonic, time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: start + 20 * (clock() - start))
        with warned(r"\b0\.mp4", "wait", "ffmpeg|encoder"), stopped_encoder(1.2):
            fake.run(wrapper, 40 if where == "step" else 1)
            if where == "close":
                wrapper.close()
        wrapper.close()
        assert fake.video("0.mp4").steps == list(range(42 if where == "step" else 3))

    @pytest.mark.clause("ARG-12")
    @pytest.mark.parametrize(
        ("code", "cause"),
        [
            (None, "No such file"),
            ("chmod 644", "Permission denied"),
            ("echo 'cannot load libx' >&2; exit 127", "127"),
            ("kill -9 $$", "SIGKILL|-9|137"),
            ("echo ' V....D mpeg4  MPEG-4 part 2'", "libx264"),
        ],
        ids=["missing", "not executable", "exits", "dies", "without libx264"],
    )
    def test_an_ffmpeg_that_cannot_be_used_is_refused_at_construction(
        self, script: Any, tmp_path: Path, code: str | None, cause: str
    ) -> None:
        path = program(tmp_path, code or "")
        if code is None:
            os.unlink(path)
        elif code.startswith("chmod"):
            os.chmod(path, 0o644)
        result = script(
            f"""
            os.environ["IMAGEIO_FFMPEG_EXE"] = {path!r}
            env = world.env()
            try:
                world.wrap(env, build=False)
            except RuntimeError as error:
                print(error)
            print(env.calls)
            """
        )
        *words, calls = result.stdout.splitlines()
        assert words, f"it is accepted: {result.stderr}"
        assert re.search(cause, "".join(words)), words
        assert "pip install" in "".join(words), words
        assert calls == "[]"

    @pytest.mark.clause("ARG-12")
    def test_where_the_package_brings_no_ffmpeg_it_is_refused_at_construction(
        self, script: Any
    ) -> None:
        result = script("""
            import imageio_ffmpeg
            def get_ffmpeg_exe():
                raise RuntimeError("No ffmpeg exe could be found. Install ffmpeg on your system.")
            imageio_ffmpeg.get_ffmpeg_exe = get_ffmpeg_exe
            try:
                world.wrap()
            except RuntimeError as error:
                print(error)
            """)
        assert "pip install" in result.stdout, result.stdout + result.stderr

    @pytest.mark.clause("ARG-12")
    def test_ffmpeg_is_asked_once_in_a_process(self, script: Any, tmp_path: Path) -> None:
        log = tmp_path / "log"
        ffmpeg = program(tmp_path, f'echo "$*" >> {log}; exec REAL "$@"')
        result = script(f"""
            os.environ["IMAGEIO_FFMPEG_EXE"] = {ffmpeg!r}
            for i in range(3):
                wrapper = world.wrap(filename=f"{{i}}.mp4", record_final_episode=False)
                world.run(wrapper, 6)
            """)
        assert result.returncode == 0, result.stderr
        asked = [line for line in log.read_text().splitlines() if "rawvideo" not in line]
        assert len(asked) == 1, asked


# A run that is killed in mid-recording: its ffmpeg lives on, and completes what it left.
RUN = """
    wrapper = world.wrap(
        world.env(size=(48, 32), dt=0.02), filename={name!r}, step_trigger=first_only, video_length_sec=20
    )
    world.run(wrapper, 100)
    time.sleep(0.7)
    print("under way")
    time.sleep(100)
"""


def kill(start: Any, name: str, with_ffmpeg: bool = False) -> Path:
    """What a killed run of this `filename` leaves in its folder."""
    job = start(RUN.format(name=name))
    job.wait_for("under way")
    victims = job.processes()
    job.send(signal.SIGKILL, *victims[: None if with_ffmpeg else 1])
    job.wait()
    wait_for_ends(victims)
    (left,) = job.world.files()
    assert left[0] == ".", f"{left} stands under a video's name"
    return job.world.out_dir / left


def copies(left: Path, count: int, share: float = 1) -> None:
    """Leftovers of as many other runs, of which each has a share of this one's bytes."""
    data = left.read_bytes()
    for i in range(count):
        name = f".{i:08x}{left.name[9:]}"
        left.with_name(name).write_bytes(data[: int(share * len(data))])


@needs_proc
class TestLeftovers:
    @pytest.mark.clause("FILE-19", "CLOSE-9")
    @pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".mkv"])
    def test_a_whole_one_is_kept_under_a_name_of_its_own_and_a_line_says_so(
        self, module: Any, start: Any, fake: Any, capsys: pytest.CaptureFixture, suffix: str
    ) -> None:
        left = kill(start, f"policy{suffix}")
        fake.wrap(filename=f"policy{suffix}", logging=True)
        (kept,) = fake.files()
        assert re.fullmatch(rf"policy-[0-9a-f]{{8}}\{suffix}", kept)
        assert kept[7:15] == left.name[1:9]
        assert fake.video(kept).steps == list(range(100))
        (line,) = capsys.readouterr().out.splitlines()
        assert str(fake.out_dir / kept) in line

    @pytest.mark.clause("FILE-19", "CLOSE-9")
    @pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v"])
    def test_half_a_one_is_removed_without_a_word(
        self, module: Any, start: Any, fake: Any, capsys: pytest.CaptureFixture, suffix: str
    ) -> None:
        left = kill(start, f"policy{suffix}", with_ffmpeg=True)
        assert left.exists()
        fake.wrap(logging=True)
        assert fake.files() == []
        assert capsys.readouterr().out == ""

    @pytest.mark.clause("FILE-19")
    def test_of_any_share_of_one_nothing_is_kept_that_cannot_be_played(
        self, module: Any, start: Any, fake: Any
    ) -> None:
        for suffix in (".mp4", ".mkv"):
            left = kill(start, f"policy{suffix}")
            for i in range(40):
                data = left.read_bytes()[: i * left.stat().st_size // 40]
                left.with_name(f".{i:08x}{left.name[9:]}").write_bytes(data)
            fake.wrap()
            kept = fake.files()
            assert len(kept) == 1 if suffix == ".mp4" else len(kept) > 20
            for name in kept:
                steps = fake.video(name).steps
                assert steps == list(range(len(steps)))
                (fake.out_dir / name).unlink()

    @pytest.mark.clause("FILE-19")
    def test_starters_that_race_keep_each_once(self, module: Any, start: Any) -> None:
        left = kill(start, "policy.mp4")
        copies(left, 60)
        code = """
            while time.time() < {at}:
                pass
            world.wrap(filename="policy.mp4", logging=True)
        """
        at = time.time() + 8
        jobs = [start(code.format(at=at)) for _ in range(4)]
        assert [job.wait() for job in jobs] == [0] * 4, [job.output for job in jobs]
        files = jobs[0].world.files()
        assert len(files) == 61, files
        assert all(re.fullmatch(r"policy-[0-9a-f]{8}\.mp4", name) for name in files)
        said = [
            re.search(r"policy-\w+\.mp4", x)[0] for job in jobs for x in job.output.splitlines()
        ]
        assert sorted(said) == files

    @pytest.mark.clause("FILE-19")
    def test_a_folder_of_many_is_cleared_at_once(self, module: Any, start: Any, fake: Any) -> None:
        left = kill(start, "policy.mp4")
        copies(left, 500, share=0.9)
        begun = time.monotonic()
        fake.wrap()
        assert time.monotonic() - begun < 5
        assert len(fake.files()) == 1

    @pytest.mark.clause("FILE-19")
    def test_they_are_found_in_a_folder_whose_name_looks_like_a_pattern(
        self, module: Any, start: Any, fake: Any
    ) -> None:
        left = kill(start, "policy.mp4")
        folder = fake.out_dir.parent / "runs [1-3] *?"
        shutil.move(left.parent, folder)
        fake.wrap(out_dir=str(folder))
        (kept,) = os.listdir(folder)
        assert kept.startswith("policy-")

    @pytest.mark.clause("FILE-19")
    def test_they_are_no_concern_of_a_run_in_another_folder(
        self, module: Any, start: Any, fake: Any
    ) -> None:
        left = kill(start, "policy.mp4")
        fake.wrap(out_dir=str(fake.out_dir / "another"))
        assert left.exists()

    @pytest.mark.clause("FILE-19")
    @pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
    def test_one_that_was_completed_without_a_frame_is_removed(
        self, module: Any, start: Any, fake: Any, suffix: str
    ) -> None:
        job = start(f"""
            wrapper = world.wrap(size=(1280, 720), filename="policy{suffix}", video_length_sec=100)
            print("under way")
            world.run(wrapper, 100)
            """)
        job.wait_for("under way")
        wait_until(lambda: encoders(job.process.pid))
        (ffmpeg,) = encoders(job.process.pid)
        job.send(signal.SIGSTOP, ffmpeg)  # before it has read a frame, of which a part is written
        job.send(signal.SIGKILL, job.process.pid)
        job.wait()
        job.send(signal.SIGCONT, ffmpeg)
        wait_for_ends([ffmpeg])
        (left,) = fake.files()
        assert left[0] == "."
        fake.wrap()
        assert all(steps for steps in fake.videos().values())
        assert not [name for name in fake.files() if name[0] == "."]
