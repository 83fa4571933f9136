"""The search space: parameters and their errors, the space of every arm, and the first points."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pm25.errors import InputError, SettingError
from pm25.settings import ModelSettings, TrainSettings
from pm25.splits import CheckerboardSplit, RandomSplit
from sweeps.cli import main
from sweeps.engine.optuna_study import _suggested, suggest
from sweeps.spec import study_file
from sweeps.spec.design import Arm
from sweeps.spec.search_space import (
    Parameter,
    Placement,
    Pruner,
    Search,
    active,
    is_active,
    same,
    settings_at,
    within,
)
from sweeps.store.search_trials import ArmTrials
from tests.errors import refuses

NONE, GEOCLIP = Arm("none", None), Arm("geoclip", "hadamard")
MATCHED = Arm("none", "concat", "matched")
MODEL, TRAIN = ModelSettings(width=8), TrainSettings(learning_rate=0.005)
RATE = {"train.learning_rate": {"float": [1.0e-4, 1.0e-2], "log": True}}
INNER = {"kind": "random", "inner": {"kind": "checkerboard", "degrees": 8}}


def parameter(**given: Any) -> Parameter:
    return Parameter.model_validate(given)


def search(**given: Any) -> Search:
    content = {"trials": 4, "space": RATE, "split": [{"kind": "random", "folds": 3, "fold": 1}]}
    return Search.model_validate(content | given)


def space_of(arm: Arm, space: dict[str, Any], **given: Any) -> dict[str, Parameter]:
    return search(space=space, **given).space_of(arm, MODEL, TRAIN)


def first_points(arm: Arm, space: dict[str, Any], **given: Any) -> list[dict[str, Any]]:
    made = search(space=space, **given)
    return made.first_points(arm, made.space_of(arm, MODEL, TRAIN), MODEL, TRAIN)


def refused(said: tuple[str, ...], function: Any, *arguments: Any, **given: Any) -> None:
    """Check that a function raises for the field and the values of `said`, as a study file would."""
    with refuses("", *said):
        try:
            function(*arguments, **given)
        except ValidationError as error:
            raise study_file.input_error("", error) from None
        except SettingError as error:
            raise InputError("", error.field, error.problem, error.fix) from None


# One parameter


@pytest.mark.parametrize(
    ("given", "held", "not_held"),
    [
        ({"float": [0.5, 2]}, [0.5, 1, 1.7, 2.0], [0.49, 2.1, True, "1", None, math.nan, math.inf, 10**400]),
        ({"float": [0.001, 0.1], "log": True}, [0.001, 0.0123, 0.1], [0.0009]),
        ({"float": [0, 0.3], "step": 0.1}, [0, 0.1, 0.2, 3 * 0.1 - 0.1, 0.3], [0.05, 0.4, 0.30001]),
        ({"int": [2, 8]}, [2, 5, 8, 5.0], [1, 9, 5.5, True, "5"]),
        ({"int": [2, 8], "step": 3}, [2, 5, 8], [3, 4, 6]),
        ({"int": [1, 9], "log": True}, [1, 2, 9], [0, 10]),
        ({"int": [0, 2**53]}, [2**53, 10**15], [10**15 + 0.5]),
        ({"choice": [1, 2.5, "log1p", None]}, [1, 1.0, 2.5, "log1p", None], [2, True, "1", "LOG1P", [1]]),
        ({"choice": [True, 0]}, [True, 0, 0.0], [False, 1]),
    ],
)
def test_what_a_parameter_holds(given: dict[str, Any], held: list[Any], not_held: list[Any]) -> None:
    made = parameter(**given)
    assert [value for value in held if not made.holds(value)] == []
    assert [value for value in not_held if made.holds(value)] == []


def test_a_boolean_is_not_a_number() -> None:
    assert same(1, 1.0)
    assert same(True, True)
    assert not same(True, 1)
    assert not same(0.0, False)
    assert not same(None, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ("", "[LOW, HIGH]", "[A, B]")),
        ({"float": [1, 2], "int": [1, 2]}, ("", "[LOW, HIGH]", "[A, B]")),
        ({"int": [1, 2], "choice": [1, 2]}, ("", "[LOW, HIGH]", "[A, B]")),
        ({"log": True}, ("", "[LOW, HIGH]", "[A, B]")),
        ({"float": [2, 1]}, ("float", "2", "1")),
        ({"int": [4, 4]}, ("int", "4")),
        ({"float": [0, 1], "log": True}, ("float", "0")),
        ({"int": [0, 4], "log": True}, ("int", "0")),
        ({"float": [1, 2], "log": True, "step": 0.5}, ("step",)),
        ({"float": [0.1, 1], "step": 0.4}, ("step", "0.4", "0.1")),
        ({"int": [1, 8], "step": 3}, ("step", "8", "3", "1")),
        ({"int": [1, 4], "step": 1.5}, ("step", "1.5")),
        ({"float": [1, 2], "step": 0}, ("step", "0")),
        ({"choice": [1, 2], "log": True}, ("log",)),
        ({"choice": [1, 2], "step": 1}, ("step",)),
        ({"choice": ["1e-3", 0.1]}, ("choice", "1e-3", "1.0e-3")),
        ({"choice": [math.nan, 1]}, ("choice", "nan", "null")),
        ({"choice": [1, [2]]}, ("choice", "[2]", "null")),
        ({"choice": []}, ("choice", "empty", "at least one value")),
        ({"float": [1, math.inf]}, ("float.1", "inf")),
        ({"float": [math.nan, 1]}, ("float.0", "nan")),
        (
            {"float": [1, 10**400]},
            (
                "float.1",
                "1000000000000000000000000000000",
            ),
        ),
        (
            {"int": [1, 10**400]},
            (
                "int.1",
                "9007199254740992",
                "1000000000000000000000000000000",
            ),
        ),
        (
            {"int": [-(10**400), 1]},
            (
                "int.0",
                "-9007199254740992",
                "-1000000000000000000000000000000",
            ),
        ),
        ({"int": [1, 2.5]}, ("int.1", "2.5")),
        ({"float": [1]}, ("float.1",)),
        ({"flaot": [1, 2]}, ("flaot", "search.space.float")),
        ({"float_": [1, 2]}, ("float_", "search.space.float")),
        ({"float": [1, 2], "when": {}}, ("when", "{} is empty", "at least one value")),
        ({"choice": [1, 2], "when": {}}, ("when", "{} is empty", "at least one value")),
        ({"int": [1, 2], "when": {"model.depth": []}}, ("when.model.depth", "empty", "at least one value")),
    ],
)
def test_a_wrong_parameter_is_refused(given: dict[str, Any], said: tuple[str, ...]) -> None:
    refused(said, parameter, **given)


def test_yaml_reads_a_number_without_a_point_as_a_text_which_ends_may_be() -> None:
    assert parameter(**yaml.safe_load("{float: [1e-4, 1e-2], log: true}")).float_ == (1e-4, 1e-2)


def test_steps_are_counted_as_optuna_counts_them() -> None:
    assert parameter(float=[0, 0.3], step=0.1).step == 0.1  # 0.3 / 0.1 is 2.9999999999999996
    refused(("step",), parameter, float=[1 / 3, 1], step=1 / 6)


@settings(max_examples=200, deadline=None)
@given(
    low=st.floats(-1e6, 1e6), steps=st.integers(1, 1000), step=st.sampled_from([0.1, 0.25, 0.05, 1 / 3, 7])
)
def test_a_step_that_is_taken_needs_no_warning_of_optuna_s(low: float, steps: int, step: float) -> None:
    high = round(low + steps * step, 6)
    try:
        made = parameter(float=[low, high], step=step)
    except ValidationError:
        return
    assert made.float_ is not None
    distribution = optuna.distributions.FloatDistribution(
        *made.float_, step=made.step
    )  # a warning is an error
    assert distribution.high == made.float_[1]


# A point within a space


CONDITIONAL = {
    "model.depth": {"int": [1, 3]},
    "train.target": {"choice": [None, "log1p"]},
    "train.clip_norm": {"float": [0.5, 2], "when": {"train.target": "log1p"}},
    "model.dropout": {"float": [0.0, 0.5], "when": {"model.depth": [2, 3], "train.target": [None]}},
}


def conditional() -> dict[str, Parameter]:
    return space_of(NONE, CONDITIONAL)


@pytest.mark.parametrize(
    ("point", "names"),
    [
        ({"model.depth": 1, "train.target": None}, []),
        ({"model.depth": 1, "train.target": "log1p"}, ["train.clip_norm"]),
        ({"model.depth": 3, "train.target": None}, ["model.dropout"]),
        ({"model.depth": 3, "train.target": "log1p"}, ["train.clip_norm"]),
        ({"model.depth": 3}, []),
        ({}, []),
    ],
)
def test_a_parameter_means_something_beside_the_values_it_names(
    point: dict[str, Any], names: list[str]
) -> None:
    space = conditional()
    assert [n for n, p in space.items() if p.when and is_active(p, point)] == names
    everything = {"train.clip_norm": 1.0, "model.dropout": 0.1} | point
    assert active(space, everything) == point | {name: everything[name] for name in names}


def test_conditions_can_be_chained() -> None:
    chain = {
        "model.dropout": {"choice": [0.0, 0.5], "when": {"model.depth": 2}},
        "train.decay": {"choice": [0.5, 1.0], "when": {"model.dropout": 0.5}},
        "model.depth": {"choice": [1, 2]},
    }
    space = space_of(NONE, chain)
    assert [*space] == [
        "model.depth",
        "model.dropout",
        "train.decay",
    ]  # each parameter follows the one that it depends on
    everything = {"model.dropout": 0.5, "train.decay": 1.0}
    assert active(space, everything | {"model.depth": 1}) == {"model.depth": 1}
    assert active(space, everything | {"model.depth": 2}) == everything | {"model.depth": 2}


def test_a_point_is_within_its_space_or_not() -> None:
    space = conditional()
    assert within(space, {"model.depth": 1, "train.target": None})
    assert within(space, {"model.depth": 2, "train.target": None, "model.dropout": 0.5})
    assert not within(space, {"model.depth": 2, "train.target": None})  # one that means something lacks
    assert not within(space, {"model.depth": 1, "train.target": None, "model.dropout": 0.5})  # one too many
    assert not within(space, {"model.depth": 4, "train.target": None})
    assert not within(space, {"model.depth": True, "train.target": None})
    assert not within(space, {"model.depth": 1, "train.target": None, "model.width": 8})
    assert not within(space, {})


NAMES = ["model.depth", "model.attention_units", "train.batch_size", "train.patience", "train.max_epochs"]
RATES = ["train.learning_rate", "train.decay", "train.clip_norm", "model.dropout"]


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """A random search space with conditions on earlier parameters."""
    space: dict[str, Any] = {}
    known: list[tuple[str, Any]] = []
    for name in draw(st.lists(st.sampled_from(NAMES + RATES), min_size=1, max_size=6, unique=True)):
        kind = draw(st.sampled_from(["choice", "range", "log", "step"]))
        low: Any
        if name in NAMES:
            low, width = draw(st.integers(1, 30)), draw(st.integers(1, 40))
            step = draw(st.integers(1, width)) if kind == "step" else 1
            made = {"int": [low, low + width // step * step], "log": kind == "log"}
            some = [low, low + step]
            if kind == "step":
                made["step"] = step
        else:
            low = draw(st.floats(1e-6, 0.4))
            high = draw(st.floats(low * 1.001, 0.9))
            made, some = {"float": [low, high], "log": kind == "log"}, []
            if kind == "step":
                tenths = draw(st.integers(1, 8))
                made = {"float": [0.1, round(0.1 + tenths / 10, 1)], "step": 0.1}
        if kind == "choice":
            value = st.integers(1, 50) if name in NAMES else st.floats(0.01, 0.9)
            some = draw(st.lists(value, min_size=1, max_size=4, unique=True))
            made = {"choice": some}
        if known and draw(st.booleans()):
            other, value = draw(st.sampled_from(known))
            made["when"] = {other: [value]}
        space[name] = made
        known += [(name, value) for value in some]
    shuffled = draw(st.permutations(list(space)))
    return {name: space[name] for name in shuffled}


@settings(max_examples=60, deadline=None)
@given(space=spaces(), seed=st.integers(0, 2**31))
def test_whatever_optuna_suggests_is_a_point_of_the_space(space: dict[str, Any], seed: int) -> None:
    made = search(space=space)
    trials = ArmTrials(NONE, made, made.space_of(NONE, MODEL, TRAIN), [])
    sampler = optuna.samplers.RandomSampler(seed=seed)
    asked = optuna.create_study(sampler=sampler)
    for _ in range(8):
        trial = asked.ask()
        suggest(trial, trials.space)
        assert within(trials.space, trial.params)
        settings_at(NONE, trial.params, MODEL, TRAIN)  # and every value of it is allowed
        # The same holds for the ends of a range after a round trip through the store.
        assert within(trials.space, yaml.safe_load(yaml.safe_dump(trial.params)))
        asked.tell(trial, 1.0)


@settings(max_examples=200, deadline=None)
@given(low=st.floats(1e-8, 1.0), ratio=st.floats(1.0000001, 1e8), seed=st.integers(0, 1000))
def test_the_ends_of_a_logarithm_hold_what_is_sampled_between_them(
    low: float, ratio: float, seed: int
) -> None:
    made = parameter(float=[low, low * ratio], log=True)
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(5):
        assert made.holds(_suggested(asked.ask(), "x", made))


# The space of an arm


def test_every_arm_has_the_shared_space_and_its_own() -> None:
    own = [
        {"variant": "geoclip", "space": {"model.depth": {"int": [1, 2]}}},
        {"variant": "geoclip", "fusion": "concat", "space": {"train.learning_rate": {"choice": [0.001]}}},
        {"variant": "none", "head": "matched", "space": {"model.depth": {"int": [2, 3]}}},
    ]
    made = search(per_arm=own)

    def of(arm: Arm) -> dict[str, Parameter]:
        return made.space_of(arm, MODEL, TRAIN)

    shared = parameter(**RATE["train.learning_rate"])
    depth = parameter(int=[1, 2])
    assert of(NONE) == {"train.learning_rate": shared}
    assert of(GEOCLIP) == {"train.learning_rate": shared, "model.depth": depth}
    one = parameter(choice=[0.001])
    assert of(Arm("geoclip", "concat")) == {"train.learning_rate": one, "model.depth": depth}
    assert of(MATCHED) == {"train.learning_rate": shared, "model.depth": parameter(int=[2, 3])}


def test_an_arm_without_an_embedding_tunes_no_projection() -> None:
    projection = {"model.projection": {"choice": [None, "norm_tanh"]}}
    given = {
        **RATE,
        **projection,
        "model.dropout": {"float": [0.0, 0.5], "when": {"model.projection": "norm_tanh"}},
        "model.depth": {"int": [1, 2], "when": {"model.dropout": 0.5}},
        "train.decay": {"float": [0.5, 1], "when": {"model.projection": None}},
        "train.patience": {"int": [1, 2], "when": {"model.projection": [None, "norm_tanh"]}},
    }
    assert [*space_of(GEOCLIP, given)] == [
        *("train.learning_rate", "model.projection", "model.dropout", "train.decay", "train.patience"),
        "model.depth",
    ]
    assert [*space_of(MATCHED, given)] == [*space_of(GEOCLIP, given)]
    plain = space_of(NONE, given)
    assert [*plain] == ["train.learning_rate", "train.decay", "train.patience"]
    assert [p.when for p in plain.values()] == [None, None, None]  # nothing is projected: it is met
    assert settings_at(NONE, {}, ModelSettings(projection="norm_tanh"), TRAIN)[0].projection is None
    refused(("search.space", "arm none"), space_of, NONE, projection)


def test_a_choice_is_what_the_setting_makes_of_it() -> None:
    space = space_of(NONE, {"model.dropout": {"choice": [0, 0.5]}, "model.width": {"choice": [4.0, "8", 16]}})
    assert list(map(repr, space["model.dropout"].choice or ())) == ["0.0", "0.5"]
    assert list(map(repr, space["model.width"].choice or ())) == ["4", "8", "16"]
    given = {**RATE, "model.dropout": {"choice": [0, 0.5]}}
    assert first_points(NONE, given, enqueue=[{"model.dropout": 0}]) == [{"model.dropout": 0}]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, ("search.space", "none")),
        (
            {"train.lerning_rate": {"float": [0.1, 1]}},
            ("search.space.train.lerning_rate", "train.learning_rate"),
        ),
        (
            {"model.widht": {"choice": [4, 8]}},
            ("search.space.model.widht", "model.width"),
        ),
        (
            {"x.y": {"float": [0.1, 1]}},
            ("search.space.x.y", "model.width", "model.depth"),
        ),
        ({"model.units": {"int": [1, 2]}}, ("search.space.model.units", "model.width")),
        (
            {"model.width": {"int": [4, 16]}},
            ("search.space.model.width", "2", "5"),
        ),
        (
            {"model.width": {"int": [4, 16], "log": True}},
            ("search.space.model.width", "2", "5"),
        ),
        (
            {"model.width": {"int": [4, 16], "step": 3}},
            ("search.space.model.width", "2", "7"),
        ),
        (
            {"model.depth": {"float": [1, 4]}},
            ("search.space.model.depth",),
        ),
        (
            {"model.dropout": {"float": [0, 1]}},
            ("search.space.model.dropout", "1"),
        ),
        (
            {"train.learning_rate": {"float": [-1, 1]}},
            ("search.space.train.learning_rate", "-1.0"),
        ),
        ({"train.target": {"choice": ["log2p"]}}, ("search.space.train.target", "'log1p'")),
        ({"model.depth": {"choice": [1, 2, 2]}}, ("search.space.model.depth.choice", "2")),
        ({"model.depth": {"choice": [1, 1.0]}}, ("search.space.model.depth.choice", "1")),
        ({"model.depth": {"choice": [True, 1]}}, ("search.space.model.depth", "true")),
        (
            {**RATE, "model.depth": {"int": [1, 2], "when": {"model.dropout": 0}}},
            ("search.space.model.depth.when", "model.dropout", "train.learning_rate"),
        ),
        (
            {"model.depth": {"int": [1, 2], "when": {"model.depth": 1}}},
            ("search.space.model.depth.when", "model.depth"),
        ),
        (
            {**RATE, "model.depth": {"int": [1, 2], "when": {"train.learning_rate": [0.001, 3]}}},
            ("search.space.model.depth.when", "3", "train.learning_rate"),
        ),
        (
            {
                "model.depth": {"choice": [1, 2], "when": {"train.patience": 1}},
                "train.patience": {"choice": [1, 2], "when": {"model.depth": 1}},
            },
            ("search.space",),
        ),
    ],
)
def test_a_wrong_space_is_refused(space: dict[str, Any], said: tuple[str, ...]) -> None:
    refused(said, space_of, NONE, space)


@pytest.mark.parametrize("name", ["model", "train", True, 1, None])
def test_a_block_in_place_of_a_name(name: Any) -> None:
    given = {name: {"learning_rate": {"float": [0.1, 1]}}}
    refused((f"space.{name}", "train.learning_rate"), search, space=given)


def test_settings_at_a_point_are_the_study_s_but_for_the_point() -> None:
    model, train = settings_at(NONE, {"model.depth": 2, "train.target": "log1p"}, MODEL, TRAIN)
    assert model == MODEL.model_copy(update={"depth": 2})
    assert train == TRAIN.model_copy(update={"target": "log1p"})
    assert settings_at(GEOCLIP, {}, MODEL, TRAIN) == (MODEL, TRAIN)
    said = ("search.space.model.dept", "model.depth")
    refused(said, settings_at, NONE, {"model.dept": 2}, MODEL, TRAIN)


# Points to try first

TWO = {**RATE, "model.projection": {"choice": [None, "norm_tanh"]}}


def test_the_study_s_own_point_and_the_published_one() -> None:
    both = {"enqueue": ["study", "published"]}
    wide = {**TWO, "model.width": {"int": [8, 256], "step": 8}}
    assert first_points(GEOCLIP, wide, **both) == [
        {"train.learning_rate": 0.005, "model.projection": None, "model.width": 8},
        {"train.learning_rate": 0.001, "model.projection": None, "model.width": 256},
    ]
    assert first_points(NONE, wide, **both) == [
        {"train.learning_rate": 0.005, "model.width": 8},
        {"train.learning_rate": 0.001, "model.width": 256},
    ]


def test_points_without_what_means_nothing_in_the_arm() -> None:
    given = [{"model.projection": "norm_tanh"}, {"train.learning_rate": 0.002, "model.projection": None}, {}]
    assert first_points(GEOCLIP, TWO, enqueue=given) == given[:2]
    assert first_points(NONE, TWO, enqueue=given) == [{"train.learning_rate": 0.002}]


def test_points_without_what_means_nothing_beside_their_others() -> None:
    point = {"model.depth": 1, "train.target": "log1p", "train.clip_norm": 1.0, "model.dropout": 0.1}
    (kept,) = first_points(NONE, CONDITIONAL, enqueue=[point])
    assert kept == {"model.depth": 1, "train.target": "log1p", "train.clip_norm": 1.0}
    (kept,) = first_points(NONE, CONDITIONAL, enqueue=["study"])
    assert kept == {"model.depth": 3, "train.target": None, "model.dropout": 0.2}


def test_the_precision_is_a_parameter() -> None:
    space = space_of(NONE, {"train.precision": {"choice": ["fp32", "bf16"]}})
    assert [within(space, {"train.precision": value}) for value in ("fp32", "bf16", "fp16")] == [True] * 2 + [
        False
    ]
    assert settings_at(NONE, {"train.precision": "fp32"}, MODEL, TRAIN) == (MODEL, TRAIN)
    assert settings_at(NONE, {"train.precision": "bf16"}, MODEL, TRAIN)[1].precision == "bf16"


LOSSES = {
    "train.loss": {"choice": ["squared", "huber", "absolute"]},
    "train.huber_delta": {"float": [0.5, 2.0], "when": {"train.loss": "huber"}},
}


def test_the_loss_is_a_parameter_and_only_huber_has_a_delta() -> None:
    space = space_of(NONE, LOSSES)
    assert [*space] == ["train.loss", "train.huber_delta"]
    assert within(space, {"train.loss": "squared"})
    assert within(space, {"train.loss": "huber", "train.huber_delta": 0.7})
    assert not within(space, {"train.loss": "huber"})
    huber = TrainSettings(huber_delta=1.5)
    for study in (TRAIN, huber):
        for point in ({"train.loss": "squared"}, {"train.loss": "huber", "train.huber_delta": 0.7}):
            _, train = settings_at(NONE, point, MODEL, study)
            assert (train.loss, train.huber_delta) == (point["train.loss"], point.get("train.huber_delta"))
    assert settings_at(NONE, {"train.loss": "huber"}, MODEL, TRAIN)[1].huber_delta == 1
    assert settings_at(NONE, {"train.loss": "huber"}, MODEL, huber)[1].huber_delta == 1.5
    assert settings_at(NONE, {}, MODEL, huber)[1] == huber
    assert first_points(NONE, LOSSES, enqueue=["published"]) == [{"train.loss": "squared"}]
    made = search(space=LOSSES, enqueue=["study"])
    of_huber = made.first_points(NONE, made.space_of(NONE, MODEL, huber), MODEL, huber)
    assert of_huber == [{"train.loss": "huber", "train.huber_delta": 1.5}]


def test_a_study_with_the_huber_loss_tunes_its_delta() -> None:
    made = search(space={"train.huber_delta": {"float": [0.5, 2.0]}}, enqueue=["study", "published"])
    huber = TrainSettings(huber_delta=1.5)
    points = made.first_points(NONE, made.space_of(NONE, MODEL, huber), MODEL, huber)
    assert points == [{"train.huber_delta": 1.5}, {"train.huber_delta": 1.0}]


@pytest.mark.parametrize(
    ("space", "fix"),
    [
        ({"train.huber_delta": {"float": [0.5, 2.0]}}, "train.loss: huber"),
        ({**LOSSES, "train.huber_delta": {"float": [0.5, 2.0]}}, "when: {train.loss: huber}"),
        (
            {
                **LOSSES,
                "train.huber_delta": {"float": [0.5, 2], "when": {"train.loss": ["huber", "squared"]}},
            },
            "when: {train.loss: huber}",
        ),
    ],
)
def test_a_delta_of_another_loss_is_refused(space: dict[str, Any], fix: str) -> None:
    refused(("search.space.train.huber_delta", fix), space_of, NONE, space)


def test_a_value_that_the_settings_refuse_together_names_its_parameter() -> None:
    point = {"train.loss": "squared", "train.huber_delta": 0.7}
    refused(("search.space.train.huber_delta", "squared"), settings_at, NONE, point, MODEL, TRAIN)


def test_a_point_is_tried_once_and_an_arm_has_points_of_its_own() -> None:
    own = [{"variant": "geoclip", "enqueue": [{"train.learning_rate": 0.003}, "study"]}]
    shared = ["study", {"train.learning_rate": 0.005}]
    rate = "train.learning_rate"
    assert first_points(GEOCLIP, RATE, enqueue=shared, per_arm=own) == [{rate: 0.005}, {rate: 0.003}]
    assert first_points(NONE, RATE, enqueue=shared, per_arm=own) == [{rate: 0.005}]


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ({"train.lr": 1}, ("search.enqueue", "train.lr", "search.space", "train.learning_rate")),
        ({"model.depth": 1}, ("search.enqueue", "model.depth", "search.space", "train.learning_rate")),
        (
            {"train.learning_rate": 1},
            ("search.enqueue", "1", "train.learning_rate", "none"),
        ),
        (
            {"train.learning_rate": "0.001"},
            ("search.enqueue", "'0.001'", "train.learning_rate", "none"),
        ),
        (
            {"train.learning_rate": "1e-3"},
            ("search.enqueue.train.learning_rate", "1e-3"),
        ),
        (
            {"train.learning_rate": math.nan},
            ("search.enqueue.train.learning_rate", "nan", "null"),
        ),
        ({"train.learning_rate": [0.001]}, ("search.enqueue.train.learning_rate", "[0.001]")),
        ({"train.learning_rate": True}, ("search.enqueue", "train.learning_rate")),
        ("published", ("search.enqueue", "0.001", "train.learning_rate", "none")),
    ],
)
def test_a_wrong_first_point_is_refused(point: Any, said: tuple[str, ...]) -> None:
    space = {"train.learning_rate": {"float": [0.002, 0.01]}}
    refused(said, space_of, NONE, space, enqueue=[point])


# The search itself


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trials": 0}, ("trials", "0")),
        ({"epochs": 0}, ("epochs", "0")),
        ({"concurrent": 0}, ("concurrent", "0")),
        ({"split": []}, ("split",)),
        ({"split": None}, ("split",)),
        ({"nested": True}, ("split", "nested")),
        ({"nested": True, "split": None, "reserve": 0.1}, ("reserve", "nested")),
        ({"nested": True, "split": None, "objective": "oor"}, ("objective", "oor")),
        ({"reserve": 1}, ("reserve.share", "1")),
        ({"reserve": {"degrees": 4}}, ("reserve.share",)),
        ({"seed": []}, ("seed", "[] is empty", "at least one value")),
        ({"objective": []}, ("objective", "[] is empty", "at least one value")),
        ({"seed": [-1]}, ("seed.0", "0", "-1")),
        ({"seed": [2**63]}, ("seed.0", "9223372036854775808")),
        ({"seed": [7, 8, 7]}, ("seed", "7")),
        ({"objective": ["wr", "wr"]}, ("objective", "wr")),
        (
            {"split": [{"kind": "random", "fold": [1, 1]}]},
            ("split.0.fold", "[1]"),
        ),
        (
            {"split": [{"kind": "random", "fold": 1}, {"kind": "random"}]},
            ("split",),
        ),
        ({"objective": "oor"}, ("objective", "search.split", "oor")),
        (
            {"objective": ["wr", "oor"], "split": [{"kind": "random", "inner": {"kind": "random"}}]},
            ("objective", "search.split", "oor"),
        ),
        (
            {"objective": ["oor"], "split": [{"kind": "checkerboard", "degrees": 8}]},
            ("objective", "search.split", "oor"),
        ),
        (
            {"objective": ["wr", "oor"], "split": [INNER], "pruner": "median"},
            ("pruner", "[wr]"),
        ),
        ({"metric": "r2", "pruner": "asha"}, ("pruner",)),
        (
            {"objective": ["wr", "oor"], "split": [INNER], "sampler": "cmaes"},
            ("sampler", "cmaes", "nsga2", "tpe", "gp", "random"),
        ),
        (
            {"sampler": "cmaes", "space": {"model.depth": {"choice": [1, 2]}}},
            ("sampler", "cmaes", "tpe", "gp", "random"),
        ),
        (
            {
                "sampler": "cmaes",
                "per_arm": [{"variant": "none", "space": {"model.depth": {"choice": [1]}}}],
            },
            ("sampler", "cmaes", "tpe", "gp", "random"),
        ),
        ({"pick": "wr"}, ("pick",)),
        ({"metric": "mbe"}, ("metric", "'rmse'", "'r2'", "'mae'", "'mbe'")),
        ({"sampler": "bo"}, ("sampler", "'tpe'", "'gp'", "'cmaes'", "'nsga2'", "'random'", "'bo'")),
        ({"pruner": "sha"}, ("pruner.kind", "'median'", "'asha'", "'hyperband'", "'sha'")),
        ({"pruner": {"kind": "asha", "factor": 1}}, ("pruner.factor", "2", "1")),
        ({"enqueue": ["publishd"]}, ("enqueue.0", "'study'", "'published'", "'publishd'")),
        ({"per_arm": [{"space": {}}]}, ("per_arm.0.variant",)),
    ],
)
def test_a_wrong_search_is_refused(given: dict[str, Any], said: tuple[str, ...]) -> None:
    refused(said, search, **given)


def test_defaults_of_a_search() -> None:
    made = search()
    assert (made.seed, made.objective, made.metric, made.sampler) == ((1000,), ("wr",), "rmse", "tpe")
    assert made.smaller_is_better
    assert made.reports
    assert made.pruner is None
    assert not search(metric="r2").smaller_is_better
    assert not search(metric="mae").reports
    assert search(pruner="asha").pruner == Pruner(kind="asha")
    two = search(objective=["wr", "oor"], split=[INNER], pick="oor", sampler="nsga2")
    assert not two.reports
    assert search(objective="oor", split=INNER).objective == ("oor",)


def test_a_trial_has_as_many_trainings_as_placements_folds_and_seeds() -> None:
    given = [{"kind": "random", "folds": 5, "fold": [0, 3]}, {"kind": "checkerboard", "degrees": 8}, INNER]
    made = search(split=given, seed=[7, 8, 9])
    assert made.trainings == 3 * (2 + 2 + 5)
    assert [tuple(placement.folds) for placement in made.split] == [(0, 3), (0, 1), tuple(range(5))]
    assert [placement.regimes for placement in made.split] == [("wr",), ("wr",), ("wr", "oor")]


def test_placements() -> None:
    made = Placement.model_validate({**INNER, "fold": 3, "inner_fold": 1})
    assert made.split == RandomSplit()
    assert made.inner == CheckerboardSplit(degrees=8)
    assert (made.fold, made.inner_fold) == ((3,), 1)

    for said, placement in (
        (("inner_fold", "inner"), {"kind": "random", "inner_fold": 1}),
        (("inner_fold", "checkerboard-8", "0 to 1"), {**INNER, "inner_fold": 2}),
        (("fold", 10, "random", "0 to 4"), {"kind": "random", "fold": 10}),
        (("inner_fold", -1), {**INNER, "inner_fold": -1}),
        (("split.kind", "checkerboard"), {"fold": 1}),
        (("split.random.innerfold",), {**INNER, "innerfold": 1}),
    ):
        refused(said, Placement.model_validate, placement)


# In a study file

FILE = """\
study: toy
data: {synthetic: {sites: 24, days: 60}}
design:
  variant: [none, geoclip]
  split: [{kind: random, folds: 2}]
  seed: [0, 1]
