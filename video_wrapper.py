"""VideoWrapper: videos of robots that train in the Genesis simulator.

A reference implementation in one file, to be copied into a project. It needs Python 3.10, a camera
in your scene, and the package imageio-ffmpeg, which brings the encoder::

    env = VideoWrapper(MyEnv(), camera_attr="camera", out_dir="./videos")
    env.build()
    ...  # train
    env.close()

Its parts, in the order in which data meets them, none of which knows what is another's::

    VideoWrapper  counts steps and episodes, asks the triggers, says which recording lives
    _View         the watched env's picture, out of what the camera gives
    _Recording    the pictures of some steps: encoded as they come, or kept to be rendered later
    _Replay       Genesis' inside: keeps what is drawn, and shows it again
    _Encoder      pictures in, a whole video out, through ffmpeg

A copy can do without the self-test at the end, and without `_Replay`, if a final episode may be
rendered as it goes: comments say where to cut. Ids in parentheses, such as (TIME-4), are clauses
of the specification. ``python video_wrapper.py`` tries it all on this machine.

SPDX-FileCopyrightText: 2026 The VideoWrapper authors
SPDX-License-Identifier: MIT
"""
# The documented annotations are kept to the letter, and Genesis need not be installed:
# ruff: noqa: RUF013, UP006, UP035
# mypy: implicit-optional, disable-error-code="import, valid-type, type-arg, no-any-return"
# pyright: strictParameterNoneValue=false, reportMissingImports=false, reportGeneralTypeIssues=false
# pyright: reportMissingModuleSource=false

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import itertools
import math
import multiprocessing.util
import operator
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Protocol, Tuple

import numpy as np

try:
    import fcntl
except ImportError:  # Windows, where leftovers stay (FILE-19)
    fcntl: Any = None  # type: ignore[no-redef]

if TYPE_CHECKING:
    import genesis
    import gymnasium
    import torch

__version__ = "1.1.1"
__spec_version__ = "1.1.0"

# The suffixes that a video's name may have, and ffmpeg's muxer for each.
_MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


class GenesisEnv(Protocol):
    """What `VideoWrapper` needs of an env. The environments of genesis-forge have it.

    `build` and `close` may be missing; `reset` and `get_observations` until they are called. Of its
    camera it needs `render()` or, as of Genesis' sensors, `read()`. That returns a picture, or a
    tuple that begins with it: a uint8 array or tensor of shape (height, width, 3), or
    (n, height, width, 3) with a picture of each rendered env (FILE-8, 9).
    """

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


def _passed_on(name: str, doc: str) -> Any:
    return property(operator.attrgetter(f"env.{name}"), doc=doc)


