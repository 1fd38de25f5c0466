"""What `stepsample batch` says, and one of each."""

import re
import sys

import pytest

from stepsampler.cli import main
from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run `stepsample` in a folder with a schedule, s.json; exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    make_schedule("power", 1, NoiseSchedule.scaled_linear(), guidance_scale=1.0).save("s.json")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stepsample", *arguments])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        return code or 0, said.out, said.err

    return run


def test_other_captions_are_refused_in_words_and_before_any_bar(call, tmp_path):
    (tmp_path / "m.json").write_text('{"x.png": "a bag", "y.png": "a shoe"}')
    assert call("batch", "s.json", "--prompts", "m.json", "-o", "o")[0] == 0
    (tmp_path / "m.json").write_text('{"x.png": "a dress", "y.png": "a shoe"}')
    code, out, errors = call("batch", "s.json", "--prompts", "m.json", "-o", "o")
    assert (code, out) == (2, "")
    assert "number 0 was «a bag» of x.png, and is now «a dress» of x.png; give another" in errors
    (tmp_path / "m.json").write_text('{"x.png": null, "y.png": "a shoe"}')
    errors = call("batch", "s.json", "--prompts", "m.json", "-o", "o")[2]
    assert "was «a bag» of x.png, and is now none: id 'x.png' (null); give" in errors


def test_one_image_is_one(call, tmp_path):
    (tmp_path / "p.txt").write_text("a bag\n")
    assert "1 image of 1 pass each" in call("batch", "s.json", "--prompts", "p.txt", "-o", "o")[1]
    made = call("s.json", "--prompt", "a bag", "-o", "g")[1]
    assert "1 image of 1 step, 1 pass each" in made
    said = [made, call("grid", "s.json", "--prompt", "a bag")[1], call("show", "s.json")[1]]
    said += [call("make", "power", "--steps", "1", "--guidance-scale", "1", "-o", "t.json")[1]]
    assert not re.search(r"\b1 (images|steps|passes|rows)\b", "".join(said))
    (tmp_path / "bad.json").write_text('["a bag", null]')
    errors = call("batch", "s.json", "--prompts", "bad.json", "-o", "b")[2]
    assert "1 of 2 captions left out" in errors
