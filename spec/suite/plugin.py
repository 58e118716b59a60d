"""The pytest plugin: clauses, selection, options, limits, progress, costs and the report."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from spec.suite import DEFAULT_IMPLEMENTATION, ROOT
from spec.suite.genesis_scenes import installed
from spec.suite.harness import first_line, load


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Suite:
    """What this run judges, and by which clauses."""
    return pytestconfig.stash[SUITE]


@pytest.fixture(scope="session")
def implementation(suite: Suite) -> type:
    """The class under test."""
    return suite.implementation


@pytest.fixture(scope="session")
def module(implementation: type) -> Any:
    """The module of the class under test."""
    return sys.modules[implementation.__module__]


@pytest.fixture(scope="session")
def leave_to(suite: Suite) -> Callable[[str], None]:
    """Skips what another implementation fails for another clause, which is to be named.

    Of the module here nothing is skipped, or the test would stay green when that breaks.
    """
    return pytest.fail if suite.implementation_name == DEFAULT_IMPLEMENTATION else pytest.skip


@pytest.fixture(scope="session")
def spec_version(suite: Suite) -> str:
    """The version of spec/README.md."""
    return suite.spec_version


@dataclass
class Clause:
    """A clause without cases or a case of one, and the results of the tests that name it.

    `parent` is the id of its clause, which is its own id if it is not a case. `failures` are pairs of an error's gist and its excuse: why it is expected, SHOULD, or nothing.
    """

    id: str
    level: str
    source: str
    reference: bool
    parent: str
    tests: int = 0
    ran: int = 0
    skips: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


CLAUSE = re.compile(
    r"^- \*\*([A-Z]+-\d+)\*\* \((MUST|SHOULD), (documented|resolved)(, reference)?\)"
)


# A case gives its level or source only where it is not its clause's.
CASE = re.compile(
    r"^  - \*\*([A-Z]+-\d+)([a-z])\*\*(?: \((MUST|SHOULD)?(?:, )?(documented|resolved)?\))? "
)


ANY_ID = re.compile(r"^ *- \*\*[A-Z]+-\d")


def read_clauses(text: str) -> tuple[dict[str, Clause], dict[str, list[str]]]:
    """Parse the specification.

    Returns:
        What tests name: cases, and clauses without cases, by id. And the ids of the cases of each
        clause, or its own id if it has none.
    """
    clauses: dict[str, Clause] = {}
    cases: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := CLAUSE.match(line):
            clause = Clause(found[1], found[2], found[3], bool(found[4]), found[1])
            if clause.id in cases:
                raise pytest.UsageError(f"spec/README.md has {clause.id} twice")
            clauses[clause.id], cases[clause.id] = clause, [clause.id]
        elif found := CASE.match(line):
            parent, id = found[1], found[1] + found[2]
            if not cases or parent != list(cases)[-1] or id in clauses:
                raise pytest.UsageError(f"spec/README.md: {id} is out of place, or there twice")
            if cases[parent] == [parent]:
                first, cases[parent] = clauses.pop(parent), []
            level, source = found[3] or first.level, found[4] or first.source
            clauses[id] = Clause(id, level, source, first.reference, parent)
            cases[parent].append(id)
        elif ANY_ID.match(line):
            raise pytest.UsageError(f"spec/README.md: malformed clause: {line.strip()}")
    return clauses, cases


SUITE = pytest.StashKey["Suite"]()


SHOULD = "SHOULD"
BENCHMARK = "--benchmark-"  # is in pytest-benchmark's words for what it skips


class Suite:
    """Judges an implementation by the clauses: a pytest plugin."""

    def __init__(self, config: pytest.Config) -> None:
        self.implementation_name = config.getoption("--implementation")
        self.env_base_name = config.getoption("--env-base")
        self.implementation = load(self.implementation_name, "--implementation")
        self.env_base = load(self.env_base_name, "--env-base") if self.env_base_name else None
        self.report_file = config.getoption("--conformance-report")
        if self.report_file and Path(self.report_file).suffix not in (".json", ".md"):
            raise pytest.UsageError(f"{self.report_file} ends in neither .json nor .md")
        spec = (ROOT / "spec" / "README.md").read_text(encoding="utf-8")
        self.spec_version = re.search(r"^Version: (\S+)$", spec, re.MULTILINE)[1]
        self.clauses, self.cases = read_clauses(spec)
        self.expected = self._read_expected(config.getoption("--expected-failures"))
        ids = filter(None, config.getoption("--clauses").upper().split(","))
        self.selected = {re.sub(r"(?<=\d)[A-Z]$", lambda m: m[0].lower(), id) for id in ids}
        unknown = self.selected - {name for c in self.clauses.values() for name in names_of(c)}
        if unknown:
            raise pytest.UsageError(f"--clauses: there is no clause {', '.join(sorted(unknown))}")
        chosen = self.selected or any(config.getoption(o, "") for o in ("--lf", "-k", "-m"))
        self.partial = bool(chosen) or any("::" in argument for argument in config.args)
        # What is named in any of these ways is run, extended or not.
        self.takes_extended = self.partial or config.getoption("--all")
        self.no_scene = ""

    def _read_expected(self, path: str | None) -> dict[str, str]:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
        except OSError as error:
            raise pytest.UsageError(f"--expected-failures: {error}") from None
        entries = [line.split(None, 1) for line in lines if line.strip() and line.strip()[0] != "#"]
        for name, *reason in entries:
            if name not in self.clauses and name not in self.cases:
                raise pytest.UsageError(f"--expected-failures {path}: there is no clause {name}")
            if not reason:
                raise pytest.UsageError(f"--expected-failures {path}: {name} has no reason")
        return {name: reason.strip() for name, reason in entries}

    def _excuse(self, clause: Clause) -> str:
        return self.expected.get(clause.id) or self.expected.get(clause.parent, "")

    def _named(self, item: pytest.Item) -> list[Clause]:
        ids = [i for marker in item.iter_markers("clause") for i in marker.args]
        return [self.clauses[i] for i in ids if i in self.clauses]

    def _has_results(self) -> bool:
        return any(c.ran or c.skips or c.failures for c in self.clauses.values())

    def _binds(self, clause: Clause) -> bool:
        return not clause.reference or self.implementation_name == DEFAULT_IMPLEMENTATION

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Before -k and -m take effect: matches tests and clauses."""
        faults = []
        for item in items:
            if not item.path.is_relative_to(ROOT):
                continue
            ids = [i for marker in item.iter_markers("clause") for i in marker.args]
            for id in ids:
                if id in self.cases and id not in self.clauses:
                    faults.append(f"{item.nodeid} names {id}, which has cases: name one of them")
                elif id not in self.clauses:
                    faults.append(f"{item.nodeid} names {id}, no clause")
            if not ids and not any(map(item.get_closest_marker, ("of_suite", "benchmark_goal"))):
                faults.append(f"{item.nodeid} names no clause")
            for clause in self._named(item):  # for -k
                item.extra_keyword_matches.update(names_of(clause))
            if is_quick(item):
                item.add_marker("quick")
            for clause in self._named(item):
                clause.tests += 1
            if ids and not any(map(self._binds, self._named(item))):
                item.add_marker(pytest.mark.skip(reason="not applicable to this implementation"))
            if self.implementation_name != DEFAULT_IMPLEMENTATION:
                if not ids:
                    item.add_marker(pytest.mark.skip(reason="judges the suite"))
                if item.get_closest_marker("of_module"):
                    item.add_marker(pytest.mark.skip(reason="judges this project's module alone"))
        # The conformance tests first, and then those that take their time.
        items.sort(key=lambda item: item.path.parent == ROOT / "spec" / "tests")
        files = {*ROOT.glob("test_*.py"), *(ROOT / "spec" / "tests").glob("test_*.py")}
        self.partial |= not files <= {item.path for item in items}
        faults += unknown_defaults(items, self.partial)
        if not faults and not self.partial:
            without = [c.id for c in self.clauses.values() if c.level == "MUST" and not c.tests]
            faults += [f"MUST case {i} has no test" for i in without]
        if faults:
            raise pytest.UsageError("\n".join(faults))

        self._select(items)

    def _select(self, items: list[pytest.Item]) -> None:
        """By --clauses, and by --all."""
        chosen = items[:]
        if self.selected:
            wanted = {c.id for c in self.clauses.values() if names_of(c) & self.selected}
            chosen = [item for item in items if wanted & {c.id for c in self._named(item)}]
        elif not self.takes_extended:
            chosen = [item for item in items if not is_extended(item)]
        others = [item for item in items if item not in chosen]
        items[:] = chosen
        if others:
            others[0].config.hook.pytest_deselected(items=others)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """By -k, -m or --deselect."""
        self.partial = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo
    ) -> Iterator[pytest.TestReport]:
        """Notes the outcome for the test's clauses; excuses expected failures and a SHOULD's."""
        report = yield
        clauses = self._named(item)
        excuse = ""
        if report.failed and report.when == "call":
            excuse = next(filter(None, map(self._excuse, clauses)), "")
            # The module here excuses itself nothing.
            judged = self.implementation_name != DEFAULT_IMPLEMENTATION
            if not excuse and judged and all(c.level == SHOULD for c in clauses):
                excuse = SHOULD
        for clause in clauses:
            if report.failed and report.when != "setup":  # or as its wrappers are closed
                clause.failures.append((f"{sentence(item)}: {gist(call.excinfo)}", excuse))
            elif report.failed:  # a fixture's fault, and not the implementation's
                clause.skips.append(gist(call.excinfo))
            elif report.skipped and isinstance(report.longrepr, tuple):
                clause.skips.append(first_line(report.longrepr[2]).removeprefix("Skipped: "))
            clause.ran += report.when == "call" and not report.skipped
        if excuse:
            report.outcome = "skipped"
            report.wasxfail = excuse
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails the run for unexpected passes, and writes the report."""
        self.partial |= bool(session.shouldfail or session.shouldstop)
        if self.unexpected_passes() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.report_file and self._has_results():
            self._write_report(Path(self.report_file))

    def unexpected_passes(self) -> list[str]:
        """The expected failures that did not come, which only a whole run can tell."""
        passed = [i for i in self.expected if self.judge_whole(i)[0] == "pass"]
        return [] if self.partial else passed

    def judge_whole(self, id: str) -> tuple[str, str]:
        """Judge a clause by its cases, or one case: the worst result, and how many cases have it."""
        results = {i: self.judge(self.clauses[i]) for i in self.cases.get(id, [id])}
        if [*results] == [id]:
            return results[id]
        for worst in ("fail", "expected", "not run", "not applicable"):
            if found := [i for i, (result, _) in results.items() if result == worst]:
                return worst, f"{len(found)} of {len(results)} cases: {', '.join(found)}"
        return "pass", ""

    def judge(self, clause: Clause) -> tuple[str, str]:
        """The clause's result, and a line that says why it is not "pass"."""
        if not self._binds(clause):
            return "not applicable", "binds the module of this project only"
        if clause.failures:
            unexpected = [words for words, excuse in clause.failures if excuse in ("", SHOULD)]
            return ("fail", unexpected[0]) if unexpected else ("expected", clause.failures[0][1])
        if clause.ran:
            return "pass", ""
        return "not run", clause.skips[0] if clause.skips else ""

    def _left_out(self, clause: Clause) -> bool:
        """Whether the run was one of other clauses: by -k, or with or without the benchmarks."""
        is_benchmark = bool(clause.skips) and all(BENCHMARK in s for s in clause.skips)
        return not clause.ran and not clause.failures and (self.partial or is_benchmark)

    def _met(self, key: Callable[[Clause], str]) -> dict[str, str]:
        """How many of the cases that it is judged by are met, by a key of theirs."""
        results: dict[str, list[bool]] = {}
        for clause in self.clauses.values():
            if self._binds(clause) and not self._left_out(clause):
                results.setdefault(key(clause), []).append(self.judge(clause)[0] == "pass")
        return {name: f"{sum(passed)}/{len(passed)}" for name, passed in results.items()}

    def totals(self) -> str:
        """The summary line."""
        met = self._met(lambda clause: clause.source)
        words = ", ".join(
            f"{source}: {met.get(source, '0/0')} cases" for source in ("documented", "resolved")
        )
        return f"{words} (of the cases that this run selects)" if self.partial else words

    def groups(self) -> dict[str, str]:
        """The same for each group of clauses, such as FILE."""
        return self._met(lambda clause: clause.id.partition("-")[0])

    def about(self) -> dict[str, str]:
        """What is judged, and with what."""
        module = sys.modules[self.implementation.__module__]
        package = sys.modules[module.__name__.partition(".")[0]]
        version = getattr(module, "__version__", None) or getattr(package, "__version__", None)
        if not version:
            names = importlib.metadata.packages_distributions().get(package.__name__)
            version = importlib.metadata.version(names[0]) if names else "without a version"
        return {
            "implementation": self.implementation_name,
            "version": version,
            "file": str(module.__file__),
            "implements": getattr(module, "__spec_version__", "no version of the specification"),
            "specification": self.spec_version,
            "Genesis": installed("genesis-world"),
            "torch": installed("torch"),
            "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
            "Python": ".".join(map(str, sys.version_info[:3])),
        }

    def pytest_report_header(self) -> list[str]:
        """`about`, which does not import Genesis for it."""
        return [", ".join(f"{name}: {value}" for name, value in self.about().items())]

    def _write_report(self, path: Path) -> None:
        rows = []
        for clause in self.clauses.values():
            if clause.id == self.cases[clause.parent][0] != clause.parent:
                result, why = self.judge_whole(clause.parent)
                row = {"id": clause.parent, "level": "", "source": ""}
                rows.append(row | {"result": result, "why": why})
            result, why = self.judge(clause)
            row = {"id": clause.id, "level": clause.level, "source": clause.source}
            rows.append(row | {"result": result, "why": why})
        if path.suffix == ".json":
            report = self.about() | {
                "totals": self.totals(),
                "groups": self.groups(),
                "clauses": rows,
            }
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            return
        lines = [f"- {name}: {value}" for name, value in self.about().items()]
        lines += ["", self.totals(), "", "| group | cases met |", "|---|---|"]
        lines += [f"| {group} | {met} |" for group, met in self.groups().items()]
        lines += ["", "| clause | level | source | result | why |"]
        lines.append("|---|---|---|---|---|")
        for row in rows:
            lines.append("| " + " | ".join(v.replace("|", "\\|") for v in row.values()) + " |")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The clauses that are not passed, and the totals."""
        if not self._has_results():
            return
        terminalreporter.section(f"{self.implementation_name} by the clauses of spec/README.md")
        for clause in self.clauses.values():
            result, why = self.judge(clause)
            if result not in ("pass", "not applicable") and not self._left_out(clause):
                line = f"{clause.id:9} {clause.level:6} {clause.source:10} {result:14} {why}"
                terminalreporter.write_line(line.rstrip(), red=result == "fail")
        others = [c.id for c in self.clauses.values() if not self._binds(c)]
        if others:
            line = (
                f"not applicable, for they bind the module of this project only: {' '.join(others)}"
            )
            terminalreporter.write_line(line)
        for name in self.unexpected_passes():
            line = f"UNEXPECTED PASS: {name}, expected to fail: {self.expected[name]}"
            terminalreporter.write_line(line, red=True, bold=True)
        if self.no_scene:
            line = f"THE REAL SCENE WAS NOT RUN: {self.no_scene}"
            terminalreporter.write_line(line, red=True, bold=True)
        terminalreporter.write_line(self.totals())


def names_of(clause: Clause) -> set[str]:
    """The names that select it: its id, its clause's and its group's."""
    return {clause.id, clause.parent, clause.id.partition("-")[0]}


def sentence(item: pytest.Item) -> str:
    """A test's name, which says what was wanted."""
    name, _, parameters = item.name.removeprefix("test_").partition("[")
    return name.replace("_", " ") + (f" [{parameters}" if parameters else "")


