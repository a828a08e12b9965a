"""A fleet validated by Ray: one gate per node, what they found gathered, and the network between them pair by pair.

    report = gate_fleet(["suites/hardware"], Path("runs"))        # the Ray cluster that this machine belongs to
    report.nodes[0].verdict, report.lost, report.links

Each node runs pytest as a process of its own, in the project's folder there. A node that dies or does not answer in
time is reported as lost, and what the others found is kept. Runs are also judged by each other (`peers`): criteria
learned from this very fleet, which find its odd node even where nothing was learned before. Ray is the extra `fleet`;
without it, run the gate anywhere and copy the run files into one folder.

    FleetError(RuntimeError)     no Ray, no cluster, or no node of it answered
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from systems.anubis.criteria import StoredCriterion
from systems.anubis.judging import EXIT_DEFECT, EXIT_UNSURE, exit_status, judge, verdict_of
from systems.anubis.learning import learn_criteria
from systems.anubis.links import Attribution, UnusablePairs, attribute
from systems.anubis.probes import network
from systems.anubis.probes.link import TOKEN_BYTES, Link
from systems.anubis.records import Run, Runs, read_run_file, write_run
from systems.anubis.suspects import is_metric, rank_suspects

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 1800.0
TAIL = 4000  # characters of a failed gate's output that are kept

_VERDICTS = {0: "pass", 1: "failed", EXIT_DEFECT: "defect", EXIT_UNSURE: "contended", 12: "new"}


class FleetError(RuntimeError):
    """No Ray, no cluster, or no node of it answered."""


@dataclass(frozen=True)
class NodeResult:
    """What one node gave. name: its host name or address; status: the gate's exit status; peers: its verdict beside
    the rest of this fleet, "" where that was too small to tell; suspects: components, most suspect first.
    """

    name: str
    status: int
    verdict: str
    peers: str
    suspects: tuple[str, ...]
    run: Run | None
    junit: str
    output: str


@dataclass(frozen=True)
class FleetReport:
    """nodes: those that answered; lost: (name, reason) of those that did not; names and links: of the pairwise
    rounds, None where they were not run; unreachable: pairs without a measurement, with the reason.
    """

    nodes: tuple[NodeResult, ...]
    lost: tuple[tuple[str, str], ...]
    names: tuple[str, ...] = ()
    links: Attribution | None = None
    unreachable: tuple[tuple[str, str, str], ...] = ()

    @property
    def status(self) -> int:
        """The fleet's exit status: the worst of its nodes'; a lost node or pair was not validated (11)."""
        statuses = {node.status for node in self.nodes}
        if self.links is not None and (self.links.slow_nodes or self.links.slow_links):
            statuses.add(EXIT_DEFECT)
        if any(node.peers == "defect" for node in self.nodes):
            statuses.add(EXIT_DEFECT)
        if self.lost or self.unreachable:
            statuses.add(EXIT_UNSURE)
        order = [2, 3, 4, 5, 1, EXIT_DEFECT, 12, EXIT_UNSURE, 0]
        return min(statuses, key=lambda status: order.index(status) if status in order else -1, default=EXIT_UNSURE)

    def lines(self) -> list[str]:
        """One table for a terminal."""
        lines = [f"{'node':24} {'verdict':10} {'beside its peers':17} suspects"]
        lines += [
            f"{node.name:24} {node.verdict:10} {node.peers or '-':17} {', '.join(node.suspects)}" for node in self.nodes
        ]
        lines += [f"{name:24} LOST       {reason}" for name, reason in self.lost]
        if self.links is not None:
            for i in self.links.slow_nodes:
                typical = float(np.nanmedian(self.links.node))
                rate = self.links.node[i]
                lines.append(f"network: {self.names[i]} is slow to all: {rate:.3g} B/s, the typical node {typical:.3g}")
            for i, j in self.links.slow_links:
                lines.append(f"network: the link between {self.names[i]} and {self.names[j]} is slow, both are well")
            if not (self.links.slow_nodes or self.links.slow_links):
                lines.append(f"network: {len(self.names)} nodes, every pair carries what its nodes do")
        lines += [f"network: {a} to {b} not measured: {reason}" for a, b, reason in self.unreachable]
        return lines


def gate_fleet(
    arguments: Sequence[str],
    runs: Path,
    *,
    address: str | None = None,
    timeout: float = TIMEOUT,
    at_once: int = 0,
    pairs: bool = False,
    seconds: float = 1.0,
    folder: Path | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> FleetReport:
    """Run `pytest` with `arguments` on every live node of a Ray cluster, gather the run files into `runs`.

    arguments  pytest's, such as ["suites/hardware", "--gate"]; run files go to a folder of their own on each node
    address    the cluster's, by default Ray's own choice (RAY_ADDRESS, else the one on this machine)
    timeout    seconds that a node has; then it is lost
    at_once    nodes that run at a time, 0: all. Nodes that share what they measure (a switch, a disk) need 1
    pairs      also measure all pairs of nodes over TCP, `seconds` each way, in rounds of disjoint pairs
    folder     the project's folder on the nodes, by default as here

    Raises FleetError.
    """
    ray, alive = _connected(address)
    names = _names(alive)
    root = str(folder or ROOT)
    remote = ray.remote(num_cpus=0, max_retries=0)(_gate_here)
    waiting = list(range(len(alive)))
    running: dict[Any, tuple[int, float]] = {}
    answers: dict[int, dict[str, Any]] = {}
    lost: dict[int, str] = {}
    while waiting or running:
        while waiting and (not at_once or len(running) < at_once):
            number = waiting.pop(0)
            reference = remote.options(scheduling_strategy=_on(alive[number])).remote(list(arguments), root)
            running[reference] = (number, time.monotonic() + timeout)
            report(f"{names[number]}: started")
        ready, _ = ray.wait(list(running), timeout=0.5)
        for reference in ready:
            number, _ = running.pop(reference)
            try:
                answers[number] = ray.get(reference)
                report(f"{names[number]}: exit status {answers[number]['status']}")
            except ray.exceptions.RayError as error:
                lost[number] = _reason(error)
                report(f"{names[number]}: lost: {lost[number]}")
        for reference, (number, deadline) in list(running.items()):
            if time.monotonic() > deadline:
                del running[reference]
                ray.cancel(reference, force=True)
                lost[number] = f"no answer within {timeout:g} s"
                report(f"{names[number]}: lost: {lost[number]}")
    results = [_result(names[number], answers[number]) for number in sorted(answers)]
    results = _beside_peers(_told_apart(results, [alive[number]["NodeID"] for number in sorted(answers)]))
    for result in results:
        if result.run is not None:
            write_run(result.run, runs)
    found = FleetReport(tuple(results), tuple((names[n], reason) for n, reason in sorted(lost.items())))
    if not pairs:
        return found
    left = [number for number in range(len(alive)) if number not in lost]
    return _with_links(ray, found, [alive[n] for n in left], [names[n] for n in left], seconds, report)


def _connected(address: str | None) -> tuple[Any, list[dict[str, Any]]]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise FleetError("a fleet needs Ray, which is not installed: pip install 'maat[fleet]'") from error
    if not ray.is_initialized():
        try:
            ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise FleetError(
                f"no Ray cluster at {address or 'this machine'}: {str(error).splitlines()[0]}; start one with "
                "`ray start --head`, and `ray start --address HEAD:6379` on every other node"
            ) from error
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"])
    if not alive:
        raise FleetError("the Ray cluster has no live node")
    return ray, alive


def _names(alive: Iterable[dict[str, Any]]) -> list[str]:
    """Node names as people know them; those that several share (nodes of one machine) with the node's id."""
    hosts = [node.get("NodeName") or node["NodeManagerAddress"] for node in alive]
    return [
        host if hosts.count(host) == 1 else f"{host}/{node['NodeID'][:6]}"
        for host, node in zip(hosts, alive, strict=True)
    ]


