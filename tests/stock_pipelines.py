"""Tiny pipelines of stock classes that our own loop does not know, with random weights, float32.

Each builder gives a pipeline without text encoders and what a call of it needs: embeddings for two
prompts and their negatives, and latents. Nothing is downloaded.
"""

import functools
from dataclasses import dataclass

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from stepsearch.rehearsal.miniatures import autoencoder

WIDTH = 16  # of the embeddings


@dataclass
class Subject:
    """A pipeline, the options of a call, and by which name the call's guidance goes."""

    pipe: object
    call: dict
    scale: str = "guidance_scale"
    offset: float = 0.0  # called with w + offset the pipeline guides with w

    def run(self, steps, scale, **options):
        """The latents."""
        options = {**self.call, self.scale: scale, "num_inference_steps": steps, **options}
        with torch.no_grad():
            return self.pipe(**options, output_type="latent", return_dict=False)[0]

    @property
    def networks(self):
        parts = self.pipe.components
        return [parts[k] for k in parts if "transformer" in k and parts[k] is not None]


def built(build):
    """The same weights every time; zero ones are spread, so that conditions show in the output."""

    @functools.wraps(build)
    def builder(*args, **options):
        state = torch.get_rng_state()
        torch.manual_seed(0)
        subject = build(*args, **options)
        for part in subject.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
                for parameter in part.parameters():
                    if not parameter.any():
                        torch.nn.init.normal_(parameter, std=0.1)
        torch.set_rng_state(state)
        subject.pipe.set_progress_bar_config(disable=True)
        return subject

    return builder


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def texts(*shape, names=("prompt_embeds", "negative_prompt_embeds")):
    both = torch.randn(2, *shape, generator=torch.Generator().manual_seed(8)) * 2
    return dict(zip(names, both, strict=True))


def masks(*shape, names):
    return {name: torch.ones(*shape, dtype=torch.bool) for name in names}


def _video_vae(**options):
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], **options,
    )  # fmt: skip


def _qwen_vae():
    return diffusers.AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1,
        temperal_downsample=[False, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def flow(**options):
    return FlowMatchEulerDiscreteScheduler(**options)


@built
def qwen_image():
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    pipe = diffusers.QwenImagePipeline(flow(), _qwen_vae(), None, None, transformer)
    names = ("prompt_embeds_mask", "negative_prompt_embeds_mask")
    call = {**texts(2, 7, WIDTH), **masks(2, 7, names=names), "height": 32, "width": 32}
    return Subject(pipe, {**call, "latents": noise(2, 16, 16)}, "true_cfg_scale")


@built
def lumina2():
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128), cap_feat_dim=WIDTH,
    )  # fmt: skip
    pipe = diffusers.Lumina2Pipeline(transformer, flow(), autoencoder(), None, None)
    names = ("prompt_attention_mask", "negative_prompt_attention_mask")
    call = {**texts(2, 7, WIDTH), **masks(2, 7, names=names), "height": 32, "width": 32}
    return Subject(pipe, {**call, "latents": noise(2, 4, 16, 16)})


@built
def chroma():
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    pipe = diffusers.ChromaPipeline(flow(), autoencoder(), None, None, transformer)
    names = ("prompt_attention_mask", "negative_prompt_attention_mask")
    call = {**texts(2, 7, WIDTH), **masks(2, 7, names=names), "height": 32, "width": 32}
    return Subject(pipe, {**call, "latents": noise(2, 64, 16)})


def _wan_transformer():
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=WIDTH, freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


@built
def wan(experts=1):
    nets = [_wan_transformer() for _ in range(experts)]
    pipe = diffusers.WanPipeline(
        None, None, _video_vae(), flow(), *nets, boundary_ratio=0.7 if experts == 2 else None
    )
    call = {**texts(2, 7, WIDTH), "height": 16, "width": 16, "num_frames": 5}
    return Subject(pipe, {**call, "latents": noise(2, 16, 2, 2, 2)})


@built
def z_image():
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=WIDTH, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    pipe = diffusers.ZImagePipeline(flow(), autoencoder(), None, None, transformer)
    embeds = {name: list(value) for name, value in texts(2, 7, WIDTH).items()}
    call = {**embeds, "height": 32, "width": 32, "latents": noise(2, 4, 16, 16)}
    return Subject(pipe, {"prompt": None, **call}, offset=-1.0)


@built
def krea2():
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=WIDTH,
        num_text_layers=2, text_num_attention_heads=2, text_num_key_value_heads=1,
        text_intermediate_size=32, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    pipe = diffusers.Krea2Pipeline(flow(), _qwen_vae(), None, None, transformer)
    names = ("prompt_embeds_mask", "negative_prompt_embeds_mask")
    call = {**texts(2, 7, 2, WIDTH), **masks(2, 7, names=names), "height": 32, "width": 32}
    return Subject(pipe, {**call, "latents": noise(2, 16, 16)}, offset=-1.0)


@built
def flux2_klein():
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        sample_size=32, block_out_channels=(4,), down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), latent_channels=4, norm_num_groups=1,
        layers_per_block=1,
    )  # fmt: skip
    pipe = diffusers.Flux2KleinPipeline(flow(), vae, None, None, transformer)
    call = {**texts(2, 7, WIDTH), "height": 32, "width": 32}
    return Subject(pipe, {**call, "latents": noise(2, 16, 4, 4)})


@built
def ltx():
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=1, caption_channels=WIDTH,
    )  # fmt: skip
    pipe = diffusers.LTXPipeline(flow(), None, None, None, transformer)
    names = ("prompt_attention_mask", "negative_prompt_attention_mask")
    call = {**texts(2, 7, WIDTH), **masks(2, 7, names=names), "height": 64, "width": 64}
    return Subject(pipe, {**call, "num_frames": 9, "latents": noise(2, 8, 8)})


@built
def hunyuan_image():
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, text_embed_dim=WIDTH, text_embed_2_dim=8,
        rope_axes_dim=(4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 64),
        layers_per_block=1, spatial_compression_ratio=2, sample_size=32,
    )  # fmt: skip
    guider = diffusers.ClassifierFreeGuidance(3.0)
    return Subject(
        diffusers.HunyuanImagePipeline(
            flow(), vae, None, None, None, None, transformer, guider=guider
        ),
        {},
    )


class _Safe:
    """Stands for the checker, which would be downloaded."""


def cosmos2(scheduler=None):
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16,
        num_layers=1, mlp_ratio=2, text_embed_dim=WIDTH, adaln_lora_dim=4, max_size=(4, 32, 32),
        extra_pos_embed_type=None,
    )  # fmt: skip
    vae = _video_vae()
    made = diffusers.Cosmos2TextToImagePipeline(
        None, None, transformer, vae, scheduler or flow(use_karras_sigmas=True), _Safe()
    )
    return Subject(made, {})


GUIDABLE = {
    "QwenImagePipeline": qwen_image,
    "Lumina2Pipeline": lumina2,
    "ChromaPipeline": chroma,
    "WanPipeline": wan,
    "WanPipeline, two networks": functools.partial(wan, 2),
    "ZImagePipeline": z_image,
    "Krea2Pipeline": krea2,
    "Flux2KleinPipeline": flux2_klein,
    "LTXPipeline": ltx,
}
