"""VideoWrapper: videos of robots that train in the Genesis simulator.

A reference implementation in one file, to be copied into a project. It needs Python 3.10 or newer, a camera in
your scene, and the package imageio-ffmpeg, which brings the encoder::

    env = VideoWrapper(MyEnv(), camera_attr="camera", out_dir="./videos")
    env.build()
    ...  # train, then
    env.close()

It records with Genesis 1.4 and with every env and camera that have the methods of the two protocols below. Ids in
parentheses, such as (TIME-4), name the clauses of the specification it implements. ``python video_wrapper.py``
tries it on this machine.

SPDX-FileCopyrightText: 2026 The VideoWrapper authors
SPDX-License-Identifier: MIT
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import operator
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol, Tuple

if TYPE_CHECKING:
    import genesis
    import gymnasium
    import numpy as np
    import torch

__version__ = "1.0.0"
__spec_version__ = "1.0.0"

# File suffixes a video may have, and the ffmpeg muxer of each.
_MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}

_CUBES = frozenset(k**3 for k in range(10))


class Camera(Protocol):
    """What a recording needs of a camera; a Genesis camera has it."""

    def render(self) -> tuple[Any, ...]:
        """Returns a tuple whose first item is the picture.

        A NumPy array or torch tensor, uint8, of shape (height, width, 3), or (n, height, width, 3) with one picture
        for each rendered env.
        """


class GenesisEnv(Protocol):
    """What `VideoWrapper` needs of an env; genesis-forge's environments have it."""

    dt: float
    """Seconds of simulation per step."""
    num_envs: int

    def build(self) -> None: ...
    def step(self, actions: torch.Tensor) -> Tuple[Any, Any, Any, Any, dict[str, Any]]: ...
    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]: ...
    def get_observations(self) -> torch.Tensor: ...
    def close(self) -> None: ...


def capped_cubic_episode_trigger(episode: int) -> bool:
    """The default schedule: episodes 0, 1, 8, 27, ..., k^3, ..., 729, 1000, 2000, 3000, ... (TRIG-1)."""
    return episode in _CUBES if episode < 1000 else episode % 1000 == 0


