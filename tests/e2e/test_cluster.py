"""What docs/cluster.md promises has a test, and the files for containers name what is there."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from stepsearch.cli.app import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
CLUSTER = ROOT / "scripts" / "cluster"
COMMANDS = typer.main.get_command(app).commands
yaml = pytest.importorskip("yaml")


def test_each_row_of_what_dies_names_a_test():
    rows = PAGE.partition("## What happens when something dies")[2].splitlines()
    rows = [row for row in rows if row.startswith("| ") and not row.startswith("| what |")]
    assert len(rows) > 12
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        (name,) = re.findall(r"`(test_\w+)`", row)
        assert f"def {name}(" in tests, row


def test_the_manifest_is_a_job_whose_command_is_a_worker():
    text = (CLUSTER / "workers.yaml").read_text()
    (job,) = yaml.safe_load_all(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "OnFailure"
    (container,) = pod["containers"]
    command, study, *options = container["args"]
    known = {name for p in COMMANDS[command].params for name in p.opts}
    assert {option for option in options if option.startswith("--")} <= known
    assert (ROOT / "studies" / Path(study).name).exists()
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert any(study.startswith(m["mountPath"]) for m in container["volumeMounts"])
    (variable,) = container["env"]
    used = {p.envvar for p in COMMANDS[command].params if p.envvar}
    assert variable["name"] in used
    # what the commands above it and in the page create
    secret = variable["valueFrom"]["secretKeyRef"]
    for place in (text, PAGE):
        assert f"secret generic {secret['name']} --from-literal={secret['key']}=" in place
        assert f"configmap {pod['volumes'][0]['configMap']['name']} --from-file=" in place


def test_the_image_has_what_the_package_is_built_of():
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert [name for name, _ in steps][:2] == ["ARG", "FROM"]
    copied = {name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {project["project"]["readme"], *project["project"]["license-files"]}
    wanted |= {name.partition("/")[0] for name in build["packages"]} | {"pyproject.toml"}
    assert wanted <= copied
    install = next(rest for step, rest in steps if step == "RUN" and "pip" in rest)
    extra = re.search(r"\.\[(\w+)\]", install)[1]
    assert extra in project["project"]["optional-dependencies"]
    entry = next(rest for step, rest in steps if step == "ENTRYPOINT")
    assert yaml.safe_load(entry)[0] in project["project"]["scripts"]
    assert ["USER", "worker"] in steps  # not root


def test_extras_of_the_page_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"stepsearch\[(\w+)\]", PAGE))
    assert named == {"cluster", "slurm", "ray"}
    assert named <= set(project["optional-dependencies"])
    for line in PAGE.splitlines():
        if line.startswith("stepsearch "):
            assert shlex.split(line.rstrip("\\"), comments=True)[1] in COMMANDS
