"""Tests from outside: importing the module, a browser, the demo and the README."""

from __future__ import annotations

import http.server
import inspect
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spec.suite import ROOT
from spec.suite.doubles import first_only
from spec.suite.processes import check_end, wait_until
from spec.suite.video_reader import psnr, read_video

README = ROOT / "README.md"
PLAYER = """<!doctype html><video src="0.mp4" preload="auto" muted></video><script>
const video = document.querySelector("video")
const tell = facts => fetch("/", {method: "POST", body: JSON.stringify(facts)})
video.onerror = () => tell({error: video.error.message})
video.onloadedmetadata = () => { video.currentTime = video.duration / 2 }
video.onseeked = () => {
    const {duration, currentTime: time, videoWidth: width, videoHeight: height} = video
    const canvas = new OffscreenCanvas(width, height).getContext("2d")
    canvas.drawImage(video, 0, 0)
    const pixels = [...canvas.getImageData(0, 0, width, height).data]
    tell({duration, time, width, height, pixels})
}</script>"""


@pytest.mark.clause("API-6")
def test_importing_imports_neither_genesis_nor_torch(module: Any, python: Any) -> None:
    modules = python("import sys, video_wrapper; print(*sys.modules)").stdout.split()
    assert "video_wrapper" in modules
    assert not {"genesis", "torch", "genesis_forge"}.intersection(modules)


