"""Output of `sweep plan`: a JSON object, and the same as lines of text."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pm25.text import counted

if TYPE_CHECKING:
    from pm25.splits import SplitIndices
    from sweeps.plan.cost import Estimate
    from sweeps.state import StudyState
    from sweeps.store.records import Record


def plan_content(
    state: "StudyState",
    records: "Mapping[str, Record]",
    split_indices: "Mapping[tuple[str, int], SplitIndices]",
    estimate: "Estimate",
    budget: float | None,
) -> dict[str, Any]:
    """Build the JSON object of `sweep plan --json`.

    `split_indices` holds the samples by split and fold (`StudyState.split_indices`). `budget` is in hours of
    wall time.
    """
    from sweeps.spec.design import Arm

    done = [key for key, record in records.items() if record["state"] == "done"]
    arms = {arm.label: {"cells": 0, "done": 0} for arm in state.study.arms()}
    references: dict[str, dict[str, int]] = {name: {"cells": 0, "done": 0} for name in state.study.references}
    counts = {**arms, **references}
    for cell in (*state.cells.values(), *state.waiting):
        counts[Arm.of(cell).label]["cells"] += 1
    for key in done:
        counts[Arm.of(state.cells[key]).label]["done"] += 1
    costs = estimate.content(state.store.size(done), budget)
    repeats = {
        factor.split.label: {"of": factor.split.repeated_by, **factor.repeats.model_dump()}
        for factor in state.study.design.split
        if factor.repeats is not None
    }
    return {
        "study": state.study.study,
        "arms": arms,
        "references": references,
        "splits": [
            {
                "split": label,
                "fold": fold,
                **{name: len(part) for name, part in vars(indices).items() if part is not None},
            }
            for (label, fold), indices in split_indices.items()
        ],
        **({} if not (matches := _matches(state)) else {"matched": matches}),
        **({} if state.study.search is None else {"searched_test": _searched_test(state)}),
        "left_out": list(state.panel.left_out),
        "doubts": list(state.panel.doubts),
        "seeds": list(state.study.design.first_seeds),
        "cells": state.cell_counts(records),
        **({} if state.looks is None else {"further": state.further}),
        **({"repeats": repeats} if repeats else {}),
        "cpu_hours_left": costs["cpu_hours"] and costs["cpu_hours"]["expected"],
        "disk_mb_left": costs["disk_mb"]["expected"],
        **costs,
    }


def _matches(state: "StudyState") -> dict[str, dict[str, float | int | None]]:
    """Return how well the folds of kNNDM splits match the prediction domain, by label of the split."""
    found: dict[str, dict[str, float | int | None]] = {}
    for label, folds in state.matched_folds().items():
        found[label] = {
            "places": len(state.panel.prediction_places),
            "clusters": folds.clusters,
            "w_km": round(folds.w_km, 3),
            "w_random_km": round(folds.w_random_km, 3),
        }
    return found


def _searched_test(state: "StudyState") -> dict[str, float]:
    """Return the largest share of a split's test sets that the search uses, by label of the split."""
    found: dict[str, float] = {}
    for (label, _), share in state.overlap_with_search().items():
        found[label] = max(share, found.get(label, 0.0))
    return {label: round(share, 4) for label, share in found.items()}


