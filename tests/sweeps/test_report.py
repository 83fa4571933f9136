"""The four files of a report: same input, same bytes; self-contained, and honest about what is absent."""

import base64
import hashlib
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest

from sweeps import report, tables
from sweeps.figures import Figure

HOSTILE = "ValueError: <script>alert('x')</script> | *bold*"
NAMES = ["report.md", "cells.csv", "comparison.csv", "index.html"]


def grid(splits=("random", "checkerboard-16"), seeds=(0, 1), variants=("none", "latlon", "geoclip")):
    """Errors that follow a rule: GeoCLIP is 0.5 below 'none' everywhere, lat/lon 0.25 above."""
    shift = {"none": 0.0, "latlon": 0.25, "geoclip": -0.5}
    lines = []
    for variant in variants:
        for split in splits:
            board = split.startswith("checkerboard")
            for fold in (0, 1):
                for seed in seeds:
                    error = 7.0 + shift[variant] + fold + 0.5 * seed + 2 * board
                    line = {
                        "key": f"{len(lines):032x}",
                        "variant": variant,
                        "fusion": "hadamard" if variant == "geoclip" else None,
                        "split": split,
                        "regime": "OoR" if board else "WR",
                        "fold": fold,
                        "seed": seed,
                        "state": "done",
                        "n_train": 700.0,
                        "n_val": 100.0,
                        "n_test": 200.0,
                        "n_wr": 50.0 if board else math.nan,
                    }
                    for prefix, value in (("test", error), ("wr", error - 1.5 if board else math.nan)):
                        numbers = (value, 1 - value / 20, 0.75 * value, 0.1 * value)
                        line |= {f"{prefix}_{m}": v for m, v in zip(tables.METRICS, numbers, strict=True)}
                    lines.append(line | {"best_epoch": 3.0, "epochs": 5.0, "seconds": 1.5, "error": None})
    return pd.DataFrame(lines).astype({"error": "object"})


def lose(rows, at, state, error=None):
    """The rows with some cells failed or missing, as the store hands them over."""
    rows = rows.copy()
    rows.loc[at, [column for column in rows.columns if column.startswith(("test_", "wr_", "n_"))]] = math.nan
    rows.loc[at, "state"] = state
    rows.loc[at, "error"] = error
    return rows


FACTS = {
    "study": "toy",
    "title": "Does <location> help?",
    "question": "Where & when?",
    "protocol": "strict",
    "table": "toy.parquet",
    "data_fingerprint": "abc123",
    "sites": 12,
    "days": 30,
    "observed": 340,
    "first_day": "2021-01-01",
    "last_day": "2021-01-30",
    "encoders": {"geoclip": "f00d"},
    "numerics": 1,
    "settings": {"train": {"epochs": 5, "batch": 256}, "model": {"width": 32}},
    "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
}
PICTURES = [
    Figure("cells-rmse", b"<svg>1</svg>", b"\x89PNG 1", "svg", "Every <cell>", "One dot & one cell."),
    Figure("map", b"<svg>2</svg>", b"\x89PNG 2", "png", "A map", "Albers."),
]


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def written(tmp_path, rows, facts=FACTS, pictures=()):
    report.write(rows, facts, tmp_path, pictures)
    return (tmp_path / "index.html").read_text(), (tmp_path / "report.md").read_text()


