"""The tracking server's files agree with each other and with constraints.txt, and hold no secret."""

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeps.cli import cli

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "mlflow"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SCRIPTS = sorted(FOLDER.glob("*.sh"))
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
SECRETS = {"MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "POSTGRES_PASSWORD"}
SERVE_ONLY = {"MLFLOW_STATE", "MLFLOW_BACKEND_STORE_URI", "PGPASSWORD"}


def used() -> dict[str, str]:
    """The variables that compose.yaml takes from its environment, with what follows their names."""
    text = (FOLDER / "compose.yaml").read_text()
    named = dict(re.findall(r"\$\{(\w+)([^}]*)\}", text))
    handed_on = {name for s in SERVICES.values() for name, value in s["environment"].items() if value is None}
    return {**named, **dict.fromkeys(handed_on, "")}


def explained() -> dict[str, str]:
    """The variables of .env.example with their values, those that are commented out as well."""
    return dict(re.findall(r"^#?([A-Z]\w*)=(.*)$", (FOLDER / ".env.example").read_text(), re.MULTILINE))


def test_every_variable_is_explained_and_used() -> None:
    assert set(used()) == set(explained()) - SERVE_ONLY
    scripts = "".join(path.read_text() for path in SCRIPTS)
    for name in SERVE_ONLY - {"PGPASSWORD"}:  # which libpq reads
        assert name in scripts


def test_defaults_are_those_that_are_explained() -> None:
    for name, rest in used().items():
        if rest.startswith(":-") and explained()[name]:
            assert rest[2:] == explained()[name], name


def test_a_secret_has_no_default_and_stands_nowhere() -> None:
    for name in SECRETS:
        assert used()[name].startswith(":?")
        assert explained()[name] == ""
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY", name):
                assert value is None or str(value).startswith("${"), name


def test_the_versions_are_pinned_and_those_of_the_constraints() -> None:
    assert SERVICES["mlflow"]["image"] == f"pm25-mlflow:{PINS['mlflow']}"
    assert re.fullmatch(r"postgres:\d+\.\d+-\w+", SERVICES["postgres"]["image"])
    docker = (FOLDER / "Dockerfile").read_text()
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-slim-\w+$", docker, re.MULTILINE)
    assert "-c /tmp/constraints.txt" in docker
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    server = {re.split("[<>=]", requirement)[0] for requirement in extras["server"]}
    assert all(name in docker for name in server)
    said = (FOLDER / "README.md").read_text()
    assert f"PostgreSQL {SERVICES['postgres']['image'].split(':')[1].split('-')[0]} and" in said
    assert f"MLflow {PINS['mlflow']} in containers" in said
    assert {name.partition("[")[0] for name in server} <= set(PINS)


def test_services_are_watched_restarted_and_keep_their_data() -> None:
    for service in SERVICES.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"
        for volume in service["volumes"]:
            assert volume.split(":")[0] in COMPOSE["volumes"]
    assert SERVICES["mlflow"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert "ports" not in SERVICES["postgres"]


def test_clients_may_use_the_services_name() -> None:
    assert {"localhost:*", "127.0.0.1:*", "mlflow:*"} <= set(
        explained()["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    checked = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", "-x", path], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    if path.name != "settings.sh":  # which is sourced
        assert os.access(path, os.X_OK)
        assert "\nset -euo pipefail\n" in path.read_text()


def serve(tmp_path: Path, *arguments: str, **values: str) -> "subprocess.CompletedProcess[str]":
    enough = {"MLFLOW_AUTH_ADMIN_PASSWORD": "twelve or more", "MLFLOW_FLASK_SERVER_SECRET_KEY": "key"}
    environment = {"PATH": os.environ["PATH"], "MLFLOW_STATE": str(tmp_path / "state"), **enough, **values}
    return subprocess.run(
        [FOLDER / "serve.sh", *arguments], env=environment, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": ""}, "MLFLOW_AUTH_ADMIN_PASSWORD is not set"),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": "eleven char"}, "MLFLOW_AUTH_ADMIN_PASSWORD is shorter"),
        ({"MLFLOW_FLASK_SERVER_SECRET_KEY": ""}, "MLFLOW_FLASK_SERVER_SECRET_KEY is not set"),
        ({"MLFLOW_DEFAULT_PERMISSION": "ALL"}, "MLFLOW_DEFAULT_PERMISSION: ALL"),
        ({"MLFLOW_STATE": "here"}, "MLFLOW_STATE: here is no absolute path"),
        ({"MLFLOW_BACKEND_STORE_URI": "sqlite:///relative.db"}, "MLFLOW_BACKEND_STORE_URI: neither"),
        ({"MLFLOW_ARTIFACTS_DESTINATION": "relative"}, "MLFLOW_ARTIFACTS_DESTINATION: relative"),
    ],
)
def test_the_server_does_not_start_half_set(tmp_path: Path, values: dict[str, str], said: str) -> None:
    refused = serve(tmp_path, **values)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"serve.sh: {said}")
    assert refused.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_settings_come_from_a_file_beside_the_scripts_and_the_environment_wins(tmp_path: Path) -> None:
    for path in SCRIPTS:
        shutil.copy(path, tmp_path)
    (tmp_path / ".env").write_text(
        "# a comment\n\nMLFLOW_FLASK_SERVER_SECRET_KEY='$(touch owned) # \"x\"'\n"
        f"MLFLOW_AUTH_ADMIN_PASSWORD=twelve or more\nMLFLOW_STATE={tmp_path}/state\nMLFLOW_PORT=1234"
    )
    told = tmp_path / "mlflow"  # in the place of the program
    told.write_text('#!/bin/bash\necho "$MLFLOW_FLASK_SERVER_SECRET_KEY|$MLFLOW_AUTH_ADMIN_PASSWORD|$*"')
    told.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MLFLOW_PORT": "4321"}
    said = subprocess.run(
        [tmp_path / "serve.sh"], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    key, password, arguments = said.strip().split("|")
    assert (key, password) == ('$(touch owned) # "x"', "twelve or more")
    assert "--host 127.0.0.1 --port 4321" in arguments
    assert not list(tmp_path.rglob("owned"))
    assert (tmp_path / "state" / "basic_auth.ini").stat().st_mode & 0o777 == 0o600

    (tmp_path / ".env").write_text("export A=b\n")
    refused = subprocess.run([tmp_path / "serve.sh"], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == f"serve.sh: {tmp_path}/.env: not NAME=VALUE: export A\n"


def test_a_backup_of_sqlite_and_its_restoration(tmp_path: Path) -> None:
    state, backups = tmp_path / "state", tmp_path / "backups"
    (state / "artifacts" / "1").mkdir(parents=True)
    (state / "artifacts" / "1" / "note.txt").write_text("kept")
    backups.mkdir()
    with sqlite3.connect(state / "mlflow.db") as database:
        database.execute("create table runs as select 7 as seed")

    def script(name: str, folder: Path, state: Path) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": os.environ["PATH"], "MLFLOW_STATE": str(state)}
        return subprocess.run([FOLDER / name, folder], env=environment, capture_output=True, text=True)

    kept = script("backup.sh", backups, state)
    assert kept.returncode == 0, kept.stderr
    backup = Path(kept.stdout.strip())
    assert [*backups.iterdir()] == [backup]

    refused = script("restore.sh", backup, state)
    assert (refused.returncode, refused.stderr) == (
        2,
        f"restore.sh: {state}/mlflow.db exists; nothing is overwritten\n",
    )
    restored = script("restore.sh", backup, tmp_path / "new")
    assert restored.returncode == 0, restored.stderr
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as database:
        assert database.execute("select seed from runs").fetchall() == [(7,)]
    assert (tmp_path / "new" / "artifacts" / "1" / "note.txt").read_text() == "kept"

    gone = script("backup.sh", backups, tmp_path / "nowhere")  # leaves nothing that looks like a backup
    assert gone.returncode != 0
    assert [*backups.iterdir()] == [backup]


def test_the_readme_names_every_file() -> None:
    table = (FOLDER / "README.md").read_text().split("## Start")[0]
    there = {path.name for path in FOLDER.iterdir()} - {"README.md", "Dockerfile.dockerignore", ".env"}
    assert set(re.findall(r"`([\w.]+)`", table)) >= there


@pytest.mark.parametrize("line", re.findall(r"^sweep .*$", (FOLDER / "README.md").read_text(), re.MULTILINE))
def test_the_readmes_commands_parse(line: str) -> None:
    name, *words = shlex.split(line)[1:]
    cli.commands[name].make_context(line, words)
