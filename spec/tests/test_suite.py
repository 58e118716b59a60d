"""The suite's own tests: its reports on classes, right and wrong, and its mutants."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from spec.control import mutants
from spec.suite import ROOT
from spec.suite.plugin import gist

pytestmark = pytest.mark.of_suite

CONTROL = "from spec.control.control import *\nfrom spec.control.control import VideoWrapper\n"
PYTEST = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"


@pytest.fixture
def judge(python: Any, tmp_path: Path) -> Any:
    """Return a function that runs the quick tests on a class, and returns what they report."""

    def run(code: str, *options: str) -> Any:
        (tmp_path / "judged.py").write_text(code)
        report = tmp_path / "report.json"
        fixed = f"-pno:cacheprovider -mquick --rootdir={ROOT} --conformance-report={report}".split()
        fixed.append("--implementation=judged:VideoWrapper")
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        run = python(PYTEST, *fixed, *options, str(ROOT), PYTHONPATH=path)
        written = json.loads(report.read_text()) if report.exists() else {"clauses": []}
        run.summary = written.get("summary")
        run.results = {row["id"]: row["result"] for row in written["clauses"]}
        run.failed = [id for id, result in run.results.items() if result == "fail"]
        return run

    return run


def equal(got: Any, wanted: Any, *words: str) -> None:
    if words:
        assert got == wanted, words[0]
    assert got == wanted


def either(got: Any, wanted: Any) -> None:
    assert got == wanted or wanted == got


def matches(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(message)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: equal(8, 7), "expected 7, got 8"),
        (lambda: equal((1, 2), (1, 3)), "expected (1, 3), got (1, 2)"),
        (lambda: equal([{0: "a" * 90}], [{0: "b"}]), f"expected 'b', got '{'a' * 90}' at [0][0]"),
        (lambda: equal([*range(50)], [*range(49)]), "expected 'nothing', got 49 at [49]"),
        (lambda: equal(8, 7, "one too many"), "expected 7, got 8: one too many"),
        (lambda: equal(8, 7, "8 frames, expected 7"), "8 frames, expected 7"),
        (lambda: either(8, 7), "not so: failure is put in words [<lambda>"),
        (lambda: matches("a", "b"), "expected a message with 'a', got 'b'"),
        (lambda: pytest.raises(ValueError, int, "1"), "expected ValueError, nothing was raised"),
    ],
)  # fmt: skip
def test_failure_is_put_in_words(request: Any, check: Any, words: str) -> None:
    with pytest.raises(BaseException) as error:
        check()
    assert gist(error, request.node).startswith(words)


# Changes that the spec leaves open, so that no test may fail: pairs of an old text and a new one.
FREE = [
    "cannot be {value!r}", "? Not {value!r}",
    "warnings.warn(text, stacklevel=2)\n\n    def reset", "warnings.warn(text, FutureWarning, stacklevel=2)\n\n    def reset",
    "from step {recording.first} failed: ", "of step {recording.first} could not be made: ",
    "a VideoWrapper cannot be copied, because both", "VideoWrappers cannot be pickled: two",
    "(observations, rewards, terminated, truncated, extras)", "obs, reward, terminated, truncated, info",
    "{type(base).__name__}.{self._camera_attr}", "{self._camera_attr} of {type(base).__name__}",
    "{os.urandom(8).hex()}.part", ".{os.urandom(8).hex()}",
    "pad=ceil(iw/2)*2:ceil(ih/2)*2", "pad=ceil(iw/2)*2:ceil(ih/2)*2:ow-iw:oh-ih,scale=out_color_matrix=bt709,setparams=colorspace=bt709",
    'f"{recording.path}: {text}"', 'f"{text}, {recording.path}"',
    '"ultrafast", "-crf", "10"', '"veryfast", "-crf", "12"',
    'raise TypeError(f"{name} must have', 'raise RuntimeError(f"{name} must have',
]  # fmt: skip
TAKES_LESS = """
class Short(VideoWrapper):
    def __init__(self, env, video_length_sec=8, episode_trigger=None, out_dir="", fps=60):
        super().__init__(env, "camera", video_length_sec, episode_trigger, None, out_dir, fps)
