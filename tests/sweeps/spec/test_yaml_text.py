"""Study files as people write them: values that YAML reads in another way, and files that are no study."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.errors import InputError
from sweeps.spec import study_file, yaml_text
from sweeps.spec.study import Study
from tests import fuzzing
from tests.errors import refuses
from tests.sweeps.spec.toy import TOY, write

NOT_TEXTS = ["2021", "1.5", "yes", "NO", "off", "true", "2021-01-01", "1e5", "0x10", "1_000", ".5", ".inf"]
"""Plain values that YAML reads as a number, a boolean or a date."""


@pytest.mark.parametrize("value", [text for text in NOT_TEXTS if not isinstance(yaml.safe_load(text), str)])
@pytest.mark.parametrize("key", ["study", "title", "question", "storage", "tracking"])
def test_a_text_that_yaml_reads_otherwise_is_to_be_quoted(tmp_path: Path, key: str, value: str) -> None:
    rest = "\n".join(line for line in TOY.splitlines() if not line.startswith(f"{key}:"))
    with refuses("toy.yaml", key, f'{key}: "{value}"', value):
        study_file.load(write(tmp_path, f"{rest}\n{key}: {value}\n"))
    with refuses(f"--set {key}={value}", key, f"--set '{key}=\"{value}\"'"):
        study_file.load(write(tmp_path), [f"{key}={value}"])
    quoted = f'{key}="{value}"'
    if key in ("title", "question"):
        assert getattr(study_file.load(write(tmp_path), [quoted]), key) == value


@pytest.mark.parametrize("value", ["NO", "no", "off", "6", "1.5", "2021-01-01"])
def test_a_group_that_yaml_reads_otherwise_is_to_be_quoted(tmp_path: Path, value: str) -> None:
    split = f"{{kind: group, column: state, values: [CA, {value}]}}"
    text = TOY.replace("- {kind: random}", f"- {split}")
    with refuses("toy.yaml", "design.split.0.values.1", f'["{value}"]'):
        study_file.load(write(tmp_path, text))
    alone = TOY.replace("- {kind: random}", f"- {{kind: group, column: state, values: {value}}}")
    with refuses("toy.yaml", "design.split.0.values.0", f'["{value}"]'):
        study_file.load(write(tmp_path, alone))
    made = study_file.load(write(tmp_path, text.replace(f", {value}]", f', "{value}"]')))
    assert made.design.split[0].split.label == f"group-state-CA+{value}"


# PyYAML does not read its own output of these line ends and of this mark.
_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029\ufeff"), max_size=8)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(value=_VALUES, flow=st.sampled_from([None, True, False]), indent=st.integers(2, 6))
def test_libyaml_and_python_read_the_same(value: object, flow: bool | None, indent: int) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow, indent=indent, allow_unicode=True)
    read = yaml_text.parse(text)
    assert read == value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_text, "_FAST", yaml.SafeLoader)
        assert yaml_text.parse(text) == read


@settings(deadline=None, max_examples=40)
@given(number=st.integers(0, 9999), zeros=st.integers(1, 3))
def test_a_number_with_leading_zeros_is_never_read_in_base_8(number: int, zeros: int) -> None:
    text = "0" * zeros + str(number)
    try:
        read = yaml_text.parse(f"window: {text}")
    except yaml_text.Fault as fault:
        found = fault
    else:
        assert read == {"window": text}  # a text, as 08, which is no number of base 8
        assert {*text} & {"8", "9"}
        return
    assert found.line == 1
    assert text in found.problem
    assert {str(number), f'"{text}"'} <= {*found.fix.split()}


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 99), st.integers(0, 59))
def test_a_time_of_day_is_never_read_in_base_60(hours: int, minutes: int) -> None:
    text = f"{hours}:{minutes}"
    with pytest.raises(yaml_text.Fault) as raised:
        yaml_text.parse(f"a: 1\nwindow: {text}\n")
    assert raised.value.line == 2
    assert str(60 * hours + minutes) in raised.value.fix
    assert f'"{text}"' in raised.value.fix


NUMBERS = [
    "window",
    "design.seed",
    "model.width",
    "train.learning_rate",
    "train.max_epochs",
    "resources.cpu",
    "budget.cells",
    "analysis.alpha",
    "checkpoint_seconds",
]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", ["yes", "false", "[true]", "[0, on]"])
def test_a_boolean_is_not_a_number(tmp_path: Path, field: str, value: str) -> None:
    if value.startswith("[") and field != "design.seed":
        return
    with refuses(f"--set {field}={value}") as raised:
        study_file.load(write(tmp_path), [f"{field}={value}"])
    assert raised.value.field.startswith(field)
    assert {"true", "false"} & {*raised.value.problem.split()}


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("design.seed=[0, 0]", "design.seed", "[0]"),
        ("design.seed=[3, 1, 3]", "design.seed", "[3, 1]"),
        ("design.variant=[none, geoclip, none]", "design.variant", "[none, geoclip]"),
        ("design.fusion=[concat, concat]", "design.fusion", "[concat]"),
        ("design.head=[plain, plain]", "design.head", "[plain]"),
        ("design.split={kind: random, fold: [0, 2, 0]}", "design.split.0.fold", "[0, 2]"),
    ],
)
def test_a_level_that_is_listed_twice_is_refused(
    tmp_path: Path, override: str, field: str, value: str
) -> None:
    with refuses(f"--set {override}", field, value):
        study_file.load(write(tmp_path), [override])


SEARCH = "search: {trials: 2, split: {kind: random, fold: 0}, space: {train.batch_size: {choice: 16}}}\n"


def test_one_value_stands_for_a_list_of_one(tmp_path: Path) -> None:
    claim = (
        "claims: {claim: it helps, better: {variant: geoclip, fusion: hadamard}, than: {variant: none}, "
        "on: {split: random}, metric: rmse}\n"
    )
    made = study_file.load(
        write(tmp_path, TOY + claim + SEARCH), ["search.enqueue=study", "train.batch_size=16"]
    )
    assert made.search is not None
    assert made.search.space["train.batch_size"].choice == (16,)
    assert made.search.enqueue == ("study",)
    assert [one.claim for one in made.claims] == ["it helps"]
    _, content = study_file.resolve(write(tmp_path, TOY + claim))
    assert [one["claim"] for one in content["claims"]] == ["it helps"]


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("search={trials: 2, space: {train.decay: {float: 0.5}}}", "search.space.train.decay.float", "[0.5]"),
        ("model=4", "model", "KEY: VALUE"),
        ("window=wide", "window", "whole number"),
        ("data.synthetic=yes", "data.synthetic", "KEY: VALUE"),
    ],
)
def test_a_value_of_the_wrong_kind_says_what_to_write(
    tmp_path: Path, override: str, field: str, value: str
) -> None:
    with refuses(f"--set {override}", field, value):
        study_file.load(write(tmp_path), [override])


@pytest.mark.parametrize("address", ["foo", "mlruns", "localhost:5000", "sqlite:mlflow.db", "ftp://host"])
def test_an_address_of_no_tracking_server_is_refused_early(tmp_path: Path, address: str) -> None:
    with refuses(f"--set tracking={address}", "tracking", address, "write "):
        study_file.load(write(tmp_path), [f"tracking={address}"])
    for known in (
        "http://localhost:5000",
        "https://host/x",
        "sqlite:////x/y.db",
        "postgresql+psycopg2://u@h/d",
    ):
        assert study_file.load(write(tmp_path), [f"tracking={known}"]).tracking == known


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_study_in_another_encoding_is_the_same(tmp_path: Path, encoding: str, ends: str) -> None:
    text = TOY + "title: Größe der Wirkung\n"
    made = study_file.load(write(tmp_path, text.replace("\n", ends).encode(encoding)))
    assert made == study_file.load(write(tmp_path, text))
    assert made.title == "Größe der Wirkung"


def nested(depth: int) -> str:
    """A document whose anchors repeat ten values `depth` times over."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("", "", ("empty",)),
        ("# only a comment\n", "", ("empty",)),
        ("- study\n- data\n", "", ("list", "study, data")),
        ("just words\n", "", ("text", "study, data")),
        ("data.table=x.parquet\n", "", ("text",)),
        ("5\n", "", ("number",)),
        ("--- {study: a}\n--- {study: b}\n", "line 2", ("document",)),
        (TOY.replace("  variant", "\tvariant"), "line 4", ("tabs", "spaces")),
        (TOY + "title: a: b\n", "line 10", ("quotes",)),
        (TOY + "title: *x\n", "line 10", ("quotes",)),
        (TOY + "title: @home\n", "line 10", ("quotes",)),
        (TOY + "title: 'open\n", "line 10", ("close the quotes",)),
        (TOY + "title: 2021-02-30\n", "line 10", ("2021-02-30", "quotes")),
        (TOY + "title: !!int x\n", "line 10", ("'x'",)),
        (TOY + "window: 021\n", "line 10", ("21", '"021"')),
        (TOY + "title: &a [*a]\n", "line 10", ("anchor",)),
        (TOY + nested(8), "line 1", ("anchors",)),
        (TOY + "title: " + "[" * 2000, "", ("nested",)),
        (TOY + "train: {max_epochs: 1, max_epochs: 2}\n", "line 10", ("'max_epochs'",)),
        (TOY + 'title: "a\\0b"\n' + "\x00", "line 11", ("UTF-8",)),
        (TOY.encode("latin-1") + b"title: Gr\xf6\xdfe\n", "line 10", ("UTF-8",)),
        (TOY.encode("utf-16-le"), None, ("UTF-8",)),
    ],
)
def test_a_file_that_is_no_study_says_how_to_correct_it(
    tmp_path: Path, text: str | bytes, field: str | None, values: tuple[str, ...]
) -> None:
    with refuses("toy.yaml", field, *values):
        study_file.load(write(tmp_path, text))


