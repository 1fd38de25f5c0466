"""The command line of `stepsearch`, a file for each group of commands.

May import every other wing; nothing imports it. What is heavy is imported inside the commands, so
that `--help` answers at once.
"""


def main() -> None:
    """Run `stepsearch` on the arguments of this process."""
    from stepsampler.errors import run_command_line
    from stepsearch.cli.app import app

    run_command_line(app, "stepsearch")
