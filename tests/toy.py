"""A target whose probability-flow ODE is solved in closed form, and tiny pipelines."""

import numpy as np
import torch

MEAN, DEVIATION = 0.7, 0.5


def gaussian_denoiser(x, step):
    """E[x0 | x] of x0 ~ N(MEAN, DEVIATION^2)."""
    share = DEVIATION**2 / (DEVIATION**2 + step.sigma**2)
    return MEAN + share * (x - MEAN)


def gaussian_solution(x, sigma, sigma_next):
    """Where the exact ODE takes x."""
    scale = np.sqrt((DEVIATION**2 + sigma_next**2) / (DEVIATION**2 + sigma**2))
    return MEAN + scale * (x - MEAN)


def tiny_pipeline(prediction_type="epsilon", scheduler=None):
    """A Stable Diffusion pipeline of the stock classes with random weights."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from stepsampler.models import resolve

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(resolve("tiny"), subfolder="tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        eos_token_id=tokenizer.eos_token_id,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=32,
        ),
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        ),
        scheduler=scheduler
        or DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type=prediction_type,
            timestep_spacing="trailing",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.eval()
    return pipeline
