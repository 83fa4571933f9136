"""Leaks by the command line: `plan`, `run` and `data check` refuse them, and `verify` looks for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pm25 import negative_control
from pm25.cell import Cell
from pm25.negative_control import Control
from pm25.neighbours import inverse_distance
from sweeps.spec import study_file
from tests.sweeps.cli.commands import HERE, Sweep, by_key, check_refused, tree

COMMANDS = {"plan": HERE, "run": ("--dry-run",)}


def hide(folder: Path, kind: str) -> None:
    """Add a channel `gust` to the table that contains the target."""
    path = folder / "panel.parquet"
    frame = pd.read_parquet(path)
    target = frame["pm25"].to_numpy().reshape(12, 40)
    if kind == "copy":
        hidden = 40 * np.log1p(np.maximum(target, 0))
    elif kind == "lag":
        hidden = np.concatenate([np.full((12, 1), np.nan), target[:, :-1]], axis=1)
    else:
        lat, lon = (frame[name].to_numpy()[::40] for name in ("lat", "lon"))
        others, _ = inverse_distance(target, lat, lon, k=9, power=2)
        hidden = np.where(np.isfinite(target), 0.9 * target + 0.1 * others, others)
    frame.assign(gust=hidden.reshape(-1)).to_parquet(path, index=False)


@pytest.mark.parametrize("kind", ["copy", "lag", "idw"])
def test_a_hidden_target_stops(sweep: Sweep, toy: Path, kind: str) -> None:
    hide(toy.parent, kind)
    before = tree(toy.parent)
    for command, options in COMMANDS.items():
        check_refused(sweep(command, toy, *options), "panel.parquet: gust: ", "data.harmless: [gust]")
    check_refused(sweep("run", toy), "panel.parquet: gust: ")
    ended = sweep("data", "check", toy.parent / "panel.parquet")
    assert ended.status == 2
    assert ended.err.startswith("problem: gust: ")
    (problem,) = json.loads(sweep("data", "check", toy.parent / "panel.parquet", "--json").out)["problems"]
    assert problem["column"] == "gust"
    assert sweep("data", "check", toy.parent / "panel.parquet", "--harmless", "gust").status == 0
    assert sweep("status", toy).status == 0  # a store can be read whatever its channels are
    assert tree(toy.parent) == before


@pytest.mark.parametrize(
    "override", ["data.harmless=gust", "data.channels=[elev_m, crn_tmax_c]", "protocol=paper"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_leak_is_declared_left_out_or_published(
    sweep: Sweep, toy: Path, command: str, override: str
) -> None:
    hide(toy.parent, "copy")
    options = [*COMMANDS[command], *(["--no-calibrate"] if command == "plan" else [])]
    assert sweep(command, toy, *options, "--set", override).status == 0


def test_harmless_channels_change_no_key(toy: Path) -> None:
    one, other = (study_file.load(str(toy), sets) for sets in ([], ["data.harmless=[elev_m]"]))
    assert other.data.harmless == ("elev_m",)
    assert [*by_key(one, one.panel())] == [*by_key(other, other.panel())]


@pytest.mark.parametrize(
    ("sets", "values"),
    [
        (["data.channels=[elev_m]", "data.harmless=[elevm]"], ("data.harmless", "elevm", "elev_m")),
        (["data.harmless=[gust]"], ("data.harmless", "gust", "elev_m")),
    ],
)
def test_an_unknown_harmless_channel_is_refused(
    sweep: Sweep, toy: Path, sets: list[str], values: tuple[str, ...]
) -> None:
    words = [part for one in sets for part in ("--set", one)]
    check_refused(sweep("plan", toy, *HERE, *words), *values)


@pytest.mark.usefixtures("one_thread")
def test_the_negative_control_of_a_study(sweep: Sweep, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(toy.parent)
    ended = sweep("verify", toy, "--negative-control")
    assert (ended.status, ended.err) == (0, "")
    none, latlon = ended.out.splitlines()
    assert none.startswith("  none: 1 cells, test R2 ")
    assert latlon.startswith("  latlon: 1 cells, test R2 ")
    assert sweep("verify", toy, "--negative-control", "--sample", "9").out == ended.out
    assert tree(toy.parent) == before

    def leaking(cell: Cell, *_: Any, **__: Any) -> list[Control]:
        """Tests of `pm25.negative_control` find a leak in a training; 12 sites are too few for it here."""
        least = 0.5 if cell.variant == "latlon" else -0.1
        return [Control("test", 0.9, 0.2, 0.8, least), Control("wr", 0.1, 0.2, -0.1, -0.3)]

    monkeypatch.setattr(negative_control, "control", leaking)
    ended = sweep("verify", toy, "--negative-control")
    assert ended.status == 1
    none, latlon = ended.out.splitlines()
    assert "leak" not in none
    assert all(value in latlon for value in ("latlon", "test R2 0.900", "+0.800", "+0.500", "leak"))
