"""Recordings that meet a fault, each caused for real: a bad ffmpeg, a full disk (FAIL, ARG-12).

Most tests run a training in a process of its own, which has to go on after the fault.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from spec.suite.doubles import only_at
from spec.suite.harness import warned
from spec.suite.processes import check_end, needs_proc

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
AS_REAL = 'case "$*" in *-version*) exec REAL "$@";; esac\n'


def program(folder: Path, code: str) -> str:
    """Make an ffmpeg of a shell's code. REAL stands for the real one in it."""
    path = folder / "ffmpeg"
    path.write_text("#!/bin/sh\n" + code.replace("REAL", f'"{FFMPEG}"'), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


NO_FFMPEG = {
    "no file": "os.environ['IMAGEIO_FFMPEG_EXE'] = '/nowhere/ffmpeg'",
    "no package": "sys.modules['imageio_ffmpeg'] = None",
    "package without a binary": """
            import imageio_ffmpeg
            def get_ffmpeg_exe():
                raise RuntimeError("No ffmpeg exe could be found. Install ffmpeg on your system.")
            imageio_ffmpeg.get_ffmpeg_exe = get_ffmpeg_exe""",
}


class TestMissingFfmpeg:
    @pytest.mark.clause("ARG-12")
    @pytest.mark.parametrize("cause", NO_FFMPEG.values(), ids=NO_FFMPEG)
    def test_a_missing_ffmpeg_is_refused_at_construction(self, script: Any, cause: str) -> None:
        result = script(f"""
            env = world.env()
            {cause}
            try:
                world.wrap(env, build=False)
            except RuntimeError as error:
                print(error)
            assert env.calls == []
            """)
        check_end(result)
        assert "pip install imageio-ffmpeg" in result.stdout
        assert result.world.files() == []


def mounted(disk: str, tmp_path: Path) -> str:
    """Return code that mounts 2 MB at the folder: too few for 20 frames of noise, enough for two.

    The mount ends with the process.
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
            import ctypes, subprocess
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


# Fills the disk, or the file, with frames of noise, and then records two frames that fit.
FILLS = """
            dice = np.random.default_rng(0)
            wrapper = world.wrap(
                size=(640, 480), video_length_sec=2, record_final_episode=False,
                step_trigger=lambda n: n in (0, 30),
            )
            wrapper.unwrapped.camera.make_frame = lambda f: dice.integers(0, 256, f.shape, np.uint8)
            with warned() as texts:
                assert len(world.run(wrapper, 25)) == 25
            (text,) = texts
            assert "0.mp4" in text and {cause!r} in text, text
            assert world.files() == []
            os.sync()  # a quota counts what was deleted until then
            wrapper.unwrapped.camera.make_frame = lambda frame: frame
            world.run(wrapper, 7)
            wrapper.close()
            assert world.videos() == {{"30.mp4": [30, 31]}}
"""


class TestFaults:
    @pytest.mark.clause("FILE-3e")
    @pytest.mark.parametrize("when", [0, 3, 8])
    @pytest.mark.extended(default=["3"])
    def test_a_temporary_folder_that_vanishes_costs_no_video(
        self, script: Any, tmp_path: Path, when: int
    ) -> None:
        (tmp_path / "job").mkdir()
        result = script(
            f"""
            import shutil, tempfile, warnings
            warnings.simplefilter("error")
            assert tempfile.gettempdir() == os.environ["TMPDIR"]
            fake_env.FakeCamera.temporary = folder
            options = dict(video_length_sec=0.5, record_final_episode=False)
            wrapper = world.wrap(step_trigger=lambda n: n in (0, 10), **options)
            world.run(wrapper, {when})
            shutil.rmtree(os.environ["TMPDIR"])
            world.run(wrapper, {17 - when})
            wrapper.close()
            world.run(world.wrap(filename="another.mp4", **options), 6)
            """,
            TMPDIR=str(tmp_path / "job"),
        )
        check_end(result)
        videos = {n: [0, 1, 2, 3, 4] for n in ("0.mp4", "another.mp4")}
        assert result.world.videos() == {**videos, "10.mp4": [10, 11, 12, 13, 14]}

    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1c")
    def test_an_encoder_that_cannot_start_gives_one_warning(
        self, script: Any, tmp_path: Path
    ) -> None:
        ffmpeg = program(tmp_path, 'exec REAL "$@"')
        code = f"""
            wrapper = world.wrap(step_trigger=first_only, record_final_episode=False)
            Path({ffmpeg!r}).chmod(0o644)  # while training runs
            with warned() as texts:
                assert len(world.run(wrapper, 7)) == 7
            if "0.mp4" in world.files():
                print("another encoder")
                sys.exit()
            (text,) = texts
            assert "0.mp4" in text and "Permission denied" in text, text
            assert world.files() == []
        """
        result = script(code, IMAGEIO_FFMPEG_EXE=ffmpeg)
        if "another encoder" in result.stdout:
            pytest.skip("its encoder is not the ffmpeg that imageio-ffmpeg names")
        check_end(result)

    @pytest.mark.clause("FAIL-1b", "FAIL-1c", "FAIL-1d")
    def test_an_encoder_that_reports_an_error_is_believed(
        self, script: Any, leave_to: Any, tmp_path: Path
    ) -> None:
        # As ffmpeg does if it runs out of memory in the last frames: the file is whole, but short.
        code = AS_REAL + 'touch "$0.used"; REAL -t 0.3 "$@"; cat >/dev/null'
        ffmpeg = program(tmp_path, code + '; echo "malloc of size 4194304 failed" >&2; exit 1')
        result = script(f"""
            os.environ["IMAGEIO_FFMPEG_EXE"] = {ffmpeg!r}
            wrapper = world.wrap(record_final_episode=False, step_trigger=lambda n: n in (0, 8))
            with warned() as texts:
                world.run(wrapper, 8)
            assert world.files() == [], world.files()
            (text,) = texts
            assert "0.mp4" in text and "malloc of size" in text, text
            Path({ffmpeg!r}).write_text("#!/bin/sh\\nexec '{FFMPEG}' \\"$@\\"")  # it recovers
            world.run(wrapper, 5)
            """)
        if not Path(f"{ffmpeg}.used").exists():
            leave_to("its encoder is not the ffmpeg of imageio-ffmpeg")
        check_end(result)
        assert result.world.videos() == {"8.mp4": [8, 9, 10, 11, 12]}

    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1c", "FAIL-1d")
    @pytest.mark.parametrize(
        ("disk", "cause"),
        [("tmpfs", "No space left on device"), ("quota", "Disk quota exceeded")],
        ids=["disk", "quota"],
    )
    @pytest.mark.extended(default=["disk"])
    def test_a_full_disk_gives_one_warning_and_recording_goes_on(
        self, script: Any, tmp_path: Path, disk: str, cause: str
    ) -> None:
        if disk == "quota" and shutil.which("btrfs") is None:
            pytest.skip("btrfs, whose quotas limit root as well, is not installed")
        result = script(mounted(disk, tmp_path) + FILLS.format(cause=cause))
        skip_without_mount(result)
        check_end(result)

    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1c", "FAIL-1d")
    @pytest.mark.extended
    def test_a_file_size_limit_gives_one_warning(self, script: Any) -> None:
        pytest.importorskip("resource", reason="Windows has no such limits")
        limit = """
            import resource
            import numpy as np
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
        """
        check_end(script(limit + FILLS.format(cause="File too large")))

    @pytest.mark.clause("FAIL-1a", "FAIL-1b", "FAIL-1d")
    @pytest.mark.extended
    def test_a_folder_that_becomes_read_only_gives_one_warning(
        self, script: Any, tmp_path: Path
    ) -> None:
        result = script(
            mounted("tmpfs", tmp_path)
            + """
            wrapper = world.wrap(record_final_episode=False, step_trigger=lambda n: n in (0, 8, 16))
            world.run(wrapper, 6)
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            with warned() as texts:
                assert len(world.run(wrapper, 8)) == 8
            (text,) = texts
            assert "8.mp4" in text and "Read-only file system" in text, text
            subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
            world.run(wrapper, 10)
            assert world.files() == ["0.mp4", "16.mp4"]
            assert world.videos()["16.mp4"] == [16, 17, 18, 19, 20]
            """
        )
        skip_without_mount(result)
        check_end(result)

    @pytest.mark.clause("FAIL-1d", "FAIL-1g")
    def test_a_video_whose_name_is_in_use_keeps_its_partial_name(
        self, fake: Any, leave_to: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on Windows while a player has the old video open."""
        refused, move = [], os.replace

        def replace(source: Any, target: Any, **options: Any) -> None:
            if os.path.basename(target) == "run.mp4" and len(refused) == 0:
                refused.append(source)
                raise PermissionError(13, "The file is used by another process", str(target))
            move(source, target, **options)

        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, replace)
        wrapper = fake.wrap(filename="run.mp4", **only_at(0, 8))
        with warned(r"\brun\.mp4", "used by another process") as texts:
            fake.run(wrapper, 8)
        if not refused:
            leave_to("it gives videos their names in another way")
        (kept,) = fake.files()
        assert kept != "run.mp4"
        assert kept in texts[0]
        assert fake.video(kept).steps == [0, 1, 2, 3, 4]
        fake.run(wrapper, 8)
        assert fake.video("run.mp4").steps == [8, 9, 10, 11, 12]
        assert fake.video(kept).steps == [0, 1, 2, 3, 4]

    @needs_proc
    @pytest.mark.clause("FAIL-6b", "REC-2d")
    def test_memory_that_runs_out_at_the_first_frame_costs_no_video(self, script: Any) -> None:
        result = script("""
            import resource
            import numpy as np
            large = np.zeros((1500, 2000, 4), np.uint8)
            wrapper = world.wrap(step_trigger=never, terminated_at={7}, logging=True)
            world.run(wrapper, 8)
            status = Path("/proc/self/status").read_text().split()
            used = int(status[status.index("VmSize:") + 1]) * 1024
            limits = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**22, limits[1]))
            wrapper.unwrapped.camera.make_frame = lambda frame: large
            with warned() as texts:
                assert len(world.run(wrapper, 3)) == 3
            resource.setrlimit(resource.RLIMIT_AS, limits)
            (text,) = texts
            assert "8.mp4" in text, text
            wrapper.close()
            assert world.videos() == {"0.mp4": [0, 1, 2, 3, 4]}, world.files()
            assert world.files() == ["0.mp4"] and not encoders(), (world.files(), encoders())
        """)
        check_end(result)
        assert len(result.stdout.splitlines()) == 1, result.stdout

    @pytest.mark.clause("LOG-1d")
    @pytest.mark.parametrize(
        "break_it",
        [
            "os.close(1)",
            "sys.stdout.close()",
            "sys.stdout.reconfigure(encoding='ascii')",
            "sys.stdout = None",
            # A BufferedWriter raises this if a signal's handler prints. The next is a logger's own error.
            "sys.stdout = type('Out', (), {'write': lambda *_: raises(RuntimeError('reentrant'))})()",
            "sys.stdout = type('Out', (), {'write': lambda *_: raises(LookupError('no logger'))})()",
            "sys.stdout = object()",
        ],
    )
    @pytest.mark.extended(default=["os.close(1)"])
    def test_a_line_that_cannot_be_printed_raises_nothing(self, script: Any, break_it: str) -> None:
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


