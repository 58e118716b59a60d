# SPDX-FileCopyrightText: 2026 The VideoWrapper authors
# SPDX-License-Identifier: MIT
#
# Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
# associated documentation files (the "Software"), to deal in the Software without restriction,
# including without limitation the rights to use, copy, modify, merge, publish, distribute,
# sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
# furnished to do so, subject to the following conditions:
#
# The above copyright notice and this permission notice shall be included in all copies or
# substantial portions of the Software.
#
# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
# NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
# NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
# DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
# OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""VideoWrapper records videos of a robot while it trains in the Genesis simulator.

Copy this file into your project and ``pip install imageio-ffmpeg``, which brings the encoder::

    env = VideoWrapper(MyEnv(), camera_attr="camera", out_dir="./videos")

`Wrapper` passes everything through to the env. `VideoWrapper` counts steps and episodes and decides
which recording lives. `_Recording` has the frames of a video so far. `_Encoder` makes the video.
`_DeferredRenderer` stores what a Genesis camera would show, to render it later; a copy works
without it if `VideoWrapper._defer` returns False. Ids such as (TIME-4) are clauses of the spec.
"""
# The annotations are those of the documented API, and Genesis need not be installed:
# ruff: noqa: RUF013, UP006, UP035
# mypy: implicit-optional, disable-error-code="import, valid-type, type-arg, no-any-return"
# pyright: strictParameterNoneValue=false, reportMissingImports=false, reportGeneralTypeIssues=false

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import copy
import functools
import math
import multiprocessing.util
import operator
import os
import signal
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Tuple

import numpy as np

if TYPE_CHECKING:
    import genesis
    import gymnasium
    import torch

GenesisEnv = Any  # an env of genesis-forge, or any that has what `VideoWrapper` needs
__version__ = __spec_version__ = "2.0.0"

MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # ffmpeg's, by suffix
MAX_NAME = 255  # bytes of a file's name
FLOAT_NOISE = 1e-6  # 0.3 / 0.1 is not quite 3 (TIME-1)
MAX_DENOMINATOR, MAX_RATE = 100_000, 2**31 - 1  # of the fractions that ffmpeg takes for rates
WORTHWHILE_SECONDS = 1.0  # a recording this long is preferred to an older one (FIN-3)
FIRST_RESTART = 4  # an episode that goes on is recorded again from its steps 4N, 8N, ... (FIN-2)
MEMORY_SHARE = 1 / 4  # of the available memory, for the snapshots of a recording (FIN-9)


def capped_cubic_episode_trigger(episode: int) -> bool:
    """Choose the default episodes: 0, 1, 8, 27, ..., 729, 1000, 2000, 3000, ... (TRIG-1)."""
    return episode % 1000 == 0 if episode > 1000 else episode in (k**3 for k in range(11))


def _delegated(name: str, doc: str) -> Any:
    return property(operator.attrgetter(f"env.{name}"), doc=doc)


class Wrapper:
    """Passes everything through to the wrapped env, also attributes that are read or set (DEL)."""

    can_be_wrapped: bool = True
    env: GenesisEnv = None

    dt: float = _delegated("dt", "The time step of the environment, in seconds of simulation.")
    num_envs: int = _delegated("num_envs", "The number of parallel environments.")
    scene: genesis.Scene = _delegated("scene", "The environment's scene.")
    robot: Any = _delegated("robot", "The environment's robot.")
    num_actions: int = _delegated("num_actions", "The number of actions of each environment.")
    num_observations: int = _delegated("num_observations", "The observations of each environment.")
    action_space: gymnasium.spaces = _delegated("action_space", "The action space.")
    observation_space: gymnasium.spaces = _delegated("observation_space", "The observation space.")
    extras: dict = _delegated("extras", "The infos that the environment returns.")

    def __init__(self, env: GenesisEnv) -> None:
        if isinstance(env, type) or not all(hasattr(env, x) for x in ("step", "dt", "num_envs")):
            raise TypeError(f"env must be an instance with step, dt and num_envs, got {env!r:.200}")
        _demand(getattr(env, "can_be_wrapped", True), "env", "one with can_be_wrapped=True", env)
        self.env = env
        if "genesis_forge" in sys.modules:
            with contextlib.suppress(ImportError):  # an RL library is not installed
                # Its wrappers for those accept only its own classes: become one of them (API-9).
                from genesis_forge.wrappers.wrapper import Wrapper as ForgeWrapper

                if not isinstance(self, ForgeWrapper):
                    self.__class__ = type(type(self).__name__, (type(self), ForgeWrapper), {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "env" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)

    def __setattr__(self, name: str, value: Any) -> None:
        is_own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        owner = super() if is_own or not hasattr(self.env, name) else self.env
        owner.__setattr__(name, value)

    @property
    def unwrapped(self) -> GenesisEnv:
        """The base environment, underneath all layers of wrappers."""
        return getattr(self.env, "unwrapped", self.env)

    def get_observations(self) -> torch.Tensor:
        """Return the wrapped env's observations."""
        return self.env.get_observations()