def plan_lines(content: Mapping[str, Any], data: str, findings: Iterable[str] = ()) -> Iterator[str]:
    """Format the JSON object of a plan as text; `data` describes the panel, `findings` what it could find."""
    cells, capacity = content["cells"], content["room"]
    yield (
        f"{content['study']}: {len(content['arms'])} arms, {cells['total']} cells, {cells['missing']} to run"
    )
    yield f"  data    {data}"
    yield from (f"  notice  {notice}" for notice in (*content["left_out"], *content["doubts"]))
    if content.get("without_bf16"):
        yield f"  notice  {content['without_bf16']}"
    for name, count in content["arms"].items():
        yield f"  arm     {name}: {count['cells']} cells, {count['done']} done"
    if references := content["references"]:
        total, done = (sum(count[name] for count in references.values()) for name in ("cells", "done"))
        few = [
            f"{name} {counted(count['cells'], 'cell')}, where the split trains on earlier days of a test site"
            for name, count in references.items()
            if name == "persistence"
        ]
        yield f"  refs    {', '.join(references)}: {total} cells, {done} done{'; '.join(['', *few])}"
    for label, lines in groupby(content["splits"], key=lambda line: line["split"]):
        folds = list(lines)
        if len(folds) > 3:
            yield f"  split   {label} {len(folds)} folds: {_sizes(folds)} samples each"
        else:
            yield from (f"  split   {label} fold {f['fold']}: {_sizes([f])} samples" for f in folds)
        if match := content.get("matched", {}).get(label):
            yield (
                f"          W to the distances of {match['places']:,} prediction places: "
                f"{match['w_km']:.1f} km, with random folds {match['w_random_km']:.1f} km"
            )
    further = f"; up to {content['further']} more cells if undecided" if content.get("further") else ""
    yield f"  seeds   {', '.join(map(str, content['seeds']))}{further}"
    for label, own in content.get("repeats", {}).items():
        yield f"  {own['of']:<7} {label}: {own['start']}, up to {own['max']} if undecided"
    if content["search_trials"]:
        yield f"  search  {content['search_trials']} trials to run"
    yield from findings
    for label, share in content.get("searched_test", {}).items():
        if share:
            yield (
                f"  search  uses up to {share:.0%} of a test set of split {label}, so its results will fail "
                "their audit; set search.reserve=0.15"
            )
    if not content["jobs"]:
        return
    for labels, epochs in _grouped((label, _range(e)) for label, e in content["epochs"].items()):
        yield f"  epochs  {epochs} ({', '.join(labels)})"
    for source, jobs in content["speeds"].items():
        yield f"  speed   {counted(jobs, 'task')}: {source}"
    if unknown := content["jobs"] - sum(content["speeds"].values()):
        yield f"  speed   {counted(unknown, 'task')}: unknown; omit --no-calibrate to measure it"
    if other := content["other_precision"]:
        yield (
            f"  {other['precision']}    --set train.precision={other['precision']}: a training step takes "
            f"{other['step']:g} times as long, measured here on {other['arm']}"
        )
    yield f"  disk    {_range(content['disk_mb'])} MB in the store"
    if content["memory_mb"]:
        yield f"  memory  {content['memory_mb'] / 1000:.1f} GB per cell"
    packing = content.get("packing", {})
    if packing:
        memory = f"{packing['memory_mb'] / 1000:.1f} of {packing['gpu_mb'] / 1000:.0f} GB"
        number = f"{counted(packing['per_gpu'], 'training')} on a GPU, limited by {packing['bound']}"
        if packing["stack"] > 1:
            number = (
                f"stacks of {packing['stack']} trainings, {packing['gain']:.1f} times as fast as one alone"
            )
        yield f"  packing {number}; each training holds {memory} ({packing['source']})"
    assumed = " (assumed; give --cpus)" if packing.get("assumed_cpus") else ""
    yield (
        f"  on      {capacity['cpus']:g} CPUs{assumed}, {capacity['gpus']:g} GPUs: "
        f"{capacity['side_by_side']} at a time, each with {capacity['cpu']:g} CPU and {capacity['gpu']:g} GPU"
    )
    if content["wall_hours"] is None:
        return
    if capacity["gpu"]:
        yield f"  GPU     {_hours(content['gpu_hours'])} of GPU time"
    yield f"  CPU     {_hours(content['cpu_hours'])} of CPU time"
    yield f"  wall    {_hours(content['wall_hours'])} from start to end"
    yield "  ranges  expected (low to high), from 80% of the measured speeds and all possible epochs"
    unit = content["without"]["unit"]
    yield f"  saved by leaving out a level ({unit.removesuffix('-hours')} time)"
    yield from _level_lines(content["without"]["levels"])
    if "budget" in content:
        yield from _budget_lines(content["budget"], unit)


def _level_lines(levels: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Format what each level costs; levels of one factor with equal costs share a line."""
    equal = groupby(levels, key=lambda level: (level["factor"], level["jobs"], _hours(level["hours"])))
    for (factor, jobs, hours), group in equal:
        names = [level["level"] for level in group]
        each = "each " if len(names) > 1 else ""
        yield f"    {factor:9} {', '.join(names)}: {each}{counted(jobs, 'task')}, {hours}"


def _budget_lines(budget: Mapping[str, Any], unit: str) -> Iterator[str]:
    """Format the largest part of the study that fits the budget."""
    given = _hours(dict.fromkeys(("low", "expected", "high"), budget["hours"]))
    needed = _hours(budget["wall_hours"])
    if budget["fits"] == "all":
        yield f"  budget  {given} of wall time: enough for all cells, which take {needed}"
        return
    chosen = f"first seeds {budget['seeds']}, first folds {budget['folds']} of every split"
    if budget["fits"] == "part":
        some = f"{budget['cells']} of {budget['of']} cells"
        yield f"  budget  {given} of wall time: enough for {some}, which take {needed}: {chosen}"
        yield f"    {shlex.join(part for text in budget['set'] for part in ('--set', text))}"
        return
    round_ = f"{budget['cells']} cells, {chosen}"
    yield f"  budget  {given} of wall time: not enough for one round, which takes {needed}: {round_}"
    yield f"  saved by leaving out a level of that round ({unit.removesuffix('-hours')} time)"
    costly = [level for level in budget["without"] if level["hours"]["expected"]]
    yield from _level_lines(sorted(costly, key=lambda level: -level["hours"]["expected"]))


def _sizes(folds: list[dict[str, Any]]) -> str:
    """Format the number of samples of each set, from the smallest to the largest fold."""
    sizes = {name: [fold[name] for fold in folds] for name in folds[0] if name not in ("split", "fold")}
    return ", ".join(
        f"{name} {min(n):,}" + (f" to {max(n):,}" if max(n) > min(n) else "") for name, n in sizes.items()
    )


def _grouped(named: Iterable[tuple[str, str]]) -> list[tuple[list[str], str]]:
    """Group names that have the same text."""
    found: dict[str, list[str]] = {}
    for name, text in named:
        found.setdefault(text, []).append(name)
    return [(names, text) for text, names in found.items()]


def _hours(value: Mapping[str, float]) -> str:
    """Format a range of hours in h, min or s, depending on the expected value."""
    expected = value["expected"]
    scale, unit = (1, "h") if expected >= 1 else (60, "min") if expected >= 1 / 60 else (3600, "s")
    return _range({name: scale * hours for name, hours in value.items()}, f" {unit}")


def _range(value: Mapping[str, float], unit: str = "") -> str:
    """Format a range as `12 min (9.5 to 17)`, or as one number if low and high are equal."""
    low, expected, high = (f"{v:.2g}" if v < 9.95 else f"{v:,.0f}" for v in value.values())
    return f"{expected}{unit}" + (f" ({low} to {high})" if low != high else "")
