"""The pytest plugin: clauses, selection, options, time limits and the report."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import pytest

from spec.suite import DEFAULT_IMPLEMENTATION, ROOT
from spec.suite.genesis_scenes import installed
from spec.suite.harness import load


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Suite:
    """Return what this run judges, and by which clauses."""
    return pytestconfig.pluginmanager.get_plugin("conformance")


@pytest.fixture(scope="session")
def implementation(suite: Suite) -> type:
    """Return the class under test."""
    return suite.implementation


@pytest.fixture(scope="session")
def module(implementation: type) -> Any:
    """Return the module of the class under test."""
    return sys.modules[implementation.__module__]


@pytest.fixture(scope="session")
def spec_version(suite: Suite) -> str:
    """Return the version of spec/README.md."""
    return suite.spec_version


@pytest.fixture(scope="session")
def leave_to(suite: Suite) -> Callable[[str], None]:
    """Return what skips a test that another class fails for another clause, but fails our own."""
    return pytest.skip if suite.is_foreign else pytest.fail


@pytest.fixture
def capsys(capfd: pytest.CaptureFixture) -> pytest.CaptureFixture:
    """Return `capfd`, because pytest's own `capsys` fails if a class prints bytes, no text."""
    return capfd


@dataclass
class Clause:
    """A case, or a clause without cases, which is its own parent. `tests` name it."""

    id: str
    parent: str
    level: str
    source: str
    sentence: str
    binds: bool
    tests: list[str] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """Return the names that select it: its id, its clause's and its group's."""
        return {self.id, self.parent, self.id.partition("-")[0]}


ITEM = re.compile(r"^ *- \*\*[A-Z]+-\d.*(?:\n +[^ -].*)*", re.MULTILINE)
CLAUSE = re.compile(
    r"- \*\*([A-Z]+-\d+)([a-z]?)\*\* "
    r"(?:\((MUST|SHOULD)?(?:, )?(documented|resolved)?(, reference)?\) )?(.*)"
)


def read_clauses(text: str, is_foreign: bool) -> dict[str, list[Clause]]:
    """Parse the specification, and return the cases of each clause, or itself if it has none."""
    cases: dict[str, list[Clause]] = {}
    for item in [" ".join(item.split()) for item in ITEM.findall(text)]:
        found = CLAUSE.match(item)
        parent, letter, level, source, reference, words = found.groups() if found else [""] * 6
        is_in_place = [*cases][-1:] == [parent] if letter else parent not in cases
        if not (is_in_place and (letter or level and source)):
            raise pytest.UsageError(f"spec/README.md: malformed or misplaced: {item}")
        words = re.sub(r" ?\*[^*]+\*", "", words)  # without the reasons
        binds = not (reference and is_foreign)
        if letter:
            of = cases[parent][0]
            level, source, binds = level or of.level, source or of.source, of.binds
            words = f"{of.sentence} {words}"
        case = Clause(parent + letter, parent, level, source, words, binds)
        cases.setdefault(parent, []).append(case)
    return {parent: found[1:] or found for parent, found in cases.items()}


class Verdict(NamedTuple):
    """On a test or a clause: one of `RESULTS`, why, and for a clause the test that shows it."""

    result: str
    why: str = ""
    test: str = ""


RESULTS = ["fail", "expected", "pass", "not run", "not selected", "not applicable"]


