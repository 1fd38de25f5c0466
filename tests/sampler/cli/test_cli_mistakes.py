"""What a new user mistypes, and the sentence that says what was meant."""

from difflib import get_close_matches

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from stepsampler import load
from stepsampler.cli.app import app
from stepsampler.errors import UserError
from stepsampler.models import families
from stepsampler.presets import names, preset


def test_a_mistyped_command_is_not_taken_for_a_schedule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["genrate", "best.json", "--prompt", "a fox"])
    assert result.exit_code == 2
    assert "No such command 'genrate'. Did you mean 'generate'?" in result.output


def test_a_file_with_such_a_name_is_a_schedule_and_hides_no_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("genrate", "presets"):
        (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match="genrate: not JSON"):
        CliRunner().invoke(app, ["genrate", "--prompt", "x"], catch_exceptions=False)
    assert CliRunner().invoke(app, ["presets", "seed-sd-5"]).exit_code == 0


def test_no_preset_is_near_the_name_of_a_command():
    commands = list(get_command(app).commands)
    assert not [name for name in names() if get_close_matches(name, commands, 1, 0.8)]


def test_a_mistyped_part_of_a_preset_names_the_nearest():
    with pytest.raises(UserError, match="in its name; the nearest are neuralsolver-"):
        CliRunner().invoke(app, ["presets", "neuralsolvr"], catch_exceptions=False)


def test_a_text_in_the_place_of_a_schedule_is_said_to_be_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# stepsearch\n\nYou have a model\n")
    with pytest.raises(UserError) as caught:
        CliRunner().invoke(app, ["README.md", "--prompt", "x"], catch_exceptions=False)
    assert str(caught.value) == (
        "README.md: a schedule is a JSON file, which begins with {; this one is a text that begins "
        "with «# stepsearch»"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bset.json", "--seeds", "1"], "bset.json: No such file or directory; did you mean 'bes"),
        (["show", "bes"], "; did you mean 'best.json'?"),
        (["best.json", "--prompts", "promts.txt"], "; did you mean 'prompts.txt'?"),
        (["best.json", "--seeds", "1", "--lora", "my-lra.safetensors"], "mean 'my-lora.safetenso"),
    ],
)
def test_a_mistyped_file_is_answered_with_the_one_that_was_meant(
    tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)
    for name in ("prompts.txt", "my-lora.safetensors", "best.txt"):
        (tmp_path / name).write_text("a fox\n")
    preset("seed-sd-8").schedule.save("best.json")
    with pytest.raises(UserError) as caught:
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert said in str(caught.value)


@pytest.mark.parametrize("command", ["generate", "batch"])
def test_a_preset_of_another_family_is_refused_before_a_progress_bar(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a fox\n")
    words = [command, "flux-schnell-4", "--prompts", "p.txt", "-o", "out"]
    result = CliRunner().invoke(app, words)
    assert "the schedule was made for family 'flux'" in str(result.exception)
    assert "sampling" not in result.output


@pytest.mark.parametrize("name", names())
def test_presets_of_models_that_are_no_pipelines_are_marked(name):
    found = preset(name)
    known = {cls.family for cls in families().values()}
    spec = found.schedule.model
    assert found.sampled == (spec is not None and spec.family in known)


def test_a_study_in_the_place_of_a_schedule_is_told_from_one(tmp_path):
    study = tmp_path / "tiny.toml"
    study.write_text("[space]\nnum_steps = 3\n")
    with pytest.raises(UserError, match=r"tiny\.toml: a schedule is a JSON file; .* export`"):
        load(study)
