"""Mistakes that people make, and which test catches each: python -m spec.control.mutants [WORDS] [--table]

Each is a change of a few words in the second implementation, which is right without it, or, with
--kept, in how the module keeps frames of a real scene. WORDS choose those whose description or
clause has them. --table writes the table of spec/mutants.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "spec" / "control" / "control.py"
MODULE = ROOT / "video_wrapper.py"


class Mistake(NamedTuple):
    """What a person would get wrong: of which clauses, in words, and the changes old, new, ..."""

    clauses: str
    words: str
    changes: tuple[str, ...]
    slow: bool = False  # only seen by tests that start processes
    seen_by: str = ""  # of the module: the tests that are tried first, as pytest's -k has it


def mistake(clauses: str, words: str, *changes: str, slow: bool = False) -> Mistake:
    return Mistake(clauses, words, changes, slow)


def kept(clauses: str, words: str, seen_by: str, *changes: str) -> Mistake:
    return Mistake(clauses, words, changes, False, seen_by)


BUILD = '            getattr(self.env, "build", lambda: None)()\n'
CLOSE = '        getattr(self.env, "close", lambda: None)()\n'
CUBES = "e % 1000 == 0 or e in [k**3 for k in range(10)]"
DUE = "        if self.tape and number - self.tape.first in range(0, self.length, self.stride):\n"
ENDS = "            self.episode, self.age = episode + 1, 0\n"
FINISHED = "        self.tape = None\n        for tape in"
FLAGS = "ends = [f[self.env_idx] if np.ndim(f) else f for f in result[2:4] if f is not None]"
FRAME = "        taken = taken[0] if isinstance(taken, tuple) and taken else taken\n"
LAST = "            tape.is_active = True\n"
LOST = (
    '                warnings.warn(f"{tape.path} from step {tape.first}: {error}", stacklevel=2)\n'
)
MADE = "        self.number = self.episode = self.age = 0\n"
PAD = "pad=ceil(iw/2)*2:ceil(ih/2)*2:ow-iw:oh-ih"
PICK = "shot[envs.index(self.env_idx) if len(envs) == len(shot) else self.env_idx]"
READ = '        return getattr(self.env, name, *[self.env] * (name == "unwrapped"))\n'
RESET = "        if marks[self.env_idx] and self.age:\n"
RGB = "            shot = shot[..., :3] if shot.shape[-1] == 4 else shot\n"
SAVED = '            os.replace(os.path.join(room, "video"), tape.path)\n'
SHOOT = "            self.take(self.tape, self.camera()())\n"
STEP = "        result = self.env.step(actions)\n"
TRIES = "            shot = taken.detach()"
TYPE = '        need(type in ("active", "background"), "type", type)\n'
WARNED = '            warnings.warn(f"{tape.path} from step {tape.first}: {what}: {error}", stacklevel=3)\n'
WRITTEN = """            while at < end:
                at += os.pwrite(tape.file.fileno(), shot.tobytes()[at - end :], at)
