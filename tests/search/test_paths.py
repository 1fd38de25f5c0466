"""Which run a study file stands for; how commands about a run end."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepsampler import UserError, load
from stepsampler.errors import Terminated
from stepsampler.schedule import Schedule, Step
from stepsearch.cli.app import app
from stepsearch.compare.front import Finished
from stepsearch.engine.store.locks import only_run
from stepsearch.paths import find_runs
from stepsearch.report.live import watch

invoke = CliRunner().invoke


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_run(here, folder, study="x", finished=True):
    path = here / "runs" / folder
    path.mkdir(parents=True)
    (path / "study.json").write_text(json.dumps({"name": study}))
    if finished:
        Schedule((Step(1.0),), 0.0, "ddim").save(path / "best.json")


def test_export_finds_a_run_of_a_seed(here):
    a_run(here, "x-seed1")
    said = invoke(app, ["export", "studies/x.toml", "-o", "best.json"])
    assert said.exit_code == 0, said.output
    assert "from runs/x-seed1" in said.output
    assert "whether the run was of this study is not known: runs/x-seed1/study.json" in said.output
    assert load(here / "best.json") == load(here / "runs" / "x-seed1" / "best.json")


def test_export_lists_several_runs_and_takes_none(here):
    for name in ("x-seed1", "x-quick", "mine"):
        a_run(here, name)
    a_run(here, "x-seed2", finished=False)
    a_run(here, "x-seed3", study="x-seed3")  # a study of that name
    with pytest.raises(UserError, match="several runs: runs/mine, runs/x-quick, runs/x-seed1;"):
        find_runs(here / "studies" / "x.toml", "best.json")


def test_the_run_without_a_suffix_is_meant_and_the_others_are_named(here):
    for name in ("x", "x-seed1"):
        a_run(here, name)
    said = invoke(app, ["export", "x.toml", "-o", "best.json"]).output
    assert "from runs/x\n" in said
    assert "there are also runs/x-seed1: --run chooses" in said


def test_a_run_that_is_not_finished_is_named(here):
    a_run(here, "x-seed1", finished=False)
    with pytest.raises(UserError, match=r"runs/x: no finished run; .*\(.*cut off: runs/x-seed1\)"):
        find_runs(here / "x.toml", "best.json")
    with pytest.raises(UserError, match="runs/y: no run has started here"):
        find_runs(here / "y.toml", "study.json")


def test_a_name_that_stands_for_no_run_is_answered_with_the_runs_that_there_are(here):
    for k in range(9):
        a_run(here, f"x{k}", finished=k < 1)
    said = r"^h: no finished run; `stepsearch run` makes one; there are runs/x0$"
    with pytest.raises(UserError, match=said):
        invoke(app, ["export", "h"], catch_exceptions=False)
    with pytest.raises(UserError, match=r"; there are (runs/x\d, ){7}runs/x\d and 1 more$"):
        invoke(app, ["status", "h"], catch_exceptions=False)


def test_front_and_status_take_a_study_file_of_such_a_run(here):
    a_run(here, "x-seed1")
    with pytest.raises(UserError, match="runs/x-seed1/best.json: its provenance has no 'metric'"):
        Finished.read(here / "x.toml")  # it found the folder; the schedule is of no real run
    error = invoke(app, ["status", "x.toml"]).exception
    assert "runs/x-seed1/study.json: another version" in str(error)


def test_the_command_that_goes_on_has_all_that_was_given_but_no_password(here, monkeypatch):
    def session(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("stepsearch.report.session.run_session", session)
    (here / "x y.toml").write_text("[space]\nnum_steps = 3\npasses = 6\n")
    given = ["--set", "search.trials=9", "--set", "teacher.steps=20", "--quick"]
    said = invoke(app, ["run", "x y.toml", *given, "--storage", "mysql://me:secret@host/db"])
    goes_on = said.output.splitlines()[-1]
    assert "stepsearch run 'x y.toml'" in goes_on
    assert "--set search.trials=9 --set teacher.steps=20" in goes_on
    assert "--quick" in goes_on
    assert "secret" not in goes_on


@pytest.mark.parametrize("words", [["status"], ["report"], ["export"]])
def test_without_a_name_the_runs_that_exist_are_offered(here, words):
    with pytest.raises(UserError, match="no run in runs/ here; `stepsearch run STUDY` starts one"):
        invoke(app, words, catch_exceptions=False)
    for name in ("a", "b"):
        a_run(here, name)
    with pytest.raises(UserError, match=r"which run\? Name one of them: runs/[ab], r"):
        invoke(app, words, catch_exceptions=False)


def test_status_takes_the_only_run_under_way(here, monkeypatch):
    for name in ("a", "b", "c"):
        a_run(here, name)
    shown = []
    monkeypatch.setattr(watch, "show_status", lambda folder, *_: shown.append(str(folder)))
    with only_run(Path("runs/b")):
        said = invoke(app, ["status", "--watch"])
        assert said.stderr == "note: of runs/b, the only run under way here\n"
        with only_run(Path("runs/c")), pytest.raises(UserError, match="which run"):
            invoke(app, ["status"], catch_exceptions=False)
    assert shown == ["runs/b"]


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(here):
    (here / "x.toml").write_text("[space]\nnum_steps = 3\npasses = 6\n")
    with pytest.raises(UserError, match="device 'cuda:98' cannot be used: "):
        invoke(app, ["run", "x.toml", "--gpus", "98"], catch_exceptions=False)
    assert not (here / "runs").exists()


def test_the_only_run_is_meant_and_nothing_is_written_over(here):
    a_run(here, "a")
    said = invoke(app, ["export"])
    assert said.stderr.splitlines()[0] == "note: of runs/a, the only run here"
    assert load(here / "best.json") == load(here / "runs" / "a" / "best.json")
    with pytest.raises(UserError, match=r"best\.json is here already: -o says where"):
        invoke(app, ["export"], catch_exceptions=False)
    a_run(here, "b")  # nor is it asked first which run is meant
    with pytest.raises(UserError, match=r"best\.json is here already: -o says where"):
        invoke(app, ["export"], catch_exceptions=False)


def test_a_folder_is_itself_and_one_named_like_a_study_file_too(here):
    a_run(here, "v1.toml")
    assert find_runs(here / "runs" / "v1.toml", "best.json") == [here / "runs" / "v1.toml"]


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_ctrl_c_and_sigterm_are_one_sentence_and_their_code(here, monkeypatch, end, code):
    def session(*_, **__):
        raise end

    monkeypatch.setattr("stepsearch.report.session.run_session", session)
    (here / "x.toml").write_text("[space]\nnum_steps = 3\npasses = 6\n")
    said = invoke(app, ["run", "x.toml", "--seed", "1"])
    assert said.exit_code == code
    first, goes_on = said.output.splitlines()
    assert first == "stopped; runs/x-seed1 keeps what is done. This goes on:"
    assert goes_on == "  stepsearch run x.toml --seed 1"
    assert not (here / "runs" / "x-seed1" / "alive" / "run").is_symlink()


WRITERS = {
    "placement": ("gits", "--steps", "3", "--model", "absent"),
    "amed": ("--calls", "3", "--model", "absent"),
    "polish": ("absent.json",),
    "train-npnet": ("absent.json",),
    "front": ("runs/absent",),
    "evaluate": ("absent.json",),
    "report": ("runs/absent",),
    "export": ("runs/absent",),
}


@pytest.mark.parametrize("command", WRITERS)
def test_where_nothing_can_be_written_is_said_before_the_work(here, command):
    """The rest of the command line is wrong as well, which would be said after it."""
    (here / "file").touch()
    places = {"file/x.html": "must be a folder, but 'file' is a file"}
    if Path("/proc/self").exists():  # which takes no file of root's
        places["/proc/x.html"] = "nothing can be written in '/proc': No such file or directory"
    for out, words in places.items():
        found = invoke(app, [command, *WRITERS[command], "-o", out]).exception
        assert isinstance(found, UserError)
        assert str(found).startswith("the folder of --out")
        assert words in str(found)


def test_where_averages_cannot_be_written_is_said_before_amed_is_trained(here):
    (here / "folder").mkdir()
    words = [*WRITERS["amed"], "-o", "x.safetensors", "--static", "folder"]
    said = str(invoke(app, ["amed", *words]).exception)
    assert said == "--static must name a file, but 'folder' is a folder"


def test_links_to_nowhere_and_pipes_are_refused_before_the_work(here):
    (here / "link").symlink_to("nowhere")
    os.mkfifo("pipe")
    said = {
        "link/x.json": "the folder of --out must be a folder, but 'link' is a link to nowhere",
        "pipe": "--out must name a file, but 'pipe' is a device or a pipe",
    }
    for out, words in said.items():
        assert str(invoke(app, ["polish", "absent.json", "-o", out]).exception) == words


@pytest.mark.parametrize("out", ["{}.json", "{}/x.json", "x/{}/x.json"])
def test_a_name_that_is_too_long_is_refused_before_the_work(here, out):
    said = str(invoke(app, ["polish", "absent.json", "-o", out.format("é" * 127 + "ab")]).exception)
    long = 256 if "/" in out else 261
    shown = "é" * 40
    assert said == f"--out: {shown}… has {long} bytes, a name longer than the disk takes"
    longest = out.format("é" * 127 if "/" in out else "é" * 125)
    assert "absent.json" in str(invoke(app, ["polish", "absent.json", "-o", longest]).exception)


def test_a_place_that_can_be_written_keeps_what_is_there(here):
    (here / "out").mkdir()
    invoke(app, ["polish", "absent.json", "-o", "out/x/y.json"])
    assert [path.name for path in here.iterdir()] == ["out"]
    assert not list((here / "out").iterdir())
