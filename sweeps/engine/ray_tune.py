"""One Ray Tune run over everything that a study is missing: grid cells and search trials together."""

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray
from ray import tune

from pm25.panel import Panel
from sweeps.engine import node_calls, ray_internals, worker
from sweeps.engine.cluster import Cluster, StorageProbe, pretended_mb
from sweeps.engine.connection import connected
from sweeps.engine.gpu_packing import GpuShares
from sweeps.engine.scheduler import Scheduler
from sweeps.engine.study_queue import Observer, StudyQueue
from sweeps.engine.trainable import StudyTrainable
from sweeps.engine.tune_events import ArmPruning, TuneEvents
from sweeps.plan import calibration
from sweeps.spec.study import Study
from sweeps.store.records import Record, Store

# Failed trials are recorded and reported by this project.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def run(
    scheduler: Scheduler,
    panel: Panel,
    store: Store,
    study: Study,
    observer: Observer,
    *,
    address: str | None = None,
    wait_for_nodes: bool = False,
    train_cell: Callable[..., Record] = worker.train_and_record,
    search_trial: type[worker.SearchTrial] = worker.SearchTrial,
) -> None:
    """Train what the scheduler hands out, and record each task in the store as it ends.

    Starts a Ray of its own, or joins the cluster at `address`. The panel and the embeddings are put into
    Ray's object store once, and all workers of a node share one read-only copy. With
    `wait_for_nodes`, nodes that can hold a training may still have to come. `train_cell` is called for grid
    cells like `worker.train_and_record`, and search trials are instances of `search_trial`.

    Raises InputError when no node can hold a training, or when a node does not see the storage. A storage
    that fails meanwhile raises StorageFault, and a Ray that dies raises RayLost. Running trainings then end.
    """
    ray_internals.set_environment()
    joined = address is not None
    with connected(address, panel) as watch, contextlib.ExitStack() as cleanup:
        cluster = Cluster(
            node_calls.nodes,
            node_calls.ask_nodes,
            observer.notice,
            joined=joined,
            wait_for_nodes=wait_for_nodes,
        )
        cluster.check(study.resources)
        probe = None
        if joined:
            probe = StorageProbe.put(store)
            cleanup.callback(probe.remove)
            cluster.check_storage(probe)
        observer.check_ready()
        used = sorted(scheduler.encoders())
        embeddings = node_calls.embed({name: study.encoder_options(name) for name in used}, panel)
        shared = ray.put((panel, embeddings))
        if joined:
            cluster.spread(node_calls.receive, shared, panel, embeddings)
        shares = GpuShares(study, panel, cluster)
        if "bf16" in study.precisions:
            on_gpus = shares.whole > 0 and pretended_mb() is None
            if slow := calibration.bf16_notice(cluster.without_bf16(on_gpus)):
                observer.notice(slow)
        shares.measure(scheduler, store, partial(node_calls.footprints, shared), observer.notice)
        trainable = tune.with_resources(
            tune.with_parameters(
                StudyTrainable,
                shared={"panel and embeddings": shared},  # inside a dict, Ray leaves the reference as it is
                store=store,
                keeps_weights=study.keeps_weights,
                checkpoint_seconds=study.checkpoint_seconds,
                train_cell=train_cell,
                probe=probe,
                pretended=pretended_mb() is not None,
                search_trial=search_trial,
            ),
            partial(_resources, study.resources.cpu),
        )
        queue = StudyQueue(scheduler, shares, observer, cluster)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=queue,
                scheduler=ArmPruning(queue),
                num_samples=-1,
                reuse_actors=True,
                metric="ended",
                mode="max",
            ),
            run_config=tune.RunConfig(
                name=store.study,
                storage_path=str(watch.folder / "tune"),  # deleted at the end: the store has everything
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                # To count callbacks by kind, Tune imports the MLflow integration, and thereby MLflow.
                # That costs the driver 1 s of CPU time and 30 MB (Ray 2.60); no setting avoids it.
                callbacks=[
                    TuneEvents(queue, store, observer, panel, watch.check),
                    ray_internals.NoReporter(),
                ],
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError as error:
            raise error.__context__ or error from None  # Tune wraps the exceptions of its scheduler
        if queue.refused is not None:
            raise queue.refused


def _resources(cpu: float, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    return _bundle(cpu, config["gpu"])


@functools.cache
def _bundle(cpu: float, gpu: float) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([{"CPU": cpu, "GPU": gpu}])
