"""The page of several runs, and what exports say on the way to a page."""

import json
from html.parser import HTMLParser

import pytest
from reporting import command, toy_runs

from stepsampler import load
from stepsampler.presets import preset
from stepsearch.report.cards import use_it
from stepsearch.report.sources import Source


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return toy_runs(tmp_path_factory.mktemp("runs"))


def exported(folder):
    """The line of the run's own test for what it exported."""
    name = load(folder / "best.json").provenance["source"]
    rows = json.loads((folder / "result.json").read_text())["test"]
    return next(row for row in rows if row["name"] == name)


class Sections(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.bold = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.ids += [dict(attrs)["id"]] if tag == "section" else []
        self.bold += tag == "b"


def test_a_front_has_a_page_of_the_same_cards(runs, tmp_path):
    out = tmp_path / "front.html"
    said = command("front", *runs, "-o", out)
    assert said.exit_code == 0, said.output
    assert f"{out}: the page" in said.stdout
    assert list(tmp_path.iterdir()) == [out]
    page = Sections(out.read_text())
    assert page.ids == [
        "verdict", "front", "held_out", "schedules", "same_seeds", "health", "use_it", "provenance",
    ]  # fmt: skip
    assert page.bold == 0  # names are no markup


def test_its_data_are_those_of_the_runs(runs, tmp_path):
    said = command("front", *runs, "-o", tmp_path / "front.html", "--json")
    cards = json.loads(said.stdout)["cards"]
    tests = [exported(folder) for folder in runs]
    entries = cards["front"]["entries"]
    assert [(e["passes"], e["value"], e["se"]) for e in entries] == [
        (row["passes"], row["fd"], row["se"]) for row in tests
    ]
    assert entries[1]["dominated"] == (tests[1]["fd"] >= tests[0]["fd"])
    assert cards["same_seeds"]["prompts"] == ["a shoe", "a bag"]
    assert cards["same_seeds"]["missing"] == 0
    names = cards["provenance"]["facts"]
    assert all(any(key.startswith(str(folder)) for key in names) for folder in runs)
    assert [row["n"] for row in cards["held_out"]["rows"]] == [400, 400]


@pytest.mark.parametrize("name", ["interval-dit-xl2", "seed-sd-4-retrain-free"])
def test_what_an_export_loses_is_on_the_page_and_not_on_stderr(name, capfd):
    plan = preset(name).schedule
    texts = use_it.data(Source("x", "", schedule=plan))["texts"]
    (ours,) = [t for t in texts if t.get("format") == "diffusers:StepScheduler"]
    assert ours["lost"]
    assert capfd.readouterr() == ("", "")
