"""Run code in processes of its own, look on, and send signals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from spec.suite import ROOT
from spec.suite.fake_env import FakeEnv
from spec.suite.harness import Harness

if TYPE_CHECKING:
    from spec.suite.plugin import Suite


def check_end(result: Any, code: int = 0) -> None:
    """That the process ended so; what it printed last as its error says why it did not."""
    printed = (result.stderr.strip() or result.stdout.strip()).splitlines()[-60:]
    errors = [t for t in printed if re.match(r"[\w.]*(Error|Interrupt|Exception|Warning)(:|$)", t)]
    last = (errors or printed or ["it printed nothing"])[-1]
    words = f"its process ended with {result.returncode}, and not {code}: {last}"
    assert result.returncode == code, "\n".join([words, *printed])


def run_python(*arguments: str, timeout: float = 600, **options: Any) -> Any:
    """Runs this Python on a file or, if the first argument does not end in .py, on code.

    Args:
        *arguments: The file or code, and what it is given.
        timeout: Seconds after which it is killed and the test fails.
        **options: start_new_session goes to subprocess, the others are environment variables.

    Returns:
        An object with returncode, stdout and stderr.
    """
    session = options.pop("start_new_session", False)
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, *([] if arguments[0].endswith(".py") else ["-c"]), *arguments]
    # Files and no pipes, which a forked child that lives on would keep open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": path, **options},
                timeout=timeout,
                start_new_session=session,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the process had not ended after {timeout} s") from None
        out.seek(0)
        err.seek(0)
        return SimpleNamespace(returncode=code, stdout=out.read(), stderr=err.read())


def torchrun(ranks: int, *arguments: str) -> str:
    """Code that runs a file, and what it is given, in so many processes of torchrun."""
    words = ["--standalone", "--nproc-per-node", str(ranks), *arguments]
    return f"from torch.distributed.run import main; main({words!r})"


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds ffmpeg in /proc"
)


def encoders(parent: int | None = None) -> set[int]:
    """The ffmpeg processes that a process, or this one, has started and not yet waited for."""
    found, parent = set(), parent or os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        if "ffmpeg" in name and int(fields.split()[1]) == parent:
            found.add(int(stat.parent.name))
    return found


@contextlib.contextmanager
def stopped_encoder(seconds: float) -> Iterator[None]:
    """The encoder of this process stands still, for so many seconds."""
    found = encoders()
    if not found:
        pytest.skip("its encoder is no process that could be stopped")
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, lambda: [os.kill(pid, signal.SIGCONT) for pid in found])
    timer.start()
    yield
    timer.join()


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no thread start, as Python from 3.12 on while it exits."""

    def refuse(*arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)


# Where the suite runs in the background, Ctrl-C is ignored and Python sets up no handler for it.
# leave() ends a forked child as sys.exit() does, less the destructors of C++ libraries, which some
# that an implementation imports do not survive there. A child that hangs, in them or in what is
# judged, would outlive the suite: the alarm ends it.
SCRIPT = """
import atexit, os, signal, sys, time
from pathlib import Path
from spec.suite import fake_env, genesis_scenes, harness, processes, video_reader
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, implementation, base, first, last = sys.argv[1:]
video_reader.Shown.drift = int(first), int(last)
base = harness.env_class(fake_env.FakeEnv, base and harness.load(base))
world = harness.Harness("fake", Path(folder), harness.load(implementation), base)
never, first_only = (lambda n: False), (lambda n: n == 0)
leave = lambda: (atexit._run_exitfuncs(), os._exit(0))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: signal.alarm(100))
"""


@pytest.fixture
def python() -> Callable[..., Any]:
    """`run_python`."""
    return run_python


@pytest.fixture
def script(suite: Suite, tmp_path: Path, measured_drift: tuple[int, int]) -> Callable[..., Any]:
    """Runs code in a process that has a fake `world`; the result's `world` reads the videos."""

    def run(code: str, timeout: float = 120, ranks: int = 0, **options: Any) -> Any:
        folder = tmp_path / "videos"
        given = (suite.implementation_name, suite.env_base_name, *map(str, measured_drift))
        code = SCRIPT + textwrap.dedent(code)
        if ranks:
            (tmp_path / "rank.py").write_text(code)
            code = torchrun(ranks, str(tmp_path / "rank.py"), str(folder), *given)
        result = run_python(code, str(folder), *given, timeout=timeout, **options)
        result.world = Harness("fake", folder, suite.implementation, FakeEnv)
        return result

    return run


class Job:
    """A process that runs code as `script` does, while its test looks on and sends signals.

    Attributes:
        world: Reads its videos.
        process: Its Python.
    """

    def __init__(
        self, path: Path, arguments: tuple[str, ...], world: Harness, **options: str
    ) -> None:
        self.world = world
        self._output = path.with_suffix(".out")
        places = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        command = [sys.executable, "-u", str(path), *arguments]
        env = {**os.environ, "PYTHONPATH": places, **options}
        with open(self._output, "ab") as out, open(os.devnull, "rb") as nothing:
            self.process = subprocess.Popen(
                command, stdin=nothing, stdout=out, stderr=out, env=env, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has said so far, to both of its outputs."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, words: str) -> None:
        """Waits until it says this."""
        wait_until(lambda: words in self.output or self.process.poll() is not None)
        assert words in self.output, f"it ended without {words!r}: {self.output[-2000:]}"

    def processes(self) -> list[int]:
        """All of its processes, Python first."""
        found = [self.process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):  # which has just ended
                    found += map(int, children.read_text().split())
        return found

    def send(self, number: int, *pids: int) -> None:
        """Sends a signal to these, or else to all, its Python last."""
        for pid in pids or reversed(self.processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self) -> int:
        """Waits for its end, and returns the exit status."""
        wait_until(lambda: self.process.poll() is not None)
        return self.process.returncode

    def stop(self) -> None:
        """Leaves none of its processes."""
        self.send(signal.SIGKILL)
        self.process.wait()


def wait_until(
    condition: Callable[[], Any], seconds: float = 100, what: str = "what was waited for"
) -> None:
    """Looks again and again. Raises AssertionError if the time is over."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} has not come in {seconds:g} s"
        time.sleep(0.005)


@pytest.fixture
def start(
    suite: Suite, tmp_path: Path, measured_drift: tuple[int, int]
) -> Iterator[Callable[..., Job]]:
    """Starts code, a file of its own, as a `Job`; options are environment variables."""
    jobs = []

    def run(code: str, **options: str) -> Job:
        path, folder = tmp_path / f"job{len(jobs)}.py", tmp_path / "videos"
        path.write_text(SCRIPT + textwrap.dedent(code), encoding="utf-8")
        given = (suite.implementation_name, suite.env_base_name, *map(str, measured_drift))
        world = Harness("fake", folder, suite.implementation, FakeEnv)
        jobs.append(Job(path, (str(folder), *given), world, **options))
        return jobs[-1]

    yield run
    for job in jobs:
        job.stop()
