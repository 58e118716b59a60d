"""Each recipe of spec/docs/recipes.md, run as it stands (MAIN-1c)."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spec.suite import ROOT
from spec.suite.processes import check_end, torchrun

pytestmark = [pytest.mark.clause("MAIN-1c"), pytest.mark.extended]

# An env of 3 robots with episodes of 50 steps of 0.02 s.
FAKE = """
import torch
EPISODE = 50
from spec.suite.fake_env import FakeEnv

def MyEnv():
    env = FakeEnv(dt=0.02, terminated_at=range(EPISODE - 1, 10000, EPISODE))
    env.side = env.camera
    return env

def policy(observations):
    return torch.zeros(3, 2)
"""
# The same with the four results of an rsl_rl VecEnv.
RSL_RL = """
import torch
from types import SimpleNamespace
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict
from spec.suite.fake_env import FakeEnv
from spec.tests.test_training import rsl_rl_config
EPISODE = 50

class MyEnv(FakeEnv):
    device, max_episode_length, cfg = "cpu", 50, SimpleNamespace(to_dict=dict)

    def __init__(self):
        super().__init__(dt=0.02)
        self.side, self.episode_length_buf = self.camera, torch.zeros(3)

    def get_observations(self):
        return TensorDict({"policy": torch.zeros(3, 4)}, [3])

    def step(self, actions):
        _, rewards, *_, extras = super().step(actions)
        self.episode_length_buf += 1
        dones = self.episode_length_buf >= EPISODE
        self.episode_length_buf[dones] = 0
        return self.get_observations(), rewards, dones, extras

torch.manual_seed(0)
train_cfg = rsl_rl_config(24)
"""
SB3 = """
import numpy as np
from spec.suite.fake_env import FakeEnv
from stable_baselines3.common.vec_env import VecEnv

class MyVecEnv(VecEnv):
    dt, render_mode = 0.02, None

    def __init__(self):
        self.fake = FakeEnv(dt=0.02, terminated_at=range(49, 10000, 50))
        self.camera = self.fake.camera
        super().__init__(3, self.fake.observation_space, self.fake.action_space)

    def reset(self):
        return np.zeros((3, 4), np.float32)

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        observations, rewards, dones, *_ = map(np.asarray, self.fake.step(self.actions)[:4])
        infos = [{"terminal_observation": observation} for observation in observations]
        return observations, rewards, dones, infos

    def close(self):
        self.fake.close()

    def get_attr(self, name, indices=None):
        return [getattr(self, name)] * 3

    def set_attr(self, name, value, indices=None):
        raise NotImplementedError

    def env_method(self, name, *arguments, indices=None, **options):
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * 3
"""
GYMNASIUM = """
import gymnasium
from spec.suite.fake_env import FakeEnv

class MyGymEnv(gymnasium.Env):
    dt = 0.02

    def __init__(self):
        self.fake, self.seeds = FakeEnv(dt=0.02, num_envs=1), []
        self.camera, self.action_space = self.fake.camera, self.fake.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        return [], {}

    def step(self, action):
        self.fake.step(action)
        return [], 0.0, False, False, {}
"""
GO2 = """
import torch
from spec.demo import Go2Env as MyEnv

def policy(step):
    return 0.2 * torch.ones(64, 12)
"""
# Recordings follow one another, so that some iterations of 24 steps have two videos of 20.
ALWAYS = """
import video_wrapper
video_wrapper.capped_cubic_episode_trigger = lambda episode: True
EPISODE = 5
"""


def sections() -> dict[str, list[str]]:
    """Return the blocks of Python of each recipe, by its heading."""
    text = (ROOT / "spec/docs/recipes.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    python = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return {heading: python.findall(body) for heading, body in zip(parts[::2], parts[1::2])}


SECTIONS = sections()


@pytest.fixture
def run(python: Any, tmp_path: Path, read_video: Any) -> Callable[..., dict[str, int]]:
    """Run code in a folder of its own. Return the frames of each video that it leaves."""

    def run(code: str, ranks: int = 0) -> dict[str, int]:
        script = tmp_path / "recipe.py"
        start = f"import os\nos.chdir({str(tmp_path)!r})\nfrom video_wrapper import VideoWrapper\n"
        script.write_text(start + code)
        offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
        result = python(torchrun(ranks, str(script)) if ranks else str(script), **offline)
        check_end(result)
        assert "Warning: recording" not in result.stderr
        paths = [*tmp_path.glob("videos/**/*.mp4"), *tmp_path.glob("logs/**/*.mp4")]
        names = {path: path.relative_to(tmp_path).as_posix() for path in paths}
        return {names[path]: read_video(path).count for path in paths if path.stat().st_size}

    return run


def blocks(heading: str, *packages: str) -> list[str]:
    """Return a recipe's code, or skip the test if it needs a package that is not installed."""
    for package in packages:
        pytest.importorskip(package)
    return SECTIONS[heading]


def test_every_recipe_has_a_test() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [heading for heading in SECTIONS if f'blocks("{heading}"' not in text] == []


def test_rsl_rl_recipe_trains_and_records(run: Any) -> None:
    (code,) = blocks("rsl_rl, and Genesis' own examples", "rsl_rl", "tensorboard")
    check = "assert env.unwrapped.episode_length_buf is env.episode_length_buf\n"
    counts = run(RSL_RL + code + check)
    assert len(counts) == 3
    assert counts["logs/videos/0.mp4"] == 50


def test_sb3_recipe_trains_and_records(run: Any) -> None:
    (code,) = blocks("Stable-Baselines3", "stable_baselines3")
    assert run(SB3 + code) == {f"videos/{step}.mp4": 50 for step in (0, 50)}


