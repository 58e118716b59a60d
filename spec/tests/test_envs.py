"""Tests of what an env and a camera must have: Genesis' kinds, and the least that works (BLD, EPI, DEL)."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spec.suite.genesis_scenes import Stage, start_genesis
from spec.suite.harness import warned
from spec.suite.video_reader import draw_step, psnr


def shows(frames: list[np.ndarray], pictures: list[np.ndarray], first: int) -> bool:
    """Tell whether the frames are the pictures from number `first` on, and nearer to no other."""
    likeness = np.array([[psnr(frame, picture) for picture in pictures] for frame in frames])
    own = likeness[range(len(frames)), range(first, first + len(frames))]
    return bool((own == likeness.max(axis=1)).all() and own.min() >= 30)


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


@pytest.mark.parametrize("env_idx", [0, 1])
@pytest.mark.parametrize("is_attached", [False, True], ids=["static", "attached"])
class TestSensors:
    @pytest.mark.clause("BLD-2c", "FILE-8d")
    @pytest.mark.extended(default=["static-0", "attached-1"])
    def test_sensor_records_what_it_reads_after_each_step(
        self, genesis: Any, new_stage: type[Stage], is_attached: bool, env_idx: int
    ) -> None:
        pictures, wrapper = wrap_sensor(
            genesis, new_stage, is_attached, env_idx, record_final_episode=False
        )
        for _ in range(12):
            wrapper.step(None)
        assert genesis.files() == ["3.mp4"]
        video = genesis.video("3.mp4")
        assert video.count == 5
        assert shows(video.frames, pictures, 3)

    @pytest.mark.clause("FIN-10")
    @pytest.mark.extended(default=["static-0"])
    def test_sensor_renders_background_frames_eagerly_with_one_warning(
        self, genesis: Any, new_stage: type[Stage], is_attached: bool, env_idx: int
    ) -> None:
        pictures, wrapper = wrap_sensor(genesis, new_stage, is_attached, env_idx)
        with warned("record_final_episode=False", "sensor"):
            for steps in (2, 10, 4):
                for _ in range(steps):
                    wrapper.step(None)
                wrapper.reset()
            wrapper.close()
        assert genesis.files() == ["12.mp4", "3.mp4"]
        video = genesis.video("12.mp4")
        assert video.count == 4
        assert shows(video.frames, pictures, 12)


def wrap_sensor(
    world: Any, new_stage: type[Stage], is_attached: bool, env_idx: int, **keywords: Any
) -> tuple[list[np.ndarray], Any]:
    """Return what a bare env's sensor reads after each step, and a wrapped env with such a sensor."""
    bare, stage = (new_stage(add=lambda stage: add_sensor(stage, is_attached)) for _ in range(2))
    pictures = []
    for _ in range(16):
        bare.step()
        pictures.append(bare.sensor.read().rgb.cpu().numpy().copy())
    assert max(psnr(*picture) for picture in pictures) < 40
    wrapper = world.wrap(
        stage, camera_attr="sensor", env_idx=env_idx, video_length_sec=0.1,
        step_trigger=lambda n: n == 3, **keywords,
    )  # fmt: skip
    # The other env's frames come last, and no recorded frame may be nearer to one of them.
    return [p[env_idx] for p in pictures] + [p[1 - env_idx] for p in pictures], wrapper


class Go2Env:
    """An env in the shape of Genesis' locomotion example: built at once, and resets its envs itself.

    Its step() returns observations, rewards, whether an episode is over, and extras.
    """

    def __init__(self, num_envs: int = 2) -> None:
        gs = start_genesis()
        self.num_envs, self.dt, self.cfg = num_envs, 0.02, {"episode_steps": 14, "lowest": 0.265}
        sim_options = gs.options.SimOptions(dt=self.dt, substeps=2)
        self.scene = gs.Scene(sim_options=sim_options, show_viewer=False)
        self.scene.add_entity(gs.morphs.Plane())
        self.robot = self.scene.add_entity(gs.morphs.URDF(file="urdf/go2/urdf/go2.urdf"))
        look = {"pos": (1.4, -0.4, 1.3), "lookat": (0.0, 0.35, 0.2)}
        self.camera = self.scene.add_camera(res=(96, 64), **look)
        self.scene.build(n_envs=num_envs, env_spacing=(0.0, 0.7))
        self.motors = list(range(6, 18))
        self.robot.set_dofs_kp([20.0] * 12, self.motors)
        self.robot.set_dofs_kv([0.5] * 12, self.motors)
        self.pose = torch.tensor([0.0, 0.8, -1.5] * 2 + [0.0, 1.0, -1.5] * 2)  # leg by leg
        self.start = torch.cat([torch.tensor([0, 0, 0.42, 1, 0, 0, 0]), self.pose])
        self.age = torch.zeros(num_envs)
        self.reset()

    def step(self, actions: torch.Tensor) -> tuple[Any, ...]:
        self.robot.control_dofs_position(0.25 * actions + self.pose, self.motors)
        self.scene.step()
        self.age += 1
        self.truncated = self.age >= self.cfg["episode_steps"]
        self.terminated = self.robot.get_pos()[:, 2] < self.cfg["lowest"]
        done, rewards = self.terminated | self.truncated, self.robot.get_vel()[:, 0]
        self.reset_idx(done.nonzero()[:, 0])
        return self.robot.get_pos(), rewards, done, {"time_outs": self.truncated.float()}

    def reset_idx(self, ids: torch.Tensor) -> None:
        if len(ids):
            self.robot.set_qpos(self.start.expand(len(ids), 19), envs_idx=ids)
            self.robot.zero_all_dofs_velocity(ids)
            self.age[ids] = 0

    def reset(self) -> tuple[torch.Tensor, None]:
        self.reset_idx(torch.arange(self.num_envs))
        self.age -= 4 * torch.arange(self.num_envs)  # so that not all episodes end at once
        return self.robot.get_pos(), None