VideoWrapper = Short
"""
PRINTS_BYTES = """
class Binary(VideoWrapper):
    def step(self, actions):
        os.write(1, b"\\xff")
        sys.stdout.buffer.write(b"\\xff")
        return super().step(actions)
VideoWrapper = Binary
"""
CATCHES_ALL = """
def hang(self):
    with contextlib.suppress(BaseException):
        time.sleep(1000)
    return self.env.get_observations()
VideoWrapper.get_observations = hang
"""
EXITS = "VideoWrapper.__init__ = lambda *_, **__: sys.exit(3)"
FORKS = """
VideoWrapper.get_observations = lambda self: os.fork() and self.env.get_observations()
VideoWrapper.build.__annotations__.clear()
"""
HANGS = "VideoWrapper.close = lambda self: time.sleep(1000)"
HANGS_IN_C = "VideoWrapper.get_observations = lambda self: sum(itertools.repeat(0))"
ODD = {
    "takes less": (TAKES_LESS, "API-1a,TRIG-2a", "fail, not run", 1, "not run: it takes no step_t"),
    "prints bytes": (PRINTS_BYTES, "LOG-3,DEL-2a", "fail, pass", 1, ""),
    "exits": (EXITS, "DEL-2a,DEL-2c", "fail, fail", 1, "\n    SystemExit: 3\n"),
    "forks and fails a SHOULD": (FORKS, "API-1e,DEL-2a,DEL-2c", "fail, pass, pass", 0, ""),
    "catches all": (CATCHES_ALL, "DEL-2c,DEL-1b --time-limit=12", "fail, pass", 1, "run for 1. s"),
    "hangs": (HANGS, "TIME-4a,DEL-2a --time-limit=3", "fail, not run", 1, "five tests in a row"),
    "hangs in C": (HANGS_IN_C, "DEL-2c,DEL-5a --time-limit=3", "fail, not run", -9, "test hung"),
}


@pytest.mark.extended
class TestReport:
    def test_summary_says_what_to_mend_first(self, judge: Any, tmp_path: Path) -> None:
        code = """
