"""Write docs/study-file.md, docs/study.schema.json and docs/schedule.schema.json.

    python scripts/reference.py

All of it is of the classes that read these files: names, types, limits and defaults as pydantic
tells them, and what each key means from the comments beside it. After a change of a key call it.
"""

import ast
import inspect
import io
import json
import re
import textwrap
import tokenize
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from stepsampler.schedule import DECODE, FORMAT, GUIDANCE, MOST_REPEATS, SOLVERS, Schedule
from stepsampler.schedule.parts import ModelSpec, Step
from stepsampler.support.options import ModelOptions
from stepsearch.config import ModelConfig, StudyConfig
from stepsearch.paths import write_whole

DOCS = Path(__file__).parents[1] / "docs"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
HEAD = """# The study file

Every key of a study, as the classes in `search/stepsearch/config` have it. Two of `[space]` are
required. [searching.md](searching.md) says which are worth changing, and `stepsearch init` writes a
file to begin with. A key that is not listed is refused, with the nearest one that is;
`--set SECTION.KEY=VALUE` replaces a value for one run.

Editors check and complete a study by [study.schema.json](study.schema.json), many of them by a
first line `#:schema study.schema.json`; [schedule.schema.json](schedule.schema.json) is that of a
schedule. What depends on several keys at once only the reader knows: `stepsearch check` says it.
"""
TAIL = "\n`python scripts/reference.py` writes this page and both schemas.\n"


def said(cls: type) -> dict[str, str]:
    """What the comments of a class say of each of its fields."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT}
    lines = source.splitlines()
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        above, line = [], node.lineno - 1
        while line in comments and lines[line - 1].lstrip().startswith("#"):
            above.insert(0, comments[line])
            line -= 1
        if len(above) == 1 and " " not in above[0]:
            above = []  # a heading
        beside = [comments[node.end_lineno]] if node.end_lineno in comments else []
        if above and beside and not above[-1].endswith((".", ":", ";")):
            above[-1] += ";"
        if text := " ".join([*above, *beside]):
            text = text.replace("None: ", "not set: ")  # TOML has no None
            found[node.target.id] = text[0].upper() + text[1:]
    return found


def study_schema() -> dict[str, Any]:
    """Of a study file; a pydantic schema with the comments as descriptions."""
    made = StudyConfig.model_json_schema()
    made["properties"].pop("name")  # is that of the file
    made["required"].remove("name")
    made["properties"]["model"] = {
        "anyOf": [{"$ref": "#/$defs/ModelConfig"}, {"type": "string"}],
        "description": 'The section, or "module:function" that returns a pipeline.',
    }
    for name, section in StudyConfig.model_fields.items():
        if name == "name":
            continue
        cls = section.annotation
        assert isinstance(cls, type)
        told = said(cls)
        if cls is ModelConfig:
            helps = {f.name: f.metadata["help"] for f in fields(ModelOptions)}
            told = said(ModelOptions) | {k: v for k, v in helps.items() if v} | told
        for key, value in made["$defs"][cls.__name__]["properties"].items():
            value.pop("title", None)
            value.pop("description", None)  # of a range: what its kind says
            if key in told:
                value["description"] = told[key]
    return {"$schema": DRAFT, **made, "title": "A study of stepsearch"}


def schedule_schema() -> dict[str, Any]:
    """Of a schedule file: the dataclasses, and what the reader asks for beyond them."""
    made = TypeAdapter(Schedule).json_schema()
    parts = made["$defs"]
    for cls, schema in [(Schedule, made), *((c, parts[c.__name__]) for c in PARTS)]:
        schema["additionalProperties"] = False
        told = said(cls)
        for key, value in schema["properties"].items():
            value.pop("title", None)
            if key in told:
                value["description"] = told[key]
    made["properties"] = {"format": {"const": FORMAT}, **made["properties"]}
    made["required"] = ["format", "solver", "steps", "final_sigma"]
    made["properties"]["steps"] |= {"minItems": 1}
    made["properties"]["final_sigma"] |= {"minimum": 0}
    for key, choices in (("solver", SOLVERS), ("guidance", GUIDANCE), ("decode", DECODE)):
        made["properties"][key] |= {"enum": list(choices)}
    step = parts["Step"]
    step["required"] = ["sigma", "guidance_scale", "order"]
    step["properties"]["sigma"] |= {"exclusiveMinimum": 0}
    step["properties"]["guidance_scale"] |= {"minimum": 0}
    step["properties"]["order"] |= {"minimum": 1}  # its highest depends on the solver
    step["properties"]["repeats"] |= {"minimum": 0, "maximum": MOST_REPEATS}
    return {"$schema": DRAFT, **made, "title": "A schedule of stepsearch"}


PARTS = [Step, ModelSpec]


def page(schema: dict[str, Any]) -> str:
    """docs/study-file.md."""
    found = [HEAD]
    for name, place in schema["properties"].items():
        ref = json.dumps(place)
        section = schema["$defs"][re.search(r"#/\$defs/(\w+)", ref)[1]]  # type: ignore[index]
        about = section.get("description", "").replace("\n\n", " ").replace("\n", " ")
        found.append(f"\n## `[{name}]`\n\n{about}\n\n| key | value | default | meaning |")
        found.append("|---|---|---|---|")
        for key, value in section["properties"].items():
            must = key in section.get("required", ())
            default = "required" if must else default_of(value)
            meaning = value.get("description", "").replace("|", "\\|")
            found.append(f"| `{key}` | {kind(value)} | {default} | {meaning} |")
    return "\n".join(found) + "\n" + TAIL


def default_of(value: dict[str, Any]) -> str:
    default = value["default"]
    return "" if default is None else f"`{json.dumps(default)}`"


def kind(value: dict[str, Any]) -> str:
    """In words: whole number, 8 to 100; one of …; list of numbers."""
    if "anyOf" in value:
        kinds = [kind(part) for part in value["anyOf"] if part.get("type") != "null"]
        return " or ".join(kinds)
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(word)}`" for word in value["enum"])
    if value["type"] == "array":
        if "prefixItems" in value:
            return "[low, high]"
        return f"list of {kind(value['items']).replace('number', 'numbers', 1)}"
    names = {"integer": "whole number", "number": "number", "string": "text"}
    low = value.get("minimum", value.get("exclusiveMinimum"))
    high = value.get("maximum", value.get("exclusiveMaximum"))
    above = "above " if "exclusiveMinimum" in value else "at least "
    below = "below " if "exclusiveMaximum" in value else "at most "
    limits = [f"{above}{low:,}"] if low is not None else []
    limits += [f"{below}{high:,}"] if high is not None else []
    return ", ".join([names.get(value["type"], "true or false"), *limits])


def written() -> dict[str, str]:
    """The files of docs/ by their names."""
    study = study_schema()
    return {
        "study-file.md": page(study),
        "study.schema.json": json.dumps(study, indent=1) + "\n",
        "schedule.schema.json": json.dumps(schedule_schema(), indent=1) + "\n",
    }


if __name__ == "__main__":
    for name, text in written().items():
        write_whole(DOCS / name, lambda p, text=text: p.write_text(text, encoding="utf-8"))  # type: ignore[misc]