def _on(node: dict[str, Any]) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _gate_here(arguments: list[str], root: str) -> dict[str, Any]:
    """On a node: the gate in a process of its own; what it wrote, as bytes. Ends it when Ray ends this task."""
    with tempfile.TemporaryDirectory(prefix="maat-fleet-") as folder:
        junit = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", *arguments, "--runs", folder, f"--junitxml={junit}", "-q"]
        environment = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL
        )
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.parquet"))}
        return {
            "status": done.returncode,
            "files": files,
            "junit": junit.read_text(encoding="utf-8") if junit.exists() else "",
            "output": (done.stdout + done.stderr)[-TAIL:],
        }


def _result(name: str, answer: dict[str, Any]) -> NodeResult:
    """A node's newest run: the gate may have learned from some before it."""
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="maat-fleet-") as folder:
        for filename, content in answer["files"].items():
            path = Path(folder) / Path(filename).name
            path.write_bytes(content)
            runs += read_run_file(path)
    run = max(runs, key=lambda run: run.started, default=None)
    suspects = tuple(str(component) for component, _ in run.facts.get("suspects", ())) if run else ()
    status = int(answer["status"])
    verdict = str(run.facts.get("verdict", "")) if run else ""
    return NodeResult(
        name, status, verdict or _VERDICTS.get(status, "invalid"), "", suspects, run, answer["junit"], answer["output"]
    )


def _told_apart(results: Sequence[NodeResult], ids: Sequence[str]) -> list[NodeResult]:
    """Several Ray nodes on one machine have one fingerprint; each gets a node id of its own, made of both."""
    machines = [result.run.machine.node if result.run else "" for result in results]
    told = []
    for result, machine, name in zip(results, machines, ids, strict=True):
        run = result.run
        if run is not None and machines.count(machine) > 1:
            node = hashlib.sha256(f"{machine}{name}".encode()).hexdigest()[: len(machine)]
            run = replace(run, machine=replace(run.machine, node=node))
        told.append(replace(result, run=run))
    return told


