"""Mutants: mistakes that people make, and whether the suite catches each.

    python -m spec.control.mutants [WORDS] [--module] [--fast] [--processes N]

Each is the control or, with --module, the module with one small change. WORDS choose mutants by
clause or description. A mutant is caught if a test fails: first the quick tests of its clause are
run, then all quick tests.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import multiprocessing
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch  # noqa: F401  # once, and not in each fork

ROOT = Path(__file__).parents[2]
CONTROL = ROOT / "spec" / "control" / "control.py"
MODULE = ROOT / "video_wrapper.py"


class Mutant(NamedTuple):
    """A case, the mistake in words, and what is replaced by what, in pairs.

    `tests` names those that catch it, as pytest's -k does, if they are not among the quick ones.
    """

    case: str
    words: str
    changes: tuple[str, ...]
    tests: str = ""

    def source(self, path: Path = CONTROL) -> str:
        """Return the source with this mistake. Raise a ValueError if its text is not there once."""
        text = path.read_text(encoding="utf-8")
        for old, new in zip(self.changes[::2], self.changes[1::2], strict=True):
            if text.count(old) != 1:
                raise ValueError(f"{self}: {old!r} is there {text.count(old)} times")
            text = text.replace(old, new)
        return text


def mutant(case: str, words: str, *changes: str, tests: str = "") -> Mutant:
    return Mutant(case, words, changes, tests)


DUE = "            self._start_what_is_due()\n"
DROP = "            self._drop(recording)\n            self._warn(recording, error)\n"
RECORDED = "            image = self._camera()()\n"
REPLACED = "            os.replace(part, recording.path)\n"
STEP = "        results = self.env.step(actions)\n"
STEPPED = "            self._step += 1\n"
RESET = "            results = self.env.reset()\n"

MUTANTS = [
    mutant("API-1a", "another default", "fps: int = 60", "fps: int = 30"),
    mutant("API-1b", "another default of a method", '= "active") -> None', '= "background") -> None'),
    mutant("API-1c", "a property can be set", "    @property\n    def dt(self) -> float:\n        return self.env.dt\n", "    dt = property(lambda self: self.env.dt, lambda self, value: None)\n"),
    mutant("API-1d", "it cannot be wrapped", "can_be_wrapped: bool = True", "can_be_wrapped: bool = False"),
    mutant("API-10", "copies are made", "def __reduce__", "def refuse_copies"),
    mutant("ARG-1a", "both triggers are taken", "if episode_trigger and step_trigger:", "if False:"),
    mutant("ARG-1b", "a TypeError for both triggers", 'raise ValueError(f"episode_trigger', 'raise TypeError(f"episode_trigger'),
    mutant("ARG-1c", "a trigger need not be callable", "check(trigger is None or callable(trigger),", "check(True,"),
    mutant("ARG-3a", "fps is not checked", '        check_number("fps", fps)\n', ""),
    mutant("ARG-3b", "the length is not checked", '        check_number("video_length_sec", video_length_sec)\n', ""),
    mutant("ARG-3c", "dt is not checked", '        check_number("env.dt", dt)\n', ""),
    mutant("ARG-3d", "a rate that no player takes", "0 < self._rate < 2**31", "0 < self._rate"),
    mutant("ARG-3a", "an error without the value", "cannot be {value!r}", "is wrong"),
    mutant("ARG-4", "a negative env_idx is taken", "0 <= int(self._env_idx) <", "int(self._env_idx) <"),
    mutant("ARG-5a", "a path is taken for a name", "isinstance(name, str) and name == os.path.basename(name)", "isinstance(name, str)"),
    mutant("ARG-5b", "an upper-case suffix is refused", "[1].lower() in FORMATS", "[1] in FORMATS"),
    mutant("ARG-5c", "a name's characters are counted, not its bytes", "len(name.encode())", "len(name)"),
    mutant("ARG-5d", "any text is taken for an attribute", " and camera_attr.isidentifier()", ""),
    mutant("ARG-6a", "can_be_wrapped is not read", 'getattr(env, "can_be_wrapped", True),', "True,"),
    mutant("ARG-6b", "a class is taken for an env", "is_env and not isinstance(env, type)", "is_env"),
    mutant("ARG-7a", "out_dir must be a str", 'out_dir is not None and out_dir != ""', "isinstance(out_dir, str) and out_dir"),
    mutant("ARG-7a", "parents are not created", "            os.makedirs(self._out_dir, exist_ok=True)\n", "            os.path.isdir(self._out_dir) or os.mkdir(self._out_dir)\n"),
    mutant("ARG-7b", "another error for the folder", 'raise OSError(f"{text}', 'raise RuntimeError(f"{text}'),
    mutant("ARG-7c", "rewriting is not tried", '                file.seek(0)\n                file.write(b"rewritten")\n', ""),
    mutant("ARG-7c", "renaming is not tried", '            os.replace(trial, trial + ".renamed")\n', ""),
    mutant("ARG-7d", "the trial leaves a file", 'for path in (trial, trial + ".renamed"):', "for path in (trial,):"),
    mutant("ARG-7e", "no out_dir is the working directory", 'check(out_dir is not None and out_dir != "", "out_dir", out_dir)', 'out_dir = out_dir or "."'),
    mutant("BLD-1a", "build() builds twice", "            self.env.build()\n", "            self.env.build(), self.env.build()\n"),
    mutant("BLD-1b", "a second build() leaves the recording running", "if self._step > 0:\n            self.finish", "if False:\n            self.finish"),
    mutant("BLD-1b", "the first build() finishes what was started", "if self._step > 0:\n            self.finish", "if True:\n            self.finish"),
    mutant("BLD-1c", "a second build() goes on with the episode", '        self._end_episode()\n        if hasattr(self.env, "build")', '        if hasattr(self.env, "build")'),
    mutant("BLD-1d", "the number of envs is not looked at again", "        self._check_env_idx()\n        self._camera()\n", "        self._camera()\n"),
    mutant("BLD-2a", "the camera is always called camera", "getattr(base, self._camera_attr, None)", 'getattr(base, "camera", None)'),
    mutant("BLD-2b", "a missing camera is not named", 'AttributeError(f"{name} is missing', 'AttributeError(f"the camera is missing'),
    mutant("BLD-2c", "a camera that can only be read is refused", 'if hasattr(camera, "read"):', "if False:"),
    mutant("BLD-2d", "anything is a camera", "        raise TypeError(f\"{name} must have", "        return camera\n        raise TypeError(f\"{name} must have"),
    mutant("BLD-4", "the camera is found by build() alone", "        self._check_env_idx()\n        self._camera()\n", "        self._check_env_idx()\n        self._found = self._camera()\n", RECORDED, "            image = self._found()\n"),
    mutant("BLD-6", "an env needs build()", 'if hasattr(self.env, "build"):', "if True:"),
    mutant("BLD-6", "an env needs close()", 'if hasattr(self.env, "close"):', "if True:"),
    mutant("TIME-1a", "the length is rounded to the nearest", "math.ceil(without_noise(length))", "round(without_noise(length))"),
    mutant("TIME-1b", "float noise adds a step", "1e-6 * nearest", "0"),
    mutant("TIME-1c", "two steps at least", "max(1, math.ceil(without_noise(length)))", "max(2, math.ceil(without_noise(length)))"),
    mutant("TIME-3", "a tie is rounded up", "round(without_noise(2 * stride) / 2)", "int(without_noise(2 * stride) / 2 + 0.5)"),
    mutant("TIME-4a", "one step more", "self._recording.first + self._length:", "self._recording.first + self._length + 1:"),
    mutant("TIME-4a", "the stride counts from step 0", "(self._step - recording.first) % self._stride", "self._step % self._stride"),
    mutant("TIME-4b", "a recording ends with its episode", "            self._next_background = 0\n\n", "            self._next_background = 0\n            self.finish_recording()\n\n"),
    mutant("TIME-4a", "a frame is taken before its step", STEP, "        self._image = self._camera()()\n" + STEP, RECORDED, "            image = self._image\n"),
    mutant("TIME-5", "an episode is counted before the env resets", STEP, "        self._start_what_is_due()\n" + STEP, DUE + "            self._record()\n", "            self._record()\n"),
    mutant("TIME-6", "fps is the rate", "float(1 / (self._stride * dt))", "float(fps)"),
    mutant("TIME-6", "denominators are limited to 1001", "limit_denominator(100_000)", "limit_denominator(1001)"),
    mutant("TRIG-1", "cubes beyond 1000", "if episode > 1000:", "if episode > 5000:"),
    mutant("TRIG-1", "0 is left out", "return round(episode ** (1 / 3)) ** 3 == episode", "return episode > 0 and round(episode ** (1 / 3)) ** 3 == episode"),
    mutant("TRIG-2a", "the first step is never asked for", "is_due = self._step_trigger(self._step)", "is_due = self._step > 0 and self._step_trigger(self._step)"),
    mutant("TRIG-2b", "episodes are counted from 1", "self._episode_trigger(self._episode)", "self._episode_trigger(self._episode + 1)"),
    mutant("TRIG-2c", "only True is true", "        if is_due:\n", "        if is_due is True:\n"),
    mutant("TRIG-2d", "a trigger cuts a recording short", "if self._recording and self._recording.is_active:\n            return", "if False:\n            return"),
    mutant("TRIG-3a", "a step whose trigger raised is asked for again", "        finally:\n" + STEPPED, "        except ZeroDivisionError:\n            raise\n        else:\n" + STEPPED),
    mutant("TRIG-3b", "an episode whose trigger raised is asked for again", "            self._asked_episode = self._episode\n            is_due = self._episode_trigger(self._episode)\n", "            is_due = self._episode_trigger(self._episode)\n            self._asked_episode = self._episode\n"),
    mutant("TRIG-3b", "asked at the first step of an episode only", "and self._asked_episode != self._episode:", "and self._step == self._episode_start:"),
    mutant("TRIG-3c", "a NumPy int", "self._step_trigger(self._step)", "self._step_trigger(np.int64(self._step))"),
    mutant("EPI-1", "env 0 is watched", "flag[self._env_idx] if", "flag[0] if"),
    mutant("EPI-2a", "truncation is ignored", "self._is_done(results[2:-1])", "self._is_done(results[2:3])"),
    mutant("EPI-2a", "flags are combined by exclusive or", "(mine[0] != 0) | (mine[1] != 0)", "(mine[0] != 0) ^ (mine[1] != 0)"),
    mutant("EPI-2b", "four results are refused", "len(results) not in (4, 5)", "len(results) != 5"),
    mutant("EPI-2c", "flags must have any()", "flag[self._env_idx] if", "flag[self._env_idx].any() if"),
    mutant("EPI-2d", "None must be both or none", "for flag in flags if flag is not None", "for flag in flags if flags[0] is not None"),
    mutant("EPI-2e", "flags without a dimension are refused", "ndmin=1 if count == 1 else 0", "ndmin=0"),
    mutant("EPI-4a", "a reset of all envs counts nothing", "        if env_ids is None:\n            return True\n", "        if env_ids is None:\n            return False\n"),
    mutant("EPI-4b", "an episode without a step counts", "if self._step > self._episode_start:", "if True:"),
    mutant("EPI-4c", "a mask is taken for indices", "selected[as_list(env_ids)] = True", "selected[np.array(as_list(env_ids)).astype(int)] = True"),
    mutant("EPI-4d", "what only the env understands raises", "with contextlib.suppress(Exception):  # only", "if True:  # only"),
    mutant("EPI-7a", "any number of results is taken", " or len(results) not in (4, 5)", ""),
    mutant("EPI-7b", "floats are flags", 'values.dtype.kind not in "biu"', 'values.dtype.kind not in "biuf"'),
    mutant("EPI-7b", "zeros and ones are flags", 'values.dtype.kind not in "biu"', 'values.dtype.kind not in "biu" and not np.isin(values, (0, 1)).all()'),
    mutant("EPI-7c", "more flags than envs are taken", "self._env_idx < values.size <= count", "self._env_idx < values.size"),
    mutant("REC-1a", "the default starts nothing", "        self._start(is_active=type == ", "        self._start_not(is_active=type == "),
    mutant("REC-1b", "the recording that runs is lost", "        self.finish_recording()\n        self._warn_of", "        self._warn_of"),
    mutant("REC-1c", "an unknown type ends what runs", '        check(type in ("active"', '        self.finish_recording()\n        check(type in ("active"'),
    mutant("REC-2a", "a finished recording is lost", "        elif recording.is_active:\n            self._save", "        elif False:\n            self._save"),
    mutant("REC-2b", "a finished background recording is saved at once", "        elif recording.is_active:\n            self._save", "        else:\n            self._save"),
    mutant("REC-2c", "finishing nothing raises", "        if recording is None:\n            return\n        if recording.frames == 0:", "        if recording.frames == 0:"),
    mutant("REC-2d", "a recording without a frame gives a warning", "        if recording.frames == 0:\n", "        if recording.frames == 0:\n            self._warn(recording, 'no frame')\n"),
    mutant("FIN-1a", "close() forgets the final episode", "(good or shown)[-1:]", "(good or shown)[:0]"),
    mutant("FIN-1b", "recorded although it is switched off", "elif self._record_final_episode and age", "elif age"),
    mutant("FIN-2a", "only at the first step of an episode", "age >= self._next_background:", "age == 0:"),
    mutant("FIN-2b", "an endless episode is recorded once", "            self._next_background = 4 * self._length\n", "            self._next_background = 10**18\n"),
    mutant("FIN-2b", "an endless episode is recorded every N steps", "self._next_background *= 2", "self._next_background += self._length"),
    mutant("FIN-2c", "a background recording has no end", "if self._recording and self._step >= ", "if self._recording and self._recording.is_active and self._step >= "),
    mutant("FIN-3a", "the newest, however short", "(good or shown)[-1:]", "shown[-1:]"),
    mutant("FIN-3a", "it must have lasted", " or r.episode < self._episode]", "]"),
    mutant("FIN-3a", "it must have lasted N steps", "min(self._length, math.ceil(without_noise(1 / dt)))", "self._length"),
    mutant("FIN-3b", "none, if none has lasted", "(good or shown)[-1:]", "good[-1:]"),
    mutant("FIN-3c", "nothing drops an older one", "if recording.steps >= self._lasting:", "if False:"),
    mutant("FIN-3c", "dropped at the first frame of a newer one", "if recording.steps >= self._lasting:", "if True:"),
    mutant("FIN-3d", "an older video overwrites a newer one", "            self._background = []  # an older", "            pass  # an older"),
    mutant("FILE-1a", "named after the step before", '{self._step}.mp4"', '{max(0, self._step - 1)}.mp4"'),
    mutant("FILE-1b", "filename is for the first video only", "self._filename or f", "(None if self._step else self._filename) or f"),
    mutant("FILE-3b", "removed, then renamed", REPLACED, "            self._forget_file(recording.path)\n            os.rename(part, recording.path)\n"),
    mutant("FILE-3b", "copied into place", REPLACED, "            __import__('shutil').copyfile(part, recording.path)\n            os.unlink(part)\n"),
    mutant("FILE-3c", "a log is left", REPLACED, REPLACED + "            open(recording.path + '.log', 'w').close()\n"),
    mutant("FILE-5a", "yuv444p", '"yuv420p"', '"yuv444p"'),
    mutant("FILE-5b", "the index stands at the end", ' "-movflags", "+faststart",', "", 'b"moov" in head', 'b"ftyp" in head'),
    mutant("FILE-7", "an odd size is rescaled", "pad=ceil", "scale=ceil"),
    mutant("FILE-8a", "a tensor on a device is not fetched", "image.detach().cpu().numpy()", "image.detach().numpy()"),
    mutant("FILE-8b", "the last three of four channels", "return array[:, :, :3]", "return array[:, :, -3:]"),
    mutant("FILE-8c", "always a tuple", "if isinstance(image, tuple) and image:", "if True:"),
    mutant("FILE-8d", "the first frame of each env", "array[envs.index(self._env_idx)]", "array[0]"),
    mutant("FILE-8e", "an env that is not rendered is not named", "        self._warn_of_env_that_is_not_rendered()\n", ""),
    mutant("FILE-8e", "it is named at each recording", "            self._has_warned = True\n", ""),
    mutant("FILE-10", "relative to where the process is now", "os.path.abspath(out_dir)", "os.fspath(out_dir)"),
    mutant("FILE-11a", "red and blue are swapped", "return array[:, :, :3]", "return array[:, :, 2::-1]"),
    mutant("FILE-11b", "ffmpeg's own quality", ' "-crf", "10"', ""),
    mutant("FILE-12a", "all frames are held in memory", "        self.frames += 1\n", "        self.frames += 1\n        vars(self).setdefault('all', []).append(frame.copy())\n"),
    mutant("CLOSE-1a", "close() drops what runs", "        self._background = []\n        self.finish_recording()\n", "        self._background = []\n        self._recording = None\n"),
    mutant("CLOSE-1b", "the env is closed first", "        try:\n            self._save_all()\n        except Exception:  # a", "        self._close_env()\n        try:\n            self._save_all()\n        except Exception:  # a"),
    mutant("CLOSE-1c", "not closed if saving fails", "            self._close_env()\n            raise\n", "            raise\n"),
    mutant("CLOSE-1d", "a second close() saves again", "        for recording in (good or shown)[-1:]:\n            self._save(recording)\n        self._background = []\n", "        for recording in (good or shown)[-1:]:\n            self._save(recording)\n", "        self._drop(recording)\n        if recording.is_active and", "        if recording.is_active and"),
    mutant("CLOSE-4a", "nothing is saved at the end", "    atexit.register(save_unclosed)\n", "", "_finalizer is None or not _finalizer.still_active()", "False", tests="CLOSE-4a"),
    mutant("CLOSE-4e", "children of multiprocessing save nothing", "_finalizer is None or not _finalizer.still_active()", "False", tests="CLOSE-4e"),
    mutant("CLOSE-4f", "the newest wrapper is saved first", "sorted(_living)", "sorted(_living, reverse=True)", tests="CLOSE-4f"),
    mutant("CLOSE-4g", "an error costs the other videos", "                errors.append(error)\n", "                _living.clear()\n                raise\n", tests="CLOSE-4g"),
    mutant("CLOSE-4h", "recordings begin afterwards", "        if _is_exiting:\n            return\n", "", tests="CLOSE-4h"),
    mutant("CLOSE-5a", "a forked child saves its parent's recording", "os.register_at_fork(after_in_child=leave_to_parent)", "", tests="CLOSE-5a"),
    mutant("CLOSE-10a", "the exit handler keeps the wrapper", "= weakref.WeakValueDictionary()", "= {}"),
    mutant("CLOSE-10b", "a wrapper that nobody holds is not saved", "def __del__", "def on_del"),
    mutant("CLOSE-10b", "it loses its finished background recording", '        if "_background" in vars(self):\n', '        if "_background" in vars(self) and self._recording:\n'),
    mutant("CLOSE-14a", "a job's signals end the encoder", "signal.SIG_BLOCK, signal.valid_signals()", "signal.SIG_BLOCK, ()", tests="CLOSE-14a"),
    mutant("CLOSE-14b", "a SIGTERM handler of its own", "        save_at_exit()\n", "        save_at_exit()\n        signal.signal(signal.SIGTERM, lambda *_: exit(1))\n"),
    mutant("FAIL-1a", "a failed recording raises", DROP + "            return\n", DROP + "            raise\n"),
    mutant("FAIL-1b", "a warning without the cause", "failed: {error}", "failed"),
    mutant("FAIL-1c", "a failed recording leaves its file", "            self._forget_file(part)\n" + DROP, DROP, tests="FAIL-1c"),
    mutant("FAIL-1d", "no recording after a failed one", DROP, DROP + "            self._start = lambda **_: None\n"),
    mutant("FAIL-1f", "a warning without the file", "recording {recording.path} from step {recording.first} failed", "a recording failed"),
    mutant("FAIL-1g", "a complete video without a name is deleted", '            self._warn(recording, f"{error}. The', '            self._forget_file(part)\n            self._warn(recording, f"{error}. The'),
    mutant("FAIL-3a", "the env's error is swallowed", STEP, "        try:\n            results = self.env.step(actions)\n        except Exception:\n            return (None,) * 5\n"),
    mutant("FAIL-3b", "the camera's error costs the frames before", RECORDED, "            self._recording = None\n" + RECORDED + "            self._recording = recording\n"),
    mutant("FAIL-5a", "Ctrl-C ends the recording", "            except Exception as error:\n                if isinstance", "            except BaseException as error:\n                if isinstance"),
    mutant("FAIL-6a", "another size is not noticed", " or size not in (None, array.shape[:2])", ""),
    mutant("FAIL-6b", "memory that runs out raises", "            except Exception as error:\n                if isinstance", "            except (TypeError, OSError) as error:\n                if isinstance"),
    mutant("FAIL-6c", "a wrong frame costs those before", "                if isinstance(error, OSError):", "                if True:"),
    mutant("FAIL-6d", "the warning lacks the shape", " {tuple(getattr(image, 'shape', ()))}", ""),
    mutant("LOG-1a", "the name without its folder", 'print(f"{recording.path}:', 'print(f"{os.path.basename(recording.path)}:'),
    mutant("LOG-1b", "the steps, not the frames", '{frames} frames, ', '{self._length + 1} frames, '),
    mutant("LOG-1d", "a line that cannot be printed raises", "            with contextlib.suppress(Exception):\n                text", "            if True:\n                text"),
    mutant("LOG-3", "printed without logging", "        if self._logging:\n", "        if True:\n"),
    mutant("DEL-1a", "extras are copied", "        return self.env.extras\n", "        return dict(self.env.extras)\n"),
    mutant("DEL-1b", "unwrapped is the next layer", 'return getattr(self.env, "unwrapped", self.env)', "return self.env"),
    mutant("DEL-2a", "actions are copied", "self.env.step(actions)", "self.env.step(actions.clone())"),
    mutant("DEL-2b", "another tuple is returned", "            self.finish_recording()\n        return results\n", "            self.finish_recording()\n        return tuple([*results])\n"),
    mutant("DEL-2c", "reset() resets all", "self.env.reset(env_ids)", "self.env.reset()"),
    mutant("DEL-2d", "reset() passes None on", RESET, RESET.replace("()", "(None)")),
    mutant("DEL-5a", "attributes are not read from the env", "        return getattr(self.env, name)\n", "        raise AttributeError(name)\n"),
    mutant("DEL-5b", "attributes stay on the wrapper", "            setattr(self.env, name, value)\n", "            object.__setattr__(self, name, value)\n"),
    mutant("DEL-5c", "new attributes go to the env", "if not is_own and hasattr(self.env, name):", "if not is_own:"),
    mutant("DEL-5d", "private names are passed on", 'if name.startswith("_") or name == "env":', 'if name == "env":'),
    mutant("COST-1a", "flags are read twice", "self._is_done(results[2:-1])", "(self._is_done(results[2:-1]) or self._is_done(results[2:-1]))"),
    mutant("COST-1b", "each flag is waited for", "(mine[0] != 0) | (mine[1] != 0)", "mine[0] or mine[1]"),
    mutant("COST-1c", "flags are read though nothing counts episodes", "bool(episode_trigger or record_final_episode)", "True"),
    mutant("COST-10a", "rendered at each step", STEP, STEP + "        self._camera()()\n"),
]  # fmt: skip

# Of the module, on what it writes in another way, and on deferred rendering, which it alone has.
MODULE_MUTANTS = [
    mutant("ARG-7a", "out_dir must be a str", '_demand(out_dir not in (None, ""),', "_demand(isinstance(out_dir, str) and out_dir,"),
    mutant("TIME-6", "denominators are limited to 1001", "MAX_DENOMINATOR, MAX_RATE = 100_000", "MAX_DENOMINATOR, MAX_RATE = 1001"),
    mutant("TRIG-3b", "an episode whose trigger raised is asked for again", "            self._asked_episode = self._episode\n            is_triggered = self._episode_trigger(self._episode)\n", "            is_triggered = self._episode_trigger(self._episode)\n            self._asked_episode = self._episode\n"),
    mutant("EPI-2a", "flags are combined by exclusive or", "functools.reduce(operator.or_, of_env)", "functools.reduce(operator.xor, of_env)"),
    mutant("EPI-7b", "floats are flags", 'in "biu"', 'in "biuf"'),
    mutant("FIN-2b", "an endless episode is recorded once", "FIRST_RESTART * self._length", "10**18"),
    mutant("FIN-3a", "it must have lasted", "return has_ended or lasted", "return lasted"),
    mutant("FIN-3a", "it must have lasted N steps", "math.ceil(_integral(WORTHWHILE_SECONDS / dt))", "self._length"),
    mutant("FIN-3d", "an older video overwrites a newer one", "self._discard(self._kept)  # an older", "pass  # an older"),
    mutant("CLOSE-10b", "a wrapper that nobody holds is not saved", "def __del__", "def on_del"),
    mutant("CLOSE-10b", "it loses its finished background recording", "        self._save_pending()  # as a file", "        self._recording and self._save_pending()  # as a file"),
    mutant("DEL-5b", "attributes stay on the wrapper", "            setattr(self.env, name, value)\n", "            object.__setattr__(self, name, value)\n"),
    mutant("DEL-5d", "private names are passed on", 'name.startswith("_") or "env" not in vars(self)', '"env" not in vars(self)'),
    mutant("LOG-3", "progress is printed without logging", 'self._say(f"Rendering', 'print(f"Rendering', tests="no_progress"),
    mutant("COST-10a", "a deferred renderer for each episode", "if self._renderer is None or not self._renderer.is_of(scene, camera):", "if not recording.snapshots:", tests="(COST-10 or FIN-6) and not fake"),
    mutant("FIN-5a", "the field of view is not stored", '(camera, "_fov"), ', "", tests="FIN-5a and fov"),
    mutant("FIN-5a", "the background is not stored", "bg_color ambient_light", "ambient_light", tests="FIN-5a and lights"),
    mutant("FIN-5a", "the last frame comes first", "snapshots[0]()", "snapshots[-1]()", tests="FIN-5a and background_recording"),
    mutant("FIN-9", "snapshots have no limit", "if recording.room < 0:", "if False:", tests="FIN-9"),
    mutant("FIN-10", "each eager frame gives a warning", "            self._can_defer = False\n", "", tests="FIN-10"),
]  # fmt: skip


class Failures:
    """A pytest plugin that collects the names of the tests that fail."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or hasattr(report, "wasxfail"):  # a SHOULD
            self.names.append(report.nodeid.partition("::")[2])


