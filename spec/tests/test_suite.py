"""The suite's own tests: its reports on small classes, right and wrong, and its mutants."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spec.control import mutants
from spec.suite import ROOT
from spec.suite.plugin import gist

pytestmark = pytest.mark.of_suite

# The control, changed in a line or two.
PLAIN = "from spec.control.control import *\nfrom spec.control.control import VideoWrapper\n"


@pytest.fixture
def judge(tmp_path: Path) -> Any:
    """Runs the suite on a class that is written for it, with options. Returns what it reports."""

    def run(
        code: str, *options: str, target: str = "judged:VideoWrapper", plain: str = PLAIN
    ) -> Any:
        (tmp_path / "judged.py").write_text(plain + code)
        report = tmp_path / "report.json"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=no", "-rfEsx"]
        command += [f"--implementation={target}", f"--conformance-report={report}"]
        command += ["-m", "quick", f"--rootdir={ROOT}", *options, str(ROOT)]
        path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
        result = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        written = json.loads(report.read_text()) if report.exists() else {"clauses": []}
        return SimpleNamespace(
            code=result.returncode,
            text=result.stdout + result.stderr,
            totals=written.get("totals", ""),
            results={row["id"]: row["result"] for row in written["clauses"]},
            why={row["id"]: row["why"] for row in written["clauses"]},
        )

    return run


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("assert 8 == 7", "7 was wanted, and there was 8"),
        ("assert (0 == 1 and 2 == 2)", "assert (0 == 1 and 2 == 2)"),
        ("of 40 steps there are 39\nassert 39 == 40", "of 40 steps there are 39"),
        ("DID NOT RAISE ValueError", "ValueError was wanted, and nothing was raised"),
        (
            "Regex pattern did not match.\n  Expected regex: 'a'\n  Actual message: 'b'",
            "a message with 'a' was wanted, and it is 'b'",
        ),
    ],
)
def test_a_failure_is_told_by_what_was_wanted_and_what_came(words: str, wanted: str) -> None:
    with pytest.raises(AssertionError) as error:
        raise AssertionError(words)
    assert gist(error) == wanted


@pytest.mark.extended
class TestReport:
    def test_a_right_class_meets_the_clauses_that_the_run_selects(self, judge: Any) -> None:
        run = judge("", "--clauses=DEL-2,TIME-4")
        assert run.code == 0, run.text
        assert run.totals.startswith("documented: 3/3 cases, resolved: 4/4 cases"), run.totals
        passed = {i for i, result in run.results.items() if result == "pass"}
        cases = {"DEL-2a", "DEL-2b", "DEL-2c", "DEL-2d", "EPI-2b", "TIME-4a", "TIME-4b"}
        assert passed == {"DEL-2", "TIME-4"} | cases

    def test_a_wrong_class_fails_its_clause_in_words(self, judge: Any) -> None:
        code = "VideoWrapper.get_observations = lambda self: None"
        run = judge(code, "--clauses=DEL-2")
        assert run.code == 1, run.text
        assert (run.results["DEL-2a"], run.results["DEL-2c"]) == ("pass", "fail")
        assert run.why["DEL-2c"].startswith("reset and get observations pass through: ")
        assert (run.results["DEL-2"], run.why["DEL-2"]) == ("fail", "1 of 4 cases: DEL-2c")
        assert "documented: 2/3 cases" in run.totals

    def test_a_should_that_is_not_met_fails_no_run(self, judge: Any) -> None:
        run = judge("VideoWrapper.build.__annotations__.clear()", "--clauses=API-1e")
        assert run.code == 0, run.text
        assert run.results["API-1e"] == "fail"

    def test_an_expected_failure_passes_and_one_that_does_not_come_is_told(
        self, judge: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "expected").write_text("DEL-2c not yet\n")
        option = f"--expected-failures={tmp_path / 'expected'}"
        code = "VideoWrapper.get_observations = lambda self: None"
        run = judge(code, "--clauses=DEL-2", option)
        assert run.code == 0, run.text
        assert run.results["DEL-2c"] == "expected"
        (tmp_path / "expected").write_text("DEL-0 not yet\n")
        run = judge("", "--clauses=DEL-2", option)
        assert run.code == 4
        assert "there is no clause DEL-0" in run.text

    def test_a_class_without_an_argument_is_skipped_where_it_is_needed(self, judge: Any) -> None:
        code = """
