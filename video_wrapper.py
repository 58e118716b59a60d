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
    env.build()
    ...  # train
    env.close()

The parts, in data-flow order: `Wrapper` passes everything through to the env. `VideoWrapper` counts
steps and episodes, and decides which recording lives. `_Recording` has the frames of one video so
far. `_Encoder` makes a video of them. `_DeferredRenderer` stores what a Genesis camera would show,
to render it later; a copy works without it if `VideoWrapper._defer` returns False. Ids such as
(TIME-4) are clauses of the specification.
"""
# The annotations are those of the documented API, and Genesis need not be installed:
# ruff: noqa: RUF013, UP006, UP035
# mypy: implicit-optional, disable-error-code="import, valid-type, type-arg, no-any-return"
# pyright: strictParameterNoneValue=false, reportMissingImports=false, reportGeneralTypeIssues=false
# pyright: reportMissingModuleSource=false, reportOptionalMemberAccess=false

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import itertools
import math
import multiprocessing.util
import operator
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Tuple

import numpy as np

if TYPE_CHECKING:
    import genesis
    import gymnasium
    import torch

GenesisEnv = Any  # an env of genesis-forge, or any that has what `VideoWrapper` needs
__version__ = __spec_version__ = "2.0.0"

# The suffixes that a video's name may have, and ffmpeg's muxer for each.
MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
MAX_NAME = 255  # bytes of a file's name
FLOAT_NOISE = 1e-6  # 0.3 / 0.1 is not quite 3 (TIME-1)
MAX_DENOMINATOR, MAX_RATE = 100_000, 2**31 - 1  # of the fractions that ffmpeg takes for rates
WORTHWHILE_SECONDS = 1.0  # a recording this long is preferred to an older one (FIN-3)
FIRST_RESTART = 4  # an episode that goes on is recorded again from its steps 4N, 8N, ... (FIN-2)
MEMORY_SHARE = 1 / 4  # of the available memory, for the snapshots of a recording (FIN-9)
PROGRESS_SECONDS = 5.0  # after which a `close()` that renders says how far it is (LOG-1)


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
            needs = "an environment instance with step, dt and num_envs"
            raise TypeError(f"env must be {needs}, got {env!r:.200}")
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
        if is_own or not hasattr(self.env, name):
            object.__setattr__(self, name, value)
        else:
            setattr(self.env, name, value)

    @property
    def unwrapped(self) -> GenesisEnv:
        """The base environment, underneath all layers of wrappers."""
        return getattr(self.env, "unwrapped", self.env)

    def get_observations(self) -> torch.Tensor:
        """Return the wrapped env's observations."""
        return self.env.get_observations()


