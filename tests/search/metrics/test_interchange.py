import zipfile

import numpy as np
import pytest

from stepsampler import UserError
from stepsampler.noise import NoiseSchedule
from stepsampler.statistics.file import read_statistics
from stepsearch.metrics.interchange import read_npz

MU, SIGMA = np.arange(3.0), np.eye(3)
IMAGES = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
LAYOUTS = {
    "pytorch-fid and EDM": {"mu": MU, "sigma": SIGMA},
    "clean-fid": {"mu": MU, "sigma": SIGMA},
    "clean-fid, KID": {"feats": np.ones((4, 3))},
    "ADM, reference": {"arr_0": IMAGES, "mu": MU, "sigma": SIGMA, "mu_s": MU, "sigma_s": SIGMA},
    "ADM, samples": {"arr_0": IMAGES, "arr_1": np.arange(2)},
}


def head(shape):
    """Of a file of one array, without its numbers."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_read(tmp_path, layout):
    arrays = LAYOUTS[layout]
    np.savez(tmp_path / "s.npz", **arrays)
    found = read_npz(tmp_path / "s.npz")
    assert (found.mean is not None) == ("mu" in arrays)
    assert (found.features is not None) == ("feats" in arrays)
    if "mu" in arrays:
        np.testing.assert_array_equal(found.cov, SIGMA)
    if "arr_0" in arrays:
        np.testing.assert_array_equal(found.images.transpose(0, 2, 3, 1), IMAGES)


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_pickles_are_never_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("s.npz", mu=np.array([Trap()], object), sigma=SIGMA)
    with pytest.raises(
        UserError, match=r"s\.npz: not an \.npz .*pickled objects, which are never read"
    ):
        read_npz(tmp_path / "s.npz")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"reps": MU}, "expected mu and sigma, feats, or arr_0, found reps"),
        ({"mu": MU}, "expected mu and sigma, feats, or arr_0, found mu"),
        ({"mu": MU, "sigma": np.eye(4)}, r"sigma \(d, d\), got \(3,\) and \(4, 4\)"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "mu or sigma is not finite"),
        ({"mu": MU, "sigma": np.triu(np.ones((3, 3)))}, "sigma is not symmetric, so it is no cov"),
        ({"mu": MU, "sigma": -SIGMA}, "sigma has an eigenvalue of -1, so it is no covariance"),
        ({"mu": np.array(["a", "b", "c"]), "sigma": SIGMA}, "mu must be real numbers, got <U1"),
        ({"mu": MU, "sigma": SIGMA * 1j}, "sigma must be real numbers, got complex128"),
        ({"feats": np.full((2, 2), "x")}, "feats must be real numbers, got <U1"),
        ({"feats": np.full((2, 2), np.nan)}, "feats is not finite"),
        ({"feats": MU}, r"feats must be \(n, d\), got \(3,\)"),
        ({"arr_0": IMAGES / 2}, r"arr_0 must be uint8 .*, got float64 \(2, 4, 5, 3\)"),
    ],
)
def test_other_contents_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_npz(tmp_path / "s.npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    for content, why in (
        (b"", "it is empty"),
        (b"version https://git-lfs", "begins with b'version"),
    ):
        (tmp_path / "s.npz").write_bytes(content)
        with pytest.raises(UserError, match=why):
            read_npz(tmp_path / "s.npz")
    (tmp_path / "s.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"s\.npz: not an \.npz of plain arrays"):
        read_npz(tmp_path / "s.npz")
    np.savez_compressed(tmp_path / "s.npz", mu=np.random.default_rng(0).normal(size=500))
    data = bytearray((tmp_path / "s.npz").read_bytes())
    data[100:200] = b"\xff" * 100  # the numbers, deflated
    (tmp_path / "s.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"s\.npz: not an \.npz of plain arrays: damaged or cut"):
        read_npz(tmp_path / "s.npz")
    np.save(tmp_path / "s.npy", MU)
    with pytest.raises(UserError, match=r"s\.npy: not an \.npz of plain arrays: one bare array"):
        read_npz(tmp_path / "s.npy")


@pytest.mark.parametrize(
    "content",
    [
        b"\x93NUMPY\x01\x00\x02\x00((",  # no dictionary, and no end of it
        b"\x93NUMPY\x01\x00\x06\x00{\n  1",  # numpy's parser of heads that Python 2 wrote
        head("(9999999999999999999999999999999,)"),
        head("(-1,)"),
        head("(10**9,)"),
        b"bytes that numpy hands out as they are",
    ],
)
def test_arrays_that_nobody_wrote_are_refused_in_one_sentence(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as file:
        file.writestr("mu.npy", content)
        file.writestr("sigma.npy", content)
        file.writestr("l.npy", content)
    with pytest.raises(UserError, match=r"s\.npz: not an \.npz of plain arrays: damaged") as caught:
        read_npz(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)
    folder = tmp_path / "7.5_250_1024"  # as the authors of DPM-Solver-v3 have it
    folder.mkdir()
    (tmp_path / "s.npz").rename(folder / "l.npz")
    with pytest.raises(UserError, match=r"l\.npz: l (is damaged|holds objects)"):
        read_statistics(str(folder), NoiseSchedule.scaled_linear(), (3,))


def test_a_zip_whose_parts_lie_outside_of_it_is_refused(tmp_path):
    np.savez(tmp_path / "l.npz", l=MU)
    content = bytearray((tmp_path / "l.npz").read_bytes())
    end = content.rindex(b"PK\x05\x06")
    content[end + 16 : end + 20] = (2**31).to_bytes(4, "little")  # where its list begins
    folder = tmp_path / "7.5_250_1024"
    folder.mkdir()
    (folder / "l.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"l\.npz is no npz of numbers|l\.npz: l is damaged"):
        read_statistics(str(folder), NoiseSchedule.scaled_linear(), (3,))
