"""Mutants: the control or the module with one mistake each, and whether a test catches it.

    python -m spec.control.mutants [WORDS]

WORDS choose mutants: of the control or the module, of a case, or by description. The tests of its
case have to catch a mutant, without those that `-k genesis` selects unless it names them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from spec.suite import ROOT

CONTROL = ROOT / "spec" / "control" / "control.py"
MODULE = ROOT / "video_wrapper.py"


class Mutant(NamedTuple):
    """A case, the mistake in words, old and new texts in turns, and perhaps tests for pytest's -k."""

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


ANY = "bool(sum(flag != 0 for flag in mine))"
ASKED = "            self._asked_episode = self._episode\n"

MUTANTS = [Mutant(case, words, changes) for case, words, *changes in (
    ("ARG-3a", "fps is not checked", '("fps", fps), ', ""),
    ("ARG-4", "a negative env_idx is taken", "0 <= int(self._env_idx) <", "int(self._env_idx) <"),
    ("ARG-5a", "a path is taken for a name", " and name == os.path.basename(name)", ""),
    ("ARG-7a", "out_dir must be a str", 'out_dir is not None and out_dir != ""', "isinstance(out_dir, str)"),
    ("ARG-7c", "renaming is not tried", 'os.replace(path, path + ".renamed")', "pass"),
    ("ARG-7d", "the trial leaves a folder", "with tempfile.TemporaryDirectory(dir=self._out_dir) as trial:", "for trial in [tempfile.mkdtemp(dir=self._out_dir)]:"),
    ("BLD-1b", "a second build() leaves the recording running", "if self._step > 0:", "if False:"),
    ("BLD-2c", "a camera that can only be read is refused", '("render", "read")', '("render",)'),
    ("BLD-4", "the camera is found by build() alone", "self._camera()\n\n", "self._found = self._camera()\n\n", "_camera()()", "_found()"),
    ("BLD-6", "an env needs close()", 'getattr(self.env, "close", lambda: None)', "self.env.close"),
    ("TIME-4a", "one step more", "first + self._length:", "first + self._length + 1:"),
    ("TIME-4b", "episode-triggered recordings end with the episode", "_start = self._step\n", "_start = self._step\n            self._episode_trigger and self.finish_recording()\n"),
    ("TIME-5", "an episode is counted before the env resets", "        results = self.env.step", "        self._start_what_is_due()\n        results = self.env.step", "        self._start_what_is_due()\n            if", "        if"),
    ("TIME-6", "denominators are limited to 1001", "limit_denominator(100_000)", "limit_denominator(1001)"),
    ("TRIG-1", "cubes beyond 1000", "if episode > 1000:", "if episode > 5000:"),
    ("TRIG-2d", "a trigger cuts a recording short", "if self._recording and self._recording.is_active:", "if False:"),
    ("TRIG-3a", "a step whose trigger raised is asked for again", "        finally:\n            self._step", "        except KeyError:\n            pass\n        else:\n            self._step"),
    ("TRIG-3b", "an episode whose trigger raised is asked for again", ASKED, "", "_trigger(self._episode)\n", "_trigger(self._episode)\n" + ASKED),
    ("TRIG-3b", "asked at the first step of an episode only", "self._asked_episode != self._episode:", "self._step == self._episode_start:"),
    ("EPI-1", "env 0 is watched", "flags[self._env_idx] if", "flags[0] if"),
    ("EPI-2a", "flags are combined by exclusive or", ANY, "sum(bool(flag) for flag in mine) == 1"),
    ("EPI-2b", "four results are refused", "len(results) not in (4, 5)", "len(results) != 5"),
    ("EPI-2c", "flags on a device are combined by exclusive or", ANY, f"sum(f != 0 for f in mine) == 1 if any(getattr(f, 'is_cuda', 0) for f in mine) else {ANY}"),
    ("EPI-4a", "a reset of all envs counts nothing", "if selected[self._env_idx]:", "if selected[self._env_idx] and env_ids is not None:"),
    ("EPI-4c", "a mask is taken for indices", "selected[as_list(env_ids)]", "selected[[int(i) for i in as_list(env_ids)]]"),
    ("EPI-7b", "floats are flags", 'in "biu"', 'in "biuf"'),
    ("REC-1b", "the recording that runs is lost", "        self.finish_recording()\n        envs", "        envs"),
    ("REC-2b", "a finished background recording is saved at once", "if recording and recording.is_active:", "if recording:"),
    ("FIN-2a", "only at the first step of an episode", "age >= self._next_background:", "age == 0:"),
    ("FIN-2b", "an endless episode is recorded once", "max(4 * self._length,", "max(10**18,"),
    ("FIN-2c", "a background recording has no end", "if self._recording and self._step >=", "if self._recording and self._recording.is_active and self._step >="),
    ("FIN-3a", "the newest, however short", "(self._good() or self._background)", "self._background"),
    ("FIN-3a", "it must have lasted N steps", "min(self._length, math.ceil(without_noise(1 / dt)))", "self._length"),
    ("FIN-3b", "none, if none has lasted", "(self._good() or self._background)", "self._good()"),
    ("FIN-3c", "nothing drops an older one", "has_lasted = True\n            self._background = []\n", "has_lasted = True\n"),
    ("FIN-3d", "an older video overwrites a newer one", "self._background = []  # an", "pass  # an"),
    ("FILE-3b", "removed, then renamed", "os.replace(part, self.path)", "os.path.exists(self.path) and os.unlink(self.path), os.rename(part, self.path)"),
    ("FILE-3b", "a video is overwritten in place", "os.replace(part, self.path)", "__import__('shutil').copyfile(part, self.path), os.unlink(part)"),
    ("FILE-8d", "the first frame of each env", "array[envs.index(self._env_idx)]", "array[0]"),
    ("FILE-8e", "each recording of an env that is not rendered warns", "self._has_warned = True", "pass"),
    ("FILE-11a", "red and blue are swapped", "return array[:, :, :3]", "return array[:, :, 2::-1]"),
    ("FILE-11b", "ffmpeg's own quality", ', "-crf", "10"]', "]"),
    ("FILE-12a", "all frames are held in memory", "        data = frame.tobytes()\n", "        data = frame.tobytes()\n        self.all = [*getattr(self, 'all', []), data]\n"),
    ("FILE-12b", "ended episodes keep their files", "[*self._good()[-1:], recording]", "[*self._background, recording]"),
    ("CLOSE-1b", "the env is closed first", "        close_env = ", "        getattr(self.env, 'close', str)()\n        close_env = "),
    ("CLOSE-1d", "a second close() saves again", "        self._background = []\n        self.finish_recording()\n\n", "        self.finish_recording()\n\n", "        self._forget(recording)\n        if self._filename:", "        if self._filename and recording.is_active:"),
    ("CLOSE-4a", "nothing is saved at the end", "    atexit.register(save_unclosed)\n", "", "_finalizer is None or not _finalizer.still_active()", "False"),
    ("CLOSE-4e", "children of multiprocessing save nothing", "_finalizer is None or not _finalizer.still_active()", "False"),
    ("CLOSE-4f", "the newest wrapper is saved first", "list(_living.values()):\n        for", "[*_living.values()][::-1]:\n        for"),
    ("CLOSE-4g", "an error costs the other videos", "errors.append(error)\n", "_living.clear()\n                raise\n"),
    ("CLOSE-4h", "recordings begin afterwards", "if _is_exiting:\n", "if False:\n"),
    ("CLOSE-5a", "a forked child saves its parent's recording", "after_in_child=leave_to_parent", "after_in_child=print"),
    ("CLOSE-10a", "the exit handler keeps the wrapper", "= weakref.WeakValueDictionary()", "= {}"),
    ("CLOSE-10b", "a wrapper that nobody holds is not saved", "__del__(self) -> None:\n        self._save", "on_del(self) -> None:\n        self._save"),
    ("CLOSE-10b", "it loses its finished background recording", "__del__(self) -> None:\n        self._save", "__del__(self) -> None:\n        self._recording and self._save"),
    ("CLOSE-14a", "a job's signals end the encoder", "SIG_BLOCK, signal.valid_signals()", "SIG_BLOCK, ()"),
    ("FAIL-1a", "a failed recording raises", "self._warn(recording, error)\n            return\n", "self._warn(recording, error)\n            raise\n"),
    ("FAIL-1c", "a failed recording leaves its file", "os.unlink(part)\n", "pass\n"),
    ("FAIL-3b", "the camera's error costs the frames before", "image = self._camera()()\n", "self._recording = None\n            image = self._camera()()\n            self._recording = recording\n"),
    ("FAIL-5a", "Ctrl-C ends the recording", "Exception as error:\n                if", "BaseException as error:\n                if"),
    ("FAIL-6a", "another size is not noticed", "if frame.shape != self.shape:", "if False:"),
    ("FAIL-6b", "memory that runs out raises", "Exception as error:\n                if", "OSError as error:\n                if"),
    ("FAIL-6c", "a wrong frame costs those before", "if isinstance(error, OSError):", "if True:"),
    ("LOG-1d", "a line that cannot be printed raises", "suppress(Exception):\n                text", "suppress():\n                text"),
    ("LOG-3", "printed without logging", "if self._logging:", "if True:"),
    ("DEL-5a", "attributes are not read from the env", 'if name.startswith("_"):', "if True:"),
    ("DEL-5b", "attributes stay on the wrapper", "            setattr(self.env, name, value)\n", "            object.__setattr__(self, name, value)\n"),
    ("DEL-5d", "private names are passed on", 'if name.startswith("_"):', "if False:"),
    ("COST-1b", "each flag is waited for", ANY, "any(flag != 0 for flag in mine)"),
    ("COST-2a", "ffmpeg is left running", "        message = result.", "        self.left = subprocess.Popen([get_ffmpeg_exe(), '-i', 'pipe:'], stdin=-1)\n        message = result."),
    ("COST-10a", "rendered at each step", "        results = self.env.step", "        self._camera()()\n        results = self.env.step"),
)]  # fmt: skip

