"""Real scenes: the board that shows step numbers, and stages on which bodies move."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.metadata
import math
import os
import re
import tempfile
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

    Genesis 1.4 does not take a camera for one env if cameras show each env apart, so there is a
    scene of either kind. Only the envs 0 and 2 are rendered, so that a stack of images is not one
    of all envs.
    """

    BITS, COLUMNS, ROWS = 15, 5, 3

    def __init__(self, separate: bool, dt: float) -> None:
        gs = start_genesis()
        # The light comes from the cameras, because white is dark grey in ambient light before 1.4.
        light = {"type": "directional", "dir": (1, 0, 0), "color": (1, 1, 1), "intensity": 5000}
        self.scene = gs.Scene(
            # Genesis' own recording goes by the scene's dt.
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
        bodies = [  # Genesis 0.3 asks for their names
            f'<body name="body{i}" pos="0 {-(i % self.COLUMNS)} {-(i // self.COLUMNS)}">'
            f'<joint name="joint{i}" type="slide" axis="1 0 0"/>'
            '<geom type="box" size=".1 .35 .35" rgba="1 1 1 1"/></body>'
            for i in range(self.BITS)
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "board.xml"
            path.write_text(f"<mujoco><worldbody>{''.join(bodies)}</worldbody></mujoco>")
            self.boxes = self.scene.add_entity(gs.morphs.MJCF(file=str(path)))
        middle = (-(self.COLUMNS - 1) / 2, -(self.ROWS - 1) / 2)
        # All boxes look alike from this distance. A box that is 60 m nearer is behind the camera.
        look = {"pos": (-50, *middle), "lookat": (0, *middle), "near": 1, "far": 100}
        fov = math.degrees(2 * math.atan(self.ROWS / 2 / 50))
        envs = [None] if separate else [0, 2]
        self.cameras = {
            i: self.scene.add_camera(res=(100, 60), fov=fov, env_idx=i, **look) for i in envs
        }
        # An image of all envs needs them out of each other's way. An image of one env needs them
        # in one place, or the camera would have to move before 1.4.
        self.scene.build(n_envs=3, env_spacing=(0.0, 0.0) if separate else (300.0, 300.0))

    def show(self, numbers: list[int]) -> None:
        """Step the simulation with each env's boxes at its number, below 4096, and a check."""
        codes = [number << 3 | number % 7 + 1 for number in numbers]
        hidden = [[-60.0 * (not code >> i & 1) for i in range(self.BITS)] for code in codes]
        self.boxes.set_dofs_position(torch.tensor(hidden))
        self.scene.step()

    @classmethod
    def read(cls, image: np.ndarray) -> int:
        """Return the number that an image shows. Raise ValueError if it cannot be read."""
        if image.shape != (60, 100, 3):
            raise ValueError(f"no step can be read in an image of shape {image.shape}")
        cells = image.reshape(cls.ROWS, 20, cls.COLUMNS, 20, 3)[:, 6:14, :, 6:14]
        number, check = divmod(read_bits(cells), 8)
        if check != number % 7 + 1:
            raise ValueError("no step can be read in the image")
        return number


board = functools.cache(Board)


class GenesisEnv(FakeEnv):
    """The fake env with a real scene, which has 3 envs and one size; `watched` is 0 or 2.

    If the camera shows the watched env alone, the others are at another number, 500 more.
    """

    def make_scene(self, size: tuple[int, int], separate: bool) -> None:
        """Take the board of that kind, which is built at the first use in a run."""
        self._separate = separate
        self._board = board(separate, self.dt)
        self.scene, self.robot = self._board.scene, self._board.boxes
        self.camera = self._board.cameras[None if separate else self.watched]
        with contextlib.suppress(Exception):  # the test before may have left a recording
            self.camera.stop_recording()
        self._board.show([4095] * 3)

    def show(self, number: int) -> None:
        """Bring the scene to the state after step `number`."""
        self.shown = number
        apart, watched = [0, 1000, 2000], [500 * (i != self.watched) for i in range(3)]
        self._board.show([number + offset for offset in (apart if self._separate else watched)])


@functools.cache
def start_genesis() -> Any:
    """Import Genesis, and initialise it unless that is done."""
    import genesis as gs

    if not gs._initialized:
        backend = os.environ.get("VIDEO_WRAPPER_GENESIS_BACKEND", "cpu")
        gs.init(backend=getattr(gs, backend), logging_level="error")
    # Its exit handler waits for ever for threads that a forked child does not have.
    os.register_at_fork(after_in_child=functools.partial(atexit.unregister, gs.destroy))
    return gs


def vis_options(**options: Any) -> Any:
    """Return Genesis' VisOptions. Before 1.4, its split_envs had another name."""
    options_class = start_genesis().options.VisOptions
    if "split_envs" in options and "split_envs" not in options_class.model_fields:
        options["env_separate_rigid"] = options.pop("split_envs")
    return options_class(**options)


def installed(distribution: str) -> str:
    """Return the version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def has_genesis(release: str) -> bool:
    """Tell whether Genesis is installed, and not older than a release."""
    versions = installed("genesis-world"), release
    found, wanted = ([int(n) for n in re.findall(r"\d+", version)[:3]] for version in versions)
    return found >= wanted


def needs_genesis(release: str, why: str) -> None:
    """Skip the test that is running if Genesis is older."""
    if not has_genesis(release):
        pytest.skip(f"before Genesis {release}, {why}")


class Stage:
    """A real scene in which bodies fall, collide and are thrown about, and an env around it.

    `on_step` is called when it is built and after each step `t` of the scene, and `add` before it
    is built. `scene` and `camera` are keywords of the VisOptions and of the camera. With `n_envs=0`
    there is no batch dimension. Nothing moves before step `still_until`. What the cameras render
    for wrappers is in `rendered`, and what they render for the env itself, by `look`, in `seen`.
    """

    # Class attributes precede the properties of the same names that an --env-base may have.
    dt = 0.02
    num_envs = 1
    scene: Any = None
    camera: Any = None
    can_be_wrapped = True

    def __init__(
        self,
        on_step: Callable[[Stage], Any] = lambda stage: None,
        add: Callable[[Stage], Any] = lambda stage: None,
        scene: dict[str, Any] | None = None,
        camera: dict[str, Any] | None = None,
        n_envs: int = 2,
        still_until: int = 0,
    ) -> None:
        self.on_step, self.still_until = on_step, still_until
        self.num_envs, self.batch = max(n_envs, 1), ((n_envs,) if n_envs else ())
        self.t = 0
        self.rendered: list[tuple[str, np.ndarray, list[np.ndarray]]] = []
        self.seen: list[np.ndarray] = []
        self._options = add, scene or {}, camera or {}
        self.make_scene()
        on_step(self)

    def make_scene(self) -> None:
        """Build the scene, another one if there is one."""
        gs = start_genesis()
        add, scene, camera = self._options
        np.random.seed(0)  # Genesis draws collision geometry in random colours
        self.scene = gs.Scene(
            sim_options=gs.options.SimOptions(dt=self.dt),
            vis_options=vis_options(**scene),
            show_viewer=False,
        )
        self.scene.add_entity(gs.morphs.Plane())
        places = [(0.02 * i, 0.015 * i, 0.15 + 0.22 * i) for i in range(3)]
        self.boxes = [add_box(self, 0.2, place) for place in places]
        morph = gs.morphs.Box(
            size=(0.1, 0.3, 0.1), pos=(0.5, 0.0, 0.3), fixed=True, batch_fixed_verts=True
        )
        self.fixed = self.scene.add_entity(morph)
        add(self)
        look = {"res": (160, 120), "pos": (2.0, -2.0, 1.2), "lookat": (0.0, 0.0, 0.3)}
        self.camera = self.scene.add_camera(**{**look, **camera})
        self.side_camera = self.scene.add_camera(res=(64, 48), pos=(1.0, 2.0, 1.0))
        for name in ("camera", "side_camera"):
            own = getattr(self, name)
            own.render = functools.partial(self._render, name, own)
        spacing = {"env_spacing": (1.5, 1.5)} if self.batch else {}
        self.scene.build(n_envs=sum(self.batch), **spacing)
        throw = np.random.default_rng(0).normal(size=(self.num_envs, 6)) * [2, 2, 1, 6, 6, 6]
        self.boxes[0].set_dofs_velocity(self.each(throw))

    def _render(self, name: str, camera: Any, *args: Any, **options: Any) -> Any:
        images, context = type(camera).render(camera, *args, **options), camera._visualizer.context
        shadows = context._scene.bounds, context.jit.light, context.jit.light_matrix
        noted = name, np.array(images[0]), [np.array(value) for value in shadows]
        self.rendered.append(noted)
        return images

    def look(self, name: str) -> None:
        """Render by the camera of that name, with depth and segmentation, as an env does itself."""
        getattr(self, name).render(depth=True, segmentation=True)
        self.seen.append(self.rendered.pop()[1])

    def images(self, name: str = "camera") -> list[np.ndarray]:
        """Return the images that the camera of that name rendered for a wrapper."""
        return [image for camera, image, _ in self.rendered if camera == name]

    def shadows(self, name: str) -> list[list[np.ndarray]]:
        """Return what their shadows are fitted to. Software OpenGL does not draw them."""
        return [shadows for camera, _, shadows in self.rendered if camera == name]

    @property
    def unwrapped(self) -> Stage:
        return self

    def each(self, values: Any) -> torch.Tensor:
        """Return values for every env, from those of one env or of each."""
        tensor = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        return tensor.expand(*self.batch, tensor.shape[-1]) if self.batch else tensor.reshape(-1)

    def state(self) -> list[torch.Tensor]:
        solver = self.scene.rigid_solver
        return [solver.get_qpos().clone(), solver.get_dofs_velocity().clone()]

    def build(self) -> None:
        pass

    def step(self, actions: Any = None) -> Any:
        self.t += 1
        if self.t >= self.still_until:
            angle = 0.15 * self.t
            self.fixed.set_pos(self.each([0.5 * math.cos(angle), 0.5 * math.sin(angle), 0.3]))
            self.fixed.set_quat(self.each([math.cos(angle), 0, 0, math.sin(angle)]))
            if self.t % 7 == 3:
                self.boxes[1].control_dofs_force(self.each([4, -3, 30, 1, 1, 0]))
            self.scene.step()
            self.boxes[0].geoms[0].get_pos()  # as rewards do; Genesis keeps the tensor
            self.on_step(self)
        return None, None, *torch.zeros((2, self.num_envs), dtype=torch.bool), {}

    def reset(self, env_ids: Any = None) -> Any:
        return None, {}

    def close(self) -> None:
        pass


def add_box(stage: Stage, size: float, pos: Any, visualization: bool = True, **options: Any) -> Any:
    """Add a cube. The options are those of `scene.add_entity`."""
    morph = start_genesis().morphs.Box(size=(size,) * 3, pos=pos, visualization=visualization)
    return stage.scene.add_entity(morph, **options)


def attach(stage: Stage) -> None:
    """Attach the camera to a body, once."""
    offset = np.eye(4)
    offset[:3, :3] = [[0, 0, -1], [-1, 0, 0], [0, 1, 0]]
    offset[:3, 3] = [-1.5, 0, 0.8]
    if stage.t == 0:
        stage.camera.attach(stage.boxes[1].base_link, offset)


def wrap_stage(world: Any, stage: Any, **keywords: Any) -> Any:
    """Wrap a stage so that a recording covers 12 steps, with a frame every second one."""
    defaults = {"video_length_sec": 0.24, "fps": 25, "step_trigger": never}
    return world.wrap(stage, **{**defaults, **keywords})


def count_renders(stage: Any, interrupt_at: int = -1) -> list[Any]:
    """Return a list that grows with each frame that the camera renders. Ctrl-C comes at one."""
    renders, render = [], stage.camera.render

    def count(*args: Any, **options: Any) -> Any:
        renders.append(args)
        if len(renders) == interrupt_at:
            raise KeyboardInterrupt
        return render(*args, **options)

    stage.camera.render = count
    return renders
