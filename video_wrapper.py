"""VideoWrapper: videos of robots that train in the Genesis simulator.

A reference implementation in one file, to be copied into a project. It needs Python 3.10, a camera
in your scene, and the package imageio-ffmpeg, which brings the encoder::

    env = VideoWrapper(MyEnv(), camera_attr="camera", out_dir="./videos")
    env.build()
    ...  # train
    env.close()

It works with Genesis 0.3.14 to 1.4.5 and with any env and camera that have the methods of the two
protocols below; only with Genesis 1.4.5 is a final episode not rendered before it is saved. Ids in
parentheses, such as (TIME-4), are clauses of the specification that it implements.
``python video_wrapper.py`` tries it on this machine.

SPDX-FileCopyrightText: 2026 The VideoWrapper authors
SPDX-License-Identifier: MIT
"""
# The documented annotations are kept to the letter:
# ruff: noqa: RUF013, UP006, UP035

from __future__ import annotations

import _thread
import atexit
import contextlib
import glob
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
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, Tuple

try:
    import fcntl
except ImportError:  # Windows, where leftovers stay (FILE-14)
    fcntl = None

if TYPE_CHECKING:
    import genesis
    import gymnasium
    import numpy as np
    import torch

__version__ = "1.0.0"
__spec_version__ = "1.0.0"

# The suffixes that a video's name may have, and ffmpeg's muxer for each.
_MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


class Camera(Protocol):
    """What a recording needs of a camera. A Genesis camera has it."""

    def render(self) -> Any:
        """Returns the picture, or a tuple that begins with it.

        That is a uint8 array or tensor of shape (height, width, 3), or (n, height, width, 3) with a
        picture of each rendered env (FILE-8, 9).
        """


class GenesisEnv(Protocol):
    """What `VideoWrapper` needs of an env. The environments of genesis-forge have it."""

    dt: float
    num_envs: int

    def build(self) -> None: ...
    def step(self, actions: torch.Tensor) -> Tuple[Any, Any, Any, Any, dict[str, Any]]: ...
    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]: ...
    def get_observations(self) -> torch.Tensor: ...
    def close(self) -> None: ...


def capped_cubic_episode_trigger(episode: int) -> bool:
    """The default schedule: episodes 0, 1, 8, 27, ..., 729, 1000, 2000, 3000, ... (TRIG-1)."""
    return episode % 1000 == 0 if episode > 1000 else episode in (k**3 for k in range(11))


