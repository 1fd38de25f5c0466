"""The benchmark of the rivals passes through all of its parts; its numbers mean nothing here."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stepsampler.errors import UserError
from stepsampler.noise import NoiseSchedule
from stepsearch.engine.run import STAGES
from stepsearch.engine.workers import InThisProcess
from stepsearch.space.box import SearchSpace

ROOT = Path(__file__).parents[2]
TINY = shlex.split(
    "--steps 2 --searching 2 --rivals dmn --scales 2 --rungs 8 10 --trials 2 --images 12 "
    "--rival-images 100 --times 1 --finalists 1 --selection 8 --teacher-steps 3 --long 3 5 "
    "--long-images 16 --test 1 --ladder 8 --also lite0 --images-test 16 --batch 16 --processes 1"
)


@pytest.fixture
def bench(monkeypatch, tmp_path, capsys):
    """The script in this process: starting workers would take longer than what they do here."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    import bench_peers

    def alone(self, config):
        return InThisProcess(config, self.folder(config))

    monkeypatch.setattr(bench_peers.Bench, "workers", alone)

    def call(*options):
        where = ["--run", str(tmp_path / "run"), "--docs", str(tmp_path / "docs")]
        bench_peers.main([*TINY, *where, *options])
        return capsys.readouterr().out

    return call