"""

MISTAKES = [
    mistake("API-1a", "another default", "fps: int = 60", "fps: int = 30"),
    mistake("API-1d", "no can_be_wrapped", "    can_be_wrapped: bool = True\n", ""),
    mistake("API-10", "copies are made", "    def __reduce__(self)", "    def refuse_copies(self)"),
    mistake("API-10", "copies are made while nothing is recorded", "        raise TypeError(\"a VideoW", "        if not self.tape:\n            return __import__('copyreg').__newobj__, (type(self),), vars(self)\n        raise TypeError(\"a VideoW"),
    mistake("ARG-1a", "both triggers taken", "need(None in triggers,", "need(True,"),
    mistake("ARG-1c", "only the step trigger is looked at", "need(asked is None or", "need(name[0] == 'e' or asked is None or"),
    mistake("ARG-3a ARG-3b ARG-3c", "infinity taken", "0 < value < 1e300", "0 < value"),
    mistake("ARG-3a ARG-3b ARG-3c", "0 taken", "0 < value < 1e300", "0 <= value < 1e300"),
    mistake("ARG-4", "negative env_idx", "0 <= int(env_idx) <", "-env.num_envs <= int(env_idx) <"),
    mistake("ARG-4", "env_idx = num_envs", "int(env_idx) < env.num_envs", "int(env_idx) <= env.num_envs"),
    mistake("ARG-5a ARG-5b ARG-5c", "a name's characters counted, not its bytes", "len(name.encode())", "len(name)"),
    mistake("ARG-5a ARG-5b ARG-5c", "upper-case suffix refused", "[1].lower()", "[1]"),
    mistake("ARG-6a", "can_be_wrapped not read", 'need(getattr(env, "can_be_wrapped", True),', "need(True,"),
    mistake("ARG-7b", "whether the folder can be written to is not tried", "            with tempfile.TemporaryFile(dir=self.out_dir) as file:\n                self.born = os.fstat(file.fileno()).st_mtime\n", "            self.born = __import__('time').time()\n"),
    mistake("ARG-1b ARG-1c ARG-3a ARG-3b ARG-3c ARG-4 ARG-5a ARG-5b ARG-5c ARG-6a ARG-7b", "an error without the value", '{value!r} is not what {name} can be"', '{name} is wrong"'),
    mistake("ARG-5d ARG-7e", "any camera_attr is taken", 'need(getattr(camera_attr, "isidentifier", bool)(),', "need(True,"),
    mistake("ARG-5d ARG-7e", "no out_dir is the working directory", 'need(out_dir not in (None, ""), "out_dir", out_dir)', 'out_dir = out_dir or "."'),
    mistake("ARG-6b ARG-6c", "a class is taken for an env", "is_env and not isinstance(env, type)", "is_env"),
    mistake("ARG-6b ARG-6c", "only step() is looked for", '("step", "dt", "num_envs")', '("step",)'),
    mistake("ARG-3d", "a length that has no end", "need(self.length < 10**18,", "need(True,", "0 < value < 1e300", "0 < value < float('inf')"),
    mistake("ARG-3d", "a rate of 0", "0 < self.rate < 2**31", "self.rate < 2**31"),
    mistake("ARG-3d", "a rate that no player takes", "0 < self.rate < 2**31", "0 < self.rate"),
    mistake("BLD-1a", "build() builds twice", BUILD, BUILD * 2),
    mistake("BLD-2a DEL-1b", "the camera of the next layer, not of the base", "getattr(base := self.unwrapped,", "getattr(base := self.env,"),
    mistake("BLD-2b", "None passes for a camera", "need(shoot, f", "need(shoot or hasattr(base, self.camera_attr), f"),
    mistake("BLD-4a", "the camera is found by build() alone", "        self.camera()\n\n", "        self.found = self.camera()\n\n", SHOOT, "            self.take(self.tape, self.found())\n"),
    mistake("BLD-2c BLD-2d", "a camera that can only be read is refused", ' or getattr(camera, "read", None)', ""),
    mistake("BLD-2c BLD-2d", "anything but None is a camera until its first picture", "need(shoot, f", "need(camera, f"),
    mistake("BLD-6", "an env needs build()", 'getattr(self.env, "build", lambda: None)()', "self.env.build()"),
    mistake("BLD-6", "an env needs close()", CLOSE, "        self.env.close()\n"),
    mistake("BLD-1b BLD-1c", "a second build() leaves the recording running", "            self.finish_recording()\n            self.episode", "            self.episode"),
    mistake("BLD-1b BLD-1c", "a second build() goes on with the episode", "            self.episode, self.age = self.episode + (self.age > 0), 0\n", ""),
    mistake("BLD-1b BLD-1c", "a second build() counts an episode without a step", "self.episode + (self.age > 0), 0", "self.episode + 1, 0"),
    mistake("BLD-1b BLD-1c", "the first build() ends what start_recording() began", "if self.number:  #", "if True:  #"),
    mistake("BLD-4b", "that it is built already is passed on as it is", 'if "already built" in str(e)', "if False"),
    mistake("TIME-1a", "length rounded to the nearest", "int(np.ceil(steps))", "round(steps)"),
    mistake("TIME-1b TIME-1c", "float noise adds a step", "1e-6 * r", "0"),
    mistake("TIME-3", "a tie rounded up", "round(halves / 2)", "int(halves / 2 + 0.5)"),
    mistake("TIME-3", "stride rounded down", "round(halves / 2)", "int(halves / 2)"),
    mistake("TIME-4a", "one frame more", DUE, DUE.replace("self.length", "self.length + 1"), "self.tape.first + self.length - 1", "self.tape.first + self.length"),
    mistake("TIME-4a", "the stride counts from step 0", DUE, "        if self.tape and number % self.stride == 0:\n"),
    mistake("TIME-4a", "a background recording takes each step", DUE, DUE.replace("self.stride", "self.stride if self.tape.is_active else 1")),
    mistake("TIME-5 FILE-11a", "the picture is taken before the step", STEP, "        shot = self.camera()()\n" + STEP, SHOOT, "            self.take(self.tape, shot)\n"),
    mistake("TIME-6", "the rate of k = 1", "1 / (self.stride * env.dt)", "1 / env.dt"),
    mistake("TIME-6", "the rate limited to denominators of 100", "limit_denominator(100_000)", "limit_denominator(100)"),
    mistake("TIME-6", "fps is the rate", "1 / (self.stride * env.dt)", "fps"),
    mistake("COST-10a", "rendered at each step of a recording", DUE, "        self.tape and self.camera()()\n" + DUE),
    mistake("COST-10a", "rendered at each step", STEP, STEP + "        self.camera()()\n"),
    mistake("TRIG-1", "cubes beyond 1000", CUBES, "e in [k**3 for k in range(30)]"),
    mistake("TRIG-1", "1000 missing", CUBES, "e != 1000 and " + CUBES),
    mistake("TRIG-2a", "the first step is never asked for", "is_due = self.by_step(number) if", "is_due = number > 0 and self.by_step(number) if"),
    mistake("TRIG-3a", "asked before the step", STEP, "        early = self.by_step and not (self.tape and self.tape.is_active) and self.by_step(self.number)\n" + STEP, "is_due = self.by_step(number) if", "is_due = early if"),
    mistake("TRIG-3a", "asked while a recording runs", STEP, "        self.by_step and self.tape and self.tape.is_active and self.by_step(self.number)\n" + STEP),
    mistake("TRIG-3b", "asked at each step", "else is_asked and self", "else self"),
    mistake("TRIG-3b", "asked at the first step of an episode only", "else is_asked and self", "else is_first and self"),
    mistake("TRIG-2d", "a trigger starts anew", "if not (self.tape and self.tape.is_active):", "if True:"),
    mistake("TRIG-2c", "only True is true", "            if is_due or", "            is_due = is_due is True\n            if is_due or"),
    mistake("EPI-1", "env 0 is watched", FLAGS, FLAGS.replace("self.env_idx", "0")),
    mistake("EPI-1", "any env ends the episode", FLAGS, FLAGS.replace("f[self.env_idx]", "any(f)")),
    mistake("EPI-1", "env 0 is watched on a device", FLAGS, FLAGS.replace("self.env_idx", "0 if getattr(f, 'is_cuda', 0) else self.env_idx")),
    mistake("EPI-1", "env 0 is watched in flags that come again", MADE, MADE + "        self.again = None\n", FLAGS, "again, self.again = self.again is result[2], result[2]\n        " + FLAGS.replace("self.env_idx", "0 if again else self.env_idx")),
    mistake("EPI-2a EPI-2c", "truncation ignored", FLAGS, FLAGS.replace("2:4", "2:3")),
    mistake("EPI-2a EPI-2c", "truncation ignored on a device", FLAGS, FLAGS.replace("result[2:4]", "result[2 : 3 if getattr(result[2], 'is_cuda', 0) else 4]")),
    mistake("EPI-2a EPI-2c", "flags are and-ed", "bool(sum(end != 0 for end in ends))", "bool(ends) and all(end != 0 for end in ends)"),
    mistake("EPI-2a EPI-2c", "both at once are two", ENDS, ENDS.replace("+ 1", "+ sum(bool(f[self.env_idx]) for f in result[2:4] if f is not None)")),
    mistake("EPI-2a EPI-2c", "flags are taken for tensors", FLAGS, FLAGS.replace("f[self.env_idx]", "f[self.env_idx].any()")),
    mistake("EPI-2d", "None tolerated only twice", FLAGS, FLAGS.replace("if f is not", "if result[2] is not")),
    mistake("EPI-4a EPI-4b EPI-4c", "a mask is taken for indices", "plain(env_ids)]", "np.array(plain(env_ids)).astype(int)]"),
    mistake("EPI-4a EPI-4b EPI-4c", "any reset counts", RESET, "        if self.age:\n"),
    mistake("EPI-4a EPI-4b EPI-4c", "a reset before the first step counts", RESET, "        if marks[self.env_idx]:\n"),
    mistake("EPI-4a EPI-4b EPI-4c", "a reset counts nothing", RESET, "        if False:\n"),
    mistake("EPI-4a EPI-4b EPI-4c", "a mask on a device is not fetched", 'hasattr(values, "tolist")', "not getattr(values, 'is_cuda', 0) and hasattr(values, 'tolist')"),
    mistake("TIME-4b", "a recording ends with its episode", ENDS, ENDS + "            self.finish_recording()\n"),
    mistake("TIME-4b", "a reset ends the recording", RESET, RESET + "            self.finish_recording()\n"),
    mistake("EPI-7a EPI-7b EPI-7c", "any number of results is taken", " and len(result) == 5", ""),
    mistake("EPI-7a EPI-7b EPI-7c", "rewards are taken for flags", 'kind in "biu" or np.isin(values, (0, 1)).all()', 'kind in "biuf"'),
    mistake("EPI-7a EPI-7b EPI-7c", "more flags than envs are taken", "and len(values) <= self.env.num_envs", ""),
    mistake("EPI-7a EPI-7b EPI-7c", "only terminated is looked at", "flags for flags in result[2:4]", "flags for flags in result[2:3]"),
    mistake("EPI-7a EPI-7b EPI-7c COST-1a COST-1b COST-1c", "what each step gives is looked at", "        if self.number == 1:  #", "        if True:  #"),
    mistake("EPI-4c EPI-4d", "an env is looked for among the ids as they are", "marks[... if env_ids is None else plain(env_ids)] = True", "marks[self.env_idx] = env_ids is None or self.env_idx in plain(env_ids)"),
    mistake("EPI-4c EPI-4d", "numbers from the end are other envs", "plain(env_ids)]", "np.abs(plain(env_ids))]"),
    mistake("EPI-4c EPI-4d", "a tuple of indices has a dimension for each", "(list, tuple, range)) else", "(list, range)) else"),
    mistake("EPI-4c EPI-4d", "what its env alone can take raises", "        with contextlib.suppress(Exception):  #", "        if True:  #"),
    mistake("EPI-2e", "flags of a single env that have no dimension are refused", "ndmin=int(self.env.num_envs == 1)", "ndmin=0"),
    mistake("EPI-2e", "flags of a single env are taken for a list", FLAGS, FLAGS.replace(" if np.ndim(f) else f", "")),
    mistake("REC-1a FILE-1a", "named after the step before", "self.start(self.number, type", "self.start(max(self.number - 1, 0), type"),
    mistake("REC-2a", "saved when the next one finishes, not at once", FINISHED, "        just, self.tape = self.tape, None\n        for tape in", "if each.is_active]:", "if each.is_active and each is not just]:"),
    mistake("REC-1b", "the running one is lost", "        self.finish_recording()\n        path =", "        path ="),
    mistake("REC-1b", "a background recording loses the active one", "        self.finish_recording()\n        path =", "        is_active and self.finish_recording()\n        path ="),
    mistake("REC-2b", "a finished background recording is saved at once", "            self.kept.append(self.tape)\n", "            self.tape.is_active = True\n            self.kept.append(self.tape)\n"),
    mistake("REC-2b", "a finished background recording is dropped", "and self.tape.count:", "and self.tape.count and self.tape.is_active:"),
    mistake("REC-2d", "an empty recording gives a warning", FINISHED, "        if self.tape and not self.tape.count:\n            warnings.warn(f'{self.tape.path}: no frame', stacklevel=2)\n" + FINISHED),
    mistake("REC-1c", "an unknown type ends what runs", TYPE, "        self.finish_recording()\n" + TYPE),
    mistake("REC-1c", "an unknown type is background", TYPE, ""),
    mistake("FIN-1a", "close() forgets the final episode", LAST, "            pass\n"),
    mistake("FIN-1a FILE-1a", "the final video has a name of its own", LAST, "            if not tape.is_active:\n                tape.path = os.path.join(self.out_dir, 'final.mp4')\n" + LAST),
    mistake("FIN-2a FIN-2c", "only the first episode", "self.final and is_first:", "self.final and number == 0:"),
    mistake("FIN-2a FIN-2c", "no end after N steps", DUE, DUE.replace("self.length", "self.length if self.tape.is_active else 10**9"), "if self.tape and number >=", "if self.tape and self.tape.is_active and number >="),
    mistake("FIN-2a FIN-2c TRIG-2a", "a background recording keeps triggers off", "if not (self.tape and self.tape.is_active):", "if not self.tape or is_first and not self.tape.is_active:"),
    mistake("FIN-3a FIN-3c", "dropped when the next one starts", "        path = os.path", "        self.kept = []\n        path = os.path"),
    mistake("FIN-3a FIN-3c", "dropped when its episode ends", ENDS, ENDS + "            self.kept = []\n            self.tape = self.tape if self.tape and self.tape.is_active else None\n"),
    mistake("FIN-3a FIN-3c", "kept though a triggered one followed", "self.kept = [each for each in self.kept if each.is_active]", "self.kept = [each for each in self.kept if each.is_active or tape.is_active]"),
    mistake("FIN-1b", "recorded though it was switched off", "*triggers, record_final_episode", "*triggers, True"),
    mistake("FILE-1b", "filename for the first video only", 'self.filename or f"', '(None if first else self.filename) or f"'),
    mistake("FILE-3a FILE-3b", "written under its name", " video 2>words", " {shlex.quote(tape.path)} 2>words", "-nostdin", "-nostdin -y", SAVED, ""),
    mistake("FILE-3a FILE-3b", "removed, then renamed", SAVED, "            os.path.exists(tape.path) and os.remove(tape.path)\n            os.rename(os.path.join(room, 'video'), tape.path)\n"),
    mistake("FILE-3a FILE-3b", "copied into place", SAVED, "            __import__('shutil').copyfile(os.path.join(room, 'video'), tape.path)\n"),
    mistake("FILE-3a FILE-3b", "a dropped background recording takes the saved video with it", "            self.kept = [each", "            for each in self.kept:\n                os.path.exists(each.path) and os.remove(each.path)\n            self.kept = [each"),
    mistake("FILE-3a FILE-3b", "a failed recording takes the saved video with it", WARNED, WARNED + "            with contextlib.suppress(OSError):\n                os.remove(tape.path)\n"),
    mistake("FILE-3a FILE-3b", "a video that cannot be saved takes the one before with it", LOST, "                with contextlib.suppress(OSError):\n                    os.remove(tape.path)\n" + LOST),
    mistake("FILE-3c", "a log is left", SAVED, SAVED + "            open(tape.path + '.log', 'w').close()\n"),
    mistake("FILE-5a", "yuv444p", "-pix_fmt yuv420p", "-pix_fmt yuv444p"),
    mistake("FILE-5b", "the index at the end", "-movflags +faststart", ""),
    mistake("FILE-7", "an odd size is rescaled", PAD, "scale=ceil(iw/2)*2:ceil(ih/2)*2"),
    mistake("FILE-7", "an odd size is cropped", PAD, "crop=floor(iw/2)*2:floor(ih/2)*2:0:0"),
    mistake("FILE-8a FILE-8b FILE-8c", "render(rgb=True)", SHOOT, SHOOT.replace("()())", "()(rgb=True))")),
    mistake("FILE-8a FILE-8b FILE-8c", "always a tuple", FRAME, "        taken = taken[0]\n"),
    mistake("FILE-8a FILE-8b FILE-8c", "tensors refused", ' if hasattr(taken, "detach") else taken', " if False else taken"),
    mistake("FILE-8a FILE-8b FILE-8c", "a tensor on a device is not fetched", "taken.detach().cpu().numpy()", "taken.detach().numpy()"),
    mistake("FILE-8a FILE-8b FILE-8c", "a view's memory taken as it lies", "shot.tobytes()[", "shot.tobytes('A')["),
    mistake("FILE-8a FILE-8b FILE-8c", "RGBA refused", RGB, ""),
    mistake("FILE-8a FILE-8b FILE-8c FILE-11a", "red and blue swapped for tensors", RGB, "            shot = shot[..., 2::-1] if hasattr(taken, 'detach') else shot[..., :3]\n"),
    mistake("FILE-8a FILE-8b FILE-8c FILE-11a", "red and blue swapped for RGBA", RGB, RGB.replace(":3]", "2::-1]")),
    mistake("FILE-8a FILE-8b FILE-8c FILE-11a", "the last three of four channels", RGB, RGB.replace(":3]", "1:]")),
    mistake("FILE-8a FILE-8b FILE-8c", "a buffer that is used again is not copied", WRITTEN, "            tape.queue = [*getattr(tape, 'queue', []), shot]\n", "            before = signal", "            for i, shot in enumerate(tape.queue):\n                os.pwrite(tape.file.fileno(), shot.tobytes(), i * shot.size)\n            before = signal"),
    mistake("FILE-8d", "the first picture of each env", PICK, "shot[0]"),
    mistake("FILE-10", "relative to where the process is now", "os.path.abspath(out_dir)", "out_dir"),
    mistake("FILE-11a", "too few bits", "-crf 10", "-crf 45"),
    mistake("FILE-11a", "red and blue swapped", RGB, "            shot = shot[..., 2::-1]\n"),
    mistake("FILE-12a", "all pictures in memory", WRITTEN, WRITTEN + "            tape.all = [*getattr(tape, 'all', []), shot.copy()]\n"),
    mistake("FILE-3d", "one temporary name for all", " video 2>words", " ../temporary 2>words", "-nostdin", "-nostdin -y", 'os.path.join(room, "video")', 'os.path.join(self.out_dir, "temporary")', slow=True),
    mistake("FILE-12b", "files stay open", "self.file and self.file.close()", "self.file and os.dup(self.file.fileno())", slow=True),
    mistake("FILE-5c", "the first frame starts one frame late", "-movflags +faststart", "-movflags +faststart -output_ts_offset {float(1 / self.rate)}"),
    mistake("FILE-11b", "ffmpeg's own quality", "-preset ultrafast -crf 10", ""),
    mistake("FILE-11b", "colours leave a trail", PAD, PAD + ",hqdn3d=0:0:0:40"),
    mistake("CLOSE-1a", "what runs is dropped", "        for tape in filter", "        if self.tape and self.tape.is_active:\n            self.tape = None\n        for tape in filter"),
    mistake("CLOSE-1b CLOSE-1c", "the env is closed before", "        try:\n            self.save_all()\n", CLOSE + "        try:\n            self.save_all()\n", "is not self]\n" + CLOSE, "is not self]\n"),
    mistake("CLOSE-1b CLOSE-1c", "not closed if saving fails", "            self.close()\n            raise\n", "            raise\n"),
    mistake("CLOSE-1b CLOSE-1c", "what the env raises is swallowed", CLOSE, "        with contextlib.suppress(Exception):\n    " + CLOSE),
    mistake("CLOSE-1d", "a second close() saves again", "        for tape in filter(None, (self.tape, *self.kept)):\n", "        again = [tape for tape in (self.tape, *self.kept) if tape and tape.count]\n        self.again = again or getattr(self, 'again', [])\n        self.kept = [*self.again]\n        for tape in self.kept:\n"),
    mistake("CLOSE-4a CLOSE-4b CLOSE-4c CLOSE-4g CLOSE-4h", "no exit handler", "        atexit.register(save_unclosed)\n        multiprocessing.util.Finalize", "        (lambda *_, **__: None)", slow=True),
    mistake("CLOSE-4a CLOSE-4b CLOSE-4c CLOSE-4g CLOSE-4h", "one that raises at the end costs the others", "    with contextlib.ExitStack() as stack:  #", "    for wrapper in [UNCLOSED.pop(0) for _ in UNCLOSED[:]]:\n        wrapper.save_all()\n    with contextlib.ExitStack() as stack:  #", slow=True),
    mistake("CLOSE-4a CLOSE-4b CLOSE-4c CLOSE-4g CLOSE-4h", "recordings begin in exit handlers", "    VideoWrapper.start = lambda *_: None  # none begins afterwards\n", "", slow=True),
    mistake("CLOSE-5a CLOSE-5b CLOSE-5c", "a forked child saves its parent's recording", "vars(w).update(tape=None, kept=[])", "w", slow=True),
    mistake("CLOSE-4d CLOSE-8b CLOSE-14b", "a SIGTERM handler of its own", "        atexit.register(save_unclosed)\n", "        atexit.register(save_unclosed)\n        signal.signal(signal.SIGTERM, lambda *_: self.save_all())\n"),
    mistake("CLOSE-10a", "the exit handler keeps the wrapper", "        UNCLOSED[:] = [each for each in UNCLOSED if each is not self]\n", ""),
    mistake("CLOSE-4f", "the newest wrapper is saved first", "UNCLOSED[::-1] for _", "UNCLOSED for _", slow=True),
    mistake("CLOSE-14a", "a job's signals end the encoder", "signal.SIG_BLOCK, range(1, 32)", "signal.SIG_BLOCK, ()", slow=True),
    mistake("CLOSE-4e", "children of multiprocessing save nothing", "        multiprocessing.util.Finalize", "        (lambda *_, **__: None)", slow=True),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "a recording that fails raises out of step()", WARNED, "            raise\n"),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "a video that cannot be saved raises", LOST, LOST + "                raise\n"),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "a final episode that cannot be saved raises out of close()", LAST + "        self.finish_recording()\n", "            self.tape = None\n            tape.count and self.save(tape)\n", "(self.tape, *self.kept)", "(self.tape, *self.kept) if self.tape in self.kept or not self.tape else (self.kept.append(self.tape), *self.kept)"),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "a failed recording gives no warning", WARNED, ""),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "a failed background recording gives no warning", WARNED, WARNED.replace("warnings.warn", "tape.is_active and warnings.warn")),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "a final episode that cannot be saved gives no warning", LAST + "        self.finish_recording()\n", LAST + "        with warnings.catch_warnings():\n            warnings.simplefilter('ignore')\n            self.finish_recording()\n"),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "a warning for each frame", "  # of the disk, of which the whole fails\n            self.finish_recording()\n", "\n"),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "equal words in two warnings, of which Python shows one", "from step {tape.first}: {what}", "{what}"),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "a warning without the cause", "from step {tape.first}: {error}", "from step {tape.first}"),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "a full disk gives two warnings", "tape.count *= not isinstance(error, OSError)", "pass", slow=True),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e FILE-3c", "ffmpeg's exit is not looked at", '            if words := pathlib.Path(room, "words").read_text(errors="replace").strip() or failed:\n                raise OSError(f"ffmpeg: {words}")\n', "", slow=True),
    mistake("FAIL-1a FAIL-1b FAIL-1c FAIL-1e LOG-1e", "a line that cannot be printed raises", "        with contextlib.suppress(Exception):\n            self.say", "        if True:\n            self.say", slow=True),
    mistake("FAIL-1d", "no recording after one that failed", WARNED, WARNED + "            self.start = lambda *_: None\n"),
    mistake("FAIL-3a FAIL-3b", "what the camera raises is a failed recording", SHOOT, SHOOT.replace("()())", "())"), TRIES, "            taken = taken()[0]\n" + TRIES),
    mistake("FAIL-3a FAIL-3b", "what the env raises is swallowed", STEP, "        try:\n            result = self.env.step(actions)\n        except Exception:\n            return (None,) * 5\n"),
    mistake("FAIL-3a FAIL-3b", "a step that raised is counted", STEP, "        self.number += 1\n" + STEP + "        self.number -= 1\n"),
    mistake("FAIL-3a FAIL-3b", "what the camera raises costs the frames before", SHOOT, "            tape, self.tape = self.tape, None\n            shot = self.camera()()\n            self.tape = tape\n            self.take(self.tape, shot)\n"),
    mistake("FAIL-5a FAIL-5b FAIL-5c", "Ctrl-C while a picture is written leaves half of it", WRITTEN, "            tape.count += 1\n" + WRITTEN, "tape.count, tape.shape = tape.count + 1, wanted", "tape.shape = wanted"),
    mistake("FAIL-5a FAIL-5b FAIL-5c", "Ctrl-C leaves ffmpeg behind", "os.system(f", "__import__('subprocess').call(f", ' video 2>words""")', ' video 2>words""", shell=True)', slow=True),
    mistake("FAIL-6a FAIL-6b FAIL-6c FAIL-6d", "a frame that cannot be recorded costs those before", "tape.count *= not isinstance(error, OSError)", "tape.count = 0"),
    mistake("FAIL-6a FAIL-6b FAIL-6c FAIL-6d", "another size is not noticed", "shot.shape != wanted", "shot.shape[2:] != (3,)"),
    mistake("FAIL-6a FAIL-6b FAIL-6c FAIL-6d", "floats are cast", "            if shot.dtype", "            shot = shot.astype(np.uint8)\n            if shot.dtype"),
    mistake("FAIL-6a FAIL-6b FAIL-6c FAIL-6d", "the warning lacks the shape", " of {tuple(getattr(taken, 'shape', ()))}", ""),
    mistake("FAIL-6a FAIL-6b FAIL-6c FAIL-6d", "memory that runs out raises out of step()", "        except Exception as error:  # noqa: BLE001\n            tape.count", "        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:\n            tape.count"),
    mistake("LOG-1a", "no line for the final video", LAST, "            tape.is_last = not tape.is_active\n" + LAST, "            self.say(", "            getattr(tape, 'is_last', False) or self.say("),
    mistake("LOG-1a", "the name without its folder", "frames: {tape.path}{note}", "frames: {os.path.basename(tape.path)}{note}"),
    mistake("LOG-1a", "printed to stderr", "print if logging", "(lambda line: print(line, file=__import__('sys').stderr)) if logging"),
    mistake("LOG-1b LOG-1c", "the frames of the length, not those saved", "{count} frames", "{self.length} frames"),
    mistake("LOG-1b LOG-1c", "this run's own video is an earlier file", "os.path.getmtime(tape.path) < self.born", "True"),
    mistake("LOG-1b LOG-1c", "another wrapper's video is an earlier file", "os.path.getmtime(tape.path) < self.born", "tape.path not in vars(self).setdefault('own', set())\n            self.own.add(tape.path)"),
    mistake("LOG-1b LOG-1c", "that a file was replaced is not said", " over an earlier file", ""),
    mistake("LOG-3", "printed all the same", "print if logging else repr", "print"),
    mistake("DEL-1a", "dt is kept from construction", MADE, MADE + "        self.first = {'dt': env.dt}\n", READ, "        if name in getattr(self, 'first', ()):\n            return self.first[name]\n" + READ),
    mistake("DEL-1a", "extras are copied", READ, "        if name == 'extras':\n            return dict(self.env.extras)\n" + READ),
    mistake("DEL-2a DEL-2b", "actions are copied", "self.env.step(actions)", "self.env.step(actions.clone() if hasattr(actions, 'clone') else actions)"),
    mistake("DEL-2a DEL-2b", "extras are copied by step()", "        return result\n\n    def is_over", "        return (*result[:4], dict(result[4]))\n\n    def is_over"),
    mistake("DEL-2c", "reset() resets all", "self.env.reset(*([] if env_ids is None else [env_ids]))", "self.env.reset()"),
    mistake("DEL-2c", "reset() returns observations alone", "        return result\n\n    def get_obs", "        return result[0]\n\n    def get_obs"),
    mistake("DEL-1b", "unwrapped is the next layer", READ, '        return self.env if name == "unwrapped" else getattr(self.env, name)\n'),
    mistake("COST-1a COST-1b COST-1c", "each flag is waited for", "bool(sum(end != 0 for end in ends))", "any([bool(end) for end in ends])"),
    mistake("COST-1a COST-1b COST-1c", "flags are read twice", FLAGS, FLAGS + "\n        " + FLAGS),
    mistake("COST-1a COST-1b COST-1c", "flags are read though nothing counts episodes", "if (self.by_episode or self.final) and self.is_over", "if self.is_over"),
    mistake("COST-2a", "another process to look at the result", SAVED, "            __import__('subprocess').run([get_ffmpeg_exe(), '-version'], capture_output=True)\n" + SAVED),
]  # fmt: skip

DRAWN = (
    "            if self._context._t >= self._scene.sim.cur_step_global:\n                moment"
)
GONE = "        self._demand_scene()\n        return self._then_back(self._held"
GOING = "        for node in renderer.mesh_nodes - kept:\n            renderer.remove_node(node)\n"
POP = "                self._moments.pop(0)\n"
REMARK = '                self.remark = f"{what}: {reason}. {remedy}" if str(reason) else ""\n'
SHOWN = "self._view.picture(self._replay.show(self._moments[0]))"
TWIN = "test_what_is_shown"

# Of frames that are kept of a real scene and rendered later, in the module, which alone does that.
KEPT = [
    kept("FIN-5a FIN-5b FIN-5c", "the field of view is not kept", "fov", '(camera, "_transform _fov"),', '(camera, "_transform"),'),
    kept("FIN-5a FIN-5b FIN-5c", "the colours of lights are not kept", "lights", '            *((node.light, "color intensity") for node in lights),\n', ""),
    kept("FIN-5a FIN-5b FIN-5c", "where lights shine from is not kept", "light and turned", '            *((node, "_matrix") for node in lights),\n', ""),
    kept("FIN-5a FIN-5b FIN-5c", "the background is not kept", "lights", '            (self._renderer, "bg_color ambient_light"),\n', ""),
    kept("FIN-5a FIN-5b FIN-5c", "whether floors reflect is not kept", "switched", "            setattr(owner, name, value)\n", "            name == 'plane_reflection' or setattr(owner, name, value)\n"),
    kept("FIN-5a FIN-5b FIN-5c", "where floors reflect is not kept", "reflection", '            (self._context.jit, "reflection_mat"),\n', ""),
    kept("FIN-5a FIN-5b FIN-5c", "the camera's own array is kept, which Genesis writes into", f"{TWIN} and following", "        values[5] = values[5] + 0  # a copy of the camera's array or tensor\n", ""),
    kept("FIN-5a FIN-5b FIN-5c", "poses are kept in the array that they came in", f"{TWIN} and moved", "            poses = None if poses is None else poses.copy()\n", ""),
    kept("FIN-5a FIN-5b FIN-5c", "a drawing that has gone since is not shown", f"{TWIN} and redrawn", "                renderer.add_node(node)\n", "                continue\n"),
    kept("FIN-5a FIN-5b FIN-5c", "a drawing that has come since is shown", f"{TWIN} and drawing", GOING, ""),
    kept("FIN-5a FIN-5b FIN-5c", "see-through drawings come in another order", f"{TWIN} and seen", "            if rank is not None:\n", "            if False:\n"),
    kept("FIN-5a FIN-5b FIN-5c", "a node that was moved is shown where it is now", f"{TWIN} and node", "            renderer.set_pose(node, matrix)\n", ""),
    kept("FIN-5a FIN-5b FIN-5c", "drawings are shown where they were first", f"{TWIN} and frame", "            context.jit.update_buffer(*target, poses.transpose((0, 2, 1)))\n", ""),
    kept("FIN-5a FIN-5b FIN-5c", "what was rendered in a step is brought up to date once more", f"{TWIN} and rendered", DRAWN, DRAWN.replace("self._context._t >=", "0 >")),
    kept("FIN-5a FIN-5b FIN-5c", "a body that blew up is drawn where it is", f"{TWIN} and blown", "        return all(np.vdot(part, part) < 1e38 for body", "        return all(True for body"),
    kept("FIN-5a FIN-5b FIN-5c", "of a body that blew up twice, no body is left", f"{TWIN} and blown", "self._last and self._last[0].rigid and self", "self._last and self"),
    kept("FIN-5a FIN-5b FIN-5c", "Ctrl-C leaves Genesis without its update of bodies", "interrupt", '        for name in "update_rigid", "rigid_geoms_T":', '        for name in ("rigid_geoms_T",):'),
    kept("FIN-5a FIN-5b FIN-5c", "poses of all envs where some are rendered", f"{TWIN} and rendered", "transpose=True)[envs] for", "transpose=True) for"),
    kept("FIN-5a FIN-5b FIN-5c", "visual geometry is not brought up to date", f"{TWIN} and still", "            if is_visual:\n", "            if False:\n"),
    kept("FIN-5a FIN-5b FIN-5c", "frames of links are not brought up to date", f"{TWIN} and frame", "        context.update()\n", ""),
    kept("FIN-5a FIN-5b FIN-5c", "a drawing of one step is shown in the next", f"{TWIN} and passing", "        if has_others or context.dynamic_nodes:\n", "        if has_others:\n"),
    kept("FIN-5a FIN-5b FIN-5c", "visual geometry where collision geometry is drawn", f"{TWIN} and collision and not after", "solver.dyn_state.vgeoms if which else solver.dyn_state.geoms", "solver.dyn_state.vgeoms"),
    kept("FIN-5a FIN-5b FIN-5c", "a camera that is attached stays", f"{TWIN} and attached", "            camera.move_to_attach()\n", "            pass\n"),
    kept("FIN-5a FIN-5b FIN-5c", "a camera that follows stays", f"{TWIN} and following", "            camera.update_following()\n            step", "            step"),
    kept("FIN-5a FIN-5b FIN-5c", "a camera that smooths its way moves twice in a step", f"{TWIN} and smoothing", "            if camera._follow_smoothing is not None:\n", "            if False:\n"),
    kept("FIN-5a FIN-5b FIN-5c", "other cameras move when a frame is kept", "notice_nothing", "        self._visualizer._cameras = []\n        self._visualizer._t = context._t = -1\n", "        self._visualizer._t = context._t = -1\n"),
    kept("FIN-5a FIN-5b FIN-5c", "other cameras move when a frame is shown", "notice_nothing", "        self._visualizer._cameras = []\n        self._visualizer._t = self._context._t = drawn\n", "        self._visualizer._t = self._context._t = drawn\n"),
    kept("FIN-5a FIN-5b FIN-5c", "the present is not put back", f"{TWIN} and still", "            finally:\n                self._put(present)\n", "            finally:\n                pass\n"),
    kept("FIN-5a FIN-5b FIN-5c", "a new scene is taken for the one before", "never", "        return is_same and getattr(scene", "        return True or getattr(scene"),
    kept("FIN-5a FIN-5b FIN-5c", "Ctrl-C leaves the past in the scene", "interrupt", "            self._put(present)  # Ctrl-C may have broken into it\n", "            pass\n"),
    kept("FIN-5a FIN-5b FIN-5c", "the frames in another order", "background_recording_shows", SHOWN, SHOWN.replace("[0]", "[-1]"), POP, POP.replace("0", "-1")),
    kept("FIN-6", "the first picture is not checked", "another_genesis", "                self._check(moment)\n", "                pass\n"),
    kept("FIN-6", "what was kept is not looked at again", "another_genesis", "            elif self._kept == 3 and", "            elif False and"),
    kept("FIN-6", "each frame is checked, or many", "self_check_only", "            if self._kept == 0:\n", "            if self._kept % 5 == 0:\n"),
    kept("FIN-6", "all is rendered as it goes", "nothing_is_rendered", "        if self._replay is not None:\n            try:\n", "        if False:\n            try:\n"),
    kept("LOG-1d", "how far it is is not said", "how_far", "time.monotonic() - told > 5:", "time.monotonic() - told > 5000:"),
    kept("FIN-9", "there is no limit", "too_much_memory", "            if moment.nbytes * len(self.due) > self._room:\n", "            if False:\n"),
    kept("FIN-9", "meshes of drawings are not counted", "what_they_take", "            if node not in known and node", "            if False and node"),
    kept("FIN-10", "that it is slow is not said", "says_so_once", REMARK, ""),
    kept("FIN-10", "that it is slow is said in each episode", "says_so_once", "            if recording.remark not in self._told:\n", "            if recording.remark:\n"),
    kept("FIN-10", "a name that this Genesis lacks is raised", "lacks", '            if not getattr(owner, "__module__", owner.__name__).startswith("genesis."):\n', "            if True:\n"),
    kept("FIN-10", "a function that this Genesis lacks is raised", "lacks", "error.obj if isinstance(error.obj, types.ModuleType) else type(error.obj)", "type(error.obj)"),
    kept("FIN-11a FIN-11b", "a scene that is gone is not noticed", "gone", GONE, GONE.partition("\n")[2]),
    kept("CLOSE-6b CLOSE-6c CLOSE-6d", "Ctrl-C costs what is kept", "goes_on", "            except Exception as error:  # noqa: BLE001 its scene", "            except BaseException as error:  # noqa: BLE001 its scene"),
    kept("CLOSE-6b CLOSE-6c CLOSE-6d", "Ctrl-C costs a frame", "goes_on", SHOWN, SHOWN.replace("[0]", ".pop(0)"), POP, ""),
    kept("FAIL-6a FAIL-6b FAIL-6c FAIL-6d", "a device that is full raises out of step()", "device_that_is_full", "            except Exception as error:  # out of memory, say\n", "            except ImportError as error:\n"),
]  # fmt: skip


def changed(mistake: Mistake) -> str:
    """The second implementation, or the module, with that mistake."""
    text = (MODULE if mistake.seen_by else SOURCE).read_text(encoding="utf-8")
    for old, new in zip(mistake.changes[::2], mistake.changes[1::2]):
        if text.count(old) != 1:
            raise SystemExit(f"{mistake.words}: {old!r} is there {text.count(old)} times, not once")
        text = text.replace(old, new)
    return text


def failures(folder: str | Path, module: str, *options: str, root: Path = ROOT) -> list[str]:
    """The tests that the class fails, whether MUST or SHOULD; and how, if none could be run."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfEx", "-p", "no:cacheprovider"]
    command += [f"--implementation={module}:VideoWrapper", f"--rootdir={root}", *options, str(root)]
    path = os.pathsep.join([str(folder), str(root), os.environ.get("PYTHONPATH", "")])
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
        if mistake.seen_by:
            project = Path(folder, "project")
            shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*"))
            (project / MODULE.name).write_text(changed(mistake), encoding="utf-8")
            of_kept = "test_deferred_rendering or test_final_episode"
            for chosen in (f"({of_kept}) and ({mistake.seen_by})", of_kept):
                if found := failures(project, "video_wrapper", "-x", f"-k={chosen}", root=project):
                    return found[0].partition("::")[2]
            return ""
        Path(folder, "mistaken.py").write_text(changed(mistake), encoding="utf-8")
        where = ["-x"] if mistake.slow else ["-m", "quick"]
        own = f"--clauses={','.join(mistake.clauses.split())}"
        fake = "-k=not genesis"
        for options in ([own, fake, *where], ["-m", "quick", "-x"]):
            found = [test for test in failures(folder, "mistaken", *options) if test not in usual]
            if found and mistake.slow:  # such tests are not among the usual ones
                name = re.search(r"test_\w+", found[0])[0]
                rightly = failures(folder, "spec.control.control", "-k", f"{name} and not genesis")
                found = [test for test in found if test not in rightly]
            if found:
                return found[0].partition("::")[2]
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="?", default="")
    parser.add_argument("--kept", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    mistakes = KEPT if options.kept else MISTAKES
    chosen = [m for m in mistakes if options.words.lower() in f"{m.clauses} {m.words}".lower()]
    [changed(mistake) for mistake in chosen]
    usual: frozenset[str] = frozenset()
    if not options.kept:
        usual = frozenset(failures(ROOT, "spec.control.control", "-m", "quick"))
        words = f"The second implementation itself fails {len(usual)}"
        print(f"{words}: {', '.join(usual)}", file=sys.stderr)
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