def test_gymnasium_recipe_passes_seeds_and_time_limits(run: Any) -> None:
    (code,) = blocks("Gymnasium", "gymnasium")
    counts = run(GYMNASIUM + code + "assert env.unwrapped.seeds == [0, 1, 2, 3]\n")
    assert counts == {f"videos/{step}.mp4": 30 for step in (0, 30, 90)}


def test_episode_recipe_leaves_one_video_of_the_episode(run: Any) -> None:
    (code,) = blocks("One video of exactly one episode")
    assert run(FAKE + code) == {"videos/policy.mp4": 50}


def test_checkpoint_recipe_records_after_each_checkpoint(run: Any) -> None:
    code, _ = blocks("A video at each checkpoint")
    assert run(FAKE + code) == {f"videos/{step}.mp4": 20 for step in (24, 72, 120)}


def test_checkpoint_recipe_for_rsl_rl_records_after_each_save(run: Any) -> None:
    _, save = blocks("A video at each checkpoint", "rsl_rl", "tensorboard")
    (code,) = SECTIONS["rsl_rl, and Genesis' own examples"]
    before, learn, after = code.partition("runner.learn")
    counts = run(RSL_RL + before + save + learn + after)
    assert counts["logs/videos/0.mp4"] == 24  # until model_0.pt
    assert counts["logs/videos/24.mp4"] == 50


def test_iteration_recipe_counts_on_after_a_resume(run: Any) -> None:
    (code,) = blocks("Triggers and names by iteration, also after a resume")
    names = "00100-0", "00150-1200", "00158-1400"
    assert run(FAKE + code) == {f"videos/from-100/{name}.mp4": 20 for name in names}


def test_following_camera_recipe_records_both_kinds(real_scene: Any, run: Any) -> None:
    (code,) = blocks("A camera that follows the robot")
    assert run(GO2 + code) == {"videos/0.mp4": 10, "videos/20.mp4": 10}


def test_text_recipe_writes_into_each_frame(run: Any, tmp_path: Path, read_video: Any) -> None:
    (code,) = blocks("Text in the picture")
    assert run(FAKE + code) == {"videos/0.mp4": 50, "videos/50.mp4": 50}
    texts = [frame[8:20, 8:60] for frame in read_video(tmp_path / "videos/0.mp4").frames]
    assert all((text.min(axis=2) > 200).any() for text in texts)


def test_cameras_recipe_leaves_a_folder_for_each_rank(run: Any) -> None:
    (code,) = blocks("Two cameras, by hand, one folder for each rank")
    expected = {"front/0": 100, "side/20": 30, "side/50": 50}
    ranks = {f"videos/rank{r}/{name}.mp4": n for r in (0, 1) for name, n in expected.items()}
    assert run(FAKE + code, ranks=2) == ranks


def test_wandb_recipe_logs_each_video_at_its_iteration(run: Any, tmp_path: Path) -> None:
    setup, loop, _ = blocks("Weights & Biases", "wandb")
    for camera in ("front", "side"):
        earlier = tmp_path / "videos" / camera / "earlier.mp4"  # an earlier run's
        earlier.parent.mkdir(parents=True)
        earlier.touch()
    run(FAKE + ALWAYS + setup + loop)
    expected: dict[int, list[str]] = {}
    for first in range(0, 240, 20):
        expected.setdefault((first + 19) // 24, []).append(str(first))
    assert max(map(len, expected.values())) == 2
    assert logged_videos(tmp_path) == {"front": expected, "side": expected}


def test_wandb_recipe_for_rsl_rl_logs_the_final_episode_too(run: Any, tmp_path: Path) -> None:
    setup, _, runner = blocks("Weights & Biases", "wandb", "rsl_rl")
    run(RSL_RL + ALWAYS + setup + runner)
    videos = logged_videos(tmp_path)
    assert videos["front"] == videos["side"]
    firsts = [first for captions in videos["front"].values() for first in captions]
    assert firsts == [str(first) for first in range(0, 144, 20)]
    assert videos["front"][6] == ["140"]  # saved by close()


def test_tensorboard_recipe_logs_each_video_once(run: Any, tmp_path: Path) -> None:
    (code,) = blocks("TensorBoard", "tensorboard")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "earlier.mp4").touch()
    assert run(FAKE + code) == {"videos/0.mp4": 100, "videos/150.mp4": 50}
    # The first video comes within iteration 4, and the final episode after the tenth.
    assert logged_images(tmp_path / "runs") == {"video": [(4, b"GIF89a"), (10, b"GIF89a")]}


def logged_images(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Return step and first bytes of each image by its tag, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(image.step, image.encoded_image_string[:6]) for image in events.Images(tag)]
        for tag in events.Tags()["images"]
    }


def logged_videos(folder: Path) -> dict[str, dict[int, list[str]]]:
    """Return the captions of the videos of each camera and step that an offline run would sync."""
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    videos: dict[str, dict[int, list[str]]] = {}
    for row in history(log.read_bytes()):
        for key, value in row.items():
            if key.endswith("/captions"):
                videos.setdefault(key.split("/")[1], {})[row["_step"]] = value
        for value in row.values():
            for video in value if isinstance(value, list) else ():
                if isinstance(video, dict):
                    assert (log.parent / "files" / video["path"]).stat().st_size == video["size"]
    return videos


def history(data: bytes) -> list[dict[str, Any]]:
    """Return the rows of a .wandb file, which is a LevelDB log of protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, at, message = [], 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the end of a block is too short for a header
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        message += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record.FromString(message)
            message = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                named = {item.key or "/".join(item.nested_key): item.value_json for item in items}
                rows.append({name: json.loads(value) for name, value in named.items()})
    return rows
