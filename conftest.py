"""What the conformance tests work with: videos, two worlds, and the report by clause.

In this order: the code of a step's number in a picture, and videos read back; the fake camera and
env; the real scene; `World`, which has the one or the other; fixtures; the clauses of the spec.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent
DEFAULT_IMPLEMENTATION = "video_wrapper:VideoWrapper"
NUM_ACTIONS = 2

# A number is drawn as 6 x 4 cells, black or white: its 16 bits and 8 of a checksum. Cells of 8
# pixels are whole blocks of H.264, and stay readable at every quality that people would look at.
CELL, COLUMNS, BITS = 8, 6, 24
NOT_STEPPED = 0xFFFF

# What the fake camera's own recorder encodes with, also where a test gives the class a bad ffmpeg.
CAMERAS_FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def draw_step(picture: np.ndarray, number: int) -> None:
    """Draws `number`, below 65536, into the top left 48 x 32 pixels."""
    code = number << 8 | zlib.crc32(number.to_bytes(2, "big")) & 0xFF
    cells = np.array([code >> i & 1 for i in range(BITS)], np.uint8).reshape(-1, COLUMNS)
    area = np.kron(cells, np.full((CELL, CELL), 255, np.uint8))
    picture[: area.shape[0], : area.shape[1]] = area[..., None]


def read_step(picture: np.ndarray) -> int:
    """Reads what `draw_step` drew. Raises ValueError if it cannot be read."""
    height, width = BITS // COLUMNS * CELL, COLUMNS * CELL
    if picture.shape[0] < height or picture.shape[1] < width:
        raise ValueError(f"no step can be read in a picture of shape {picture.shape}")
    area = picture[:height, :width].reshape(BITS // COLUMNS, CELL, COLUMNS, CELL, 3)
    number, check = divmod(read_bits(area[:, 2:-2, :, 2:-2]), 256)
    if check != zlib.crc32(number.to_bytes(2, "big")) & 0xFF:
        raise ValueError("no step can be read in the picture")
    return number


def read_bits(cells: np.ndarray) -> int:
    """The number whose bits are black or white cells, an array (row, y, column, x, colour)."""
    levels = cells.mean(axis=(1, 3, 4)).ravel()
    if np.abs(levels - 127).min() < 64:
        raise ValueError("no step can be read in the picture")
    return sum(1 << i for i, level in enumerate(levels) if level > 127)


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[str, int, int]]:
    """The MP4 boxes between two offsets: name, start and end of the content."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, head = int.from_bytes(data[start : start + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = start + size if size else end
        if stop < start + head or stop > end:
            raise AssertionError(f"the MP4 box at byte {start} does not fit into its file")
        yield data[start + 4 : start + 8].decode("latin-1"), start + head, stop
        start = stop


def box(data: bytes, path: str) -> bytes:
    """The content of the first box at a path such as "moov/trak"."""
    start, end = 0, len(data)
    for name in path.split("/"):
        found = [(s, e) for n, s, e in boxes(data, start, end) if n == name]
        if not found:
            raise AssertionError(f"there is no MP4 box {path}")
        start, end = found[0]
    return data[start:end]


class Shown(list):
    """The steps that a video shows.

    It also equals a list that begins or ends up to so many frames earlier or later as the class
    under test is wrong by in each video. So only the tests of TIME-4, which compare plain lists,
    fail a class for that, and not every test that reads a video.

    Attributes:
        drift: By how many frames its videos begin and end too late.
    """

    drift: tuple[int, int] = (0, 0)

    def __eq__(self, wanted: object) -> bool:
        if not isinstance(wanted, list) or not wanted or not any(self.drift):
            return list.__eq__(self, wanted)
        first, last = self.drift
        stride = (wanted[1] - wanted[0]) if len(wanted) > 1 else 1
        # Up to: a recording that is started by hand or cut short may begin or end as it should.
        return any(
            list(self) == list(range(wanted[0] + a * stride, wanted[-1] + b * stride + 1, stride))
            for a in range(min(0, first), max(0, first) + 1)
            for b in range(min(0, last), max(0, last) + 1)
        )

    __hash__ = None


def is_video_name(name: str) -> bool:
    """Whether people would take the file for a video: not hidden, and with one of ARG-5's suffixes."""
    return name[0] != "." and Path(name).suffix.lower() in (".mp4", ".m4v", ".mov", ".mkv")


# ffmpeg's option to decode each frame once, of which no release has both names for ever.
FFMPEG_MAJOR = int(re.search(r"\d+", imageio_ffmpeg.get_ffmpeg_version())[0])
EACH_FRAME = ["-vsync" if FFMPEG_MAJOR < 6 else "-fps_mode", "passthrough"]


@dataclass
class Video:
    """A decoded video. What only MP4 files tell is read when it is asked for."""

    path: Path
    frames: list[np.ndarray] = field(repr=False)
    width: int
    height: int
    codec: str
    pix_fmt: str
    reader: Callable[[np.ndarray], int] = field(repr=False)
    start: float = 0.0  # when the first frame is shown, in seconds

    @property
    def count(self) -> int:
        """The number of frames."""
        return len(self.frames)

    @functools.cached_property
    def steps(self) -> Shown:
        """The step that each frame shows."""
        return Shown(self.reader(frame) for frame in self.frames)

    @functools.cached_property
    def _timing(self) -> tuple[Fraction, Fraction]:
        media = box(self.path.read_bytes(), "moov/trak/mdia")
        header, table = box(media, "mdhd"), box(media, "minf/stbl/stts")
        at = 20 if header[0] else 12
        timescale = int.from_bytes(header[at : at + 4], "big")
        numbers = [int.from_bytes(table[i : i + 4], "big") for i in range(8, len(table), 4)]
        counts, deltas = numbers[::2], numbers[1::2]
        if len(set(deltas)) != 1:
            raise AssertionError(f"the frames of {self.path.name} last differently long: {deltas}")
        return Fraction(timescale, deltas[0]), Fraction(deltas[0] * sum(counts), timescale)

    @property
    def rate(self) -> Fraction:
        """Frames per second, exactly, from the MP4's own clock."""
        return self._timing[0]

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self._timing[1])

    @property
    def index_first(self) -> bool:
        """Whether the MP4's index stands before its data."""
        names = [name for name, _, _ in boxes(self.path.read_bytes())]
        return names.index("moov") < names.index("mdat")