class Wrapper:
    """Passes everything through to the wrapped env, read anew at each access (DEL-1 to DEL-4)."""

    can_be_wrapped: bool = True
    env: GenesisEnv = None

    def __init__(self, env: GenesisEnv) -> None:
        if not getattr(env, "can_be_wrapped", True):
            raise ValueError(f"env must be one that can be wrapped, but {env!r} has can_be_wrapped=False")
        self.env = env
        if "genesis_forge" in sys.modules:
            # Its wrappers for RL libraries accept only an env of its own classes, so this becomes one (API-9).
            try:
                from genesis_forge.wrappers.wrapper import Wrapper as ForgeWrapper
            except ImportError:  # it cannot be imported without those libraries
                return
            if not isinstance(self, ForgeWrapper):
                cls = type(self)
                namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__}
                self.__class__ = type(cls.__name__, (cls, ForgeWrapper), namespace)

    @property
    def unwrapped(self) -> GenesisEnv:
        """The base environment, underneath all layers of wrappers."""
        return getattr(self.env, "unwrapped", self.env)

    @property
    def dt(self) -> float:
        """Seconds of simulation per step."""
        return self.env.dt

    @property
    def num_envs(self) -> int:
        """The number of parallel environments."""
        return self.env.num_envs

    @property
    def scene(self) -> genesis.Scene:
        """The environment's scene."""
        return self.env.scene

    @property
    def robot(self) -> Any:
        """The environment's robot."""
        return self.env.robot

    @property
    def num_actions(self) -> int:
        """The number of actions for each environment."""
        return self.env.num_actions

    @property
    def num_observations(self) -> int:
        """The number of observations for each environment."""
        return self.env.num_observations

    @property
    def action_space(self) -> gymnasium.spaces:
        """The action space of the environment."""
        return self.env.action_space

    @property
    def observation_space(self) -> gymnasium.spaces:
        """The observation space of the environment."""
        return self.env.observation_space

    @property
    def extras(self) -> dict:
        """The infos that the env returns from step and reset."""
        return self.env.extras

    def build(self) -> None:
        """Builds the wrapped env."""
        self.env.build()

    def step(
        self, actions: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Steps the wrapped env and returns what it returned."""
        return self.env.step(actions)

    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Resets the envs `env_ids` (None: all) and returns what the wrapped env returned."""
        return self.env.reset() if env_ids is None else self.env.reset(env_ids)

    def get_observations(self) -> torch.Tensor:
        """Returns the wrapped env's observations."""
        return self.env.get_observations()

    def close(self) -> None:
        """Closes the wrapped env."""
        self.env.close()


class VideoWrapper(Wrapper):
    """Records videos during training, at some of the episodes or steps, and of the final episode.

    A recording that starts at step s covers the steps s to s + N - 1, where N is `video_length_steps`, with a frame
    after each k-th of them, where k is 1 / (fps * dt), rounded. It plays at the speed of the simulation (TIME-1 to 7).

    A failing recording gives a RuntimeWarning and never ends the training (FAIL-1). What the env, the camera or a
    trigger raises is passed on (FAIL-3).

    Args:
        env: The environment to wrap, built or not.
        camera_attr: The attribute of the base environment that holds the camera.
        video_length_sec: Length of each video, in seconds of simulation.
        episode_trigger: Called once with the number of each episode, from 0; true starts a recording (TRIG-4, 5).
            The default, if there is no `step_trigger` either, is `capped_cubic_episode_trigger`.
        step_trigger: Called with the number of each step, from 0, at which no triggered recording is running; true
            starts one (TRIG-2, 3).
        out_dir: The folder for the videos. It is created if need be.
        fps: Frames per second of the video. The nearest rate at which a frame follows a whole number of steps is used.
        env_idx: The index of the env whose episodes are counted, and whose picture is taken if the camera renders
            each env separately.
        filename: The file name of every video, each overwriting the one before. The default is ``{step}.mp4``, after
            the first step of the video. It may end in .mp4, .m4v, .mov or .mkv.
        record_final_episode: Whether `close` saves a video of the last episode, triggered or not (FIN-1 to 4).
        logging: Whether to print a line for each saved video.

    Raises:
        ValueError: Both triggers are given, or another argument has a value that makes no video (ARG-1 to 6).
        TypeError: A trigger is not callable (ARG-2).
        OSError: `out_dir` cannot be created or written to (ARG-8).
        RuntimeError: imageio-ffmpeg finds no ffmpeg.
    """

    def __init__(
        self,
        env: GenesisEnv,
        camera_attr: str = "camera",
        video_length_sec: int = 8,
        episode_trigger: Callable[[int], bool] | None = None,
        step_trigger: Callable[[int], bool] | None = None,
        out_dir: str = "./videos",
        fps: int = 60,
        env_idx: int = 0,
        filename: str = None,
        record_final_episode: bool = True,
        logging: bool = True,
    ) -> None:
        super().__init__(env)
        triggers = {"episode_trigger": episode_trigger, "step_trigger": step_trigger}
        if None not in triggers.values():
            raise ValueError(f"give either episode_trigger or step_trigger, not both: got {triggers}")
        for name, trigger in triggers.items():
            if trigger is not None and not callable(trigger):
                raise TypeError(f"{name} must be a function of an int, got {trigger!r}")
        if not (hasattr(env_idx, "__index__") and 0 <= operator.index(env_idx) < env.num_envs):
            raise ValueError(f"env_idx must be an int in range({env.num_envs}), got {env_idx!r}")
        if filename is not None and not _is_video_name(filename):
            raise ValueError(f"filename must be a file name ending in {', '.join(_MUXERS)}, got {filename!r}")
        dt = _positive("env.dt", env.dt)
        length = _positive("video_length_sec", video_length_sec) / dt
        stride = 1 / (_positive("fps", fps) * dt)

        self._camera_attr = camera_attr
        self._step_trigger = step_trigger
        self._episode_trigger = episode_trigger
        if None is step_trigger is episode_trigger:
            self._episode_trigger = capped_cubic_episode_trigger
        self._env_idx = operator.index(env_idx)
        self._filename = filename
        self._record_final_episode = record_final_episode
        self._logging = logging
        self._length = max(1, math.ceil(_without_noise(length)))
        self._stride = max(1, round(_without_noise(2 * stride) / 2))
        # The limit finds 200/3 behind the float 66.666..., and stays within what ffmpeg takes for a rate.
        self._rate = Fraction(1 / (self._stride * dt)).limit_denominator(100_000)
        self._ffmpeg = _find_ffmpeg()
        self._out_dir = _writable_folder(out_dir)
        self._created = time.time()

        self._step = 0
        self._episode = 0
        self._episode_start = 0
        self._asked_episode = -1
        self._counts_episodes = self._episode_trigger is not None or record_final_episode
        self._recording: _Recording | None = None
        self._finished_background: _Recording | None = None

        if hasattr(os, "register_at_fork"):
            this = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: (wrapper := this()) and wrapper._leave_to_parent())

    @property
    def video_length_steps(self) -> int:
        """The number of steps that each video covers: `video_length_sec` / dt, rounded up (TIME-1, 2)."""
        return self._length

    def build(self) -> None:
        """Builds the env and checks that it has the camera.

        An env that is already built needs no call; its camera is looked up when a recording starts (BLD-4).

        Raises:
            AttributeError: The base environment has no camera under that name (BLD-3).
        """
        super().build()
        self._find_camera()

    def step(
        self, actions: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Steps the env, and records a frame if one is due.

        Args:
            actions: Passed to the env as they are.

        Returns:
            What the env returned: observations, rewards, terminated, truncated, extras. `terminated` and `truncated`
            are indexed by `env_idx`, and either may be None.
        """
        result = self.env.step(actions)
        step, episode = self._step, self._episode
        begins = step == self._episode_start
        # Counted before anything below can raise, so that a trigger's or camera's error miscounts nothing (FAIL-3).
        self._step = step + 1
        if self._counts_episodes and self._is_done(result[2], result[3]):
            self._end_episode()
        if self._recording is None or self._recording.type != "active":
            if self._is_triggered(step, episode):
                self._start("active", step)
            elif begins and self._record_final_episode:
                self._start("background", step)
        if self._recording is not None:
            self._record(step)
        return result

    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Resets envs; a reset of the watched env ends its episode if a step was taken in it (EPI-4).

        Args:
            env_ids: Indices of envs or a boolean mask over them, as a sequence, array or tensor. None resets all.

        Returns:
            What the env returned: observations and extras.
        """
        result = super().reset(env_ids)
        if self._step > self._episode_start and _includes(env_ids, self._env_idx):
            self._end_episode()
        return result

    def start_recording(self, type: Literal["active", "background"] = "active") -> None:
        """Starts a recording, of which the next step is the first; what was running is finished (REC-1, 3).

        Args:
            type: ``"active"`` is saved when it is finished, ``"background"`` by `close`, if no other recording follows.

        Raises:
            ValueError: `type` is neither of the two.
        """
        if type not in ("active", "background"):
            raise ValueError(f'type must be "active" or "background", got {type!r}')
        self._start(type, self._step)

    def finish_recording(self) -> None:
        """Stops the recording that is running, if any: an active one is saved, a background one kept for `close`."""
        recording = self._recording
        if recording is not None:
            if not recording.frames:
                recording.video.discard()
            elif recording.type == "active":
                self._save(recording)
            else:
                self._finished_background = recording
            # Not sooner: if Ctrl-C breaks into saving, close() takes it up again.
            self._recording = None

    def close(self) -> None:
        """Saves the running recording or the final episode's, then closes the env, even if saving failed (CLOSE-1, 2)."""
        try:
            self._save_all()
            atexit.unregister(self._save_all)
        finally:
            super().close()

    def _find_camera(self) -> Camera:
        camera = getattr(self.unwrapped, self._camera_attr, None)
        if camera is None:
            raise AttributeError(
                f"{type(self.unwrapped).__name__}.{self._camera_attr} is missing or None, but camera_attr="
                f"{self._camera_attr!r} must name the attribute that holds the camera to record with"
            )
        return camera

    def _is_done(self, *flags: Any) -> bool:
        return any(flag is not None and bool(flag[self._env_idx]) for flag in flags)

    def _end_episode(self) -> None:
        self._episode += 1
        self._episode_start = self._step

    def _is_triggered(self, step: int, episode: int) -> bool:
        if self._step_trigger is not None:
            return bool(self._step_trigger(step))
        if self._asked_episode == episode:
            return False
        self._asked_episode = episode
        return bool(self._episode_trigger(episode))

    def _start(self, type: Literal["active", "background"], step: int) -> None:
        self.finish_recording()
        path = os.path.join(self._out_dir, self._filename or f"{step}.mp4")
        video = _Video(self._ffmpeg, path, self._rate)
        look = functools.partial(_look, self._find_camera(), self, self._env_idx)
        self._recording = _Recording(type, step, look, video)
        # Registered last again, so that it runs before Genesis' own exit handler takes the scene down (CLOSE-4).
        atexit.unregister(self._save_all)
        atexit.register(self._save_all)

    def _record(self, step: int) -> None:
        recording = self._recording
        if (step - recording.start) % self._stride == 0:
            try:
                recording.capture()
            except _RecordingFailed as failure:
                self._recording = None
                self._drop(recording, failure)
                return
            if recording.frames == 1 and self._finished_background is not None:
                self._finished_background.video.discard()
                self._finished_background = None
        if step - recording.start + 1 >= self._length:
            self.finish_recording()

    def _save(self, recording: _Recording) -> None:
        path = recording.video.path
        try:
            replaced = ", replacing a file of an earlier run" if os.path.getmtime(path) < self._created else ""
        except OSError:
            replaced = ""
        try:
            recording.save()
        except _RecordingFailed as failure:
            self._drop(recording, failure)
            return
        if self._logging:
            seconds = float(recording.frames / self._rate)
            rate = float(self._rate)
            print(f"Saved {path}: {recording.frames} frames, {seconds:.4g} s at {rate:.4g} fps{replaced}")

    def _drop(self, recording: _Recording, failure: _RecordingFailed) -> None:
        recording.video.discard()
        warnings.warn(f"no video {recording.video.path}: {failure}", RuntimeWarning, stacklevel=4)

    def _save_all(self) -> None:
        self.finish_recording()
        if self._finished_background is not None:
            self._save(self._finished_background)
            self._finished_background = None

    def _leave_to_parent(self) -> None:
        """In a forked child: lets go of the parent's recordings, which are not the child's to write or save (CLOSE-5)."""
        for recording in filter(None, (self._recording, self._finished_background)):
            recording.video.close_pipe()
        self._recording = self._finished_background = None


class _RecordingFailed(Exception):
    """A recording cannot go on; its text says why. Never leaves this module."""


class _Recording:
    """A recording whose frames are rendered and encoded at once."""

    def __init__(self, type: str, start: int, look: Callable[[], np.ndarray], video: _Video) -> None:
        self.type = type
        self.start = start
        self.frames = 0
        self.video = video
        self._look = look

    def capture(self) -> None:
        """Records the present picture."""
        self.video.put(self._look())
        self.frames += 1

    def save(self) -> None:
        """Completes the video and puts it in place; can be called again if Ctrl-C breaks into it."""
        self.video.complete()


class _Video:
    """A video that an ffmpeg process writes, under a temporary name until it is complete (FILE-3).

    A thread feeds ffmpeg's pipe: the training waits for a copy of the frame only, and no Ctrl-C,
    which reaches the main thread alone, can break into a frame half written (CLOSE-6).
    """

    def __init__(self, ffmpeg: str, path: str, rate: Fraction) -> None:
        self.path = path
        self._ffmpeg = ffmpeg
        self._rate = rate
        folder, name = os.path.split(path)
        self._part = os.path.join(folder, f".{uuid.uuid4().hex[:8]}-{name[:50]}.part")
        self._shape: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        # Bounded: an encoder that falls behind slows the training, it does not fill the memory.
        self._queue: queue.Queue[bytes | None] = queue.Queue(maxsize=2)
        self._thread = threading.Thread(target=self._feed, daemon=True)

    def put(self, picture: np.ndarray) -> None:
        """Appends a frame. The first one decides the size and starts ffmpeg."""
        if self._process is None:
            self._start(picture.shape)
        elif picture.shape != self._shape:
            raise _RecordingFailed(f"its frames are {self._shape}, but one came as {picture.shape}")
        if self._error is not None:
            raise _RecordingFailed(self._end())
        if self._thread.is_alive():
            self._queue.put(picture.tobytes())
        else:
            self._write(picture.tobytes())

    def complete(self) -> None:
        """Ends the video and moves it to its name."""
        words = self._end()
        if self._error is not None or self._process.returncode:
            raise _RecordingFailed(words)
        try:
            os.replace(self._part, self.path)
        except OSError as error:
            raise _RecordingFailed(str(error)) from error
        self._errors.close()

    def discard(self) -> None:
        """Leaves nothing behind."""
        if self._process is not None:
            self._process.kill()
            self._end()
            self._errors.close()
            with contextlib.suppress(OSError):
                os.unlink(self._part)

    def close_pipe(self) -> None:
        if self._process is not None:
            self._process.stdin.close()

    def _start(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        # fmt: off
        command = [
            self._ffmpeg, "-loglevel", "error", "-nostdin", "-y",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{shape[1]}x{shape[0]}",
            "-framerate", f"{self._rate.numerator}/{self._rate.denominator}", "-i", "pipe:0",
            # yuv420p needs even sizes. The colours are named, or players guess them from the size.
            "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709,"
            + "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709",
            # One thread: the other cores are the training's.
            "-c:v", "libx264", "-preset", "veryfast", "-threads", "1", "-pix_fmt", "yuv420p",
            "-movflags", "+faststart", "-f", _MUXERS[os.path.splitext(self.path)[1].lower()],
            self._part,
        ]
        # fmt: on
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            # Not a pipe: nobody reads it while ffmpeg runs, and a full pipe would stop ffmpeg.
            self._errors = tempfile.TemporaryFile()
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                # In a process group of its own, Ctrl-C in the terminal does not reach it (CLOSE-6).
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise _RecordingFailed(str(error)) from error
        with contextlib.suppress(RuntimeError):  # no thread can be started while Python exits
            self._thread.start()

    def _feed(self) -> None:
        while (frame := self._queue.get()) is not None:
            if self._error is None:  # else only empty the queue, so that nobody waits on it
                self._write(frame)

    def _write(self, frame: bytes) -> None:
        view = memoryview(frame)
        try:
            while view:
                view = view[self._process.stdin.write(view) :]
        except OSError as error:
            self._error = error

    def _end(self) -> str:
        """Ends ffmpeg and returns what it had to complain of."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self.close_pipe()
        code = self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()
        return words[-1000:] or f"{self._error or 'ffmpeg'} (ffmpeg ended with {code})"


def _look(camera: Camera, env: GenesisEnv, env_idx: int) -> np.ndarray:
    """Renders, and returns the watched env's picture: uint8, of shape (height, width, 3)."""
    rendered = camera.render()
    picture = rendered[0] if isinstance(rendered, tuple) and rendered else rendered
    shape = tuple(getattr(picture, "shape", ()))
    dtype = getattr(picture, "dtype", type(picture).__name__)
    if str(dtype) not in ("uint8", "torch.uint8") or len(shape) not in (3, 4) or shape[-1] not in (3, 4):
        raise _RecordingFailed(
            f"camera.render() must give uint8 of shape (height, width, 3), not {dtype} of shape {shape}"
        )
    if len(shape) == 4:
        envs = list(range(env.num_envs))
        if len(envs) != shape[0]:  # only some of them are rendered
            envs = list(env.scene.visualizer.context.rendered_envs_idx)
        if env_idx not in envs:
            raise _RecordingFailed(f"the camera shows the envs {envs}, not env_idx={env_idx}")
        picture = picture[envs.index(env_idx)]
    return (picture.cpu().numpy() if hasattr(picture, "cpu") else picture)[..., :3]


def _positive(name: str, value: float) -> float:
    try:
        if math.isfinite(value) and value > 0:
            return float(value)
    except TypeError:
        pass
    raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def _without_noise(quotient: float) -> float:
    """The nearest integer, if only float noise lies between: 0.3 / 0.1 is 3 (TIME-2)."""
    nearest = round(quotient)
    return nearest if math.isclose(quotient, nearest, rel_tol=1e-6) else quotient


def _is_video_name(name: str) -> bool:
    return (
        isinstance(name, str)
        and name == os.path.basename(name)
        and os.path.splitext(name)[1].lower() in _MUXERS
        and len(os.fsencode(name)) <= 255
    )


def _includes(env_ids: Sequence[int] | None, env_idx: int) -> bool:
    if env_ids is None:
        return True
    ids = env_ids.tolist() if hasattr(env_ids, "tolist") else env_ids
    if isinstance(ids, int):
        return ids == env_idx
    ids = list(ids)
    return ids[env_idx] if ids and isinstance(ids[0], bool) else env_idx in ids


def _find_ffmpeg() -> str:
    from imageio_ffmpeg import get_ffmpeg_exe

    return get_ffmpeg_exe()


def _writable_folder(out_dir: str) -> str:
    folder = os.path.abspath(out_dir)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        message = f"out_dir must be a folder that can be created and written to ({error.strerror})"
        raise OSError(error.errno, message, out_dir) from error
