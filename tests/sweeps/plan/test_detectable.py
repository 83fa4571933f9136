"""Detectable differences by hand, the effect of more units, and claims that no seed can decide."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from pm25.sources import synthetic
from sweeps.analysis import statistics
from sweeps.plan import detectable
from sweeps.plan.detectable import SHIPPED, Detectable
from sweeps.state import StudyState
from sweeps.store.records import Record
from tests import worlds
from tests.errors import refuses

BOARDS = {"kind": "checkerboards", "degrees": 16}
BLOCKS = {"kind": "blocks", "degrees": 8, "folds": 4, "deals": 2}
SPATIAL = {"kind": "spatial", "folds": 4}
RANDOM = {"kind": "random", "folds": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("detectable")
    synthetic.synthesize(sites=120, days=90).to_parquet(found / "panel.parquet", index=False)
    return found


@pytest.fixture
def study(folder: Path) -> Callable[..., StudyState]:
    """A study of latlon against none on one split, with a claim on it."""

    def make(split: dict[str, Any], **changes: Any) -> StudyState:
        on = changes.pop("on", {"split": split["kind"]})
        content = {
            "study": "toy",
            "data": {"table": "panel.parquet"},
            "design": {"variant": ["none", "latlon"], "split": [split], "seed": changes.pop("seed", [0])},
            "claims": [
                {
                    "claim": "the place helps",
                    "better": {"variant": "latlon"},
                    "than": {"variant": "none"},
                    "on": on,
                    "metric": "rmse",
                }
            ],
            **changes,
        }
        (folder / "toy.yaml").write_text(yaml.safe_dump(content))
        return StudyState(str(folder / "toy.yaml"))

    return make


def found(state: StudyState, records: Mapping[str, Record] = MappingProxyType({})) -> list[Detectable]:
    return detectable.detectable(state, records, detectable.untestable(state.study, state.panel))


def test_origins_detect_what_their_standard_error_allows(study: Callable[..., StudyState]) -> None:
    (one,) = found(study({**BOARDS, "origins": 8}))
    assert (one.units, one.stored) == (8, False)

    def by_hand(origins: int) -> float:
        quantiles = stats.t.ppf(0.975, origins - 1) + stats.t.ppf(0.8, origins - 1)
        return float(quantiles * SHIPPED["checkerboards"] * math.sqrt(1 / origins + 1))

    assert one.difference == pytest.approx(by_hand(8))
    assert one.more == {"origin": pytest.approx(by_hand(9))}
    assert one.more["origin"] < one.difference


def test_deals_are_counted_by_their_folds(study: Callable[..., StudyState]) -> None:
    (one,) = found(study(BLOCKS))
    assert one.units == 8
    se = SHIPPED["blocks"] * math.sqrt(1 / 12 + 1 / 3)
    assert one.more["deal"] == pytest.approx((stats.t.ppf(0.975, 11) + stats.t.ppf(0.8, 11)) * se)


def test_within_region_the_folds_of_deals_share_more(study: Callable[..., StudyState]) -> None:
    """The test within region has the variance factor 1/J + 1, whatever the number of folds."""
    (one,) = found(study(BLOCKS, on={"split": "blocks", "part": "wr"}))
    se = SHIPPED["blocks"] * math.sqrt(1 / 8 + 1)
    assert one.difference == pytest.approx((stats.t.ppf(0.975, 7) + stats.t.ppf(0.8, 7)) * se)


@pytest.mark.parametrize(
    ("metric", "words"),
    [("rmse", "% of the RMSE with"), ("mae", "% of the MAE with"), ("r2", "a change of the RMSE by 5.3%")],
)
def test_an_amount_names_its_metric(metric: str, words: str, study: Callable[..., StudyState]) -> None:
    state = study({**BOARDS, "origins": 15})
    claim = state.study.claims[0].model_copy(update={"metric": metric})
    state.study = state.study.model_copy(update={"claims": (claim,)})
    (line,) = detectable.lines(found(state), [])
    assert words in line


@pytest.mark.parametrize("split", [RANDOM, SPATIAL])
def test_folds_of_one_network_buy_no_units(split: dict[str, Any], study: Callable[..., StudyState]) -> None:
    (one,) = found(study(split, analysis={"block_degrees": 2.0}))
    assert one.units == 0
    assert not one.more


def test_stored_cells_replace_the_shipped_variance(study: Callable[..., StudyState]) -> None:
    state = study({**BOARDS, "origins": 6}, seed=[0, 1])
    rng = np.random.default_rng(0)
    effect = rng.normal(0, 0.1, 6)
    differences = np.empty((6, 2, 2))  # origins, colours, seeds
    records = {}
    for key, cell in state.cells.items():
        origin, colour = divmod(cell.fold, 2)
        rmse = 8.0
        if cell.variant == "latlon":
            differences[origin, colour, cell.seed] = effect[origin] + rng.normal(0, 0.05)
            rmse += differences[origin, colour, cell.seed]
        records[key] = worlds.cell_record(key, cell, metrics={"test_rmse": rmse, "wr_rmse": 7.0})
    (one,) = found(state, records)
    assert one.stored
    means = differences.mean(axis=(1, 2))
    se = math.sqrt(1 / 6 + 1) * means.std(ddof=1)
    assert one.difference == pytest.approx((stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)) * se)
    # Two seeds of an origin are two means over its colours.
    of_seeds = differences.mean(axis=1).var(axis=1, ddof=1).mean()
    three = math.sqrt(means.var(ddof=1) - of_seeds / 2 + of_seeds / 3)
    assert one.more["seed"] == pytest.approx(one.difference * three / means.std(ddof=1))
    assert one.more["origin"] < one.difference


@pytest.mark.parametrize(
    ("split", "values"),
    [
        ({"kind": "checkerboard", "degrees": 16}, ["1 origin", "5 are needed", "kind: checkerboards"]),
        ({**BOARDS, "origins": 4}, ["4 origins", "5 are needed"]),
        # One origin has both colours, and the four others have no test beside it.
        ({**BOARDS, "origins": 8, "fold": [0, 1, 2, 4, 6, 8]}, ["1 origin", "5 are needed"]),
        ({"kind": "spatial", "folds": 40, "fold": [0, 1]}, ["effective blocks", "8 are needed"]),
        ({**RANDOM, "fold": [0, 1]}, ["2 folds", "3 are needed", "kind: random"]),
        ({"kind": "temporal", "test_from": "2021-03-15"}, ["1 test period", "kind: rolling"]),
        ({"kind": "clusters", "folds": 2}, ["2 regions", "3 are needed"]),
    ],
)
def test_a_claim_that_no_seed_can_decide_is_refused(
    split: dict[str, Any], values: list[str], study: Callable[..., StudyState]
) -> None:
    state = study(split)
    with refuses("toy.yaml", "claims.0", "the place helps", *values):
        detectable.refuse_claims(detectable.untestable(state.study, state.panel), "toy.yaml")
    assert not found(state)


def test_a_claim_on_a_single_fold_is_refused(study: Callable[..., StudyState]) -> None:
    state = study({**BOARDS, "origins": 8}, on={"split": "checkerboards", "fold": 3})
    with refuses("toy.yaml", "claims.0", "fold"):
        detectable.refuse_claims(detectable.untestable(state.study, state.panel), "toy.yaml")


def test_too_few_blocks_of_monitors_name_the_size_that_would_do(study: Callable[..., StudyState]) -> None:
    state = study(SPATIAL, analysis={"block_degrees": 30.0})
    with refuses("toy.yaml", "claims.0", "30 degrees", "--set analysis.block_degrees=") as raised:
        detectable.refuse_claims(detectable.untestable(state.study, state.panel), "toy.yaml")
    degrees = float(raised.value.fix.partition("block_degrees=")[2].partition(",")[0])
    state = study(SPATIAL, analysis={"block_degrees": degrees})
    detectable.refuse_claims(detectable.untestable(state.study, state.panel), "toy.yaml")
    site, _ = state.panel.samples(21)
    blocks = statistics.blocks(state.panel.lat, state.panel.lon, degrees)
    assert statistics.effective_blocks(np.bincount(blocks, np.bincount(site))) >= 8


def test_without_claims_an_untestable_split_is_told_and_not_refused(folder: Path) -> None:
    (folder / "plain.yaml").write_text(
        yaml.safe_dump(
            {
                "study": "plain",
                "data": {"table": "panel.parquet"},
                "design": {
                    "variant": ["none", "latlon"],
                    "split": [{"kind": "checkerboard", "degrees": 16}],
                    "seed": [0],
                },
            }
        )
    )
    state = StudyState(str(folder / "plain.yaml"))
    detectable.refuse_claims(detectable.untestable(state.study, state.panel), "plain.yaml")
    (lack,) = detectable.untestable(state.study, state.panel)
    assert lack.number == -1
    assert "checkerboards" in next(detectable.lines([], [lack]))
