"""Tiny pipelines that no family of our own loop knows: they sample themselves."""

from collections.abc import Callable
from typing import Any

from stepsearch.rehearsal.miniatures.parts import autoencoder, fresh, spread
from stepsearch.rehearsal.miniatures.texts import (
    gemma,
    gemma_tokenizer,
    qwen3_encoder,
    qwen_tokenizer,
    t5_encoder,
    t5_tokenizer,
)


def flow(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def umt5(tokenizer: Any) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **sizes))


@fresh
def bria() -> Any:
    """Its latents are packed; T5 has no mask."""
    from diffusers import BriaPipeline, BriaTransformer2DModel

    tokenizer = t5_tokenizer()
    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    spread(transformer, gain=2.0)
    vae = autoencoder(scaling_factor=0.3611, shift_factor=0.1159)
    return BriaPipeline(transformer, flow(), vae, t5_encoder(tokenizer), tokenizer)


@fresh
def ovis_image() -> Any:
    from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

    tokenizer = qwen_tokenizer()
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    spread(transformer, gain=2.0)
    vae = autoencoder(scaling_factor=0.3611, shift_factor=0.1159)
    scheduler = flow(use_dynamic_shifting=True)
    return OvisImagePipeline(scheduler, vae, qwen3_encoder(tokenizer), tokenizer, transformer)


@fresh
def kandinsky3() -> Any:
    """A U-Net that predicts epsilon, under T5."""
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel

    tokenizer = t5_tokenizer()
    unet = Kandinsky3UNet(
        time_embedding_dim=4,
        groups=4,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=32,
    )
    spread(unet)
    movq = VQModel(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    betas = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
    return Kandinsky3Pipeline(tokenizer, t5_encoder(tokenizer), unet, DDPMScheduler(**betas), movq)


@fresh
def lumina() -> Any:
    """Lumina-Next guides three of its channels."""
    from diffusers import LuminaNextDiT2DModel, LuminaPipeline

    tokenizer = gemma_tokenizer()
    transformer = LuminaNextDiT2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        learn_sigma=True,
        cross_attention_dim=8,
    )
    spread(transformer)
    vae = autoencoder(blocks=4)
    return LuminaPipeline(transformer, flow(), vae, gemma(tokenizer, layers=2), tokenizer)


# By the names that a study's `model.kind` has
STOCK: dict[str, Callable[..., Any]] = {
    "bria": bria,
    "kandinsky3": kandinsky3,
    "lumina": lumina,
    "ovis-image": ovis_image,
}