class Short(VideoWrapper):
    def __init__(self, env, camera_attr="camera", video_length_sec=8, episode_trigger=None,
                 out_dir="./videos", fps=60, env_idx=0, filename=None):
        super().__init__(env, camera_attr, video_length_sec, episode_trigger, None, out_dir, fps,
                         env_idx, filename, False, False)
VideoWrapper = Short
"""
        run = judge(code, "--clauses=API-1a,TRIG-2,DEL-2")
        assert run.results["API-1a"] == "fail"
        assert run.results["TRIG-2b"] == "pass", run.text
        assert run.results["TRIG-2a"] == "not run"
        assert "it takes no step_trigger, which is API-1's" in run.text
        assert "TypeError" not in run.text

    def test_a_class_that_is_a_frame_late_fails_time_4_alone(self, judge: Any) -> None:
        (late,) = [m for m in mutants.MUTANTS if m.words == "one step more"]
        clauses = "--clauses=TIME-4a,REC-1,TRIG-2,CLOSE-1"
        run = judge(late.source(), clauses, plain="")
        failed = [i for i, result in run.results.items() if result == "fail"]
        assert failed == ["TIME-4", "TIME-4a"], run.text

    def test_what_binds_the_module_alone_is_one_line(self, judge: Any) -> None:
        run = judge("", "--clauses=API")
        lines = [line for line in run.text.splitlines() if "not applicable" in line]
        assert len([line for line in lines if "SKIP" not in line]) == 1, run.text


@pytest.mark.extended
class TestRuns:
    def test_a_class_that_hangs_fails_and_the_others_are_run(self, judge: Any) -> None:
        code = """
