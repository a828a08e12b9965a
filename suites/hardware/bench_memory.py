"""Memory: the bandwidth of streams, through all cores, one core and each NUMA node, and latency level by
level.

Every kernel's result is compared, element by element, with numpy's before it is timed.
"""

import pytest

from systems.anubis.probes import memory, topology

pytestmark = pytest.mark.component("memory")


@pytest.fixture(scope="module")
def stream():
    return memory.Stream()


def timed(measure, arrays, kernel, metric=None):
    arrays.verify(kernel)
    measure(lambda: arrays.run(kernel), work=arrays.bytes(kernel), unit="B/s", metric=metric)


@pytest.mark.parametrize("kernel", memory.KERNELS)
def test_stream(measure, stream, kernel):
    timed(measure, stream, kernel)


def test_triad_one_core(measure):
    timed(measure, memory.Stream(topology.cores()[:1]), "triad")


def test_triad_each_node(measure):
    nodes = topology.nodes()
    if len(nodes) < 2:
        pytest.skip("one NUMA node: the same as all cores")
    for node, cpus in nodes.items():
        timed(measure, memory.Stream(cpus), "triad", metric=f"node{node}")


@pytest.mark.slow
def test_triad_peers(measure, stream):
    try:
        reference = memory.ReferenceTriad(stream.elements)
    except memory.NoProbe as reason:
        pytest.skip(str(reason))
    with reference:
        stream.b[:], stream.c[:] = reference.b, reference.c
        speed = measure.versus(
            {"ours": lambda: stream.run("triad"), "reference": reference.run},
            work=stream.bytes("triad"),
            unit="B/s",
        )
    speed.over("reference").at_least(0.9)


@pytest.fixture(scope="module")
def cpu():
    return topology.cores()[0]


def test_latency(measure, cpu):
    try:
        for region in memory.latency_regions(cpu):
            measure.record(region.name, memory.Chase(region, cpu).latency(), "s")
    except memory.NoProbe as reason:
        pytest.skip(str(reason))


def test_tlb(measure, cpu):
    try:
        measure.record("latency", memory.Chase(memory.tlb_region(), cpu).latency(), "s")
    except memory.NoProbe as reason:
        pytest.skip(str(reason))


def test_mbw(measure):
    try:
        measure.record("memcpy", memory.mbw(), "B/s")
    except memory.NoProbe as reason:
        pytest.skip(str(reason))


@pytest.mark.slow
def test_stress_ng(measure):
    try:
        measure.record("stream", memory.stress_ng(len(topology.cores())), "B/s")
    except memory.NoProbe as reason:
        pytest.skip(str(reason))
