"""What `stepsample show` says of steps with weights of their own."""

import re
from dataclasses import replace

from typer.testing import CliRunner

from stepsampler.cli.app import app
from stepsampler.presets import open_schedule


def test_show_has_the_weights_of_the_rule_beside_those_of_the_file(tmp_path):
    def run(*words):
        return CliRunner().invoke(app, words, catch_exceptions=False)

    drawn = {name: str(tmp_path / f"{name}.svg") for name in "xy"}
    lines = run("show", "neuralsolver-sit-5", "--plot", drawn["x"]).output.splitlines()
    assert "weights 2.26 -1.26 (ipndm: 1.5 -0.5)" in lines[3]  # Adams and Bashforth's
    assert "weights 1.88 -2.26 1.38 (ipndm: 1.917 -1.333 0.4167)" in lines[4]
    assert lines[6].endswith("weights 1.7 -0.7 (ipndm: 1)")  # onto sigma 0
    nine = run("show", "neuralsolver-flux-9").output.splitlines()
    assert nine[6].endswith("(ipndm: 2.292 -2.458 1.542 -0.375)")  # which has no order 5
    plain = run("show", "seed-sd-8", "--plot", drawn["y"])
    assert "weights" not in plain.output
    with_weights, without = ((tmp_path / f"{k}.svg").stat().st_size for k in "xy")
    assert with_weights > 1.3 * without


def test_a_picture_has_the_gains_of_a_schedule_that_has_any(tmp_path):
    plan = open_schedule("neuralsolver-sit-5")  # which has weights as well
    first, *others = plan.steps
    panels = []
    for k, gain in enumerate((1.0, 1.07)):
        replace(plan, steps=(replace(first, gain=gain), *others)).save(tmp_path / f"{k}.json")
        words = ["show", str(tmp_path / f"{k}.json"), "--plot", str(tmp_path / f"{k}.svg")]
        CliRunner().invoke(app, words, catch_exceptions=False)
        panels.append(len(re.findall(r'<g id="axes_\d+">', (tmp_path / f"{k}.svg").read_text())))
    assert panels == [3, 4]
