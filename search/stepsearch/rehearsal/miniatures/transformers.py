"""Transformers that predict epsilon."""

from typing import Any

from stepsearch.rehearsal.miniatures.parts import autoencoder, fresh, spread
from stepsearch.rehearsal.miniatures.texts import t5_encoder, t5_tokenizer


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
    spread(transformer)
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
    spread(transformer)
    return DiTPipeline(
        transformer=transformer,
        vae=autoencoder(),
        scheduler=DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False),
        id2label={0: "tench, Tinca tinca", 2: "white shark, man-eater"},
    )
