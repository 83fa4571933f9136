"""Two studies cell by cell: what differs and why, which verdicts changed, and the exit status."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pm25.sources import synthetic
from sweeps import cli
from sweeps.analysis import compare
from sweeps.analysis.compare import Inferred, StudyResults
from sweeps.engine import worker
from sweeps.state import StudyState
from sweeps.store.records import Record
from tests import worlds
from tests.errors import refuses
from tests.sweeps.cli.commands import Ended, Sweep
from tests.worlds import changed

STUDY = """\
study: toy
data: {table: panel.parquet}
design:
  variant: [none, latlon]
  split: [{kind: random, fold: 0}, {kind: checkerboard, degrees: 16, fold: 0}]
  seed: 0
model: {width: 4, attention_units: 4}
train: {max_epochs: 1, batch_size: 64}
"""


def contrast(arm: str = "lat/lon", split: str = "random", **more: Any) -> dict[str, Any]:
    """A line of `inference.contrasts`, as far as it is compared."""
    return {
        "arm": arm,
        "other": "none",
        "split": split,
        "part": "test",
        "regime": "WR",
        "metric": "rmse",
        "fold": pd.NA,
        "diff": -0.5,
        "low": -0.75,
        "high": -0.25,
        "p_adjusted": 0.01,
        "declared": True,
        "n_pairs": 4,
        "verdict": "better",
        **more,
    }


def claim(verdict: str, words: str = "the place helps") -> dict[str, Any]:
    return contrast(verdict=verdict) | {"claim": words}


CLAIM_COLUMNS = [*claim("supported")]


def inferred(
    *contrasts: dict[str, Any], claims: tuple[dict[str, Any], ...] = (), metric: str = "rmse"
) -> Inferred:
    lines = pd.DataFrame(contrasts, columns=[*contrast()]).astype({"fold": "Int64"})
    return Inferred(metric, lines, pd.DataFrame(claims, columns=CLAIM_COLUMNS))


NOTHING = inferred()


# Studies in memory


def record(key: str, arm: str = "none", **metrics: float | None) -> Record:
    return worlds.cell_record(
        key,
        {"variant": arm, "seed": 0, "model": {"width": 32}},
        versions={"python": "3.11.7", "torch": "2.12.0"},
        commit="a" * 40,
        dirty=False,
        metrics={"test_rmse": 7.0, "test_r2": 0.5, **metrics},
    )


def side(*records: Record, concludes: Inferred = NOTHING, name: str = "it", **columns: Any) -> StudyResults:
    """A study whose cells are one fold each of one split; a record without metrics failed."""
    rows = pd.DataFrame(
        {
            "key": [r["key"] for r in records],
            "variant": [r["cell"]["variant"] for r in records],
            "fusion": [None for _ in records],
            "split": "random",
            "regime": "WR",
            "fold": [int(r["key"].rpartition("-")[2]) for r in records],
            "seed": 0,
            "state": [r["state"] for r in records],
            "error": [
                f"{r['error']['type']}: {r['error']['message']}" if "error" in r else None for r in records
            ],
            **{
                name: pd.Series([r.get("metrics", {}).get(name) for r in records], dtype="float64")
                for name in ("test_rmse", "test_r2", "wr_rmse")
            },
            **columns,
        }
    )
    return StudyResults(name, rows, {r["key"]: r for r in records}, concludes)


def outcomes(a: StudyResults, b: StudyResults, tolerance: float = 0.0) -> list[str]:
    return compare.cells(a, b, tolerance)["outcome"].tolist()


def failed(key: str) -> Record:
    error = worlds.error("RuntimeError", "it died")
    return worlds.record(key, "failed", cell={"variant": "none"}, error=error)


def test_cells_are_matched_by_place_and_not_by_key() -> None:
    a = side(record("x-0"), record("x-1", test_rmse=8.0), record("l-0", "latlon"))
    b = side(record("y-1", test_rmse=8.5), record("y-2"), record("x-0"))
    found = compare.cells(a, b)
    assert found[["arm", "fold", "outcome", "same_key"]].to_numpy().tolist() == [
        ["none", 0, "equal", True],
        ["none", 1, "differs", False],
        ["lat/lon", 0, "only A", False],
        ["none", 2, "only B", False],
    ]
    assert found["test_rmse_diff"].tolist()[:2] == [0.0, 0.5]
    assert found.loc[1, ["key_a", "key_b", "differ"]].tolist() == ["x-1", "y-1", "test_rmse"]
    assert found.loc[2, ["state_a", "state_b"]].tolist() == ["done", "not planned"]
    assert found[["fold", "seed"]].dtypes.tolist() == ["int64", "int64"]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (7.0, 7.0, "equal"),
        (7.0, 7.000000000000001, "differs"),
        (0.0, -0.0, "differs"),
        (None, None, "equal"),
        (None, 7.0, "differs"),
    ],
)
def test_equal_means_bitwise(a: float | None, b: float | None, expected: str) -> None:
    studies = [side(record("x-0", wr_rmse=value)) for value in (a, b)]
    assert outcomes(*studies) == [expected]


def test_a_metric_that_one_study_does_not_know_is_no_difference() -> None:
    assert outcomes(side(record("x-0")), side(record("x-0", test_mape=4.0))) == ["equal"]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"test_rmse": 7.25}, "within tolerance"),
        ({"test_rmse": 6.75, "test_r2": 0.75}, "within tolerance"),
        ({"test_r2": 0.75}, "within tolerance"),
        ({"test_rmse": 7.25, "wr_rmse": 9.5}, "differs"),
        ({"wr_rmse": None}, "differs"),
    ],
)
def test_the_tolerance_is_of_test_and_wr_rmse(metrics: dict[str, float | None], expected: str) -> None:
    a = side(record("x-0", wr_rmse=9.0))
    assert outcomes(a, side(record("x-0", **{"wr_rmse": 9.0, **metrics})), tolerance=0.25) == [expected]


def test_failures_and_cells_that_are_not_there() -> None:
    a = side(record("x-0"), failed("x-1"), failed("x-2"), {**failed("x-3"), "state": "missing"})
    b = side(failed("x-0"), record("x-1"), failed("x-2"), record("x-3"))
    assert outcomes(a, b) == ["failed in B", "failed in A", "neither", "only B"]
    found = compare.cells(a, b)
    assert found.loc[0, "error_b"] == "RuntimeError: it died"
    assert found.loc[3, ["state_a", "state_b"]].tolist() == ["missing", "done"]


def test_cells_that_wait_for_their_search_have_no_key() -> None:
    a = side(record("x-0"), {**failed("x-1"), "state": "missing"}, key=["x-0", ""])
    found = compare.cells(a, a)
    assert found["outcome"].tolist() == ["equal", "neither"]
    assert found["same_key"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("data", "e" * 32, f"data {'d' * 12} against {'e' * 12}"),
        ("numerics", 4, "numerics 3 against 4"),
        ("device", "NVIDIA H200", "device x86_64 against NVIDIA H200"),
        ("threads", 2, "threads 1 against 2"),
        ("versions.torch", "2.13.0", "torch 2.12.0 against 2.13.0"),
        ("cell.model.width", 64, "model.width 32 against 64"),
        ("commit", "b" * 40, f"commit {'a' * 12} against {'b' * 12}"),
        ("dirty", True, f"commit {'a' * 12} against {'a' * 12} with changed files"),
    ],
)
def test_what_sets_two_records_apart(name: str, value: Any, line: str) -> None:
    first = record("x-0")
    assert compare.apart(first, changed(first, name, value)) == [line]
    assert compare.apart(first, first) == []


def test_causes_come_before_what_follows_from_them() -> None:
    first = record("x-0")
    second = changed(changed(first, "audit.shared_sites", 3), "counts.n_test", 19)
    second = changed(changed(second, "versions.torch", "2.13.0"), "data", "e" * 32)
    del second["commit"]
    assert [text.split()[0] for text in compare.apart(first, second)] == [
        *("data", "torch", "commit", "audit.shared_sites", "n_test")
    ]


def test_a_setting_that_a_search_chose_is_named() -> None:
    tuning = {"tuned": {"model.width": 32}, "search": {"trials": 8}}
    first = record("x-0") | tuning
    second = changed(first, "cell.model.width", 64)
    assert compare.apart(first, second) == ["model.width 32 against 64"]
    assert compare.apart(first, changed(first, "search.trials", 9)) == ["search.trials 8 against 9"]


# Conclusions


def test_verdicts_that_changed() -> None:
    a = inferred(contrast(), contrast(split="spatial", diff=0.5), contrast("sin/cos", fold=1))
    b = inferred(
        contrast("sin/cos", fold=1),
        contrast(split="spatial", diff=-0.5),
        contrast(verdict="undecided", p_adjusted=0.2),
        contrast("GeoCLIP · Hadamard"),
    )
    found = compare.conclusions(a.contrasts, b.contrasts)
    assert found[["arm", "split", "changed", "turned"]].to_numpy().tolist() == [
        ["lat/lon", "random", True, False],
        ["lat/lon", "spatial", False, True],
        ["sin/cos", "random", False, False],
        ["GeoCLIP · Hadamard", "random", False, False],
    ]
    assert found.loc[0, ["verdict_a", "verdict_b", "p_adjusted_b"]].tolist() == ["better", "undecided", 0.2]


def test_a_conclusion_changed_though_no_cell_did() -> None:
    """As when another alpha is given."""
    a = side(record("x-0"), concludes=inferred(contrast(), claims=(claim("supported"), claim("refuted"))))
    b = side(
        record("x-0"),
        concludes=inferred(contrast(verdict="equal"), claims=(claim("undecided"), claim("refuted"))),
    )
    found = compare.compare(a, b)
    assert found.changed
    assert found.headline == (
        "1 of 1 cells equal to the last digit; 2 conclusions changed: "
        "claim 'the place helps': supported -> undecided; "
        "lat/lon against none on random (test): better -> equal"
    )
    assert not compare.compare(a, a).changed


def test_claims_that_only_one_study_makes_have_not_changed() -> None:
    one = pd.DataFrame([claim("supported"), claim("undecided"), claim("refuted", "it does not")])
    found = compare.claims(one, pd.DataFrame([claim("supported"), claim("refuted")]))
    assert found[["claim", "verdict_a", "changed"]].to_numpy().tolist() == [
        ["the place helps", "supported", False],
        ["the place helps", "undecided", True],  # of the same words, in the order of the study
        ["it does not", "refuted", False],
    ]
    assert not compare.claims(one, pd.DataFrame()).changed.any()
    assert compare.claims(pd.DataFrame(), pd.DataFrame()).empty


def test_a_contrast_of_one_fold_says_so() -> None:
    a, b = (
        side(record("x-0"), concludes=inferred(contrast(fold=1, verdict=verdict)))
        for verdict in ("better", "worse")
    )
    assert compare.compare(a, b).verdicts == ["lat/lon against none on random fold 1 (test): better -> worse"]


@pytest.mark.parametrize(("metric", "ranks"), [("rmse", [1, 2]), ("r2", [2, 1])])
def test_ranks_are_of_the_cells_done_in_both(metric: str, ranks: list[int]) -> None:
    name = f"test_{metric}"
    a = side(
        *(record(f"x-{fold}", **{name: value}) for fold, value in enumerate((1.0, 3.0, 99.0))),
        *(record(f"l-{fold}", "latlon", **{name: value}) for fold, value in enumerate((2.0, 4.0))),
        record("s-0", "sincos", **{name: 0.0}),
    )
    b = side(
        *(record(f"x-{fold}", **{name: value}) for fold, value in enumerate((5.0, 3.0))),
        *(record(f"l-{fold}", "latlon", **{name: value}) for fold, value in enumerate((2.0, 4.0))),
        record("s-0", "sincos", **{name: 0.0}),
    )
    found = compare.ranks(compare.cells(a, b), metric)
    assert found["arm"].tolist() == ["none", "lat/lon"]  # sin/cos has one cell of two
    assert found[["mean_a", "mean_b", "n"]].to_numpy().tolist() == [[2.0, 4.0, 2], [3.0, 3.0, 2]]
    assert found["rank_a"].tolist() == ranks
    assert found["rank_b"].tolist() == ranks[::-1]
    assert found["changed"].all()


def test_ranks_of_both_parts_out_of_region() -> None:
    a = side(record("x-0", wr_rmse=5.0), regime="OoR")
    found = compare.ranks(compare.cells(a, a), "rmse")
    assert found[["part", "mean_a", "rank_a"]].to_numpy().tolist() == [["test", 7.0, 1], ["wr", 5.0, 1]]
    assert compare.ranks(compare.cells(a, a), "mae").empty


# The headline


def test_the_headline() -> None:
    a = side(*(record(f"x-{fold}") for fold in range(3)))
    newer = [changed(record(f"x-{fold}"), "versions.torch", "2.13.0") for fold in range(3)]
    newer[1]["metrics"]["test_rmse"] = 7.25
    b = side(*newer)
    assert compare.compare(a, b).headline == (
        "2 of 3 cells equal to the last digit, 1 differs: torch 2.12.0 against 2.13.0; no conclusion changed"
    )
    assert compare.compare(a, b, 0.5).headline == (
        "2 of 3 cells equal to the last digit, 1 differs by no more than 0.5 µg/m³ in RMSE: "
        "torch 2.12.0 against 2.13.0; no conclusion changed"
    )
    assert compare.compare(a, b).causes("equal") == ["in every pair: torch 2.12.0 against 2.13.0"]
    assert [compare.compare(a, b, tolerance).changed for tolerance in (0.0, 0.2, 0.25)] == [True, True, False]


def test_a_difference_without_a_cause_is_said() -> None:
    a, b = side(record("x-0")), side(record("x-0", test_rmse=8.0))
    assert compare.compare(a, b).headline == (
        "0 of 1 cells equal to the last digit, 1 differs: nothing that is recorded sets them apart; "
        "no conclusion changed"
    )


def test_many_causes_and_many_changes_are_cut_short() -> None:
    other = record("x-0", test_rmse=8.0)
    for name in ("data", "device", "encoder", "threads"):
        other = changed(other, name, "new")
    lines = [contrast(split=split) for split in "abcd"]
    a = side(record("x-0"), failed("x-1"), concludes=inferred(*lines))
    b = side(other, record("x-1"), concludes=inferred(*(line | {"verdict": "worse"} for line in lines)))
    headline = compare.compare(a, b).headline
    assert ", device x86_64 against new, encoder null against new and 1 more; 1 failed in A only" in headline
    assert headline.endswith(
        "4 conclusions changed: "
        + "; ".join(f"lat/lon against none on {split} (test): better -> worse" for split in "abc")
        + "; and 1 more"
    )


def test_what_cannot_be_compared() -> None:
    a = side(record("x-0"))
    with refuses("it, it", "", "sweep run"):
        compare.compare(a, side(record("x-1")))
    with refuses("it, that", "analysis.metric", "rmse", "r2", "--set analysis.metric=rmse"):
        compare.compare(a, side(record("x-0"), concludes=inferred(metric="r2"), name="that"))


# The command


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sweep:
    """`sweep compare` with these arguments, in this process; no study concludes anything."""
    monkeypatch.setattr(compare, "inferred", lambda study, rows, store: NOTHING)

    def call(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["sweep", "compare", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Ended(int(left.value.code or 0), *capsys.readouterr())

    return call


def train(state: StudyState) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    state.store.prepare()
    for key, cell in state.cells.items():
        worker.train_and_record(cell, key, state.panel, state.store)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four done cells, and in the storage `other` the same on another table."""
    folder = tmp_path_factory.mktemp("finished")
    for name, seed in (("panel", 0), ("other", 4)):
        synthetic.synthesize(sites=12, days=40, seed=seed).to_parquet(folder / f"{name}.parquet", index=False)
    (folder / "toy.yaml").write_text(STUDY)
    train(StudyState(str(folder / "toy.yaml")))
    train(StudyState(str(folder / "toy.yaml"), other(folder)))
    return folder


