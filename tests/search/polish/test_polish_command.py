import json
import sys

import pytest
from running import settings

from stepsampler.grids import make_schedule
from stepsampler.models import load
from stepsampler.schedule import load as read
from stepsearch.cli import main

SHORT = ("--iterations", "2", "--images", "8", "--check-images", "8")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `stepsearch polish`; return its exit code, output and errors."""
    noise = load("tiny").noise
    model = load("tiny").spec
    start = make_schedule("kl-optimal", 2, noise, order=2, guidance_scale=2.0, model=model)
    start.save(tmp_path / "start.json")

    def run(*options, out=tmp_path / "polished.json"):
        places = ("-o", str(out), "--cache", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "argv", ["stepsearch", "polish", *options, *places])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run, tmp_path / "start.json", tmp_path / "polished.json"


def test_it_says_what_it_costs_and_writes_what_it_found(command):
    run, start, out = command
    code, said, _ = run(str(start), *SHORT, "--extractor", "texture")
    assert code == 0
    first = said.splitlines()[0]
    assert "2 steps, 4 passes per image; 6 numbers to turn, at most 672 network passes" in first
    polished = read(out)
    told = polished.provenance
    assert (told["free"], told["metric"]) == ("one-gain", "fd_texture128_8")
    assert told["selection"][1] <= told["selection"][0]
    assert told["passes"] <= 4 * (2 * (8 * 8 + 3 * 8) + 8) == 736
    assert polished.passes == read(start).passes
    assert f"took {told['passes']} network passes" in said
    again = run(str(start), *SHORT, "--extractor", "texture")[1]  # from the cache
    assert again.splitlines()[-1] == said.splitlines()[-1]


ONCE = ("--iterations", "1", "--images", "8", "--check-images", "8", "--extractor", "texture")


def test_what_it_is_doing_is_a_line_before_it_is_done(command):
    """A log would show nothing for hundreds of images, and then only what came of them."""
    run, start, _ = command
    lines = run(str(start), *ONCE)[1].splitlines()
    begun = [line for line in lines if line.endswith("…")]
    assert begun[:3] == [
        "loading tiny …",
        "checking a schedule on 8 images …",
        "looking at 6 numbers, 8 images with each moved a little …",
    ]
    news = next(i for i, line in enumerate(lines) if line.startswith("  0 iterations: held out"))
    assert lines.index(begun[1]) < news < lines.index(begun[2])


def test_in_a_terminal_it_moves_with_each_batch_and_leaves_no_such_lines(command, monkeypatch):
    run, start, _ = command
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    said = run(str(start), *ONCE, "--batch-size", "4")[1]
    assert "checking a schedule on 8 images: 4 of 8" in said
    assert "checking a schedule on 8 images: 8 of 8" in said
    assert "moved a little, 3 of 7 done: 4 of 8" in said
    assert "…" not in said


def test_names_of_files_are_no_markup(command, tmp_path):
    run, start, _ = command
    odd = start.rename(tmp_path / "[red]:bug:.json")
    out = tmp_path / "[bold]x.json"
    said = run(str(odd), *ONCE, "--no-levels", "--free", "none", out=out)[1]
    assert said.startswith(f"{odd}: 2 steps")
    assert said.splitlines()[-1].startswith(f"{out}: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--free", "all"), "--free must be one of one-gain, gain, weights, none, got 'all'"),
        (
            ("--images", "9999999"),
            "--images times --iterations must be at most 10,000,000",
        ),
        (("--images", "4"), "--images"),
    ],
)
def test_what_cannot_be_polished_is_refused(command, options, message):
    run, start, out = command
    code, _, said = run(str(start), *options)
    assert code == 2
    assert message in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nowhere.json", "nowhere.json"),
        ("neuralsolver-sit-5", "the schedule was made for family"),
    ],
)
def test_no_such_schedule_or_one_for_another_model_is_refused(command, what, message):
    code, _, said = command[0](what)
    assert code == 2
    assert message in said


def test_a_finished_run_has_its_own_model_and_evaluation(command, tmp_path):
    run, start, out = command
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    config = settings().model_dump(mode="json")
    config["evaluation"]["extractor"] = "lite0"
    (folder / "study.json").write_text(json.dumps(config))
    code, _, said = run(str(folder), *SHORT)
    assert code == 2
    assert "no finished run" in said
    start.rename(folder / "best.json")
    code, said, _ = run(str(folder), *SHORT)
    assert code == 0
    assert read(out).provenance["metric"] == "fd_lite0128_8"
    assert (folder / "best.json").exists()
    code, _, said = run(str(folder), *SHORT, "--extractor", "texture")
    assert code == 2
    assert f"--extractor is for schedules: {folder} is a run and has its own" in said
