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

# The fake camera's own recorder encodes with this ffmpeg, also if a test gives the class a bad ffmpeg.
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


def as_array(frame: Any) -> np.ndarray:
    """Return a frame, a tensor on any device or an array, as an array."""
    return frame.cpu().numpy() if hasattr(frame, "cpu") else np.asarray(frame)


class FakeCamera:
    """Shows the number that its env shows, and records in each way that Genesis' camera ever had.

    These are render() alone; until 1.2 start_recording(), frames gathered by render(), and
    stop_recording(path, fps); since 1.3 start_recording(path, fps), frames taken as the scene
    steps, and stop_recording(). A path for start_recording() tells the last two apart.

    Attributes:
        renders: How many frames were rendered.
        videos: How many videos its own recorder made, whose quality is not the class's.
        make_frame: Changes a frame, an array, before render() returns it.
        temporary: The folder that the recordings of all such cameras need.
    """

    temporary: str | None = None

    def __init__(self, env: FakeEnv, size: tuple[int, int], separate: bool) -> None:
        width, height = size
        self.renders = self.videos = 0
        self.make_frame: Callable[[np.ndarray], Any] = lambda frame: frame
        self._env, self._size, self._separate = env, size, separate
        self._background = np.full((height, width, 3), 90, np.uint8)
        self._background[..., 0] = np.linspace(40, 200, width)
        self._background[..., 1] = np.linspace(200, 40, height)[:, None]
        self._running, self._path = False, ""
        self._recorded_imgs: list[np.ndarray] = []
        self._files: list[BinaryIO] = []

    def render(self, rgb: bool = True, **kinds: bool) -> tuple[Any, None, None, None]:
        """Return what Genesis' camera returns for rgb."""
        frame = self._take()
        if self._running and not self._path:
            self._recorded_imgs.append(np.array(as_array(frame)))
        return frame, None, None, None

    def start_recording(
        self, save_to_filename: str | None = None, fps: float | None = None
    ) -> None:
        """Start as since 1.3 with arguments, or start or go on as until 1.2 without."""
        if save_to_filename is not None:
            if self._path:
                raise RuntimeError("Recording already started.")
            self._path = save_to_filename
            self._stride = max(1, round(1 / ((fps or 60) * self._env.dt)))
            self._next = self._env.steps + self._stride
            self._open_files()
            atexit.register(self.stop_recording)  # Genesis' own exit handler completes it
        self._running = True

    def pause_recording(self) -> None:
        """Take no more frames, and keep those taken."""
        self._running = False

    def stop_recording(self, save_to_filename: str | None = None, fps: float = 60) -> None:
        """Write the video; the arguments are those of until 1.2."""
        if not (self._path or self._running and save_to_filename):
            raise RuntimeError("Recording not started.")
        atexit.unregister(self.stop_recording)
        path, is_old = self._path or save_to_filename, not self._path
        rate = Fraction(fps if is_old else 1 / (self._stride * self._env.dt))
        if is_old:
            self._open_files()
            for frame in self._recorded_imgs:
                self._keep(frame)
            self._recorded_imgs.clear()
        self._running, self._path = False, ""
        self.videos += 1
        for name, raw in zip(self._paths(path), self._files):
            with raw:
                self._encode(name, rate.limit_denominator(10000), raw, is_old)

    def on_step(self) -> None:
        """Take a frame when the scene has stepped, as since 1.3."""
        if self._running and self._path and self._env.steps >= self._next:
            self._next += self._stride
            self._keep(self._take())
            for path in self._paths(self._path):
                Path(path).write_bytes(b"")  # as with Genesis, broken until it is stopped

    def _paths(self, path: str) -> list[str]:
        stem, suffix = os.path.splitext(path)
        numbers = range(self._env.num_envs)
        return [f"{stem}_{i}{suffix}" for i in numbers] if self._separate else [path]

    def _open_files(self) -> None:
        self._files = [
            tempfile.TemporaryFile(dir=self.temporary)  # noqa: SIM115
            for _ in self._paths("")
        ]

    def _keep(self, frame: Any) -> None:
        for raw, image in zip(self._files, frame if self._separate else [frame]):
            raw.write(as_array(image)[..., :3].tobytes())

    def _encode(self, path: str, rate: Fraction, raw: BinaryIO, is_old: bool) -> None:
        """Make a video of the frames in a file. Only since 1.3 is an odd size padded."""
        if not raw.tell():
            return
        is_odd = any(length % 2 for length in self._size)
        command = [CAMERAS_FFMPEG, "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size"]
        command += ["{}x{}".format(*self._size), "-framerate", str(rate), "-i", "pipe:0"]
        command += [] if is_old else ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
        command += ["-pix_fmt", "yuv444p" if is_old and is_odd else "yuv420p", f"file:{path}"]
        raw.seek(0)
        result = subprocess.run(command, stdin=raw, capture_output=True, check=False)
        if result.returncode:
            raise RuntimeError(result.stderr.decode(errors="replace").strip().splitlines()[-1])

    def _take(self) -> Any:
        self.renders += 1
        images = np.stack([self._background] * len(self._paths("")))
        for i, image in enumerate(images):
            draw_step(image, self._env.shown + 1000 * i)
        return self.make_frame(images if self._separate else images[0])


