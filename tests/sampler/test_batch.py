import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from stepsampler import UserError
from stepsampler.batch import MANIFEST, read_manifest, run_batch
from stepsampler.cli.app import app
from stepsampler.grids import make_schedule
from stepsampler.models import load, model_digest
from stepsampler.noise import NoiseSchedule
from stepsampler.presets import preset
from stepsampler.support.captions import Caption, LeftOut
from stepsearch.rehearsal import miniatures

SD = NoiseSchedule.scaled_linear()
CAPTIONS = [Caption(f"a photo of a {thing}", str(i)) for i, thing in enumerate(["bag", "shirt"])]
CAPTIONS += [Caption("a photo of a dress"), Caption("a photo of a coat"), Caption("a boot")]


@pytest.fixture(scope="module")
def model():
    return load("tiny")


@pytest.fixture(scope="module")
def schedule():
    return make_schedule("power", 2, SD, guidance_scale=2.0)


def manifest(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def run(model, schedule, out, captions=CAPTIONS, **options):
    return list(run_batch(model, schedule, captions, out, batch_size=2, **options))


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_schedule_that_the_model_refuses_begins_no_folder(model, schedule, tmp_path):
    with pytest.raises(UserError, match="the schedule was made for family 'flux'"):
        run(model, preset("oss-flux-10").schedule, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert run(model, schedule, tmp_path)[-1] == len(CAPTIONS)


def test_image_k_has_caption_k_seed_k_and_a_checksum(model, schedule, tmp_path):
    assert run(model, schedule, tmp_path, first_seed=100) == [0, 2, 4, 5]
    head, *records = manifest(tmp_path)
    assert head["format"] == "stepsample.batch/1"
    for k, record in enumerate(records):
        assert record["index"] == k
        assert record["seed"] == 100 + k
        assert record["prompt"] == CAPTIONS[k].text
        assert record.get("image") == CAPTIONS[k].image
        image = (tmp_path / record["file"]).read_bytes()
        assert record["sha256"] == hashlib.sha256(image).hexdigest()
    assert len(records) == len(CAPTIONS) == len({r["sha256"] for r in records})


@pytest.mark.parametrize("cut", ["block", "line", "file", "content"])
def test_a_cut_run_goes_on_to_the_same_images(model, schedule, tmp_path, cut):
    run(model, schedule, tmp_path / "whole")
    out = tmp_path / "cut"
    progress = run_batch(model, schedule, CAPTIONS, out, batch_size=2)
    assert [next(progress), next(progress)] == [0, 2]
    progress.close()  # killed after the first block
    path = out / "manifest.jsonl"
    if cut == "line":  # … while the next block's lines were written
        path.write_text(path.read_text() + '{"index": 2, "se')
    if cut == "file":  # … and an image was lost
        (out / "000001.png").unlink()
    if cut == "content":  # … or is another one
        (out / "000001.png").write_bytes((out / "000000.png").read_bytes())
    already = {"block": 2, "line": 2, "file": 0, "content": 0}[cut]
    assert run(model, schedule, out)[0] == already
    assert contents(out) == contents(tmp_path / "whole")
    assert run(model, schedule, out) == [5]  # nothing is left to do
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"schedule": make_schedule("power", 3, SD, guidance_scale=2.0)}, "schedule"),
        ({"first_seed": 1}, "first_seed"),
        ({"negative_prompt": "blurry"}, "negative_prompt"),
        ({"model": "other"}, "model"),
    ],
)
def test_a_folder_belongs_to_its_schedule_model_and_captions(
    model, schedule, tmp_path, change, name
):
    given = {"model": model, "schedule": schedule, "captions": CAPTIONS}
    next(run_batch(**given, out=tmp_path, batch_size=2))
    before = contents(tmp_path)
    if name == "model":
        change = {"model": load("tiny")}
        next(change["model"].net.parameters()).data += 0.5
    with pytest.raises(UserError, match=f"was begun with another {name}, .*; give another --out"):
        next(run_batch(**{**given, **change}, out=tmp_path, batch_size=2))
    assert contents(tmp_path) == before


