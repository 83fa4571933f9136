"""What a study tunes: parameters and their errors, the space of every arm, and the points to try first."""

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

from pm25.errors import InputError
from pm25.settings import ModelSettings, TrainSettings
from pm25.splits import CheckerboardSplit, RandomSplit
from sweeps.cli import main
from sweeps.engine.optuna_study import _suggested, suggest
from sweeps.spec import study
from sweeps.spec.design import (
    Arm,
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


def fault(function: Any, *arguments: Any, **given: Any) -> str:
    """The one line that is said of what cannot be."""
    with pytest.raises((ValidationError, ValueError)) as caught:
        function(*arguments, **given)
    error = caught.value
    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    assert len(text.splitlines()) == 1
    return text.removeprefix("Value error, ")


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


def test_yes_is_not_one() -> None:
    assert same(1, 1.0)
    assert same(True, True)
    assert not same(True, 1)
    assert not same(0.0, False)
    assert not same(None, 0)


ONE_OF = "give one of float: [LOW, HIGH], int: [LOW, HIGH] and choice: [A, B]"
ORDER = "the low end comes first, and below the high one; got "
LOG = "log needs ends above 0, and takes no step"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ONE_OF),
        ({"float": [1, 2], "int": [1, 2]}, ONE_OF),
        ({"int": [1, 2], "choice": [1, 2]}, ONE_OF),
        ({"log": True}, ONE_OF),
        ({"float": [2, 1]}, ORDER + "[2, 1]"),
        ({"int": [4, 4]}, ORDER + "[4, 4]"),
        ({"float": [0, 1], "log": True}, LOG),
        ({"int": [0, 4], "log": True}, LOG),
        ({"float": [1, 2], "log": True, "step": 0.5}, LOG),
        ({"float": [0.1, 1], "step": 0.4}, "1 is no whole number of steps of 0.4 above 0.1"),
        ({"int": [1, 8], "step": 3}, "8 is no whole number of steps of 3 above 1"),
        ({"int": [1, 4], "step": 1.5}, "step 1.5 of an int is a whole number"),
        ({"float": [1, 2], "step": 0}, "Input should be greater than 0"),
        ({"choice": [1, 2], "log": True}, "log and step are for float and int, not for a choice"),
        ({"choice": [1, 2], "step": 1}, "log and step are for float and int, not for a choice"),
        ({"choice": ["1e-3", 0.1]}, "YAML reads 1e-3 as a text; write it with a point, such as 1.0e-3"),
        ({"choice": [math.nan, 1]}, "nan is no number, no text and not null"),
        ({"choice": [1, [2]]}, "[2] is no number, no text and not null"),
        ({"choice": []}, "Tuple should have at least 1 item after validation, not 0"),
        ({"float": [1, math.inf]}, "Input should be a finite number"),
        ({"float": [math.nan, 1]}, "Input should be a finite number"),
        ({"float": [1, 10**400]}, "Input should be a valid number"),
        ({"int": [1, 10**400]}, "Input should be less than or equal to 9007199254740992"),
        ({"int": [-(10**400), 1]}, "Input should be greater than or equal to -9007199254740992"),
        ({"int": [1, 2.5]}, "Input should be a valid integer, got a number with a fractional part"),
        ({"float": [1]}, "Field required"),
        ({"flaot": [1, 2]}, "Extra inputs are not permitted"),
        ({"float_": [1, 2]}, "Extra inputs are not permitted"),
        ({"float": [1, 2], "when": {}}, "Dictionary should have at least 1 item after validation, not 0"),
        ({"choice": [1, 2], "when": {}}, "Dictionary should have at least 1 item after validation, not 0"),
        ({"int": [1, 2], "when": {"model.depth": []}}, "Value should have at least 1 item after validation"),
    ],
)
def test_what_no_parameter_can_be(given: dict[str, Any], said: str) -> None:
    assert fault(parameter, **given).startswith(said)


def test_yaml_reads_a_number_without_a_point_as_a_text_which_ends_may_be() -> None:
    assert parameter(**yaml.safe_load("{float: [1e-4, 1e-2], log: true}")).float_ == (1e-4, 1e-2)


