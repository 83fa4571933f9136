"""Check of a storage: every record, every file beside it, and the other files of each study."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow.fs
from pydantic import ValidationError

from pm25.errors import InputError, one_line
from sweeps.store import channel_orders, declarations, driver_process, integrity, lock, running, search_trials
from sweeps.store.integrity import CHECKPOINT, Damaged
from sweeps.store.records import (
    DAMAGED_FOLDER,
    FOLDERS,
    READERS,
    RUNNING_FOLDER,
    StorageError,
    Store,
    is_part,
    read_intact,
)

JOURNAL = "optuna.journal"
"""Optuna's journal of the searches, a view of the records."""

RESUMES = "delete the file; the training then starts from its first epoch"
LEFTOVER = "delete the file, unless a run is writing it"


class Finding(NamedTuple):
    """File or folder that is not as it should be."""

    path: str
    problem: str
    fix: str
    damage: bool = True
    """False for what a killed process leaves, and for records without a digest."""

    @property
    def line(self) -> str:
        """Text such as `path: what is wrong. Fix: what to do.`."""
        return one_line(self.path, "", self.problem, self.fix)


@dataclass
class StudyCheck:
    """Result of the check of one study."""

    study: str
    sealed: int = 0
    """Number of records that have a digest and pass every check."""
    unsealed: int = 0
    """Number of records without a digest that pass the other checks."""
    damaged: int = 0
    """Number of records, or start files of trials, that fail a check or have a file that does."""
    aside: int = 0
    """Number of damaged records that `sweep retry --damaged` has moved aside."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """True if nothing is damaged."""
        return not any(finding.damage for finding in self.findings)

    @property
    def content(self) -> dict[str, Any]:
        """Content of the check in JSON output."""
        counts = {name: getattr(self, name) for name in ("study", "sealed", "unsealed", "damaged", "aside")}
        return {**counts, "findings": [finding._asdict() for finding in self.findings]}


_CONTROL_FILES = (
    *(declarations.FILE, declarations.ORIGIN),
    *(channel_orders.FILE, driver_process.FILE, JOURNAL),
)
"""Files of a study, in whose place a folder is damage."""


class Listing(NamedTuple):
    """Files of a study."""

    keys: dict[str, dict[str, list[str]]]
    """Names of the files of each key, by 'cells' or 'search', and key."""
    others: list[str]
    """Files elsewhere, as paths below the study's folder."""

    @property
    def folders(self) -> int:
        """Number of folders of cells and search trials."""
        return len(self.keys["cells"]) + len(self.keys["search"])


def listing(store: Store) -> Listing:
    """List the files of a study; on object storage a request lists a thousand. Raises InputError."""
    try:
        system, root = store.location()
        root = root.rstrip("/")
        infos = system.get_file_info(pyarrow.fs.FileSelector(root, recursive=True))
        paths = [info.path[len(root) + 1 :] for info in infos]
    except StorageError as error:
        raise store.refusal("read", error) from None
    keys: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in integrity.ENDED}
    others = []
    for info, path in zip(infos, paths, strict=True):
        folder, *rest = path.split("/")
        is_folder = info.type == pyarrow.fs.FileType.Directory
        if folder in keys and rest and (is_folder or rest[1:]):
            keys[folder][rest[0]] += rest[1:2]
        elif not is_folder or path in _CONTROL_FILES:
            others.append("/".join([folder, *rest]))
    return Listing(keys, sorted(others))


def check(store: Store, files: Listing, advance: Callable[[], None] = lambda: None) -> StudyCheck:
    """Check every file of a study. `advance` is called after each folder of a cell or search trial.

    Raises InputError for a storage that cannot be read.
    """
    found = StudyCheck(store.study)
    _, root = store.location()
    root = root.rstrip("/")
    every = [
        (one, key, names) for one in (store, store.search) for key, names in files.keys[one.folder].items()
    ]
    try:
        with ThreadPoolExecutor(READERS) as pool:
            for state, findings in pool.map(lambda one: _check_key(*one), sorted(every, key=lambda e: e[1])):
                advance()
                found.findings += findings
                if state:
                    setattr(found, state, getattr(found, state) + 1)
        found.findings += _others(store, files.others)
    except StorageError as error:
        raise store.refusal("read", error) from None
    aside = {tuple(path.split("/")[:3]) for path in files.others if path.startswith(f"{DAMAGED_FOLDER}/")}
    found.aside = len(aside)
    if found.unsealed:
        problem = f"{found.unsealed} records have no digest"
        fix = f"run `sweep seal {store.storage}`"
        found.findings.append(Finding(root, problem, fix, damage=False))
    return found


