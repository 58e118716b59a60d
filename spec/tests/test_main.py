"""What is seen from outside: on import (API-6), in a browser (FILE-17), from a shell and in the README (MAIN)."""

from __future__ import annotations

import ast
import http.server
import inspect
import json
import math
import os
import queue
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
from spec.suite.processes import check_end, torchrun
from spec.suite.video_reader import psnr

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
}
</script>"""


class TestImport:
    @pytest.mark.clause("API-6")
    def test_importing_imports_neither_genesis_nor_torch(self, module: Any, python: Any) -> None:
        modules = python("import sys, video_wrapper; print(*sys.modules)").stdout.split()
        assert "video_wrapper" in modules
        assert not {"genesis", "torch", "genesis_forge"}.intersection(modules)


class TestBrowser:
    @pytest.mark.clause("FILE-5c")
    @pytest.mark.parametrize("size", [(96, 64), (97, 65)])
    @pytest.mark.extended
    def test_a_browser_plays_and_seeks_it(
        self, fake: Any, tmp_path: Path, size: tuple[int, int]
    ) -> None:
        chromium = shutil.which("chromium")
        if chromium is None:
            pytest.skip("chromium is not installed")
        wrapper = fake.wrap(size=size, fps=10, video_length_sec=4, step_trigger=first_only)
        fake.run(wrapper, 44)
        (fake.out_dir / "index.html").write_text(PLAYER)
        facts = browse(chromium, fake.out_dir, tmp_path / "profile")
        assert "error" not in facts
        video = fake.video("0.mp4")
        assert facts["duration"] == pytest.approx(video.duration, abs=0.01)
        assert facts["time"] == pytest.approx(video.duration / 2, abs=0.01)
        assert (facts["width"], facts["height"]) == (video.width, video.height)
        picture = np.array(facts["pixels"], np.uint8).reshape(facts["height"], facts["width"], 4)
        assert video.reader(picture[..., :3]) == video.steps[math.floor(facts["time"] * 10 + 1e-3)]


def browse(chromium: str, folder: Path, profile: Path) -> dict[str, Any]:
    """Opens a folder's index.html, from an HTTP server. Returns what the page posts."""
    posted: queue.Queue[bytes] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / (self.path[1:] or "index.html")
            data = path.read_bytes() if path.exists() else b""
            # Without byte ranges, which Python's own file server lacks, Chromium seeks in no video.
            start = int(self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")[0])
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Type", "video/mp4" if path.suffix == ".mp4" else "text/html")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(data[start:])

        def do_POST(self) -> None:
            posted.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        flags += [f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/"]
        browser = subprocess.Popen(
            [chromium, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            return json.loads(posted.get(timeout=120))
        except queue.Empty:
            raise AssertionError("the page has told nothing for 120 s") from None
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()


class TestSelfTest:
    @pytest.mark.clause("MAIN-1a")
    def test_it_records_two_videos(
        self, module: Any, python: Any, tmp_path: Path, read_video: Any
    ) -> None:
        out_dir = tmp_path / "two videos"
        arguments = ["--out-dir", str(out_dir), "--steps", "12"]
        result = python(module.__file__, *arguments)
        check_end(result)
        videos = {path.name: read_video(path) for path in sorted(out_dir.iterdir())}
        assert len(videos) == 2
        for name, video in videos.items():
            assert str(out_dir / name) in result.stdout
            assert f"{video.count} frames, {video.duration:.4g} s" in result.stdout
            assert (video.width, video.height) == (320, 240)
            assert psnr(video.frames[0], video.frames[-1]) < 50  # something moves

    @pytest.mark.clause("MAIN-1b")
    @pytest.mark.parametrize("missing", ["genesis", "imageio_ffmpeg"])
    def test_it_says_in_a_line_what_is_missing(
        self, module: Any, python: Any, tmp_path: Path, missing: str
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{missing!r}] = None")
        result = python(module.__file__, "--out-dir", str(tmp_path), PYTHONPATH=str(tmp_path))
        assert result.returncode not in (0, None)
        assert len(result.stdout.splitlines()) <= 1  # what it is about to do
        (line,) = result.stderr.splitlines()
        assert "pip install" in line

    @pytest.mark.clause("MAIN-1b")
    @pytest.mark.parametrize(
        ("genesis_py", "words"),
        [
            (
                "raise ImportError('libGL.so.1: cannot open shared object file')",
                r"libGL\.so\.1.* apt-get install libgl1 libegl1 libxrender1$",
            ),
            (  # such as 0.2.1 with today's libraries
                "__version__, cpu = '0.2.1', None\ndef init(**_): 1 / 0",
                r"Genesis is 0\.2\.1\.",
            ),
        ],
        ids=["OpenGL", "another Genesis"],
    )
    def test_it_says_why_genesis_fails(
        self, module: Any, python: Any, tmp_path: Path, genesis_py: str, words: str
    ) -> None:
        (tmp_path / "genesis.py").write_text(genesis_py)
        result = python(module.__file__, "--out-dir", str(tmp_path), PYTHONPATH=str(tmp_path))
        assert result.returncode not in (0, None)
        (line,) = result.stderr.splitlines()
        assert re.search(words, line)


# What the README's examples are given, each on its own: an env with episodes of 50 steps.
README_GIVES = """
import torch
from spec.suite.fake_env import FakeEnv
from video_wrapper import VideoWrapper
def MyEnv():
    env = FakeEnv(dt=0.02, terminated_at=range(49, 10000, 50))
    env.side = env.camera
    return env
def policy(observations):
    return torch.zeros(3, 2)
"""
# The frames of the videos that they leave, by the heading they stand under.
README_LEAVES = {
    "Use it": {"videos/0.mp4": 25, "videos/50.mp4": 25, "videos/100.mp4": 25},
    "Videos in TensorBoard and Weights & Biases": {"videos/0.mp4": 100, "videos/200.mp4": 40},
    "One folder for each process of torchrun, two cameras, by hand": {
        f"videos/rank{rank}/{name}.mp4": count
        for rank in (0, 1)
        for name, count in (("front/0", 100), ("side/20", 30), ("side/50", 50))
    },
    "One video of one episode, to evaluate a policy": {"videos/policy.mp4": 50},
}


class TestReadme:
    @pytest.mark.of_suite
    def test_its_figure_of_clauses_is_right_and_tests_name_them_all(self, suite: Any) -> None:
        files = [ROOT / "test_video_wrapper.py", *(ROOT / "spec" / "tests").glob("test_*.py")]
        tests = "".join(file.read_text(encoding="utf-8") for file in files)
        assert [name for name in suite.clauses if f'"{name}"' not in tests] == []
        words = (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
        assert len(suite.clauses) > int(re.search(r"more than (\d+) \[clauses\]", words)[1])

    @pytest.mark.of_suite
    def test_its_arguments_are_the_module_s(self, implementation: type) -> None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        table = text.partition("| argument | default | |")[2].partition("\n\n")[0]
        rows = [line.split(" | ") for line in table.splitlines()[2:]]
        listed: dict[str, Any] = {}
        for names, default, _ in rows:
            arguments = re.findall(r"`(\w+)`", names)
            values = [value.strip("`") for value in default.split(", ")]
            listed |= dict(zip(arguments, values + [""] * 2))
        defaults = {
            parameter.name: parameter.default
            for parameter in inspect.signature(implementation).parameters.values()
        }
        del defaults["env"]
        assert set(listed) == set(defaults)
        told = {name: value for name, value in defaults.items() if value is not None}
        assert {name: ast.literal_eval(listed[name]) for name in told} == told

    @pytest.mark.of_suite
    def test_the_suite_needs_no_more_than_it_says(self, tmp_path: Path) -> None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        for name in re.findall(r"`(.*?)`", re.search(r"Keep (.*) together", text)[1]):
            copy = shutil.copytree if name.endswith("/") else shutil.copy
            copy(ROOT / name, tmp_path / name)
        (tmp_path / "your_package").mkdir()
        shutil.copy(ROOT / "spec/control/control.py", tmp_path / "your_package" / "video.py")
        command = re.search(r"^\.venv/bin/python (-m pytest -m quick .*)", text, re.MULTILINE)[1]
        subprocess.run(
            [sys.executable, *command.split(), "--clauses=DEL-2", "-p", "no:cacheprovider"],
            cwd=tmp_path,
            check=True,
            env={n: v for n, v in os.environ.items() if n != "PYTHONPATH"},
        )
        assert "| DEL-2a | MUST | documented | pass |" in (tmp_path / "report.md").read_text()

    @pytest.mark.clause("MAIN-1c")
    def test_every_example_is_run(self) -> None:
        assert list(README_LEAVES) == list(readme_examples())

    @pytest.mark.clause("MAIN-1c")
    @pytest.mark.parametrize("heading", README_LEAVES)
    @pytest.mark.extended(default=["Use it"])
    def test_an_example_leaves_its_videos(
        self, module: Any, python: Any, tmp_path: Path, read_video: Any, heading: str
    ) -> None:
        code = readme_examples()[heading]
        for package in ("tensorboard", "wandb"):
            if package in code:
                pytest.importorskip(package)
        script = tmp_path / "example.py"
        given = "" if "class Go2Env" in code else README_GIVES
        script.write_text(f"import os\nos.chdir({str(tmp_path)!r})\n{given}{code}")
        # What an earlier run has left is not logged again.
        (tmp_path / "videos").mkdir()
        (tmp_path / "videos" / "earlier.mp4").write_bytes(b"no video")
        offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
        if "torchrun" in heading:
            result = python(torchrun(2, str(script)), **offline)
        else:
            result = python(str(script), **offline)
        check_end(result)
        (tmp_path / "videos" / "earlier.mp4").unlink()
        videos = {
            path.relative_to(tmp_path).as_posix(): read_video(path).count
            for path in tmp_path.glob("videos/**/*.mp4")
        }
        assert videos == README_LEAVES[heading]
        if "tensorboard" in code:
            # The first video comes within iteration 4, and the last episode after the tenth.
            assert logged_images(tmp_path / "runs") == {"video": [(4, b"GIF89a"), (10, b"GIF89a")]}
            uploads = {path.resolve() for path in tmp_path.glob("wandb/*/files/media/videos/*")}
            assert len(uploads) == 2


def readme_examples() -> dict[str, str]:
    """Heading: the Python code that stands under it."""
    files = (ROOT / "README.md", ROOT / "spec" / "docs" / "recipes.md")
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    sections = re.split(r"^##+ (.*)\n", text, flags=re.MULTILINE)[1:]
    blocks = {
        heading: "".join(re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
        for heading, section in zip(sections[::2], sections[1::2])
    }
    return {heading: code for heading, code in blocks.items() if code}


def logged_images(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Tag: step and first bytes of each image, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(image.step, image.encoded_image_string[:6]) for image in events.Images(tag)]
        for tag in events.Tags()["images"]
    }
