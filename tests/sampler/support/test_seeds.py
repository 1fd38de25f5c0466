"""Seeds as the commands take them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import UserError
from stepsampler.support.seeds import parse_seeds


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True))
def test_seeds_are_read_as_written(seeds):
    assert parse_seeds(",".join(map(str, seeds))) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-3", "1--2", "1.5", "1,,2", "9" * 5000])
def test_other_seeds_are_refused(text):
    with pytest.raises(UserError, match="--seeds: expected numbers below 2\\^63 and ranges"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-99999999999", "at most 1,000,000 seeds, got 100,000,000,000"),
        (f"0-{2**63 - 1},0-{2**63 - 1}", "at most 1,000,000 seeds, got "),
        ("7-1000000,0-10", "at most 1,000,000 seeds, got 1,000,005"),
        (f"{2**63}", "a seed must be below 2^63, got 9223372036854775808"),
        ("3,3", "3 is given twice, in '3,3'"),
        ("0-4,9,2-3", "2 is given twice, in '0-4,9,2-3'"),
    ],
)
def test_too_many_too_high_or_repeated_seeds_are_refused(text, message):
    with pytest.raises(UserError, match=f"^--seeds: {re.escape(message)}"):
        parse_seeds(text)
