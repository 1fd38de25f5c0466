"""A box with schedules that the model cannot run is refused before the first image."""

import pytest
from running import EVERYTHING

from stepsampler import UserError
from stepsampler.models import from_pipeline
from stepsearch.config.space import SpaceConfig
from stepsearch.rehearsal.miniatures import FAMILIES
from stepsearch.space.check import check_box


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ddpm", {}, 'space.guidance must be "off", the model is unconditional, got "linear"'),
        ("sd3", {"free_u": True}, "space.free_u: only U-Nets with skips have Free-U"),
        ("flux-dev", {"guidance_rescale": (-0.2, 0.7)}, "space has schedules that do not fit the"),
        ("stable-diffusion", {"final_sigma": (0.1, 15.0)}, "space.final_sigma: high must be below"),
        ("sd3", {"churn": (0.0, 0.3)}, "space.churn is not for a flow model"),
        (
            "stable-diffusion",
            {"final_sigma": (0.1, 0.1), "log_gap": (0, 0), "guidance": "off", "max_order": 1},
            "every value is fixed",
        ),
    ],
)
def test_a_box_that_does_not_fit_the_model_is_refused_before_the_first_image(
    kind, options, message
):
    model = from_pipeline(FAMILIES[kind]())
    with pytest.raises(UserError, match=message):
        check_box(SpaceConfig(num_steps=3, passes=6, **options), model)


def test_a_box_that_fits_is_not_refused():
    model = from_pipeline(FAMILIES["stable-diffusion"]())
    check_box(SpaceConfig(num_steps=4, passes=8, **EVERYTHING), model)
    check_box(SpaceConfig(num_steps=4, passes=8, log_gap=(-10.0, 10.0)), model)
