"""Processes: what trainings leave that fork, share a folder, or meet signals and kills (FILE, CLOSE).

A test starts a training in a process of its own and lets it meet that, or just end; then it reads the
videos that are left.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spec.suite.doubles import first_only, never
from spec.suite.processes import Job, check_end, needs_proc, stopped_encoder, wait_until
from spec.suite.video_reader import Shown, is_video_name, read_video


class TestSharedFolders:
    @pytest.mark.clause("FILE-3d")
    @pytest.mark.extended
    def test_ranks_of_torchrun_with_one_filename_leave_one_whole_video(self, script: Any) -> None:
        code = """
            import torch
            torch.distributed.init_process_group("gloo")
            wrapper = world.wrap(
                filename="policy.mp4", step_trigger=lambda n: n % 8 == 0, record_final_episode=False
            )
            for i in range(8):
                torch.distributed.barrier()
                world.run(wrapper, 8)
                (steps,) = world.videos().values()
                assert steps in [list(range(8 * j, 8 * j + 5)) for j in range(8)], steps
            wrapper.close()
            torch.distributed.barrier()
            assert world.files() == ["policy.mp4"], world.files()
            torch.distributed.destroy_process_group()
        """
        result = script(code, ranks=2)
        check_end(result)

    @pytest.mark.clause("FILE-3d")
    def test_processes_with_one_filename_leave_one_whole_video(self, script: Any) -> None:
        result = script("""
            ranks = []
            while len(ranks) < 3 and 0 not in ranks:
                ranks.append(os.fork())
            wrapper = world.wrap(
                filename="policy.mp4", step_trigger=lambda n: n % 8 == 0, record_final_episode=False
            )
            for i in range(8):
                world.run(wrapper, 8)
                (steps,) = world.videos().values()
                assert steps in [list(range(8 * j, 8 * j + 5)) for j in range(8)], steps
            wrapper.close()
            if 0 in ranks:
                leave()
            assert [os.waitpid(rank, 0)[1] for rank in ranks] == [0, 0, 0]
            assert world.files() == ["policy.mp4"], world.files()
        """)
        check_end(result)

    @pytest.mark.clause("CLOSE-9c")
    def test_a_new_wrapper_leaves_living_recordings_and_other_files_alone(
        self, fake: Any, script: Any
    ) -> None:
        wrapper = fake.wrap(step_trigger=first_only)
        fake.run(wrapper, 3)
        others = [".0.mp4.part", "0.part", ".1234abcd-0.mp4", "x.1234abcd-0.mp4.part", ".hidden"]
        for name in others:
            (fake.out_dir / name).write_text("somebody's")
        fake.wrap()
        result = script("world.wrap()")
        check_end(result)
        fake.run(wrapper, 2)
        assert fake.video("0.mp4").steps == [0, 1, 2, 3, 4]
        assert fake.files() == sorted(["0.mp4", *others])


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


def wait_for_ends(pids: list[int]) -> None:
    """Waits until none of these processes lives."""
    wait_until(lambda: not any(map(lives, pids)))


def lives(pid: int) -> bool:
    """Whether it runs, and is not only not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def copies(left: Path, count: int, share: float = 1) -> None:
    """Leftovers of as many other runs, of which each has a share of this one's bytes."""
    data = left.read_bytes()
    for i in range(count):
        name = f".{i:08x}{left.name[9:]}"
        left.with_name(name).write_bytes(data[: int(share * len(data))])


# Saves a video of five frames, and is killed when the next has a hundred.
KILLED = """
    always = dict(filename={name!r}, step_trigger=first_only, record_final_episode=False)
    env = world.env(size=(48, 32), dt=0.02)
    world.run(world.wrap(env, video_length_sec=0.1, **always), 8)
    wrapper = world.wrap(env, video_length_sec=20, **always)
    world.run(wrapper, 100)
    encoders = [int(pid) for p in Path("/proc/self/task").glob("*/children") for pid in p.read_text().split()]
    time.sleep(0.7)
    for pid in [*{victims}, os.getpid()]:
        os.kill(pid, signal.SIGKILL)
"""