def other(folder: Path) -> list[str]:
    return [f"data.table={folder / 'other.parquet'}", f"storage={folder / 'other'}"]


def again(finished: Path, folder: Path, change: Callable[[Record], Record]) -> str:
    """A storage with the study's records changed; as an override."""
    there = f"storage={folder / 'again'}"
    state, copied = StudyState(str(finished / "toy.yaml")), StudyState(str(finished / "toy.yaml"), [there])
    for made in state.records().values():
        for name in ("predictions", "history"):
            copied.store.write_table(made["key"], name, state.store.read_table(made["key"], name))
        copied.store.write_record(change(made), made["files"])
    return there


def options(flag: str, overrides: list[str]) -> list[str]:
    return [part for override in overrides for part in (flag, override)]


def test_a_study_with_itself(sweep: Sweep, finished: Path) -> None:
    toy = finished / "toy.yaml"
    ended = sweep(toy, toy)
    assert (ended.status, ended.err) == (0, "")
    assert ended.storages == [str(finished / "results")]
    assert ended.out.splitlines() == [
        "4 of 4 cells equal to the last digit; no conclusion changed",
        f"  A  {toy}: 4 done",
        f"  B  {toy}: 4 done",
        "  4 of 4 pairs have one key: equal settings, data, encoder and numerics",
    ]