def test_steps_are_counted_as_optuna_counts_them() -> None:
    assert parameter(float=[0, 0.3], step=0.1).step == 0.1  # 0.3 / 0.1 is 2.9999999999999996
    assert "no whole number of steps" in fault(parameter, float=[1 / 3, 1], step=1 / 6)


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
    "train.huber_delta": {"float": [0.5, 2], "when": {"train.target": "log1p"}},
    "model.dropout": {"float": [0.0, 0.5], "when": {"model.depth": [2, 3], "train.target": [None]}},
}


def conditional() -> dict[str, Parameter]:
    return space_of(NONE, CONDITIONAL)


@pytest.mark.parametrize(
    ("point", "names"),
    [
        ({"model.depth": 1, "train.target": None}, []),
        ({"model.depth": 1, "train.target": "log1p"}, ["train.huber_delta"]),
        ({"model.depth": 3, "train.target": None}, ["model.dropout"]),
        ({"model.depth": 3, "train.target": "log1p"}, ["train.huber_delta"]),
        ({"model.depth": 3}, []),
        ({}, []),
    ],
)
def test_a_parameter_means_something_beside_the_values_it_names(
    point: dict[str, Any], names: list[str]
) -> None:
    space = conditional()
    assert [n for n, p in space.items() if p.when and is_active(p, point)] == names
    everything = {"train.huber_delta": 1.0, "model.dropout": 0.1} | point
    assert active(space, everything) == point | {name: everything[name] for name in names}


def test_what_hangs_on_what_hangs() -> None:
    chain = {
        "model.dropout": {"choice": [0.0, 0.5], "when": {"model.depth": 2}},
        "train.decay": {"choice": [0.5, 1.0], "when": {"model.dropout": 0.5}},
        "model.depth": {"choice": [1, 2]},
    }
    space = space_of(NONE, chain)
    assert [*space] == ["model.depth", "model.dropout", "train.decay"]  # each after what it hangs on
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
RATES = ["train.learning_rate", "train.decay", "train.huber_delta", "train.clip_norm", "model.dropout"]


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """A random search space, with conditions on what stands before."""
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
        # As is what stands at the ends, when it comes back from the store.
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


def test_an_arm_that_projects_nothing_tunes_no_projection() -> None:
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
    said = fault(space_of, NONE, projection)
    assert said == "search.space: arm none has nothing to tune"


def test_a_choice_is_what_the_setting_makes_of_it() -> None:
    space = space_of(NONE, {"model.dropout": {"choice": [0, 0.5]}, "model.width": {"choice": [4.0, "8", 16]}})
    assert list(map(repr, space["model.dropout"].choice or ())) == ["0.0", "0.5"]
    assert list(map(repr, space["model.width"].choice or ())) == ["4", "8", "16"]
    given = {**RATE, "model.dropout": {"choice": [0, 0.5]}}
    assert first_points(NONE, given, enqueue=[{"model.dropout": 0}]) == [{"model.dropout": 0}]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "search.space: arm none has nothing to tune"),
        (
            {"train.lerning_rate": {"float": [0.1, 1]}},
            "search.space: train.lerning_rate is no setting; did you mean train.learning_rate?",
        ),
        (
            {"model.widht": {"choice": [4, 8]}},
            "search.space: model.widht is no setting; did you mean model.width?",
        ),
        (
            {"x.y": {"float": [0.1, 1]}},
            "search.space: x.y is no setting; known are model.width, model.depth,",
        ),
        ({"model.units": {"int": [1, 2]}}, "search.space: model.units is no setting; "),
        (
            {"model.width": {"int": [4, 16]}},
            "search.space.model.width: input should be a multiple of 2, got 5",
        ),
        (
            {"model.width": {"int": [4, 16], "log": True}},
            "search.space.model.width: input should be a multiple of 2, got 5",
        ),
        (
            {"model.width": {"int": [4, 16], "step": 3}},
            "search.space.model.width: input should be a multiple of 2, got 7",
        ),
        (
            {"model.depth": {"float": [1, 4]}},
            "search.space.model.depth: it is a whole number; write int in place of float",
        ),
        (
            {"model.dropout": {"float": [0, 1]}},
            "search.space.model.dropout: input should be less than 1, got",
        ),
        (
            {"train.learning_rate": {"float": [-1, 1]}},
            "search.space.train.learning_rate: input should be greater than 0, got -1.0",
        ),
        ({"train.target": {"choice": ["log2p"]}}, "search.space.train.target: input should be 'log1p', got"),
        ({"model.depth": {"choice": [1, 2, 2]}}, "search.space.model.depth: choice holds 2 twice"),
        ({"model.depth": {"choice": [1, 1.0]}}, "search.space.model.depth: choice holds 1 twice"),
        ({"model.depth": {"choice": [True, 1]}}, "search.space.model.depth: choice holds 1 twice"),
        (
            {**RATE, "model.depth": {"int": [1, 2], "when": {"model.dropout": 0}}},
            "search.space.model.depth.when: model.dropout is no other parameter",
        ),
        (
            {"model.depth": {"int": [1, 2], "when": {"model.depth": 1}}},
            "search.space.model.depth.when: model.depth is no other parameter",
        ),
        (
            {**RATE, "model.depth": {"int": [1, 2], "when": {"train.learning_rate": [0.001, 3]}}},
            "search.space.model.depth.when: train.learning_rate is never 3",
        ),
        (
            {
                "model.depth": {"choice": [1, 2], "when": {"train.patience": 1}},
                "train.patience": {"choice": [1, 2], "when": {"model.depth": 1}},
            },
            "search.space: parameters hang on each other in a circle",
        ),
    ],
)
def test_what_no_arm_can_tune(space: dict[str, Any], said: str) -> None:
    assert fault(space_of, NONE, space).startswith(said)