class Wrapper:
    """Passes everything through to the wrapped env, read anew at each access (DEL-1 to 4)."""

    can_be_wrapped: bool = True
    env: GenesisEnv = None

    def __init__(self, env: GenesisEnv) -> None:
        if not getattr(env, "can_be_wrapped", True):
            raise ValueError(f"env must be one that can be wrapped: can_be_wrapped=False on {env}")
        self.env = env
        if "genesis_forge" in sys.modules:
            # Its wrappers for RL libraries take only envs of its own classes: become one (API-9).
            try:
                from genesis_forge.wrappers.wrapper import Wrapper as ForgeWrapper
            except ImportError:  # for want of those libraries, so none of them wraps this
                return
            if not isinstance(self, ForgeWrapper):
                self.__class__ = type(type(self).__name__, (type(self), ForgeWrapper), {})

    @property
    def unwrapped(self) -> GenesisEnv:
        """The base environment, underneath all layers of wrappers."""
        return getattr(self.env, "unwrapped", self.env)

    @property
    def dt(self) -> float:
        """The time step of the environment, in seconds of simulation."""
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
        """The infos that the environment returns from step and reset."""
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
    """Records videos during training, of some episodes or at some steps, and of the last episode.

    A video that starts at step s covers the steps s to s + `video_length_steps` - 1, with a frame
    after each k-th of them, where k is 1 / (fps * dt), rounded. It plays at the simulation's speed
    (TIME-1 to 7). A recording that fails gives a RuntimeWarning and never ends the training
    (FAIL-1, 2); what the env, the camera or a trigger raises is passed on (FAIL-3).

    Args:
        env: The environment to wrap, built or not.
        camera_attr: The attribute of the base environment that holds the camera.
        video_length_sec: Length of each video, in seconds of simulation.
        episode_trigger: Asked once for each episode, by its number from 0, whether to record it
            (TRIG-4, 5). With no trigger at all it is `capped_cubic_episode_trigger`.
        step_trigger: Asked for each step, by its number from 0, whether to start a recording with
            it, unless one is running (TRIG-2, 3).
        out_dir: The folder for the videos, created if it is missing.
        fps: Frames per second; the nearest rate with a whole number of steps to a frame is used.
        env_idx: The env whose episodes are counted, and whose picture is taken if the camera
            renders each env separately.
        filename: A name, ending in .mp4, .m4v, .mov or .mkv, for every video, each overwriting the
            one before. If None, a video is named ``{step}.mp4`` after its first step.
        record_final_episode: Whether `close` saves a video of the last episode (FIN-1 to 4).
        logging: Whether to print a line for each saved video.

    Raises:
        ValueError: Both triggers are given, or an argument has a value that makes no video
            (ARG-1, 3 to 6).
        TypeError: A trigger is not callable (ARG-2).
        OSError: `out_dir` cannot be created or written to (ARG-8).
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
        # Here, so that a missing package shows at once and not at the first recording.
        from imageio_ffmpeg import get_ffmpeg_exe

        super().__init__(env)
        triggers = {"episode_trigger": episode_trigger, "step_trigger": step_trigger}
        if None not in triggers.values():
            raise ValueError(f"give episode_trigger or step_trigger, not both: got {triggers}")
        for name, trigger in triggers.items():
            if trigger is not None and not callable(trigger):
                raise TypeError(f"{name} must be a function of an int, got {trigger!r}")
        if not (hasattr(env_idx, "__index__") and 0 <= operator.index(env_idx) < env.num_envs):
            raise ValueError(f"env_idx must be an int in range({env.num_envs}), got {env_idx!r}")
        if filename is not None and not _is_video_name(filename):
            raise ValueError(f"filename must be a name ending in {[*_MUXERS]}, got {filename!r}")
        dt = _positive("env.dt", env.dt)
        length = _positive("video_length_sec", video_length_sec) / dt
        stride = 1 / (_positive("fps", fps) * dt)

        self._camera_attr = camera_attr
        self._env_idx = operator.index(env_idx)
        self._step_trigger = step_trigger
        self._episode_trigger = episode_trigger
        if episode_trigger is None and step_trigger is None:
            self._episode_trigger = capped_cubic_episode_trigger
        self._record_final_episode = record_final_episode
        self._counts_episodes = self._episode_trigger is not None or record_final_episode
        self._filename = filename
        self._logging = logging
        self._length = max(1, math.ceil(_without_noise(length)))
        self._stride = max(1, round(_without_noise(2 * stride) / 2))
        # The limit finds 200/3 behind 66.66666666666667 and keeps to what ffmpeg takes for a rate.
        self._rate = Fraction(1 / (self._stride * dt)).limit_denominator(100_000)
        self._ffmpeg = get_ffmpeg_exe()
        self._out_dir = _writable_folder(out_dir)
        _clear_leftovers(self._out_dir)
        self._created = time.time()

        self._step = 0  # the number of the next step
        self._episode = 0
        self._episode_start = 0
        self._asked_episode = -1
        self._last_flags: tuple[Any, Any, Any, Any] = (None, None, None, None)
        self._recording: _Recording | None = None
        self._last_background: _Recording | None = None  # finished, for close() to save
        if hasattr(os, "register_at_fork"):
            this = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: (self := this()) and self._abandon())

    @property
    def video_length_steps(self) -> int:
        """The number of steps that each video covers (TIME-1, 2)."""
        return self._length

    def build(self) -> None:
        """Builds the env and checks that it has the camera.

        An env that is built already needs no call: its camera is found when it is needed (BLD-4).

        Raises:
            AttributeError: The base environment has no camera of that name (BLD-3).
        """
        super().build()
        self._find_camera()

    def step(
        self, actions: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Steps the env, and records a frame if one is due.

        Args:
            actions: What the env's `step` takes; passed on as it is.

        Returns:
            What the env returned: observations, rewards, terminated, truncated, extras. The flags
            `terminated` and `truncated` are indexed by `env_idx`; either may be None (EPI-2, 3).
        """
        result = self.env.step(actions)
        step = self._step
        # Counted before a trigger or the camera can raise, so that an error miscounts nothing.
        self._step = step + 1
        if self._counts_episodes:
            episode, is_first = self._episode, step == self._episode_start
            if self._is_done(result[2], result[3]):
                self._end_episode()
        recording, trigger = self._recording, self._step_trigger
        if recording is not None and (recording.ended or step >= recording.start + self._length):
            self.finish_recording()  # Ctrl-C came before it or broke into it
            recording = None
        if recording is None or recording.type != "active":
            if trigger(step) if trigger is not None else self._is_due(episode):
                self._start("active", step)
            elif self._record_final_episode and is_first:
                self._start("background", step)
        if self._recording is not None:
            self._record(step)
        return result

    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Resets envs. The watched env's episode ends, if a step was taken in it (EPI-4).

        Args:
            env_ids: The indices of the envs or a boolean mask over them; None resets all.

        Returns:
            What the env returned: observations and extras.
        """
        result = super().reset(env_ids)
        if self._step > self._episode_start and _includes(env_ids, self._env_idx):
            self._end_episode()
        return result

    def start_recording(self, type: Literal["active", "background"] = "active") -> None:
        """Starts a recording with the next step, after finishing what is running (REC-1, 3).

        Args:
            type: An "active" recording is saved when it finishes, a "background" one by `close`,
                unless another recording has followed.

        Raises:
            ValueError: `type` is neither of the two (REC-7).
        """
        if type not in ("active", "background"):
            raise ValueError(f'type must be "active" or "background", got {type!r}')
        self._start(type, self._step)

    def finish_recording(self) -> None:
        """Stops what is running: saves it if active, keeps it for `close` if not (REC-2, 4, 5)."""
        recording = self._recording
        if recording is not None:
            if not recording.frames:
                recording.discard()
            elif recording.type == "active":
                self._save(recording)
            else:
                self._last_background = recording
        # Only now: if Ctrl-C breaks into the saving, close() takes it up again.
        self._recording = None

    def close(self) -> None:
        """Saves what runs or is kept, then closes the env, also if saving fails (CLOSE-1, 2)."""
        try:
            self._save_all()
            atexit.unregister(self._save_all)  # it would keep the env in memory (CLOSE-10)
        finally:
            super().close()

    def _find_camera(self) -> Camera:
        camera = getattr(self.unwrapped, self._camera_attr, None)
        if camera is None:
            name = f"{type(self.unwrapped).__name__}.{self._camera_attr}"
            raise AttributeError(f"camera_attr must name the camera, but {name} is missing or None")
        return camera

    def _is_done(self, terminated: Any, truncated: Any) -> bool:
        """Whether the watched env's episode ends: nearly all that an idle step costs (COST-1, 4)."""
        i = self._env_idx
        last_terminated, last_truncated, memory, elements = self._last_flags
        try:
            if not terminated.is_cpu:
                # Waits for a device once, not twice.
                return bool(terminated[i].logical_or(truncated[i]))
            if terminated is not last_terminated or truncated is not last_truncated:
                self._last_flags = terminated, truncated, None, None
                return bool(terminated[i].item() or truncated[i].item())
            # Many envs return the same tensors each time. These are read through arrays over their
            # memory, made once, since indexing a tensor makes another tensor.
            if (now := (terminated.data_ptr(), truncated.data_ptr())) != memory:
                elements = terminated.numpy()[i, ...], truncated.numpy()[i, ...]
                self._last_flags = terminated, truncated, now, elements
            return bool(elements[0].item() or elements[1].item())
        except (AttributeError, TypeError, RuntimeError):  # no tensors, or none with an array
            return any(flags is not None and bool(flags[i]) for flags in (terminated, truncated))

    def _end_episode(self) -> None:
        self._episode += 1
        self._episode_start = self._step

    def _is_due(self, episode: int) -> bool:
        if self._asked_episode == episode:
            return False
        self._asked_episode = episode
        return bool(self._episode_trigger(episode))

    def _start(self, type: Literal["active", "background"], step: int) -> None:
        camera = self._find_camera()
        self.finish_recording()
        path = os.path.join(self._out_dir, self._filename or f"{step}.mp4")
        arguments = (self, camera, type, step, path)
        deferred = _DeferredRecording.of(*arguments) if type == "background" else None
        self._recording = deferred or _Recording(*arguments)
        # Registered anew, so as to run before Genesis' own exit handler destroys the scene.
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
            if self._last_background is not None:
                self._last_background.discard()
                self._last_background = None
        if step - recording.start + 1 >= self._length:
            self.finish_recording()

    def _save(self, recording: _Recording) -> None:
        path, frames, rate = recording.path, recording.frames, self._rate
        old = False
        with contextlib.suppress(OSError):
            old = os.path.getmtime(path) < self._created
        try:
            recording.save()
        except _RecordingFailed as failure:
            self._drop(recording, failure)
        else:
            if self._logging:
                seconds = f"{float(frames / rate):.4g} s at {float(rate):.4g} fps"
                note = ", replacing a file of an earlier run" if old else ""
                _say(f"Saved {path}: {frames} frames, {seconds}{note}")

    def _drop(self, recording: _Recording, failure: _RecordingFailed) -> None:
        recording.discard()
        message = f"no video {recording.path} from step {recording.start}: {failure}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)

    def _save_all(self) -> None:
        self.finish_recording()
        if self._last_background is not None and self._last_background.frames:
            self._save(self._last_background)
        self._last_background = None

    def _abandon(self) -> None:
        """In a forked child: leaves the recordings to the parent (CLOSE-5)."""
        for recording in filter(None, (self._recording, self._last_background)):
            recording.abandon()
        self._recording = self._last_background = None


