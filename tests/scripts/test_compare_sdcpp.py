"""The comparison with stable-diffusion.cpp, as far as it goes without the program."""

import importlib.util
import shlex
from pathlib import Path

from stepsampler import UserError
from stepsampler.formats import export

FILE = Path(__file__).parents[2] / "scripts" / "compare_sdcpp.py"


def compare_sdcpp():
    spec = importlib.util.spec_from_file_location("compare_sdcpp", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_cases_have_every_sampler_and_only_heun_is_refused():
    used, refused = set(), set()
    for case in compare_sdcpp().cases():
        try:
            words = shlex.split(export(case.schedule, "sd.cpp", version=case.version).text)
            used.add(words[words.index("--sampling-method") + 1])
        except UserError:
            refused.add(case.schedule.solver)
    assert used == {"euler", "heun", "ipndm", "dpm++2m"}
    assert refused == {"heun"}


def test_its_table_is_that_of_the_docs():
    module = compare_sdcpp()
    lines = module.table({"a": [(1, 0.04), (2, 0.01)], "b": [None]}).splitlines()
    assert lines[2:] == ["| a | 2 | 2 | 0.04 |", "| b | 0 | refused | - |"]
    text = module.PAGE.read_text(encoding="utf-8").split(module.BEGIN)[1].split(module.END)[0]
    rows = {line.split(" | ")[0].lstrip("| ") for line in text.splitlines()[2:]}
    assert {case.row for case in module.cases() if case.schedule.solver != "heun"} <= rows
