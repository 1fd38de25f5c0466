"""What is said of a run that has ended, has ended before, or is not of its study any more."""

import json
import os
import sys

import pytest
from running import ToyWorkers, run, settings
from typer.testing import CliRunner

from stepsearch.cli.app import app
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import claim_folder, has_ended
from stepsearch.report import session
from stepsearch.report.summary import write

STUDY = """
[space]
num_steps = 3
passes = 6
max_steps = 6
[evaluation]
images = {images}
selection_images = 100
test_images = 400
[baselines]
rungs = [20, 60]
guidance_scales = [2.0]
long_steps = [20]
rivals = ["dmn"]
[teacher]
images = 100
test = true
[search]
trials = 4
algorithm = "random"
"""


def small(trials=4):
    return settings(trials=trials, algorithm="random")


def ended(folder, config=None):
    result, config, _ = run(folder, config or small())
    write(result, config, folder)


def command(*options):
    return CliRunner().invoke(app, [*map(str, options)])


def test_a_run_has_ended_with_the_budget_that_it_had(tmp_path):
    run(tmp_path, small())
    assert not has_ended(tmp_path, small())  # nothing is written yet
    ended(tmp_path)
    assert has_ended(tmp_path, small())
    assert not has_ended(tmp_path, small(5))
    known = json.loads((tmp_path / "result.json").read_text())
    del known["study"]["search"]["patience"]  # as of a version before there was such a key
    (tmp_path / "result.json").write_text(json.dumps(known))
    assert has_ended(tmp_path, small())
    (tmp_path / "result.json").write_text("{")
    assert not has_ended(tmp_path, small())


def test_an_earlier_end_is_not_taken_for_that_of_a_larger_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended(tmp_path / "runs" / "toy")
    assert "  ended: runs/toy/best.json" in command("status", "runs/toy").output
    claim_folder(tmp_path / "runs" / "toy", small(9))  # as a run does that is killed then
    assert "under way again; of an earlier end" in command("status", "runs/toy").output
    said = command("export", "toy.toml", "-o", "x.json").output
    assert "the run is under way again: this is of its earlier end" in said


@pytest.mark.parametrize("text", ['{"study": ', "[]", pytest.param("[" * 100_000, id="deep")])
def test_a_damaged_result_is_not_told_as_a_run_that_goes_on(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    ended(tmp_path / "runs" / "toy")
    (tmp_path / "runs" / "toy" / "result.json").write_text(text)
    said = command("export", "toy.toml", "-o", "x.json").output
    assert "runs/toy/result.json is damaged: whether its run has ended is not known" in said
    assert "under way" not in said
    said = command("status", "runs/toy").output
    assert "runs/toy/result.json is damaged, and the same stepsearch run makes it anew" in said
    assert "under way" not in said


def test_export_says_that_the_study_is_not_what_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended(tmp_path / "runs" / "toy")
    study = tmp_path / "toy.toml"
    study.write_text(STUDY.format(images=60))
    before = command("export", "toy.toml", "-o", "x.json").output
    assert before.splitlines()[1:] == []
    study.write_text(STUDY.format(images=80).replace("trials = 4", "trials = 60"))
    said = command("export", "toy.toml", "-o", "x.json").output
    assert "  the run had evaluation.images = 60, toy.toml has 80" in said
    assert "  the run had search.trials = 4, toy.toml has 60" in said
    study.write_text("[space")
    said = command("export", "toy.toml", "-o", "x.json").output
    assert "toy.toml: not TOML, as a study file is" in said


@pytest.mark.parametrize("name", ["toy-quick", "toy-quick-seed1", "mine"])
def test_a_quick_run_is_known_by_its_settings_not_by_its_name(tmp_path, monkeypatch, name):
    from stepsearch.cli.running import QUICK

    monkeypatch.chdir(tmp_path)
    data = small().model_dump()
    for section in ("evaluation", "teacher"):
        data[section] |= QUICK[section]
    ended(tmp_path / "runs" / name, StudyConfig.model_validate(data))
    said = command("export", "toy.toml", "--run", f"runs/{name}", "-o", "x.json").output
    assert "of a --quick run: too few images to claim anything" in said


@pytest.mark.parametrize("name", ["a[/b]", "[bold]:cat:"])
def test_a_finished_run_says_so_and_where_its_results_lie(tmp_path, monkeypatch, capsys, name):
    """Names in brackets or colons are names, not markup."""
    monkeypatch.chdir(tmp_path)

    class Pooled(ToyWorkers):
        def __init__(self, config, folder, *_):
            super().__init__(config, folder)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(session, "Workers", Pooled)
    monkeypatch.setattr(session, "write_pictures", lambda *_: None)
    monkeypatch.setattr(session, "attach", lambda *_: None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    folder = (tmp_path / name).relative_to(tmp_path)
    config = small().model_copy(update={"name": name.replace("/", "")})
    said = []
    for _ in range(2):
        session.run_session(config, folder, ["cpu"], "none", False)
        said.append(capsys.readouterr().out)
    assert "finished" not in said[0]
    finished = f"{name}: this run is finished, and nothing is measured twice; its schedule is in "
    assert f"{finished}{name}{os.sep}best.json" in said[1]
    for text in said:
        assert f"study {config.name}: 6 passes per image, 4 trials by random, 1 worker on" in text
        assert f"  {name}/journal.log  the Optuna study" in text
        assert "search …" in text
