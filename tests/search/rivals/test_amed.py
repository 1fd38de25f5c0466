"""AMED: the authors' own numbers, and what its parts promise."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from stepsampler.errors import UserError
from stepsampler.generate import generate, seeded_noise
from stepsampler.models import load as load_model
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.presets import preset
from stepsampler.sample import execute
from stepsampler.schedule import Schedule, Step
from stepsearch.cli import main
from stepsearch.compare.learned import OnPredictor
from stepsearch.rivals import placement
from stepsearch.rivals.amed.command import train
from stepsearch.rivals.amed.predictor import Predictor, Setting, Told, load, save
from stepsearch.rivals.amed.student import Student
from stepsearch.rivals.amed.training import asked, new

SD = NoiseSchedule.scaled_linear()
TINY = Setting(3, 2.0, 16)
PROMPTS = ["a photo of a bag", "a photo of a sneaker", "a photo of a coat"]
# Of the authors' dpm_pp_sampler and AMED_predictor (zju-pi/diff-sampler) on the network and the
# weights below: r and scale_time of both images in each interval, and some numbers of the result
THEIRS = {
    5: (
        [[0.4273001302778987] * 2, [0.4343395053671367, 0.43293198776701536],
         [0.42736996475347633, 0.42602627436803703]],
        [[0.9712976709445089] * 2, [0.9575332036606363, 0.956319046011785],
         [0.9543805163244963, 0.9534348300617925]],
        [1.2441582760949281, 0.7386817722375687, -1.0313180680245004, -1.234735078992352,
         -1.1466771904016202, 1.122333189884196],
    ),
    4: (
        [[0.42417148451874254, 0.4231805264474244], [0.4420668604318317, 0.44060715238281895]],
        [[0.9679568464539281, 0.9661765907492409], [0.9547344712586101, 0.9537810681171348]],
        [1.1657837489889795, 0.7954394262174783, -1.0148666384505074, -1.1595932934929167,
         -1.1070250608831744, 1.0884809038470906],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


class Toy:
    """A network whose middle is that of the last call, and the mean over its channels."""

    last = torch.zeros(1, 1)

    def __call__(self, x, step):
        self.middle = torch.tanh(x)
        t = torch.as_tensor(step.sigma * step.time_scale).reshape(-1, 1, 1, 1)
        return x / (1 + t**2) + 0.3 * t / (1 + t) * torch.sin(x)

    def of(self, _n):
        return self.middle.mean(1).flatten(1)


@pytest.mark.parametrize("calls", THEIRS)
def test_images_are_those_of_the_authors_solver_and_predictor(calls):
    setting = Setting(calls, 1.0, 64, scale_dir=0.01)
    predictor, toy, student = Predictor(setting).double(), Toy(), Student(setting, SD)
    for i, (_, values) in enumerate(sorted(predictor.named_parameters())):
        numbers = 0.4 * torch.sin(torch.arange(values.numel(), dtype=torch.float64) + i)
        values.data = numbers.reshape(values.shape)
    start = torch.cos(torch.arange(512, dtype=torch.float64) * 0.7).reshape(2, 4, 8, 8)
    told = []

    def choose(k):
        toy.middle = torch.zeros(2, 1, 8, 8).double() if k == 0 and setting.afs else toy.middle
        seen = toy.of(2)
        told.append(predictor(seen, student.grid[k], student.grid[k + 1]))
        return told[-1]

    with torch.no_grad():
        rows = student.rows(choose)
        *_, last = execute(toy, start * student.grid[0], rows, depth=student.depth)
    rs, times, expected = THEIRS[calls]
    assert torch.stack([t.r for t in told]).tolist() == pytest.approx(torch.tensor(rs), rel=1e-5)
    assert torch.stack([t.time_scale for t in told]).tolist() == pytest.approx(
        torch.tensor(times), rel=1e-5
    )
    found = last.flatten()[[0, 100, 255, 256, 400, 511]].tolist()
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_predictor_of_the_authors_size_has_their_numbers():
    setting = Setting(5, 7.5, 64)
    count = sum(values.numel() for values in Predictor(setting).parameters())
    assert count == 64 * 128 + 128 + 128 * 4 + 4 + 8 * 8 + 8 + 2 * (2 * 8 + 4 + 1) == 8950
    told = Predictor(setting)(torch.randn(3, 64) * 100, 14.6, 5.0)
    assert told.gain.tolist() == [1.0] * 3, "scale_dir 0 is no output"
    assert (told.time_scale - 1).abs().max() <= 0.2 + 1e-6
    assert ((told.r >= 0) & (told.r <= 1)).all()


def test_what_all_images_are_told_alike_is_a_schedule(tiny):
    """The learned form with one answer, and its static form on the loop of every schedule."""
    setting = replace(TINY, scale_dir=0.05)
    training = new(tiny, setting, PROMPTS, "")
    told = [
        Told(*(torch.full((2,), v) for v in row)) for row in ((0.4, 1.03, 0.9), (0.6, 0.98, 1.1))
    ]
    static = training.student.static(told, tiny.spec, tiny.guidance)
    assert [s.gain for s in static.steps] == pytest.approx([1, 1.03, 1, 0.98])
    assert [s.time_scale for s in static.steps] == pytest.approx([1, 0.9, 1, 1.1])
    assert (static.passes, static.num_steps, static.steps[0].analytic) == (6, 4, 1.0)
    (batch,) = generate(tiny, static, PROMPTS[:2], [0, 1])
    denoise, noise = training._on(range(2))
    with torch.inference_mode():
        rows = training.student.rows(lambda k: told[k])
        *_, last = execute(denoise, noise * training.student.grid[0], rows, depth=2)
        images = tiny.decode(last)
    assert (images.int() - batch.images.int()).abs().max() <= 1


def test_the_gradient_is_that_of_finite_differences(tiny, monkeypatch):
    """Exactly, with a nudge so small that the network's slope is the local one."""
    monkeypatch.setattr("stepsearch.rivals.amed.student.NUDGE", 0.001)
    training = new(tiny, replace(TINY, scale_dir=0.05), PROMPTS, "")
    denoise, noise = training._on(range(2))
    student, start = training.student, noise * training.student.grid[0]

    def loss(r, gain, time):
        told = Told(*(value.expand(2) for value in (r, gain, time)))
        steps = execute(denoise, start, student.rows(lambda k: told), depth=2)
        next(steps)
        return next(steps).square().mean()

    values = [torch.tensor([v], requires_grad=True) for v in (0.45, 1.02, 0.95)]
    with torch.enable_grad():
        loss(*values).backward()
    for i, value in enumerate(values):
        ends = []
        for sign in (1, -1):
            moved = [v.detach().clone() for v in values]
            moved[i] += sign * 0.0005
            with torch.no_grad():
                ends.append(float(loss(*moved)))
        slope = (ends[0] - ends[1]) / 0.001
        assert float(value.grad) == pytest.approx(slope, rel=0.1, abs=0.1)


