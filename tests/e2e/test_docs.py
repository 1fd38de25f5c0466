"""What the pages under docs/ name is there."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from stepsampler.cli.app import app
from stepsampler.presets import names
from stepsearch.cli.app import app as search_app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "coming-from-seed.md", DOCS / "schedules.md", DOCS / "searching.md"]
README = DOCS.parent / "README.md"
TESTS = DOCS.parent / "tests"
PROGRAMS = {
    name: typer.main.get_command(program).commands
    for name, program in {"stepsample": app, "stepsearch": search_app}.items()
}
PREFIXES = ("seed-", "ays-", "gits-", "dmn-", "usf-", "oss-", "interval-")


def options(program, word):
    """Of the command `word`; where there is none, of the one that is meant without a name."""
    command = PROGRAMS[program].get(word) or PROGRAMS[program]["generate"]
    return {o for p in command.params for o in (*p.opts, *p.secondary_opts)}


def inline_code(text):
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def commands(text):
    lines = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in lines for line in block.replace("\\\n", " ").splitlines()]
    found = [line.split(" # ")[0] for line in lines] + inline_code(text)
    return [shlex.split(c) for c in found if c.startswith("stepsample ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_presets_named_in_the_docs_exist(page):
    text = page.read_text(encoding="utf-8")
    words = [word for code in (*inline_code(text), *map(" ".join, commands(text)))
             for word in code.split()]  # fmt: skip
    made = {"seed-original"}
    for word in words:
        if word.startswith(PREFIXES) and "." not in word and "…" not in word and word not in made:
            pattern = re.compile(re.escape(word).replace("N", r"\d+") + "$")
            assert any(pattern.match(name) for name in names()), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_have_the_options_they_show(page):
    for words in commands(page.read_text(encoding="utf-8")):
        known = options("stepsample", words[1])
        for word in words[2:]:
            assert not word.startswith("-") or word in known, " ".join(words)


def test_tests_named_in_the_docs_exist():
    """«…» stands for a part of a name that is left out; parameters in brackets may be any."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}
    there = {
        name for text in sources.values() for name in re.findall(r"^def (test_\w+)", text, re.M)
    }
    words = inline_code((DOCS / "pipelines.md").read_text(encoding="utf-8"))
    named = [word for word in words if word.startswith(("test_", "tests/", "…"))]
    assert len(named) > 20
    for word in named:
        if word.endswith(".py"):
            assert Path(word).name in sources, word
            continue
        parts = word.split("[")[0].split("…")
        pattern = re.compile(r"\w+".join(map(re.escape, parts)))
        assert any(pattern.fullmatch(name) for name in there), word


def test_options_named_in_the_readme_exist():
    text = README.read_text(encoding="utf-8")
    demo = (README.parent / "scripts/demo").read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL))
    lines = [line.removeprefix("$ ") for line in lines.replace("\\\n", " ").splitlines()]
    seen = 0
    for words in (shlex.split(code, comments=True) for code in [*lines, *inline_code(text)]
                  if "--" in code and not code.startswith("mlflow ")):  # fmt: skip
        for word in words:
            if not word.startswith("-"):
                continue
            if words[0] in PROGRAMS:
                known = options(words[0], words[1])
            elif words[0] == "scripts/demo":
                known = {word} if word in demo else set()
            else:  # an option alone, of any program
                known = {o for p, found in PROGRAMS.items() for c in found for o in options(p, c)}
            assert word in known, " ".join(words)
            seen += 1
    assert seen > 20


def test_every_seed_preset_is_in_the_map():
    page = DOCS / "coming-from-seed.md"
    text = " ".join(inline_code(page.read_text(encoding="utf-8")))
    listed = {re.escape(w).replace("N", r"\d+") for w in re.findall(r"seed-[\w-]+", text)}
    for name in names():
        if name.startswith("seed-"):
            assert any(re.fullmatch(pattern, name) for pattern in listed), name


def test_a_source_distribution_holds_the_folders_that_tests_read():
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"docs", "scripts", "studies", "tests", "README.md"} <= set(included)