def test_more_captions_after_the_same_ones_extend_a_batch(model, schedule, tmp_path):
    run(model, schedule, tmp_path / "whole")
    out = tmp_path / "grown"
    assert run(model, schedule, out, CAPTIONS[:3]) == [0, 2, 3]
    assert run(model, schedule, out) == [2, 4, 5]  # the block that image 2 began is made whole
    assert contents(out) == contents(tmp_path / "whole")
    assert run(model, schedule, out, CAPTIONS[:3]) == [3]
    assert contents(out) == contents(tmp_path / "whole")


def test_an_image_lost_within_fewer_captions_costs_its_whole_block(model, schedule, tmp_path):
    run(model, schedule, tmp_path / "whole")
    out = tmp_path / "out"
    run(model, schedule, out)
    (out / "000002.png").unlink()
    assert run(model, schedule, out, CAPTIONS[:3]) == [2, 3]
    assert run(model, schedule, out) == [3, 5]  # the block of image 2 again, for which it was alone
    files = {name: data for name, data in contents(out).items() if name.endswith("png")}
    assert files.items() <= contents(tmp_path / "whole").items()


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (CAPTIONS[::-1], "number 0 was «a photo of a bag» of 0, and is now «a boot»"),
        ([CAPTIONS[0], Caption("a shoe", "1")], "number 1 was .*, and is now «a shoe» of 1"),
        ([CAPTIONS[0]._replace(image="7")], "number 0 was .* of 0, and is now .* of 7"),
    ],
)
def test_other_captions_before_the_end_are_refused(model, schedule, tmp_path, captions, message):
    run(model, schedule, tmp_path, CAPTIONS[:2])
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"with other captions: {message}.*give another --out"):
        run(model, schedule, tmp_path, captions)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("where", [1, -1])
def test_every_number_of_every_network_makes_the_model(model, where):
    """The last row of the word embeddings is where a textual inversion comes in."""
    other = load("tiny")
    assert model_digest(other) == model_digest(model)
    table = other.pipeline.text_encoder.get_input_embeddings().weight
    table.data[where, where] += 0.01
    assert model_digest(other) != model_digest(model)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["--lora", "x.safetensors:0.5"]),
        (["--lora", "x.safetensors:0.5"], ["--lora", "x.safetensors:0.6"]),
        (["--textual-inversion", "a"], ["--textual-inversion", "b"]),
        ([], ["--vae", "other"]),
        ([], ["--config", "other"]),
    ],
)
def test_a_folder_belongs_to_the_additions_of_its_model(
    model, schedule, tmp_path, monkeypatch, before, after
):
    monkeypatch.setattr("stepsampler.models.open_model", lambda *_: model)
    schedule.save(tmp_path / "s.json")
    (tmp_path / "p.txt").write_text("a bag\n")
    command = ["batch", str(tmp_path / "s.json"), "--prompts", str(tmp_path / "p.txt")]
    command += ["-o", str(tmp_path / "out")]
    for _ in range(2):
        assert CliRunner().invoke(app, [*command, *before]).exit_code == 0
    result = CliRunner().invoke(app, [*command, *after])
    assert isinstance(result.exception, UserError)
    assert "was begun with another additions" in str(result.exception)


def test_another_provenance_is_the_same_schedule(model, schedule, tmp_path):
    from dataclasses import replace

    run(model, schedule, tmp_path, CAPTIONS[:2])
    renamed = replace(schedule, provenance={"study": "x"})
    assert run(model, renamed, tmp_path, CAPTIONS[:2]) == [2]


@pytest.mark.parametrize("text", ["", "x\n", '{"format": 1}\n[]\n', '{"format": 1}\n{"x": 1}\n'])
def test_a_manifest_that_is_none_is_refused(model, schedule, tmp_path, text):
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(UserError, match="not a manifest of `stepsample batch`"):
        run(model, schedule, tmp_path)


