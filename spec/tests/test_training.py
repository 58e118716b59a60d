"""Real trainings, wrapped and bare (TRAIN)."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spec.suite.fake_env import FakeEnv
from spec.suite.genesis_scenes import Stage, count_renders, record_stage
from spec.suite.processes import check_end
from spec.suite.video_reader import psnr
from spec.tests.test_envs import Go2Env, shows

TRAINING = ["genesis_forge", "rsl_rl", "skrl"]


def go2_task(arrows: bool) -> Any:
    """Return an env of genesis-forge's kind: 16 Go2 learn to walk in episodes of 10 steps.

    With arrows it has the shape of genesis-forge's examples: a debug camera that follows the robot,
    and arrows for its velocities, redrawn each step. A second camera is the policy's eye.
    """
    import genesis as gs
    from genesis_forge import ManagedEnvironment
    from genesis_forge.managers import (
        ActuatorManager,
        EntityManager,
        ObservationManager,
        PositionActionManager,
        RewardManager,
        TerminationManager,
        VelocityCommandManager,
    )
    from genesis_forge.mdp import reset, rewards

    class Go2(ManagedEnvironment):
        def __init__(self) -> None:
            super().__init__(num_envs=16, dt=0.02)
            self.scene = gs.Scene(
                sim_options=gs.options.SimOptions(dt=self.dt, substeps=2),
                vis_options=gs.options.VisOptions(rendered_envs_idx=[0]),
                show_viewer=False,
            )
            # genesis-forge 0.5.3 looks for them here, and Genesis 1.4 no longer has them here.
            self.scene.rigid_options = self.scene.options.rigid
            self.scene.vis_options = self.scene.options.vis
            self.scene.add_entity(gs.morphs.Plane())
            go2 = gs.morphs.URDF(file="urdf/go2/urdf/go2.urdf", pos=(0, 0, 0.4))
            self.robot = self.scene.add_entity(go2)
            self.camera = self.scene.add_camera(
                res=(96, 64), pos=(1.2, -0.9, 0.6), lookat=(0, 0, 0.3), debug=arrows
            )
            self.eye = self.scene.add_camera(res=(32, 32), pos=(1.5, 1.0, 0.8), lookat=(0, 0, 0.3))

        def build(self) -> None:
            super().build()
            self.eye.follow_entity(self.robot)
            if arrows:
                self.camera.follow_entity(self.robot)

        def config(self) -> None:
            pose = {".*_hip_joint": 0.0, ".*_thigh_joint": 0.9, ".*_calf_joint": -1.8}
            joints = ActuatorManager(
                self, joint_names=[*pose], default_pos=pose, kp=20, kv=0.5, max_force=23.5
            )
            PositionActionManager(self, actuator_manager=joints, scale=0.25)
            start = {"position": (0.0, 0.0, 0.4), "quat": (1.0, 0.0, 0.0, 0.0)}
            on_reset = {"position": {"fn": reset.position, "params": start}}
            base = EntityManager(self, entity_attr="robot", on_reset=on_reset)
            ranges = {"lin_vel_x": (0.5, 1.0), "lin_vel_y": (0.0, 0.0), "ang_vel_z": (0.0, 0.0)}
            green = {"commanded_color": (0.0, 1.0, 0.0, 1.0)}
            command = VelocityCommandManager(
                self, range=ranges, debug_visualizer=arrows, debug_visualizer_cfg=green
            )
            speed = {"fn": rewards.command_tracking_lin_vel, "weight": 1.0}
            RewardManager(self, cfg={"speed": speed | {"params": {"vel_cmd_manager": command}}})
            time_out = {"fn": lambda env: env.episode_length == 10, "time_out": True}
            TerminationManager(self, term_cfg={"time": time_out})
            # genesis-forge's own functions for these do not work in every release.
            observed = {
                "command": {"fn": lambda env: command.command},
                "gravity": {"fn": lambda env: base.get_projected_gravity()},
                "joints": {"fn": lambda env: joints.get_dofs_position(), "noise": 0.01},
            }
            ObservationManager(self, name="policy", cfg=observed)

    return Go2()


def rsl_rl_config(steps: int) -> dict[str, Any]:
    """Return a configuration of PPO with so many steps in an iteration."""
    model = {"class_name": "MLPModel", "hidden_dims": [32]}
    return {
        "num_steps_per_env": steps,
        "save_interval": 100,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": model | {"distribution_cfg": {"class_name": "GaussianDistribution"}},
        "critic": model,
        "algorithm": {"class_name": "PPO"},
    }


def train_rsl_rl(env: Any) -> Any:
    """Train for 44 steps, and return the policy."""
    from genesis_forge.wrappers import RslRlWrapper
    from rsl_rl.runners import OnPolicyRunner

    env = RslRlWrapper(env)
    env.build()
    env.reset()
    runner = OnPolicyRunner(env, rsl_rl_config(11))
    runner.learn(4)
    env.close()
    return runner.alg.get_policy()


def train_skrl(env: Any) -> Any:
    """Train for 44 steps, and return the policy. skrl closes the env when Python exits."""
    from genesis_forge.wrappers import SkrlEnvWapper
    from skrl.agents.torch.ppo import PPO
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
    from skrl.trainers.torch import SequentialTrainer

    class Env(SkrlEnvWapper):
        def state(self) -> None:
            """Return nothing: that of genesis-forge 0.5.3 asks an env that was never set."""

    class Actor(GaussianMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, **spaces)
            GaussianMixin.__init__(self)
            self.net = torch.nn.Linear(self.num_observations, self.num_actions)
            self.log_std = torch.nn.Parameter(torch.zeros(self.num_actions))

        def compute(self, inputs: Any, role: str) -> Any:
            return self.net(inputs["observations"]), {"log_std": self.log_std}

    class Critic(DeterministicMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, **spaces)
            DeterministicMixin.__init__(self)
            self.net = torch.nn.Linear(self.num_observations, 1)

        def compute(self, inputs: Any, role: str) -> Any:
            return self.net(inputs["observations"]), {}

    env = Env(env)
    env.build()
    spaces = {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "device": "cpu",
    }
    agent = PPO(
        models={"policy": Actor(), "value": Critic()},
        memory=RandomMemory(memory_size=11, num_envs=16),
        cfg={"rollouts": 11},
        **spaces,
    )
    trainer = SequentialTrainer(env=env, agents=agent, cfg={"timesteps": 44, "headless": True})
    trainer.train()
    return agent.models["policy"]


def train(library: str, arrows: bool, wrapped: str, file: str) -> None:
    """Train in this process and the working directory, and save all that the env returned.

    Print how many frames the video's camera has rendered before the env is closed.
    """
    import genesis as gs

    gs.init(backend=gs.cpu, seed=1, logging_level="error")
    torch.manual_seed(1)
    base = env = go2_task(arrows)
    if wrapped:
        from video_wrapper import VideoWrapper

        env = VideoWrapper(env, video_length_sec=0.1, fps=50)
    inner_step, inner_close = env.step, env.close
    render = base.camera.render
    returned: list[torch.Tensor] = []
    pictures: list[Any] = []

    def count(*arguments: Any, **options: Any) -> Any:
        pictures.append(render(*arguments, **options))
        return pictures[-1]

    def step(actions: torch.Tensor) -> Any:
        result = inner_step(actions)
        returned.extend(tensor.clone() for tensor in (actions, *result[:4]))
        # As rewards do; Genesis keeps the tensors that it makes for this, in inference mode or not.
        returned.append(base.robot.geoms[0].get_pos().clone())
        if len(returned) % 5 == 1:
            returned.append(torch.tensor(np.array(base.eye.render()[0])))
        return result

    def close() -> None:
        print("rendered before close():", len(pictures))
        inner_close()

    base.camera.render, env.step, env.close = count, step, close
    policy = {"rsl_rl": train_rsl_rl, "skrl": train_skrl}[library](env)
    torch.save([*returned, *policy.state_dict().values()], file)


def train_with_wandb(log_dir: str) -> None:
    """Train for 40 steps, in four episodes, with rsl_rl's own writer for Weights & Biases."""
    from rsl_rl.env import VecEnv
    from rsl_rl.runners import OnPolicyRunner
    from tensordict import TensorDict

    from video_wrapper import VideoWrapper

    class Env(VecEnv):
        device, max_episode_length, cfg = "cpu", 10, SimpleNamespace(to_dict=dict)

        def __init__(self) -> None:
            base = FakeEnv(terminated_at=range(9, 99, 10))
            options = {"fps": 10, "video_length_sec": 0.5}
            self.env = VideoWrapper(base, out_dir=f"{log_dir}/videos", **options)
            self.env = VideoWrapper(self.env, out_dir=f"{log_dir}/again", **options)
            self.num_envs, self.num_actions = base.num_envs, base.num_actions
            self.episode_length_buf = torch.zeros(base.num_envs)

        def get_observations(self) -> TensorDict:
            return TensorDict({"policy": self.env.get_observations()}, [self.num_envs])

        def step(self, actions: torch.Tensor) -> Any:
            _, rewards, terminated, truncated, extras = self.env.step(actions)
            return self.get_observations(), rewards, terminated | truncated, extras

    env, writer = Env(), {"class_name": "WandbLogWriter", "project_name": "go2"}
    OnPolicyRunner(env, rsl_rl_config(10) | {"logger": writer}, log_dir).learn(4)
    env.env.close()


