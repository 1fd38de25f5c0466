"""Images never take the place of other ones."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from stepsampler.support.images.pixels import read_pixels
from stepsampler.support.pictures import keep_png


def picture(value):
    return torch.full((3, 4, 4), value, dtype=torch.uint8)


@pytest.mark.parametrize("links", [True, False])
def test_another_image_of_the_same_name_is_counted_up(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise PermissionError("no links on this file system")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "new" / "a.png"
    for value, name in ((1, "a"), (2, "a-2"), (3, "a-3"), (2, "a-2"), (1, "a")):
        place = keep_png(picture(value), path)
        assert place == path.with_stem(name)
        assert Image.open(place).getpixel((0, 0)) == (value,) * 3
    assert sorted(p.name for p in path.parent.iterdir()) == ["a-2.png", "a-3.png", "a.png"]


def test_of_two_processes_one_gets_the_name(tmp_path, monkeypatch):
    path, link = tmp_path / "a.png", os.link

    def late(source, target):
        if target == path and not path.exists():
            path.write_bytes(b"of another process")
        return link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert keep_png(picture(1), path) == tmp_path / "a-2.png"
    assert path.read_bytes() == b"of another process"


def test_a_video_is_an_animation_whose_still_is_its_middle_frame(tmp_path):
    video = torch.randint(0, 256, (5, 3, 8, 6), dtype=torch.uint8, generator=torch.manual_seed(0))
    place = keep_png(video, tmp_path / "v.png")
    assert keep_png(video, tmp_path / "v.png") == place, "it lies there already"
    assert keep_png(video[:1], tmp_path / "v.png").name == "v-2.png"
    found = Image.open(place)
    assert (found.n_frames, found.default_image) == (6, True)
    read = []
    for k in range(6):
        found.seek(k)
        read.append(np.array(found.convert("RGB")))
    rows = video.movedim(1, -1).numpy()
    assert np.array_equal(read[0], rows[2])
    assert np.array_equal(read[1:], rows)
    assert found.info["duration"] == pytest.approx(1000 / 16, abs=1)
    still = read_pixels(place.read_bytes(), None, "none", "apply")
    assert torch.equal(still, video[2]), "where images are measured"
