"""Train a Go2 to walk for a moment, and record its first and its final episode.

Run `python -m spec.demo`. It needs no display.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from typing import Any

from video_wrapper import VideoWrapper

STAND = {"hip": 0.0, "thigh": 0.8, "calf": -1.5}  # joint angles in radians
STAND_HEIGHT = 0.34  # metres from the floor to the base, so that the feet do not begin inside it
EPISODE_STEPS = 150


class Go2Env:
    """64 Go2 on a plane. Actions are the angles of the 12 joints, relative to a standing pose."""

    dt, num_envs = 0.02, 64

    def build(self) -> None:
        import genesis as gs
        import torch

        gs.init(backend=gs.cpu, seed=0, logging_level="error")
        self.scene = gs.Scene(
            sim_options=gs.options.SimOptions(dt=self.dt, substeps=2),
            vis_options=gs.options.VisOptions(rendered_envs_idx=[0]),
            show_viewer=False,
        )
        self.scene.add_entity(gs.morphs.Plane())
        self.robot = self.scene.add_entity(gs.morphs.URDF(file="urdf/go2/urdf/go2.urdf"))
        look = {"pos": (1.5, -1.4, 0.7), "lookat": (0.3, 0.0, 0.2)}
        self.camera = self.scene.add_camera(res=(320, 240), **look)
        self.scene.build(n_envs=self.num_envs)
        joints = [joint for joint in self.robot.joints if joint.n_dofs == 1]
        self.motors = [joint.dofs_idx_local[0] for joint in joints]
        self.robot.set_dofs_kp([40.0] * 12, self.motors)
        self.robot.set_dofs_kv([1.0] * 12, self.motors)
        self.stand = torch.tensor([STAND[joint.name.split("_")[1]] for joint in joints])
        self.start = torch.tensor([0, 0, STAND_HEIGHT, 1, 0, 0, 0, *self.stand])
        self.reset()
        for _ in range(50):  # until it stands still
            self.step(torch.zeros(self.num_envs, 12))
        self.start = self.robot.get_qpos()[0].clone()

    def step(self, actions: Any) -> Any:
        """Return observations, rewards, dones and extras, as Genesis' own examples do."""
        self.robot.control_dofs_position(self.stand + actions, self.motors)
        self.scene.step()
        x, y, _, _, roll, pitch, yaw = self.robot.get_qpos()[:, :7].T  # small angles, halved
        rewards = x - y.abs() - 2 * (roll.abs() + pitch.abs()) - yaw.abs()  # ahead, upright
        return self.robot.get_qpos(), rewards, None, {}  # train() ends episodes

    def reset(self) -> Any:
        """Let all robots stand at the start."""
        self.robot.set_qpos(self.start.expand(self.num_envs, -1))
        self.robot.zero_all_dofs_velocity()
        return self.robot.get_qpos(), {}


def train(env: Any, episodes: int, episode_steps: int) -> None:
    """Search for a gait at random: robot 0 shows the best so far, the others try changes."""
    import torch

    random = torch.Generator().manual_seed(0)
    best = torch.zeros(2, 12)  # amplitude and phase of each joint, in radians
    spread = torch.tensor([0.2, 2.0])[:, None]
    for episode in range(episodes):
        gaits = best + spread * torch.randn(env.num_envs, 2, 12, generator=random)
        if episode > 0:
            gaits[0] = best
        observations, _ = env.reset()
        score = torch.zeros(env.num_envs)
        for step in range(episode_steps):
            wave = torch.sin(4 * math.pi * step * env.dt + gaits[:, 1])  # two strides a second
            observations, rewards, _, _ = env.step(gaits[:, 0] * wave)
            score += rewards
        winner = score.argmax()
        best, spread = gaits[winner], 0.8 * spread
        metres = observations[winner, 0]
        print(f"Episode {episode}: the best robot walked {metres:.2f} m", flush=True)


def main() -> None:
    """Record both videos, or exit with a sentence that says what is missing."""
    parser = argparse.ArgumentParser(prog="python -m spec.demo", description=__doc__)
    parser.add_argument("--out-dir", default="./videos", help="folder for the videos")
    parser.add_argument("--steps", type=int, default=1200, help="steps of 0.02 s in all")
    options = parser.parse_args()
    episode_steps = max(1, min(EPISODE_STEPS, options.steps // 2))
    try:
        env: Any = VideoWrapper(
            Go2Env(),
            video_length_sec=episode_steps * Go2Env.dt,
            episode_trigger=lambda episode: episode == 0,  # close() saves the final episode
            fps=25,
            out_dir=options.out_dir,
        )
    except (OSError, RuntimeError) as error:  # of the folder, or ffmpeg is missing
        sys.exit(str(error))
    warnings.filterwarnings("error", "recording", RuntimeWarning)  # one that fails ends the demo
    print("Building the scene. The first time, Genesis compiles for minutes.", flush=True)
    try:
        env.build()
        train(env, max(2, options.steps // episode_steps), episode_steps)
        env.close()
    except ModuleNotFoundError as error:
        package = {"genesis": "torch genesis-world"}.get(error.name or "", error.name)
        sys.exit(f"{error}: pip install {package}")
    except RuntimeWarning as error:
        sys.exit(str(error))
    except Exception as error:  # noqa: BLE001 without OpenGL, Genesis raises errors of many kinds
        hint = "if OpenGL is missing: apt-get install libgl1 libegl1 libxrender1"
        sys.exit(f"{' '.join(str(error).split())} ({hint})")


if __name__ == "__main__":
    main()