def test_another_table(sweep: Sweep, finished: Path) -> None:
    toy = finished / "toy.yaml"
    ended = sweep(toy, toy, *options("--set-b", other(finished)))
    assert (ended.status, ended.err) == (1, "")
    assert ended.storages == [str(finished / "results"), str(finished / "other")]
    prints = [StudyState(str(toy), sets).panel.fingerprint[:12] for sets in ([], other(finished))]
    assert ended.out.splitlines()[0] == (
        "0 of 4 cells equal to the last digit, 4 differ: "
        f"data {prints[0]} against {prints[1]}; no conclusion changed"
    )
    assert "Cells that differ, the farthest first (4 of 4): test RMSE, µg/m³" in ended.out
    assert f"    in every pair: data {prints[0]} against {prints[1]}" in ended.out.splitlines()
    assert sweep(toy, toy, *options("--set", other(finished))).status == 0


def test_a_missing_arm_changes_nothing(sweep: Sweep, finished: Path) -> None:
    toy = finished / "toy.yaml"
    ended = sweep(toy, toy, "--set-b", "design.variant=none")
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert lines[0] == "2 of 2 cells equal to the last digit; no conclusion changed"
    assert "  only A: lat/lon (2 not planned in B)" in lines
    swapped = sweep(toy, toy, "--set-a", "design.variant=none", "--set-b", "design.seed=[0, 1]")
    assert "  only B: lat/lon (2 not planned in A)" in swapped.out.splitlines()


