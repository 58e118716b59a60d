"""Trainings that end, fork, share a folder, or meet signals and kills (CLOSE, FILE).

Most tests start a training in a process of its own, and then read the videos that it left.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spec.suite.doubles import first_only, never
from spec.suite.processes import (
    Job,
    check_end,
    lives,
    needs_proc,
    stopped_encoder,
    wait_for_ends,
    wait_until,
)
from spec.suite.video_reader import is_video_name, read_video

PART = r"\.[0-9a-f]{8}\.part"


class TestSharedFolders:
    @pytest.mark.clause("FILE-3d")
    @pytest.mark.extended
    def test_torchrun_ranks_with_one_filename_leave_a_whole_video(self, script: Any) -> None:
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
    def test_processes_with_one_filename_leave_a_whole_video(self, script: Any) -> None:
        result = script("""
            ranks = []
            while len(ranks) < 2 and 0 not in ranks:
                ranks.append(os.fork())
            wrapper = world.wrap(
                filename="policy.mp4", step_trigger=lambda n: n % 8 == 0, record_final_episode=False
            )
            for i in range(6):
                world.run(wrapper, 8)
                (steps,) = world.videos().values()
                assert steps in [list(range(8 * j, 8 * j + 5)) for j in range(6)], steps
            wrapper.close()
            if 0 in ranks:
                leave()
            assert [os.waitpid(rank, 0)[1] for rank in ranks] == [0, 0]
            assert world.files() == ["policy.mp4"], world.files()
        """)
        check_end(result)

    @pytest.mark.clause("CLOSE-9c")
    def test_new_wrappers_leave_partial_and_other_files_alone(self, fake: Any, script: Any) -> None:
        wrapper = fake.wrap(step_trigger=first_only, record_final_episode=False)
        fake.run(wrapper, 3)
        others = ["0.mp4.1a2b3c4d.part", ".0.mp4.part", "0.part", ".1234abcd-0.mp4.part", ".hidden"]
        for name in others:
            (fake.out_dir / name).write_text("somebody's")
        other = fake.wrap()
        check_end(script("world.run(world.wrap(filename='other.mp4'), 3)"))
        fake.run(wrapper, 2)
        other.close()
        assert fake.video("0.mp4").steps == [0, 1, 2, 3, 4]
        assert fake.files() == sorted(["0.mp4", "other.mp4", *others])
        assert {(fake.out_dir / name).read_text() for name in others} == {"somebody's"}


class TestManyRecordings:
    @needs_proc
    @pytest.mark.clause("FILE-12b")
    def test_many_recordings_leave_the_process_as_it_was(
        self, script: Any, pytestconfig: pytest.Config
    ) -> None:
        # 10000 of them take some ten minutes.
        count = 200 if pytestconfig.getoption("--all") else 50
        result = script(
            f"""
            import gc

            def used():
                gc.collect()
                time.sleep(0.3)  # a thread that has done its work needs a moment to end
                status = Path("/proc/self/status").read_text().split()
                files, threads = (len(os.listdir(f"/proc/self/{{n}}")) for n in ("fd", "task"))
                return files, threads, len(children()), int(status[status.index("VmRSS:") + 1])

            count = int(os.environ.get("VIDEO_WRAPPER_RECORDINGS", "{count}"))
            wrapper = world.wrap(
                size=(48, 32),
                filename="policy.mp4",
                video_length_sec=0.2,
                terminated_at=range(1, 10**6, 2),
                step_trigger=lambda n: n % 4 < 2,
            )
            world.run(wrapper, 2 * 25)
            before = used()
            for _ in range(2 * count):
                world.run(wrapper, 1)  # without keeping the results
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


ENDINGS = [
    pytest.param("", id="end of script", marks=pytest.mark.clause("CLOSE-4a")),
    pytest.param("sys.exit(3)", id="sys.exit", marks=pytest.mark.clause("CLOSE-4b")),
    pytest.param("raise KeyError('a')", id="exception", marks=pytest.mark.clause("CLOSE-4c")),
    pytest.param(
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(10)",
        id="Ctrl-C",
        marks=pytest.mark.clause("CLOSE-4c"),
    ),
    pytest.param(
        """signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)""",
        id="SIGTERM",
        marks=pytest.mark.clause("CLOSE-4d"),
    ),
]


