"""Tests of what the README's comparison says about RecordVideo and Genesis' own recording."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from spec.suite.doubles import first_only
from spec.suite.genesis_scenes import start_genesis
from spec.suite.processes import run_python, wait_until
from spec.suite.video_reader import draw_step, read_video
from spec.tests.test_cost import GymEnv, record_video

pytestmark = [pytest.mark.of_suite, pytest.mark.extended]


def copy_at_once(path: Path, copy: Path) -> None:
    """Copy a file as soon as it has its name."""
    wait_until(path.exists)
    shutil.copy(path, copy)


def is_broken(path: Path) -> bool:
    """Return whether the file exists and cannot be played."""
    assert path.exists()
    try:
        return not read_video(path).frames
    except AssertionError:
        return True


class Numbers(GymEnv):
    """An env whose image shows how many steps it has taken."""

    steps = renders = 0

    def step(self, actions: Any) -> Any:
        self.steps += 1
        return super().step(actions)

    def render(self) -> Any:
        self.renders += 1
        picture = super().render()
        draw_step(picture, self.steps)
        return picture


def record(folder: Path, steps: int, episode: int, **options: Any) -> Any:
    """Return a RecordVideo, not yet closed, after so many steps in episodes of that length."""
    wrapper = record_video(Numbers(), folder, **options)
    for step in range(steps):
        if step and step % episode == 0:
            wrapper.reset()
        wrapper.step(None)
    return wrapper


class TestRecordVideo:
    @pytest.mark.parametrize(
        ("episode", "options", "wanted"),
        [  # 21 frames of 20 steps: one more step, or what the reset before them left
            (80, {"step_trigger": first_only}, {"step-0": range(1, 22)}),
            # The trigger says always, and there is one video of the episode.
            (80, {"episode_trigger": lambda e: True}, {"episode-0": range(21)}),
            # The last of three episodes if the trigger names it, and not by default.
            (30, {"episode_trigger": lambda e: e == 2}, {"episode-2": range(60, 81)}),
            (30, {}, {"episode-0": range(21), "episode-1": range(30, 51)}),
        ],
    )
    def test_videos_are_off_by_one(
        self, tmp_path: Path, episode: int, options: Any, wanted: Any
    ) -> None:
        wrapper = record(tmp_path, 80, episode, video_length=20, **options)
        wrapper.close()
        videos = {path.name: [*read_video(path).steps] for path in tmp_path.iterdir()}
        assert videos == {f"rl-video-{name}.mp4": [*steps] for name, steps in wanted.items()}
        assert wrapper.unwrapped.renders == sum(map(len, videos.values()))  # a picture a frame

    def test_long_file_has_its_name_early_and_lacks_frames(self, tmp_path: Path) -> None:
        wrapper = record(tmp_path, 1000, 1000)
        path, copy = tmp_path / "rl-video-episode-0.mp4", tmp_path / "copy.mp4"
        watcher = threading.Thread(target=copy_at_once, args=(path, copy))
        watcher.start()
        wrapper.close()
        watcher.join()
        assert is_broken(copy)
        # moviepy looks frames up by float times: some of the 1001 are there twice, others never.
        assert wrapper.unwrapped.renders == 1001
        assert len({*read_video(path).steps}) < 1000

    @pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "1 / 0"])
    def test_kill_or_error_leaves_nothing(self, tmp_path: Path, end: str) -> None:
        pytest.importorskip("moviepy")
        code = (
            f"from spec.tests.test_peers import *; w = record(Path({str(tmp_path)!r}), 9, 9); {end}"
        )
        result = run_python(code)
        assert result.returncode == -9 or "ZeroDivisionError" in result.stderr
        assert not [*tmp_path.iterdir()]


def film(end: str) -> None:
    """Record with Genesis' camera in the working directory, and end this way in a second recording."""
    gs = start_genesis()
    scene = gs.Scene(sim_options=gs.options.SimOptions(dt=0.02), show_viewer=False)
    camera = scene.add_camera(res=(640, 480), pos=(2, 0, 1), lookat=(0, 0, 0.5))
    scene.add_entity(gs.morphs.Box(size=(0.2,) * 3, pos=(0, 0, 1)))
    scene.build()
    assert [*inspect.signature(camera.start_recording).parameters] == ["save_to_filename", "fps"]
    pictures, memory, render = [], [], camera.render
    camera.render = lambda **kinds: pictures.append(1) or render(**kinds)
    for name in ("whole", "ended"):
        camera.start_recording(f"{name}.mp4", fps=50)
        for _ in range(100):
            scene.step()
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6)
        copy_at_once(Path(f"{name}.mp4"), Path(f"{name}.copy.mp4"))
        if name == "whole":
            camera.stop_recording()
            scene.step()
            print("pictures:", len(pictures), "MB:", memory[99] - memory[19])
    if end == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("the end")


class TestStartRecording:
    @pytest.mark.parametrize("end", ["SIGKILL", "an error"])
    def test_recording_by_hand_ends_with_the_process(
        self, genesis: Any, tmp_path: Path, end: str
    ) -> None:
        code = f"import os; os.chdir({str(tmp_path)!r}); from spec.tests.test_peers import *; film({end!r})"
        result = run_python(code)
        # Genesis has the error go to the standard output.
        assert result.returncode == -9 or "RuntimeError: the end" in result.stdout + result.stderr
        pictures, grown = re.search(r"pictures: (\d+) MB: (\S+)", result.stdout).groups()
        assert int(pictures) == read_video(tmp_path / "whole.mp4").count == 100  # of 100 steps
        assert float(grown) < 30  # the last 80 pictures are 74 MB
        assert is_broken(tmp_path / "whole.copy.mp4")
        if end == "SIGKILL":
            assert is_broken(tmp_path / "ended.mp4")
        else:  # its exit handler
            assert read_video(tmp_path / "ended.mp4").count == 100
