"""`stepsearch front`: what is dominated, what is written, what does not compare."""

import json
import sys

import pytest
from PIL import Image

from stepsampler import load
from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule
from stepsearch.cli import main
from stepsearch.cli.running import QUICK
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import claim_folder, make_plan
from stepsearch.metrics.evaluator import FRONT

SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")


def finished(folder, steps, fd, alignment=0.9, *, others=(), identity="same", **sections):
    """A run's folder as a run leaves it; `others` are (steps, FD, alignment) of its front."""
    settings = {"name": folder.name, "space": {"num_steps": steps, "passes": 2 * steps}}
    config = StudyConfig.model_validate(settings | sections)
    claim_folder(folder, config)
    make_plan(folder, identity, "power", 0.5)
    n = config.evaluation.test_images
    for i, (count, value, share) in enumerate([(steps, fd, alignment), *others]):
        plan = make_schedule("power", count, SD, guidance_scale=2 + value / 9, model=SPEC)
        plan.provenance.update(
            source=f"found, trial {i}",
            metric=f"fd_texture128_{n}",
            value=value,
            standard_error=0.5,
            alignment=share,
            test_seeds=[20_000_000, 20_000_000 + n - 1],
        )
        plan.save(folder / ("best.json" if i == 0 else f"front/trial-{i}.json"))
    return folder


def command(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["stepsearch", "front", *map(str, options)])
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr()
    return code, said.out, said.err


def table(folder):
    lines = (folder / "front.md").read_text().splitlines()[4:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_runs_become_a_chart_a_table_and_files_and_the_dominated_are_marked(
    tmp_path, monkeypatch, capsys
):
    runs = [
        finished(tmp_path / "five", 5, 9.0),
        finished(tmp_path / "three", 3, 12.0),
        finished(tmp_path / "three-again", 3, 14.0),
        finished(tmp_path / "four", 4, 13.0),
    ]
    code, out, _ = command(monkeypatch, capsys, *runs, "-o", tmp_path / "out")
    assert code == 0
    assert "fd_texture128_1000" in out
    rows = table(tmp_path / "out")
    assert [(row[0], row[2].split(":")[0], row[-1]) for row in rows] == [
        ("6", "three", "front"),
        ("6", "three-again", "dominated"),
        ("8", "four", "dominated"),
        ("10", "five", "front"),
    ]
    assert rows[0][3:5] == ["12.0 ± 0.5", "90.0 %"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["10-passes.json", "6-passes.json", "8-passes.json", "front.md", "front.png"]
    assert load(tmp_path / "out" / "6-passes.json") == load(runs[1] / "best.json")
    assert "8-passes.json  four: found, trial 0, dominated" in out
    assert Image.open(tmp_path / "out" / "front.png").width > 400


def test_with_alignment_as_an_objective_a_worse_distance_may_be_on_the_front(
    tmp_path, monkeypatch, capsys
):
    both = {"search": {"objectives": ["fd", "alignment"]}}
    others = [(3, 8.0, 0.5), (3, 11.0, 0.7)]
    one = finished(tmp_path / "one", 3, 10.0, 0.8, others=others, **both)
    two = finished(tmp_path / "two", 4, 9.0, 0.7, **both)
    code, _, _ = command(monkeypatch, capsys, one, two, "-o", tmp_path / "out")
    assert code == 0
    marks = {(row[0], row[4]): row[-1] for row in table(tmp_path / "out")}
    assert marks == {
        ("6", "50.0 %"): "front",
        ("6", "80.0 %"): "front",
        ("6", "70.0 %"): "dominated",
        ("8", "70.0 %"): "front",
    }
    files = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert files == ["6-passes-2.json", "6-passes.json", "8-passes.json"]


def test_without_it_the_same_runs_are_dominated_by_distance_alone(tmp_path, monkeypatch, capsys):
    one = finished(tmp_path / "one", 3, 8.0, 0.5)
    two = finished(tmp_path / "two", 4, 9.0, 0.9)
    command(monkeypatch, capsys, one, two, "-o", tmp_path / "out")
    assert [row[-1] for row in table(tmp_path / "out")] == ["front", "dominated"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"dtype": "bfloat16"}}, "model.dtype is 'bfloat16' there and 'float32' here"),
        ({"evaluation": {"extractor": "lite0"}}, "evaluation.extractor is 'lite0' there and"),
        ({"evaluation": {"test_images": 500}}, "evaluation.test_images is 500 there and 1000"),
        ({"evaluation": QUICK["evaluation"]}, "evaluation.test_images is 40 there and 1000 here"),
        ({"evaluation": {"batch_size": 20}}, "evaluation.batch_size is 20 there and 50 here"),
        ({"evaluation": {"prompts": "p.txt"}}, "evaluation.prompts is 'p.txt' there and"),
        ({"identity": "other"}, "the digest of model, reference and prompts is 'other' there"),
    ],
)
def test_scores_that_do_not_compare_are_refused(tmp_path, monkeypatch, capsys, change, message):
    one, two = finished(tmp_path / "one", 3, 8.0), finished(tmp_path / "two", 4, 9.0, **change)
    code, _, errors = command(monkeypatch, capsys, one, two, "-o", tmp_path / "out")
    assert code == 2
    assert f"two: its scores do not compare with those of {one}: {message}" in errors
    assert ("--images N scores all of them again" in errors) == ("model" not in change)
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_settings_of_the_search_alone_may_differ(tmp_path, monkeypatch, capsys):
    one = finished(tmp_path / "one", 3, 8.0)
    two = finished(
        tmp_path / "two", 4, 7.0, evaluation={"images": 50, "rungs": [20, 50]}, search={"seed": 3}
    )
    assert command(monkeypatch, capsys, one, two, "-o", tmp_path / "out")[0] == 0


