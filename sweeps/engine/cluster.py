"""The nodes of a Ray cluster: what they hold, and whether they see the storage as the driver does."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs
import tenacity
import yaml

from pm25.encoders import Embedded
from pm25.errors import InputError
from pm25.panel import Panel
from sweeps.plan import calibration
from sweeps.spec.study import Resources
from sweeps.store.records import StorageError, Store, read, write

PRETEND = "SWEEP_PRETEND_GPUS"
"""Environment variable: the GPUs that Ray counts are pretended, each with so many GB, and trainings run on
the CPU in their place. For benchmarks and tests of the scheduling; without it a GPU that torch cannot use is
an error, and never silently a CPU."""

PREFIX = ".seen-by-nodes-"
SEEN_WITHIN_S = 5.0
"""A network file system may show a new file late."""


EVERY_S = 5.0
"""How often a cluster that is not our own is asked for its nodes."""
NAMED = 8
"""Nodes in one line."""


class HeadLost(InputError):
    """The cluster is gone; what was recorded stays."""

    status = 3


class Node(NamedTuple):
    """One that lives."""

    id: str
    address: str
    resources: Mapping[str, float]
    """As Ray counts them: CPU, GPU and others."""

    @property
    def outline(self) -> str:
        gpus = f", {self.resources['GPU']:g} GPU" if self.resources.get("GPU") else ""
        return f"{self.address} ({self.resources.get('CPU', 0):g} CPU{gpus})"


class Cluster:
    """The nodes of a run. `sweeps.engine.ray_tune` hands in what Ray says and does."""

    def __init__(
        self,
        living: Callable[[], list[Node]],
        everywhere: Callable[..., list[Any]],
        notice: Callable[[str], None],
        *,
        joined: bool,
        waits: bool = False,
    ) -> None:
        """`everywhere(nodes, call, *arguments)` is what a call answers on each of the nodes, None if it left.

        `joined` says that the cluster is not our own, `waits` that nodes may still have to come.
        """
        self._living, self._everywhere, self._notice = living, everywhere, notice
        self._joined, self._waits = joined, waits
        self._nodes, self._counted = living(), time.monotonic()
        self._types = types_to_come() if joined else []
        own = calibration.devices() if self.has_gpus and not joined else []
        self.gpu_mb = pretended_mb() or min((device.memory_mb for device in own), default=None)
        """Memory of the smallest GPU, where a node told it."""

    @property
    def autoscales(self) -> bool:
        """Whether nodes come by themselves when there is work for them."""
        return self._waits or bool(self._types)

    @property
    def outline(self) -> str:
        """The nodes, in one line."""
        listed = ", ".join(node.outline for node in self._nodes[:NAMED])
        return (
            f"{listed} and {len(self._nodes) - NAMED} more" if len(self._nodes) > NAMED else listed or "none"
        )

    @property
    def has_gpus(self) -> bool:
        return any(resources.get("GPU", 0) >= 1 for resources in self._all())

    @property
    def gpus(self) -> float:
        """Of the nodes that are there."""
        return sum(node.resources.get("GPU", 0) for node in self._nodes)

    @property
    def cpus_per_gpu(self) -> float:
        """The fewest, over the nodes that have GPUs."""
        own = [resources for resources in self._all() if resources.get("GPU", 0) >= 1]
        return min((resources.get("CPU", 0) / resources["GPU"] for resources in own), default=1.0)

    def holds(self, cpu: float, gpu: float) -> int:
        """How many trainings of such a share the nodes have room for."""
        asked = {"CPU": cpu, "GPU": gpu}
        return sum(
            min(int(node.resources.get(name, 0) / each + 1e-9) for name, each in asked.items() if each)
            for node in self._nodes
        )

    def count(self) -> None:
        """Look, now and then, for nodes that joined or left, and say so."""
        if not self._joined or time.monotonic() - self._counted < EVERY_S:
            return
        before = {node.id: node for node in self._nodes}
        self._nodes, self._counted = self._living(), time.monotonic()
        now = {node.id: node for node in self._nodes}
        for verb, some in (("joined", now.keys() - before.keys()), ("left", before.keys() - now.keys())):
            for one in some:
                self._notice(f"node {(before | now)[one].outline} {verb}; {_counted(now)} now")

    def check(self, resources: Resources) -> None:
        """Raises InputError when no node, nor one that may come by itself, can hold a training."""
        cpu, gpu = resources.cpu, resources.gpu
        if gpu == "auto":
            if self._waits and not self.has_gpus:
                raise InputError(
                    "resources.gpu: auto cannot say whether the nodes that are waited for have GPUs; "
                    "--set resources.gpu=1, or 0"
                )
            gpu = 1.0 if self.has_gpus else 0.0
        if self._waits or any(r.get("CPU", 0) >= cpu and r.get("GPU", 0) >= gpu for r in self._all()):
            return
        sizes = dict.fromkeys(f"{r.get('CPU', 0):g} CPU {r.get('GPU', 0):g} GPU" for r in self._all())
        raise InputError(
            f"resources: a cell wants {cpu:g} CPU and {gpu:g} GPU, and no node has them "
            f"({', '.join(sizes)}); --set resources.cpu=1 --set resources.gpu=0"
        )

    def look(self, mark: "StorageProbe") -> None:
        """Ask every node whether it sees the driver's storage. Raises InputError for one that does not."""
        begin = time.monotonic()
        reports: list[Report | None] = self._everywhere(self._nodes, look, mark)
        told = []
        for node, report in zip(self._nodes, reports, strict=True):
            if report is None:
                continue
            if report.problem:
                raise refusal(node.address, report.host, report.problem)
            if node.resources.get("GPU"):
                told += [device.memory_mb for device in report.gpus]
        self.gpu_mb = pretended_mb() or min(told, default=None)
        took = time.monotonic() - begin
        self._notice(f"{_counted(self._nodes)} with {mark.store.storage} ({took:.1f} s): {self.outline}")

    def spread(
        self, arrived: Callable[..., None], shared: Any, panel: Panel, embeddings: Mapping[str, Embedded]
    ) -> None:
        """Bring what all workers of a node share to every node, once, before they ask for it."""
        begin = time.monotonic()
        self._everywhere(self._nodes, arrived, shared)
        table = (panel.features.nbytes + panel.target.nbytes) / 1e6
        vectors = sum(embedded.vectors.nbytes for embedded in embeddings.values()) / 1e6
        took = time.monotonic() - begin
        what = f"panel ({table:.1f} MB) and embeddings ({vectors:.1f} MB)"
        self._notice(f"{what} on {_counted(self._nodes)} ({took:.1f} s)")

    def _all(self) -> list[Mapping[str, float]]:
        return [node.resources for node in self._nodes] + self._types


