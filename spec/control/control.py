"""A second VideoWrapper, written by the words of spec/README.md: an example for implementers.

It is in no way like the module. Every frame is rendered at its step (FIN-6 asks for more). Frames
wait in an unnamed file in `out_dir`, and ffmpeg runs only while a video is saved. It needs Linux.

It is also the suite's control: if it fails a test although it keeps to the words, the test demands
what no clause says.
"""

# ruff: noqa: BLE001, F821, RUF013, UP037  # annotations are the stub's, and never evaluated
from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import multiprocessing.util
import os
import signal
import subprocess
import tempfile
import warnings
import weakref
from fractions import Fraction

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
RESULTS = "(observations, rewards, terminated, truncated, extras)"
FEWER_RESULTS = "(observations, rewards, dones, extras)"


def default_trigger(episode: int) -> bool:
    """Choose the cubes up to 1000, and then every thousandth episode."""
    if episode > 1000:
        return episode % 1000 == 0
    return round(episode ** (1 / 3)) ** 3 == episode


def check(is_right: bool, name: str, value: Any, error: type = ValueError) -> None:
    if not is_right:
        raise error(f"{name} cannot be {value!r}")


def check_number(name: str, value: Any) -> None:
    check(hasattr(value, "__float__") and 0 < float(value) < math.inf, name, value)


def without_noise(quotient: float) -> float:
    """Return the nearest integer if the quotient misses it by float noise only."""
    nearest = round(quotient)
    return nearest if abs(quotient - nearest) < 1e-6 * nearest else quotient


def as_list(values: Any) -> Any:
    """Turn tensors and arrays into lists and numbers, also inside a list."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (list, tuple, range)):
        values = [as_list(value) for value in values]
    return values


class Recording:
    """The frames of one video, in an unnamed file, which goes when this object goes."""

    def __init__(self, is_active: bool, first: int, episode: int, path: str) -> None:
        self.is_active = is_active
        self.first = first  # step
        self.episode = episode
        self.path = path
        self.steps = 0  # so far
        self.frames = 0
        self.size = None  # of a frame: height and width
        self.file = None

    def write(self, frame: np.ndarray) -> None:
        data, folder = frame.tobytes(), os.path.dirname(self.path)
        if self.file is None:
            os.makedirs(folder, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            self.size = frame.shape[:2]
        self.file.seek(self.frames * len(data))  # over what Ctrl-C left of a frame
        while data:
            data = data[self.file.write(data) :]
        self.frames += 1

    def encode(self, part: str, rate: Fraction) -> None:
        """Make a video of the frames. Raise an OSError in ffmpeg's words if it fails."""
        height, width = self.size
        muxer = FORMATS[os.path.splitext(self.path)[1].lower()]
        command = [get_ffmpeg_exe(), "-nostdin", "-loglevel", "error"]
        command += ["-f", "rawvideo", "-pixel_format", "rgb24"]
        command += ["-video_size", f"{width}x{height}", "-framerate", str(rate), "-i", "pipe:0"]
        command += ["-frames:v", str(self.frames), "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
        command += ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "10"]
        command += ["-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", muxer, part]
        self.file.seek(0)
        # Signals wait until the video is made: ffmpeg inherits that.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            result = subprocess.run(command, stdin=self.file, capture_output=True, check=False)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        message = result.stderr.decode(errors="replace").strip()
        if message or result.returncode or not is_complete(part):
            raise OSError(message or f"ffmpeg ended with {result.returncode}")


def is_complete(path: str) -> bool:
    """Look into the file, because the exit status may be lost."""
    with open(path, "rb") as file:
        head = file.read(64)
    return b"moov" in head or b"matroska" in head  # ffmpeg puts an MP4's index there last