def read_video(
    path: str | os.PathLike[str], reader: Callable[[np.ndarray], int] = read_step
) -> Video:
    """Decodes a video with ffmpeg.

    Raises:
        AssertionError: It cannot be played.
    """
    path = Path(path)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-xerror", "-i", f"file:{path}"]
    command += [*EACH_FRAME, "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    result = subprocess.run(command, capture_output=True, check=False)
    words = result.stderr.decode(errors="replace")
    stream = re.search(r"Stream #0:0.*Video: (\w+)[^,]*, (\w+).*?, (\d+)x(\d+)", words)
    if result.returncode or not stream or not result.stdout:
        cause = words.strip().splitlines()[-1:] or [f"ffmpeg ended with {result.returncode}"]
        raise AssertionError(f"{path.name} cannot be played: {cause[0]}")
    codec, pix_fmt, width, height = stream[1], stream[2], int(stream[3]), int(stream[4])
    frames = list(np.frombuffer(result.stdout, np.uint8).reshape(-1, height, width, 3))
    start = re.search(r"Duration: .*, start: (-?[\d.]+)", words)
    start_seconds = float(start[1]) if start else 0.0
    return Video(path, frames, width, height, codec, pix_fmt, reader, start_seconds)


def as_array(picture: Any) -> np.ndarray:
    """A picture that a camera gave, be it a tensor, also of a device, or an array."""
    return picture.cpu().numpy() if hasattr(picture, "cpu") else np.asarray(picture)


def encode(path: str, rate: Fraction, size: tuple[int, int], raw: BinaryIO, old: bool) -> None:
    """Makes a video of frames in a file, as Genesis' camera does, and none of no frame.

    A picture of odd size has been padded since 1.3; before, players that know no yuv444p refused it.
    """
    if not raw.tell():
        return
    is_odd = any(length % 2 for length in size)
    command = [CAMERAS_FFMPEG, "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-video_size", "{}x{}".format(*size), "-framerate", str(rate), "-i", "pipe:0"]
    command += [] if old else ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
    command += ["-pix_fmt", "yuv444p" if old and is_odd else "yuv420p", f"file:{path}"]
    raw.seek(0)
    result = subprocess.run(command, stdin=raw, capture_output=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr.decode(errors="replace").strip().splitlines()[-1])


class FakeCamera:
    """Shows the number that its env shows, and records in each way that Genesis' camera ever had.

    These are render() alone; until 1.2 start_recording(), frames gathered by render(), and
    stop_recording(path, fps); since 1.3 start_recording(path, fps), frames taken as the scene
    steps, and stop_recording(). It offers all three at once: whether start_recording() is given a
    path tells the last two apart.

    Attributes:
        renders: How many pictures were taken.
        videos: How many videos its own recorder made: of these, the quality is not the class's.
        make_frame: What becomes of a picture, an array, before render() returns it.
        fails_at: Taking a picture raises RuntimeError while one of these steps is shown.
        temporary: The folder that its own recordings need, of all such cameras.
    """

    temporary: str | None = None

    def __init__(self, env: FakeEnv, size: tuple[int, int], separate: bool) -> None:
        width, height = size
        self.renders = 0
        self.videos = 0
        self.make_frame: Callable[[np.ndarray], Any] = lambda picture: picture
        self.fails_at: set[int] = set()
        self._env = env
        self._size = size
        self._separate = separate
        self._background = np.empty((height, width, 3), np.uint8)
        self._background[..., 0] = np.linspace(40, 200, width)
        self._background[..., 1] = np.linspace(200, 40, height)[:, None]
        self._background[..., 2] = 90
        self._recorded_imgs: list[Any] = []
        self._running = False
        self._path = ""
        self._files: list[BinaryIO] = []
        self._part_written: list[BinaryIO] = []

    def render(self, rgb: bool = True, **kinds: bool) -> tuple[Any, None, None, None]:
        """Takes a picture: what Genesis' camera returns for rgb."""
        frame = self._take()
        if self._running and not self._path:
            self._recorded_imgs.append(np.array(as_array(frame)))
        return frame, None, None, None

    def start_recording(
        self, save_to_filename: str | None = None, fps: float | None = None
    ) -> None:
        """Until 1.2 without arguments, since 1.3 with; without, it also goes on after a pause."""
        if save_to_filename is not None:
            if self._path:
                raise RuntimeError("Recording already started.")
            if fps is not None and fps <= 0:
                raise ValueError("Framerate of a recording must be positive.")
            self._path = save_to_filename
            self._stride = max(1, round(1 / ((fps or 60) * self._env.dt)))
            self._next = self._env.steps + self._stride
            self._open_files()
            atexit.register(self.stop_recording)  # Genesis' own exit handler completes it
        self._running = True

    def pause_recording(self) -> None:
        """Takes no more frames, and keeps those taken."""
        if not self._running:
            raise RuntimeError("Recording not started.")
        self._running = False

    def stop_recording(self, save_to_filename: str | None = None, fps: float = 60) -> None:
        """Writes the video; the arguments are those of until 1.2."""
        if not (self._path or self._running and save_to_filename):
            raise RuntimeError("Recording not started.")
        atexit.unregister(self.stop_recording)
        path, rate = self._path, Fraction(fps)
        if path:
            rate = Fraction(1 / (self._stride * self._env.dt))
        else:
            path = save_to_filename
            self._open_files()
            for frame in self._recorded_imgs:
                self._keep(frame)
            self._recorded_imgs.clear()
        self._path, self._running = "", False
        self.videos += 1
        unfinished, self._part_written = self._part_written, []
        with tempfile.TemporaryDirectory(dir=self.temporary) as folder:
            for i, (name, raw) in enumerate(zip(self._paths(path), self._files)):
                if unfinished:
                    name = os.path.join(folder, f"video{os.path.splitext(name)[1]}")
                with raw:
                    rate = rate.limit_denominator(10000)
                    encode(name, rate, self._size, raw, old=bool(save_to_filename))
                if unfinished:
                    with unfinished[i] as video:
                        video.write(Path(name).read_bytes())

    def on_step(self) -> None:
        """The scene has stepped."""
        if self._running and self._path and self._env.steps >= self._next:
            self._next += self._stride
            self._keep(self._take())
            # As with Genesis: until it is stopped, a file that no player takes.
            paths = self._paths(self._path)
            self._part_written = self._part_written or [open(p, "wb") for p in paths]  # noqa: SIM115

    def _paths(self, path: str) -> list[str]:
        if not self._separate:
            return [path]
        stem, suffix = os.path.splitext(path)
        return [f"{stem}_{i}{suffix}" for i in range(self._env.num_envs)]

    def _open_files(self) -> None:
        self._files = [
            tempfile.TemporaryFile(dir=self.temporary)  # noqa: SIM115
            for _ in self._paths("")
        ]

    def _keep(self, frame: Any) -> None:
        for raw, picture in zip(self._files, frame if self._separate else [frame]):
            raw.write(as_array(picture)[..., :3].tobytes())

    def _take(self) -> Any:
        if self._env.shown in self.fails_at:
            raise RuntimeError("camera")
        self.renders += 1
        pictures = np.stack([self._background] * len(self._paths("")))
        for i, picture in enumerate(pictures):
            draw_step(picture, self._env.shown + 1000 * i * self._separate)
        return self.make_frame(pictures if self._separate else pictures[0])


class FakeEnv:
    """An env without a simulation: its camera shows the number of the last completed step.

    Args:
        dt: Seconds per step.
        num_envs: How many envs.
        watched: The env whose episodes end at the steps `terminated_at` and `truncated_at`.
        terminated_at: Numbers of steps.
        truncated_at: Numbers of steps.
        others_done_at: Numbers of steps at which the other envs terminate.
        size: Width and height of the picture.
        separate: Whether the camera gives a picture of each env; env i shows 1000 * i more.

    Attributes:
        calls: Names of the methods called, of build, step, reset and close.
        steps: How many steps are completed.
        shown: The number that the camera shows.
        make_flags: What becomes of the two done flags before step() returns them.
    """

    # Named here to stand before the properties of the same names that an --env-base may have.
    dt: float = 0.1
    num_envs: int = 3
    scene: Any = None
    robot: Any = None
    camera: Any = None
    num_actions: int = NUM_ACTIONS
    num_observations: int = 4
    action_space: Any = gymnasium.spaces.Box(-1, 1, (NUM_ACTIONS,))
    observation_space: Any = gymnasium.spaces.Box(-1, 1, (4,))
    extras: Any = None
    can_be_wrapped: bool = True

    def __init__(
        self,
        *,
        dt: float = 0.1,
        num_envs: int = 3,
        watched: int = 0,
        terminated_at: Any = (),
        truncated_at: Any = (),
        others_done_at: Any = (),
        size: tuple[int, int] = (96, 64),
        separate: bool = False,
    ) -> None:
        taken = inspect.signature(super().__init__).parameters
        given = {"num_envs": num_envs, "dt": dt}
        super().__init__(**{name: value for name, value in given.items() if name in taken})
        self.dt = dt
        self.num_envs = num_envs
        self.watched = watched
        self.terminated_at = terminated_at
        self.truncated_at = truncated_at
        self.others_done_at = others_done_at
        self.make_flags: Callable[[Any, Any], Iterable[Any]] = lambda *flags: flags
        self.extras = {"episode": {}}
        self.calls: list[str] = []
        self.steps = 0
        self.shown = NOT_STEPPED
        self.make_scene(size, separate)

    def make_scene(self, size: tuple[int, int], separate: bool) -> None:
        """Sets scene, robot and camera."""
        self.scene = SimpleNamespace()
        self.robot = SimpleNamespace()
        self.camera = self._camera = FakeCamera(self, size, separate)

    def show(self, number: int) -> None:
        """Brings the scene to the state after step `number`."""
        self.shown = number
        self._camera.on_step()

    @property
    def unwrapped(self) -> FakeEnv:
        """This env."""
        return self

    def build(self) -> None:
        """Only counts."""
        self.calls.append("build")

    def step(self, actions: torch.Tensor) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Shows the next number. The episodes end as the constructor was told."""
        self.calls.append("step")
        number, self.steps = self.steps, self.steps + 1
        self.show(number)
        terminated = torch.full((self.num_envs,), number in self.others_done_at)
        terminated[self.watched] = number in self.terminated_at
        truncated = torch.zeros(self.num_envs, dtype=torch.bool)
        truncated[self.watched] = number in self.truncated_at
        flags = self.make_flags(terminated, truncated)
        return self.get_observations(), torch.zeros(self.num_envs), *flags, self.extras

    def reset(self, env_ids: Any = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Only counts."""
        self.calls.append("reset")
        return self.get_observations(), self.extras

    def get_observations(self) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(self.num_envs, self.num_observations)

    def close(self) -> None:
        """Only counts."""
        self.calls.append("close")


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


def load(target: str, option: str = "") -> type:
    """The class that "package.module:Class" names."""
    name, _, attribute = target.partition(":")
    if not (name and attribute):
        raise pytest.UsageError(f"{option} {target} names no class: write package.module:Class")
    try:
        found = getattr(importlib.import_module(name), attribute)
    except Exception as error:  # noqa: BLE001 a module may raise anything
        cause = f"{type(error).__name__}: {first_line(error)}{place_of(error)}"
        raise pytest.UsageError(f"{option} {target} cannot be imported: {cause}") from None
    if not isinstance(found, type):
        raise pytest.UsageError(f"{option} {target} is no class")
    return found


def place_of(error: Exception) -> str:
    """The line of the user's code that an import failed at."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" (line {error.lineno} of {error.filename})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    return f" (line {own[-1].lineno} of {own[-1].filename})" if own else ""


def check_end(result: Any, code: int = 0) -> None:
    """That the process ended so; what it printed last as its error says why it did not."""
    printed = (result.stderr.strip() or result.stdout.strip()).splitlines()[-60:]
    errors = [t for t in printed if re.match(r"[\w.]*(Error|Interrupt|Exception|Warning)(:|$)", t)]
    last = (errors or printed or ["it printed nothing"])[-1]
    words = f"its process ended with {result.returncode}, and not {code}: {last}"
    assert result.returncode == code, "\n".join([words, *printed])


def first_line(text: Any) -> str:
    """The first line of a message, shortened."""
    line = (str(text).strip().splitlines() or [""])[0]
    return line if len(line) <= 160 else line[:157] + "..."


def env_class(cls: type, base: type | None) -> type:
    """`cls`, made a subclass of the --env-base as well."""
    if not base:
        return cls
    if (
        "genesis" in sys.modules
    ):  # bases that import it ask for its device when they are constructed
        start_genesis()
    return type(cls.__name__, (cls, base), {})


@functools.cache
def start_genesis() -> Any:
    """Imports and initialises Genesis, unless that is done."""
    import genesis as gs

    if not gs._initialized:
        gs.init(backend=gs.cpu, logging_level="error")
    # Its exit handler waits for ever for threads that a forked child does not have.
    os.register_at_fork(after_in_child=functools.partial(atexit.unregister, gs.destroy))
    return gs


def vis_options(**options: Any) -> Any:
    """Genesis' VisOptions; before 1.4, its split_envs had another name."""
    options_class = start_genesis().options.VisOptions
    if "split_envs" in options and "split_envs" not in options_class.model_fields:
        options["env_separate_rigid"] = options.pop("split_envs")
    return options_class(**options)


ENV_KEYWORDS = set(inspect.signature(FakeEnv.__init__).parameters) - {"self"}


class World:
    """An env to wrap, a folder for its videos, and a reader for what they show.

    Attributes:
        kind: "fake" or "genesis".
        out_dir: The folder for the videos.
    """

    def __init__(
        self,
        kind: str,
        out_dir: Path,
        implementation: type,
        env_class: type,
        reader: Callable[[np.ndarray], int] = read_step,
    ) -> None:
        self.kind = kind
        self.out_dir = out_dir
        self._implementation = implementation
        self._env_class = env_class
        self._reader = reader
        self._wrapped: list[tuple[Any, Any]] = []

    def env(self, **keywords: Any) -> Any:
        """A new env; `keywords` are those of `FakeEnv`."""
        return self._env_class(**keywords)

    def wrap(
        self,
        env: Any = None,
        *,
        build: bool = True,
        implementation: type | None = None,
        **keywords: Any,
    ) -> Any:
        """Wraps an env, a new one if none is given, and builds it.

        Args:
            env: What is wrapped.
            build: Whether `build()` is called.
            implementation: Another class than the one under test.
            **keywords: Those of `FakeEnv` go to the new env, the others to the wrapper. It gets
                out_dir, logging=False, video_length_sec=0.5, a frame a step and a step trigger for
                step 0 if not told else.
        """
        if env is None:
            names = ENV_KEYWORDS.intersection(keywords)
            env = self.env(**{name: keywords.pop(name) for name in names})
        keywords.setdefault("out_dir", str(self.out_dir))
        keywords.setdefault("video_length_sec", 0.5)
        keywords.setdefault("logging", False)
        if "episode_trigger" not in keywords:
            keywords.setdefault("step_trigger", lambda n: n == 0)
        if "fps" not in keywords:
            keywords["fps"] = round(1 / env.dt)
        implementation = implementation or self._implementation
        parameters = inspect.signature(implementation).parameters
        takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
        for name in [] if takes_all else [n for n in keywords if n not in parameters]:
            # Who lacks one of these never does what False switches off, and fails API-1 alone for it.
            if name not in ("record_final_episode", "logging") or keywords[name] is not False:
                pytest.skip(f"it takes no {name}, which is API-1's")
            del keywords[name]
        wrapper = implementation(env, **keywords)
        self._wrapped.append((wrapper, torch.zeros(env.num_envs, NUM_ACTIONS)))
        if build:
            wrapper.build()
        return wrapper

    def run(self, wrapper: Any, steps: int) -> list[Any]:
        """Steps `wrapper` so often, and returns what it returned."""
        (actions,) = [actions for wrapped, actions in self._wrapped if wrapped is wrapper]
        return [wrapper.step(actions) for _ in range(steps)]

    def forget(self) -> None:
        """Holds no wrapper any more."""
        self._wrapped.clear()

    def files(self) -> list[str]:
        """The names of all files in the folder, hidden ones too."""
        return sorted(os.listdir(self.out_dir)) if self.out_dir.is_dir() else []

    def video(self, name: str) -> Video:
        """Decodes one video."""
        return read_video(self.out_dir / name, self._reader)

    def videos(self) -> dict[str, list[int]]:
        """Name: the steps it shows. All files in the folder with a video's name must be videos."""
        return {n: self.video(n).steps for n in self.files() if is_video_name(n)}

    def close(self) -> None:
        """Closes all wrappers. Tests took folders and encoders away that some would miss."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for wrapper, _ in reversed(self._wrapped):
                with contextlib.suppress(Exception):
                    wrapper.close()


def run_python(*arguments: str, timeout: float = 600, **options: Any) -> Any:
    """Runs this Python on a file or, if the first argument does not end in .py, on code.

    Args:
        *arguments: The file or code, and what it is given.
        timeout: Seconds after which it is killed and the test fails.
        **options: start_new_session goes to subprocess, the others are environment variables.

    Returns:
        An object with returncode, stdout and stderr.
    """
    session = options.pop("start_new_session", False)
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, *([] if arguments[0].endswith(".py") else ["-c"]), *arguments]
    # Files and no pipes, which a forked child that lives on would keep open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": path, **options},
                timeout=timeout,
                start_new_session=session,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the process had not ended after {timeout} s") from None
        out.seek(0)
        err.seek(0)
        return SimpleNamespace(returncode=code, stdout=out.read(), stderr=err.read())


def torchrun(ranks: int, *arguments: str) -> str:
    """Code that runs a file, and what it is given, in so many processes of torchrun."""
    words = ["--standalone", "--nproc-per-node", str(ranks), *arguments]
    return f"from torch.distributed.run import main; main({words!r})"


def drift(world: World) -> tuple[int, int]:
    """What `Shown.drift` is for the class under test, by a recording of five frames."""
    try:
        wrapper = world.wrap(step_trigger=lambda n: n == 3, record_final_episode=False)
        world.run(wrapper, 15)
        (steps,) = world.videos().values()
        found = (steps[0] - 3, steps[-1] - 7)
    except Exception:  # noqa: BLE001 then that is what the tests find
        return (0, 0)
    finally:
        world.close()
    # Further off, it is not the recording that was asked for.
    return (
        found
        if steps == list(range(steps[0], steps[-1] + 1)) and max(map(abs, found)) <= 2
        else (0, 0)
    )


def saves_background(world: World) -> bool:
    """Whether the class under test saves a background recording when it is closed (REC-4)."""
    with contextlib.suppress(Exception):  # then that is what the tests find
        wrapper = world.wrap(step_trigger=never, record_final_episode=False)
        wrapper.start_recording("background")
        world.run(wrapper, 3)
        wrapper.close()
    return world.files() != []


def first_only(n: int) -> bool:
    return n == 0


def never(number: int) -> bool:
    return False


def only_at(*steps: int) -> dict[str, Any]:
    """Arguments of a wrapper that records from these steps on, and no final episode."""
    return {"step_trigger": lambda n: n in steps, "record_final_episode": False}


@contextlib.contextmanager
def warned(*words: str, count: int = 1) -> Iterator[list[str]]:
    """Expects so many warnings, of any category. Each word, a pattern, is in all of them.

    Yields the list that they are put into.
    """
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    # Python's own, of the suite's code and its libraries.
    theirs = (ResourceWarning, DeprecationWarning, PendingDeprecationWarning)
    said += [str(w.message) for w in caught if not issubclass(w.category, theirs)]
    assert len(said) == count, f"{count} warning(s) were wanted, and there were {len(said)}: {said}"
    for text in said:
        missing = [word for word in words if not re.search(word, text, re.IGNORECASE)]
        assert not missing, f"the warning lacks {' and '.join(missing)}: {text!r}"


def psnr(frame: np.ndarray, picture: np.ndarray) -> float:
    """Decibels; 30 and more look alike."""
    assert frame.shape == picture.shape
    error = np.mean((frame.astype(float) - picture) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def moving_clip(count: int) -> list[np.ndarray]:
    """A box and thin coloured lines that move over a dark floor with a pattern."""
    y, x = np.mgrid[:240, :320]
    floor = 40 + 10 * ((x // 20 + y // 20) % 2) + np.random.default_rng(0).normal(0, 2, x.shape)
    pictures = []
    for t in range(count):
        picture = np.repeat(floor[..., None], 3, axis=2)
        left, top = 20 + 5 * t, 90 + round(30 * math.sin(0.3 * t))
        box = (x >= left) & (x < left + 60) & (y >= top) & (y < top + 40)
        picture[box] = np.stack([200 - x, 120 + y % 8, 60 + x % 16], axis=2)[box]
        for i, colour in enumerate([(255, 40, 40), (40, 255, 40), (60, 90, 255)]):
            angle = 0.15 * t + 2.1 * i
            across = (x - left - 30) * math.sin(angle) - (y - top + 25) * math.cos(angle)
            along = (x - left - 30) * math.cos(angle) + (y - top + 25) * math.sin(angle)
            picture[(abs(across) < 1.2) & (along > 0) & (along < 55)] = colour
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    return pictures


@contextlib.contextmanager
def saved_or_warned(fake: Any, name: str, steps: list[int]) -> Iterator[None]:
    """Where the folder went away, a class may make it anew and lose nothing, or warn."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    if name in fake.files():
        assert fake.video(name).steps == steps
    elif not caught:
        raise AssertionError(f"{name} is not there, and no warning says so")
    with warned(*([] if name in fake.files() else [name, "No such file"]), count=len(caught)):
        for warning in caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, 0)
    assert len(caught) == (name not in fake.files())


