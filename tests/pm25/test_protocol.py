"""Strict training knows nothing of the test set; the published choices are repeated one by one, and told."""

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pm25 import protocol, splits, trial
from pm25.cell import Cell
from pm25.errors import InputError
from pm25.fit import loss_function
from pm25.neighbours import NeighbourSettings, feature
from pm25.panel import Panel
from pm25.splits import (
    AnySplit,
    CheckerboardSplit,
    CheckerboardsSplit,
    ClusterSplit,
    GroupSplit,
    PeriodSplit,
    RandomSplit,
    RollingSplit,
    SpatialSplit,
    SplitIndices,
    TemporalSplit,
)
from tests import worlds
from tests.errors import refuses
from tests.worlds import tiny_cell as cell

pytestmark = pytest.mark.usefixtures("one_thread")

SITES, DAYS, WINDOW = 16, 24, 3
START = date(2021, 1, 1)
EMBEDDING = np.eye(SITES, dtype=np.float32)
SPLITS: list[AnySplit] = [
    RandomSplit(folds=3),
    TemporalSplit(test_from=date(2021, 1, 17)),
    SpatialSplit(folds=3, validation=0.2),
    SpatialSplit(folds=4, validation=0.2, buffer_km=200),
    CheckerboardSplit(degrees=30, validation=0.3),
    CheckerboardSplit(degrees=12, origin=(5, 3), validation=0.3, buffer_km=200),
    GroupSplit(column="half", values=("west",), validation=0.3),
    GroupSplit(column="half", values=("east",), validation=0.3, buffer_km=200),
    ClusterSplit(folds=2, validation=0.3),
    CheckerboardsSplit(degrees=30, origins=1, holdout="rotate", validation=0.3),
    RollingSplit(),
]
NEIGHBOURS = {
    "none": None,
    "plain": NeighbourSettings(k=3),
    "hide": NeighbourSettings(k=2, hide="test_distance", distance=True, exclusion_km=10),
}
every_split_with_and_without_neighbours = pytest.mark.parametrize(
    ("split", "neighbours"),
    [
        pytest.param(split, name, id=f"{split.label}-{name}")
        for split in SPLITS
        for name, settings in NEIGHBOURS.items()
        if settings is None or not isinstance(split, PeriodSplit)  # where no training monitor reports
    ],
)