def test_a_cell_that_failed_in_one_has_changed(sweep: Sweep, finished: Path, tmp_path: Path) -> None:
    def lose(made: Record) -> Record:
        if made["cell"]["variant"] == "none":
            return made
        error = {"type": "MemoryError", "message": "all gone", "traceback": ""}
        return {name: made[name] for name in ("key", "cell", "ended")} | {"state": "failed", "error": error}

    toy = finished / "toy.yaml"
    ended = sweep(toy, toy, "--set-b", again(finished, tmp_path, lose))
    assert ended.status == 1
    lines = ended.out.splitlines()
    assert lines[0] == "2 of 2 cells equal to the last digit; 2 failed in B only; no conclusion changed"
    assert "  failed in B: lat/lon (2 MemoryError: all gone)" in lines


def newer(made: Record) -> Record:
    """As another torch would have made it: out of region there is another number."""
    moved = made["cell"]["split"]["kind"] == "checkerboard"
    made = changed(made, "versions.torch", "9.0.0")
    return changed(made, "metrics.test_rmse", made["metrics"]["test_rmse"] + 0.25 * moved)


def test_another_version(sweep: Sweep, finished: Path, tmp_path: Path) -> None:
    toy, there = finished / "toy.yaml", again(finished, tmp_path, newer)
    ended = sweep(toy, toy, "--set-b", there)
    assert ended.status == 1
    torches = f"torch {torch.__version__} against 9.0.0"
    lines = ended.out.splitlines()
    assert lines[0] == (f"2 of 4 cells equal to the last digit, 2 differ: {torches}; no conclusion changed")
    assert lines[3:8] == [
        "  4 of 4 pairs have one key: equal settings, data, encoder and numerics",
        "  between the pairs that differ",
        f"    in every pair: {torches}",
        "  between the pairs that are equal",
        f"    in every pair: {torches}",
    ]
    assert sweep(toy, toy, "--set-b", there, "--tolerance", "0.2").status == 1
    assert sweep(toy, toy, "--set-b", there, "--tolerance", "0.3").status == 0


