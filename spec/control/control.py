"""A second VideoWrapper, by the words of specification 1.1.0 alone and in no way like the first.

It is the control: a test that it fails, though it keeps to the words, demands what no clause says.
It has no thread, and no process while it records: pictures wait in an unnamed file, of which ffmpeg
makes the video when it is saved. So it meets FIN-6, COST-4 to COST-6, FAIL-7 and FAIL-8 not.
"""
# ruff: noqa: F821, RUF013, UP037  # the annotations are those of the stub, and never evaluated

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.util
import numbers
import os
import pathlib
import shlex
import signal
import tempfile
import warnings
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
PASSED_ON = """dt:float num_envs:int scene:genesis.Scene robot:Any num_actions:int num_observations:int
    action_space:gymnasium.spaces observation_space:gymnasium.spaces extras:dict unwrapped:GenesisEnv"""
Tape = type("Tape", (SimpleNamespace,), {"__del__": lambda self: self.file and self.file.close()})
UNCLOSED: list[VideoWrapper] = []  # the oldest first
os.register_at_fork(after_in_child=lambda: [vars(w).update(tape=None, kept=[]) for w in UNCLOSED])


def save_unclosed() -> None:
    VideoWrapper.start = lambda *_: None  # none begins afterwards
    with contextlib.ExitStack() as stack:  # each twice, since a signal may break into the first
        [stack.callback(wrapper.save_all) for wrapper in UNCLOSED[::-1] for _ in range(2)]


def need(is_met: Any, name: str, value: Any, error: type = ValueError) -> None:
    if not is_met:
        raise error(f"{value!r} is not what {name} can be")


def plain(values: Any) -> Any:  # tensors and arrays, and what has them, as lists and numbers
    values = values.tolist() if hasattr(values, "tolist") else values
    return [*map(plain, values)] if isinstance(values, (list, tuple, range)) else values


