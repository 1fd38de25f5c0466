"""Seeds as a user writes them."""

import re

from stepsampler.errors import UserError


def parse_seeds(text: str) -> list[int]:
    """Read "0-15", "3,5,8" or a mixture.

    Raises:
        UserError: anything else, or a range that falls.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise UserError(f"--seeds: expected numbers and ranges such as 0-15, got {part!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= 2**63:
            raise UserError(f"--seeds: a seed must be below 2^63, got {last}")
        if last < first:
            raise UserError(f"--seeds: a range must rise, got {part.strip()!r}")
        seeds += range(first, last + 1)
    return seeds