class ExampleEnv(Go2Env):
    """Go2 in the shape of rsl_rl 5 and Genesis' example: four results, TensorDict observations.

    Attributes:
        steps: The results of each step.
        frames: What the camera shows after each step, if `renders` is true.
    """

    device, num_actions, max_episode_length = "cpu", 12, 14

    def __init__(self, renders: bool) -> None:
        super().__init__(num_envs=4)
        self.cfg["lowest"] = 0.0  # episodes end by their length alone
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.int64)
        self.renders = renders
        self.steps: list[torch.Tensor] = []
        self.frames: list[np.ndarray] = []

    def step(self, actions: torch.Tensor) -> tuple[Any, ...]:
        self.age = self.episode_length_buf
        _, rewards, dones, extras = super().step(actions)
        observations = self.get_observations()
        self.steps.append(torch.cat([observations["policy"], rewards[:, None], dones[:, None]], 1))
        if self.renders:
            self.frames.append(np.array(self.camera.render()[0]))
        return observations, rewards, dones, extras

    def get_observations(self) -> Any:
        from tensordict import TensorDict

        parts = [self.robot.get_pos(), self.robot.get_vel(), self.robot.get_dofs_position()]
        return TensorDict({"policy": torch.cat(parts, 1)}, [self.num_envs])