class _RecordingFailed(Exception):
    """A recording cannot go on; its text says why. It never leaves this module."""


class _Recording:
    """A recording whose frames are rendered and handed to an ffmpeg process at once.

    A thread starts ffmpeg, feeds it, waits for it and gives the video its name, for which ffmpeg
    writes under another until then (FILE-3). So the training waits for a copy of the frame only,
    and Ctrl-C, which reaches the main thread alone, breaks into none of that (CLOSE-6, FAIL-5).
    The two share plain attributes and a queue in C: all other means of `threading` are left locked,
    or take a running thread for a dead one, if Ctrl-C breaks into them.
    """

    def __init__(
        self, wrapper: VideoWrapper, camera: Camera, type: str, start: int, path: str
    ) -> None:
        self.type = type
        self.start = start
        self.path = path
        self.frames = 0
        self.ended = False
        self._wrapper = wrapper
        self._camera = camera
        folder, name = os.path.split(path)
        self._part = os.path.join(folder, f".{uuid.uuid4().hex[:8]}-{name[-50:]}.part")
        self._shape: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._files = contextlib.ExitStack()
        self._claim = threading.Lock()
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._has_thread = True
        self._is_started = self._is_dropped = self._is_done = False
        self._error: Exception | None = None
        self._failure = ""

    def capture(self) -> None:
        """Records the present picture."""
        self._encode(self._render())
        self.frames += 1

    def _encode(self, picture: np.ndarray) -> None:
        """Appends a frame; the first one decides the size."""
        if not self._is_started:
            self._shape = picture.shape
            try:
                _thread.start_new_thread(self._feed, ())
            except RuntimeError:  # none can be started while Python exits
                self._has_thread = False
                self._start_ffmpeg()
            # Else a fork could come between that and what it leaves behind (CLOSE-5).
            self._wait_until(lambda: self._is_started)
        elif picture.shape != self._shape:
            raise _RecordingFailed(f"a frame is {picture.shape}, but the first was {self._shape}")
        if self._has_thread:
            # An encoder that falls behind slows the training and does not fill the memory.
            self._wait_until(lambda: self._queue.qsize() < 2 or self._is_done)
            self._queue.put(picture.tobytes())
        elif self._error is None:
            self._write(picture.tobytes())
        if self._is_done:
            raise _RecordingFailed(self._failure)

    def save(self) -> None:
        """Completes the video and gives it its name; can be repeated if Ctrl-C breaks into it."""
        self._end()
        if self._failure:
            raise _RecordingFailed(self._failure)

    def discard(self) -> None:
        """Leaves nothing behind, not even a frame."""
        self.frames, self._is_dropped = 0, True
        self._end()

    def abandon(self) -> None:
        """Closes this process's copies of what belongs to the recording of another."""
        if self._process is not None:
            self._process.stdin.close()
        self._files.close()

    def _end(self) -> None:
        self.ended = True
        self._queue.put(None)  # also for a thread that has yet to begin
        if self._claim.locked():
            self._wait_until(lambda: self._is_done)
        elif self._is_started and not self._is_done:
            self._end_ffmpeg()

    @staticmethod
    def _wait_until(condition: Callable[[], bool]) -> None:
        while not condition():
            time.sleep(0.0005)

    def _render(self) -> np.ndarray:
        """The watched env's picture now: uint8, of shape (height, width, 3)."""
        picture, env_idx = self._camera.render(), self._wrapper._env_idx
        if isinstance(picture, tuple) and picture:
            picture = picture[0]
        shape = tuple(getattr(picture, "shape", ()))
        dtype = str(getattr(picture, "dtype", type(picture).__name__)).removeprefix("torch.")
        if dtype != "uint8" or len(shape) not in (3, 4) or shape[-1] not in (3, 4):
            want = "uint8 of shape (height, width, 3)"
            raise _RecordingFailed(f"camera.render() must give {want}, got {dtype} of {shape}")
        if len(shape) == 4:
            envs = list(range(self._wrapper.num_envs))
            if len(envs) != shape[0]:  # only some of them are rendered
                with contextlib.suppress(AttributeError):
                    envs = list(self._wrapper.scene.visualizer.context.rendered_envs_idx)
            if env_idx not in envs[: shape[0]]:
                raise _RecordingFailed(f"env_idx={env_idx} is not among the {shape[0]} envs shown")
            picture = picture[envs.index(env_idx)]
        return (picture.cpu().numpy() if hasattr(picture, "cpu") else picture)[..., :3]

    def _start_ffmpeg(self) -> None:
        height, width, _ = self._shape
        rate = self._wrapper._rate
        # fmt: off
        command = [
            self._wrapper._ffmpeg, "-loglevel", "error", "-nostdin", "-y",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}",
            "-framerate", f"{rate.numerator}/{rate.denominator}", "-i", "pipe:0",
            # yuv420p needs even sizes. The colours are named, or players guess them from the size.
            "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709,"
            + "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709",
            # Once more, for what encodes with ffmpeg 4, which does not hear of it from the filter.
            "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709",
            # Slower presets take more of the training's cores for no better picture, faster ones
            # make larger files; zerolatency keeps no frames back for the end. -threads counts for
            # the filters, too. (python -m pytest --benchmark-only)
            "-c:v", "libx264", "-preset", "veryfast", "-tune", "zerolatency", "-threads", "1",
            "-pix_fmt", "yuv420p",
            # What of an .mkv is written can be played if ffmpeg is killed (CLOSE-9).
            "-cluster_time_limit", "500", "-flush_packets", "1",
            "-movflags", "+faststart", "-f", _MUXERS[os.path.splitext(self.path)[1].lower()],
            self._part,
        ]
        # fmt: on
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            lock = self._files.enter_context(_create_locked(self._part)) if fcntl else None
            # Not a pipe: nobody would read it while ffmpeg runs, and a full one would stop ffmpeg.
            self._stderr = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                # An ffmpeg that outlives this process is still at work on the file (FILE-14).
                pass_fds=[lock.fileno()] if lock else (),
                # So that ffmpeg sees a file-size limit as an error, and says so (FAIL-1).
                restore_signals=False,
                # In a group of its own, which Ctrl-C in the terminal does not reach (CLOSE-6).
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except Exception as error:  # noqa: BLE001 the training waits for this thread
            self._error = error
        self._is_started = True

    def _feed(self) -> None:
        if not self._claim.acquire(blocking=False):
            return  # Ctrl-C broke into the start of the first thread
        try:
            self._start_ffmpeg()
            while self._error is None and (frame := self._queue.get()) is not None:
                self._write(frame)
            self._end_ffmpeg()
        except Exception as error:  # noqa: BLE001 the training waits for this thread
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._is_done = True

    def _write(self, frame: bytes) -> None:
        view = memoryview(frame)
        try:
            while view and not self._is_dropped:
                view = view[self._process.stdin.write(view) :]
        except OSError as error:
            self._error = error

    def _end_ffmpeg(self) -> None:
        if self._process is not None:
            if self._is_dropped:
                self._process.kill()
            self._process.stdin.close()
            code = self._process.wait()
            self._stderr.seek(0)
            words = self._stderr.read().decode(errors="replace").strip()[-1000:]
            if code or self._error is not None:
                why = self._error or "it was killed or gave no reason"
                self._failure = words or f"ffmpeg ended with code {code}: {why}"
        elif self._error is not None:
            self._failure = str(self._error)
        try:
            if not self._failure and not self._is_dropped:
                os.replace(self._part, self.path)
        except OSError as error:
            self._failure = str(error)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._part)
            self._files.close()
            self._is_done = True


