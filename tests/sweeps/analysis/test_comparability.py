"""Hand-made records: two arms differ in the declared factor alone, or in what is named."""

from collections.abc import Iterator
from typing import Any

import pytest

from pm25.cell import Cell
from pm25.neighbours import NeighbourSettings
from pm25.settings import ModelSettings, TrainSettings
from pm25.splits import RandomSplit
from sweeps.analysis import comparability
from sweeps.analysis.comparability import differences
from sweeps.store.records import Record
from tests import worlds
from tests.worlds import changed

COMPARABLE = comparability.ArmDifference((), ())


def record(
    variant: str = "none", fusion: str | None = None, head: str | None = None, **settings: Any
) -> Record:
    fields = {"variant": variant, "fusion": fusion, "head": head, "split": {"kind": "random"}, **settings}
    cell = Cell.model_validate({"fold": 1, "seed": 2, **fields})
    return worlds.cell_record(
        f"{variant}{fusion}",
        cell,
        data="d0",
        encoder=f"{cell.encoder} weights" if cell.encoder else None,
        versions={"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
        audit={"shared_sites": 9, "encoder_trained_on_target": False, "failed": []},
        # What differs from arm to arm and does not count.
        host=f"of {variant}",
        process=len(variant),
        started=f"when {variant} began",
        ended=f"when {variant} ended",
        metrics={"test_rmse": float(len(variant))},
        counts={"n_train": 70, "n_val": 10, "n_test": 20, "epochs": len(variant), "best_epoch": 1},
        seconds=float(len(variant)),
    )


@pytest.mark.parametrize(
    ("arm", "other"),
    [
        (record("latlon"), record()),
        (record("geoclip", "hadamard"), record()),
        (record("geoclip", "hadamard"), record("geoclip", "concat")),
        (record("geoclip", "hadamard"), record("shuffled", "hadamard")),
        (record("none", "concat", "matched"), record()),
        (record("satclip", "concat"), record("none", "concat", "matched")),
    ],
)
def test_the_factor_and_what_it_implies_may_differ(arm: Record, other: Record) -> None:
    # Host, times, epochs and scores differ too: no setting, and nothing that moves a number.
    assert differences(arm, other) == COMPARABLE
    assert differences(other, arm) == COMPARABLE


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("data", "d1", "data d1 against d0"),
        ("numerics", 4, "numerics 4 against 3"),
        ("device", "NVIDIA H200; MIG", "device NVIDIA H200, MIG against x86_64"),
        ("threads", 8, "threads 8 against 1"),
        ("versions.torch", "2.12.0", "torch 2.12.0 against 2.13.0"),
        ("versions.numpy", "2.4.5", "numpy 2.4.5 against 2.4.6"),
        ("versions.python", "3.12.1", "python 3.12.1 against 3.11.7"),
        ("versions.cuda", "12.8", "cuda 12.8 against not set"),
        ("counts.n_train", 69, "n_train 69 against 70"),
        ("counts.n_val", 9, "n_val 9 against 10"),
        ("counts.n_test", 21, "n_test 21 against 20"),
        ("counts.n_wr", 5, "n_wr 5 against not set"),
        ("audit.shared_sites", 8, "audit.shared_sites 8 against 9"),
        ("audit", {"failed": ["audit: ValueError: x"]}, "audit not set against set"),
        ("cell.model.projection", "norm_tanh", None),
        ("cell.neighbours", {"k": 9}, "neighbours set against not set"),
        ("cell.split.test_share", 0.5, "split.test_share 0.5 against not set"),
        ("cell.train.clip_norm", None, "train.clip_norm null against 1.0"),
        ("counts.epochs", 50, None),
        ("audit.encoder_trained_on_target", True, None),
        ("audit.failed", ["encoder_trained_on_target"], None),
        ("encoder", "other weights", None),
    ],
)
def test_anything_else_is_named(name: str, value: Any, line: str | None) -> None:
    arm = changed(record("geoclip", "hadamard"), name, value)
    assert differences(arm, record()) == comparability.ArmDifference((line,) if line else (), ())


