import json

import pytest

from stepsampler import UserError
from stepsampler.support.captions import Caption, LeftOut, read_captions, read_set


def coco(tmp_path):
    rows = [  # (image, annotation, caption)
        (9, 41, "a dog "),
        (3, 30, "a late cat"),
        (3, 12, "a cat\n"),
        (7, 99, "a bird"),
        (9, 50, "another dog"),
        (3, 31, "a third cat"),
    ]
    annotations = [{"image_id": i, "id": a, "caption": c} for i, a, c in rows]
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps({"info": {}, "images": [], "annotations": annotations}))
    return path


def test_coco_has_one_caption_an_image_that_of_the_lowest_annotation(tmp_path):
    captions = read_captions(coco(tmp_path))
    assert captions == [Caption("a cat", "3"), Caption("a bird", "7"), Caption("a dog", "9")]


def test_a_seed_mixes_and_a_limit_takes_the_first_of_the_mixture(tmp_path):
    every = read_captions(coco(tmp_path))
    mixed = read_captions(coco(tmp_path), shuffle_seed=1)
    assert sorted(mixed) == sorted(every)
    assert mixed == read_captions(coco(tmp_path), shuffle_seed=1)
    assert mixed != every
    assert read_captions(coco(tmp_path), shuffle_seed=1, limit=2) == mixed[:2]


def test_text_files_have_a_prompt_a_line(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa bag\r\n\n a shoe\u2028or two \n".encode())
    assert read_captions(path) == [Caption("a bag"), Caption("a shoe\u2028or two")]


def test_preference_data_gives_its_prompts(tmp_path):
    path = tmp_path / "preference.json"
    rows = [{"human_preference": [0, 1], "prompt": p, "file_path": ["a", "b"]} for p in ("x", "y")]
    path.write_text(json.dumps(rows))
    assert read_captions(path) == [Caption("x"), Caption("y")]


def test_csv_and_parquet_give_a_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"url": ["u", "v"], "TEXT": ['a "red"\nbag', "shoe"], "other": ["o", "p"]}
    (tmp_path / "t.csv").write_text('url,TEXT,other\nu,"a ""red""\nbag",o\nv,shoe,p\n')
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    for suffix in ("csv", "parquet"):
        path = tmp_path / f"t.{suffix}"
        assert read_captions(path) == [Caption('a "red" bag'), Caption("shoe")]
        assert read_captions(path, "other") == [Caption("o"), Caption("p")]
        with pytest.raises(UserError, match="no column 'x'; there are url, TEXT, other"):
            read_captions(path, "x")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.JSON", b'[{"prompt": "a, b"}, {"prompt": "c"}]'),
        ("p.json", b'\xef\xbb\xbf[{"prompt": "a, b"}, {"prompt": "c"}]'),
        ("p.jsonl", b'\xef\xbb\xbf{"prompt": "a, b"}\r\n\n{"x": 1, "prompt": "c"}\n'),
        ("p.tsv", b"id\tprompt\n1\ta, b\n2\tc\n"),
        ("p.TSV", b"prompt\na, b\nc\n"),
        ("p.CSV", b'\xef\xbb\xbfprompt\n"a, b"\nc\n'),
        ("p.TXT", b"a, b\nc\n"),
        ("prompts", b"a, b\nc\n"),
    ],
)
def test_the_suffix_says_how_a_file_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_captions(tmp_path / name) == [Caption("a, b"), Caption("c")]


