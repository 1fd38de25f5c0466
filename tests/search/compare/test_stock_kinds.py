"""Stock schedulers beside a model with zero terminal SNR, or with EDM's preconditioning."""

import diffusers
import pipelines
import pytest

from stepsampler import UserError
from stepsampler.models import from_pipeline
from stepsearch.compare.contenders import OnStock


def stock(scheduler, name=None):
    pipe = pipelines.FAMILIES["sdxl"]()
    pipe.scheduler = scheduler
    return OnStock(from_pipeline(pipe), "digest", 4, 3.0, name)


ZERO = diffusers.EulerDiscreteScheduler(
    **pipelines.BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True
)
EDM = diffusers.EDMEulerScheduler()


@pytest.mark.parametrize(
    ("name", "drops"),
    [(None, False), ("DPMSolverMultistepScheduler", False), ("HeunDiscreteScheduler", True)],
)
def test_a_scheduler_that_drops_zero_terminal_snr_is_named(name, drops, capsys):
    stock(ZERO, name)
    assert ("drops rescale_betas_zero_snr in silence" in capsys.readouterr().err) == drops


def test_the_pipelines_own_scheduler_may_drop_it_too(capsys):
    stock(diffusers.DEISMultistepScheduler.from_config(ZERO.config))
    assert "DEISMultistepScheduler drops rescale_betas_zero_snr" in capsys.readouterr().err


def test_schedulers_of_edm_are_for_such_models_alone():
    assert stock(EDM, "EDMDPMSolverMultistepScheduler").name.startswith("EDMDPMSolverMultistep")
    with pytest.raises(
        UserError, match="EulerDiscreteScheduler is not for this model, which has E"
    ):
        stock(EDM, "EulerDiscreteScheduler")
    with pytest.raises(UserError, match="EDMEulerScheduler is not for this model, which has none"):
        stock(ZERO, "EDMEulerScheduler")


def test_a_model_told_log_sigma_by_euler_has_that_scheduler_alone():
    own = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True
    )
    assert stock(own).name == stock(own, "EulerDiscreteScheduler").name
    for name in ("EDMEulerScheduler", "DPMSolverMultistepScheduler"):
        with pytest.raises(UserError, match=f"{name} is not for this model, whose network is told"):
            stock(own, name)
    with pytest.raises(UserError, match="HeunDiscreteScheduler is not for this model, whose netw"):
        stock(diffusers.HeunDiscreteScheduler.from_config(own.config))