class Wrapper:
    """Passes through to the wrapped env, read anew at each access (DEL-1 to 4)."""

    can_be_wrapped: bool = True
    env: GenesisEnv = None  # type: ignore[assignment]  # pyright: ignore

    dt: float = _passed_on("dt", "The time step of the environment, in seconds of simulation.")
    num_envs: int = _passed_on("num_envs", "The number of parallel environments.")
    scene: genesis.Scene = _passed_on("scene", "The environment's scene.")
    robot: Any = _passed_on("robot", "The environment's robot.")
    num_actions: int = _passed_on("num_actions", "The number of actions for each environment.")
    num_observations: int = _passed_on("num_observations", "The number of observations for each.")
    action_space: gymnasium.spaces = _passed_on("action_space", "The action space.")
    observation_space: gymnasium.spaces = _passed_on("observation_space", "The observation space.")
    extras: dict = _passed_on("extras", "The infos that the environment returns.")

    def __init__(self, env: GenesisEnv) -> None:
        lacks = [name for name in ("step", "dt", "num_envs") if not hasattr(env, name)]
        if isinstance(env, type) or lacks:
            without = ", ".join(lacks) or "an instance"
            raise TypeError(f"env must have step, dt, num_envs, got {env!r:.200} without {without}")
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

    def get_observations(self) -> torch.Tensor:
        """Returns the wrapped env's observations."""
        return self.env.get_observations()


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
        logging: Whether to print a line for each saved video, and what else is worth a line.

    Raises:
        ValueError: Both triggers are given, or an argument has a value that makes no video
            (ARG-1, 3 to 6, 10, 13).
        TypeError: A trigger is not callable, or `env` is no env (ARG-2, 11).
        OSError: `out_dir` cannot be created or written to (ARG-8).
        RuntimeError: There is no ffmpeg, or none that encodes H.264 (ARG-12).
    """

    # What `__del__` and `close` look at, also where the constructor raised.
    _recording: _Recording | None = None
    _last_background: _Recording | None = None  # finished, for close() to save

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
        _demand(None in triggers.values(), "one of the triggers", "None", triggers)
        for name, trigger in triggers.items():
            if trigger is not None and not callable(trigger):
                raise TypeError(f"{name} must be a function of an int, got {trigger!r}")
        is_name = isinstance(camera_attr, str) and camera_attr.isidentifier()
        _demand(is_name, "camera_attr", "a name (the folder is out_dir)", camera_attr)
        is_count = hasattr(env.num_envs, "__index__") and operator.index(env.num_envs) > 0
        _demand(is_count, "env.num_envs", "an int above 0", env.num_envs)
        is_index = hasattr(env_idx, "__index__") and 0 <= operator.index(env_idx) < env.num_envs
        _demand(is_index, "env_idx", f"an int in range({env.num_envs})", env_idx)
        name = "0.mp4" if filename is None else filename
        is_name = isinstance(name, str) and name.isprintable() and len(name.encode()) <= 255
        is_name = is_name and name == os.path.basename(name) and _muxer(name) is not None
        want = "at most 255 bytes, no control character among them, that end in one of"
        _demand(is_name, "filename", f"{want} {', '.join(_MUXERS)}", filename)
        dt = _positive("env.dt", env.dt)
        length = _positive("video_length_sec", video_length_sec) / dt
        _positive("video_length_sec / env.dt", length)
        stride = min(1 / _positive("fps * env.dt", _positive("fps", fps) * dt), 1e15)
        self._length = max(1, math.ceil(_without_noise(length)))
        self._stride = max(1, round(_without_noise(2 * stride) / 2))
        # The limit finds 200/3 behind 66.66666666666667 and keeps to what ffmpeg takes for a rate.
        self._rate = Fraction(1 / (self._stride * dt)).limit_denominator(100_000)
        _demand(0 < self._rate < 2**31, "fps", f"a rate that players take, with dt={dt}", fps)
        _ffmpeg()  # one that is missing shows at once and not at the first recording
        self._out_dir = _writable_folder(out_dir)
        self._filename = filename
        self._say: Callable[[str], None] = _say if logging else lambda line: None
        self._told = {""}
        self._created = time.time()
        for path in _rescue_leftovers(self._out_dir):
            self._say(f"Kept {path}, which a run that was killed had left")

        self._env_idx = operator.index(env_idx)
        self._view = _View(env, camera_attr, self._env_idx)
        self._replay: _Replay | None = None
        self._step_trigger = step_trigger
        self._episode_trigger = episode_trigger
        if episode_trigger is None and step_trigger is None:
            self._episode_trigger = capped_cubic_episode_trigger
        self._record_final_episode = record_final_episode
        self._counts_episodes = self._episode_trigger is not None or record_final_episode
        self._step = 0  # the number of the next step
        self._episode = 0
        self._episode_start = 0
        self._asked_episode = -1
        self._last_flags: tuple[Any, Any, Any, Any] = (None, None, None, None)
        _ends.save_unheld()
        self._age = next(_ends.ages)  # higher than those of older wrappers
        _ends.living.add(self)

    @property
    def video_length_steps(self) -> int:
        """The number of steps that each video covers (TIME-1, 2)."""
        return self._length

    def build(self) -> None:
        """Builds the env and checks that it has the camera.

        An env that is built already needs no call: its camera is found when it is needed (BLD-4).
        If it is built anew, an episode that was begun is over.

        Raises:
            AttributeError: The base environment has no camera of that name (BLD-3).
            TypeError: What it has there can neither `render` nor `read` (BLD-5).
        """
        if self._step:
            self.finish_recording()
            self._end_episode()
        try:
            getattr(self.env, "build", lambda: None)()
        except Exception as error:
            if "already built" in str(error):
                error.args = (f"{error} An env that is built needs no call of build() (BLD-4).",)
            raise
        self._view.camera()

    def step(
        self, actions: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Steps the env, and records a frame if one is due.

        Args:
            actions: What the env's `step` takes; passed on as it is.

        Returns:
            What the env returned: observations, rewards, terminated, truncated, extras. The flags
            `terminated` and `truncated` are indexed by `env_idx`; either may be None (EPI-2, 3).

        Raises:
            TypeError, ValueError: The first step gave something else (EPI-7).
        """
        result = self.env.step(actions)
        step, episode, is_first = self._step, self._episode, self._step == self._episode_start
        # Counted before a trigger or the camera can raise, so that an error miscounts nothing.
        self._step = step + 1
        if self._counts_episodes:
            if not step:
                _check_results(result, self._env_idx, self.num_envs)
            if self._is_done(result[2], result[3]):
                self._end_episode()
        recording, trigger = self._recording, self._step_trigger
        if recording is not None and (recording.is_over or step not in recording.steps):
            self.finish_recording()  # Ctrl-C came before it or broke into it
            recording = None
        if recording is None or recording.type != "active":
            if trigger(step) if trigger is not None else self._is_due(episode):
                self._start("active", step)
            elif self._record_final_episode and is_first:
                self._start("background", step)
        if self._recording is not None:
            self._record(self._recording, step)
        return result

    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Resets envs. The watched env's episode ends, if a step was taken in it (EPI-4).

        Args:
            env_ids: The indices of the envs or a boolean mask over them; None resets all.

        Returns:
            What the env returned: observations and extras.
        """
        result = self.env.reset() if env_ids is None else self.env.reset(env_ids)
        if self._counts_episodes and _includes(env_ids, self._env_idx, self.num_envs):
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
            if not recording.has_frames:
                recording.discard()
            elif recording.type == "active":
                self._save(recording)
            else:
                self._last_background = recording
        # Only now: if Ctrl-C breaks into the saving, close() takes it up again.
        self._recording = None

    def close(self) -> None:
        """Saves what runs or is kept, then closes the env, also if saving fails (CLOSE-1, 2).

        If Ctrl-C breaks into the saving, another call goes on with it (CLOSE-11).
        """
        try:
            self._save_all()
        except Exception:  # a warning that is an error by the user's wish
            getattr(self.env, "close", lambda: None)()
            raise
        getattr(self.env, "close", lambda: None)()

    def __del__(self) -> None:
        # Only noted here, which may be any moment of any thread, and saved at a better one.
        if self._recording is not None or self._last_background is not None:
            _ends.unheld.append(self)

    def __reduce__(self) -> Any:  # copies would write the same files
        raise TypeError("a VideoWrapper cannot be copied or pickled: wrap a copy of its env")

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
        except (AttributeError, IndexError, TypeError, RuntimeError):
            # No tensors, or none with an array, or of a single env and without a dimension.
            return any(_flag(flags, i) for flags in (terminated, truncated))

    def _end_episode(self) -> None:
        if self._step > self._episode_start:  # else it has not begun
            self._episode += 1
            self._episode_start = self._step

    def _is_due(self, episode: int) -> bool:
        if self._asked_episode == episode or self._episode_trigger is None:
            return False
        self._asked_episode = episode
        return bool(self._episode_trigger(episode))

    def _start(self, type: Literal["active", "background"], step: int) -> None:
        if _ends.has_come:
            return  # nobody would finish it
        camera = self._view.camera()
        self.finish_recording()
        _ends.save_unheld()
        encoder = _Encoder(os.path.join(self._out_dir, self._filename or f"{step}.mp4"), self._rate)
        steps = range(step, step + self._length)
        replay = self._find_replay(camera) if type == "background" else None
        self._recording = _Recording(type, steps, self._stride, self._view, encoder, replay)
        _ends.watch()

    def _find_replay(self, camera: Any) -> _Replay | None:
        scene = getattr(self.unwrapped, "scene", None)
        if self._replay is None or not self._replay.is_of(scene, camera):
            self._replay = _Replay(scene, camera)
        return self._replay

    def _record(self, recording: _Recording, step: int) -> None:
        if step in recording.due:
            try:
                recording.capture()
            except _RecordingFailed as failure:
                self.finish_recording()
                self._warn_of(recording, failure)
                return
            if self._last_background is not None:
                self._last_background.discard()
                self._last_background = None
            if recording.remark not in self._told:
                self._told.add(recording.remark)
                _warn(recording.remark)
        if step + 1 not in recording.steps:
            self.finish_recording()

    def _save(self, recording: _Recording) -> None:
        path, failure, note = recording.encoder.path, None, ""
        with contextlib.suppress(OSError):
            if os.path.getmtime(path) < self._created:
                note = ", replacing an earlier file"
        try:
            recording.save(self._say)
        except _RecordingFailed as error:
            failure = error
        if recording.has_frames:
            frames, rate = recording.encoder.frames, float(self._rate)
            self._say(
                f"Saved {path}: {frames} frames, {frames / rate:.4g} s at {rate:.4g} fps{note}"
            )
        if failure is not None:
            self._warn_of(recording, failure)

    def _warn_of(self, recording: _Recording, failure: _RecordingFailed) -> None:
        what = "video ends early:" if recording.has_frames else "no video"
        _warn(f"{what} {recording.encoder.path} from step {recording.steps.start}: {failure}")

    def _save_all(self) -> None:
        self.finish_recording()
        if self._last_background is not None and self._last_background.has_frames:
            self._save(self._last_background)
        self._last_background = None

    def _leave_to_parent(self) -> None:
        """In a forked child (CLOSE-5)."""
        for recording in filter(None, (self._recording, self._last_background)):
            recording.encoder.leave_to_parent()
        self._recording = self._last_background = None


class _Ends:
    """Saves a process's wrappers when it ends, or when nobody holds them (CLOSE-4, 12)."""

    def __init__(self) -> None:
        self.has_come = False
        self.unheld: list[VideoWrapper] = []
        self.living: weakref.WeakSet[VideoWrapper] = weakref.WeakSet()
        self.ages = itertools.count()
        self._finalizer: multiprocessing.util.Finalize | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave_to_parent)

    def save_unheld(self) -> None:
        while self.unheld:
            self.unheld[0]._save_all()
            self.unheld.pop(0)  # not before: Ctrl-C may break into the saving

    def watch(self) -> None:
        # Anew for each recording: the last handler runs first, before Genesis' destroys the scenes.
        atexit.unregister(self._save_all)
        atexit.register(self._save_all)
        # Before Python 3.13, children of multiprocessing run no exit handlers. What is registered
        # here they forget when they start.
        is_child = multiprocessing.parent_process() is not None
        if is_child and not (self._finalizer and self._finalizer.still_active()):
            self._finalizer = multiprocessing.util.Finalize(None, self._save_all, exitpriority=100)

    def _save_all(self) -> None:
        self.has_come = True
        # Of two with one name the newer one's video stays. One that raises does not stop the rest.
        with contextlib.ExitStack() as stack:
            for wrapper in sorted({*self.living, *self.unheld}, key=lambda w: -w._age):
                stack.callback(self._save, wrapper)
        self.unheld.clear()

    def _save(self, wrapper: VideoWrapper) -> None:
        try:
            wrapper._save_all()
        except (KeyboardInterrupt, SystemExit):  # jobs are often sent two signals; a third stops it
            wrapper._save_all()

    def _leave_to_parent(self) -> None:
        for wrapper in {*self.living, *self.unheld}:
            wrapper._leave_to_parent()
        self.unheld.clear()


