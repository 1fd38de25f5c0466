"""A run's folder after somebody renamed, edited, copied or lost some of its files."""

import json
import shutil

import optuna
import pytest
from running import ToyWorkers, run, settings

from stepsampler import UserError
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import SETTINGS, STUDY, adopt_settings, claimed, identity_of
from stepsearch.engine.run import run_study
from stepsearch.engine.store.journal import open_storage
from stepsearch.engine.study import finished, open_study
from stepsearch.engine.tracking import NoTracking
from stepsearch.report.summary import write


def small(**search):
    return settings(**{"trials": 4, "algorithm": "random", **search})


def edited(config, section, **values):
    data = config.model_dump()
    data[section] |= values
    return StudyConfig.model_validate(data)


def test_a_study_file_with_a_new_name_goes_on_with_the_trials_of_its_folder(tmp_path):
    run(tmp_path, small())
    renamed = small(trials=5).model_copy(update={"name": "other"})
    result, _, _ = run(tmp_path, renamed)
    assert result.trials == 5
    assert len(optuna.get_all_study_names(open_storage(tmp_path))) == 1


@pytest.mark.parametrize("name", ["study.json", "plan.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", pytest.param("[" * 100_000, id="deep"), None])
def test_a_lost_or_damaged_file_is_written_again(tmp_path, name, content, capsys):
    before, config, _ = run(tmp_path, small())
    whole = (tmp_path / name).read_text()
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
        look = {"study.json": claimed, "plan.json": identity_of}[name]
        with pytest.raises(UserError, match=f"{name} is damaged"):
            look(tmp_path)
    again, _, _ = run(tmp_path, config)
    assert (tmp_path / name).read_text() == whole
    assert again.winner.schedule == before.winner.schedule
    assert len(finished(open_study(tmp_path, config))) == 4
    assert (f"{name} is damaged" in capsys.readouterr().err) == (content is not None)


@pytest.mark.parametrize("copied", [False, True])
def test_trials_of_other_settings_are_not_taken_for_the_runs_own(tmp_path, copied):
    """Without study.json and plan.json, or with nothing but a journal from elsewhere."""
    folder = tmp_path / "a"
    run(folder, small())
    if copied:
        (tmp_path / "b").mkdir()
        shutil.copy(folder / "journal.log", tmp_path / "b")
        folder = tmp_path / "b"
    else:
        (folder / "study.json").unlink()
        (folder / "plan.json").unlink()
    with pytest.raises(UserError, match="started with evaluation.images = 60, now it is 80"):
        run(folder, edited(small(), "evaluation", images=80))
    assert not (folder / "study.json").exists()


@pytest.mark.parametrize("lost", [False, True])
def test_a_key_that_is_newer_than_the_run_is_as_its_default_was(tmp_path, lost):
    """Its trials were made without it, wherever that is written."""
    config = edited(small(), "space", churn=(0.0, 0.5))
    run(tmp_path, config)
    study = open_study(tmp_path, config)
    earlier = study.user_attrs[SETTINGS]
    del earlier["space"]["fresh_noise"]
    study.set_user_attr(SETTINGS, earlier)
    (tmp_path / STUDY).write_text(json.dumps(earlier))
    if lost:
        (tmp_path / STUDY).unlink()
    newer = edited(config, "space", fresh_noise="per-step")
    said = "space.fresh_noise = 'constant', now it is 'per-step'"
    with pytest.raises(UserError, match=said):
        run(tmp_path, newer)
    result, _, _ = run(tmp_path, config)
    assert result.trials == 4


def test_a_worker_is_told_that_its_key_is_newer_than_the_run(tmp_path):
    config = edited(small(), "space", churn=(0.0, 0.5))
    run(tmp_path / "led", config)
    study = open_study(tmp_path / "led", config)
    earlier = study.user_attrs[SETTINGS]
    del earlier["space"]["fresh_noise"]
    study.set_user_attr(SETTINGS, earlier)
    newer = edited(config, "space", fresh_noise="per-step")
    with pytest.raises(UserError, match="space.fresh_noise = 'constant', here it is 'per-step'"):
        adopt_settings(study, tmp_path / "worker", newer)
    assert adopt_settings(study, tmp_path / "worker", config) == config


def test_trials_of_another_model_are_not_taken_for_the_runs_own(tmp_path):
    run(tmp_path, small())
    (tmp_path / "plan.json").unlink()

    class Others(ToyWorkers):
        def describe(self):
            return type(super().describe())(**{**vars(super().describe()), "identity": "other"})

    workers = Others(small(), tmp_path)
    with pytest.raises(UserError, match="model, reference and prompts = 'toy', now it is 'other'"):
        run_study(small(), tmp_path, workers, NoTracking(), lambda *_: None)
    assert workers.images == 0


def test_the_run_that_a_search_began_from_may_go_once_its_trials_are_queued(tmp_path):
    source = tmp_path / "source"
    result, config, _ = run(source, small())

    write(result, config, source)
    config = small(start_from=str(source))
    run(tmp_path / "x", config)
    known = len(open_study(tmp_path / "x", config).trials)
    shutil.rmtree(source)
    result, _, _ = run(tmp_path / "x", config)
    assert len(open_study(tmp_path / "x", config).trials) == known
    with pytest.raises(UserError, match="search.start_from: .*source: no finished run"):
        run(tmp_path / "y", config)


def test_a_search_may_begin_from_a_run_by_the_name_of_its_study_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, config, _ = run(tmp_path / "runs" / "toy", small())

    write(result, config, tmp_path / "runs" / "toy")
    config = small(start_from="studies/toy.toml")
    run(tmp_path / "x", config)
    origins = [t.user_attrs.get("origin", "") for t in open_study(tmp_path / "x", config).trials]
    assert any(origin.endswith("of toy") for origin in origins)
    (tmp_path / "runs" / "toy" / "result.json").write_text("{")
    with pytest.raises(UserError, match="search.start_from: runs/toy/result.json is damaged"):
        run(tmp_path / "y", config)
