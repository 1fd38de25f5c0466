import re
from pathlib import Path

import pytest
from reporting import command

from stepsampler import UserError
from stepsearch.cli.running import QUICK, _run_of
from stepsearch.config import load_config
from stepsearch.config.places import as_keys, given_values, in_keys
from stepsearch.metrics.evaluator import FRONT, SEARCH, SELECTION, TEST
from stepsearch.rehearsal.dryrun import shrunk

MINIMAL = "[space]\nnum_steps = 5\npasses = 10\n"


def written(tmp_path, text):
    path = tmp_path / "x.toml"
    path.write_text(text)
    return path


def test_a_folder_is_no_study(tmp_path):
    with pytest.raises(UserError, match="must be a study file, got a folder; .* is for --run"):
        load_config(tmp_path)


def test_a_minimal_study_has_defaults_and_the_name_of_its_file(tmp_path):
    config = load_config(written(tmp_path, MINIMAL))
    assert (config.name, config.model.id, config.search.algorithm) == ("x", "tiny", "gp-local")


def test_a_study_with_a_byte_order_mark_and_crlf_is_read(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_config(path).space == load_config(written(tmp_path, MINIMAL)).space


def test_overrides_replace_single_values(tmp_path):
    path = written(tmp_path, MINIMAL + "[search]\ntrials = 7\nseed = 3\n")
    config = load_config(path, {"search": {"trials": 9}})
    assert (config.search.trials, config.search.seed) == (9, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "space: must be given"),
        ("[space]\nnum_steps = 3.5\n", "line 2: space.num_steps: must be a whole number, got 3.5"),
        (MINIMAL + "guidance_scale = [1.0]\n", r"space.guidance_scale.1: must be given"),
        (
            MINIMAL + "guidance_scale = [1.0, 2.0, 3.0]\n",
            "space.guidance_scale: must have no more than 2 values, got .1.0, 2.0, 3.0.",
        ),
        (MINIMAL + "solvers = [3]\n", "space.solvers.0: must be text, got 3"),
        ("[space", "not TOML"),
        (MINIMAL + "[serch]\n", "unknown key 'serch'; did you mean 'search'"),
        (MINIMAL + '[model]\nloras = "a"\n', "model.loras: must be a list, such as .*, got .a."),
        (
            MINIMAL + '[model]\nnegative_prompt = "a"\n',
            "unknown key 'model.negative_prompt'; did you mean 'evaluation.negative_prompt'",
        ),
        (MINIMAL + '[model]\ndtype = "fp16"\n', "model.dtype: must be 'float32', 'float16'"),
        (MINIMAL + "[search]\ntrails = 3\n", "unknown key 'search.trails'; did you mean 'trials'"),
        ("name = 'y'\n" + MINIMAL, "unknown key 'name'; a study is named after its file"),
        ("search = 'gp'\n" + MINIMAL, "search: .* got 'gp'"),
        (MINIMAL + "[baselines]\norders = [1, 1]\n", r"orders must differ, got \[1, 1\]"),
        (MINIMAL + "[search]\ntrials = 0\n", "search.trials: .* got 0"),
        ("[model]\nsize = [3, 4]\n" + MINIMAL, r"model.size: .* got \[3, 4\]"),
        (MINIMAL + "[search]\nalgorithm = 'sgd'\n", "search.algorithm: .* got 'sgd'"),
        (
            "[space]\nnum_steps = 5\npasses = 4\n",
            "space: num_steps = 5 <= passes = 4 must hold",
        ),
        (MINIMAL + "log_gap = [1.0, -1.0]\n", "log_gap: low must not be above high"),
        (MINIMAL + "log_gap = [-1.0, 11.0]\n", "log_gap: high must be <= 10, got 11.0"),
        (MINIMAL + "analytic = [0.2, 0.5]\n", "analytic: high must be at least 0.9, .* got 0.5"),
        (
            MINIMAL + "guidance = 'off'\nguidance_rescale = [0.0, 0.7]\n",
            "guidance_rescale: there is nothing to rescale",
        ),
        (
            MINIMAL + "guidance = 'off'\n[evaluation]\nguidance_scales = [2.0]\n",
            "guidance_scales: there is no guidance to scale",
        ),
        (MINIMAL + "final_sigma = [0.0, 1.0]\n", "final_sigma: low must be above 0, got 0.0"),
        (MINIMAL + "solvers = ['rk4']\n", "solvers must be of ddim, .* got 'rk4'"),
        (MINIMAL + "solvers = ['ddim']\n", "max_order of ddim is at most 1"),
        (
            MINIMAL + "solvers = ['dpm-v3']\n[evaluation]\nguidance_scales = [2, 3]\n",
            "space.solvers: dpm-v3 goes by statistics of one guidance scale",
        ),
        (
            MINIMAL + "[baselines]\nsolvers = ['dpm-v3']\n[evaluation]\nguidance_scales = [2, 3]\n",
            "baselines.solvers: dpm-v3 goes by statistics of one guidance scale",
        ),
        (
            MINIMAL + "first_sigma = [0.3, 14.0]\nfinal_sigma = [0.02, 0.55]\n",
            "first_sigma: low must be above the highest final_sigma, 0.55, got 0.3",
        ),
        (MINIMAL + "churn = [0.0, 1.0]\n", "churn: high must be below 1, got 1.0"),
        (MINIMAL + "fresh_noise = 'per-step'\n", "there is no fresh noise without churn"),
        (MINIMAL + "gain = [0.7, 1.1]\n", "gain: low must be >= 0.8, got 0.7"),
        (MINIMAL + "gain = [0.9, 1.3]\n", "gain: high must be <= 1.25, got 1.3"),
        (MINIMAL + "guidance_rescale = [0.0, 1.5]\n", "guidance_rescale: high must be <= 1, got"),
        (MINIMAL + "analytic_at = [0.2, 0.8]\n", "there is no analytic first step without analyt"),
        (MINIMAL + "free_u_sets = 3\n", "free_u_sets: .* got 3"),
        (MINIMAL + "sigma_min = [0.03, 0.5]\n", "sigma_min is of karras, placement is curve"),
        (
            MINIMAL + "placement = 'karras'\nfirst_sigma = [0.7, 9]\nsigma_min = [0.03, 0.8]\n",
            "first_sigma: low must be above the highest sigma_min, 0.8, got 0.7",
        ),
        (
            MINIMAL + "placement = 'gits'\n",
            "must be .curve., .power. or .karras.; the curve around gits is baseline = .gits.",
        ),
        (MINIMAL + "baseline = 'gist'\n", "baseline must be one of best, .*gits.* got 'gist'"),
        (MINIMAL + "[baselines]\nrungs = [20, 10]\n", r"rungs must rise from .* got \[20, 10\]"),
        (
            MINIMAL + "[evaluation]\nimages = 250\nrungs = [60, 125]\n",
            r"rungs must rise from at least 8 to images = 250, got \[60, 125\]",
        ),
        (MINIMAL + "[evaluation]\nrungs = [4, 300]\n", r"rungs must rise .* got \[4, 300\]"),
        (MINIMAL + "[baselines]\ngains = [1.0, 0.7]\n", "baselines.gains.1: .* 0.8, got 0.7"),
        (MINIMAL + "[baselines]\ngains = []\n", r"gains must name at least one, got \[\]"),
        (MINIMAL + "[baselines]\ngains = [1.0, 1.0]\n", r"gains must differ, got \[1.0, 1.0\]"),
        (MINIMAL + "[search]\ntrials = true\n", "trials: must not be true or false, got true"),
        (MINIMAL + "[model]\nsize = true\n", "model.size: must not be true or false, got true"),
        (MINIMAL + "[model]\nclip_skip = true\n", "model.clip_skip: must not be true .* got true"),
        (MINIMAL + "log_gap = [true, true]\n", r"log_gap: must not hold .* got \[true, true\]"),
        (MINIMAL + "[baselines]\norders = [1, true]\n", r"orders: must not .* got \[1, true\]"),
        (MINIMAL + "gain = " + "[" * 50_000, "its lists are nested too deep"),
        (MINIMAL + "max_steps = " + "9" * 5000, "not TOML.* limit .* for integer"),
        (MINIMAL + f"max_steps = '{'9' * 5000}'", "space.max_steps: Unable to parse .*9999…$"),
        ("space = 5\n", r"line 1: space: must be a section, \[space\] with its keys, got 5"),
        (MINIMAL + "[search]\npatience = 0\n", "search.patience: .* got 0"),
        ("[space]\nnum_stps = 3\n", "unknown key 'space.num_stps'; did you mean 'num_steps'"),
        (
            MINIMAL + "[search]\nalgorithm = 'cmaes'\nobjectives = ['fd', 'alignment']\n",
            "cmaes has one objective; gp-local, gp, tpe, nsga2 and random take both",
        ),
        (MINIMAL + "max_steps = 0\n", "space.max_steps: .* got 0"),
        (MINIMAL + "log_gap = [-inf, inf]\n", "space.log_gap.0: .* finite number, got -inf"),
        (MINIMAL + "guidance_scale = [1.0, inf]\n", "guidance_scale.1: .* finite .* got inf"),
        (MINIMAL + "[model]\nsize = 0\n", "model: size must be pixels, at least 1, .* got 0"),
        (MINIMAL + "[model]\nclip_skip = 0\n", "model: clip_skip must be at least 1, got 0"),
        (MINIMAL + "[model]\nloras_ = []\n", "key 'model.loras_'; did you mean 'loras'"),
        (MINIMAL + "[search]\nloras = []\n", "did you mean 'model.loras'"),
        (MINIMAL + "[teacher]\nguidance_scale = nan\n", "teacher.guidance_scale: .* got nan"),
        (MINIMAL + "[teacher]\nsteps = 1000\n", "teacher.steps: .* 999, got 1000"),
        (MINIMAL + "[baselines]\norders = [4]\n", r"orders of dpmpp-.* are 1 to 3, got \[4\]"),
        (MINIMAL + "[baselines]\norders = [0, 1]\n", r"are 1 to 3, got \[0, 1\]"),
        (MINIMAL + "[baselines]\norders = []\n", r"orders must name at least one, got \[\]"),
        (MINIMAL + "[baselines]\nsolvers = []\n", r"solvers must name at least one, got \[\]"),
        (MINIMAL + "solvers = []\n", r"solvers must be different names, got \[\]"),
        (MINIMAL + "[baselines]\nrungs = [-5, 3]\n", r"rise from at least 2 .* got \[-5, 3\]"),
        (MINIMAL + "[baselines]\nlong_steps = [0]\n", r"long_steps must be 1 to 999, got \[0\]"),
        (MINIMAL + "[baselines]\nlong_steps = [9, 9]\n", r"long_steps must differ, got \[9, 9\]"),
        (MINIMAL + "[baselines]\nrivals = ['oss', 'oss']\n", "rivals must differ, got "),
        (MINIMAL + "[baselines]\nguidance_scales = [nan]\n", "guidance_scales.0: .* got nan"),
        (MINIMAL + "[baselines]\nguidance_scales = [-1.0]\n", r"must be >= 0, got \[-1.0\]"),
        (MINIMAL + "[baselines]\nguidance_scales = [2.0, 2.0000001]\n", "guidance_.* must differ"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(written(tmp_path, text))
    assert "x.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# a study\n\n" + MINIMAL + "num_stps = 3\n", 6),
        (MINIMAL + "\n[ search ] # how\n\ntrials = 0\n", 7),
        (MINIMAL + "search.trials = 'many'\n", 4),
        (MINIMAL + "gain = [0.7, 1.1]\n", 4),
        (MINIMAL + "[evaluation]\nimages = 250\n'rungs' = [\n60,\n125]\n", 6),
        ("[model]\nid = 'tiny'\n", None),  # there is no line of what is missing
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, text, line):
    with pytest.raises(UserError) as caught:
        load_config(written(tmp_path, text))
    known = re.search(r"x\.toml, line (\d+): ", str(caught.value))
    assert (known and int(known[1])) == line


