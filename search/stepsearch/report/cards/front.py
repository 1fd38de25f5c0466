"""The best schedule for each number of passes, over several runs."""

from stepsearch.report.cards import Card, Data
from stepsearch.report.charts import Axis, Series, lines
from stepsearch.report.sources import Source


def data(source: Source) -> Data:
    """`entries` by passes, each with whether another one is better at no more passes."""
    assert source.front is not None
    return {"metric": source.front["metric"], "entries": source.front["entries"]}


def charts(data: Data) -> dict[str, str]:
    """FD against passes, with standard errors; the front as a stair."""
    kept = [e for e in data["entries"] if not e["dominated"]]
    lowest = {e["passes"]: e for e in reversed(kept)}
    stair = [lowest[passes] for passes in sorted(lowest)]

    def series(name: str, entries: list[Data], line: bool) -> Series:
        x, y = [e["passes"] for e in entries], [e["value"] for e in entries]
        return Series(name, x, y, line=line, steps=line, se=[e["se"] for e in entries])

    drawn = [series("the front", stair, True)]
    if others := [e for e in data["entries"] if e not in stair]:
        drawn.append(series("others", others, False))
    y = Axis(data["metric"], log=True)
    return {"front": lines("front", drawn, Axis("network passes of an image", whole=True), y)}


CARD = Card("The front", "the runs' schedules", data, charts, of=("front",))