def sharpness(frames: list[np.ndarray], pictures: list[np.ndarray]) -> tuple[float, float]:
    """PSNR of luma where something moves, and the mean error of chroma where something was.

    By BT.709 or BT.601, whichever a class encodes by: what the other takes for luma has some of the
    chroma in it, of which yuv420p keeps a quarter.
    """
    return max(sharpness_by(matrix, frames, pictures) for matrix in (BT709, BT601))


BT709 = [[0.2126, 0.7152, 0.0722], [-0.1146, -0.3854, 0.5], [0.5, -0.4542, -0.0458]]
BT601 = [[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]]


def sharpness_by(
    matrix: list[list[float]], frames: list[np.ndarray], pictures: list[np.ndarray]
) -> tuple[float, float]:
    weights = np.array(matrix)
    seen = np.array(frames, float) @ weights.T
    wanted = np.array(pictures, float) @ weights.T
    moves = abs(np.diff(wanted, axis=0)).max(axis=3) > 8
    moves = np.array([widened(m) for m in moves])
    luma = ((seen - wanted)[1:, ..., 0][moves] ** 2).mean()
    was = np.array([moves[max(0, i - 5) : i].any(axis=0) & ~moves[i] for i in range(5, len(moves))])
    trail = abs((seen - wanted)[6:, ..., 1:][was]).mean()
    return 10 * math.log10(255**2 / luma), float(trail)


