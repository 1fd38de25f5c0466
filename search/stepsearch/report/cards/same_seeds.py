"""The same seeds and prompts under each schedule, and their difference from the teacher."""

from stepsearch.report.cards import Card, Data, NotYet
from stepsearch.report.pictures import FOLDER, as_uris, read_index
from stepsearch.report.sources import Source

MOST = 60  # pictures on a page
LEAST_COLUMNS = 4  # of so many rows that not all of ten seeds fit


def data(source: Source) -> Data:
    """`rows` of pictures as `data:` addresses; a picture that cannot be read is None."""
    index = source.pictures and read_index(source.pictures)
    if not index or not index["rows"]:
        raise NotYet(
            "There are no pictures: a run makes them at its end; give -o report.html to "
            "stepsearch evaluate to have them of a comparison."
        )
    assert source.pictures is not None
    rows = index["rows"]
    # teacher last, found first, the best known ones between: their order in the table
    if len(rows) * LEAST_COLUMNS > MOST:
        most = MOST // LEAST_COLUMNS
        rows = [*rows[: most - 1], rows[-1]]
    columns = min(len(index["seeds"]), MOST // len(rows))
    paths = [source.pictures / FOLDER / str(f) for row in rows for f in row["files"][:columns]]
    uris = as_uris(paths)
    shown = []
    for i, row in enumerate(rows):
        part = uris[i * columns : (i + 1) * columns]
        shown.append({"name": row["name"], "kind": row["kind"], "pictures": part})
    teacher = next((i for i, row in enumerate(rows) if row["kind"] == "teacher"), None)
    return {
        "seeds": index["seeds"][:columns],
        "prompts": index["prompts"][:columns],
        "rows": shown,
        "teacher": teacher if teacher is not None else (0 if source.evaluation else None),
        "missing": sum(uri is None for uri in uris),
        "left_out": len(index["rows"]) - len(rows),
    }


CARD = Card("The same seeds, side by side", "pictures/pictures.json", data, bulky=("rows",))
