"""Tiny pipelines of videos."""

from collections.abc import Callable
from typing import Any

import torch

from stepsearch.rehearsal.miniatures.parts import autoencoder, fresh, spread
from stepsearch.rehearsal.miniatures.stock import flow, umt5
from stepsearch.rehearsal.miniatures.texts import gemma3, gemma_tokenizer, t5_encoder, t5_tokenizer


@fresh
def ltx() -> Any:
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    tokenizer = t5_tokenizer()
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=32,
    )
    spread(transformer)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    scheduler = flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1)
    return LTXPipeline(scheduler, vae, t5_encoder(tokenizer), tokenizer, transformer)


@fresh
def ltx2(newer: bool = False) -> Any:
    """LTX-2, or 2.3, whose connectors make texts as wide as the network; both are of sound too."""
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    tokenizer, texts, wide, narrow = gemma_tokenizer(), 16, 32, 16
    transformer = LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=wide // 2,
        cross_attention_dim=wide,
        vae_scale_factors=(4, 4, 4),
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=narrow // 2,
        audio_cross_attention_dim=narrow,
        num_layers=2,
        caption_channels=texts,
        rope_type="split",
        gated_attn=newer,
        audio_gated_attn=newer,
        cross_attn_mod=newer,
        audio_cross_attn_mod=newer,
        perturbed_attn=newer,
        use_prompt_embeddings=not newer,
    )
    connectors = LTX2TextConnectors(
        caption_channels=texts,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=(wide if newer else texts) // 2,
        video_connector_num_layers=1,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=(narrow if newer else texts) // 2,
        audio_connector_num_layers=1,
        rope_type="split",
        per_modality_projections=newer,
        video_hidden_dim=wide,
        audio_hidden_dim=narrow,
        proj_bias=newer,
    )
    spread(transformer, gain=3.0)
    vae = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("spatiotemporal",) * 2,
        upsample_type=("spatiotemporal",) * 2,
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=1,
    )
    sound = AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, latent_channels=2, mel_bins=8
    )
    for mean, std in ((vae.latents_mean, vae.latents_std), (sound.latents_mean, sound.latents_std)):
        torch.nn.init.normal_(mean)
        torch.nn.init.uniform_(std, 0.5, 2.0)
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    scheduler = flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1)
    encoder = gemma3(tokenizer, texts)
    return LTX2Pipeline(scheduler, vae, sound, encoder, tokenizer, connectors, transformer, vocoder)


@fresh
def wan(boundary_ratio: float | None = None, expand_timesteps: bool = False) -> Any:
    """Wan 2.1; with a boundary 2.2, of two networks; with a time for each token 2.2's 5B."""
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    tokenizer = t5_tokenizer()

    def transformer() -> Any:
        made = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        )
        spread(made, gain=2.0)
        return made

    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return WanPipeline(
        tokenizer,
        umt5(tokenizer),
        vae,
        flow(shift=3.0),
        transformer(),
        None if boundary_ratio is None else transformer(),
        boundary_ratio,
        expand_timesteps,
    )


@fresh
def mochi() -> Any:
    """Its time runs from 0, noise, to 1, and its network predicts x0 - noise."""
    from diffusers import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel

    tokenizer = t5_tokenizer()
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    spread(transformer)
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    scheduler = flow(invert_sigmas=True)
    return MochiPipeline(scheduler, vae, t5_encoder(tokenizer), tokenizer, transformer)


@fresh
def latte() -> Any:
    """Epsilon, learned variance, a transformer over frames."""
    from diffusers import DDIMScheduler, LattePipeline, LatteTransformer3DModel

    tokenizer = t5_tokenizer()
    transformer = LatteTransformer3DModel(
        sample_size=16,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=2,
    )
    spread(transformer)
    scheduler = DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False)
    return LattePipeline(tokenizer, t5_encoder(tokenizer), autoencoder(), transformer, scheduler)


VIDEOS: dict[str, Callable[..., Any]] = {
    "latte": latte,
    "mochi": mochi,
}
