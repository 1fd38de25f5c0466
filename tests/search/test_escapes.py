"""A study or a run's folder from elsewhere writes into the run's folder, and nowhere else."""

import json
import os
import zipfile

import numpy as np
import pytest
import torch
from running import Here, settings
from typer.testing import CliRunner

from stepsampler import UserError
from stepsampler.support.pictures import save_png
from stepsearch.cli.app import app
from stepsearch.config import load_config
from stepsearch.engine.claim import claim_folder, claimed
from stepsearch.engine.store.locks import only_run
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.reference import load_reference
from stepsearch.paths import check_inside, write_whole

STUDY = "[space]\nnum_steps = 3\npasses = 6\n"


def everything(folder):
    """What is in a folder, link by link and byte by byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("name", ["...toml", "..toml"])
@pytest.mark.parametrize("words", [["run"], ["run", "--quick"], ["worker"]])
def test_a_study_whose_name_would_be_another_folder_is_refused(here, name, words):
    (here / name).write_text(STUDY)
    before = everything(here)
    command, *options = words
    if command == "worker":
        options += ["--storage", "postgresql://127.0.0.1:1/x"]
    error = CliRunner().invoke(app, [command, name, *options]).exception
    assert isinstance(error, UserError)
    assert "name: must be the name of a file, such as mine.toml, got '." in str(error)
    assert everything(here) == before


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a\\b", "..", "", "a\0b"])
def test_nor_may_the_settings_of_a_run_have_such_a_name(tmp_path, name):
    claim_folder(tmp_path, settings())
    data = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(data | {"name": name}))
    with pytest.raises(UserError, match=r"study\.json"):
        claimed(tmp_path)
    (tmp_path / "x.toml").write_text(f"name = {json.dumps(name)}\n{STUDY}")
    with pytest.raises(UserError, match="unknown key 'name'"):
        load_config(tmp_path / "x.toml")


@pytest.mark.parametrize("part", ["cache", "alive", "journal.log", "mlflow.db", "study.json"])
def test_a_link_out_of_the_runs_folder_is_refused_before_anything_is_written(here, part):
    aim, run = here / "precious", here / "runs" / "x"
    run.mkdir(parents=True)
    aim.write_text("mine") if "." in part else aim.mkdir()
    os.symlink(aim, run / part)
    before = everything(here)
    said = f"x/{part}: a link out of the run's folder, to .*precious"
    with pytest.raises(UserError, match=said), only_run(run):
        pytest.fail("it began")
    (here / "x.toml").write_text(STUDY)
    for words in (["run", "x.toml"], ["worker", "x.toml", "--storage", "mysql://127.0.0.1:1/x"]):
        error = CliRunner().invoke(app, words).exception
        assert "a link out of the run's folder" in str(error)
    (here / "x.toml").unlink()
    assert everything(here) == before


def test_links_within_the_folder_and_to_it_and_locks_are_no_matter(tmp_path):
    run = tmp_path / "run"
    (run / "other").mkdir(parents=True)
    os.symlink("other", run / "cache")
    os.symlink("/elsewhere/runs/x/journal.log", run / "journal.log.lock")
    os.symlink(run, tmp_path / "link")
    check_inside(run)
    check_inside(tmp_path / "link")
    check_inside(tmp_path / "absent")


def test_a_file_that_is_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    os.symlink(tmp_path / "precious", tmp_path / "best.json")
    write_whole(tmp_path / "best.json", lambda path: path.write_text("ours"))
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "best.json").read_text() == "ours"
    assert not (tmp_path / "best.json").is_symlink()


def test_a_zip_of_images_is_read_and_never_unpacked(here):
    draw = torch.Generator().manual_seed(0)
    with zipfile.ZipFile(here / "real.zip", "w") as file:
        for name in ("../../above.png", "/tmp/absolute.png", "in/../../out.png", "plain.png"):
            image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=draw)
            save_png(image, here / "x.png")
            file.write(here / "x.png", zipfile.ZipInfo(name).filename)
    (here / "x.png").unlink()
    outside = everything(here.parent)
    extractor = load_extractor("texture", "cpu")
    reference = load_reference("real.zip", extractor, 32, here / "cache")
    assert np.isfinite(reference.search.mean).all()
    new = set(everything(here.parent)) - set(outside)
    assert {name.rpartition("/")[0] for name in new} == {"work", "work/cache"}
    assert not os.path.exists("/tmp/absolute.png")


def test_what_a_worker_writes_lies_in_the_folder(here):
    """Measurements, sheets and pictures have names that we make, whatever a study says."""
    config = load_config(_study(here, 'prompts = "../p.txt"\nreference = "fashion-mnist"'))
    (here.parent / "p.txt").write_text("../../a bag\n/etc/passwd\n..\\x\n")
    before = everything(here.parent)
    workers = Here(config, here / "run")
    workers.describe()
    plan = next(iter(_plans(workers)))
    list(workers.measure([(plan, range(2))]))
    new = set(everything(here.parent)) - set(before)
    assert new
    assert all(name == "work/run" or name.startswith("work/run/") for name in new)


def _study(here, text):
    path = here / "t.toml"
    path.write_text(f"{STUDY}[evaluation]\nrulers = []\nbatch_size = 2\n{text}\n")
    return path


def _plans(workers):
    from stepsampler.grids import make_schedule

    subject = workers.describe()
    yield make_schedule("linspace", 2, subject.noise, model=subject.spec)
