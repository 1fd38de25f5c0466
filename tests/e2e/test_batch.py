import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from stepsampler.cli.app import app
from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule


@pytest.mark.timeout(3600)
def test_a_killed_command_resumes(tmp_path):
    schedule = make_schedule("power", 2, NoiseSchedule.scaled_linear(), guidance_scale=2.0)
    schedule.save(tmp_path / "s.json")
    (tmp_path / "p.txt").write_text("".join(f"a photo of a bag {i}\n" for i in range(40)))
    code = "from stepsampler.cli import main; main()"
    command = [sys.executable, "-c", code, "batch", str(tmp_path / "s.json"), "--prompts"]
    command += [str(tmp_path / "p.txt"), "-o", str(tmp_path / "out"), "--batch-size", "1"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = tmp_path / "out" / "manifest.jsonl"
    deadline = time.monotonic() + 1800  # against hanging alone
    while time.monotonic() < deadline and killed.poll() is None:
        if path.exists() and path.read_text().count("\n") > 3:
            break
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    before = manifest_lines(path)
    assert 1 < len(before) < 41
    result = CliRunner().invoke(app, command[3:])
    assert result.exit_code == 0, result.output
    after = manifest_lines(path)
    assert after[: len(before)] == before
    assert [json.loads(line)["seed"] for line in after[1:]] == list(range(40))
    assert "40 images of 4 passes each, and manifest.jsonl" in result.output


def manifest_lines(path):
    return [line for line in path.read_text().split("\n")[:-1] if line]