@pytest.mark.parametrize("name", ["panel.parquet", "panel.csv"])
def test_a_table_in_place_of_a_study_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"PAR1\xff\x00 site_id,date\n1: 2: 3\n")
    with refuses(name, "", f"--set data.table={path}"):
        study_file.load(str(path))


def test_an_override_changes_no_other_place_of_an_anchor(tmp_path: Path) -> None:
    text = TOY.replace("model: {width: 4}", "encoders: {random: &r {seed: 3}, shuffled: *r}")
    made = study_file.load(write(tmp_path, text), ["encoders.random.seed=5"])
    assert (made.encoders.random.seed, made.encoders.shuffled.seed) == (5, 3)


# Random mutations

SHIPPED = sorted(Path(str(study_file.SHIPPED)).glob("*.yaml"))
EXAMPLES = 200
SEED = 20260102


def change_value(rng: random.Random, text: str) -> str:
    """Replace the text behind one colon, or one entry of a list, by a bad value."""
    lines = text.splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if ":" in line] or [0])
    if not lines:
        return text
    for mark in rng.sample([": ", ", ", "["], 3):
        before, found, behind = lines[at].partition(mark)
        if found:
            value = rng.choice(fuzzing.BAD_VALUES)
            lines[at] = before + mark + value + (behind[rng.randrange(len(behind) + 1) :] if behind else "")
            break
    return "\n".join(lines) + "\n"