def caught_by(chosen: Mutant, is_fast: bool = False) -> str:
    """Return a test that fails for the mutant, or an empty string."""
    found, clause = Failures(), re.sub("[a-z]$", "", chosen.case)
    conformance = [str(ROOT / "test_video_wrapper.py"), "-m", "quick"]
    if chosen.tests:
        tries = [
            [str(ROOT / "test_video_wrapper.py"), str(ROOT / "spec/tests"), "-k", chosen.tests]
        ]
    else:
        tries = [[*conformance, f"--clauses={clause}"], *([] if is_fast else [conformance])]
    with tempfile.TemporaryDirectory() as folder:
        name = "video_wrapper" if chosen in MODULE_MUTANTS else "mutated_control"
        source = chosen.source(MODULE if chosen in MODULE_MUTANTS else CONTROL)
        Path(folder, f"{name}.py").write_text(source, encoding="utf-8")
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, str(ROOT)])
        importlib.import_module(name)  # before pytest puts the checkout first
        os.chdir(folder)
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "--time-limit=30"]
        options += ["--assert=plain", "-p", "pytest_benchmark.plugin"]
        options.append(f"--implementation={name}:VideoWrapper")
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        with open("output", "w+") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            for selected in tries:
                status = run_tests([*options, *selected], found)
                if found.names:
                    return found.names[0]
                if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                    output.seek(0)
                    return f"NOT JUDGED: {output.read()[-2000:]}"
    return ""


def run_tests(options: list[str], plugin: Failures) -> int:
    """Run pytest in this process, which tests nothing else after it."""
    return pytest.main(options, plugins=[plugin])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="?", default="")
    parser.add_argument("--module", action="store_true", help="mutants of the module")
    parser.add_argument("--fast", action="store_true", help="run tests of its clause only")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    mutants = MODULE_MUTANTS if options.module else MUTANTS
    chosen = [m for m in mutants if options.words.lower() in f"{m.case} {m.words}".lower()]
    judge = functools.partial(caught_by, is_fast=options.fast)
    survivors = 0
    # Each in a fork of its own, which has imported torch already.
    with multiprocessing.get_context("fork").Pool(options.processes, maxtasksperchild=1) as pool:
        for each, test in zip(chosen, pool.imap(judge, chosen, chunksize=1)):
            survivors += not test
            print(f"{each.case:9} {each.words:60} {test or 'SURVIVES'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants are caught")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