def leftovers(result: Any) -> list[Path]:
    check_end(result, -signal.SIGKILL)
    return [result.world.out_dir / n for n in result.world.files() if n.startswith(".")]


def read_when_done(result: Any, path: Path, count: int) -> list[int]:
    """The steps of a video that an ffmpeg without its parent is about to complete."""
    until = time.monotonic() + 10
    while True:
        try:
            steps = result.world.video(path.name).steps
        except AssertionError:
            steps = []
        if len(steps) >= count or time.monotonic() > until:
            return steps
        time.sleep(0.1)


def wrap_until_gone(fake: Any, path: Path) -> None:
    """Makes wrappers until one clears `path`: its ffmpeg may take a moment to end."""
    until = time.monotonic() + 10
    while path.exists() and time.monotonic() < until:
        fake.wrap()
        time.sleep(0.05)


def assert_kept(fake: Any, name: str, left: Path, count: int) -> None:
    """What was `left`, beginning with step 8, has a name of its own beside the video `name`."""
    (kept,) = [file for file in fake.files() if file != name]
    stem, suffix = os.path.splitext(name)
    assert re.fullmatch(r".*-[0-9a-f]{8}\.\w+", kept)
    assert kept.endswith(f"-{left.name[1:9]}{suffix}")
    assert stem[-20:] in kept
    assert fake.video(kept).steps == list(range(8, 8 + count))


class TestManyRecordings:
    @needs_proc
    @pytest.mark.clause("FILE-12b")
    def test_many_recordings_leave_the_process_as_it_was(self, script: Any) -> None:
        # 10000 of them take some ten minutes.
        result = script(
            """
            import gc

            def used():
                gc.collect()
                time.sleep(1)  # threads that have done their work need a moment to end
                status = Path("/proc/self/status").read_text().split()
                children = [c for p in Path("/proc/self/task").glob("*/children") for c in p.read_text().split()]
                files, threads = (len(os.listdir(f"/proc/self/{n}")) for n in ("fd", "task"))
                return files, threads, len(children), int(status[status.index("VmRSS:") + 1])

            count = int(os.environ.get("VIDEO_WRAPPER_RECORDINGS", "200"))
            wrapper = world.wrap(
                size=(48, 32),
                filename="policy.mp4",
                video_length_sec=0.2,
                terminated_at=range(1, 10**6, 2),
                step_trigger=lambda n: n % 4 < 2,
            )
            world.run(wrapper, 2 * 50)
            before = used()
            for _ in range(2 * count):
                world.run(wrapper, 1)  # whose results are not kept
            after = used()
            print(before, after)
            assert after[:3] == before[:3], (before, after)
            assert after[3] < before[3] + 4096, (before, after)
            wrapper.close()
            assert used()[2] == 0
            assert world.files() == ["policy.mp4"]
            """,
            timeout=1800,
        )
        check_end(result)


ENDINGS = {
    "end of script": "",
    "sys.exit": "sys.exit(3)",
    "uncaught exception": "raise RuntimeError('training went wrong')",
    "Ctrl-C": "os.kill(os.getpid(), signal.SIGINT); time.sleep(10)",
}


