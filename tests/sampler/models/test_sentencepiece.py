"""A T5 whose words are a SentencePiece model alone, as in the folders of PixArt on the hub."""

import io
import json
import string

import pipelines
import pytest
import sentencepiece
import torch

from stepsampler import UserError
from stepsampler.models import load

TEXT = " ".join(
    [*string.ascii_letters, *string.digits, "a photo of a sneaker, a shirt, a bag"]
    + [first + second for first in string.ascii_lowercase for second in "aeiou"]
)


def folder_with(path, model):
    """A PixArt whose tokenizer is this model, and no tokenizer.json."""
    pipelines.FAMILIES["pixart-sigma"]().save_pretrained(path)
    for file in (path / "tokenizer").iterdir():
        file.unlink()
    (path / "tokenizer" / "spiece.model").write_bytes(model)
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 300}
    (path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    return str(path)


def test_a_tokenizer_of_spiece_model_alone_reads_as_sentencepiece_does(tmp_path):
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20),
        model_writer=made,
        vocab_size=90,  # the tiny T5 has 98
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    model = load(folder_with(tmp_path, made.getvalue()), size=32)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    for text in (*pipelines.PROMPTS, "a bag, a shirt"):
        tokens = model.pipeline.tokenizer(text)["input_ids"]
        assert tokens == [*oracle.encode(text), oracle.eos_id()]
    assert not torch.equal(*(model.encode([t])["encoder_hidden_states"] for t in ("bag", "shirt")))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "spiece.model is empty"), (b"?" * 99, "no SentencePiece model that can be read")],
)
def test_a_model_of_words_that_is_none_is_refused(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load(folder_with(tmp_path, content), size=32)
