"""What a worker hands on arrives whole or not at all, wherever it lies meanwhile."""

import importlib.util
import os

import pytest
from typer.testing import CliRunner

from stepsampler import UserError
from stepsearch.cli.app import app
from stepsearch.engine.store import parcels
from stepsearch.engine.store.database import open_database
from stepsearch.engine.store.parcels import check_artifacts, open_parcels

CONTENTS = (b"", b"x", os.urandom(parcels.PIECE), os.urandom(3 * parcels.PIECE + 1))


def test_through_the_database(server, name, monkeypatch):
    storage = open_database(server.address)
    monkeypatch.setattr(parcels, "PIECES", 2)  # several trials for one parcel
    place = open_parcels(storage, name, None)
    tickets = [place.put(content) for content in CONTENTS]
    assert [len(ticket) - 1 for ticket in tickets] == [0, 1, 1, 2]
    other = open_parcels(open_database(server.address), name, None)
    assert tuple(map(other.get, tickets)) == CONTENTS
    assert other.get([tickets[-1][0], *tickets[-1][1:2]]) is None  # half of it
    assert other.get([tickets[-1][0], 10**6]) is None
    monkeypatch.setattr(parcels, "MOST", 10)
    with pytest.raises(UserError, match="give a folder, s3://bucket or gs://bucket with --artif"):
        place.put(b"x" * 11)


def test_a_piece_fits_into_mysqls_text_and_a_trial_into_a_message_of_grpc():
    piece = 4 * -(-parcels.PIECE // 3) + len('""')
    assert piece <= 65_535
    assert parcels.PIECES * (piece + 64) < 4 * 1024 * 1024


def test_through_a_folder(tmp_path):
    place = open_parcels(None, "run", str(tmp_path / "store"))
    tickets = [place.put(content) for content in CONTENTS]
    assert tuple(map(place.get, tickets)) == CONTENTS
    assert open_parcels(None, "run", str(tmp_path / "store")).get(tickets[1]) == b"x"
    (tmp_path / "store" / tickets[-1][1]).write_bytes(CONTENTS[-1][:-1])
    (tmp_path / "store" / tickets[1][1]).unlink()
    assert place.get(tickets[-1]) is place.get(tickets[1]) is None


def test_through_s3(monkeypatch):
    """A server of moto's, where that and boto3 are installed."""
    boto3, server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    here = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    here.start()
    try:
        for key, value in {
            "AWS_ENDPOINT_URL": "http://{}:{}".format(*here.get_host_and_port()),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(key, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        place = open_parcels(None, "run", "s3://bucket/some/prefix")
        tickets = [place.put(content) for content in CONTENTS]
        assert tuple(map(place.get, tickets)) == CONTENTS
        assert all(ticket[1].startswith("some/prefix/") for ticket in tickets)
        assert place.get([tickets[1][0], "some/prefix/none"]) is None
    finally:
        here.stop()


@pytest.mark.skipif(importlib.util.find_spec("boto3") is not None, reason="boto3 is installed")
def test_a_driver_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"--artifacts s3://… needs: pip install boto3"):
        open_parcels(None, "run", "s3://bucket")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://host/x", "must be a folder, s3://bucket or gs://bucket, got http://…"),
        ("s3://", "must be a folder"),
        ("s3://key:s3cret@bucket", "no password belongs into the address"),
        ("postgresql://me:s3cret@host/db", "got postgresql://…"),
        ("s3://key:[s3cret@bucket", "no password belongs into the address"),
        ("s3://key:s3c/s3cret@bucket", "no password belongs into the address"),
    ],
)
def test_an_address_that_is_none_is_one_sentence_without_its_password(address, message):
    with pytest.raises(UserError, match=message) as caught:
        check_artifacts(address)
    assert "s3cret" not in str(caught.value)


def test_a_folder_is_told_to_others_from_its_root_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_artifacts("store") == str(tmp_path / "store")
    assert check_artifacts("s3://bucket/x") == "s3://bucket/x"


def test_artifacts_without_a_storage_are_refused(tmp_path):
    study = tmp_path / "x.toml"
    study.write_text("[space]\nnum_steps = 3\npasses = 6\n")
    result = CliRunner().invoke(app, ["run", str(study), "--artifacts", "store"])
    assert "--artifacts goes with --storage" in str(result.exception)