def test_only_files_of_an_earlier_front_are_removed(tmp_path, monkeypatch, capsys):
    one = finished(tmp_path / "one", 3, 8.0)
    two = finished(tmp_path / "two", 3, 8.0, model={"kind": "stable-diffusion"})  # the same to it
    out = tmp_path / "out"
    out.mkdir()
    for name in ("6-passes-2.json", "9-passes.json", "9-passes-of-mine.json", "notes.json"):
        (out / name).write_text("{}")
    assert command(monkeypatch, capsys, one, two, "-o", out)[0] == 0
    kept = {path.name for path in out.glob("*.json")}
    assert kept == {"6-passes.json", "9-passes-of-mine.json", "notes.json"}


def test_what_is_no_finished_run_is_refused(tmp_path, monkeypatch, capsys):
    for path in (tmp_path, "studies/none.toml"):
        code, _, errors = command(monkeypatch, capsys, path)
        assert code == 2
        assert "no finished run; `stepsearch run` makes one" in errors
    one = finished(tmp_path / "one", 3, 8.0)
    assert "a run is given twice" in command(monkeypatch, capsys, one, one)[2]
    data = json.loads((one / "study.json").read_text())
    data["space"]["colour"] = 1
    (one / "study.json").write_text(json.dumps(data))
    errors = command(monkeypatch, capsys, one)[2]
    assert "study.json: another version of stepsearch wrote it: space.colour" in errors


def test_runs_that_do_not_compare_are_scored_again_on_fresh_seeds(tmp_path, monkeypatch, capsys):
    common = {"batch_size": 8}
    one = finished(tmp_path / "one", 2, 8.0, evaluation=common)
    two = finished(tmp_path / "two", 3, 9.0, evaluation=common | {"test_images": 50})
    out = tmp_path / "out"
    code, said, _ = command(monkeypatch, capsys, one, two, "--images", 8, "-o", out)
    assert code == 0
    assert f"fd_texture128_8, seeds {FRONT} to {FRONT + 7}, which no run has seen" in said
    rows = table(out)
    assert rows[0][5] == ""
    assert "±" in rows[1][5]  # paired: both are of the same seeds
    made = load(out / "4-passes.json")
    assert made.provenance["metric"] == "fd_texture128_8"
    assert made.provenance["test_seeds"] == [FRONT, FRONT + 7]
    assert made.provenance["value"] != 8.0
    again = command(monkeypatch, capsys, one, two, "--images", 8, "-o", out)
    assert again[0] == 0
    assert table(out) == rows  # recalled


