"""Which images a model can make, and of which size those are that it was trained on."""

from typing import Any

from stepsampler.errors import UserError
from stepsampler.support.sizes import size_of

NO_SIZE = "the model's config does not say how large its images are (sample_size): give the size"


def trained_sides(config: Any) -> tuple[int, int]:
    """Height and width of the latents on which a network was trained; 0 where it does not say."""
    side = config.sample_size
    if side is None or isinstance(side, int):
        return side or 0, side or 0
    height, width = side
    return int(height), int(width)


def check_size(width: int, height: int, multiple: int, most: int | None, square: bool) -> None:
    """Refuse images that a model cannot make, sides in pixels.

    Raises:
        UserError: names the rule, the size and the nearest ones that can be made.
    """
    rules = []
    if any(side % multiple or side < multiple for side in (width, height)):
        rules.append(f"a multiple of {multiple} pixels")
    if most and max(width, height) > most:
        rules.append(f"at most {most:,} pixels a side")
    if square and width != height:
        rules.append("that of a square, as the network makes no other images")
    if not rules:
        return
    largest = (most or width + height + multiple) // multiple  # in multiples, as the next two
    below = [min(max(1, side // multiple), largest) for side in (width, height)]
    above = [min(-(-side // multiple), largest) for side in (width, height)]
    if square:
        below, above = [min(below)] * 2, [max(above)] * 2
    near = dict.fromkeys(str(size_of(w * multiple, h * multiple)) for w, h in (below, above))
    raise UserError(
        f"size must be {' and '.join(rules)}, got {size_of(width, height)}: the nearest "
        f"{'are' if len(near) > 1 else 'is'} {' and '.join(near)}"
    )
