"""Sizes of studies: what is beyond a limit is refused in one short line, before anything is enumerated."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25 import limits as data_limits
from pm25.errors import InputError
from sweeps.spec import limits, study_file, yaml_text
from tests.sweeps.spec.toy import TOY, write

SIZES = {
    "design.split={kind: random, folds: %d}": data_limits.MOST_SITES,
    "design.split={kind: spatial, folds: %d}": data_limits.MOST_SITES,
    "design.split={kind: clusters, folds: %d}": data_limits.MOST_SITES,
    "design.split={kind: rolling, folds: %d}": data_limits.MOST_DAYS,
    "design.split={kind: blocks, folds: %d, fold: 0}": data_limits.MOST_SITES,
    "design.split={kind: random, folds: %d, fold: 0}": data_limits.MOST_SITES,
    "design.seed={start: 2, max: %d}": limits.MOST_SEEDS,
    "window=%d": data_limits.MOST_DAYS,
    "model.width=%d": data_limits.MOST_UNITS,
    "model.depth=%d": data_limits.MOST_LAYERS,
    "model.attention_units=%d": data_limits.MOST_UNITS,
    "train.max_epochs=%d": data_limits.MOST_COUNTED,
    "neighbours.k=%d": data_limits.MOST_SITES,
    "neighbours.exclusion_km=%d": int(data_limits.MOST_KM),
    "encoders.random.dim=%d": data_limits.MOST_UNITS,
    "resources.cpu=%d": limits.MOST_DEVICES,
    "data={synthetic: {sites: %d, days: 30}}": data_limits.MOST_SITES,
    "data={synthetic: {sites: 10, days: %d}}": data_limits.MOST_DAYS,
}
"""Overrides with a number, and the largest one that each allows."""


@settings(deadline=None, max_examples=60)
@given(override=st.sampled_from(sorted(SIZES)), factor=st.integers(2, 10**30))
def test_a_size_beyond_its_limit_is_refused(
    tmp_path_factory: pytest.TempPathFactory, override: str, factor: int
) -> None:
    text = override.replace("%d", str(SIZES[override] * factor))
    with pytest.raises(InputError) as raised:
        study_file.load(write(tmp_path_factory.mktemp("s")), [text])
    assert raised.value.where == f"--set {text}"
    assert len(str(raised.value)) < 1000


def test_a_grid_beyond_the_limit_is_refused_and_one_at_it_is_not(tmp_path: Path) -> None:
    one_arm = ["design.variant=none", "design.split={kind: random, folds: 50}"]
    made = study_file.load(write(tmp_path), [*one_arm, f"design.seed={[*range(10_000)]}"])
    assert len(made.design.split[0].folds) * len(made.design.seeds) == limits.MOST_CELLS
    with pytest.raises(InputError) as raised:
        study_file.load(
            write(tmp_path), [one_arm[0], "design.split={kind: blocks, folds: 100000, deals: 1000}"]
        )
    assert raised.value.field == "design"
    assert "200,000,000 cells (1 arms x 100,000,000 folds x 2 seeds)" in raised.value.problem


LISTS = (
    "data={table: p.parquet, channels: [%s]}",
    "data={table: p.parquet, harmless: [%s]}",
    "search={trials: 2, split: {kind: random}, space: {train.loss: {choice: [%s]}}}",
)


@pytest.mark.parametrize("override", LISTS)
def test_a_list_beyond_its_limit_is_refused(tmp_path: Path, override: str) -> None:
    long = override.replace("%s", ", ".join(f'"c{i}"' for i in range(data_limits.MOST_COLUMNS + 1)))
    with pytest.raises(InputError) as raised:
        study_file.load(write(tmp_path), [long])
    assert "10,001 entries" in raised.value.problem


NESTED = {"list": ("[", "]"), "block": ("{a: ", "}")}


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(sorted(NESTED)), levels=st.integers(data_limits.MOST_NESTED + 1, 5000))
def test_nesting_beyond_the_limit_is_a_fault(kind: str, levels: int) -> None:
    start, end = NESTED[kind]
    with pytest.raises(yaml_text.Fault) as raised:
        yaml_text.parse(f"title: {start * levels}1{end * levels}\n")
    assert "nested" in raised.value.problem


@settings(deadline=None, max_examples=40)
@given(
    sign=st.sampled_from(("", "-", "+")),
    start=st.sampled_from(("9", "0x1", "0b1", "1.", "1:3", "2021-01-01 00:00:00.")),
    digits=st.integers(limits.MOST_DIGITS + 1, 100_000),
)
def test_a_number_of_too_many_digits_is_a_fault_and_a_text_of_them_is_not(
    sign: str, start: str, digits: int
) -> None:
    text = f"{sign}{start}{'1' * digits}"
    assert yaml_text.parse(f'title: "{text}"') == {"title": text}
    if yaml.resolver.Resolver().resolve(yaml.ScalarNode, text, (True, False)).endswith(":str"):
        return
    with pytest.raises(yaml_text.Fault) as raised:
        yaml_text.parse(f"window: {text}")
    assert raised.value.line == 1
    assert str(f"{len(text):,}") in raised.value.problem


def test_a_study_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, TOY + "#" * limits.MOST_BYTES)
    with pytest.raises(InputError) as raised:
        study_file.load(path)
    assert raised.value.where == path
    assert "1,000,000 bytes" in raised.value.problem
