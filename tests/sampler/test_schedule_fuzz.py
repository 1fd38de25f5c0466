"""Files that nobody meant to write: each is read, or refused in one sentence of our own."""

import random

import pytest
from mutations import SCHEDULES
from mutations import schedule as mutated

from stepsampler import Schedule, ScheduleError, load
from stepsampler.schedule import MAX_BYTES
from stepsampler.support.checks import MAX_DEPTH

TEXTS = [schedule.to_json() for schedule in SCHEDULES]


def test_ten_thousand_mutations_raise_only_our_own_error():
    rng = random.Random(0)
    read = 0
    for _ in range(10_000):
        text = mutated(rng)
        try:
            schedule = Schedule.from_json(text)
        except ScheduleError as error:
            message = str(error)
            assert message
            assert "\n" not in message
            assert len(message) < 500
            message.encode()  # can be printed
        else:
            read += 1
            assert Schedule.from_json(schedule.to_json()) == schedule
            assert schedule.passes >= 0
    assert 500 < read < 9_500  # the mutations are neither all harmless nor all fatal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXTS[0][:-20].encode(), r"not JSON: .*: line \d+ column \d+"),
        (b"", "a JSON file, which begins with {; this one is empty"),
        (b" " * (MAX_BYTES + 1), r"at most 1,000,000 bytes, this file has more"),
        (TEXTS[0].replace("14.6", "NaN", 1).encode(), "not JSON: NaN is no number"),
        (
            TEXTS[0].replace('"stable-diffusion"', r'"\ud800"').encode(),
            r"model: family must be printable, got '\\ud800'",
        ),
        (TEXTS[0].replace("14.6", "1e999", 1).encode(), "'1e999' is too large a number"),
        (TEXTS[0].replace(": 14.6", ": 1" + "0" * 400, 1).encode(), "step 0: sigma: too large"),
        (TEXTS[0].replace("14.6", "1" + "0" * 5000, 1).encode(), "not JSON: Exceeds the limit"),
        (b'{"steps": ' + b"[" * 100_000, "not JSON: .*recursion"),
        (
            TEXTS[0].replace('"dpmpp-midpoint"', "[" * 30 + "]" * 30).encode(),
            f"values are nested more than {MAX_DEPTH} deep",
        ),
        (TEXTS[0].encode("utf-16"), "begins with {; this one is no text in UTF-8"),
        (b"# stepsearch\n\nYou have", "begins with {; this one is a text that begins with «# st"),
        (b"\x00\x01\x02", "begins with {; this one is no text$"),
    ],
)  # fmt: skip
def test_each_kind_of_broken_file_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ScheduleError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path):
    for name, text in (("a", TEXTS[0]), ("b", "\ufeff" + TEXTS[0].replace("\n", "\r\n"))):
        (tmp_path / name).write_bytes(text.encode())
    assert load(tmp_path / "a") == load(tmp_path / "b")


def test_an_endless_file_is_not_read_to_its_end():
    with pytest.raises(ScheduleError, match=r"/dev/zero: a schedule has at most"):
        load("/dev/zero")
