"""Stable Diffusion, and unconditional models of pixels."""

from typing import Any

from stepsearch.rehearsal.miniatures.parts import autoencoder, fresh
from stepsearch.rehearsal.miniatures.texts import chatglm, clip_encoder, clip_tokenizer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@fresh
def stable_diffusion(prediction_type: str = "epsilon") -> Any:
    from diffusers import StableDiffusionPipeline

    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=32),
        scheduler=_ddim(prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@fresh
def lcm() -> Any:
    """A latent consistency model, whose U-Net takes the guidance scale as an embedding."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    tokenizer, unet = clip_tokenizer(), _unet(cross_attention_dim=32, time_cond_proj_dim=16)
    unet.time_embedding.cond_proj.weight.data *= 50  # as it is, no scale changes an image
    return LatentConsistencyModelPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=LCMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@fresh
def sdxl(force_zeros_for_empty_prompt: bool = True) -> Any:
    """Two text encoders, 32 + 48 wide; time ids and the pooled embedding enter the U-Net."""
    from diffusers import StableDiffusionXLPipeline

    tokenizer = clip_tokenizer()
    return StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(tokenizer, layers=2),
        text_encoder_2=clip_encoder(tokenizer, width=48, layers=2, projection=24),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(
            cross_attention_dim=80,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
            transformer_layers_per_block=1,
        ),
        scheduler=_ddim(),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
    )


@fresh
def kolors() -> Any:
    """1,100 timesteps, as the model has."""
    from diffusers import EulerDiscreteScheduler, KolorsPipeline

    tokenizer, encoder = chatglm()
    return KolorsPipeline(
        vae=autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=_unet(
            cross_attention_dim=24,
            encoder_hid_dim=32,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
            transformer_layers_per_block=1,
        ),
        scheduler=EulerDiscreteScheduler(
            **(BETAS | {"beta_end": 0.014}),
            num_train_timesteps=1100,
            steps_offset=1,
            timestep_spacing="leading",
        ),
    )


@fresh
def ddpm() -> Any:
    """An unconditional U-Net on pixels, with the scheduler that clips."""
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(_pixel_unet(), DDPMScheduler())


@fresh
def ddim() -> Any:
    from diffusers import DDIMPipeline, DDIMScheduler

    return DDIMPipeline(_pixel_unet(), DDIMScheduler(clip_sample=False))


def _ddim(**options: Any) -> Any:
    """The grid of trailing timesteps, which starts at the noisiest one."""
    from diffusers import DDIMScheduler

    options = {"timestep_spacing": "trailing", "steps_offset": 1, **options}
    return DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, **options)


def _unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=8,
        **options,
    )


def _pixel_unet() -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
