"""Envs and cameras of Genesis' own kinds: its camera sensors, and its Go2 example (BLD, EPI)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from spec.suite.child import warned
from spec.suite.genesis_scenes import Stage, start_genesis
from spec.suite.video_reader import Video, psnr


def assert_shows(video: Video, shown: list[np.ndarray], first: int, count: int) -> None:
    """Check that a video shows so many pictures from number `first` on, and is nearer to no other."""
    assert video.count == count
    likeness = np.array([[psnr(frame, other) for other in shown] for frame in video.frames])
    own = likeness[range(count), range(first, first + count)]
    assert (own == likeness.max(axis=1)).all()
    assert own.min() >= 30


def add_sensor(stage: Stage, is_attached: bool) -> None:
    """Add a camera sensor. It looks down, because software OpenGL takes seconds for a horizon."""
    gs = start_genesis()
    if not hasattr(getattr(gs, "sensors", None), "RasterizerCameraOptions"):
        pytest.skip("this Genesis has no camera sensors")
    options = {"res": (96, 64), "pos": (0.3, -1.2, 1.6), "lookat": (0.1, 0.0, 0.2)}
    if is_attached:
        options |= {"entity_idx": stage.boxes[1].idx, "link_idx_local": 0}
        options |= {"pos": (0.0, -0.6, 1.5), "lookat": (0.0, 0.0, 0.0)}
    stage.sensor = stage.scene.add_sensor(gs.sensors.RasterizerCameraOptions(**options))


def row(words: str, clauses: str, *values: Any) -> Any:
    """Return a parameter that the report calls by these words, with the cases that it judges."""
    return pytest.param(*values, id=words, marks=pytest.mark.clause(*clauses.split()))


@pytest.mark.parametrize(
    ("is_attached", "env_idx", "is_final"),
    [
        row("static", "BLD-2c FILE-8d", False, 0, False),
        row("attached", "BLD-2c FILE-8d", True, 1, False),
        row("background frames, with one warning", "FIN-10", False, 0, True),
    ],
)
def test_sensor_records_what_it_reads_after_each_step(
    genesis: Any, new_stage: type[Stage], is_attached: bool, env_idx: int, is_final: bool
) -> None:
    bare, stage = (new_stage(add=lambda stage: add_sensor(stage, is_attached)) for _ in range(2))
    frames = []
    for _ in range(16):
        bare.step()
        frames.append(bare.sensor.read().rgb.cpu().numpy().copy())
    assert max(psnr(*frame) for frame in frames) < 40  # of the two envs
    options = {"camera_attr": "sensor", "env_idx": env_idx, "video_length_sec": 0.1}
    options |= {"step_trigger": lambda n: n == 3, "record_final_episode": is_final}
    wrapper = genesis.wrap(stage, **options)
    with warned("record_final_episode=False", "sensor", count=1 if is_final else None):
        for steps in (2, 10, 4):
            for _ in range(steps):
                wrapper.step(None)
            wrapper.reset()
        wrapper.close()
    assert genesis.files() == (["12.mp4", "3.mp4"] if is_final else ["3.mp4"])
    # No recorded frame may be nearer to one of the other env, which come last.
    shown = [frame[env_idx] for frame in frames] + [frame[1 - env_idx] for frame in frames]
    assert_shows(genesis.video("3.mp4"), shown, 3, 5)
    if is_final:
        assert_shows(genesis.video("12.mp4"), shown, 12, 4)


class Go2Env:
    """Two Go2 in the shape of Genesis' locomotion example: built at once, and resets its envs itself.

    It ends an episode after 14 steps, or if the robot is too low. step() has four results or five.
    """

    dt, num_envs, num_actions, device = 0.02, 2, 12, "cpu"
    max_episode_length, lowest = 14, 0.265

    def __init__(self, results: int = 4) -> None:
        gs = start_genesis()
        self.results, self.cfg = results, {}
        sim_options = gs.options.SimOptions(dt=self.dt, substeps=2)
        self.scene = gs.Scene(sim_options=sim_options, show_viewer=False)
        self.scene.add_entity(gs.morphs.Plane())
        self.robot = self.scene.add_entity(gs.morphs.URDF(file="urdf/go2/urdf/go2.urdf"))
        look = {"pos": (1.4, -0.4, 1.3), "lookat": (0.0, 0.35, 0.2)}
        self.camera = self.scene.add_camera(res=(96, 64), **look)
        self.scene.build(n_envs=self.num_envs, env_spacing=(0.0, 0.7))
        self.motors = list(range(6, 18))
        self.robot.set_dofs_kp([20.0] * 12, self.motors)
        self.robot.set_dofs_kv([0.5] * 12, self.motors)
        self.pose = torch.tensor([0.0, 0.8, -1.5] * 2 + [0.0, 1.0, -1.5] * 2)  # leg by leg
        self.start = torch.cat([torch.tensor([0, 0, 0.42, 1, 0, 0, 0]), self.pose])
        self.episode_length_buf = torch.zeros(self.num_envs)
        self.reset()

    def step(self, actions: torch.Tensor) -> tuple[Any, ...]:
        self.robot.control_dofs_position(0.25 * actions + self.pose, self.motors)
        self.scene.step()
        self.episode_length_buf += 1
        terminated = self.robot.get_pos()[:, 2] < self.lowest
        truncated = self.episode_length_buf >= self.max_episode_length
        dones, rewards = terminated | truncated, self.robot.get_vel()[:, 0]
        self.reset_idx(dones.nonzero()[:, 0])
        flags = [dones] if self.results == 4 else [terminated, truncated]
        return self.get_observations(), rewards, *flags, {}

    def get_observations(self) -> Any:
        return self.robot.get_qpos().clone()

    def reset_idx(self, ids: torch.Tensor) -> None:
        if len(ids):
            self.robot.set_qpos(self.start.expand(len(ids), 19), envs_idx=ids)
            self.robot.zero_all_dofs_velocity(ids)
            self.episode_length_buf[ids] = 0

    def reset(self) -> tuple[Any, None]:
        self.reset_idx(torch.arange(self.num_envs))
        self.episode_length_buf -= torch.tensor([0, 4])  # so that not both episodes end at once
        return self.get_observations(), None


def act(env: Any, steps: int, after_step: Callable[[], None] = lambda: None) -> list[Any]:
    """Act at random, and return the results."""
    random, results = torch.Generator().manual_seed(0), []
    env.reset()
    for _ in range(steps):
        results.append(env.step(torch.randn(2, 12, generator=random)))
        after_step()
    return results


@pytest.fixture(scope="module")
def bare(real_scene: Any) -> tuple[list[Any], list[np.ndarray]]:
    """Return the results and frames of the bare env with five results."""
    env, frames = Go2Env(results=5), []
    return act(env, 36, lambda: frames.append(np.array(env.camera.render()[0]))), frames


@pytest.mark.clause("BLD-6", "DEL-2b", "EPI-2a", "EPI-2b", "FIN-5b")
@pytest.mark.parametrize(("number", "env_idx"), [(4, 0), (5, 1)], ids=["four", "five"])
@pytest.mark.extended(default=["four"])
def test_four_and_five_results_leave_their_videos(
    fake: Any, bare: Any, number: int, env_idx: int
) -> None:
    expected, frames = bare
    options = {"video_length_sec": 0.36, "episode_trigger": lambda e: e < 1}
    wrapper = fake.wrap(Go2Env(number), env_idx=env_idx, **options)
    results = act(wrapper, 36)
    wrapper.close()
    for (*given, _), (obs, rewards, terminated, truncated, _) in zip(results, expected):
        flags = [terminated | truncated] if number == 4 else [terminated, truncated]
        assert len(given) == 2 + len(flags)
        assert all(map(torch.equal, given, [obs, rewards, *flags]))
    ends = [n for n, result in enumerate(expected) if result[2][env_idx] or result[3][env_idx]]
    assert ends[0] < 18 <= ends[-1]  # so that the first video shows a reset
    # Background recordings start after the first video and with episodes. The newest whose
    # episode has ended is the final one.
    *_, final, after = [18, *(end + 1 for end in ends if end > 17)]
    assert fake.files() == sorted(["0.mp4", f"{final}.mp4"])
    for first, count in (0, 18), (final, min(18, after - final)):
        assert_shows(fake.video(f"{first}.mp4"), frames, first, count)
