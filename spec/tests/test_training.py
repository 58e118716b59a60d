"""Real trainings, wrapped and bare (TRAIN)."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spec.suite.genesis_scenes import Stage, count_renders, wrap_stage
from spec.suite.processes import check_end
from spec.tests.test_envs import Go2Env, assert_shows, row


def forge_env(arrows: bool) -> Any:
    """Return an env of genesis-forge's kind: 16 Go2 learn to walk in episodes of 10 steps.

    With arrows it has the shape of genesis-forge's examples: a debug camera that follows the robot,
    and arrows for its velocities, redrawn each step. A second camera is the policy's eye.
    """
    import genesis as gs
    from genesis_forge import ManagedEnvironment, managers
    from genesis_forge.mdp import reset, rewards

    class ForgeEnv(ManagedEnvironment):
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
            look = {"pos": (1.2, -0.9, 0.6), "lookat": (0, 0, 0.3)}
            self.camera = self.scene.add_camera(res=(96, 64), debug=arrows, **look)
            self.eye = self.scene.add_camera(res=(32, 32), pos=(1.5, 1.0, 0.8), lookat=(0, 0, 0.3))

        def build(self) -> None:
            super().build()
            self.eye.follow_entity(self.robot)
            if arrows:
                self.camera.follow_entity(self.robot)

        def config(self) -> None:
            pose = {".*_hip_joint": 0.0, ".*_thigh_joint": 0.9, ".*_calf_joint": -1.8}
            motor = {"kp": 20, "kv": 0.5, "max_force": 23.5}
            joints = managers.ActuatorManager(self, joint_names=[*pose], default_pos=pose, **motor)
            managers.PositionActionManager(self, actuator_manager=joints, scale=0.25)
            start = {"position": (0.0, 0.0, 0.4), "quat": (1.0, 0.0, 0.0, 0.0)}
            on_reset = {"position": {"fn": reset.position, "params": start}}
            base = managers.EntityManager(self, entity_attr="robot", on_reset=on_reset)
            command = managers.VelocityCommandManager(
                self,
                range={"lin_vel_x": (0.5, 1.0), "lin_vel_y": (0.0, 0.0), "ang_vel_z": (0.0, 0.0)},
                debug_visualizer=arrows,
                debug_visualizer_cfg={"commanded_color": (0.0, 1.0, 0.0, 1.0)},
            )
            speed = {"fn": rewards.command_tracking_lin_vel, "weight": 1.0}
            speed["params"] = {"vel_cmd_manager": command}
            managers.RewardManager(self, cfg={"speed": speed})
            time_out = {"fn": lambda env: env.episode_length == 10, "time_out": True}
            managers.TerminationManager(self, term_cfg={"time": time_out})
            # genesis-forge's own functions for these do not work in every release.
            observed = {
                "command": {"fn": lambda env: command.command},
                "gravity": {"fn": lambda env: base.get_projected_gravity()},
                "joints": {"fn": lambda env: joints.get_dofs_position(), "noise": 0.01},
            }
            managers.ObservationManager(self, name="policy", cfg=observed)

    return ForgeEnv()


class ExampleEnv(Go2Env):
    """Go2 in the shape of rsl_rl 5 and Genesis' example: four results, TensorDict observations."""

    lowest = 0.0  # episodes end by their length alone

    def get_observations(self) -> Any:
        from tensordict import TensorDict

        observed = torch.cat([super().get_observations(), self.robot.get_vel()], 1)
        return TensorDict({"policy": observed}, [self.num_envs])


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


def learn_with_rsl_rl(env: Any, **options: Any) -> Any:
    """Train for 44 steps, and return the policy."""
    from rsl_rl.runners import OnPolicyRunner

    runner = OnPolicyRunner(env, rsl_rl_config(11))
    runner.learn(4, **options)
    return runner.alg.get_policy()


def learn_forge_with_rsl_rl(env: Any) -> Any:
    from genesis_forge.wrappers import RslRlWrapper

    env = RslRlWrapper(env)
    env.build()
    env.reset()
    return learn_with_rsl_rl(env)


def learn_forge_with_skrl(env: Any) -> Any:
    from genesis_forge.wrappers import SkrlEnvWapper
    from skrl.utils.runner.torch import Runner

    class Env(SkrlEnvWapper):
        def state(self) -> None:
            """Return nothing: that of genesis-forge 0.5.3 asks an env that was never set."""

    env = Env(env)
    env.build()
    net = [{"name": "net", "input": "OBSERVATIONS", "layers": [32], "activations": "elu"}]
    actor = {"class": "GaussianMixin", "network": net, "output": "ACTIONS"}
    critic = {"class": "DeterministicMixin", "network": net, "output": "ONE"}
    config = {
        "seed": 1,
        "models": {"separate": True, "policy": actor, "value": critic},
        "memory": {"class": "RandomMemory", "memory_size": -1},
        "agent": {"class": "PPO", "rollouts": 11},
        "trainer": {"class": "SequentialTrainer", "timesteps": 44, "headless": True},
    }
    runner = Runner(env, config)
    runner.run()
    return runner.agent.models["policy"]