def world(seed: int = 0, missing: float = 0.1, lowest: float = 0.5) -> Panel:
    """Half of the sites in each half of the country; every target is `lowest` or more."""
    rng = np.random.default_rng(seed)
    features, target = rng.normal(size=(SITES, DAYS, 2)), lowest + rng.gamma(2, 4, (SITES, DAYS))
    features, target = worlds.without(features, missing, rng), worlds.without(target, missing, rng)
    # Up to the border, so that hiding neighbours as near as a test site's leaves some.
    lon = np.concatenate([np.linspace(-120, -96, SITES // 2), np.linspace(-93, -72, SITES // 2)])
    half = np.repeat(["west", "east"], SITES // 2)
    return worlds.panel(features, target, rng.uniform(31, 44, SITES), lon, groups={"half": half})


def embedding(made: Cell) -> np.ndarray | None:
    return EMBEDDING if made.encoder else None


def flat_target(panel: Panel) -> np.ndarray:
    return panel.target.reshape(-1)


# --- What training cannot see ------------------------------------------------------------------------


def statistics(made: Cell, panel: Panel) -> dict[str, bytes]:
    """All that training takes from a panel, by what it is."""
    ready = trial.prepare(made, panel, embedding=embedding(made))
    seen = np.concatenate([ready.train, ready.validation])
    window, _ = ready.inputs.batch(torch.from_numpy(seen))
    added = ["neighbours_pm25" in name or "neighbours_km" in name for name in ready.inputs.channels]
    added += [False] * (window.shape[2] - len(added))  # place channels
    result = trial.run(made, panel, embedding=embedding(made))
    return {
        "samples": ready.train.tobytes() + b"|" + ready.validation.tobytes(),
        "inputs": window[:, :, ~torch.tensor(added)].numpy().tobytes(),
        "neighbours": window[:, :, torch.tensor(added)].numpy().tobytes(),
        "scale": repr(ready.scale).encode(),
        "targets": ready.scale.transform(flat_target(panel)[seen]).tobytes(),
        "first weights": b"".join(w.numpy().tobytes() for w in ready.model.state_dict().values()),
        "weights": b"".join(w.numpy().tobytes() for w in result.weights.values()),
        "history": repr(result.history).encode(),
    }


def otherwise(panel: Panel, split: AnySplit, parts: SplitIndices, factor: float) -> Panel:
    """The panel with other test targets and, where the split keeps them apart, other test features.

    By site: everything of a site that neither trains nor validates. By time: all days from the test on.
    By sample: the targets of the test samples; their features stand in training windows too.
    """
    features, target = panel.features.copy(), panel.target.copy()
    if isinstance(split, RandomSplit):
        flat = target.reshape(-1)
        flat[parts.test] = 40 + factor * flat[parts.test]
    else:
        at = np.zeros(target.shape, bool)
        if isinstance(split, PeriodSplit):
            at[:, (parts.test % DAYS).min() :] = True
        else:
            seen = np.unique(np.concatenate([parts.train, parts.validation]) // DAYS)
            at[np.setdiff1d(np.arange(SITES), seen)] = True
        target[at] = 40 + factor * target[at]
        features[at] = 100 - factor * np.nan_to_num(features[at])
    return replace(panel, features=features, target=target)


def cut(made: Cell, panel: Panel) -> SplitIndices:
    """The sets of a cell's split, before any sample is left out."""
    own = protocol.paper_cut if made.protocol == "paper" else splits.cut
    return own(made.split, made.fold, panel, made.window)


def leaks(made: Cell, panel: Panel, factor: float) -> set[str]:
    """Names of what training knows and the test set moves."""
    parts = cut(made, panel)
    before = statistics(made, panel)
    after = statistics(made, otherwise(panel, made.split, parts, factor))
    return {name for name in before if before[name] != after[name]}


def cut_or_skip(made: Cell, panel: Panel) -> None:
    """Some random panels leave a part without a site, or all training sites without a neighbour."""
    try:
        trial.prepare(made, panel, embedding=embedding(made))
    except InputError:
        assume(False)


arms = st.sampled_from([("none", None, None), ("latlon", None, None), ("geoclip", "hadamard", None),
                        ("none", "concat", "matched")])  # fmt: skip


@every_split_with_and_without_neighbours
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_nothing_of_the_test_set_reaches_a_strict_training(split, neighbours, data):
    variant, fusion, head = data.draw(arms)
    made = cell(
        variant,
        fusion,
        head=head,
        split=split,
        fold=data.draw(st.integers(0, split.n_folds - 1)),
        neighbours=NEIGHBOURS[neighbours],
        train={
            "target": data.draw(st.sampled_from([None, "log1p"])),
            "max_windows": data.draw(st.sampled_from([None, 40])),
        },
    )
    panel = world(data.draw(st.integers(0, 10_000)), lowest=data.draw(st.sampled_from([0.5, -2.0])))
    cut_or_skip(made, panel)
    assert leaks(made, panel, data.draw(st.floats(1.5, 9))) == set()


@every_split_with_and_without_neighbours
def test_the_same_check_finds_the_published_leaks(split, neighbours):
    made = cell("latlon", split=split, neighbours=NEIGHBOURS[neighbours], protocol="paper")
    found = leaks(made, world(), 3.0)
    expected = {"scale", "targets", "weights", "history"}
    if not isinstance(split, RandomSplit):
        expected |= {"inputs"}
    if neighbours != "none":
        expected |= {"neighbours"}
    assert found == expected


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.label)
def test_the_same_check_sees_training_targets(split):
    # A check that finds nothing under strict must be able to find something.
    panel, made = world(), cell(split=split)
    if not isinstance(split, PeriodSplit):
        made = cell(split=split, neighbours=NEIGHBOURS["plain"])
    parts = splits.cut(split, 0, panel, WINDOW)
    before = statistics(made, panel)
    target = panel.target.copy()
    target.reshape(-1)[parts.train[:5]] += 50
    after = statistics(made, replace(panel, target=target))
    expected = {"scale", "targets", "weights", "history"} | ({"neighbours"} if made.neighbours else set())
    assert {name for name in before if before[name] != after[name]} == expected


# --- The audit tells ---------------------------------------------------------------------------------


@every_split_with_and_without_neighbours
def test_a_strict_result_passes_every_check(split, neighbours):
    got = trial.run(cell(split=split, neighbours=NEIGHBOURS[neighbours]), world())
    assert got.audit["failed"] == []
    fitted = {name: value for name, value in got.audit.items() if name.startswith("fitted_")}
    names = ["scalers", "target"] + (["neighbours"] if NEIGHBOURS[neighbours] else [])
    assert fitted == {f"fitted_{name}_test": 0 for name in names}


@every_split_with_and_without_neighbours
def test_a_paper_result_names_its_leaks(split, neighbours):
    got = trial.run(cell(split=split, neighbours=NEIGHBOURS[neighbours], protocol="paper"), world())
    names = ["scalers", "target"] + (["neighbours"] if NEIGHBOURS[neighbours] else [])
    assert got.audit["failed"] == [f"fitted_{name}_test" for name in names]
    assert {got.audit[f"fitted_{name}_test"] for name in names} == {got.counts["n_test"]}


# --- The published choices, one by one ---------------------------------------------------------------


def test_paper_parts_by_hand():
    target = np.ones((2, 50), np.float32)
    target[0, 3], target[0, 4], target[1, 9], target[1, 20] = 0, -0.3, 0, -2
    panel = replace(world(), target=target)
    given_parts = SplitIndices(
        train=np.arange(0, 80, 2), validation=np.arange(1, 80, 2)[:20], test=np.arange(80, 100), wr=None
    )
    made = protocol.paper_indices(given_parts, panel)
    # 60 rows train or validate: 0 to 39 and the even ones to 78; 3, 4 and 70 (site 1, day 20) go, 57 stay.
    rows = [i for i in [*range(40), *range(40, 80, 2)] if i not in (3, 4, 70)]
    assert made.train.tolist() == rows[:-3]  # 5 % of 57 is 2.85
    assert made.validation.tolist() == rows[-3:] == [74, 76, 78]
    assert made.test.tolist() == list(range(80, 100))
    assert made.wr is None


def test_paper_parts_drop_the_not_positive_of_held_out_parts_too():
    target = np.ones((2, 50), np.float32)
    target[1, [31, 41]] = 0, -1
    given_parts = SplitIndices(np.arange(40), np.arange(40, 50), np.arange(80, 90), np.arange(90, 100))
    made = protocol.paper_indices(given_parts, replace(world(), target=target))
    assert made.test.tolist() == [80, *range(82, 90)]
    assert made.wr.tolist() == [90, *range(92, 100)]


def test_at_least_one_row_validates():
    made = protocol.paper_indices(
        SplitIndices(np.arange(4), np.arange(4, 6), np.arange(9, 12), None),
        replace(world(), target=np.ones((1, 20))),
    )
    assert (made.train.tolist(), made.validation.tolist()) == ([0, 1, 2, 3, 4], [5])


@pytest.mark.parametrize(
    ("zeros", "name"),
    [(slice(0, 10), "train"), (slice(1, 10), "train"), (slice(10, 15), "test"), (slice(15, 20), "wr")],
)
def test_a_part_without_a_positive_sample_is_refused(zeros, name):
    target = np.ones((1, 20), np.float32)
    target[0, zeros] = 0
    parts = SplitIndices(np.arange(8), np.arange(8, 10), np.arange(10, 15), np.arange(15, 20))
    with refuses("toy", "protocol", "paper", name, "protocol: strict"):
        protocol.paper_indices(parts, replace(world(), target=target))


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.label)
def test_only_positive_samples_and_the_last_rows_validate(split, monkeypatch):
    panel = world(lowest=-4.0)
    monkeypatch.setattr(protocol, "FIXED_TEST_SET", ())  # which has a test of its own
    parts = splits.cut(split, 0, panel, WINDOW)
    made = trial.prepare(cell(split=split, protocol="paper"), panel)
    target = flat_target(panel)
    rest = np.sort(np.concatenate([parts.train, parts.validation]))
    assert (target[rest] <= 0).any()
    rest = rest[target[rest] > 0]
    assert np.array_equal(np.concatenate([made.train, made.validation]), rest)
    assert len(made.validation) == max(1, round(0.05 * len(rest)))
    assert np.array_equal(made.indices.test, parts.test[target[parts.test] > 0])
    if parts.wr is not None:
        assert np.array_equal(made.indices.wr, parts.wr[target[parts.wr] > 0])
    got = trial.run(cell(split=split, protocol="paper"), panel)
    assert (got.predictions["truth"] > 0).all()
    # Strict keeps them all.
    strict = trial.prepare(cell(split=split), panel)
    assert np.array_equal(strict.train, parts.train)
    assert np.array_equal(strict.indices.test, parts.test)


@pytest.mark.parametrize(
    "split",
    [RandomSplit(folds=10), SpatialSplit(folds=3, seed=4), SpatialSplit(folds=3, buffer_km=350, seed=2)],
    ids=lambda split: split.label,
)
def test_the_models_of_all_folds_share_one_test_set(split):
    panel = world()
    by_site = split.kind == "spatial"
    cuts = [protocol.paper_cut(split, fold, panel, WINDOW) for fold in range(split.folds)]
    test = cuts[0].test
    assert all(np.array_equal(made.test, test) for made in cuts)
    every = np.unique(np.concatenate([np.concatenate([c.train, c.validation]) for c in cuts]))
    near = len(every) + len(test)
    assert not np.isin(every, test).any()
    site, _ = panel.samples(WINDOW)
    assert near == len(site) if split.kind == "random" or split.buffer_km is None else near < len(site)

    def units(flat: np.ndarray) -> set[int]:
        return {*np.unique(flat // DAYS if by_site else flat).tolist()}

    # The models leave disjoint parts of the rest out, which together are the rest.
    left_out = [units(every) - units(np.concatenate([c.train, c.validation])) for c in cuts]
    assert set.union(*left_out) == units(every)
    assert sum(map(len, left_out)) == len(units(every))
    if split.kind == "random" or split.buffer_km is None:
        sizes = [len(units(test)), *map(len, left_out)]
        assert max(sizes) - min(sizes) <= 1  # folds + 1 equal parts
    made = [trial.prepare(cell(split=split, fold=fold, protocol="paper"), panel) for fold in (0, 2)]
    for ready, expected in zip(made, (cuts[0], cuts[2]), strict=True):
        assert np.array_equal(ready.indices.test, expected.test)
        assert np.array_equal(ready.train, expected.train)
    assert not np.array_equal(made[0].train, made[1].train)


def test_the_spread_over_folds_is_that_over_training_sets():
    split, panel = RandomSplit(folds=10), world()
    got = [trial.run(cell(split=split, fold=fold, protocol="paper"), panel) for fold in (0, 1)]
    assert np.array_equal(got[0].predictions["truth"], got[1].predictions["truth"])
    assert not np.array_equal(got[0].predictions["prediction"], got[1].predictions["prediction"])
    assert all(one.audit["shared_samples"] == 0 for one in got)


def test_splits_of_regions_and_in_time_keep_their_test_sets():
    for split in SPLITS:
        if not isinstance(split, RandomSplit | SpatialSplit):
            plain = protocol.paper_indices(splits.cut(split, 0, world(), WINDOW), world())
            made = protocol.paper_cut(split, 0, world(), WINDOW)
            assert all(np.array_equal(getattr(made, n), getattr(plain, n)) for n in ("train", "test"))


def test_the_published_loss_is_the_squared_error_below_the_largest_target():
    published, squared = cell(protocol="paper").train, cell().train
    assert (published.loss, published.huber_delta, squared.loss) == ("huber", 1.0, "squared")
    predicted, target = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    paper, strict = (loss_function(train)(predicted, target) for train in (published, squared))
    assert float(paper) == pytest.approx(float(strict), rel=1e-6)
    assert cell(protocol="paper", train={"loss": "squared"}).train.loss == "squared"
    assert cell(protocol="paper", train={"huber_delta": 0.5}).train.huber_delta == 0.5


def test_gradients_are_not_clipped(monkeypatch):
    clipped = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda _, norm: clipped.append(norm))
    trial.run(cell(protocol="paper"), world())
    assert clipped == []
    trial.run(cell(protocol="paper", train={"clip_norm": 0.5}), world())
    assert {*clipped} == {0.5}


@pytest.mark.parametrize("kind", ["strict", "paper"])
def test_scalers_and_target_scale(kind):
    panel = world(missing=0, lowest=-4.0)
    made = trial.prepare(cell(split=SPLITS[4], protocol=kind), panel)
    parts = made.indices
    # Under paper everything that is scored or trained; the within-region test is this project's own.
    known = np.concatenate([parts.train, parts.validation, parts.test]) if kind == "paper" else parts.train
    assert np.array_equal(made.fitted["scalers"], np.sort(known))
    assert np.array_equal(made.fitted["target"], np.sort(known))

    rows = (known[:, None] + np.arange(1 - WINDOW, 1)).reshape(-1)
    gathered = panel.features.reshape(-1, 2)[rows].astype(np.float64)
    window, _ = made.inputs.batch(torch.from_numpy(parts.train[:7]))
    raw = panel.features.reshape(-1, 2)[parts.train[:7, None] + np.arange(1 - WINDOW, 1)]
    if kind == "paper":
        low, high = gathered.min(axis=0), gathered.max(axis=0)
        expected = 2 * (raw - low) / (high - low) - 1
    else:
        expected = (raw - gathered.mean(axis=0)) / gathered.std(axis=0)
    np.testing.assert_allclose(window, expected, rtol=1e-4, atol=1e-5)
    target = flat_target(panel)[known].astype(np.float64)
    if kind == "paper":
        assert (made.scale.shift, made.scale.scale) == (0, target.max())
    else:
        assert (made.scale.shift, made.scale.scale) == pytest.approx((target.mean(), target.std()))


def test_the_largest_target_of_all_parts_is_the_scale():
    panel = world(missing=0)
    for name in ("train", "validation", "test"):
        part = getattr(protocol.paper_cut(SPLITS[2], 0, panel, WINDOW), name)
        target = panel.target.copy()
        target.reshape(-1)[part[-1]] = 777
        made = trial.prepare(cell(split=SPLITS[2], protocol="paper"), replace(panel, target=target))
        assert made.scale.scale == 777


def test_the_last_weights_are_scored_not_the_best():
    panel = world(missing=0)
    # The loss is half the squared error, so that losses tell RMSEs.
    changes = {"train": {"loss": "squared", "max_epochs": 8, "learning_rate": 0.2}}
    for kind, epoch in (("paper", -1), ("strict", None)):
        made = cell(protocol=kind, **changes)
        got = trial.run(made, panel)
        losses = [e.validation_loss for e in got.history]
        assert losses[-1] > min(losses)
        expected = min(losses) if epoch is None else losses[epoch]
        scale = trial.prepare(made, panel).scale.scale
        assert got.metrics["val_rmse"] == pytest.approx(np.sqrt(2 * expected) * scale, rel=1e-4)
        assert got.counts["best_epoch"] == int(np.argmin(losses)) + 1


@pytest.mark.parametrize(
    ("kind", "variant", "expected"),
    [("paper", "satclip", "norm_tanh"), ("paper", "geoclip", "relu"),
     ("strict", "satclip", "relu"), ("strict", "geoclip", "relu")],
)  # fmt: skip
def test_satclip_is_projected_as_published(kind, variant, expected):
    made = trial.prepare(cell(variant, "concat", protocol=kind), world(), embedding=EMBEDDING)
    assert made.model.projection == expected
    assert hasattr(made.model, "location_norm") == (expected == "norm_tanh")


@pytest.mark.parametrize(("kind", "value"), [("paper", -1.0), ("strict", None)])
def test_days_of_minus_one_are_masked(kind, value):
    assert trial.prepare(cell(protocol=kind), world()).model.mask_value == value


@pytest.mark.parametrize("kind", ["strict", "paper"])
def test_neighbours_may_be_held_out_monitors_under_paper_only(kind):
    panel, own = world(missing=0), NEIGHBOURS["plain"]
    made = trial.prepare(cell(split=SPLITS[2], neighbours=own, protocol=kind), panel)
    parts = made.indices
    known = np.concatenate([parts.train, parts.validation, parts.test]) if kind == "paper" else parts.train
    known = np.sort(known)
    assert np.array_equal(made.fitted["neighbours"], known)
    assert made.inputs.channels == ("a", "b", "neighbours_pm25")

    raw = feature(panel, known, np.unique(parts.test // DAYS), WINDOW, own, np.random.default_rng(0))
    raw = raw.reshape(-1).astype(np.float64)
    fitted = made.fitted["scalers"][:, None] + np.arange(1 - WINDOW, 1)
    flat = np.concatenate([parts.train, parts.test])
    window, _ = made.inputs.batch(torch.from_numpy(flat))
    centre, unit = raw[fitted].mean(), raw[fitted].std()
    if kind == "paper":
        centre, unit = (raw[fitted].max() + raw[fitted].min()) / 2, np.ptp(raw[fitted]) / 2
    expected = (raw[flat[:, None] + np.arange(1 - WINDOW, 1)] - centre) / unit
    np.testing.assert_allclose(window[:, :, 2], expected, rtol=1e-4, atol=1e-4)


def test_a_subsample_has_all_training_monitors_for_neighbours():
    made = trial.prepare(cell(neighbours=NEIGHBOURS["plain"], train={"max_windows": 9}), world())
    assert len(made.train) == len(made.fitted["scalers"]) == 9
    assert np.array_equal(made.fitted["neighbours"], made.indices.train)


# --- What strict refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize("channel", protocol.LEAKING_CHANNELS)
def test_published_neighbour_channels_are_for_paper_only(channel):
    panel = replace(world(), channels=("a", channel))
    for refused in (trial.prepare, trial.run):
        with refuses("toy", channel, "data.channels", "neighbours", "protocol: paper"):
            refused(cell(), panel)
    assert trial.prepare(cell(protocol="paper"), panel).inputs.channels == ("a", channel)
    assert f"channel_{channel}" in trial.run(cell(protocol="paper"), panel).audit["failed"]
    protocol.refuse_leaks(world(), "strict")


def test_paper_has_a_target_scale_of_its_own():
    with pytest.raises(ValidationError) as raised:
        cell(protocol="paper", train={"target": "log1p"})
    (fault,) = raised.value.errors()
    assert fault["ctx"]["error"].field == "train.target"