class TestEnds:
    @pytest.mark.parametrize("ending", ENDINGS)
    def test_end_without_close_saves_pending_videos(self, script: Any, ending: str) -> None:
        result = script(f"""
            active = world.wrap(
                filename="active.mp4", record_final_episode=False, step_trigger=lambda n: n == 2
            )
            final = world.wrap(filename="final.mp4", terminated_at={{3}}, step_trigger=never)
            world.run(active, 5)
            world.run(final, 7)
            {ending}
        """)
        videos = {"active.mp4": [2, 3, 4], "final.mp4": [0, 1, 2, 3]}
        assert result.world.videos() == videos, result.stderr
        assert result.world.files() == ["active.mp4", "final.mp4"]

    @pytest.mark.clause("CLOSE-4c")
    @pytest.mark.extended
    def test_end_without_close_saves_before_genesis_ends(
        self, script: Any, real_scene: Any
    ) -> None:
        # Genesis registers its own exit handler when the scene is made, and it destroys the scene.
        code = """
            world = harness.Harness(
                "genesis", Path(folder), load(implementation),
                genesis_scenes.GenesisEnv,
                genesis_scenes.Board.read,
            )
            active = world.wrap(step_trigger=lambda n: n == 2, record_final_episode=False)
            final = world.wrap(active, step_trigger=never)
            world.run(final, 5)
            raise RuntimeError("training went wrong")
        """
        result = script(code, timeout=600)  # compiles the scene's kernels if none are cached
        folder = result.world.out_dir
        assert sorted(os.listdir(folder)) == ["0.mp4", "2.mp4"], result.stderr
        assert read_video(folder / "0.mp4", real_scene[1]).steps == [0, 1, 2, 3, 4]
        assert read_video(folder / "2.mp4", real_scene[1]).steps == [2, 3, 4]

    @pytest.mark.clause("CLOSE-4g")
    def test_an_error_at_the_end_costs_no_other_video(self, script: Any) -> None:
        result = script("""
            import warnings
            wrappers = [world.wrap(filename=f"{i}.mp4", video_length_sec=100) for i in range(3)]
            for wrapper in wrappers:
                world.run(wrapper, 5)
            (world.out_dir / "1.mp4").mkdir()
            warnings.simplefilter("error")
            """)
        assert "1.mp4" in result.stderr
        assert [n for n in result.world.files() if is_video_name(n)] == ["0.mp4", "1.mp4", "2.mp4"]
        for name in ("0.mp4", "2.mp4"):
            assert result.world.video(name).steps == [0, 1, 2, 3, 4]

    @pytest.mark.clause("CLOSE-4h")
    def test_no_recording_begins_after_the_end(self, script: Any) -> None:
        result = script("""
            atexit.register(lambda: world.run(wrapper, 20))  # runs after those registered later
            wrapper = world.wrap(step_trigger=lambda n: n % 10 == 0)
            world.run(wrapper, 13)
            """)
        check_end(result)
        assert result.stderr == ""
        videos = {"0.mp4": [0, 1, 2, 3, 4], "5.mp4": [5, 6, 7, 8, 9], "10.mp4": [10, 11, 12]}
        assert result.world.videos() == videos
        assert result.world.files() == sorted(videos)

    @needs_proc
    @pytest.mark.clause("CLOSE-4h", "FILE-3c")
    @pytest.mark.extended
    def test_a_daemon_thread_that_steps_at_the_end_leaves_no_rest(self, start: Any) -> None:
        code = """
            import threading
            wrapper = world.wrap(step_trigger=lambda n: n % 6 == 0, record_final_episode=False)

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
            assert all(map(is_video_name, job.world.files())), job.world.files()
            for name, steps in job.world.videos().items():
                first = int(name.removesuffix(".mp4"))
                assert steps == list(range(first, first + len(steps)))
                (job.world.out_dir / name).unlink()


class TestForks:
    @pytest.mark.clause("CLOSE-5a")
    @pytest.mark.parametrize("kind", ["active", "background"])
    def test_a_forked_child_leaves_its_parents_recording(self, script: Any, kind: str) -> None:
        result = script(f"""
            wrapper = world.wrap(step_trigger=never, record_final_episode=False)
            wrapper.start_recording("{kind}")
            world.run(wrapper, 2)
            ready, go = os.pipe()
            child = os.fork()
            if child == 0:
                os.read(ready, 1)
                wrapper.unwrapped.steps = 100
                world.run(wrapper, 2)
                leave()  # runs the exit handlers, which a child of multiprocessing does not
            world.run(wrapper, 2)
            os.write(go, b".")
            assert os.waitpid(child, 0)[1] == 0
            world.run(wrapper, 4)
            wrapper.close()
            assert world.videos() == {{"0.mp4": [0, 1, 2, 3, 4]}}, world.files()
        """)
        check_end(result)
        assert result.world.files() == ["0.mp4"]

    @pytest.mark.clause("CLOSE-5b")
    def test_saving_does_not_wait_for_a_forked_child(self, script: Any) -> None:
        result = script("""
            wrapper = world.wrap(record_final_episode=False)
            world.run(wrapper, 2)
            child = os.fork()
            if child == 0:
                time.sleep(30)  # as a data loader's worker, which lives on
                os._exit(0)
            world.run(wrapper, 6)
            assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}
            assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it is still alive
            os.kill(child, signal.SIGKILL)
        """)
        check_end(result)

    @pytest.mark.clause("CLOSE-5c")
    def test_a_forked_child_can_record(self, script: Any) -> None:
        result = script("""
            wrapper = world.wrap(step_trigger=lambda n: n in (0, 7), record_final_episode=False)
            world.run(wrapper, 2)
            child = os.fork()
            world.run(wrapper, 13 if child == 0 else 5)
            if child == 0:
                leave()
            assert os.waitpid(child, 0)[1] == 0
        """)
        check_end(result)
        assert result.world.videos() == {"0.mp4": [0, 1, 2, 3, 4], "7.mp4": [7, 8, 9, 10, 11]}


# A training whose last exit handler prints how many steps it has completed.
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
    """Return how many steps its training has completed."""
    return int(re.findall(r"steps: (\d+)", job.output)[-1])


def check_frames(job: Job) -> None:
    """Assert that its one video shows each completed step once."""
    assert job.world.files() == ["0.mp4"], job.output
    steps, done = job.world.video("0.mp4").steps, steps_of(job)
    # The signal may have come between a frame and the line that counts its step.
    expected = list(range(done)), list(range(done + 1))
    assert steps in expected, f"of {done} steps the video shows {steps}"


class TestSignals:
    @pytest.mark.clause("CLOSE-6a")
    def test_ctrl_c_in_the_terminal_costs_no_frame(self, script: Any) -> None:
        # A terminal sends it to the whole process group, which ffmpeg must not be part of.
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


def parts_of(files: list[str], name: str) -> list[str]:
    """Return those files that are partial files of the video, and assert that no others are."""
    found = [file for file in files if re.fullmatch(re.escape(name) + PART, file)]
    assert [*filter(is_video_name, files), *found] == sorted(files)
    return found


# Saves a video of five frames, and is killed while the next one has a hundred.
KILLED = """
    options = dict(filename={name!r}, step_trigger=first_only, record_final_episode=False)
    env = world.env(size=(48, 32), dt=0.02)
    world.run(world.wrap(env, video_length_sec=0.1, **options), 8)
    wrapper = world.wrap(env, video_length_sec=20, **options)
    world.run(wrapper, 100)
    print(*encoders())
    sys.stdout.flush()
    for pid in [*{victims}, os.getpid()]:
        os.kill(pid, signal.SIGKILL)
