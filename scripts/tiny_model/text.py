"""A real, small CLIP tokenizer and text encoder for the prompts of the data set."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stepsearch.paths import write_whole

from .data import HELD_OUT_TEMPLATES, NAMES, TEMPLATES

LENGTH = 16  # tokens per prompt, with start and end
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Byte-pair encoding learned from the templates and class names, in CLIP's format.

    Learned once: merges of equal count come in another order each time.
    """
    if not (folder / "merges.txt").exists():
        _learn(folder)
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=LENGTH,
        pad_token=END,
    )


def _learn(folder: Path) -> None:
    corpus = [*TEMPLATES, *HELD_OUT_TEMPLATES, *(name for names in NAMES for name in names)]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-.,'\""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=400, end_of_word_suffix="</w>", initial_alphabet=list(letters)
    )
    tokenizer.train_from_iterator(corpus * 2, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split()) for m in learned["merges"]]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [t for t in ("".join(m) for m in merges) if t not in set(tokens)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    merges = [m for m in merges if all(t in vocabulary for t in (*m, "".join(m)))]
    write_whole(folder / "vocab.json", lambda p: p.write_text(json.dumps(vocabulary)))
    lines = ["#version: 0.2", *(" ".join(m) for m in merges), ""]
    write_whole(folder / "merges.txt", lambda p: p.write_text("\n".join(lines)))


def build_encoder(tokenizer: CLIPTokenizer, width: int = 96) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids of shape (n, LENGTH), padded and cut as the Stable Diffusion pipeline does."""
    return tokenizer(
        prompts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
