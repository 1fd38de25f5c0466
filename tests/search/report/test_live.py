"""How far a run is: as data, as a view, as lines; in a terminal, and from anywhere."""

import json
import os
import pty
import select
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from reporting import begun, command, session_of, small, toy_run

from stepsampler import UserError, load
from stepsearch.engine.claim import SETTINGS, STUDY
from stepsearch.engine.ladder import passes_spent
from stepsearch.engine.stages.costs import costs
from stepsearch.engine.stages.stage import RANKING, Stage, note_stage, noted_stage
from stepsearch.engine.store.locks import only_run, this_process
from stepsearch.engine.store.presence import WORKER
from stepsearch.engine.study import distance_of, finished, open_study, read_study
from stepsearch.metrics.distance import Score
from stepsearch.report.cards import fill
from stepsearch.report.live import watch
from stepsearch.report.live.snapshot import snapshot
from stepsearch.report.live.view import chart, line, sparkline
from stepsearch.report.plain import of_source
from stepsearch.report.sources import of_run, seconds_of_a_pass

STUDY_FILE = Path(__file__).parents[3] / "studies" / "tiny-3-steps.toml"
PATIENCE = 240.0  # seconds, against hanging alone


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    toy_run(folder)
    return folder


@pytest.fixture
def half(finished_run, tmp_path):
    """The same before its end, and its study."""
    for name in ("journal.log", "plan.json", STUDY):
        (tmp_path / name).write_bytes((finished_run / name).read_bytes())
    return tmp_path, open_study(tmp_path, small())


def noted(study, name, done, total, seconds=10.0, process=None):
    note_stage(study, Stage(name, done, total, seconds, 2, tuple(process or this_process())))


def test_the_best_and_the_best_known_one_differ_by_their_paired_error(half, tmp_path):
    folder, made = half
    study = open_study(tmp_path / "other", small())
    ranked = sorted(finished(made), key=distance_of)
    for rank, trial in enumerate(ranked):
        attrs = trial.user_attrs | {"origin": f"power, w {rank}" if rank % 3 else "near power, w 9"}
        attrs = attrs if rank else {k: v for k, v in attrs.items() if k != "origin"}
        study.add_trial(optuna.create_trial(value=distance_of(trial), user_attrs=attrs))
    data = snapshot(folder, small(), study, costs(small()))
    best = min(finished(study), key=distance_of)
    first = sorted(finished(study), key=distance_of)[1]
    scores = [Score(distance_of(t), t.user_attrs["left_out"]) for t in (first, best)]
    assert data["best"]["trial"] == best.number
    assert data["baseline"]["name"] == first.user_attrs["origin"]
    less, se = scores[0].value - scores[1].value, data["gain_se"]
    assert data["gain"] == pytest.approx(less)
    pairs = [b - a for a, b in zip(*(s.left_out for s in scores), strict=True)]
    mean = sum(pairs) / len(pairs)  # the jackknife, by hand
    by_hand = ((len(pairs) - 1) / len(pairs) * sum((p - mean) ** 2 for p in pairs)) ** 0.5
    assert se == pytest.approx(by_hand)
    assert [n for n, _ in data["history"]] == sorted(n for n, _ in data["history"])


def test_passes_and_time_are_those_of_the_stage_and_of_the_trials(half):
    folder, study = half
    config, most = small(), costs(small())
    spent = passes_spent(study.get_trials(), config.evaluation)
    behind = sum(most.passes[name] for name in ("rivals", "baselines", "teacher"))
    noted(study, "selection", 1, 4)
    with only_run(folder):
        data = snapshot(folder, config, study, most)
    after = most.passes["selection"]
    assert data["state"] == "under way"
    assert data["passes"]["used"] == pytest.approx(behind + spent + after / 4, abs=1)
    left = 0.75 * after + most.passes["test"]
    assert data["passes"]["left"] == pytest.approx(left, abs=1)
    assert data["seconds_left"] == pytest.approx(data["seconds_per_pass"] * left / 2, rel=1e-3)
    assert data["passes"]["used"] + data["passes"]["left"] <= data["passes"]["at_most"]


def test_time_left_never_rises_while_finalists_are_ranked_and_polished(half):
    """The selection recalls what the ranking has measured, and is the shorter by it."""
    folder, study = half
    polished = small().search.model_copy(update={"polish": 2})
    config = small().model_copy(update={"search": polished})
    most = costs(config)
    left = []
    with only_run(folder):
        for name in (RANKING, "polish", "selection", "test"):
            for done in (0, 50, 100):
                noted(study, name, done, 100)
                data = snapshot(folder, config, study, most)
                left.append(data["passes"]["left"])
    ranked = polished.finalists + polished.polish  # as many baselines beside them
    images = ranked * config.evaluation.selection_images
    ranking = images * config.space.passes
    assert left[0] == sum(most.passes[name] for name in ("polish", "selection", "test"))
    assert left[0] - left[2] == ranking
    assert left[3] - left[5] == most.passes["polish"] > 0
    assert left[6] - left[8] == most.passes["selection"] - ranking > 0
    assert [left[2], left[5], left[8]] == [left[3], left[6], left[9]]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0


