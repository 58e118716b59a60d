"""Each recipe of spec/docs/recipes.md, run as it stands (MAIN-1c)."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spec.suite import ROOT
from spec.suite.processes import check_end
from spec.suite.video_reader import read_video

pytestmark = [pytest.mark.clause("MAIN-1c"), pytest.mark.extended]

# An env of 3 robots with episodes of 50 steps of 0.02 s.
FAKE = """
import torch
from spec.suite.fake_env import FakeEnv
DT, EPISODE, LENGTH = 0.02, 50, 100

def FiveResultsEnv():
    env = FakeEnv(dt=DT, terminated_at=range(EPISODE - 1, 10000, EPISODE))
    env.side = env.camera
    return env

MyEnv = FiveResultsEnv

def policy(observations):
    return torch.zeros(3, 2)

def train(env):
    for _ in range(LENGTH):
        env.step(policy(env.get_observations()))
"""
RSL_RL = """
import wandb
from types import SimpleNamespace
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict
from spec.tests.test_training import rsl_rl_config

writer = {"class_name": "WandbLogWriter", "project_name": "go2"}
train_cfg = rsl_rl_config(24) | {"save_interval": 3, "logger": writer}

def MyEnv():
    env = FiveResultsEnv()
    env.make_flags = lambda terminated, truncated: [terminated]
    env.get_observations = lambda: TensorDict({"policy": torch.zeros(3, 4)}, [3])
    env.device, env.cfg = "cpu", SimpleNamespace(to_dict=dict)
    env.max_episode_length, env.episode_length_buf = EPISODE, torch.zeros(3)
    return env
"""
GYMNASIUM = """
import gymnasium
from spec.suite.fake_env import FakeEnv
seeds = []

class Episodic(FakeEnv, gymnasium.Env):
    def reset(self, seed=None, options=None):
        seeds.append(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        super().step(action)
        return self.observation_space.sample(), 0.0, False, False, {}

def MyGymEnv():
    return gymnasium.wrappers.TimeLimit(Episodic(dt=0.02, num_envs=1), 30)
"""
EPISODES = """
for seed in range(4):
    env.reset(seed=seed)
    while not any(env.step(env.action_space.sample())[2:4]):
        pass
env.close()
assert seeds == [0, 1, 2, 3]
"""
SB3 = """
from stable_baselines3.common.vec_env import DummyVecEnv

def MyVecEnv():
    env = DummyVecEnv([MyGymEnv] * 3)
    env.dt, env.camera = 0.02, env.envs[0].unwrapped.camera
    return env
"""
GO2 = """
import torch
from spec.demo import Go2Env as MyEnv

def train(env):
    for _ in range(40):
        env.step(0.2 * torch.ones(64, 12))
"""
# The text recipe's camera gives black frames, so that only the text is bright.
BLACK = """
from spec.suite import fake_env
fake_env.draw_step = lambda frame, number: frame.fill(0)
"""
TEXTS = """
from spec.suite.video_reader import read_video
first, *others = [frame > 200 for frame in read_video("videos/0.mp4").frames]
assert first.any()
assert all((frame != first).any() for frame in others)
"""


def sections() -> dict[str, list[str]]:
    """Return the blocks of Python of each recipe, by its heading."""
    text = (ROOT / "spec/docs/recipes.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    python = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return {heading: python.findall(body) for heading, body in zip(parts[::2], parts[1::2])}


SECTIONS = sections()
(TRAIN_RSL_RL,) = SECTIONS["rsl_rl, and Genesis' own examples"]
(RECORD_CHECKPOINTS,) = SECTIONS["A video at each checkpoint"]
(TWO_CAMERAS,) = SECTIONS["Two cameras, and a folder for each rank"]
SIDES = ["front", "side"]


@pytest.fixture
def run(python: Any, tmp_path: Path) -> Callable[[str], dict[str, int]]:
    """Run code in a folder of its own. Return the frames of each video that it leaves."""

    def run(code: str) -> dict[str, int]:
        for package in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
            if not importlib.util.find_spec(package):
                pytest.skip(f"not installed: {package}")
        script = tmp_path / "recipe.py"
        start = f"import os\nos.chdir({str(tmp_path)!r})\nfrom video_wrapper import VideoWrapper\n"
        script.write_text(start + code)
        offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
        result = python(str(script), **offline)
        check_end(result)
        assert "Warning: recording" not in result.stderr
        paths = [*tmp_path.glob("videos/**/*.mp4"), *tmp_path.glob("logs/videos/*.mp4")]
        name = re.compile(r".*/videos/(.*)\.mp4")
        return {name.match(str(p))[1]: read_video(p).count for p in paths if p.stat().st_size}

    return run


def test_every_recipe_has_a_test() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [heading for heading in SECTIONS if f'"{heading}"' not in text] == []


# The code before and after each of these recipes, and the frames of the videos that they leave.
RECIPES = {
    "Stable-Baselines3": (GYMNASIUM + SB3, "", {"0": 50, "50": 50}),
    "Gymnasium": (GYMNASIUM, EPISODES, {"0": 30, "30": 30, "90": 30}),
    "One video of exactly one episode": (FAKE, "", {"policy": 50}),
    "Triggers and names by iteration, also after a resume": (
        FAKE + "LENGTH = 60 * 24\n",
        "",
        {"from-120/00150-720": 20, "from-120/00178-1400": 20},
    ),
    "Text in the picture": (FAKE + BLACK, TEXTS, {"0": 50, "50": 50}),
    "Two cameras, and a folder for each rank": (
        FAKE + "os.environ['RANK'] = '1'\n",  # as torchrun sets it
        "train(env)\nenv.close()\n",
        {f"rank1/{side}/{first}": 20 for side in SIDES for first in (0, 50, 70)},
    ),
}


@pytest.mark.parametrize("heading", RECIPES)
def test_recipe_leaves_its_videos(run: Any, heading: str) -> None:
    setup, check, expected = RECIPES[heading]
    (code,) = SECTIONS[heading]
    assert run(setup + code + check) == expected


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("", {"0": 50, "50": 50, "150": 50}),
        # A recording starts after the iterations 0, 3 and 6, and cuts short what is running.
        (RECORD_CHECKPOINTS, {"0": 24, "24": 50, "74": 22, "96": 50, "168": 50, "218": 22}),
    ],
    ids=["no hook", "checkpoints"],
)
def test_rsl_rl_recipe_trains_records_and_uploads(
    run: Any, tmp_path: Path, hook: str, expected: dict[str, int]
) -> None:
    code = TRAIN_RSL_RL.replace("runner.learn", f"{hook}\nrunner.learn")
    is_assigned = "assert env.unwrapped.episode_length_buf is env.episode_length_buf"
    assert run(FAKE + RSL_RL + code + is_assigned) == expected
    uploads = tmp_path.glob("wandb/offline-run-*/files/media/videos/*")
    uploaded = sorted(read_video(path).steps[0] for path in uploads)
    assert uploaded == [*map(int, expected)][:-1]  # all but the final episode


def test_following_camera_recipe_records_both_kinds(real_scene: Any, run: Any) -> None:
    (code,) = SECTIONS["A camera that follows the robot"]
    assert run(GO2 + code) == {"0": 10, "20": 10}


def read_tensorboard(folder: Path) -> dict[str, dict[int, list[str]]]:
    """Return the first step that each image shows, by its tag and iteration."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs"), size_guidance={"images": 0})
    events.Reload()
    gif, videos = folder / "image.gif", {}
    for tag in events.Tags()["images"]:
        for image in events.Images(tag):
            gif.write_bytes(image.encoded_image_string)
            step = str(read_video(gif).steps[0])
            videos.setdefault(tag, {}).setdefault(image.step, []).append(step)
    return videos