def gist(error: pytest.ExceptionInfo) -> str:
    """What was wanted and what came, in a line: in the test's own words, or by its comparison."""
    text = error.exconly().removeprefix("AssertionError: ").removeprefix("Failed: ")
    if found := re.search(r"Expected regex: (.*)\n\s*(?:Actual message|Input): (.*)", text):
        return first_line(f"a message with {found[1]} was wanted, and it is {found[2]}")
    if text.startswith("DID NOT RAISE"):
        return first_line(
            f"{text.removeprefix('DID NOT RAISE ')} was wanted, and nothing was raised"
        )
    line = first_line(text)
    if re.match(r"assert [^(]", text) and line.count(" == ") == 1:
        came, wanted = line.removeprefix("assert ").split(" == ")
        return f"{wanted} was wanted, and there was {came}"
    return line


# Fixtures of tests that start processes, or take a scene, and so their time.
SLOW = {"genesis", "new_stage", "python", "real_scene", "reproducible", "script", "start", "turns"}


def is_quick(item: pytest.Item) -> bool:
    """Whether the test belongs to `-m quick`: on a fake env and in this process."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    fixtures = {*item.fixturenames} - {*parameters}  # one of which may be named "start", say
    is_slow = SLOW.intersection(fixtures) or parameters.get("world") == "genesis"
    return item.path == ROOT / "test_video_wrapper.py" and not is_slow


def is_extended(item: pytest.Item) -> bool:
    """Tell whether the default run leaves the test out.

    `@pytest.mark.extended` leaves out all of a test, or of a module. With `default=[...]`, the
    default run has these of its parameters' ids.
    """
    marker = item.get_closest_marker("extended")
    if not marker:
        return False
    return not (hasattr(item, "callspec") and item.callspec.id in marker.kwargs.get("default", ()))


def unknown_defaults(items: list[pytest.Item], is_partial: bool) -> list[str]:
    """Name the ids that `extended(default=...)` lists and no test has, if all tests are there."""
    defaults, ids = {}, {}
    for item in items:
        if (marker := item.get_closest_marker("extended")) and hasattr(item, "callspec"):
            name = item.nodeid.partition("[")[0]
            defaults[name] = set(marker.kwargs.get("default", ()))
            ids.setdefault(name, set()).add(item.callspec.id)
    lost = {name: sorted(wanted - ids[name]) for name, wanted in defaults.items()}
    return [] if is_partial else [f"{n} has no parameters {ws}" for n, ws in lost.items() if ws]


class TimeLimit:
    """Ends a test that hangs, so that the others and the report come all the same."""

    def __init__(self, config: pytest.Config) -> None:
        self.seconds = config.getoption("--time-limit")

    @contextlib.contextmanager
    def _limit(self, item: pytest.Item) -> Iterator[None]:
        # The others start processes that are timed, train, or measure.
        seconds = self.seconds if is_quick(item) else 20 * self.seconds

        def end(*_: Any) -> None:
            pytest.fail(f"it has not ended after {seconds:g} s", pytrace=False)

        before = signal.signal(signal.SIGALRM, end)
        # Once more each second, for what catches the first.
        signal.setitimer(signal.ITIMER_REAL, seconds, 1)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        """Its fixtures, one of which makes a recording."""
        with self._limit(item):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """The test itself."""
        with self._limit(item):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        """Where its wrappers are closed."""
        with self._limit(item):
            return (yield)


# A process of its own, since Genesis compiles for minutes and lets no other thread of Python run.
TELLER = """
import sys, threading, time
name, start, told = "", 0.0, 0.0
def read():
    global name, start
    for line in sys.stdin:
        name, start = line.strip(), time.monotonic()
