"""Mistakes that people make, and which test catches each: python -m spec.mistakes [WORDS] [--table]

Each is a change of a few words in the second implementation, which is right without it. WORDS choose
those whose description or clause has them. --table writes the table of spec/README.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "spec" / "second_implementation.py"


class Mistake(NamedTuple):
    """What a person would get wrong: of which clauses, in words, and the changes old, new, ..."""

    clauses: str
    words: str
    changes: tuple[str, ...]
    slow: bool = False  # only seen by tests that start processes


def mistake(clauses: str, words: str, *changes: str, slow: bool = False) -> Mistake:
    return Mistake(clauses, words, changes, slow)


FLAGS = "ends = [flags[self.env_idx] for flags in result[2:4] if flags is not None]"
DUE = "        if self.tape and (number - self.tape.first) % self.stride == 0:\n"
FAILED = "            self.warn(tape, error)\n            self.finish_recording()\n"
SAVED = "            os.replace(made, path)\n"
MADE = "self.number = self.episode = self.age = 0\n"
STEP = "        result = self.env.step(actions)\n"
RGB = "    return taken[..., :3]\n"
FRAME = "    taken = rendered[0] if isinstance(rendered, tuple) else rendered\n"

MISTAKES = [
    mistake("API-1", "another default", "fps: int = 60", "fps: int = 30"),
    mistake("API-4", "no can_be_wrapped", "    can_be_wrapped: bool = True\n", ""),
    mistake("ARG-1", "both triggers taken", "refuse(None not in both,", "refuse(False,"),
    mistake(
        "ARG-2",
        "only the step trigger is looked at",
        "asked is not None and not callable(asked), name",
        "name[0] == 's' and asked is not None and not callable(asked), name",
    ),
    mistake("ARG-3", "infinity taken", "and math.isfinite(value)", "and value == value"),
    mistake("ARG-3", "0 taken", "value <= 0, name", "value < 0, name"),
    mistake("ARG-4", "negative env_idx", "0 <= int(env_idx) <", "-env.num_envs <= int(env_idx) <"),
    mistake("ARG-4", "env_idx = num_envs", "int(env_idx) < env.num_envs", "int(env_idx) <= env.num_envs"),
    mistake("ARG-5", "a name's characters counted, not its bytes", "len(text.encode())", "len(text)"),
    mistake("ARG-5", "upper-case suffix refused", "[1].lower()", "[1]"),
    mistake("ARG-6", "can_be_wrapped not read", 'refuse(not getattr(env, "can_be_wrapped", True),', "refuse(False,"),
    mistake("ARG-8", "whether the folder can be written to is not tried", "            tempfile.TemporaryFile(dir=self.out_dir).close()\n", ""),
    mistake("ARG-9", "an error without the value", '{value!r} is not what {name} can be"', '{name} is wrong"'),
    mistake("BLD-1", "build() builds twice", "        self.env.build()\n", "        self.env.build()\n" * 2),
    mistake("BLD-2", "the camera of the next layer, not of the base", "camera = getattr(self.unwrapped,", "camera = vars(self.env).get('camera') and getattr(self.env,"),
    mistake("BLD-3", "None passes for a camera", "        if camera is None:\n", "        if not hasattr(self.unwrapped, self.camera_attr):\n"),
    mistake("BLD-4", "the camera is found by build() alone", "self.env.build()\n        self.camera()", "self.env.build()\n        self.found = self.camera()", "self.take(self.tape, self.camera().render())", "self.take(self.tape, self.found.render())"),
    mistake("TIME-1", "length rounded to the nearest", "math.ceil(steps)", "round(steps)"),
    mistake("TIME-2", "float noise adds a step", "1e-6 * value", "0"),
    mistake("TIME-3", "a tie rounded up", "round(halves / 2)", "math.floor(halves / 2 + 0.5)"),
    mistake("TIME-3", "stride rounded down", "round(halves / 2)", "int(halves / 2)"),
    mistake("TIME-4", "one frame more", "self.tape.first + self.length - 1", "self.tape.first + self.length", "number >= self.tape.first + self.length:", "number > self.tape.first + self.length:"),
    mistake("TIME-4", "the stride counts from step 0", "(number - self.tape.first) % self.stride", "number % self.stride"),
    mistake("TIME-5 FILE-11", "the picture is taken before the step", STEP, "        shot = self.camera().render()\n" + STEP, "self.take(self.tape, self.camera().render())", "self.take(self.tape, shot)"),
    mistake("TIME-6", "the rate of k = 1", "Fraction(1 / (self.stride * env.dt))", "Fraction(1 / env.dt)"),
    mistake("TIME-6", "the rate limited to denominators of 100", "limit_denominator(100_000)", "limit_denominator(100)"),
    mistake("TIME-6", "fps is the rate", "Fraction(1 / (self.stride * env.dt))", "Fraction(fps)"),
    mistake("TIME-7", "rendered at each step of a recording", DUE, "        self.tape and self.camera().render()\n" + DUE),
    mistake("TIME-7", "rendered at each step", STEP, STEP + "        getattr(self.unwrapped, self.camera_attr).render()\n"),
    mistake("TIME-4", "a background recording takes each step", DUE, DUE.replace("self.stride", "(self.stride if self.tape.is_active else 1)")),
    mistake("TRIG-1", "cubes beyond 1000", "range(10)] or e >= 1000 and e % 1000 == 0", "range(30)]"),
    mistake("TRIG-1", "1000 missing", "e >= 1000 and", "e > 1000 and"),
    mistake("TRIG-2", "the first step is never asked for", "if self.by_step(number) if", "if number > 0 and self.by_step(number) if"),
    mistake("TRIG-3", "asked before the step", STEP, "        early = self.by_step and not (self.tape and self.tape.is_active) and self.by_step(self.number)\n" + STEP, "if self.by_step(number) if self.by_step", "if early if self.by_step"),
    mistake("TRIG-3", "asked while a recording runs", STEP, "        self.by_step and self.tape and self.tape.is_active and self.by_step(self.number)\n" + STEP),
    mistake("TRIG-5", "asked at each step", "else is_asked and self.by_episode(episode)", "else self.by_episode(episode)"),
    mistake("TRIG-5", "asked at the first step of an episode only", "else is_asked and self", "else is_first and self"),
    mistake("TRIG-6", "a trigger starts anew", "if not (self.tape and self.tape.is_active):", "if True:"),
    mistake("TRIG-7", "only True is true", "if self.by_step(number) if self.by_step else is_asked and self.by_episode(episode):", "if (self.by_step(number) if self.by_step else is_asked and self.by_episode(episode)) is True:"),
    mistake("EPI-1", "env 0 is watched", FLAGS, FLAGS.replace("self.env_idx", "0")),
    mistake("EPI-1", "any env ends the episode", FLAGS, FLAGS.replace("flags[self.env_idx]", "any(flags)")),
    mistake("EPI-1", "env 0 is watched on a device", FLAGS, FLAGS.replace("self.env_idx", "0 if getattr(flags, 'is_cuda', 0) else self.env_idx")),
    mistake("EPI-1", "env 0 is watched in flags that come again", MADE, MADE + "        self.again = None\n", FLAGS, "again, self.again = self.again is result[2], result[2]\n            " + FLAGS.replace("self.env_idx", "0 if again else self.env_idx")),
    mistake("EPI-2", "truncation ignored", FLAGS, FLAGS.replace("2:4", "2:3")),
    mistake("EPI-2", "truncation ignored on a device", FLAGS, FLAGS.replace("result[2:4]", "(result[2:3] if getattr(result[2], 'is_cuda', 0) else result[2:4])")),
    mistake("EPI-2", "flags are and-ed", "ends = [ends[0].logical_or(ends[1])]", "ends = [ends[0].logical_and(ends[1])]"),
    mistake("EPI-2", "both at once are two", "self.end_episode(any(map(bool, ends)))", "[self.end_episode(bool(flags[self.env_idx])) for flags in result[2:4] if flags is not None]"),
    mistake("EPI-2", "flags are taken for tensors", FLAGS, FLAGS.replace("flags[self.env_idx]", "flags[self.env_idx].any()")),
    mistake("EPI-3", "None tolerated only twice", "in result[2:4] if flags is not None]", "in result[2:4] if result[2] is not None]"),
    mistake("EPI-4", "a mask is taken for indices", "np.flatnonzero(ids) if ids.dtype == bool else ids", "ids.astype(int)"),
    mistake("EPI-4", "any reset counts", "self.age > 0 and self.env_idx in ids", "self.age > 0"),
    mistake("EPI-4", "a reset before the first step counts", "self.age > 0 and self.env_idx", "self.env_idx"),
    mistake("EPI-4", "a reset counts nothing", "self.age > 0 and self.env_idx", "False and self.env_idx"),
    mistake("EPI-4", "a mask on a device is not fetched", '        ids = ids.cpu() if hasattr(ids, "cpu") else ids\n', ""),
    mistake("EPI-5", "a recording ends with its episode", "            self.end_episode(any(map(bool, ends)))\n", "            self.end_episode(any(map(bool, ends)))\n            if any(map(bool, ends)):\n                self.finish_recording()\n"),
    mistake("EPI-5", "a reset ends the recording", "        self.end_episode(self.age > 0 and", "        self.finish_recording()\n        self.end_episode(self.age > 0 and"),
    mistake("REC-1 FILE-1", "named after the step before", "self.start(self.number, type", "self.start(max(self.number - 1, 0), type"),
    mistake("REC-2", "saved by the next step, not at once", "        while self.unsaved:\n", "        while self.unsaved and tape is None:\n"),
    mistake("REC-3", "the running one is lost", "        self.finish_recording()\n        name =", "        name ="),
    mistake("REC-3", "a background recording loses the active one", "        self.finish_recording()\n        name =", "        is_active and self.finish_recording()\n        name ="),
    mistake("REC-4", "a finished background recording is saved at once", "self.unsaved += [tape] * tape.is_active", "self.unsaved += [tape]"),
    mistake("REC-4", "a finished background recording is dropped", "self.last = None if tape.is_active else tape", "self.last = None"),
    mistake("REC-6", "an empty recording gives a warning", "        self.tape = None\n        while", "        if tape and len(tape.ends) == 1:\n            self.warn(tape, 'no frame')\n        self.tape = None\n        while"),
    mistake("REC-7", "an unknown type ends what runs", '        refuse(type not in ("active", "background"), "type", type)\n', '        self.finish_recording()\n        refuse(type not in ("active", "background"), "type", type)\n'),
    mistake("REC-7", "an unknown type is background", '        refuse(type not in ("active", "background"), "type", type)\n', ""),
    mistake("FIN-1", "close() forgets the final episode", "            if self.last:\n", "            if False:\n"),
    mistake("FIN-1 FILE-1", "the final video has a name of its own", "                self.tape.is_active = True\n", "                self.tape.is_active = True\n                self.tape.path = os.path.join(self.out_dir, 'final.mp4')\n"),
    mistake("FIN-2", "only the first episode", "elif self.final and is_first:", "elif self.final and number == 0:"),
    mistake("FIN-2", "no end after N steps", "        if self.unsaved or self.tape and", "        if self.unsaved or self.tape and self.tape.is_active and", "        if self.tape and number ==", "        if self.tape and self.tape.is_active and number =="),
    mistake("FIN-2 TRIG-2", "a background recording keeps triggers off", "if not (self.tape and self.tape.is_active):", "if not self.tape or is_first and not self.tape.is_active:"),
    mistake("FIN-3", "dropped when the next one starts", "        name = self.filename", "        self.last = None\n        name = self.filename"),
    mistake("FIN-3", "dropped when its episode ends", "(self.episode + 1, 0) if it_ends", "(self.end_background(), 0) if it_ends", "    def reset(", "    def end_background(self) -> int:\n        self.last = self.tape = None\n        return self.episode + 1\n\n    def reset("),
    mistake("FIN-3", "kept though a triggered one followed", "            self.last = None\n        except", "            self.last = None if not tape.is_active else self.last\n        except", "self.last = None if tape.is_active else tape", "self.last = self.last if tape.is_active else tape"),
    mistake("FIN-4", "recorded though it was switched off", "self.final = record_final_episode", "self.final = True"),
    mistake("FILE-2", "filename for the first video only", "name = self.filename or", "name = self.filename if not self.made else"),
    mistake("FILE-3", "written under its name", 'made = os.path.join(folder, "video")', "made = path", SAVED, ""),
    mistake("FILE-3", "removed, then renamed", SAVED, "            os.path.exists(path) and os.remove(path)\n            os.rename(made, path)\n"),
    mistake("FILE-3", "copied into place", SAVED, "            __import__('shutil').copyfile(made, path)\n"),
    mistake("FILE-3", "a dropped background recording takes the saved video with it", "            self.last = None\n        except", "            if self.last and os.path.exists(self.last.path):\n                os.remove(self.last.path)\n            self.last = None\n        except"),
    mistake("FILE-3", "a failed recording takes the saved video with it", FAILED, FAILED + "            with contextlib.suppress(OSError):\n                os.remove(tape.path)\n"),
    mistake("FILE-3", "a video that cannot be saved takes the one before with it", "                self.warn(self.unsaved.pop(0), error)", "                with contextlib.suppress(OSError):\n                    os.remove(self.unsaved[0].path)\n                self.warn(self.unsaved.pop(0), error)"),
    mistake("FILE-4", "a log is left", SAVED, SAVED + "            open(path + '.log', 'w').close()\n"),
    mistake("FILE-5", "yuv444p", "-pix_fmt yuv420p", "-pix_fmt yuv444p"),
    mistake("FILE-6", "the index at the end", "-movflags +faststart", ""),
    mistake("FILE-7", "an odd size is rescaled", "pad={width + odd[1]}:{height + odd[0]}:{odd[1]}:{odd[0]}", "scale={width + odd[1]}:{height + odd[0]}"),
    mistake("FILE-7", "an odd size is cropped", "pad={width + odd[1]}:{height + odd[0]}:{odd[1]}:{odd[0]}", "crop={width - odd[1]}:{height - odd[0]}:0:0"),
    mistake("FILE-8", "render(rgb=True)", "self.camera().render())", "self.camera().render(rgb=True))"),
    mistake("FILE-8", "always a tuple", FRAME, "    taken = rendered[0]\n"),
    mistake("FILE-8", "tensors refused", ' if hasattr(taken, "detach") else taken', " if False else taken"),
    mistake("FILE-8", "a tensor on a device is not fetched", "taken.detach().cpu().numpy()", "taken.detach().numpy()"),
    mistake("FILE-8", "a view's memory taken as it lies", "rows = np.diff(picture, axis=0,", "picture = np.frombuffer(picture.tobytes('A'), np.uint8).reshape(picture.shape)\n        rows = np.diff(picture, axis=0,"),
    mistake("FILE-8", "RGBA refused", "not in (3, 4)", "!= 3"),
    mistake("FILE-8 FILE-11", "red and blue swapped for tensors", RGB, "    return taken[..., 2::-1] if hasattr(rendered[0] if isinstance(rendered, tuple) else rendered, 'detach') else taken[..., :3]\n"),
    mistake("FILE-8 FILE-11", "red and blue swapped for RGBA", RGB, "    return taken[..., 2::-1] if taken.shape[2] == 4 else taken[..., :3]\n"),
    mistake("FILE-8 FILE-11", "the last three of four channels", RGB, "    return taken[..., -3:]\n"),
    mistake("FILE-8", "a buffer that is used again is not copied", "        self.ends.append(end)", "        self.queue = [*getattr(self, 'queue', []), picture]\n        self.ends.append(end)", "yield np.frombuffer(rows, np.uint8).reshape(self.shape).cumsum(0, np.uint8).tobytes()", "yield self.queue[self.ends.index(start)].tobytes()"),
    mistake("FILE-9", "the first picture of each env", "taken = taken[place]", "taken = taken[0]"),
    mistake("FILE-10", "relative to where the process is now", "os.path.abspath(out_dir)", "out_dir"),
    mistake("FILE-11", "too few bits", "-crf 10", "-crf 45"),
    mistake("FILE-11", "red and blue swapped", RGB, "    return taken[..., 2::-1]\n"),
    mistake("FILE-12", "all pictures in memory", "        self.ends.append(end)", "        self.kept = [*getattr(self, 'kept', []), picture.copy()]\n        self.ends.append(end)"),
    mistake("FILE-13", "one temporary name for all", 'made = os.path.join(folder, "video")', 'made = os.path.join(self.out_dir, "temporary")', slow=True),
    mistake("FILE-15", "files stay open", "            weakref.finalize(self, os.close, self.file).atexit = False\n", "", slow=True),
    mistake("FILE-17", "the first frame starts one frame late", "-movflags +faststart", "-movflags +faststart -output_ts_offset {float(1 / self.rate)}"),
    mistake("CLOSE-1", "what runs is dropped", "            self.finish_recording()\n            if self.last:", "            self.tape = self.tape if self.tape and not self.tape.is_active else None\n            self.finish_recording()\n            if self.last:"),
    mistake("CLOSE-2", "the env is closed before", "        try:\n            self.save_all()\n", "        try:\n            self.env.close()\n            self.save_all()\n", "        finally:\n            self.env.close()\n", "        finally:\n            pass\n"),
    mistake("CLOSE-2", "not closed if saving fails", "            atexit.unregister(self.at_exit)\n        finally:\n            self.env.close()\n", "            atexit.unregister(self.at_exit)\n            self.env.close()\n        finally:\n            pass\n"),
    mistake("CLOSE-2", "what the env raises is swallowed", "        finally:\n            self.env.close()\n", "        finally:\n            with contextlib.suppress(Exception):\n                self.env.close()\n"),
    mistake("CLOSE-3", "a second close() saves again", "self.last, self.tape = None, self.last", "self.tape = self.last", "self.last = None if tape.is_active else tape", "self.last = self.last if tape.is_active else tape"),
    mistake("CLOSE-4", "no exit handler", "        atexit.register(self.at_exit)\n", "", slow=True),
    mistake("CLOSE-5", "a forked child saves its parent's recording", "if self.process == os.getpid():", "if True:", slow=True),
    mistake("CLOSE-7", "a SIGTERM handler of its own", "        atexit.register(self.at_exit)\n", "        atexit.register(self.at_exit)\n        import signal\n\n        signal.signal(signal.SIGTERM, lambda *_: self.save_all())\n"),
    mistake("CLOSE-10", "the exit handler keeps the wrapper", "lambda: this() and this().save_all()", "self.save_all", "            atexit.unregister(self.at_exit)\n", ""),
    mistake("FAIL-1", "a recording that fails raises out of step()", FAILED, "            raise\n" + FAILED),
    mistake("FAIL-1", "a video that cannot be saved raises", "                self.warn(self.unsaved.pop(0), error)", "                self.warn(self.unsaved.pop(0), error)\n                raise"),
    mistake("FAIL-1", "a final episode that cannot be saved raises out of close()", "                self.tape.is_active = True\n                self.finish_recording()\n", "                self.save(self.tape)\n"),
    mistake("FAIL-1", "a failed recording gives no warning", FAILED, "            self.finish_recording()\n"),
    mistake("FAIL-1", "a failed background recording gives no warning", FAILED, FAILED.replace("self.warn", "tape.is_active and self.warn")),
    mistake("FAIL-1", "a final episode that cannot be saved gives no warning", "                self.tape.is_active = True\n                self.finish_recording()\n", "                with contextlib.suppress(Exception):\n                    self.unsaved += [self.tape]\n                    self.save(self.tape)\n                self.unsaved, self.tape = [], None\n"),
    mistake("FAIL-1", "a warning for each frame", FAILED, "            self.warn(tape, error)\n"),
    mistake("FAIL-6", "a frame that cannot be recorded costs those before", FAILED, "            tape.ends = [0]\n" + FAILED),
    mistake("FAIL-1", "equal words in two warnings, of which Python shows one", ' from step {tape.first}"', '"'),
    mistake("FAIL-1", "a warning without the cause", '{cause}: {tape.path}', 'failed: {tape.path}'),
    mistake("FAIL-1 FILE-4", "ffmpeg's exit is not looked at", "            if ffmpeg.returncode or words:\n                raise OSError(words or f\"ffmpeg ended with {ffmpeg.returncode}\")\n", "            if not os.path.exists(made):\n                return\n", slow=True),
    mistake("FAIL-1", "a line that cannot be printed raises", "            with contextlib.suppress(Exception):\n                print(", "            if True:\n                print(", slow=True),
    mistake("FAIL-2", "no recording after one that failed", FAILED, FAILED + "            self.start = lambda *_: None\n"),
    mistake("FAIL-3", "what the camera raises is a failed recording", "self.take(self.tape, self.camera().render())", "self.take(self.tape, self.camera().render)", "picture_of(rendered,", "picture_of(rendered(),"),
    mistake("FAIL-3", "what the env raises is swallowed", STEP, "        try:\n            result = self.env.step(actions)\n        except Exception:\n            return (None,) * 5\n"),
    mistake("FAIL-3", "a step that raised is counted", STEP, "        self.number += 1\n" + STEP + "        self.number -= 1\n"),
    mistake("FAIL-3", "what the camera raises costs the frames before", "            self.take(self.tape, self.camera().render())", "            tape, self.tape = self.tape, None\n            shot = self.camera().render()\n            self.tape = tape\n            self.take(self.tape, shot)"),
    mistake("FAIL-6", "another size is not noticed", "        if self.shape not in ((), picture.shape):\n", "        if False:\n"),
    mistake("FAIL-6", "floats are cast", RGB, RGB, "    if taken.dtype != np.uint8 or taken.ndim", "    taken = taken.astype(np.uint8)\n    if taken.dtype != np.uint8 or taken.ndim"),
    mistake("FAIL-6", "the warning lacks the shape", 'a picture was {taken.dtype} of {taken.shape}, not', 'a picture was {taken.dtype}, not'),
    mistake("FAIL-5", "Ctrl-C while a picture is written leaves half of it", "at < end:\n            at += os.pwrite(self.file, data[at - end :], at)", "at < end:\n            at = self.ends[0] = at + os.write(self.file, data[at - end :])", slow=True),
    mistake("LOG-1", "no line for the final video", "        if self.logging:\n", "        if self.logging and tape is not self.last_tape:\n", "                self.tape.is_active = True\n", "                self.tape.is_active = True\n                self.last_tape = self.tape\n", MADE, MADE + "        self.last_tape = None\n"),
    mistake("LOG-1", "the name without its folder", "frames: {path}{note}", "frames: {os.path.basename(path)}{note}"),
    mistake("LOG-1", "printed to stderr", "frames: {path}{note}\")", "frames: {path}{note}\", file=__import__('sys').stderr)"),
    mistake("LOG-2", "the frames of the length, not those saved", "{count} frames", "{self.length} frames"),
    mistake("LOG-2", "this run's own video is an earlier run's", "path not in self.made", "True"),
    mistake("LOG-3", "printed all the same", "        if self.logging:\n", "        if True:\n"),
    mistake("DEL-1", "dt is kept from construction", MADE, MADE + "        self.kept = {'dt': env.dt}\n", "        return getattr(self.env, name,", "        if name in getattr(self, 'kept', ()):\n            return self.kept[name]\n        return getattr(self.env, name,"),
    mistake("DEL-1", "extras are copied", "        return getattr(self.env, name,", "        if name == 'extras':\n            return dict(self.env.extras)\n        return getattr(self.env, name,"),
    mistake("DEL-2", "actions are copied", "self.env.step(actions)", "self.env.step(actions.clone() if hasattr(actions, 'clone') else actions)"),
    mistake("DEL-2", "extras are copied by step()", "        return result\n\n    def take", "        return (*result[:4], dict(result[4]))\n\n    def take"),
    mistake("DEL-3", "reset() resets all", "self.env.reset(*([] if env_ids is None else [env_ids]))", "self.env.reset()"),
    mistake("DEL-3", "reset() returns observations alone", "in ids)\n        return result\n", "in ids)\n        return result[0]\n"),
    mistake("DEL-4", "unwrapped is the next layer", '        return getattr(self.env, name, *[self.env] * (name == "unwrapped"))', '        return self.env if name == "unwrapped" else getattr(self.env, name)'),
    mistake("COST-1", "each flag is waited for", "ends = [ends[0].logical_or(ends[1])]", "ends = [bool(ends[0]), bool(ends[1])]"),
    mistake("COST-1", "flags are read twice", FLAGS, FLAGS + "\n            " + FLAGS),
    mistake("COST-1", "flags are read though nothing counts episodes", "        if self.by_episode or self.final:\n", "        if True:\n"),
    mistake("COST-2", "another process to look at the result", SAVED, "            subprocess.run([command[0], '-version'], capture_output=True)\n" + SAVED),
]  # fmt: skip


def changed(mistake: Mistake) -> str:
    """The second implementation with that mistake."""
    text = SOURCE.read_text(encoding="utf-8")
    for old, new in zip(mistake.changes[::2], mistake.changes[1::2]):
        if text.count(old) != 1:
            raise SystemExit(f"{mistake.words}: {old!r} is there {text.count(old)} times, not once")
        text = text.replace(old, new)
    return text


def failures(folder: str, module: str, *options: str) -> list[str]:
    """The tests that the class fails, whether MUST or SHOULD; and how, if none could be run."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfEx", "-p", "no:cacheprovider"]
    command += [f"--implementation={module}:VideoWrapper", f"--rootdir={ROOT}", *options, str(ROOT)]
    path = os.pathsep.join([folder, str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "VIDEO_WRAPPER_SEQUENCES": "100"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    found = re.findall(
        r"^(?:FAILED|XFAIL) \S*?(\w+::test_.*?)(?: - .*)?$", result.stdout, re.MULTILINE
    )
    if result.returncode not in (0, 1):
        last = (result.stdout + result.stderr).strip().splitlines()[-1:]
        found = found or [f"pytest ended with {result.returncode}: {last}"]
    return found


def caught_by(mistake: Mistake, usual: frozenset[str]) -> str:
    """The first test that fails for the mistake and not without it; "" if none does."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "mistaken.py").write_text(changed(mistake), encoding="utf-8")
        where = [] if mistake.slow else ["-m", "quick"]
        own = f"--clauses={','.join(mistake.clauses.split())}"
        fake = "-k=not genesis"
        for options in ([own, fake, *where], ["-m", "quick", "-x"]):
            found = [test for test in failures(folder, "mistaken", *options) if test not in usual]
            if found:
                return found[0].partition("::")[2]
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="?", default="")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    chosen = [m for m in MISTAKES if options.words.lower() in f"{m.clauses} {m.words}".lower()]
    [changed(mistake) for mistake in chosen]
    with tempfile.TemporaryDirectory() as folder:
        usual = frozenset(failures(folder, "spec.second_implementation", "-m", "quick"))
    print(
        f"The second implementation itself fails {len(usual)}: {', '.join(usual)}", file=sys.stderr
    )
    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        tests = []
        for mistake, test in zip(chosen, pool.map(lambda m: caught_by(m, usual), chosen)):
            tests.append(test)
            words = f"`{test}`" if test else "**not caught**"
            line = f"| {mistake.clauses} | {mistake.words} | {words} |"
            print(
                line
                if options.table
                else f"{mistake.clauses:16} {mistake.words:70} {test or 'NOT CAUGHT'}",
                flush=True,
            )
    print(f"{sum(map(bool, tests))} of {len(tests)} caught", file=sys.stderr)
    sys.exit(not all(tests))


if __name__ == "__main__":
    main()
