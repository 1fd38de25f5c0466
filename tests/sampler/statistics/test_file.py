import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from toy import gaussian_denoiser

from stepsampler import Schedule, ScheduleError, Step, UserError
from stepsampler.cli.display import describe
from stepsampler.formats import export
from stepsampler.noise import EDMSchedule, NoiseSchedule
from stepsampler.presets import open_schedule
from stepsampler.sample import sample
from stepsampler.schedule import StatisticsSpec
from stepsampler.statistics.file import Statistics, choose, ends_of, read_spec, read_statistics
from stepsampler.support.weights import read_header

SD = NoiseSchedule.scaled_linear()
SHAPE = (4, 2, 2)
RANDOM = np.random.default_rng(1).normal(size=(3, 9, *SHAPE)).astype(np.float16)


def made(scale=7.5, ends=None):
    noise = SD.spec("", "epsilon").noise
    return Statistics(*RANDOM, ends or ends_of(SD), scale, 4, "new", noise)


def authors(folder, name="7.5_8_4", **arrays):
    place = folder / name
    place.mkdir()
    l, s, b = RANDOM.astype(np.float32)  # noqa: E741
    given = {"l": l, "s": s, "b": b} | arrays
    np.savez(place / "l.npz", l=given["l"])
    np.savez(place / "sb.npz", s=given["s"], b=given["b"])
    return place


def test_a_file_holds_what_was_saved(tmp_path):
    made().save(tmp_path / "a.safetensors", {})
    found = read_statistics(str(tmp_path / "a.safetensors"), SD, SHAPE)
    assert np.array_equal([found.l, found.s, found.b], RANDOM)
    assert found.digest == made().digest
    assert read_spec(str(tmp_path / "a.safetensors")) == found.spec


def test_a_folder_of_the_authors_is_the_same_statistics(tmp_path):
    place = authors(tmp_path)
    found = read_statistics(str(place), SD, SHAPE)
    assert (found.guidance_scale, found.intervals, found.samples) == (7.5, 8, 4)
    assert found.digest == made().digest
    assert read_spec(str(place)) == StatisticsSpec(7.5, 8)


def test_the_published_size_is_read_checked_and_used(tmp_path):
    """As the authors publish them for Stable Diffusion 1.5: compressed, single precision."""
    shape, levels = (4, 64, 64), 251
    place = tmp_path / "7.5_250_1024"
    place.mkdir()
    ramp = np.linspace(0, 1, levels, dtype=np.float32)[:, None, None, None]
    across = np.linspace(0.9, 1.1, 64, dtype=np.float32)
    l, s, b = (np.broadcast_to(v * ramp * across, (levels, *shape)) for v in (0.9, 0.5, 0.1))  # noqa: E741
    np.savez_compressed(place / "l.npz", l=l)
    np.savez_compressed(place / "sb.npz", s=s, b=b)
    found = read_statistics(str(place), SD, shape)
    assert (found.intervals, found.samples, found.shape) == (250, 1024, shape)
    assert {a.dtype for a in (found.l, found.s, found.b)} == {np.dtype(np.float32)}
    with pytest.raises(UserError, match="of shape 4 x 64 x 64, but the model's are 4 x 96 x 64"):
        read_statistics(str(place), SD, (4, 96, 64))

    plan = open_schedule("seed-v3-sd-5", [read_spec(str(place))])
    assert plan.solver == "dpm-v3"
    found.check_levels(plan)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    start = noise * plan.steps[0].sigma
    made = sample(gaussian_denoiser, noise, plan, statistics=found)
    assert made.shape == (1, *shape)
    # where all columns are alike, numbers of one column do: those of the entry itself
    few = [np.ascontiguousarray(a[:, :1, :1, 9:10]) for a in (found.l, found.s, found.b)]
    column = Statistics(*few, found.ends, 7.5, 1024, "one column")
    alone = sample(gaussian_denoiser, noise[..., 9:10], plan, statistics=column)
    assert torch.allclose(made[..., 9:10], alone, atol=1e-5)
    assert (made - start).abs().mean() > 1


def test_pickles_are_not_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    objects = np.empty((9, *SHAPE), object)
    objects[:] = Trap()
    place = authors(tmp_path, l=objects)
    with pytest.raises(UserError, match=r"l\.npz: l holds objects, which are pickles"):
        read_statistics(str(place), SD, SHAPE)
    assert pickle  # what numpy would have used


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("mine", {}, "is named SCALE_INTERVALS_SAMPLES, such as 7.5_250_1024, got 'mine'"),
        ("7.5_250_4", {}, "the folder's name says 250 intervals, but l has 9 levels"),
        ("7.5_8_4", {"l": np.array(1.0)}, "l must have an entry for each level"),
        ("7.5_8_4", {"s": RANDOM[1][:5]}, "s must be of shape 9 x 4 x 2 x 2, as l, got 5 x"),
        ("7.5_8_4", {"b": RANDOM[2] * np.nan}, "b must be finite, but has NaN or infinities"),
        ("7.5_8_4", {"s": RANDOM[1].astype(int)}, "s must be real numbers, got int64"),
    ],
)
def test_other_folders_are_refused(tmp_path, name, arrays, message):
    with pytest.raises(UserError, match=message):
        read_statistics(str(authors(tmp_path, name, **arrays)), SD, SHAPE)