def leaves(block: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in block.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


FULL = Cell(
    variant="none",
    split=RandomSplit(),
    fold=0,
    seed=0,
    neighbours=NeighbourSettings(),
    model=ModelSettings(initialiser="torch"),
    train=TrainSettings(target="log1p", max_windows=5),
).resolved()


@pytest.mark.parametrize("name", sorted({*leaves(FULL)} - {"variant", "fusion", "head"}))
def test_every_setting_of_a_cell_counts(name: str) -> None:
    other = record() | {"cell": FULL}
    arm = changed(other, "cell.variant", "latlon")
    assert differences(arm, other) == COMPARABLE
    (line,) = differences(changed(arm, f"cell.{name}", "moved"), other).undeclared
    assert line.startswith(f"{name} moved against ")


def test_several_differences_are_all_named_in_order() -> None:
    arm = changed(changed(record("latlon"), "versions.torch", "2.12.0"), "cell.train.learning_rate", 0.003)
    assert differences(arm, record()).undeclared == (
        "torch 2.12.0 against 2.13.0",
        "train.learning_rate 0.003 against 0.001",
    )


def test_what_two_arms_share_is_implied_by_neither() -> None:
    """One encoder has one set of weights; a projection is a setting where both arms project."""
    hadamard, concat = record("geoclip", "hadamard"), record("geoclip", "concat")
    moved = changed(changed(hadamard, "encoder", "others"), "audit.encoder_trained_on_target", True)
    assert differences(moved, concat).undeclared == (
        "audit.encoder_trained_on_target true against false",
        "encoder others against geoclip weights",
    )
    projected = record("satclip", "hadamard", model={"projection": "norm_tanh"})
    assert differences(projected, record()) == COMPARABLE
    assert differences(projected, concat).undeclared == ("model.projection norm_tanh against not set",)
    matched = record("none", "hadamard", "matched")
    assert differences(projected, matched).undeclared == ("model.projection norm_tanh against not set",)


# Search


def tuned(base: Record, trials: int = 8, epochs: int | None = None, **values: Any) -> Record:
    """The record as a search's winner has it: `train_learning_rate=0.003` is `train.learning_rate`."""
    point = {name.replace("_", ".", 1): value for name, value in values.items()}
    made = base
    for name, value in point.items():
        made = changed(made, f"cell.{name}", value)
    return made | {"tuned": point, "search": {"trials": trials, "epochs": epochs}}


def test_tuned_values_are_declared() -> None:
    arm = tuned(record("latlon"), train_learning_rate=0.003, model_width=64)
    other = tuned(record(), train_learning_rate=0.001, model_width=64)
    assert differences(arm, other) == comparability.ArmDifference(
        (), ("train.learning_rate 0.003 against 0.001",)
    )
    # By one arm's space alone, too: a space has conditions.
    assert differences(arm, tuned(record(), model_width=64)).tuned == (
        "train.learning_rate 0.003 against 0.001",
    )
    # What no search chose stays a setting.
    moved = changed(arm, "cell.train.patience", 3)
    assert differences(moved, other).undeclared == ("train.patience 3 against 30",)


def test_a_tuned_projection_is_tuned() -> None:
    arm = tuned(record("geoclip", "hadamard"), model_projection="norm_tanh")
    assert differences(arm, tuned(record(), model_width=256)) == comparability.ArmDifference(
        (), ("model.projection norm_tanh against not set",)
    )


def test_one_searched_arm_is_unfair() -> None:
    arm = tuned(record("latlon"), train_learning_rate=0.003)
    assert differences(arm, record()) == comparability.ArmDifference(
        ("searched yes against no",), ("train.learning_rate 0.003 against 0.001",)
    )
    assert differences(record(), arm).undeclared == ("searched no against yes",)
    # The study's own settings won: the search was there all the same.
    same = tuned(record("latlon"), train_learning_rate=0.001)
    assert differences(same, record()) == comparability.ArmDifference(("searched yes against no",), ())


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        ({"trials": 16, "epochs": 40}, "search.trials 16 against 8"),
        ({"trials": 8, "epochs": 80}, "search.epochs 80 against 40"),
        ({"trials": 8, "epochs": None}, "search.epochs null against 40"),
        (None, "search not set against set"),
    ],
)
def test_unequal_budgets_are_unfair(budget: dict[str, Any] | None, line: str) -> None:
    other = tuned(record(), 8, 40, model_width=64)
    arm = tuned(record("latlon"), 8, 40, model_width=64)
    assert differences(arm, other) == COMPARABLE
    del arm["search"]
    assert differences(arm | ({"search": budget} if budget else {}), other).undeclared == (line,)


def test_more_samples_confound_though_their_limit_was_tuned() -> None:
    arm = changed(tuned(record("latlon"), train_max_windows=70), "counts.n_train", 70)
    other = changed(tuned(record(), train_max_windows=35), "counts.n_train", 35)
    assert differences(arm, other) == comparability.ArmDifference(
        ("n_train 70 against 35",), ("train.max_windows 70 against 35",)
    )


# Of all pairs of a contrast


def test_a_summary_has_one_line_for_each_name() -> None:
    torch, back = "torch 2.12.0 against 2.13.0", "torch 2.13.0 against 2.12.0"
    assert comparability.summary([]) == []
    assert comparability.summary(["", ""]) == []
    assert comparability.summary([torch, "", torch, f"threads 8 against 1; {torch}"]) == [
        f"in 3 of 4 pairs: {torch}",
        "in 1 of 4 pairs: threads 8 against 1",
    ]
    assert comparability.summary([torch, torch]) == [f"in every pair: {torch}"]
    assert comparability.summary([torch, back]) == [f"in every pair: {torch} (and 1 other value)"]
    counts = [f"n_train {n} against 10" for n in (1, 2, 2, 3)]
    assert comparability.summary([*counts, ""]) == [
        "in 4 of 5 pairs: n_train 1 against 10 (and 2 other values)"
    ]
