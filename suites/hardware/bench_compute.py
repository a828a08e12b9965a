"""Compute: matrix products by type and size, convolution, a Linpack-like solve, and the arithmetic units' peak.

Every result is verified against an independent computation before it is timed, and once more after.
"""

import pytest

from systems.anubis.probes import compute

pytestmark = pytest.mark.component("compute")

# fp16 is small: a CPU without half-precision units computes it a thousand times slower than fp32.
PRODUCTS = [
    ("fp64", 1024),
    ("fp32", 1024),
    ("fp32", 2048),
    ("bf16", 2048),
    ("fp16", 256),
    ("int8", 2048),
]


def build(make, *arguments, **options):
    try:
        return make(*arguments, **options)
    except compute.NoProbe as reason:
        pytest.skip(str(reason))


def timed(measure, workload, metric=None):
    workload.verify(workload.run())
    workload.verify(measure(workload.run, work=workload.work, unit=workload.unit, metric=metric))


@pytest.mark.parametrize(("dtype", "n"), PRODUCTS)
def test_gemm(measure, device, dtype, n):
    if device != "cpu" and n < 1024:
        pytest.skip("too small to say anything about a GPU")
    timed(measure, build(compute.gemm, n, dtype, device))


@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
def test_gemm_one_core(measure, dtype):
    with compute.one_core():
        timed(measure, build(compute.gemm, 1024, dtype))


def test_gemm_batched(measure, device):
    timed(measure, build(compute.gemm, 256, "fp32", device, batch=64))


def test_conv(measure, device):
    timed(measure, build(compute.conv, device=device))


def test_linpack(measure):
    timed(measure, build(compute.linpack, 1536))


@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
def test_peak(measure, dtype):
    peak = build(compute.Peak, dtype)
    timed(measure, peak.workload(), metric="all_cores")
    measure.record("each_core", peak.rates(), "FLOP/s")


@pytest.mark.slow
def test_gemm_peers(measure):
    ours, peer = build(compute.gemm, 1024, "fp32"), build(compute.numpy_gemm, 1024, "fp32")
    for workload in (ours, peer):
        workload.verify(workload.run())
    speed = measure.versus(
        {"torch": ours.run, "numpy": peer.run},
        work=ours.work,
        unit="FLOP/s",
        # Sums of 1024 products in another order: the entries are of size 32, and cancel down to anything.
        check=lambda a, b: abs(a.numpy() - b).max() < 1e-3,
    )
    speed.over("numpy")


@pytest.mark.slow
def test_linpack_peers(measure):
    ours, peer = build(compute.linpack, 1024), build(compute.linpack, 1024, "scipy")
    speed = measure.versus(
        {"torch": ours.run, "scipy": peer.run},
        work=ours.work,
        unit="FLOP/s",
        check=lambda a, b: (ours.verify(a), peer.verify(b)),
    )
    speed.over("scipy")
