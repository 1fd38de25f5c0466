"""Tiny pipelines of the stock diffusers and transformers classes, with random weights, float32.

Each call gives a fresh pipeline that the caller may change; its weights are the same every time and
are made once a process. `FAMILIES` names the builders. Nothing is downloaded.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

from stepsearch.rehearsal.miniature_texts import (
    clip_encoder,
    clip_tokenizer,
    t5_encoder,
    t5_tokenizer,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def fresh(build: Callable[..., Any]) -> Callable[..., Any]:
    """Call `build` once per arguments and hand out copies of what it made."""

    @functools.cache
    def cached(*args: Any, **options: Any) -> Any:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        pipeline = build(*args, **options)
        torch.set_rng_state(state)
        pipeline.set_progress_bar_config(disable=True)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        return pipeline

    @functools.wraps(build)
    def builder(*args: Any, **options: Any) -> Any:
        return copy.deepcopy(cached(*args, **options))

    return builder


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
def pixart_alpha(additional_conditions: bool = True) -> Any:
    """Learned variance; with resolution and aspect conditions as the 1024-pixel model has them.

    The stock pipeline knows that model by its `sample_size` of 128: ask for 32 pixels.
    """
    from diffusers import PixArtAlphaPipeline

    return _pixart(PixArtAlphaPipeline, additional_conditions)


@fresh
def pixart_sigma() -> Any:
    from diffusers import PixArtSigmaPipeline

    return _pixart(PixArtSigmaPipeline, False)


def _pixart(cls: Any, additional_conditions: Any) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=128 if additional_conditions else 16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=32,
        use_additional_conditions=additional_conditions,
    )
    _spread(transformer)
    return cls(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=autoencoder(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    )


@fresh
def dit() -> Any:
    """Class-conditional, learned variance. Of ImageNet's 1,000 classes two have names here."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        sample_size=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        out_channels=8,
    )
    _spread(transformer)
    return DiTPipeline(
        transformer=transformer,
        vae=autoencoder(),
        scheduler=DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False),
        id2label={0: "tench, Tinca tinca", 2: "white shark, man-eater"},
    )


@fresh
def sd3(t5: bool = True) -> Any:
    """Two CLIPs of width 32 side by side, and T5, padded to 64."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    clip, tokenizer = clip_tokenizer(), t5_tokenizer() if t5 else None
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=64,
        caption_projection_dim=16,
        pooled_projection_dim=48,
        pos_embed_max_size=16,
    )
    _spread(transformer)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip_encoder(clip, layers=2, projection=24),
        text_encoder_2=clip_encoder(clip, layers=2, projection=24),
        text_encoder_3=t5_encoder(tokenizer, width=64) if t5 else None,
        tokenizer=clip,
        tokenizer_2=clip,
        tokenizer_3=tokenizer,
    )


@fresh
def flux(guidance_embeds: bool = True) -> Any:
    """FLUX.1 as dev (guidance is an input, the shift depends on the size) or as schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    clip, tokenizer = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    _spread(transformer)
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_encoder(clip),
        text_encoder_2=t5_encoder(tokenizer),
        tokenizer=clip,
        tokenizer_2=tokenizer,
    )


@fresh
def sana() -> Any:
    """Flow matching under a DPM-Solver++ scheduler, Gemma's hidden states, AutoencoderDC."""
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "▁": 4}
    letters = {chr(c): 5 + i for i, c in enumerate(range(33, 127))}
    tokenizer = GemmaTokenizer(vocab=words | letters, merges=[])
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=16,
    )
    _spread(transformer)
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(
            Gemma2Config(
                vocab_size=len(tokenizer),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=4,
            )
        ),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            scaling_factor=0.41407,
        ),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
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


FAMILIES: dict[str, Callable[..., Any]] = {
    "stable-diffusion": stable_diffusion,
    "sdxl": sdxl,
    "pixart-alpha": pixart_alpha,
    "pixart-sigma": pixart_sigma,
    "dit": dit,
    "sd3": sd3,
    "flux-dev": functools.partial(flux, True),
    "flux-schnell": functools.partial(flux, False),
    "sana": sana,
    "ddpm": ddpm,
    "ddim": ddim,
}


def _ddim(**options: Any) -> Any:
    """The grid of trailing timesteps, which starts at the noisiest one."""
    from diffusers import DDIMScheduler

    options = {"timestep_spacing": "trailing", "steps_offset": 1, **options}
    return DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, **options)


def autoencoder(**options: Any) -> Any:
    """Images twice as wide as their latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=32,
        **options,
    )


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


def _spread(transformer: Any) -> None:
    """Random weights where transformers start at zero, so that conditions show in the output."""
    for parameter in transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