class FakeEnv:
    """An env without a simulation: its camera shows the number of the last completed step.

    Attributes:
        calls: Names of the methods called, of build, step, reset and close.
        steps: How many steps are completed.
        shown: The number that the camera shows.
        make_flags: Changes the two done flags before step() returns them.
    """

    # The arguments. These stand before the properties of an --env-base, as those below do.
    dt: float = 0.1
    num_envs: int = 3
    watched: int = 0  # the env whose episodes end at the next two
    terminated_at: Any = ()  # steps
    truncated_at: Any = ()
    others_done_at: Any = ()  # steps at which the other envs terminate
    size: tuple[int, int] = (96, 64)  # width and height of a frame
    separate: bool = (
        False  # whether the camera gives a frame of each env; env i shows 1000 * i more
    )

    scene: Any = None
    robot: Any = None
    camera: Any = None
    num_actions: int = NUM_ACTIONS
    num_observations: int = 4
    action_space: Any = cached_property(lambda _: space(-1, 1, NUM_ACTIONS))
    observation_space: Any = cached_property(lambda _: space(-1, 1, 4))
    extras: Any = None
    can_be_wrapped: bool = True

    def __init__(self, **arguments: Any) -> None:
        assert arguments.keys() <= ENV_KEYWORDS, arguments
        taken = inspect.signature(super().__init__).parameters
        given = {name: arguments.get(name, getattr(FakeEnv, name)) for name in ("num_envs", "dt")}
        super().__init__(**{name: value for name, value in given.items() if name in taken})
        vars(self).update(given | arguments)
        self.make_flags: Callable[[Any, Any], Iterable[Any]] = lambda *flags: flags
        self.extras = {"episode": {}}
        self.calls: list[str] = []
        self.steps = 0
        self.shown = 0xFFFF
        self.make_scene(self.size, self.separate)

    def make_scene(self, size: tuple[int, int], separate: bool) -> None:
        """Set scene, robot and camera."""
        self.scene, self.robot = SimpleNamespace(), SimpleNamespace()
        self.camera = self._camera = FakeCamera(self, size, separate)

    def show(self, number: int) -> None:
        """Bring the scene to the state after step `number`."""
        self.shown = number
        self._camera.on_step()

    @property
    def unwrapped(self) -> FakeEnv:
        return self

    def build(self) -> None:
        self.calls.append("build")

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Show the next number, and end the episodes that the constructor names."""
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
        self.calls.append("reset")
        return self.get_observations(), self.extras

    def get_observations(self) -> Any:
        return filled(0.0, self.num_envs, self.num_observations)

    def close(self) -> None:
        self.calls.append("close")


ENV_KEYWORDS = {"dt", "num_envs", "watched", "terminated_at", "truncated_at", "others_done_at"}
ENV_KEYWORDS |= {"size", "separate"}
