"""What the pages under docs/ name is there."""

import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import click
import pytest
import typer

from stepsampler.cli.app import app
from stepsampler.presets import names
from stepsearch.cli.app import app as search_app

DOCS = Path(__file__).parents[2] / "docs"
ROOT = DOCS.parent
PAGES = sorted(DOCS.glob("*.md"))
README = ROOT / "README.md"
EVERY = [README, ROOT / "CONTRIBUTING.md", *PAGES]
INDEX = DOCS / "README.md"
TESTS = ROOT / "tests"
GROUPS = {
    name: typer.main.get_command(program)
    for name, program in {"stepsample": app, "stepsearch": search_app}.items()
}
PROGRAMS = {name: group.commands for name, group in GROUPS.items()}
PREFIXES = (
    "seed-",
    "lcm-sd-",
    "lcm-xl-",
    "amed-",
    "ays-",
    "gits-",
    "dmn-",
    "usf-",
    "oss-",
    "interval-",
)


def options(program, word):
    """Of the command `word`; where there is none, of the one that is meant without a name; of an
    option, of the program itself."""
    if word.startswith("-"):
        return {o for p in GROUPS[program].params for o in p.opts}
    command = PROGRAMS[program].get(word) or PROGRAMS[program]["generate"]
    return {o for p in command.params for o in (*p.opts, *p.secondary_opts)}


def name_of(page):
    return str(page.relative_to(ROOT))


def links(page):
    """Targets inside the repository, with their headings."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [target for target in found if "://" not in target]


def anchors(page):
    """Of the headings, as GitHub writes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def inline_code(text):
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def commands(text):
    lines = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in lines for line in block.replace("\\\n", " ").splitlines()]
    found = [line.split(" # ")[0] for line in lines] + inline_code(text)
    return [shlex.split(c) for c in found if c.startswith("stepsample ")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_presets_named_in_the_docs_exist(page):
    text = page.read_text(encoding="utf-8")
    words = [word for code in (*inline_code(text), *map(" ".join, commands(text)))
             for word in code.split()]  # fmt: skip
    made = {"seed-original"}
    for word in words:
        if word.startswith(PREFIXES) and "." not in word and "…" not in word and word not in made:
            pattern = re.compile(re.escape(word).replace("N", r"\d+") + "$")
            assert any(pattern.match(name) for name in names()), word


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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


def lines_of(page):
    """Every command line of ours in the blocks of a page, as words."""
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [line.removeprefix("$ ") for line in lines]
    return [
        shlex.split(line, comments=True) for line in lines if line.partition(" ")[0] in PROGRAMS
    ]


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_every_command_of_a_page_is_one_that_its_program_takes(page):
    """Its arguments are as many as there must be, and values of the right kind; nothing runs."""
    for program, word, *rest in lines_of(page):
        own = word in PROGRAMS[program] or word.startswith("-")
        command = GROUPS[program] if word.startswith("-") else PROGRAMS[program].get(word)
        words = rest if own and not word.startswith("-") else [word, *rest]
        command = command or PROGRAMS[program]["generate"]
        resilient = word.startswith("-")  # --install-completion does it at once
        try:
            command.make_context(word, list(words), resilient_parsing=resilient)
        except click.ClickException as error:
            pytest.fail(f"{shlex.join([program, word, *rest])}: {error.format_message()}")


def test_the_pages_have_commands():
    assert sum(len(lines_of(page)) for page in EVERY) > 90


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_every_snippet_is_python(page):
    text = page.read_text(encoding="utf-8")
    for code in re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.M):
        compile(textwrap.dedent(code), str(page), "exec")


def test_the_snippet_about_stock_pipelines_runs(tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline

    from stepsampler import load
    from stepsampler.grids import make_schedule
    from stepsampler.models import open_model, resolve
    from stepsampler.support.options import DEFAULTS

    monkeypatch.chdir(tmp_path)
    model = open_model(DEFAULTS)
    plan = make_schedule("power", 2, model.noise, guidance_scale=2.0, model=model.spec)
    plan.save("best.json")
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "pipelines.md").read_text(), re.DOTALL)
    known = {"pipe": DiffusionPipeline.from_pretrained(resolve("tiny"))}
    exec(compile(code, "pipelines.md", "exec"), known)
    assert known["schedule"] == load("best.json")
    assert known["images"][0].size == (32, 32)