class TestEnds:
    @pytest.mark.clause("CLOSE-4a", "CLOSE-4b", "CLOSE-4c", "FIN-3a")
    @pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
    @pytest.mark.extended(default=["Ctrl-C"])
    def test_an_end_without_close_saves_the_final_episode(self, script: Any, ending: str) -> None:
        result = script(f"""
            wrapper = world.wrap(terminated_at={{3}}, step_trigger=never)
            world.run(wrapper, 7)
            {ending}
        """)
        assert result.world.videos() == {"4.mp4": [4, 5, 6]}, result.stderr
        assert result.world.files() == ["4.mp4"]

    @pytest.mark.clause("CLOSE-4a", "CLOSE-4b", "CLOSE-4c")
    @pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
    def test_an_end_without_close_saves_the_active_recording(
        self, script: Any, ending: str
    ) -> None:
        result = script(f"""
            wrapper = world.wrap(record_final_episode=False, step_trigger=lambda n: n == 2)
            world.run(wrapper, 5)
            {ending}
        """)
        assert result.world.videos() == {"2.mp4": [2, 3, 4]}, result.stderr
        assert result.world.files() == ["2.mp4"]

    @pytest.mark.clause("CLOSE-4c")
    def test_an_end_without_close_saves_both_before_genesis_ends(
        self, script: Any, real_scene: Any
    ) -> None:
        # Genesis' own exit handler is registered when the scene is made, and destroys it.
        code = """
            world = harness.Harness(
                "genesis", Path(folder), harness.load(implementation),
                genesis_scenes.GenesisEnv,
                genesis_scenes.Board.read,
            )
            active = world.wrap(step_trigger=lambda n: n == 2, record_final_episode=False)
            final = world.wrap(active, step_trigger=never)
            world.run(final, 5)
            raise RuntimeError("training went wrong")
        """
        result = script(code, timeout=600)  # compiles the scene's kernels, where none are kept yet
        folder = result.world.out_dir
        assert sorted(os.listdir(folder)) == ["0.mp4", "2.mp4"], result.stderr
        assert read_video(folder / "0.mp4", real_scene[1]).steps == [0, 1, 2, 3, 4]
        assert read_video(folder / "2.mp4", real_scene[1]).steps == [2, 3, 4]

    @pytest.mark.clause("CLOSE-4g")
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

    @pytest.mark.clause("CLOSE-4h")
    def test_no_recording_begins_once_the_end_has_come(self, script: Any) -> None:
        result = script("""
            atexit.register(lambda: world.run(wrapper, 20))  # runs after what is registered later
            wrapper = world.wrap(step_trigger=lambda n: n % 10 == 0)
            world.run(wrapper, 13)
            """)
        check_end(result)
        assert result.stderr == ""
        assert result.world.videos() == {"0.mp4": [0, 1, 2, 3, 4], "10.mp4": [10, 11, 12]}
        assert result.world.files() == ["0.mp4", "10.mp4"]

    @needs_proc
    @pytest.mark.clause("CLOSE-4h", "FILE-3c")
    @pytest.mark.extended
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


class TestForks:
    @pytest.mark.clause("CLOSE-5a")
    def test_a_forked_child_leaves_the_recording_alone(self, script: Any) -> None:
        result = script("""
            wrapper = world.wrap()
            world.run(wrapper, 2)
            ready, go = os.pipe()
            child = os.fork()
            if child == 0:
                os.read(ready, 1)
                wrapper.unwrapped.steps = 100
                world.run(wrapper, 2)
                leave()  # runs the exit handlers, as a child of multiprocessing does not
            world.run(wrapper, 2)
            os.write(go, b".")
            assert os.waitpid(child, 0)[1] == 0
            world.run(wrapper, 4)
            assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}
        """)
        check_end(result)
        assert result.world.files() == ["0.mp4"]

    @pytest.mark.clause("CLOSE-5b")
    def test_saving_does_not_wait_for_a_forked_child(self, script: Any) -> None:
        result = script("""
            wrapper = world.wrap()
            world.run(wrapper, 2)
            child = os.fork()
            if child == 0:
                time.sleep(30)  # a data loader's worker, which lives on
                os._exit(0)
            world.run(wrapper, 6)
            assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}
            assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it lives still
            os.kill(child, signal.SIGKILL)
        """)
        check_end(result)

    @pytest.mark.clause("CLOSE-5a", "CLOSE-5c")
    def test_a_forked_child_can_record_on_its_own(self, script: Any) -> None:
        result = script("""
            wrapper = world.wrap(step_trigger=lambda n: n in (0, 7))
            world.run(wrapper, 2)
            child = os.fork()
            world.run(wrapper, 13 if child == 0 else 5)
            if child == 0:
                leave()
            assert os.waitpid(child, 0)[1] == 0
        """)
        check_end(result)
        assert result.world.videos() == {"0.mp4": [0, 1, 2, 3, 4], "7.mp4": [7, 8, 9, 10, 11]}


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


KINDS = {"active": "step_trigger=first_only", "final": "step_trigger=never"}


def steps_of(job: Job) -> int:
    """How many steps its training has completed."""
    return int(re.findall(r"steps: (\d+)", job.output)[-1])


