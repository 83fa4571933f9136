"""Trainings that are under way: each writes its progress to a small file, which `sweep status` reads.

The files are a view. No result depends on them, and a run deletes those that killed workers left.
"""

import contextlib
import math
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pyarrow.fs
from pydantic import AwareDatetime, BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from sweeps.store.records import READERS, RUNNING_FOLDER, StorageError, Store, read, write

WRITE_EVERY_S = 5.0
"""Shortest time between two writes of the progress of one training."""


class Progress(BaseModel):
    """Content of one file: how far a training is."""

    model_config = ConfigDict(frozen=True)

    key: str
    """Key of the cell or of the search trial."""
    label: str
    """Name for readers, such as `geoclip-hadamard random fold 0 seed 0`."""
    host: str
    process: PositiveInt
    started: AwareDatetime
    updated: AwareDatetime
    epoch: NonNegativeInt = 0
    """Number of epochs that have ended."""
    max_epochs: PositiveInt
    """Largest number of epochs; a training may stop earlier."""
    rmse: float | None = None
    """Validation RMSE after the last epoch, in ug/m3; None before it, and if it is not finite."""
    best_rmse: float | None = None
    """Lowest of these RMSEs so far."""

    @property
    def share(self) -> float:
        """Fraction of the largest number of epochs that has ended."""
        return min(self.epoch / self.max_epochs, 1.0)

    @property
    def line(self) -> str:
        """Text such as `none random fold 0 seed 0: epoch 3 of 8, RMSE 7.91, lowest 7.88`."""
        text = f"{self.label}: epoch {self.epoch} of {self.max_epochs}"
        if self.rmse is not None:
            text += f", validation RMSE {self.rmse:.2f}"
        if self.best_rmse is not None:
            text += f", lowest {self.best_rmse:.2f}"
        return text


class ProgressWriter:
    """Writes the progress of one training, at once and then at most every `WRITE_EVERY_S`.

    A storage that fails does not end the training: its record says whether it could be written. LockLost does
    end it, and so a training of a lost study ends after `WRITE_EVERY_S` or one epoch.
    """

    def __init__(self, store: Store, first: Progress) -> None:
        self._store, self._progress = store, first
        self._system, self._path = store.location(RUNNING_FOLDER, f"{first.key}.json")
        self._last = time.monotonic()
        self._write()

    def epoch(self, number: int, rmse: float, best_rmse: float) -> None:
        """Note the end of epoch `number`, counted from 1, with its validation RMSE and the lowest so far."""
        if time.monotonic() - self._last < WRITE_EVERY_S:
            return
        self._last = time.monotonic()
        scores = {"rmse": rmse, "best_rmse": best_rmse}
        finite = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        now = {"updated": datetime.now(UTC), "epoch": number, **finite}
        self._progress = self._progress.model_copy(update=now)
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(*StorageError):
            write(self._system, self._path, self._progress.model_dump_json().encode(), self._store.fenced)


def running(store: Store, keys: Iterable[str] | None = None) -> list[Progress]:
    """Return the progress of the trainings that are under way, or of those of `keys`; the oldest first.

    A file that is damaged or was deleted meanwhile is left out. Raises InputError for a storage that cannot
    be read.
    """
    system, folder = store.location(RUNNING_FOLDER)
    if keys is None:
        try:
            selector = pyarrow.fs.FileSelector(folder, allow_not_found=True)
            keys = [
                info.base_name.removesuffix(".json")
                for info in system.get_file_info(selector)
                if info.base_name.endswith(".json") and not info.base_name.startswith(".")
            ]
        except StorageError as error:
            raise store.refusal("read", error) from None

    def progress(key: str) -> Progress | None:
        try:
            return Progress.model_validate_json(read(system, f"{folder}/{key}.json"))
        except (*StorageError, ValidationError):
            return None

    with ThreadPoolExecutor(READERS) as pool:
        found = [one for one in pool.map(progress, keys) if one is not None]
    return sorted(found, key=lambda one: (one.started, one.key))


def ended(store: Store, key: str) -> None:
    """Delete the file of a training that has ended."""
    system, path = store.location(RUNNING_FOLDER, f"{key}.json")
    with contextlib.suppress(*StorageError), store.fenced():
        system.delete_file(path)


def clear(store: Store) -> None:
    """Delete the files of all trainings; the run that calls it has the study's lock, and trains nothing."""
    system, folder = store.location(RUNNING_FOLDER)
    with contextlib.suppress(*StorageError), store.fenced():
        system.delete_dir(folder)
