"""The Slurm script: its logic with stand-ins for the programs it calls, and whole jobs on a real Slurm."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray.scripts.scripts import start as ray_start

from sweeps.cli import cli
from tests.processes import wait_for

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "cluster" / "slurm.sbatch"
BIN = Path(sys.executable).parent


def test_the_script_is_sound() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    checked = subprocess.run([BIN / "shellcheck", SCRIPT], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert "\nset -euo pipefail\n" in SCRIPT.read_text()


def test_every_option_exists() -> None:
    text = SCRIPT.read_text()
    begin = text.index("    local options=(")
    given = text[begin : text.index("--log-style=record")] + text[text.index("node --head") :].splitlines()[0]
    known = {name for parameter in ray_start.params for name in parameter.opts}
    options = set(re.findall(r"(?<=[ (])--[a-z][\w-]+", given))
    assert len(options) >= 12
    assert options <= known
    cli.commands["run"].make_context("run", ["demo", "--address", "10.0.0.1:20000"])


class StandIns:
    """A job whose programs, Ray, Slurm and `sweep`, tell how they were called and do little else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Suites run side by side, and all in /tmp; Hypothesis gives `random` the same seed in all of them.
        self.job = 10**8 + secrets.randbelow(9 * 10**8)
        tell = (
            f'echo "${{0##*/}} $*" >>{folder}/called; echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >>{folder}/tokens'
        )
        programs = {
            "ray": 'echo "Ray runtime started."; trap "exit 1" TERM; sleep 60 & wait',
            "sweep": '[[ $STATUS == told ]] || exit $STATUS; trap "kill %1; exit 143" TERM; sleep 60 & wait',
            "srun": 'while [[ $1 != bash ]]; do shift; done; exec "$@"',
            "scontrol": "[[ $* != *hostnames* ]] || { echo n1; echo n2; }; echo NodeAddr=127.0.0.1",
        }
        (folder / "bin").mkdir()
        for name, does in programs.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{tell}\n{does}\n")
            (folder / "bin" / name).chmod(0o755)

    def start(
        self, *, nodes: int = 1, status: int | None = None, further: int = 0
    ) -> "subprocess.Popen[str]":
        """A job whose `sweep` ends with a status; None: when it is told to."""
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "STATUS": "told" if status is None else str(status),
            "SLURM_JOB_ID": str(self.job + further),
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_ON_NODE": "4",
            "SLURM_MEM_PER_NODE": "8192",
            "SLURM_SUBMIT_DIR": str(self.folder),
        }
        return subprocess.Popen(
            ["bash", SCRIPT, "quick", "--set", "a=b c"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def folders(self) -> list[Path]:
        """What the job has in /tmp."""
        return [*Path("/tmp").glob(f"sweep-{self.job}.*")]

    def called(self, program: str) -> list[str]:
        """Its arguments, a line for each call."""
        file = self.folder / "called"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.removeprefix(f"{program} ") for line in lines if line.startswith(f"{program} ")]


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path)


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_the_job_ends_as_the_sweep_does(stand_ins: StandIns, status: int) -> None:
    job = stand_ins.start(status=status)
    job.communicate(timeout=30)
    assert job.returncode == status
    assert not stand_ins.called("scontrol")
    assert re.fullmatch(r"run quick --set a=b c --address 127\.0\.0\.1:\d+", *stand_ins.called("sweep"))
    (head,) = stand_ins.called("ray")
    assert "--num-cpus=4 --num-gpus=0 " in head
    assert f"--object-store-memory={2 * 2**30}" in head
    assert not stand_ins.folders()