"""


@needs_proc
class TestKills:
    @pytest.mark.clause("CLOSE-8a", "CLOSE-8b")
    @pytest.mark.parametrize("name", ["policy.mp4", "policy.mkv"])
    @pytest.mark.parametrize("victims", ["[]", "encoders()"], ids=["Python", "ffmpeg too"])
    @pytest.mark.extended(default=["ffmpeg too-policy.mp4"])
    def test_a_killed_run_leaves_earlier_videos_whole(
        self, script: Any, name: str, victims: str
    ) -> None:
        result = script(KILLED.format(name=name, victims=victims))
        check_end(result, -signal.SIGKILL)
        wait_for_ends([*map(int, result.stdout.split())])
        assert result.world.videos() == {name: [0, 1, 2, 3, 4]}

    @pytest.mark.clause("CLOSE-9a", "CLOSE-9b", "CLOSE-9c")
    @pytest.mark.parametrize(
        "name",
        ["policy.mp4", "policy.MOV", "policy.mkv", "größe" * 30 + ".mp4"],
        ids=["mp4", "MOV", "mkv", "long name"],
    )
    @pytest.mark.extended(default=["mp4"])
    def test_a_killed_runs_partial_file_stays_and_plays(
        self, script: Any, fake: Any, name: str
    ) -> None:
        result = script(KILLED.format(name=name, victims="[]"))
        check_end(result, -signal.SIGKILL)
        wait_for_ends([*map(int, result.stdout.split())])
        (part,) = parts_of(result.world.files(), name)
        assert result.world.video(part).steps == list(range(8, 108))
        fake.run(fake.wrap(filename=name), 8)
        fake.close()
        assert parts_of(fake.files(), name) == [part]
        assert result.world.video(part).steps == list(range(8, 108))

    @pytest.mark.clause("CLOSE-8b")
    def test_sigterm_without_a_handler_leaves_no_broken_video(self, start: Any) -> None:
        job = ended_by_sigterm(start)
        assert not [*filter(is_video_name, job.world.files())]

    @pytest.mark.clause("CLOSE-9a", "CLOSE-9b")
    @pytest.mark.extended
    def test_sigterm_without_a_handler_leaves_a_partial_file(self, start: Any) -> None:
        job = ended_by_sigterm(start)
        (part,) = parts_of(job.world.files(), "0.mp4")
        steps = job.world.video(part).steps
        assert len(steps) >= 20
        assert steps == list(range(len(steps)))


def ended_by_sigterm(start: Any) -> Job:
    """Return a training that SIGTERM killed while it recorded."""
    code = TRAINING.format(handlers="", keywords=KINDS["active"], training="train(4000)")
    job = start(code)
    job.wait_for("under way")
    ffmpeg = job.processes()[1:]
    job.send(signal.SIGTERM)
    assert job.wait() == -signal.SIGTERM, job.output
    wait_for_ends(ffmpeg)
    return job


@needs_proc
class TestInterruptedSaving:
    @pytest.mark.clause("CLOSE-6b", "CLOSE-6c")
    @pytest.mark.parametrize("kind", [first_only, never], ids=["active", "final"])
    def test_close_resumes_after_ctrl_c(self, fake: Any, kind: Callable) -> None:
        wrapper = fake.wrap(step_trigger=kind, video_length_sec=100)
        fake.run(wrapper, 30)
        with stopped_encoder(0.5):
            timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
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
    def test_the_end_resumes_after_ctrl_c_in_close(self, start: Any, kind: str) -> None:
        training = "train(20); time.sleep(0.3); print('closes'); wrapper.close()"
        job = start(TRAINING.format(handlers="", keywords=kind, training=training))
        job.wait_for("under way")
        ffmpeg = job.encoder()
        job.send(signal.SIGSTOP, ffmpeg)
        job.wait_for("closes")
        wait_until(lambda: not is_running(job.process.pid))
        job.send(signal.SIGINT, job.process.pid)
        threading.Event().wait(0.2)
        job.send(signal.SIGCONT, ffmpeg)
        assert job.wait() == -signal.SIGINT, job.output
        check_frames(job)

    @pytest.mark.clause("CLOSE-6d")
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("names", ["SIGTERM SIGTERM", "SIGTERM SIGHUP", "SIGINT SIGINT"])
    @pytest.mark.extended(default=["SIGTERM SIGTERM-active", "SIGINT SIGINT-final"])
    def test_a_second_signal_at_the_end_costs_no_frame(
        self, start: Any, names: str, kind: str
    ) -> None:
        handlers = "[signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGHUP)]"
        job = start(TRAINING.format(handlers=handlers, keywords=kind, training="train(4000)"))
        job.wait_for("under way")
        ffmpeg = job.encoder()
        job.send(signal.SIGSTOP, ffmpeg)
        for name in names.split():
            job.send(getattr(signal, name), job.process.pid)
            threading.Event().wait(0.3)
        job.send(signal.SIGCONT, ffmpeg)
        job.wait()
        check_frames(job)


def is_running(pid: int) -> bool:
    """Return whether the process computes, and does not wait for anything."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return lives(pid) and state == "R"


