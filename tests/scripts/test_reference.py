"""The reference of the study file and both schemas are those of the classes."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import reference  # noqa: E402
from stepsearch.config import StudyConfig  # noqa: E402


@pytest.mark.parametrize("name", ["study-file.md", "study.schema.json", "schedule.schema.json"])
def test_what_docs_has_is_that_of_today(name):
    made = reference.written()[name]
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == made, "scripts/reference.py"


def test_every_key_of_a_study_has_a_meaning():
    schema = json.loads((ROOT / "docs" / "study.schema.json").read_text(encoding="utf-8"))
    keys = 0
    for name, section in StudyConfig.model_fields.items():
        if name == "name":
            continue
        found = schema["$defs"][section.annotation.__name__]["properties"]
        assert list(found) == list(section.annotation.__pydantic_fields__)
        for key, value in found.items():
            assert value.get("description"), f"{name}.{key}"
            keys += 1
    assert keys > 70


def test_comments_are_read_as_they_stand():
    class Some:
        """Not this."""

        # Guidance
        a: int = 1  # Beside it
        # Above, in
        # two lines
        b: int = 2  # and beside
        c: str = "# no comment"
        d: str = (  # of an opened one
            ""
        )

    assert reference.said(Some) == {"a": "Beside it", "b": "Above, in two lines; and beside"}
