"""The fake env, without a simulation: its camera shows the number of the last step."""

from __future__ import annotations

import atexit
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import imageio_ffmpeg
import numpy as np

from spec.suite.video_reader import draw_step

NUM_ACTIONS = 2
NOT_STEPPED = 0xFFFF


# What the fake camera's own recorder encodes with, also where a test gives the class a bad ffmpeg.
CAMERAS_FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def filled(value: Any, *shape: int) -> Any:
    """Return a tensor, or an array in a process that has not imported torch, to start fast."""
    if "torch" in sys.modules:
        return sys.modules["torch"].full(shape, value)
    return np.full(shape, value, np.float32 if isinstance(value, float) else None)


def space(low: float, high: float, size: int) -> Any:
    """Return a gymnasium space, which is imported for it."""
    import gymnasium

    return gymnasium.spaces.Box(low, high, (size,))


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
    action_space: Any = cached_property(lambda _: space(-1, 1, NUM_ACTIONS))
    observation_space: Any = cached_property(lambda _: space(-1, 1, 4))
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

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Shows the next number. The episodes end as the constructor was told."""
        self.calls.append("step")
        number, self.steps = self.steps, self.steps + 1
        self.show(number)
        terminated = filled(number in self.others_done_at, self.num_envs)
        terminated[self.watched] = number in self.terminated_at
        truncated = filled(False, self.num_envs)
        truncated[self.watched] = number in self.truncated_at
        flags = self.make_flags(terminated, truncated)
        return self.get_observations(), filled(0.0, self.num_envs), *flags, self.extras

    def reset(self, env_ids: Any = None) -> tuple[Any, dict[str, Any]]:
        """Only counts."""
        self.calls.append("reset")
        return self.get_observations(), self.extras

    def get_observations(self) -> Any:
        """Zeros."""
        return filled(0.0, self.num_envs, self.num_observations)

    def close(self) -> None:
        """Only counts."""
        self.calls.append("close")


ENV_KEYWORDS = set(inspect.signature(FakeEnv.__init__).parameters) - {"self"}
