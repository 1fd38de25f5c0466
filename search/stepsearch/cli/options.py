"""What several commands of `stepsearch` share: which study, which run, what goes on."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from stepsampler.errors import INTERRUPTED, TERMINATED, Terminated, UserError, note
from stepsearch.paths import RUNS, find_runs, runs_here


def _studies(incomplete: str) -> list[str]:
    """For the shell: study files and folders that begin like that."""
    here = Path(incomplete).parent if incomplete else Path()
    found = [p for p in here.glob("*") if p.suffix == ".toml" or p.is_dir()]
    return [f"{p}/" if p.is_dir() else str(p) for p in found if str(p).startswith(incomplete)]


def _runs(incomplete: str) -> list[str]:
    """For the shell: runs, and what `_studies` finds."""
    runs = [str(folder) for folder in runs_here("study.json")]
    return [r for r in runs if r.startswith(incomplete)] or _studies(incomplete)


StudyFile = Annotated[
    Path,
    typer.Argument(help="Study file, such as studies/tiny-3-steps.toml.", autocompletion=_studies),
]
RunFolder = Annotated[
    Path | None, typer.Option("--run", help="Folder of the run; default runs/<study>.")
]
RunOf = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="Folder of the run, such as runs/x, or its study file; default the only one here.",
        autocompletion=_runs,
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        envvar="STEPSEARCH_STORAGE",
        help="Trials in postgresql://…, mysql://… or grpc://host:port, for several machines.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Instead of the study's, as search.trials=100; may be given several times.",
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Let the study's own functions run: its model, its metric."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead.")]


def which_run(given: Path | None, needed: str, live: bool = False) -> Path:
    """The folder of the run that is meant; without a name the only one, or the one that is chosen.
    With `live` the only one that is under way is the one that is meant.

    Raises:
        UserError: there is none; or several, which it names, and nobody to ask.
    """
    if given is not None:
        return find_runs(given, needed)[0]
    found = runs_here(needed)
    if not found:
        raise UserError(f"no run in {RUNS}/ here; `stepsearch run STUDY` starts one")
    if len(found) == 1:
        note(f"of {found[0]}, the only run here")
        return found[0]
    if live:
        from stepsearch.engine.store.locks import runs_now

        now = [folder for folder in found if runs_now(folder)]
        if len(now) == 1:
            note(f"of {now[0]}, the only run under way here")
            return now[0]
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(f"which run? Name one of them: {', '.join(map(str, found))}")
    for place, folder in enumerate(found, 1):
        typer.echo(f"  {place}  {folder}", err=True)
    number: int = typer.prompt("which run", 1, type=int, err=True)
    if not 1 <= number <= len(found):
        raise UserError(f"the number must be 1 to {len(found)}, got {number}")
    return found[number - 1]


@contextmanager
def interruptible(ctx: typer.Context, folder: Path) -> Iterator[None]:
    """One sentence with the command that goes on, for Ctrl-C and SIGTERM; each keeps its code."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as end:
        typer.echo(f"stopped; {folder} keeps what is done. This goes on:", err=True)
        typer.echo(f"  {command_of(ctx)}", err=True)
        code = TERMINATED if isinstance(end, Terminated) else INTERRUPTED
        raise typer.Exit(code) from None


def command_of(ctx: typer.Context) -> str:
    """The command line that was given, without passwords."""
    words = ["stepsearch", str(ctx.info_name)]
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(str(parameter.name))
        if source is None or source.name != "COMMANDLINE":
            continue
        value = ctx.params[str(parameter.name)]
        for one in value if isinstance(value, list | tuple) else [value]:
            if parameter.param_type_name == "argument":
                words.append(str(one))
            elif isinstance(one, bool):
                words.append((parameter.opts if one else parameter.secondary_opts)[0])
            else:
                words += [parameter.opts[0], str(one)]
    from stepsearch.engine.store.addresses import passwords_of, without_passwords

    shown = [without_passwords(word, passwords_of(word)) for word in words]
    return shlex.join(shown)
