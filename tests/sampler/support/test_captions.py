import json

import pytest

from stepsampler import UserError
from stepsampler.support.captions import Caption, read_captions


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
        ("a.txt", b"\n \n", None, "no caption in it"),
        ("a.txt", b"x\n", "text", "a text file has no column 'text'"),
        ("a.txt", b"\xff\xfe", None, "codec can't decode"),
        ("a.json", b"{", None, "not JSON: Expecting property name"),
        ("a.json", b"[" * 99999, None, "not JSON: .*recursion"),
        ("a.json", b"{}", None, r"expected COCO captions \(annotations\) or a list of objects"),
        ("a.json", b"[1]", None, "expected COCO captions"),
        ("a.json", b"[]", None, "no column prompt, caption, text, TEXT; there are none"),
        ("a.json", b'[{"a": 1}]', None, "no column prompt, caption, text, TEXT; there are a"),
        ("a.json", b'[{"prompt": 3}]', None, "row 0: prompt must be a text that is not empty"),
        ("a.json", b'[{"prompt": "x"}, {}]', None, "row 1: prompt must be a text"),
        (
            "a.json",
            b'{"annotations": [{"id": 1, "bbox": []}]}',
            None,
            "annotation 0 must have image_id, id and caption",
        ),
        (
            "a.json",
            b'{"annotations": [{"id": 1, "image_id": Infinity, "caption": "x"}]}',
            None,
            "annotation 0 must have image_id",
        ),
        ("a.jsonl", b'{"prompt": "x"}\n{', None, r"a\.jsonl: line 2: not JSON: Expecting"),
        ("a.jsonl", b"\n[1]", None, "line 2 must be a JSON object"),
        ("a.jsonl", b'{"prompt": "x"}\n{"a": 1}', None, "row 1: prompt must be a text"),
        ("a.jsonl", b"", None, "there are none"),
        ("a.md", b"x", None, r"a\.md: the suffix must be \.txt or \.json, \.jsonl, \.csv, \.tsv"),
        ("a.csv", b"", None, "there are none"),
        ("a.csv", b"prompt,x\n,1\n", None, "row 0: prompt must be a text"),
        ("a.parquet", b"PAR1 no", None, r"a\.parquet: "),
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