_ends = _Ends()


class _RecordingFailed(Exception):
    """A recording cannot go on, for the reason that its text gives."""


class _View:
    """The watched env's pictures, of the camera that the env has at the time."""

    def __init__(self, env: GenesisEnv, camera_attr: str, env_idx: int) -> None:
        self._env, self._camera_attr, self._env_idx = env, camera_attr, env_idx

    def camera(self) -> Any:
        env = getattr(self._env, "unwrapped", self._env)
        camera = getattr(env, self._camera_attr, None)
        name = f"{type(env).__name__}.{self._camera_attr}"
        if camera is None:
            raise AttributeError(f"camera_attr must name the camera, but {name} is missing or None")
        if not callable(getattr(camera, "render", getattr(camera, "read", None))):
            got = f"{name} is a {type(camera).__name__}"
            raise TypeError(f"camera_attr must name a camera with render() or read(), but {got}")
        return camera

    def take(self) -> Any:
        camera = self.camera()
        return self.picture((camera.render if hasattr(camera, "render") else camera.read)())

    def picture(self, given: Any) -> Any:
        """What the camera gave as an array: uint8, of shape (height, width, 3)."""
        picture: Any = given[0] if isinstance(given, tuple) and given else given
        shape = tuple(getattr(picture, "shape", ()))
        dtype = str(getattr(picture, "dtype", type(picture).__name__)).removeprefix("torch.")
        if dtype != "uint8" or len(shape) not in (3, 4) or shape[-1] not in (3, 4):
            want = "uint8 of shape (height, width, 3)"
            raise _RecordingFailed(f"the camera must give {want}, got {dtype} of {shape}")
        if len(shape) == 4:
            envs = list(range(self._env.num_envs))
            if len(envs) != shape[0]:  # only some of them are rendered
                visualizer = getattr(getattr(self._env, "scene", None), "visualizer", None)
                context = getattr(visualizer, "context", None)
                envs = list(getattr(context, "rendered_envs_idx", envs))
            if self._env_idx not in envs[: shape[0]]:
                shown = f"the {shape[0]} envs shown"
                raise _RecordingFailed(f"env_idx={self._env_idx} is not among {shown}")
            picture = picture[envs.index(self._env_idx)]
        return (picture.cpu().numpy() if hasattr(picture, "cpu") else picture)[..., :3]