@pytest.mark.parametrize("name", ["model", "train", True, 1, None])
def test_a_block_in_place_of_a_name(name: Any) -> None:
    said = fault(search, space={name: {"learning_rate": {"float": [0.1, 1]}}})
    assert said == f"{name}: write settings as train.learning_rate or model.width"


def test_settings_at_a_point_are_the_study_s_but_for_the_point() -> None:
    model, train = settings_at(NONE, {"model.depth": 2, "train.target": "log1p"}, MODEL, TRAIN)
    assert model == MODEL.model_copy(update={"depth": 2})
    assert train == TRAIN.model_copy(update={"target": "log1p"})
    assert settings_at(GEOCLIP, {}, MODEL, TRAIN) == (MODEL, TRAIN)
    assert "did you mean model.depth?" in fault(settings_at, NONE, {"model.dept": 2}, MODEL, TRAIN)


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
    point = {"model.depth": 1, "train.target": "log1p", "train.huber_delta": 1.0, "model.dropout": 0.1}
    (kept,) = first_points(NONE, CONDITIONAL, enqueue=[point])
    assert kept == {"model.depth": 1, "train.target": "log1p", "train.huber_delta": 1.0}
    (kept,) = first_points(NONE, CONDITIONAL, enqueue=["study"])
    assert kept == {"model.depth": 3, "train.target": None, "model.dropout": 0.2}


def test_a_point_is_tried_once_and_an_arm_has_points_of_its_own() -> None:
    own = [{"variant": "geoclip", "enqueue": [{"train.learning_rate": 0.003}, "study"]}]
    shared = ["study", {"train.learning_rate": 0.005}]
    rate = "train.learning_rate"
    assert first_points(GEOCLIP, RATE, enqueue=shared, per_arm=own) == [{rate: 0.005}, {rate: 0.003}]
    assert first_points(NONE, RATE, enqueue=shared, per_arm=own) == [{rate: 0.005}]


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ({"train.lr": 1}, "search.enqueue: train.lr is not in search.space"),
        ({"model.depth": 1}, "search.enqueue: model.depth is not in search.space"),
        (
            {"train.learning_rate": 1},
            "search.enqueue: train.learning_rate 1 is outside of its space in arm none",
        ),
        (
            {"train.learning_rate": "0.001"},
            "search.enqueue: train.learning_rate '0.001' is outside of its space in arm none",
        ),
        (
            {"train.learning_rate": "1e-3"},
            "search.enqueue: train.learning_rate: YAML reads 1e-3 as a text; write it with a point",
        ),
        (
            {"train.learning_rate": math.nan},
            "search.enqueue: train.learning_rate: nan is no number, no text and not null",
        ),
        ({"train.learning_rate": [0.001]}, "search.enqueue: train.learning_rate: [0.001] is no number"),
        ({"train.learning_rate": True}, "search.enqueue: train.learning_rate True is outside of its space"),
        ("published", "search.enqueue: train.learning_rate 0.001 is outside of its space in arm none"),
    ],
)
def test_a_point_that_cannot_be_tried(point: Any, said: str) -> None:
    space = {"train.learning_rate": {"float": [0.002, 0.01]}}
    assert fault(space_of, NONE, space, enqueue=[point]).startswith(said)