# In what the module does in its own way. `tests` are pytest's -k.
MODULE_MUTANTS = [
    Mutant("API-6", "torch is imported", ("import numpy as np\n", "import numpy as np\nimport torch\n"), "API-6"),
    Mutant("ARG-12", "without ffmpeg, nothing is said", ("        _ffmpeg()  # if", "        pass  # if"), "ARG-12"),
    Mutant("FIN-5a", "the field of view is not stored", ('"_transform _fov"', '"_transform"'), "FIN-5a and fov"),
    Mutant("FIN-5a", "the background is not stored", ("bg_color ambient_light", "ambient_light"), "FIN-5a and lights"),
    Mutant("FIN-5a", "the last frame comes first", ("snapshots[0]()", "snapshots[-1]()"), "FIN-5a and still and camera"),
    Mutant("FIN-9", "snapshots have no limit", ("if recording.room < 0:", "if False:"), "FIN-9"),
    Mutant("FIN-10", "each eager frame gives a warning", ("            self._can_defer = False\n", ""), "FIN-10"),
    Mutant("FILE-12b", "the ffmpeg of a dropped recording runs on", ("            self._process.kill()\n            self._process.wait()\n", "")),
    Mutant("CLOSE-9a", "partial files are hidden", ('f"{name[:60]}', 'f".{name[:60]}'), "CLOSE-9a"),
    Mutant("CLOSE-10b", "it loses its finished background recording", ("self._settle(is_closing=True)  # as", "self._step < self._recordings[-1].steps.stop and self._settle(True)  # as")),
    Mutant("FAIL-1h", "the file is not looked at", ('b"moov" not in head and', "False and")),
    Mutant("COST-10a", "a deferred renderer for each episode", ("if self._renderer is None or not self._renderer.is_of(scene, camera):", "if not recording.snapshots:"), "(COST-10 or FIN-6) and not fake"),
]  # fmt: skip