def test_parquet_without_pyarrow_is_one_sentence(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"x\.parquet: reading parquet needs pyarrow"):
        read_captions(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.txt", b"\n \n", None, "no caption in it$"),
        ("a.txt", b"x\n", "text", "a text file has no column 'text'"),
        ("a.txt", b"\xff\xfex\0", None, "the file is UTF-16; save it as UTF-8"),
        ("a.json", b"{", None, "not JSON: Expecting property name"),
        ("a.json", b"[" * 99999, None, "not JSON: nested too deep"),
        ("a.json", b"{}", None, r"expected COCO captions \(annotations\), a list of texts or"),
        ("a.json", b'{"images": []}', None, "expected COCO captions"),
        ("a.json", b"[1]", None, r"no caption in it; left out: item 0 \(1, not a text\)"),
        ("a.json", b"[]", None, "no caption in it$"),
        ("a.json", b'["x"]', "prompt", "no column 'prompt': its items are no objects"),
        (
            "a.json",
            b'[{"a": 1}]',
            None,
            "no column prompt, caption, text, prompts, captions; there are a",
        ),
        ("a.json", b'[{"prompt": 3}]', None, r"left out: item 0 \(3, not a text\)"),
        (
            "a.json",
            b'{"annotations": [{"id": 1, "bbox": []}]}',
            None,
            r"annotation 0 \(has no image_id, id and caption, as COCO's captions do\)",
        ),
        ("a.jsonl", b"{", None, r"a\.jsonl: no caption in it; left out: line 1 \(not JSON: "),
        ("a.jsonl", b"", None, "no caption in it$"),
        (
            "a.md",
            b"x",
            None,
            r"a\.md: the suffix must be \.txt or \.json, \.jsonl, \.ndjson, \.csv",
        ),
        ("a.csv", b"", None, "there are none"),
        ("a.csv", b"prompt,x\n,1\n", None, r"left out: line 2 \(empty\)"),
        ("a.csv", b"a fox,u\na cat,v\n", None, "there are a fox, u; of a file without a header"),
        ("a.csv", b"a fox,u\n", "2", "no column 2, counted from 0: there are 2"),
        ("a.csv", b"prompt,prompt\nx,y\n", None, "prompt is there 2 times: prompt, prompt"),
        ("a.csv", b"text,TEXT\nx,y\n", "Text", "there 2 times: text, TEXT"),
        ("a.csv", b"x\xff\ny\n", None, "there are x\ufffd; of a file"),
        ("a.jsonl", b'{"\x80": 1}\n{"\\n": 1}\n', None, "there are \ufffd, \ufffd$"),
        ("a.json", b'[{"\\ud800": 1, "\\ud800": 2}]', "\ud800", r"item 0 \(has \ufffd twice\)"),
        ("a.parquet", b"PAR1 no", None, r"a\.parquet: not a whole parquet file"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, name, content, column, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_captions(path, column)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    for suffix in ("txt", "json", "csv", "parquet"):
        with pytest.raises(UserError, match=rf"absent\.{suffix}: No such file"):
            read_captions(tmp_path / f"absent.{suffix}")


def test_a_broken_row_costs_itself_alone(tmp_path):
    rows = [
        b'{"prompt": "a fox"}',
        b'{"prompt": null}',
        b'{"prompt": " \\n"}',
        b'{"prompt": 5}',
        b'{"prompt": ["a cat", 3]}',
        b'{"caption": "a cat"}',
        b'{"prompt": "cut',
        b"[" * 5000,
        b"7",
        b'{"prompt": "\\ud83d"}',
        b'{"prompt": "caf\xe9"}',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "\\u0000\\u200b"}',
        b'{"prompt": "' + b"x " * 500_000 + b'"}',
        b'"a dog"',
        b'{"prompt": "bell \\u0007 and caf\xc3\xa9"}',
    ]
    (tmp_path / "p.jsonl").write_bytes(b"\n".join(rows))
    found = read_set(tmp_path / "p.jsonl")
    assert len(found.items) == len(rows)
    assert found.captions == [Caption("a fox"), Caption("a dog"), Caption("bell \x07 and café")]
    reasons = [item.reason for item in found.items if isinstance(item, LeftOut)]
    expected = ["null", "empty", "5, not a text", "a list, not a text", "no prompt", "not JSON: "]
    expected += ["not JSON: nested too deep", "7, not a text", "half of a surrogate pair (\\ud83d)"]
    expected += ["not valid UTF-8 (byte 0xe9)", "has prompt twice", "nothing to be seen in it"]
    expected += ["1,000,000 characters, more than 20,000"]
    for reason, start in zip(reasons, expected, strict=True):
        assert reason.startswith(start)
    assert found.items[3] == LeftOut("line 4", "5, not a text")
    *_, sentence = found.said
    assert "13 of 16 captions left out: line 2 (null), line 3 (empty), " in sentence
    assert sentence.endswith("line 6 (no prompt), …")


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv"])
def test_a_row_that_is_not_utf_8_is_left_out(tmp_path, suffix):
    path = tmp_path / f"p.{suffix}"
    path.write_bytes(b"prompt\na fox\ncaf\xe9\na dog\n")
    found = read_set(path)
    assert [c.text for c in found.captions][-2:] == ["a fox", "a dog"]
    assert LeftOut("line 3", "not valid UTF-8 (byte 0xe9)") in found.items


def test_parquet_gives_its_rows_whatever_is_in_the_others(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = pyarrow.array([b"a fox", None, b"caf\xe9", b"", b"a cat"], pyarrow.binary())
    parquet.write_table(
        pyarrow.table({"TEXT": texts.view(pyarrow.string())}), tmp_path / "s.parquet"
    )
    parquet.write_table(pyarrow.table({"Caption": texts}), tmp_path / "b.parquet")
    known = texts.filter(pyarrow.array([True, False, False, False, True])).cast(pyarrow.string())
    table = pyarrow.table({"prompt": known.dictionary_encode()})
    parquet.write_table(table, tmp_path / "d.parquet")
    for name in ("s", "b", "d"):
        found = read_set(tmp_path / f"{name}.parquet")
        assert found.captions == [Caption("a fox"), Caption("a cat")]
    assert read_captions(tmp_path / "s.parquet", "0") == [Caption("a fox"), Caption("a cat")]
    assert read_set(tmp_path / "s.parquet").items[1:4] == [
        LeftOut("row 1", "null"),
        LeftOut("row 2", "not valid UTF-8 (byte 0xe9)"),
        LeftOut("row 3", "empty"),
    ]


def test_parquet_whose_pages_are_damaged_is_refused_in_one_sentence(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a fox", "a cat"]}), path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 20 + content[24:])
    with pytest.raises(UserError, match="not a whole parquet file") as caught:
        read_captions(path)
    assert "\n" not in str(caught.value)


def test_an_image_of_coco_shows_its_first_caption_that_is_one(tmp_path):
    rows = [
        {"image_id": 1, "id": 1, "caption": ""},
        {"image_id": 1, "id": 2, "caption": "a fox"},
        {"image_id": "7", "id": 4, "caption": None},
        {"image_id": 2, "id": 3, "caption": "a cat"},
        {"image_id": 2, "id": 9, "caption": ""},  # nobody would have taken it
        {"image_id": 1.5, "id": 5, "caption": "x"},
        {"image_id": "e1", "id": 6, "caption": "a dog"},
        [],
    ]
    (tmp_path / "c.json").write_text(json.dumps({"annotations": rows}))
    found = read_set(tmp_path / "c.json")
    assert found.items == [
        Caption("a fox", "1"),
        Caption("a cat", "2"),
        LeftOut("annotation 2", "null"),
        Caption("a dog", "e1"),
        LeftOut("annotation 5", "has no image_id, id and caption, as COCO's captions do"),
        LeftOut("annotation 7", "has no image_id, id and caption, as COCO's captions do"),
    ]
    (note,) = found.notes
    assert note == "1 annotation left out, whose images have others: annotation 0 (empty)"


def test_places_are_those_of_the_file_before_it_is_mixed(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(["a", None, "b", "c"]))
    whole, mixed = (read_set(tmp_path / "p.json", shuffle_seed=seed) for seed in (None, 3))
    assert mixed.items != whole.items
    assert sorted(mixed.items) == sorted(whole.items)
    assert read_set(tmp_path / "p.json", limit=2).items == [Caption("a"), LeftOut("item 1", "null")]


def test_prompts_of_a_study_say_what_they_left_out(tmp_path, capsys):
    from stepsearch.metrics.alignment import load_prompts

    (tmp_path / "p.json").write_text(json.dumps(["a", None, "b"]))
    assert [prompt.text for prompt in load_prompts(str(tmp_path / "p.json"))] == ["a", "b"]
    assert "1 of 3 captions left out: item 1 (null)" in capsys.readouterr().err
