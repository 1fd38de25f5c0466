"""Calls of `stepsearch evaluate`, and folders of random pictures for it."""

import sys

import numpy as np
from PIL import Image

from stepsearch.cli import main


def command(monkeypatch, capsys, *options):
    """Run `stepsearch evaluate`; return its exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["stepsearch", "evaluate", *map(str, options)])
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr()
    return code, said.out, said.err


def pictures(folder, n, seed=0, size=32, constant=False):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for k in range(n):
        shape = (size, size, 3)
        pixels = np.full(shape, 9, np.uint8) if constant else generator.integers(0, 256, shape)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k:03d}.png")
    return folder