def widened(mask: np.ndarray) -> np.ndarray:
    """The mask and what lies within eight pixels of it, which an encoder spoils as well."""
    for axis in (0, 1):
        mask = np.logical_or.reduce([np.roll(mask, shift, axis) for shift in range(-8, 9)])
    return mask


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds ffmpeg in /proc"
)


def encoders(parent: int | None = None) -> set[int]:
    """The ffmpeg processes that a process, or this one, has started and not yet waited for."""
    found, parent = set(), parent or os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        if "ffmpeg" in name and int(fields.split()[1]) == parent:
            found.add(int(stat.parent.name))
    return found


@contextlib.contextmanager
def stopped_encoder(seconds: float) -> Iterator[None]:
    """The encoder of this process stands still, for so many seconds."""
    found = encoders()
    if not found:
        pytest.skip("its encoder is no process that could be stopped")
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, lambda: [os.kill(pid, signal.SIGCONT) for pid in found])
    timer.start()
    yield
    timer.join()


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no thread start, as Python from 3.12 on while it exits."""

    def refuse(*arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)


# Where the suite runs in the background, Ctrl-C is ignored and Python sets up no handler for it.
# leave() ends a forked child as sys.exit() does, less the destructors of C++ libraries, which some
# that an implementation imports do not survive there. A child that hangs, in them or in what is
# judged, would outlive the suite: the alarm ends it.
SCRIPT = """
import atexit, os, signal, sys, time
from pathlib import Path
import conftest
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, implementation, base, first, last = sys.argv[1:]
conftest.Shown.drift = int(first), int(last)
base = conftest.env_class(conftest.FakeEnv, base and conftest.load(base))
world = conftest.World("fake", Path(folder), conftest.load(implementation), base)
never, first_only = (lambda n: False), (lambda n: n == 0)
leave = lambda: (atexit._run_exitfuncs(), os._exit(0))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: signal.alarm(100))
"""


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Suite:
    """What this run judges, and by which clauses."""
    return pytestconfig.stash[SUITE]


@pytest.fixture(scope="session")
def implementation(suite: Suite) -> type:
    """The class under test."""
    return suite.implementation


@pytest.fixture(scope="session")
def module(implementation: type) -> Any:
    """The module of the class under test."""
    return sys.modules[implementation.__module__]


@pytest.fixture(scope="session")
def leave_to(suite: Suite) -> Callable[[str], None]:
    """Skips what another implementation fails for another clause, which is to be named.

    Of the module here nothing is skipped, or the test would stay green when that breaks.
    """
    return pytest.fail if suite.implementation_name == DEFAULT_IMPLEMENTATION else pytest.skip


@pytest.fixture(scope="session")
def start_recording(
    suite: Suite, leave_to: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Any, str], None]:
    """Starts a recording of that type; of a class that saves no other an active one alone."""
    env, folder = env_class(FakeEnv, suite.env_base), tmp_path_factory.mktemp("background")
    saves = saves_background(World("fake", folder, suite.implementation, env))

    def start(wrapper: Any, type: str) -> None:
        if type == "active":
            wrapper.start_recording()
        elif saves:
            wrapper.start_recording(type)
        else:
            leave_to("it saves no background recording: API-2 or REC-4")

    return start


@pytest.fixture(scope="session")
def spec_version(suite: Suite) -> str:
    """The version of spec/README.md."""
    return suite.spec_version


@pytest.fixture(scope="session", name="read_video")
def read_video_fixture() -> Callable[..., Video]:
    """`read_video`."""
    return read_video


@pytest.fixture
def python() -> Callable[..., Any]:
    """`run_python`."""
    return run_python


@pytest.fixture(scope="session", autouse=True)
def measured_drift(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """`Shown.drift`, for the tests to come."""
    env, folder = env_class(FakeEnv, suite.env_base), tmp_path_factory.mktemp("drift")
    # A class that hangs, or takes no step_trigger: the tests tell.
    with contextlib.suppress(pytest.fail.Exception, pytest.skip.Exception):
        Shown.drift = drift(World("fake", folder, suite.implementation, env))
    return Shown.drift


@pytest.fixture
def script(suite: Suite, tmp_path: Path, measured_drift: tuple[int, int]) -> Callable[..., Any]:
    """Runs code in a process that has a fake `world`; the result's `world` reads the videos."""

    def run(code: str, timeout: float = 120, ranks: int = 0, **options: Any) -> Any:
        folder = tmp_path / "videos"
        given = (suite.implementation_name, suite.env_base_name, *map(str, measured_drift))
        code = SCRIPT + textwrap.dedent(code)
        if ranks:
            (tmp_path / "rank.py").write_text(code)
            code = torchrun(ranks, str(tmp_path / "rank.py"), str(folder), *given)
        result = run_python(code, str(folder), *given, timeout=timeout, **options)
        result.world = World("fake", folder, suite.implementation, FakeEnv)
        return result

    return run


