"""A study under random faults, again and again: what was lost, repeated, believed or left unexplained.

A round takes one storage from empty to a complete study. Its episodes are runs under faults and batches of
damaged files; its last run has no faults and must complete everything. The faults follow from the seed and
the number of the round, so that a round can be repeated by itself; moments within a run are not reproducible.
"""

import contextlib
import json
import random
import re
import secrets
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow.parquet

from sweeps.bench import chaos_damage, chaos_faults, chaos_referee, chaos_study
from sweeps.bench.chaos_damage import Damage
from sweeps.bench.chaos_faults import ACTIONS, BAD_INPUT, DONE, Driver, Fault, Setting, run_command
from sweeps.bench.chaos_referee import KINDS, Ending, Outcome, Referee
from sweeps.bench.harness import Measurement

FAULTS_OF_A_RUN = (3, 6)
"""Smallest and largest number of faults of a run, besides one that ends it."""
DAMAGES = (12, 20)
"""Smallest and largest number of damaged files in a batch."""
BATCHES = 3
"""Batches of damages between two runs; each forgets the damaged records, so that the next run has work."""
LINE_LENGTH = 160
"""Longest line in the table of what the user saw."""
FIXES = 6
"""Largest number of times that the advice of a command is followed before it counts as wrong."""

FAILED_CELLS = FOUND_DAMAGE = 1
"""Exit status of a run with failed cells, and of `fsck` with damaged files."""


class Episode(NamedTuple):
    """A run with its faults, or a batch of damages."""

    faults: tuple[Fault, ...] = ()
    damages: tuple[Damage, ...] = ()


class Sight(NamedTuple):
    """Line and exit status that the user saw after one fault."""

    kind: str
    status: int | None
    """Exit status of the run, of the second run, or of `fsck`."""
    line: str


class Bad(NamedTuple):
    """A bad outcome, and where to find it."""

    outcome: Outcome
    round: int
    episode: int
    faults: tuple[str, ...]
    folder: str