class _DeferredRecording(_Recording):
    """A recording of a Genesis scene that renders only what is saved (FIN-5, 6).

    A picture of rigid bodies depends on the camera's transform and on the poses of their links or,
    once something was rendered in the same step, those of the geometry drawn then. `capture` copies
    these. `save` puts them in place for one picture at a time and takes them out again: nothing
    that the simulation computes with is touched.
    """

    # Bytes on the simulation's device; what would store more is rendered at once.
    LIMIT = 256 * 2**20

    def __init__(self, wrapper: VideoWrapper, camera: Camera, *arguments: Any) -> None:
        from genesis.utils.misc import qd_to_torch

        def views(states: Any) -> list[torch.Tensor]:  # (envs, bodies, 3 or 4), in Genesis' memory
            fields = [field for state in states for field in (state.pos, state.quat)]
            return [qd_to_torch(field, transpose=True, copy=False) for field in fields]

        super().__init__(wrapper, camera, *arguments)
        self._stored: list[tuple[bool, list[torch.Tensor], np.ndarray]] = []
        self._scene = wrapper.scene
        self._visualizer = self._scene.visualizer
        self._solvers = list(self._scene.active_solvers)
        # Collision geometry moves with the simulation, not when it is drawn.
        collision = [
            s for s in self._solvers if any(e.surface.vis_mode != "visual" for e in s.entities)
        ]
        geoms = views(s.dyn_state.geoms for s in collision)
        self._links = views(s.dyn_state.links for s in self._solvers) + geoms
        self._drawn = views(s.dyn_state.vgeoms for s in self._solvers) + geoms
        envs = list(self._visualizer.context.rendered_envs_idx)
        adjacent = slice(envs[0], envs[-1] + 1)  # copies faster than indices do
        is_slice = envs == list(range(adjacent.start, adjacent.stop))
        self._envs = adjacent if is_slice else self._links[0].new_tensor(envs).long()
        size = sum(view[self._envs].nbytes for view in self._drawn)
        self._deferred = size * wrapper._length / wrapper._stride < self.LIMIT
        # What else `capture` and `save` use, so that it is missed here and not in mid-training.
        camera._transform, camera._debug, camera._followed_entity, camera._attached_link  # noqa: B018
        self._visualizer._t, self._visualizer.context.reset, self._scene.sim.cur_step_global  # noqa: B018
        self._visualizer.update_visual_states, [s.update_vgeoms for s in self._solvers]
        self._shows_drawings()

    @classmethod
    def of(cls, wrapper: VideoWrapper, camera: Any, *arguments: Any) -> _DeferredRecording | None:
        """A recording of a scene whose pictures can be reproduced exactly; of others None."""
        gs: Any = sys.modules.get("genesis")
        try:
            scene, solvers = wrapper.scene, wrapper.scene.active_solvers
            visualizer = scene.visualizer
            reproducible = (
                gs.__version__.startswith("1.4.")  # whose inner attributes are used here
                and gs.use_zerocopy  # its tensors are its memory
                and gs.backend != gs.metal
                and type(camera) is gs.vis.camera.Camera
                and any(camera is c for c in visualizer.cameras)
                and visualizer.renderer is visualizer.rasterizer
                and visualizer.viewer is None  # its keys change what is drawn
                and not scene.requires_grad
                and all(s is scene.rigid_solver or s is scene.kinematic_solver for s in solvers)
                and not any(s.n_custom_vverts for s in solvers)  # geometry set vertex by vertex
                and not any(hasattr(e, "propellers_idx") for e in scene.entities)  # spun when drawn
                and not visualizer.context.camera_frustum_shown
            )
            return cls(wrapper, camera, *arguments) if reproducible else None
        except Exception:  # noqa: BLE001 a fake scene, or a Genesis with other names
            return None

    def capture(self) -> None:
        camera, visualizer = self._camera, self._visualizer
        if self._deferred and self._shows_drawings():
            self._deferred = False
            self._render_stored()
        if not self._deferred:
            super().capture()
            return
        is_drawn = visualizer._t >= self._scene.sim.cur_step_global
        if camera._followed_entity is not None or camera._attached_link is not None:
            visualizer.update_visual_states()  # moves the camera, as rendering would
        poses = [view[self._envs].clone() for view in (self._drawn if is_drawn else self._links)]
        self._stored.append((is_drawn, poses, camera._transform.copy()))
        self.frames += 1

    def save(self) -> None:
        try:
            self._render_stored()
        except BaseException:  # Ctrl-C too: rather no video than part of one
            self.discard()
            raise
        super().save()

    def _shows_drawings(self) -> bool:
        """Whether there are debug drawings to be seen, which are not stored."""
        c = self._visualizer.context
        nodes = (c.external_nodes, any(c.dynamic_nodes.values()), c.tracked_nodes)
        shown = (*nodes, c.world_frame_shown, c.link_frame_shown)
        return self._camera.debug and any(shown)

    def _render_stored(self) -> None:
        count, told = len(self._stored), time.monotonic()
        while self._stored:
            if self._wrapper._logging and time.monotonic() - told > 5:
                told = time.monotonic()
                _say(f"Rendering {self.path}: {count - len(self._stored)} of {count} frames")
            try:
                picture = self._render_as_of(*self._stored.pop(0))
            except Exception as error:  # its scene is gone, say
                raise _RecordingFailed(f"{type(error).__name__}: {error}") from error
            self._encode(picture)

    def _render_as_of(
        self, is_drawn: bool, poses: list[torch.Tensor], transform: np.ndarray
    ) -> np.ndarray:
        camera, visualizer = self._camera, self._visualizer
        present = [(view, view.clone()) for view in self._links + self._drawn]
        t, debug, present_transform = visualizer._t, camera._debug, camera._transform.copy()
        try:
            for view, pose in zip(self._drawn if is_drawn else self._links, poses):
                view[self._envs] = pose
            for solver in () if is_drawn else self._solvers:
                solver.update_vgeoms()
            # All is in place: rendering is to draw it, and neither to move a camera nor a body.
            visualizer._t = self._scene.sim.cur_step_global
            visualizer.context.reset()
            camera._debug = False  # hides debug drawings made since
            camera._transform[...] = transform
            return self._render()
        finally:
            for view, value in present:
                view.copy_(value)
            visualizer._t, camera._debug = t, debug
            camera._transform[...] = present_transform
            visualizer.context.reset()  # whoever renders next sees the present