@pytest.mark.timeout(900)
def test_every_part_is_run_written_and_recalled(bench, tmp_path):
    assert "stopped at 0 hours; run again to go on" in bench("--hours", "0")
    assert not (tmp_path / "docs").exists()

    said = bench()
    assert "passes, about" in said
    assert "benchmarks.md" in said
    found = json.loads((tmp_path / "docs/benchmarks.json").read_text())
    (rows,) = found["steps"]
    names = [row["name"] for row in rows["contenders"]]  # a search may end with a baseline
    assert names[0].startswith("ours")
    assert names[1].startswith("ours, searched with lite0")
    kinds = [row["kind"] for row in rows["contenders"]]
    assert kinds[-4:] == ["search", "search", "long", "long"]
    ours, oys, usf = rows["contenders"][0], *rows["contenders"][-4:-2]
    assert oys["name"].startswith("OYS-like")
    assert usf["name"].startswith("USF-like")
    short = [row for row in rows["contenders"] if row["kind"] != "long"]
    assert {row["passes"] for row in short} <= {2, 3, 4}
    assert rows["n"] == 16
    assert rows["seeds"][0] == 60_000_000
    metrics = [m["name"] for m in rows["metrics"]]
    assert metrics == ["fd_texture128", "fd_lite0128"]
    assert len(rows["differences"]) >= 2 * (len(names) - 1)
    assert "schedule" not in rows["screening"]["texture"][0]
    assert list(rows["screening"]) == ["texture", "lite0"]  # whoever sees one is screened by it
    for screened in rows["screening"].values():
        places = {row["placement"] for row in screened}
        assert {"dmn", "karras", "ays-sd15", "preset gits-comfyui-1.20-2"} <= places
        selected = [row for row in screened if row["fd_infinity_selection"] is not None]
        assert len(selected) >= 2
        assert {row["guided"] for row in screened} == {True, False}
        assert screened[0]["name"] in names
    by_name = {row["name"]: row for row in rows["contenders"]}
    spent = ours["search_passes"]
    assert tuple(ours["stages"]) == STAGES
    a_trial = 100 * 4
    assert spent - a_trial < oys["stages"]["trials"] <= spent
    images = sum(row["passes"] for row in rows["contenders"]) * rows["n"]
    paid = images + sum(by_name[name]["search_passes"] for name in names)
    assert paid <= int(said.split(" passes, about")[0].split()[-1].replace(",", ""))
    assert {row["steps"] for row in rows["contenders"] if row["kind"] == "long"} == {3, 5}
    for metric, found in rows["targets"].items():
        assert list(found) == ["texture", "lite0"]  # what our searches saw
        target = found["texture"]
        assert found["lite0"]["rival"] == target["rival"]
        assert target["teacher"].startswith("DPM++(2M), 5 steps")
        best, teacher = (by_name[target[key]]["scores"][metric] for key in ("rival", "teacher"))
        assert target["gap"][0] == pytest.approx(best["value"] - teacher["value"])
        floor = by_name[target["teacher"]]["scores"]["alignment"]["value"] - 0.01
        if target["aligned"]:
            assert by_name[target["aligned"]]["scores"]["alignment"]["value"] >= floor
        races = {(race["ours"], race["rival"]) for race in rows["races"][metric]}
        assert {(names[0], oys["name"]), (names[0], usf["name"])} <= races
    assert (tmp_path / "docs/benchmarks.png").stat().st_size > 1000
    table = (tmp_path / "docs/benchmarks.md").read_text()
    assert f"| {names[0]} | " in table
    assert "AYS (SD1.5 values)" in table
    assert "Gaps to the teacher" in table
    assert "Ours: gp-local, 2 trials. Tests in float32." in table
    assert str(tmp_path) not in (tmp_path / "docs/benchmarks.json").read_text()

    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}
    bench()
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")} == files

    searches = list((tmp_path / "run").glob("ours-2-*"))  # one for each extractor
    assert len(searches) == 2
    for folder in searches:  # a finished run
        assert {"result.json", "best.json"} <= {path.name for path in folder.iterdir()}

    tested = tmp_path / "run/test"
    before = len(list(tested.glob("*.safetensors")))
    shutil.rmtree(tested)
    bench()  # as on another machine: the long rows' scores come from the table
    assert 0 < len(list(tested.glob("*.safetensors"))) < before
    (again,) = json.loads((tmp_path / "docs/benchmarks.json").read_text())["steps"]
    assert again["contenders"] == rows["contenders"]
    assert again["differences"] == rows["differences"]

    bench("--add", "--times", "2", "--also", "texture+lite0")
    (fewer,) = json.loads((tmp_path / "docs/benchmarks.json").read_text())["steps"]
    oys = fewer["contenders"][-4]
    assert [row["kind"] for row in fewer["contenders"]].count("search") == 2
    assert spent < oys["stages"]["trials"] <= 2 * spent
    joint = fewer["contenders"][1]
    assert joint["name"].startswith("ours, searched with texture+lite0")
    assert fewer["settings"]["times"] == "2.0"
    assert fewer["settings"]["also"] == "['lite0', 'texture+lite0']"
    assert list(fewer["screening"]) == ["texture", "lite0", "texture+lite0"]
    assert "schedule" not in fewer["screening"]["texture+lite0"][0]
    assert list(next(iter(fewer["targets"].values()))) == ["texture", "texture+lite0", "lite0"]
    others = [row for row in rows["contenders"] if row["kind"] != "search"]
    assert [row for row in fewer["contenders"] if row in others] == others
    for refused in (["--trials", "3"], ["--steps", "3"]):
        with pytest.raises(SystemExit) as ended:
            bench("--add", *refused)
        assert ended.value.code == 1

    bench("--transfer", "--second", "tiny", "--long", "3")
    (moved,) = json.loads((tmp_path / "docs/benchmarks-transfer.json").read_text())["steps"]
    first, prompts, weights = moved["tests"].values()
    for test in (first, weights):  # the same weights here
        assert test["contenders"][0]["scores"] == ours["scores"]
    assert prompts["contenders"][0]["scores"] != first["contenders"][0]["scores"]
    assert [r["steps"] for r in prompts["contenders"] if r["kind"] == "long"] == [3]
    assert {row["test"] for row in moved["losses"]} == set(moved["tests"])
    assert (tmp_path / "docs/benchmarks-transfer.png").stat().st_size > 1000


