"""Ray tasks outside the trainings: embed places, ask every node, measure GPU memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pm25 import encoders
from pm25.cell import Cell
from pm25.encoders import Embedded
from pm25.errors import InputError
from pm25.network_shape import NetworkShape
from pm25.panel import Panel
from sweeps.engine import cluster, measure, ray_internals, worker
from sweeps.engine.cluster import Node
from sweeps.plan.packing import Footprint

NODE_ANSWERS_S = 120.0
"""Longest time to wait for a node, which may first install the code's environment and import it."""

_embed_places = ray.remote(num_cpus=1, max_retries=3)(encoders.embed)


def embed(options: Mapping[str, dict[str, Any]], panel: Panel) -> dict[str, Embedded]:
    """Embed the panel's sites with each encoder, in a worker, so that the driver loads no torch.

    `options` are those of each encoder, by its name. Raises InputError.
    """
    sites = panel.lat, panel.lon, panel.site_id
    tasks = {name: _embed_places.remote(name, own, *sites) for name, own in options.items()}
    try:
        return {name: ray.get(task) for name, task in tasks.items()}
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise


def nodes() -> list[Node]:
    """List the nodes that are alive and not about to go."""
    leaving = ray_internals.draining_nodes()
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    ]


def ask_nodes(asked: Sequence[Node], call: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run a function on each node and return the results in order, None for a node that has left.

    Raises InputError for a node that does not answer within `NODE_ANSWERS_S`, or cannot run the function.
    """
    tasks = {}
    for node in asked:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(call)
        tasks[task.remote(*arguments)] = node
    _, silent = ray.wait([*tasks], num_returns=len(tasks), timeout=NODE_ANSWERS_S)
    if silent:
        raise InputError(
            f"node {tasks[silent[0]].outline}",
            problem=f"no answer within {NODE_ANSWERS_S:g} s",
            fix="repair the node, or stop it",
        )
    found = []
    for task, node in tasks.items():
        try:
            found.append(ray.get(task))
        except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
            found.append(None)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(
                f"node {node.outline}",
                problem=f"the node cannot run a task ({reason})",
                fix="repair the node, or stop it",
            ) from None
    return found


def receive(shared: Any) -> None:
    """Do nothing; Ray copies the argument to the node before it calls the function."""


@ray.remote(num_gpus=1, max_calls=1, max_retries=3)  # its process ends with it and frees the GPU
def _footprint(
    shared: tuple[Panel, Any], cell: Cell, shape: NetworkShape, pretended_mb: float | None
) -> Footprint:
    """Measure the GPU memory of one training, alone on a GPU, and the rates of stacked trainings."""
    import torch

    if pretended_mb is not None:
        held, name = measure.footprint_mb(cell, shape, shared[0], "cpu"), "pretended"
        return Footprint(shape=shape, memory_mb=held, context_mb=0, gpu=name, gpu_mb=pretended_mb)
    held, name = measure.footprint_mb(cell, shape, shared[0], "cuda"), torch.cuda.get_device_name()
    total_mb, context_mb = torch.cuda.mem_get_info()[1] / 1e6, worker.context_mb()
    gpu = {"memory_mb": held, "context_mb": context_mb, "gpu": name, "gpu_mb": total_mb}
    try:
        rates, failed = measure.stack_rates(cell, shape, shared[0], "cuda"), ""
    except RuntimeError as error:  # the study can be trained without stacks, and the run says why
        rates, failed = {}, measure.reason(error)
    return Footprint(shape=shape, rates=rates, stacks_failed=failed, **gpu)


def footprints(shared: ray.ObjectRef, cells: Mapping[NetworkShape, Cell]) -> Iterator[Footprint]:
    """Measure the GPU memory of a cell of each shape, on all GPUs side by side. Raises InputError."""
    tasks = {
        _footprint.remote(shared, cell, shape, cluster.pretended_mb()): cell for shape, cell in cells.items()
    }
    left = [*tasks]
    while left:
        (done,), left = ray.wait(left, num_returns=1)
        try:
            yield ray.get(done)
        except ray.exceptions.RayError as error:
            reason = str(getattr(error, "cause", error)).strip().splitlines()[-1]
            raise InputError(
                "study file",
                "resources.gpu",
                f"auto could not measure the GPU memory of {tasks[done].label} ({reason})",
                "--set resources.gpu=1",
            ) from None