def test_every_column_of_the_table_has_a_name(tmp_path, monkeypatch, capsys):
    command(monkeypatch, capsys, finished(tmp_path / "one", 3, 8.0), "-o", tmp_path / "out")
    head = (tmp_path / "out" / "front.md").read_text().splitlines()[2]
    assert all(cell.strip() for cell in head.strip("|").split("|"))


def test_a_schedule_that_somebody_put_in_the_place_of_a_runs_own_is_refused(
    tmp_path, monkeypatch, capsys
):
    one = finished(tmp_path / "one", 3, 8.0)
    make_schedule("power", 3, SD, model=SPEC).save(one / "best.json")
    code, _, errors = command(monkeypatch, capsys, one)
    assert code == 2
    assert "one/best.json: its provenance has no 'metric', so it is not what a run" in errors


@pytest.mark.parametrize(
    ("key", "value"),
    [("value", None), ("standard_error", "x"), ("test_seeds", ["a", 1]), ("test_seeds", [2, 1])],
)
def test_a_run_whose_provenance_is_damaged_is_left_out_and_named(
    tmp_path, monkeypatch, capsys, key, value
):
    one, two = finished(tmp_path / "one", 3, 8.0), finished(tmp_path / "two", 4, 7.0)
    data = json.loads((two / "best.json").read_text())
    data["provenance"][key] = value
    (two / "best.json").write_text(json.dumps(data))
    code, out, _ = command(monkeypatch, capsys, one, two, "-o", tmp_path / "page.html")
    assert code == 1
    assert "two/best.json: its provenance is damaged: " in out


def test_a_schedule_whose_images_are_not_finite_is_named_and_the_others_are_scored(
    tmp_path, monkeypatch, capsys
):
    common = {"evaluation": {"batch_size": 8}}
    one = finished(tmp_path / "one", 2, 8.0, **common)
    two = finished(tmp_path / "two", 3, 9.0, **common)
    out = tmp_path / "out"
    best = json.loads((two / "best.json").read_text())
    best["steps"][0]["guidance_scale"] = 1e38
    (two / "best.json").write_text(json.dumps(best))
    code, said, _ = command(monkeypatch, capsys, one, two, "--images", 8, "-o", out)
    assert code == 1
    assert "left out: two: found, trial 0: its images are not finite" in said
    assert [row[0] for row in table(out)] == ["4"]
    code, _, errors = command(monkeypatch, capsys, two, "--images", 8, "-o", out)
    assert code == 2
    assert "the images of all schedules are not finite" in errors


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_shown(tmp_path, monkeypatch, capsys):
    whole, cut = finished(tmp_path / "three", 3, 12.0), finished(tmp_path / "five", 5, 9.0)
    text = (cut / "best.json").read_text()
    (cut / "best.json").write_text(text[: len(text) // 2])
    given = (whole, cut, tmp_path / "nothing", "-o", tmp_path / "out")
    code, out, _ = command(monkeypatch, capsys, *given)
    assert code == 1
    assert [row[0] for row in table(tmp_path / "out")] == ["6"]
    assert f"left out: {cut / 'best.json'}" in out
    assert f"left out: {tmp_path / 'nothing'}: no finished run" in out
    code, _, err = command(monkeypatch, capsys, cut, "-o", tmp_path / "none")
    assert code == 2
    assert str(cut / "best.json") in err


def test_a_metric_of_ones_own_is_not_called_fd(tmp_path, monkeypatch, capsys):
    run = finished(tmp_path / "three", 3, 12.0, evaluation={"metric": "house:dark"})
    code, _, _ = command(monkeypatch, capsys, run, "-o", tmp_path / "out")
    assert code == 0
    assert "dark ± se" in (tmp_path / "out" / "front.md").read_text()
    assert "FD" not in (tmp_path / "out" / "front.md").read_text()