@pytest.mark.clause("FILE-5c")
@pytest.mark.parametrize("size", [(96, 64), (97, 65)])
@pytest.mark.extended
def test_a_browser_plays_and_seeks_it(fake: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    wrapper = fake.wrap(size=size, fps=10, video_length_sec=4, step_trigger=first_only)
    fake.run(wrapper, 44)
    facts = browse(chromium, fake.out_dir, tmp_path / "profile")
    assert "error" not in facts
    video = fake.video("0.mp4")
    assert facts["duration"] == pytest.approx(video.duration, abs=0.01)
    assert facts["time"] == pytest.approx(video.duration / 2, abs=0.01)
    assert (facts["width"], facts["height"]) == (video.width, video.height)
    picture = np.array(facts["pixels"], np.uint8).reshape(facts["height"], facts["width"], 4)
    assert video.reader(picture[..., :3]) == video.steps[math.floor(facts["time"] * 10 + 1e-3)]


def browse(chromium: str, folder: Path, profile: Path) -> dict[str, Any]:
    """Open `PLAYER` and a folder's files from an HTTP server, and return what the page posts."""
    posted: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path[1:]
            data = path.read_bytes() if path.is_file() else PLAYER.encode()
            # Without byte ranges, which Python's own file server lacks, Chromium seeks in no video.
            start = int(re.search(r"\d+|$", self.headers.get("Range", ""))[0] or 0)
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Type", "video/mp4" if path.is_file() else "text/html")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(data[start:])

        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        flags += [f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/"]
        output = subprocess.DEVNULL
        with subprocess.Popen([chromium, *flags], stdout=output, stderr=output) as browser:
            try:
                wait_until(lambda: posted, 120)
            finally:
                browser.terminate()
                server.shutdown()
    return json.loads(posted[0])


def run_demo(python: Any, folder: Path) -> Any:
    """Run `python -m spec.demo` for 12 steps, with the modules in the folder before others."""
    code = "import runpy; runpy.run_module('spec.demo', run_name='__main__', alter_sys=True)"
    path, out_dir = f"{folder}{os.pathsep}{ROOT}", str(folder / "two videos")
    return python(code, "--out-dir", out_dir, "--steps", "12", PYTHONPATH=path)


HIDES = "import sys; sys.modules['{}'] = None"
NO_OPENGL = "raise ImportError('libGL.so.1: cannot open shared object file')"


@pytest.mark.clause("MAIN-1a")
def test_demo_records_a_triggered_and_a_final_video(
    real_scene: Any, python: Any, tmp_path: Path
) -> None:
    result, out_dir = run_demo(python, tmp_path), tmp_path / "two videos"
    check_end(result)
    assert "minutes" in result.stdout.splitlines()[0]
    videos = {path.name: read_video(path) for path in out_dir.iterdir()}
    assert sorted(videos) == ["0.mp4", "6.mp4"]
    for name, video in videos.items():
        assert str(out_dir / name) in result.stdout
        assert (video.count, video.rate, video.width, video.height) == (3, 25, 320, 240)
        assert psnr(video.frames[0], video.frames[-1]) < 50  # something moves


@pytest.mark.clause("MAIN-1b")
@pytest.mark.parametrize(
    ("file", "code", "words"),
    [
        ("sitecustomize.py", HIDES.format("genesis"), "pip install torch genesis-world"),
        ("sitecustomize.py", HIDES.format("imageio_ffmpeg"), "pip install imageio-ffmpeg"),
        ("genesis.py", NO_OPENGL, r"libGL\.so\.1.* apt-get install libgl1 libegl1 libxrender1\)"),
    ],
    ids=["genesis", "imageio_ffmpeg", "OpenGL"],
)
@pytest.mark.extended(default=["genesis"])
def test_demo_says_what_to_install(
    python: Any, tmp_path: Path, file: str, code: str, words: str
) -> None:
    (tmp_path / file).write_text(code)
    result = run_demo(python, tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert re.search(f"{words}$", line)


# The quick start runs with this env of 3 robots, whose episodes have 50 steps of 0.02 s.
GIVEN = """
import torch
from spec.suite.fake_env import FakeEnv
from video_wrapper import VideoWrapper
MyEnv = lambda: FakeEnv(dt=0.02, terminated_at=range(49, 10000, 50))
policy = lambda observations: torch.zeros(3, 2)
"""


@pytest.mark.clause("MAIN-1c")
def test_quick_start_leaves_the_videos_it_shows(python: Any, tmp_path: Path) -> None:
    readme = README.read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)[1]
    script = tmp_path / "example.py"
    script.write_text(f"import os\nos.chdir({str(tmp_path)!r})\n{GIVEN}{code}")
    result = python(str(script))
    check_end(result)
    videos = [(path.resolve(), read_video(path)) for path in tmp_path.rglob("*.mp4")]
    for path, video in videos:
        assert f"Saved {path}: {video.count} frames, " in result.stdout
    # The README shows the lines that are printed, with a folder of its own.
    lines = re.compile(r"^Saved .*/(\S+\.mp4: .*)$", re.MULTILINE)
    shown = lines.findall(readme)
    assert lines.findall(result.stdout) == shown
    assert len(videos) == len(shown) > 0


@pytest.mark.of_suite
def test_arguments_table_gives_the_defaults(implementation: type) -> None:
    readme = README.read_text(encoding="utf-8")
    _, *parameters = inspect.signature(implementation).parameters.values()
    for parameter in parameters:
        default = repr(parameter.default).replace("'", '"')
        assert f"\n| `{parameter.name}` | `{default}` |" in readme


@pytest.mark.of_suite
def test_suite_judges_a_class_in_another_folder(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "spec", tmp_path / "spec")
    for name in ("conftest.py", "test_video_wrapper.py", "video_wrapper.py"):
        shutil.copy(ROOT / name, tmp_path)
        assert f"`{name}`" in README.read_text(encoding="utf-8")
    (tmp_path / "your_package").mkdir()
    shutil.copy(ROOT / "spec/control/control.py", tmp_path / "your_package" / "video.py")
    command = [sys.executable, "-m", "pytest", "--implementation=your_package.video:VideoWrapper"]
    command += ["--clauses=DEL-2", "--conformance-report=report.md", "-m", "quick"]
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": ""})
    assert "DEL-2a" in (tmp_path / "report.md").read_text(encoding="utf-8")
