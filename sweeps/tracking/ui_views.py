"""Saved views of MLflow's UI, as plain values (written for MLflow 3.17).

The format is not documented (`mlflow_internals`). The keys are those of `ExperimentPageUIState` and
`ExperimentPageSearchFacetsState` in the UI's source; keys that are absent have their default.
"""

from typing import Any, NamedTuple


class Page(NamedTuple):
    """Saved view."""

    name: str
    """Name in the UI's list of views."""
    mode: str
    """TABLE or CHART."""
    state: dict[str, Any]
    """State of the UI's page."""


_SECTION = "within-and-out-of-region"
_PARENTS: dict[str, Any] = {
    "searchFilter": "tags.kind = 'arm'",
    "orderByKey": "attributes.start_time",
    "orderByAsc": True,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "runsHiddenMode": "SHOW_ALL",
}
"""Part of the state that selects the parent runs, which have the aggregates of an arm on a split."""


def pages() -> dict[str, Page]:
    """Build the views by their identifiers.

    Runs are grouped by nothing but their split. The UI shows the mean of a group, and a mean over several
    splits would mix errors within region with errors out of region.
    """
    # p is left out: the UI shows the mean of a column above a group, and a mean of p values means nothing.
    metrics = [
        *("wr_rmse_mean", "oor_rmse_mean", "gap_rmse", "diff_rmse"),
        *("wr_r2_mean", "oor_r2_mean", "n", "n_expected"),
    ]
    columns = [
        *(f"tags.`{name}`" for name in ("fusion", "split", "estimand", "verdict")),
        *(f"metrics.`{name}`" for name in metrics),
    ]
    table = {
        **_PARENTS,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": dict.fromkeys(columns, 120),
        "groupBy": _group("split"),
    }
    charts = [
        *(_bar(name) for name in ("wr_rmse_mean", "oor_rmse_mean", "diff_rmse", "gap_rmse")),
        {
            **_chart("wr_oor"),
            "type": "SCATTER",
            "xaxis": {"key": "wr_rmse_mean", "type": "METRIC"},
            "yaxis": {"key": "oor_rmse_mean", "type": "METRIC"},
        },
    ]
    section = {"uuid": _SECTION, "name": "Within and out of region", "display": True, "isReordered": True}
    chart = {
        **_PARENTS,
        "compareRunCharts": charts,
        "compareRunSections": [{**section, "deleted": False, "isGenerated": False}],
        "isAccordionReordered": True,
    }
    return {
        "arms-by-split": Page("Arms, grouped by split", "TABLE", table),
        "wr-and-oor": Page("WR and OoR of every arm", "CHART", chart),
    }


def _group(tag: str) -> dict[str, Any]:
    """Group runs by the values of a tag, with the mean of their metrics above each group."""
    return {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": tag}]}


def _bar(metric: str) -> dict[str, Any]:
    return {**_chart(metric), "type": "BAR", "metricKey": metric}


def _chart(name: str) -> dict[str, Any]:
    place = {"uuid": f"chart-{name}", "metricSectionId": _SECTION}
    return {**place, "runsCountToCompare": 100, "deleted": False, "isGenerated": False}
