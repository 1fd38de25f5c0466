"""The functions for scripts and notebooks: their page runs, and they say what commands say."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
from reporting import command, toy_run
from small_study import small_study

import stepsearch
from stepsampler import UserError
from stepsampler.presets import names, preset
from stepsearch.api import Options
from stepsearch.compare.evaluating import Asked
from stepsearch.config import load_config

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
SMALL = small_study(baselines={"rungs": [2]}, teacher={"steps": 4})


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    """In their order, on a study of the same name with few images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "tiny-3-steps.toml").write_text(SMALL)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    known = {}
    for block in blocks:
        few = block.replace("images=1000", "images=8").replace("_1k", "_8")
        few = few.replace('trials": 20', 'trials": 2').replace("stock=20", "stock=2")
        exec(compile(few, str(PAGE), "exec"), known)
    found = known["found"]
    assert capsys.readouterr().out.startswith(found.verdict)
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert result["trials"] == 2
    row, tested = found.rows[0], result["test"][0]
    assert (row["name"], row["fd_texture128_8"]) == (tested["name"], tested["fd"])
    assert len(known["both"].rows) == 3
    assert len(known["alone"].source.metrics) == 2
    for page in ("comparison.html", "report.html"):
        assert (tmp_path / page).stat().st_size > 10_000


def test_a_result_is_what_the_command_prints_and_pandas_takes_it(tmp_path):
    toy_run(tmp_path)
    found = stepsearch.report(tmp_path)
    assert found.data == json.loads(command("report", tmp_path, "--json").stdout)
    frame = found.to_frame()
    assert frame.equals(pd.DataFrame(found.rows))
    assert list(frame["name"]) == [c.name for c in found.source.contenders]
    assert found.rows[0]["fd_toy4_400_minus"] is None  # to itself
    assert "<table" in found._repr_html_()
    with pytest.raises(UserError, match=r"x\.csv: results are saved as \.html"):
        found.save(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"search.trails": 3}, "settings: unknown key 'search.trails'; did you mean 'trials'"),
        ({"search.trials": "many"}, "settings: search.trials: must be a whole number"),
        ({"name.x": 1}, "settings: name: must be text"),
        ({"trials": 3}, "settings must be named section.key, got 'trials'"),
    ],
)
def test_settings_of_a_study_in_hand_are_checked_as_those_of_a_file(tmp_path, settings, sentence):
    """They had been pydantic's own exceptions."""
    (tmp_path / "x.toml").write_text(SMALL)
    study = load_config(tmp_path / "x.toml")
    with pytest.raises(UserError, match=sentence):
        stepsearch.run(study, tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


def test_options_are_those_of_the_command():
    known = {f.name for f in fields(Asked)} - {"what", "model"}
    assert set(Options.__annotations__) == known
    with pytest.raises(UserError, match="unknown option 'image': it must be of batch_size, "):
        stepsearch.evaluate("x.json", image=3)
    with pytest.raises(UserError, match="at least two contenders, got 1"):
        stepsearch.compare("x.json")
    with pytest.raises(UserError, match="named section.key, got 'trials'"):
        stepsearch.run("x.toml", settings={"trials": 3})


def test_wings_that_are_verbs_stay_modules():
    import stepsearch.compare.table as table
    from stepsearch import report

    assert table.compare
    assert callable(report)
    assert report.page.write_page
    assert stepsearch.SearchSpace.__name__ == "SearchSpace"
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        stepsearch.rnu  # noqa: B018


def test_importing_loads_nothing_heavy():
    code = "import stepsearch, sys; print({'torch', 'optuna', 'rich', 'numpy'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


@pytest.mark.parametrize("name", ["seed-sd-4", "wan22-lightning-4", "ays-sd15"])
def test_a_notebook_draws_a_schedule(name):
    from xml.etree import ElementTree

    plan = preset(name).schedule
    tree = ElementTree.fromstring(plan._repr_html_())
    dots = [float(c.get("cy")) for c in tree.iter("circle")]
    assert len(dots) == plan.num_steps + (plan.final_sigma > 0)
    assert dots == sorted(dots)  # sigma falls
    shown = [cell.text for cell in tree.iter("td")]
    assert [f"{step.sigma:.4g}" for step in plan.steps] == shown[5::4]


def test_every_preset_can_be_drawn_and_names_are_no_markup():
    from dataclasses import replace

    for name in names():
        plan = replace(preset(name).schedule, provenance={"source": "<b>&"})
        text = plan._repr_html_()
        assert "nan" not in text
        assert "&lt;b&gt;&amp;: " in text


def test_one_device_or_one_earlier_result_needs_no_list(tmp_path, monkeypatch):
    from stepsearch.report import session

    asked = []

    def noted(config, folder, devices, *_, **__):
        asked.append(devices)
        raise UserError("enough")

    monkeypatch.setattr(session, "run_session", noted)
    (tmp_path / "x.toml").write_text(SMALL)
    with pytest.raises(UserError, match="enough"):
        stepsearch.run(tmp_path / "x.toml", tmp_path / "run", devices="cpu")
    assert asked == [["cpu"]]
    with pytest.raises(UserError, match="devices must name at least one"):
        stepsearch.run(tmp_path / "x.toml", tmp_path / "run", devices=())
    with pytest.raises(UserError, match=r"nowhere\.json"):
        stepsearch.compare("seed-sd-4", earlier=str(tmp_path / "nowhere.json"), images=8)


def test_a_mistyped_store_is_refused_as_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").write_text(SMALL)
    with pytest.raises(UserError, match="--tracking must be local, none or an address"):
        stepsearch.run("x.toml", tracking="lokal")
    assert {path.name for path in tmp_path.iterdir()} == {"x.toml"}
