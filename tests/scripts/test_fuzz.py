"""The fuzzing script finds what is no UserError, and says where it lies."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.boxes, "PROBES", 5)
    return module


def test_some_inputs_of_each_kind_are_read_or_refused(fuzz, tmp_path, capsys):
    assert fuzz.main(["--inputs", "160", "--seed", "11", "--keep", str(tmp_path)]) == 0
    said = capsys.readouterr()
    lines = [line.split(",")[0] for line in said.out.splitlines()]
    assert lines == [f"{kind}: 40 inputs" for kind in ("study", "schedule", "captions", "npz")]
    assert not list(tmp_path.iterdir())


def test_a_fault_is_kept_at_its_smallest(fuzz, tmp_path, capsys):
    def reader(path):
        if len(path.read_bytes()) > 100:
            raise ZeroDivisionError

    fuzz.READ["npz"] = reader
    options = ["--inputs", "5", "--only", "npz", "--seed", "3", "--keep", str(tmp_path)]
    assert fuzz.main(options) == 1
    said = capsys.readouterr().err
    (kept,) = tmp_path.iterdir()
    assert f"npz: a fault with --seed 3: {kept}" in said
    assert "ZeroDivisionError" in said
    assert len(kept.read_bytes()) > 100


@pytest.mark.parametrize("text", ["", "two\nlines", "x" * 2000, "half \ud800"])
def test_a_refusal_that_is_no_short_sentence_is_a_fault(fuzz, text):
    with pytest.raises((AssertionError, UnicodeEncodeError)):
        fuzz.check_sentence(fuzz.UserError(text))