class FiveResultsEnv(Go2Env):
    """The same env, with terminated and truncated apart."""

    def step(self, actions: torch.Tensor) -> tuple[Any, ...]:
        observations, rewards, _, extras = super().step(actions)
        return observations, rewards, self.terminated, self.truncated, extras


def act(env: Any, steps: int) -> list[Any]:
    """Act at random, and return the results."""
    random = torch.Generator().manual_seed(0)
    env.reset()
    return [env.step(torch.randn(2, 12, generator=random)) for _ in range(steps)]


@pytest.fixture(scope="module")
def bare(real_scene: Any) -> tuple[list[Any], list[np.ndarray]]:
    """Return the results and frames of the bare env with five results."""
    env, pictures = FiveResultsEnv(), []
    step = env.step

    def step_and_render(actions: torch.Tensor) -> tuple[Any, ...]:
        results = step(actions)
        pictures.append(np.array(env.camera.render()[0]))
        return results

    env.step = step_and_render
    return act(env, 36), pictures


class TestGo2Example:
    @pytest.mark.clause("BLD-6", "DEL-2b", "EPI-2a", "EPI-2b", "FIN-5b")
    @pytest.mark.parametrize("env_idx", [0, 1])
    @pytest.mark.parametrize("env_class", [Go2Env, FiveResultsEnv], ids=["four", "five"])
    @pytest.mark.extended(default=["four-0"])
    def test_four_and_five_results_leave_their_videos(
        self, fake: Any, bare: Any, env_class: type[Go2Env], env_idx: int
    ) -> None:
        expected, frames = bare
        wrapper = fake.wrap(
            env_class(),
            env_idx=env_idx,
            video_length_sec=0.36,
            episode_trigger=lambda e: e < 1,
        )
        results = act(wrapper, 36)
        wrapper.close()
        for (*given, _), (obs, rewards, terminated, truncated, _) in zip(results, expected):
            is_four = env_class is Go2Env
            flags = [terminated | truncated] if is_four else [terminated, truncated]
            assert len(given) == 2 + len(flags)
            assert all(map(torch.equal, given, [obs, rewards, *flags]))
        ends = [n for n, result in enumerate(expected) if result[2][env_idx] or result[3][env_idx]]
        assert ends[0] < 18 <= ends[-1]  # so that the first video shows a reset
        # Background recordings start after the first video and with episodes. The newest whose
        # episode has ended is the final one.
        *_, final, after = [18, *(end + 1 for end in ends if end > 17)]
        assert fake.files() == sorted(["0.mp4", f"{final}.mp4"])
        for first, count in (0, 18), (final, min(18, after - final)):
            video = fake.video(f"{first}.mp4")
            assert video.count == count
            assert shows(video.frames, frames, first)


class Env(SimpleNamespace):
    """Two envs with only the attributes that an env must have, and those given."""

    def __init__(self, picture: Any = None, flags: Any = lambda n: (None, None), **more: Any):
        numbers, shown = itertools.count(), [0]

        def step(actions: Any) -> Any:
            shown[0] = next(numbers)
            return None, None, *flags(shown[0]), {}

        camera = SimpleNamespace(render=lambda: (picture or numbered)(shown[0]))
        super().__init__(**{"dt": 0.1, "num_envs": 2, "step": step, "camera": camera} | more)


