"""What a run has spent, kept in a file: network passes and CPU seconds of each piece of work."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from stepsearch.paths import write_whole


class Spent:
    """Sums by the names of the work; a killed run goes on from what the file says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, dict] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def on(self, work: str) -> Iterator[None]:
        """Add the CPU seconds inside to those of `work`, also where it ends too early."""
        before = cpu_seconds()
        try:
            yield
        finally:
            row = self.known.setdefault(work, {"passes": 0, "seconds": 0.0})
            row["seconds"] += cpu_seconds() - before
            self._write()

    def passes(self, work: str, passes: float) -> None:
        """That `work` took so many, all in all."""
        self.known.setdefault(work, {"passes": 0, "seconds": 0.0})["passes"] = round(passes)
        self._write()

    def of(self, *works: str) -> dict:
        """Passes and seconds of some pieces of work together."""
        rows = [self.known[work] for work in works if work in self.known]
        return {key: sum(row[key] for row in rows) for key in ("passes", "seconds")}

    def _write(self) -> None:
        text = json.dumps(self.known, indent=1)
        write_whole(self.path, partial(Path.write_text, data=text, encoding="utf-8"))


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(each.ru_utime + each.ru_stime for each in used)
