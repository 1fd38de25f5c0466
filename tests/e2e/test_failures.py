"""Runs in trouble, each with the same command again until it has ended: scripts/chaos.py, of which
these are chosen rounds. What is said there of a round holds, or it says which part does not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from postgres import program

ROOT = Path(__file__).parents[2]
HANG = 1800  # seconds, against hanging alone: a machine may have much else to do
pytestmark = pytest.mark.timeout(2 * HANG)
PLANS = {
    "killed": "journal/none/kill_run+kill_a_joined_worker+kill_a_process_of_the_run",
    "moved": "journal/none/move+interrupt+terminate",
    "cut": "journal/none/cut_files+nuls_in_the_journal",
    "full": "journal/none/full_disk",
    "frozen": "database/none/freeze_a_worker",
    "database": "database/none/restart_database",
    "mirror": "journal/local/delete_mlflow+lock_mlflow",
    "server": "journal/server/restart_mlflow",
}


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """What was said of each; all in one call, which imports everything once."""
    folder = tmp_path_factory.mktemp("chaos")
    command = [sys.executable, ROOT / "scripts" / "chaos.py", "--folder", folder]
    called = subprocess.run(
        [*command, "--plan", *PLANS.values()], capture_output=True, text=True, timeout=HANG
    )
    said = re.findall(r"^round (\d+): (.*)$", called.stdout, re.MULTILINE)
    assert len(said) == len(PLANS), called.stdout + called.stderr
    assert called.returncode == int("FAULT" in called.stdout), called.stderr
    return {name: said[k][1] for k, name in enumerate(PLANS)}


def held(said):
    assert "FAULT" not in said, said
    assert re.search(r"\d+ trials", said), said


def test_a_run_its_processes_and_those_that_joined_are_killed(rounds):
    held(rounds["killed"])


def test_a_run_goes_on_on_another_machine(rounds):
    """A requeued job, another container: nobody there sees the locks of this kernel."""
    held(rounds["moved"])


def test_files_are_cut_short_by_a_power_loss(rounds):
    held(rounds["cut"])


def test_the_disk_is_full_for_a_while(rounds):
    if "no disk of ours" in rounds["full"]:
        pytest.skip("this user may mount no small disk")
    held(rounds["full"])


@pytest.mark.skipif(program("initdb") is None, reason="PostgreSQL is not installed")
def test_a_worker_is_frozen_for_longer_than_a_silence(rounds):
    held(rounds["frozen"])


@pytest.mark.skipif(program("initdb") is None, reason="PostgreSQL is not installed")
def test_the_database_is_stopped_and_started_again(rounds):
    held(rounds["database"])


def test_mlflows_database_is_deleted_and_locked(rounds):
    held(rounds["mirror"])


def test_a_server_of_mlflows_is_killed_and_started_again(rounds):
    held(rounds["server"])