def test_training_comes_nearer_to_the_teacher_and_resumes(tiny, tmp_path):
    setting = Setting(1, 1.0, 16)  # one call, of which r says where

    def trained(out, *until):
        for count in until:
            training = new(tiny, setting, PROMPTS, "")
            training.run(count, 8, out, lambda done, loss: None)
        return training

    whole = trained(tmp_path / "a", 72)
    parts = trained(tmp_path / "b", 24, 72)
    assert parts.done == whole.done == 72
    assert parts.losses == pytest.approx(whole.losses, rel=1e-3)
    pairs = zip(parts.predictor.parameters(), whole.predictor.parameters(), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    # of a call: three of the teacher, the student's, at another time, and backwards
    assert parts.passes == whole.passes == 72 * (3 + 1 + 3)
    seeds = range(500, 516)
    before = new(tiny, setting, PROMPTS, "").learn(seeds)
    assert whole.learn(seeds) < 0.8 * before
    for other in (
        new(tiny, replace(setting, guidance_scale=3.0), PROMPTS, ""),
        new(tiny, setting, PROMPTS[::-1], ""),
        new(load_model("tiny-second"), setting, PROMPTS, ""),
        new(tiny, setting, PROMPTS, "", ["a LoRA"]),
    ):
        with pytest.raises(UserError, match="that is the state of another training; remove it"):
            other.run(96, 16, tmp_path / "a", lambda done, loss: None)


def test_the_commands_make_both_forms_and_score_them(tiny, tmp_path, monkeypatch, capsys):
    out, static = tmp_path / "p.safetensors", tmp_path / "p.json"
    words = ["amed", "--calls", 3, "--guidance-scale", 2, "--trajectories", 4, "-o", out]
    for call in (
        [*words, "--static", static],
        ["evaluate", out, static, "--images", 4, "--cache", tmp_path / "cache"],
    ):
        monkeypatch.setattr(sys, "argv", ["stepsearch", *map(str, call)])
        with pytest.raises(SystemExit, match="0"):
            main()
    said = capsys.readouterr().out
    assert "3 calls of the network (the paper's NFE), 6 passes per image; 4 trajectories" in said
    predictor, about = load(out)
    assert predictor.setting == TINY
    assert about["trajectories"] == 4
    assert about["passes"] == 4 * 2 * (6 + 3 + 2 * 3)
    assert not out.with_name("p.safetensors.state").exists()
    plan = Schedule.from_json(static.read_text())
    assert plan.passes == 6
    contender = OnPredictor(out, tiny, "d", guidance_scale=1.0)
    assert (contender.passes, contender.steps) == (3, 4)

    class Prompt:
        text = PROMPTS[0]

    together = torch.cat(list(contender.batches(range(4), [Prompt()] * 4, 4)))
    alone = torch.cat(list(contender.batches(range(4), [Prompt()] * 4, 1)))
    assert (together.int() - alone.int()).abs().max() <= 1, "an image depends on its seed alone"


def test_a_compiled_network_is_not_asked_for_its_middle(tmp_path):
    def backend(*_):
        raise AssertionError("what is compiled calls no hook of its parts")

    model, path = load_model("tiny"), tmp_path / "p.safetensors"
    save(Predictor(TINY), path, {"model": vars(model.spec)})
    model.net.compile(backend=backend)
    model.compiled = True
    contender = OnPredictor(path, model, "d")
    (images,) = contender.batches(range(1), [type("P", (), {"text": "a bag"})()], 1)
    assert images.shape == (1, 3, 32, 32)


def test_as_a_rival_it_counts_its_passes(tiny, monkeypatch):
    monkeypatch.setattr(placement, "TRAJECTORIES", 8)
    monkeypatch.setattr(placement, "AVERAGED", 4)
    for calls in (2, 3):
        found = placement.place(tiny, PROMPTS, "amed", calls, 2.0, 8)
        plan = Schedule.from_json(found.schedule)
        assert len(found.sigmas) == calls + 1
        assert found.sigmas[0] == plan.sigmas[0]
        assert plan.passes == 2 * calls
        assert found.passes == 2 * placement.most_passes("amed", calls, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "is no predictor of AMED: its metadata has no format"),
        ({"amed": "{}"}, "is a damaged predictor of AMED: no 'setting'"),
        ({"amed": '{"setting": {"calls": 3, "hidden": 1}}'}, "is a damaged predictor of AMED"),
    ],
)
def test_other_files_are_refused(tiny, tmp_path, change, message):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "p.safetensors"
    save(Predictor(TINY), path, {"model": vars(tiny.spec)})
    metadata = {"format": "stepsearch.amed/1", "amed": "{}"} | change
    save_file(load_file(path), path, metadata)
    with pytest.raises(UserError, match=message):
        load(path)
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")  # a pickle
    with pytest.raises(UserError, match="is no safetensors file"):
        load(path)
    with pytest.raises(UserError, match="there is no such file"):
        load(tmp_path / "gone")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calls": 0}, "calls must be 1 to 1,000, got 0"),
        ({"calls": 2.5}, "calls must be 1 to 1,000, got 2.5"),
        ({"order": 4}, "order must be 1 to 3, got 4"),
        ({"between": -1}, "between must be 1 to 1,000, got -1"),
        ({"guidance_scale": "2"}, "guidance_scale must be a finite number >= 0, got '2'"),
        ({"scale_time": 5.0}, "scale_time must be at most 0.5, got 5"),
        ({"solver": "dpm-v3"}, "solver must be one of ddim, .* got 'dpm-v3'"),
        ({"prediction": None}, "prediction must be one of data, noise, got None"),
        (
            {"bottleneck": 64},
            r"the shape of enc_layer0.weight must be \(128, 64\), got \(128, 16\)",
        ),
        ({"scale_dir": 0.1}, r"the shape of fc_scale_dir.bias must be \(1,\), got none"),
        ({"bottleneck": 2**20}, "bottleneck must be 0 to 65,536, got 1048576"),
        ({"model": None}, "model must be an object, got None"),
        ({"model": {"family": 3}}, "model: prediction_type is missing"),
        ({"weights": float("nan")}, "its weights are not finite"),
    ],
)
def test_numbers_that_cannot_be_true_are_refused_by_name(tiny, tmp_path, changes, message):
    from safetensors.torch import save_file

    path = tmp_path / "p.safetensors"
    predictor = Predictor(TINY)
    weights = {k: v.contiguous() for k, v in predictor.state_dict().items()}
    if "weights" in changes:
        weights["fc_r.bias"] = torch.tensor([changes["weights"]])
    about = {"setting": vars(TINY) | changes, "model": vars(tiny.spec)}
    for name in {"model", "weights"} & changes.keys():
        about["setting"].pop(name)
        about |= {"model": changes[name]} if name == "model" else {}
    save_file(weights, path, {"format": "stepsearch.amed/1", "amed": json.dumps(about)})
    with pytest.raises(UserError, match=f"is a damaged predictor of AMED: {message}"):
        load(path)