def test_as_json(sweep: Sweep, finished: Path, tmp_path: Path) -> None:
    toy, there = finished / "toy.yaml", again(finished, tmp_path, newer)
    ended = sweep(toy, toy, "--set-b", there, "--json")
    assert (ended.status, ended.err, len(ended.out.splitlines())) == (1, "", 1)
    content = json.loads(ended.out)
    cause = f"in every pair: torch {torch.__version__} against 9.0.0"
    assert content["cells"] == {
        "total": 4,
        "done_in_both": 4,
        "same_key": 4,
        "outcomes": {"equal": 2, "differs": 2},
    }
    assert content["apart"] == {"equal": [cause], "differs": [cause]}
    assert (content["changed"], content["metric"], content["tolerance_ugm3"]) == (True, "rmse", 0.0)
    assert (content["a"], content["b"]) == (str(toy), f"{toy} {there}")
    assert (content["conclusions"], content["claims"], content["verdicts_changed"]) == ([], [], [])
    assert [line["outcome"] for line in content["unequal"]] == ["differs"] * 2
    records = StudyState(str(toy)).records()
    for line in content["unequal"]:
        was = records[line["key_a"]]["metrics"]["test_rmse"]
        assert line["metrics"] == {"test_rmse": {"a": was, "b": was + 0.25}}  # every digit
        assert line["apart"] == [cause.partition(": ")[2]]
        assert line["error_a"] is None
    assert {line["split"] for line in content["ranks"]} == {"random", "checkerboard-16"}


