"""Tiny text encoders with random weights, and their tokenizers, for `miniatures`."""

import functools
import io
import string
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    from stepsampler.models import resolve

    return CLIPTokenizer.from_pretrained(resolve("tiny"), subfolder="tokenizer")


def clip_encoder(
    tokenizer: Any, width: int = 32, layers: int = 1, projection: int | None = None
) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        projection_dim=projection or 512,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def save_clip(folder: Path) -> None:
    """A whole CLIP, of images and texts, with tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = clip_tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 32}
    small |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text["bos_token_id"] = tokenizer.bos_token_id
    text["max_position_embeddings"] = tokenizer.model_max_length
    vision = {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=small | text, vision_config=small | vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(c), -3.0) for c in range(33, 127)]
    return T5Tokenizer(vocab=special + letters, extra_ids=0)


def t5_encoder(tokenizer: Any, width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return T5EncoderModel(config)


def qwen_tokenizer() -> Any:
    """Bytes as tokens, with the marks and the template of a chat."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*bytes_to_unicode().values(), *marks]
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": marks[1:]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def qwen3_encoder(tokenizer: Any, width: int = 32, layers: int = 2, cls: Any = None) -> Any:
    from transformers import Qwen3Config, Qwen3Model

    return (cls or Qwen3Model)(
        Qwen3Config(
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )


def mistral3(tokenizer: Any) -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text: dict[str, Any] = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 30,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision: dict[str, Any] = {"model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=0)
    )


def qwen25_vl(tokenizer: Any, layers: int = 2) -> Any:
    """With eyes, which text-to-image pipelines carry along and never open."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 3, 3],
            "rope_theta": 10000.0,
        },
    }
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
    }
    vision |= {"out_hidden_size": 32, "fullatt_block_indexes": [0]}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def qwen3_vl(tokenizer: Any, layers: int = 2) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLModel

    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 1, 1],
            "rope_theta": 10000.0,
        },
    }
    vision: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16}
    vision |= {"num_heads": 2, "out_hidden_size": 16, "deepstack_visual_indexes": [0]}
    vision |= {"num_position_embeddings": 16}
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision))


def gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizer

    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "▁": 4}
    letters = {chr(c): 5 + i for i, c in enumerate(range(33, 127))}
    return GemmaTokenizer(vocab=words | letters, merges=[])


def gemma(tokenizer: Any, layers: int = 1) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
        )
    )


def gemma3(tokenizer: Any, width: int = 16, layers: int = 2) -> Any:
    """With eyes, as `qwen25_vl`."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )


def chatglm() -> tuple[Any, Any]:
    """Tokenizer and encoder of Kolors, which are classes of diffusers'."""
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    tokenizer = ChatGLMTokenizer(str(Path(_letters().name, "tokenizer.model")))
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=len(tokenizer) + 5,
        hidden_size=32,
        ffn_hidden_size=32,
        kv_channels=8,
        num_attention_heads=4,
        multi_query_attention=True,
        multi_query_group_num=2,
        use_cache=False,
        original_rope=True,
    )
    encoder = ChatGLMModel(config, empty_init=False)
    for parameter in encoder.parameters():  # of the norms it leaves what was in memory
        if parameter.ndim == 1:
            torch.nn.init.ones_(parameter)
    return tokenizer, encoder


@functools.cache
def _letters() -> "TemporaryDirectory[str]":
    """With a file of words for each letter, which the tokenizer reads again when it is saved."""
    from sentencepiece import SentencePieceTrainer

    folder, made = TemporaryDirectory(), io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([string.ascii_letters + string.digits + string.punctuation] * 9),
        model_writer=made,
        vocab_size=98,
        model_type="char",
        minloglevel=2,
    )
    Path(folder.name, "tokenizer.model").write_bytes(made.getvalue())
    return folder
