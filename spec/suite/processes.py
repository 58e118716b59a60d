"""Run code in processes of its own, watch them, and send signals."""

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
from spec.suite.child import children, encoders
from spec.suite.fake_env import FakeEnv
from spec.suite.harness import Harness

if TYPE_CHECKING:
    from spec.suite.plugin import Suite


def check_end(result: Any, code: int = 0) -> None:
    """Assert that the process ended with this exit status, and show its last error if not."""
    printed = (result.stderr.strip() or result.stdout.strip()).splitlines()[-60:]
    errors = [t for t in printed if re.match(r"[\w.]*(Error|Interrupt|Exception|Warning)(:|$)", t)]
    last = (errors or printed or ["it printed nothing"])[-1]
    words = f"exit code {result.returncode}, expected {code}: {last}"
    assert result.returncode == code, "\n".join([words, *printed])


def run_python(*arguments: str, timeout: float = 600, **options: Any) -> Any:
    """Run this Python on a file or, if the first argument does not end in .py, on code.

    Args:
        *arguments: The file or code, and its arguments.
        timeout: Seconds after which it is killed and the test fails.
        **options: start_new_session is for subprocess, the others are environment variables.

    Returns:
        An object with returncode, stdout and stderr.
    """
    session = options.pop("start_new_session", False)
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, *([] if arguments[0].endswith(".py") else ["-c"]), *arguments]
    # Files instead of pipes, because a forked child that lives on would keep a pipe open.
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
    """Return code that runs a file with arguments in so many processes of torchrun."""
    words = ["--standalone", "--nproc-per-node", str(ranks), *arguments]
    return f"from torch.distributed.run import main; main({words!r})"


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds ffmpeg in /proc"
)


def lives(pid: int) -> bool:
    """Return whether the process runs. One that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(
    condition: Callable[[], Any], seconds: float = 100, what: str = "what was waited for"
) -> None:
    """Check the condition again and again. Raise AssertionError when the time is over."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not come in {seconds:g} s"
        time.sleep(0.005)


def wait_for_ends(pids: list[int]) -> None:
    """Wait until none of these processes runs."""
    wait_until(lambda: not any(map(lives, pids)), what="the end of the processes")


@contextlib.contextmanager
def stopped_encoder(seconds: float) -> Iterator[None]:
    """Stop the encoder of this process for so many seconds."""
    found = encoders()
    if not found:
        pytest.skip("its encoder is not a process that could be stopped")
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, lambda: [os.kill(pid, signal.SIGCONT) for pid in found])
    timer.start()
    yield
    timer.join()


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread start, as Python does from 3.12 on while it exits."""

    def refuse(*arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)


# Ctrl-C is ignored, without a handler of Python's, if the suite runs in the background. leave()
# ends a forked child as sys.exit() does, but without the destructors of C++ libraries, because some
# libraries do not survive them there. The alarm ends a forked child that hangs.
SCRIPT = """
import atexit, os, signal, sys, time
from pathlib import Path
from spec.suite import fake_env, video_reader
from spec.suite.child import World, children, encoders, load, warned
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, implementation, base = sys.argv[1:]
base = {env_class}
world = World(Path(folder), load(implementation), base)
never, first_only = (lambda n: False), (lambda n: n == 0)
leave = lambda: (atexit._run_exitfuncs(), os._exit(0))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: signal.alarm(100))
"""


def whole_script(code: str, suite: Suite) -> str:
    """Put what all scripts need before the code: without torch, unless the code needs more."""
    code = textwrap.dedent(code)
    slow = [n for n in ("harness", "genesis_scenes", "processes") if re.search(rf"\b{n}\.", code)]
    if suite.env_base and "harness" not in slow:
        slow.append("harness")
    imports = "".join(f"from spec.suite import {name}\n" for name in slow)
    is_based = "harness.env_class(fake_env.FakeEnv, load(base))"
    return (
        imports + SCRIPT.format(env_class=is_based if suite.env_base else "fake_env.FakeEnv") + code
    )


def arguments_of(suite: Suite, folder: Path) -> list[str]:
    """Return the arguments that `SCRIPT` reads."""
    return [str(folder), suite.implementation_name, suite.env_base_name]


@pytest.fixture
def python() -> Callable[..., Any]:
    """`run_python`."""
    return run_python


@pytest.fixture
def script(suite: Suite, tmp_path: Path) -> Callable[..., Any]:
    """Run code in a process that has a fake `world`; the result's `world` reads the videos."""

    def run(code: str, timeout: float = 120, ranks: int = 0, **options: Any) -> Any:
        folder = tmp_path / "videos"
        arguments = arguments_of(suite, folder)
        code = whole_script(code, suite)
        if ranks:
            (tmp_path / "rank.py").write_text(code)
            code = torchrun(ranks, str(tmp_path / "rank.py"), *arguments)
        result = run_python(code, *arguments, timeout=timeout, **options)
        result.world = Harness("fake", folder, suite.implementation, FakeEnv)
        return result

    return run


class Job:
    """A process that runs code as `script` does, while its test watches it and sends signals.

    Attributes:
        world: Reads its videos.
        process: Its Python.
    """

    def __init__(self, path: Path, arguments: list[str], world: Harness, **options: str) -> None:
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
        """Everything that it has printed so far."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, words: str) -> None:
        """Wait until it prints this."""
        wait_until(lambda: words in self.output or self.process.poll() is not None)
        assert words in self.output, f"it ended without {words!r}: {self.output[-2000:]}"

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

    def wait(self) -> int:
        """Wait for its end, and return the exit status."""
        wait_until(lambda: self.process.poll() is not None)
        return self.process.returncode

    def stop(self) -> None:
        """Kill all of its processes."""
        self.send(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(suite: Suite, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Start code, in a file of its own, as a `Job`; options are environment variables."""
    jobs = []

    def run(code: str, **options: str) -> Job:
        path, folder = tmp_path / f"job{len(jobs)}.py", tmp_path / "videos"
        path.write_text(whole_script(code, suite), encoding="utf-8")
        world = Harness("fake", folder, suite.implementation, FakeEnv)
        jobs.append(Job(path, arguments_of(suite, folder), world, **options))
        return jobs[-1]

    yield run
    for job in jobs:
        job.stop()
