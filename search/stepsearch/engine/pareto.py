"""Which of several points no other one is better than."""

from collections.abc import Sequence


def dominated(points: Sequence[Sequence[float]]) -> list[bool]:
    """Whether another point is nowhere higher and somewhere lower; of equal ones none is."""

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)

    return [any(beats(other, point) for other in points) for point in points]
