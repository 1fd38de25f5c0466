"""The commands of docs/tutorial.md, in their order; the search with a small study, at home."""

import re
import shlex
from pathlib import Path

import pytest
from small_study import small_study
from typer.testing import CliRunner

from stepsampler import load
from stepsampler.cli.app import app as stepsample
from stepsearch.cli.app import app as stepsearch
from stepsearch.engine.workers import InThisProcess

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
PROGRAMS = {"stepsample": stepsample, "stepsearch": stepsearch}
SMALL = small_study(space={"num_steps": 2, "passes": 4})


class AtHome(InThisProcess):
    """What `stepsearch run` starts, without another process."""

    def __init__(self, config, folder, devices, *_):
        super().__init__(config, folder, devices[0])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stepsearch.report.session.Workers", AtHome)
    (tmp_path / "studies").mkdir()
    found = "tiny-3-steps.schedule.json"
    (tmp_path / "studies" / found).symlink_to(ROOT / "studies" / found)
    (tmp_path / "studies" / "tiny-3-steps.toml").write_text(SMALL)
    return tmp_path


def test_the_commands_run_as_they_stand(here):
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 9
    for line in lines:
        program, *words = shlex.split(line.replace("--images 200", "--images 20"), comments=True)
        first = [] if words[0] in known(program) else ["generate"] * (program == "stepsample")
        said = CliRunner().invoke(PROGRAMS[program], [*first, *words])
        assert said.exit_code == 0, f"{line}\n{said.output}\n{said.exception!r}"
    for folder in ("known", "found", "mine"):
        assert len(list((here / folder).glob("*.png"))) >= 4, folder
    for page in ("compared.html", "report.html", "runs/tutorial/report.html"):
        assert (here / page).stat().st_size > 10_000
    schedule = load(ROOT / "studies" / "tiny-3-steps.schedule.json")
    assert (schedule.num_steps, schedule.passes) == (4, 6)  # as the page says
    assert [step.guidance_scale != 1 for step in schedule.steps].count(True) == 2


def known(program):
    import typer

    return typer.main.get_command(PROGRAMS[program]).commands
