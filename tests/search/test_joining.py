"""`stepsearch worker` means the run that `stepsearch run` with the same options has begun."""

import pytest
from typer.testing import CliRunner

from stepsearch.cli.app import app
from stepsearch.engine.claim import claim_folder

STUDY = "[space]\nnum_steps = 3\npasses = 6\n"
STORAGE = "postgresql://nobody@127.0.0.1:1/x"


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """(settings, folder) of each call; nothing runs."""
    calls = []

    def session(config, folder, *_, **__):
        calls.append((config, folder))

    def serve(folder, config, *_):
        calls.append((config, folder))
        return 0, 0

    monkeypatch.setattr("stepsearch.report.session.run_session", session)
    monkeypatch.setattr("stepsearch.engine.join.serve", serve)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").write_text(STUDY)
    return calls


def call(*words):
    return CliRunner().invoke(app, words, catch_exceptions=True)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--quick"],
        ["--seed", "3"],
        ["--quick", "--seed", "3", "--set", "evaluation.images=30"],
        ["--quick", "--run", "elsewhere"],
    ],
)
def test_the_options_of_a_run_are_those_of_its_workers(seen, options):
    for command in ("run", "worker"):
        ended = call(command, "x.toml", *options, "--storage", STORAGE)
        assert ended.exit_code == 0, ended.exception
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_in_a_folder_the_options_only_say_which(seen, monkeypatch):
    call("run", "x.toml", "--quick")
    ((config, folder),) = seen
    claim_folder(folder, config)
    loaded = []

    def evaluator(config, cache, device):
        loaded.append((config, cache.parent))
        raise KeyboardInterrupt

    monkeypatch.setattr("stepsearch.metrics.evaluator.Evaluator", evaluator)
    for given in (["x.toml"], ["x.toml", "--quick"], [str(folder)]):
        assert call("worker", *given).exit_code == 130
    assert loaded == 3 * [(config, folder)]


def test_options_beside_a_folder_are_refused(seen):
    call("run", "x.toml", "--quick")
    config, folder = seen[0]
    claim_folder(folder, config)
    ended = call("worker", str(folder), "--quick", "--storage", STORAGE)
    assert "--quick, --seed and --set go with a study file" in str(ended.exception)
