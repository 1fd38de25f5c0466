"""Every command that prints results prints them as JSON when asked, and nothing else on stdout."""

import json
import re
from pathlib import Path

import pytest
import typer
from evaluating import pictures
from reporting import command, toy_run

from stepsearch.cli.app import app
from stepsearch.report.plain import plain

STUDY = "[space]\nnum_steps = 3\npasses = 6\n"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    toy_run(folder / "runs" / "toy")
    for name in ("a", "b", "real"):
        pictures(folder / name, 12, seed=len(name) + ord(name[0]))
    (folder / "study.toml").write_text(STUDY)
    return folder


EVALUATION = ["a", "b", "--images", 12, "--extractor", "patches", "--reference", "real"]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["status", "runs/toy"], {"stage", "trials", "workers", "passes", "best", "history"}),
        (["report", "runs/toy"], {"title", "state", "problems", "cards"}),
        (["export", "runs/toy", "-o", "x.json"], {"file", "run", "doubts", "passes"}),
        (["check", "study.toml", "--no-dry-run"], {"missing", "passes", "bytes"}),
        (["evaluate", *EVALUATION], {"title", "cards"}),
        (["compare", *EVALUATION, "-o", "x.json"], {"title", "cards"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_a_command_prints_is_one_object(here, words, keys, monkeypatch):
    monkeypatch.chdir(here)
    said = command(*words, "--json")
    assert said.exit_code == 0, said.output
    data = json.loads(said.stdout)
    assert keys <= set(data)
    if words[0] in ("evaluate", "compare"):
        rows = data["cards"]["held_out"]["rows"]
        assert [row["name"] for row in rows] == ["a", "b"]
        (metric,) = data["cards"]["held_out"]["metrics"]
        if words[0] == "compare":  # the file has the same numbers
            file = json.loads((here / "x.json").read_text())
            values = [c["scores"][metric]["value"] for c in file["contenders"]]
            assert values == [row["scores"][metric]["value"] for row in rows]


def test_the_page_about_commands_names_those_that_have_it():
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    part = text[text.index("`run`, `status`") : text.index("take `--json`")]
    told = set(re.findall(r"`(\w+)`", part))
    group = typer.main.get_command(app)
    have = {n for n, c in group.commands.items() if any("--json" in p.opts for p in c.params)}
    assert have == told


def test_json_has_no_number_that_is_none():
    given = {"a": float("nan"), 1: (float("inf"), 2.5), "p": None}
    assert plain(given) == {"a": None, "1": [None, 2.5], "p": None}
