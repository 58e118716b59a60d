"""Real scenes: the board that shows step numbers, and stages on which bodies move."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.metadata
import inspect
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spec.suite.doubles import never
from spec.suite.fake_env import FakeEnv
from spec.suite.video_reader import read_bits


class Board:
    """A real scene of 3 envs: 5 x 3 boxes, a bit each, which slide out of sight for a 0.

    Genesis 1.4 takes no camera for one env in a scene where cameras show each env apart, so there
    is a scene of either kind. Of its envs 0 and 2 are rendered, so that a stack of pictures is not
    one of all envs.
    """

    BITS, COLUMNS, ROWS = 15, 5, 3

    def __init__(self, separate: bool, dt: float) -> None:
        gs = start_genesis()
        # From where the cameras are: before 1.4, white is dark grey in ambient light alone.
        light = {"type": "directional", "dir": (1, 0, 0), "color": (1, 1, 1), "intensity": 5000}
        self.scene = gs.Scene(
            # The env's dt: Genesis' own recording goes by the scene's.
            sim_options=gs.options.SimOptions(dt=dt, gravity=(0, 0, 0)),
            rigid_options=gs.options.RigidOptions(enable_collision=False),
            vis_options=vis_options(
                rendered_envs_idx=[0, 2],
                split_envs=separate,
                shadow=False,
                plane_reflection=False,
                background_color=(0, 0, 0),
                ambient_light=(1, 1, 1),
                lights=[light],
            ),
            show_viewer=False,
        )
        box = (
            '<joint name="joint{}" type="slide" axis="1 0 0"/>'
            '<geom type="box" size=".1 .35 .35" rgba="1 1 1 1"/>'
        )
        places = [(-(i % self.COLUMNS), -(i // self.COLUMNS)) for i in range(self.BITS)]
        bodies = [  # with names, which Genesis 0.3 asks for
            f'<body name="body{i}" pos="0 {y} {z}">{box.format(i)}</body>'
            for i, (y, z) in enumerate(places)
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "board.xml"
            path.write_text(f"<mujoco><worldbody>{''.join(bodies)}</worldbody></mujoco>")
            self.boxes = self.scene.add_entity(gs.morphs.MJCF(file=str(path)))
        middle = (-(self.COLUMNS - 1) / 2, -(self.ROWS - 1) / 2)
        # From so far off all boxes look alike. A box that is 60 m nearer is behind the camera.
        look = {"pos": (-50, *middle), "lookat": (0, *middle), "near": 1, "far": 100}
        fov = math.degrees(2 * math.atan(self.ROWS / 2 / 50))
        envs = [None] if separate else [0, 2]
        self.cameras = {
            i: self.scene.add_camera(res=(100, 60), fov=fov, env_idx=i, **look) for i in envs
        }
        # So far apart that no env stands in another's picture; apart already, in one place, for
        # which before 1.4 the camera would have to be moved.
        self.scene.build(n_envs=3, env_spacing=(0.0, 0.0) if separate else (300.0, 300.0))

    def show(self, numbers: list[int]) -> None:
        """Steps the simulation with each env's boxes at its number, below 4096, and a check."""
        codes = [number << 3 | number % 7 + 1 for number in numbers]
        hidden = [[-60.0 * (not code >> i & 1) for i in range(self.BITS)] for code in codes]
        self.boxes.set_dofs_position(torch.tensor(hidden))
        self.scene.step()

    @classmethod
    def read(cls, picture: np.ndarray) -> int:
        """Reads the number that a picture shows. Raises ValueError if it cannot be read."""
        if picture.shape != (60, 100, 3):
            raise ValueError(f"no step can be read in a picture of shape {picture.shape}")
        cells = picture.reshape(cls.ROWS, 20, cls.COLUMNS, 20, 3)[:, 6:14, :, 6:14]
        number, check = divmod(read_bits(cells), 8)
        if check != number % 7 + 1:
            raise ValueError("no step can be read in the picture")
        return number