def test_four_files_and_nothing_else(tmp_path):
    paths = report.write(grid(), FACTS, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == NAMES
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(NAMES)


def backwards(facts):
    """The same facts, their keys in the opposite order at every depth."""
    return {k: backwards(v) if isinstance(v, dict) else v for k, v in reversed(facts.items())}


def test_same_bytes_in_one_process(tmp_path):
    rows = lose(grid(), 3, "failed", HOSTILE)
    report.write(rows, FACTS, tmp_path / "a", PICTURES)
    report.write(rows.copy(), backwards(FACTS), tmp_path / "b", PICTURES)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


_ELSEWHERE = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
rows = toy.lose(toy.grid(), 3, "failed", toy.HOSTILE)
toy.report.write(rows, toy.FACTS, pathlib.Path(sys.argv[2]), toy.PICTURES)
print(*sorted(name for name in ("ray", "mlflow", "torch", "matplotlib.pyplot") if name in sys.modules))
"""


def test_same_bytes_in_two_processes_and_nothing_heavy_is_loaded(tmp_path):
    for seed in "12":
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", _ELSEWHERE, __file__, str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == ""
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def test_tables_load_no_figure_library():
    code = "import sys, sweeps.report; print('matplotlib' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


class _Loads(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.urls = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    page, text = written(tmp_path, lose(grid(), 3, "failed", HOSTILE), pictures=PICTURES)
    loads = _Loads()
    loads.feed(page)
    assert all(url.startswith(("data:", "#")) for url in loads.urls)
    assert sum(url.startswith("data:image/svg") for url in loads.urls) == 1
    assert sum(url.startswith("data:image/png") for url in loads.urls) == 1
    assert not {"script", "iframe", "object", "b"} & set(loads.tags)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "&lt;script&gt;alert(" in page
    assert "Does &lt;location&gt; help?" in page
    assert "<script" not in text
    anchors = {url[1:] for url in loads.urls if url.startswith("#")}
    assert anchors
    assert all(f'id="{anchor}"' in page for anchor in anchors)


def test_the_answer_is_made_from_the_numbers():
    within, out, rest = report.answer(grid())
    assert within == (
        "Lowest mean RMSE within region: on random, 'GeoCLIP · Hadamard' with 7.25 µg/m³ (n=4), "
        "0.50 ± 0.00 below 'none' (lower in 4 of 4 pairs)."
    )
    assert "on checkerboard-16, 'GeoCLIP · Hadamard' with 9.25 µg/m³ (n=4)" in out
    assert rest == "All 24 cells are done. No significance test is made."


def test_the_answer_says_when_no_place_helps():
    within, *_ = report.answer(grid(variants=("none", "latlon")))
    assert within.endswith("'none' with 7.75 µg/m³ (n=4), and no ranked arm is below it.")


def test_the_answer_ranks_whole_arms_only():
    rows = grid()
    first = rows.index[(rows["variant"] == "geoclip") & (rows["split"] == "random")][0]
    within, _, rest = report.answer(lose(rows, first, "missing"))
    assert "'none' with 7.75 µg/m³ (n=4), among 2 of 3 arms" in within
    assert "GeoCLIP" not in within
    assert rest.startswith("Of 24 cells 1 missing: an arm without all its cells is not ranked.")
    within, *_ = report.answer(lose(rows, rows.index, "missing"))
    assert within == "Lowest mean RMSE within region: on random, no arm has all its cells."


def test_a_failed_cell_is_named_and_never_a_number(tmp_path):
    rows = lose(grid(), [2, 3], "failed", HOSTILE)
    rows.loc[2, "test_rmse"] = 123456.789
    page, text = written(tmp_path, rows)
    everything = page + text + "".join((tmp_path / name).read_text() for name in NAMES)
    assert "123456" not in everything
    assert "1.23e" not in everything
    assert "(n=2/4)" in page
    assert "(n=2/4)" in text
    assert "Failures" in page
    assert "2 done, 2 failed" in page
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert list(cells.columns) == list(rows.columns)
    assert cells.loc[[2, 3], "test_rmse"].isna().all()
    assert list(cells.loc[[2, 3], "error"]) == [HOSTILE, HOSTILE]


def test_all_four_metrics_in_the_csv(tmp_path):
    written(tmp_path, grid())
    compared = pd.read_csv(tmp_path / "comparison.csv", keep_default_na=False)
    assert compared.groupby("metric").size().to_dict() == {"mae": 6, "mbe": 6, "r2": 6, "rmse": 6}


def matched(rows, above=0.125):
    """The rows with a second 'none', which has GeoCLIP's layers and is so much above the plain one."""
    other = rows[rows["variant"] == "none"].assign(fusion="hadamard")
    other["key"] = "m" + other["key"].str.slice(1)
    for column in ("test_rmse", "wr_rmse"):
        other[column] += above
    return pd.concat([rows, other], ignore_index=True)


def test_the_matched_head_is_compared_with_the_plain_none(tmp_path):
    page, text = written(tmp_path, matched(grid(variants=("none", "latlon"))))
    for shown in (page, text):
        assert "none · matched Hadamard" in shown
        assert "+0.12 ± 0.00 (better in 0 of 4)" in shown
    within, out, _ = report.answer(matched(grid(variants=("none", "latlon"))))
    assert within.endswith("'none' with 7.75 µg/m³ (n=4), and no ranked arm is below it.")
    assert "'none' with 9.75 µg/m³" in out
    within, *_ = report.answer(matched(grid(variants=("none", "latlon")), above=-0.25))
    assert within.endswith(
        "'none · matched Hadamard' with 7.50 µg/m³ (n=4), 0.25 ± 0.00 below 'none' (lower in 4 of 4 pairs)."
    )


def test_a_matched_head_without_a_plain_none_is_no_baseline(tmp_path):
    rows = matched(grid())
    rows = rows[(rows["variant"] != "none") | rows["fusion"].notna()]
    page, _ = written(tmp_path, rows.reset_index(drop=True))
    assert "The study has no arm &#39;none&#39;" in page
    assert "with no cells of 'none' to compare it with" in report.answer(rows)[0]


def test_cells_that_failed_their_audit_are_marked_and_listed(tmp_path):
    rows = grid().assign(marked="")
    rows.loc[rows["variant"] == "geoclip", "marked"] = "encoder_trained_on_target"
    rows.loc[rows.index[rows["variant"] == "latlon"][:3], "marked"] = "shared_sites; fitted_scalers_test"
    page, text = written(tmp_path, rows)
    count = int((rows["marked"] != "").sum())
    assert report.answer(rows)[-1].startswith(f"{count} cells failed their leakage audit: †")
    for content in (page, text):
        assert "Leakage audit" in content
        assert "7.25 ± 0.65† (n=4)" in content  # GeoCLIP, and of its cells all
        assert "8.00 ± 0.65† (n=4)" in content  # lat/lon on random, of its cells three
        assert "7.75 ± 0.65 (n=4)" in content  # 'none'
    of_none = [line for line in text.splitlines() if line.startswith("| none ")]
    assert len(of_none) > 4
    assert tables.MARK not in "".join(of_none)
    audit = text.split("## Leakage audit")[1].split("## ")[0]
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in audit.splitlines() if "|" in line]
    assert lines[0] == ["failed check", "arm", "split", "cells"]
    assert sorted(lines[2:]) == [
        ["encoder\\_trained\\_on\\_target", "GeoCLIP · Hadamard", "checkerboard-16", "4"],
        ["encoder\\_trained\\_on\\_target", "GeoCLIP · Hadamard", "random", "4"],
        ["shared\\_sites; fitted\\_scalers\\_test", "lat/lon", "random", "3"],
    ]
    section = page.split('id="audit"')[1].split("</section>")[0]
    assert section.count("encoder_trained_on_target") == 2
    assert "shared_sites; fitted_scalers_test" in section
    compared = pd.read_csv(tmp_path / "comparison.csv", keep_default_na=False)
    counts = compared[compared["metric"] == "rmse"].set_index(["arm", "split"])["n_marked"].to_dict()
    assert counts == {
        ("none", "random"): 0,
        ("none", "checkerboard-16"): 0,
        ("lat/lon", "random"): 3,
        ("lat/lon", "checkerboard-16"): 0,
        ("GeoCLIP · Hadamard", "random"): 4,
        ("GeoCLIP · Hadamard", "checkerboard-16"): 4,
    }
    assert (
        pd.read_csv(tmp_path / "cells.csv", keep_default_na=False)["marked"].tolist()
        == rows["marked"].tolist()
    )


