"""A terminal of 80 columns wraps lines of the tables and cuts nothing off."""

import io

import numpy as np
from rich.console import Console

from stepsearch.compare.table import Result, table
from stepsearch.metrics.distance import Score


def test_every_number_is_there_in_80_columns():
    generator = np.random.default_rng(0)
    names = ("fd_texture128_40", "kid_texture128_40", "fd_lite0128_40")
    entries = [
        {"name": name, "steps": 4, "passes": 6.0, "notes": []}
        for name in ("tiny-3-steps.schedule", "DPMSolverMultistep, 20 steps, trailing, w 2")
    ]
    scores = [{n: Score(69.0 + k, generator.normal(69, 9, 20)) for n in names} for k in range(2)]
    view = table(Result(40, range(40), entries, scores))
    shown = {}
    for width in (80, 200):
        console = Console(width=width, file=io.StringIO())
        console.print(view)
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        shown[width] = sorted("".join(c for c in text if c.isalnum()))
    assert shown[80] == shown[200]
