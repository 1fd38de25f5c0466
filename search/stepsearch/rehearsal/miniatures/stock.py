"""Tiny pipelines that no family of our own loop knows: they sample themselves."""

from collections.abc import Callable
from typing import Any

from stepsearch.rehearsal.miniatures.parts import autoencoder, fresh, spread
from stepsearch.rehearsal.miniatures.texts import (
    gemma,
    gemma_tokenizer,
    qwen3_encoder,
    qwen25_vl,
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


def _glm(tokenizer: Any) -> Any:
    from transformers import GlmConfig, GlmModel

    return GlmModel(
        GlmConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


@fresh
def aura_flow() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    tokenizer = t5_tokenizer()
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    spread(transformer, gain=2.0)
    return AuraFlowPipeline(
        tokenizer, umt5(tokenizer), autoencoder(), transformer, flow(shift=1.73)
    )


@fresh
def cogview4() -> Any:
    """The network is told the times from which its levels were shifted."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel

    tokenizer = t5_tokenizer()
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=16,
        rope_axes_dim=(32, 32),
    )
    spread(transformer, gain=2.0)
    scheduler = flow(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return CogView4Pipeline(tokenizer, _glm(tokenizer), autoencoder(), transformer, scheduler)


@fresh
def hunyuan_image(guidance_embeds: bool = False) -> Any:
    """HunyuanImage 2.1, whose guidance is a component, or distilled into the network."""
    from diffusers import (
        AdaptiveProjectedMixGuidance,
        AutoencoderKLHunyuanImage,
        HunyuanImagePipeline,
        HunyuanImageTransformer2DModel,
    )
    from transformers import ByT5Tokenizer

    tokenizer, letters = qwen_tokenizer(), ByT5Tokenizer()
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=32,
        text_embed_2_dim=32,
        rope_axes_dim=(8, 8),
        guidance_embeds=guidance_embeds,
    )
    spread(transformer, gain=3.0)
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=32,
        scaling_factor=0.75289,
    )
    return HunyuanImagePipeline(
        flow(shift=4.0),
        vae,
        qwen25_vl(tokenizer),
        tokenizer,
        t5_encoder(letters),
        letters,
        transformer,
        guider=None if guidance_embeds else AdaptiveProjectedMixGuidance(),
    )


@fresh
def hunyuan_dit() -> Any:
    """Learned variance; v-prediction, under Bert and T5."""
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(c) for c in range(33, 127))]
    words += [f"##{chr(c)}" for c in range(33, 127)]
    bert, tokenizer = BertTokenizer(vocab={w: k for k, w in enumerate(words)}), t5_tokenizer()
    bert.model_max_length = 77
    transformer = HunyuanDiT2DModel(
        sample_size=4,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=16,
        text_len=77,
        text_len_t5=256,
        activation_fn="gelu-approximate",
        learn_sigma=True,
    )
    spread(transformer)
    config = BertConfig(
        vocab_size=len(bert),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return HunyuanDiTPipeline(
        autoencoder(blocks=4),
        BertModel(config),
        bert,
        transformer,
        DDPMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.02,
            prediction_type="v_prediction",
        ),
        None,
        None,
        False,
        t5_encoder(tokenizer),
        tokenizer,
    )


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
    "aura-flow": aura_flow,
    "bria": bria,
    "cogview4": cogview4,
    "hunyuan-dit": hunyuan_dit,
    "hunyuan-image": hunyuan_image,
    "kandinsky3": kandinsky3,
    "lumina": lumina,
    "ovis-image": ovis_image,
}