class _Recording:
    """The pictures of some steps: encoded as they come, or kept to be rendered when it is saved.

    A thread feeds the encoder, so that the training waits for a copy of the picture only, and
    Ctrl-C, which reaches the main thread alone, breaks into none of that (CLOSE-6, FAIL-5). The two
    share plain attributes and a queue in C: what else there is to wait for in `threading` and
    `queue` is left locked if Ctrl-C breaks into it.
    """

    def __init__(
        self, type: str, steps: range, stride: int, view: _View, encoder: _Encoder, replay: Any
    ) -> None:
        self.type, self.steps, self.due, self.encoder = type, steps, steps[::stride], encoder
        self.is_over = False  # takes no more pictures
        self.remark = ""  # what its user should know
        # Weak, for its thread would keep the env, and a wrapper that the env knows (CLOSE-12).
        self._view: _View = weakref.proxy(view)
        self._replay: _Replay | None = replay
        self._moments: list[_Moment] = []
        self._room = 0  # bytes that moments may still take
        self._shape: tuple[int, ...] = ()
        self._pictures: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_dropped = self._is_encoded = False
        self._failure = ""

    @property
    def has_frames(self) -> bool:
        return bool(self._shape or self._moments) and not self._is_dropped

    def capture(self) -> None:
        """Records the present picture. Raises _RecordingFailed if that cannot be."""
        if self._thread is None:
            self._start_thread()
        if self._replay is not None:
            try:
                return self._keep(self._replay)
            except _NotReplayable as reason:  # nor can what was kept be trusted
                what = "Each episode that may be the last is rendered as it goes, not when saved"
                remedy = "Where that is too slow: record_final_episode=False"
                self.remark = f"{what}: {reason}. {remedy}" if str(reason) else ""
                self._replay = None
                self._moments.clear()
            except Exception as error:  # out of memory, say
                raise _RecordingFailed(_words(error)) from error
        self._put(self._view.take())

    def save(self, say: Callable[[str], None]) -> None:
        """Completes the video and gives it its name. If Ctrl-C breaks into it, it can go on."""
        self.is_over = True
        count, told, failure = len(self._moments), time.monotonic(), ""
        while self._moments and not self._is_encoded:
            if time.monotonic() - told > 5:
                told = time.monotonic()
                say(
                    f"Rendering {self.encoder.path}: {count - len(self._moments)} of {count} frames"
                )
            try:
                assert self._replay is not None  # it has kept them
                picture = self._view.picture(self._replay.show(self._moments[0]))
                self._wait_until(self._has_room)
                self._moments.pop(0)
                self._put(picture)
            except Exception as error:  # noqa: BLE001 its scene is gone, say
                failure = _words(error)
                self._moments.clear()
        self._end()
        if self._failure or failure:
            raise _RecordingFailed(self._failure or failure)

    def discard(self) -> None:
        """Leaves nothing behind, not even a frame."""
        self._is_dropped = True
        self._moments.clear()
        self._end()

    def _keep(self, replay: _Replay) -> None:
        moment = replay.keep()
        if not self._moments:
            self._room = replay.memory()
            if moment.nbytes * len(self.due) > self._room:
                size = f"{len(self.due)} frames of {moment.nbytes / 1e6:.1f} MB"
                what = f"The last episode would take {size}, over a quarter of the memory there is"
                self.remark = (
                    f"{what}: its video is cut short. Use VisOptions(rendered_envs_idx=[0])"
                )
                self.due = self.due[: max(1, self._room // moment.nbytes)]
        self._room -= moment.nbytes
        if self._room < 0:  # drawings have added up
            raise MemoryError("too much is drawn to keep more frames until they are saved")
        self._moments.append(moment)

    def _put(self, picture: Any) -> None:
        """Hands a picture to the encoder; the first one decides the size."""
        self._shape = self._shape or picture.shape
        frame = f"a frame is uint8 of {picture.shape}"
        if picture.shape != self._shape:
            raise _RecordingFailed(f"{frame}, but the first was of {self._shape}")
        try:
            copy = memoryview(picture.copy("C"))
        except MemoryError as error:
            raise _RecordingFailed(f"{frame}, but memory has run out: {error}") from error
        self._wait_until(self._has_room)
        self._pictures.put(copy)
        # Else a fork could come between ffmpeg's start and what is to be closed in the child.
        self._wait_until(lambda: self.encoder.is_started or self._is_encoded)
        if self._is_encoded:
            raise _RecordingFailed(self._failure)

    def _has_room(self) -> bool:
        # An encoder that falls behind slows the training and does not fill the memory.
        return self._pictures.qsize() < 2 or self._is_encoded

    def _end(self) -> None:
        self.is_over = True
        self._pictures.put(None)
        if self._shape:  # else the thread may not have been started
            self._wait_until(lambda: self._is_encoded)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        # By looking again, at a tenth of the time that encoding a small picture takes.
        start, told = time.monotonic(), False
        while not condition():
            time.sleep(0.0005)
            if not told and time.monotonic() - start > 10:
                told = True
                _warn(
                    f"waiting for ffmpeg, which has not gone on with {self.encoder.path} for 10 s"
                )

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._feed, name=self.encoder.path, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # there are too many, or Python exits
            self._is_dropped = True
            raise _RecordingFailed(str(error)) from error
        except BaseException:  # Ctrl-C, and the thread may run or not
            self._end()
            raise

    def _feed(self) -> None:
        try:
            self.encoder.encode(self._queued())
        except Exception as error:  # noqa: BLE001 the training waits for this thread
            self._failure, self._is_dropped = _words(error), True
        finally:
            self._is_encoded = True

    def _queued(self) -> Iterator[memoryview]:
        while (picture := self._pictures.get()) is not None and not self._is_dropped:
            yield picture
        if self._is_dropped:
            raise _RecordingFailed("dropped")


class _NotReplayable(Exception):
    """Pictures cannot be made again later. Its text says why, if that is worth a word."""


# Of a copy, all from here to `_Encoder` may be cut, if `VideoWrapper._find_replay` returns None.


class _Moment(NamedTuple):
    """What a picture shows."""

    values: list[Any]  # of `_Replay._held`
    nodes: list[Any]  # of the renderer: each with its rank, matrix and poses
    rigid: dict[Any, list[Any]]  # where bodies are; if empty, `nodes` has them
    nbytes: int


class _Replay:
    """Keeps what a Genesis camera would draw, to render it later (FIN-5, 6).

    A picture shows nodes: bodies, and drawings such as arrows. `keep` has Genesis bring up to date
    what they are placed by, as rendering would, and copies it. `show` puts it in place, renders and
    puts the present back. Nothing that the simulation computes with is written, and no other camera
    moves. Whether Genesis works as this class believes, its first pictures tell: it checks itself.
    """

    def __init__(self, scene: Any, camera: Any) -> None:
        self._scene, self._camera = scene, camera
        self._visualizer: Any = getattr(scene, "visualizer", None)
        self._kept = 0
        self._last: tuple[_Moment, float] | None = None  # and what step was drawn then
        self._first: tuple[_Moment, Any] | None = None  # and the camera's own picture
        self._flaw = ""  # in words, as found by the checks

    def is_of(self, scene: Any, camera: Any) -> bool:
        """Whether it keeps this camera's pictures: an env's `build` may make a new scene."""
        is_same = scene is self._scene and camera is self._camera
        return is_same and getattr(scene, "visualizer", None) is self._visualizer

    def memory(self) -> int:
        """The bytes that moments may take: a quarter of what the host has left."""
        import psutil  # Genesis brings it

        return int(psutil.virtual_memory().available) // 4

    def keep(self) -> _Moment:
        """Keeps what the camera would draw now. Renders nothing but to check itself.

        Raises:
            _NotReplayable: That cannot be, and what was kept before cannot be trusted either.
        """
        try:
            if not self._kept:
                self._prepare()
            self._demand_scene()
            if self._context._t >= self._scene.sim.cur_step_global:
                moment = self._drawn()  # what was rendered in this step already
            else:
                self._move_camera()
                moment = self._placed() or self._then_back(self._held[:3], [], self._update)
            self._last = moment, self._context._t
            if self._kept == 0:
                self._check(moment)
            elif self._kept == 3 and self._first and self._differs(*self._first):
                self._flaw = "a picture that was made again later differed from the camera's own"
            if self._flaw:
                raise _NotReplayable(self._flaw)
        except AttributeError as error:
            owner: Any = error.obj if isinstance(error.obj, types.ModuleType) else type(error.obj)
            if not getattr(owner, "__module__", owner.__name__).startswith("genesis."):
                raise
            missing = f"this release of Genesis has no {owner.__name__}.{error.name}"
            raise _NotReplayable(missing) from error
        self._kept += 1
        return moment

    def show(self, moment: _Moment, is_check: bool = False) -> Any:
        """Renders a moment and puts the present back: returns what `camera.render` returns."""

        def render() -> Any:
            self._put(moment)
            return self._render(math.inf, is_check)

        self._demand_scene()
        return self._then_back(self._held, self._drawn().nodes, render)

    def _prepare(self) -> None:
        """Looks for what cannot be kept, and for where the rest is held."""
        gs: Any = sys.modules.get("genesis")
        scene, camera, visualizer = self._scene, self._camera, self._visualizer
        if not (gs and type(camera).__module__.startswith("genesis.")):
            raise _NotReplayable("")  # what a camera written by hand costs is not known here
        if not (isinstance(scene, gs.Scene) and type(camera) is gs.vis.camera.Camera):
            got = f"a {type(camera).__name__} of a {type(scene).__name__}"
            raise _NotReplayable(f"only a Camera of a Scene can show an earlier moment, not {got}")
        if not scene.is_built or all(camera is not c for c in scene.visualizer.cameras):
            raise _NotReplayable("the camera is none of the env's scene, or that is not built")
        self._context, solvers = visualizer.context, scene.active_solvers
        self._renderer, lights = self._context._scene, self._context._scene.light_nodes
        obstacles = {
            "a viewer": visualizer.viewer,  # whose keys change what is drawn
            "ray tracing or batches": visualizer.renderer is not visualizer.rasterizer,
            "soft bodies or particles": not all(hasattr(s, "update_vgeoms") for s in solvers),
            "vertices set by hand": any(getattr(s, "n_custom_vverts", 0) for s in solvers),
            # Propellers turn as they are drawn.
            "a drone": any(hasattr(entity, "propellers_idx") for entity in scene.entities),
            "cameras that are shown": self._context.camera_frustum_shown,
        }
        for obstacle in filter(obstacles.get, obstacles):
            raise _NotReplayable(f"the scene cannot be rendered later, for {obstacle}")
        self._rigid_nodes = set(self._context.rigid_nodes.values())
        bodies = [(s, entity) for s in self._context._rigid_solvers() for entity in s.entities]
        if getattr(self._context, "tracked_nodes", None):  # drawn anew with bodies, as of 1.4.5
            bodies = []
        self._has_matrices = not hasattr(self._context, "rigid_geoms_T")  # before Genesis 1.4.2
        kinds: Any = "_geoms_render_T", "_vgeoms_render_T"
        if not self._has_matrices:
            kinds = False, True  # whether it is visual geometry
            self._to_numpy: Any = gs.utils.misc.qd_to_numpy
            self._to_matrices: Any = gs.utils.geom.trans_quat_to_T
        self._batches = {(s, kinds[entity.surface.vis_mode == "visual"]) for s, entity in bodies}
        held = [
            (visualizer, "_cameras _t"),  # those that an update moves; the step that is drawn
            (self._context, "_t shadow plane_reflection"),
            (camera, "_transform _fov"),
            (self._context.jit, "reflection_mat"),
            (self._renderer, "bg_color ambient_light"),
            *((node, "_matrix") for node in lights),
            *((node.light, "color intensity") for node in lights),
            *(self._batches if self._has_matrices else ()),
        ]
        self._held = [(owner, name) for owner, names in held for name in names.split()]

    def _demand_scene(self) -> None:
        scene = self._scene
        if not scene.is_built or scene.visualizer is not self._visualizer:
            raise _NotReplayable("the scene is gone: close() must come before gs.destroy()")
        if self._flaw:
            raise _NotReplayable(self._flaw)

    def _render(self, drawn: float, is_check: bool) -> Any:
        self._visualizer._cameras = []
        self._visualizer._t = self._context._t = drawn
        # A check is Genesis' own business: an env may count what its camera renders, or change it.
        return type(self._camera).render(self._camera) if is_check else self._camera.render()

    def _then_back(self, held: list[Any], nodes: list[Any], action: Callable[[], Any]) -> Any:
        present = _Moment([getattr(*each) for each in held], nodes, {}, 0)
        try:
            try:
                return action()
            finally:
                self._put(present)
        except BaseException:
            self._put(present)  # Ctrl-C may have broken into it
            raise

    def _move_camera(self) -> None:
        """Does to this camera what rendering does to all that follow a body."""
        camera, sim = self._camera, self._scene.sim
        if camera._attached_link is not None:
            camera.move_to_attach()
        elif camera._followed_entity is not None:
            camera.update_following()
            step = sim.cur_step_global

            def follow() -> None:  # an env that renders later in this step is not to move it again
                del camera.update_following
                if sim.cur_step_global != step:
                    camera.update_following()

            if camera._follow_smoothing is not None:
                camera.update_following = follow

    def _placed(self) -> _Moment | None:
        """What is drawn, if no nodes but those of bodies move by themselves: in less time."""
        context = self._context
        # Before Genesis 1.4.5, whether contacts are drawn shows in an update only.
        has_others = getattr(context, "tracked_nodes", True) or context.link_frame_shown
        if has_others or context.dynamic_nodes:
            return None
        for solver, is_visual in self._batches:
            if is_visual:
                solver.update_vgeoms()
        moment = self._drawn(self._bodies())
        return moment if self._is_sane(moment) else None

    def _update(self) -> _Moment:
        """Has Genesis bring up to date what is drawn, and moves no camera."""
        context, drawn = self._context, self._context._t
        self._visualizer._cameras = []
        self._visualizer._t = context._t = -1
        if self._batches:  # the nodes of bodies take longer than all else: `show` places them
            context.update_rigid = int
        context.update()
        vars(context).pop("update_rigid", None)
        moment = self._drawn(self._bodies())
        if not (self._has_matrices or self._is_sane(moment)):
            if self._last and self._last[0].rigid and self._last[1] == drawn:
                self._put(_Moment([], moment.nodes, self._last[0].rigid, 0))
            context.update_rigid()
            moment = self._drawn()
        self._clear_contacts()
        return moment

    def _clear_contacts(self) -> None:
        # Before Genesis 1.4.5, another picture of this step would draw them twice.
        if not hasattr(self._context, "tracked_nodes"):
            self._context.clear_dynamic_nodes(only_outdated=False)

    def _is_sane(self, moment: _Moment) -> bool:
        # Genesis leaves a body that blew up where it was last drawn, which only its nodes know.
        return all(np.vdot(part, part) < 1e38 for body in moment.rigid.values() for part in body)

    def _bodies(self) -> dict[Any, list[Any]]:
        """Where bodies are, in each rendered env."""
        envs, bodies = self._context.rendered_envs_idx, {}
        for solver, which in self._batches:
            if self._has_matrices:
                bodies[solver, which] = [getattr(solver, which)[:, envs]]
            else:
                state = solver.dyn_state.vgeoms if which else solver.dyn_state.geoms
                parts = [self._to_numpy(p, transpose=True)[envs] for p in (state.pos, state.quat)]
                bodies[solver, which] = parts
        return bodies

    def _drawn(self, rigid: dict[Any, Any] | None = None) -> _Moment:
        """What is drawn. It shares no memory with Genesis, which uses its own again."""
        values = [getattr(*each) for each in self._held]
        values[5] = values[5] + 0  # a copy of the camera's array or tensor
        ranks = getattr(self._renderer, "_node_ranks", {})
        nodes, known = [], {node for node, *_ in self._last[0].nodes} if self._last else ()
        size = sum(part.nbytes for poses in (rigid or {}).values() for part in poses)
        for node in self._renderer.mesh_nodes - (self._rigid_nodes if rigid else set()):
            parts = node.mesh.primitives
            poses = parts[0].poses if len(parts) == 1 else None
            poses = None if poses is None else poses.copy()
            nodes.append((node, ranks.get(node), node.matrix, poses))
            size += getattr(poses, "nbytes", 0)
            if node not in known and node not in self._rigid_nodes:
                size += sum(getattr(v, "nbytes", 0) for part in parts for v in vars(part).values())
        return _Moment(values, nodes, rigid or {}, size)

    def _put(self, moment: _Moment) -> None:
        """Makes it what is drawn. Can be repeated from wherever it was broken off."""
        context, renderer, rigid = self._context, self._renderer, moment.rigid
        for name in "update_rigid", "rigid_geoms_T":  # what an interrupt may have left
            vars(context).pop(name, None)
        for (owner, name), value in zip(self._held, moment.values):
            setattr(owner, name, value)
        if rigid:
            if self._has_matrices:
                for (solver, name), (matrices,) in rigid.items():
                    of_all = getattr(solver, name).copy()
                    of_all[:, context.rendered_envs_idx] = matrices
                    setattr(solver, name, of_all)
            else:
                context.rigid_geoms_T = lambda *batch: self._to_matrices(*rigid[batch])
            context.update_rigid()
            vars(context).pop("rigid_geoms_T", None)
        elif not moment.nodes:
            return
        kept = {node for node, *_ in moment.nodes} | (self._rigid_nodes if rigid else set())
        for node in renderer.mesh_nodes - kept:
            renderer.remove_node(node)
        for node, rank, matrix, poses in moment.nodes:
            if not renderer.has_node(node):
                renderer.add_node(node)
            if rank is not None:
                renderer._node_ranks[node] = rank  # the order in which see-through ones are drawn
            renderer.set_pose(node, matrix)
            if poses is None or np.array_equal(poses, node.mesh.primitives[0].poses):
                continue
            target = [node, "model"]
            if hasattr(renderer, "get_buffer_id"):  # Genesis 1.0
                target = [renderer.get_buffer_id(*target)]
            context.jit.update_buffer(*target, poses.transpose((0, 2, 1)))
            if node in self._rigid_nodes:
                node.mesh._bounds = None
            node.mesh.primitives[0].poses = poses  # last, for an interrupt may come before
        renderer._bounds = None

    def _check(self, moment: _Moment) -> None:
        """Whether a picture shows what its moment says, and all of that."""

        def moved(poses: Any, place: Any) -> Any:
            poses = poses + 0
            (poses[..., :3, 3] if poses.shape[-1] == 4 else poses)[...] = place
            return poses

        is_drawn = self._context._t >= self._scene.sim.cur_step_global
        step = self._context._t if is_drawn else -1
        picture = self._then_back(self._held[:3], [], lambda: self._render(step, True))[0]
        if not is_drawn:
            self._clear_contacts()
        camera = moment.values[5]
        view = np.reshape(camera.tolist(), (-1, 4, 4))[0]
        ahead = view[:3, 3] - 2 * view[:3, 2]  # where all bodies are seen, also by who sees none
        nodes = [
            (node, *rest, moved(poses, ahead) if node in self._rigid_nodes else poses)
            for node, *rest, poses in moment.nodes
        ]
        rigid = {
            batch: [moved(parts[0], ahead), *parts[1:]] for batch, parts in moment.rigid.items()
        }
        values = [*moment.values[:5], moved(camera, 1000), *moment.values[6:]]
        for change in {"values": values}, {"rigid": rigid, "nodes": nodes}:
            if not self._differs(moment._replace(**change), picture):
                self._flaw = "its camera sees nothing, or this Genesis draws in another way"
        if self._differs(moment, picture):
            self._flaw = "a picture that was made again differed from the camera's own"
        self._first = moment, picture

    def _differs(self, moment: _Moment, picture: Any) -> bool:
        return not np.array_equal(self.show(moment, is_check=True)[0], picture)


class _Encoder:
    """Makes a whole video of pictures, through an ffmpeg process. It needs nothing of the above::

        _Encoder("/tmp/a.mp4", Fraction(50)).encode(memoryview(array) for array in pictures)

    Attributes:
        path: The video, under which name nothing stands before it is complete (FILE-3).
        frames: How many pictures ffmpeg was given.
        is_started: Whether ffmpeg runs, and all that a forked child is to close is known.
    """

    def __init__(self, path: str, rate: Fraction) -> None:
        self.path = path
        self.frames = 0
        self.is_started = False
        folder, name = os.path.split(path)
        self._part = os.path.join(folder, f".{os.urandom(4).hex()}-{name[-50:]}.part")
        self._rate = rate
        self._files = contextlib.ExitStack()

    def encode(self, pictures: Iterable[memoryview]) -> None:
        """Encodes pictures, uint8 of shape (height, width, 3), all of one size. Of none, no file.

        Raises:
            _RecordingFailed: There is no video, for the reason given: ffmpeg's words if it has any.
        """
        pictures = iter(pictures)
        first = next(pictures, None)
        if first is None:
            return
        process: Any = None
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            lock = self._files.enter_context(_create_locked(self._part)) if fcntl else None
            process = self._start(first.shape or (), lock)
            self._files.enter_context(process.stderr)
            self._files.enter_context(process.stdin)
            self.is_started = True
            unwritten = first
            for picture in itertools.chain([first], pictures):
                unwritten = picture.cast("B")
                with contextlib.suppress(OSError):  # ffmpeg has gone, and says why
                    while unwritten:
                        unwritten = unwritten[process.stdin.write(unwritten) :]
                if unwritten:
                    break
                self.frames += 1
            process.stdin.close()
            words = process.stderr.read().decode(errors="replace").strip()[-1000:]
            process.wait()
            if unwritten or process.returncode or not _is_whole(self._part):
                raise _RecordingFailed(words or f"ffmpeg ended with code {process.returncode}")
            os.replace(self._part, self.path)
        finally:
            if process is not None and process.poll() is None:  # the pictures ended in an error
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):
                os.unlink(self._part)
            self._files.close()

    def leave_to_parent(self) -> None:
        """In a forked child: closes its copies of the pipe and the files."""
        self._files.close()

    def _start(self, shape: tuple[int, ...], lock: BinaryIO | None) -> subprocess.Popen[bytes]:
        height, width = shape[:2]
        # fmt: off
        command = [
            _ffmpeg(), "-loglevel", "error", "-nostdin", "-y",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}",
            "-framerate", f"{self._rate.numerator}/{self._rate.denominator}", "-i", "pipe:0",
            # yuv420p needs even sizes. The colours are named, or players guess them from the size.
            "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709,"
            + "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709",
            # Once more, for what encodes with ffmpeg 4, which does not hear of it from the filter.
            "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709",
            # Slower presets take more of the training's cores for no better picture, faster ones
            # make larger files; zerolatency keeps no frames back for the end. -threads counts for
            # the filters, too. At the default crf, what moves is blurred and leaves trails of
            # colour, and thin arrows vanish (FILE-18). (python -m pytest --benchmark-only)
            "-c:v", "libx264", "-preset", "veryfast", "-tune", "zerolatency", "-threads", "1",
            "-crf", "17", "-x264-params", "chroma-qp-offset=-3:no-dct-decimate=1",
            "-pix_fmt", "yuv420p",
            # What of an .mkv is written can be played if ffmpeg is killed (CLOSE-9).
            "-cluster_time_limit", "500", "-flush_packets", "1",
            "-movflags", "+faststart", "-f", _muxer(self.path),
            self._part,
        ]
        # fmt: on
        # A job's signals reach all its processes. ffmpeg keeps the mask that it is started with: of
        # no signal but SIGKILL does it end before its pipe closes (CLOSE-7).
        set_mask = getattr(signal, "pthread_sigmask", lambda *_: ())  # Windows has none
        before = set_mask(getattr(signal, "SIG_BLOCK", 0), signal.valid_signals())
        try:
            return subprocess.Popen(
                command,
                bufsize=0,  # else a forked child could write once more what the buffer holds
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # An ffmpeg that outlives this process is still at work on the file (FILE-19).
                pass_fds=[lock.fileno()] if lock else (),
                # So that ffmpeg sees a file-size limit as an error, and says so (FAIL-1).
                restore_signals=False,
                # Out of reach of what kills the group of this process.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        finally:
            set_mask(getattr(signal, "SIG_SETMASK", 0), before)


@functools.cache
def _ffmpeg() -> str:
    """The path of imageio-ffmpeg's ffmpeg, which is asked once whether it encodes H.264."""
    from imageio_ffmpeg import get_ffmpeg_exe

    remedy = "Try: pip install --force-reinstall imageio-ffmpeg, and unset IMAGEIO_FFMPEG_EXE"
    try:
        command = [get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-encoders"]
        encoders = subprocess.check_output(command, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"ffmpeg cannot be run: {error}. {remedy}") from error
    if b"libx264" not in encoders:
        raise RuntimeError(f"{command[0]} cannot encode H.264: it lacks libx264. {remedy}")
    return command[0]


def _muxer(path: str) -> Any:
    return _MUXERS.get(os.path.splitext(path)[1].lower())


def _is_whole(path: str) -> bool:
    """Whether ffmpeg has completed the file: its exit code is lost where SIGCHLD is ignored."""
    size, position = os.path.getsize(path), 0
    with open(path, "rb") as file:
        head = file.read(64)
        if segment := re.search(rb"\x18S\x80g\x01(.{7})", head, re.DOTALL):
            # Matroska's length, which is all ones until the end.
            return segment.end() + int.from_bytes(segment[1], "big") == size
        while position < size:
            file.seek(position)
            box = file.read(16)
            length = int.from_bytes(box[:4], "big")
            position += max(int.from_bytes(box[8:], "big") if length == 1 else length, 8)
    # The last that +faststart does is to put the index, moov, at the front.
    return position == size and b"moov" in head


def _has_frame(path: str) -> bool:
    """Whether ffmpeg finds a frame in the file."""
    command = [_ffmpeg(), "-loglevel", "quiet", "-nostdin", "-i", f"file:{path}"]
    command += ["-frames:v", "1", "-f", "rawvideo", "pipe:1"]
    return bool(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)


def _rescue_leftovers(folder: str) -> list[str]:
    """Removes what recordings of dead processes left, but for what can be played (FILE-19).

    Returns:
        The paths of that, under names of its own.
    """
    rescued = []
    names = f".{'[0-9a-f]' * 8}-*.part"
    for path in glob.glob(os.path.join(glob.escape(folder), names)) if fcntl else ():
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an encoder at work has locked it
            mark, name = os.path.basename(path)[1:9], os.path.basename(path)[10:-5]
            # What of an .mkv is written can be played, and of the others what is whole.
            if (_muxer(name) == "matroska" or _is_whole(path)) and _has_frame(path):
                stem, suffix = os.path.splitext(name)
                rescued.append(os.path.join(folder, f"{stem}-{mark}{suffix}"))
                os.rename(path, rescued[-1])
            else:
                os.unlink(path)
    return rescued


def _create_locked(path: str) -> BinaryIO:
    """Creates a file with a lock that tells `_rescue_leftovers`, of any process, to let it be."""
    while True:
        file = open(path, "ab")  # noqa: SIM115
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(path):  # else it was cleared before it was locked
            return file
        file.close()


def _writable_folder(out_dir: str) -> str:
    if not isinstance(out_dir, (str, os.PathLike)) or not os.fspath(out_dir):
        raise ValueError(f"out_dir must be a folder's name, got {out_dir!r}")
    folder = os.path.abspath(out_dir)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        message = f"out_dir must be a folder to write to, but: {error.strerror}"
        raise OSError(error.errno, message, out_dir) from error


def _say(line: str) -> None:
    # Whatever stands in for the standard output, a line that cannot be printed ends no training.
    with contextlib.suppress(Exception):
        print(line)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _words(error: BaseException) -> str:
    is_told = isinstance(error, (OSError, _RecordingFailed, _NotReplayable))
    return str(error) if is_told else f"{type(error).__name__}: {error}"


def _demand(is_right: bool, name: str, want: str, value: Any) -> None:
    if not is_right:
        raise ValueError(f"{name} must be {want}, got {value!r}")


def _positive(name: str, value: float) -> float:
    with contextlib.suppress(TypeError, OverflowError):
        if math.isfinite(value) and value > 0:
            return float(value)
    raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def _without_noise(quotient: float) -> float:
    """The nearest integer, if only float noise lies between: 0.3 / 0.1 is 3 (TIME-2)."""
    nearest = round(quotient)
    return nearest if math.isclose(quotient, nearest, rel_tol=1e-6) else quotient


def _check_results(result: Any, env_idx: int, num_envs: int) -> None:
    """Refuses what cannot be the five results of a step, of which two are flags (EPI-7)."""
    want = "env.step must return (observations, rewards, terminated, truncated, extras)"
    if not isinstance(result, (tuple, list)) or len(result) != 5:
        got = f"{len(result)} results" if isinstance(result, (tuple, list)) else repr(result)
        raise TypeError(f"{want}, got {got}")
    for name, flags in zip(("terminated", "truncated"), result[2:4]):
        if flags is not None and not _are_flags(flags, env_idx, num_envs):
            want += f", {name} being None or a flag for each of {num_envs} envs"
            raise ValueError(f"{want}, got {flags!r:.200}")


def _are_flags(flags: Any, env_idx: int, num_envs: int) -> bool:
    with contextlib.suppress(TypeError, ValueError):
        values = np.asarray(flags.tolist() if hasattr(flags, "tolist") else flags)
        count = values.size
        is_row = values.shape[:1] == (count,) or num_envs == count == 1
        is_truth = (
            values.dtype.kind in "biu" or values.dtype.kind == "f" and {*values.flat} <= {0, 1}
        )
        return is_row and env_idx < count <= num_envs and is_truth
    return False


def _flag(flags: Any, env_idx: int) -> bool:
    with contextlib.suppress(IndexError, TypeError):  # of a single env, without a dimension
        flags = flags[env_idx]
    return bool(flags)


def _includes(env_ids: Any, env_idx: int, num_envs: int) -> bool:
    """Whether `env_ids` selects the env, of a tensor over all (EPI-4)."""
    if env_ids is None:
        return True
    if isinstance(env_ids, tuple):
        # Of nonzero(as_tuple=True) and np.where: the indices of the first dimension.
        env_ids = env_ids[0] if any(getattr(i, "ndim", 0) for i in env_ids) else list(env_ids)
    ids: Any = getattr(env_ids, "reshape", lambda _: env_ids)(-1)
    library: Any = sys.modules.get("torch", np)
    marks = library.zeros(num_envs, dtype=bool)
    try:
        marks[getattr(ids, "cpu", lambda: ids)()] = True
        return bool(marks[env_idx])
    except (IndexError, TypeError, ValueError, RuntimeError):  # what only its own env takes
        with contextlib.suppress(TypeError):
            return env_idx in ids
        return False


# The self-test. Nothing above needs it: whoever keeps a copy of this file may cut it off here.


class _SelfTestEnv:
    """A Go2 on a plane that squats in its first episode and sways in its second."""

    dt, num_envs = 0.02, 1

    def __init__(self) -> None:
        import genesis

        gs: Any = genesis
        gs.init(backend=gs.cpu, logging_level="error")
        self.scene = gs.Scene(sim_options=gs.options.SimOptions(dt=self.dt), show_viewer=False)
        self.scene.add_entity(gs.morphs.Plane())
        go2 = gs.morphs.URDF(file="urdf/go2/urdf/go2.urdf", pos=(0.0, 0.0, 0.4))
        self.robot = self.scene.add_entity(go2)
        look = {"pos": (1.2, -0.9, 0.6), "lookat": (0.0, 0.0, 0.2)}
        self.camera = self.scene.add_camera(res=(320, 240), **look)
        self.scene.build(n_envs=1)
        joints = [joint for joint in self.robot.joints if joint.n_dofs == 1]
        self.motors = [joint.dofs_idx_local[0] for joint in joints]
        self.parts = [joint.name.split("_")[1] for joint in joints]
        self.robot.set_dofs_kp([60.0] * 12, self.motors)
        self.robot.set_dofs_kv([2.0] * 12, self.motors)

    def step(self, actions: tuple[float, float]) -> Tuple[None, None, None, None, dict[str, Any]]:
        bend = {"hip": 0.3 * actions[1], "thigh": 0.9 + 0.4 * actions[0]}
        bend["calf"] = -2 * bend["thigh"]
        targets = [bend[part] for part in self.parts]
        self.robot.control_dofs_position(targets, self.motors)
        self.scene.step()
        return None, None, None, None, {}

    def reset(self) -> tuple[None, dict[str, Any]]:
        self.scene.reset()
        return None, {}


def _self_test() -> None:
    """Records a triggered and a final-episode video of a real scene (MAIN-1, 2)."""
    import argparse

    parser = argparse.ArgumentParser(description=_self_test.__doc__)
    parser.add_argument("--out-dir", default="./videos", help="folder for the two videos")
    parser.add_argument("--steps", type=int, default=200, help="steps of 0.02 s in all")
    options = parser.parse_args()
    episode = max(1, options.steps // 2)
    print("Building a Genesis scene, which takes minutes the first time on a machine", flush=True)

    # A process, since Genesis compiles for a minute at a time and lets no thread run meanwhile.
    code = """
import sys, threading
reader = threading.Thread(target=sys.stdin.read, daemon=True)
reader.start()
while reader.join(10) or reader.is_alive():
    print("Genesis is still at work", flush=True)
"""
    command = [sys.executable, "-c", code]
    teller = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    atexit.register(teller.communicate)
    try:
        _ffmpeg()  # Genesis takes longer to say what is missing
        warnings.filterwarnings("error", "no video|video ends", RuntimeWarning)
        make: Any = VideoWrapper  # an env may be simpler than the documented one
        lasts, first = {"video_length_sec": episode * 0.02, "fps": 25}, lambda step: step == 0
        env = make(_SelfTestEnv(), step_trigger=first, out_dir=options.out_dir, **lasts)
        env.build()
        for step in range(2 * episode):
            if step % episode == 0:
                env.reset()
            wave = math.sin(2 * math.pi * step * env.dt)
            env.step((wave, 0.0) if step < episode else (0.0, wave))
        print("Rendering the final episode", flush=True)
        env.close()
    except ModuleNotFoundError as error:
        packages = {"genesis": "torch genesis-world", "imageio_ffmpeg": "imageio-ffmpeg"}
        sys.exit(f"{error}. Try: pip install {packages.get(error.name or '', error.name)}")
    except Exception as error:  # noqa: BLE001 Genesis raises many kinds for want of OpenGL
        hint = "If OpenGL is missing: apt-get install libgl1 libegl1 libxrender1"
        version = getattr(sys.modules.get("genesis"), "__version__", "not loaded")
        sys.exit(f"{' '.join(str(error).split())}. Genesis is {version}. {hint}")


if __name__ == "__main__":
    _self_test()
