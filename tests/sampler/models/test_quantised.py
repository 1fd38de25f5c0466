"""Pipelines with quantised weights: through from_pipeline, and refused by name where from files."""

import pipelines
import pytest
import torch
from safetensors.torch import save_file

from stepsampler import Schedule, Step, UserError
from stepsampler.batch import model_digest, run_batch
from stepsampler.generate import generate
from stepsampler.models import from_pipeline, load, weights_of
from stepsampler.support.captions import Caption
from stepsearch.metrics.evaluator import model_digest as search_digest

PLAN = Schedule((Step(8.0, 2.0), Step(1.0, 1.0)), 0.0, "ddim")


class Rounded(torch.Tensor):
    """A weight of whole numbers and a scale, which torch knows as float32 and cannot view."""

    @staticmethod
    def __new__(cls, whole, scale):
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype)

    def __init__(self, whole, scale):
        self.whole, self.scale = whole, scale

    def dequantize(self):
        return self.whole * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return type(args[0])(args[0].whole, args[0].scale)
        if func in (torch.ops.aten.view.default, torch.ops.aten._to_copy.default):
            raise NotImplementedError(func)
        plain = [a.dequantize() if isinstance(a, Rounded) else a for a in args]
        return func(*plain, **(kwargs or {}))


class Flattened(Rounded):
    """The same that says what it is made of."""

    def __tensor_flatten__(self):
        return ["whole", "scale"], None


def rounded(kind, scale=0.01):
    pipeline = pipelines.stable_diffusion()
    layer = pipeline.unet.time_embedding.linear_1
    whole = torch.round(layer.weight.detach() / scale).to(torch.int8)
    layer.weight = torch.nn.Parameter(kind(whole, torch.tensor(scale)), requires_grad=False)
    return pipeline


@pytest.mark.parametrize("kind", [Rounded, Flattened])
def test_weights_of_a_subclass_sample_and_have_digests(kind, tmp_path):
    pipeline = rounded(kind)
    model = from_pipeline(pipeline, 32)
    assert type(pipeline.unet.time_embedding.linear_1.weight.data) is kind
    plain = pipelines.stable_diffusion()
    value = pipeline.unet.time_embedding.linear_1.weight.dequantize()
    plain.unet.time_embedding.linear_1.weight = torch.nn.Parameter(value)
    (made,), (same,) = (
        generate(m, PLAN, ["a fox"], [0]) for m in (model, from_pipeline(plain, 32))
    )
    assert torch.equal(made.images, same.images)
    assert list(run_batch(model, PLAN, [Caption("a fox")], tmp_path))[-1] == 1
    assert list(run_batch(model, PLAN, [Caption("a fox")], tmp_path)) == [1]  # it goes on
    for digest in (model_digest, search_digest):
        first, again, coarse = (
            digest(from_pipeline(rounded(kind, scale), 32)) for scale in (0.01, 0.01, 0.02)
        )
        assert first == again != coarse


def test_plain_weights_are_those_of_the_state():
    unet = pipelines.stable_diffusion().unet
    state = unet.state_dict()
    found = dict(weights_of(unet))
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert {type(tensor) for tensor in found.values()} == {torch.Tensor}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_layers_that_torch_itself_quantises_have_plain_weights():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    packed = torch.nn.Module()
    whole = torch.quantize_per_tensor(net[0].weight.detach(), 0.1, 0, torch.qint8)
    packed.state_dict = lambda: {"packed": (whole, net[0].bias), "dtype": torch.qint8}
    found = dict(weights_of(packed))
    assert list(found) == ["packed.0", "packed.1"]
    assert torch.equal(found["packed.0"], whole.dequantize())


def test_a_pipeline_that_torchao_quantised_samples_and_has_digests(tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    pipeline = pipelines.stable_diffusion()
    before = from_pipeline(pipeline, 32)
    digests = [digest(before) for digest in (model_digest, search_digest)]
    (exact,) = generate(before, PLAN, ["a fox"], [0])
    torchao.quantize_(pipeline.unet, torchao.Int8WeightOnlyConfig())
    assert type(pipeline.unet.time_embedding.linear_1.weight.data) is not torch.Tensor
    model = from_pipeline(pipeline, 32)
    (made,) = generate(model, PLAN, ["a fox"], [0])
    assert made.images.float().sub(exact.images.float()).abs().mean() < 8  # of 255: 8 bits
    assert list(run_batch(model, PLAN, [Caption("a fox")], tmp_path))[-1] == 1
    assert {type(tensor) for _, tensor in weights_of(pipeline.unet)} == {torch.Tensor}
    for digest, other in zip((model_digest, search_digest), digests, strict=True):
        assert digest(model) == digest(model) != other


def test_a_pipeline_that_quanto_quantised_samples_and_has_digests():
    quanto = pytest.importorskip("optimum.quanto")
    pipeline = pipelines.stable_diffusion()
    quanto.quantize(pipeline.unet, weights=quanto.qint8)
    quanto.freeze(pipeline.unet)
    model = from_pipeline(pipeline, 32)
    (made,) = generate(model, PLAN, ["a fox"], [0])
    assert made.images.shape == (1, 3, 32, 32)
    for digest in (model_digest, search_digest):
        assert digest(model) == digest(model)


@pytest.fixture
def folder(tmp_path):
    pipelines.stable_diffusion().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_of_gguf_is_refused_by_name(folder):
    (file,) = (folder / "unet").glob("*.safetensors")
    file.rename(file.with_suffix(".gguf"))
    said = "unet holds no .safetensors file: diffusion_pytorch_model.gguf is a GGUF file$"
    with pytest.raises(UserError, match=said):
        load(str(folder))


@pytest.mark.parametrize("name", ["SCB", "weight.absmax", "qweight", "wscales", "weight._data"])
def test_a_folder_with_quantised_tensors_is_refused_by_name(name, folder):
    (file,) = (folder / "unet").glob("*.safetensors")
    save_file({f"conv_in.{name}": torch.zeros(4), "conv_in.bias": torch.zeros(4)}, file)
    with pytest.raises(UserError, match=rf"unet: its weights are quantised .the tensor .*{name}"):
        load(str(folder))


def test_a_single_file_of_nunchaku_is_called_quantised(tmp_path):
    names = ("qkv_proj.qweight", "qkv_proj.wscales", "norm.linear.bias")
    tensors = {f"transformer_blocks.0.{name}": torch.zeros(4) for name in names}
    save_file(tensors, tmp_path / "svdq.safetensors")
    with pytest.raises(UserError, match="svdq.safetensors': its weights are quantised .the tensor"):
        load(str(tmp_path / "svdq.safetensors"))
