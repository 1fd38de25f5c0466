"""Our distance, resizing and Inception against clean-fid itself, on the same files."""

import hashlib
import re

import bench_distance
import numpy as np
import pytest
import torch
from cleanfid import fid
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import make_resizer
from PIL import Image

from stepsampler import UserError
from stepsearch.metrics import pretrained
from stepsearch.metrics.distance import Moments, frechet_distance, score_kernel
from stepsearch.metrics.features import Lite0, load_extractor, resized
from stepsearch.metrics.images import ImageFiles
from stepsearch.metrics.manifold import score_precision_recall
from stepsearch.metrics.reference import load_reference

CPU = torch.device("cpu")


def draw(folder, n, seed, dark=1.0):
    """Smooth random pictures of odd and mixed sizes."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for k in range(n):
        height, width = generator.integers(20, 47, 2) * 2 + 1
        noise = (generator.uniform(0, 255 * dark, (7, 7, 3))).astype(np.uint8)
        picture = Image.fromarray(noise).resize((int(width), int(height)), Image.BICUBIC)
        picture.save(folder / f"{k:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("pictures")
    return draw(base / "a", 30, seed=0), draw(base / "b", 36, seed=1, dark=0.7)


@pytest.fixture(scope="module")
def lite0():
    """EfficientNet-Lite0 on a fifth of 299 pixels, its 1,280 features mixed to 12."""
    net = Lite0(CPU).net
    mix = torch.randn(1280, 12, generator=torch.manual_seed(0))

    @torch.inference_mode()
    def features(x):
        x = torch.nn.functional.avg_pool2d(x, 5)
        return net.extract_features((x - 127) / 128).mean((2, 3)) @ mix

    return features


@pytest.fixture(scope="module")
def features(folders, lite0):
    """Of both folders, with our reading and our resizing."""

    def rows(folder):
        for batch in ImageFiles.find(folder).batches(fit="none"):
            yield lite0(resized(batch.float(), 299))

    return [torch.cat(list(rows(folder))).double().numpy() for folder in folders]


def test_our_distance_on_our_resizing_is_its_fid(folders, lite0, features):
    theirs = fid.compute_fid(
        *(str(f) for f in folders),
        mode="clean",
        custom_feat_extractor=lite0,
        device=CPU,
        num_workers=0,
        verbose=False,
    )
    a, b = features
    ours = frechet_distance(a, Moments.of(b))
    assert ours == pytest.approx(theirs, rel=1e-4)  # resizing in float32 by two libraries
    assert ours > 1


def test_our_distance_of_the_same_features_is_its_fid(features):
    a, b = features
    ours = frechet_distance(a, Moments.of(b))
    assert ours == pytest.approx(fid.fid_from_feats(a, b), rel=1e-6)


def test_our_kid_of_the_same_features_is_its_kid(features):
    a, b = features
    b = b[: len(a)]  # so that each of its subsets is everything
    ours = score_kernel(a, b).value
    assert ours == pytest.approx(fid.kernel_distance(a, b, num_subsets=1), rel=1e-9)


def test_our_precision_and_recall_are_those_of_torch_fidelity(features):
    from torch_fidelity.metric_prc import prc_features_to_metric

    for a, b in (features, features[::-1]):
        theirs = prc_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), verbose=False)
        precision, recall = score_precision_recall(a, b)
        assert 0 < recall.value < 1
        assert precision.value == pytest.approx(theirs["precision"], abs=1e-6)
        assert recall.value == pytest.approx(theirs["recall"], abs=1e-6)


def test_the_benchmark_of_distances_has_both_rivals(capsys):
    bench_distance.main(["--sizes", "60x8", "--repeats", "1"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert "not installed" not in line
    agreement = [float(word) for word in re.findall(r"\de[-+]\d+", line)]
    assert len(agreement) == 2
    assert max(agreement) < 1e-6


@pytest.mark.parametrize("size", [(37, 53), (299, 299), (301, 17), (640, 481)])
def test_our_resizing_is_its_resizing_on_odd_sizes(size):
    """Hard edges, so that the clipping matters. In float32, as we do it, to 0.02 grey levels."""
    generator = np.random.default_rng(size[0])
    image = (generator.integers(0, 2, (*size, 3)) * 255).astype(np.uint8)
    for target in (64, 299):
        theirs = make_resizer("PIL", False, "bicubic", (target, target))(image)
        x = torch.from_numpy(image).permute(2, 0, 1)[None]
        for dtype, tolerance in ((torch.float32, 2e-2), (torch.float64, 1e-3)):
            ours = resized(x.to(dtype), target)[0].permute(1, 2, 0).numpy()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(3 * 13 * 13, 2048)

    def forward(self, x):
        return self.mix(torch.nn.functional.avg_pool2d(x, 23).flatten(1))


class Network(torch.nn.Module):
    """Of the shape of the official TorchScript file, with other weights."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / pretrained.INCEPTION_FILE
    torch.jit.script(Network()).save(str(path))
    return path


def test_weights_other_than_the_official_ones_are_refused(weights, tmp_path):
    with pytest.raises(UserError, match="not the official weights: SHA-256 .* expected f58cb9b6"):
        load_extractor(f"inception:{weights}")
    with pytest.raises(UserError, match=f"no {pretrained.INCEPTION_FILE} at {tmp_path}"):
        load_extractor(f"inception:{tmp_path}")


def test_our_inception_has_its_features_on_a_folder(weights, folders, tmp_path, monkeypatch):
    """Official weights cannot be had here; the way through both libraries is the same."""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(pretrained, "INCEPTION_SHA256", digest)
    ours = load_extractor(f"inception:{weights}")
    theirs = InceptionV3W(str(weights.parent), download=False)
    expected = fid.get_folder_features(
        str(folders[0]), theirs, num_workers=0, device=CPU, mode="clean", verbose=False
    )
    batches = ImageFiles.find(folders[0]).batches(fit="none")
    found = torch.cat([ours(batch) for batch in batches]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    reference = load_reference(str(folders[0]), ours, None, tmp_path, "none")
    assert reference.metric == "fid_clean"
    assert reference.digest == f"{digest[:16]}-clean299"
    np.testing.assert_allclose(reference.test.mean, expected.mean(0), atol=1e-4)


def test_its_own_statistics_files_are_read(weights, folders, tmp_path, monkeypatch):
    """clean-fid writes mu and sigma, and features for its KID."""
    monkeypatch.setattr(fid.cleanfid, "__file__", str(tmp_path / "x.py"))
    (tmp_path / "stats").mkdir()
    theirs = InceptionV3W(str(weights.parent), download=False)
    monkeypatch.setattr(fid, "build_feature_extractor", lambda *_, **__: theirs)
    fid.make_custom_stats("toy", str(folders[0]), num_workers=0, device=CPU, verbose=False)
    monkeypatch.setattr(
        pretrained, "INCEPTION_SHA256", hashlib.sha256(weights.read_bytes()).hexdigest()
    )
    ours = load_extractor(f"inception:{weights}")
    reference = load_reference(
        str(tmp_path / "stats" / "toy_clean_custom_na.npz"), ours, None, tmp_path
    )
    features = load_reference(
        str(tmp_path / "stats" / "toy_clean_custom_na_kid.npz"), ours, None, tmp_path
    )
    np.testing.assert_allclose(reference.test.cov, features.test.cov, atol=1e-4)
    assert features.sample.shape == (30, 2048)