class VideoWrapper(Wrapper):
    """Records videos during training: the episodes or steps you choose, plus the final episode.

    A video that starts at step s covers the steps s to s + `video_length_steps` - 1, with a frame
    after every k-th one, where k is 1 / (fps * dt), rounded, and plays at the simulation's speed
    (TIME). A recording that fails gives a RuntimeWarning and never ends the training (FAIL-1).
    Exceptions of the env, the camera or a trigger are passed on (FAIL-3).

    Args:
        env: The environment to wrap, built or not. It has `dt`, `num_envs` and `step`.
        camera_attr: The attribute of the base environment that holds the camera. Its `render()` or
            `read()` returns a uint8 array or tensor of shape (height, width, 3), one more for each
            rendered env in front of it, or a tuple that begins with such an image (FILE-8).
        video_length_sec: Length of each video, in seconds of simulation.
        episode_trigger: Called once for each episode of the watched env, with its number from 0. If
            it returns True, the episode is recorded. If both triggers are None, the episodes are
            those of `capped_cubic_episode_trigger` (TRIG).
        step_trigger: Called for each step, with its number from 0, while no active recording is
            running. If it returns True, a recording starts with this step.
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

    # `__del__` reads these even if the constructor raised.
    _recording: _Recording | None = None  # in progress
    _kept: Sequence[_Recording] = ()  # finished background recordings, oldest first

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
        is_name = isinstance(name, str) and name == os.path.basename(name) and _muxer(name)
        is_name = is_name and len(os.fsencode(name)) <= MAX_NAME
        rule = f"a bare file name of at most {MAX_NAME} bytes ending in {', '.join(MUXERS)}"
        _demand(is_name, "filename", f"{rule} (use out_dir for the folder)", name)
        _demand(out_dir not in (None, ""), "out_dir", "the name of a folder", out_dir)
        self._env_idx = env_idx
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
        self._out_dir, self._filename = _recording_folder(out_dir, name), filename
        self._camera_attr, self._logging = camera_attr, logging
        self._step_trigger, self._episode_trigger = step_trigger, episode_trigger
        if episode_trigger is None and step_trigger is None:
            self._episode_trigger = capped_cubic_episode_trigger
        self._record_final_episode = record_final_episode
        self._counts_episodes = self._episode_trigger is not None or record_final_episode
        self._step = self._episode = self._episode_start = 0  # of the next step
        self._asked_episode = -1
        self._next_background = 0  # the episode's step from which a background recording is due
        self._renderer: _DeferredRenderer | None = None
        self._can_defer, self._has_warned, self._serial = True, False, next(_serials)
        _living[self._serial] = self

    @property
    def video_length_steps(self) -> int:
        """The number of steps that each video covers (TIME-1)."""
        return self._length

    def build(self) -> None:
        """Build the env and check that it has the camera, and enough envs for `env_idx` (BLD-1, 2).

        An env that is built already needs no call: its camera is found when it is needed (BLD-4).
        """
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
            The env's results, unchanged: observations, rewards, terminated, truncated, extras or,
            as in rsl_rl, observations, rewards, dones, extras. Flags are None, or a tensor, array
            or list with a bool or int for each env (EPI-2). Others raise an error (EPI-7).
        """
        if self._renderer is not None:
            self._renderer.move_camera()
        result = self.env.step(actions)
        if self._counts_episodes and not self._step:
            _check_results(result, self._env_idx, self.num_envs)
        try:
            self._start_what_is_due()
            recording = self._recording
            if recording is not None and self._step in recording.steps[:: self._stride]:
                self._capture(recording)
        finally:
            # Even if a trigger or the camera raised: a step that is not counted shifts all others.
            self._step += 1
            if self._counts_episodes and _is_done(result[2:-1], self._env_idx):
                self._end_episode()
        if self._recording is not None:
            self._drop_older_than(self._recording)
            if self._step not in self._recording.steps:
                self.finish_recording()
        return result

    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Reset envs and return what the env returned.

        Args:
            env_ids: Indices of the envs, or a boolean mask over them. None resets all. If the
                watched env is among them and has taken a step, its episode ends (EPI-4).
        """
        result = self.env.reset() if env_ids is None else self.env.reset(env_ids)
        if env_ids is None or _includes(env_ids, self._env_idx, self.num_envs):
            self._end_episode()
        return result

    def start_recording(self, type: Literal["active", "background"] = "active") -> None:
        """Start a recording with the next step, and finish the one in progress (REC-1).

        Args:
            type: An "active" recording is saved when it finishes, a "background" recording by
                `close`, unless a newer one has replaced it (FIN-3).
        """
        _demand(type in ("active", "background"), "type", '"active" or "background"', type)
        self._start(type)

    def finish_recording(self) -> None:
        """Stop the recording in progress and, if it is active, save it (REC-2)."""
        recording = self._recording
        if recording is None:
            return
        recording.steps = range(recording.steps.start, min(recording.steps.stop, self._step))
        if not recording.frames:
            self._discard([recording])
        elif recording.type == "active":
            self._save(recording)
            if self._filename is not None and recording.frames:
                self._discard(self._kept)  # an older video must not overwrite this one
        else:
            self._kept = [*(kept for kept in self._kept if kept is not recording), recording]
            self._drop_older_than(recording)
        self._recording = None  # last, so that the next step or close() resumes after Ctrl-C

    def close(self) -> None:
        """Save pending videos, then close the env, even if saving fails (CLOSE-1).

        If Ctrl-C interrupts the saving, another call resumes it (CLOSE-6).
        """
        try:
            self._save_pending()
        except Exception:  # a warning that the user has turned into an error
            getattr(self.env, "close", lambda: None)()
            raise
        getattr(self.env, "close", lambda: None)()

    def __del__(self) -> None:
        self._save_pending()  # as a file object does

    def __reduce__(self) -> Any:
        raise TypeError("a VideoWrapper cannot be copied or pickled: wrap a copy of its env")

    def _start_what_is_due(self) -> None:
        running, age = self._recording, self._step - self._episode_start
        if running is not None and running.type == "active" and self._step in running.steps:
            return
        is_triggered: Any = False
        if self._step_trigger is not None:
            is_triggered = self._step_trigger(self._step)
        elif self._episode_trigger is not None and self._asked_episode != self._episode:
            self._asked_episode = self._episode
            is_triggered = self._episode_trigger(self._episode)
        if is_triggered:
            self._start("active")
        elif self._record_final_episode and age >= self._next_background:
            self._start("background")
            self._next_background = FIRST_RESTART * self._length
            while self._next_background <= age:
                self._next_background *= 2

    def _end_episode(self) -> None:
        if self._step > self._episode_start:  # an episode without a step has not begun
            self._episode += 1
            self._episode_start, self._next_background = self._step, 0

    def _start(self, type: Literal["active", "background"]) -> None:
        if self._serial not in _living:
            return  # the process is ending, and nothing would finish the recording
        self._camera()
        self.finish_recording()
        shown = self._rendered_envs()
        if shown and self._env_idx not in shown and not self._has_warned:
            self._has_warned = True
            found = f"shows rendered_envs_idx={shown}, not env_idx={self._env_idx}"
            _warn(f"{self._camera_attr} {found}: pass VisOptions(rendered_envs_idx=[env_idx])")
        path = os.path.join(self._out_dir, self._filename or f"{self._step}.mp4")
        encoder = _Encoder(path, self._rate)
        steps = range(self._step, self._step + self._length)
        self._recording = _Recording(type, self._episode, steps, encoder)
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
            if self._renderer is None or not self._renderer.is_of(scene, camera):
                self._renderer = _DeferredRenderer(scene, camera)
            render, nbytes = self._renderer.snapshot()
        except _CannotDefer as reason:
            self._can_defer = False
            recording.snapshots.clear()
            what = f"cannot defer rendering of {self._camera_attr} ({reason})"
            remedy = "If this is too slow, pass record_final_episode=False."
            _warn(f"{what}, so every background frame is rendered now. {remedy}")
            return False
        except Exception as error:  # for example, the device is out of memory
            raise _RecordingFailed(f"{type(error).__name__}: {error}") from error
        import psutil  # Genesis brings it

        room = recording.room or psutil.virtual_memory().available * MEMORY_SHARE
        recording.room = room - nbytes
        if recording.room < 0:
            what = f"snapshots of {nbytes / 1e6:.3g} MB fill a quarter of the available memory"
            raise _RecordingFailed(f"{what}; pass VisOptions(rendered_envs_idx=[env_idx])")
        recording.snapshots.append(render)
        return True

    def _drop_older_than(self, newer: _Recording) -> None:
        """Discard the background recordings to which `close` prefers the newer one (FIN-3)."""
        if self._kept and self._is_worthwhile(newer):
            self._discard([kept for kept in self._kept if kept is not newer])
        elif newer in self._kept:
            worse = [kept for kept in self._kept if not self._is_worthwhile(kept)]
            self._discard([kept for kept in worse if kept is not newer])

    def _is_worthwhile(self, recording: _Recording) -> bool:
        """Whether it is long enough to watch, or its episode has ended (FIN-3)."""
        lasted = min(self._step, recording.steps.stop) - recording.steps.start
        has_ended = recording.type == "background" and recording.episode < self._episode
        return has_ended or lasted >= self._worthwhile

    def _discard(self, recordings: Sequence[_Recording]) -> None:
        for recording in recordings:
            recording.snapshots.clear()
            recording.encoder.discard()
        self._kept = [kept for kept in self._kept if kept not in recordings]

    def _save_pending(self) -> None:
        """Save the best background recording, and then the active one, which is newer (FIN-3)."""
        if self._recording is not None and self._recording.type == "background":
            self.finish_recording()
        best = ([kept for kept in self._kept if self._is_worthwhile(kept)] or self._kept)[-1:]
        self._discard([kept for kept in self._kept if kept not in best])
        for recording in best:
            self._save(recording)
        self._kept = ()
        self.finish_recording()

    def _save(self, recording: _Recording) -> None:
        """Complete the video. It can resume after Ctrl-C."""
        encoder, snapshots, failure = recording.encoder, recording.snapshots, None
        path, total, told = encoder.path, len(snapshots), time.monotonic()
        try:
            while snapshots:
                if time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    self._say(f"Rendering {path}: {total - len(snapshots)} of {total} frames")
                frame = self._frame(snapshots[0]())
                snapshots.pop(0)
                encoder.write(frame)
        except Exception as error:  # noqa: BLE001 rendering may raise anything
            failure = error
            snapshots.clear()
        try:
            if encoder.finish():
                frames, rate = encoder.frames, float(self._rate)
                length = f"{frames} frames, {frames / rate:.4g} s at {rate:.4g} fps"
                self._say(f"Saved {path}: {length}")
        except _RecordingFailed as error:
            failure = error
        if failure is not None:
            self._warn_of(recording, failure)

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
            expected = "uint8 (height, width, 3)"
            raise _RecordingFailed(f"the camera returned {dtype} {shape}, expected {expected}")
        if len(shape) == 4:  # one image for each rendered env
            envs = [*range(shape[0])]
            envs = envs if shape[0] == self.num_envs else self._rendered_envs() or envs
            if self._env_idx not in envs:
                expected = f"env {self._env_idx} among them"
                raise _RecordingFailed(f"the camera returned the envs {envs}, expected {expected}")
            image = image[envs.index(self._env_idx)]
        try:
            return (image.cpu().numpy() if hasattr(image, "cpu") else image)[..., :3]
        except (MemoryError, RuntimeError) as error:
            raise _RecordingFailed(f"a frame is {dtype} {shape}, {error!r}") from error

    def _rendered_envs(self) -> list[int] | None:
        visualizer = getattr(getattr(self.unwrapped, "scene", None), "visualizer", None)
        envs = getattr(getattr(visualizer, "context", None), "rendered_envs_idx", None)
        return None if envs is None else [int(i) for i in envs]

    def _demand_env_idx(self) -> None:
        count, i = self.env.num_envs, self._env_idx
        is_index = hasattr(count, "__index__") and hasattr(i, "__index__") and 0 <= i < count
        _demand(is_index, "env_idx", f"an int below env.num_envs={count!r}", i)

    def _warn_of(self, recording: _Recording, failure: Exception) -> None:
        what = f"ended early, after {recording.frames} frames" if recording.frames else "failed"
        name = f"{recording.encoder.path} (from step {recording.steps.start})"
        _warn(f"recording {name} {what}: {failure}")

    def _say(self, line: str) -> None:
        if self._logging:
            with contextlib.suppress(Exception):  # a line that cannot be printed ends no training
                print(line)


# Wrappers by serial number, that is in order of creation.
_living: weakref.WeakValueDictionary[int, VideoWrapper] = weakref.WeakValueDictionary()
_serials = itertools.count()
_finalizers: list[multiprocessing.util.Finalize] = []


def _save_all_at_exit() -> None:
    # Anew for each recording: the last handler runs first, before Genesis' destroys the scenes.
    atexit.unregister(_save_all)
    atexit.register(_save_all)
    # Before Python 3.13, children of multiprocessing run only these, and lose them as they start.
    if not any(finalizer.still_active() for finalizer in _finalizers):
        _finalizers[:] = [multiprocessing.util.Finalize(None, _save_all, exitpriority=100)]


def _save_all() -> None:
    for serial in sorted(_living):  # of two videos with one name, the newer one stays (CLOSE-4)
        wrapper = _living.pop(serial)
        try:
            wrapper._save_pending()
        except (KeyboardInterrupt, SystemExit):  # jobs are often sent two signals (CLOSE-6)
            wrapper._save_pending()
        except Exception as error:  # noqa: BLE001 a warning that the user has turned into one
            sys.excepthook(type(error), error, error.__traceback__)


def _leave_to_parent() -> None:
    for wrapper in [*_living.values()]:  # in a forked child: the recordings are its parent's
        for recording in [*wrapper._kept, *filter(None, [wrapper._recording])]:
            recording.encoder.leave_to_parent()
        wrapper._recording, wrapper._kept = None, ()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


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


# Held here while ffmpeg runs: the garbage collector could close the pipes before `__del__` saves.
_processes: set[Any] = set()


class _Encoder:
    """Encodes one video with an ffmpeg process: `write` each frame, then `finish` or `discard`.

    The video is written to a partial file and renamed when it is complete (FILE-3). A call that
    Ctrl-C interrupts can be made again.
    """

    def __init__(self, path: str, rate: Fraction) -> None:
        self.path, self.frames = path, 0
        self._part, self._rate = _partial_path(path), rate
        self._process: Any = None
        self._shape: tuple[int, ...] = ()
        self._start_lock, self._is_over = threading.Lock(), False
        self._start_error: Exception | None = None

    def write(self, frame: np.ndarray) -> None:
        """Encode a frame: uint8, (height, width, 3), all of one size."""
        try:
            if self._process is None:
                self._start(frame.shape)
            if frame.shape != self._shape:
                expected = f"{self._shape} as before"
                raise _RecordingFailed(f"a frame is uint8 {frame.shape}, expected {expected}")
            pipe = self._process.stdin
            pipe.flush()  # the rest of a frame that Ctrl-C interrupted
            pipe.write(np.ascontiguousarray(frame))  # into its buffer, which holds one frame
            self.frames += 1
            pipe.flush()
        except OSError as error:
            if error.errno is None:
                raise  # a TimeoutError of the user's signal handler
            self.finish()  # raises what ffmpeg said before it went
            raise _RecordingFailed(str(error)) from error
        except MemoryError as error:
            raise _RecordingFailed(f"a frame is uint8 {frame.shape}, {error!r}") from error

    def finish(self) -> bool:
        """Complete the video and give it its name. Return whether there is one."""
        with self._start_lock:
            process = self._process
            self._is_over = process is None
        if process is None:
            return False
        try:
            with contextlib.suppress(BrokenPipeError, ValueError):  # ffmpeg has gone, or is closed
                process.stdin.flush()
                process.stdin.close()
            message = process.stderr.read().decode(errors="replace").strip()
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
            _processes.discard(process)
            process.stderr.close()
        return True

    def discard(self) -> None:
        """End ffmpeg and delete the partial file."""
        self.frames = 0
        with self._start_lock:
            self._is_over = True
        if self._process is not None:
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
            _processes.discard(self._process)
            self._process = None

    def _start(self, shape: tuple[int, ...]) -> None:
        thread = threading.Thread(target=self._launch, args=(shape,))
        try:  # in a thread, because Ctrl-C inside Popen would lose the process
            thread.start()
            thread.join()
        except RuntimeError:  # Python starts no thread while it exits
            self._launch(shape)
        if self._start_error is not None:
            raise _RecordingFailed(str(self._start_error)) from self._start_error

    def _launch(self, shape: tuple[int, ...]) -> None:
        # fmt: off
        command = [
            _ffmpeg(), "-loglevel", "error", "-nostdin", "-y",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{shape[1]}x{shape[0]}",
            "-framerate", f"{self._rate.numerator}/{self._rate.denominator}", "-i", "pipe:0",
            # yuv420p needs even sizes. Colours are named twice, for ffmpeg 4, because players guess.
            "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709,"
            + "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709",
            "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709",
            # Slower presets take more of the training's cores and look no better; zerolatency holds
            # no frames back. At the default crf, moving robots blur and thin arrows vanish.
            "-c:v", "libx264", "-preset", "veryfast", "-tune", "zerolatency", "-threads", "1",
            "-crf", "17", "-x264-params", "chroma-qp-offset=-3:no-dct-decimate=1",
            "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", _muxer(self.path), self._part,
        ]
        options: dict[str, Any] = {
            "stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE,
            "restore_signals": False,  # ffmpeg reports a file-size limit, and lives
            "start_new_session": True,  # out of reach of signals to this process' group
            "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        }
        # fmt: on
        set_mask: Any = getattr(signal, "pthread_sigmask", lambda *_: None)  # Windows has none
        with self._start_lock:
            if self._process is not None or self._is_over:
                return  # Ctrl-C interrupted the start, and another call came first
            # A signal to the whole job reaches ffmpeg, too. It inherits this mask, so that only
            # SIGKILL ends it before its pipe closes (CLOSE-14).
            before = set_mask(getattr(signal, "SIG_BLOCK", 0), signal.valid_signals())
            try:
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
                self._shape = shape
                self._process = subprocess.Popen(command, bufsize=math.prod(shape), **options)
                _processes.add(self._process)
            except Exception as error:  # noqa: BLE001 the caller waits for this thread
                self._start_error = error
            finally:
                set_mask(getattr(signal, "SIG_SETMASK", 0), before)


class _CannotDefer(Exception):
    """Frames cannot be rendered later, for the reason in the text."""


class _Snapshot(NamedTuple):
    """All that decides one frame."""

    attributes: list[tuple[Any, str, Any]]  # owner, name and value
    bodies: Any = None  # poses by solver and geometry, or None if they are in `nodes`
    nodes: Any = None  # node, rank, matrix and poses of each node of Genesis' renderer


class _DeferredRenderer:
    """Stores what a Genesis camera would show, and renders it later (FIN-5, 6).

    `camera.render()` first updates what is drawn and then draws it. `snapshot` has Genesis make the
    update, but for placing bodies, which takes longest, and copies the result. `render` puts a
    snapshot in place, draws it, and puts the present back. No other camera moves.
    """

    POSE = ("_pos", "_lookat", "_up", "_transform", "_quat")  # the attributes that move a camera

    def __init__(self, scene: Any, camera: Any) -> None:
        import genesis
        import torch

        self._gs: Any = genesis
        self._torch: Any = torch
        self._scene, self._camera, self._visualizer = scene, camera, scene.visualizer
        self._pose: dict[str, Any] = {}  # of a camera that moves when it renders
        self._transform_before: Any = None
        self._present: _Snapshot | None = None  # to be put back
        self._drawings: set[Any] = set()  # in the last snapshot
        self._attributes: list[tuple[Any, str]] = []  # that decide an image

    def is_of(self, scene: Any, camera: Any) -> bool:
        """Whether it renders this camera: an env's `build` may make a new scene."""
        is_same = scene is self._scene and camera is self._camera
        return is_same and getattr(scene, "visualizer", None) is self._visualizer

    def move_camera(self) -> None:
        """Move the camera as rendering the last snapshot would have, for the next step.

        Not before: if the env renders in the same step, Genesis makes this move.
        """
        self._put_back()
        if self._pose and (self._camera._transform == self._transform_before).all():
            vars(self._camera).update(self._pose)
        self._pose = {}

    def snapshot(self) -> tuple[Callable[[], Any], int]:
        """Return a function that renders the present frame, and the bytes that this takes."""
        # Genesis keeps tensors that are made here. Those of inference mode it could not change.
        with self._torch.inference_mode(False):
            if self._attributes:
                return self._take(is_first=False)
            try:
                self._prepare()
                return self._take(is_first=True)
            except (AttributeError, ImportError) as error:
                raise _CannotDefer(f"this Genesis is unknown: {error}") from error

    def render(self, snapshot: _Snapshot, is_check: bool = False) -> Any:
        """Render a snapshot. Return what `camera.render` would have returned."""
        if not (self._scene.is_built and self.is_of(self._scene, self._camera)):
            raise _CannotDefer("the scene is gone: call close() before gs.destroy()")
        with self._torch.inference_mode(False), self._restored(self._nodes()):
            self._put(snapshot)
            self._visualizer._t = self._context._t = self._scene.sim.cur_step_global  # up to date
            # An env may count what its camera renders, or change it: a check is not its business.
            return type(self._camera).render(self._camera) if is_check else self._camera.render()

    def _prepare(self) -> None:
        """Look for what cannot be rendered later, and for what decides an image."""
        scene, camera, visualizer = self._scene, self._camera, self._visualizer
        context, solvers = visualizer.context, scene.active_solvers
        if getattr(type(camera), "render", None) is not self._gs.vis.camera.Camera.render:
            raise _CannotDefer(f"a {type(camera).__name__} renders in its own way")
        obstacles = {
            "the scene is not built": not scene.is_built,
            "the camera is another scene's": all(camera is not c for c in visualizer.cameras),
            "a viewer can change the scene": visualizer.viewer,
            "only the rasterizer can": visualizer.renderer is not visualizer.rasterizer,
            "soft bodies or particles": not all(hasattr(s, "update_vgeoms") for s in solvers),
            "vertices set by hand": any(getattr(s, "n_custom_vverts", 0) for s in solvers),
            "propellers turn when drawn": any(hasattr(e, "propellers_idx") for e in scene.entities),
            "cameras are drawn": context.camera_frustum_shown,
        }
        for obstacle in [obstacle for obstacle, is_there in obstacles.items() if is_there]:
            raise _CannotDefer(obstacle)
        self._context, self._renderer = context, context._scene
        self._envs = self._torch.tensor([*context.rendered_envs_idx], device=self._gs.device)
        self._body_nodes = {*context.rigid_nodes.values()}
        # Bodies have visual or collision geometry. Before Genesis 1.4.2, solvers keep matrices for
        # rendering them, which are among the attributes.
        solvers, has_poses = [*context._rigid_solvers()], hasattr(context, "rigid_geoms_T")
        modes = [(solver, body.surface.vis_mode) for solver in solvers for body in solver.entities]
        self._batches = {(solver, mode == "visual") for solver, mode in modes if has_poses}
        names = "update_geoms_render_T", "update_vgeoms", "update_vgeoms_render_T"
        self._updates = [(s, name) for s in solvers for name in names if hasattr(s, name)]
        renderer, lights = self._renderer, self._renderer.light_nodes
        owners = [(camera, "_fov"), (context, "shadow plane_reflection")]
        owners += [(context.jit, "reflection_mat"), (renderer, "bg_color ambient_light")]
        owners += [(light, "_matrix") for light in lights]
        owners += [(light.light, "color intensity") for light in lights]
        if not has_poses:
            owners += [(solver, "_geoms_render_T _vgeoms_render_T") for solver in solvers]
        pairs = [(owner, name) for owner, names in owners for name in names.split()]
        self._attributes = [(owner, name) for owner, name in pairs if hasattr(owner, name)]

    def _take(self, is_first: bool) -> tuple[Callable[[], Any], int]:
        camera, context, bodies = self._camera, self._context, None
        step = self._scene.sim.cur_step_global
        is_drawn = context._t >= step  # the env has rendered itself
        transform = self._moved_transform(is_drawn)
        if not is_drawn:
            for solver, update in self._updates:
                getattr(solver, update)()
            # Before Genesis 1.4.5, an update alone tells whether contacts and sensors are drawn.
            draws = context.link_frame_shown or getattr(context, "tracked_nodes", True)
            if context.dynamic_nodes or camera.debug and draws:
                clocks = self._visualizer._t, context._t
                try:
                    self._visualizer._t = step  # no camera moves
                    context.update()
                finally:
                    self._visualizer._t, context._t = clocks
            else:
                bodies = {batch: self._poses(*batch) for batch in self._batches}
        values = [(owner, name, _copied(getattr(owner, name))) for owner, name in self._attributes]
        nodes = self._nodes(without=() if bodies is None else self._body_nodes)
        snapshot = _Snapshot([(camera, "_transform", transform), *values], bodies, nodes)
        if is_first:
            self._check(snapshot)
        if not is_drawn and not hasattr(context, "tracked_nodes"):
            # Before Genesis 1.4.5, the next update of this step would draw contacts twice.
            context.clear_dynamic_nodes(only_outdated=False)
        return functools.partial(self.render, snapshot), self._size(snapshot)

    def _moved_transform(self, is_drawn: bool) -> Any:
        """Return the camera's transform after the move that rendering makes. Leave the camera."""
        camera, follows = self._camera, self._camera._followed_entity is not None
        if is_drawn or camera._attached_link is None and not follows:
            return _copied(camera._transform)
        own = {name: getattr(camera, name) for name in self.POSE}
        try:
            vars(camera).update({name: _copied(value) for name, value in own.items()})
            camera.update_following() if follows else camera.move_to_attach()
            self._pose = {name: getattr(camera, name) for name in self.POSE}
            self._transform_before = _copied(own["_transform"])
            return _copied(camera._transform)
        finally:
            vars(camera).update(own)

    @contextlib.contextmanager
    def _restored(self, nodes: Any = None) -> Iterator[None]:
        """Put the present back in the end: the very objects, since some are changed in place."""
        self._put_back()
        clocks = [(self._visualizer, "_t"), (self._context, "_t"), (self._camera, "_transform")]
        names = [*clocks, *self._attributes]
        present = [(owner, name, getattr(owner, name)) for owner, name in names]
        self._present = _Snapshot(present, None, nodes)
        try:
            yield
        finally:
            self._put_back()

    def _put_back(self) -> None:
        if self._present is not None:
            self._put(self._present)
        self._present = None  # last: if Ctrl-C interrupts this, the next step does it again

    def _poses(self, solver: Any, is_visual: bool) -> Sequence[Any]:
        """Return positions (envs, bodies, 3) and quaternions (envs, bodies, 4) of the rendered envs."""
        to_torch = self._gs.utils.misc.qd_to_torch
        state = solver.dyn_state.vgeoms if is_visual else solver.dyn_state.geoms
        parts = [to_torch(part, transpose=True)[self._envs] for part in (state.pos, state.quat)]
        # From a GPU, in one copy with one wait.
        return parts if parts[0].is_cpu else self._torch.cat(parts, -1).cpu().split((3, 4), -1)

    def _nodes(self, without: Any = ()) -> list[Any]:
        ranks, nodes = getattr(self._renderer, "_node_ranks", {}), []
        for node in self._renderer.mesh_nodes.difference(without):
            if self._camera.debug or not node.mesh.is_marker:  # such as an arrow
                part, *others = node.mesh.primitives
                poses = None if others or part.poses is None else part.poses.copy()
                nodes.append((node, ranks.get(node), np.array(node.matrix), poses))
        return nodes

    def _size(self, snapshot: _Snapshot) -> int:
        """Return its bytes, with the meshes of drawings that are new in it."""
        arrays = [value for *_, value in [*snapshot.attributes, *snapshot.nodes]]
        arrays += [part for parts in (snapshot.bodies or {}).values() for part in parts]
        known, self._drawings = self._drawings, {node for node, *_ in snapshot.nodes}
        for node in self._drawings - known - self._body_nodes:
            arrays += [value for part in node.mesh.primitives for value in vars(part).values()]
        return sum(getattr(array, "nbytes", 0) for array in arrays)

    def _put(self, snapshot: _Snapshot) -> None:
        """Make a snapshot what is drawn."""
        context, renderer, bodies = self._context, self._renderer, snapshot.bodies
        for owner, name, value in snapshot.attributes:
            setattr(owner, name, value)
        if snapshot.nodes is None:
            return
        if bodies is not None:
            to_matrices = self._gs.utils.geom.trans_quat_to_T
            stand_in = copy.copy(context)  # has the poses of the snapshot, and draws no contacts
            stand_in.rigid_geoms_T = lambda *it: to_matrices(*(part.numpy() for part in bodies[it]))
            stand_in.tracked_nodes = {}
            stand_in.update_rigid()
        placed = set() if bodies is None else self._body_nodes
        for node, *_ in self._nodes(without=placed.union(node for node, *_ in snapshot.nodes)):
            renderer.remove_node(node)
        for node, rank, matrix, poses in snapshot.nodes:
            if not renderer.has_node(node):
                renderer.add_node(node)
            if rank is not None:
                renderer._node_ranks[node] = rank  # among see-through nodes
            renderer.set_pose(node, matrix)
            # Genesis 1.0 must not update what it has not drawn since it was added.
            if poses is not None and not np.array_equal(poses, node.mesh.primitives[0].poses):
                node.mesh.primitives[0].poses, node.mesh._bounds = poses, None
                target: Any = (node, "model")
                if hasattr(renderer, "get_buffer_id"):  # Genesis 1.0
                    target = (renderer.get_buffer_id(*target),)
                context.jit.update_buffer(*target, poses.transpose((0, 2, 1)))
        renderer._bounds = None

    def _check(self, snapshot: _Snapshot) -> None:
        """Check that Genesis draws what a snapshot says, also bodies and camera elsewhere."""
        camera, (_, name, transform), *others = self._camera, *snapshot.attributes
        with self._restored():
            # No camera moves.
            camera._transform, self._visualizer._t = transform, self._scene.sim.cur_step_global
            image = type(camera).render(camera)[0]
        view, far = np.reshape(transform.tolist(), (-1, 4, 4))[0], _copied(transform)
        far[..., :3, 3] += 1000  # metres, where it sees nothing
        ahead = self._torch.tensor(view[:3, 3] - 2 * view[:3, 2]).float()
        poses = {batch: self._poses(*batch) for batch in self._batches}
        near = {batch: (ahead.expand_as(place), turn) for batch, (place, turn) in poses.items()}
        nodes = [node for node in snapshot.nodes if node[0] not in self._body_nodes]
        seen = snapshot._replace(bodies=near, nodes=nodes) if near else snapshot
        unseen = seen._replace(attributes=[(camera, name, far), *others])
        images = [self.render(it, is_check=True)[0] for it in (seen, unseen, snapshot)]
        is_still = np.array_equal(images[0], image) or np.array_equal(images[0], images[1])
        if near and is_still or not np.array_equal(images[2], image):
            raise _CannotDefer("this Genesis draws in another way")


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else copy.deepcopy(value)