@pytest.mark.parametrize(("flag", "value"), [("trials", 9), ("seed", 0), ("start-from", "x")])
def test_an_option_and_the_setting_that_it_stands_for_are_not_given_together(
    tmp_path, monkeypatch, flag, value
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").write_text(MINIMAL)
    key = f"search.{flag.replace('-', '_')}"
    said = command("run", "x.toml", f"--{flag}", value, "--set", f'{key}="8"')
    assert str(said.exception) == f"give --{flag} or --set {key}, not both"
    assert not (tmp_path / "runs").exists()


def test_settings_of_the_command_line_replace_those_of_the_file(tmp_path):
    given = given_values(["search.trials=7", "model.id = tiny-second", "space.gain=[0.9, 1.1]"])
    config = load_config(written(tmp_path, MINIMAL + "[search]\ntrials = 9\nseed = 3\n"), given)
    assert (config.search.trials, config.search.seed) == (7, 3)
    assert (config.model.id, config.space.gain) == ("tiny-second", (0.9, 1.1))
    for setting, sentence in {
        "search.trails=7": "^--set: unknown key 'search.trails'; did you mean 'trials'",
        "search.trials=0": "^--set: search.trials: .* got 0",
        "trials=7": "--set must be section.key=value, got 'trials=7'",
        "space.gain=" + "[" * 50_000: "--set space.gain: its lists are nested too deep",
        "space.passes=" + "9" * 5000: "--set: space.passes: Unable to parse",
    }.items():
        with pytest.raises(UserError, match=sentence):
            load_config(written(tmp_path, MINIMAL), given_values([setting]))


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("evaluation", "images = {}"),
        ("evaluation", "selection_images = {}"),
        ("evaluation", "test_images = {}"),
        ("teacher", "images = {}"),
        ("baselines", "rungs = [2, {}]"),
    ],
)
def test_no_range_of_seeds_reaches_into_the_next(tmp_path, section, text):
    """Each has as many as lie between the first ones of two ranges."""
    study = MINIMAL + f"[{section}]\n{text}\n"
    assert SELECTION - SEARCH == TEST - SELECTION == FRONT - TEST
    load_config(written(tmp_path, study.format(TEST - SELECTION)))
    with pytest.raises(UserError, match=f"{section}.* 10000000, got .*10000001"):
        load_config(written(tmp_path, study.format(TEST - SELECTION + 1)))