import time
VideoWrapper.get_observations = lambda self: time.sleep(1000)
"""
        run = judge(code, "--clauses=DEL-1,DEL-2", "--time-limit=3")
        assert run.results["DEL-2c"] == "fail"
        assert "it has not ended after 3 s" in run.why["DEL-2c"]
        assert run.results["DEL-1b"] == "pass"

    def test_a_class_that_hangs_where_it_is_closed_ends_too(self, judge: Any) -> None:
        run = judge(
            "import time\nVideoWrapper.close = lambda self: time.sleep(1000)\n",
            "--clauses=DEL-2a",
            "--time-limit=3",
        )
        assert "it has not ended after 3 s" in run.why["DEL-2a"]
        assert run.code == 1

    def test_a_test_that_takes_long_says_so(self, judge: Any) -> None:
        run = judge(
            "import time\nVideoWrapper.get_observations = lambda self: time.sleep(12)\n",
            "--clauses=DEL-2c",
        )
        assert re.search(r"pass_through has run for 1\d s", run.text), run.text

    @pytest.mark.parametrize("option", ["--clauses=TIME-4a", "-k TIME-4a"])
    def test_tests_are_selected_by_clause(self, judge: Any, option: str) -> None:
        run = judge("", *option.split(), "--collect-only", "-q")
        files = {line.partition("::")[2] for line in run.text.splitlines() if "::" in line}
        assert len(files) > 20
        assert all("TestTime" in name for name in files), files

    def test_an_exact_clause_is_not_its_namesakes(self, judge: Any) -> None:
        run = judge("", "--clauses=FILE-1a", "--collect-only", "-q")
        names = [line for line in run.text.splitlines() if "::" in line]
        assert names
        assert all("test_names" in name for name in names), names

    def test_two_processes_are_refused_in_a_sentence(self, judge: Any) -> None:
        pytest.importorskip("xdist")
        run = judge("", "-n", "2")
        assert run.code == 4
        assert "run them without -n" in run.text

    def test_a_clause_that_is_not_there_is_refused(self, judge: Any) -> None:
        run = judge("", "--clauses=TIME-99")
        assert run.code == 4
        assert "there is no clause TIME-99" in run.text


@pytest.mark.extended
class TestImplementationOption:
    @pytest.mark.parametrize(
        ("code", "target", "words"),
        [
            ("", "judged", "names no class: write package.module:Class"),
            ("", "judged:Missing", "has no attribute 'Missing'"),
            ("", "judged:MISSING", "has no attribute 'MISSING'"),
            ("1 / 0\n", "judged:VideoWrapper", r"division by zero \(line 3 of .*judged\.py\)"),
            ("def (\n", "judged:VideoWrapper", r"SyntaxError.* \(line 3 of .*judged\.py\)"),
            ("number = 5\n", "judged:number", "is no class"),
        ],
    )
    def test_what_cannot_be_judged_is_told_in_a_line(
        self, judge: Any, code: str, target: str, words: str
    ) -> None:
        run = judge(code, target=target)
        assert run.code == 4, run.text
        assert re.search(words, run.text), run.text
        assert "Traceback" not in run.text


# What the spec leaves open: none of these may make a test fail.
FREE = [
    ("messages", "cannot be {value!r}", "? Not {value!r}"),
    ("the category of a warning", "warnings.warn(text, stacklevel=2)\n\n    def reset", "warnings.warn(text, FutureWarning, stacklevel=2)\n\n    def reset"),
    ("words of a warning", "from step {recording.first} failed: ", "of step {recording.first} could not be made: "),
    ("words for a copy", "a VideoWrapper cannot be copied, because both", "VideoWrappers cannot be pickled: two"),
    ("names of the results", "(observations, rewards, terminated, truncated, extras)", "obs, reward, terminated, truncated, info"),
    ("where the camera was looked for", "{type(base).__name__}.{self._camera_attr}", "{self._camera_attr} of {type(base).__name__}"),
    ("hidden temporary files", "{os.urandom(8).hex()}.part", ".{os.urandom(8).hex()}"),
    ("padding at the left and top", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "pad=ceil(iw/2)*2:ceil(ih/2)*2:ow-iw:oh-ih"),
    ("another order in the line", 'f"{recording.path}: {text}"', 'f"{text}, {recording.path}"'),
    ("another encoder setting", '"ultrafast", "-crf", "10"', '"veryfast", "-crf", "12"'),
    ("another colour matrix", "ceil(ih/2)*2", "ceil(ih/2)*2,scale=out_color_matrix=bt709,setparams=colorspace=bt709"),
    ("another error for a camera", 'raise TypeError(f"{name} must have', 'raise RuntimeError(f"{name} must have'),
]  # fmt: skip


# The cases of quick tests that the control does not meet, for the reason that it gives.
UNMET: set[str] = set()


@pytest.mark.extended
class TestControl:
    @pytest.mark.parametrize(("what", "old", "new"), FREE, ids=[what for what, *_ in FREE])
    def test_what_the_spec_leaves_open_is_nobodys_fault(
        self, judge: Any, what: str, old: str, new: str
    ) -> None:
        free = mutants.Mutant("", what, (old, new))
        clauses = "--clauses=API-10,ARG,BLD,EPI-7,REC-1,REC-2,FILE-3,FILE-7,FILE-11,FAIL,LOG"
        run = judge(free.source(), clauses, plain="")
        failed = {i: run.why[i] for i, result in run.results.items() if result == "fail"}
        assert set(failed) <= UNMET, failed

    def test_the_control_meets_what_it_tries_to(self, judge: Any) -> None:
        run = judge("")
        failed = {i: run.why[i] for i, result in run.results.items() if result == "fail"}
        assert set(failed) == UNMET, failed

    @pytest.mark.parametrize("words", ["env 0 is watched", "removed, then renamed"])
    def test_a_mutant_is_caught(self, words: str) -> None:
        command = [sys.executable, "-m", "spec.control.mutants", words]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.stdout.endswith("1 of 1 mutants are caught\n"), run.stdout + run.stderr


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: f"{m.case} {m.words}")
def test_a_mutant_of_the_control_can_be_made(mutant: mutants.Mutant) -> None:
    compile(mutant.source(), mutant.words, "exec")


@pytest.mark.parametrize("mutant", mutants.MODULE_MUTANTS, ids=lambda m: f"{m.case} {m.words}")
def test_a_mutant_of_the_module_can_be_made(mutant: mutants.Mutant) -> None:
    compile(mutant.source(mutants.MODULE), mutant.words, "exec")
