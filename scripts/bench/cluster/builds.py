"""Checkouts of this repository side by side: each in a process of its own that does as it is asked.

A script that measures both calls `Build` for each checkout, and `serve` in the process that this
starts of the same script. Requests are answered one at a time, so that builds take turns.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parents[3]
SERVE = "--serve"


class Build:
    """A script's process under the code of a checkout."""

    def __init__(self, script: str, checkout: Path = HERE, options: Sequence[str] = ()) -> None:
        if not (checkout / "search" / "stepsearch").is_dir():
            raise SystemExit(f"{checkout} is no checkout of this repository")
        paths = os.pathsep.join(str(checkout / half) for half in ("search", "sampler"))
        self._process = subprocess.Popen(
            [sys.executable, script, SERVE, *options],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """What the process answers; it waits until then."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a process of {' '.join(self._process.args[1:])} died")
        return json.loads(answer)

    def __enter__(self) -> "Build":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def builds(stack: ExitStack, script: str, against: Path | None) -> dict[str, Build]:
    """This build, and where another checkout is given, that one; they end with the stack."""
    checkouts = {"this build": HERE} | ({"that build": against} if against else {})
    return {k: stack.enter_context(Build(script, place)) for k, place in checkouts.items()}


def serve(answer: Callable[[Mapping[str, Any]], Any]) -> None:
    """Answer requests until nobody asks any more; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


def turns(names: Sequence[str], rounds: int) -> list[list[str]]:
    """Who measures when: A B, B A, …"""
    return [list(names)[:: 1 if k % 2 == 0 else -1] for k in range(rounds)]


def scheduled(task: str = "/proc/thread-self") -> tuple[float, float]:
    """Seconds that a thread computed, and that it was ready and others ran (Linux)."""
    computed, waited, _ = Path(f"{task}/schedstat").read_text().split()
    return int(computed) / 1e9, int(waited) / 1e9


def clock() -> float:
    """Seconds, in which this thread's waits for a core do not count: those of a quiet machine."""
    return time.monotonic() - scheduled()[1]


def interval(values: Sequence[float]) -> str:
    """The median, with a bootstrap 95 % interval."""
    known = np.array(values)
    draws = np.median(np.random.default_rng(0).choice(known, (5000, len(known))), 1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{np.median(known):.4g} [{low:.4g}, {high:.4g}]"


def report(what: str, values: Sequence[float], wanted: str) -> None:
    print(f"{what}: {interval(values)}, wanted {wanted}", flush=True)