class Job:
    """A process that runs code as `script` does, while its test looks on and sends signals.

    Attributes:
        world: Reads its videos.
        process: Its Python.
    """

    def __init__(
        self, path: Path, arguments: tuple[str, ...], world: World, **options: str
    ) -> None:
        self.world = world
        self._output = path.with_suffix(".out")
        places = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        command = [sys.executable, "-u", str(path), *arguments]
        env = {**os.environ, "PYTHONPATH": places, **options}
        with open(self._output, "ab") as out, open(os.devnull, "rb") as nothing:
            self.process = subprocess.Popen(
                command, stdin=nothing, stdout=out, stderr=out, env=env, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has said so far, to both of its outputs."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, words: str) -> None:
        """Waits until it says this."""
        wait_until(lambda: words in self.output or self.process.poll() is not None)
        assert words in self.output, f"it ended without {words!r}: {self.output[-2000:]}"

    def processes(self) -> list[int]:
        """All of its processes, Python first."""
        found = [self.process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):  # which has just ended
                    found += map(int, children.read_text().split())
        return found

    def send(self, number: int, *pids: int) -> None:
        """Sends a signal to these, or else to all, its Python last."""
        for pid in pids or reversed(self.processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self) -> int:
        """Waits for its end, and returns the exit status."""
        wait_until(lambda: self.process.poll() is not None)
        return self.process.returncode

    def stop(self) -> None:
        """Leaves none of its processes."""
        self.send(signal.SIGKILL)
        self.process.wait()


def wait_until(
    condition: Callable[[], Any], seconds: float = 100, what: str = "what was waited for"
) -> None:
    """Looks again and again. Raises AssertionError if the time is over."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} has not come in {seconds:g} s"
        time.sleep(0.005)


@pytest.fixture
def start(
    suite: Suite, tmp_path: Path, measured_drift: tuple[int, int]
) -> Iterator[Callable[..., Job]]:
    """Starts code, a file of its own, as a `Job`; options are environment variables."""
    jobs = []

    def run(code: str, **options: str) -> Job:
        path, folder = tmp_path / f"job{len(jobs)}.py", tmp_path / "videos"
        path.write_text(SCRIPT + textwrap.dedent(code), encoding="utf-8")
        given = (suite.implementation_name, suite.env_base_name, *map(str, measured_drift))
        world = World("fake", folder, suite.implementation, FakeEnv)
        jobs.append(Job(path, (str(folder), *given), world, **options))
        return jobs[-1]

    yield run
    for job in jobs:
        job.stop()


@pytest.fixture
def fake(suite: Suite, tmp_path: Path) -> Iterator[World]:
    """A world without a simulation."""
    env = env_class(FakeEnv, suite.env_base)
    world = World("fake", tmp_path / "videos", suite.implementation, env)
    yield world
    world.close()


@pytest.fixture(scope="session")
def real_scene(suite: Suite) -> Any:
    """The class of envs on the one real scene of this run, and the reader for what it shows."""
    try:
        board(False, 0.1)
    except Exception as error:  # noqa: BLE001 Genesis raises many kinds for want of OpenGL
        suite.no_scene = f"{type(error).__name__}: {first_line(error)}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no real scene: {suite.no_scene}")
    return env_class(GenesisEnv, suite.env_base), Board.read


@pytest.fixture
def genesis(suite: Suite, real_scene: Any, tmp_path: Path) -> Iterator[World]:
    """A world with the real, headless Genesis scene."""
    world = World("genesis", tmp_path / "videos", suite.implementation, *real_scene)
    yield world
    world.close()


def needs_genesis(release: str, why: str) -> None:
    """Skips the test that runs, if Genesis is older."""

    def numbers(version: str) -> list[int]:
        return [int(number) for number in version.split(".")[:3]]

    if numbers(installed("genesis-world")) < numbers(release):
        pytest.skip(f"before Genesis {release}, {why}")


@pytest.fixture
def reproducible(genesis: World) -> World:
    """The world with the real scene, where its pictures can be made again from what was stored."""
    needs_genesis("1.0.0", "pictures cannot be reproduced later")
    return genesis


@pytest.fixture
def new_stage(suite: Suite, genesis: World) -> type:
    """The class of envs on real scenes of many kinds, as the implementation wants an env to be."""
    from spec.stages import Stage

    return env_class(Stage, suite.env_base)


@pytest.fixture(params=["fake", "genesis"])
def world(request: pytest.FixtureRequest) -> World:
    """The one world and the other."""
    return request.getfixturevalue(request.param)


@dataclass
class Clause:
    """A clause without cases or a case of one, and the results of the tests that name it.

    `parent` is the id of its clause, which is its own id if it is not a case. `failures` are pairs of an error's gist and its excuse: why it is expected, SHOULD, or nothing.
    """

    id: str
    level: str
    source: str
    reference: bool
    parent: str
    tests: int = 0
    ran: int = 0
    skips: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


CLAUSE = re.compile(
    r"^- \*\*([A-Z]+-\d+)\*\* \((MUST|SHOULD), (documented|resolved)(, reference)?\)"
)
# A case gives its level or source only where it is not its clause's.
CASE = re.compile(
    r"^  - \*\*([A-Z]+-\d+)([a-z])\*\*(?: \((MUST|SHOULD)?(?:, )?(documented|resolved)?\))? "
)
ANY_ID = re.compile(r"^ *- \*\*[A-Z]+-\d")


def read_clauses(text: str) -> tuple[dict[str, Clause], dict[str, list[str]]]:
    """Parse the specification.

    Returns:
        What tests name: cases, and clauses without cases, by id. And the ids of the cases of each
        clause, or its own id if it has none.
    """
    clauses: dict[str, Clause] = {}
    cases: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := CLAUSE.match(line):
            clause = Clause(found[1], found[2], found[3], bool(found[4]), found[1])
            if clause.id in cases:
                raise pytest.UsageError(f"spec/README.md has {clause.id} twice")
            clauses[clause.id], cases[clause.id] = clause, [clause.id]
        elif found := CASE.match(line):
            parent, id = found[1], found[1] + found[2]
            if not cases or parent != list(cases)[-1] or id in clauses:
                raise pytest.UsageError(f"spec/README.md: {id} is out of place, or there twice")
            if cases[parent] == [parent]:
                first, cases[parent] = clauses.pop(parent), []
            level, source = found[3] or first.level, found[4] or first.source
            clauses[id] = Clause(id, level, source, first.reference, parent)
            cases[parent].append(id)
        elif ANY_ID.match(line):
            raise pytest.UsageError(f"spec/README.md: malformed clause: {line.strip()}")
    return clauses, cases


SUITE = pytest.StashKey["Suite"]()
SHOULD = "SHOULD"
BENCHMARK = "--benchmark-"  # is in pytest-benchmark's words for what it skips


class Suite:
    """Judges an implementation by the clauses: a pytest plugin."""

    def __init__(self, config: pytest.Config) -> None:
        self.implementation_name = config.getoption("--implementation")
        self.env_base_name = config.getoption("--env-base")
        self.implementation = load(self.implementation_name, "--implementation")
        self.env_base = load(self.env_base_name, "--env-base") if self.env_base_name else None
        self.report_file = config.getoption("--conformance-report")
        if self.report_file and Path(self.report_file).suffix not in (".json", ".md"):
            raise pytest.UsageError(f"{self.report_file} ends in neither .json nor .md")
        spec = (ROOT / "spec" / "README.md").read_text(encoding="utf-8")
        self.spec_version = re.search(r"^Version: (\S+)$", spec, re.MULTILINE)[1]
        self.clauses, self.cases = read_clauses(spec)
        self.expected = self._read_expected(config.getoption("--expected-failures"))
        self.selected = {i for i in config.getoption("--clauses").split(",") if i}
        unknown = self.selected - {name for c in self.clauses.values() for name in names_of(c)}
        if unknown:
            raise pytest.UsageError(f"--clauses: there is no clause {', '.join(sorted(unknown))}")
        chosen = self.selected or any(config.getoption(o, "") for o in ("--lf", "-k", "-m"))
        self.partial = bool(chosen) or any("::" in argument for argument in config.args)
        self.no_scene = ""

    def _read_expected(self, path: str | None) -> dict[str, str]:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
        except OSError as error:
            raise pytest.UsageError(f"--expected-failures: {error}") from None
        entries = [line.split(None, 1) for line in lines if line.strip() and line.strip()[0] != "#"]
        for name, *reason in entries:
            if name not in self.clauses and name not in self.cases:
                raise pytest.UsageError(f"--expected-failures {path}: there is no clause {name}")
            if not reason:
                raise pytest.UsageError(f"--expected-failures {path}: {name} has no reason")
        return {name: reason.strip() for name, reason in entries}

    def _excuse(self, clause: Clause) -> str:
        return self.expected.get(clause.id) or self.expected.get(clause.parent, "")

    def _named(self, item: pytest.Item) -> list[Clause]:
        ids = [i for marker in item.iter_markers("clause") for i in marker.args]
        return [self.clauses[i] for i in ids if i in self.clauses]

    def _has_results(self) -> bool:
        return any(c.ran or c.skips or c.failures for c in self.clauses.values())

    def binds(self, clause_id: str) -> bool:
        """Whether the implementation is judged by that clause."""
        return self._binds(self.clauses[clause_id])

    def _binds(self, clause: Clause) -> bool:
        return not clause.reference or self.implementation_name == DEFAULT_IMPLEMENTATION

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Before -k and -m take effect: matches tests and clauses."""
        faults = []
        for item in items:
            if not item.path.is_relative_to(ROOT):
                continue
            ids = [i for marker in item.iter_markers("clause") for i in marker.args]
            for id in ids:
                if id in self.cases and id not in self.clauses:
                    faults.append(f"{item.nodeid} names {id}, which has cases: name one of them")
                elif id not in self.clauses:
                    faults.append(f"{item.nodeid} names {id}, no clause")
            if not ids and not any(map(item.get_closest_marker, ("of_suite", "benchmark_goal"))):
                faults.append(f"{item.nodeid} names no clause")
            for clause in self._named(item):  # for -k
                item.extra_keyword_matches.update(names_of(clause))
            if is_quick(item):
                item.add_marker("quick")
            for clause in self._named(item):
                clause.tests += 1
            if ids and not any(map(self._binds, self._named(item))):
                item.add_marker(pytest.mark.skip(reason="not applicable to this implementation"))
            if self.implementation_name != DEFAULT_IMPLEMENTATION:
                if not ids:
                    item.add_marker(pytest.mark.skip(reason="judges the suite"))
                if item.get_closest_marker("of_module"):
                    item.add_marker(pytest.mark.skip(reason="judges this project's module alone"))
        # The conformance tests first, and then those that take their time.
        items.sort(key=lambda item: item.path.parent == ROOT / "spec")
        files = {*ROOT.glob("test_*.py"), *(ROOT / "spec").glob("test_*.py")}
        self.partial |= not files <= {item.path for item in items}
        if not faults and not self.partial:
            without = [c.id for c in self.clauses.values() if c.level == "MUST" and not c.tests]
            faults += [f"MUST case {i} has no test" for i in without]
        if faults:
            raise pytest.UsageError("\n".join(faults))

        self._select(items)

    def _select(self, items: list[pytest.Item]) -> None:
        """By --clauses."""
        if not self.selected:
            return
        wanted = {c.id for c in self.clauses.values() if names_of(c) & self.selected}
        named = [item for item in items if wanted & {c.id for c in self._named(item)}]
        others = [item for item in items if item not in named]
        items[:] = named
        named and others and others[0].config.hook.pytest_deselected(items=others)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """By -k, -m or --deselect."""
        self.partial = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo
    ) -> Iterator[pytest.TestReport]:
        """Notes the outcome for the test's clauses; excuses expected failures and a SHOULD's."""
        report = yield
        clauses = self._named(item)
        excuse = ""
        if report.failed and report.when == "call":
            excuse = next(filter(None, map(self._excuse, clauses)), "")
            # The module here excuses itself nothing.
            judged = self.implementation_name != DEFAULT_IMPLEMENTATION
            if not excuse and judged and all(c.level == SHOULD for c in clauses):
                excuse = SHOULD
        for clause in clauses:
            if report.failed and report.when != "setup":  # or as its wrappers are closed
                clause.failures.append((f"{sentence(item)}: {gist(call.excinfo)}", excuse))
            elif report.failed:  # a fixture's fault, and not the implementation's
                clause.skips.append(gist(call.excinfo))
            elif report.skipped and isinstance(report.longrepr, tuple):
                clause.skips.append(first_line(report.longrepr[2]).removeprefix("Skipped: "))
            clause.ran += report.when == "call" and not report.skipped
        if excuse:
            report.outcome = "skipped"
            report.wasxfail = excuse
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails the run for unexpected passes, and writes the report."""
        self.partial |= bool(session.shouldfail or session.shouldstop)
        if self.unexpected_passes() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.report_file and self._has_results():
            self._write_report(Path(self.report_file))

    def unexpected_passes(self) -> list[str]:
        """The expected failures that did not come, which only a whole run can tell."""
        passed = [i for i in self.expected if self.judge_whole(i)[0] == "pass"]
        return [] if self.partial else passed

    def judge_whole(self, id: str) -> tuple[str, str]:
        """Judge a clause by its cases, or one case: the worst result, and how many cases have it."""
        results = {i: self.judge(self.clauses[i]) for i in self.cases.get(id, [id])}
        if [*results] == [id]:
            return results[id]
        for worst in ("fail", "expected", "not run", "not applicable"):
            if found := [i for i, (result, _) in results.items() if result == worst]:
                return worst, f"{len(found)} of {len(results)} cases: {', '.join(found)}"
        return "pass", ""

    def judge(self, clause: Clause) -> tuple[str, str]:
        """The clause's result, and a line that says why it is not "pass"."""
        if not self._binds(clause):
            return "not applicable", "binds the module of this project only"
        if clause.failures:
            unexpected = [words for words, excuse in clause.failures if excuse in ("", SHOULD)]
            return ("fail", unexpected[0]) if unexpected else ("expected", clause.failures[0][1])
        if clause.ran:
            return "pass", ""
        return "not run", clause.skips[0] if clause.skips else ""

    def _left_out(self, clause: Clause) -> bool:
        """Whether the run was one of other clauses: by -k, or with or without the benchmarks."""
        is_benchmark = bool(clause.skips) and all(BENCHMARK in s for s in clause.skips)
        return not clause.ran and not clause.failures and (self.partial or is_benchmark)

    def _met(self, key: Callable[[Clause], str]) -> dict[str, str]:
        """How many of the cases that it is judged by are met, by a key of theirs."""
        results: dict[str, list[bool]] = {}
        for clause in self.clauses.values():
            if self._binds(clause) and not self._left_out(clause):
                results.setdefault(key(clause), []).append(self.judge(clause)[0] == "pass")
        return {name: f"{sum(passed)}/{len(passed)}" for name, passed in results.items()}

    def totals(self) -> str:
        """The summary line."""
        met = self._met(lambda clause: clause.source)
        words = ", ".join(
            f"{source}: {met.get(source, '0/0')} cases" for source in ("documented", "resolved")
        )
        return f"{words} (of the cases that this run selects)" if self.partial else words

    def groups(self) -> dict[str, str]:
        """The same for each group of clauses, such as FILE."""
        return self._met(lambda clause: clause.id.partition("-")[0])

    def about(self) -> dict[str, str]:
        """What is judged, and with what."""
        module = sys.modules[self.implementation.__module__]
        package = sys.modules[module.__name__.partition(".")[0]]
        version = getattr(module, "__version__", None) or getattr(package, "__version__", None)
        if not version:
            names = importlib.metadata.packages_distributions().get(package.__name__)
            version = importlib.metadata.version(names[0]) if names else "without a version"
        return {
            "implementation": self.implementation_name,
            "version": version,
            "file": str(module.__file__),
            "implements": getattr(module, "__spec_version__", "no version of the specification"),
            "specification": self.spec_version,
            "Genesis": installed("genesis-world"),
            "torch": installed("torch"),
            "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
            "Python": ".".join(map(str, sys.version_info[:3])),
        }

    def pytest_report_header(self) -> list[str]:
        """`about`, which does not import Genesis for it."""
        return [", ".join(f"{name}: {value}" for name, value in self.about().items())]

    def _write_report(self, path: Path) -> None:
        rows = []
        for clause in self.clauses.values():
            if clause.id == self.cases[clause.parent][0] != clause.parent:
                result, why = self.judge_whole(clause.parent)
                row = {"id": clause.parent, "level": "", "source": ""}
                rows.append(row | {"result": result, "why": why})
            result, why = self.judge(clause)
            row = {"id": clause.id, "level": clause.level, "source": clause.source}
            rows.append(row | {"result": result, "why": why})
        if path.suffix == ".json":
            report = self.about() | {
                "totals": self.totals(),
                "groups": self.groups(),
                "clauses": rows,
            }
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            return
        lines = [f"- {name}: {value}" for name, value in self.about().items()]
        lines += ["", self.totals(), "", "| group | cases met |", "|---|---|"]
        lines += [f"| {group} | {met} |" for group, met in self.groups().items()]
        lines += ["", "| clause | level | source | result | why |"]
        lines.append("|---|---|---|---|---|")
        for row in rows:
            lines.append("| " + " | ".join(v.replace("|", "\\|") for v in row.values()) + " |")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The clauses that are not passed, and the totals."""
        if not self._has_results():
            return
        terminalreporter.section(f"{self.implementation_name} by the clauses of spec/README.md")
        for clause in self.clauses.values():
            result, why = self.judge(clause)
            if result not in ("pass", "not applicable") and not self._left_out(clause):
                line = f"{clause.id:9} {clause.level:6} {clause.source:10} {result:14} {why}"
                terminalreporter.write_line(line.rstrip(), red=result == "fail")
        others = [c.id for c in self.clauses.values() if not self._binds(c)]
        if others:
            line = (
                f"not applicable, for they bind the module of this project only: {' '.join(others)}"
            )
            terminalreporter.write_line(line)
        for name in self.unexpected_passes():
            line = f"UNEXPECTED PASS: {name}, expected to fail: {self.expected[name]}"
            terminalreporter.write_line(line, red=True, bold=True)
        if self.no_scene:
            line = f"THE REAL SCENE WAS NOT RUN: {self.no_scene}"
            terminalreporter.write_line(line, red=True, bold=True)
        terminalreporter.write_line(self.totals())


def names_of(clause: Clause) -> set[str]:
    """The names that select it: its id, its clause's and its group's."""
    return {clause.id, clause.parent, clause.id.partition("-")[0]}


def sentence(item: pytest.Item) -> str:
    """A test's name, which says what was wanted."""
    name, _, parameters = item.name.removeprefix("test_").partition("[")
    return name.replace("_", " ") + (f" [{parameters}" if parameters else "")


