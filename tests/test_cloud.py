"""The jobs of `cloud/` and the commands of `docs/cloud.md`, seen from one machine."""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess

import pytest
from absl import flags as absl_flags

from yt8m import distribution

ROOT = pathlib.Path(__file__).parent.parent
CLOUD = ROOT / "cloud"
PAGE = (ROOT / "docs" / "cloud.md").read_text()
JOBS = sorted(CLOUD.glob("*.yaml"))
# What Google lists for machines of the family that the jobs use.
GPUS_OF_MACHINE = {"g2-standard-16": 1, "g2-standard-96": 8, "n2-standard-32": 0}


def shell_commands() -> list[list[str]]:
    """The commands of the page, split as a shell would, its variables replaced."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
    text = "\n".join(blocks).replace("\\\n", " ")
    text = text.replace("$BUCKET_NAME", "gs://bucket").replace("$i", "3")
    return [shlex.split(line, comments=True) for line in text.splitlines()]


def parse_flags(command: str, arguments: list[str]) -> absl_flags.FlagValues:
    """Parses what a command is given; raises if it has no such flag or value."""
    module = importlib.import_module(f"yt8m.cli.{command.replace('-', '_')}")
    flags = absl_flags.FlagValues()
    module.define(flags)
    rest = flags([command, *arguments])[1:]
    assert not rest, f"{rest} are no flags"
    return flags


def submitted(command: list[str]) -> tuple[str, list[str]]:
    """The job file and the arguments of a `gcloud ai custom-jobs create`."""
    given = dict(a.lstrip("-").split("=", 1) for a in command if a.startswith("--"))
    assert given["args"].startswith("^;^")
    return given["config"], given["args"].removeprefix("^;^").split(";")


def read_yaml(text: str):
    """The mappings, lists and scalars of a file that has nothing else of YAML."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|$)", line)]
    value, rest = _block([_split(line) for line in lines], 0)
    assert not rest, f"wrongly indented: {rest[0]}"
    return value


def _split(line: str) -> tuple[int, str]:
    return len(line) - len(line.lstrip(" ")), line.strip()


def _block(lines: list[tuple[int, str]], indent: int):
    """The value that starts at `indent`, and the lines after it."""
    items, mapping = [], {}
    while lines and lines[0][0] == indent:
        text, lines = lines[0][1], lines[1:]
        if text.startswith("- "):
            item, lines = _block([(indent + 2, text[2:]), *lines], indent + 2)
            items.append(item)
            continue
        key, value = re.fullmatch(r"(\w+):(?: (.*))?", text).groups()
        assert key not in mapping, f"{key} is there twice"
        if value is None:
            mapping[key], lines = _block(lines, lines[0][0])
            assert mapping[key], f"{key} is empty"
        else:
            mapping[key] = int(value) if value.isdecimal() else value
    assert not (items and mapping)
    return items or mapping, lines


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_a_job_file_says_what_vertex_asks_for(path):
    job = read_yaml(path.read_text())
    assert set(job) <= {"workerPoolSpecs", "scheduling"}
    for pool in job["workerPoolSpecs"]:
        machine = pool["machineSpec"]
        gpus = GPUS_OF_MACHINE[machine["machineType"]]
        assert machine.get("acceleratorCount", 0) == gpus
        assert ("acceleratorType" in machine) == bool(gpus)
        assert pool["containerSpec"]["imageUri"].startswith("us-east1-docker.pkg.dev/")
    assert job["workerPoolSpecs"][0]["replicaCount"] == 1


def test_every_job_of_the_page_has_its_file_and_flags_that_exist():
    jobs = [submitted(c) for c in shell_commands() if "custom-jobs" in c]
    assert {config for config, _ in jobs} == {f"cloud/{p.name}" for p in JOBS}
    for _, (command, *arguments) in jobs:
        parse_flags(command, arguments)
    strategies = {
        config: parse_flags(command, arguments).strategy
        for config, (command, *arguments) in jobs
    }
    assert strategies["cloud/vertex_8gpu.yaml"] == "mirrored"
    assert strategies["cloud/vertex_multi_worker.yaml"] == "multi_worker"


def test_the_other_commands_of_the_page_parse_too():
    commands = shell_commands()
    ours = [c[1:] for c in commands if c and c[0] == "yt8m"]
    ours += [
        [c[1].removesuffix(".py"), *c[2:]] for c in commands if c[:1] == ["python"]
    ]
    assert {c[0] for c in ours} == {"merge", "train"}
    for command, *arguments in ours:
        parse_flags(command, arguments)


def test_the_workers_of_the_job_are_understood_as_vertex_names_them(monkeypatch):
    job = read_yaml((CLOUD / "vertex_multi_worker.yaml").read_text())
    chief, workers = (pool["replicaCount"] for pool in job["workerPoolSpecs"])
    cluster = {
        "chief": [f"job-workerpool0-{i}:2222" for i in range(chief)],
        "worker": [f"job-workerpool1-{i}:2222" for i in range(workers)],
    }

    def number(role: str, index: int) -> int:
        task = {"type": role, "index": index}
        config = {"cluster": cluster, "environment": "cloud", "task": task, "job": "{}"}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        return distribution.read_cluster().number

    assert number("chief", 0) == 0
    assert [number("worker", i) for i in range(workers)] == [1, 2, 3]
    # A job of one machine is described too, and is no cluster.
    alone = {"cluster": {"chief": ["a:2222"]}, "task": {"type": "chief", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(alone))
    assert distribution.read_cluster() is None


@pytest.mark.parametrize("exists", [True, False])
def test_the_tpu_script_makes_a_vm_once_and_trains_there(exists, tmp_path):
    script = next(c for c in shell_commands() if "cloud/tpu_vm.sh" in c)
    settings = [word for word in script if re.match("[A-Z]+=", word)]
    arguments = script[script.index("cloud/tpu_vm.sh") + 1 :]
    gcloud, calls = tmp_path / "gcloud", tmp_path / "calls"
    gcloud.write_text(
        f'#!/bin/sh\nprintf "%s\\0" "$@" END >> {calls}\n'
        f'if [ "$4" = describe ]; then exit {int(not exists)}; fi\n'
    )
    gcloud.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", str(CLOUD / "tpu_vm.sh"), *arguments],
        check=True,
        env={**os.environ, "PATH": path, **dict(s.split("=") for s in settings)},
    )
    made = [c.strip("\0").split("\0") for c in calls.read_text().split("END")[:-1]]
    steps = (
        ["describe", "scp", "ssh"] if exists else ["describe", "create", "scp", "ssh"]
    )
    assert [call[3] for call in made] == steps
    assert all("--zone=us-central1-b" in call for call in made)
    remote_script = made[-1][-1].removeprefix("--command=")
    subprocess.run(["bash", "-n", "-c", remote_script], check=True)
    train = shlex.split(remote_script.strip().splitlines()[-1])
    assert train[0].endswith("yt8m")
    flags = parse_flags(train[1], train[2:])
    assert (flags.strategy, flags.tpu) == ("tpu", "local")
    assert flags.train_data_pattern.endswith("train*.tfrecord")


def test_the_image_copies_files_that_exist():
    copied = re.findall(
        r"^COPY ((?:.*\\\n)*.*)$", (CLOUD / "Dockerfile").read_text(), re.M
    )
    sources = [s for c in copied for s in c.replace("\\\n", " ").split()[:-1]]
    assert {"setup.py", "yt8m", "frame_level_models.py"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
