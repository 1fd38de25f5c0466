"""From the best known schedule to the found one, a group of numbers at a time."""

from stepsearch.paths import read_json
from stepsearch.report.cards import Card, Data, NotYet
from stepsearch.report.sources import Source

FILE = "ablation.json"
KEYS = (
    "change",
    "steps",
    "passes",
    "value",
    "se",
    "minus_above",
    "minus_above_se",
    "alignment",
    "schedule",
)


def data(source: Source) -> Data:
    """What `stepsearch report --ablation` measured: `rows`, each with its change and its score."""
    if source.folder is None or source.evaluation:
        raise NotYet("This is a comparison: there is no path between its contenders.")
    path = source.folder / FILE
    if not path.exists():
        raise NotYet(
            "Not measured: stepsearch report --ablation does it, and says before what it costs."
            if source.base
            else "There is no found schedule in a test yet, to which a path could lead."
        )
    known = read_json(path)
    rows = [{key: row[key] for key in KEYS} for row in known["rows"]]
    return {"metric": str(known["metric"]), "n": int(known["n"]), "rows": rows}


CARD = Card("Which change brought what", FILE, data, of=("run", "evaluation"))