def change_content(rng: random.Random, text: str) -> str:
    """Replace, remove or rename one key anywhere in the study, and write it as YAML again."""
    content = yaml_text.parse(text)
    places: list[tuple[dict[str, object], str]] = []

    def collect(block: object) -> None:
        if isinstance(block, dict):
            for key, value in block.items():
                places.append((block, key))
                collect(value)
        for value in block if isinstance(block, list) else ():
            collect(value)

    collect(content)
    block, key = rng.choice(places)
    value = block.pop(key)
    change = rng.randrange(4)
    values: list[object] = [None, True, 0, -1, 1.5, 10**30, float("nan"), "", "x", [], {}, [value], [[value]]]
    if change == 0:
        block[key + rng.choice("xs_ ")] = value
    elif change in (1, 2):
        block[key] = rng.choice([*values, {"a": value}, {1: value}, {None: value}, [value, value]])
    return yaml.safe_dump(content, sort_keys=False)


CHANGES: tuple[Callable[[random.Random, str], str], ...] = (
    change_value,
    change_content,
    fuzzing.change_lines,
)


def test_a_changed_study_file_makes_a_study_or_an_error_of_one_line(tmp_path: Path) -> None:
    made = 0
    path = tmp_path / "study.yaml"
    for example in range(fuzzing.count(EXAMPLES)):
        rng = random.Random(f"{SEED} {example}")
        text = rng.choice([TOY, TOY + SEARCH, *(shipped.read_text() for shipped in SHIPPED)])
        change = rng.choice(CHANGES)
        text = change(rng, text)
        if rng.random() < 0.2:
            text = rng.choice((change_value, fuzzing.change_lines))(rng, text)
        data = fuzzing.encoded(rng, text)
        data = fuzzing.change_bytes(rng, data) if rng.random() < 0.3 else data
        path.write_bytes(data)
        try:
            made += is_study(path)
        except Exception as error:
            error.add_note(f"example {example}: {data[:3000]!r}")
            raise
    assert 0 < made < fuzzing.count(EXAMPLES), "both outcomes occur"


def is_study(path: Path) -> bool:
    """Read a study file; True if it is a study, False for an error of one line that names the file."""
    try:
        made = study_file.load(str(path))
    except InputError as error:
        found = error
    else:
        assert isinstance(made, Study)
        return True
    assert found.where == str(path)
    assert found.problem
    assert "\n" not in str(found)
    assert len(str(found)) < 1500 + len(str(path))
    return False