def _say(line: str) -> None:
    # A standard output that is closed, or cannot show the name, ends no training.
    with contextlib.suppress(OSError, ValueError):
        print(line)


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


def _is_video_name(name: Any) -> bool:
    try:
        size = len(name.encode())
    except (AttributeError, UnicodeEncodeError):
        return False
    return (
        name == os.path.basename(name)
        and os.path.splitext(name)[1].lower() in _MUXERS
        and min(name) >= " "  # no control character
        and size <= 255
    )


def _includes(env_ids: Any, env_idx: int) -> bool:
    if env_ids is None:
        return True
    ids = env_ids.tolist() if hasattr(env_ids, "tolist") else env_ids
    if isinstance(ids, int):
        return ids == env_idx
    ids = list(ids)
    return ids[env_idx] if ids and isinstance(ids[0], bool) else env_idx in ids


def _writable_folder(out_dir: str) -> str:
    folder = os.path.abspath(out_dir)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        message = f"out_dir must be a folder to write to, but: {error.strerror}"
        raise OSError(error.errno, message, out_dir) from error


def _create_locked(path: str) -> BinaryIO:
    """Creates a file with a lock that tells `_clear_leftovers`, of any process, to let it be."""
    while True:
        file = open(path, "ab")  # noqa: SIM115
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(path):  # else it was cleared before it was locked
            return file
        file.close()