class VideoWrapper(Wrapper):
    """Records videos during training: the episodes or steps you choose, plus the final episode.

    A video shows every k-th of the next `video_length_steps` steps, where k is 1 / (fps * dt),
    rounded, and plays at the simulation's speed (TIME). A recording that fails gives a
    RuntimeWarning. Errors of the env, the camera or a trigger are passed on (FAIL).

    Args:
        env: The environment to wrap, built or not. It has `dt`, `num_envs` and `step`.
        camera_attr: The base environment's attribute with the camera. Its `render()` or `read()`
            gives uint8 (height, width, 3), one a rendered env, or a tuple that begins so (FILE-8).
        video_length_sec: Length of each video, in seconds of simulation.
        episode_trigger: Asked once for each episode of the watched env, from 0: True records it.
            Without a trigger, `capped_cubic_episode_trigger` is asked (TRIG).
        step_trigger: Asked for each step, from 0, while no active recording runs: True starts one.
        out_dir: The folder for the videos. It is created if it is missing.
        fps: Frames per second. The nearest rate with a whole number of steps per frame is used.
        env_idx: The watched env: its episodes are counted, and its image is taken.
        filename: A name ending in .mp4, .m4v, .mov or .mkv. Each video overwrites the one before.
            If None, a video is named ``{step}.mp4`` after its first step.
        record_final_episode: Whether `close` saves a video of the final episode (FIN).
        logging: Whether to print a line for each saved video.

    Raises:
        ValueError, TypeError: An argument makes no video (ARG-1 to 6).
        OSError: `out_dir` cannot hold recordings (ARG-7).
        RuntimeError: ffmpeg cannot be run (ARG-12).
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
        for name, trigger in ("episode_trigger", episode_trigger), ("step_trigger", step_trigger):
            if trigger is not None and not callable(trigger):
                raise TypeError(f"{name} must be a function of an int, got {trigger!r}")
        if episode_trigger is not None and step_trigger is not None:
            raise ValueError("pass episode_trigger or step_trigger, not both")
        is_name = isinstance(camera_attr, str) and camera_attr.isidentifier()
        _demand(is_name, "camera_attr", "the name of an attribute", camera_attr)
        name = "0.mp4" if filename is None else filename
        is_name = isinstance(name, str) and name == os.path.basename(name)
        is_name = is_name and Path(name).suffix.lower() in MUXERS
        is_name = is_name and len(os.fsencode(name)) <= MAX_NAME
        rule = f"a bare file name of at most {MAX_NAME} bytes ending in {', '.join(MUXERS)}"
        _demand(is_name, "filename", f"{rule} (use out_dir for the folder)", name)
        _demand(out_dir not in (None, ""), "out_dir", "the name of a folder", out_dir)
        self._camera_attr, self._env_idx = camera_attr, env_idx
        self._demand_env_idx()
        dt = _positive("env.dt", env.dt)
        per_frame = 1 / _positive("fps * env.dt", _positive("fps", fps) * dt)
        length = _positive("video_length_sec", video_length_sec) / dt
        self._length = max(1, math.ceil(_integral(_positive("video_length_sec / env.dt", length))))
        self._stride = max(1, round(_integral(2 * _positive("1 / (fps * env.dt)", per_frame)) / 2))
        self._rate = Fraction(1 / (self._stride * dt)).limit_denominator(MAX_DENOMINATOR)
        _demand(0 < self._rate <= MAX_RATE, "fps", "a rate that players take with this env.dt", fps)
        self._worthwhile = min(self._length, math.ceil(_integral(WORTHWHILE_SECONDS / dt)))
        _ffmpeg()  # if it is missing, the first recording would fail hours later
        self._out_dir, self._filename = _recording_folder(out_dir), filename
        self._logging, self._record_final_episode = logging, record_final_episode
        self._step_trigger, self._episode_trigger = step_trigger, episode_trigger
        if episode_trigger is None and step_trigger is None:
            self._episode_trigger = capped_cubic_episode_trigger
        self._counts_episodes = self._episode_trigger is not None or record_final_episode
        self._step = self._episode = self._episode_start = 0  # of the next step
        # The last episode the trigger knows, and the episode's step at which a background is due.
        self._asked_episode, self._next_background = -1, 0
        self._recordings: list[_Recording] = []
        self._renderer: _DeferredRenderer | None = None
        self._can_defer, self._has_warned = True, False
        _living[id(self)] = self

    @property
    def video_length_steps(self) -> int:
        """The number of steps that each video covers (TIME-1)."""
        return self._length

    def build(self) -> None:
        """Build the env, unless it is built already, and check its camera and `env_idx` (BLD)."""
        if self._step:
            self.finish_recording()
            self._end_episode()
        getattr(self.env, "build", lambda: None)()
        self._demand_env_idx()
        self._camera()

    def step(
        self, actions: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Step the env, and record a frame if one is due.

        Args:
            actions: The actions for the env's `step`, passed on unchanged.

        Returns:
            The env's four or five results, unchanged. Those between rewards and extras are None or
            a bool or int for each env (EPI-2). Others raise a TypeError or ValueError (EPI-7).
        """
        result = self.env.step(actions)
        if self._counts_episodes and not self._step:
            _check_results(result, self._env_idx, self.num_envs)
        try:
            self._start_what_is_due()
            for recording in self._recordings[-1:]:
                if self._step in recording.steps[:: self._stride]:
                    self._capture(recording)
        finally:
            # Even if a trigger or the camera raised: a step that is not counted shifts all others.
            self._step += 1
            if self._counts_episodes and _is_done(result[2:-1], self._env_idx):
                self._end_episode()
        if self._recordings:
            self._settle()
        return result

    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Reset envs and return what the env returned.

        Args:
            env_ids: Indices of the envs, or a mask; None for all. The watched env's episode ends
                if it is among them and has taken a step (EPI-4).
        """
        result = self.env.reset() if env_ids is None else self.env.reset(env_ids)
        if env_ids is None or _includes(env_ids, self._env_idx, self.num_envs):
            self._end_episode()
        return result

    def start_recording(self, type: Literal["active", "background"] = "active") -> None:
        """Start a recording with the next step, and finish the one in progress (REC-1).

        Args:
            type: "active", saved when it finishes, or "background", saved by `close` (FIN-3).
        """
        _demand(type in ("active", "background"), "type", '"active" or "background"', type)
        self._start(type)

    def finish_recording(self) -> None:
        """Stop the recording in progress and, if it is active, save it (REC-2)."""
        for recording in self._recordings:
            recording.steps = range(recording.steps.start, min(recording.steps.stop, self._step))
        self._settle()

    def close(self) -> None:
        """Save pending videos, then close the env, even if that fails. Ctrl-C: call it again."""
        try:
            self._settle(is_closing=True)
        except Exception:  # a warning that the user has turned into an error
            getattr(self.env, "close", lambda: None)()
            raise
        getattr(self.env, "close", lambda: None)()

    def __del__(self) -> None:
        if "_recordings" in vars(self):  # the constructor has not raised
            self._settle(is_closing=True)  # as a file object does

    def __reduce__(self) -> Any:
        raise TypeError("a VideoWrapper cannot be copied or pickled: wrap a copy of its env")

    def _start_what_is_due(self) -> None:
        if any(it.type == "active" and self._step in it.steps for it in self._recordings[-1:]):
            return
        age, is_triggered = self._step - self._episode_start, False
        if self._step_trigger is not None:
            is_triggered = self._step_trigger(self._step)
        elif self._episode_trigger is not None and self._asked_episode != self._episode:
            self._asked_episode = self._episode
            is_triggered = self._episode_trigger(self._episode)
        if is_triggered:
            self._start("active")
        elif self._record_final_episode and age >= self._next_background:
            self._start("background")
            doubled = 2 ** (age // self._length).bit_length()
            self._next_background = self._length * max(FIRST_RESTART, doubled)

    def _end_episode(self) -> None:
        if self._step > self._episode_start:  # an episode without a step has not begun
            self._episode += 1
            self._episode_start, self._next_background = self._step, 0

    def _start(self, type: Literal["active", "background"]) -> None:
        if id(self) not in _living:
            return  # the process is ending, and nothing would finish the recording
        self._camera()
        self.finish_recording()
        shown = self._rendered_envs()
        if shown and self._env_idx not in shown and not self._has_warned:
            self._has_warned = True
            found = f"shows rendered_envs_idx={shown}, not env_idx={self._env_idx}"
            _warn(f"{self._camera_attr} {found}: pass VisOptions(rendered_envs_idx=[env_idx])")
        path = os.path.join(self._out_dir, self._filename or f"{self._step}.mp4")
        steps = range(self._step, self._step + self._length)
        self._recordings += [_Recording(type, self._episode, steps, _Encoder(path, self._rate))]
        _save_all_at_exit()

    def _capture(self, recording: _Recording) -> None:
        try:
            if recording.type == "active" or not self._defer(recording):
                camera = self._camera()
                image = camera.render() if hasattr(camera, "render") else camera.read()
                recording.encoder.write(self._frame(image))
        except _RecordingFailed as failure:
            self.finish_recording()
            self._warn_of(recording, failure)

    def _defer(self, recording: _Recording) -> bool:
        """Store a snapshot, and return True, if the frame can be rendered later (FIN-6)."""
        scene, camera = getattr(self.unwrapped, "scene", None), self._camera()
        if not (self._can_defer and type(scene).__module__.startswith("genesis.")):
            return False
        try:
            import psutil  # Genesis brings it

            if self._renderer is None or not self._renderer.is_of(scene, camera):
                self._renderer = _DeferredRenderer(scene, camera)
            render, nbytes = self._renderer.snapshot()
        except (_CannotDefer, AttributeError) as reason:
            self._can_defer = False
            recording.snapshots.clear()
            what = f"cannot defer rendering of {self._camera_attr} ({reason})"
            remedy = "If this is too slow, pass record_final_episode=False."
            _warn(f"{what}, so every background frame is rendered now. {remedy}")
            return False
        except Exception as error:  # for example, the device is out of memory
            raise _RecordingFailed(f"{type(error).__name__}: {error}") from error
        recording.room = recording.room or psutil.virtual_memory().available * MEMORY_SHARE
        recording.room -= nbytes
        if recording.room < 0:
            what = f"snapshots of {nbytes / 1e6:.3g} MB fill a quarter of the available memory"
            raise _RecordingFailed(f"{what}; pass VisOptions(rendered_envs_idx=[env_idx])")
        recording.snapshots.append(render)
        return True

    def _settle(self, is_closing: bool = False) -> None:
        """Save active recordings that are over, and drop what `close` would not save (FIN-3)."""
        good = self._is_worthwhile
        rated = [it for it in self._recordings if it.frames and (it.type != "active" or good(it))]
        best = max(rated, key=lambda it: (good(it), it.steps.start), default=None)
        for each in [*self._recordings]:
            start, ended = each.steps.start, is_closing or self._step >= each.steps.stop
            if ended and each.frames and each.type == "active" or is_closing and each is best:
                self._save(each)
                older = [it for it in self._recordings if it.steps.start <= start]
                # An older video must not overwrite this one.
                self._drop(older if self._filename and each.frames else [each])
            elif is_closing or best and start < best.steps.start or ended and not each.frames:
                self._drop([each])

    def _is_worthwhile(self, recording: _Recording) -> bool:
        """Return whether it is long enough to watch, or its episode has ended (FIN-3)."""
        lasted = min(self._step, recording.steps.stop) - recording.steps.start
        has_ended = recording.type == "background" and recording.episode < self._episode
        return has_ended or lasted >= self._worthwhile

    def _drop(self, recordings: Sequence[_Recording]) -> None:
        for recording in recordings:
            recording.encoder.discard()
            self._recordings.remove(recording)

    def _save(self, recording: _Recording) -> None:
        """Complete the video. It can resume after Ctrl-C."""
        encoder, rate = recording.encoder, float(self._rate)
        try:
            while recording.snapshots:
                frame = self._frame(recording.snapshots[0]())
                recording.snapshots.pop(0)
                encoder.write(frame)
        except Exception as error:  # noqa: BLE001 rendering may raise anything
            recording.snapshots.clear()
            self._warn_of(recording, error)
        try:
            if encoder.finish() and self._logging:
                length = f"{encoder.frames} frames, {encoder.frames / rate:.4g} s at {rate:.4g} fps"
                with contextlib.suppress(Exception):  # a line that cannot be printed
                    print(f"Saved {encoder.path}: {length}")
        except _RecordingFailed as error:
            self._warn_of(recording, error)

    def _warn_of(self, recording: _Recording, failure: Exception) -> None:
        what = f"ended early, after {recording.frames} frames" if recording.frames else "failed"
        name = f"{recording.encoder.path} (from step {recording.steps.start})"
        _warn(f"recording {name} {what}: {failure}")

    def _camera(self) -> Any:
        camera = getattr(self.unwrapped, self._camera_attr, None)
        name = f"{type(self.unwrapped).__name__}.{self._camera_attr}"
        if camera is None:
            raise AttributeError(f"camera_attr must name the camera, but {name} is missing or None")
        if not (hasattr(camera, "render") or hasattr(camera, "read")):
            raise TypeError(f"{name} must be a camera with render() or read(), got {camera!r:.200}")
        return camera

    def _frame(self, image: Any) -> np.ndarray:
        """Return the watched env's image of what the camera returned, as (height, width, 3)."""
        image = image[0] if isinstance(image, tuple) and image else image
        shape = tuple(getattr(image, "shape", ()))
        dtype = str(getattr(image, "dtype", type(image).__name__)).removeprefix("torch.")
        if dtype != "uint8" or len(shape) not in (3, 4) or shape[-1] not in (3, 4) or 0 in shape:
            found = f"the camera returned {dtype} {shape}"
            raise _RecordingFailed(f"{found}, expected uint8 (height, width, 3)")
        if len(shape) == 4:  # one image for each rendered env
            envs = (shape[0] != self.num_envs and self._rendered_envs()) or [*range(shape[0])]
            if self._env_idx not in envs:
                raise _RecordingFailed(f"the camera returned the envs {envs}, not {self._env_idx}")
            image = image[envs.index(self._env_idx)]
        try:
            image = image.cpu().numpy() if hasattr(image, "cpu") else image
            return np.ascontiguousarray(image[..., :3])
        except (MemoryError, RuntimeError) as error:
            raise _RecordingFailed(f"a frame is {dtype} {shape}, {error!r}") from error

    def _rendered_envs(self) -> list[int]:
        visualizer = getattr(getattr(self.unwrapped, "scene", None), "visualizer", None)
        envs = getattr(getattr(visualizer, "context", None), "rendered_envs_idx", None)
        return [] if envs is None else [int(i) for i in envs]

    def _demand_env_idx(self) -> None:
        i, count = self._env_idx, self.env.num_envs
        is_index = hasattr(i, "__index__") and hasattr(count, "__index__") and i in range(count)
        _demand(is_index, "env_idx", f"an int below env.num_envs={count!r}", i)


