"""Valid inputs with a few changes that nobody meant to write, for `scripts/fuzz.py` and tests.

All that is random comes from a `random.Random`, which may be one of hypothesis' (`st.randoms`).
"""

import functools
import gzip
import io
import json
import math
import random
import tomllib
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from stepsampler import FreeU, GoldenNoise, LearnedNoise, ModelSpec, Schedule, Step
from stepsampler.schedule import StatisticsSpec

STUDIES = Path(__file__).parents[1] / "studies"
SD = ModelSpec("stable-diffusion", "epsilon", (0.029, 0.6, 1.6, 4.6, 14.6))
FLOW = ModelSpec("flux", "flow_prediction", (0.0, 0.25, 0.5, 0.75, 1.0))
SCHEDULES = [
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
    Schedule(
        (Step(14.6, 5.0, repeats=2), Step(2.0, churn=1.0), Step(1.0, x0_reuse=True)),
        0.1,
        "ddim",
        SD,
    ),
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
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2.5, -0.0, 5e-324, 1e308, 10**400, -(10**4000), "", "x", "1",
    "\ud800", "ddim", "noise", [], {}, [[]], [1, 2], {"sigma": 1}, "\x00", [None] * 50,
]  # fmt: skip
RAW = ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 5000, "[" * 50 + "]" * 50, "\\u0000"]
# Of studies: what stands at other keys, or almost
STUDY_JUNK: list[Any] = [
    *JUNK, math.nan, math.inf, 64, 10**30, "off", "auto", "best", "none", "clip:", "../..", "/",
    "gp", "a:b", "per-step", [0.5, 4.0], [4.0, 0.5], [-1, 1e300], [math.nan, 1.0], ["fd"],
    ["a"] * 3, "é" * 300, "*", "[", "{}", "%s",
]  # fmt: skip
EVERYTHING = """[model]
id = "tiny"
dtype = "bfloat16"
[space]
num_steps = 3
max_steps = 6
passes = 8
solvers = ["dpmpp-midpoint", "unipc-bh2", "deis"]
guidance = "per-step"
guidance_rescale = [0.0, 0.9]
order = "per-step"
corrector = true
prediction = true
analytic = [0.8, 1.0]
analytic_at = [0.2, 0.8]
churn = [0.0, 0.3]
fresh_noise = "per-step"
gain = [0.9, 1.2]
decode = true
free_u = true
free_u_sets = 2
golden_noise = ["off", "raw"]
reuse = 3
first_sigma = [10.0, 14.0]
[evaluation]
extractor = "texture+lite0"
guidance_scales = [2.0, 3.0]
images = 100
[search]
objectives = ["fd", "alignment"]
minutes = 1.5
"""


def schedule(rng: random.Random) -> str:
    """The text of a schedule's file."""
    data = json.loads(rng.choice(_schedules()))
    extra = ("churn", "free_u", "golden_noise", "npnet", "gain", "weights", "boundary")
    change(rng, data, JUNK, (*extra, "statistics", "digest", "\ud800"))
    text = json.dumps(data) if data else "{}"
    kind = rng.random()
    if kind < 0.05:
        return text[: rng.randrange(len(text))]
    if kind < 0.15:
        at = rng.randrange(len(text))
        return text[:at] + rng.choice([*RAW, '"', ",", "}", "\x00", "\ud800"]) + text[at + 1 :]
    if kind < 0.25:
        return text.replace(rng.choice(["1", "0", "null", "2.0"]), rng.choice(RAW), 1)
    return text


@functools.cache
def _schedules() -> list[str]:
    return [known.to_json() for known in SCHEDULES]


def change(rng: random.Random, data: Any, junk: list[Any], names: tuple[str, ...] = ()) -> None:
    """One to three changes of the values and keys of nested lists and objects."""
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
            place[key] = deepcopy(rng.choice(junk))
        elif kind < 0.8:
            del place[key]
        elif isinstance(place, dict):
            place[rng.choice([*keys, *names])] = deepcopy(place[key])
        else:
            place.insert(rng.randrange(len(place) + 1), deepcopy(place[key]))
        if not data:
            return


def study(rng: random.Random) -> bytes:
    """A study file."""
    text, data = rng.choice(_studies())
    if rng.random() < 0.7:
        data = deepcopy(data)
        change(rng, data, STUDY_JUNK, _study_keys())
        text = _toml(data)
    content = text.encode(errors="surrogatepass")
    return damaged(rng, content) if rng.random() < 0.4 else content


@functools.cache
def _studies() -> list[tuple[str, dict[str, Any]]]:
    texts = [EVERYTHING, *(path.read_text() for path in sorted(STUDIES.glob("*.toml")))]
    return [(text, tomllib.loads(text)) for text in texts]