def test_a_grid_has_a_row_for_each_schedule(schedule, tmp_path):
    schedule.save(tmp_path / "s.json")
    out = tmp_path / "g.png"
    arguments = ["grid", str(tmp_path / "s.json"), "seed-sd-4", "--prompt", "a bag", "--prompt"]
    arguments += ["a shirt", "--seeds", "0,1", "-o", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 rows of 4 images" in result.output
    image = Image.open(out)
    assert image.width > 4 * 64
    assert image.height > 2 * 64 + 10  # captions stand above
    too_many = [*arguments[:-4], "--seeds", "0-99", "-o", str(out)]
    result = CliRunner().invoke(app, too_many)
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == "a grid has at most 256 images, got 400"


@pytest.mark.parametrize("name", ["g.jpg", "g", "g.png.webp"])
def test_a_grid_is_a_png_file(tmp_path, name):
    out = tmp_path / name
    result = CliRunner().invoke(app, ["grid", "seed-sd-4", "--prompt", "a bag", "-o", str(out)])
    assert str(result.exception) == f"--out must name a .png file, got {str(out)!r}"
    assert not out.exists()


MIXED = [CAPTIONS[0], LeftOut("line 2", "null"), *CAPTIONS[2:], LeftOut("line 6", "empty")]


def lost(out):
    return [json.loads(line) for line in (out / "left-out.jsonl").read_text().splitlines()]


def test_what_is_no_caption_keeps_its_number_and_stops_nothing(model, schedule, tmp_path):
    run(model, schedule, tmp_path / "whole")
    out = tmp_path / "out"
    assert run(model, schedule, out, MIXED) == [0, 1, 3, 4]
    assert [record["index"] for record in manifest(out)[1:]] == [0, 2, 3, 4]
    assert lost(out) == [
        {"index": 1, "place": "line 2", "reason": "null"},
        {"index": 5, "place": "line 6", "reason": "empty"},
    ]
    same = ("000002.png", "000003.png")  # a block without a gap
    assert all(contents(out)[name] == contents(tmp_path / "whole")[name] for name in same)
    before = contents(out)
    assert run(model, schedule, out, MIXED) == [4]
    assert contents(out) == before


def test_a_row_that_is_mended_is_made(model, schedule, tmp_path):
    run(model, schedule, tmp_path / "whole")
    out = tmp_path / "out"
    run(model, schedule, out, MIXED[:5])
    assert run(model, schedule, out) == [3, 5]  # its block again, with both
    assert not (out / "left-out.jsonl").exists()
    made, whole = contents(out), contents(tmp_path / "whole")
    assert {k: v for k, v in made.items() if k.endswith("png")} == {
        k: v for k, v in whole.items() if k.endswith("png")
    }


def test_a_row_that_breaks_afterwards_is_another_set(model, schedule, tmp_path):
    run(model, schedule, tmp_path, CAPTIONS)
    with pytest.raises(UserError, match=r"number 1 was .*, and is now none: line 2 \(null\)"):
        run(model, schedule, tmp_path, MIXED[:5])


def test_fewer_captions_forget_nothing_that_was_left_out_beyond(model, schedule, tmp_path):
    run(model, schedule, tmp_path, MIXED)
    before = contents(tmp_path)
    assert run(model, schedule, tmp_path, MIXED[:3]) == [2]
    assert contents(tmp_path) == before
    assert run(model, schedule, tmp_path, MIXED) == [4]


@pytest.fixture
def dit(tmp_path):
    miniatures.dit().save_pretrained(tmp_path / "dit")
    return load(str(tmp_path / "dit"))


def test_a_prompt_that_the_model_refuses_is_left_out(dit, tmp_path):
    schedule = make_schedule("power", 2, dit.noise, guidance_scale=1.0)
    texts = ["1", "no such class", "2", "0", "none such", "nor this"]
    captions = [Caption(text) for text in texts]
    assert run(dit, schedule, tmp_path / "out", captions) == [0, 1, 3, 3]
    assert [line["index"] for line in lost(tmp_path / "out")] == [1, 4, 5]
    assert "a prompt of this model is a class" in lost(tmp_path / "out")[0]["reason"]
    before = contents(tmp_path / "out")
    assert run(dit, schedule, tmp_path / "out", captions) == [3]  # remembered
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "000000.png").unlink()
    assert run(dit, schedule, tmp_path / "out", captions) == [2, 3]
    assert {n: d for n, d in contents(tmp_path / "out").items() if n != "manifest.jsonl"} == {
        n: d for n, d in before.items() if n != "manifest.jsonl"
    }
    with pytest.raises(UserError, match=r"no image could be made: number 0 \(a prompt of"):
        run(dit, schedule, tmp_path / "none", captions[1:2])