# Wrappers by id, in order of creation.
_living: weakref.WeakValueDictionary[int, VideoWrapper] = weakref.WeakValueDictionary()
_finalizers: list[multiprocessing.util.Finalize] = []


def _save_all_at_exit() -> None:
    # Anew for each recording: the last handler runs first, before Genesis' destroys the scenes.
    atexit.unregister(_save_all)
    atexit.register(_save_all)
    # Before Python 3.13, children of multiprocessing run only these, and lose them as they start.
    if not any(finalizer.still_active() for finalizer in _finalizers):
        _finalizers[:] = [multiprocessing.util.Finalize(None, _save_all, exitpriority=100)]


def _save_all() -> None:
    for wrapper in [*_living.values()]:  # of videos with one name, the newest stays (CLOSE-4)
        del _living[id(wrapper)]
        try:
            wrapper._settle(is_closing=True)
        except (KeyboardInterrupt, SystemExit):  # jobs are often sent two signals (CLOSE-6)
            wrapper._settle(is_closing=True)
        except Exception as error:  # noqa: BLE001 a warning that the user has turned into one
            sys.excepthook(type(error), error, error.__traceback__)


def _leave_to_parent() -> None:
    for wrapper in [*_living.values()]:  # in a forked child: the recordings are its parent's
        for recording in wrapper._recordings:
            recording.encoder.leave_to_parent()
        wrapper._recordings.clear()


getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_leave_to_parent)


class _RecordingFailed(Exception):
    """A recording cannot go on, for the reason in the text."""


@dataclass(eq=False)
class _Recording:
    """The steps of one video, and its frames so far: encoded, or snapshots to be rendered."""

    type: Literal["active", "background"]
    episode: int  # of the watched env, at the first step
    steps: range  # that it covers
    encoder: _Encoder
    snapshots: list[Callable[[], Any]] = field(default_factory=list)  # each renders a frame
    room: float = 0.0  # bytes that further snapshots may take

    @property
    def frames(self) -> int:
        return self.encoder.frames + len(self.snapshots)


class _Encoder:
    """Encodes one video with ffmpeg: `write` each frame, then `finish` or `discard`."""

    def __init__(self, path: str, rate: Fraction) -> None:
        self.path, self.frames, self._rate = path, 0, rate
        folder, name = os.path.split(path)
        self._part = os.path.join(folder, f"{name[:60]}.{os.urandom(4).hex()}.part")
        self._process: Any = None

    def write(self, frame: np.ndarray) -> None:
        """Encode a frame: uint8, (height, width, 3), all of one size."""
        try:
            process = self._process or self._start(frame.shape)
            if frame.shape != self._shape:
                raise _RecordingFailed(f"a frame is uint8 {frame.shape}, expected {self._shape}")
            process.stdin.flush()  # the rest of a frame that Ctrl-C interrupted
            process.stdin.write(frame)  # into its buffer, which holds one frame
            self.frames += 1
            process.stdin.flush()
        except (MemoryError, OSError) as error:
            if getattr(error, "errno", 0) is None:
                raise  # a TimeoutError of the user's signal handler
            self.finish()  # raises what ffmpeg said before it went
            raise _RecordingFailed(f"a frame is uint8 {frame.shape}, {error!r}") from error

    def finish(self) -> bool:
        """Complete the video and give it its name. Return whether there is one."""
        process = self._process
        if process is None:
            return False
        try:
            with contextlib.suppress(BrokenPipeError, ValueError):  # ffmpeg has gone, or is closed
                process.stdin.flush()
                process.stdin.close()
            pipe = process.stderr  # Python closes the pipes of garbage before `__del__` saves
            message = "" if pipe.closed else pipe.read().decode(errors="replace").strip()
            if process.wait() or message:
                raise OSError(message or f"ffmpeg ended with exit code {process.returncode}")
            # The exit code is lost where SIGCHLD is ignored, so look at the file as well.
            with open(self._part, "rb") as file:
                head = file.read(64)  # where ffmpeg moves the index (moov) of an MP4 last
            if b"moov" not in head and b"matroska" not in head:
                raise OSError("ffmpeg did not complete the file")
        except OSError as error:
            self.discard()
            raise _RecordingFailed(str(error)) from error
        try:
            os.replace(self._part, self.path)
        except OSError as error:  # on Windows, a player may have the old video open
            raise _RecordingFailed(f"{error}; the complete video is {self._part}") from error
        finally:
            self._process = None  # first, for another call after Ctrl-C
            process.stderr.close()
        return True

    def discard(self) -> None:
        """End ffmpeg and delete the partial file."""
        if self._process is not None:
            self.frames = 0
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(OSError):
                os.unlink(self._part)
            self.leave_to_parent()

    def leave_to_parent(self) -> None:
        """Close the pipes without writing what is buffered, as a forked child must."""
        if self._process is not None:
            self._process.stdin.raw.close()
            self._process.stderr.close()
            self._process = None

    def _start(self, shape: tuple[int, ...]) -> Any:
        try:  # in a thread, because Ctrl-C inside Popen would lose the process
            with concurrent.futures.ThreadPoolExecutor(1) as starter:
                starter.submit(int).result()  # from here on, the end of `with` waits for the thread
                starter.submit(self._launch, shape).result()
        except RuntimeError:  # Python starts no thread while it exits
            self._launch(shape)
        return self._process

    def _launch(self, shape: tuple[int, ...]) -> None:
        muxer = MUXERS[Path(self.path).suffix.lower()]
        # fmt: off
        command = [
            _ffmpeg(), "-loglevel", "error", "-nostdin", "-y",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{shape[1]}x{shape[0]}",
            "-framerate", f"{self._rate.numerator}/{self._rate.denominator}", "-i", "pipe:0",
            # yuv420p needs even sizes. Colours are named, twice for ffmpeg 4, or players guess.
            "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709,"
            + "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709",
            "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709",
            # Slower presets take more of the training's cores and look no better; zerolatency holds
            # no frames back. At the default crf, moving robots blur and thin arrows vanish.
            "-c:v", "libx264", "-preset", "veryfast", "-tune", "zerolatency", "-threads", "1",
            "-crf", "17", "-x264-params", "chroma-qp-offset=-3:no-dct-decimate=1",
            "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", muxer, self._part,
        ]
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self._shape = shape
        set_mask: Any = getattr(signal, "pthread_sigmask", lambda *_: None)  # Windows has none
        # ffmpeg inherits this mask, so that of a whole job's signals only SIGKILL ends it.
        before = set_mask(getattr(signal, "SIG_BLOCK", 0), signal.valid_signals())
        try:
            self._process = subprocess.Popen(
                command, bufsize=math.prod(shape) + 1,  # Python 3.13 buffers less than this
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                restore_signals=False,  # ffmpeg reports a file-size limit, and lives
                start_new_session=True,  # out of reach of signals to this process' group
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        finally:
            set_mask(getattr(signal, "SIG_SETMASK", 0), before)


class _CannotDefer(Exception):
    """Frames cannot be rendered later, for the reason in the text."""


class _Snapshot(NamedTuple):
    """All that decides one frame."""

    attributes: list[tuple[Any, str, Any]]  # owner, name and value
    bodies: dict[Any, Any]  # positions and quaternions, by solver and geometry
    nodes: list[Any]  # node, rank, matrix and poses of all other things that are drawn


class _DeferredRenderer:
    """Stores what a Genesis camera would show, and renders it later (FIN-5, 6).

    `camera.render()` updates what is drawn, then draws it. `snapshot` copies what the update starts
    from, because placing bodies takes longest. `render` puts a snapshot in place, draws it, and
    puts the present back. Other cameras do not move.
    """

    def __init__(self, scene: Any, camera: Any) -> None:
        self._gs, self._torch = sys.modules["genesis"], sys.modules["torch"]
        self._scene, self._camera, self._visualizer = scene, camera, scene.visualizer
        if getattr(type(camera), "render", None) is not self._gs.vis.camera.Camera.render:
            raise _CannotDefer(f"a {type(camera).__name__} renders in its own way")
        visualizer, context = scene.visualizer, scene.visualizer.context
        solvers, sensors = scene.active_solvers, scene.sim._sensor_manager.sensors
        draws = context.link_frame_shown or any(sensor._options.draw_debug for sensor in sensors)
        draws = draws or any(link.visualize_contact for link in scene.rigid_solver.links)
        obstacles = {
            "the camera is another scene's": all(camera is not c for c in visualizer.cameras),
            "a viewer can change the scene": visualizer.viewer,
            "only the rasterizer can": visualizer.renderer is not visualizer.rasterizer,
            "this Genesis is too old": hasattr(context._scene, "get_buffer_id"),
            "soft bodies or particles": not all(hasattr(s, "update_vgeoms") for s in solvers),
            "vertices set by hand": any(getattr(s, "n_custom_vverts", 0) for s in solvers),
            "propellers turn when drawn": any(hasattr(e, "propellers_idx") for e in scene.entities),
            "cameras are drawn": context.camera_frustum_shown,
            "contacts, frames or sensors are drawn": camera.debug and draws,
        }
        for obstacle in [obstacle for obstacle, is_there in obstacles.items() if is_there]:
            raise _CannotDefer(obstacle)
        self._context, self._renderer, self._is_checked = context, context._scene, False
        self._envs = self._torch.tensor([*context.rendered_envs_idx], device=self._gs.device)
        self._body_nodes = {*context.rigid_nodes.values()}
        solvers = [*context._rigid_solvers()]
        names = "update_geoms_render_T", "update_vgeoms", "update_vgeoms_render_T"
        self._updates = [(s, name) for s in solvers for name in names if hasattr(s, name)]
        # Before Genesis 1.4.2, solvers keep matrices instead, which are among the attributes.
        has_poses = hasattr(context, "rigid_geoms_T")
        modes = [(solver, body.surface.vis_mode) for solver in solvers for body in solver.entities]
        self._batches = {(solver, mode == "visual") for solver, mode in modes if has_poses}
        owners = [(camera, "_transform _fov"), (context._scene, "bg_color ambient_light")]
        owners += [(context, "_t shadow plane_reflection"), (context.jit, "reflection_mat")]
        owners += [(visualizer, "_t"), *((s, "_geoms_render_T _vgeoms_render_T") for s in solvers)]
        for node in context._scene.light_nodes:
            owners += [(node, "_matrix"), (node.light, "color intensity")]
        pairs = [(it, name) for it, names in owners for name in names.split()]
        self._attributes = [(it, name) for it, name in pairs if hasattr(it, name)]

    def is_of(self, scene: Any, camera: Any) -> bool:
        """Return whether it renders this camera: an env's `build` may make a new scene."""
        is_same = scene is self._scene and camera is self._camera
        return is_same and getattr(scene, "visualizer", None) is self._visualizer

    def snapshot(self) -> tuple[Callable[[], Any], int]:
        """Return a function that renders the present frame, and the bytes that this takes."""
        camera = self._camera
        if self._visualizer._t < self._scene.sim.cur_step_global:  # the env has not rendered itself
            if camera._attached_link is not None:
                camera.move_to_attach()
            elif camera._followed_entity is not None:
                camera.update_following()
            for solver, update in self._updates:
                getattr(solver, update)()
        self._context.clear_dynamic_nodes()  # those of earlier steps
        with self._torch.inference_mode(False):  # Genesis keeps tensors that are made here
            snapshot = self._take()
            if not self._is_checked:
                self._check(snapshot)
        self._is_checked = True
        arrays = [value for *_, value in [*snapshot.attributes, *snapshot.nodes]]
        arrays += [part for parts in snapshot.bodies.values() for part in parts]
        nbytes = sum(getattr(array, "nbytes", 0) for array in arrays)
        return functools.partial(self.render, snapshot), nbytes

    def render(self, snapshot: _Snapshot, draw: Callable[[], Any] | None = None) -> Any:
        """Render a snapshot. Return what `camera.render` would have returned."""
        if not (self._scene.is_built and self.is_of(self._scene, self._camera)):
            raise _CannotDefer("the scene is gone: call close() before gs.destroy()")
        with self._torch.inference_mode(False):
            present = self._take()
            try:
                self._put(snapshot)
                self._visualizer._t = self._context._t = self._scene.sim.cur_step_global
                return (draw or self._camera.render)()
            finally:
                self._put(present)

    def _take(self) -> _Snapshot:
        values = [(it, name, copy.deepcopy(getattr(it, name))) for it, name in self._attributes]
        bodies = {batch: self._poses(*batch) for batch in self._batches}
        return _Snapshot(values, bodies, self._nodes())

    def _poses(self, solver: Any, is_visual: bool) -> Sequence[Any]:
        """Return positions (envs, bodies, 3) and quaternions (envs, bodies, 4) of rendered envs."""
        to_torch = self._gs.utils.misc.qd_to_torch
        state = solver.dyn_state.vgeoms if is_visual else solver.dyn_state.geoms
        parts = [to_torch(part, transpose=True) for part in (state.pos, state.quat)]
        if self._envs.is_cpu:
            return [part.numpy()[self._envs.numpy()] for part in parts]
        selected = self._torch.cat([part[self._envs] for part in parts], -1).cpu().numpy()
        return np.split(selected, [3], -1)  # after one copy and one wait for the device

    def _nodes(self) -> list[Any]:
        ranks, nodes = getattr(self._renderer, "_node_ranks", {}), []
        for node in self._renderer.mesh_nodes - self._body_nodes:
            if self._camera.debug or not node.mesh.is_marker:  # such as an arrow
                part, *others = node.mesh.primitives
                poses = None if others or part.poses is None else part.poses.copy()
                nodes.append((node, ranks.get(node), np.array(node.matrix), poses))
        return nodes

    def _put(self, snapshot: _Snapshot) -> None:
        """Make a snapshot what is drawn."""
        context, renderer, bodies = self._context, self._renderer, snapshot.bodies
        for owner, name, value in snapshot.attributes:
            setattr(owner, name, value)
        to_matrices = self._gs.utils.geom.trans_quat_to_T
        stand_in = copy.copy(context)  # has the poses of the snapshot, and draws no contacts
        stand_in.rigid_geoms_T = lambda *batch: to_matrices(*bodies[batch])
        stand_in.tracked_nodes = {}
        stand_in.update_rigid()
        for node in {node for node, *_ in self._nodes()} - {node for node, *_ in snapshot.nodes}:
            renderer.remove_node(node)
        for node, rank, matrix, poses in snapshot.nodes:
            if not renderer.has_node(node):
                renderer.add_node(node)
            if rank is not None:
                renderer._node_ranks[node] = rank  # among see-through nodes
            renderer.set_pose(node, matrix)
            if poses is not None and not np.array_equal(poses, node.mesh.primitives[0].poses):
                node.mesh.primitives[0].poses, node.mesh._bounds = poses, None
                context.jit.update_buffer(node, "model", poses.transpose((0, 2, 1)))
        renderer._bounds = None

    def _check(self, snapshot: _Snapshot) -> None:
        """Check that a snapshot decides what Genesis draws: where the camera and the bodies are."""
        camera, (_, name, transform), *others = self._camera, *snapshot.attributes
        clock, self._visualizer._t = self._visualizer._t, self._scene.sim.cur_step_global
        draw = functools.partial(type(camera).render, camera)  # what an env counts is its own
        image = draw()[0]  # no camera moves
        view, far = np.reshape(transform.tolist(), (-1, 4, 4))[0], copy.deepcopy(transform)
        far[..., :3, 3] += 1000  # metres, where it sees nothing
        ahead = view[:3, 3] - 2 * view[:3, 2]
        near = {it: (np.full_like(p, ahead), q) for it, (p, q) in snapshot.bodies.items()}
        seen = snapshot._replace(bodies=near)
        unseen = seen._replace(attributes=[(camera, name, far), *others])
        images = [self.render(it, draw)[0] for it in (seen, unseen, snapshot)]
        self._visualizer._t, self._context._t = clock, -1
        is_still = np.array_equal(images[0], image) or np.array_equal(images[0], images[1])
        if near and is_still or not np.array_equal(images[2], image):
            raise _CannotDefer("this Genesis draws in another way")


@functools.cache
def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_version()  # runs it
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"ffmpeg cannot be run ({error}): pip install imageio-ffmpeg") from error


