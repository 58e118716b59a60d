"""Run code in processes of its own, watch them, and send signals."""

from __future__ import annotations

import contextlib
import functools
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
from typing import Any
from unittest.mock import Mock

import pytest

from spec.suite import ROOT
from spec.suite.child import Harness, children, encoders

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it needs /proc")


def check_end(result: Any) -> None:
    """Assert that the process ended with exit status 0, and show its last error if not."""
    printed = (result.stderr.strip() or result.stdout.strip()).splitlines()[-60:]
    errors = [t for t in printed if re.match(r"[\w.]*(Error|Interrupt|Exception|Warning)(:|$)", t)]
    last = (errors or printed or ["it printed nothing"])[-1]
    words = f"exit code {result.returncode}, expected 0: {last}"
    assert result.returncode == 0, "\n".join([words, *printed])


def wait_until(condition: Callable[[], Any], seconds: float = 100, what: str = "the event") -> None:
    """Check the condition again and again. Raise AssertionError when the time is over."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not come in {seconds:g} s"
        time.sleep(0.005)


def wait_for_ends(pids: list[int]) -> None:
    """Wait until none of these processes runs. One that nobody has waited for yet does not."""

    def lives(pid: int) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    wait_until(lambda: not any(map(lives, pids)))


def signal_encoders(number: int) -> set[int]:
    """Send a signal to the encoders of this process, which a thread may still be starting."""
    try:
        wait_until(encoders, seconds=2)
    except AssertionError:
        pytest.skip("its encoder is not a process that could get a signal")
    for pid in (found := encoders()):
        os.kill(pid, number)
    return found


@contextlib.contextmanager
def stopped_encoder(seconds: float) -> Iterator[None]:
    """Stop the encoder of this process for so many seconds."""
    found = signal_encoders(signal.SIGSTOP)
    timer = threading.Timer(seconds, lambda: [os.kill(pid, signal.SIGCONT) for pid in found])
    timer.start()
    yield
    timer.join()


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread start, as Python does from 3.12 on while it exits."""
    refuse = Mock(side_effect=RuntimeError("can't start new thread"))
    monkeypatch.setattr("_thread.start_new_thread", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)


# Ctrl-C is ignored, without a handler of Python's, if the suite runs in the background. leave()
# ends a forked child as sys.exit() does, but without the destructors of C++ libraries, because some
# libraries do not survive them there. The alarm ends a forked child that hangs.
SCRIPT = """
import atexit, os, signal, sys, time
from pathlib import Path
from spec.suite import fake_env, video_reader
from spec.suite.child import Harness, children, encoders, load, warned
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, implementation, base = sys.argv[1:]
if base:
    from spec.suite import harness
base = harness.env_class(fake_env.FakeEnv, load(base)) if base else fake_env.FakeEnv
world = Harness(Path(folder), load(implementation), base)
never, first_only = (lambda n: False), (lambda n: n == 0)
leave = lambda: (atexit._run_exitfuncs(), os._exit(0))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: signal.alarm(100))
"""


class Job:
    """A process of this Python, while its test watches it and sends signals."""

    def __init__(self, arguments: tuple[str, ...], variables: dict[str, str]) -> None:
        path = os.pathsep.join([os.getcwd(), str(ROOT), *filter(None, sys.path)])
        # Files instead of pipes, because a forked child that lives on would keep a pipe open.
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-u", *([] if arguments[0].endswith(".py") else ["-c"]), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
            env={**os.environ, "PYTHONPATH": path, **variables},
            start_new_session=True,
        )

    def _printed(self) -> list[str]:
        files = [file.fileno() for file in self._files]  # whose positions are the process's
        return [os.pread(f, os.fstat(f).st_size, 0).decode(errors="replace") for f in files]

    @property
    def output(self) -> str:
        """Everything that it has printed so far."""
        return "".join(self._printed())

    def wait_for(self, words: str) -> None:
        """Wait until it prints this."""
        wait_until(lambda: words in self.output or self.process.poll() is not None)
        assert words in self.output, f"it ended without {words!r}: {self.output[-2000:]}"

    def wait(self, seconds: float = 100) -> int:
        """Wait for its end, note what it printed, and return the exit status."""
        wait_until(lambda: self.process.poll() is not None, seconds)
        self.returncode = self.process.returncode
        self.stdout, self.stderr = self._printed()
        return self.returncode

    def processes(self) -> list[int]:
        """Return all of its processes, Python first."""
        found = [self.process.pid]
        for pid in found:
            found += children(pid)
        return found

    def encoder(self) -> int:
        """Return the one process that its Python has while it records."""
        found = self.processes()[1:]
        if not found:
            pytest.skip("its encoder is not a process that could be stopped")
        assert len(found) == 1, f"it has {len(found)} processes"
        return found[0]

    def send(self, number: int, *pids: int) -> None:
        """Send a signal to these processes, or else to all, with its Python last."""
        for pid in pids or reversed(self.processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@pytest.fixture
def start_python() -> Iterator[Callable[..., Job]]:
    """Start this Python on a file (*.py) or on code; keywords are environment variables."""
    jobs: list[Job] = []

    def run(*arguments: str, timeout: float = 0, **variables: str) -> Job:
        jobs.append(Job(arguments, variables))
        if timeout:
            jobs[-1].wait(timeout)
        return jobs[-1]

    yield run
    for job in jobs:
        job.send(signal.SIGKILL)
        job.wait()


@pytest.fixture
def python(start_python: Any) -> Callable[..., Job]:
    """Run this Python as `start_python` does, until it ends."""
    return functools.partial(start_python, timeout=600)


@pytest.fixture
def start(suite: Any, tmp_path: Path, start_python: Any) -> Callable[..., Job]:
    """Start code behind `SCRIPT`, with the fake env as `world`; keywords are as there."""

    def run(code: str, **keywords: Any) -> Job:
        slow = [n for n in ("harness", "genesis_scenes", "processes") if f"{n}." in code]
        imports = "".join(f"from spec.suite import {name}\n" for name in slow)
        path, folder = tmp_path / "script.py", tmp_path / "videos"
        path.write_text(imports + SCRIPT + textwrap.dedent(code), encoding="utf-8")
        names = (suite.implementation_name, suite.env_base_name)
        job = start_python(str(path), str(folder), *names, **keywords)
        job.world = Harness(folder, suite.implementation)  # which reads its videos
        return job

    return run


@pytest.fixture
def script(start: Any) -> Callable[..., Job]:
    """Run code as `start` does, until it ends."""
    return functools.partial(start, timeout=600)