def check_frames(job: Job, steps: list[int]) -> None:
    """That no frame of a step that was completed is missing, nor one shown twice."""
    done = steps_of(job)
    # The signal may have come between a frame and the line that counts its step.
    assert any(Shown(steps) == list(range(count)) for count in (done, done + 1)), (
        f"of {done} steps the video shows {steps}"
    )


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


class TestSignals:
    @pytest.mark.clause("CLOSE-6a")
    def test_ctrl_c_in_the_terminal_costs_no_frame(self, script: Any) -> None:
        # A terminal sends it to the whole process group, of which ffmpeg must be no part.
        result = script(
            """
            wrapper = world.wrap(size=(640, 480), video_length_sec=4, step_trigger=first_only)
            world.run(wrapper, 20)
            try:
                os.killpg(0, signal.SIGINT)
                time.sleep(10)
            except KeyboardInterrupt:
                pass
            time.sleep(0.3)
            world.run(wrapper, 10)
            wrapper.close()
            """,
            start_new_session=True,
        )
        check_end(result)
        assert result.world.videos() == {"0.mp4": list(range(30))}

    @pytest.mark.clause("CLOSE-4d")
    def test_sigterm_turned_into_an_exit_saves_as_any_exit_does(self, script: Any) -> None:
        result = script("""
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            wrapper = world.wrap(terminated_at={3}, step_trigger=lambda n: n == 6)
            world.run(wrapper, 9)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        """)
        check_end(result, 143)
        assert result.world.videos() == {"6.mp4": [6, 7, 8]}
        assert result.world.files() == ["6.mp4"]

    @needs_proc
    @pytest.mark.clause("CLOSE-8b")
    def test_a_sigterm_that_is_left_to_itself_kills(self, start: Any) -> None:
        job = killed_by_sigterm(start)
        assert not [name for name in job.world.files() if is_video_name(name)], job.world.files()


class TestKills:
    @pytest.mark.clause("CLOSE-8a", "CLOSE-8b")
    @pytest.mark.parametrize("name", ["policy.mp4", "policy.mkv"])
    @pytest.mark.extended(default=["policy.mp4"])
    def test_sigkill_leaves_the_earlier_video_whole(self, script: Any, name: str) -> None:
        result = script(KILLED.format(name=name, victims="[]"))
        check_end(result, -signal.SIGKILL)
        assert result.world.videos() == {name: [0, 1, 2, 3, 4]}

    @needs_proc
    @pytest.mark.clause("CLOSE-9a", "CLOSE-9b")
    def test_a_sigterm_that_kills_leaves_what_was_recorded_hidden(self, start: Any) -> None:
        job = killed_by_sigterm(start)
        (left,) = job.world.files()
        assert re.fullmatch(r"\.[0-9a-f]{8}-0\.mp4\.part", left)
        steps = job.world.video(left).steps
        assert steps == list(range(len(steps)))
        assert len(steps) >= 17  # some may have waited for ffmpeg (COST-3)

    @needs_proc
    @pytest.mark.clause("CLOSE-9a", "CLOSE-9b", "CLOSE-9c")
    @pytest.mark.parametrize(
        "name", ["policy.mp4", "policy.mov", "policy.mkv", "größe" * 20 + ".mp4"]
    )
    @pytest.mark.extended(default=["policy.mp4"])
    def test_after_sigkill_what_was_recorded_is_playable_until_the_next_run(
        self, module: Any, script: Any, fake: Any, name: str
    ) -> None:
        result = script(KILLED.format(name=name, victims="[]"))
        (left,) = leftovers(result)
        assert name[-20:] in left.name
        assert read_when_done(result, left, 100) == list(range(8, 108))
        wrap_until_gone(fake, left)
        assert_kept(fake, name, left, 100)


@needs_proc
class TestInterruptedSaving:
    @pytest.mark.clause("CLOSE-6b", "CLOSE-6c")
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

    @pytest.mark.clause("CLOSE-6b")
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.extended(default=["active"])
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

    @pytest.mark.clause("CLOSE-6d", "CLOSE-4c", "CLOSE-4d")
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("names", ["SIGTERM SIGTERM", "SIGTERM SIGHUP", "SIGINT SIGINT"])
    @pytest.mark.extended(default=["SIGTERM SIGTERM-active", "SIGINT SIGINT-final"])
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


