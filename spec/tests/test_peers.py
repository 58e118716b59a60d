"""Tests of what the README's comparison says about RecordVideo and Genesis' own recording."""

from __future__ import annotations

import inspect
import shutil
import threading
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from spec.suite.doubles import first_only
from spec.suite.processes import wait_until
from spec.suite.video_reader import draw_step, read_video

pytestmark = [pytest.mark.of_suite, pytest.mark.extended]


class Numbers(gymnasium.Env):
    """An env whose image shows how many steps it has taken."""

    metadata: ClassVar = {"render_fps": 50}
    render_mode = "rgb_array"
    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (2,))
    steps = 0

    def reset(self, **options: Any) -> Any:
        return np.zeros(2), {}

    def step(self, actions: Any) -> Any:
        self.steps += 1
        return np.zeros(2), 0.0, False, False, {}

    def render(self) -> Any:
        picture = np.zeros((64, 96, 3), np.uint8)
        draw_step(picture, self.steps)
        return picture


def record(folder: Path, steps: int, episode: int, **options: Any) -> Any:
    """Return a RecordVideo, not yet closed, after so many steps in episodes of that length."""
    pytest.importorskip("moviepy")
    wrapper = gymnasium.wrappers.RecordVideo(Numbers(), str(folder), **options)
    for step in range(steps):
        if step % episode == 0:
            wrapper.reset()
        wrapper.step(None)
    return wrapper


@pytest.mark.parametrize(
    ("episode", "options", "wanted"),
    [  # 21 frames of 20 steps: one more step, or what the reset before them left
        (80, {"step_trigger": first_only}, {"step-0": range(1, 22)}),
        # The last of three episodes if the trigger names it, and not by default.
        (30, {"episode_trigger": lambda e: e == 2}, {"episode-2": range(60, 81)}),
        (30, {}, {"episode-0": range(21), "episode-1": range(30, 51)}),
    ],
)
def test_record_video_is_off_by_one(
    tmp_path: Path, episode: int, options: Any, wanted: Any
) -> None:
    record(tmp_path, 80, episode, video_length=20, **options).close()
    videos = {path.name: [*read_video(path).steps] for path in tmp_path.iterdir()}
    assert videos == {f"rl-video-{name}.mp4": [*steps] for name, steps in wanted.items()}


def test_record_video_lacks_frames_and_has_its_name_early(tmp_path: Path) -> None:
    wrapper = record(tmp_path, 400, 400)
    path, copy = tmp_path / "rl-video-episode-0.mp4", tmp_path / "copy.mp4"
    watcher = threading.Thread(target=lambda: (wait_until(path.exists), shutil.copy(path, copy)))
    watcher.start()
    wrapper.close()
    watcher.join()
    with pytest.raises(AssertionError):
        read_video(copy)
    # There are 401 with the reset's. moviepy looks them up by float times, and never finds some.
    assert 401 - len({*read_video(path).steps}) == 13


def test_start_recording_has_every_step_and_its_name_early(genesis: Any) -> None:
    env, path = genesis.env(), genesis.out_dir / "0.mp4"
    start = env.camera.start_recording
    assert [*inspect.signature(start).parameters] == ["save_to_filename", "fps"]  # no trigger
    genesis.out_dir.mkdir()
    start(str(path), fps=round(1 / env.dt))
    for _ in range(100):
        env.step(None)
    assert path.exists()
    with pytest.raises(AssertionError):
        read_video(path)
    env.camera.stop_recording()
    assert genesis.videos() == {"0.mp4": [*range(100)]}
