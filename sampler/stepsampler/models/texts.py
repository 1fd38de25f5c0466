"""How prompts are read: what an encoder's length cuts off, CLIP's chunks and skipped layers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from stepsampler.errors import UserError, note
from stepsampler.support.options import LongPrompts

if TYPE_CHECKING:
    from stepsampler.models.base import LatentModel
    from stepsampler.models.model import Model

LONG_PROMPTS = get_args(LongPrompts)
SHOWN = 3  # prompts of a sentence about cut ones, with so many characters of each
LETTERS = 40
AT_ONCE = 256  # texts: the tokens of a set of any length take the memory of a few


@dataclass(frozen=True)
class Reading:
    """What a user chooses of how prompts are read.

    `clip_skip` counts layers as diffusers does, from the one that the model takes by default; as
    there, negative prompts keep that one. `long_prompts` is "cut" or "chunk".
    """

    clip_skip: int | None = None
    long_prompts: str = "cut"

    def __post_init__(self) -> None:
        if self.long_prompts not in LONG_PROMPTS:
            raise UserError(
                f"--long-prompts must be one of {', '.join(LONG_PROMPTS)}, "
                f"got {self.long_prompts!r}"
            )

    @property
    def chosen(self) -> dict[str, Any]:
        """What is not as it is by default, by name: it changes images."""
        return {k: v for k, v in asdict(self).items() if v != getattr(Reading(), k)}

    def check(self, pipeline: Any, layer: int | None, chunked: bool) -> None:
        """Refuse what a family has no choice of; `layer` and `chunked` are the family's own.

        Raises:
            UserError: names the choice, the pipeline and the value.
        """
        name = type(pipeline).__name__
        if self.long_prompts == "chunk" and not chunked:
            raise UserError(
                f"--long-prompts chunk is not for a {name}: only where CLIP alone reads prompts, "
                "as in Stable Diffusion 1.x, 2.x and XL"
            )
        if self.clip_skip is None:
            return
        if layer is None:
            raise UserError(
                f"--clip-skip is not for a {name}, which takes no hidden layer of CLIP, "
                f"got {self.clip_skip}"
            )
        parts = [pipeline.components.get(f"text_encoder{number}") for number in ("", "_2")]
        layers = min(part.config.num_hidden_layers for part in parts if part)
        most = layers + 1 - layer
        if not 1 <= self.clip_skip <= most:
            has = "1 layer" if layers == 1 else f"{layers} layers"
            own = ", of which the model leaves out the last anyway" if layer > 1 else ""
            raise UserError(
                f"--clip-skip must be 1 to {most}, got {self.clip_skip}: CLIP has {has}{own}"
            )


def check_vocabularies(pipeline: Any) -> None:
    """Refuse a tokenizer without its words: transformers makes one of a folder without them.

    A CLIP tokenizer that states no length gets that of its encoder.

    Raises:
        UserError: names the tokenizer and how many words it has.
    """
    for name, tokenizer in pipeline.components.items():
        encoder = getattr(pipeline, name.replace("tokenizer", "text_encoder"), None)
        if not name.startswith("tokenizer") or tokenizer is None or encoder is None:
            continue
        tokenizer = _tokenizer(tokenizer)
        words, wanted = len(tokenizer), encoder.get_input_embeddings().num_embeddings
        if words < wanted / 2:
            raise UserError(
                f"the {name} of the {type(pipeline).__name__} knows {words} words and its encoder "
                f"{wanted}: files of its vocabulary are missing"
            )
        longest = getattr(encoder.config, "max_position_embeddings", None)
        if encoder.config.model_type.startswith("clip") and longest:
            tokenizer.model_max_length = min(tokenizer.model_max_length, longest)


@dataclass(frozen=True)
class Limit:
    """How many tokens an encoder takes, those at both ends included, and how many texts have."""

    encoder: str
    tokens: int
    count: Callable[[Sequence[str]], list[int]]


def limits(pipeline: Any, most_tokens: int | None = None) -> list[Limit]:
    """Of every text encoder: CLIP's own length, of others that at which the pipeline cuts.

    `most_tokens` is that length where `encode_prompt` has another one by default.
    """
    found = []
    for name, tokenizer in pipeline.components.items():
        encoder = getattr(pipeline, name.replace("tokenizer", "text_encoder"), None)
        if not name.startswith("tokenizer") or tokenizer is None or encoder is None:
            continue
        kind = encoder.config.model_type.partition("_")[0].upper()
        if kind == "CLIP":
            most = int(tokenizer.model_max_length)
        else:
            known = signature(pipeline.encode_prompt).parameters
            most = most_tokens or known["max_sequence_length"].default
        found.append(Limit(kind, most, _counter(pipeline, tokenizer)))
    return found


def up_to(prompt: str, text: str) -> str:
    """A template that was filled in, to the end of the prompt: what must fit for all to be seen."""
    return text[: text.rindex(prompt) + len(prompt)]


def chat(tokenizer: Any, prompt: str) -> str:
    """A chat to the end of the prompt, which is the user's."""
    messages = [{"role": "user", "content": prompt}]
    return up_to(prompt, tokenizer.apply_chat_template(messages, tokenize=False))


def _tokenizer(part: Any) -> Any:
    """The part itself, or that of a processor of images and texts."""
    inner = getattr(part, "tokenizer", part)
    return inner if callable(inner) else part  # ChatGLM's has words in one that is not


