"""Network probes: TCP over loopback and over a namespace pair, gloo collectives, and all pairs of given
addresses.

Traffic stays on 127.0.0.0/8 and in namespaces made here, except where `link.probe`, `link.serve` or
`pairwise` are given other addresses. The far ends are processes of their own, which end with this one,
however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from systems.anubis.probes import link
from systems.anubis.probes.link import (
    CorruptTransfer,
    Link,
    LinkError,
    LinkRefused,
    LinkTimeout,
    probe,
    serve,
)
from systems.anubis.probes.namespaces import VethPair, available, call_inside, veth_pair

__all__ = [
    "Address",
    "Collective",
    "CorruptTransfer",
    "Link",
    "LinkError",
    "LinkRefused",
    "LinkTimeout",
    "available",
    "collectives",
    "loopback",
    "over_veth",
    "pairwise",
    "probe",
    "responder",
    "rounds",
    "serve",
    "two_cpus",
    "veth_pair",
]

Address = tuple[str, int]

_START = 20.0  # seconds within which a far end must be listening
_WRONG_RESULT = 3  # exit status of collective.py


def two_cpus() -> tuple[int | None, int | None]:
    """A CPU for each end of a local link, two different ones where this process may use two, else (None,
    None).

    Without it the scheduler puts the ends now on one core, now on two, and the figures have two modes.
    """
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[0], cpus[1]) if len(cpus) > 1 else (None, None)


@contextmanager
def responder(
    host: str = "127.0.0.1", *, token: bytes, namespace: str | None = None, cpu: int | None = None
) -> Iterator[Address]:
    """A far end (`link.serve`) in a process of its own; yields its (host, port). Raises LinkError if it
    does not start.

    It ends when the context does, or when this process dies: its standard input closes then.
    """
    command = [sys.executable, "-I", "-S", str(Path(link.__file__).resolve()), host]
    if namespace is not None:
        command = ["ip", "netns", "exec", namespace, *command]
    if cpu is not None:
        command += ["--cpu", str(cpu)]
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(token.hex() + "\n")
            process.stdin.flush()
            line = _first_line(process.stdout, _START)
            if not line:
                process.kill()
                process.wait()
                complaints.seek(0)
                raise LinkError(
                    f"the far end at {host} did not start: {complaints.read().strip() or 'no answer'}"
                )
            yield host, int(line)
        finally:
            _end(process)


def _first_line(stream: IO[str], seconds: float) -> str:
    """The first line, or "" when none came within `seconds`. A far end prints a single short line, so that it
    arrives whole.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline().strip() if selector.select(seconds) else ""


