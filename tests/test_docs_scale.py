"""docs/scale.md: its lines are the words of commands, its files parse, and what one machine can run of it runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from commandline import FAST, SMALL, mimkit
from mimkit.cli.doctor import DoctorArguments
from mimkit.cli.launch import LaunchArguments, split
from mimkit.core.flags import parse
from places import ROOT

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.DOTALL)
TEXT = "\n".join(block for _, block in BLOCKS).replace("\\\n", " ")
NUMBERS = {"$SKYPILOT_NUM_GPUS_PER_NODE": "8", "{n}": "2", "{i}": "1"}
TINY = f"--batch-size 8 --epochs 1 {SMALL} {FAST} --images.size 12 --encoder.patch 4 --max-steps 2"


def words_of(line: str) -> list[str]:
    """The words behind `mimkit`, with numbers where a scheduler would put some."""
    line = re.sub(r"\$\w*(NODES|NNODES)\b", "2", line)
    line = re.sub(r"\$\w*(RANK|INDEX)\b", "1", line)
    for name, number in NUMBERS.items():
        line = line.replace(name, number)
    return shlex.split(line.partition("  #")[0].rstrip('"'))


def lines_of(command: str) -> list[list[str]]:
    """All calls of a command on the page, over their line breaks."""
    joined = re.sub(r"\n +(?=pretrain )", " ", TEXT)
    return [words_of(line) for line in re.findall(rf"mimkit {command} (.*)", joined)]


def test_what_is_launched_is_what_launch_and_pretrain_take():
    calls = lines_of("launch")
    assert len(calls) >= 8
    for call in calls:
        ours, words = split(call)
        arguments = parse(LaunchArguments, [*ours, words[0]], "mimkit launch")
        assert arguments.gpus == 8 or arguments.processes == 2
        assert (arguments.nodes > 1) == (arguments.rendezvous is not None)
        assert words[0] == "pretrain" and words[2::2][:2] == ["--data", "--run"]
    recipes = {call[call.index("pretrain") + 1] for call in calls}
    assert all("--data" in mimkit(f"pretrain {name} --help").out for name in recipes)


def test_plans_are_what_doctor_takes():
    calls = lines_of("doctor")
    assert len(calls) >= 2 and all(parse(DoctorArguments, call, "mimkit doctor").gpus for call in calls)


def test_files_of_schedulers_parse():
    kinds = [kind for kind, _ in BLOCKS]
    for kind, block in BLOCKS:
        if kind == "yaml":
            assert all(isinstance(document, dict) for document in yaml.safe_load_all(block))
        elif kind == "python":
            compile(block, "scale.md", "exec")
    job = list(yaml.safe_load_all(next(block for kind, block in BLOCKS if "indexed" in block.lower() and kind)))[1]
    pod = job["spec"]["template"]["spec"]
    command = pod["containers"][0]["args"][0]
    assert f"{job['metadata']['name']}-0.{pod['subdomain']}:29500" in command and "\n" not in command
    assert kinds.count("yaml") == 2 and kinds.count("python") == 1


def typed(words: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_", "SLURM"))}
    path = os.pathsep.join([str(cwd), variables["PATH"]])
    variables |= {"PYTHONPATH": str(ROOT / "src"), "PATH": path} | env
    return subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, timeout=400)


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def on_cpu(text: str, data: Path) -> str:
    """A line of the page for two processes of a CPU, a small model and these pictures."""
    text = text.replace("--gpus 8", "--processes 2").replace("mae_vit_l16", "mae_mini_32").replace("/shared/runs/", "")
    return re.sub(r"--data D --run (\w+)", rf"--data {data} --run \1 {TINY}", text)


@pytest.fixture
def machine(tmp_path) -> Path:
    script(tmp_path, "mimkit", f'exec {sys.executable} -P -m mimkit.cli "$@"')
    return tmp_path


@pytest.mark.slow
def test_the_line_of_one_host_runs(machine, forty):
    line = next(line for line in TEXT.splitlines() if "--processes 2" in line).partition("#")[0]
    ended = typed(["sh", "-c", on_cpu(line, forty)], machine)
    assert ended.returncode == 0 and (machine / "R" / "config.json").exists(), ended.stderr


@pytest.mark.slow
def test_the_file_for_slurm_runs_where_slurm_is_replaced(machine, forty):
    batch = next(block for _, block in BLOCKS if "#SBATCH" in block)
    (machine / "job.sh").write_text(on_cpu(batch, forty))
    script(machine, "scontrol", "echo 127.0.0.1; echo elsewhere")
    script(machine, "srun", 'SLURM_NODEID=0 SLURM_PROCID=0 SLURM_NTASKS=1 exec "$@"')
    ended = typed(["bash", "job.sh"], machine, SLURM_NNODES="1", SLURM_JOB_NODELIST="a", SLURM_JOB_ID="7")
    assert ended.returncode == 0 and (machine / "l16" / "config.json").exists(), ended.stderr
    refused = typed(["mimkit", "pretrain"], machine, SLURM_NTASKS="16", SLURM_PROCID="0", SLURM_NNODES="2")
    assert refused.returncode == 2 and "mimkit launch --gpus N --nodes 2" in refused.stderr


@pytest.mark.slow
def test_a_plan_runs(forty):
    line = next(call for call in lines_of("doctor") if "--pictures" in call)
    answer = mimkit(f"doctor {shlex.join(line)}".replace(" D ", f" {forty} "))
    assert answer.status == 0 and "64 h100 on 8 hosts, 4,096 pictures a step" in answer.out, answer.err


def test_processes_of_an_operator_need_no_launch_and_cannot_be_launched(machine):
    place = dict(RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29599")
    ended = typed(["mimkit", "launch", "--processes", "2", "pretrain"], machine, **place)
    assert ended.returncode == 2 and "'mimkit launch' runs in one process, and 2 were started" in ended.stderr
