"""What the pages under docs/ name is there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from stepsampler.cli import app
from stepsampler.presets import names

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "coming-from-seed.md", DOCS / "schedules.md"]
COMMANDS = typer.main.get_command(app).commands
PREFIXES = ("seed-", "ays-", "gits-", "dmn-", "usf-", "oss-", "interval-")


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
        name = words[1] if words[1] in COMMANDS else "generate"
        options = {o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts)}
        for word in words[2:]:
            assert not word.startswith("-") or word in options, " ".join(words)


def test_every_seed_preset_is_in_the_map():
    page = DOCS / "coming-from-seed.md"
    text = " ".join(inline_code(page.read_text(encoding="utf-8")))
    listed = {re.escape(w).replace("N", r"\d+") for w in re.findall(r"seed-[\w-]+", text)}
    for name in names():
        if name.startswith("seed-"):
            assert any(re.fullmatch(pattern, name) for pattern in listed), name