class TestWrappersOfOneProcess:
    @needs_proc
    @pytest.mark.clause("CLOSE-10b")
    @pytest.mark.parametrize("in_cycle", [False, True], ids=["plain", "in a cycle"])
    def test_a_wrapper_that_nobody_holds_is_saved_and_freed(
        self, script: Any, in_cycle: bool
    ) -> None:
        result = script(f"""
            import gc, threading, weakref

            kinds = [
                dict(step_trigger=first_only, video_length_sec=100),  # an active recording
                dict(step_trigger=never, video_length_sec=100),  # a background recording
                dict(step_trigger=never, video_length_sec=0.3),  # the same, which has finished
            ]
            wrappers, envs, most = weakref.WeakSet(), weakref.WeakSet(), 0
            before = threading.active_count()
            for i in range(12):
                env = world.env()
                wrapper = world.wrap(env, filename=f"{{i}}.mp4", **kinds[i % 3])
                env.back = wrapper if {in_cycle} else None
                wrappers.add(wrapper), envs.add(env)
                world.run(wrapper, 3)
                videos = [name for name in world.files() if video_reader.is_video_name(name)]
                assert len(videos) == i, videos
                world.forget()
                del wrapper, env
                if {in_cycle}:
                    gc.collect()
                most = max(most, len(children()))
            gc.collect()  # the fake env and its camera refer to each other
            time.sleep(0.2)  # a thread that has done its work needs a moment to end
            assert len(wrappers) <= 1 and len(envs) <= 1, (len(wrappers), len(envs))
            assert most <= 2 and len(children()) <= 1, (most, len(children()))
            assert threading.active_count() <= before + 1, threading.enumerate()
            """)
        check_end(result)
        assert result.world.videos() == {f"{i}.mp4": [0, 1, 2] for i in range(12)}
        assert len(result.world.files()) == 12

    @pytest.mark.clause("CLOSE-4f")
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize(
        "held",
        ["a, b", "b, a", "b", ""],
        ids=["both", "both, the newer first", "the newer", "none"],
    )
    @pytest.mark.extended(default=["both-active", "none-final"])
    def test_the_newer_of_two_unclosed_wrappers_is_saved_last(
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
    def test_all_are_saved_before_exit_handlers_of_their_scenes(self, script: Any) -> None:
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
    @pytest.mark.clause("CLOSE-14a")
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
        # Python ends itself by SIGINT if nothing catches it.
        assert job.wait() == (-signal.SIGINT if name == "SIGINT" else 143), job.output
        check_frames(job)

    @pytest.mark.clause("CLOSE-14a")
    @pytest.mark.parametrize(
        "name",
        [
            *("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"),
            pytest.param("SIGINT", marks=pytest.mark.clause("CLOSE-6a")),
        ],
    )
    @pytest.mark.extended(default=["SIGUSR1"])
    def test_a_signal_that_the_training_survives_costs_no_frame(
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
        if name == "SIGINT":  # costs at most the frame that it interrupted (FAIL-5a)
            assert steps == sorted(set(steps))
            count, done = len(steps), steps_of(job)
            assert count >= done >= 100, f"of {done} steps the video shows {count}"
        else:
            assert steps == list(range(100))

    @pytest.mark.clause("CLOSE-14a")
    @pytest.mark.extended
    def test_many_signals_cost_no_frame(self, start: Any) -> None:
        numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM, signal.SIGINT]
        handlers = f"[signal.signal(n, go_on) for n in {[*map(int, numbers)]}]"
        training = "train(200); wrapper.close()"
        keywords = "step_trigger=lambda n: n % 40 == 0, record_final_episode=False"
        code = TRAINING.format(handlers=handlers, keywords=keywords, training=training)
        job = start(code.replace("video_length_sec=100", "video_length_sec=3"))
        job.wait_for("under way")
        for number in numbers * 3:
            job.send(number)
            threading.Event().wait(0.03)
        assert job.wait() == 0, job.output
        videos = {f"{n}.mp4": list(range(n, n + 30)) for n in range(0, 200, 40)}
        assert job.world.videos() == videos


# Each child records a video that is named after its first step.
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
POOLS = {
    "pool": "with context.Pool(2) as pool: pool.map(train, [0, 20, 40]); pool.close(); pool.join()",
    "executor": "with ProcessPoolExecutor(2, mp_context=context) as pool: [*pool.map(train, [0, 20, 40])]",
}


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
    @pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
    @pytest.mark.extended(default=["pool-fork", "executor-spawn"])
    def test_a_worker_that_ends_without_close_saves(
        self, start: Any, method: str, pool: str
    ) -> None:
        job = start(CHILDREN.format(method=method, start=pool))
        assert job.wait() == 0, job.output
        expected = {f"{first}.mp4": list(range(first, first + 15)) for first in (0, 20, 40)}
        assert job.world.videos() == expected, job.output
        assert job.world.files() == sorted(expected)

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
    @pytest.mark.extended
    def test_a_child_saves_its_own_recording_only(self, start: Any) -> None:
        code = (
            """wrapper = world.wrap(
            filename="parent.mp4", video_length_sec=2, step_trigger=first_only,
            record_final_episode=False,
        )
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