def _clear_leftovers(folder: str) -> None:
    """Removes what recordings of dead processes left (FILE-14)."""
    names = f".{'[0-9a-f]' * 8}-*.part"
    for path in glob.glob(os.path.join(glob.escape(folder), names)) if fcntl else ():
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


# The self-test. Nothing above needs it: whoever keeps a copy of this file may cut it off here.


class _SelfTestEnv:
    """A Go2 on a plane that squats and rises."""

    dt = 0.02
    num_envs = 1

    def __init__(self, resolution: tuple[int, int]) -> None:
        import genesis as gs

        gs.init(backend=gs.cpu, logging_level="error")
        self.scene = gs.Scene(sim_options=gs.options.SimOptions(dt=self.dt), show_viewer=False)
        self.scene.add_entity(gs.morphs.Plane())
        go2 = gs.morphs.URDF(file="urdf/go2/urdf/go2.urdf", pos=(0.0, 0.0, 0.4))
        self.robot = self.scene.add_entity(go2)
        self.camera = self.scene.add_camera(
            res=resolution, pos=(1.2, -0.9, 0.6), lookat=(0.0, 0.0, 0.2)
        )

    def build(self) -> None:
        self.scene.build(n_envs=self.num_envs)
        parts = [
            f"{leg}_{part}" for part in ("hip", "thigh", "calf") for leg in ("FL", "FR", "RL", "RR")
        ]
        self.motors = [self.robot.get_joint(f"{part}_joint").dofs_idx_local[0] for part in parts]
        self.robot.set_dofs_kp([60.0] * 12, self.motors)
        self.robot.set_dofs_kv([2.0] * 12, self.motors)

    def step(self, actions: float) -> Tuple[None, None, None, None, dict[str, Any]]:
        bend = 0.9 + 0.4 * math.sin(actions)
        self.robot.control_dofs_position([0.0] * 4 + [bend] * 4 + [-2 * bend] * 4, self.motors)
        self.scene.step()
        return None, None, None, None, {}

    def reset(self, env_ids: Sequence[int] = None) -> tuple[None, dict[str, Any]]:
        self.scene.reset()
        return None, {}

    def get_observations(self) -> None: ...
    def close(self) -> None: ...


