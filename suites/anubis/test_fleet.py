"""Fleets: what is gathered and how it is told, by hand; and three real Ray nodes, one of them slow, one lost."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from systems.anubis import fleet
from systems.anubis.control_groups import available
from systems.anubis.fleet import FleetReport, NodeResult
from systems.anubis.links import attribute
from systems.anubis.machine import Machine
from systems.anubis.records import Measurement, Run, read_runs, to_table, write_run

MACHINE = Machine(kind="x", node="a" * 16, stack="s")


def run_of(value, node, **facts):
    rows = [
        Measurement(
            suite="h", test="t", component=component, metric=f"h/x/{component}/rate", unit="op/s", better="higher",
            values=tuple(np.full(4, value if component == "compute" else 100.0)), status="recorded",
        )
        for component in ("compute", "disk")
    ]  # fmt: skip
    return replace(Run.begin(replace(MACHINE, node=node), facts=facts), rows=tuple(rows))


def result(name, run, status=0):
    return NodeResult(name, status, "pass", "", (), run, "", "")


def test_a_slow_node_is_found_beside_its_peers_without_any_criteria():
    random = np.random.default_rng(0)
    values = [*(100 * (1 + 0.004 * random.standard_normal(11))), 80.0]
    runs = [run_of(value, f"{n:016x}") for n, value in enumerate(values)]
    judged = fleet._beside_peers([result(str(n), run) for n, run in enumerate(runs)])
    assert [each.peers for each in judged] == ["pass"] * 11 + ["defect"]
    assert judged[-1].suspects == ("compute",)


def test_a_fleet_too_small_to_tell_says_nothing():
    judged = fleet._beside_peers([result("a", run_of(100.0, "1" * 16)), result("b", run_of(50.0, "2" * 16))])
    assert [each.peers for each in judged] == ["", ""]


def test_ray_nodes_on_one_machine_are_told_apart():
    results = [result("a", run_of(1.0, "c" * 16)), result("b", run_of(1.0, "c" * 16)), result("d", None)]
    told = fleet._told_apart(results, ["id1", "id2", "id3"])
    nodes = [each.run.machine.node for each in told[:2]]
    assert len(set(nodes)) == 2
    assert all(len(node) == 16 and node != "c" * 16 for node in nodes)
    alone = fleet._told_apart(results[:1], ["id1"])
    assert alone[0].run.machine.node == "c" * 16


def test_the_newest_run_of_a_node_counts(tmp_path):
    old, new = (
        run_of(1.0, "e" * 16, verdict="recorded"),
        run_of(2.0, "e" * 16, verdict="defect", suspects=[["disk", 2]]),
    )
    new = replace(new, started=old.started.replace(year=old.started.year + 1))
    paths = [write_run(run, tmp_path) for run in (new, old)]
    answer = {"status": 10, "files": {p.name: p.read_bytes() for p in paths}, "junit": "", "output": ""}
    found = fleet._result("n", answer)
    assert (found.run, found.verdict, found.suspects) == (new, "defect", ("disk",))
    crashed = fleet._result("n", {"status": 3, "files": {}, "junit": "", "output": "boom"})
    assert (crashed.run, crashed.verdict, crashed.output) == (None, "invalid", "boom")


@pytest.mark.parametrize(("statuses", "lost", "status"), [
    ([0, 0], (), 0), ([0, 10], (), 10), ([0, 0], (("n", "gone"),), 11), ([11, 10], (("n", "gone"),), 10),
    ([1, 10], (), 1), ([], (("n", "gone"),), 11), ([2, 1], (), 2), ([0, -9], (), -9),
])  # fmt: skip
def test_the_worst_node_is_the_fleets_exit_status(statuses, lost, status):
    nodes = tuple(result(str(n), None, s) for n, s in enumerate(statuses))
    assert FleetReport(nodes, lost).status == status


def test_the_table_names_the_lost_and_what_is_slow_between_nodes():
    B = np.full((4, 4), 1e9)
    B[0, 3] = B[3, 0] = 1e8
    report = FleetReport(
        (result("a", None), replace(result("b", None, 10), verdict="defect", peers="defect", suspects=("disk",))),
        (("c", "NodeDiedError: gone"),), ("a", "b", "d", "e"), attribute(B), (("a", "f", "refused"),),
    )  # fmt: skip
    text = "\n".join(report.lines())
    assert "c                        LOST       NodeDiedError: gone" in text
    assert "the link between a and e is slow" in text
    assert "a to f not measured: refused" in text
    assert report.status == 10


def test_without_ray_the_error_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert fleet.main(["suites/hardware"]) == 2
    assert "pip install 'maat[fleet]'" in capsys.readouterr().err


# --- three nodes of a real cluster, all on this machine

SELECTION = "suites/hardware/bench_compute.py::test_peak"


@pytest.fixture
def cluster(monkeypatch):
    pytest.importorskip("ray", reason="the extra `fleet` is not installed: pip install maat[fleet]")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()


def alive():
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_nodes_one_slow_then_one_lost(cluster, tmp_path):
    if reason := available("cpu"):
        pytest.skip(f"no control groups to slow one of the nodes by: {reason}")
    criteria, runs = tmp_path / "criteria", tmp_path / "runs"
    environment = {**os.environ, "MAAT_SELECTION": "gate"}
    for mode in ["--record"] * 5 + ["--learn"]:
        arguments = [SELECTION, mode, "--runs", str(tmp_path / "learned"), "--criteria", str(criteria), "-q"]
        subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=fleet.ROOT, check=True, env=environment)
    slow = cluster.add_node(num_cpus=1, env_vars={"PYTEST_ADDOPTS": "--fault=cpu_quota(0.3)"})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    arguments = [SELECTION, "--gate", "--criteria", str(criteria), "-p", "no:cacheprovider"]
    # One after the other: they share the processors that they measure.
    found = fleet.gate_fleet(arguments, runs, address=cluster.address, at_once=1, pairs=True, seconds=0.3, report=print)
    print("\n".join(found.lines()))
    assert found.lost == ()
    by_fault = {bool(node.run.facts["fault"]): [] for node in found.nodes}
    for node in found.nodes:
        by_fault[bool(node.run.facts["fault"])].append(node)
    (ill,), healthy = by_fault[True], by_fault[False]
    assert slow.node_id[:6] in ill.name
    assert (ill.status, ill.verdict, ill.suspects[:1]) == (10, "defect", ("compute",))
    assert len(healthy) == 2
    assert all(node.status in {0, 11} for node in healthy)  # 11 where others use this machine
    assert len({node.run.machine.node for node in found.nodes}) == 3
    assert len(read_runs(runs).runs) == 3
    assert "test_peak" in ill.junit
    assert found.links is not None
    assert len(found.names) == 3
    assert found.unreachable == ()

    third = next(node for node in cluster.list_all_nodes() if not node.head and node is not slow)

    def lose(line):
        print(line)
        if third.node_id[:6] in line and "started" in line:
            cluster.remove_node(third, allow_graceful=False)

    again = fleet.gate_fleet(arguments, tmp_path / "again", address=cluster.address, at_once=1, report=lose)
    print("\n".join(again.lines()))
    ((name, reason),) = again.lost
    assert third.node_id[:6] in name
    assert reason
    assert len(again.nodes) == 2
    assert len(read_runs(tmp_path / "again").runs) == 2
    assert again.status == 10
    assert to_table(read_runs(tmp_path / "again").runs).num_rows > 0