def _recording_folder(out_dir: Any) -> str:
    """Create the folder, and try in it what recordings do: write, seek back, rename (ARG-7)."""
    folder = os.path.abspath(out_dir)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as trial:
            with open(os.path.join(trial, "part"), "wb", buffering=0) as file:
                file.write(b"data")
                file.seek(0)  # ffmpeg writes an MP4's index last, at the front
                file.write(b"index")
            os.replace(file.name, os.path.join(trial, "whole"))
    except OSError as error:
        rule = "out_dir must be a local folder in which files can be rewritten and renamed"
        raise OSError(error.errno, f"{rule} ({error.strerror or error})", out_dir) from error
    return folder


def _warn(message: str) -> None:
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        level, frame = level + 1, frame.f_back  # to the line of the caller, outside this file
    warnings.warn(message, RuntimeWarning, stacklevel=level)


def _demand(is_right: Any, name: str, expected: str, value: Any) -> None:
    if not is_right:
        raise ValueError(f"{name} must be {expected}, got {value!r:.200}")


def _positive(name: str, value: float) -> float:
    is_number = hasattr(value, "__float__") and 0 < float(value) < math.inf
    _demand(is_number, name, "a finite number above 0", value)
    return float(value)


def _integral(quotient: float) -> float:
    nearest = round(quotient)
    return nearest if math.isclose(quotient, nearest, rel_tol=FLOAT_NOISE) else quotient