def _self_test() -> None:
    """Records a triggered and a final-episode video of a real scene (MAIN-1, 2)."""
    import argparse

    parser = argparse.ArgumentParser(description=_self_test.__doc__)
    parser.add_argument("--out-dir", default="./videos", help="folder for the two videos")
    parser.add_argument("--steps", type=int, default=200, help="steps of 0.02 s in all")
    parser.add_argument("--res", default="320x240", help="size of the pictures, WIDTHxHEIGHT")
    options = parser.parse_args()
    episode = max(1, options.steps // 2)
    try:
        import imageio_ffmpeg  # noqa: F401 Genesis takes longer to say what is missing

        width, height = map(int, options.res.split("x"))
        warnings.filterwarnings("error", "no video", RuntimeWarning)
        env = VideoWrapper(
            _SelfTestEnv((width, height)),
            video_length_sec=episode * _SelfTestEnv.dt,
            step_trigger=lambda step: step == 0,
            out_dir=options.out_dir,
            fps=25,
        )
        env.build()
        for _ in range(2):
            env.reset()
            for step in range(episode):
                env.step(2 * math.pi * step * env.dt)
        env.close()
    except ModuleNotFoundError as error:
        packages = {"genesis": "torch genesis-world", "imageio_ffmpeg": "imageio-ffmpeg"}
        sys.exit(f"{error}. Try: pip install {packages.get(error.name, error.name)}")
    except RuntimeWarning as error:
        sys.exit(f"{error}. Try: pip install --force-reinstall imageio-ffmpeg")
    except Exception as error:  # noqa: BLE001 Genesis raises many kinds for want of OpenGL
        cause = " ".join(str(error).split())
        if loaded := getattr(sys.modules.get("genesis"), "__version__", ""):
            cause += f". Genesis 0.3.14 to 1.4.5 is supported, and {loaded} is loaded"
        sys.exit(f"{cause}. If OpenGL is missing: apt-get install libgl1 libegl1 libxrender1")


if __name__ == "__main__":
    _self_test()