def test_a_quick_run_polishes_no_more_than_its_finalists(tmp_path):
    study = written(tmp_path, MINIMAL + "[search]\nfinalists = 3\npolish = 3\n")
    config, _ = _run_of(study, None, True, None, {})
    assert (config.search.finalists, config.search.polish) == (2, 2)
    config, _ = _run_of(written(tmp_path, MINIMAL), None, True, None, {})
    assert config.search.polish == 0
    box = '[space]\nnum_steps = 4\npasses = 8\nmax_steps = 6\nguidance = "per-step"\n'
    study = written(tmp_path, box + "[search]\npatterns = 4\npolish = 3\npolish_iterations = 3\n")
    config, _ = _run_of(study, None, True, None, {})
    search = config.search
    assert (search.patterns, search.polish, search.polish_iterations) == (1, 2, 1)
    small = shrunk(load_config(study), "stable-diffusion", tmp_path).search
    assert (small.patterns, small.polish, small.polish_iterations) == (1, 2, 1)


def test_a_quick_run_takes_every_solver_of_a_study(tmp_path):
    study = MINIMAL + "[baselines]\nsolvers = ['ddim']\norders = [1]\n"
    assert load_config(written(tmp_path, study), QUICK).baselines.orders == (2,)


def test_the_studies_of_the_repository_are_valid():
    files = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))
    assert files
    for file in files:
        load_config(file)


