"""Caption sets as people really have them: every one read, or refused by what it is."""

import gzip
import json
import os
import threading

import pytest

from stepsampler import UserError
from stepsampler.support.captions import Caption, given_prompts, read_set

FOX, CAT = "a fox", 'a "grey" cat, asleep'
BOTH = [FOX, CAT]


def packed(content):
    return gzip.compress(content, mtime=0)  # the same in every process


def dumped(data):
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("prompts.json", dumped({"prompts": BOTH}), None),
        ("objects.json", dumped({"prompts": [{"prompt": FOX}, {"prompt": CAT}]}), None),
        ("columns.json", dumped({"prompt": BOTH, "category": ["x", "y"]}), None),
        ("pandas.json", dumped({"prompt": {"0": FOX, "1": CAT}, "c": {"0": 1, "1": 2}}), None),
        ("list.jsonl", json.dumps([{"prompt": t} for t in BOTH], indent=1).encode(), None),
        ("packed.jsonl.gz", packed(b"\n".join(dumped({"prompt": t}) for t in BOTH)), None),
        ("packed.txt", packed("\n".join(BOTH).encode()), None),
        ("excel.csv", b'sep=;\nprompt;c\na fox;1\n"a ""grey"" cat, asleep";2\n', None),
        ("bars.csv", b'id|prompt\n1|a fox\n2|"a ""grey"" cat, asleep"\n', None),
        ("spaces.csv", b'id, prompt\n1, a fox\n2, "a ""grey"" cat, asleep"\n', None),
        ("ends.csv", b'prompt,c\na fox,1,\n"a ""grey"" cat, asleep",2,\n', None),
        ("marks.csv", b'\xef\xbb\xbf\xef\xbb\xbfprompt\na fox\n"a ""grey"" cat, asleep"\n', None),
        ("bare.csv", b'a fox;u\n"a ""grey"" cat, asleep";v\n', "0"),
        ("tabs.csv", b'u\ta fox\nv\t"a ""grey"" cat, asleep"\n', "1"),
    ],
)
def test_a_set_is_read_however_it_is_written(tmp_path, name, content, column):
    (tmp_path / name).write_bytes(content)
    found = read_set(tmp_path / name, column)
    assert (found.items, found.said) == ([Caption(FOX), Caption(CAT)], [])


