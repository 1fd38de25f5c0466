"""The whole job as a user starts it, with --quick; and what a kill leaves.

The study is a small one: that of scripts/demo, whose rivals need trajectories, is run to its end
by test_readme.py.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_study import small_study

from stepsampler import load

HANG = 1800  # seconds, against hanging alone: a machine may have much else to do
pytestmark = pytest.mark.timeout(2 * HANG)
DEMO = Path(__file__).parents[2] / "studies" / "tiny-3-steps.toml"
STUDY = small_study(space={"max_steps": 5})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    file = tmp_path_factory.mktemp("studies") / "tiny.toml"
    file.write_text(STUDY)
    return file


def start(study, folder, *options, **how):
    code = "from stepsearch.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", study, "--quick", "--run", folder, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def finish(process):
    output, errors = process.communicate(timeout=HANG)
    assert process.returncode == 0, errors
    return output


def trials(folder):
    """States of the trials in the journal, by number."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


def complete(folder):
    """Values of the finished trials, by number."""
    if not (folder / "journal.log").exists():
        return {}
    return {t.number: t.value for t in trials(folder) if t.state.name == "COMPLETE"}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, study):
    folder = tmp_path_factory.mktemp("run")
    return folder, finish(start(study, folder))


def test_a_run_ends_with_a_table_a_schedule_and_pictures(finished_run):
    folder, output = finished_run
    assert "fd_texture128_40" in output
    result = json.loads((folder / "result.json").read_text())
    said = f"Too few images to claim anything (--quick). Of these few: {result['verdict']}"
    assert "".join(said.split()) in "".join(output.split())  # lines are broken
    shown = [line for line in output.splitlines() if "  search: trial " in line]
    assert all(" on 20 images, alignment " in t and ", the best so far" in t for t in shown)
    best = f"the best is trial {shown[-1].split()[3][:-1]}" if shown else "none of them keeps the"
    assert f"  search: 4 trials done, {best}" in output
    assert re.search(r"  baselines, 10 images: the best of \d+ baselines: ", output)
    schedule = load(folder / "best.json")
    assert schedule.passes <= 6
    assert schedule.provenance["metric"] == "fd_texture128_40"
    assert result["trials"] == 4
    assert {row["n"] for row in result["test"]} == {40}
    assert (folder / "grid.png").stat().st_size > 1000


def test_mlflow_mirrors_every_trial(finished_run):
    from mlflow import MlflowClient

    folder, _ = finished_run
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("stepsearch").experiment_id
    runs = client.search_runs([experiment])
    children = [r for r in runs if "stepsearch.trial" in r.data.tags]
    assert sorted(int(r.data.tags["stepsearch.trial"]) for r in children) == [0, 1, 2, 3]
    values = {t.number: t.value for t in trials(folder)}
    for run in children:
        number = int(run.data.tags["stepsearch.trial"])
        assert run.data.metrics["fd"] == pytest.approx(values[number])
        files = {f.path for f in client.list_artifacts(run.info.run_id)}
        assert "schedule.json" in files
        assert any(name.endswith(".png") for name in files)
    contenders = [r for r in runs if "stepsearch.contender" in r.data.tags]
    assert any("fd_test" in r.data.metrics for r in contenders)
    (parent,) = [r for r in runs if r not in children and r not in contenders]
    assert "test_fd" in parent.data.metrics


def test_the_same_command_again_repeats_nothing_and_says_the_same(finished_run, study):
    folder, output = finished_run
    before = {p: p.stat().st_mtime_ns for p in (folder / "cache").iterdir()}
    again = finish(start(study, folder))
    table = lambda text: [line for line in text.splitlines() if line.startswith("│")]  # noqa: E731
    assert table(again) == table(output)
    assert {p: p.stat().st_mtime_ns for p in (folder / "cache").iterdir()} == before


def test_a_run_with_other_settings_refuses_the_folder(finished_run, study):
    folder, _ = finished_run
    process = start(study, folder, "--seed", "5")
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 2
    assert "was started with search.seed = 0, now it is 5" in errors
    assert "Traceback" not in errors


def test_kill_and_run_again(tmp_path, study):
    folder = tmp_path / "run"
    options = ("--trials", "12", "--workers", "1")
    process = start(study, folder, *options)
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:  # until some trials are done and others under way
        if (folder / "plan.json").exists() and len(complete(folder)) >= 2:
            break
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = complete(folder)
    assert 2 <= len(kept) < 12
    assert not (folder / "best.json").exists()
    (folder / "mlflow.db").unlink()  # the mirror is lost as well; the search does not need it
    finish(start(study, folder, *options))
    after = complete(folder)
    assert len(after) == 12
    assert {number: after[number] for number in kept} == kept
    assert not any(t.state.name == "RUNNING" for t in trials(folder))
    load(folder / "best.json")


@pytest.mark.parametrize("to", [os.kill, os.killpg])  # as docker stop does, and SLURM
def test_sigterm_says_what_goes_on_and_leaves_nothing_behind(tmp_path, to):
    folder = tmp_path / "run"
    process = start(DEMO, folder, "--tracking", "none", start_new_session=True)
    for line in process.stdout:
        if "rivals" in line:  # its workers are at work
            break
    to(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 143
    assert len(errors.splitlines()) == 2, errors  # no traceback, no semaphores that are left
    first, goes_on = errors.splitlines()
    assert first == f"stopped; {folder} keeps what is done. This goes on:"
    assert goes_on == f"  stepsearch run {DEMO} --run {folder} --tracking none --quick"


def test_export_writes_the_winner(finished_run, study, tmp_path):
    folder, _ = finished_run
    code = "from stepsearch.cli import main; main()"
    out = tmp_path / "x.json"
    command = [sys.executable, "-c", code, "export", study, "--run", folder, "-o", out]
    subprocess.run(command, check=True, capture_output=True)
    assert load(out) == load(folder / "best.json")
    shutil.rmtree(tmp_path)
