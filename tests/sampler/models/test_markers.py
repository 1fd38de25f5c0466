"""Single files that say zero terminal SNR or EDM's preconditioning, against their configs."""

import diffusers
import ldm
import pipelines
import pytest
import torch
from pipelines import PROMPTS
from safetensors.torch import save_file
from typer.testing import CliRunner

from stepsampler import Schedule, Step, UserError
from stepsampler.cli.app import app
from stepsampler.generate import generate
from stepsampler.models import from_pipeline, load
from stepsampler.noise import EDMSchedule
from stepsearch.config import ModelConfig

V = "v_prediction"
ZTSNR = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
ZERO = {"rescale_betas_zero_snr": True}
EDM = {"sigma_max": 100.0, "sigma_data": 1.0, "prediction_type": V, "sigma_schedule": "exponential"}


def images(model):
    first = min(model.noise.sigma_max, 4096.0)
    schedule = Schedule((Step(first), Step(4.0)), 0.0, "ddim", model.spec)
    (batch,) = generate(model, schedule, PROMPTS, [0, 1, 2])
    return batch.images.int()


def made(**options):
    pipe = pipelines.stable_diffusion(V)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **options)
    return pipe


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    pipelines.stable_diffusion().save_pretrained(path / "epsilon")
    made().save_pretrained(path / V)
    made(**ZERO).save_pretrained(path / "zero")
    edm = pipelines.stable_diffusion()
    edm.register_modules(scheduler=diffusers.EDMEulerScheduler(**EDM))
    edm.save_pretrained(path / "edm")
    return path


@pytest.fixture(scope="module")
def weights():
    return ldm.checkpoint(pipelines.stable_diffusion())


@pytest.fixture
def file(tmp_path):
    return str(tmp_path / "x.safetensors")


@pytest.fixture
def guessed(folders, monkeypatch):
    """The config that diffusers takes from the hub."""
    from diffusers.loaders import single_file_utils

    known = {"v1": {"pretrained_model_name_or_path": str(folders / "epsilon")}}
    monkeypatch.setattr(single_file_utils, "DIFFUSERS_DEFAULT_PIPELINE_PATHS", known)