def _end(process: subprocess.Popen[str]) -> None:
    """End a child by closing its standard input; kill it when that takes more than a second."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            process.stdin.close()
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def loopback(*, seconds: float = 1.0) -> Link:
    """The link from this process to another over 127.0.0.1, each on a CPU of its own. Raises as `probe`
    does.
    """
    token, (here, there) = secrets.token_bytes(link.TOKEN_BYTES), two_cpus()
    with responder(token=token, cpu=there) as (host, port):
        return call_inside(None, lambda: probe(host, port, token=token, seconds=seconds), cpu=here)


def over_veth(pair: VethPair, *, seconds: float = 1.0) -> Link:
    """The link from namespace `pair.a` to `pair.b`, each end on a CPU of its own.

    Raises as `probe` does, and NamespaceError.
    """
    token, (here, there) = secrets.token_bytes(link.TOKEN_BYTES), two_cpus()
    with responder(pair.address_b, token=token, namespace=pair.b, cpu=there) as (host, port):
        return call_inside(pair.a, lambda: probe(host, port, token=token, seconds=seconds), cpu=here)


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """A tournament by the circle method: every pair of `nodes` once, in rounds of disjoint pairs.

    nodes - 1 rounds of nodes / 2 pairs; nodes rounds of (nodes - 1) / 2 when odd, where one rests in each.
    """
    circle: list[int | None] = [*range(nodes)]
    if nodes % 2:
        circle.append(None)
    half = len(circle) // 2
    tournament = []
    for _ in range(len(circle) - 1):
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        tournament.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return tournament if nodes > 1 else []


def pairwise(
    addresses: Sequence[Address], *, token: bytes, seconds: float = 1.0
) -> dict[tuple[int, int], Link | LinkError]:
    """Links between all pairs of far ends that run at `addresses` and share `token`, in rounds of disjoint
    pairs.

    The lower-numbered end of each pair probes the other, so that this process is in no link's way. A pair
    that cannot be measured has its error as its value: one broken link hides no other. Raises ValueError on
    fewer than two addresses, or on one given twice.
    """
    if len(addresses) < 2 or len(set(addresses)) != len(addresses):
        raise ValueError(f"addresses {list(addresses)}: expected two at least, each once")

    def measure(pair: tuple[int, int]) -> Link | LinkError:
        try:
            return link.relay(addresses[pair[0]], addresses[pair[1]], token=token, seconds=seconds)
        except LinkError as error:
            return error

    links: dict[tuple[int, int], Link | LinkError] = {}
    with ThreadPoolExecutor(len(addresses) // 2, thread_name_prefix="maat-pair") as pool:
        for pairs in rounds(len(addresses)):
            links.update(zip(pairs, pool.map(measure, pairs), strict=True))
    return links


@dataclass(frozen=True)
class Collective:
    """One collective, timed. ranks: processes; size: bytes, as nccl-tests counts them (the buffer of an
    all-reduce and of an all-to-all, the output of an all-gather); seconds: of each iteration, in the
    slowest rank.
    """

    name: str
    ranks: int
    size: int
    seconds: tuple[float, ...]

    @property
    def bus_bandwidth(self) -> tuple[float, ...]:
        """Bytes per second and iteration that each rank's link carries: size / seconds times 2(n-1)/n for an
        all-reduce, (n-1)/n for the others (nccl-tests, doc/PERFORMANCE.md).
        """
        factor = (2 if self.name == "all_reduce" else 1) * (self.ranks - 1) / self.ranks
        return tuple(self.size / seconds * factor for seconds in self.seconds)


def collectives(
    *, ranks: int = 2, size: int = 16 << 20, iterations: int = 24, limit: float = 60.0
) -> dict[str, Collective]:
    """all_reduce, all_gather and all_to_all of `size` bytes of float32 by gloo on 127.0.0.1, every result
    compared.

    Raises CorruptTransfer on a wrong result, LinkTimeout after `limit` seconds, LinkError when a rank fails,
    ValueError when `size` is no multiple of 4 * ranks.
    """
    if ranks < 2 or size < 1 or size % (4 * ranks) or iterations < 1:
        raise ValueError(
            f"ranks {ranks}, size {size}, iterations {iterations}: expected two ranks at least, a size that is "
            "a multiple of 4 * ranks bytes, and one iteration at least"
        )
    with tempfile.TemporaryDirectory(prefix="maat-collective-") as name:
        folder = Path(name)
        _run_ranks(folder, ranks, size, iterations, limit)
        timed = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    return {
        name: Collective(
            name, ranks, size, tuple(max(each) for each in zip(*(rank[name] for rank in timed), strict=True))
        )
        for name in timed[0]
    }


def _run_ranks(folder: Path, ranks: int, size: int, iterations: int, limit: float) -> None:
    script = str(Path(__file__).resolve().with_name("collective.py"))
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    deadline = time.monotonic() + limit
    processes: list[subprocess.Popen[str]] = []
    try:
        for rank in range(ranks):
            # -P: the folder of the script must not shadow other libraries' modules.
            command = [sys.executable, "-P", script, *map(str, (folder, rank, ranks, size, iterations))]
            with (folder / f"{rank}.err").open("w") as complaints:
                processes.append(
                    subprocess.Popen(
                        command, stdin=subprocess.PIPE, stderr=complaints, env=environment, text=True
                    )
                )
        while any(process.poll() is None for process in processes) and not any(
            p.returncode for p in processes
        ):
            if time.monotonic() > deadline:
                raise LinkTimeout(f"{ranks} ranks did not end their collectives within {limit} s")
            time.sleep(0.02)
        for rank, process in enumerate(processes):
            if process.returncode:
                complaint = (folder / f"{rank}.err").read_text().strip()[-2000:]
                wrong = process.returncode == _WRONG_RESULT
                raise (CorruptTransfer if wrong else LinkError)(
                    f"rank {rank} of {ranks} ended with status {process.returncode}: {complaint}"
                )
    finally:
        for process in processes:
            _end(process)