# Truncates the file, as if the disk were full.
TRUNCATES = (
    AS_REAL
    + """
touch "$0.used"
REAL "$@"
for last; do :; done
size=$(stat -c %s "$last")
truncate -s $(({cut})) "$last"
echo "No space left on device" >&2
exit 1
"""
)


NO_STATUS = {
    "SIGCHLD ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "somebody waits for all": "threading.Thread(target=wait_for_all, daemon=True).start()",
}


WITHOUT_STATUS = """
    import threading

    def wait_for_all():
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.0005)

    def record(name):
        wrapper = world.wrap(filename=name, step_trigger=first_only, record_final_episode=False)
        with warned() as texts:
            world.run(wrapper, 3)
            {at_work}
            world.run(wrapper, 5)
            wrapper.close()
        return texts

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
    @pytest.mark.parametrize("cut", ["0", "300", "size / 2"])
    @pytest.mark.extended(default=["size / 2-SIGCHLD ignored"])
    def test_a_truncated_file_is_not_taken_for_a_video(
        self, script: Any, leave_to: Any, tmp_path: Path, status: str, cut: str
    ) -> None:
        fails = "len(said) == 1 and name in said[0] and not world.files()"
        code = WITHOUT_STATUS.format(at_work="pass", status=status, wanted=fails)
        ffmpeg = program(tmp_path, TRUNCATES.format(cut=cut))
        result = script(f'os.environ["IMAGEIO_FFMPEG_EXE"] = {ffmpeg!r}\n' + textwrap.dedent(code))
        if not Path(f"{ffmpeg}.used").exists():
            leave_to("its encoder is not the ffmpeg of imageio-ffmpeg")
        check_end(result)

    @pytest.mark.clause("FAIL-1h", "FAIL-1b", "FAIL-1c")
    @pytest.mark.parametrize("status", NO_STATUS.values(), ids=NO_STATUS)
    @pytest.mark.extended(default=["somebody waits for all"])
    def test_a_killed_encoders_file_is_not_taken_for_a_video(
        self, script: Any, status: str
    ) -> None:
        kill = "print([os.kill(pid, signal.SIGKILL) for pid in encoders()])"
        fails = "len(said) == 1 and name in said[0] and not world.files()"
        result = script(WITHOUT_STATUS.format(at_work=kill, status=status, wanted=fails))
        if result.stdout.startswith("[]"):
            pytest.skip("its encoder is not a process that could be killed")
        check_end(result)

    @pytest.mark.clause("FAIL-1h")
    @pytest.mark.parametrize("status", NO_STATUS.values(), ids=NO_STATUS)
    @pytest.mark.extended(default=["SIGCHLD ignored"])
    def test_a_whole_file_is_taken(self, script: Any, status: str) -> None:
        saves = "not said and world.videos() == {name: [0, 1, 2, 3, 4]}"
        result = script(WITHOUT_STATUS.format(at_work="pass", status=status, wanted=saves))
        check_end(result)
