"""A GPU part by part: launches, memory, copies, matrix products, links to others, health."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from systems.anubis.probes import gpu, gpu_collectives, gpu_health

pytestmark = [pytest.mark.component("gpu"), pytest.mark.gpu]

MIB = 2**20
SIZES = {"fp64": 4096, "fp32": 4096}


@pytest.fixture
def gpus() -> int:
    """How many GPUs there are; skips with the reason where one has none to pair with."""
    if reason := gpu.unavailable(count=2):
        pytest.skip(reason)
    return torch.cuda.device_count()


def test_launch(measure: Any) -> None:
    found = gpu.launches()
    measure.record("asynchronous", found.asynchronous, "s")
    measure.record("round_trip", found.round_trip, "s")
    measure.record("graph_replay", found.replayed, "s")


@pytest.mark.parametrize("kernel", ["copy", "scale", "add", "triad"])
def test_stream(measure: Any, kernel: str) -> None:
    pytest.importorskip("triton")
    measure.record("throughput", gpu.stream_bandwidth(kernel), "B/s")


@pytest.mark.parametrize("device", ["cuda"])
@pytest.mark.parametrize("kernel", ["copy", "scale", "add", "triad"])
def test_stream_beside_torch(measure: Any, device: str, kernel: str) -> None:
    pytest.importorskip("triton")
    from systems.anubis.probes import gpu_kernels

    elements = 256 * MIB
    first, second = gpu.stream_operands(elements, torch.float32, device)
    out = torch.empty_like(first)
    speed = measure.versus(
        {
            "triton": lambda: gpu_kernels.stream(kernel, first, second, out, 3.0),
            "torch": lambda: gpu.stream_reference(kernel, first, second, 3.0),
        },
        work=gpu.stream_bytes(kernel, elements, torch.float32),
        unit="B/s",
    )
    speed.over("torch", of="triton").at_least(0.95)


@pytest.mark.parametrize("mebibytes", [8, 1024], ids=["l2", "hbm"])
def test_latency(measure: Any, mebibytes: int) -> None:
    pytest.importorskip("triton")
    measure.record("load", gpu.load_latency(mebibytes * MIB), "s")


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "pageable"])
@pytest.mark.parametrize("direction", ["h2d", "d2h"])
def test_copy(measure: Any, direction: gpu.Direction, pinned: bool) -> None:
    measure.record("throughput", gpu.copy_bandwidth(direction, pinned=pinned), "B/s")


def test_device_copy(measure: Any) -> None:
    measure.record("throughput", gpu.copy_bandwidth("d2d", nbytes=1024 * MIB), "B/s")


def test_bidirectional_copy(measure: Any) -> None:
    measure.record("throughput", gpu.bidirectional_bandwidth(), "B/s")


def test_peer_copy(measure: Any, gpus: int) -> None:
    rates = gpu.peer_bandwidths()
    measure.record("throughput", rates[~np.isnan(rates)], "B/s")


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_collective(measure: Any, gpus: int, collective: str) -> None:
    rates = gpu_collectives.bus_bandwidth(collective, ranks=gpus, nbytes=256 * MIB)
    measure.record("bus_bandwidth", rates, "B/s")


@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8"])
def test_gemm(measure: Any, precision: str) -> None:
    if reason := gpu.gemm_unsupported(precision):
        pytest.skip(reason)
    rates = gpu.gemm_throughput(precision, SIZES.get(precision, 8192))
    measure.record("throughput", rates, gpu.PRECISIONS[precision].unit)


def test_overlap(measure: Any) -> None:
    measure.record("hidden", gpu.gemm_copy_overlap(), "1", better="higher")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_burn(measure: Any, precision: str) -> None:
    product = gpu.gemm(precision, SIZES.get(precision, 8192))
    burn = gpu.burn(product, seconds=10 if measure.full else 0.5)
    measure.record("throughput", burn.rates, product.unit)
    measure.digest("product", burn.product)
    assert burn.mismatches == (), f"silent data corruption: {burn.mismatches}"


def test_health(measure: Any) -> None:
    """The counters are read while every GPU works: an idle one slows its links and hides throttling."""
    if reason := gpu_health.health_unavailable():
        pytest.skip(reason)
    working = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    for device in working:
        gpu.queue_products(gpu.gemm("bf16", 8192, device=device), seconds=2)
    facts = gpu_health.read_health(loaded={gpu.uuid(device) for device in working})
    found = [finding for each in facts for finding in gpu_health.health_findings(each)]
    defects = [f"GPU {each.gpu}, {each.rule}: {each.message}" for each in found if each.severity == "defect"]
    measure.digest("defects", "\n".join(defects))
    assert not defects, "\n".join(defects)
