"""The check of a GPU, tried where there is none: dry, in parts, and with a card that is made up."""

import json
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    from stepsearch.config import code

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(code, "_allowed", False)


@pytest.mark.parametrize(
    ("name", "counts"),
    [  # as published
        ("sd15", {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
        (
            "sdxl",
            {
                "unet": 2_567_463_684,
                "vae": 83_653_863,
                "text_encoder": 123_060_480,
                "text_encoder_2": 694_659_840,
            },
        ),
    ],
)
def test_the_shapes_are_those_of_the_models(name, counts):
    from gpu import shapes

    with torch.device("meta"):
        parts = shapes.parts(name)
    assert {k: sum(p.numel() for p in part.parameters()) for k, part in parts.items()} == counts


def test_a_whole_pipeline_is_made_on_its_device_in_its_dtype(monkeypatch):
    from gpu import shapes

    from stepsampler.models import from_pipeline

    small = {"block_out_channels": (32, 32), "layers_per_block": 1, "sample_size": 4}
    unet = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    vae = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    vae |= {"up_block_types": ("UpDecoderBlock2D",) * 2}
    for name, width in (("sd15", 24), ("sdxl", 24 + 40)):
        given = {k: v for k, v in shapes.UNETS[name].items() if "block" not in k}
        given |= {**small, **unet, "cross_attention_dim": width, "attention_head_dim": 8}
        monkeypatch.setitem(shapes.UNETS, name, given)
    del small["sample_size"]
    monkeypatch.setattr(shapes, "VAE", small | vae)
    monkeypatch.setattr(shapes, "CLIPS", {"l": (24, 32, 1, 2), "g": (40, 32, 1, 2)})
    for name, width in (("sd15", 24), ("sdxl", 24 + 40)):
        made, again = (shapes.pipeline(name, CPU, torch.bfloat16) for _ in range(2))
        model = from_pipeline(made)
        weights = {(p.dtype, p.device) for part in model.networks for p in part.parameters()}
        assert weights == {(torch.bfloat16, CPU)}
        assert torch.equal(made.unet.conv_in.weight, again.unet.conv_in.weight)
        condition = model.encode(["a bag"])
        assert condition["encoder_hidden_states"].shape == (1, 77, width)
        x = torch.zeros(1, *model.shape)
        assert model.network(x, 500.0, condition).isfinite().all()
    assert torch.get_default_dtype() == torch.float32


def check(capsys, *options):
    from gpu.__main__ import main

    code = main([*options])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_dry_run_has_a_line_for_each_row(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    options = ["--dry", "--only", "unguided,oom,loop-sdxl,memory-sd15", "--json", str(file)]
    code, said, _ = check(capsys, *options)
    assert code == 0, said
    found = json.loads(file.read_text())
    assert found["dry"] is True
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["unguided", "oom", "loop-sdxl", "memory-sd15"]
    assert [row["verdict"] for row in rows.values()] == ["ran", "PASS", "ran", "ran"]
    assert rows["oom"]["measured"] == "16 became 2; halved 3 times, then 0 times"
    assert all(row["value"] > 0 for row in rows.values())
    assert "conclude nothing" in said
    assert f"torch {torch.__version__}" in said


def test_without_a_card_it_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check(capsys) == (
        2,
        "",
        "gpu_check: torch finds no CUDA device here; --dry runs the same code on the CPU\n",
    )
    code, _, said = check(capsys, "--dry", "--only", "unguided,nothing")
    assert (code, said.count("\n")) == (2, 1)
    assert "no row 'nothing'" in said
    for options in (["--dry"], ["--only", "same"]):
        code, _, said = check(capsys, "--write-table", *options)
        assert (code, said.count("\n")) == (2, 1)


def test_the_script_needs_nothing_but_its_libraries():
    command = [str(ROOT / "scripts" / "gpu_check"), "--list"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("same ")
    assert done.stdout.count("wanted") == len(done.stdout.splitlines())


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Rows of the test's own."""
    from gpu import table
    from gpu.bench import Bench

    def run(dry=True, total=table.TOTAL, **given):
        monkeypatch.setattr(table, "ROWS", given)
        monkeypatch.setattr(table, "TOTAL", total)
        told = []
        return table.run_rows(Bench(CPU, tmp_path, dry), [*given], told.append), told

    return run


def test_all_rows_are_within_eight_minutes():
    from gpu import table

    assert sum(row.seconds for row in table.ROWS.values()) <= table.TOTAL == 480


def test_a_row_that_fails_costs_itself_alone(rows):
    from gpu.bench import Found, SkippedError
    from gpu.table import Row

    def fails(bench):
        raise RuntimeError("CUDA error: an\nillegal access")

    def lacks(bench):
        raise SkippedError("one card only")

    def hangs(bench):
        time.sleep(60)

    def works(bench):
        return Found("1.5", True, 1.5)

    def misses(bench):
        return Found("0.5", False, 0.5)

    given = {"a": fails, "b": lacks, "c": hangs, "d": works, "e": misses}
    made = {name: Row(name, "> 1", 1.0, run) for name, run in given.items()}
    results, told = rows(dry=False, **made)
    assert results == told
    verdicts = [result.verdict for result in results]
    assert verdicts == ["failed", "skip", "failed", "PASS", "MISS"]
    assert results[0].measured.startswith("RuntimeError in test_gpu_check.py:")
    assert results[0].measured.endswith("CUDA error: an illegal access")
    assert results[1].measured == "one card only"
    assert results[2].measured == "took more than its 1 s"
    assert results[2].seconds < 30


def test_what_no_time_is_left_for_is_skipped(rows):
    from gpu.bench import Found
    from gpu.table import Row

    made = Row("a", "", 50.0, lambda bench: Found("", True))
    (result,), _ = rows(total=10.0, a=made)
    assert (result.verdict, result.measured) == ("skip", "only 10 s of 10 s are left")


class Card:
    """What torch.cuda is asked for, on a card of 80 GiB that does not exist."""

    def __init__(self, monkeypatch):
        self.log, self.most = [], 7 * 2**30
        properties = SimpleNamespace(name="NVIDIA Test", total_memory=80 * 2**30)
        for name, found in {
            "synchronize": lambda device: self.log.append(("synchronize", device)),
            "empty_cache": lambda: self.log.append(("empty_cache",)),
            "reset_peak_memory_stats": lambda device: self.log.append(("reset", device)),
            "max_memory_allocated": lambda device: self.most,
            "memory_allocated": lambda device: 3 * 2**30,
            "get_device_properties": lambda device: properties,
            "set_per_process_memory_fraction": lambda share, device: self.log.append((share,)),
        }.items():
            monkeypatch.setattr(torch.cuda, name, found)


@pytest.fixture
def card_(monkeypatch):
    return Card(monkeypatch)


def test_a_card_is_waited_for_before_and_after(card_):
    from gpu import card

    card.seconds(lambda: card_.log.append("run"), CUDA)
    assert card_.log == [("synchronize", CUDA), "run", ("synchronize", CUDA)]
    card_.log.clear()
    assert card.seconds(lambda: time.sleep(0.01), CPU) >= 0.01
    assert card_.log == []


def test_the_peak_is_that_of_the_call(card_):
    from gpu import card

    assert card.peak(lambda: card_.log.append("run"), CUDA) == 7 * 2**30
    assert card_.log == [("empty_cache",), ("reset", CUDA), "run"]
    size = 2**28
    grown = card.peak(lambda: torch.ones(size), CPU) - card.peak(lambda: None, CPU)
    assert 3.5 * size < grown < 8 * size


def test_memory_is_given_back_whatever_happens(card_):
    from gpu import card

    with pytest.raises(ZeroDivisionError), card.memory_of(20 * 2**30, CUDA):
        raise ZeroDivisionError
    assert card_.log == [("empty_cache",), (0.25,), (1.0,)]
    card_.log.clear()
    with card.memory_of(200 * 2**30, CUDA):
        pass
    assert card_.log[1:] == [(1.0,), (1.0,)]


def test_memory_for_two_images_is_measured_on_the_card(card_, tmp_path):
    from gpu.bench import Bench
    from gpu.trust import tight

    bench = Bench(CUDA, tmp_path)
    with tight(bench, SimpleNamespace(), lambda: card_.log.append("two")):
        pass
    # 3 GiB were there before, 4 more with two images: those twice, and a quarter
    assert {"two", ((3 + 2 * 4 + 0.25) / 80,)} <= {*card_.log}
    assert card_.log[-1] == (1.0,)


def test_float32_is_exact_and_then_as_it_was(monkeypatch):
    from gpu import card

    flags = torch.backends.cudnn.allow_tf32
    for device, inside in ((CUDA, False), (CPU, flags)):
        with card.exact(device):
            assert torch.backends.cudnn.allow_tf32 is inside
        assert torch.backends.cudnn.allow_tf32 is flags


def test_the_page_has_what_was_measured_or_says_that_nothing_was(card_, tmp_path):
    from gpu.bench import Bench
    from gpu.table import NONE, PAGE, Result, as_data, page_of

    kept = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert kept == page_of(None) or kept.startswith(f"{PAGE}Measured on ")
    result = Result("a", "a row", "1|2", ">= 1", "PASS", 1.5, 3.0)
    page = page_of(as_data(Bench(CUDA, tmp_path), [result]))
    assert NONE not in page
    assert "NVIDIA Test, 80 GiB; python 3." in page
    assert f"torch {torch.__version__}" in page
    assert page.endswith("| a row | 1/2 | >= 1 | PASS |\n")