def learn(env: Any) -> list[torch.Tensor]:
    """Train for 36 steps with rsl_rl itself, and return the weights."""
    from rsl_rl.runners import OnPolicyRunner

    torch.manual_seed(6)
    runner = OnPolicyRunner(env, rsl_rl_config(12), device="cpu")
    runner.learn(3, init_at_random_ep_len=True)
    return [*runner.alg.get_policy().state_dict().values()]


class PlainEnv:
    """An env written by hand: without a base class, and with only what a training loop calls.

    Four envs push a box along a plane; an episode ends after 8 steps.
    """

    dt = 0.02
    num_envs = 4

    def __init__(self) -> None:
        import genesis as gs

        self.scene = gs.Scene(sim_options=gs.options.SimOptions(dt=self.dt), show_viewer=False)
        self.scene.add_entity(gs.morphs.Plane())
        self.robot = self.scene.add_entity(gs.morphs.Box(size=(0.2,) * 3, pos=(0, 0, 0.1)))
        self.cam = self.scene.add_camera(res=(96, 64), pos=(1, -1, 0.6), lookat=(0, 0, 0.1))
        self.scene.build(n_envs=self.num_envs)
        self.age = torch.zeros(self.num_envs, dtype=torch.int64)

    def step(self, actions: torch.Tensor) -> Any:
        self.robot.control_dofs_force(actions, dofs_idx_local=[0, 1])
        self.scene.step()
        self.age += 1
        truncated = self.age >= 8
        reward = self.robot.get_vel()[:, 0]
        if truncated.any():
            self.reset(truncated.nonzero()[:, 0])
        return self.get_observations(), reward, torch.zeros_like(truncated), truncated, {}

    def reset(self, env_ids: Any = None) -> Any:
        ids = torch.arange(self.num_envs) if env_ids is None else env_ids
        self.age[ids] = 0
        start = torch.tensor([0, 0, 0.1, 1, 0, 0, 0]).expand(len(ids), 7)
        self.robot.set_qpos(start, envs_idx=ids)
        return self.get_observations(), {}

    def get_observations(self) -> torch.Tensor:
        return torch.cat([self.robot.get_pos(), self.robot.get_vel()], dim=1)

    def close(self) -> None:
        pass