def test_the_settings_that_the_docs_show_are_valid(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "searching.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 18
    space = "[space]\nnum_steps = 8\npasses = 16\n"
    for block in blocks:
        study = block if "[space]" in block else space + block
        assert load_config(written(tmp_path, study)) != load_config(written(tmp_path, space))


@pytest.mark.parametrize("name", ["tiny-3-step.toml", "tiny-3steps", "../study/tiny-3-steps.toml"])
def test_a_mistyped_study_is_answered_with_the_one_that_was_meant(tmp_path, monkeypatch, name):
    (tmp_path / "studies").mkdir()
    for there in ("tiny-3-steps.toml", "tiny-3-steps.json", "other.toml"):
        written(tmp_path / "studies", MINIMAL).rename(tmp_path / "studies" / there)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"; did you mean '.*studies/tiny-3-steps\.toml'\?$"):
        load_config(Path("studies", name))


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        ("--clip-skip must be 1 to 2", "model.clip_skip must be 1 to 2"),
        ("give one with --vae", "give one with model.vae"),
        ("give it with --lora, beside", "give it with model.loras, beside"),
        (
            "give --zero-snr or --no-zero-snr",
            "give model.zero_snr = true or model.zero_snr = false",
        ),
        ("--prediction-type sample", 'model.prediction_type = "sample"'),
        ("--size-of --dtypes", "--size-of --dtypes"),
        ("--dtype of --size 64", "model.dtype of model.size 64"),
        (
            "`stepsample statistics --model tiny` makes some: --statistics names them",
            "`stepsample statistics --model tiny` makes some: model.statistics names them",
        ),
    ],
)
def test_options_of_a_model_are_told_as_keys_of_a_study(said, keys):
    assert as_keys(said) == keys
    with pytest.raises(UserError) as caught, in_keys():
        raise UserError(said)
    assert str(caught.value) == keys


def test_an_absent_study_is_named():
    with pytest.raises(UserError, match=r"absent\.toml: No such file"):
        load_config(Path("absent.toml"))
