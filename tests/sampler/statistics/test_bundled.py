"""The statistics that lie beside the bundled model."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from stepsampler import UserError
from stepsampler.grids import make_schedule
from stepsampler.models import STATISTICS, known_statistics, load
from stepsampler.models.loading import BUNDLED
from stepsampler.schedule import StatisticsSpec
from stepsampler.support.options import ModelOptions

ROOT = Path(__file__).parents[3]
BUNDLED_FOLDER = ROOT / "sampler" / "stepsampler" / "bundled"


def test_they_are_found_by_themselves_and_are_of_the_model(tmp_path):
    model = load("tiny")
    (found,) = model.statistics
    found.check_model(model.noise, model.shape)
    assert (found.guidance_scale, found.intervals, found.samples) == (2.0, 120, 512)
    assert known_statistics(ModelOptions("tiny")) == [found.spec]
    spec = StatisticsSpec(2.0, 120)
    named = {"solver": "dpm-v3", "statistics": spec, "guidance_scale": 2.0, "model": model.spec}
    model.check(make_schedule("linspace", 4, model.noise, **named))
    assert (
        model.settled(make_schedule("linspace", 4, model.noise, **named)).statistics == found.spec
    )


def test_they_are_of_that_model_and_its_size_alone():
    assert load("tiny", size=64).statistics == ()
    if "tiny-second" in BUNDLED:
        assert known_statistics(ModelOptions("tiny-second")) == []
    with pytest.raises(UserError, match="needs statistics of guidance scale 3 in 120 intervals"):
        load("tiny").statistics_of(
            make_schedule(
                "linspace",
                4,
                load("tiny").noise,
                solver="dpm-v3",
                guidance_scale=3.0,
                statistics=StatisticsSpec(3.0, 120),
            )
        )


def test_they_are_part_of_what_is_installed():
    """A wheel has what lies in its packages and is not ignored by git."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    package = ROOT / "sampler" / "stepsampler"
    assert str(package.relative_to(ROOT)) in wheel["targets"]["wheel"]["packages"]
    assert "exclude" not in {*wheel, *wheel["targets"]["wheel"]}
    file = BUNDLED_FOLDER / "tiny" / STATISTICS
    assert file.is_file()
    if (ROOT / ".git").exists():
        ignored = subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT, check=False)
        assert ignored.returncode == 1
