"""Tiny pipelines that no family of our own loop knows: they sample themselves."""

from typing import Any

from stepsearch.rehearsal.miniatures.parts import autoencoder, fresh, spread
from stepsearch.rehearsal.miniatures.texts import (
    qwen25_vl,
    qwen_tokenizer,
    t5_encoder,
    t5_tokenizer,
)


def _flow(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def _umt5(tokenizer: Any) -> Any:
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
    spread(transformer)
    return AuraFlowPipeline(
        tokenizer, _umt5(tokenizer), autoencoder(), transformer, _flow(shift=1.73)
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
    spread(transformer)
    scheduler = _flow(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return CogView4Pipeline(tokenizer, _glm(tokenizer), autoencoder(), transformer, scheduler)


@fresh
def hunyuan_image() -> Any:
    """HunyuanImage 2.1, whose guidance is a component."""
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
    )
    spread(transformer)
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
        _flow(shift=4.0),
        vae,
        qwen25_vl(tokenizer),
        tokenizer,
        t5_encoder(letters),
        letters,
        transformer,
        guider=AdaptiveProjectedMixGuidance(),
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
    scheduler = _flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    return LTXPipeline(scheduler, vae, t5_encoder(tokenizer), tokenizer, transformer)


@fresh
def wan() -> Any:
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    tokenizer = t5_tokenizer()
    transformer = WanTransformer3DModel(
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
    spread(transformer)
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return WanPipeline(tokenizer, _umt5(tokenizer), vae, _flow(shift=3.0), transformer)
