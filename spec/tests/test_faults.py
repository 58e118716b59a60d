"""What becomes of recordings that meet a fault, each caused for real: a bad ffmpeg, a full disk (FAIL).

Most are met by a training in a process of its own, which has to go on after it.
"""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from spec.suite.processes import check_end, needs_proc

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def program(folder: Path, code: str) -> str:
    """Makes an ffmpeg of a shell's code, which is REAL where it calls the real one."""
    path = folder / "ffmpeg"
    path.write_text("#!/bin/sh\n" + code.replace("REAL", f'"{FFMPEG}"'), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


class TestUnusableFfmpeg:
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
    @pytest.mark.extended(default=["missing"])
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


def mounted(disk: str, tmp_path: Path) -> str:
    """Code that has room for 2 MB in the folder: not for 20 pictures of noise, but for two raw ones.

    It is a mount, which ends with the process.
    """
    image = tmp_path / "disk"
    commands = {
        "tmpfs": "mount -t tmpfs -o size=2M tmpfs FOLDER",
        "quota": f"""truncate -s 128M {image}
            mkfs.btrfs -q {image}
            mount -o loop {image} FOLDER
            btrfs quota enable FOLDER
            btrfs qgroup limit 2M 0/5 FOLDER""",
    }
    return f"""
            import ctypes, subprocess, warnings
            import numpy as np
            os.makedirs(folder)
            is_private = ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
            commands = ["mount --make-rprivate /", *{commands[disk].splitlines()}]
            commands = [c.replace("FOLDER", folder).split() for c in commands]
            if not is_private or any(subprocess.run(c).returncode for c in commands):
                print("cannot mount")
                sys.exit()
"""


def skip_without_mount(result: Any) -> None:
    if "cannot mount" in result.stdout:
        pytest.skip("only root can mount a small file system")


class TestFaults:
    @pytest.mark.clause("FILE-3e")
    @pytest.mark.parametrize("when", [0, 3, 8])
    @pytest.mark.extended(default=["3"])
    def test_a_folder_for_temporary_files_that_goes_away_costs_no_video(
        self, script: Any, tmp_path: Path, when: int
    ) -> None:
        (tmp_path / "job").mkdir()
        result = script(
            f"""
            import shutil, tempfile, warnings
            warnings.simplefilter("error")
            assert tempfile.gettempdir() == os.environ["TMPDIR"]
            fake_env.FakeCamera.temporary = folder
            wrapper = world.wrap(step_trigger=lambda n: n in (0, 10), video_length_sec=0.5)
            world.run(wrapper, {when})
            shutil.rmtree(os.environ["TMPDIR"])
            world.run(wrapper, {17 - when})
            wrapper.close()
            world.run(world.wrap(filename="another.mp4"), 6)
            """,
            TMPDIR=str(tmp_path / "job"),
        )
        check_end(result)
        videos = {n: [0, 1, 2, 3, 4] for n in ("0.mp4", "another.mp4")}
        assert result.world.videos() == {**videos, "10.mp4": [10, 11, 12, 13, 14]}

    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1c")
    def test_an_encoder_that_cannot_be_started_gives_one_warning(
        self, script: Any, tmp_path: Path
    ) -> None:
        ffmpeg = program(tmp_path, 'exec REAL "$@"')
        code = f"""
            wrapper = world.wrap(step_trigger=first_only, record_final_episode=False)
            Path({ffmpeg!r}).chmod(0o644)  # while training runs
            with harness.warned(r"\\b0\\.mp4", "Permission denied"):
                assert len(world.run(wrapper, 7)) == 7
                if "0.mp4" in world.files():
                    print("another encoder")
                    os._exit(0)
            assert world.files() == []
        """
        result = script(code, IMAGEIO_FFMPEG_EXE=ffmpeg)
        if "another encoder" in result.stdout:
            pytest.skip("its encoder is not the ffmpeg that imageio-ffmpeg names")
        check_end(result)

    @pytest.mark.clause("FAIL-1b", "FAIL-1c")
    def test_an_encoder_that_says_that_it_failed_is_believed(
        self, script: Any, tmp_path: Path
    ) -> None:
        # As ffmpeg does that runs out of memory in the last frames: the file is whole, but short.
        code = 'case "$*" in *-encoders*) exec REAL "$@";; esac; REAL -t 0.3 "$@"; cat >/dev/null'
        ffmpeg = program(tmp_path, code + '; echo "malloc of size 4194304 failed" >&2; exit 1')
        result = script(f"""
            os.environ["IMAGEIO_FFMPEG_EXE"] = {ffmpeg!r}
            wrapper = world.wrap(record_final_episode=False)
            with harness.warned(r"\\b0\\.mp4", "malloc of size"):
                world.run(wrapper, 8)
            assert world.files() == [], world.files()
            """)
        check_end(result)

    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1c", "FAIL-1d")
    @pytest.mark.parametrize(
        ("disk", "cause"),
        [("tmpfs", "No space left on device"), ("quota", "Disk quota exceeded")],
    )
    @pytest.mark.extended(default=["tmpfs-No space left on device"])
    def test_a_full_disk_gives_one_warning_and_the_next_recording_works(
        self, script: Any, tmp_path: Path, disk: str, cause: str
    ) -> None:
        if disk == "quota" and shutil.which("btrfs") is None:
            pytest.skip("btrfs, whose quotas bind root as well, is not installed")
        result = script(
            mounted(disk, tmp_path)
            + f"""
            dice = np.random.default_rng(0)
            wrapper = world.wrap(
                size=(640, 480), video_length_sec=2, record_final_episode=False,
                step_trigger=lambda n: n in (0, 30),
            )
            wrapper.unwrapped.camera.make_frame = lambda f: dice.integers(0, 256, f.shape, np.uint8)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert len(world.run(wrapper, 25)) == 25
            (words,) = [str(w.message) for w in caught]
            assert "0.mp4" in words and {cause!r} in words, words
            assert world.files() == []
            os.sync()  # a quota counts what was deleted until then
            wrapper.unwrapped.camera.make_frame = lambda frame: frame
            world.run(wrapper, 7)
            wrapper.close()
            assert world.videos() == {{"30.mp4": [30, 31]}}
            """
        )
        skip_without_mount(result)
        check_end(result)

    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1d")
    def test_a_folder_that_becomes_read_only_gives_one_warning(
        self, script: Any, tmp_path: Path
    ) -> None:
        result = script(
            mounted("tmpfs", tmp_path)
            + """
            wrapper = world.wrap(record_final_episode=False, step_trigger=lambda n: n in (0, 8, 16))
            world.run(wrapper, 6)
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert len(world.run(wrapper, 8)) == 8
            (words,) = [str(w.message) for w in caught]
            assert "8.mp4" in words and "Read-only file system" in words, words
            subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
            world.run(wrapper, 10)
            assert world.files() == ["0.mp4", "16.mp4"]
            assert world.videos()["16.mp4"] == [16, 17, 18, 19, 20]
            """
        )
        skip_without_mount(result)
        check_end(result)

    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1c", "FAIL-1d")
    def test_a_file_size_limit_gives_one_warning_and_the_next_recording_works(
        self, script: Any
    ) -> None:
        pytest.importorskip("resource", reason="Windows has no such limits")
        result = script("""
            import resource, warnings
            import numpy as np
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
            dice = np.random.default_rng(0)
            wrapper = world.wrap(
                size=(640, 480), video_length_sec=2, record_final_episode=False,
                step_trigger=lambda n: n in (0, 30),
            )
            wrapper.unwrapped.camera.make_frame = lambda f: dice.integers(0, 256, f.shape, np.uint8)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert len(world.run(wrapper, 25)) == 25
            (words,) = [str(w.message) for w in caught]
            assert "0.mp4" in words and "File too large" in words, words
            assert world.files() == []
            wrapper.unwrapped.camera.make_frame = lambda frame: frame
            world.run(wrapper, 7)
            wrapper.close()
            assert world.videos() == {"30.mp4": [30, 31]}
        """)
        check_end(result)

    @pytest.mark.clause("LOG-1e")
    @pytest.mark.parametrize(
        "break_it",
        [
            "os.close(1)",
            "sys.stdout.close()",
            "sys.stdout.reconfigure(encoding='ascii')",
            "sys.stdout = None",
            # As a BufferedWriter does where a signal's handler prints; then a logger's own errors.
            "sys.stdout = type('Out', (), {'write': lambda *_: raises(RuntimeError('reentrant'))})()",
            "sys.stdout = type('Out', (), {'write': lambda *_: raises(LookupError('no logger'))})()",
            "sys.stdout = object()",
        ],
    )
    @pytest.mark.extended(default=["os.close(1)", "sys.stdout = None"])
    def test_a_line_that_cannot_be_printed_ends_nothing(self, script: Any, break_it: str) -> None:
        result = script(f"""
            def raises(error):
                raise error

            {break_it}
            wrapper = world.wrap(filename="größe.mp4", step_trigger=first_only, logging=True)
            world.run(wrapper, 7)
            wrapper.close()
            print("closed", file=sys.stderr)
            os._exit(0)
        """)
        assert result.stderr == "closed\n"
        assert result.world.files() == ["größe.mp4"]

    @needs_proc
    @pytest.mark.clause("FAIL-5a", "FAIL-5b", "FAIL-5c")
    def test_interrupts_at_any_moment_leave_whole_videos_and_no_process(self, script: Any) -> None:
        result = script("""
            import random
            seed = int(os.environ.get("VIDEO_WRAPPER_SEED", random.randrange(10**6)))
            print("seed", seed)
            dice = random.Random(seed)

            def interrupt(*_):
                raise KeyboardInterrupt

            def threads():
                time.sleep(1)  # those that have done their work need a moment to end
                return len(os.listdir("/proc/self/task"))

            signal.signal(signal.SIGALRM, interrupt)
            wrapper = world.wrap(size=(48, 32), video_length_sec=0.3, step_trigger=lambda n: n % 5 == 0)
            world.run(wrapper, 4)
            before = threads()
            for _ in range(int(os.environ.get("VIDEO_WRAPPER_INTERRUPTS", "60"))):
                try:
                    signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.03))
                    # Not without end, since Python drops what is raised in a destructor.
                    until = time.monotonic() + 1
                    while time.monotonic() < until:
                        world.run(wrapper, 1)
                        if dice.random() < 0.1:
                            wrapper.finish_recording()
                except KeyboardInterrupt:
                    pass
            world.run(wrapper, 10)
            wrapper.close()
            for name, steps in world.videos().items():
                start = int(Path(name).stem)
                assert steps and len(steps) <= 3 + video_reader.Shown.drift[1], (name, steps)
                # An interrupt between the env's step and its count shifts what is shown, no more.
                assert all(a < b for a, b in zip(steps, steps[1:])), (name, steps)
            assert not [name for name in world.files() if name.startswith(".")], world.files()
            children = [p.read_text() for p in Path("/proc/self/task").glob("*/children")]
            assert not any(children), children
            assert threads() == before
        """)
        check_end(result)


# Ends well but for the file, of which it leaves a part.
TRUNCATES = """
case "$*" in *-encoders*) exec REAL "$@";; esac
touch "$0.used"
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
        assert {wanted}, f"of {{name}} there are the files {{world.files()}} and the warnings {{said}}"
        for left in world.files():
            (world.out_dir / left).unlink()
"""


@needs_proc
class TestLostExitStatus:
    @pytest.mark.clause("FAIL-1h", "FAIL-1b", "FAIL-1c")
    @pytest.mark.parametrize("status", NO_STATUS.values(), ids=NO_STATUS)
    @pytest.mark.parametrize("cut", ["0", "300", "size / 2", "size - 1"])
    @pytest.mark.extended(default=["size / 2-SIGCHLD ignored"])
    def test_a_truncated_file_is_not_taken_for_a_video(
        self, script: Any, leave_to: Any, tmp_path: Path, status: str, cut: str
    ) -> None:
        fails = "len(said) == 1 and name in said[0] and not world.files()"
        code = WITHOUT_STATUS.format(at_work="pass", status=status, wanted=fails)
        ffmpeg = program(tmp_path, TRUNCATES.format(cut=cut, code=1))
        result = script(f'os.environ["IMAGEIO_FFMPEG_EXE"] = {ffmpeg!r}\n' + textwrap.dedent(code))
        if not Path(f"{ffmpeg}.used").exists():
            leave_to("its encoder is not the ffmpeg of imageio-ffmpeg")
        check_end(result)

    @pytest.mark.clause("FAIL-1h", "FAIL-1b", "FAIL-1c")
    @pytest.mark.parametrize("status", NO_STATUS.values(), ids=NO_STATUS)
    @pytest.mark.extended(default=["somebody waits for all"])
    def test_the_file_of_a_killed_encoder_is_not_taken_for_a_video(
        self, script: Any, status: str
    ) -> None:
        kill = "print([os.kill(pid, signal.SIGKILL) for pid in processes.encoders()])"
        fails = "len(said) == 1 and name in said[0] and not world.files()"
        result = script(WITHOUT_STATUS.format(at_work=kill, status=status, wanted=fails))
        if result.stdout.startswith("[]"):
            pytest.skip("its encoder is no process that could be killed")
        check_end(result)

    @pytest.mark.clause("FAIL-1h")
    @pytest.mark.parametrize("status", NO_STATUS.values(), ids=NO_STATUS)
    @pytest.mark.extended(default=["SIGCHLD ignored"])
    def test_a_whole_file_is_taken(self, script: Any, status: str) -> None:
        saves = "not said and world.videos() == {name: [0, 1, 2, 3, 4]}"
        result = script(WITHOUT_STATUS.format(at_work="pass", status=status, wanted=saves))
        check_end(result)
