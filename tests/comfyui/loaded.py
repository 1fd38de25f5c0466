"""Our node as ComfyUI loads it, with stepsampler beside it and without."""

import importlib.util
import sys
from pathlib import Path

import pytest

import stepsampler
from stepsampler import formats

FOLDER = Path(formats.__path__[0]) / "comfyui_node"


def imported(name):
    """The folder from its place, under another name."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


WITH = imported("node_with_stepsampler")
with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "stepsampler", None)
    ALONE = imported("node_alone")
assert WITH.stepsampler is stepsampler
assert ALONE.stepsampler is None
BOTH = pytest.mark.parametrize("node", [WITH, ALONE], ids=["with", "alone"])


def save(place, schedule):
    """Into the folder of the fixture `place`."""
    schedule.save(place / "s.json")
    return "s.json"