FOREIGN = {"--sigmas", "--sampling-method", "--cfg-scale", "--guidance"}  # stable-diffusion.cpp's


def known_options(words):
    """Of a command line, or of any program of ours for an option alone; None for another's."""
    if words[0] in PROGRAMS:
        return options(words[0], words[1])
    if words[0].startswith("-"):
        return {o for p, found in PROGRAMS.items() for c in found for o in options(p, c)}
    words = words[1:] if words[0] == "python" else words
    named = [ROOT / words[0], *(ROOT / "scripts" / "bench").glob(Path(words[0]).name)]
    script = next((path for path in named if path.is_file()), None)
    return script and {o for o in words if o in script.read_text(encoding="utf-8")}


def shown_options(page):
    """(code, option, those that are known) for whatever a page shows of a command."""
    text = page.read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL))
    lines = [line.removeprefix("$ ") for line in lines.replace("\\\n", " ").splitlines()]
    for code in (*lines, *inline_code(text)):
        words = shlex.split(code, comments=True) if "--" in code else []
        if words and words[0].startswith("-") and page.name == "coming-from-seed.md":
            continue  # the seed's own
        known = known_options(words) if words else None
        for word in words if known is not None else ():
            if word.startswith("-"):
                foreign = FOREIGN if page.name == "schedules.md" else set()
                yield code, word, known | {"--help"} | foreign


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_options_named_in_the_docs_exist(page):
    for code, word, known in shown_options(page):
        assert word in known, code


def test_the_readme_and_the_docs_show_options():
    counts = {name_of(page): len(list(shown_options(page))) for page in EVERY}
    assert counts["README.md"] > 10
    assert sum(counts.values()) > 150


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_every_link_leads_to_a_file_and_its_heading(page):
    for target in links(page):
        path, _, heading = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if heading:
            assert heading in anchors(there), target


def test_the_index_lists_every_page_once():
    listed = [target for target in links(INDEX) if target.endswith(".md") and "/" not in target]
    assert sorted(listed) == [page.name for page in PAGES if page != INDEX]


def test_the_navigation_of_the_site_has_every_page_once():
    text = (ROOT / "scripts" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r": (docs/[\w-]+\.md)$", text, re.M)
    assert sorted(listed) == sorted(name_of(page) for page in PAGES)


def test_a_newcomer_reads_160_lines_at_most():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    assert max(len(line) for line in lines if not line.startswith(("|", "!"))) < 140


def test_the_architecture_names_every_wing_and_only_paths_that_are_there():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    paths = [code for code in inline_code(text) if "/" in code and " " not in code]
    assert len(paths) > 40
    for path in paths:
        assert (ROOT / path).exists(), path
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in project["tool"]["importlinter"]["contracts"]:
        for wing in re.findall(r"\w+", " ".join(contract.get("layers", ()))):
            if contract.get("containers") == ["stepsearch"] and wing not in ("config", "paths"):
                assert f"**`{wing}`**" in text, wing


def test_the_names_that_the_architecture_tells_to_extend_are_in_those_files():
    """Constants and functions in a row of the table are in one of the row's files."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    seen = 0
    for row in (line for line in text.splitlines() if line.startswith("|")):
        codes = inline_code(row)
        files = [ROOT / code for code in codes if code.endswith(".py")]
        sources = "".join(path.read_text(encoding="utf-8") for path in files)
        for code in codes:
            if re.fullmatch(r"[A-Z]{4,}|_?[a-z]+(_[a-z]+)+|_[a-z]+", code):
                assert re.search(rf"^(def )?{code}\b", sources, re.M), code
                seen += 1
    assert seen > 8


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


def test_the_page_about_models_has_every_pipeline_that_can_be_sampled():
    from stepsampler.models import families

    named = inline_code((DOCS / "models.md").read_text(encoding="utf-8"))
    assert set(families()) == {word for word in named if word.endswith("Pipeline")}
