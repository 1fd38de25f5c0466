"""The tables: 80 columns wrap lines and cut nothing off, and what nobody has is not shown."""

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


def test_of_files_alone_neither_steps_nor_seeds_are_shown():
    files = {"name": "photos", "steps": None, "passes": None, "notes": []}
    made = {"name": "six", "steps": 4, "passes": 6.0, "notes": []}
    score = {"fd_texture128_40": Score(69.0, np.random.default_rng(0).normal(69, 9, 20))}

    def shown(*entries):
        view = table(Result(40, range(7, 47), list(entries), [score] * len(entries)))
        return view.title, [str(column.header) for column in view.columns]

    assert shown(files) == ("40 images", ["contender", "score ± standard error"])
    title, columns = shown(files, made)
    assert title == "40 images, seeds 7 to 46"
    assert columns[1:3] == ["steps", "passes"]