@pytest.mark.parametrize("name", ["cells.csv", "cells.parquet"])
def test_the_frame_is_written(sweep: Sweep, finished: Path, tmp_path: Path, name: str) -> None:
    toy, out = finished / "toy.yaml", tmp_path / name
    ended = sweep(toy, toy, "--set-b", again(finished, tmp_path, newer), "-o", out)
    assert ended.out.splitlines()[-1] == f"{out}: 4 cells"
    frame = pd.read_csv(out) if out.suffix == ".csv" else pd.read_parquet(out)
    assert frame.columns[:5].tolist() == ["arm", "split", "regime", "fold", "seed"]
    assert sorted(frame["outcome"]) == ["differs", "differs", "equal", "equal"]
    assert frame["test_rmse_diff"].round(6).tolist() == [0.0, 0.0, 0.25, 0.25]


def test_verdicts_on_the_terminal(sweep: Sweep, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conclusions = iter(
        [
            inferred(contrast(diff=0.125, fold=0), claims=(claim("supported"),)),
            inferred(contrast(diff=-0.125, fold=0, verdict="undecided"), claims=(claim("refuted"),)),
        ]
    )
    monkeypatch.setattr(compare, "inferred", lambda study, rows, store: next(conclusions))
    toy = finished / "toy.yaml"
    ended = sweep(toy, toy)
    assert ended.status == 1
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ended.out.splitlines()]
    assert ["lat/lon", "none", "random fold 0", "test", "+0.12", "-0.12", "better", "undecided"] in cells
    assert ["the place helps", "supported", "refuted"] in cells


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-o", "cells.xlsx"], "cells.xlsx"),
        (["--set-a", "modle=1"], "modle"),
        (["--set-b", "storage=/nowhere"], "toy.yaml --set storage=/nowhere"),
        (["--set-b", "design.seed=7"], "toy.yaml --set design.seed=7"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_exit_2(sweep: Sweep, finished: Path, more: list[str], said: str) -> None:
    ended = sweep(finished / "toy.yaml", finished / "toy.yaml", *more)
    assert (ended.status, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert said in ended.err


def test_a_study_that_is_not_there(sweep: Sweep, finished: Path) -> None:
    ended = sweep(finished / "toy.yaml", "qick")
    assert (ended.status, ended.out) == (2, "")
    assert "qick" in ended.err
