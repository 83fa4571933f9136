"""The Ray Tune run: hands out the cells that are missing; the only module that imports ray."""

import contextlib
import logging
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a cell with 0 GPUs sees none
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our store and MLflow view replace them
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the run at once: nothing done is lost
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.panel import Panel
from sweeps import work
from sweeps.store import Record, Store
from sweeps.study import Resources, Study
from sweeps.work import Embedded

# A trial that ends in an error is recorded and reported by ourselves.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

LOSSES_BORNE = 3
"""How often a cell whose worker vanished is started again before that counts as its failure."""


class Observer(Protocol):
    """What a caller hears while the run goes on; both are called in the driver's process."""

    def started(self, key: str) -> None: ...

    def ended(self, key: str, state: str) -> None: ...


def run(
    cells: Mapping[str, Cell],
    panel: Panel,
    store: Store,
    study: Study,
    observer: Observer,
    *,
    address: str | None = None,
) -> None:
    """Train `cells` (by key) and record each in the store as it ends.

    Starts a Ray of its own, or joins the one at `address`. The panel and the embeddings are put into the
    object store once, and every node's workers share one read-only copy. Raises InputError when no node
    can hold a cell.
    """
    with _connected(address, panel):
        share = _share(study.resources)
        used = {cell.encoder for cell in cells.values() if cell.encoder}
        embeddings = _embed({name: study.encoder_options(name) for name in sorted(used)}, panel)
        trainable = tune.with_resources(
            tune.with_parameters(
                CellTrainable,
                panel=panel,
                embeddings=embeddings,
                store=store,
                keep_weights=study.keep_weights,
            ),
            share,
        )
        queue = CellQueue(cells)
        with tempfile.TemporaryDirectory(prefix="sweep-tune-") as scratch:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=queue, num_samples=-1, reuse_actors=True, metric="ended", mode="max"
                ),
                run_config=tune.RunConfig(
                    name=store.study,
                    storage_path=scratch,  # Tune's own record is not kept: the store is the truth
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    callbacks=[_Ear(queue, cells, store, observer)],
                ),
            )
            tuner.fit()


class CellQueue(Searcher):
    """Hands the cells to Tune one by one, in their order, and a cell whose worker was lost once more.

    Tune's own retries are not used: it gives up a trial whose worker dies between two trials.
    """

    def __init__(self, cells: Mapping[str, Cell]) -> None:
        super().__init__(metric="ended", mode="max")
        self._configs = {key: {"key": key, "cell": cell.model_dump_json()} for key, cell in cells.items()}
        self._waiting = deque(self._configs)
        self._running: set[str] = set()
        self._losses: Counter[str] = Counter()

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        """The next cell; None while one may still come back; FINISHED."""
        if not self._waiting:
            return None if self._running else Searcher.FINISHED
        key = self._waiting.popleft()
        self._running.add(key)
        return self._configs[key]

    def ended(self, key: str) -> None:
        """The cell is recorded."""
        self._running.discard(key)

    def lost(self, key: str) -> bool:
        """The cell's worker died and left no record: whether the cell is tried again."""
        self._running.discard(key)
        self._losses[key] += 1
        again = self._losses[key] <= LOSSES_BORNE
        if again:
            self._waiting.append(key)
        return again

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to learn: the grid does not depend on results."""


class CellTrainable(tune.Trainable):
    """One cell a trial, in one step; the worker keeps its process, its imports and the panel."""

    def setup(
        self,
        config: dict[str, str],
        panel: Panel,
        embeddings: dict[str, Embedded],
        store: Store,
        keep_weights: bool,
    ) -> None:
        import torch

        torch.set_num_threads(max(1, int(self.trial_resources.required_resources.get("CPU", 1))))
        self._panel, self._embeddings, self._store = panel, embeddings, store
        self._keep_weights = keep_weights
        self._device = "cuda" if ray.get_gpu_ids() else "cpu"

    def step(self) -> dict[str, Any]:
        key = self.config["key"]
        # A worker may be lost after it recorded and before Tune heard of it.
        record = self._store.record(key) or self._run(key)
        return {"state": record["state"], "ended": 1, "done": True}

    def _run(self, key: str) -> Record:
        cell = Cell.model_validate_json(self.config["cell"])
        embedded = self._embeddings.get(cell.variant)
        return work.run_and_record(
            cell,
            key,
            self._panel,
            self._store,
            embedded=embedded,
            keep_weights=self._keep_weights,
            device=self._device,
        )

    def reset_config(self, new_config: dict[str, str]) -> bool:
        return True


class _Ear(tune.Callback):
    """Passes on what happens, and sends a cell back whose worker was lost."""

    def __init__(self, queue: CellQueue, cells: Mapping[str, Cell], store: Store, observer: Observer) -> None:
        self._queue, self._cells, self._store, self._observer = queue, cells, store, observer

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that we never make."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._observer.started(trial.config["key"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended(trial.config["key"], trial.last_result["state"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        key = trial.config["key"]
        record = self._store.record(key)
        if record is None:
            if self._queue.lost(key):
                return
            error = str(trial.get_pickled_error() or "").strip() or "its worker died"
            record = work.record_loss(self._cells[key], key, self._store, error.splitlines()[-1])
        self._ended(key, record["state"])

    def _ended(self, key: str, state: str) -> None:
        self._queue.ended(key)
        self._observer.ended(key, state)


_embed_places = ray.remote(num_cpus=1, max_retries=3)(work.embed)


def _embed(encoders: Mapping[str, dict[str, Any]], panel: Panel) -> dict[str, Embedded]:
    """Every place once, in a worker, so that the driver needs no torch."""
    places = panel.lat, panel.lon, panel.site_id
    tasks = {name: _embed_places.remote(name, options, *places) for name, options in encoders.items()}
    try:
        return {name: ray.get(task) for name, task in tasks.items()}
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise


@contextlib.contextmanager
def _connected(address: str | None, panel: Panel) -> Iterator[None]:
    if address is None:
        # Room for the panel, the embeddings and Tune's own objects; not Ray's third of all memory.
        room = 256 * 2**20 + 2 * (panel.features.nbytes + panel.target.nbytes)
        options: dict[str, Any] = {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": room,
        }
    else:
        options = {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **options)
    except (ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"--address {address}: no Ray cluster answers there ({reason})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _share(resources: Resources) -> dict[str, float]:
    """CPU and GPU of one cell; raises InputError when no node of the cluster has as much."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpu = resources.gpu
    if gpu == "auto":
        gpu = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if not any(node.get("CPU", 0) >= resources.cpu and node.get("GPU", 0) >= gpu for node in nodes):
        largest = ", ".join(f"{n.get('CPU', 0):g} CPU {n.get('GPU', 0):g} GPU" for n in nodes)
        raise InputError(
            f"resources: a cell wants {resources.cpu:g} CPU and {gpu:g} GPU, "
            f"and no node has them ({largest}); --set resources.cpu=1 --set resources.gpu=0"
        )
    return {"cpu": resources.cpu, "gpu": gpu}