def broken_for(model, monkeypatch, words):
    """The condition of a prompt with one of these words is NaN, and so is its image."""
    encode = type(model)._encode

    def nan(self, prompt, negative):
        made = encode(self, prompt, negative)
        bad = any(word in prompt for word in words)
        return {name: value * (float("nan") if bad else 1) for name, value in made.items()}

    monkeypatch.setattr(type(model), "_encode", nan)


def test_an_image_that_is_not_finite_is_left_out(schedule, tmp_path, monkeypatch):
    model = load("tiny")
    run(model, schedule, tmp_path / "whole")
    broken_for(model, monkeypatch, ["shirt", "dress", "coat"])
    model._encoded.clear()
    out = tmp_path / "out"
    assert run(model, schedule, out) == [0, 1, 1, 2]
    assert [(line["index"], line["reason"][:23]) for line in lost(out)] == [
        (k, "the image is not finite") for k in (1, 2, 3)
    ]
    for k in (0, 4):
        a, b = (
            np.array(Image.open(tmp_path / name / f"{k:06d}.png")).astype(int)
            for name in ("out", "whole")
        )
        assert abs(a - b).max() <= 1  # decoded alone
    before = contents(out)
    assert run(model, schedule, out) == [2]
    assert contents(out) == before
    (out / "000000.png").unlink()  # the same again, bit for bit
    run(model, schedule, out)
    assert contents(out)["000000.png"] == before["000000.png"]


def test_a_schedule_under_which_nothing_is_finite_ends_soon(schedule, tmp_path, monkeypatch):
    model = load("tiny")
    broken_for(model, monkeypatch, [""])
    many = [Caption(f"a bag {k}") for k in range(1000)]
    with pytest.raises(UserError, match="no image could be made: number 0 .the image is not fin"):
        run(model, schedule, tmp_path, many)


def test_a_long_set_keeps_the_conditions_of_a_few(schedule, tmp_path):
    model = load("tiny")
    for _ in run_batch(
        model, schedule, [Caption(f"a bag {k}") for k in range(12)], tmp_path, batch_size=2
    ):
        assert len(model._encoded) <= 4
    assert model.most_encoded is None


def test_the_command_says_what_it_left_out_by_its_exit_code(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a bag"}\n{"prompt": null}\n{"prompt": "b"}\n')
    command = ["batch", "seed-sd-4", "--prompts", str(tmp_path / "p.jsonl"), "-o"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "2 images of 4 passes each" in result.output or "2 images" in result.output
    assert "1 of 3 captions left out: line 2 (null); all are in left-out.jsonl" in result.output
    (tmp_path / "out" / "left-out.jsonl").unlink()
    assert CliRunner().invoke(app, [*command, str(tmp_path / "out")]).exit_code == 1
    command = ["seed-sd-4", "--prompts", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "g")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "left out: line 2 (null)" in result.output
    assert len(list((tmp_path / "g").glob("p*.png"))) == 2


@pytest.mark.parametrize("image", ["/etc/x", "../../x", "a/b", ".", "x" * 5000, "\ud83d", "a\0b"])
def test_the_id_of_an_image_is_no_path(model, schedule, tmp_path, image):
    captions = [Caption("a bag", image), Caption("a coat", image)]
    assert run(model, schedule, tmp_path / "out", captions) == [0, 2]
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["000000.png", "000001.png"]
    assert [record["image"] for record in manifest(tmp_path / "out")[1:]] == [image, image]
    assert run(model, schedule, tmp_path / "out", captions) == [2]


@pytest.mark.parametrize("change", ["bom", "crlf", "cut"])
def test_a_manifest_is_read_as_editors_and_kills_leave_it(model, schedule, tmp_path, change):
    run(model, schedule, tmp_path)
    path = tmp_path / MANIFEST
    known, records = read_manifest(path)
    data = path.read_bytes()
    changed = {"bom": b"\xef\xbb\xbf" + data, "crlf": data.replace(b"\n", b"\r\n")}
    path.write_bytes(changed.get(change, data + b'{"index": 5, "pro'))
    assert read_manifest(path) == (known, records)
    assert [record["prompt"] for record in records] == [caption.text for caption in CAPTIONS]
    assert run(model, schedule, tmp_path) == [5]
