"""Long prompts, clip skip and names that are taken, on the command line."""

import json
import sys

import pytest
import torch
from PIL import Image

from stepsampler.cli import main
from stepsampler.generate import generate
from stepsampler.grids import make_schedule
from stepsampler.models import load
from stepsampler.noise import NoiseSchedule

LONG = "a photo of a shirt, " * 5
PLAN = make_schedule("power", 2, NoiseSchedule.scaled_linear(), guidance_scale=2.0)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run `stepsample` in a folder with a schedule, s.json; exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    PLAN.save("s.json")

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


def made(path):
    return torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("command", "out"), [((), "o"), (("batch",), "o"), (("grid",), "o.png")], ids=str
)
def test_a_prompt_that_is_cut_is_said_unless_it_goes_in_chunks(call, tmp_path, command, out):
    (tmp_path / "p.txt").write_text(f"a bag\n{LONG}a red bag\n")
    options = (*command, "s.json", "--prompts", "p.txt", "-o", out)
    code, _, errors = call(*options)
    assert code == 0
    (line,) = [line for line in errors.splitlines() if "cut" in line]
    assert line.startswith("note: 1 of 2 prompts are longer than the 16 tokens that CLIP")
    assert "number 1 ('a photo of a shirt, " in line
    code, _, errors = call(*options[:-1], f"chunk-{out}", "--long-prompts", "chunk")
    assert (code, errors) == (0, "")


def test_a_negative_prompt_that_is_cut_is_said(call):
    code, _, errors = call("s.json", "--prompt", "a bag", "--negative-prompt", LONG)
    assert code == 0
    assert "note: 1 of 1 negative prompts are longer" in errors


@pytest.mark.parametrize(
    ("command", "out"), [((), "o"), (("batch",), "o"), (("grid",), "o.png")], ids=str
)
def test_a_negative_prompt_without_guidance_is_said_to_do_nothing(call, tmp_path, command, out):
    (tmp_path / "p.txt").write_text("a bag\n")
    make_schedule("power", 2, NoiseSchedule.scaled_linear(), guidance_scale=1.0).save("u.json")
    options = ("--prompts", "p.txt", "-o", out, "--negative-prompt", "dark")
    code, _, errors = call(*command, "u.json", *options)
    assert code == 0
    assert "no step of the schedule is guided: the negative prompt has no effect" in errors


def test_both_settings_reach_the_model(call, tmp_path):
    text = f"{LONG}a red bag"
    for options, given in (
        (("--clip-skip", "1"), {"clip_skip": 1}),
        (("--long-prompts", "chunk"), {"long_prompts": "chunk"}),
    ):
        assert call("s.json", "--prompt", text, "-o", options[0], *options)[0] == 0
        (batch,) = generate(load("tiny", **given), PLAN, [text], [0])
        image = batch.images[0].permute(1, 2, 0).flatten()
        assert torch.equal(made(tmp_path / options[0] / "p0000-s00000.png"), image)
        (plain,) = generate(load("tiny"), PLAN, [text], [0])
        assert not torch.equal(plain.images, batch.images)


def test_settings_that_the_model_has_not_are_refused(call):
    code, _, errors = call("s.json", "--prompt", "a bag", "--clip-skip", "3")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "--clip-skip must be 1 to 2, got 3: CLIP has 2 layers" in errors
    code, _, errors = call("s.json", "--prompt", "a bag", "--long-prompts", "split")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "must be one of cut, chunk, got 'split'" in errors


def test_a_batch_belongs_to_how_its_captions_were_read(call, tmp_path):
    (tmp_path / "p.txt").write_text("a bag\n")
    options = ("batch", "s.json", "--prompts", "p.txt", "-o", "o")
    assert call(*options)[0] == 0
    head = json.loads((tmp_path / "o" / "manifest.jsonl").read_text().splitlines()[0])
    # As it always was: an old manifest is still that of the same images.
    assert head["additions"] == {"config": None, "vae": None, "lora": [], "textual_inversion": []}
    for more, value in (("--long-prompts", "chunk"), ("--clip-skip", "1")):
        code, _, errors = call(*options, more, value)
        assert code == 2
        assert "another additions" in errors
        assert f'"{more[2:].replace("-", "_")}": ' in errors
        assert '"vae"' not in errors  # which is the same


def test_a_batch_takes_the_place_of_no_other_image(call, tmp_path):
    (tmp_path / "p.txt").write_text("a bag\na shirt\n")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "000001.png").write_bytes(b"mine")
    code, _, errors = call("batch", "s.json", "--prompts", "p.txt", "-o", "o")
    assert code == 2
    assert "000001.png: there is such an image already, but no manifest.jsonl" in errors
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["000001.png"]


def test_a_second_prompt_with_the_same_seed_is_counted_up(call, tmp_path):
    _, first, _ = call("s.json", "--prompt", "a sneaker", "-o", "o")
    assert "number" not in first
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    _, second, _ = call("s.json", "--prompt", "a dress", "-o", "o")
    assert "grid-2.png" in second
    assert "1 of them got a number, as other images have their names: p0000-s00000-2.png" in second
    names = ["grid-2.png", "grid.png", "p0000-s00000-2.png", "p0000-s00000.png"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names
    for name, content in before.items():
        assert (tmp_path / "o" / name).read_bytes() == content
    # The same command makes the same images again, and no more files.
    assert call("s.json", "--prompt", "a sneaker", "-o", "o")[1] == first
    assert call("s.json", "--prompt", "a dress", "-o", "o")[1] == second
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names


def test_a_grid_takes_the_place_of_no_other_picture(call, tmp_path):
    for prompt, name in (("a bag", "grid"), ("a shirt", "grid-2"), ("a bag", "grid")):
        code, said, _ = call("grid", "s.json", "--prompt", prompt)
        assert code == 0
        assert f"{name}.png: 1 row of 1 image" in said
        assert ("another picture has the name grid.png" in said) == (name != "grid")
    assert len(list(tmp_path.glob("*.png"))) == 2
