"""Seeds as a user writes them."""

import re

from stepsampler.errors import UserError

MOST = 1_000_000  # seeds of one command


def parse_seeds(text: str) -> list[int]:
    """Read "0-15", "3,5,8" or a mixture, in which no seed stands twice.

    Raises:
        UserError: anything else, a range that falls, a seed given twice, or more than MOST.
    """
    ranges: list[range] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part)
        if not match:
            raise UserError(
                f"--seeds: expected numbers below 2^63 and ranges such as 0-15, got {part!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= 2**63:
            raise UserError(f"--seeds: a seed must be below 2^63, got {last}")
        if last < first:
            raise UserError(f"--seeds: a range must rise, got {part.strip()!r}")
        ranges.append(range(first, last + 1))
    count = sum(r.stop - r.start for r in ranges)  # len() of a range ends at 2^63
    if count > MOST:
        raise UserError(f"--seeds: at most {MOST:,} seeds, got {count:,}")
    seeds: dict[int, None] = {}
    for seed in (seed for r in ranges for seed in r):
        if seed in seeds:
            raise UserError(f"--seeds: {seed} is given twice, in {text!r}")
        seeds[seed] = None
    return list(seeds)