search:
  trials: 4
  space:
    train.learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
  split: [{kind: random, folds: 2, fold: 1}]
"""


def load(folder: Path, text: str, *overrides: str) -> None:
    path = folder / "toy.yaml"
    path.write_text(text)
    study_file.load(str(path), overrides)


@pytest.mark.parametrize(
    ("line", "other", "said"),
    [
        (
            "train.learning_rate",
            "train.lerning_rate",
            ("search.space.train.lerning_rate", "train.learning_rate"),
        ),
        ("train.learning_rate", "5", ("search.space.5", "train.learning_rate")),
        ("train.learning_rate", "on", ("search.space.on", "model.width")),
        ("log: true", "on: true", ("search.space.train.learning_rate.on", "claims.on")),
        ("log: true", "lgo: true", ("search.space.train.learning_rate.lgo", "search.space.log")),
        ("[1.0e-4, 1.0e-2]", "[1.0e-4, .nan]", ("search.space.train.learning_rate.float.1", "nan")),
        (
            "float: [1.0e-4, 1.0e-2], log: true",
            "choice: [1e-4, 0.1]",
            ("search.space.train.learning_rate.choice", "1e-4"),
        ),
        ("[1.0e-4, 1.0e-2]", "[]", ("search.space.train.learning_rate.float.0",)),
        ("trials: 4", "trails: 4", ("search.trails", "search.trials", "1")),
        ("fold: 1}]", "fold: 2}]", ("search.split.0.fold", "0", "2", "1", "random")),
        ("kind: random, folds: 2, fold: 1", "kind: rnd", ("search.split.0.kind", "random")),
        (
            "  trials: 4",
            "  trials: 4\n  seed: [5, 1]",
            ("search.seed", "1"),
        ),
        ("  trials: 4", "  trials: 4\n  objective: oor", ("search.objective", "search.split")),
        ("fold: 1}]", "inner_fold: 1}]", ("search.split.0.inner_fold", "inner_fold")),
        ("search:", "protocol: paper\nsearch:", ("search",)),
        (
            "  trials: 4",
            "  trials: 4\n  per_arm: [{variant: latlon}]",
            ("search.per_arm.0",),
        ),
        (
            "  trials: 4",
            "  trials: 4\n  per_arm: [{variant: none, fusion: concat}]",
            ("search.per_arm.0", "none-concat"),
        ),
        (
            "  trials: 4",
            "  trials: 4\n  pruner: {kind: asha, facter: 3}",
            ("search.pruner.facter", "search.pruner.factor"),
        ),
    ],
)
def test_a_faulty_search_names_its_key(tmp_path: Path, line: str, other: str, said: tuple[str, ...]) -> None:
    assert line in FILE
    with refuses("toy.yaml", *said):
        load(tmp_path, FILE.replace(line, other, 1))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.space={}", ("search.space", "none")),
        ("search.space=", ("search.space", "null")),
        (
            "search.split=[]",
            ("search.split",),
        ),
        (
            "search.enqueue=[study, {train.learning_rate: 1.0}]",
            ("search.enqueue", "1.0", "train.learning_rate"),
        ),
        ("search.seed=0", ("search.seed", "0")),
    ],
)
def test_overrides_reach_the_search(tmp_path: Path, override: str, said: tuple[str, ...]) -> None:
    with refuses(None, *said):
        load(tmp_path, FILE, override)


def test_a_faulty_search_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(FILE.replace("train.learning_rate", "train.lerning_rate"))
    for command in (["plan", "--no-calibrate"], ["run"], ["status"]):
        monkeypatch.setattr(sys, "argv", ["sweep", command[0], str(path), *command[1:]])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"sweep: {path}: search.space.train.lerning_rate: ")
        assert "train.learning_rate" in line


def test_a_search_is_declared_without_optuna() -> None:
    heavy = "{'optuna', 'ray', 'torch', 'mlflow'}"
    code = f"import sys, sweeps.engine.scheduler; print({heavy} & {{*sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "set()\n"