def test_an_image_takes_the_passes_that_a_trial_was_spared():
    attrs = {"seconds": 12.0, "images": 100, "passes": 6}
    spared, old = (
        optuna.create_trial(value=1.0, user_attrs=known)
        for known in (attrs | {"saved": 200}, attrs)
    )
    assert seconds_of_a_pass([spared]) == pytest.approx(12 / 400)  # 100 images, four calls each
    assert seconds_of_a_pass([spared], spared=True) == pytest.approx(12 / 600)
    assert seconds_of_a_pass([old]) == pytest.approx(12 / 600)
    unmeasured = optuna.create_trial(value=1.0, user_attrs={"seconds": 1.0})
    assert seconds_of_a_pass([unmeasured]) is None


def test_before_the_first_trial_time_is_that_of_the_stage(tmp_path):
    begun(tmp_path)
    config = small()
    study, most = open_study(tmp_path, config), costs(config)
    noted(study, "baselines, 60 images", 1, 2, seconds=3.0)
    data = snapshot(tmp_path, config, study, most)
    assert data["seconds_per_pass"] == pytest.approx(2 * 3.0 / (most.rungs[60] / 2))
    assert data["state"] == "not running"  # nobody has its lock
    assert data["seconds_left"] is None


def test_who_does_not_see_a_process_does_not_say_that_it_ended(tmp_path):
    begun(tmp_path)
    study = open_study(tmp_path, small())
    noted(study, "teacher", 0, 1, process=["elsewhere", "7", "another machine", "x"])
    state = snapshot(tmp_path, small(), study, costs(small()))["state"]
    assert state == "not known"


def test_a_finished_run_has_its_pages_own_verdict(finished_run):
    said = command("status", finished_run, "--json")
    data = json.loads(said.stdout)
    cards = of_source(of_run(finished_run))["cards"]
    assert data["state"] == "finished"
    assert data["verdict"] == cards["verdict"]
    shown = command("status", finished_run).stdout
    assert shown.splitlines()[0] == f"{finished_run}: finished"
    assert shown.count("12 of 12 trials finished") == 1
    assert "".join(cards["verdict"]["sentence"].split()) in "".join(shown.split())


def test_a_finished_run_shows_the_schedule_that_it_exports(finished_run, tmp_path):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    first, *others = (plan := load(folder / "best.json")).steps
    source = {"source": "power, order 2, w 2"}  # chosen in the place of the best trial
    other = replace(plan, steps=(replace(first, sigma=9.5), *others), provenance=source)
    other.save(folder / "best.json")
    data = json.loads(command("status", folder, "--json").stdout)
    assert data["best"]["schedule"]["steps"][0]["sigma"] == first.sigma
    assert data["exported"]["steps"][0]["sigma"] == 9.5
    rows = command("status", folder).stdout.splitlines()
    start = next(k for k, row in enumerate(rows) if row.split()[:2] == ["exported", "power,"])
    assert rows[start + 2].split()[:2] == ["1", "9.5"]


def test_charts_are_drawn_to_scale():
    assert sparkline([0, 7, 3.5]) == "▁█▅"
    assert sparkline([2, 2]) == "▁▁"
    assert sparkline(range(400))[-1] == "█"
    assert len(sparkline(range(400))) == 40
    steps = [{"sigma": s, "guidance_scale": w} for s, w in ((100.0, 4.0), (1.0, 2.0))]
    rows = chart({"steps": steps, "final_sigma": 0.01})
    bars = [[word for word in row.split() if set(word) <= set("█▏▎▍▌▋▊▉")] for row in rows]
    assert bars[1:3] == [["█" * 10, "█" * 10], ["█" * 5, "█" * 5]]  # log 1 is half-way
    assert rows[-1].split() == ["end", "0.01"]