def gist(error: pytest.ExceptionInfo) -> str:
    """What was wanted and what came, in a line: in the test's own words, or by its comparison."""
    text = error.exconly().removeprefix("AssertionError: ").removeprefix("Failed: ")
    if found := re.search(r"Expected regex: (.*)\n\s*(?:Actual message|Input): (.*)", text):
        return first_line(f"a message with {found[1]} was wanted, and it is {found[2]}")
    if text.startswith("DID NOT RAISE"):
        return first_line(
            f"{text.removeprefix('DID NOT RAISE ')} was wanted, and nothing was raised"
        )
    line = first_line(text)
    if re.match(r"assert [^(]", text) and line.count(" == ") == 1:
        came, wanted = line.removeprefix("assert ").split(" == ")
        return f"{wanted} was wanted, and there was {came}"
    return line


# Fixtures of tests that start processes, or take a scene, and so their time.
SLOW = {"genesis", "new_stage", "python", "real_scene", "reproducible", "script", "start", "turns"}


def is_quick(item: pytest.Item) -> bool:
    """Whether the test belongs to `-m quick`: on a fake env and in this process."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    fixtures = {*item.fixturenames} - {*parameters}  # one of which may be named "start", say
    is_slow = SLOW.intersection(fixtures) or parameters.get("world") == "genesis"
    return item.path == ROOT / "test_video_wrapper.py" and not is_slow


class TimeLimit:
    """Ends a test that hangs, so that the others and the report come all the same."""

    def __init__(self, config: pytest.Config) -> None:
        self.seconds = config.getoption("--time-limit")

    @contextlib.contextmanager
    def _limit(self, item: pytest.Item) -> Iterator[None]:
        # The others start processes that are timed, train, or measure.
        seconds = self.seconds if is_quick(item) else 20 * self.seconds

        def end(*_: Any) -> None:
            pytest.fail(f"it has not ended after {seconds:g} s", pytrace=False)

        before = signal.signal(signal.SIGALRM, end)
        # Once more each second, for what catches the first.
        signal.setitimer(signal.ITIMER_REAL, seconds, 1)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        """Its fixtures, one of which makes a recording."""
        with self._limit(item):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """The test itself."""
        with self._limit(item):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        """Where its wrappers are closed."""
        with self._limit(item):
            return (yield)


# A process of its own, since Genesis compiles for minutes and lets no other thread of Python run.
TELLER = """
import sys, threading, time
name, start, told = "", 0.0, 0.0
def read():
    global name, start
    for line in sys.stdin:
        name, start = line.strip(), time.monotonic()
