"""The commands of `stepsample` about learned golden noise."""

from pathlib import Path
from typing import Annotated

import typer

from stepsampler.schedule import LearnedNoise

app = typer.Typer()


def learned_noise(name: str) -> LearnedNoise | None:
    """What a schedule says of a file's network, or None for «off». Only the file's header is read.

    Raises:
        UserError: it is no NPNet.
    """
    if name == "off":
        return None
    from stepsampler.npnet.files import digest_of, read_layout
    from stepsampler.support.weights import read_header

    read_layout(Path(name), read_header("NPNet", name))
    return LearnedNoise(digest_of(Path(name)))


@app.command("convert-npnet")
def convert_npnet(
    source: Annotated[Path, typer.Argument(help="Checkpoint of the authors (.pth).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write (.safetensors).")],
) -> None:
    """Write the authors' checkpoint of learned golden noise as .safetensors.

    It is a pickle: torch reads its tensors alone, and refuses one with anything else in it.
    """
    from stepsampler.npnet.conversion import convert
    from stepsampler.npnet.files import digest_of

    layout = convert(source, out)
    typer.echo(
        f"{out}: {digest_of(out)}, for latents of {layout.channels} x {layout.side} x "
        f"{layout.side} and texts of {layout.tokens} x {layout.width}"
    )
