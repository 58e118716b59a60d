"""Time candidates that take turns, for the benchmarks."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spec.suite.plugin import Costs


class Turns:
    """Times candidates that take turns, so that all see the same machine."""

    def __init__(self, benchmark: Any, rows: list[str]) -> None:
        self._benchmark = benchmark
        self._rows = rows

    def run(
        self, rounds: int, pause: float = 0, **candidates: Callable[[], Any]
    ) -> dict[str, np.ndarray]:
        """Return the seconds of each candidate by round, with a pause before each round.

        The last candidate is the benchmark's own. Each round is shuffled: in a fixed order, the
        same candidate would pay for what repeats every few calls, and for what another leaves.
        """
        target = list(candidates)[-1]
        times: dict[str, list[float]] = {name: [] for name in candidates}
        order = list(candidates)
        shuffle = random.Random(0).shuffle

        def take_turns(names: list[str]) -> None:
            for name in names:
                start = time.perf_counter()
                candidates[name]()
                times[name].append(time.perf_counter() - start)

        def before() -> None:
            time.sleep(pause)
            shuffle(order)
            take_turns(order[: order.index(target)])

        def after() -> None:
            take_turns(order[order.index(target) + 1 :])

        self._benchmark.pedantic(
            candidates[target], setup=before, teardown=after, rounds=rounds, warmup_rounds=1
        )
        times = {name: values[1:] for name, values in times.items()}
        times[target] = self._benchmark.stats.stats.data
        return {name: np.array(values) for name, values in times.items()}

    def report(self, name: str, goal: str = "", **figures: str) -> None:
        """Add a row to the group's table."""
        self._benchmark.extra_info.update(figures)
        words = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in figures.items())
        self._rows.append(f"{name:44} {words}{goal and f' (goal: {goal})'}")


@pytest.fixture
def turns(benchmark: Any, request: pytest.FixtureRequest) -> Turns:
    """Return `Turns` for the benchmark's group."""
    (costs,) = [p for p in request.config.pluginmanager.get_plugins() if isinstance(p, Costs)]
    return Turns(benchmark, costs.rows.setdefault(benchmark.group, []))
