"""Recordings that meet a fault, each caused for real: a bad ffmpeg, a full disk (FAIL, ARG-12).

The tests run a training in a process of its own, which has to go on after the fault.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from spec.suite.processes import check_end, needs_proc
from spec.suite.video_reader import assert_steps
from spec.tests.test_close import EXTENDED, case

# The recording of the steps 0 to 19 fails, and that of the steps 30 to 49 is saved. The code in
# between defines `break_it` and `heal`.
DEFAULTS = """
    import json, resource, shutil, subprocess
    import numpy as np
    options = dict(step_trigger=lambda n: n in (0, 30), record_final_episode=False)
    size, ffmpeg = (96, 64), Path(folder).parent / "ffmpeg"
    break_it = heal = lambda: None
    if ffmpeg.exists():
        os.environ["IMAGEIO_FFMPEG_EXE"] = str(ffmpeg)
"""
FAULT = """
    for name in {names}:
        env = world.env(size=size)
        wrapper = world.wrap(env, filename=name, video_length_sec=2, **options)
        with warned(count=None) as texts:
            break_it()
            assert len(world.run(wrapper, 24)) == 24
        files = world.files()
        heal()
        env.camera.make_frame = lambda frame: frame
        videos = world.videos()
        world.run(wrapper, 30)
        wrapper.close()
        print(json.dumps([texts, files, videos, world.videos()]))
        for file in world.files():
            (world.out_dir / file).unlink()
"""

# Mounts 2 MB at the folder: too few for 20 frames of noise, and enough for others.
SMALL_DISK = """
    import ctypes
    os.makedirs(folder)
    is_private = ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS: it ends with the process
    commands = ["mount --make-rprivate /", f"mount -t tmpfs -o size=2M tmpfs {folder}"]
    if not is_private or any(subprocess.run(command.split()).returncode for command in commands):
        print("cannot mount")
        sys.exit()
"""
SIZE_LIMIT = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
"""
NOISE = """
    size, dice = (640, 480), np.random.default_rng(0)

    def break_it():
        env.camera.make_frame = lambda frame: dice.integers(0, 256, frame.shape, np.uint8)
"""
READ_ONLY = """
    remount = lambda way: subprocess.run(f"mount -o remount,{way} {folder}".split(), check=True)
    break_it, heal = lambda: remount("ro"), lambda: remount("rw")
"""
GONE = """
    heal = lambda: os.makedirs(folder, exist_ok=True)

    def break_it():
        world.run(wrapper, 3)
        shutil.rmtree(folder)
"""
TEMPORARY_GONE = """
    import tempfile
    tempfile.tempdir = os.environ["TMPDIR"] = str(ffmpeg.with_name("job"))
    fake_env.FakeCamera.temporary = folder
    os.mkdir(tempfile.tempdir)

    def break_it():
        world.run(wrapper, 3)
        shutil.rmtree(tempfile.tempdir, ignore_errors=True)
"""
NOT_EXECUTABLE = """
    break_it, heal = lambda: ffmpeg.chmod(0o644), lambda: ffmpeg.chmod(0o755)
"""
BAD = """
    fault = ffmpeg.with_name("fault")
    break_it, heal = fault.touch, fault.unlink
"""
KILLED = """
    def break_it():
        world.run(wrapper, 3)
        time.sleep(0.2)  # until ffmpeg has begun the file
        for pid in encoders():
            os.kill(pid, signal.SIGKILL)
"""
MEMORY = """
    limits = resource.getrlimit(resource.RLIMIT_AS)
    heal = lambda: resource.setrlimit(resource.RLIMIT_AS, limits)
    large = np.zeros((1500, 2000, 4), np.uint8)

    def break_it():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**22, limits[1]))
        env.camera.make_frame = lambda frame: large
"""
LOSES = "    signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"

# An ffmpeg that works unless there is a file beside it that is named "fault".
FFMPEG = f"""#!/bin/sh
REAL="{imageio_ffmpeg.get_ffmpeg_exe()}"
[ -e "$(dirname "$0")/fault" ] || exec "$REAL" "$@"
case "$*" in *-version*) exec "$REAL" "$@";; esac
"""
# As when memory runs out in the last frames: the file is complete, but short.
SHORT = '"$REAL" -t 0.3 "$@"; cat >/dev/null; echo "malloc of size 4194304 failed" >&2; exit 1'
# As when the disk is full.
HALF = """
"$REAL" "$@"
for last; do :; done
truncate -s $(($(stat -c %s "$last") / 2)) "$last"
echo "No space left on device" >&2
exit 1
"""
ALL, LOST = "FAIL-1a FAIL-1b FAIL-1c FAIL-1d", "FAIL-1h FAIL-1b FAIL-1c"


