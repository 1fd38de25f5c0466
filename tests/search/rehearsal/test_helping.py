"""What helps to begin: studies, the look at the machine, completion."""

import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from reporting import command

from stepsampler import UserError
from stepsearch.cli.helping import Kind
from stepsearch.config import load_config
from stepsearch.engine.stages.costs import costs
from stepsearch.rehearsal import doctor
from stepsearch.rehearsal.beginning import EVERY, study_text
from stepsearch.rehearsal.dryrun import kind_of
from stepsearch.rehearsal.miniatures import EVERY as MINIATURES


@pytest.mark.parametrize("name", EVERY)
def test_a_study_to_begin_with_is_valid_and_explains_itself(name, tmp_path):
    out = tmp_path / "mine.toml"
    assert command("init", name).stdout == study_text(name)
    assert command("init", name, "-o", out).exit_code == 0
    assert out.read_text() == study_text(name)
    config = load_config(out)
    assert kind_of(config) in MINIATURES
    assert sum(costs(config).passes.values()) > 0
    keys = [line for line in study_text(name).splitlines() if "=" in line and line[0] != "#"]
    assert sum("#" in line for line in keys) > 10
    assert max(map(len, keys)) <= 130
    with pytest.raises(UserError, match="it is there already"):
        raise command("init", name, "-o", out).exception


def test_studies_to_begin_with_are_those_of_the_command():
    assert [kind.value for kind in Kind] == list(EVERY)


@pytest.mark.parametrize("words", [("init", "sdx"), ("run", "x.toml", "--launcher", "sdx")])
def test_a_choice_that_there_is_not_is_said_in_our_words(words):
    said = command(*words)
    assert said.exit_code == 2
    told = " ".join(said.stderr.replace("│", " ").split())
    assert ": 'sdx' is not one of '" in told
    assert "error" not in told.replace("Error", "")


def test_a_sound_machine_has_nothing_in_the_way():
    said = command("doctor", "--tracking", "none", "--json")
    found = {c["name"]: c for c in json.loads(said.stdout)["checks"]}
    assert said.exit_code == int(any(c["state"] == "FAIL" for c in found.values()))
    assert found["bundled weights"]["state"] == "PASS"
    assert found["MLflow"]["state"] == "OPEN"


def test_a_store_that_run_refuses_is_refused_here_too():
    error = command("doctor", "--tracking", "sqlit:team.db").exception
    assert isinstance(error, UserError)
    assert "--tracking must be local, none or an address" in str(error)


def test_a_store_that_does_not_answer_is_named(tmp_path):
    state, sentence, do = doctor._mlflow(f"sqlite:///{tmp_path}")  # a folder, no database
    assert (state, do) == ("FAIL", "Give --tracking an address that answers, or none.")
    assert "unable to open database file" in sentence
    assert doctor._mlflow("local")[0] == "PASS"


def test_a_torchvision_that_breaks_torch_is_found_by_loading_it(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "0.1")
    monkeypatch.setattr(doctor, "_imports", lambda module: "RuntimeError: no operator nms")
    state, sentence, do = doctor._torchvision()
    assert (state, "RuntimeError: no operator nms" in sentence) == ("FAIL", True)
    assert "pip uninstall torchvision" in do
    assert doctor._cleanfid()[0] in ("OPEN", "FAIL")


def test_what_a_fresh_process_says_of_a_module():
    assert doctor._imports("json") is None
    assert doctor._imports("absent_module") == (
        "ModuleNotFoundError: No module named 'absent_module'"
    )


def test_weights_that_are_not_what_was_downloaded_are_found(tmp_path):
    """A hub's cache: a link whose target is named by its SHA-256."""
    import numpy as np
    from safetensors.numpy import save

    blob = save({"x": np.zeros(4, np.float32)})
    digest = hashlib.sha256(blob).hexdigest()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "blobs" / digest).write_bytes(blob)
    (tmp_path / "model" / "unet.safetensors").symlink_to(tmp_path / "blobs" / digest)
    state, sentence, _ = doctor._weights(str(tmp_path / "model"))
    assert (state, "1 by their SHA-256" in sentence) == ("PASS", True)
    (tmp_path / "blobs" / digest).write_bytes(blob[:-1] + b"\1")
    assert doctor._weights(str(tmp_path / "model"))[0] == "FAIL"
    (tmp_path / "model" / "vae.safetensors").write_bytes(b"version https://git-lfs")
    (tmp_path / "model" / "unet.safetensors").unlink()
    assert "vae.safetensors cannot be read" in doctor._weights(str(tmp_path / "model"))[1]
    assert doctor._weights("nobody/nothing")[0] == "FAIL"


def test_a_gpu_that_torch_does_not_see_is_said(monkeypatch):
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor._gpu()[0] == "LOOK"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor.torch, "version", SimpleNamespace(cuda=None))
    state, sentence, _ = doctor._gpu()
    assert (state, "torch is built for CPUs alone" in sentence) == ("FAIL", True)


def test_more_threads_than_cores_and_too_little_room_are_said(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    assert doctor._cores()[0] == "LOOK"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=1e9))
    state, sentence, _ = doctor._disk(None)
    assert (state, sentence.startswith("1.0 GB are free in ")) == ("LOOK", True)


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("stepsearch", "stepsearch do", "doctor"),
        ("stepsearch", "stepsearch status runs/", "runs/mine"),
        ("stepsample", "stepsample pre", "presets"),
    ],
)
def test_the_shell_completes_commands_and_runs(program, words, expected, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "study.json").write_text("{}")
    wing = {"stepsearch": "stepsearch", "stepsample": "stepsampler"}[program]
    asked = {
        f"_{program.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    code = f"from {wing}.cli import main; main()"
    said = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert expected in said.stdout.split(), said.stderr
