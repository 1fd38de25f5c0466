"""CLIP and DINOv2 of random weights, saved and loaded as anybody's; Inception is in tests/fid."""

import json
import shutil

import numpy as np
import pytest
import torch

from stepsampler import UserError
from stepsearch.metrics.features import load_extractor, resized
from stepsearch.metrics.pretrained import ClipScore
from stepsearch.rehearsal.miniatures.texts import save_clip

IMAGES = torch.randint(0, 256, (3, 3, 40, 52), generator=torch.manual_seed(0)).byte()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(2)  # has cosines above 0
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    BitImageProcessorPil(size={"shortest_edge": 30}, crop_size=size).save_pretrained(folder)
    return folder


def test_clip_features_are_the_projected_ones_of_the_prepared_image(clip):
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    features = load_extractor(f"clip:{clip}")(IMAGES)
    assert features.shape == (3, 16)
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in IMAGES]
    inputs = CLIPProcessor.from_pretrained(clip).image_processor(pictures, return_tensors="pt")
    with torch.inference_mode():
        expected = CLIPModel.from_pretrained(clip).get_image_features(**inputs).pooler_output
    torch.testing.assert_close(features, expected)


def test_dino_features_are_the_class_token(dino):
    extractor = load_extractor(f"dinov2:{dino}")
    assert extractor.axes is None
    x = extractor.processor(images=list(IMAGES), return_tensors="pt")["pixel_values"]
    expected = extractor.net(x).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(IMAGES), expected)


def test_weights_and_preparation_are_part_of_the_identity(clip, dino, tmp_path):
    first, again = (load_extractor(f"dinov2:{dino}") for _ in range(2))
    assert first.digest == again.digest
    other = shutil.copytree(dino, tmp_path / "other")
    settings = (other / "preprocessor_config.json").read_text()
    (other / "preprocessor_config.json").write_text(settings.replace(": 30", ": 29"))
    resized_otherwise = load_extractor(f"dinov2:{other}")
    assert resized_otherwise.digest.split("-")[0] == first.digest.split("-")[0]
    assert resized_otherwise.digest != first.digest
    torch.manual_seed(1)
    first.net.embeddings.cls_token.data.normal_()
    first.net.save_pretrained(other)
    assert load_extractor(f"dinov2:{other}").digest != resized_otherwise.digest


class TensorFeatures:
    """A CLIP model as torchmetrics 1.9 knows it: features are tensors, as before transformers 5."""

    def __init__(self, net):
        self.net, self.config = net, net.config

    def to(self, device):
        return self

    def get_image_features(self, *inputs):
        return self.net.get_image_features(*inputs).pooler_output

    def get_text_features(self, *inputs):
        return self.net.get_text_features(*inputs).pooler_output


TEXTS = ["a photo of a bag", "a photo of a sneaker " * 40, "a coat"]  # the second one is long
SHORT = ["a bag", "a red sneaker", "a coat"]


def test_the_clip_score_of_short_captions_is_torchmetrics_of_each_image(clip):
    """Of long ones it is not: torchmetrics cuts off the token at which CLIP reads the whole."""
    from torchmetrics.functional.multimodal import clip_score
    from transformers import CLIPModel, CLIPProcessor

    loaded = TensorFeatures(CLIPModel.from_pretrained(clip)), CLIPProcessor.from_pretrained(clip)
    with torch.inference_mode():
        expected = [
            float(clip_score([image], [text], lambda: loaded))
            for image, text in zip(IMAGES, SHORT, strict=True)
        ]
    assert max(expected) > 1
    assert ClipScore(str(clip))(IMAGES, SHORT) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("texts", [TEXTS, SHORT, ["a red bag and " * 9, "b" * 60, "c" * 14]])
def test_the_clip_score_is_the_similarity_of_transformers(clip, texts):
    """Long, short and mixed captions in one batch."""
    from transformers import CLIPModel, CLIPProcessor

    processor, model = CLIPProcessor.from_pretrained(clip), CLIPModel.from_pretrained(clip)
    inputs = processor(
        text=texts, images=list(IMAGES), return_tensors="pt", padding=True, truncation=True
    )
    with torch.inference_mode():
        logits = model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()
    expected = (100 * logits).clamp(min=0)
    assert expected.max() > 1
    assert ClipScore(str(clip))(IMAGES, texts) == pytest.approx(expected.numpy(), abs=1e-4)


