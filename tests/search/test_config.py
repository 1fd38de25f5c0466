import re
from pathlib import Path

import pytest

from stepsampler import UserError
from stepsearch.config import load_config

MINIMAL = "[space]\nnum_steps = 5\npasses = 10\n"


def written(tmp_path, text):
    path = tmp_path / "x.toml"
    path.write_text(text)
    return path


def test_a_minimal_study_has_defaults_and_the_name_of_its_file(tmp_path):
    config = load_config(written(tmp_path, MINIMAL))
    assert (config.name, config.model.id, config.search.algorithm) == ("x", "tiny", "gp")


def test_overrides_replace_single_values(tmp_path):
    path = written(tmp_path, MINIMAL + "[search]\ntrials = 7\nseed = 3\n")
    config = load_config(path, {"search": {"trials": 9}})
    assert (config.search.trials, config.search.seed) == (9, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "space: Field required"),
        ("[space", "not TOML"),
        (MINIMAL + "[serch]\n", "unknown key 'serch'; did you mean 'search'"),
        (MINIMAL + "[search]\ntrails = 3\n", "unknown key 'search.trails'; did you mean 'trials'"),
        ("name = 'y'\n" + MINIMAL, "unknown key 'name'; a study is named after its file"),
        ("search = 'gp'\n" + MINIMAL, "search: .* got 'gp'"),
        (MINIMAL + "[baselines]\norders = [1, 1]\n", r"orders must differ, got \[1, 1\]"),
        (MINIMAL + "[search]\ntrials = 0\n", "search.trials: .* got 0"),
        (MINIMAL + "[search]\nalgorithm = 'sgd'\n", "search.algorithm: .* got 'sgd'"),
        (
            "[space]\nnum_steps = 5\npasses = 4\n",
            "num_steps <= max_steps <= passes must hold, got 5, None and 4",
        ),
        (MINIMAL + "log_gap = [1.0, -1.0]\n", "log_gap: low must be below high"),
        (MINIMAL + "final_sigma = [0.0, 1.0]\n", "final_sigma: low must be above 0, got 0.0"),
        (MINIMAL + "solvers = ['rk4']\n", "solvers must be of ddim, .* got 'rk4'"),
        (MINIMAL + "solvers = ['ddim']\n", "max_order of ddim is at most 1"),
        (
            MINIMAL + "first_sigma = [0.3, 14.0]\nfinal_sigma = [0.02, 0.55]\n",
            "first_sigma: low must be above the highest final_sigma, 0.55, got 0.3",
        ),
        (MINIMAL + "churn = [0.0, 1.0]\n", "churn: high must be below 1, got 1.0"),
        (MINIMAL + "analytic_at = [0.2, 0.8]\n", "there is no analytic first step without analyt"),
        (MINIMAL + "free_u_sets = 3\n", "free_u_sets: .* got 3"),
        (MINIMAL + "baseline = 'gist'\n", "baseline must be one of best, .*gits.* got 'gist'"),
        (MINIMAL + "[baselines]\nrungs = [20, 10]\n", r"rungs must rise, got \[20, 10\]"),
        (
            MINIMAL + "[evaluation]\nimages = 250\nrungs = [60, 125]\n",
            r"rungs must rise from at least 8 to images = 250, got \[60, 125\]",
        ),
        (MINIMAL + "[evaluation]\nrungs = [4, 300]\n", r"rungs must rise .* got \[4, 300\]"),
        (MINIMAL + "[search]\npatience = 0\n", "search.patience: .* got 0"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(written(tmp_path, text))
    assert "x.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_studies_of_the_repository_are_valid():
    files = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))
    assert files
    for file in files:
        load_config(file)


def test_the_settings_that_the_docs_show_are_valid(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "searching.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 6
    space = "[space]\nnum_steps = 8\npasses = 16\n"
    for block in blocks:
        assert load_config(written(tmp_path, space + block)) != load_config(
            written(tmp_path, space)
        )


def test_an_absent_study_is_named():
    with pytest.raises(UserError, match=r"absent\.toml: No such file"):
        load_config(Path("absent.toml"))
