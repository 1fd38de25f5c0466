"""Families whose pipelines sampled themselves before our own loop knew them."""

from typing import Any

from stepsearch.rehearsal.miniatures.parts import autoencoder, fresh, spread
from stepsearch.rehearsal.miniatures.stock import flow, umt5
from stepsearch.rehearsal.miniatures.texts import (
    qwen25_vl,
    qwen_tokenizer,
    t5_encoder,
    t5_tokenizer,
)


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
        pos_embed_max_size=576,
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
    spread(transformer, gain=3.0)
    scheduler = flow(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return CogView4Pipeline(tokenizer, _glm(tokenizer), autoencoder(), transformer, scheduler)


@fresh
def hunyuan_image(guidance_embeds: bool = False, use_meanflow: bool = False) -> Any:
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
        use_meanflow=use_meanflow,
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
    made = HunyuanImagePipeline(
        flow(shift=4.0),
        vae,
        qwen25_vl(tokenizer),
        tokenizer,
        t5_encoder(letters),
        letters,
        transformer,
        guider=None if guidance_embeds else AdaptiveProjectedMixGuidance(),
    )
    made.tokenizer_max_length, made.tokenizer_2_max_length = 256, 64  # of padding, most is left out
    return made


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