@pytest.mark.parametrize(("told", "queued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_only_the_time_limit_queues_it_again(stand_ins: StandIns, told: signal.Signals, queued: bool) -> None:
    job = stand_ins.start()
    wait_for(lambda: stand_ins.called("sweep"), seconds=20)
    time.sleep(0.3)  # its trap is set
    job.send_signal(told)
    job.communicate(timeout=30)
    assert job.returncode == 143
    assert stand_ins.called("scontrol") == ([f"requeue {stand_ins.job}"] if queued else [])


def test_told_before_ray_is_up_it_trains_nothing(stand_ins: StandIns) -> None:
    (stand_ins.folder / "bin" / "ray").write_text("#!/bin/bash\nexec sleep 60\n")
    job = stand_ins.start()
    wait_for(stand_ins.folders, seconds=20)
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=30)
    assert job.returncode == 143
    assert stand_ins.called("scontrol") == [f"requeue {stand_ins.job}"]
    assert not stand_ins.called("sweep")


def test_a_ray_that_does_not_start_is_told(stand_ins: StandIns) -> None:
    (stand_ins.folder / "bin" / "ray").write_text("#!/bin/bash\necho no room here; exit 1\n")
    job = stand_ins.start()
    _, err = job.communicate(timeout=30)
    assert job.returncode == 1
    assert "Ray did not start" in err
    assert "no room here" in err
    assert not stand_ins.called("sweep")


def test_an_environment_that_is_missing_is_told(stand_ins: StandIns) -> None:
    (stand_ins.folder / "bin" / "sweep").unlink()
    path = os.environ["PATH"]
    os.environ["PATH"] = "/usr/bin:/bin"
    try:
        job = stand_ins.start()
    finally:
        os.environ["PATH"] = path
    _, err = job.communicate(timeout=30)
    assert job.returncode == 2
    assert err.startswith("slurm.sbatch: sweep is not on the PATH; ")
    assert not stand_ins.called("ray")


def test_jobs_on_one_machine_have_their_own_ports_and_tokens(stand_ins: StandIns) -> None:
    jobs = [stand_ins.start(nodes=2, status=0, further=further) for further in (0, 1)]
    for job in jobs:
        job.communicate(timeout=30)
        assert job.returncode == 0
    started = stand_ins.called("ray")
    ports = {re.findall(r"--port=(\d+)", call)[0] for call in started if "--head" in call}
    joined = {
        re.findall(r"--address=127\.0\.0\.1:(\d+)", call)[0] for call in started if "--head" not in call
    }
    assert len(ports) == 2
    assert ports == joined
    seen = (stand_ins.folder / "tokens").read_text().splitlines()
    tokens = {line.removeprefix("token ") for line in seen}
    assert {len(token) for token in tokens} == {64}  # every program has one, and Ray asks for it
    assert len(tokens) == 2
    said = (stand_ins.folder / "called").read_text()
    assert not any(token in said for token in tokens)


STUDY = {
    "study": "tiny",
    "data": {"synthetic": {"sites": 24, "days": 60}},
    "design": {
        "variant": ["none", "latlon"],
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
        "seed": [0, 1],
    },
    "model": {"width": 4, "depth": 1, "attention_units": 4},
    "train": {"max_epochs": 60, "patience": 60},
    "resources": {"cpu": 1, "gpu": 1},
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Slurm:
    """A Slurm of two nodes on this machine, each with two pretended GPUs, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin",
            "PYTHONPATH": str(ROOT),
            "SWEEP_PRETEND_GPUS": "16",
            # No idle workers: they lack the study's code, so no training could use them.
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_worker_prestart": "0",
        }
        host = socket.gethostname().split(".")[0]
        settings = {
            "ClusterName": "pm25",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": _free_port(),
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={folder}/munge.socket",
            "CredType": "cred/munge",
            "ProctrackType": "proctrack/linuxproc",  # as cgroups do, it signals every process of a job
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "SwitchType": "switch/none",
            "GresTypes": "gpu",
            "ReturnToService": 2,
            "StateSaveLocation": f"{folder}/state",
            "SlurmdSpoolDir": f"{folder}/%n",
            "SlurmctldPidFile": f"{folder}/slurmctld.pid",
            "SlurmdPidFile": f"{folder}/%n.pid",
            "SlurmdParameters": "config_overrides",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1",
            "JobRequeue": 0,  # the script asks for it
            "KillWait": 20,
        }
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port()} "
            "CPUs=2 RealMemory=4000 Gres=gpu:2"
            for name in ("n1", "n2")
        ]
        lines = [*(f"{name}={value}" for name, value in settings.items()), *nodes]
        (folder / "slurm.conf").write_text("\n".join([*lines, "PartitionName=all Nodes=ALL Default=YES", ""]))
        for name in ("nvidia0", "nvidia1"):
            (folder / name).touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia[0-1]\n")
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        files = ("key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid", "seed-file=munge.seed")
        options = [f"--{option.replace('=', f'={folder}/')}" for option in (*files, "log-file=munge.log")]
        self._daemons = [self._start("munged", "--force", "--foreground", *options)]
        wait_for((folder / "munge.socket").exists, seconds=10)
        self._daemons.append(self._start("slurmctld", "-D"))
        self._daemons += [self._start("slurmd", "-D", "-N", name) for name in ("n1", "n2")]
        wait_for(
            lambda: self.ask("sinfo", "--noheader", "--format=%T %D", check=False) == "idle 2", seconds=30
        )

    def _start(self, *command: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{command[0]}.log").open("a") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=self.folder)

    def ask(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def submit(self, *arguments: str) -> str:
        small = ("--cpus-per-task=1", "--mem=1500", "--time=10")
        return self.ask("sbatch", "--parsable", *small, *arguments)

    def told(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "--oneliner", "show", "job", job)))

    def ended(self, job: str) -> bool:
        return self.told(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")

    def log(self, job: str) -> str:
        file = self.folder / f"sweep-{job}.log"
        return file.read_text() if file.exists() else ""

    def records(self) -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in self.folder.glob("results/tiny/cells/*/result.json")}

    def stop(self) -> None:
        self.ask("scancel", "--user=root")
        wait_for(lambda: not self.ask("squeue", "--noheader"), seconds=60)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(20)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """A Slurm of its own: no service of the machine is touched."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    for program, package in (("slurmctld", "slurm-wlm"), ("slurmd", "slurm-wlm"), ("munged", "munge")):
        if shutil.which(program, path=path) is None:
            pytest.skip(f"no {program} on this machine: apt-get install {package}")
    if os.getuid() != 0:
        pytest.skip("slurmd starts jobs as root only")
    folder = Path(tempfile.mkdtemp(prefix="pm25-slurm-"))
    try:
        cluster = Slurm(folder)
        yield cluster
        cluster.stop()
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_preempted_job_resumes_by_itself_beside_another_job(slurm: Slurm) -> None:
    (slurm.folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    script = str(SCRIPT)
    job = slurm.submit("--nodes=2", script, "tiny.yaml")  # one GPU on each node, as the script says
    wrong = slurm.submit("--gpus-per-node=0", script, "tiny.yaml", "--set", "data.synthetic.sites=none")
    wait_for(lambda: slurm.records(), seconds=150)
    before = slurm.records()
    assert len(before) < 4
    slurm.ask("scontrol", "requeue", job)
    wait_for(lambda: slurm.told(job)["JobState"] == "PENDING", seconds=60)
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait for two minutes
    wait_for(lambda: slurm.ended(job), seconds=300)

    told, log = slurm.told(job), slurm.log(job)
    assert (told["JobState"], told["ExitCode"], told["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    after = slurm.records()
    assert len(after) == 4
    assert {path: after[path] for path in before} == before, "a recorded cell ran again"
    assert log.count("2 nodes with") in (1, 2)  # once if all cells had ended before the job was stopped
    assert "4 of 4 cells done" in log
    placed = [json.loads(record)["placement"] for record in after.values()]
    assert all(len(place["gpus"]) == 1 for place in placed)
    with sqlite3.connect(slurm.folder / "results" / "mlflow.db") as database:
        runs = database.execute(
            "select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'key' and r.lifecycle_stage = 'active'"
        ).fetchall()
    assert sorted(runs) == sorted((path.parent.name, "FINISHED") for path in after)

    told, log = slurm.told(wrong), slurm.log(wrong)
    assert (told["JobState"], told["ExitCode"], told["Restarts"]) == ("FAILED", "2:0", "0"), log
    assert "sites" in log
    for one in (job, wrong):
        assert not [*Path("/tmp").glob(f"sweep-{one}.*")]
