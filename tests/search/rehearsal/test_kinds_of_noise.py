"""A dry run has the kind of noise that the model's files, or the study, say."""

import diffusers
import pipelines
import pytest
import torch
from safetensors.torch import save_file

from stepsampler import UserError
from stepsampler.models import from_pipeline
from stepsearch.config import StudyConfig
from stepsearch.rehearsal.dryrun import miniature

ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}

COSXL = {
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 120.0,
}


def spec(kind, **model):
    config = StudyConfig.model_validate(
        {
            "name": "x",
            "model": model,
            "space": {"num_steps": 4, "passes": 4, "guidance": "off"},
            "evaluation": {"reference": "r"},
        }
    )
    return from_pipeline(miniature(config, kind)).spec


def test_that_of_a_folder(tmp_path):
    pipe = pipelines.FAMILIES["sdxl"]()
    for name, scheduler in (
        ("edm", diffusers.EDMEulerScheduler()),
        ("zero", diffusers.EulerDiscreteScheduler(**pipelines.BETAS, **ZERO)),
        ("cosxl", diffusers.EulerDiscreteScheduler(**pipelines.BETAS, **COSXL)),
    ):
        pipe.scheduler = scheduler
        pipe.save_pretrained(tmp_path / name)
    assert spec("sdxl", id=str(tmp_path / "edm")).sigma_data == 0.5
    cosxl = spec("sdxl", id=str(tmp_path / "cosxl"))
    assert (cosxl.sigma_data, cosxl.noise[-1]) == (1.0, 120.0)
    assert spec("sdxl", id=str(tmp_path / "zero")).noise[-1] > 4000
    assert spec("sdxl", id=str(tmp_path / "zero"), zero_snr=False).noise[-1] < 15


def test_that_of_a_file(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    assert spec("sdxl", id=str(file)).noise[-1] > 4000
    save_file({"a": torch.zeros(1), "edm_vpred.sigma_max": torch.tensor(120.0)}, file)
    assert spec("sdxl", id=str(file), config="x").noise[-1] == pytest.approx(120.0)
    save_file({"a": torch.zeros(1), "edm_mean": torch.zeros(4)}, file)
    assert spec("sdxl", id=str(file), config="x").sigma_data == 0.5


def test_that_of_the_study():
    options = {"prediction_type": "v_prediction", "zero_snr": True}
    assert spec("sdxl", id="not/here", **options).noise[-1] > 4000
    with pytest.raises(UserError, match="are of models with betas"):
        spec("sd3", id="not/here", zero_snr=True)