def numbered(number: int) -> np.ndarray:
    picture = np.full((64, 96, 3), 90, np.uint8)
    draw_step(picture, number)
    return picture


FRAMES = {
    "array": numbered,
    "tensor": lambda n: torch.from_numpy(numbered(n)),
    "one for each env": lambda n: np.stack([numbered(n + 500), numbered(n)]),
    "tuple": lambda n: (numbered(n), None, None, None),
    "tuple, one for each env": lambda n: (torch.from_numpy(FRAMES["one for each env"](n)),),
}
FLAGS = {
    "tensor": torch.tensor,
    "tensor of ints": lambda flags: torch.tensor(flags).long(),
    "array": np.array,
    "list": list,
}


class TestLeastEnv:
    @pytest.mark.clause("ARG-6b", "BLD-2b", "BLD-2d")
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("dt", ""),
            ("num_envs", ""),
            ("step", ""),
            ("camera", ""),
            ("camera", None),
            ("camera", 3),
        ],
    )
    def test_missing_part_is_named_before_the_first_step(
        self, fake: Any, implementation: type, name: str, value: Any
    ) -> None:
        env = Env(**{name: value})
        if value == "":
            delattr(env, name)
        with pytest.raises((TypeError, AttributeError), match=rf"\b{name}\b"):
            implementation(env, out_dir=str(fake.out_dir)).build()

    @pytest.mark.clause("BLD-6", "DEL-2c")
    @pytest.mark.parametrize("name", ["reset", "get_observations"])
    def test_missing_method_is_named_when_it_is_called(self, fake: Any, name: str) -> None:
        env = Env()
        wrapper = fake.wrap(env)
        for _ in range(8):
            wrapper.step(None)
        with pytest.raises(AttributeError, match=rf"\b{name}\b"):
            getattr(wrapper, name)()
        setattr(env, name, lambda: "what the env returns")
        assert getattr(wrapper, name)() == "what the env returns"
        wrapper.close()
        assert fake.videos()["0.mp4"] == [0, 1, 2, 3, 4]

    @pytest.mark.clause("EPI-2a", "EPI-2b", "EPI-2c", "EPI-2d")
    @pytest.mark.parametrize("place", ["terminated", "truncated", "dones"])
    @pytest.mark.parametrize("kind", FLAGS)
    def test_flags_of_each_kind_end_an_episode(self, fake: Any, kind: str, place: str) -> None:
        def flags(number: int) -> list[Any]:
            ends = FLAGS[kind]([number == 1, number == 3])
            return {"terminated": [ends, None], "truncated": [None, ends], "dones": [ends]}[place]

        wrapper = fake.wrap(
            Env(flags=flags),
            env_idx=1,
            episode_trigger=lambda e: e == 1,
            record_final_episode=False,
        )
        for _ in range(9):
            assert len(wrapper.step(None)) == (4 if place == "dones" else 5)
        wrapper.close()
        assert fake.videos() == {"4.mp4": [4, 5, 6, 7, 8]}

    @pytest.mark.clause("BLD-2c", "FILE-8a", "FILE-8c", "FILE-8d")
    @pytest.mark.parametrize("method", ["render", "read"])
    @pytest.mark.parametrize("kind", FRAMES)
    def test_frame_of_each_kind_is_recorded(self, fake: Any, kind: str, method: str) -> None:
        env = Env(FRAMES[kind])
        env.camera = SimpleNamespace(**{method: env.camera.render})
        wrapper = fake.wrap(env, env_idx=1)
        for _ in range(5):
            wrapper.step(None)
        wrapper.close()
        assert fake.videos() == {"0.mp4": [0, 1, 2, 3, 4]}

    @pytest.mark.clause("DEL-5a", "DEL-5b", "DEL-5c")
    def test_attributes_of_rsl_rl_reach_the_env_through_two_wrappers(
        self, fake: Any, tmp_path: Path
    ) -> None:
        env = Env(cfg={"seed": 1}, device="cpu", max_episode_length=10)
        env.episode_length_buf = torch.zeros(2)
        wrapper = fake.wrap(fake.wrap(env), out_dir=str(tmp_path / "other"))
        assert (wrapper.cfg, wrapper.device, wrapper.max_episode_length) == ({"seed": 1}, "cpu", 10)
        ages = torch.tensor([3.0, 4.0])
        wrapper.episode_length_buf = ages
        assert env.episode_length_buf is ages
        assert wrapper.episode_length_buf is ages
        wrapper.mine = 5
        assert wrapper.mine == 5
        assert not hasattr(env, "mine")
        with pytest.raises(AttributeError, match="nobodys"):
            _ = wrapper.nobodys
