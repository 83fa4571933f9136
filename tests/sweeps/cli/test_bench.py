"""The output of `sweep bench`: values, limits, and values that were not measured."""

import json
import math
import re

import pytest

from sweeps.bench import suite
from sweeps.bench.harness import Measurement, of_rounds
from tests.sweeps.cli.commands import Sweep


def test_what_was_not_measured_is_no_number(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Measurement("speed over Keras", math.nan, "x", 2.5, "give --keras", at_least=True)
    rows = [missing, of_rounds("speed", [1.0, 2.5, 1.5], "windows/s", "")]
    monkeypatch.setattr(suite, "measure", lambda only, **_: iter(rows))
    ended = sweep("bench", "--only", "training")
    assert "speed over Keras: not measured" in ended.err
    assert re.search("speed over Keras . not measured *. at least 2.5 x", ended.out)
    found, speed = json.loads(sweep("bench", "--only", "training", "--json").out)["measurements"]
    assert (found["value"], found["limit"], found["rounds"]) == (None, 2.5, [])
    assert (speed["value"], speed["limit"], speed["rounds"]) == (1.5, None, [1.0, 2.5, 1.5])