def test_files_of_something_else_are_refused(tmp_path):
    save_file({"l": RANDOM[0]}, tmp_path / "a.safetensors")
    for name, message in (("a.safetensors", "holds no statistics"), ("b.safetensors", "no such")):
        with pytest.raises(UserError, match=message):
            read_statistics(str(tmp_path / name), SD, SHAPE)
    (tmp_path / "l.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"give the folder in which l\.npz and sb\.npz lie"):
        read_statistics(str(tmp_path / "l.npz"), SD, SHAPE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("guidance_scale", value) for value in ("nan", "1e999", "-1")),
        ("samples", "-3"),
        *(("log_snr", value) for value in ("[NaN, NaN]", "[1e999, 2]", "[3.5, -2.7]")),
        *(("noise", f"[{value}, 0.7, 1.6, 4.1, 14.6]") for value in ("NaN", "0", "-1")),
        ("noise", "[0.03, 14.6]"),
    ],
)
def test_metadata_that_cannot_be_true_are_refused_by_name(tmp_path, key, value):
    """Comparisons with NaN all fail, so such a file had been taken for any model."""
    place = tmp_path / "a.safetensors"
    made().save(place, {key: value})
    for read in (read_spec, lambda place: read_statistics(place, SD, SHAPE)):
        with pytest.raises(UserError, match=f"its metadata cannot be true: {key} is"):
            read(str(place))


def test_other_tensors_are_refused_by_name(tmp_path):
    place = tmp_path / "a.safetensors"
    made().save(place, {})
    said = read_header("statistics", str(place)).metadata
    tensors = dict(zip("lsb", torch.from_numpy(RANDOM), strict=True))
    for given, message in (
        ({"l": tensors["l"]}, "its tensors must be l, s, b, got l$"),
        ({**tensors, "b": tensors["b"].bfloat16()}, "b must be of F16, F32, F64, got BF16"),
        ({**tensors, "l": tensors["l"].to(torch.float8_e4m3fn)}, "l must be of .*, got F8_E4M3"),
        ({name: x[:1] for name, x in tensors.items()}, "with 1 to 10,000 intervals, got 1 x 4"),
        ({name: x[0, 0, 0, 0] for name, x in tensors.items()}, "got a single number"),
    ):
        save_torch(given, place, dict(said))
        with pytest.raises(UserError, match=message):
            read_spec(str(place))


@pytest.mark.parametrize(
    ("noise", "shape", "message"),
    [
        (SD, (4, 3, 3), "latents of shape 4 x 2 x 2, but the model's are 4 x 3 x 3"),
        (NoiseSchedule.linear(), SHAPE, "noise levels from sigma 14.61 to 0.02917, but the model"),
        (EDMSchedule(), SHAPE, "statistics are for variance-preserving models"),
    ],
)
def test_another_model_is_refused(tmp_path, noise, shape, message):
    made().save(tmp_path / "a.safetensors", {})
    with pytest.raises(UserError, match=message):
        read_statistics(str(tmp_path / "a.safetensors"), noise, shape)


def test_the_statistics_that_a_schedule_needs_are_named():
    with pytest.raises(
        UserError, match="scale 5 in 8 intervals: give .* makes; new is of guidance"
    ):
        choose([made()], StatisticsSpec(5.0, 8))
    with pytest.raises(UserError, match=r"in 250 intervals: give --statistics FILE"):
        choose([], StatisticsSpec(7.5, 250))
    assert choose([made(5.0), made()], StatisticsSpec(7.5, 8)).guidance_scale == 7.5
    with pytest.raises(UserError, match="needs statistics"):
        choose([made()], StatisticsSpec(7.5, 8, "0123456789abcdef"))


def schedule(**spec):
    return Schedule(
        (Step(14.0, 7.5), Step(2.0, 7.5, 2)),
        0.1,
        "dpm-v3",
        statistics=StatisticsSpec(7.5, 8, "0123456789abcdef", **spec),
    )


def test_a_schedule_file_names_them():
    plan = schedule(p_pseudo=True, c_pseudo=False)
    assert Schedule.from_json(plan.to_json()) == plan
    assert "statistics of guidance scale 7.5 in 8 intervals (0123456789abcdef)" in describe(plan)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("statistics", None, "the solver dpm-v3 needs statistics"),
        ("solver", "exact", "statistics are of the solver dpm-v3, got exact"),
        ("statistics", {"guidance_scale": 7.5}, "statistics: intervals is missing"),
        ("statistics", {"guidance_scale": 7.5, "intervals": 0}, "intervals must be 1 to"),
        ("statistics", {"guidance_scale": 7.5, "intervals": 8.5}, "intervals must be a whole"),
        ("statistics", {"scale": 7.5}, "statistics: unknown key 'scale'"),
        (
            "statistics",
            {"guidance_scale": 7.5, "intervals": 8, "c_pseudo": 1},
            "c_pseudo must be true or false",
        ),
    ],
)
def test_mistakes_in_a_schedule_file_are_named(key, value, message):
    data = json.loads(schedule().to_json()) | {key: value}
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_json(json.dumps(data))


@pytest.mark.parametrize("to", ["comfyui", "comfyui-workflow", "sd.cpp"])
def test_exports_refuse_it_by_name(to):
    with pytest.raises(UserError, match="dpm-v3"):
        export(schedule(), to)