@dataclass
class Tally:
    """Faults and bad outcomes so far."""

    seed: int
    sights: list[Sight] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    rounds: int = 0
    """Rounds that were completed."""
    runs: int = 0
    seconds: float = 0.0
    impossible: tuple[str, ...] = ()
    """Kinds of faults that this process may not do."""
    stopped: str = ""
    """Error that ended the rounds early; the numbers before it hold."""

    def measurements(self) -> Iterator[Measurement]:
        """Yield the number of faults and of each kind of bad outcome."""
        rounds = f"{self.rounds} complete rounds and {self.runs} runs"
        words = f"in {self.seconds / 60:.0f} minutes, {rounds}, seed {self.seed}"
        yield Measurement("faults", len(self.sights), "", float("inf"), words)
        counts = Counter(one.outcome.kind for one in self.bad)
        for kind, meaning in KINDS.items():
            yield Measurement(kind, counts[kind], "", 0, meaning)

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each kind of fault: its number, the exit statuses that were seen, and a line.

        `bad` counts the bad outcomes of its file, or of all episodes with a fault of this kind.
        """
        rows = []
        for kind in dict.fromkeys(sorted(sight.kind for sight in self.sights)):
            seen = [sight for sight in self.sights if sight.kind == kind]
            statuses = Counter(_status_name(sight.status) for sight in seen)
            bad = Counter(one.outcome.kind for one in self.bad if kind in one.faults)
            line = next((sight.line for sight in reversed(seen) if sight.line), "")[:LINE_LENGTH]
            rows.append(
                {
                    "fault": kind,
                    "count": len(seen),
                    "statuses": dict(sorted(statuses.items())),
                    "bad": dict(bad),
                    "line": line,
                }
            )
        return rows

    def lines(self) -> Iterator[str]:
        """Describe each bad outcome in a line with the command that repeats its round."""
        for one in self.bad:
            faults = ", ".join(one.faults[:3]) + (
                f" and {len(one.faults) - 3} more" if one.faults[3:] else ""
            )
            yield (
                f"{one.outcome.kind}: {one.outcome.what}; after {faults or 'no fault'} in episode "
                f"{one.episode} of {one.folder}; repeat with "
                f"`sweep bench --only chaos --seed {self.seed} --round {one.round}`"
            )

    @property
    def content(self) -> dict[str, Any]:
        """Content of the JSON output."""
        return {
            "seed": self.seed,
            "rounds": self.rounds,
            "runs": self.runs,
            "seconds": round(self.seconds, 1),
            "impossible": [*self.impossible],
            "stopped": self.stopped,
            "kinds": self.table(),
            "bad": [
                {**one._asdict(), "outcome": one.outcome.kind, "what": one.outcome.what} for one in self.bad
            ],
        }


def run(
    minutes: float, seed: int | None = None, only_round: int | None = None, say: Callable[[str], None] = print
) -> Tally:
    """Run rounds until `minutes` have passed, or one round, and return what came of them.

    No episode starts after that time; one that has started is completed. Ctrl-C ends the rounds as well.
    An error of the bench itself ends them too, and `Tally.stopped` describes it. The folder of a round with
    a bad outcome is kept. `say` gets a line for each episode.
    """
    root = chaos_faults.can_mount()
    seed = secrets.randbelow(10**6) if seed is None else seed
    impossible = tuple(kind for kind in ACTIONS if not chaos_faults.possible(kind, root=root))
    tally = Tally(seed, impossible=impossible)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    began = time.monotonic()
    numbers: Iterable[int] = range(10**9) if only_round is None else [only_round]
    try:
        for number in numbers:
            if time.monotonic() - began > 60 * minutes:
                break
            with Round(folder / f"r{number}", number, tally, mounts=root) as one:
                for episode in plan(seed, number, root=root):
                    if time.monotonic() - began > 60 * minutes:
                        break
                    say(f"round {number}, episode {one.episode}: {_summary(episode)}")
                    one.do(episode)
                else:
                    tally.rounds += 1
    except KeyboardInterrupt:
        pass
    except Exception as error:
        tally.stopped = f"round {number}: {type(error).__name__}: {' '.join(str(error).split())}"
    tally.seconds = time.monotonic() - began
    with contextlib.suppress(OSError):  # kept rounds are in it
        folder.rmdir()
    return tally


def _summary(episode: Episode) -> str:
    """Describe an episode in a line."""
    if episode.damages:
        return f"{len(episode.damages)} damages"
    return ", ".join(fault.kind for fault in episode.faults) or "no fault"


def _names(outcome: Outcome, file: Path) -> bool:
    """Return whether an outcome is about a file of a cell or a trial, or about its folder."""
    name = f"{file.parent.parent.name}/{file.parent.name}"
    return f"{name}/{file.name}" in outcome.what or f"{name} " in outcome.what


def _status_name(status: int | None) -> str:
    if status is None:
        return "none"
    return signal.Signals(-status).name if status < 0 else str(status)


def plan(seed: int, number: int, *, root: bool) -> list[Episode]:
    """Draw the episodes of a round; equal arguments give equal faults."""
    rng = random.Random(f"{seed} {number}")
    kinds = [kind for kind in ACTIONS if chaos_faults.possible(kind, root=root)]
    passing = [kind for kind in kinds if not ACTIONS[kind].ends]
    ending = [kind for kind in kinds if ACTIONS[kind].ends]

    def under_faults() -> Episode:
        drawn = [rng.choice(passing) for _ in range(rng.randint(*FAULTS_OF_A_RUN))]
        # A storage fault may end the run, so it comes after the others.
        drawn.sort(key=lambda kind: bool(ACTIONS[kind].statuses))
        drawn += [rng.choice(ending)] if rng.random() < 0.8 else []
        return Episode(tuple(Fault(kind, rng.randint(1, 3), rng.randrange(2**32)) for kind in drawn))

    def batches() -> list[Episode]:
        counts = [rng.randint(*DAMAGES) for _ in range(BATCHES)]
        return [Episode(damages=tuple(chaos_damage.draw(rng) for _ in range(count))) for count in counts]

    return [under_faults(), *batches(), under_faults(), *batches(), Episode()]


class Round:
    """One storage, from empty to a complete study; used as a context."""

    def __init__(
        self, folder: Path, number: int, tally: Tally, *, mounts: bool, seeds: int = chaos_study.SEEDS
    ) -> None:
        self.folder, self._number, self._tally = folder, number, tally
        self._mounts, self._seeds = mounts, seeds
        self.episode = 0
        """Number of the next episode."""
        self._known: set[Outcome] = set()
        self._suspects: set[Path] = set()
        """Files of the study that were damaged, and that a user may be asked to delete."""
        self._damages: list[tuple[str, list[Path]]] = []
        """Kinds and files of the damages of this episode."""
        self._drivers: list[Driver] = []
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        disk = self._exit.enter_context(chaos_faults.disk(self.folder / "disk")) if self._mounts else None
        self.setting = Setting(self.folder, disk)
        self.setting.storage.mkdir()
        self.referee = Referee(chaos_study.write(self.folder, str(self.setting.storage), self._seeds))
        return self

    def __exit__(self, *_: object) -> None:
        for driver in self._drivers:
            self._note(driver.agents(end=True), [])
            driver.kill()
        if self._known and self.setting.disk is not None:
            shutil.copytree(self.setting.storage, self.folder / "results")
        self._exit.close()
        if not self._known:
            shutil.rmtree(self.folder)

    def do(self, episode: Episode) -> None:
        """Do an episode, and count its faults and its bad outcomes."""
        if episode.damages:
            self._damage(episode.damages)
        elif episode.faults:
            self._run_under(episode.faults)
        else:
            self._finish()
        self.episode += 1

    def _run_under(self, faults: Sequence[Fault]) -> None:
        """Run the study under faults, and compare what it shows afterwards with the truth."""
        done: list[str] = []
        answers: list[Ending | None] = []
        for _ in range(FIXES):
            driver = self._start()
            allowed = {DONE, BAD_INPUT} if self._suspects else {DONE}
            for fault in faults:
                if not driver.wait_for_starts(fault.after):
                    break
                if ACTIONS[fault.kind].do(driver, random.Random(fault.seed)):
                    done.append(fault.kind)
                    answers.append(driver.answer)
                    driver.answer = None
                    allowed |= {*ACTIONS[fault.kind].statuses}
            ending = driver.end(allowed | ({FAILED_CELLS} if self.referee.failed else set()))
            self._note(driver.outcomes, done)
            if done or not self._obey(ending):
                break
        for kind, answer in zip(done, answers, strict=True):
            seen = answer or ending
            self._tally.sights.append(Sight(kind, seen.status, self._short(seen.last_line)))
        if {"MLflow's database deleted in a run", "MLflow's database truncated in a run"} & {*done}:
            self._suspects.add(self._database)
        missing = self._compare(done)
        if ending.status == DONE and missing:
            self._note(
                [Outcome("unclear", f"sweep run: ends with 0 although {missing} cells are missing")], done
            )

    def _short(self, line: str) -> str:
        """Write the folder of the round as `...`, and a line without line breaks."""
        return " ".join(line.replace(str(self.setting.storage.parent), "...").split())

    def _damage(self, damages: Sequence[Damage]) -> None:
        """Damage files, and compare what the commands show with the truth."""
        done: list[tuple[str, list[Path]]] = []
        for damage in damages:
            if files := chaos_damage.do(damage, self.referee):
                done.append((damage.kind, files))
                self._suspects |= {*files}
        kinds = [kind for kind, _ in done]
        self._damages = done
        self._compare(kinds)
        detectable = any(self.referee.damaged.values())
        ending = self._command("fsck", str(self.setting.storage), kinds=kinds, allowed={DONE, FOUND_DAMAGE})
        if detectable:
            self._note(self.referee.fsck(ending), kinds)
        lines = (ending.output + ending.errors).splitlines()
        for kind, files in done:
            names = [f"{file.parent.name}/{file.name}" for file in files]
            line = next((line for line in lines if any(name in line for name in names)), "")
            self._tally.sights.append(Sight(kind, ending.status, self._short(line)))
        self._command("retry", chaos_study.FILE, "--damaged", kinds=kinds)
        self.referee.settle()
        self._note(self.referee.look(), kinds)
        self._damages = []

    def _finish(self) -> None:
        """Run the study without faults; afterwards everything must be stored, once and correctly."""
        if self.referee.failed:
            self._command("retry", chaos_study.FILE)
        # Views that were damaged are deleted, as a user would do, and written again.
        for view in (self._database, self.referee.root / "optuna.journal"):
            if view in self._suspects:
                for file in view.parent.glob(f"{view.name}*"):
                    file.unlink()
        for _ in range(FIXES):
            driver = self._start()
            ending = driver.end({DONE, BAD_INPUT} if self._suspects else {DONE})
            self._note(driver.outcomes, [])
            if not self._obey(ending):
                break
        self._suspects.clear()
        if ending.status == DONE:
            self._note(self.referee.complete(self._database), [])
            self._compare([])
            # What is left belongs to cells that became stale; `fsck` says to delete a damaged one.
            for path in self.referee.root.glob("*/*/checkpoint.pt"):
                path.unlink()
            self._command("fsck", str(self.setting.storage))
        else:
            self._note(
                [Outcome("unclear", f"the last run ends with {ending.status}: {ending.last_line}")], []
            )

    def _start(self) -> Driver:
        self._tally.runs += 1
        self._drivers.append(Driver(self.setting, self.referee))
        return self._drivers[-1]

    def _compare(self, kinds: Sequence[str]) -> int:
        """Compare what `status` and `export` show with the truth; return the number of missing cells."""
        ending = self._command("status", chaos_study.FILE, "--cells", "--json", kinds=kinds)
        missing = 0
        if ending.status == DONE:
            content = json.loads(ending.output)
            missing = content["cells"]["missing"]
            self._note(self.referee.status(content), kinds)
        out = self.folder / "cells.parquet"
        out.unlink(missing_ok=True)
        if self._command("export", chaos_study.FILE, str(out), kinds=kinds).status == DONE:
            self._note(self.referee.shown(pyarrow.parquet.read_table(out).to_pylist()), kinds)
        return missing

    def _command(
        self, *arguments: str, kinds: Sequence[str] = (), allowed: Collection[int] = (DONE,)
    ) -> Ending:
        """Run a command, and again while it ends with an advice that can be followed."""
        for _ in range(FIXES):
            ending = run_command(self.setting, *arguments)
            if not self._obey(ending):
                break
        self._note(chaos_referee.unclear(ending, allowed), kinds)
        return ending

    def _obey(self, ending: Ending) -> bool:
        """Delete the damaged file that a command asks to delete; False if it asks for none."""
        if ending.status != BAD_INPUT or "delete" not in ending.last_line:
            return False
        self._note(chaos_referee.unclear(ending, {BAD_INPUT}), [])
        for name in re.findall(r"/[^\s:,;`']+", ending.last_line):
            file = Path(name)
            if file in self._suspects and file.exists():
                file.unlink()
                return True
        return False

    @property
    def _database(self) -> Path:
        return self.setting.storage / "mlflow.db"

    def _note(self, outcomes: Iterable[Outcome], kinds: Iterable[str]) -> None:
        """Count bad outcomes, each of them once in a round."""
        for outcome in outcomes:
            if outcome not in self._known:
                self._known.add(outcome)
                of_file = [kind for kind, files in self._damages if any(_names(outcome, f) for f in files)]
                kinds = of_file or kinds
                found = self._number, self.episode, (*dict.fromkeys(kinds),), str(self.folder)
                self._tally.bad.append(Bad(outcome, *found))