def test_watching_prints_a_line_for_each_change_and_ends_with_the_run(
    half, finished_run, monkeypatch, capsys
):
    folder, study = half
    looks = iter(["search", "selection", "selection", "test", None])

    def pause(_):
        stage = next(looks)
        if stage is None:
            for name in ("best.json", "result.json"):
                (folder / name).write_bytes((finished_run / name).read_bytes())
        else:
            noted(study, stage, 0, 1)

    monkeypatch.setattr(watch.time, "sleep", pause)
    watch.show_status(folder, None, True, False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["not running"] * 4 + ["finished"]
    assert "selection, 0 of 1; 12 of 12 trials finished; best" in lines[2]


@pytest.mark.parametrize("show", ["all", "result", "json", "only json"])
def test_a_run_shows_what_was_asked_for(tmp_path, monkeypatch, capsys, show):
    session_of(tmp_path, monkeypatch, show)
    out, err = capsys.readouterr()
    if show == "result":
        assert (out, err) == (f"{tmp_path / 'best.json'}\n", "")
    elif show.endswith("json"):
        source = of_run(tmp_path)
        assert json.loads(out) == json.loads(json.dumps(of_source(source, fill(source))))
        assert ("search …" in err) == (show == "json")
        assert bool(err) == (show == "json")
    else:
        order = [out.index(f" {stage} …") for stage in ("loading", "teacher", "search", "test")]
        assert order == sorted(order)
        assert err == ""


@pytest.mark.parametrize(
    ("words", "show"),
    [
        ([], "all"),
        (["--quiet"], "result"),
        (["--json"], "json"),
        (["--json", "--quiet"], "only json"),
    ],
)
def test_what_is_asked_for_is_what_is_shown(tmp_path, monkeypatch, words, show):
    shown = []
    session = "stepsearch.report.session.run_session"
    monkeypatch.setattr(session, lambda *_, **known: shown.append(known["show"]))
    (tmp_path / "x.toml").write_text("[space]\nnum_steps = 3\npasses = 6\n")
    done = command("run", tmp_path / "x.toml", "--run", tmp_path / "run", *words)
    assert (done.exit_code, shown) == (0, [show])


def test_a_run_in_a_database_is_seen_where_its_folder_is_not(tmp_path, monkeypatch, capsys):
    trials = optuna.storages.InMemoryStorage()
    monkeypatch.setattr(watch, "open_database", lambda address: trials)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--storage: no run 'toy' has begun there"):
        watch.show_status(Path("toy.toml"), "mysql://host/db", False, True)
    study = optuna.create_study(storage=trials, study_name="toy")
    study.set_user_attr(SETTINGS, small().model_dump(mode="json"))
    noted(study, "teacher", 1, 4, process=["elsewhere", "7", "another machine", "x"])
    watch.show_status(Path("toy.toml"), "mysql://host/db", False, True)
    data = json.loads(capsys.readouterr().out)
    assert (data["state"], data["stage"]["name"], data["stage"]["done"]) == (
        "not known", "teacher", 1,
    )  # fmt: skip
    assert data["trials"]["budget"] == 12


def test_a_line_has_what_is_known(half):
    folder, study = half
    noted(study, "search (2 pruned)", 0, 12)  # what the trials tell is taken from them
    stage = snapshot(folder, small(), study, costs(small()))["stage"]
    assert (stage["done"], stage["total"]) == (12, 12)
    data = snapshot(folder, small(), study, costs(small()))
    assert line(data).startswith(
        "not running: search (2 pruned), 12 of 12; 12 of 12 trials finished; best "
    )


def test_in_a_terminal_a_run_is_shown_and_ctrl_c_says_what_goes_on(tmp_path):
    """The real command in a pseudo-terminal: Ctrl-C as the terminal sends it."""
    folder = tmp_path / "run"
    words = ["run", str(STUDY_FILE), "--run", str(folder), "--tracking", "none", "--quick"]
    code = "from stepsearch.cli import main; main()"
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
        os.environ |= {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
        os.execv(sys.executable, [sys.executable, "-c", code, *words])
    said, sent = b"", False
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:  # its end
            break
        said += part
        if not sent and b"passes" in said and b"stage" in said:  # rows of the view
            os.write(terminal, b"\x03")
            sent = True
    _, status = os.waitpid(pid, 0)
    text = said.decode()
    assert os.waitstatus_to_exitcode(status) == 130, text
    assert "0:00  loading …" in text
    assert "\x1b[2K" in text  # the view is drawn over
    assert "Traceback" not in text
    goes_on = text.replace("\r\n", "\n").splitlines()[-1]
    assert goes_on == f"  stepsearch {' '.join(words)}"
    study = read_study(folder, small())
    stage = noted_stage(study)
    assert stage is not None
    assert study.user_attrs[SETTINGS]["name"] == "tiny-3-steps"
    assert stage.workers == min(2, os.cpu_count())
    data = json.loads(command("status", folder, "--json").stdout)
    assert (data["state"], data["best"]) == ("not running", None)


@pytest.mark.parametrize("worker", [[["host"], "1"], {"a": 1}, 7])
def test_a_damaged_note_of_a_trial_is_one_sentence(half, worker):
    folder, study = half
    study.ask().set_user_attr(WORKER, worker)
    said = command("status", folder)
    assert isinstance(said.exception, UserError), said.exception
    assert f"{folder}: what is noted of its trials is damaged (" in str(said.exception)
