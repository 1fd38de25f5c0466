"""`stepsearch`: all its commands."""

import typer

from stepsearch.cli import comparing, evaluating, helping, results, running

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find the few-step schedule that makes the best images for your model and budget.",
)
app.add_typer(helping.app)
app.add_typer(running.app)
app.add_typer(results.app)
app.add_typer(evaluating.app)
app.add_typer(comparing.app)