@needs_proc
@pytest.mark.parametrize(
    ("code", "ffmpeg", "words"),
    [
        case(ALL, "full disk", SMALL_DISK + NOISE, None, "space|full"),
        case(ALL, "size limit", SIZE_LIMIT + NOISE, None, "large|limit|size", marks=EXTENDED),
        case(ALL, "read-only", SMALL_DISK + READ_ONLY, None, "read-only|permi", marks=EXTENDED),
        case(ALL, "folder gone", GONE, None, "no such|not exist|gone|missing|folder|directory"),
        case(ALL, "ffmpeg not executable", NOT_EXECUTABLE, "", "permission|execut|start|run"),
        case(ALL, "ffmpeg reports an error", BAD, SHORT, "malloc of size"),
        case("FAIL-6b", "memory runs out", MEMORY, None, ""),
        case(LOST, "no status, killed", LOSES + KILLED, None, ""),
        case(LOST, "no status, half", LOSES + BAD, HALF, ""),
        case("FAIL-1h", "no status, whole", LOSES, None, None),
        case("FILE-3e", "temporary folder gone", TEMPORARY_GONE, None, None),
    ],
)
def test_a_fault_gives_one_warning_and_recording_goes_on(
    script: Any, leave_to: Any, tmp_path: Path, code: str, ffmpeg: str | None, words: str | None
) -> None:
    if ffmpeg is not None:
        (tmp_path / "ffmpeg").write_text(FFMPEG + ffmpeg, encoding="utf-8")
        (tmp_path / "ffmpeg").chmod(0o755)
    names = [None] if words else ["a.mp4", "a.mov", "a.mkv", "a.m4v"]
    result = script(DEFAULTS + code + FAULT.format(names=names))
    if "cannot mount" in result.stdout:
        pytest.skip("only root can mount a small file system")
    check_end(result)
    for name, line in zip(names, result.stdout.splitlines(), strict=True):
        texts, files, videos, later = json.loads(line)
        assert [*later] == [name or "30.mp4"], line
        assert_steps(*later.values(), range(30, 50))
        is_saved = not texts and [len(steps) >= 19 for steps in videos.values()] == [True]
        if words is None:
            assert is_saved, line
            continue
        if is_saved:
            leave_to("the fault does not reach it")
        assert len(texts) == 1 and (name or "0.mp4") in texts[0], texts
        assert re.search(words, texts[0], re.IGNORECASE), f"expected {words}, got {texts}"
        assert files == []


@pytest.mark.clause("LOG-1d")
@pytest.mark.parametrize(
    "code",
    [
        "os.close(1)",
        "sys.stdout.close()",
        "sys.stdout.reconfigure(encoding='ascii')",
        # As a BufferedWriter raises it if a signal's handler prints.
        "sys.stdout = mock.Mock(**{'write.side_effect': RuntimeError('reentrant call')})",
        "sys.stdout = None",
    ],
    ids=["file closed", "stream closed", "ASCII", "reentrant", "None"],
)
@pytest.mark.extended(default=["file closed"])
def test_a_line_that_cannot_be_printed_raises_nothing(script: Any, code: str) -> None:
    result = script(f"""
        from unittest import mock
        {code}
        wrapper = world.wrap(filename="größe.mp4", step_trigger=first_only, logging=True)
        world.run(wrapper, 7)
        wrapper.close()
        print("closed", file=sys.stderr)
        os._exit(0)
    """)
    assert result.stderr == "closed\n"
    assert result.world.files() == ["größe.mp4"]


@pytest.mark.clause("ARG-12")
@pytest.mark.parametrize(
    "code",
    [
        "os.environ['IMAGEIO_FFMPEG_EXE'] = '/nowhere/ffmpeg'",
        "sys.modules['imageio_ffmpeg'] = None",
        "sys.modules['imageio_ffmpeg'].get_ffmpeg_exe = mock.Mock(side_effect=RuntimeError)",
    ],
    ids=["no file", "no package", "package without a binary"],
)
@pytest.mark.extended(default=["no file", "no package"])
def test_a_missing_ffmpeg_is_refused_at_construction(script: Any, code: str) -> None:
    result = script(f"""
        from unittest import mock
        env = world.env()
        {code}
        try:
            world.wrap(env, build=False)
        except RuntimeError as error:
            print(error)
        assert env.calls == []
    """)
    check_end(result)
    assert "pip install imageio-ffmpeg" in result.stdout
    assert result.world.files() == []
