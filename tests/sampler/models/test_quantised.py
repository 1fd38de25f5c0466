"""Pipelines with quantised weights: through from_pipeline, and refused by name where from files."""

import pipelines
import pytest
import torch
from safetensors.torch import save_file

from stepsampler import Schedule, Step, UserError
from stepsampler.batch import run_batch
from stepsampler.generate import generate
from stepsampler.models import from_pipeline, load, model_digest, weights_of
from stepsampler.models.model import is_quantised
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
    assert is_quantised(packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_network_is_quantised_by_the_bits_of_its_weights(dtype):
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Embedding(5, 2)).to(dtype)
    net.register_buffer("places", torch.arange(7))
    net.register_buffer("mask", torch.ones(2, dtype=torch.bool))
    assert is_quantised(net) == (dtype == torch.float8_e4m3fn)
    net = torch.nn.Linear(3, 2)
    net.weight = torch.nn.Parameter(Rounded(torch.ones(2, 3, dtype=torch.int8), torch.ones(())))
    assert is_quantised(net)


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


def with_unet(unet):
    """A model with that network, the same with the plain one, and their images of a prompt."""
    pipeline = pipelines.stable_diffusion()
    exact = from_pipeline(pipelines.stable_diffusion(), 32)
    pipeline.register_modules(unet=unet)
    model = from_pipeline(pipeline, 32)
    first = [digest(model) for digest in (model_digest, search_digest)]
    made, right = (next(iter(generate(m, PLAN, ["a fox"], [0]))).images for m in (model, exact))
    assert [digest(model) for digest in (model_digest, search_digest)] == first
    assert first[0] != model_digest(exact)
    assert first[1] != search_digest(exact)
    return model, (made.float() - right.float()).abs().mean()


def loaded_with_bitsandbytes(folder, monkeypatch, **bits):
    """A U-Net that diffusers quantises, of which it asks a GPU; the package itself does not."""
    pytest.importorskip("bitsandbytes")
    from diffusers import BitsAndBytesConfig, UNet2DConditionModel
    from diffusers.quantizers.bitsandbytes import bnb_quantizer

    for cls in (bnb_quantizer.BnB4BitDiffusersQuantizer, bnb_quantizer.BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(cls, "validate_environment", lambda *_, **__: None)
    config = BitsAndBytesConfig(**bits)
    options = {"quantization_config": config, "device_map": {"": "cpu"}}
    return UNet2DConditionModel.from_pretrained(folder / "unet", **options)


def test_a_pipeline_that_bitsandbytes_quantised_samples_and_its_folder_is_refused(
    folder, monkeypatch
):
    unet = loaded_with_bitsandbytes(folder, monkeypatch, load_in_8bit=True)
    assert unet.time_embedding.linear_1.weight.dtype == torch.int8
    model, apart = with_unet(unet)
    assert 0 < apart < 8  # of 255
    model.pipeline.save_pretrained(folder)
    with pytest.raises(UserError, match="unet: its weights are quantised .bitsandbytes., which is"):
        load(str(folder))


def test_four_bits_of_bitsandbytes_on_a_cpu_that_repacks_them_are_refused(folder, monkeypatch):
    unet = loaded_with_bitsandbytes(folder, monkeypatch, load_in_4bit=True)
    pipeline = pipelines.stable_diffusion()
    pipeline.register_modules(unet=unet)
    repacks = unet.time_embedding.linear_1.support_avx512bf16_for_cpu
    if repacks:
        with pytest.raises(UserError, match="the unet has 4-bit weights of bitsandbytes on a CPU,"):
            from_pipeline(pipeline, 32)
    else:
        assert with_unet(unet)[1] < 32


def test_a_layer_that_says_that_it_repacks_on_a_cpu_is_refused():
    pipeline = pipelines.stable_diffusion()
    pipeline.vae.decoder.conv_in.support_avx512bf16_for_cpu = True
    with pytest.raises(UserError, match="the vae has 4-bit weights of bitsandbytes on a"):
        from_pipeline(pipeline, 32)


def test_a_network_of_a_gguf_file_samples_and_has_digests(folder, tmp_path):
    gguf = pytest.importorskip("gguf")
    from diffusers import GGUFQuantizationConfig, UNet2DConditionModel

    file, eight = tmp_path / "unet.gguf", gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(file, "sd")
    for name, tensor in pipelines.stable_diffusion().unet.state_dict().items():
        values, kind = tensor.numpy(), None
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:  # numbers of a block with one scale
            values, kind = gguf.quants.quantize(values, eight), eight
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config = GGUFQuantizationConfig(compute_dtype=torch.float32)
    options = {"config": str(folder), "subfolder": "unet", "quantization_config": config}
    unet = UNet2DConditionModel.from_single_file(str(file), **options)
    assert type(unet.time_embedding.linear_2.weight).__name__ == "GGUFParameter"
    model, apart = with_unet(unet)
    assert 0 < apart < 8
    assert {type(tensor) for _, tensor in weights_of(model.pipeline.unet)} == {torch.Tensor}


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
