"""What a stock pipeline does, against the pipeline itself with its network at work."""

from inspect import signature

import diffusers
import families
import pipelines
import pytest
import torch

from stepsampler import UserError
from stepsampler.cli.stock import describe_run
from stepsampler.models import from_pipeline
from stepsampler.models.stock.run import run_stock
from stepsampler.support.scales import ALONE, called, sentence

STEPS = 3
TABLES = [  # schedulers with betas: those that keep sigmas, and those that do not
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "LCMScheduler",
]


def really(pipeline, size):
    """Times that the network is told in a whole call."""
    told = []
    networks = families.networks(pipeline)
    named = signature(type(networks[0]).forward)

    def note(net, args, kwargs):
        bound = named.bind(net, *args, **kwargs).arguments
        time = next(bound[k] for k in ("timestep", "t") if k in bound)
        told.append(float(torch.as_tensor(time).flatten()[0]))

    known = signature(type(pipeline).__call__).parameters
    options = {k: v for k, v in families.SIZES.items() if k in known and size}
    if options.pop("num_frames", None):  # the default, on which shifts may depend
        options["output_type"] = "latent"
    if "prompt" in known:
        options["prompt"] = "a photo"
    if "class_labels" in known:
        options["class_labels"] = [0]
    hooks = [net.register_forward_pre_hook(note, with_kwargs=True) for net in networks]
    with torch.no_grad():
        pipeline(num_inference_steps=STEPS, **options)
    for hook in hooks:
        hook.remove()
    return told


@pytest.mark.parametrize("name", pipelines.FAMILIES)
def test_every_family_is_told_what_the_real_call_tells_it(name):
    pipeline = pipelines.FAMILIES[name]()
    known = signature(type(pipeline).__call__).parameters
    size = pipelines.SIZE if "height" in known else None
    run = run_stock(pipeline, STEPS, size=size)
    again = pipelines.FAMILIES[name]()
    told = really(again, size)
    assert [step.told for step in run.steps] == list(dict.fromkeys(told))
    sigmas = getattr(again.scheduler, "sigmas", None)
    if sigmas is not None:
        assert [step.sigma for step in run.steps] == sigmas[:STEPS].tolist()
        assert run.steps[-1].lands_on == sigmas[STEPS]
    # what our loop counts, and its w: those of the images that equal the stock pipeline's
    model = from_pipeline(again)
    guided = model.guidance != "distilled" and run.scale_name != "true_cfg_scale"
    doubles = families.STOCK[name].doubles and guided
    more = 2 if run.beside else 0  # a perturbed one, and one without the other modality
    assert run.passes == STEPS * (more + (2 if doubles else 1))
    assert bool(run.beside) == (model.family in ALONE)
    assert run.distilled == (model.guidance == "distilled")
    if run.scale is not None:
        w = run.scale + run.less
        asked = families.STOCK[name].scale(w)
        assert asked[run.scale_name] == run.scale


@pytest.mark.parametrize("name", TABLES)
def test_sigmas_and_timesteps_are_those_of_the_scheduler(name):
    pipeline = pipelines.stable_diffusion()
    own = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    run = run_stock(pipeline, 4, name)
    own.set_timesteps(4)
    assert [step.at for step in run.steps] == own.timesteps.tolist()
    alphas = own.alphas_cumprod[own.timesteps.long()]
    sigmas = ((1 - alphas) / alphas).sqrt()
    if hasattr(own, "sigmas"):
        sigmas = own.sigmas[: len(own.timesteps)]
        assert run.steps[-1].lands_on == own.sigmas[len(own.timesteps)]
    assert [step.sigma for step in run.steps] == pytest.approx(sigmas.tolist(), rel=1e-5)
    assert run.scheduler == name
    assert not isinstance(pipeline.scheduler, own.__class__) or name == "DDIMScheduler"


def test_the_pipeline_is_as_before():
    pipeline = pipelines.stable_diffusion()
    before = dict(vars(pipeline.unet)), dict(vars(pipeline.scheduler)), pipeline.scheduler
    run_stock(pipeline, 2, "EulerDiscreteScheduler")
    with pytest.raises(UserError, match="the StableDiffusionPipeline refuses 2 steps"):
        run_stock(pipeline, 2, size=33)
    assert pipeline.scheduler is before[2]
    assert vars(pipeline.unet) == before[0]
    assert vars(pipeline.scheduler).keys() == before[1].keys()


def test_a_flow_of_four_steps_wastes_its_last_and_that_is_said():
    """diffusers shifts the smallest sigma twice: its table of FlowMatchEuler(shift=3)."""
    run = run_stock(pipelines.sd3(), 4)
    table = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    table.set_timesteps(4)
    assert [s.sigma for s in run.steps] == table.sigmas[:4].tolist()
    assert [s.sigma for s in run.steps] == pytest.approx([1, 0.8577, 0.6022, 0.0089], abs=1e-4)
    text = describe_run(run)
    assert "note: the last step begins with 0.89 % of noise: its passes are nearly wasted" in text
    assert "nearly wasted" not in describe_run(run_stock(pipelines.flux(), 4))


def test_a_scale_is_said_as_our_w():
    text = describe_run(run_stock(pipelines.z_image(), 2, size=32))
    assert "4 passes per image, guidance_scale 5 by default (w = 6)" in text
    text = describe_run(run_stock(pipelines.qwen_image(), 2, size=32))
    assert "2 passes per image, true_cfg_scale 4 by default (w = 4)" in text
    assert "true_cfg_scale guides only beside a negative prompt" in text
    assert text.count(" off ") == 2


def test_rounded_timesteps_late_starts_and_noise_that_is_left_are_said():
    text = describe_run(run_stock(pipelines.sana(), 4, size=32))
    assert "timesteps are rounded, and up to 0.67 beside those of the sigmas" in text
    pipeline = pipelines.stable_diffusion()
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="leading", set_alpha_to_one=False
    )
    text = describe_run(run_stock(pipeline, 5))
    assert "note: starts at sigma 5.1" in text
    assert "note: ends at sigma 0.02917: that noise is left in the image" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Foo", "--scheduler must be a scheduler of diffusers, got 'Foo'"),
        ("AutoencoderKL", "--scheduler must be a scheduler of diffusers, got 'AutoencoderKL'"),
        ("FlowMatchEulerDiscreteScheduler", "is not for a model with betas"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        run_stock(pipelines.stable_diffusion(), 4, name)
    with pytest.raises(UserError, match="EulerDiscreteScheduler is not for a flow model"):
        run_stock(pipelines.sd3(), 4, "EulerDiscreteScheduler")


@pytest.mark.parametrize("name", pipelines.FAMILIES)
def test_each_familys_scale_is_called_what_its_pipeline_calls_it(name):
    """`families.STOCK` has the options whose images are ours, for the same w."""
    model = from_pipeline(pipelines.FAMILIES[name]())
    name_of_scale, less = called(model.family, model.guidance)
    options = families.STOCK[name].scale(5.0)
    if options:
        assert options[name_of_scale] == 5.0 - less
        told = sentence(model.family, model.guidance, 5.0)
        if model.pipeline.components.get("guider"):
            assert told.endswith("in pipe.guider: pipe.guider.new(guidance_scale=5)")
            assert model.pipeline.guider.new(guidance_scale=5.0).guidance_scale == 5.0
            return
        assert name_of_scale in signature(type(model.pipeline).__call__).parameters
        assert (told is None) == (options == {"guidance_scale": 5.0})