def test_of_several_captions_the_first_is_read_and_that_is_said(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [[FOX, "one fox"], [CAT]]
    table = pyarrow.table({"captions": [[" ", FOX], [CAT], []]})
    parquet.write_table(table, tmp_path / "hf.parquet")
    (tmp_path / "blip.json").write_bytes(dumped([{"image": "x", "caption": r} for r in rows]))
    spoken = [{"sentences": [{"raw": text} for text in row]} for row in rows]
    (tmp_path / "karpathy.json").write_bytes(dumped({"images": spoken, "dataset": "coco"}))
    for name, column in (("hf.parquet", None), ("blip.json", None), ("karpathy.json", "sentences")):
        found = read_set(tmp_path / name, column)
        assert found.captions == [Caption(FOX), Caption(CAT)]
        assert any("1 of " in note and "several captions" in note for note in found.said)
    assert len(read_set(tmp_path / "hf.parquet").items) == 3  # the empty list keeps its place


def test_a_list_of_texts_that_are_not_utf_8_costs_its_row_alone(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    raw = pyarrow.array([[b"caf\xe9"], [b"a fox"]], pyarrow.list_(pyarrow.binary()))
    texts = pyarrow.ListArray.from_arrays(
        raw.offsets, pyarrow.StringArray.from_buffers(2, *raw.values.buffers()[1:])
    )
    parquet.write_table(pyarrow.table({"caption": texts}), tmp_path / "x.parquet")
    found = read_set(tmp_path / "x.parquet")
    assert found.captions == [Caption(FOX)]
    assert "row 0 (not valid UTF-8 (byte 0xe9))" in found.said[0]


def test_annotations_without_numbers_of_their_own_are_taken_in_their_order(tmp_path):
    rows = [{"image_id": i, "caption": c} for i, c in ((2, CAT), (1, FOX), (1, "later"))]
    (tmp_path / "results.json").write_bytes(dumped({"annotations": rows}))
    assert read_set(tmp_path / "results.json").items == [Caption(FOX, "1"), Caption(CAT, "2")]


def test_a_list_beside_other_things_is_read_and_that_is_said(tmp_path):
    rows = [{"row_idx": i, "row": {"prompt": text}} for i, text in enumerate(BOTH)]
    served = {"features": [{"name": "prompt"}], "rows": rows, "num_rows_total": 2}
    wrapped = {"version": "1", "data": [{"prompt": text} for text in BOTH]}
    for name, data, key in (("hub.json", served, "rows"), ("w.json", wrapped, "data")):
        (tmp_path / name).write_bytes(dumped(data))
        found = read_set(tmp_path / name)
        assert found.items == [Caption(FOX), Caption(CAT)]
        assert found.said == [f"{tmp_path / name}: its list {key!r} is read"]


def test_a_folder_has_a_text_for_each_image(tmp_path):
    for name, text in {"b/2.txt": CAT, "1.caption": f"{FOX}\n", ".x/3.txt": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "1.png").write_bytes(b"")
    found = read_set(tmp_path)
    assert (found.items, found.said) == ([Caption(FOX, "1.png"), Caption(CAT, "b/2")], [])
    with pytest.raises(UserError, match="text files have no column 'x'"):
        read_set(tmp_path, "x")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_folder_of_images_with_metadata_names_its_images(tmp_path, suffix):
    rows = {"file_name": ["1.png", "d/2.png"], "text": BOTH}
    path = tmp_path / f"metadata.{suffix}"
    if suffix == "csv":
        path.write_text('file_name,text\n1.png,a fox\nd/2.png,"a ""grey"" cat, asleep"\n')
    elif suffix == "jsonl":
        path.write_text(
            "\n".join(
                json.dumps(dict(zip(rows, r, strict=True)))
                for r in zip(*rows.values(), strict=True)
            )
        )
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(rows), path)
    (tmp_path / "1.txt").write_text("of the trainer")
    assert read_set(tmp_path).items == [Caption(FOX, "1.png"), Caption(CAT, "d/2.png")]


def test_a_pipe_loses_nothing(tmp_path):
    os.mkfifo(tmp_path / "prompts")
    texts = [f"prompt number {i}" for i in range(20_000)]
    content = "\n".join(texts).encode()
    writer = threading.Thread(target=lambda: (tmp_path / "prompts").write_bytes(content))
    writer.start()
    found = read_set(tmp_path / "prompts")
    writer.join()
    assert [caption.text for caption in found.items] == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b'["a fox", "a cat"]', r"line 1 is JSON, \[.*such a file is named \.json or"),
        ("p.txt", b'\n[\n "a fox",\n "a cat"\n]', "line 2 is JSON"),
        ("p", b'{"prompt": "a fox"}\n', "line 1 is JSON"),
        ("p.txt", "a fox\na cat\n".encode("utf-16-le"), "is UTF-16; save it as UTF-8"),
        ("p.csv", "prompt\na fox\n".encode("utf-16-be"), "is UTF-16; save it as UTF-8"),
        ("p.txt", "a fox\n".encode("utf-32"), "is UTF-32; save it as UTF-8"),
        ("p.jsonl.gz", packed(b'{"prompt": "a fox"}' * 9)[:-9], "damaged or cut off"),
        ("p.txt", b"\x89PNG\r\n\x1a\n\0\0", "the file is an image"),
        ("p.csv", b"PK\x03\x04rest", "a workbook of Excel: unpack it, or save the sheet as"),
        ("p.jsonl", b"PAR1rest", "is parquet, whose name must end with .parquet"),
        *[
            (f"p.{suffix}", b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "LFS pointer")
            for suffix in ("txt", "json", "jsonl", "csv", "tsv", "parquet")
        ],
        *[
            (f"p.{suffix}", b"\n<!DOCTYPE html>\n<html></html>", "is a web page")
            for suffix in ("txt", "json", "jsonl", "csv", "tsv", "parquet")
        ],
        ("p.parquet", packed(b"PAR1"), "packed by gzip: unpack it"),
    ],
)
def test_what_is_no_caption_set_is_refused_by_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_set(tmp_path / name)


def test_a_folder_without_captions_is_refused(tmp_path):
    (tmp_path / "part-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"metadata\.jsonl, \.csv or \.parquet, or a text"):
        read_set(tmp_path)


def test_a_nul_costs_its_row_alone(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"a f\0x\na fox\n")
    found = read_set(tmp_path / "p.txt")
    assert found.captions == [Caption(FOX)]
    assert "line 1 (a NUL character in it)" in found.said[0]


def test_a_table_under_another_name_is_said(tmp_path):
    (tmp_path / "captions.txt").write_text("image,caption\n1.jpg,a fox\n")  # Flickr8k
    (said,) = read_set(tmp_path / "captions.txt").said
    assert "line 1 looks like the header of a table" in said
    assert "column caption" in said
    (tmp_path / "tags.txt").write_text("text, logo, poster\na fox\n")
    assert read_set(tmp_path / "tags.txt").said == []


@pytest.mark.parametrize(
    "prompt",
    [
        "a fox <lora:ink:0.8>",
        "a (red:1.3) fox",
        "a fox BREAK a cat",
        "a fox, embedding:style",
        "a __colour__ fox",
        "a {red|blue} fox",
        "a fox --ar 16:9 --v 5",
        '--prompt "a fox" --steps 20',
        "a fox --n ugly --w 512",
    ],
)
def test_what_other_tools_obey_in_a_prompt_is_said(tmp_path, prompt, capsys):
    (tmp_path / "p.txt").write_text(f"a cat\n{prompt}\n")
    found = read_set(tmp_path / "p.txt")
    assert found.captions == [Caption("a cat"), Caption(prompt)]
    assert any("1 with syntax of other tools" in note and "line 2" in note for note in found.said)
    assert given_prompts([prompt], None) == ([prompt], False)
    assert "syntax of other tools" in capsys.readouterr().err


@pytest.mark.parametrize(
    "prompt",
    ["a fox (red)", "well-known -- a fox", "at 16:9, [a cat]", "a snake_case_name", "10:30"],
)
def test_plain_prompts_are_not_taken_for_it(tmp_path, prompt):
    (tmp_path / "p.txt").write_text(prompt)
    assert read_set(tmp_path / "p.txt").said == []
