"""The shapes in which published sets of prompts come."""

import csv
import io
import json

import pytest

from stepsampler.support.captions import Caption, LeftOut, read_captions, read_set

FOX, CAT = "a fox", 'a "grey" cat, asleep'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mjhq.json", {"a1": {"category": "art", "prompt": FOX}, "b2": {"prompt": CAT}}),
        ("diffusiondb.json", {"a1": {"prompt": FOX, "se": 1}, "b2": {"prompt": CAT}}),
        ("by_id.json", {"a1": FOX, "b2": CAT}),
    ],
)
def test_the_id_names_the_image(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    assert read_captions(tmp_path / name) == [Caption(FOX, "a1"), Caption(CAT, "b2")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("hps.json", json.dumps([FOX, CAT])),
        ("imagereward.json", json.dumps([{"id": 1, "prompt": FOX}, {"id": 2, "prompt": CAT}])),
        ("lines.json", f'{{"prompt": "{FOX}"}}\n{json.dumps({"prompt": CAT})}\n'),
        ("geneval.jsonl", "\n".join(json.dumps({"tag": "x", "prompt": p}) for p in (FOX, CAT))),
        ("texts.ndjson", f"{json.dumps(FOX)}\r\n\r\n{json.dumps(CAT)}\r\n"),
        ("compbench.txt", f"\ufeff{FOX}\r\n{CAT}\r\n"),
        ("parti.tsv", f"Prompt\tCategory\n{FOX}\tx\n{CAT}\ty\n"),
        ("drawbench.csv", 'Prompts,Category\na fox,x\n"a ""grey"" cat, asleep",y\n'),
        ("laion.csv", 'URL,TEXT\nu,a fox\nv,"a ""grey"" cat, asleep"\n'),
        ("excel.csv", '\ufeffprompt;id\r\na fox;1\r\n"a ""grey"" cat, asleep";2\r\n'),
        ("tabs.csv", 'id\tcaption\n1\ta fox\n2\t"a ""grey"" cat, asleep"\n'),
    ],
)
def test_a_set_is_read_as_it_is_published(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    found = read_set(tmp_path / name)
    assert found.items == [Caption(FOX), Caption(CAT)]
    assert found.said == []


def test_in_tsv_a_quote_is_plain_text(tmp_path):
    rows = ["a fox", '"Hello world', "a dog", '"A B" on a wall', 'a "']
    text = "".join(f"{row}\tu{i}\n" for i, row in enumerate(rows))
    (tmp_path / "q.tsv").write_text(f"caption\turl\n{text}")
    (tmp_path / "cc3m.tsv").write_text(text)
    assert [c.text for c in read_captions(tmp_path / "q.tsv")] == rows
    assert [c.text for c in read_captions(tmp_path / "cc3m.tsv", "0")] == rows
    assert [c.text for c in read_captions(tmp_path / "cc3m.tsv", "1")] == [
        f"u{i}" for i in range(5)
    ]


def test_a_number_is_a_column_of_a_file_with_a_header_too(tmp_path):
    (tmp_path / "h.csv").write_text("id,prompt\n1,a fox\n2,a cat\n")
    assert read_captions(tmp_path / "h.csv", "1") == [Caption("a fox"), Caption("a cat")]
    (tmp_path / "s.csv").write_text("id;prompt\n1;a fox, red\n")
    assert read_captions(tmp_path / "s.csv", "1") == [Caption("a fox, red")]
    (tmp_path / "named.csv").write_text("0,prompt\nx,a fox\n")
    assert read_captions(tmp_path / "named.csv", "0") == [Caption("x")]


def test_what_csv_writes_is_what_is_read(tmp_path):
    """The oracle is the module that writes such files, on texts that are hard for it."""
    texts = ["a\nb", '"', 'x ""y""', "a,b", '"q"', "é\u2028ß", "a;b\tc", "'"]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([("prompt", "id"), *((text, i) for i, text in enumerate(texts))])
    (tmp_path / "w.csv").write_bytes(buffer.getvalue().encode())
    expected = [" ".join(text.split()) for text in texts]
    assert [c.text for c in read_captions(tmp_path / "w.csv")] == expected


def test_an_unclosed_quote_takes_no_other_row_with_it(tmp_path):
    lines = ["prompt,id", "a fox,1", '"Hello world,2', "a dog,3", '"A B" on a wall,4', "a cat,5"]
    lines += ["a, comma,6", "short", "", '"two\nlines",8', '"open to the end,9', "a bear,10"]
    (tmp_path / "q.csv").write_text("\n".join(lines))
    found = read_set(tmp_path / "q.csv")
    assert [c.text for c in found.captions] == ["a fox", "a dog", "a cat", "two lines", "a bear"]
    quote = "a quote that does not enclose a whole cell"
    assert [item for item in found.items if isinstance(item, LeftOut)] == [
        LeftOut("line 3", quote),
        LeftOut("line 5", quote),
        LeftOut("line 7", "3 cells, not 2"),
        LeftOut("line 8", "1 cell, not 2"),
        LeftOut("line 12", quote),
    ]


def test_a_cell_of_a_megabyte_stops_nothing(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "m.csv").write_text(f"prompt\na fox\n{'x' * 1_000_000}\na cat\n")
    found = read_set(tmp_path / "m.csv")
    assert found.captions == [Caption("a fox"), Caption("a cat")]
    assert found.items[1] == LeftOut("line 3", "1,000,000 characters, more than 20,000")
    assert csv.field_size_limit() == limit


def test_an_id_that_comes_twice_hides_no_caption(tmp_path):
    (tmp_path / "m.json").write_text('{"a": {"prompt": "a fox"}, "a": {"prompt": "a cat"}}')
    assert read_captions(tmp_path / "m.json") == [Caption("a fox", "a"), Caption("a cat", "a")]


def test_a_column_among_several_is_said(tmp_path):
    (tmp_path / "two.csv").write_text("caption,Prompt\nx,a fox\n")
    found = read_set(tmp_path / "two.csv")
    assert found.captions == [Caption("a fox")]
    assert found.said == [
        f"{tmp_path / 'two.csv'}: the column Prompt is taken, not caption (--column)"
    ]
    assert read_set(tmp_path / "two.csv", "caption").said == []
    assert read_captions(tmp_path / "two.csv", "CAPTION") == [Caption("x")]


def test_without_a_header_the_first_row_may_be_the_broken_one(tmp_path):
    (tmp_path / "p.tsv").write_text("a stray\ttab\tu0\na fox\tu1\na cat\tu2\n")
    (tmp_path / "p.csv").write_text('"a stray" quote,u0\na fox,u1\n"a\ncat",u2\n')
    for name in ("p.tsv", "p.csv"):
        found = read_set(tmp_path / name, "0")
        assert found.captions == [Caption("a fox"), Caption("a cat")]
        assert isinstance(found.items[0], LeftOut)
        assert len(found.items) == 3
