"""The command line of `stepsample`, a file for each group of commands.

May import every other wing; nothing imports it. What is heavy is imported inside the commands, so
that `--help` answers at once.
"""


def main() -> None:
    """Run `stepsample` on the arguments of this process."""
    from stepsampler.cli.app import app
    from stepsampler.errors import run_command_line

    run_command_line(app, "stepsample")
