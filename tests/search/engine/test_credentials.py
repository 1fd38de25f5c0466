"""Passwords in the addresses of servers: in no output, no log, no record, no file and no page."""

import json
import logging
import subprocess
import sys

import pytest
from reporting import begun
from sharing import lead, small
from typer.testing import CliRunner

from stepsampler import UserError
from stepsearch.cli.app import app
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import remember_storage
from stepsearch.engine.store import database
from stepsearch.engine.store.addresses import passwords_of, without_passwords
from stepsearch.engine.tracking import MlflowTracking

WORD = "s3cret-w0rd"
STUDY = "[space]\nnum_steps = 3\npasses = 6\n"
STORAGES = [
    f"postgresql://me:{WORD}@127.0.0.1:1/x",
    f"postgresql://127.0.0.1:1/x?user=me&password={WORD}",
    f"postgresql://me:{WORD}@127.0.0.1:port/x",
    f"mysql://me:{WORD}@127.0.0.1:1/x",
    f"mysql+pymysql://127.0.0.1:1/x?passwd={WORD}",
    f"mysql://127.0.0.1:1/x?sslmode=require&foo={WORD}",  # a key that we do not know
    f"grpc://me:{WORD}@127.0.0.1",
    f"grpc://me:{WORD}@127.0.0.1:1",
    f"sqlite://me:{WORD}@127.0.0.1/x",
    f"me:{WORD}@127.0.0.1:5432",
    f"postgresql://me:p[{WORD}@127.0.0.1:1/x",  # urllib takes it for an address of IPv6
    f"grpc://me:p[{WORD}@127.0.0.1:1",
    f"postgresql://me:\u2100{WORD}@127.0.0.1:1/x",  # urllib refuses it, and shows the word
    f"postgresql://me:p@{WORD}@127.0.0.1:1/x",  # drivers take the word for the host
    f"postgresql://me:{WORD}",  # and here for the port
]
TRACKINGS = [f"me:{WORD}@127.0.0.1:5000", f"http:/me:{WORD}@127.0.0.1", f"x?token={WORD}"]