# The search itself


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trials": 0}, "Input should be greater than 0"),
        ({"epochs": 0}, "Input should be greater than 0"),
        ({"concurrent": 0}, "Input should be greater than 0"),
        ({"split": []}, "Value should have at least 1 item after validation, not 0"),
        ({"seed": []}, "Value should have at least 1 item after validation, not 0"),
        ({"objective": []}, "Value should have at least 1 item after validation, not 0"),
        ({"seed": [-1]}, "Input should be greater than or equal to 0"),
        ({"seed": [2**63]}, "Input should be less than 9223372036854775808"),
        ({"seed": [7, 8, 7]}, "seed: one stands there twice; leave it out"),
        ({"objective": ["wr", "wr"]}, "objective: one stands there twice; leave it out"),
        (
            {"split": [{"kind": "random", "fold": [1, 1]}]},
            "split: one stands there twice; leave it out",
        ),
        (
            {"split": [{"kind": "random", "fold": 1}, {"kind": "random"}]},
            "split: one stands there twice; leave it out",
        ),
        ({"objective": "oor"}, "objective: nothing in search.split validates oor; give a placement inner"),
        (
            {"objective": ["wr", "oor"], "split": [{"kind": "random", "inner": {"kind": "random"}}]},
            "objective: nothing in search.split validates oor; give a placement inner",
        ),
        (
            {"objective": ["oor"], "split": [{"kind": "checkerboard", "degrees": 8}]},
            "objective: nothing in search.split validates oor; give a placement inner",
        ),
        (
            {"objective": ["wr", "oor"], "split": [INNER], "pruner": "median"},
            "pruner: an epoch tells the validation RMSE within region, so the objective must be [wr] and",
        ),
        ({"metric": "r2", "pruner": "asha"}, "pruner: an epoch tells the validation RMSE within region"),
        (
            {"objective": ["wr", "oor"], "split": [INNER], "sampler": "cmaes"},
            "sampler: cmaes has one objective; take nsga2, tpe, gp or random",
        ),
        (
            {"sampler": "cmaes", "space": {"model.depth": {"choice": [1, 2]}}},
            "sampler: cmaes has no choices; take tpe, gp or random",
        ),
        (
            {
                "sampler": "cmaes",
                "per_arm": [{"variant": "none", "space": {"model.depth": {"choice": [1]}}}],
            },
            "sampler: cmaes has no choices; take tpe, gp or random",
        ),
        ({"pick": "wr"}, "pick: is for two objectives; leave it out"),
        ({"metric": "mbe"}, "Input should be 'rmse', 'r2' or 'mae'"),
        ({"sampler": "bo"}, "Input should be 'tpe', 'gp', 'cmaes', 'nsga2' or 'random'"),
        ({"pruner": "sha"}, "Input should be 'median', 'asha' or 'hyperband'"),
        ({"pruner": {"kind": "asha", "factor": 1}}, "Input should be greater than or equal to 2"),
        ({"enqueue": ["publishd"]}, "Input should be 'study' or 'published'"),
        ({"per_arm": [{"space": {}}]}, "Field required"),
    ],
)
def test_what_no_search_can_be(given: dict[str, Any], said: str) -> None:
    assert fault(search, **given).startswith(said)


def test_what_a_search_is_by_default() -> None:
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
    assert [placement.folds for placement in made.split] == [(0, 3), (0, 1), tuple(range(5))]
    assert [placement.regimes for placement in made.split] == [("wr",), ("wr",), ("wr", "oor")]


def test_placements() -> None:
    made = Placement.model_validate({**INNER, "fold": 3, "inner_fold": 1})
    assert made.split == RandomSplit()
    assert made.inner == CheckerboardSplit(degrees=8)
    assert (made.fold, made.inner_fold) == ((3,), 1)

    def said(**given: Any) -> str:
        return fault(Placement.model_validate, given)

    assert said(kind="random", inner_fold=1) == "inner_fold is a fold of inner, which is not given"
    assert said(**INNER, inner_fold=2) == "inner_fold: checkerboard-8 has folds 0 to 1"
    assert said(kind="random", fold=10) == "fold 10 does not exist: random has folds 0 to 4"
    assert said(**INNER, inner_fold=-1) == "Input should be greater than or equal to 0"
    assert said(fold=1).startswith("Unable to extract tag")
    assert "Extra inputs" in said(**INNER, innerfold=1)


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