def _check_results(result: Any, env_idx: int, num_envs: int) -> None:
    """Refuse what cannot be the results of a step, before rewards end episodes (EPI-7)."""
    order = "(observations, rewards, terminated, truncated, extras)"
    what = f"env.step must return {order} or (observations, rewards, dones, extras)"
    results = result if isinstance(result, (tuple, list)) else [result]
    if len(results) not in (4, 5):
        raise TypeError(f"{what}, got {len(results)} results: {result!r:.200}")
    for flags in filter(lambda flags: flags is not None, results[2:-1]):
        values = np.asarray(flags.tolist() if hasattr(flags, "tolist") else flags)
        is_row = values.shape[:1] == (values.size,) or num_envs == values.size == 1
        if not (is_row and env_idx < values.size <= num_envs and values.dtype.kind in "biu"):
            expected = f"with flags None or a bool or int for each of {num_envs} envs"
            raise ValueError(f"{what}, {expected}, got {flags!r:.200}")


def _is_done(flags: Sequence[Any], env_idx: int) -> bool:
    is_row = [getattr(flag, "ndim", hasattr(flag, "__len__")) for flag in flags]
    of_env = [f[env_idx] if row else f for f, row in zip(flags, is_row) if f is not None]
    # Combined before they are read, because each read waits for a GPU.
    return bool(functools.reduce(operator.or_, of_env or [False]))


def _includes(env_ids: Any, env_idx: int, num_envs: int) -> bool:
    """Return whether `env_ids`, as an index of a tensor over all envs, selects the env (EPI-4)."""
    selected = np.zeros(num_envs, bool)
    ids = env_ids.tolist() if hasattr(env_ids, "tolist") else env_ids
    with contextlib.suppress(IndexError, TypeError, ValueError):  # only its own env knows these
        selected[list(ids) if isinstance(ids, tuple) else ids] = True
    return bool(selected[env_idx])