def _beside_peers(results: Sequence[NodeResult]) -> list[NodeResult]:
    """Judge each run by criteria learned from all of its kind and stack."""
    judged = []
    runs = tuple(result.run for result in results if result.run is not None)
    learned: dict[tuple[str, str], Mapping[str, StoredCriterion]] = {}
    for result in results:
        if result.run is None:
            judged.append(result)
            continue
        machine = result.run.machine
        if (machine.kind, machine.stack) not in learned:
            alike = Runs(tuple(run for run in runs if run.machine.kind == machine.kind))
            learned[machine.kind, machine.stack] = learn_criteria(alike, machine.stack).criteria
        criteria = learned[machine.kind, machine.stack]
        rows = [
            judge(replace(row, status="recorded", similarity=None, alpha=None, margin=None), criteria.get(row.id))
            for row in result.run.rows
            if is_metric(row)
        ]
        found = {row.status for row in rows} - {"new", "recorded"}
        verdict = verdict_of(exit_status(0, False, found, "gate"), found, "gate") if found else ""
        suspects = result.suspects or tuple(suspect.component for suspect in rank_suspects(rows))
        judged.append(replace(result, peers=verdict, suspects=suspects))
    return judged


# --- the network between nodes -------------------------------------------------------------------------------


class _FarEnd:
    """On a node: a far end of `probes.link` at the node's address, as long as this object lives."""

    def __init__(self, token: bytes) -> None:
        import ray

        self._context = network.responder(ray.util.get_node_ip_address(), token=token)
        self._address = self._context.__enter__()

    def address(self) -> tuple[str, int]:
        return self._address

    def stop(self) -> None:
        self._context.__exit__(None, None, None)


def _with_links(
    ray: Any,
    found: FleetReport,
    nodes: Sequence[dict[str, Any]],
    names: Sequence[str],
    seconds: float,
    report: Callable[[str], object],
) -> FleetReport:
    token = secrets.token_bytes(TOKEN_BYTES)
    far_ends = [ray.remote(num_cpus=0)(_FarEnd).options(scheduling_strategy=_on(node)).remote(token) for node in nodes]
    addresses, kept, lost = [], [], list(found.lost)
    for name, end in zip(names, far_ends, strict=True):
        try:
            addresses.append(tuple(ray.get(end.address.remote(), timeout=60)))
            kept.append(name)
        except ray.exceptions.RayError as error:
            lost.append((name, _reason(error)))
    unreachable: list[tuple[str, str, str]] = []
    links = None
    if len(addresses) >= 2:
        report(f"network: {len(addresses)} nodes in {len(network.rounds(len(addresses)))} rounds")
        B = np.full((len(addresses), len(addresses)), np.nan)
        for (i, j), link in network.pairwise(addresses, token=token, seconds=seconds).items():
            if isinstance(link, Link):
                B[i, j], B[j, i] = float(np.median(link.send)), float(np.median(link.receive))
            else:
                unreachable.append((kept[i], kept[j], str(link)))
        try:
            links = attribute(B)
        except UnusablePairs as error:
            report(f"network: {error}")
    for end in far_ends:
        try:
            ray.get(end.stop.remote(), timeout=10)
        except ray.exceptions.RayError:
            report("network: a far end was gone before it was stopped")
        ray.kill(end)
    return replace(found, lost=tuple(lost), names=tuple(kept), links=links, unreachable=tuple(unreachable))


# --- the command line ----------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m systems.anubis fleet`."""
    parser.description = (
        "Run the gate on every node of a Ray cluster (the extra `fleet`), gather the run files, judge each node by its "
        "criteria and beside its peers, and print one table. A lost node is reported, the others' runs are kept. What "
        "follows `--` goes to pytest."
    )
    parser.add_argument("selection", nargs="+", metavar="PYTEST", help="what to run, such as suites/hardware")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="for run files (%(default)s)")
    parser.add_argument("--record", action="store_true", help="record only, and judge beside peers: no criteria needed")
    parser.add_argument("--address", metavar="HOST:PORT", help="of the Ray cluster")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, metavar="S", help="seconds a node has (%(default)s)")
    parser.add_argument("--at-once", type=int, default=0, metavar="N", help="nodes that run at a time (default: all)")
    parser.add_argument("--pairs", action="store_true", help="also measure the network between all pairs of nodes")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="the project's folder on the nodes (as here)")
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    found = gate_fleet(
        [*options.selection, "--record" if options.record else "--gate"],
        options.runs,
        address=options.address,
        timeout=options.timeout,
        at_once=options.at_once,
        pairs=options.pairs,
        folder=options.folder,
        report=lambda line: print(line, flush=True),
    )
    print("\n".join(found.lines()))
    for node in found.nodes:
        if node.status not in {0, EXIT_DEFECT, EXIT_UNSURE, 12}:
            print(f"--- {node.name}, exit status {node.status}:\n{node.output}", file=sys.stderr)
    return found.status


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m systems.anubis.fleet`."""
    parser = argparse.ArgumentParser(prog="python -m systems.anubis.fleet")
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        return int(options.command(options))
    except FleetError as error:
        print(f"anubis fleet: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