@pytest.mark.usefixtures("guessed")
def test_markers_do_what_they_say_where_no_config_is_given(weights, file, capsys):
    save_file(weights | ZTSNR, file)
    model = load(file)
    assert model.spec == from_pipeline(made(**ZERO)).spec
    assert torch.equal(images(model), images(from_pipeline(made(**ZERO))))
    plain = load(file, zero_snr=False)
    assert plain.spec == from_pipeline(made()).spec
    save_file(weights, file, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"})
    assert load(file).spec == model.spec
    assert "left out" not in capsys.readouterr().err


@pytest.mark.usefixtures("guessed")
def test_a_cosxl_has_the_levels_that_it_says(weights, file, capsys):
    ends = {"edm_vpred.sigma_max": torch.tensor(100.0), "edm_vpred.sigma_min": torch.tensor(0.01)}
    save_file(weights | ends, file)
    model = load(file)
    assert model.noise == EDMSchedule(pytest.approx(0.01), 100.0, 1.0, None)
    assert model.prediction_type == V
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = diffusers.EDMEulerScheduler(**EDM, sigma_min=0.01)
    assert torch.equal(images(model), images(from_pipeline(pipe)))
    assert "left out" not in capsys.readouterr().err


def test_a_config_that_says_the_same_is_followed(folders, weights, file):
    save_file(weights | ZTSNR, file)
    assert load(file, config=str(folders / "zero")).noise.sigma_max > 4000
    save_file(weights | {"edm_vpred.sigma_max": torch.tensor(100.0)}, file)
    assert load(file, config=str(folders / "edm")).spec.sigma_data == 1.0
    save_file(weights, file)  # a file that says nothing contradicts nothing
    assert load(file, config=str(folders / "zero")).noise.sigma_max > 4000


@pytest.mark.parametrize(
    ("tensors", "metadata", "config", "options", "said"),
    [
        (
            ZTSNR,
            {},
            V,
            {},
            "marker ztsnr says zero terminal SNR, but the config '.*' says no zero terminal SNR: "
            "give --zero-snr or --no-zero-snr, which overrules both",
        ),
        (
            {},
            {"ss_zero_terminal_snr": "False"},
            "zero",
            {},
            "ss_zero_terminal_snr says no zero terminal SNR, but the config",
        ),
        (
            ZTSNR,
            {"ss_zero_terminal_snr": "False"},
            "zero",
            {},
            "contradicts itself on zero terminal SNR: ztsnr says true, ss_zero_terminal_snr says f",
        ),
        (
            {"ztsnr": torch.zeros(0)},
            {"modelspec.prediction_type": "epsilon"},
            "epsilon",
            {},
            "ztsnr: zero terminal SNR does not go with a model that predicts epsilon",
        ),
        ({}, {}, "epsilon", {"zero_snr": True}, "does not go with a model that predicts epsilon"),
        ({}, {}, "edm", {"zero_snr": True}, "--zero-snr and --no-zero-snr are of models with bet"),
        (
            {"edm_mean": torch.zeros(4), "edm_std": torch.zeros(4)},
            {},
            "epsilon",
            {},
            "edm_mean says a model with EDM's preconditioning, but the config says another",
        ),
        (
            {"edm_vpred.sigma_max": torch.tensor(120.0)},
            {"modelspec.prediction_type": "epsilon"},
            "edm",
            {},
            "contradicts itself: edm_vpred.sigma_max says v_prediction, modelspec.prediction_type",
        ),
    ],
)
def test_a_mismatch_is_a_sentence(tensors, metadata, config, options, said, folders, weights, file):
    save_file(weights | tensors, file, metadata)
    with pytest.raises(UserError, match=said) as error:
        load(file, config=str(folders / config), **options)
    assert "\n" not in str(error.value)


def test_what_is_asked_for_overrules_both(folders, weights, file):
    save_file(weights | ZTSNR, file)
    assert load(file, config=str(folders / V), zero_snr=True).noise.sigma_max > 4000
    assert load(file, config=str(folders / V), zero_snr=False).noise.sigma_max < 15
    assert load(file, config=str(folders / "zero"), zero_snr=False).noise.sigma_max < 15


@pytest.mark.parametrize("cls", [diffusers.PNDMScheduler, diffusers.EulerDiscreteScheduler])
def test_a_folder_is_overruled_even_where_its_scheduler_knows_no_such_option(cls, tmp_path):
    pipe = made()
    pipe.scheduler = cls(**pipelines.BETAS, prediction_type=V)
    pipe.save_pretrained(tmp_path)
    assert load(str(tmp_path)).noise.sigma_max < 15
    assert load(str(tmp_path), zero_snr=True).noise.sigma_max > 4000
    made(**ZERO).save_pretrained(tmp_path / "zero")
    assert load(str(tmp_path / "zero")).noise.sigma_max > 4000
    assert load(str(tmp_path / "zero"), zero_snr=False).noise.sigma_max < 15


def test_the_command_line_and_a_study_have_it(tmp_path):
    made().save_pretrained(tmp_path / "m")
    Schedule((Step(4096.0), Step(4.0)), 0.0, "ddim").save(tmp_path / "s.json")
    line = ["generate", str(tmp_path / "s.json"), "--model", str(tmp_path / "m"), "--prompt", "fox"]
    line += ["-o", str(tmp_path / "out")]
    assert CliRunner().invoke(app, [*line, "--zero-snr"]).exit_code == 0
    plain = CliRunner().invoke(app, [*line, "--no-zero-snr"])
    assert "is above the model's highest, 14.6" in str(plain.exception)
    assert ModelConfig(id="x", zero_snr=True).zero_snr is True
