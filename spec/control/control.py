"""A second VideoWrapper, written by the words of spec/README.md: an example for implementers.

It renders each frame at its step (FIN-6 asks for more) into an unnamed file, and starts ffmpeg when
it saves a video. It needs Linux. It is also the suite's control: if it fails a test although it
keeps to the words, the test demands what no clause says.
"""

# ruff: noqa: BLE001, F821, RUF013, UP037  # annotations are the stub's, and never evaluated
from __future__ import annotations

import atexit
import contextlib
import math
import multiprocessing.util
import os
import signal
import subprocess
import tempfile
import warnings
import weakref
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


def default_trigger(episode: int) -> bool:
    """Choose the cubes up to 1000, and then every thousandth episode."""
    if episode > 1000:
        return episode % 1000 == 0
    return round(episode ** (1 / 3)) ** 3 == episode


def check(is_right: bool, name: str, value: Any, error: type = ValueError) -> None:
    """Raise an error that names the argument and its value, unless it is right."""
    if not is_right:
        raise error(f"{name} cannot be {value!r}")


def without_noise(quotient: float) -> float:
    """Return the nearest integer if the quotient misses it by float noise only."""
    nearest = round(quotient)
    return nearest if abs(quotient - nearest) < 1e-6 * nearest else quotient


def as_list(values: Any) -> Any:
    """Turn tensors and arrays into lists and numbers, also inside a list."""
    if hasattr(values, "tolist"):
        return values.tolist()
    is_list = isinstance(values, (list, tuple, range))
    return [as_list(value) for value in values] if is_list else values


def of_env(name: str) -> property:
    """Return a read-only property of the wrapped env."""
    return property(lambda self: getattr(self.env, name))


@dataclass
class Recording:
    """The frames of one video, in an unnamed file, which goes when this object goes."""

    is_active: bool
    first: int  # step
    episode: int
    path: str
    has_lasted: bool = False
    frames: int = 0  # that wait to be saved
    shape: tuple[int, ...] = ()
    file: Any = None

    def __del__(self) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, over what Ctrl-C left of the one before."""
        if self.file is None:
            folder = os.path.dirname(self.path)
            os.makedirs(folder, exist_ok=True)
            self.shape = frame.shape
            self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        if frame.shape != self.shape:
            raise ValueError(f"frames of one video must have one size, {self.shape}")
        data = frame.tobytes()
        self.file.seek(self.frames * len(data))
        while data:
            data = data[self.file.write(data) :]
        self.frames += 1

    def save(self, rate: Fraction) -> None:
        """Make the video. Raise an OSError if it fails, in ffmpeg's words if there are any."""
        part = os.path.join(os.path.dirname(self.path), f"{os.urandom(8).hex()}.part")
        try:
            self._encode(part, rate)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        try:
            os.replace(part, self.path)
        except OSError as error:
            raise OSError(f"{error}. The complete video is {part}") from error

    def _encode(self, part: str, rate: Fraction) -> None:
        height, width, _ = self.shape
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
        if message or result.returncode:
            raise OSError(message or f"ffmpeg ended with {result.returncode}")
        with open(part, "rb") as file:  # because the exit status may be lost
            head = file.read(64)
        if b"moov" not in head and b"matroska" not in head:  # ffmpeg puts an MP4's index there last
            raise OSError("ffmpeg did not complete the video")