reader = threading.Thread(target=read, daemon=True)
reader.start()
while reader.is_alive():
    reader.join(0.5)
    now = time.monotonic()
    if name and now - max(start, told) >= 10:
        told = now
        print(f"\\n{name} has run for {now - start:.0f} s", flush=True)
"""


class Progress:
    """Says every ten seconds which test is at work, with its fixtures, one of which builds a scene."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", TELLER]
        self._teller = subprocess.Popen(
            command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def _tell(self, name: str) -> None:
        with contextlib.suppress(OSError):  # somebody has killed it
            self._teller.stdin.write(f"{name}\n".encode())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        """A test."""
        self._tell(item.name)
        try:
            return (yield)
        finally:
            self._tell("")

    def pytest_unconfigure(self) -> None:
        """The end of the run."""
        self._teller.stdin.close()
        self._teller.wait()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The suite's own options."""
    # As separate words, pytest takes a FILE that exists for tests before it knows these options.
    group = parser.getgroup("conformance", "conformance (write --option=value as one word)")
    name = "package.module:Class"
    default = os.environ.get("VIDEO_WRAPPER_IMPLEMENTATION", DEFAULT_IMPLEMENTATION)
    text = "the class to judge (default: $VIDEO_WRAPPER_IMPLEMENTATION, or the module here)"
    group.addoption("--implementation", metavar=name, default=default, help=text)
    default = os.environ.get("VIDEO_WRAPPER_ENV_BASE", "")
    text = "a base class that it demands of the env (default: $VIDEO_WRAPPER_ENV_BASE)"
    group.addoption("--env-base", metavar=name, default=default, help=text)
    text = "write the result of each clause to this .json or .md file"
    group.addoption("--conformance-report", metavar="FILE", help=text)
    text = "lines of a clause's id and a reason: its tests may fail, and one of them has to"
    group.addoption("--expected-failures", metavar="FILE", help=text)
    text = "run the tests of these clauses only, such as TIME-4a,TRIG-3,FILE (-k TIME-4 is not as exact)"
    group.addoption("--clauses", metavar="IDS", default="", help=text)
    text = "run the extended tests too, not only the default selection"
    group.addoption("--all", action="store_true", help=text)
    text = "where Genesis simulates in the tests with a real scene (default: cpu)"
    group.addoption("--genesis-backend", choices=["cpu", "gpu"], default="cpu", help=text)
    text = "how long a quick test may take (default: 120); the others, 20 times as long"
    group.addoption("--time-limit", metavar="SECONDS", type=float, default=120, help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Starts the suite."""
    # Child processes read it, too.
    os.environ["VIDEO_WRAPPER_GENESIS_BACKEND"] = config.getoption("--genesis-backend")
    if config.getoption("numprocesses", None) or config.getoption("tx", None):
        words = "the report by clause needs all tests in one process: run them without -n"
        raise pytest.UsageError(words)
    config.addinivalue_line("markers", "clause(*ids): the clauses of spec/README.md that it tests")
    config.addinivalue_line("markers", "benchmark_goal: measures a goal, and judges no clause")
    config.addinivalue_line("markers", "of_suite: judges the suite, and no implementation")
    config.addinivalue_line("markers", "of_module: judges parts of this project's module alone")
    text = "extended(default=()): run with --all only, but for these ids of its parameters"
    config.addinivalue_line("markers", text)
    config.addinivalue_line("markers", "quick: on a fake env, without processes; set by itself")
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as where a shell runs it in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "setitimer"):  # not on Windows
        config.pluginmanager.register(TimeLimit(config))
    config.pluginmanager.register(Progress())
    config.stash[SUITE] = Suite(config)
    config.pluginmanager.register(config.stash[SUITE])
    config.pluginmanager.register(Costs(config))


class Costs:
    """Leaves the benchmarks to --benchmark-only, and prints what they measured."""

    def __init__(self, config: pytest.Config) -> None:
        config.option.benchmark_skip = True  # which --benchmark-only overrules
        config.option.benchmark_quiet = True  # its table has times, not ratios
        self.rows: dict[str, list[str]] = {}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A table for each group."""
        for group, rows in self.rows.items():
            terminalreporter.section(group)
            for row in rows:
                terminalreporter.write_line(row)