def read_wandb(folder: Path) -> dict[str, dict[int, list[str]]]:
    """Return the captions that an offline run would sync, by their key and iteration.

    Its file is a LevelDB log of protobuf records.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, message, videos = file.read_bytes(), b"", {}
    for start in range(0, len(data), 32768):
        block, at = data[start : start + 32768], 0 if start else 7
        while at + 7 <= len(block):
            size, kind = struct.unpack_from("<HB", block, at + 4)
            message += block[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # a whole record, or the last part of one
                items = Record.FromString(message).history.item
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                for key, value in row.items():
                    name, is_found, _ = key.rpartition("/captions")
                    if is_found:
                        videos.setdefault(name, {})[row["_step"]] = value
                message = b""
    return videos


@pytest.mark.parametrize(
    ("log", "read"),
    [("", read_wandb), (*SECTIONS["TensorBoard"], read_tensorboard)],
    ids=["wandb", "tensorboard"],
)
def test_logging_recipe_logs_each_video_at_its_iteration(
    run: Any, tmp_path: Path, log: str, read: Callable[[Path], Any]
) -> None:
    for side in SIDES:
        earlier = tmp_path / "videos/rank0" / side / "earlier.mp4"  # an earlier run's
        earlier.parent.mkdir(parents=True)
        earlier.touch()
    log_to_wandb, hooks = SECTIONS["Weights & Biases"]
    runner = "runner = OnPolicyRunner(env, train_cfg, './logs')\n"
    setup = FAKE + RSL_RL + "DT, EPISODE = 0.1, 5\n" + TWO_CAMERAS + log_to_wandb + log
    run(setup + runner + hooks + "runner.learn(6)\n")
    # Two videos in one iteration, and the final episode after the last.
    videos = {0: ["0", "5"], 1: ["40"], 5: ["135"], 6: ["140"]}
    assert read(tmp_path) == {f"videos/{side}": videos for side in SIDES}