def test_rows_of_the_same_test_are_recalled(monkeypatch, tmp_path):
    """Those of many steps by any call, all of them by a transfer; of another test none."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    from peers.output import tested_rows

    now = {"n": 5000, "seeds": [0, 4999], "metrics": ["fd"]}
    rows = [{"identity": "a", "kind": "ours"}, {"identity": "b", "kind": "long"}]
    path = tmp_path / "benchmarks.json"
    assert tested_rows(path, now, ()) == {}
    path.write_text(json.dumps({"steps": [{**now, "contenders": rows}]}))
    assert list(tested_rows(path, now, ("long",))) == ["b"]
    assert list(tested_rows(path, now, ())) == ["a", "b"]
    assert tested_rows(path, {**now, "n": 500}, ()) == {}


def test_other_settings_recall_nothing(monkeypatch, tmp_path):
    """A search of two trials is not what one of three came to; nor are other weights or prompts."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    from bench_peers import Bench

    from peers.studies import ours

    args = SimpleNamespace(model="tiny", device="cpu", dtype="float32", batch=10, held_out=False)
    args.run, args.hours, args.trials, args.finalists, args.selection = tmp_path, 1, 2, 2, 10
    args.images, args.rivals, args.rungs, args.scales = 20, ["dmn"], [10, 20], [2.0]
    args.compile, args.extractors = False, ["texture", "lite0"]
    args.teacher_steps, args.ladder, folders = 5, [], set()
    changes = [{}, {"trials": 3}, {"images": 30}, {"dtype": "bfloat16"}, {"held_out": True}]
    for change in changes:
        some = SimpleNamespace(**{**vars(args), **change})
        folders.add(Bench(some).folder(ours(some, 5)))
    bench = Bench(args)
    assert bench.folder(ours(args, 5)) in folders
    bench.digest = "other weights"
    folders.add(bench.folder(ours(args, 5)))
    assert len(folders) == len(changes) + 1


def test_numbers_of_steps_may_come_of_several_runs(monkeypatch, tmp_path):
    """With another search, or on a machine that is faster in another dtype; not of other tests."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    from peers.output import earlier, replace_steps

    own = {
        "algorithm": "gp",
        "trials": "300",
        "seeds": "1",
        "also": "[]",
        "test": "4",
        "compile": "True",
        "times": "3.0",
    }
    first = {"model": "tiny", "images_test": "5000", "dtype": "bfloat16", "steps": "[3]", **own}
    later = first | {"algorithm": "gp-local", "dtype": "float32", "steps": "[8]", "run": "there"}
    path = tmp_path / "benchmarks.json"
    found = earlier(path, first)
    replace_steps(found, {"steps": 3})
    path.write_text(json.dumps(found))
    found = earlier(path, later)
    replace_steps(found, {"steps": 8})
    how = [r["settings"] for r in found["steps"]]
    kept = [(known["algorithm"], known["dtype"]) for known in how]
    assert kept == [("gp", "bfloat16"), ("gp-local", "float32")]
    assert "run" not in found["settings"]
    with pytest.raises(UserError, match="--images-test 5000, not 500, and would be lost"):
        earlier(path, later | {"images_test": "500"})


def test_shares_of_a_gap_are_by_the_jackknife(monkeypatch):
    """Of means, whose errors have a closed form."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    from peers.targets import closed, losses, targets

    def row(name, kind, values, steps=5, alignment=0.96):
        values = np.array(values, float)
        score = {"value": values.mean(), "conservative": False}
        score["left_out"] = [np.delete(values, i).mean() for i in range(len(values))]
        scores = {"fd": score, "alignment": {"value": alignment}}
        return {"name": name, "kind": kind, "steps": steps, "scores": scores}

    ours = row("ours", "ours", [5, 6, 7, 6])
    rival = row("rival", "placement", [9, 10, 11, 10])
    worse = row("worse", "search", [12, 12, 12, 12])
    long = [row("20", "long", [4, 5, 4, 3], 20), row("100", "long", [2, 2, 2, 2], 100)]
    share = closed(ours, rival, long[1], "fd")
    assert share.value == pytest.approx(0.5)
    found = targets([ours, rival, worse, *long], ours, "fd")
    assert (found["rival"], found["teacher"], found["shorter"]) == ("rival", "100", "20")
    assert found["gap"] == pytest.approx([8, np.std([9, 10, 11, 10], ddof=1) / 2])
    assert found["minus_rival"] == pytest.approx([-4, 0])
    assert found["applies"]
    assert found["met"]
    assert (found["aligned"], found["minus_aligned"]) == (found["rival"], found["minus_rival"])
    close = row("close", "placement", [2.1, 1.9, 2.3, 1.8], alignment=0.9)
    assert targets([ours, rival, *long], ours, "fd", screened=False)["met"] is None
    missed = targets([ours, close, *long], ours, "fd")
    assert not missed["applies"]
    assert not missed["met"]
    assert missed["aligned"] is None
    mixed = targets([ours, close, rival, *long], ours, "fd")
    assert (mixed["rival"], mixed["aligned"]) == ("close", "rival")
    places = {"first": [ours, rival, *long], "elsewhere": [ours, close, *long]}
    first, elsewhere = losses({place: {"contenders": rows} for place, rows in places.items()})
    assert (first["closed"][0], first["kept"]) == (pytest.approx(0.5), 1)
    assert elsewhere["closed"] is None, "there is no gap of which a share would say anything"
    assert elsewhere["kept"] == pytest.approx((6 - 2.025) / -4)