class VideoWrapper:
    """Records videos of an env. See spec/README.md for its arguments."""

    can_be_wrapped: bool = True
    env: GenesisEnv = None
    dt: float = of_env("dt")
    num_envs: int = of_env("num_envs")
    scene: genesis.Scene = of_env("scene")
    robot: Any = of_env("robot")
    num_actions: int = of_env("num_actions")
    num_observations: int = of_env("num_observations")
    action_space: gymnasium.spaces = of_env("action_space")
    observation_space: gymnasium.spaces = of_env("observation_space")
    extras: dict = of_env("extras")
    unwrapped: GenesisEnv = property(lambda self: getattr(self.env, "unwrapped", self.env))
    video_length_steps: int = property(lambda self: self._length)
    _recording = None  # that is running
    _background = ()  # finished ones that close() may choose from, oldest first

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
        if episode_trigger is None and step_trigger is None:
            episode_trigger = default_trigger
        is_one = episode_trigger is None or step_trigger is None
        check(is_one, f"with episode_trigger={episode_trigger}, step_trigger", step_trigger)
        self._episode_trigger, self._step_trigger = episode_trigger, step_trigger
        self._record_final_episode, self._logging = record_final_episode, logging
        self._counts_episodes = bool(episode_trigger is not None or record_final_episode)
        is_name = isinstance(camera_attr, str) and camera_attr.isidentifier()
        check(is_name, "camera_attr", camera_attr)
        self._camera_attr, self._env_idx = camera_attr, env_idx
        self._check_env_idx()
        self._set_timing(fps, video_length_sec)
        self._set_folder(out_dir, filename)
        self._step = self._episode = self._episode_start = 0  # of the next step
        self._next_background = 0  # the episode's step from which one may start
        self._asked_episode, self._has_warned = None, False
        _living[object()] = self

    def _set_timing(self, fps: float, video_length_sec: float) -> None:
        dt = self.env.dt
        for name, value in ("env.dt", dt), ("fps", fps), ("video_length_sec", video_length_sec):
            check(hasattr(value, "__float__") and 0 < float(value) < math.inf, name, value)
        length, stride = video_length_sec / dt, 1 / fps / dt
        check(math.isfinite(length), f"with dt={dt}, video_length_sec", video_length_sec)
        check(math.isfinite(stride), f"with dt={dt}, fps", fps)
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
        try:
            os.makedirs(self._out_dir, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._out_dir) as trial:
                path = os.path.join(trial, "file")
                with open(path, "wb") as file:
                    file.write(b"data")
                    file.seek(0)
                    file.write(b"rewritten")
                os.replace(path, path + ".renamed")
        except OSError as error:
            raise OSError(f"out_dir cannot be {out_dir!r} ({error})") from error

    def _check_env_idx(self) -> None:
        count = self.env.num_envs
        check(hasattr(count, "__index__") and count > 0, "env.num_envs", count)
        is_index = hasattr(self._env_idx, "__index__") and 0 <= int(self._env_idx) < count
        check(is_index, f"with {count} envs, env_idx", self._env_idx)
        self._env_idx = int(self._env_idx)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)

    def __setattr__(self, name: str, value: Any) -> None:
        is_own = name.startswith("_") or hasattr(type(self), name)
        if not is_own and hasattr(self.env, name):
            setattr(self.env, name, value)
        else:
            object.__setattr__(self, name, value)

    def __reduce__(self) -> Any:
        raise TypeError("a VideoWrapper cannot be copied, because both would write the same files")

    def __del__(self) -> None:
        self._save_all()

    def get_observations(self) -> torch.Tensor:
        """Return the wrapped env's observations."""
        return self.env.get_observations()

    def build(self) -> None:
        """Build the env, and check that it has the camera and the watched env."""
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
        """Step the env, record a frame if one is due, and return the env's results."""
        results = self.env.step(actions)
        if self._counts_episodes and self._step == 0:
            self._check_results(results)
        try:
            self._start_what_is_due()
            if self._recording is not None:
                self._record(self._recording)
        finally:
            self._step += 1
            if self._counts_episodes and self._is_done(results[2:-1]):
                self._end_episode()
        if self._recording and self._step >= self._recording.first + self._length:
            self.finish_recording()
        return results

    def _check_results(self, results: Any) -> None:
        forms = "(observations, rewards, terminated, truncated, extras)"
        forms = f"env.step must return {forms} or (observations, rewards, dones, extras)"
        if not isinstance(results, (tuple, list)) or len(results) not in (4, 5):
            raise TypeError(f"{forms}, got {results!r:.200}")
        count = self.env.num_envs
        for flags in results[2:-1]:
            values = np.array(as_list(flags), ndmin=1 if count == 1 else 0)
            is_row = values.shape[:1] == (values.size,) and values.dtype.kind in "biu"
            if flags is not None and not (is_row and self._env_idx < values.size <= count):
                found = f"with a bool or int for each of {count} envs as flags, got {flags!r:.200}"
                raise ValueError(f"{forms}, {found}")

    def _is_done(self, all_flags: Sequence[Any]) -> bool:
        given = [flags for flags in all_flags if flags is not None]
        mine = [flags[self._env_idx] if np.ndim(flags) else flags for flags in given]
        return bool(sum(flag != 0 for flag in mine))  # one wait for a device

    def _end_episode(self) -> None:
        if self._step > self._episode_start:
            self._episode += 1
            self._episode_start = self._step
            self._next_background = 0

    def _start_what_is_due(self) -> None:
        if self._recording and self._recording.is_active:
            return
        is_due = False
        if self._step_trigger is not None:
            is_due = self._step_trigger(self._step)
        elif self._episode_trigger is not None and self._asked_episode != self._episode:
            self._asked_episode = self._episode
            is_due = self._episode_trigger(self._episode)
        age = self._step - self._episode_start
        if is_due:
            self.start_recording("active")
        elif self._record_final_episode and age >= self._next_background:
            self.start_recording("background")
            while self._next_background <= age:
                self._next_background = max(4 * self._length, 2 * self._next_background)

    def _record(self, recording: Recording) -> None:
        if (self._step - recording.first) % self._stride == 0:
            image = self._camera()()
            image = image[0] if isinstance(image, tuple) and image else image
            try:
                recording.write(self._frame(image))
            except Exception as error:
                if isinstance(error, OSError):  # such as a full disk: nothing can be saved
                    self._forget(recording)
                self.finish_recording()
                kind, shape = getattr(image, "dtype", type(image)), getattr(image, "shape", ())
                self._warn(recording, f"{error!r} at a frame of {kind} {tuple(shape)}")
                return
        if self._step + 1 - recording.first >= self._lasting:
            recording.has_lasted = True
            self._background = []

    def _camera(self) -> Callable[[], Any]:
        """Return the camera's method that gives a frame."""
        base = self.unwrapped
        name = f"{type(base).__name__}.{self._camera_attr}"
        camera = getattr(base, self._camera_attr, None)
        if camera is None:
            raise AttributeError(f"{name} is missing or None, but it must be the camera")
        for method in ("render", "read"):
            if hasattr(camera, method):
                return getattr(camera, method)
        raise TypeError(f"{name} must have render() or read(), got {camera!r}")

    def _frame(self, image: Any) -> np.ndarray:
        """Return the watched env's part of what the camera gave: height, width, three colours."""
        array = np.asarray(image.cpu() if hasattr(image, "cpu") else image)
        if array.ndim == 4:  # one for each rendered env
            envs = list(range(len(array)))
            if len(array) != self.env.num_envs:
                envs = self._rendered_envs() or envs
            check(self._env_idx in envs, f"for frames of envs {envs}, env_idx", self._env_idx)
            array = array[envs.index(self._env_idx)]
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4):
            raise TypeError("a frame must be uint8 (height, width, 3)")
        return array[:, :, :3]

    def _rendered_envs(self) -> list[int] | None:
        visualizer = getattr(getattr(self.unwrapped, "scene", None), "visualizer", None)
        envs = getattr(getattr(visualizer, "context", None), "rendered_envs_idx", None)
        return None if envs is None else [int(env) for env in envs]

    def _warn(self, recording: Recording, error: Any) -> None:
        text = f"recording {recording.path} from step {recording.first} failed: {error}"
        warnings.warn(text, stacklevel=2)

    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Reset the envs, or these, and return the env's results."""
        results = self.env.reset() if env_ids is None else self.env.reset(env_ids)
        selected = np.full(self.env.num_envs, env_ids is None)
        with contextlib.suppress(Exception):  # only the env understands them
            selected[as_list(env_ids)] = True
        if selected[self._env_idx]:
            self._end_episode()
        return results

    def start_recording(self, type: Literal["active", "background"] = "active") -> None:
        """Start a recording with the next step, and finish the one that is running."""
        check(type in ("active", "background"), "type", type)
        if _is_exiting:
            return
        self.finish_recording()
        envs = self._rendered_envs()
        if envs is not None and self._env_idx not in envs and not self._has_warned:
            self._has_warned = True
            found = f"rendered_envs_idx={envs}, not env_idx={self._env_idx}"
            warnings.warn(f"{self._camera_attr} shows {found}", stacklevel=2)
        path = os.path.join(self._out_dir, self._filename or f"{self._step}.mp4")
        self._recording = Recording(type == "active", self._step, self._episode, path)
        save_at_exit()

    def finish_recording(self) -> None:
        """Save the recording that is running if it is active, or leave it to `close`."""
        recording = self._recording
        if recording and recording.is_active:
            self._save(recording)
        elif recording and recording.frames > 0:
            self._background = [*self._good()[-1:], recording]
        self._recording = None

    def close(self) -> None:
        """Save what is recorded, and close the env even if that fails."""
        close_env = getattr(self.env, "close", lambda: None)
        try:
            self._save_all()
        except Exception:  # a warning that the program turned into an error
            close_env()
            raise
        close_env()

    def _good(self) -> list[Recording]:
        """Return the background recordings that are long enough, or have their whole episode."""
        return [r for r in self._background if r.has_lasted or r.episode < self._episode]

    def _save_all(self) -> None:
        """Save at most one background recording, and then the active one, which is newer."""
        if self._recording and not self._recording.is_active:
            self.finish_recording()
        for recording in (self._good() or self._background)[-1:]:
            self._save(recording)
        self._background = []
        self.finish_recording()

    def _forget(self, recording: Recording) -> None:
        recording.frames = 0
        if recording is self._recording:
            self._recording = None

    def _save(self, recording: Recording) -> None:
        """Save the video, or warn. If Ctrl-C comes, another call does it again."""
        frames, rate = recording.frames, float(self._rate)
        if frames == 0:
            return
        try:
            recording.save(self._rate)
        except Exception as error:
            self._forget(recording)
            self._warn(recording, error)
            return
        self._forget(recording)
        if self._filename:
            self._background = []  # an older video must not overwrite it
        if self._logging:
            with contextlib.suppress(Exception):
                text = f"{frames} frames, {frames / rate:.4g} s, {rate:.4g} frames per second"
                print(f"{recording.path}: {text}")