def push(env: Any) -> list[torch.Tensor]:
    """Push at random for 20 steps, and return all that the env returned."""
    random = torch.Generator().manual_seed(0)
    returned = [env.reset()[0]]
    for _ in range(20):
        returned += env.step(6 * torch.randn(env.num_envs, 2, generator=random))[:4]
    env.close()
    return returned


class TestTraining:
    @pytest.mark.of_module
    @pytest.mark.clause("API-9", "TRAIN-1a", "TRAIN-1c", "FILE-16", "FIN-6")
    @pytest.mark.parametrize(
        "library, arrows",
        [("rsl_rl", True), ("rsl_rl", False), ("skrl", False)],
        ids=["rsl_rl, the examples' shape", "rsl_rl", "skrl"],
    )
    @pytest.mark.extended
    def test_wrapped_training_equals_the_bare_one_and_leaves_videos(
        self,
        module: Any,
        python: Any,
        tmp_path: Path,
        read_video: Any,
        library: str,
        arrows: bool,
    ) -> None:
        missing = [name for name in TRAINING if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")
        results = []
        for wrapped in ("", "wrapped"):
            folder = tmp_path / (wrapped or "bare")
            folder.mkdir()
            file = str(folder / "returned.pt")
            code = f"""
                import os, sys
                os.chdir({str(folder)!r})
                from spec.tests.test_training import train
                train({library!r}, {arrows}, {wrapped!r}, {file!r})
            """
            result = python(textwrap.dedent(code))
            check_end(result)
            results.append(torch.load(file))
        bare, recorded = results
        assert len(bare) == len(recorded) > 44 * 5
        assert all(torch.equal(a, b) for a, b in zip(bare, recorded))
        # Episodes of 10 steps: 0 and 1, by the schedule, and the newest that lasted 5 steps.
        videos = {path.name: read_video(path) for path in (folder / "videos").iterdir()}
        assert {n: v.count for n, v in videos.items()} == {"0.mp4": 5, "10.mp4": 5, "30.mp4": 5}
        for video in videos.values():
            assert (video.width, video.height, video.rate) == (96, 64, 50)
            assert psnr(video.frames[0], video.frames[-1]) < 50  # something moves
            red, green, blue = video.frames[-1].astype(int).transpose(2, 0, 1)
            arrow = (green > red + 40) & (green > blue + 40)
            assert arrow.any() == arrows
        if library == "rsl_rl":  # skrl closes the env when Python exits
            # Two triggered videos of five frames, and no background frame.
            assert "rendered before close(): 10\n" in result.stdout

    @pytest.mark.of_module
    @pytest.mark.clause("TRAIN-1b", "TRAIN-1c", "DEL-5a", "DEL-5b", "EPI-2b", "FIN-6")
    @pytest.mark.extended
    def test_env_with_four_results_trains_in_on_policy_runner(self, genesis: Any) -> None:
        pytest.importorskip("rsl_rl")
        bare, env = ExampleEnv(renders=True), ExampleEnv(renders=False)
        renders = count_renders(env)
        wrapper = genesis.wrap(
            env, build=False, video_length_sec=0.2, episode_trigger=lambda e: e == 1
        )
        bare_weights, weights = learn(bare), learn(wrapper)
        assert len(env.steps) == 36
        assert all(torch.equal(a, b) for a, b in zip(bare.steps, env.steps))
        assert len(weights) > 4
        assert all(torch.equal(a, b) for a, b in zip(bare_weights, weights))
        # rsl_rl assigned random ages, so the first episode is short and the others have 14 steps.
        first, second, *_ = [n + 1 for n, step in enumerate(env.steps) if step[0, -1]]
        assert first < 14
        assert second == first + 14
        assert len(renders) == 10  # those of the triggered video
        wrapper.close()
        # The final video shows the newest episode that lasted 10 steps.
        final = second if second + 10 <= 36 else first + 10
        assert genesis.files() == sorted([f"{first}.mp4", f"{final}.mp4"])
        for start, count in (first, 10), (final, 10 if final == second else 4):
            video = genesis.video(f"{start}.mp4")
            assert video.count == count
            assert shows(video.frames, bare.frames, start)

    @pytest.mark.of_module
    @pytest.mark.clause("TRAIN-1a", "FILE-3a")
    @pytest.mark.extended
    def test_rsl_rl_uploads_complete_videos_once_for_each_name(
        self, module: Any, python: Any, tmp_path: Path, read_video: Any
    ) -> None:
        pytest.importorskip("rsl_rl")
        pytest.importorskip("wandb")
        log_dir = str(tmp_path / "run")
        code = (
            f"from spec.tests.test_training import train_with_wandb; train_with_wandb({log_dir!r})"
        )
        result = python(code, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
        check_end(result)
        for folder in ("videos", "again"):
            videos = {
                path.name: read_video(path).steps for path in tmp_path.glob(f"run/{folder}/*")
            }
            assert sorted(videos) == ["0.mp4", "10.mp4", "30.mp4"]
        uploads = [*tmp_path.glob("wandb/offline-run-*/files/media/videos/*")]
        uploaded = sorted(read_video(path).steps for path in uploads)
        assert uploaded == [videos["0.mp4"], videos["10.mp4"]]

    @pytest.mark.clause("BLD-6", "FIN-5b")
    def test_env_written_by_hand_needs_no_base_class(
        self, genesis: Any, implementation: type, tmp_path: Path, read_video: Any
    ) -> None:
        wrapper = implementation(
            PlainEnv(), camera_attr="cam", video_length_sec=0.1, fps=50, out_dir=str(tmp_path),
            logging=False,
        )  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(push(PlainEnv()), push(wrapper)))
        counts = {path.name: read_video(path).count for path in tmp_path.iterdir()}
        assert counts == {"0.mp4": 5, "8.mp4": 5, "13.mp4": 3}

    @pytest.mark.clause("FILE-16")
    @pytest.mark.parametrize("ending", ["triggered", "final"])
    @pytest.mark.extended(default=["final"])
    def test_debug_drawings_are_in_every_video(
        self, genesis: Any, new_stage: type[Stage], tmp_path: Path, read_video: Any, leave_to: Any,
        ending: str,
    ) -> None:  # fmt: skip
        def velocity_arrow(stage: Stage) -> None:
            stage.scene.clear_debug_objects()
            stage.scene.draw_debug_arrow((0, 0, 0.8), (0.6, 0, 0), radius=0.05, color=(1, 0, 1, 1))

        stage = new_stage(on_step=velocity_arrow, camera={"debug": True})
        type = "active" if ending == "triggered" else "background"
        video = read_video(record_stage(genesis, stage, type, tmp_path / "videos", leave_to))
        assert video.count > 4
        for frame in video.frames:
            red, green, blue = frame.astype(int).transpose(2, 0, 1)
            assert np.count_nonzero((red > green + 60) & (blue > green + 60)) > 50