def test_two_long_captions_do_not_score_alike(clip):
    image, tail = IMAGES[:1].expand(2, -1, -1, -1), " and so on" * 9
    a, b = ClipScore(str(clip)), ClipScore(str(clip), long_prompts="chunk")
    for score, begin, same in ((a, ["a fox", "my dog"], False), (b, ["a fox", "my dog"], False)):
        first, second = score(image, [text + tail for text in begin])
        assert max(first, second) > 0
        assert (first == second) == same
    for score, end, same in ((a, ["a fox", "my dog"], True), (b, ["a fox", "my dog"], False)):
        first, second = score(image, [tail + text for text in end])
        assert min(first, second) > 0
        assert (first == second) == same


def test_chunks_of_a_caption_have_a_mean_direction(clip):
    from torch.nn.functional import cosine_similarity, normalize
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    score = ClipScore(str(clip), long_prompts="chunk")
    ids = tokenizer(TEXTS[1], add_special_tokens=False)["input_ids"]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    with torch.inference_mode():
        parts = [
            model.get_text_features(torch.tensor([[begin, *ids[k : k + 14], end]])).pooler_output
            for k in range(0, len(ids), 14)
        ]
        image = load_extractor(f"clip:{clip}")(IMAGES[1:2])
        mean = normalize(torch.cat(parts)).mean(0, keepdim=True)
        expected = (100 * cosine_similarity(image, mean)).clamp(min=0)
    assert len(parts) > 2
    assert score(IMAGES, TEXTS)[1] == pytest.approx(float(expected), abs=1e-4)
    # Short captions alone are the same bit for bit.
    assert (score(IMAGES, SHORT) == ClipScore(str(clip))(IMAGES, SHORT)).all()


def test_captions_that_are_cut_are_said_and_have_another_digest(clip):
    """Scores of short captions keep theirs, and so what a cache has of them."""
    score, chunked = ClipScore(str(clip)), ClipScore(str(clip), long_prompts="chunk")
    (said,) = score.cuts(TEXTS)
    assert said.startswith("1 of 3 captions are longer than the 16 tokens that the CLIP of the sc")
    assert "number 1 ('a photo of a sneaker" in said
    assert "--clip-long-prompts chunk" in said
    assert score.cuts(SHORT) == chunked.cuts(TEXTS) == []
    assert score.digest_for(SHORT) == chunked.digest_for(SHORT) == score.digest
    assert len({score.digest, score.digest_for(TEXTS), chunked.digest_for(TEXTS)}) == 3


def test_the_clip_score_calls_each_network_once_a_batch(clip):
    score, calls = ClipScore(str(clip)), []
    for part in (score.images.net.vision_model, score.images.net.text_model):
        part.register_forward_hook(lambda *_: calls.append(1))
    assert score(IMAGES, TEXTS).shape == (3,)
    assert len(calls) == 2


def test_the_tokenizer_is_part_of_the_score_and_must_be_there(clip, tmp_path):
    """Without its files transformers makes one of two words, and all prompts are the same."""
    other = shutil.copytree(clip, tmp_path / "other")
    path = other / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    path.write_text(json.dumps(rules))
    assert ClipScore(str(other)).digest != ClipScore(str(clip)).digest
    for path in other.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"other': its tokenizer has \d+ words, the model \d+"):
        ClipScore(str(other))


def test_models_that_are_not_there_are_named(tmp_path, dino):
    with pytest.raises(UserError, match="'clip': say which model, clip:FOLDER or clip:OWNER/NAME"):
        load_extractor("clip")
    with pytest.raises(UserError, match=f"dinov2 model '{tmp_path}' cannot be loaded"):
        load_extractor(f"dinov2:{tmp_path}")
    for path in dino.glob("*.safetensors"):
        torch.save({}, tmp_path / "pytorch_model.bin")  # pickled weights are not taken
        (tmp_path / "config.json").write_text((path.parent / "config.json").read_text())
    with pytest.raises(UserError, match=f"dinov2 model '{tmp_path}' cannot be loaded"):
        load_extractor(f"dinov2:{tmp_path}")


def test_inception_without_its_library_says_what_to_install():
    with pytest.raises(UserError, match=r"needs clean-fid, pip install 'stepsearch\[fid\]'"):
        load_extractor("inception")


def test_our_resizing_is_that_of_pillow_on_floats():
    """Bicubic with antialiasing, per channel, clipped and not rounded; up and down, odd sizes."""
    from PIL import Image

    for size in (17, 64):
        ours = resized(IMAGES.float(), size)
        for image, found in zip(IMAGES, ours, strict=True):
            for channel, values in zip(image, found, strict=True):
                picture = Image.fromarray(channel.numpy().astype(np.float32))
                picture = picture.resize((size, size), Image.Resampling.BICUBIC)
                np.testing.assert_allclose(values, np.array(picture).clip(0, 255), atol=1e-3)
