"""`stepsample show` says where a schedule of a run comes from, and obeys nothing in it."""

from dataclasses import replace

from stepsampler.cli.display import describe
from stepsampler.presets import preset

PLAN = preset("seed-sd-8").schedule
FOUND = {
    "study": "mine",
    "model": "tiny",
    "source": "found, trial 7",
    "metric": "fd_texture128_1k",
    "value": 9.3333,
    "standard_error": 0.4567,
}


def last_line(provenance):
    return describe(replace(PLAN, provenance=provenance)).splitlines()[-1]


def test_the_study_the_model_and_the_score_are_shown():
    assert last_line(FOUND) == (
        "from the study mine on the model tiny: found, trial 7; fd_texture128_1k 9.333 ± 0.46"
    )
    assert last_line({k: v for k, v in FOUND.items() if k != "value"}).endswith("trial 7")
    assert last_line({"study": 3}).split()[0] == str(PLAN.num_steps - 1)  # a step's line


def test_free_text_moves_no_cursor():
    said = last_line({**FOUND, "study": "a\x1b[2J\nb", "note": None})
    assert said.startswith("from the study a [2J b on the model")
    assert last_line({"note": "x\x1b]0;y\x07z"}) == "note: x ]0;y z"