@functools.cache
def _study_keys() -> tuple[str, ...]:
    from stepsearch.config import StudyConfig

    sections = (field.annotation for field in StudyConfig.model_fields.values())
    fields = [
        getattr(s, "model_fields", None) or getattr(s, "__pydantic_fields__", {}) for s in sections
    ]
    return tuple(
        dict.fromkeys(["name", "x", *StudyConfig.model_fields, *(k for f in fields for k in f)])
    )


def _toml(data: dict[str, Any]) -> str:
    """Sections, and whatever else stands in their place."""
    lines = [f"{_key(k)} = {_value(v)}" for k, v in data.items() if not isinstance(v, dict)]
    for name, section in data.items():
        if isinstance(section, dict):
            lines += [f"[{_key(name)}]", *(f"{_key(k)} = {_value(v)}" for k, v in section.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else _value(name)


def _value(value: Any) -> str:
    """As TOML has it; null, which it has not, as JSON has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    if isinstance(value, int) and abs(value) > 10**300:
        return f"{'-' * (value < 0)}1{'0' * 4999}"  # str() refuses such numbers
    return json.dumps(value, ensure_ascii=isinstance(value, str) and "\x00" in value)


PIECES = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"'''", b"[", b"]", b"{", b"}", b",",
    b"\n", b"\r", b"\t", b"=", b".", b"#", b"\\", b"-", b"1e999", b"nan", b"null", b"\\u0000",
    b"\\ud800", b"[" * 3000, b"{" * 3000, b"9" * 5000, b"1979-05-27T07:32:00Z", b"0x",
    b" " * 5000, b"\xc2\x85",
]  # fmt: skip


def damaged(rng: random.Random, content: bytes) -> bytes:
    """One to three changes of the bytes of a file: cut, torn, doubled, swapped, or with others."""
    for _ in range(rng.randint(1, 3)):
        if not content:
            return rng.choice(PIECES)
        at, n = rng.randrange(len(content)), rng.choice([0, 1, 1, 2, 8, 64])
        kind = rng.randrange(6)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + content[at + n :]
        elif kind == 2:
            content = content[: at + n] + content[at:]
        elif kind == 3:
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        else:
            content = content[:at] + rng.choice(PIECES) + content[at + n :]
    return content


def captions(rng: random.Random) -> tuple[str, bytes]:
    """The name and the content of a caption file."""
    suffix, content = rng.choice(_caption_files())
    if suffix in (".json", ".jsonl") and rng.random() < 0.6:
        many = suffix == ".jsonl"
        data = [json.loads(line) for line in content.splitlines()] if many else json.loads(content)
        change(rng, data, JUNK, ("caption", "prompt", "image_id", "id", "annotations", "text"))
        parts = data if many else [data]
        content = "\n".join(map(json.dumps, parts)).encode()
    else:
        content = damaged(rng, content)
    if rng.random() < 0.1:
        suffix = rng.choice([".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", "", ".gif"])
    if rng.random() < 0.1:
        packed = gzip.compress(content, 1)
        content = damaged(rng, packed) if rng.random() < 0.5 else packed
        suffix += rng.choice(["", ".gz"])
    return f"a{suffix}", content


@functools.cache
def _caption_files() -> list[tuple[str, bytes]]:
    texts = ["a bag", "two, shoes", 'a "red" coat\nof wool', "é ☃", "   ", "x" * 300]
    coco = [{"image_id": i % 4, "id": 90 - i, "caption": text} for i, text in enumerate(texts)]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)]
    rows = [{"prompt": text, "file_path": [f"{i}.png"]} for i, text in enumerate(texts)]
    split = [{"filename": "a.jpg", "sentences": [{"raw": "a bag"}, {"raw": "b"}], "caption": "c"}]
    table = [("url", "TEXT", "other"), *((f"u{i}", text, i) for i, text in enumerate(texts))]
    cells = ["\n".join(mark.join(_cell(c, mark) for c in row) for row in table) for mark in ",;\t"]
    jsons = [{"annotations": coco, "images": images}, rows, texts, dict(enumerate(rows)), split]
    files = [(".json", json.dumps(data)) for data in jsons]
    files += [(".jsonl", "\n".join(map(json.dumps, part))) for part in (rows, texts, split)]
    files += [(".csv", cells[0]), (".csv", cells[1]), (".tsv", cells[2])]
    files += [(".csv", "\n".join(texts[:2])), (".txt", "\r\n".join(texts)), ("", "\n".join(texts))]
    return [(suffix, text.encode()) for suffix, text in files] + _parquet(texts)


def _cell(value: object, mark: str) -> str:
    text = str(value)
    quoted = any(c in text for c in (mark, '"', "\n"))
    return '"' + text.replace('"', '""') + '"' if quoted else text


def _parquet(texts: list[str]) -> list[tuple[str, bytes]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return []
    kept = []
    for column in (texts, [[text, "b"] for text in texts]):
        file = io.BytesIO()
        parquet.write_table(pyarrow.table({"caption": column, "n": range(len(texts))}), file)
        kept.append((".parquet", file.getvalue()))
    return kept


def npz(rng: random.Random) -> bytes:
    """A file of arrays: damaged as a zip, in an array's head, or in the array itself."""
    arrays = dict(rng.choice(_arrays()))
    kind, packed = rng.random(), rng.random() < 0.3
    if kind < 0.3:  # other arrays under these names
        for _ in range(rng.randint(1, 2)):
            arrays[rng.choice([*arrays, "mu", "sigma", "feats", "arr_0"])] = rng.choice(_odd())
    if kind < 0.4:
        return _zipped(arrays, packed)
    if kind < 0.7:
        return damaged(rng, _zipped(arrays, packed))
    name = rng.choice(list(arrays))
    text = arrays[name]
    head = len(text) - len(text.split(b"\n", 1)[1])
    if rng.random() < 0.5:
        arrays[name] = _head(rng) + text[head:]
    else:
        arrays[name] = damaged(rng, text[:head]) + text[head:]
    return _zipped(arrays, packed)


def _head(rng: random.Random) -> bytes:
    """The head of an array of some type and shape, which need not be those of its bytes."""
    descr = rng.choice(
        ["'<f8'", "'<f4'", "'|u1'", "'<c16'", "'|O'", "'<U5'", "'|V8'", "'<M8[s]'", "'|b1'", "'x'",
         "[('a', '<f8')]", "[('a', '|O')]", "('<f8', (2,))", "'<f8,<f8'", "''", "None", "3",
         "'<f2'", "[('mu', '<f8', (10000000,))]", "'|S0'", "'|S1000000000'", "{}"]
    )  # fmt: skip
    number = rng.choice(
        ["0", "1", "3", "-1", "2", "10**9", "4294967296", "9" * 30, "1.5", "True", "x"]
    )
    shape = rng.choice(
        [f"({number},)", f"({number}, 3)", "()", f"{number}", f"(0, {number})", "[3]"]
    )
    order = rng.choice(["False", "True", "1", "None"])
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = rng.choice(
        [text, text, text, "(" * 300, f"{text} #", text.replace("'", '"'), text + "L", "{\n  1"]
    )
    version = rng.choice([b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"])
    body = text.encode().ljust(rng.choice([117, 118])) + b"\n"
    return b"\x93NUMPY" + version + len(body).to_bytes(2 if version[0] == 1 else 4, "little") + body


@functools.cache
def _arrays() -> list[dict[str, bytes]]:
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(20, 4))
    mean, cov = rows.mean(0), np.cov(rows.T)
    images = draw.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    known = [
        {"mu": mean, "sigma": cov},
        {"mu": mean.astype(np.float32), "sigma": cov.astype(np.float32), "feats": rows},
        {"arr_0": images, "mu": mean, "sigma": cov},
        {"arr_0": images},
        {"l": np.linspace(-3, 2, 5), "s": rows, "b": rows},
    ]
    return [{name: _saved(array) for name, array in file.items()} for file in known]


@functools.cache
def _odd() -> list[bytes]:
    """Arrays that are valid, and no statistics."""
    wide = np.full((4, 4), 1e200)
    return [
        *map(_saved, (np.zeros(0), np.zeros((0, 0)), np.array(1.0), np.full(4, np.nan), wide)),
        *map(_saved, (np.full((4, 4), np.inf), np.array([1e-320] * 4), wide.T - wide)),
        *map(_saved, (np.zeros((2, 3)), np.array(["a"]), np.zeros(4, complex), np.zeros(4, bool))),
        *map(_saved, (np.zeros((0, 4, 5, 3), np.uint8), np.zeros((1, 0, 0, 3), np.uint8))),
        *map(_saved, (np.array([None]), np.zeros(2, "M8[s]"))),
        *map(_saved, (np.triu(np.ones((4, 4))), -np.eye(4), np.eye(4, dtype=np.longdouble))),
        b"", b"\x93NUMPY", b"PK\x03\x04",
    ]  # fmt: skip


def _saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _zipped(arrays: dict[str, bytes], packed: bool) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as out:
        for name, content in arrays.items():
            out.writestr(zipfile.ZipInfo(f"{name}.npy"), content)
    return file.getvalue()


INPUTS: dict[str, Callable[[random.Random], Any]] = {
    "study": study,
    "schedule": schedule,
    "captions": captions,
    "npz": npz,
}