board = functools.cache(Board)


class GenesisEnv(FakeEnv):
    """The fake env with a real scene, which has 3 envs and one size; `watched` is 0 or 2.

    Where the camera shows the watched env alone, the others are at another number, 500 more.
    """

    def make_scene(self, size: tuple[int, int], separate: bool) -> None:
        """Takes the scene of that kind, built at the first use in a run."""
        self._separate = separate
        self._board = board(separate, self.dt)
        self.scene, self.robot = self._board.scene, self._board.boxes
        self.camera = self._board.cameras[None if separate else self.watched]
        with contextlib.suppress(Exception):  # what the test before may have left running
            self.camera.stop_recording()
        self._board.show([4095] * 3)

    def show(self, number: int) -> None:
        """Brings the scene to the state after step `number`."""
        self.shown = number
        if self._separate:
            self._board.show([number + 1000 * i for i in range(3)])
        else:
            self._board.show([number + 500 * (i != self.watched) for i in range(3)])


@functools.cache
def start_genesis() -> Any:
    """Imports and initialises Genesis, unless that is done."""
    import genesis as gs

    if not gs._initialized:
        backend = os.environ.get("VIDEO_WRAPPER_GENESIS_BACKEND", "cpu")
        gs.init(backend=getattr(gs, backend), logging_level="error")
    # Its exit handler waits for ever for threads that a forked child does not have.
    os.register_at_fork(after_in_child=functools.partial(atexit.unregister, gs.destroy))
    return gs


def vis_options(**options: Any) -> Any:
    """Genesis' VisOptions; before 1.4, its split_envs had another name."""
    options_class = start_genesis().options.VisOptions
    if "split_envs" in options and "split_envs" not in options_class.model_fields:
        options["env_separate_rigid"] = options.pop("split_envs")
    return options_class(**options)


def needs_genesis(release: str, why: str) -> None:
    """Skips the test that runs, if Genesis is older."""

    def numbers(version: str) -> list[int]:
        return [int(number) for number in version.split(".")[:3]]

    if numbers(installed("genesis-world")) < numbers(release):
        pytest.skip(f"before Genesis {release}, {why}")


def installed(distribution: str) -> str:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