@pytest.mark.parametrize("column", [True, False])
def test_without_a_mark_there_is_no_audit_section(tmp_path, column):
    rows = grid().assign(marked="") if column else grid()
    page, text = written(tmp_path, rows)
    assert "Leakage audit" not in page + text
    assert tables.MARK not in page + text
    assert ("marked" in (tmp_path / "cells.csv").read_text().splitlines()[0].split(",")) is column


def test_the_terminal_marks_too(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    rows = grid()
    report.terminal(rows.assign(marked=["shared_sites" if v == "latlon" else "" for v in rows["variant"]]))
    shown = capsys.readouterr().out
    assert "8.00 ± 0.65† (n=4)" in shown
    assert "7.25 ± 0.65 (n=4)" in shown


TORCH = "torch 2.12.0 against 2.13.0"


def unequal(rows):
    """The rows with another torch in lat/lon's cells of fold 0, and in all of GeoCLIP's."""
    at = (rows["variant"] == "geoclip") | ((rows["variant"] == "latlon") & (rows["fold"] == 0))
    return rows.assign(unfair=at.map({True: TORCH, False: ""}), tuned="")


def cells_of(section):
    return [[part.strip() for part in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line]


def test_unfair_contrasts_are_marked_and_explained(tmp_path):
    rows = unequal(grid())
    page, text = written(tmp_path, rows)
    for content in (page, text):
        assert "-0.50 ± 0.00‡ (better in 4 of 4)" in content
        assert "+0.25 ± 0.00‡ (better in 0 of 4)" in content
        assert "7.25 ± 0.65 (n=4)" in content
        assert content.count("Fair comparison") == (2 if content is page else 1)  # and its link
    within, out, _, rest = report.answer(rows)
    assert "0.50 ± 0.00‡ below 'none'" in within
    assert "0.50 ± 0.00‡ below 'none'" in out
    assert rest == (
        "4 of 4 contrasts with 'none' are unfair, for more differs than the declared factor: "
        "‡ stands at their differences."
    )
    head, _, *lines = cells_of(text.split("## Fair comparison")[1].split("## ")[0])
    assert head == ["arm", "split", "difference to 'none'"]
    assert lines == [
        ["lat/lon", "random, checkerboard-16", f"in 2 of 4 pairs: {TORCH}"],
        ["GeoCLIP · Hadamard", "random, checkerboard-16", f"in every pair: {TORCH}"],
    ]
    assert page.split('id="fairness"')[1].split("</section>")[0].count(TORCH) == 2
    compared = pd.read_csv(tmp_path / "comparison.csv", keep_default_na=False)
    lines = compared[compared["metric"] == "r2"].set_index(["arm", "split"])[["n_unfair", "unfair"]]
    assert lines.loc[("none", "random")].tolist() == [0, ""]
    assert lines.loc[("lat/lon", "random")].tolist() == [2, f"in 2 of 4 pairs: {TORCH}"]
    cells = pd.read_csv(tmp_path / "cells.csv", keep_default_na=False)
    assert cells["unfair"].tolist() == rows["unfair"].tolist()


def test_the_terminal_and_the_brief_give_the_reasons_too(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    rows = unequal(grid(variants=("none", "geoclip")))
    reason = f"‡ GeoCLIP · Hadamard on random, checkerboard-16: in every pair: {TORCH}"
    report.terminal(rows)
    assert capsys.readouterr().out.splitlines()[-1] == reason
    assert f"\n- {reason}\n" in report.brief(rows, FACTS)
    assert "0.50 ± 0.00‡ below 'none'" in report.brief(rows, FACTS)


def test_tuned_settings_are_declared_and_not_marked(tmp_path):
    rows = grid()
    tuned = rows["variant"].map({"geoclip": "train.learning_rate 0.003 against 0.001"}).fillna("")
    chosen = {
        "GeoCLIP · Hadamard": {"train.learning_rate": "0.003", "model.width": "64"},
        "none": {"train.learning_rate": "0.001"},
    }
    page, text = written(tmp_path, rows.assign(unfair="", tuned=tuned), {**FACTS, "tuned": chosen})
    assert tables.UNFAIR not in page + text
    assert "Fair comparison" not in page + text
    assert "- Tuned by a search, arm by arm, and not as in 'none': train.learning\\_rate.\n" in text
    assert cells_of(text.split("## Tuned settings")[1].split("## ")[0])[2:] == [
        ["none", "not tuned", "0.001"],
        ["lat/lon", "not tuned", "not tuned"],
        ["GeoCLIP · Hadamard", "64", "0.003"],
    ]
    assert page.split('id="tuned"')[1].split("</section>")[0].count("0.003") == 1
    compared = pd.read_csv(tmp_path / "comparison.csv", keep_default_na=False)
    assert set(compared.loc[compared["arm"] == "GeoCLIP · Hadamard", "tuned"]) == {
        "in every pair: train.learning_rate 0.003 against 0.001"
    }


def test_a_fair_study_reads_as_if_nothing_was_checked(tmp_path, capsys):
    rows = lose(grid(), 3, "failed", HOSTILE)
    checked = rows.assign(unfair="", tuned="")
    written(tmp_path / "a", rows)
    written(tmp_path / "b", checked, {**FACTS, "tuned": {}})
    for name in ("report.md", "index.html", "comparison.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "‡" not in (tmp_path / "b" / "index.html").read_text()
    assert report.brief(rows, FACTS) == report.brief(checked, FACTS)
    report.terminal(rows)
    shown = capsys.readouterr().out
    report.terminal(checked)
    assert capsys.readouterr().out == shown


def test_the_brief_marks_too():
    rows = grid().assign(marked="shared_sites")
    assert "7.25 ± 0.65† (n=4)" in report.brief(rows, FACTS)


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_the_published_protocol_carries_its_warning(tmp_path, protocol):
    page, text = written(tmp_path, grid(), {**FACTS, "protocol": protocol})
    assert ("published protocol, leaks included" in page) is (protocol == "paper")
    assert ("published protocol, leaks included" in text) is (protocol == "paper")


@pytest.mark.parametrize(
    "rows",
    [
        grid(seeds=(0,)),
        grid(splits=("random", "spatial")),
        grid(splits=("checkerboard-8",)),
        grid(variants=("latlon", "geoclip")),
        grid(variants=("none",)),
        lose(grid(), grid().index, "missing"),
        grid(splits=("random", "spatial", "checkerboard-8", "checkerboard-16", "checkerboard-30")),
        grid().iloc[:0],
    ],
    ids=["one seed", "no checkerboard", "no WR", "no baseline", "one arm", "nothing yet", "all", "no cell"],
)
def test_every_kind_of_study_has_a_report(tmp_path, rows, capsys):
    page, text = written(tmp_path, rows)
    has_board = bool((rows["regime"] == "OoR").any())
    assert ("Out of region" in page) is has_board
    assert ("Out of region" in text) is has_board
    assert not re.search(r"\b(nan|none ±|inf)\b", text.lower())
    report.terminal(rows)
    assert ("Out of region" in capsys.readouterr().out) is has_board


def test_no_baseline_is_said(tmp_path):
    page, _ = written(tmp_path, grid(variants=("latlon", "geoclip")))
    assert "The study has no arm &#39;none&#39;" in page
    assert (
        "with no cells of 'none' to compare it with" in report.answer(grid(variants=("latlon", "geoclip")))[0]
    )


def test_facts_may_be_few(tmp_path):
    page, text = written(tmp_path, grid(), {"study": "toy", "protocol": "strict"})
    assert "<h1>toy</h1>" in page
    assert text.startswith("# toy\n")


def test_pictures_stand_in_the_page_and_beside_it(tmp_path):
    page, _ = written(tmp_path, grid(), pictures=PICTURES)
    for picture in PICTURES:
        assert (tmp_path / "figures" / f"{picture.name}.svg").read_bytes() == picture.svg
        assert (tmp_path / "figures" / f"{picture.name}.png").read_bytes() == picture.png
    assert page.count(base64.b64encode(PICTURES[0].svg).decode()) == 1
    assert page.count(base64.b64encode(PICTURES[1].png).decode()) == 1
    assert 'alt="Every &lt;cell&gt;"' in page
    assert "One dot &amp; one cell." in page


def test_a_stopped_write_leaves_the_old_report(tmp_path, monkeypatch):
    report.write(grid(), FACTS, tmp_path)
    before = digests(tmp_path)

    def full_disk(path, content):
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        report.write(grid(seeds=(5,)), FACTS, tmp_path)
    assert digests(tmp_path) == before


def test_the_terminal_shows_both_regimes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    report.terminal(lose(grid(), [0, 1, 2, 3], "failed", "E: [red]x"))
    shown = capsys.readouterr().out
    assert "failed (4/4)" in shown
    assert "9.25 ± 0.65 (n=4)" in shown
    assert "No significance test is made." in shown
