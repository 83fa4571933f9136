"""The nodes of a cluster: what they hold, whether they see the storage, which may come."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeps.engine import cluster as nodes
from sweeps.engine.cluster import Cluster, Node, Report, StorageProbe
from sweeps.plan.calibration import Device
from sweeps.spec.study import Resources
from sweeps.store.records import Store
from tests.errors import refuses


def cluster(*sizes: tuple[float, float], said: list[str] | None = None, **more: Any) -> Cluster:
    there = [Node(f"id{i}", f"10.0.0.{i}", {"CPU": cpu, "GPU": gpu}) for i, (cpu, gpu) in enumerate(sizes)]
    told = [].append if said is None else said.append
    return Cluster(lambda: there, more.pop("ask_nodes", lambda *_: []), told, joined=True, **more)


def test_what_the_nodes_hold() -> None:
    found = cluster((8, 2), (5, 0), (4, 4))
    assert found.holds(1, 0) == 17
    assert found.holds(1, 1) == 6
    assert found.holds(1, 0.25) == 8 + 4  # of the last node's 16 quarters, four have a CPU
    assert found.holds(2, 0.3333) == 4 + 2
    assert (found.gpus, found.has_gpus, found.cpus_per_gpu) == (6, True, 1.0)
    assert not cluster((5, 0)).has_gpus


@pytest.mark.parametrize(
    ("cpu", "gpu", "fits"),
    [(8, 2, True), (1, "auto", True), (9, 0, False), (1, 4, False), (16, "auto", False)],
)
def test_a_training_fits_one_node_or_the_run_does_not_begin(cpu: float, gpu: Any, fits: bool) -> None:
    found, wanted = cluster((8, 2), (8, 2), (8, 0)), Resources(cpu=cpu, gpu=gpu)
    if fits:
        found.check(wanted)
        return
    with refuses("study file", "resources", "8 CPU 2 GPU, 8 CPU 0 GPU", "--set resources.cpu=1"):
        found.check(wanted)


def test_nodes_that_an_autoscaler_may_start_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    monkeypatch.setattr(nodes, "BOOTSTRAP", file)
    wanted = Resources(cpu=4, gpu=1)
    with refuses("study file", "resources"):
        cluster((2, 0)).check(wanted)
    file.write_text(
        "available_node_types:\n"
        "  head: {resources: {CPU: 2}}\n"
        "  gone: {resources: {CPU: 64, GPU: 8}, max_workers: 0}\n"
        "  spot: {resources: {CPU: 32, GPU: 4}, min_workers: 0, max_workers: 8}\n"
    )
    found = cluster((2, 0))
    found.check(wanted)
    assert (found.autoscales, found.has_gpus, found.cpus_per_gpu) == (True, True, 8.0)
    with refuses("study file", "resources"):
        found.check(Resources(cpu=4, gpu=8))
    file.write_text("not: [yaml")
    assert not cluster((2, 0)).autoscales


def test_who_waits_for_nodes_says_what_they_have() -> None:
    cluster((2, 0), wait_for_nodes=True).check(Resources(cpu=4, gpu=1))
    with refuses("study file", "resources.gpu", "--set resources.gpu=1"):
        cluster((2, 0), wait_for_nodes=True).check(Resources())


def test_processors_without_bf16_are_named_once() -> None:
    asked: list[Any] = []

    def ask(there: list[Node], call: Any, gpu: bool) -> list[str | None]:
        asked.append((len(there), call, gpu))
        return ["Xeon E5", "", None, "Xeon E3", "Xeon E5"]

    assert cluster(*5 * [(8, 1)], ask_nodes=ask).without_bf16(gpu=True) == "Xeon E3, Xeon E5"
    assert asked == [(5, nodes.calibration.without_bf16, True)]


def test_every_node_is_asked_and_named(tmp_path: Path) -> None:
    probe = StorageProbe.put(Store(str(tmp_path), "toy"))
    reports: list[Report | None] = [
        Report("a", (Device("A10", 24e3),), ""),
        Report("b", (Device("T4", 16e3),), ""),
    ]
    said: list[str] = []
    found = cluster((8, 1), (8, 0), said=said, ask_nodes=lambda *_: reports)
    found.check_storage(probe)
    assert found.gpu_mb == 24e3  # the second gives none of its GPUs to Ray
    assert f"2 nodes with {tmp_path} (0.0 s): 10.0.0.0 (8 CPU, 1 GPU), 10.0.0.1 (8 CPU)" in said
    reports[0] = None  # it has left meanwhile
    found.check_storage(probe)
    assert found.gpu_mb is None
    reports[1] = Report("gpu-07", (), "/data is another folder than the driver's")
    with refuses("node 10.0.0.1 (gpu-07)", "storage", "/data", "--set storage="):
        found.check_storage(probe)


def test_a_node_sees_the_probe_where_the_storage_is_the_same(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "shared"), "toy")
    probe = StorageProbe.put(store)
    assert probe.problem() == ""
    assert [path.name for path in (tmp_path / "shared" / "toy").iterdir()] == [probe.name]
    assert nodes.report(probe).problem == ""
    probe.remove()
    assert not [*(tmp_path / "shared" / "toy").iterdir()]


def test_another_folder_of_that_name_is_seen_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SEEN_WITHIN_S", 0.2)
    probe = StorageProbe.put(Store(str(tmp_path / "shared"), "toy"))
    elsewhere = StorageProbe(Store(str(tmp_path / "local"), "toy"), probe.name)
    Store(str(tmp_path / "local"), "toy").prepare()
    start = time.monotonic()
    assert str(tmp_path / "local") in elsewhere.problem()
    assert time.monotonic() - start < 2


@pytest.mark.skipif(os.getuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_there_is_named(tmp_path: Path) -> None:
    probe = StorageProbe.put(Store(str(tmp_path), "toy"))
    (tmp_path / "toy").chmod(0o500)
    try:
        assert str(tmp_path) in probe.problem()
    finally:
        (tmp_path / "toy").chmod(0o700)


def test_a_file_that_is_shown_late_is_waited_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    probe = StorageProbe.put(store)
    file = tmp_path / "toy" / probe.name
    hidden = file.rename(tmp_path / "later")
    timer = threading.Timer(0.7, hidden.rename, [file])
    timer.start()
    start = time.monotonic()
    assert probe.problem() == ""
    assert time.monotonic() - start < nodes.SEEN_WITHIN_S
    timer.join()


def test_probes_of_dead_drivers_are_cleared_away(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    old, new = StorageProbe.put(store), StorageProbe.put(store)
    assert [path.name for path in (tmp_path / "toy").iterdir()] == [new.name]
    assert old.name != new.name


def test_pretended_gpus_say_how_large_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(nodes.PRETEND, raising=False)
    assert nodes.pretended_mb() is None
    monkeypatch.setenv(nodes.PRETEND, "16")
    assert nodes.pretended_mb() == 16_000
    monkeypatch.setenv(nodes.PRETEND, "yes")
    with refuses("SWEEP_PRETEND_GPUS", "", "yes", "SWEEP_PRETEND_GPUS=16"):
        nodes.pretended_mb()


def test_what_is_spread_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    asked: list[Any] = []
    found = cluster((8, 1), (8, 1), said=said, ask_nodes=lambda *given: asked.append(given) or [])
    panel: Any = type("Panel", (), {"features": np.zeros(10**6), "target": np.zeros(10**6, np.float32)})
    found.spread(print, "reference", panel, {})
    assert asked[0][1:] == (print, "reference")
    assert said == ["panel (12.0 MB) and embeddings (0.0 MB) on 2 nodes (0.0 s)"]