class Stage:
    """A real scene in which bodies fall, collide and are thrown about, and an env around it.

    Args:
        scene: Keyword arguments of the scene's VisOptions.
        camera: Keyword arguments of the camera.
        n_envs: 0 builds the scene without a batch dimension.
        setup: Called with the stage once it is built.
        on_step: Called with the stage after each step of the scene.
        add: Called with the stage before it is built, to add what else is to be there.
    """

    # Named here to stand before the properties of the same names that an --env-base may have.
    dt = 0.02
    num_envs = 1
    scene: Any = None
    camera: Any = None
    can_be_wrapped = True

    def __init__(
        self,
        scene: dict[str, Any] | None = None,
        camera: dict[str, Any] | None = None,
        n_envs: int = 2,
        setup: Callable[[Stage], Any] = lambda stage: None,
        on_step: Callable[[Stage], Any] = lambda stage: None,
        add: Callable[[Stage], Any] = lambda stage: None,
    ) -> None:
        import genesis as gs

        self.num_envs = max(n_envs, 1)
        self.batch = (n_envs,) if n_envs else ()
        self.on_step = on_step
        self.t = 0
        np.random.seed(0)  # Genesis draws collision geometry in random colours
        self.scene = gs.Scene(
            sim_options=gs.options.SimOptions(dt=self.dt),
            vis_options=vis_options(**(scene or {})),
            show_viewer=False,
        )
        self.scene.add_entity(gs.morphs.Plane())
        self.boxes = [
            self.scene.add_entity(
                gs.morphs.Box(size=(0.2, 0.2, 0.2), pos=(0.02 * i, 0.015 * i, 0.15 + 0.22 * i))
            )
            for i in range(3)
        ]
        self.fixed = self.scene.add_entity(
            gs.morphs.Box(
                size=(0.1, 0.3, 0.1), pos=(0.5, 0.0, 0.3), fixed=True, batch_fixed_verts=True
            )
        )
        add(self)
        look = {"res": (160, 120), "pos": (2.0, -2.0, 1.2), "lookat": (0.0, 0.0, 0.3)}
        self.camera = self.scene.add_camera(**{**look, **(camera or {})})
        self.side_camera = self.scene.add_camera(res=(64, 48), pos=(1.0, 2.0, 1.0))
        self.scene.build(n_envs=n_envs, **({"env_spacing": (1.5, 1.5)} if n_envs else {}))
        throw = np.random.default_rng(0).normal(size=(self.num_envs, 6)) * [2, 2, 1, 6, 6, 6]
        self.boxes[0].set_dofs_velocity(self.each(throw))
        setup(self)

    @property
    def unwrapped(self) -> Stage:
        return self

    def each(self, values: Any) -> torch.Tensor:
        """Values for every env: of one, or of each."""
        tensor = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        return tensor.expand(*self.batch, tensor.shape[-1]) if self.batch else tensor.reshape(-1)

    def state(self) -> list[torch.Tensor]:
        solver = self.scene.rigid_solver
        return [solver.get_qpos().clone(), solver.get_dofs_velocity().clone()]

    def build(self) -> None:
        pass

    def step(self, actions: Any = None) -> Any:
        self.t += 1
        angle = 0.15 * self.t
        self.fixed.set_pos(self.each([0.5 * math.cos(angle), 0.5 * math.sin(angle), 0.3]))
        self.fixed.set_quat(self.each([math.cos(angle), 0, 0, math.sin(angle)]))
        if self.t % 7 == 3:
            self.boxes[1].control_dofs_force(self.each([4, -3, 30, 1, 1, 0]))
        self.scene.step()
        self.on_step(self)
        return None, None, *torch.zeros((2, self.num_envs), dtype=torch.bool), {}

    def reset(self, env_ids: Any = None) -> Any:
        return None, {}

    def close(self) -> None:
        pass


def follow(**options: Any) -> Callable[[Stage], None]:
    return lambda stage: stage.camera.follow_entity(stage.boxes[0], **options)


def attach(stage: Stage) -> None:
    offset = np.eye(4)
    offset[:3, :3] = [[0, 0, -1], [-1, 0, 0], [0, 1, 0]]
    offset[:3, 3] = [-1.5, 0, 0.8]
    stage.camera.attach(stage.boxes[1].base_link, offset)


def orbit(stage: Stage) -> None:
    angle = 0.1 * stage.t
    stage.camera.set_pose(pos=(2 * math.cos(angle), 2 * math.sin(angle), 1), lookat=(0, 0, 0.3))


def reset_now_and_then(stage: Stage) -> None:
    if stage.t % 5 == 0:
        stage.boxes[2].set_qpos(stage.each([0.1, 0.1, 0.5, 1, 0, 0, 0]))


def render_and_reset(stage: Stage) -> None:
    if stage.t % 2:
        (stage.camera if stage.t % 3 else stage.side_camera).render()
    reset_now_and_then(stage)


def draw_sphere(stage: Stage) -> None:
    stage.scene.draw_debug_sphere((0, 0, 0.1 * stage.t), radius=0.1, color=(1, 0, 0, 1))


def draw_sphere_late(stage: Stage) -> None:
    if stage.t == 7:
        stage.scene.draw_debug_sphere((0, 0, 0.5), radius=0.3, color=(1, 0, 0, 1))


def collision_box(stage: Stage) -> None:
    import genesis as gs

    surface = gs.surfaces.Default(vis_mode="collision")
    stage.scene.add_entity(gs.morphs.Box(size=(0.2,) * 3, pos=(0, 0.4, 0.6)), surface=surface)


