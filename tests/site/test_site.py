"""The site is whole, and the JSON schemas hold for what we ship; run by scripts/test_site."""

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from stepsampler.presets import names, preset

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site" / "html"
STUDIES = sorted((ROOT / "studies").glob("*.toml"))
SCHEDULES = sorted((ROOT / "studies").glob("*.schedule.json"))


def checked(name):
    schema = json.loads((ROOT / "docs" / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_our_studies_are_valid(path):
    checked("study").validate(tomllib.loads(path.read_text(encoding="utf-8")))


def test_our_schedules_and_presets_are_valid():
    validator = checked("schedule")
    texts = [path.read_text(encoding="utf-8") for path in SCHEDULES]
    texts += [preset(name).schedule.to_json() for name in names()]
    assert len(texts) > 100
    for text in texts:
        validator.validate(json.loads(text))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("study", {"space": {"num_steps": 3}}, "'passes' is a required property"),
        ("study", {"space": {"num_steps": 1, "passes": 6}}, "1 is less than the minimum of 2"),
        ("study", {"space": {"num_steps": 3, "passes": 6, "pass": 1}}, "'pass' was unexpected"),
        ("schedule", {"format": "x"}, "'stepsearch.schedule/1' was expected"),
        ("schedule", {"steps": []}, "should be non-empty"),
        ("schedule", {"steps": [{"sigma": 1, "order": 1}]}, "'guidance_scale' is a required"),
    ],
)
def test_what_the_readers_refuse_is_refused(name, data, said):
    assert any(said in error.message for error in checked(name).iter_errors(data))


def test_the_site_has_its_pages_and_pictures():
    assert (SITE / "index.html").exists(), "scripts/test_site builds it"
    for page in (ROOT / "docs").glob("*.md"):
        html = SITE / "docs" / ("index.html" if page.name == "README.md" else f"{page.stem}.html")
        assert html.exists(), html
    for name in ("docs/gallery.webp", "docs/few-steps.webp", "studies/tiny-3-steps.png"):
        assert (SITE / name).exists(), name