VideoWrapper.build.__annotations__.clear()
VideoWrapper.can_be_wrapped = False
VideoWrapper.get_observations = lambda self: None
VideoWrapper.__reduce__ = object.__reduce__
"""
        (tmp_path / "expected").write_text("API-1d not yet\nARG-1b not yet\n")
        option = f"--expected-failures={tmp_path / 'expected'}"
        run = judge(CONTROL + code, "--clauses=API,ARG-1,DEL-2", option)
        *lines, totals = run.summary
        heads = " ".join(line for line in lines if line[0] != " ")
        assert heads.startswith(
            "MUST, documented: DEL-2: 1 of 4 cases: DEL-2c MUST, resolved: API-10: fails "
            "SHOULD, documented: API-1: 1 of 5 cases: API-1e expected: not yet: API-1d not appl"
        )
        sentence, why, test = map(str.strip, lines[2:5])
        assert sentence.endswith("`get_observations()` return what the env returned.")
        assert why.startswith("expected ") and why.endswith(", got None")
        assert re.fullmatch(r"'?test_video_wrapper\S*::test_\S+", test)
        assert "UNEXPECTED PASS of ARG-1b: not yet" in lines
        counts = r"\d clauses pass, documented: 6/9 cases, resolved: \d/\d cases, not selected: \d+"
        assert re.fullmatch(counts, totals)
        assert run.returncode == 1
        assert run.output.splitlines()[-len(run.summary) - 1 : -1] == run.summary
        assert len(run.output.splitlines()) < 50

    def test_class_that_is_a_frame_late_fails_time_4_alone(self, judge: Any) -> None:
        (late,) = [m for m in mutants.MUTANTS if m.words == "one step more"]
        run = judge(late.source(), "--clauses=TIME-4a,REC-1,TRIG-2,CLOSE-1")
        assert run.failed == ["TIME-4a"], run.output

    def test_report_may_be_markdown(self, judge: Any, tmp_path: Path) -> None:
        option = f"--conformance-report={tmp_path / 'report.md'}"
        run = judge(CONTROL, "--clauses=API-10", option)
        assert run.returncode == 0, run.output
        assert "| API-10 | MUST | resolved | pass |" in (tmp_path / "report.md").read_text()

    @pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
    def test_odd_class_gets_a_report(self, judge: Any, odd: tuple[Any, ...]) -> None:
        code, options, results, exit_code, words = odd
        clauses, *others = options.split()
        imports = "import contextlib, itertools, os, sys, time\n"
        run = judge(imports + CONTROL + code, f"--clauses={clauses}", *others)
        assert ", ".join(run.results[id] for id in clauses.split(",")) == results, run.output
        assert re.search(words, run.output), run.output
        assert run.output.count(" clauses pass, ") == 1
        assert run.returncode == exit_code

    def test_clauses_are_selected_by_their_whole_id(self, judge: Any) -> None:
        outputs = [judge(CONTROL, "--co", "-q", o).output for o in ("--clauses=FILE-1", "-kFILE-1")]
        exact, loose = ({t for t in text.splitlines() if "::" in t} for text in outputs)
        assert set() < exact < loose  # which has FILE-10's, too

    @pytest.mark.parametrize(
        ("code", "option", "words"),
        [
            ("", "--implementation=judged", "write package.module:Class"),
            ("", "--implementation=judged:Missing", "has no attribute 'Missing'"),
            ("1 / 0\n", "-q", r"division by zero \(line 1 of .*judged\.py\)"),
            ("def (\n", "-q", r"SyntaxError.* \(line 1 of .*judged\.py\)"),
            ("VideoWrapper = 5\n", "-q", "judged:VideoWrapper is n"),
            (CONTROL, "--clauses=TIME-99", "there is no clause TIME-99"),
            (CONTROL, "--expected-failures={}/judged.py", "there is no clause from"),
            (CONTROL, "{}/test_own.py", "names (TIME-1, which has cases|TIME-99, no clause)"),
        ],
    )
    def test_usage_error_is_a_sentence(
        self, judge: Any, tmp_path: Path, code: str, option: str, words: str
    ) -> None:
        own = "import pytest\n@pytest.mark.clause('TIME-1', 'TIME-99')\ndef test_it(): pass\n"
        (tmp_path / "test_own.py").write_text(own)
        run = judge(code, option.format(tmp_path))
        assert run.returncode == 4, run.output
        assert re.search(words, run.output), run.output
        assert "Traceback" not in run.output

    @pytest.mark.parametrize("changes", [[], FREE], ids=["as it is", "with all that is free"])
    def test_control_meets_all_clauses(self, judge: Any, changes: list[str]) -> None:
        run = judge(mutants.Mutant("", "", changes).source())
        assert run.failed == [], run.output

    @pytest.mark.parametrize("words", ["env 0 is watched", "removed, then renamed"])
    def test_mutant_is_caught(self, python: Any, words: str) -> None:
        run = python(mutants.__file__, words)
        assert run.stdout.endswith("1 of 1 mutants are caught\n"), run.output


MADE = [(m, mutants.CONTROL) for m in mutants.MUTANTS]
MADE += [(m, mutants.MODULE) for m in mutants.MODULE_MUTANTS]


@pytest.mark.parametrize(("mutant", "path"), MADE, ids=[f"{m.case} {m.words}" for m, _ in MADE])
def test_mutant_can_be_made(mutant: mutants.Mutant, path: Path) -> None:
    compile(mutant.source(path), mutant.words, "exec")