class VideoWrapper:
    can_be_wrapped: bool = True

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
        is_env = all(hasattr(env, name) for name in ("step", "dt", "num_envs"))
        check(is_env and not isinstance(env, type), "env", env, TypeError)
        check(getattr(env, "can_be_wrapped", True), "env.can_be_wrapped", False)
        self.env = env
        for name, trigger in ("episode_trigger", episode_trigger), ("step_trigger", step_trigger):
            check(trigger is None or callable(trigger), name, trigger, TypeError)
        if episode_trigger and step_trigger:
            triggers = (episode_trigger, step_trigger)
            raise ValueError(f"episode_trigger and step_trigger cannot both be given: {triggers}")
        if not episode_trigger and not step_trigger:
            episode_trigger = default_trigger
        self._episode_trigger, self._step_trigger = episode_trigger, step_trigger
        self._record_final_episode, self._logging = record_final_episode, logging
        self._counts_episodes = bool(episode_trigger or record_final_episode)
        is_name = isinstance(camera_attr, str) and camera_attr.isidentifier()
        check(is_name, "camera_attr", camera_attr)
        self._camera_attr, self._env_idx = camera_attr, env_idx
        self._check_env_idx()
        self._set_timing(fps, video_length_sec)
        self._set_folder(out_dir, filename)
        self._step = self._episode = self._episode_start = 0  # of the next step
        self._asked_episode = None
        self._next_background = 0  # the episode's step from which one may start
        self._recording = None
        self._background = []  # all that close() may choose from, oldest first
        self._has_warned = False
        _living[next(_serial_numbers)] = self

    def _set_timing(self, fps: float, video_length_sec: float) -> None:
        dt = self.env.dt
        check_number("env.dt", dt)
        check_number("fps", fps)
        check_number("video_length_sec", video_length_sec)
        length, stride = video_length_sec / dt, 1 / fps / dt
        check(length < 1e18, f"with dt={dt}, video_length_sec", video_length_sec)
        check(1e-12 < stride < 1e18, f"with dt={dt}, fps", fps)
        self._length = max(1, math.ceil(without_noise(length)))
        self._stride = max(1, round(without_noise(2 * stride) / 2))
        self._lasting = min(self._length, math.ceil(without_noise(1 / dt)))  # steps
        self._rate = Fraction(float(1 / (self._stride * dt))).limit_denominator(100_000)
        check(0 < self._rate < 2**31, f"with dt={dt}, fps", fps)

    def _set_folder(self, out_dir: str, filename: str | None) -> None:
        name = "0.mp4" if filename is None else filename
        is_name = isinstance(name, str) and name == os.path.basename(name)
        is_name = is_name and os.path.splitext(name)[1].lower() in FORMATS
        check(is_name and len(name.encode()) <= 255, "filename", filename)
        check(out_dir is not None and out_dir != "", "out_dir", out_dir)
        self._filename, self._out_dir = filename, os.path.abspath(out_dir)
        trial = os.path.join(self._out_dir, os.urandom(8).hex())
        try:
            os.makedirs(self._out_dir, exist_ok=True)
            with open(trial, "wb") as file:
                file.write(b"data")
                file.seek(0)
                file.write(b"rewritten")
            os.replace(trial, trial + ".renamed")
        except OSError as error:
            text = (
                f"out_dir cannot be {out_dir!r}, because files there cannot be written or renamed"
            )
            raise OSError(f"{text}: {error}") from error
        finally:
            for path in (trial, trial + ".renamed"):
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _check_env_idx(self) -> None:
        count = self.env.num_envs
        check(hasattr(count, "__index__") and count > 0, "env.num_envs", count)
        is_index = hasattr(self._env_idx, "__index__") and 0 <= int(self._env_idx) < count
        check(is_index, f"with {count} envs, env_idx", self._env_idx)
        self._env_idx = int(self._env_idx)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)

    def __setattr__(self, name: str, value: Any) -> None:
        is_own = name.startswith("_") or name == "env" or hasattr(type(self), name)
        if not is_own and hasattr(self.env, name):
            setattr(self.env, name, value)
        else:
            object.__setattr__(self, name, value)

    def __reduce__(self) -> Any:
        raise TypeError("a VideoWrapper cannot be copied, because both would write the same files")

    def __del__(self) -> None:
        if "_background" in vars(self):
            self._save_all()

    @property
    def video_length_steps(self) -> int:
        return self._length

    def build(self) -> None:
        if self._step > 0:
            self.finish_recording()
        self._end_episode()
        if hasattr(self.env, "build"):
            self.env.build()
        self._check_env_idx()
        self._camera()

    def step(
        self, actions: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        results = self.env.step(actions)
        if self._counts_episodes and self._step == 0:
            self._check_results(results)
        try:
            self._start_what_is_due()
            self._record()
        finally:
            self._step += 1
            if self._counts_episodes and self._is_done(results[2:-1]):
                self._end_episode()
        if self._recording and self._step >= self._recording.first + self._length:
            self.finish_recording()
        return results

    def _check_results(self, results: Any) -> None:
        expected = f"env.step must return {RESULTS} or {FEWER_RESULTS}"
        if not isinstance(results, (tuple, list)) or len(results) not in (4, 5):
            raise TypeError(f"{expected}, got {results!r:.200}")
        count = self.env.num_envs
        for flags in results[2:-1]:
            if flags is None:
                continue
            values = np.array(as_list(flags), ndmin=1 if count == 1 else 0)
            is_row = values.ndim > 0 and values.shape[0] == values.size
            if values.dtype.kind not in "biu" or not is_row:
                raise ValueError(f"{expected}, with bools or integers as flags, got {flags!r:.200}")
            if not self._env_idx < values.size <= count:
                raise ValueError(f"{expected}, with flags of {count} envs, got {flags!r:.200}")

    def _is_done(self, flags: Sequence[Any]) -> bool:
        mine = [
            flag[self._env_idx] if np.ndim(flag) else flag for flag in flags if flag is not None
        ]
        if len(mine) == 2:
            return bool((mine[0] != 0) | (mine[1] != 0))  # one wait for a device
        return bool(mine and mine[0])

    def _end_episode(self) -> None:
        if self._step > self._episode_start:
            self._episode += 1
            self._episode_start = self._step
            self._next_background = 0

    def _start_what_is_due(self) -> None:
        if self._recording and self._recording.is_active:
            return
        is_due = False
        if self._step_trigger:
            is_due = self._step_trigger(self._step)
        elif self._episode_trigger and self._asked_episode != self._episode:
            self._asked_episode = self._episode
            is_due = self._episode_trigger(self._episode)
        age = self._step - self._episode_start
        if is_due:
            self._start(is_active=True)
        elif self._record_final_episode and age >= self._next_background:
            self._start(is_active=False)
            self._next_background = 4 * self._length
            while self._next_background <= age:
                self._next_background *= 2

    def _start(self, is_active: bool) -> None:
        if _is_exiting:
            return
        self.finish_recording()
        self._warn_of_env_that_is_not_rendered()
        path = os.path.join(self._out_dir, self._filename or f"{self._step}.mp4")
        self._recording = Recording(is_active, self._step, self._episode, path)
        if not is_active:
            self._background.append(self._recording)
        save_at_exit()

    def _record(self) -> None:
        recording = self._recording
        if recording is None:
            return
        if (self._step - recording.first) % self._stride == 0:
            image = self._camera()()
            try:
                recording.write(self._frame(image, recording.size))
            except Exception as error:
                if isinstance(error, OSError):  # such as a full disk: nothing can be saved
                    self._drop(recording)
                self.finish_recording()
                self._warn(recording, error)
                return
        recording.steps = self._step + 1 - recording.first
        if recording.steps >= self._lasting:
            for older in [r for r in self._background if r.first < recording.first]:
                self._drop(older)

    def _drop(self, recording: Recording) -> None:
        if recording.file is not None:
            recording.file.close()
        recording.file, recording.frames = None, 0
        if self._recording is recording:
            self._recording = None
        self._background = [r for r in self._background if r is not recording]

    def _camera(self) -> Callable[[], Any]:
        base = self.unwrapped
        name = f"{type(base).__name__}.{self._camera_attr}"
        camera = getattr(base, self._camera_attr, None)
        if camera is None:
            raise AttributeError(f"{name} is missing or None, but it must be the camera")
        if hasattr(camera, "render"):
            return camera.render
        if hasattr(camera, "read"):
            return camera.read
        raise TypeError(f"{name} must have render() or read(), got {camera!r}")

    def _frame(self, image: Any, size: Any) -> np.ndarray:
        """Return what the camera gave as an array of height, width and three colours."""
        if isinstance(image, tuple) and image:
            image = image[0]
        found = f"{getattr(image, 'dtype', type(image))} {tuple(getattr(image, 'shape', ()))}"
        try:
            array = image.detach().cpu().numpy() if hasattr(image, "detach") else image
        except Exception as error:
            raise RuntimeError(f"{found}: {error}") from error
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
            raise TypeError(f"a frame must be uint8, got {found}")
        if array.ndim == 4:  # one for each rendered env
            envs = list(range(len(array)))
            if len(array) != self.env.num_envs:
                envs = self._rendered_envs() or envs
            if self._env_idx not in envs:
                raise TypeError(f"env {self._env_idx} is not among the frames, got {found}")
            array = array[envs.index(self._env_idx)]
        if array.ndim != 3 or array.shape[2] not in (3, 4) or size not in (None, array.shape[:2]):
            raise TypeError(f"a frame must be (height, width, 3) and of one size, got {found}")
        return array[:, :, :3]

    def _rendered_envs(self) -> list[int] | None:
        visualizer = getattr(getattr(self.unwrapped, "scene", None), "visualizer", None)
        envs = getattr(getattr(visualizer, "context", None), "rendered_envs_idx", None)
        return None if envs is None else [int(env) for env in envs]

    def _warn_of_env_that_is_not_rendered(self) -> None:
        envs = self._rendered_envs()
        if envs is not None and self._env_idx not in envs and not self._has_warned:
            self._has_warned = True
            text = (
                f"{self._camera_attr} shows rendered_envs_idx={envs}, not env_idx={self._env_idx}"
            )
            warnings.warn(text, stacklevel=2)

    def _warn(self, recording: Recording, error: Any) -> None:
        text = f"recording {recording.path} from step {recording.first} failed: {error}"
        warnings.warn(text, stacklevel=2)

    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]:
        if env_ids is None:
            results = self.env.reset()
        else:
            results = self.env.reset(env_ids)
        if self._selects_watched_env(env_ids):
            self._end_episode()
        return results

    def _selects_watched_env(self, env_ids: Any) -> bool:
        if env_ids is None:
            return True
        selected = np.zeros(self.env.num_envs, bool)
        with contextlib.suppress(Exception):  # only the env understands them
            selected[as_list(env_ids)] = True
        return bool(selected[self._env_idx])

    def get_observations(self) -> torch.Tensor:
        return self.env.get_observations()

    def start_recording(self, type: Literal["active", "background"] = "active") -> None:
        check(type in ("active", "background"), "type", type)
        self._start(is_active=type == "active")

    def finish_recording(self) -> None:
        recording = self._recording
        if recording is None:
            return
        if recording.frames == 0:
            self._drop(recording)
        elif recording.is_active:
            self._save(recording)
        self._recording = None

    def close(self) -> None:
        try:
            self._save_all()
        except Exception:  # a warning that the program turned into an error
            self._close_env()
            raise
        self._close_env()

    def _close_env(self) -> None:
        if hasattr(self.env, "close"):
            self.env.close()

    def _save_all(self) -> None:
        """Save at most one background recording, and then the active one, which is newer."""
        if self._recording and not self._recording.is_active:
            self.finish_recording()
        shown = [r for r in self._background if r.frames > 0]
        good = [r for r in shown if r.steps >= self._lasting or r.episode < self._episode]
        for recording in (good or shown)[-1:]:
            self._save(recording)
        self._background = []
        self.finish_recording()

    def _save(self, recording: Recording) -> None:
        """Save the video, or warn. If Ctrl-C comes, another call does it again."""
        part = os.path.join(self._out_dir, f"{os.urandom(8).hex()}.part")
        try:
            recording.encode(part, self._rate)
        except Exception as error:
            self._forget_file(part)
            self._drop(recording)
            self._warn(recording, error)
            return
        except BaseException:
            self._forget_file(part)
            raise
        frames, rate = recording.frames, float(self._rate)
        try:
            os.replace(part, recording.path)
        except OSError as error:
            self._drop(recording)
            self._warn(recording, f"{error}. The complete video is {part}")
            return
        self._drop(recording)
        if recording.is_active and self._filename:
            self._background = []  # an older video must not overwrite it
        if self._logging:
            with contextlib.suppress(Exception):
                text = f"{frames} frames, {frames / rate:.4g} s, {rate:.4g} frames per second"
                print(f"{recording.path}: {text}")

    def _forget_file(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)

    @property
    def unwrapped(self) -> GenesisEnv:
        return getattr(self.env, "unwrapped", self.env)

    @property
    def dt(self) -> float:
        return self.env.dt

    @property
    def num_envs(self) -> int:
        return self.env.num_envs

    @property
    def scene(self) -> genesis.Scene:
        return self.env.scene

    @property
    def robot(self) -> Any:
        return self.env.robot

    @property
    def num_actions(self) -> int:
        return self.env.num_actions

    @property
    def num_observations(self) -> int:
        return self.env.num_observations

    @property
    def action_space(self) -> gymnasium.spaces:
        return self.env.action_space

    @property
    def observation_space(self) -> gymnasium.spaces:
        return self.env.observation_space

    @property
    def extras(self) -> dict:
        return self.env.extras


# All wrappers that somebody holds, in order of creation.
_serial_numbers = itertools.count()
_living: weakref.WeakValueDictionary[int, VideoWrapper] = weakref.WeakValueDictionary()
_is_exiting = False
_finalizer = None


def save_at_exit() -> None:
    # Registered anew for each recording, so that it runs before Genesis destroys its scenes.
    atexit.unregister(save_unclosed)
    atexit.register(save_unclosed)
    # Children of multiprocessing run these instead, and lose them as they start.
    global _finalizer
    if _finalizer is None or not _finalizer.still_active():
        _finalizer = multiprocessing.util.Finalize(None, save_unclosed, exitpriority=100)


def save_unclosed() -> None:
    global _is_exiting
    _is_exiting = True
    errors = []
    for number in sorted(_living):
        wrapper = _living.pop(number)
        for _ in range(2):  # a second signal may break into the first
            try:
                wrapper._save_all()
            except BaseException as error:
                errors.append(error)
    for error in errors[:1]:
        raise error


def leave_to_parent() -> None:
    for wrapper in list(_living.values()):
        wrapper._recording, wrapper._background = None, []


os.register_at_fork(after_in_child=leave_to_parent)
