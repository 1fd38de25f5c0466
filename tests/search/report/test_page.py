"""The page of a run: what it says, of a whole run and of less than one."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from reporting import begun, command, pictures, small, toy_run
from running import run

from stepsampler import load
from stepsampler.formats import export
from stepsearch.report import charts
from stepsearch.report.cards import NAMES, fill
from stepsearch.report.cards.health import _late, checks
from stepsearch.report.page import render, write_page
from stepsearch.report.plain import of_source
from stepsearch.report.sources import of_run

MOST = 3_000_000  # bytes


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, toy_run(folder)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy to damage."""
    import shutil

    return shutil.copytree(finished[0], tmp_path / "copied")


def cards_of(folder):
    return {card.name: card for card in fill(of_run(folder))}


class Tags(HTMLParser):
    """Counts elements, and gathers texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data")]

    def handle_data(self, data):
        self.texts.append(data)


def test_a_finished_run_has_every_card_but_what_needs_more_images(finished):
    cards = cards_of(finished[0])
    assert tuple(cards) == tuple(name for name in NAMES if name != "front")
    assert {name for name, card in cards.items() if card.data is None} == {"ablation"}
    assert "stepsearch report --ablation" in cards["ablation"].why_not


def test_the_table_has_the_numbers_of_the_result_with_intervals_of_student(finished):
    folder, result = finished
    data = cards_of(folder)["held_out"].data
    metric = data["metrics"][0]
    assert metric == "fd_toy4_400"
    for row, tested in zip(data["rows"], result.test, strict=True):
        score = row["scores"][metric]
        assert (row["name"], row["passes"]) == (
            tested.candidate.name,
            tested.candidate.schedule.passes,
        )
        assert (score["value"], score["se"]) == (tested.score.value, tested.score.se)
        if tested is result.found:
            assert "minus" not in score
            continue
        less, se = tested.score.minus(result.found.score)
        low, high = score["interval_95"]
        assert score["minus"] == less
        assert (high - low) / 2 == pytest.approx(2.0930 * se, rel=1e-4)  # t of 19, tabulated
    assert [row["exported"] for row in data["rows"]].count(True) == 1


def test_the_verdict_has_the_runs_own_words_and_its_paired_interval(finished):
    folder, result = finished
    data = cards_of(folder)["verdict"].data
    known = json.loads((folder / "result.json").read_text())
    assert data["sentence"] == known["verdict"]
    best = min(result.of_kind("baseline"), key=lambda row: row.score.value)
    assert data["best"]["name"] == best.candidate.name
    low, high = data["interval_95"]
    assert low < data["gain"] < high
    assert data["gain"] == best.score.minus(result.found.score)[0]


def test_schedules_are_those_of_the_test(finished):
    folder, result = finished
    data = cards_of(folder)["schedules"].data
    for entry, row in zip(data["schedules"], result.test, strict=False):
        plan = row.candidate.schedule
        assert [step["sigma"] for step in entry["steps"]] == [step.sigma for step in plan.steps]
        assert sum(step["passes"] for step in entry["steps"]) == plan.passes


def test_gains_are_drawn_where_a_schedule_has_any(finished, copied):
    data = json.loads((copied / "result.json").read_text())
    data["test"][0]["schedule"]["steps"][1]["gain"] = 1.07
    (copied / "result.json").write_text(json.dumps(data))
    before, page = (render(run, fill(run)) for run in map(of_run, (finished[0], copied)))
    assert "What each step takes of the predictions" not in before
    assert "What each step takes of the predictions" in page
    assert '<td class="n">1.07</td>' in page
    (schedule, *_) = of_source(of_run(copied))["cards"]["schedules"]["schedules"]
    assert [step["gain"] for step in schedule["steps"]][:2] == [1, 1.07]


def test_every_tools_text_is_that_of_formats_with_what_it_loses(finished):
    folder, _ = finished
    plan = replace(load(folder / "best.json"), provenance={})
    texts = {t.get("format"): t for t in cards_of(folder)["use_it"].data["texts"]}
    assert {"comfyui", "sd.cpp", "diffusers:StepScheduler"} <= set(texts)
    for name, told in texts.items():
        if name is None or "refused" in told:
            continue
        made = export(plan, name, lossy=True)
        assert (told["text"], told["lost"]) == (made.text, list(made.lost))
    flow = texts["diffusers:FlowMatchEulerDiscreteScheduler"]
    assert "refused" in flow or flow["lost"]


def test_a_page_is_html_and_no_other_file(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command("report", finished[0], "-o", "x.txt")
    assert str(said.exception) == "--out must be an .html file, got 'x.txt'"
    assert not Path("x.txt").exists()


def test_json_is_what_the_page_shows(finished, capsys):
    folder, _ = finished
    said = command("report", folder, "--json")
    source = of_run(folder)
    assert said.exit_code == 0
    assert json.loads(said.stdout) == json.loads(json.dumps(of_source(source)))


def test_the_page_asks_for_nothing_and_runs_its_own_script_alone(finished, tmp_path):
    write_page(of_run(finished[0]), tmp_path / "page.html")
    page = Tags((tmp_path / "page.html").read_text())
    assert page.tags.count("script") == 1
    assert all(a.startswith(("data:", "#")) for a in page.addresses)
    assert {"iframe", "object", "form"}.isdisjoint(page.tags)


NAME = "<script>alert(1)</script>&amp; $x_1$ \"'{{ 7 * 7 }}"


def test_names_and_prompts_are_never_markup(tmp_path):
    study = NAME.replace("/", "")  # or it would be no name of a file
    toy_run(tmp_path / "run", name=study, prompts=(NAME, "_shoe"))
    known = json.loads((tmp_path / "run" / "result.json").read_text())
    known["test"][0]["name"] = known["test"][1]["name"] = f"_{NAME}"
    (tmp_path / "run" / "result.json").write_text(json.dumps(known))
    source = of_run(tmp_path / "run")
    text = render(source, list(fill(source)))
    page = Tags(text)
    assert page.tags.count("script") == 1
    assert "<script>alert" not in text
    assert study in page.texts  # as heading
    assert NAME in page.texts  # as prompt
    assert "49" not in page.texts


def test_markdown_and_latex_escape_what_they_must(copied):
    known = json.loads((copied / "result.json").read_text())
    known["test"][0]["name"] = "a|b & 50% of_x"
    (copied / "result.json").write_text(json.dumps(known))
    data = cards_of(copied)["held_out"].data
    head, rule, first, *_ = data["markdown"].splitlines()
    assert first.startswith("| a\\|b & 50% of_x |")
    assert head.count("|") == rule.count("|") == first.count("|") - 1
    assert "a|b \\& 50\\% of\\_x &" in data["latex"]
    columns = data["latex"].splitlines()[0].count("r}") and data["latex"].splitlines()[2]
    assert columns.count("&") == head.count("|") - 2


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    begun(tmp_path / "run")
    said = command("report", tmp_path / "run", "-o", tmp_path / "page.html")
    assert said.exit_code == 0, said.output
    text = (tmp_path / "page.html").read_text()
    assert "0 of 12 trials are measured" in text
    assert "There are no pictures" in text


def test_a_run_without_its_test_shows_what_it_has_found_so_far(tmp_path):
    run(tmp_path / "run", small())
    cards = cards_of(tmp_path / "run")
    assert cards["schedules"].data["schedules"][0]["name"] == "the best so far"
    assert len(cards["history"].data["trials"]) == 12
    assert cards["use_it"].data is not None
    assert "12 of 12 trials are measured" in cards["verdict"].why_not
    render(of_run(tmp_path / "run"), list(cards.values()))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("result.json", "{"),
        ("result.json", "[]"),
        ("result.json", "{}"),
        ("result.json", '{"test": [], "metric": "fd"}'),
        ("result.json", '{"test": [{"name": 1}], "metric": "fd"}'),
        ("result.json", "\udcff"),
        ("best.json", "{"),
        ("best.json", '{"format": "stepsearch.schedule/9"}'),
        ("journal.log", "no record\n"),
        ("journal.log", '{"op_code": 99}\n'),
        ("journal.log", ""),
        ("study.json", "{"),
        ("study.json", '{"name": "toy"}'),
        ("plan.json", "{"),
        *(
            pytest.param(file, "[" * 100_000, id=f"{file}-deep")
            for file in ("plan.json", "study.json", "result.json", "pictures/pictures.json")
        ),
        ("pictures/pictures.json", "{"),
        ("pictures/pictures.json", '{"rows": 3, "seeds": [], "prompts": []}'),
        ("pictures/0-0.png", "no picture"),
        ("jitter.json", "{"),
        ("jitter.json", "[]"),
        ("ablation.json", '{"rows": []}'),
        ("ablation.json", '{"rows": [{}], "metric": "fd", "n": 1}'),
    ],
)
def test_a_damaged_file_costs_its_card_and_no_more(copied, tmp_path, monkeypatch, file, text):
    monkeypatch.setattr(charts, "_svg", lambda *_: "<svg></svg>")  # half of the time
    (copied / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    out = tmp_path / "page.html"
    said = command("report", copied, "-o", out)
    if file == "study.json":
        assert said.exit_code != 0
        assert isinstance(said.exception, Exception)
        assert str(copied / file) in str(said.exception)
        return
    assert said.exit_code == 0, said.exception
    assert out.stat().st_size > 10_000
    if file in ("result.json", "best.json"):
        assert file in said.output + out.read_text()


def test_a_missing_picture_is_said_to_be_missing(copied):
    (copied / "pictures" / "1-1.png").unlink()
    data = cards_of(copied)["same_seeds"].data
    assert data["missing"] == 1
    assert data["rows"][1]["pictures"][1] is None
    assert data["rows"][1]["pictures"][0].startswith("data:image/png;base64,")


def test_a_result_of_an_older_version_has_no_schedules_and_still_a_page(copied):
    known = json.loads((copied / "result.json").read_text())
    for row in [*known["test"], known["teacher"]]:
        row.pop("schedule", None)
        row.pop("alignment_se", None)
    (copied / "result.json").write_text(json.dumps(known))
    cards = cards_of(copied)
    assert cards["held_out"].data is not None
    assert cards["schedules"].data["schedules"][0]["name"] == "the best so far"


def test_two_thousand_trials_stay_a_page(finished):
    """And what decides is the most important."""
    study = optuna.create_study()
    interval = optuna.distributions.FloatDistribution(0, 1)
    plan = load(finished[0] / "best.json").to_json()
    for i in range(2000):
        x, noise = (i * 0.618) % 1, (i * 0.414) % 1
        trial = optuna.trial.create_trial(
            params={"x": x, "y": noise, **{f"z{k}": (i * 0.1 * k) % 1 for k in range(8)}},
            distributions=dict.fromkeys(("x", "y", *(f"z{k}" for k in range(8))), interval),
            value=1 + (x - 0.3) ** 2 + 0.01 * noise,
            user_attrs={"schedule": plan, "passes": 6, "images": 100, "seconds": 1.0},
        )
        study.add_trial(trial)
    source = replace(of_run(finished[0]), study=study)
    cards = list(fill(source))
    history = next(card for card in cards if card.name == "history").data
    assert len(history["trials"]) == 2000
    assert history["trials"][-1]["passes"] == 2000 * 600
    assert next(iter(history["importances"])) == "x"
    assert len(render(source, cards)) < MOST


def test_sixty_large_pictures_stay_within_three_megabytes(copied):
    pictures(copied, [f"prompt {k}" for k in range(10)], 512, [f"row {i}" for i in range(6)])
    source = of_run(copied)
    cards = list(fill(source))
    shown = next(card for card in cards if card.name == "same_seeds").data
    assert sum(len(row["pictures"]) for row in shown["rows"]) == 60
    assert not shown["missing"]
    assert len(render(source, cards)) < MOST


def state(folder, name):
    return {c["name"]: c for c in checks(of_run(folder))}[name]


def test_health_sees_what_is_wrong(copied):
    known = json.loads((copied / "result.json").read_text())
    assert state(copied, "gain beyond the noise")["state"] == "PASS"
    assert state(copied, "other extractors")["state"] == "LOOK"  # there is only one
    rivals = [row for row in known["test"] if row["kind"] == "baseline"]
    rivals[0]["minus_found"] = rivals[0]["minus_found_se"]
    (copied / "result.json").write_text(json.dumps(known))
    assert state(copied, "gain beyond the noise")["state"] == "LOOK"
    rivals[0]["minus_found"] = -3 * rivals[0]["minus_found_se"]
    for row in known["test"]:
        row["n"] = 40
    (copied / "result.json").write_text(json.dumps(known))
    assert state(copied, "gain beyond the noise")["state"] == "FAIL"
    assert state(copied, "images")["state"] == "FAIL"


def test_health_counts_trials_that_ended_early_among_those_before_the_best():
    study = optuna.create_study()
    for k in range(40):
        cut = k % 4 > 0
        state = TrialState.PRUNED if cut else TrialState.COMPLETE
        value = None if cut else abs(k - 12.0)
        study.add_trial(optuna.trial.create_trial(value=value, state=state))
    source = SimpleNamespace(study=study, trials=study.get_trials(states=(TrialState.COMPLETE,)))
    assert list(_late(source)) == [("PASS", "The best trial came as number 13 of 40.", "")]


def test_health_says_when_extractors_disagree(copied):
    known = json.loads((copied / "result.json").read_text())
    for row in known["test"]:
        less = row.get("minus_found") or 0.0
        row["fd_other"] = {"fd": 5.0, "se": 0.1, "minus_found": less, "minus_found_se": 0.1}
    (copied / "result.json").write_text(json.dumps(known))
    assert state(copied, "other extractors")["state"] == "PASS"
    rival = next(row for row in known["test"] if row["kind"] == "baseline")
    rival |= {"minus_found": 5.0, "minus_found_se": 1.0}
    rival["fd_other"] |= {"minus_found": -0.19}
    (copied / "result.json").write_text(json.dumps(known))
    assert state(copied, "other extractors")["state"] == "PASS", "within two of its errors"
    rival["fd_other"] |= {"minus_found": -0.21}
    (copied / "result.json").write_text(json.dumps(known))
    said = state(copied, "other extractors")
    assert said["state"] == "LOOK"
    assert f"{rival['name']} under fd_other" in said["sentence"]


def test_an_evaluation_has_a_page_with_its_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(("a", "b")):
        pictures(tmp_path / name, ["x"] * 12, rows=["r, 0"], seed=k)
        (tmp_path / name / "pictures" / "pictures.json").unlink()
    folders = ("a/pictures", "b/pictures")
    options = ("evaluate", *folders, "--images", 12, "-o")
    said = command(*options, "page.html")
    assert said.exit_code == 0, said.output
    page = Tags((tmp_path / "page.html").read_text())
    assert page.tags.count("img") == 20
    assert command(*options, "result.json").exit_code == 0
    said = command("report", "result.json", "--json")
    data = json.loads(said.stdout)["cards"]
    assert [row["name"] for row in data["held_out"]["rows"]] == json_names(tmp_path)
    assert "why_not" in data["history"]
    assert command("report", "a/pictures/0-0.png", "-o", "x.html").exit_code != 0


def json_names(folder):
    data = json.loads((folder / "result.json").read_text())
    return [entry["name"] for entry in data["contenders"]]


def test_pictures_with_too_few_prompts_cost_their_card(copied):
    index = copied / "pictures" / "pictures.json"
    data = json.loads(index.read_text())
    index.write_text(json.dumps({**data, "prompts": data["prompts"][:1]}))
    source = of_run(copied)
    cards = {card.name: card for card in fill(source)}
    assert cards["same_seeds"].data is None
    render(source, list(cards.values()))


def test_a_chart_that_cannot_be_drawn_costs_its_card(copied):
    source = of_run(copied)
    cards = list(fill(source))
    place = next(k for k, card in enumerate(cards) if card.name == "history")
    cards[place] = replace(cards[place], data={**cards[place].data, "importances": {1.0: 0.5}})
    text = render(source, cards)
    assert "cannot be drawn" in text
    assert "On held-out seeds" in text