def test_the_ablation_adds_axis_after_axis_at_one_budget(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    from peers.studies import ablation

    args = SimpleNamespace(
        trials=9, finalists=2, selection=10, images=20, dtype="bfloat16", batch=10, rivals=["dmn"]
    )
    args.compile, args.extractors = False, ["texture", "lite0"]
    args.rungs, args.scales, args.teacher_steps, args.model = [10, 20], [2.0], 5, "tiny"
    args.ladder, args.axes = [10], []
    rows = ablation(args, 5)
    assert next(iter(rows)) == "placement"
    assert list(rows)[-1] == "+ iterated guidance"
    noise = NoiseSchedule.scaled_linear()
    boxes = [
        SearchSpace(c.space, noise, noise.spec("sd", "epsilon"), "power") for c in rows.values()
    ]
    axes = [set(box.distributions) for box in boxes]
    sizes = [len(names) for names in axes]
    assert sizes == sorted(set(sizes))
    centre = {name: (d.low + d.high) / 2 for name, d in boxes[0].distributions.items()}
    assert boxes[0].schedule(centre).final_sigma == pytest.approx(0.0292, abs=1e-3)
    low = {name: d.low for name, d in boxes[0].distributions.items()}
    assert boxes[0].schedule(low).final_sigma == 0
    assert {c.space.passes for c in rows.values()} == {10}
    assert len({c.search.model_dump_json() for c in rows.values()}) == 1
    assert len({c.name for c in rows.values()}) == len(rows) == 10
    only = {k: set(b) - set(a) for k, a, b in zip(list(rows)[1:], axes, axes[1:], strict=False)}
    assert only["+ more steps, of which fewer are guided"] == {"num_steps"}
    assert only["+ gain"] == {"gain"}
    args.axes = ["+ gain", "+ fresh noise per step"]
    alone = ablation(args, 5)
    assert list(alone) == ["+ more steps, of which fewer are guided", *args.axes]
    ours, *more = (c.space for c in alone.values())
    assert ours == rows["+ more steps, of which fewer are guided"].space
    assert [c.gain for c in more] == [(0.9, 1.2), None]
    assert [c.fresh_noise for c in more] == ["constant", "per-step"]
    assert {c.name for c in alone.values()} < {c.name for c in rows.values()}
