"""Studies as people write them: tables with other covariates, numbers of folds, files that are no study."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sweeps.spec import study_file
from tests.sweeps.cli.commands import HERE, ON_A_STUDY, STUDY, Sweep, arguments, check_refused, tree

ONE_SPLIT = "design.split={kind: random, folds: 3}"


@pytest.fixture
def other(table: pd.DataFrame, tmp_path: Path) -> Path:
    """A CSV table whose covariates are not those of the shipped studies."""
    path = tmp_path / "MY.csv"
    covariates = {"crn_tmax_c": "temp", "crn_rh_avg": "humid"}
    kept = ["site_id", "date", "lat", "lon", "pm25", *covariates]
    table[kept].rename(columns=covariates).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("study", ["quick", "paper2025"])
def test_a_shipped_study_plans_a_table_with_other_covariates(
    sweep: Sweep, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: str
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["plan", study, "--no-calibrate", *HERE, "--set", f"data.table={other}", "--set", ONE_SPLIT]
    command += ["--set", "claims=[]", "--set", "design.variant=[none, latlon]"]
    before = tree(tmp_path)
    ended = sweep(*command)
    if study == "quick":  # which names the channels of its table
        own = "temp, humid, day_cos, day_sin, month_cos, month_sin"
        check_refused(ended, "MY.csv: ", "elev_m, crn_tmax_c", own)
        assert "more" not in ended.err
        (option,) = re.findall(r"--set (\S+)", ended.err)
        ended = sweep(*command, "--set", option)
    assert (ended.status, ended.err) == (0, "")
    assert "12 sites x 40 days" in ended.out
    assert "6 channels" in ended.out
    assert tree(tmp_path) == before


def test_folds_have_one_number_everywhere(sweep: Sweep, toy: Path) -> None:
    splits = "design.split=[{kind: random, folds: 3, fold: [2, 1]}, {kind: spatial, folds: 2}]"
    ended = sweep("plan", toy, "--no-calibrate", *HERE, "--set", splits, "--json")
    assert ended.status == 0, ended.err
    content = yaml.safe_load(ended.out)
    assert [(line["split"], line["fold"]) for line in content["splits"]] == [
        ("random", 2),
        ("random", 1),
        ("spatial", 0),
        ("spatial", 1),
    ]
    # Fold 0 is that of the spatial split alone, and no fold is called 3 because of its place in a list.
    jobs = {one["level"]: one["jobs"] for one in content["without"]["levels"] if one["factor"] == "fold"}
    assert jobs == {"2": 2, "1": 4, "0": 2}
    text = sweep("plan", toy, "--no-calibrate", *HERE, "--set", splits).out
    numbers = re.findall(r"^ +split +\S+ fold (\d)", text, re.MULTILINE)
    assert numbers == ["2", "1", "0", "1"]
    sets = ["--set", splits]
    listed = sweep("run", toy, "--dry-run", "--only", "split=random,fold=2", *sets)
    assert listed.status == 0, listed.err
    assert "fold 2" in listed.out
    assert "fold 1" not in listed.out
    cells = study_file.load(str(toy), [splits]).cells()
    assert {(cell.split.label, cell.fold) for cell in cells} == {
        ("random", 2),
        ("random", 1),
        ("spatial", 0),
        ("spatial", 1),
    }


@pytest.mark.parametrize("command", ON_A_STUDY)
@pytest.mark.parametrize(
    ("text", "values"),
    [
        (STUDY.replace("study: toy", "study: 2021"), ("study: ", 'study: "2021"')),
        (STUDY + "title: yes\n", ("title: ", 'title: "yes"')),
        (STUDY + "window: 021\n", ("line 9: ", "21")),
        (STUDY + "study: again\n", ("line 9: ", "'study'")),
        (STUDY.replace("  variant", "\tvariant"), ("line 4: ", "spaces")),
        (STUDY + "---\nstudy: b\n", ("line 9: ", "document")),
        ("", ("empty",)),
        ("- study\n", ("list",)),
        (STUDY + "tracking: foo\n", ("tracking: ", "'foo'")),
        (STUDY.replace("seed: 0", "seed: [0, 0]"), ("design.seed: ", "[0]")),
        (STUDY.replace("panel.parquet", "toy.yaml"), ("data.table: ", "study file")),
        (STUDY + "modle: {width: 4}\n", ("modle: ", "use model")),
    ],
)
def test_a_file_that_is_no_study_is_refused_by_every_command(
    sweep: Sweep, toy: Path, tmp_path: Path, command: str, text: str, values: tuple[str, ...]
) -> None:
    toy.write_text(text)
    before = tree(tmp_path)
    check_refused(sweep(*arguments(command, toy, tmp_path)), f"{toy}: ", *values)
    assert tree(tmp_path) == before