class Suite:
    """Judges an implementation by the clauses: a pytest plugin."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.implementation_name = option("--implementation")
        self.env_base_name = option("--env-base")
        self.implementation = load(self.implementation_name, "--implementation")
        self.env_base = load(self.env_base_name, "--env-base") if self.env_base_name else None
        self.is_foreign = self.implementation_name != DEFAULT_IMPLEMENTATION
        self.report_file = Path(option("--conformance-report"))
        if self.report_file.suffix not in (".json", ".md") and str(self.report_file) != os.devnull:
            raise pytest.UsageError(f"{self.report_file} ends in neither .json nor .md")
        spec = (ROOT / "spec" / "README.md").read_text(encoding="utf-8")
        self.spec_version = re.search(r"^Version: (\S+)$", spec, re.MULTILINE)[1]
        self.cases = read_clauses(spec, self.is_foreign)
        self.clauses = {case.id: case for cases in self.cases.values() for case in cases}
        self.named = {*filter(None, option("--clauses").split(","))}
        try:
            lines = Path(option("--expected-failures")).read_text(encoding="utf-8").splitlines()
            self.expected = dict(t.split(None, 1) for t in lines if t.strip() and t[0] != "#")
        except (OSError, ValueError) as error:
            raise pytest.UsageError(f"--expected-failures: {error} (ids and reasons)") from None
        names = {name for clause in self.clauses.values() for name in clause.names}
        if unknown := {*self.named, *self.expected} - names:
            raise pytest.UsageError(f"there is no clause {', '.join(sorted(unknown))}")
        self.only_benchmarks = option("--benchmark-only", False)
        self.has_parts = option("--lf", False) or any("::" in a for a in config.args)
        # Tests that are chosen in any of these ways are run, extended or not.
        chosen = self.has_parts or self.named or option("-k") or option("-m")
        self.takes_extended = chosen or option("--all")
        self.selected: set[str] = set()  # tests
        self.verdicts: dict[str, Verdict] = {}  # on the tests that have ended
        self.log: Callable[..., None] = lambda *_: None  # is called with each verdict
        self.no_scene = self.ended = ""  # why there was none, why the run ended early
        self.costs: dict[str, list[str]] = {}  # rows of text for each group of benchmarks
        self.unexpected: list[str] = []  # the expected failures that did not come

    def _clauses_of(self, item: pytest.Item) -> list[Clause]:
        return [self.clauses[id] for marker in item.iter_markers("clause") for id in marker.args]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: Any, items: list[pytest.Item]) -> None:
        """Match tests and clauses, and select, before -k and -m take effect."""
        faults = []
        for item in items:
            ids = [id for marker in item.iter_markers("clause") for id in marker.args]
            if not (ids or any(map(item.get_closest_marker, ("of_suite", "benchmark_goal")))):
                faults.append(f"{item.nodeid} names no clause")
            for id in ids:
                if id in self.clauses:
                    item.extra_keyword_matches.update(self.clauses[id].names)  # for -k
                    self.clauses[id].tests.append(item.nodeid)
                else:
                    words = "which has cases: name one of them" if id in self.cases else "no clause"
                    faults.append(f"{item.nodeid} names {id}, {words}")
            if is_quick(item):
                item.add_marker("quick")
        files = {*ROOT.glob("test_*.py"), *(ROOT / "spec" / "tests").glob("test_*.py")}
        if not self.has_parts and files <= {item.path for item in items}:
            wanted = {test for item in items for test in default_tests(item)}
            lost = wanted - {item.nodeid for item in items}
            faults += [f"extended(default=...) names {test}, no test" for test in sorted(lost)]
            without = [c.id for c in self.clauses.values() if c.level == "MUST" and not c.tests]
            faults += [f"MUST case {id} has no test" for id in without]
        if faults:
            raise pytest.UsageError("\n".join(faults))
        # The conformance tests come first, and then those that take their time.
        items.sort(key=lambda item: item.path.parent == ROOT / "spec" / "tests")
        others = [item for item in items if not self._selects(item)]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)

    def _selects(self, item: pytest.Item) -> bool:
        clauses = self._clauses_of(item)
        if ("benchmark" in item.fixturenames) != self.only_benchmarks:
            return False
        is_of_module = item.get_closest_marker("of_module") or not any(c.binds for c in clauses)
        if self.is_foreign and is_of_module:
            return False
        if self.named:
            return any(clause.names & self.named for clause in clauses)
        is_extended = item.get_closest_marker("extended") and item.nodeid not in default_tests(item)
        return self.takes_extended or not is_extended

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which tests are left after all selection, and leave what they say to the summary."""
        self.selected = {item.nodeid for item in session.items}
        config = session.config
        asked = any(a.startswith(("--tb", "-r")) for a in config.invocation_params.args)
        if not (session.testsfailed or config.option.verbose > 0 or asked):
            config.option.tbstyle = "no"
            reporter = config.pluginmanager.get_plugin("terminalreporter")
            reporter.reportchars = "" if self.is_foreign else reporter.reportchars

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Iterator[Any]:
        """Judge the test, and excuse expected failures and those of another class's SHOULDs."""
        report = yield
        result = why = ""
        if report.failed:
            clauses = self._clauses_of(item)
            names = [name for c in clauses for name in c.names if name in self.expected]
            excuse = self.expected[names[0]] if names else ""
            result, why = ("expected", excuse) if excuse else ("fail", gist(call.excinfo, item))
            if excuse or self.is_foreign and all(clause.level == "SHOULD" for clause in clauses):
                report.outcome, report.wasxfail = "skipped", excuse or "SHOULD"
        elif report.skipped and isinstance(report.longrepr, tuple):
            result, why = "not run", report.longrepr[2].removeprefix("Skipped: ")
        elif report.when == "call":
            result = "pass"
        if result in ("fail", "expected") or result and item.nodeid not in self.verdicts:
            self.verdicts[item.nodeid] = Verdict(result, why, item.nodeid)
            self.log(item.nodeid, result, why)
        return report

    def judge(self, clause: Clause) -> Verdict:
        """Judge a case, or a clause without cases: the worst verdict on its tests in this run."""
        tests = [test for test in clause.tests if test in self.selected]
        if not clause.binds:
            return Verdict("not applicable", "it binds this project's module only")
        if not tests:
            return Verdict("not selected", "this run selects no test of it")
        ended = [self.verdicts[test] for test in tests if test in self.verdicts]
        unknown = Verdict("not run", self.ended, tests[0])
        return min(ended, key=lambda verdict: RESULTS.index(verdict.result), default=unknown)

    def summary(self) -> list[str]:
        """Say what to mend, the most urgent first, what was not judged, and the totals."""
        judged = {id: self.judge(clause) for id, clause in self.clauses.items()}
        to_mend: dict[str, list[str]] = {}
        reasons: dict[str, list[str]] = {}
        passed = 0
        for parent, cases in self.cases.items():
            failed = [case for case in cases if judged[case.id].result == "fail"]
            if failed:
                worst = min(failed, key=lambda case: (case.level, case.source))  # in this order
                _, why, test = judged[worst.id]
                ids = f"{len(failed)} of {len(cases)} cases: {' '.join(c.id for c in failed)}"
                lines = to_mend.setdefault(f"{worst.level}, {worst.source}", [])
                lines.append(f"{parent}: {ids if worst.id != parent else 'fails'}")
                about = (worst.sentence.rstrip(",;"), why, shlex.quote(test))
                lines += [f"    {words}" for words in about]
            passed += {judged[case.id].result for case in cases} - {"not selected"} == {"pass"}
            for case in cases:
                if judged[case.id].result in ("expected", "not run", "not applicable"):
                    reasons.setdefault(": ".join(judged[case.id][:2]), []).append(case.id)
        lines = [line for name in sorted(to_mend) for line in (f"{name}:", *to_mend[name])]
        lines += [f"{reason}: {' '.join(ids)}" for reason, ids in reasons.items()]
        lines += [f"UNEXPECTED PASS of {name}: {self.expected[name]}" for name in self.unexpected]
        lines += [f"THE REAL SCENE WAS NOT RUN: {self.no_scene}"] if self.no_scene else []
        counts = [f"{passed} clauses pass"]
        for source in ("documented", "resolved"):  # of those that bind it and that this run selects
            found = [judged[c.id].result for c in self.clauses.values() if c.source == source]
            count = sum(result not in ("not applicable", "not selected") for result in found)
            counts.append(f"{source}: {found.count('pass')}/{count} cases")
        results = [verdict.result for verdict in judged.values()]
        counts += [f"{r}: {results.count(r)}" for r in ("not run", "not selected") if r in results]
        return [*lines, *filter(None, [self.ended]), ", ".join(counts)]

    def about(self) -> dict[str, str]:
        """Return what is judged, and with what."""
        module = sys.modules[self.implementation.__module__]
        package = module.__name__.partition(".")[0]
        names = importlib.metadata.packages_distributions().get(package, [package])
        return {
            "implementation": self.implementation_name,
            "version": getattr(module, "__version__", installed(names[0])),
            "file": str(module.__file__),
            "implements": getattr(module, "__spec_version__", "no version of the specification"),
            "specification": self.spec_version,
            "Python": sys.version.split()[0],
            "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
            **{name: installed(name) for name in ("genesis-world", "torch")},
        }

    def write_report(self) -> None:
        """Write the file of --conformance-report."""
        keys = ["id", "level", "source", *Verdict._fields]
        rows = [[c.id, c.level, c.source, *self.judge(c)] for c in self.clauses.values()]
        if self.report_file.suffix == ".json":
            cases = [dict(zip(keys, row, strict=True)) for row in rows]
            report = {**self.about(), "summary": self.summary(), "clauses": cases}
            text = json.dumps(report, indent=1)
        else:
            lines = [f"- {name}: {value}" for name, value in self.about().items()]
            lines += ["", "```text", *self.summary(), "```", ""]
            for row in (keys, ["---"] * len(keys), *rows):
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
            text = "\n".join(lines)
        self.report_file.write_text(text + "\n", encoding="utf-8")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run for expected failures that did not come, and write the report."""
        if self.selected - self.verdicts.keys():
            cause = session.shouldfail or session.shouldstop or "it was interrupted"
            self.ended = f"the run ended early: {cause}"
        for name in self.expected:
            tests = {t for c in self.clauses.values() if name in c.names for t in c.tests}
            results = {self.verdicts.get(test, Verdict("missing")).result for test in tests}
            if "pass" in results and results <= {"pass", "not run"}:
                self.unexpected.append(name)
                session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        if self.verdicts:
            self.write_report()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Iterator[None]:
        """Print the costs and, below all else, the summary."""
        yield
        sections = dict(self.costs)
        if any(test in self.verdicts for c in self.clauses.values() for test in c.tests):
            sections[f"{self.implementation_name} by spec/README.md"] = self.summary()
        for title, lines in sections.items():
            terminalreporter.section(title)
            terminalreporter.write_line("\n".join(lines))

    @pytest.hookimpl(wrapper=True)
    def pytest_assertrepr_compare(self, op: str, left: Any, right: Any) -> Iterator[list]:
        """Add the words of `compared` to what pytest says, where `gist` finds them."""
        found = next(filter(None, (yield)), None) or [f"{shown(left)} {op} {shown(right)}"]
        with contextlib.suppress(Exception):  # what is compared may raise anything
            found.insert(1, compared(op, left, right))
        return [found if found[2:] else [*found, ""]]


WORDS = {"<": "less than ", "<=": "at most ", ">": "more than ", ">=": "at least "}


def compared(op: str, left: Any, right: Any) -> str:
    """Say in words how a comparison failed, and of long containers the first difference."""
    place = ""
    while op == "==" and len(repr((left, right))) > 100:
        both = [dict(enumerate(v)) if isinstance(v, list | tuple) else v for v in (left, right)]
        if not all(isinstance(value, dict) for value in both):
            break
        got, wanted = both
        key = next(k for k in {**wanted, **got} if got.get(k, got) != wanted.get(k, wanted))
        left, right = got.get(key, "nothing"), wanted.get(key, "nothing")
        place = f"{place or ' at '}[{key!r}]"
    if op in ("==", "is", *WORDS):
        return f"expected {WORDS.get(op, '')}{shown(right)}, got {shown(left)}{place}"
    return f"expected {shown(left)} {op} {shown(right)}"


def shown(value: Any) -> str:
    """Return a value in a short line, without machine addresses."""
    text = " ".join(re.sub(" at 0x[0-9a-f]+", "", repr(value)).split())
    return text if len(text) <= 100 else f"{text[:99]}…"


def gist(error: pytest.ExceptionInfo, item: pytest.Item) -> str:
    """Say why a test failed: by its comparison, by its message, or by its name."""
    text = re.sub(r"^(AssertionError|Failed)(: |$)", "", error.exconly())
    if found := re.search(r"Expected regex: (.*)\n\s*(?:Actual message|Input): (.*)", text):
        text = f"expected a message with {found[1]}, got {found[2]}"
    text = re.sub(r"^DID NOT RAISE (.*)", r"expected \1, nothing was raised", text)
    message, *raw = re.split(r"(?:^|\n)assert ", text, maxsplit=1)
    # With a comparison, it may be what was found, and no sentence.
    if raw and not re.match(r"[^\W\d].* .*\Z|.*expected ", message):
        message = ""
    compared, words, *_ = [*"\n".join(raw).splitlines(), "", ""]
    # It is part of "(... or ..." or "not ..." if not.
    is_whole = compared.count("(") == compared.count(")") and not compared.startswith("not ")
    if is_whole and words.startswith("  expected ") and "expected" not in message:
        message = f"{words.strip()}{message and ': '}{message}"
    name = item.name.removeprefix("test_").replace("_", " ").replace("[", " [", 1)
    return (message or f"not so: {name}").splitlines()[0][:240]


# Fixtures of tests that start processes, or take a scene, and so their time.
SLOW = {"benchmark", "real_scene", "start_python"}


def is_quick(item: pytest.Item) -> bool:
    """Return whether the test belongs to `-m quick`: on a fake env and in this process."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    is_slow = SLOW.intersection(item.fixturenames) or parameters.get("world") == "genesis"
    return item.path.parent == ROOT and not is_slow


