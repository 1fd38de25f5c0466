"""The table of the docs is what was measured, as far as a processor's last digits allow."""

import re

import pytest
import table
from cases import GROUPS, MEASURED


def test_the_table_of_the_docs_is_what_was_measured(request):
    if request.config.getoption("--write-table"):
        pytest.skip("it is being written")
    columns = {column for column, _ in MEASURED}
    counted = sum(len(members) for members in GROUPS.values())
    if columns < set(table.COLUMNS) or len({name for _, name in MEASURED}) < counted / 2:
        pytest.skip("only a whole session has measured everything")
    now, then = table.rows(), table.written()
    assert table.without_numbers(now) == table.without_numbers(then)
    pairs = zip(*(re.findall(r"\de-\d\d", text) for text in (now, then)), strict=True)
    assert all(float(a) < max(10 * float(b), 1e-4) for a, b in pairs)
