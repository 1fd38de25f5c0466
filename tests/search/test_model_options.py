"""The options of a model are listed once: every command and a study's `[model]` have them all."""

import inspect
import subprocess
import sys
from dataclasses import fields

import pytest

from stepsampler.cli.app import generate
from stepsampler.cli.batches import batch, grid
from stepsampler.errors import UserError
from stepsampler.support.options import ModelOptions, commands, flag_of, key_of, of_weights
from stepsearch.cli.comparing import placement
from stepsearch.cli.evaluating import evaluate
from stepsearch.config import ModelConfig


@pytest.mark.parametrize("command", [generate, batch, grid, evaluate, placement])
def test_every_command_has_every_option(command):
    known = inspect.signature(command).parameters
    for field in commands():
        (shown,) = known[key_of(field)].annotation.__metadata__
        assert shown.default.split("/")[0] == flag_of(field)
        assert shown.help == field.metadata["help"]
    assert "id" not in known


def test_a_study_has_every_option_and_two_keys_more():
    ours = {f.name: f.default for f in fields(ModelOptions)}
    assert {f.name: f.default for f in fields(ModelConfig)} == {**ours, "kind": None, "code": None}
    assert isinstance(ModelConfig(kind="sdxl"), ModelOptions)


def test_what_is_as_by_default_is_named_nowhere():
    """But for what manifests named from the first version on."""
    plain = ModelOptions()
    assert (plain.additions, plain.flags) == ({}, [])
    assert plain.named == {"config": None, "vae": None, "lora": [], "textual_inversion": []}
    full = ModelOptions("a", vae="b", loras=("c:0.5",), clip_skip=2, size=64)
    assert full.additions == {"vae": "b", "loras": ("c:0.5",), "clip_skip": 2}
    assert full.named == {**plain.named, "vae": "b", "lora": ["c:0.5"], "clip_skip": 2}
    assert full.told["model"] == "a"
    assert set(of_weights()) >= {"config", "variant", "prediction_type", "vae", "loras"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "fp16"}, "--dtype must be one of float32, float16, bfloat16, got 'fp16'"),
        ({"prediction_type": "v"}, "--prediction-type must be one of epsilon, .*, got 'v'"),
        ({"long_prompts": "no"}, "--long-prompts must be one of cut, chunk, got 'no'"),
        ({"clip_skip": 0}, "--clip-skip must be at least 1, got 0"),
        ({"size": 0}, "--size must be pixels, at least 1, .* got 0"),
    ],
)
def test_a_value_against_its_rule_is_named_by_its_option(given, message):
    with pytest.raises(UserError, match=message):
        ModelOptions(**given)


def test_the_commands_of_the_sampler_need_no_torch():
    code = "import sys, stepsampler.cli.app; assert not {'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