def caught_by(chosen: Mutant) -> str:
    """Return the test that fails for the mutant, or an empty string."""
    name, path = ("video_wrapper", MODULE) if chosen in MODULE_MUTANTS else ("mutated", CONTROL)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{name}.py").write_text(chosen.source(path), encoding="utf-8")
        # As a plugin, the mutant is imported before pytest can find the module of the checkout.
        options = f"-p {name} -p no:cacheprovider -qx -rfEx --tb=no --time-limit=30"
        options += f" --implementation={name}:VideoWrapper --clauses={chosen.case}"
        command = [sys.executable, "-m", "pytest", *options.split(), f"--rootdir={ROOT}", str(ROOT)]
        command += ["-k", chosen.tests or "not genesis"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, str(ROOT)])}
        keywords = {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "text": True}
        run = subprocess.run(command, check=False, **keywords)
    if run.returncode not in (0, 1, 5):  # passed, failed or nothing to run
        raise RuntimeError(f"{chosen} is not judged: {run.stdout}")
    failed = re.search(r"(?m)^(?:FAILED|ERROR|XFAIL) \S+?::(.+?)(?: - .*)?$", run.stdout)
    return failed[1] if failed else ""


def main() -> None:
    """Print which test catches each mutant, and exit with 1 if one survives."""
    words, survivors = " ".join(sys.argv[1:]).lower(), 0
    named = [("control", m) for m in MUTANTS] + [("module", m) for m in MODULE_MUTANTS]
    chosen = [m for name, m in named if words in f"{name} {m.case} {m.words}".lower()]
    with ThreadPoolExecutor(2) as pool:
        for each, test in zip(chosen, pool.map(caught_by, chosen)):
            survivors += not test
            print(f"{each.case:9} {each.words:60} {test or 'SURVIVES'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants are caught")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