def _counter(pipeline: Any, tokenizer: Any) -> Callable[[Sequence[str]], list[int]]:
    tokenizer = _tokenizer(tokenizer)

    def count(texts: Sequence[str]) -> list[int]:
        found: list[int] = []
        for start in range(0, len(texts), AT_ONCE):
            few = [converted(pipeline, tokenizer, t) for t in texts[start : start + AT_ONCE]]
            found += [len(ids) for ids in tokenizer(few, verbose=False)["input_ids"]]
        return found

    return count


def converted(pipeline: Any, tokenizer: Any, text: str) -> str:
    """A word of textual inversion that has several vectors stands for as many tokens."""
    if hasattr(pipeline, "maybe_convert_prompt"):
        return str(pipeline.maybe_convert_prompt(text, tokenizer))
    return text


def cut_sentences(
    limits: Sequence[Limit],
    texts: Sequence[str],
    read: Sequence[str],
    what: str = "prompts",
    hint: str = "",
) -> list[str]:
    """How many of these texts an encoder does not see the end of, and which; none if all fit.

    `read` is what is counted of each, and `hint` the option that reads all of them, if any does.
    """
    found = []
    for limit in limits:
        cut = [k for k, n in enumerate(limit.count(read)) if n > limit.tokens]
        if not cut:
            continue
        shown = [f"{k} ({_short(texts[k])})" for k in cut[:SHOWN]]
        more = [f"{len(cut) - SHOWN} more"] if len(cut) > SHOWN else []
        found.append(
            f"{len(cut)} of {len(texts)} {what} are longer than the {limit.tokens} tokens that "
            f"{limit.encoder} takes, and are cut there: number {', '.join([*shown, *more])}"
            + (f"; {hint} reads all of them" if hint else "")
        )
    return list(dict.fromkeys(found))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= LETTERS else f"{text[:LETTERS]}…")


def note_cuts(model: "Model", prompts: Iterable[str], negative_prompts: Iterable[str] = ()) -> None:
    """Say on stderr what is cut of prompts that no earlier call was about."""
    for sentence in model.cuts(prompts, negative_prompts):
        note(sentence)


def clip_chunks(tokenizer: Any, text: str, cut: bool = False) -> list[list[int]]:
    """The tokens of a text in chunks, each with begin and end and padded to CLIP's length.

    A word of textual inversion stays in one chunk, if it fits into any. `cut`: only the first
    chunk, with whatever stands in it.
    """
    room = tokenizer.model_max_length - 2
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ids = ids[:room] if cut else ids
    added = tokenizer.get_added_vocab()
    later = {n for word, n in added.items() if word.rpartition("_")[0] in added}  # <word>_1, …
    parts: list[list[int]] = []
    while ids or not parts:
        end = room
        while end < len(ids) and ids[end] in later and end > 1:
            end -= 1
        end = room if end == 1 else end
        parts.append(ids[:end])
        ids = ids[end:]
    begin, stop, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return [[begin, *part, stop, *[pad] * (room - len(part))] for part in parts]


@torch.inference_mode()
def clip_states(
    model: "LatentModel", prompt: str, negative: bool, normed: bool = False
) -> tuple[Tensor, Tensor]:
    """States (1, tokens, width) of all CLIP encoders side by side, and what the last one pools.

    The chunks stand behind each other, as many as `long_prompts` lets be; pooled is that of the
    first one, (1, width). `normed`: the last norm is applied to hidden layers too.
    """
    from diffusers.utils.torch_utils import get_module_execution_device

    pipeline, reading = model.pipeline, model.reading
    assert model.clip_layer is not None
    layer = model.clip_layer + (0 if negative else reading.clip_skip or 0)
    numbers = [""] + ["_2"] * (pipeline.components.get("text_encoder_2") is not None)
    tokenizers = [getattr(pipeline, f"tokenizer{number}") for number in numbers]
    cut = reading.long_prompts == "cut"
    texts = [clip_chunks(t, converted(pipeline, t, prompt), cut) for t in tokenizers]
    fill = [clip_chunks(t, "")[0] for t in tokenizers]  # words may have more vectors for one
    rows = [
        [row or empty for row, empty in zip(chunk, fill, strict=True)]
        for chunk in zip_longest(*texts)
    ]
    wide, pooled = [], torch.empty(0)
    for k, number in enumerate(numbers):
        encoder = getattr(pipeline, f"text_encoder{number}")
        states: list[Tensor] = []
        for row in rows:  # one by one: a chunk's states do not depend on how many there are
            ids = torch.tensor([row[k]], device=get_module_execution_device(encoder))
            mask = None
            if getattr(encoder.config, "use_attention_mask", False):
                ends = ids.eq(tokenizers[k].eos_token_id).int()
                mask = (ends.cumsum(1) - ends).eq(0).int()  # up to the first end
            output = encoder(ids, attention_mask=mask, output_hidden_states=True)
            found = output.hidden_states[-layer]
            if normed:  # transformers 4 has it in a part of its own
                found = getattr(encoder, "text_model", encoder).final_layer_norm(found)
            if not states:
                pooled = output[0].to(model.device)
            states.append(found.to(model.device))
        wide.append(torch.cat(states, dim=1))
    return torch.cat(wide, dim=-1), pooled