reader = threading.Thread(target=read, daemon=True)
reader.start()
while reader.is_alive():
    reader.join(0.5)
    now = time.monotonic()
    if name and now - max(start, told) >= 10:
        told = now
        print(f"\\n{name} has run for {now - start:.0f} s", flush=True)
"""


class Progress:
    """Says every ten seconds which test is at work, with its fixtures, one of which builds a scene."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", TELLER]
        self._teller = subprocess.Popen(
            command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def _tell(self, name: str) -> None:
        with contextlib.suppress(OSError):  # somebody has killed it
            self._teller.stdin.write(f"{name}\n".encode())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        """A test."""
        self._tell(item.name)
        try:
            return (yield)
        finally:
            self._tell("")

    def pytest_unconfigure(self) -> None:
        """The end of the run."""
        self._teller.stdin.close()
        self._teller.wait()


def installed(distribution: str) -> str:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The suite's own options."""
    # As separate words, pytest takes a FILE that exists for tests before it knows these options.
    group = parser.getgroup("conformance", "conformance (write --option=value as one word)")
    name = "package.module:Class"
    default = os.environ.get("VIDEO_WRAPPER_IMPLEMENTATION", DEFAULT_IMPLEMENTATION)
    text = "the class to judge (default: $VIDEO_WRAPPER_IMPLEMENTATION, or the module here)"
    group.addoption("--implementation", metavar=name, default=default, help=text)
    default = os.environ.get("VIDEO_WRAPPER_ENV_BASE", "")
    text = "a base class that it demands of the env (default: $VIDEO_WRAPPER_ENV_BASE)"
    group.addoption("--env-base", metavar=name, default=default, help=text)
    text = "write the result of each clause to this .json or .md file"
    group.addoption("--conformance-report", metavar="FILE", help=text)
    text = "lines of a clause's id and a reason: its tests may fail, and one of them has to"
    group.addoption("--expected-failures", metavar="FILE", help=text)
    text = "run the tests of these clauses only, such as TIME-4a,TRIG-3,FILE (-k TIME-4 is not as exact)"
    group.addoption("--clauses", metavar="IDS", default="", help=text)
    text = "how long a quick test may take (default: 120); the others, 20 times as long"
    group.addoption("--time-limit", metavar="SECONDS", type=float, default=120, help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Starts the suite."""
    if config.getoption("numprocesses", None) or config.getoption("tx", None):
        words = "the report by clause needs all tests in one process: run them without -n"
        raise pytest.UsageError(words)
    config.addinivalue_line("markers", "clause(*ids): the clauses of spec/README.md that it tests")
    config.addinivalue_line("markers", "benchmark_goal: measures a goal, and judges no clause")
    config.addinivalue_line("markers", "of_suite: judges the suite, and no implementation")
    config.addinivalue_line("markers", "of_module: judges parts of this project's module alone")
    config.addinivalue_line("markers", "quick: on a fake env, without processes; set by itself")
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as where a shell runs it in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "setitimer"):  # not on Windows
        config.pluginmanager.register(TimeLimit(config))
    config.pluginmanager.register(Progress())
    config.stash[SUITE] = Suite(config)
    config.pluginmanager.register(config.stash[SUITE])
    config.pluginmanager.register(Costs(config))


class Costs:
    """Leaves the benchmarks to --benchmark-only, and prints what they measured."""

    def __init__(self, config: pytest.Config) -> None:
        config.option.benchmark_skip = True  # which --benchmark-only overrules
        config.option.benchmark_quiet = True  # its table has times, not ratios
        self.rows: dict[str, list[str]] = {}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A table for each group."""
        for group, rows in self.rows.items():
            terminalreporter.section(group)
            for row in rows:
                terminalreporter.write_line(row)


class Turns:
    """Times what takes turns, so that all see the same machine: the seconds of each, by round."""

    def __init__(self, benchmark: Any, rows: list[str]) -> None:
        self._benchmark = benchmark
        self._rows = rows

    def run(
        self, rounds: int, pause: float = 0, **candidates: Callable[[], Any]
    ) -> dict[str, np.ndarray]:
        """Rounds of all candidates, each after a pause in seconds. The last is the benchmark's own.

        Each round has an order of its own: in a fixed one, what repeats every few calls, and what a
        candidate leaves behind for the next, would count for always the same one.
        """
        target = list(candidates)[-1]
        times: dict[str, list[float]] = {name: [] for name in candidates}
        order = list(candidates)
        shuffle = random.Random(0).shuffle

        def take_turns(names: list[str]) -> None:
            for name in names:
                start = time.perf_counter()
                candidates[name]()
                times[name].append(time.perf_counter() - start)

        def before() -> None:
            time.sleep(pause)
            shuffle(order)
            take_turns(order[: order.index(target)])

        def after() -> None:
            take_turns(order[order.index(target) + 1 :])

        self._benchmark.pedantic(
            candidates[target], setup=before, teardown=after, rounds=rounds, warmup_rounds=1
        )
        times = {name: values[1:] for name, values in times.items()}
        times[target] = self._benchmark.stats.stats.data
        return {name: np.array(values) for name, values in times.items()}

    def report(self, name: str, goal: str = "", **figures: str) -> None:
        """Adds a row to the group's table."""
        self._benchmark.extra_info.update(figures)
        words = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in figures.items())
        self._rows.append(f"{name:44} {words}{goal and f' (goal: {goal})'}")


@pytest.fixture
def turns(benchmark: Any, request: pytest.FixtureRequest) -> Turns:
    """`Turns`, for the group that the benchmark's marker names."""
    (costs,) = [p for p in request.config.pluginmanager.get_plugins() if isinstance(p, Costs)]
    return Turns(benchmark, costs.rows.setdefault(benchmark.group, []))