def test_models_that_it_is_not_for_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="variance-preserving models only"):
        Student(TINY, FlowSchedule())
    with pytest.raises(UserError, match="an odd number of calls has an analytic first step"):
        Student(TINY, SD.zero_terminal_snr())
    path = tmp_path / "p.safetensors"
    save(Predictor(TINY), path, {"model": vars(replace(tiny.spec, family="sdxl"))})
    with pytest.raises(UserError, match=r"was trained for family 'sdxl', but the model has"):
        OnPredictor(path, tiny, "d")
    save(Predictor(replace(TINY, bottleneck=64)), path, {"model": vars(tiny.spec)})
    contender = OnPredictor(path, tiny, "d")
    with pytest.raises(
        UserError, match=r"knows a network with 64 numbers .* trained for another s"
    ):
        list(contender.batches(range(1), [type("P", (), {"text": "a bag"})()], 1))
    half = load_model("tiny", dtype="bfloat16")
    with pytest.raises(UserError, match="amed learns by gradients: the model's dtype must be flo"):
        train(half, PROMPTS, TINY, 8, 8, path)


def test_the_preset_is_what_the_authors_notebook_prints():
    """Timesteps, gains and times for Stable Diffusion, as rounded there."""
    plan = preset("amed-sd15-10").schedule
    timesteps = [SD.timestep(sigma) for sigma in plan.sigmas]
    assert timesteps == pytest.approx(
        [999, 885, 799, 705, 599, 492, 400, 329, 200, 73, 0], abs=0.01
    )
    assert [s.gain for s in plan.steps[1::2]] == [0.9974, 0.9904, 0.991, 0.9905, 0.9904]
    assert [s.time_scale for s in plan.steps[1::2]] == [0.9872, 1.0152, 1.0186, 0.9934, 0.9731]
    assert {(s.gain, s.time_scale) for s in plan.steps[::2]} == {(1.0, 1.0)}
    assert [s.order for s in plan.steps] == [1, *[2] * 8, 1]
    assert plan.passes == 20


def test_an_analytic_step_is_asked_with_zeros():
    setting = Setting(3, 1.0, 4)
    predictor, student = Predictor(setting), Student(setting, SD)
    told = asked(predictor, student, None, 0, 2)
    expected = predictor(torch.zeros(2, 4), student.grid[0], student.grid[1])
    assert torch.equal(told.r, expected.r)
    assert seeded_noise([0], (1,)).shape == (1, 1)
    assert Step(1.0).calls
