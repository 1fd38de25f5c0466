"""`stepsearch`: all its commands."""

from typing import Any

import typer
from typer.core import TyperGroup

from stepsearch.cli import comparing, evaluating, helping, results, running


class _InWords(TyperGroup):
    """Says what is wrong with an option without pydantic's own words, which typer leaves there."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    cls=_InWords,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find the few-step schedule that makes the best images for your model and budget.",
)
app.add_typer(helping.app)
app.add_typer(running.app)
app.add_typer(results.app)
app.add_typer(evaluating.app)
app.add_typer(comparing.app)
