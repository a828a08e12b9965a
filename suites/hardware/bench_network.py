"""The network stack: TCP over loopback and over a namespace pair, and gloo collectives, every result checked."""

import json
import shutil
import socket
import subprocess

import numpy as np
import pytest

from systems.anubis.probes import network

pytestmark = pytest.mark.component("network")


def typical(latencies):
    """Medians of 16 in a row: a preemption of either end, which says nothing of the link, does not move them."""
    return [np.median(some) for some in np.array_split(latencies, max(1, len(latencies) // 16))]


def record(measure, link):
    measure.record("receive", link.receive, "B/s")
    measure.record("send", link.send, "B/s")
    measure.record("round_trip", typical(link.round_trip), "s")
    measure.record("connect", typical(link.connect), "s")


def test_loopback(measure):
    record(measure, network.loopback(seconds=1.5 if measure.full else 0.2))


def test_veth(measure):
    reason = network.available()
    if reason:
        pytest.skip(reason)
    with network.veth_pair() as pair:
        record(measure, network.over_veth(pair, seconds=1.5 if measure.full else 0.2))


def test_collectives(measure):
    """Bus bandwidth of two ranks. One test, since the start of the ranks costs more than the three together."""
    done = network.collectives(iterations=24 if measure.full else 3)
    for name, collective in done.items():
        measure.record(name, collective.bus_bandwidth, "B/s")


def iperf3(seconds):
    """Bytes per second that iperf3 receives over loopback, its ends on the CPUs that the probe's are on."""
    here, there = network.two_cpus()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server = subprocess.Popen(
        ["iperf3", "--server", "--one-off", "--bind", "127.0.0.1", "--port", port, "--forceflush"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while "listening" not in (line := server.stdout.readline()):
            assert line, "iperf3 --server ended before it listened"
        command = ["iperf3", "--client", "127.0.0.1", "--port", port, "--time", str(seconds), "--json"]
        command += ["--affinity", f"{here},{there}"] if here is not None else []
        run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        return json.loads(run.stdout)["end"]["sum_received"]["bits_per_second"] / 8
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
def test_beside_iperf3(measure):
    """Interleaved with iperf3, which also sends from the near end: the probe must not be what limits the stream."""
    if shutil.which("iperf3") is None:
        pytest.skip("iperf3 is not installed")
    ours, peer = [], []
    for turn in range(8 if measure.full else 1):
        for tool in ("ours", "iperf3") if turn % 2 else ("iperf3", "ours"):
            if tool == "ours":
                # Chunks are of one size, so that all bytes over all seconds are their harmonic mean.
                ours.append(1 / np.mean(1 / np.array(network.loopback(seconds=1).send)))
            else:
                peer.append(iperf3(1))
    ratios = np.array(ours) / np.array(peer)
    measure.record("over_iperf3", ratios, "1", better="higher")
    if measure.full:
        assert np.median(ratios) >= 0.9, f"{np.median(ratios):.2f} of iperf3's rate, expected at least 0.9"
