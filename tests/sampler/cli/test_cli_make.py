"""Options of `stepsample make` and `export` that would have no say, and files in the way."""

import sys

import pytest

from stepsampler.cli import main

MAKE = ("make", "karras", "--steps", "4", "-o", "x.json")


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stepsample", *arguments])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        return code or 0, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*MAKE, "--order", "9"), "--order of dpmpp-midpoint is at most 3, got 9"),
        ((*MAKE, "--solver", "heun", "--order", "3"), "--order of heun is at most 2, got 3"),
        ((*MAKE, "--free-u-from", "2"), "--free-u-from is of --free-u, which is not given"),
        (
            (*MAKE, "--free-u", "1.2,1.4,0.9,0.2", "--free-u-from", "4"),
            "--free-u-from: the last of 4 steps is 3, got 4",
        ),
        ((*MAKE, "--free-u", "nan,1,1,1"), "step 0: b1 of free_u must be > 0, got nan"),
        ((*MAKE, "--guidance-scale", "nan"), "step 0: guidance_scale must be finite, got nan"),
        ((*MAKE[:-1], "."), ".: a folder is there, where a file should be written"),
        (("import", "none.txt", "--from", "comfyui", "-o", "y.json"), "none.txt: No such file"),
    ],
)
def test_options_without_a_say_are_refused(call, arguments, message):
    code, _, errors = call(*arguments)
    assert code == 2
    assert errors.startswith(f"stepsample: {message}")
    assert errors.count("\n") == 1


def test_an_interval_without_a_step_is_said(call):
    assert (
        "note: no step lies in the interval 100,200"
        in call(*MAKE, "--guidance-interval", "100,200")[2]
    )


def test_a_scheduler_config_with_a_byte_order_mark_is_read(call, tmp_path):
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"shift": 3.0}')
    to = ("--to", "diffusers:FlowMatchEulerDiscreteScheduler", "--scheduler-config", "c.json")
    assert call("export", "oss-flux-10", *to)[0] == 0
    (tmp_path / "c.json").write_text("{3}")
    code, _, errors = call("export", "oss-flux-10", *to)
    assert (code, errors) == (2, "stepsample: c.json: not JSON at line 1, column 2\n")


@pytest.mark.parametrize("suffix", ["PNG", "Svg"])
def test_a_plot_may_have_its_suffix_in_any_case(call, tmp_path, suffix):
    call(*MAKE)
    assert call("show", "x.json", "--plot", f"p.{suffix}")[0] == 0
    assert (tmp_path / f"p.{suffix}").exists()
    code, out, _ = call("show", "x.json", "--plot", "p.gif")
    assert (code, out) == (2, "")  # refused before it is shown
