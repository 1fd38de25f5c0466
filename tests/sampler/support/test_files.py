import os
import subprocess
import sys

import pytest
import torch

from stepsampler.support.files import write_text
from stepsampler.support.pictures import keep_png, save_png


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """After a power loss a file of that name is the old one or the new one, never an empty one."""
    synced, replace, fsync = [], os.replace, os.fsync

    def sync(handle):
        synced.append(os.fstat(handle).st_size)
        fsync(handle)

    def rename(source, target):
        assert synced == [3]
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    write_text(tmp_path / "x", "abc")
    assert (tmp_path / "x").read_text() == "abc"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("letter", ["a", "é", "家", "🙂"])
def test_the_longest_names_that_a_disk_takes_are_written(tmp_path, letter):
    """What is written first, under another name, has no longer one."""
    name = letter * (251 // len(letter.encode()))
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    write_text(tmp_path / f"{name}.txt", "abc")
    save_png(image, tmp_path / f"{name}.png")
    assert keep_png(image, tmp_path / f"{name}.png") == tmp_path / f"{name}.png"
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.txt", f"{name}.png"}


def test_sigterm_leaves_no_half_file_and_has_its_code(tmp_path):
    """SLURM, `docker stop` and systemd send it; a second one does not interrupt the tidying up."""
    code = f"""
import os, signal, sys, time
from stepsampler.errors import run_command_line
from stepsampler.support.files import replacing

def app(prog_name):
    try:
        with replacing({str(tmp_path / "x")!r}):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("tidy")

run_command_line(app, "x")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (143, "tidy\n", "")
    assert not list(tmp_path.iterdir())