class VideoWrapper:
    can_be_wrapped: bool = True

    def __init__(self, env: GenesisEnv, camera_attr: str = "camera", video_length_sec: int = 8,
        episode_trigger: Callable[[int], bool] | None = None,
        step_trigger: Callable[[int], bool] | None = None, out_dir: str = "./videos", fps: int = 60,
        env_idx: int = 0, filename: str = None, record_final_episode: bool = True,
        logging: bool = True) -> None:  # fmt: skip
        is_env = all(hasattr(env, name) for name in ("step", "dt", "num_envs"))
        need(is_env and not isinstance(env, type), "env", env, TypeError)
        need(getattr(env, "can_be_wrapped", True), "can_be_wrapped", False)
        need(getattr(camera_attr, "isidentifier", bool)(), "camera_attr", camera_attr)
        triggers = (episode_trigger, step_trigger)
        need(None in triggers, "episode_trigger beside step_trigger", triggers)
        for name, asked in zip(("episode_trigger", "step_trigger"), triggers):
            need(asked is None or callable(asked), name, asked, TypeError)
        for name, value in (("dt", env.dt), ("video_length_sec", video_length_sec), ("fps", fps)):
            need(isinstance(value, numbers.Real) and 0 < value < 1e300, name, value)
        need(hasattr(env_idx, "__index__") and 0 <= int(env_idx) < env.num_envs, "env_idx", env_idx)
        name = filename if isinstance(filename, str) else "0.mp4" * (filename is None)
        is_plain = name.isprintable() and not {*name}.intersection("/\\")
        self.format = FORMATS.get(os.path.splitext(name)[1].lower())
        need(is_plain and len(name.encode()) < 256 and self.format, "filename", filename)
        need(out_dir not in (None, ""), "out_dir", out_dir)
        self.out_dir = os.path.abspath(out_dir)
        try:
            os.makedirs(self.out_dir, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.out_dir) as file:
                self.born = os.fstat(file.fileno()).st_mtime
        except OSError as error:
            raise OSError(f"{out_dir!r} is not what out_dir can be: {error}") from error
        ratios = (min(1e18, ratio) for ratio in (video_length_sec / env.dt, 2 / fps / env.dt))
        steps, halves = (round(r) if abs(r - round(r)) < 1e-6 * r else r for r in ratios)
        self.length, self.stride = max(1, int(np.ceil(steps))), max(1, round(halves / 2))
        self.rate = Fraction(float(1 / (self.stride * env.dt))).limit_denominator(100_000)
        need(self.length < 10**18, f"video_length_sec with dt={env.dt}", video_length_sec)
        need(0 < self.rate < 2**31, f"fps with dt={env.dt}", fps)
        self.env, self.env_idx, self.camera_attr = env, int(env_idx), camera_attr
        self.filename, self.say = filename, print if logging else repr
        self.by_episode, self.by_step, self.final = *triggers, record_final_episode
        if triggers == (None, None):
            self.by_episode = lambda e: e % 1000 == 0 or e in [k**3 for k in range(10)]
        self.number = self.episode = self.age = 0
        self.asked, self.tape, self.kept = -1, None, []  # kept is what is finished and not saved
        UNCLOSED.append(self)
        atexit.register(save_unclosed)
        multiprocessing.util.Finalize(None, save_unclosed, exitpriority=0)  # in a child

    def __reduce__(self) -> None:
        raise TypeError("a VideoWrapper is not copied: both would write the same files")

    @property
    def video_length_steps(self) -> int:
        return self.length

    def build(self) -> None:
        if self.number:  # it is not the first time
            self.finish_recording()
            self.episode, self.age = self.episode + (self.age > 0), 0
        try:
            getattr(self.env, "build", lambda: None)()
        except Exception as e:
            e.args = (f"{e} build() is not needed.",) if "already built" in str(e) else e.args
            raise
        self.camera()

    def camera(self) -> Callable[[], Any]:
        camera = getattr(base := self.unwrapped, self.camera_attr, None)
        shoot = getattr(camera, "render", None) or getattr(camera, "read", None)
        need(shoot, f"{type(base).__name__}.{self.camera_attr} for render() or read()", camera)
        return shoot

    def step(self, actions: torch.Tensor) -> Tuple[
        torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:  # fmt: skip
        result = self.env.step(actions)
        number, episode, is_first = self.number, self.episode, self.age == 0
        self.number, self.age = number + 1, self.age + 1
        if (self.by_episode or self.final) and self.is_over(result):
            self.episode, self.age = episode + 1, 0
        if not (self.tape and self.tape.is_active):
            is_asked, self.asked = self.asked != episode, episode
            is_due = self.by_step(number) if self.by_step else is_asked and self.by_episode(episode)
            if is_due or self.final and is_first:
                self.start(number, bool(is_due))
        if self.tape and number - self.tape.first in range(0, self.length, self.stride):
            self.take(self.tape, self.camera()())
        if self.tape and number >= self.tape.first + self.length - 1:
            self.finish_recording()
        return result

    def is_over(self, result: Any) -> bool:
        if self.number == 1:  # what came of the first step is looked at
            five = "(observations, rewards, terminated, truncated, extras) of a step"
            need(isinstance(result, (tuple, list)) and len(result) == 5, five, result, TypeError)
            for flags in (flags for flags in result[2:4] if flags is not None):
                values = np.array(plain(flags), ndmin=int(self.env.num_envs == 1))
                is_flag = values.dtype.kind in "biu" or np.isin(values, (0, 1)).all()
                is_row = values.ndim and self.env_idx < len(values) == values.size
                need(is_flag and is_row and len(values) <= self.env.num_envs, five, flags)
        ends = [f[self.env_idx] if np.ndim(f) else f for f in result[2:4] if f is not None]
        return bool(sum(end != 0 for end in ends))  # of a device, it is waited for once

    def take(self, tape: Tape, taken: Any) -> None:
        taken = taken[0] if isinstance(taken, tuple) and taken else taken
        try:
            shot = taken.detach().cpu().numpy() if hasattr(taken, "detach") else taken
            if shot.ndim == 4:  # one for each env that is rendered
                visualizer = getattr(getattr(self.unwrapped, "scene", None), "visualizer", None)
                envs = [*getattr(getattr(visualizer, "context", None), "rendered_envs_idx", ())]
                shot = shot[envs.index(self.env_idx) if len(envs) == len(shot) else self.env_idx]
            shot = shot[..., :3] if shot.shape[-1] == 4 else shot
            wanted = tape.shape or (*shot.shape[:2], 3)
            if shot.dtype != np.uint8 or shot.shape != wanted:
                raise TypeError(f"it is not uint8 of {wanted}")
            os.makedirs(self.out_dir, exist_ok=True)
            tape.file = tape.file or tempfile.TemporaryFile(buffering=0, dir=self.out_dir)  # noqa: SIM115
            at, end = tape.count * shot.size, (tape.count + 1) * shot.size
            while at < end:
                at += os.pwrite(tape.file.fileno(), shot.tobytes()[at - end :], at)
            tape.count, tape.shape = tape.count + 1, wanted  # before it, Ctrl-C costs the picture
            self.kept = [each for each in self.kept if each.is_active]
        except Exception as error:  # noqa: BLE001
            tape.count *= not isinstance(error, OSError)  # of the disk, of which the whole fails
            self.finish_recording()
            what = f"{getattr(taken, 'dtype', type(taken))} of {tuple(getattr(taken, 'shape', ()))}"
            warnings.warn(f"{tape.path} from step {tape.first}: {what}: {error}", stacklevel=3)

    def reset(self, env_ids: Sequence[int] = None) -> tuple[torch.Tensor, dict[str, Any]]:
        result = self.env.reset(*([] if env_ids is None else [env_ids]))
        marks = np.zeros(self.env.num_envs, bool)
        with contextlib.suppress(Exception):  # what its env alone can take
            marks[... if env_ids is None else plain(env_ids)] = True
        if marks[self.env_idx] and self.age:
            self.episode, self.age = self.episode + 1, 0
        return result

    def get_observations(self) -> torch.Tensor:
        return self.env.get_observations()

    def start(self, first: int, is_active: bool) -> None:
        self.finish_recording()
        path = os.path.join(self.out_dir, self.filename or f"{first}.mp4")
        self.tape = Tape(first=first, is_active=is_active, path=path, file=None, count=0, shape=())

    def start_recording(self, type: Literal["active", "background"] = "active") -> None:
        need(type in ("active", "background"), "type", type)
        self.start(self.number, type == "active")

    def finish_recording(self) -> None:
        if self.tape and self.tape not in self.kept and self.tape.count:
            self.kept.append(self.tape)
        self.tape = None
        for tape in [each for each in self.kept if each.is_active]:
            try:
                self.save(tape)
            except Exception as error:  # noqa: BLE001
                self.kept.remove(tape)
                warnings.warn(f"{tape.path} from step {tape.first}: {error}", stacklevel=2)

    def save_all(self) -> None:
        for tape in filter(None, (self.tape, *self.kept)):
            tape.is_active = True
        self.finish_recording()

    def close(self) -> None:
        try:
            self.save_all()
        except Exception:  # a warning that is to be an error
            self.close()
            raise
        UNCLOSED[:] = [each for each in UNCLOSED if each is not self]
        getattr(self.env, "close", lambda: None)()

    def save(self, tape: Tape) -> None:
        with contextlib.ExitStack() as undo, tempfile.TemporaryDirectory(dir=self.out_dir) as room:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))  # ffmpeg has it, too
            undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            # Ctrl-C would break into subprocess and leave ffmpeg behind, but waits for a shell.
            failed = os.system(f"""cd {shlex.quote(room)} && exec {shlex.quote(get_ffmpeg_exe())} \
                -nostdin -loglevel error -f rawvideo -pixel_format rgb24 -framerate {self.rate} \
                -s {tape.shape[1]}x{tape.shape[0]} -i /proc/{os.getpid()}/fd/{tape.file.fileno()} \
                -frames:v {tape.count} -pix_fmt yuv420p -vf 'pad=ceil(iw/2)*2:ceil(ih/2)*2:ow-iw:oh-ih' \
                -c:v libx264 -preset ultrafast -crf 10 -movflags +faststart -f {self.format} video 2>words""")
            if words := pathlib.Path(room, "words").read_text(errors="replace").strip() or failed:
                raise OSError(f"ffmpeg: {words}")
            is_older = os.path.exists(tape.path) and os.path.getmtime(tape.path) < self.born
            os.replace(os.path.join(room, "video"), tape.path)
        self.kept.remove(tape)
        count, rate, note = tape.count, float(self.rate), " over an earlier file" * is_older
        with contextlib.suppress(Exception):
            self.say(f"{rate:.4g} fps, {count / rate:.4g} s, {count} frames: {tape.path}{note}")


for _name, _type in (pair.split(":") for pair in PASSED_ON.split()):

    def _read(self: Any, name: str = _name) -> Any:
        return getattr(self.env, name, *[self.env] * (name == "unwrapped"))

    _read.__annotations__["return"] = _type
    setattr(VideoWrapper, _name, property(_read))
