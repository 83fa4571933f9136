"""`data check` lists the channels, and `plan` names what was left out and what is doubtful."""

import json
from pathlib import Path

import pandas as pd

from tests.sweeps.cli.commands import Sweep


def test_the_channels_are_listed_and_what_was_left_out_is_named(sweep: Sweep, toy: Path) -> None:
    table = toy.parent / "panel.parquet"
    frame = pd.read_parquet(table)
    frame.loc[3:20, "wind_speed_ms"] = float("nan")
    frame.loc[[5, 6, 7], "crn_tmax_c"] = -500.25
    frame.assign(n=range(len(frame)), rh=float("nan")).to_parquet(table, index=False)

    content = json.loads(sweep("data", "check", table, "--json").out)
    by_name = {channel["name"]: channel for channel in content["channels"]}
    assert by_name["wind_speed_ms"]["missing"] == 18 / len(frame)
    assert by_name["wind_speed_ms"]["missing_becomes"] == "mean of the training windows"
    assert by_name["crn_tmax_c"]["lowest"] == -500.25
    assert {"n", "rh"}.isdisjoint(by_name)
    assert [entry["column"] for entry in content["left_out"]] == ["n", "rh"]

    shown = sweep("data", "check", table)
    assert shown.status == 0
    (line,) = [line for line in shown.out.splitlines() if "wind_speed_ms" in line]
    assert "3.75%" in line
    assert "mean of the training windows" in line

    plan = sweep("plan", toy, "--no-calibrate")
    for notice in ("n: not a channel: it numbers the rows", "rh: not a channel: it has no value"):
        assert f"  notice  {notice}" in plan.out
    assert "  notice  crn_tmax_c: -500.25 in 3 rows may be a missing code" in plan.out
    planned = json.loads(sweep("plan", toy, "--no-calibrate", "--json").out)
    assert [text.split(":")[0] for text in planned["left_out"]] == ["n", "rh"]
    assert any("-500.25" in text for text in planned["doubts"])