def told(folder: Path, text: str, *overrides: str) -> str:
    """What is said of a study, behind the file's name, in one line."""
    path = folder / "toy.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        study.load(str(path), overrides)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert said.startswith(f"{path}: ")
    return said.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("line", "other", "said"),
    [
        ("train.learning_rate", "train.lerning_rate", "search.space: train.lerning_rate is no setting; did"),
        ("train.learning_rate", "5", "search.space: 5: write settings as train.learning_rate or"),
        ("train.learning_rate", "on", "search.space: on is no setting; known are model.width,"),
        ("log: true", "on: true", "search.space.train.learning_rate.on: unknown key; did you mean"),
        ("log: true", "lgo: true", "search.space.train.learning_rate.lgo: unknown key; did you mean"),
        ("[1.0e-4, 1.0e-2]", "[1.0e-4, .nan]", "search.space.train.learning_rate.float.1: input should be a"),
        (
            "float: [1.0e-4, 1.0e-2], log: true",
            "choice: [1e-4, 0.1]",
            "search.space.train.learning_rate: YAML reads 1e-4 as a text",
        ),
        ("[1.0e-4, 1.0e-2]", "[]", "search.space.train.learning_rate.float.0: missing; it has no default"),
        ("trials: 4", "trails: 4", "search.trails: unknown key; did you mean search.trials? (1 more)"),
        ("fold: 1}]", "fold: 2}]", "search.split.0: fold 2 does not exist: random has folds 0 to 1"),
        ("kind: random, folds: 2, fold: 1", "kind: rnd", "search.split.0.kind: give random, temporal,"),
        (
            "  trials: 4",
            "  trials: 4\n  seed: [5, 1]",
            "search.seed: 1 is a seed of the grid too; the search",
        ),
        ("  trials: 4", "  trials: 4\n  objective: oor", "search: objective: nothing in search.split"),
        ("fold: 1}]", "inner_fold: 1}]", "search.split.0: inner_fold is a fold of inner, which is not given"),
        ("search:", "protocol: paper\nsearch:", "search: protocol paper has no validation set that is not"),
        (
            "  trials: 4",
            "  trials: 4\n  per_arm: [{variant: latlon}]",
            "search.per_arm: the design has no arm",
        ),
        (
            "  trials: 4",
            "  trials: 4\n  per_arm: [{variant: none, fusion: concat}]",
            "search.per_arm: the design has no arm none-concat",
        ),
        (
            "  trials: 4",
            "  trials: 4\n  pruner: {kind: asha, facter: 3}",
            "search.pruner.facter: unknown key",
        ),
    ],
)
def test_a_faulty_search_is_told_in_one_line(tmp_path: Path, line: str, other: str, said: str) -> None:
    assert line in FILE
    assert told(tmp_path, FILE.replace(line, other, 1)).startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.space={}", "search.space: arm none has nothing to tune"),
        ("search.space=", "search.space: input should be a valid dictionary, got None"),
        (
            "search.split=[]",
            "search.split: value should have at least 1 item after validation, not 0, got []",
        ),
        ("search.enqueue=[study, {train.learning_rate: 1.0}]", "search.enqueue: train.learning_rate 1.0 is"),
        ("search.seed=0", "search.seed: 0 is a seed of the grid too; the search is to have seeds of its own"),
    ],
)
def test_overrides_reach_the_search(tmp_path: Path, override: str, said: str) -> None:
    assert told(tmp_path, FILE, override).startswith(said)


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
        said = f"{path}: search.space: train.lerning_rate is no setting; did you mean train.learning_rate?"
        assert capsys.readouterr().err == f"sweep: {said}\n"


def test_a_search_is_declared_without_optuna() -> None:
    heavy = "{'optuna', 'ray', 'torch', 'mlflow'}"
    code = f"import sys, sweeps.engine.scheduler; print({heavy} & {{*sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "set()\n"