def _check_key(store: Store, key: str, names: list[str]) -> tuple[str, list[Finding]]:
    """Check the folder of a cell or a search trial.

    Returns the state of its record ('sealed', 'unsealed', 'damaged', or '' for unfinished work) and findings.
    """
    system, folder = store.location(store.folder, key)

    def finding(name: str, problem: str, fix: str = integrity.RETRY, damage: bool = True) -> Finding:
        return Finding(f"{folder}/{name}", problem, fix, damage)

    names = [*dict.fromkeys(names)]  # a folder in place of a file is listed with what it contains
    found, state = [], ""
    one = store.checked_one(key)  # in any case, because pyarrow lists no link without a target
    if one is not None and one.record["state"] == "damaged":
        found.append(finding("result.json", one.record["damage"]["problem"]))
    elif one is not None:
        state = "sealed" if one.sealed else "unsealed"
        extra = [name for name in names if name.endswith(".parquet") and not is_part(name)]
        for name in dict.fromkeys([*integrity.files_of(one), *extra]):
            try:
                integrity.check_file(name, read_intact(system, f"{folder}/{name}"), one.record)
            except Damaged as error:
                found.append(finding(name, str(error)))
    if store.folder == "search" and integrity.STARTED_FILE in names:
        start, problem = search_trials.started(store, key)
        if start is not None and state and one is not None and not start.items() <= one.record.items():
            problem = f"{integrity.STARTED_FILE} does not have the fields of the record"
        known = any(other.path.endswith(f"/{integrity.STARTED_FILE}") for other in found)
        found += [finding(integrity.STARTED_FILE, problem)] if problem and not known else []
    state = "damaged" if found else state
    try:
        content = read_intact(system, f"{folder}/{CHECKPOINT}")
        if content is not None and not integrity.checkpoint_is_intact(content):
            found.append(finding(CHECKPOINT, "its SHA-256 is not the one in its first line", RESUMES))
    except Damaged as error:
        found.append(finding(CHECKPOINT, str(error), RESUMES))
    for name in names:
        if is_part(name):
            found.append(finding(name, "a file that its writer has not completed", LEFTOVER, damage=False))
        elif name not in _KNOWN:
            found.append(finding(name, "not a file of a cell or a search trial", "move it away", False))
    return state, found


_KNOWN = {
    "result.json",
    CHECKPOINT,
    *integrity.SEALED_FILES,
    "importance.parquet",
}


def _others(store: Store, paths: list[str]) -> Iterator[Finding]:
    """Check the files of a study that belong to no cell and to no search trial."""
    system, root = store.location()
    for path in paths:
        full = f"{root.rstrip('/')}/{path}"
        folder, _, name = path.rpartition("/")
        try:
            if path in FOLDERS:
                yield Finding(full, "a file in place of a folder", "move it away, and restore the folder")
            elif folder.split("/")[0] == DAMAGED_FOLDER:
                continue
            if is_part(name):
                problem = "a file that its writer has not completed"
                yield Finding(full, problem, LEFTOVER, damage=False)
            elif path == declarations.FILE:
                declarations.read(store)
            elif path == declarations.ORIGIN:
                store.own_file(path)
            elif path == channel_orders.FILE:
                channel_orders.read(store)
            elif path == driver_process.FILE:
                lock.driver(store)
            elif folder == RUNNING_FOLDER:
                running.Progress.model_validate_json(read_intact(system, full) or b"")
            elif path == JOURNAL:
                yield from _journal(full, read_intact(system, full) or b"")
            elif folder in integrity.ENDED:
                yield Finding(full, "a file where folders of keys are expected", "move it away", damage=False)
        except InputError as error:
            yield Finding(full, error.problem, error.fix)
        except Damaged as error:
            yield Finding(full, str(error), "move it away")
        except ValidationError:
            yield Finding(full, "it is not the progress of a training", "delete the file; no result needs it")


def _journal(path: str, content: bytes) -> Iterator[Finding]:
    """Check that every line of Optuna's journal is JSON; a killed writer may leave half of the last one."""
    *lines, last = content.split(b"\n")
    fix = "run `sweep sync STUDY`, which writes the journal again"
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            yield Finding(path, f"line {number} is not JSON", fix)
            return
    if last:
        yield Finding(path, "its last line is incomplete", fix, damage=False)
