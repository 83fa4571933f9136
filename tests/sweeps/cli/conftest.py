"""A small study with a store, and the command line in this process."""

import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pandas as pd
import pytest
import torch

from pm25 import encoders
from pm25.panel import Panel
from pm25.sources import synthetic
from sweeps import cli
from sweeps.engine import worker
from sweeps.engine.scheduler import Scheduler
from sweeps.spec import study_file
from sweeps.spec.study import Study
from sweeps.store.records import Store
from tests.sweeps.cli.commands import STUDY, Ended, Sweep, by_key


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sweep:
    """`sweep` with these arguments, in this process."""

    def call(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["sweep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Ended(int(left.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def table() -> pd.DataFrame:
    return synthetic.synthesize(sites=12, days=40)


@pytest.fixture(scope="module")
def finished(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study, its table and its store: two cells done, one failed, one missing."""
    folder = tmp_path_factory.mktemp("finished")
    table.to_parquet(folder / "panel.parquet", index=False)
    (folder / "toy.yaml").write_text(STUDY)
    toy = study_file.load(str(folder / "toy.yaml"))
    panel = toy.panel()
    store = Store(toy.storage, "toy")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    first, second, third, _ = by_key(toy, panel).items()
    for key, cell in (first, second):
        assert worker.train_and_record(cell, key, panel, store)["state"] == "done"
    torch.set_num_threads(threads)
    worker.record_loss({"key": third[0], "cell": third[1].resolved()}, store, "the worker died")
    return folder


@pytest.fixture
def toy(finished: Path, tmp_path: Path) -> Path:
    """The study file of a copy that a test may change."""
    shutil.copytree(finished, tmp_path / "toy")
    return tmp_path / "toy" / "toy.yaml"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Cells run in this process, one by one; handed out is the list of the keys that MLflow heard of."""
    heard: list[str] = []

    def run(scheduler: Scheduler, panel: Panel, store: Store, of: Study, observer: Any, **_: Any) -> None:
        while (found := scheduler.next()) is not None:
            key, (cell,) = found.key, found.cells
            observer.started(key, "cell")
            embedded = None
            if cell.encoder is not None:
                options = of.encoder_options(cell.encoder)
                embedded = encoders.embed(cell.encoder, options, panel.lat, panel.lon, panel.site_id)
            record = worker.train_and_record(
                cell, key, panel, store, embedded=embedded, keep_weights=of.keeps_weights(cell)
            )
            scheduler.ended(found, record)
            observer.ended("cell", record)

    class TrackingProcess:
        behind = ""

        def __init__(self, store: Store, uri: str | None, recorded: Any, data: dict[str, Any]) -> None:
            assert data["profile"]["sites"] > 0

        def plan(self, state: Any) -> None:
            """The arms are compared elsewhere."""

        def register(self, winner: Any, example: Any) -> None:
            """So are models."""

        def add(self, record: dict[str, Any]) -> None:
            heard.append(record["key"])

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to wait for."""

        def describe(self, markdown: str) -> None:
            assert "RMSE" in markdown

    for name, toy in (
        ("engine.ray_tune", SimpleNamespace(run=run)),
        ("tracking.process", SimpleNamespace(TrackingProcess=TrackingProcess)),
    ):
        room, _, module = name.partition(".")
        monkeypatch.setitem(sys.modules, f"sweeps.{name}", toy)
        monkeypatch.setattr(import_module(f"sweeps.{room}"), module, toy, raising=False)
    monkeypatch.delitem(sys.modules, "sweeps.driver", raising=False)  # it holds on to the real ones
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield heard
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