class TestWrappersOfOneProcess:
    @needs_proc
    @pytest.mark.clause("CLOSE-10b")
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
        check_end(result)
        assert result.world.videos() == {f"{i}.mp4": [0, 1, 2] for i in range(20)}
        assert len(result.world.files()) == 20

    @pytest.mark.clause("CLOSE-4f")
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize(
        "held",
        ["a, b", "b, a", "a", "b", ""],
        ids=["both", "both, the newer first", "the older", "the newer", "none"],
    )
    @pytest.mark.extended(default=["both-active", "none-final"])
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
        check_end(result)
        assert result.world.files() == ["run.mp4"], result.stderr
        assert result.world.video("run.mp4").steps == [30, 31, 32, 33, 34]

    @pytest.mark.clause("CLOSE-4a")
    @pytest.mark.extended
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
        check_end(result)
        assert result.stdout.splitlines() == ["destroyed with 0.mp4 1.mp4 2.mp4"] * 3


@needs_proc
class TestSignalsToAJob:
    @pytest.mark.clause("CLOSE-14a", "CLOSE-4c", "CLOSE-4d")
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
    @pytest.mark.extended(default=["SIGTERM-active", "SIGINT-final"])
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

    @pytest.mark.clause("CLOSE-14a", "CLOSE-6a")
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT"])
    @pytest.mark.extended(default=["SIGUSR1", "SIGINT"])
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
            count, done = len(steps), steps_of(job)
            assert count >= done >= 100, f"of {done} steps the video shows {count}"
        else:
            assert steps == list(range(100))

    @pytest.mark.clause("CLOSE-14a")
    @pytest.mark.extended
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
    @pytest.mark.clause("CLOSE-4e")
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    @pytest.mark.parametrize(
        "keywords",
        [{}, {"fails": True}, {"held": False}],
        ids=["returns", "raises", "lets go of its wrapper"],
    )
    @pytest.mark.extended(default=["returns-fork", "raises-spawn"])
    def test_a_child_that_ends_without_close_saves(
        self, start: Any, method: str, keywords: Any
    ) -> None:
        job = start(CHILDREN.format(method=method, start=ONE_CHILD.format(keywords=keywords)))
        assert job.wait() == 0, job.output
        assert f"ended with {int('fails' in keywords)}" in job.output, job.output
        assert job.world.files() == ["0.mp4"], job.output
        assert job.world.video("0.mp4").steps == list(range(15))

    @pytest.mark.clause("CLOSE-4e")
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    @pytest.mark.parametrize(
        "pool",
        [
            "with context.Pool(2) as pool: pool.map(train, [0, 20, 40]); pool.close(); pool.join()",
            "with ProcessPoolExecutor(2, mp_context=context) as pool: [*pool.map(train, [0, 20, 40])]",
        ],
        ids=["pool", "executor"],
    )
    @pytest.mark.extended(default=["pool-fork", "executor-spawn"])
    def test_a_worker_that_ends_without_close_saves(
        self, start: Any, method: str, pool: str
    ) -> None:
        job = start(CHILDREN.format(method=method, start=pool))
        assert job.wait() == 0, job.output
        wanted = {f"{first}.mp4": list(range(first, first + 15)) for first in (0, 20, 40)}
        assert job.world.videos() == wanted, job.output
        assert job.world.files() == sorted(wanted)

    @pytest.mark.clause("CLOSE-4e")
    @pytest.mark.extended
    def test_a_worker_whose_task_raised_saves(self, start: Any) -> None:
        code = """pool = context.Pool(1)
        failure = pool.apply_async(train, (0, True))
        failure.wait(); pool.close(); pool.join()
        assert not failure.successful()"""
        job = start(CHILDREN.format(method="fork", start=code))
        assert job.wait() == 0, job.output
        assert job.world.videos() == {"0.mp4": list(range(15))}, job.output

    @pytest.mark.clause("CLOSE-4e", "CLOSE-5a", "CLOSE-5c")
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