# All wrappers that somebody holds, in order of creation.
_living: weakref.WeakValueDictionary[object, VideoWrapper] = weakref.WeakValueDictionary()
_is_exiting = False
_finalizer = None


def save_at_exit() -> None:
    """Have the end of this process save what is recorded."""
    # Anew for each recording, so that it runs before the handlers of what was made earlier.
    atexit.unregister(save_unclosed)
    atexit.register(save_unclosed)
    # Children of multiprocessing run these instead, and lose them as they start.
    global _finalizer
    if _finalizer is None or not _finalizer.still_active():
        _finalizer = multiprocessing.util.Finalize(None, save_unclosed, exitpriority=100)


def save_unclosed() -> None:
    """Save what all wrappers recorded, in order of creation, and then raise the first error."""
    global _is_exiting
    _is_exiting = True
    errors = []
    for wrapper in list(_living.values()):
        for _ in range(2):  # a second signal may break into the first
            try:
                wrapper._save_all()
            except BaseException as error:
                errors.append(error)
    if errors:
        raise errors[0]


def leave_to_parent() -> None:
    """Forget in a forked child what its parent recorded."""
    for wrapper in list(_living.values()):
        wrapper._recording, wrapper._background = None, []


os.register_at_fork(after_in_child=leave_to_parent)