def default_tests(item: pytest.Item) -> set[str]:
    """Return the tests that `@pytest.mark.extended(default=[...])` leaves in the default run."""
    marker = item.get_closest_marker("extended")
    ids = marker.kwargs.get("default", ()) if marker else ()
    return {f"{item.nodeid.partition('[')[0]}[{id}]" for id in ids}


class Watchdog:
    """Ends what hangs, so that the other tests and the report come all the same.

    An alarm ends a test. If it does not, because the class hangs in C or swallows every exception,
    a forked process writes the report and kills this one. It reads a log of tests and verdicts.
    """

    def __init__(self, config: pytest.Config, suite: Suite) -> None:
        self._suite = suite
        self._seconds = config.getoption("--time-limit")
        self._pid = os.getpid()
        self._late: dict[str, bool] = {}  # by test

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """Start the other process when all tests are known."""
        log = tempfile.TemporaryFile("wb", buffering=0)  # noqa: SIM115  # for the whole run
        self._suite.log = lambda *entry: log.write(json.dumps(entry).encode() + b"\n")
        if not os.fork():
            try:
                os.setsid()  # Ctrl-C is for the tests
                self._watch(log.fileno())
            finally:
                os._exit(1)

    def _watch(self, log: int) -> None:
        test, limit, at = "", 0.0, 0
        since = said = time.monotonic()
        while not limit or time.monotonic() - since < limit + 10:  # which the alarm gets
            time.sleep(0.2)
            if os.getppid() != self._pid:  # which has ended
                return
            lines, end, _ = os.pread(log, 1 << 20, at).rpartition(b"\n")
            at += len(lines + end)
            for name, *entry in map(json.loads, lines.splitlines()):
                if len(entry) > 1:
                    self._suite.verdicts[name] = Verdict(*entry, name)
                else:
                    test, limit = name, *entry
                    since = said = time.monotonic()
            if limit and time.monotonic() - said >= 10:
                said = time.monotonic()
                print(f"\n{test} has run for {said - since:.0f} s", flush=True)
        why = f"it has not ended after {limit:g} s, and could not be interrupted"
        self._suite.verdicts[test] = Verdict("fail", why, test)
        self._suite.ended = f"the run was killed, because this test hung: {test}"
        try:
            print("", *self._suite.summary(), sep="\n", flush=True)
            self._suite.write_report()
        finally:
            os.kill(self._pid, signal.SIGKILL)

    @contextlib.contextmanager
    def _limit(self, item: pytest.Item) -> Iterator[None]:
        seconds = self._seconds if is_quick(item) else 20 * self._seconds
        self._late.setdefault(item.nodeid, False)
        is_late = False

        def end(*_: Any) -> None:
            nonlocal is_late
            is_late = self._late[item.nodeid] = True
            if [*self._late.values()][-5:] == [True] * 5:
                item.session.shouldfail = "five tests in a row have not ended in time"
            pytest.fail(f"it has not ended after {seconds:g} s", pytrace=False)

        before = signal.signal(signal.SIGALRM, end)
        self._suite.log(item.nodeid, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again each second, if it is caught
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if os.getpid() != self._pid:  # a child that the class has forked
                os._exit(1)
            self._suite.log(item.nodeid, 0)
        if is_late:  # and the class has caught it
            end()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Limit the test, its fixtures, one of which makes a recording, and their end."""
        with self._limit(item):
            return (yield)

    pytest_runtest_setup = pytest_runtest_teardown = pytest_runtest_call


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's own options."""
    # As separate words, pytest takes a FILE that exists for tests before it knows these options.
    group = parser.getgroup("conformance", "conformance (write --option=value as one word)")
    name, nothing = "package.module:Class", os.devnull
    judged = os.environ.get("VIDEO_WRAPPER_IMPLEMENTATION", DEFAULT_IMPLEMENTATION)
    base = os.environ.get("VIDEO_WRAPPER_ENV_BASE", "")
    excuses = "lines of a clause's id and a reason: its tests may fail, and one of them has to"
    for option, metavar, default, text in [
        ("--implementation", name, judged, "the class to judge, or $VIDEO_WRAPPER_IMPLEMENTATION"),
        ("--env-base", name, base, "a base class that its env needs, or $VIDEO_WRAPPER_ENV_BASE"),
        ("--conformance-report", "FILE", nothing, "write the results to this .json or .md file"),
        ("--expected-failures", "FILE", nothing, excuses),
        ("--clauses", "IDS", "", "run only the tests of these clauses, such as TIME-4a,FILE"),
        ("--time-limit", "SECONDS", 120.0, "for a quick test; others may take 20 times as long"),
    ]:
        group.addoption(option, metavar=metavar, default=default, type=type(default), help=text)
    group.addoption("--all", action="store_true", help="run the extended tests too")
    text = "where Genesis simulates in the tests with a real scene (default: cpu)"
    group.addoption("--genesis-backend", choices=["cpu", "gpu"], default="cpu", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Start the suite."""
    # Child processes read it, too.
    os.environ["VIDEO_WRAPPER_GENESIS_BACKEND"] = config.getoption("--genesis-backend")
    if config.getoption("numprocesses", None) or config.getoption("tx", None):
        raise pytest.UsageError("the report needs all tests in one process: run them without -n")
    for marker in [
        "clause(*ids): the clauses of spec/README.md that it tests",
        "benchmark_goal: measures a goal, and judges no clause",
        "of_suite: judges the suite, and no implementation",
        "of_module: judges parts of this project's module alone",
        "extended(default=()): run with --all only, but for these ids of its parameters",
        "quick: on a fake env, without processes; set by itself",
    ]:
        config.addinivalue_line("markers", marker)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as if a shell runs it in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.option.benchmark_quiet = True  # its table has times, not ratios
    suite = Suite(config)
    config.pluginmanager.register(suite, "conformance")
    if hasattr(os, "fork"):  # not on Windows
        config.pluginmanager.register(Watchdog(config, suite))
