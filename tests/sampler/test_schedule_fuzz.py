"""Files that nobody meant to write: each is read, or refused in one sentence of our own."""

import json
import random
from copy import deepcopy

import pytest

from stepsampler import (
    FreeU,
    GoldenNoise,
    LearnedNoise,
    ModelSpec,
    Schedule,
    ScheduleError,
    Step,
    load,
)
from stepsampler.schedule import MAX_BYTES, StatisticsSpec
from stepsampler.support.checks import MAX_DEPTH

SD = ModelSpec("stable-diffusion", "epsilon", (0.029, 0.6, 1.6, 4.6, 14.6))
FLOW = ModelSpec("flux", "flow_prediction", (0.0, 0.25, 0.5, 0.75, 1.0))
VALID = [
    Schedule((Step(14.6, 7.5), Step(2.0, 1.0, 2), Step(0.5, 3.0)), 0.0, model=SD),
    Schedule(
        (
            Step(14.6, 1.0, 1, True, "noise", 0.975),
            Step(2.0, 5.0, 2, True, "data", free_u=FreeU(1.1, 1.2, 0.9, 0.2)),
            Step(1.0, 5.0, 1, guidance_rescale=0.7),
        ),
        0.1,
        "unipc-bh1",
        SD,
        {"study": "x", "score": [1.5, None, {"n": 1000}], "note": "é\ud800"},
        decode="alpha-x",
        golden_noise=GoldenNoise(14.0, 5.0, "inversion"),
    ),
    Schedule((Step(14.6),), 0.5, "ddim", golden_noise=LearnedNoise("0123456789abcdef")),
    Schedule((Step(1.0, 3.5), Step(0.5, 3.5)), 0.0, "heun", FLOW, guidance="distilled"),
    Schedule((Step(14.6, 5.0), Step(2.0, churn=1.0), Step(1.0, x0_reuse=True)), 0.1, "ddim", SD),
    Schedule(
        (Step(1.0, gain=1.05), Step(0.5, order=2, weights=(1.5, -0.5), time_scale=0.9)),
        0.0,
        "ipndm",
        FLOW,
        boundary=0.875,
    ),
    Schedule(
        (Step(14.6, 2.0, 1, True), Step(2.0, 2.0, 2), Step(0.5, 1.0, 3, prediction="data")),
        0.1,
        "dpm-v3",
        SD,
        statistics=StatisticsSpec(2.0, 120, "0123456789abcdef", True, False),
    ),
]
JUNK = [
    None, True, False, 0, -1, 1, 2.5, -0.0, 5e-324, 1e308, 10**400, -(10**4000), "", "x", "1",
    "\ud800", "ddim", "noise", [], {}, [[]], [1, 2], {"sigma": 1}, "\x00", [None] * 50,
]  # fmt: skip
RAW = ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 5000, "[" * 50 + "]" * 50, "\\u0000"]


def mutated(rng: random.Random) -> str:
    """The text of a valid file with one to three changes of its values or its characters."""
    data = json.loads(rng.choice(TEXTS))
    for _ in range(rng.randint(1, 3)):
        place = data
        while True:  # walk down to some container
            inside = place.values() if isinstance(place, dict) else place
            deeper = [v for v in inside if isinstance(v, dict | list) and v]
            if not deeper or rng.random() < 0.3:
                break
            place = rng.choice(deeper)
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key, kind = rng.choice(keys), rng.random()
        if kind < 0.6:
            place[key] = deepcopy(rng.choice(JUNK))
        elif kind < 0.8:
            del place[key]
        elif isinstance(place, dict):
            place[
                rng.choice(
                    [
                        *keys,
                        "churn",
                        "free_u",
                        "golden_noise",
                        "npnet",
                        "gain",
                        "weights",
                        "boundary",
                        "statistics",
                        "digest",
                        "\ud800",
                    ]
                )
            ] = deepcopy(place[key])
        else:
            place.insert(rng.randrange(len(place) + 1), deepcopy(place[key]))
        if not data:
            return "{}"
    text = json.dumps(data)
    kind = rng.random()
    if kind < 0.05:
        return text[: rng.randrange(len(text))]
    if kind < 0.15:
        at = rng.randrange(len(text))
        return text[:at] + rng.choice([*RAW, '"', ",", "}", "\x00", "\ud800"]) + text[at + 1 :]
    if kind < 0.25:
        return text.replace(rng.choice(["1", "0", "null", "2.0"]), rng.choice(RAW), 1)
    return text


TEXTS = [schedule.to_json() for schedule in VALID]


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