@functools.cache
def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_version()  # runs it
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"ffmpeg cannot be run ({error}): pip install imageio-ffmpeg") from error


def _muxer(name: str) -> Any:
    return MUXERS.get(os.path.splitext(name)[1].lower())


def _partial_path(path: str) -> str:
    folder, name = os.path.split(path)
    suffix = f".{os.urandom(4).hex()}.part"
    stem = os.fsdecode(os.fsencode(name)[: MAX_NAME - len(suffix)])
    return os.path.join(folder, stem + suffix)


def _recording_folder(out_dir: Any, name: str) -> str:
    """Create the folder, and try in it what recordings do: write, seek back, rename (ARG-7)."""
    folder = os.path.abspath(out_dir)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as trial:
            with open(_partial_path(os.path.join(trial, name)), "wb", buffering=0) as file:
                file.write(b"data")
                file.seek(0)  # ffmpeg writes an MP4's index last, at the front
                file.write(b"index")
            os.replace(file.name, _partial_path(file.name))
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
    if not isinstance(result, (tuple, list)) or len(result) not in (4, 5):
        count = len(result) if hasattr(result, "__len__") else "no"
        raise TypeError(f"{what}, got {count} results: {result!r:.200}")
    for flags in result[2:-1]:
        values = np.asarray(flags.tolist() if hasattr(flags, "tolist") else flags)
        is_row = values.shape[:1] == (values.size,) or num_envs == values.size == 1
        is_right = is_row and env_idx < values.size <= num_envs and values.dtype.kind in "biu"
        if flags is not None and not is_right:
            expected = f"with flags None or a bool or int for each of {num_envs} envs"
            raise ValueError(f"{what}, {expected}, got {flags!r:.200}")


def _is_done(flags: Sequence[Any], env_idx: int) -> bool:
    of_env = []
    for flag in flags:
        try:
            of_env.append(flag[env_idx])
        except (IndexError, TypeError):  # None, or of a single env and without a dimension
            of_env.append(False if flag is None else flag)
    # Combined before they are read, because each read waits for a GPU (COST-1).
    return bool(functools.reduce(operator.or_, of_env))


def _includes(env_ids: Any, env_idx: int, num_envs: int) -> bool:
    """Return whether `env_ids`, as an index of a tensor over all envs, selects the env (EPI-4)."""
    if isinstance(env_ids, tuple):  # np.where and nonzero give a tuple of arrays, one a dimension
        env_ids = env_ids[0] if any(getattr(i, "ndim", 0) for i in env_ids) else [*env_ids]
    selected = np.zeros(num_envs, bool)
    try:
        selected[np.ravel(env_ids.tolist()) if hasattr(env_ids, "tolist") else env_ids] = True
    except (IndexError, TypeError, ValueError):  # only its own env knows what that selects
        with contextlib.suppress(TypeError):
            return env_idx in env_ids
    return bool(selected[env_idx])