# How to make an env, how to train it, and the cases that this judges.
LEARN_EXAMPLE = partial(learn_with_rsl_rl, init_at_random_ep_len=True)
TRAININGS = {
    "forge, rsl_rl": (partial(forge_env, True), learn_forge_with_rsl_rl, "API-9 TRAIN-1a FILE-16"),
    "forge, skrl": (partial(forge_env, False), learn_forge_with_skrl, "API-9 TRAIN-1a"),
    "four results, rsl_rl": (ExampleEnv, LEARN_EXAMPLE, "TRAIN-1b DEL-5a DEL-5b EPI-2b"),
}


def train(name: str, wrapped: bool, file: str) -> None:
    """Train in this process and the working directory, and save all that the env returned.

    If it is bare, save what its camera shows after each step, too.
    """
    import genesis as gs

    from video_wrapper import VideoWrapper

    gs.init(backend=gs.cpu, seed=1, logging_level="error")
    torch.manual_seed(1)
    make_env, learn, _ = TRAININGS[name]
    base = make_env()
    env = VideoWrapper(base, video_length_sec=0.1, fps=50) if wrapped else base
    inner_step, renders = env.step, count_renders(base)
    returned, frames, ends = [], [], []

    def step(actions: torch.Tensor) -> Any:
        observations, *others, _ = results = inner_step(actions)
        observed = observations["policy"] if make_env is ExampleEnv else observations
        # Rewards read geoms, too: Genesis keeps the tensors that it makes, in inference mode or not.
        place = base.robot.geoms[0].get_pos()
        returned.extend(value.clone() for value in (actions, observed, *others, place))
        if make_env is not ExampleEnv:
            returned.append(torch.tensor(np.array(base.eye.render()[0])))
        ends.append(bool(any(flag[0] for flag in others[1:])))
        if not wrapped:
            frames.append(torch.tensor(np.array(base.camera.render()[0])))
        return results

    env.step = step
    weights = [*learn(env).state_dict().values()]
    torch.save([returned + weights, frames, ends, len(renders)], file)
    if wrapped and name != "forge, skrl":  # skrl closes the env when Python exits
        env.close()


@pytest.mark.of_module
@pytest.mark.extended
@pytest.mark.clause("TRAIN-1c", "FIN-6")
@pytest.mark.parametrize("name", [row(n, cases, n) for n, (*_, cases) in TRAININGS.items()])
def test_wrapped_training_equals_the_bare_one(
    fake: Any, python: Any, tmp_path: Path, name: str
) -> None:
    for package in ("genesis_forge", "rsl_rl", "skrl"):
        if not importlib.util.find_spec(package):
            pytest.skip(f"not installed: {package}")
    results = []
    for wrapped in (False, True):
        file = str(tmp_path / f"{wrapped}.pt")
        call = f"train({name!r}, {wrapped}, {file!r})"
        code = f"os.chdir({str(tmp_path)!r}); from spec.tests.test_training import train; {call}"
        check_end(python(f"import os; {code}"))
        results.append(torch.load(file))
    (bare, frames, ends, _), (recorded, _, _, renders) = results
    assert len(bare) == len(recorded) > 44 * 5
    assert all(map(torch.equal, bare, recorded))
    # Two triggered videos of five frames, and no background frame before close().
    assert renders == 10
    starts = [n + 1 for n, is_over in enumerate(ends) if is_over]
    final = [start for start in starts if start + 5 <= 44][-1]
    firsts = {0, max(5, starts[0]), final}
    assert fake.files() == sorted(f"{first}.mp4" for first in firsts)
    for first in firsts:
        video = fake.video(f"{first}.mp4")
        assert (video.width, video.height, video.rate) == (96, 64, 50)
        assert_shows(video, [frame.numpy() for frame in frames], first, 5)
        red, green, blue = video.frames[-1].astype(int).transpose(2, 0, 1)
        arrow = (green > red + 40) & (green > blue + 40)
        assert arrow.any() == (name == "forge, rsl_rl")


@pytest.mark.clause("FILE-16")
@pytest.mark.parametrize("type", ["active", "background"])
@pytest.mark.extended(default=["background"])
def test_debug_drawings_are_in_every_video(
    genesis: Any, new_stage: type[Stage], leave_to: Any, type: str
) -> None:
    def velocity_arrow(stage: Stage) -> None:
        stage.scene.clear_debug_objects()
        stage.scene.draw_debug_arrow((0, 0, 0.8), (0.6, 0, 0), radius=0.05, color=(1, 0, 1, 1))

    stage = new_stage(on_step=velocity_arrow, camera={"debug": True})
    wrapper = wrap_stage(genesis, stage, record_final_episode=type == "background")
    if type == "active":
        wrapper.start_recording()
    for _ in range(12):
        wrapper.step(None)
    wrapper.close()
    if "0.mp4" not in genesis.files():
        leave_to("it saves no final episode, or one of another name: FIN-1 and FILE-1")
    video = genesis.video("0.mp4")
    assert video.count > 4
    for frame in video.frames:
        red, green, blue = frame.astype(int).transpose(2, 0, 1)
        assert np.count_nonzero((red > green + 60) & (blue > green + 60)) > 50