@pytest.fixture
def here(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(database, "CONNECT", 1)
    caplog.set_level(logging.DEBUG)
    (tmp_path / "x.toml").write_text(STUDY)
    return tmp_path


def said(words, caplog):
    """All that a command says, logs or raises, the causes of what it raises left aside."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code, result.output
    text = result.output + str(result.exception) + caplog.text
    assert isinstance(result.exception, UserError | SystemExit), text
    return text


def no_file_has_it(folder):
    for path in folder.rglob("*"):
        assert not path.is_file() or WORD.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("address", STORAGES)
@pytest.mark.parametrize("command", ["worker", "status"])
def test_an_address_that_does_not_serve_is_shown_without_its_password(
    here, caplog, command, address
):
    run = {"worker": "x.toml", "status": "far"}[command]  # a run elsewhere needs no folder here
    text = said([command, run, "--storage", address], caplog)
    assert WORD not in text
    assert "storage" in text
    no_file_has_it(here)


@pytest.mark.parametrize("address", STORAGES)
def test_a_run_that_cannot_begin_keeps_no_password(here, caplog, address, monkeypatch):
    from stepsearch.engine.store.database import open_database

    # as far as the run comes before it loads a model, and then what it asks first
    monkeypatch.setattr(
        "stepsearch.report.session.run_session", lambda *_, storage, **__: open_database(storage)
    )
    text = said(["run", "x.toml", "--storage", address], caplog)
    assert WORD not in text
    assert not (here / "runs" / "x" / "storage.json").exists()  # nothing binds the folder to it
    no_file_has_it(here)


def test_a_run_of_another_storage_is_named_without_its_password(here, caplog):
    remember_storage(here / "runs" / "x", STORAGES[0])
    no_file_has_it(here)
    other = said(["run", "x.toml", "--storage", f"postgresql://me:{WORD}@elsewhere/x"], caplog)
    assert "its trials are in" in other
    assert WORD not in other


@pytest.mark.parametrize("address", TRACKINGS)
@pytest.mark.parametrize("command", [["run", "x.toml"], ["doctor"]])
def test_a_mistyped_address_of_mlflow_is_shown_without_its_password(here, caplog, command, address):
    text = said([*command, "--tracking", address], caplog)
    assert "--tracking must be local, none or an address" in text
    assert WORD not in text


def test_the_doctor_and_the_artifacts_show_none(here, caplog):
    doctor = CliRunner().invoke(app, ["doctor", "--tracking", f"http://me:{WORD}@127.0.0.1:1"])
    assert "MLflow" in doctor.output
    assert WORD not in doctor.output + caplog.text
    for address in (f"s3://key:{WORD}@bucket", f"ftp://me:{WORD}@host/x"):
        given = ["--storage", "mysql://127.0.0.1:1/x", "--artifacts", address]
        assert WORD not in said(["run", "x.toml", *given], caplog)
    no_file_has_it(here)


@pytest.mark.parametrize(
    "options",
    [
        ["--tracking", f"http://me:{WORD}@127.0.0.1:1"],
        ["--tracking", f"foo://me:{WORD}@127.0.0.1/x"],
        ["--tracking", f"me:{WORD}@127.0.0.1"],
        ["--storage", STORAGES[0]],
        ["--storage", STORAGES[5]],
    ],
)
def test_nor_does_sync(here, caplog, options):
    (here / "runs").mkdir()
    begun(here / "runs" / "x")
    assert WORD not in said(["sync", "x.toml", *options], caplog)
    no_file_has_it(here)


def test_a_fault_of_ours_shows_none_either(here):
    """An exception that nobody foresaw is a traceback, without the values of variables."""
    code = (
        "import stepsearch.report.session as session\n"
        "def run_session(*_, **__): raise RuntimeError('a fault')\n"
        "session.run_session = run_session\n"
        "from stepsearch.cli import main\n"
        "main()\n"
    )
    given = ["--storage", STORAGES[0], "--tracking", f"http://me:{WORD}@127.0.0.1:1"]
    command = [sys.executable, "-c", code, "run", "x.toml", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=here)
    assert "RuntimeError: a fault" in done.stderr
    assert WORD not in done.stdout + done.stderr
    no_file_has_it(here)


def test_a_run_in_a_database_leaves_none_in_files_records_page_or_mlflow(
    here, server, name, capfd, caplog
):
    from mlflow import MlflowClient

    assert server.password == WORD
    lead(here / name, small(), server.address)
    # the store of MLflow, a database too, whose address has a password that SQLite has no use for
    uri = f"sqlite:///{here}/team.db?password={WORD}"
    news = []
    tracker = MlflowTracking(uri, news.append)
    tracker.start(StudyConfig.model_validate(small().model_dump()), here / name)
    study = database.open_database(server.address)
    (known, *_) = [s for s in study.get_all_studies() if s.study_name == name]
    told = [t.user_attrs | t.system_attrs for t in study.get_all_trials(known._study_id)]
    assert WORD not in json.dumps([known.user_attrs, known.system_attrs, told], default=str)
    tracker.finish({}, [])
    result = CliRunner().invoke(app, ["status", name, "--storage", server.address, "--json"])
    page = CliRunner().invoke(app, ["report", name, "-o", "page.html"])
    assert result.exit_code == page.exit_code == 0, page.output
    everything = result.output + page.output + "".join(capfd.readouterr()) + caplog.text
    assert WORD not in everything + "".join(news)
    client = MlflowClient(f"sqlite:///{here}/team.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert runs
    assert WORD not in json.dumps([run.to_dictionary() for run in runs])
    no_file_has_it(here)


def test_the_words_of_an_address_that_nobody_is_shown():
    for address in (*STORAGES, *TRACKINGS):
        assert WORD not in without_passwords(f"no answer: {address}", passwords_of(address))
        if WORD in passwords_of(address):  # and not a part of one
            said = f"password {WORD!r} is wrong"
            assert WORD not in without_passwords(said, passwords_of(address))
    assert sum(WORD in passwords_of(address) for address in (*STORAGES, *TRACKINGS)) >= 13
    assert passwords_of("postgresql://me@host:5432/x") == ()
    assert passwords_of("runs/x.toml") == ()
    for address in ("postgresql://host/db", "mysql://[::1]:3306/x?charset=utf8&user=me&ssl=…"):
        assert without_passwords(address, passwords_of(address)) == address  # all of it is told