def kinematic_box(stage: Stage) -> None:
    import genesis as gs

    if not hasattr(gs.materials, "Kinematic"):
        pytest.skip("this Genesis has no kinematic entities")
    material = gs.materials.Kinematic()
    morph = gs.morphs.Box(size=(0.1,) * 3, pos=(-0.5, 0, 0.3))
    stage.ghost = stage.scene.add_entity(morph, material=material)


def move_ghost(stage: Stage) -> None:
    stage.ghost.set_pos(stage.each([-0.5, 0.1 * stage.t, 0.3]))


def soft_box(stage: Stage) -> None:
    import genesis as gs

    morph = gs.morphs.Box(size=(0.1,) * 3, pos=(0.5, 0.5, 0.5))
    stage.scene.add_entity(morph, material=gs.materials.MPM.Elastic())


STAGES: dict[str, dict[str, Any]] = {
    "static camera": {},
    "no batch dimension": {"n_envs": 0},
    "set_pose in the env's step": {"on_step": orbit},
    "following camera": {"setup": follow()},
    "following camera, smoothing": {"setup": follow(smoothing=0.8)},
    "following camera, smoothing, fixed orientation": {
        "setup": follow(smoothing=0.8, fix_orientation=True)
    },
    "attached camera": {"setup": attach},
    "camera of an env": {"n_envs": 3, "camera": {"env_idx": 2}},
    "rendered_envs_idx": {
        "n_envs": 4,
        "scene": {"rendered_envs_idx": [1, 3]},
        "camera": {"env_idx": 3},
        "setup": follow(smoothing=0.5),
    },
    "a picture of each env": {
        "n_envs": 3,
        "scene": {"rendered_envs_idx": [0, 2], "split_envs": True},
        "setup": follow(smoothing=0.5),
    },
    "env that resets in step": {"on_step": reset_now_and_then},
    "user who renders too": {"on_step": render_and_reset, "setup": follow(smoothing=0.8)},
    "collision geometry": {"add": collision_box},
    "kinematic entity": {"add": kinematic_box, "on_step": move_ghost},
    "debug drawings": {"on_step": draw_sphere, "camera": {"debug": True}},
    "debug drawings in mid-recording": {"on_step": draw_sphere_late, "camera": {"debug": True}},
}


def wrap_stage(world: Any, stage: Stage, **keywords: Any) -> Any:
    """Wraps it so that a recording covers 12 steps, with a frame every second one."""
    defaults = {"video_length_sec": 0.24, "fps": 25, "step_trigger": never}
    return world.wrap(stage, **{**defaults, **keywords})


def record_stage(
    world: Any, stage: Stage, type: str, out_dir: Path, leave_to: Callable[[str], None]
) -> Path:
    """Records these, and closes. Returns the video."""
    wrapper = wrap_stage(world, stage, out_dir=str(out_dir), record_final_episode=False)
    if type == "active":
        wrapper.start_recording()
    elif "type" in inspect.signature(wrapper.start_recording).parameters:
        wrapper.start_recording(type)
    for _ in range(12):
        wrapper.step(None)
    wrapper.close()
    path = out_dir / "0.mp4"
    if not path.exists():
        leave_to("it saves no background recording, or one of another name: REC-4 and FILE-9")
    return path


def count_renders(stage: Stage, seconds: float = 0, interrupt_at: int = -1) -> list[float]:
    """A list that gets an entry for each picture that the stage's camera renders.

    Each takes `seconds` more than else; at number `interrupt_at`, Ctrl-C comes.
    """
    renders: list[float] = []
    render = stage.camera.render

    def count(*args: Any, **options: Any) -> Any:
        renders.append(time.monotonic())
        time.sleep(seconds)
        if len(renders) == interrupt_at:
            raise KeyboardInterrupt
        return render(*args, **options)

    stage.camera.render = count
    return renders