def _counted(nodes: Mapping[str, Node] | Sequence[Node]) -> str:
    return "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"


def types_to_come() -> list[Mapping[str, float]]:
    """Resources of the types of nodes that the cluster's autoscaler may start, as the head's own file says.

    `ray up` leaves it in the home of the head's user, where a driver on the head finds it. Types whose
    resources are not written in it are left out.
    """
    try:
        content = yaml.safe_load(BOOTSTRAP.read_text())
    except (OSError, yaml.YAMLError):
        return []
    types = content.get("available_node_types") if isinstance(content, dict) else None
    found = [kind for kind in (types or {}).values() if kind.get("max_workers", 1) and kind.get("resources")]
    return [kind["resources"] for kind in found]


BOOTSTRAP = Path("~/ray_bootstrap_config.yaml").expanduser()


class Report(NamedTuple):
    """What a node says of itself."""

    host: str
    gpus: tuple[calibration.Device, ...]
    problem: str
    """Why it cannot work for the study; empty where it can."""


@dataclass(frozen=True)
class StorageProbe:
    """A file that the driver leaves in the store while it runs: a node that finds it sees the same."""

    store: Store
    name: str

    @classmethod
    def put(cls, store: Store) -> "StorageProbe":
        """Leave it there, and clear away those of dead drivers. Raises InputError."""
        mark = cls(store, f"{PREFIX}{secrets.token_hex(6)}")
        system, path = store.location(mark.name)
        folder = path.rsplit("/", 1)[0]
        try:
            for info in system.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True)):
                if info.base_name.startswith(PREFIX):
                    system.delete_file(info.path)
            write(system, path, mark.name.encode())
        except StorageError as error:
            raise store.refusal("written", error) from None
        return mark

    def remove(self) -> None:
        """Take it away. What cannot be removed the next driver clears away."""
        try:
            system, path = self.store.location(self.name)
            system.delete_file(path)
        except (*StorageError, InputError):
            return

    def problem(self) -> str:
        """Why this process does not see what the driver sees, or cannot write there; empty if all is well."""
        storage = self.store.storage
        try:
            system, path = self.store.location(self.name)
            self._find(system, path)
            probe = f"{path}-{secrets.token_hex(6)}"
            write(system, probe, b"probe")
            system.delete_file(probe)
        except FileNotFoundError:
            return f"{storage} there is not the driver's (a file that the driver wrote is not in it)"
        except StorageError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            return f"{storage} cannot be used there ({reason})"
        except InputError as error:
            return str(error).removeprefix("storage: ")
        return ""

    @staticmethod
    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(FileNotFoundError),
        wait=tenacity.wait_fixed(0.5),
        stop=tenacity.stop_after_delay(SEEN_WITHIN_S),
        reraise=True,
    )
    def _find(system: pyarrow.fs.FileSystem, path: str) -> None:
        read(system, path)


def look(mark: StorageProbe) -> Report:
    """Asked of every node before anything begins."""
    return Report(socket.gethostname(), tuple(calibration.devices(hidden=True)), mark.problem())


def refusal(node: str, host: str, problem: str) -> InputError:
    """That a node cannot reach the storage."""
    return InputError(
        f"storage: on node {node} ({host}) {problem}; --set storage= a folder that all nodes share, or a URI "
        "such as s3://bucket/results"
    )


def pretended_mb() -> float | None:
    """Memory of each pretended GPU; None where GPUs are real. Raises InputError."""
    value = os.environ.get(PRETEND)
    if not value:
        return None
    try:
        return float(value) * 1000
    except ValueError:
        raise InputError(
            f"{PRETEND}={value}: give the GB of each pretended GPU, such as {PRETEND}=16"
        ) from None
