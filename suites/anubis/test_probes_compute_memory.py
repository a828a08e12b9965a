"""The compute and memory probes: right results, honest counts, and wrong results that they must not overlook.

Oracles are numpy in float64 and Python's integers, written out here; the compiled kernels and their torch
stand-ins are held to the same ones.
"""

import ctypes
import mmap
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from systems import native
from systems.anubis.probes import compute, memory, topology


@pytest.fixture(scope="session")
def c_compiler():
    try:
        return native.compiler("c")
    except native.NoCompiler as error:
        pytest.skip(str(error))


needs_compiler = pytest.mark.usefixtures("c_compiler")
quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ORACLES = {
    "copy": lambda a, b, c: b,
    "scale": lambda a, b, c: 3.0 * b,
    "add": lambda a, b, c: b + c,
    "triad": lambda a, b, c: b + 3.0 * c,
    "read1_write1": lambda a, b, c: -1.0 * a,
    "read3_write1": lambda a, b, c: a + b * c,
}


# ---------------------------------------------------------------------------------------------------- streams

finite = st.floats(-1e100, 1e100, allow_subnormal=True)


@needs_compiler
@pytest.mark.parametrize("streaming", [False, True], ids=["ordinary", "streaming"])
@pytest.mark.parametrize("kernel", ORACLES)
@quick
@given(data=st.data(), elements=st.integers(1, 300), members=st.integers(1, 5))
def test_a_compiled_kernel_equals_numpy_bit_by_bit(kernel, streaming, data, elements, members):
    cpus = (topology.allowed_cpus() * members)[:members]
    stream = memory.Stream(cpus, elements)
    for array in (stream.a, stream.b, stream.c):
        array[:] = data.draw(hnp.arrays(np.float64, elements, elements=finite))
    expected = ORACLES[kernel](stream.a.copy(), stream.b, stream.c)
    untouched = stream.b.copy(), stream.c.copy()
    result = stream.run(kernel, streaming=streaming)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal((stream.b, stream.c), untouched)


@pytest.mark.parametrize("kernel", ORACLES)
@quick
@given(data=st.data(), elements=st.integers(1, 300))
def test_a_torch_kernel_equals_numpy(kernel, data, elements):
    stream = memory.Stream(elements=elements, compiled=False)
    for array in (stream.a, stream.b, stream.c):
        array[:] = data.draw(hnp.arrays(np.float64, elements, elements=finite))
    expected = ORACLES[kernel](stream.a.copy(), stream.b, stream.c)
    product = 3.0 * stream.c if kernel == "triad" else stream.b * stream.c
    result = stream.run(kernel)
    if kernel in {"triad", "read3_write1"}:
        # torch may round once (FMA) where numpy rounds product and sum: three roundings apart at most.
        slack = 2.0**-53 * (np.abs(product) + np.abs(result) + np.abs(expected)) + 2.0**-1073
        assert (np.abs(result - expected) <= slack).all()
    else:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
@quick
@given(st.integers(1, 10_000), st.integers(1, 4))
def test_the_sum_of_a_read_is_exact(compiled, elements, members):
    stream = memory.Stream((topology.allowed_cpus() * members)[:members], elements, compiled=compiled)
    values = np.random.default_rng(elements).integers(-(2**30), 2**30, elements)
    stream.a[:] = values
    assert stream.run("read") == float(sum(values.tolist()))


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("kernel", memory.KERNELS)
def test_every_kernel_verifies_itself_on_any_size(kernel, compiled):
    for elements in (1, 7, 8, memory.PERIOD - 1, memory.PERIOD, 3 * memory.PERIOD + 5):
        memory.Stream(elements=elements, compiled=compiled).verify(kernel)


@pytest.mark.parametrize("kernel", memory.KERNELS)
@pytest.mark.parametrize("element", [0, 4092, 4093, 12_283])
def test_a_single_flipped_bit_in_an_array_is_found(kernel, element, monkeypatch):
    stream = memory.Stream(elements=3 * memory.PERIOD + 5, compiled=False)
    honest = stream.run

    def flipped(name, **options):
        result = honest(name, **options)
        if name == "read":
            return float(np.nextafter(result, np.inf))
        stream.a.view(np.uint64)[element] ^= 1
        return result

    monkeypatch.setattr(stream, "run", flipped)
    with pytest.raises(memory.WrongResult, match="sum of" if kernel == "read" else f"element {element}:"):
        stream.verify(kernel)


def test_bytes_are_counted_as_stream_does():
    stream = memory.Stream(elements=1000, compiled=False)
    counted = {kernel: stream.bytes(kernel) for kernel in memory.KERNELS}
    assert counted == {
        "copy": 16_000,
        "scale": 16_000,
        "add": 24_000,
        "triad": 24_000,
        "read": 8_000,
        "read1_write1": 16_000,
        "read3_write1": 32_000,
    }


def test_arrays_are_well_beyond_the_caches_and_within_the_memory(monkeypatch):
    monkeypatch.setattr(topology, "last_level_bytes", lambda cpus: 100 << 20)
    monkeypatch.setattr(topology, "available_bytes", lambda: 64 << 30)
    assert memory.stream_elements([0]) * 8 == 400 << 20
    monkeypatch.setattr(topology, "available_bytes", lambda: 800 << 20)
    assert memory.stream_elements([0]) * 8 == 100 << 20
    monkeypatch.setattr(topology, "last_level_bytes", lambda cpus: 3 << 30)
    monkeypatch.setattr(topology, "available_bytes", lambda: 1 << 40)
    assert memory.stream_elements([0]) * 8 == 4 << 30


@needs_compiler
def test_a_pass_leaves_the_process_on_the_cpus_it_had():
    before = os.sched_getaffinity(0)
    memory.Stream(topology.allowed_cpus()[-1:], 10_000).run("triad")
    assert os.sched_getaffinity(0) == before


@needs_compiler
def test_the_reference_triad_computes_what_stream_does():
    with memory.ReferenceTriad(10_007) as reference:
        reference.b[:] = np.random.default_rng(4).standard_normal(10_007)
        reference.c[:] = np.random.default_rng(5).standard_normal(10_007)
        expected = reference.b + 3.0 * reference.c
        np.testing.assert_array_equal(reference.run(), expected)
        stream = memory.Stream(elements=10_007)
        stream.b[:], stream.c[:] = reference.b, reference.c
        np.testing.assert_array_equal(stream.run("triad"), expected)


@pytest.mark.parametrize(("cpus", "elements"), [((), 8), (None, 0)])
def test_a_stream_over_nothing_is_refused(cpus, elements):
    with pytest.raises(ValueError, match=r"expected at least 1|cpus is empty"):
        memory.Stream(cpus, elements)


@pytest.mark.parametrize("huge", [True, False])
def test_memory_begins_at_a_huge_page_and_is_zero(huge):
    block = memory.aligned_memory(3 * mmap.PAGESIZE + 1, huge=huge)
    assert block.size == 3 * mmap.PAGESIZE + 1
    assert block.ctypes.data % memory.HUGE == 0
    assert not block.any()


# ---------------------------------------------------------------------------------------------------- latency


def walk(chase):
    """The offsets in the order that the pointers lead through them, read by Python, starting at the first."""
    words = chase._memory.view(np.uint64)
    base, at, seen = chase._memory.ctypes.data, int(chase._offsets[0]), []
    for _ in range(chase.region.nodes):
        seen.append(at)
        at = int(words[at // 8]) - base
    assert at == seen[0]
    return seen


@needs_compiler
@quick
@given(st.integers(2, 500), st.sampled_from([64, 128, 4096]), st.booleans())
def test_the_pointers_form_one_cycle_through_all_slots(nodes, stride, huge):
    chase = memory.Chase(memory.Region("test", nodes, stride, huge), topology.cores()[0])
    seen = walk(chase)
    assert sorted(offset // stride for offset in seen) == list(range(nodes))
    assert all(offset % 64 == 0 for offset in seen)


@needs_compiler
@quick
@given(nodes=st.integers(2, 300), steps=st.lists(st.integers(1, 2000), min_size=1, max_size=5))
def test_the_compiled_chase_ends_where_python_says(nodes, steps):
    chase = memory.Chase(memory.Region("test", nodes, 64, True), topology.cores()[0])
    seen = walk(chase)
    taken = 0
    for count in steps:
        assert chase.step(count) > 0
        taken += max(count // 16, 1) * 16
        assert chase._place.value == chase._memory.ctypes.data + seen[taken % nodes]


@needs_compiler
def test_a_chain_that_leads_astray_is_found():
    chase = memory.Chase(memory.Region("test", 64, 64, True), topology.cores()[0])
    words = chase._memory.view(np.uint64)
    base = chase._memory.ctypes.data
    words[chase._offsets[10] // 8] = base + int(chase._offsets[12])  # one node is left out
    with pytest.raises(memory.WrongResult, match="chase through test"):
        chase.step(64)


@needs_compiler
def test_latency_is_a_series_of_plausible_seconds():
    chase = memory.Chase(memory.Region("L1", 128, 64, True), topology.cores()[0])
    series = chase.latency(rounds=5, seconds=0.001)
    assert series.shape == (5,)
    # A load takes a few cycles: no machine does it in 50 ps, none takes 10 us for a line in its first cache.
    assert (series > 5e-11).all()
    assert (series < 1e-5).all()


def test_there_is_one_region_per_level_and_each_fits_its_own_only(monkeypatch):
    levels = (
        topology.Cache(1, 32 << 10, (0,)),
        topology.Cache(2, 1 << 20, (0,)),
        topology.Cache(3, 32 << 20, (0, 1)),
    )
    monkeypatch.setattr(topology, "caches", lambda cpu: levels)
    monkeypatch.setattr(topology, "available_bytes", lambda: 64 << 30)
    regions = {region.name: region.bytes for region in memory.latency_regions(0)}
    assert list(regions) == ["L1", "L2", "L3", "dram"]
    assert regions["L1"] < 32 << 10 < regions["L2"] < 1 << 20 < regions["L3"] < 32 << 20 < regions["dram"]
    assert regions["dram"] >= 4 * (32 << 20)


@pytest.mark.filterwarnings("ignore:no working C compiler:RuntimeWarning")
def test_without_a_compiler_streams_go_on_by_torch_and_latency_says_why(monkeypatch):
    monkeypatch.setenv("CC", "missing-compiler")
    stream = memory.Stream(elements=10_000)
    assert not stream.compiled
    stream.verify("triad")
    region = memory.Region("test", 64, 64, True)
    with pytest.raises(memory.NoProbe, match="no compiler"):
        memory.Chase(region, topology.cores()[0])
    with pytest.raises(memory.NoProbe, match="no compiler"):
        memory.ReferenceTriad(1000)
    with pytest.raises(compute.NoProbe, match="no compiler"):
        compute.Peak()


# ------------------------------------------------------------------------------------------------- other
# tools


def test_what_mbw_prints_is_read():
    printed = (
        "Getting down to business... Doing 2 runs per test.\n"
        "0\tMethod: MEMCPY\tElapsed: 0.02273\tMiB: 256.00000\tCopy: 11264.135 MiB/s\n"
        "1\tMethod: MEMCPY\tElapsed: 0.02293\tMiB: 256.00000\tCopy: 11165.387 MiB/s\n"
        "AVG\tMethod: MEMCPY\tElapsed: 0.02283\tMiB: 256.00000\tCopy: 11214.544 MiB/s\n"
    )
    np.testing.assert_allclose(memory.parse_mbw(printed), [11264.135 * 2**20, 11165.387 * 2**20])
    with pytest.raises(memory.ProbeError, match="no rate"):
        memory.parse_mbw("nothing")


def test_what_stress_ng_reports_is_read():
    report = (
        "metrics:\n    - stressor: stream\n      bogo-ops: 87\n"
        "      memory-read-rate-mb-per-sec: 3690.464888\n      memory-write-rate-mb-per-sec: 2460.309926\n"
        "      memory-rate-mflop-per-sec: 322.477743\n"
    )
    assert memory.parse_stress_ng(report) == pytest.approx((3690.464888 + 2460.309926) * 1e6)
    with pytest.raises(memory.ProbeError, match="no memory rate"):
        memory.parse_stress_ng("metrics:\n    - stressor: stream\n")


def test_a_tool_that_is_absent_or_fails_is_told_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(memory.NoProbe, match="mbw is not installed"):
        memory.mbw()
    with pytest.raises(memory.NoProbe, match="stress-ng is not installed"):
        memory.stress_ng(1)
    failing = tmp_path / "mbw"
    failing.write_text("#!/bin/sh\necho out of memory\nexit 3\n")
    failing.chmod(0o755)
    with pytest.raises(memory.ProbeError, match="status 3: out of memory"):
        memory.mbw()


# --------------------------------------------------------------------------------------------------- topology


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8", (0, 1, 2, 3, 8)), ("5\n", (5,)), ("", ()), ("0,2,4-5", (0, 2, 4, 5))],
)
def test_the_kernels_cpu_lists_are_read(text, cpus):
    assert topology.parse_cpu_list(text) == cpus


@pytest.mark.parametrize(("text", "size"), [("32K", 32768), ("1M", 1 << 20), ("512", 512), ("", 0), ("?K", 0)])
def test_the_kernels_sizes_are_read(text, size):
    assert topology.parse_size(text) == size


@pytest.fixture
def two_sockets(tmp_path, monkeypatch):
    """A machine with 2 sockets of 2 cores of 2 threads, each socket a NUMA node with its own L3."""
    cpus, nodes = tmp_path / "cpu", tmp_path / "node"
    for cpu in range(8):
        socket, core = cpu % 4 // 2, cpu % 4
        (cpus / f"cpu{cpu}/topology").mkdir(parents=True)
        (cpus / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{core},{core + 4}\n")
        caches = [("Data", 1, "48K", f"{core},{core + 4}"), ("Instruction", 1, "32K", f"{core},{core + 4}")]
        caches += [("Unified", 2, "2M", f"{core},{core + 4}")]
        caches += [("Unified", 3, "60M", "0-1,4-5" if socket == 0 else "2-3,6-7")]
        for index, (kind, level, size, sharers) in enumerate(caches):
            folder = cpus / f"cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            for name, value in zip(
                ("type", "level", "size", "shared_cpu_list"), (kind, level, size, sharers), strict=True
            ):
                (folder / name).write_text(f"{value}\n")
    for node, listed in enumerate(["0-1,4-5", "2-3,6-7", ""]):
        (nodes / f"node{node}").mkdir(parents=True)
        (nodes / f"node{node}/cpulist").write_text(f"{listed}\n")
    monkeypatch.setattr(topology, "CPUS", cpus)
    monkeypatch.setattr(topology, "NODES", nodes)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


@pytest.mark.usefixtures("two_sockets")
def test_cores_caches_and_nodes_of_a_two_socket_machine():
    assert topology.cores() == (0, 1, 2, 3)
    assert topology.nodes() == {0: (0, 1), 1: (2, 3)}
    assert [(cache.level, cache.size) for cache in topology.caches(5)] == [
        (1, 48 << 10),
        (2, 2 << 20),
        (3, 60 << 20),
    ]
    assert topology.last_level_bytes(topology.cores()) == 120 << 20
    assert topology.last_level_bytes((0, 1)) == 60 << 20


@pytest.mark.usefixtures("two_sockets")
def test_threads_are_bound_where_cores_have_siblings_or_memory_has_sides():
    assert topology.placement((0, 1, 2, 3)) == (0, 1, 2, 3)


def test_threads_of_one_small_machine_are_bound_only_when_they_are_fewer_than_its_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr(topology, "NODES", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    assert topology.placement((0, 1, 2)) == (-1, -1, -1)
    assert topology.placement((1,)) == (1,)
    assert topology.placement((1, 1, 2)) == (1, 1, 2)


@pytest.mark.usefixtures("two_sockets")
def test_only_allowed_cpus_count(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 6})
    assert topology.cores() == (1, 6)
    assert topology.nodes() == {0: (1,), 1: (6,)}


def test_a_machine_that_says_nothing_gets_the_stated_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(topology, "CPUS", tmp_path)
    monkeypatch.setattr(topology, "NODES", tmp_path)
    assert topology.cores() == topology.allowed_cpus()
    assert [cache.size for cache in topology.caches(0)] == [32 << 10, 1 << 20, 32 << 20]
    assert topology.nodes() == {0: topology.allowed_cpus()}


def test_pinning_is_undone_after_an_error():
    before = os.sched_getaffinity(0)
    last = topology.allowed_cpus()[-1]

    def fail_while_pinned():
        with topology.pinned([last]):
            assert os.sched_getaffinity(0) == {last}
            raise KeyError("while pinned")

    with pytest.raises(KeyError, match="while pinned"):
        fail_while_pinned()
    assert os.sched_getaffinity(0) == before


# ----------------------------------------------------------------------------------------------------
# products

ROUNDOFF = {"fp64": 2.0**-53, "fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}


def dense(workload):
    """The inputs that a product's `run` closes over, in float64."""
    cells = dict(zip(workload.run.__code__.co_freevars, workload.run.__closure__, strict=True))
    return [cells[name].cell_contents.double().numpy() for name in ("a", "b")]


@pytest.mark.parametrize("dtype", compute.DTYPES)
@pytest.mark.parametrize("n", [1, 3, 17, 64])
def test_a_product_equals_float64_entry_by_entry(dtype, n):
    try:
        workload = compute.gemm(n, dtype)
    except compute.NoProbe as reason:
        pytest.skip(str(reason))
    result = workload.run()
    workload.verify(result)
    a, b = dense(workload)
    assert workload.work == 2 * n**3
    if dtype == "int8":
        assert workload.unit == "op/s"
        exact = [[sum(int(x) * int(y) for x, y in zip(row, column, strict=True)) for column in b.T] for row in a]
        assert result.tolist() == exact
    else:
        assert workload.unit == "FLOP/s"
        # Higham, Accuracy and Stability, (3.13): |error| <= gamma_n |A| |B|; the result is rounded once more.
        bound = (n + 2) * ROUNDOFF[dtype] * (np.abs(a) @ np.abs(b))
        assert (np.abs(result.double().numpy() - a @ b) <= bound).all()


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
def test_a_batch_of_products_equals_numpy(dtype):
    workload = compute.gemm(24, dtype, batch=5)
    result = workload.run()
    workload.verify(result)
    a, b = dense(workload)
    assert workload.work == 5 * 2 * 24**3
    bound = 26 * ROUNDOFF[dtype] * (np.abs(a) @ np.abs(b))
    assert (np.abs(result.double().numpy() - a @ b) <= bound).all()


@pytest.mark.parametrize("dtype", compute.DTYPES)
@quick
@given(row=st.integers(0, 63), column=st.integers(0, 63))
def test_a_single_corrupted_entry_of_a_product_is_found_in_its_row(dtype, row, column):
    workload = compute.gemm(64, dtype)
    result = workload.run().clone()
    # A flipped exponent bit, as a defective unit makes it; the smallest possible error for integers.
    result[row, column] += 1 if dtype == "int8" else 256.0
    with pytest.raises(compute.WrongResult, match=rf"row \({row},\)"):
        workload.verify(result)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_product_with_a_value_that_is_no_number_is_wrong(value):
    workload = compute.gemm(32, "fp32", batch=3)
    result = workload.run().clone()
    result[1, 2, 3] = value
    with pytest.raises(compute.WrongResult, match=r"row \(1, 2\)"), np.errstate(invalid="ignore"):
        workload.verify(result)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((8, "fp8"), ValueError), ((0, "fp32"), ValueError), ((8, "int8", "cpu", 2), compute.NoProbe)],
)
def test_a_product_that_does_not_exist_is_refused(arguments, error):
    with pytest.raises(error):
        compute.gemm(*arguments)


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_numpys_product_is_of_the_same_matrices(dtype):
    ours, peer = compute.gemm(48, dtype), compute.numpy_gemm(48, dtype)
    peer.verify(peer.run())
    np.testing.assert_allclose(peer.run(), ours.run().numpy(), rtol=1e-4, atol=1e-4)
    broken = peer.run().copy()
    broken[5, 6] += 1.0
    with pytest.raises(compute.WrongResult):
        peer.verify(broken)


def test_a_convolution_equals_its_definition():
    workload = compute.conv(batch=2, channels=5, side=7, dtype="fp64")
    result = workload.run()
    workload.verify(result)
    cells = dict(zip(workload.run.__code__.co_freevars, workload.run.__closure__, strict=True))
    x, w = (cells[name].cell_contents.numpy() for name in ("x", "w"))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros((2, 5, 7, 7))
    for r in range(3):
        for q in range(3):
            expected += np.einsum("ncij,kc->nkij", padded[:, :, r : r + 7, q : q + 7], w[:, :, r, q])
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)
    assert workload.work == 2 * 2 * 5 * 5 * 9 * 7 * 7
    with pytest.raises(compute.WrongResult, match="convolution"):
        workload.verify(result + 1e-6)
    with pytest.raises(compute.WrongResult, match="shape"):
        workload.verify(result[:1])


def test_one_core_restores_threads_and_cpus():
    threads, cpus = torch.get_num_threads(), os.sched_getaffinity(0)
    with compute.one_core():
        assert torch.get_num_threads() == 1
        assert os.sched_getaffinity(0) == {topology.cores()[0]}
    assert torch.get_num_threads() == threads
    assert os.sched_getaffinity(0) == cpus


# ---------------------------------------------------------------------------------------------------- Linpack


@pytest.mark.parametrize("library", ["torch", "scipy"])
@pytest.mark.parametrize("n", [1, 2, 50, 200])
def test_a_solve_passes_hpls_check_and_a_wrong_one_does_not(library, n):
    workload = compute.linpack(n, library)
    x = workload.run()
    assert x.shape == (n,)
    workload.verify(x)
    wrong = x.copy()
    wrong[n // 2] *= 1.0 + 1e-6
    with pytest.raises(compute.WrongResult, match="residual"):
        workload.verify(wrong)
    assert workload.work == pytest.approx(2 / 3 * n**3 + 3 / 2 * n**2)


def test_both_libraries_solve_the_same_system():
    np.testing.assert_allclose(compute.linpack(64).run(), compute.linpack(64, "scipy").run(), rtol=1e-8)
    with pytest.raises(ValueError, match="library is 'mkl'"):
        compute.linpack(8, "mkl")


def test_the_residual_follows_hpls_formula():
    a, b, x = np.array([[2.0, -1.0], [0.0, 4.0]]), np.array([1.0, 8.0]), np.array([1.5, 2.0 + 2.0**-40])
    # A x - b = (-2**-40, 2**-38); |A| = 4, |x| = 2 + 2**-40, |b| = 8, n = 2
    expected = 2.0**-38 / (2.0**-53 * 2 * (4.0 * (2.0 + 2.0**-40) + 8.0))
    assert compute.hpl_residual(a, x, b) == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------------- peak


@needs_compiler
@pytest.mark.parametrize(("dtype", "rounding"), [("fp64", 2.0**-52), ("fp32", 2.0**-23)])
@quick
@given(
    data=st.data(),
    steps=st.integers(0, 40),
    x=st.floats(-1, 1),
    y=st.floats(-1, 1),
    members=st.integers(1, 3),
)
def test_the_peak_loop_equals_the_recurrence_in_float64(dtype, rounding, data, steps, x, y, members):
    peak = compute.Peak(dtype)
    cpus = (topology.allowed_cpus() * members)[:members]
    values = data.draw(
        hnp.arrays(peak.dtype, (members, peak.width), elements=st.floats(-2, 2, width=32), fill=st.just(0.5))
    )
    x, y = float(peak.dtype.type(x)), float(peak.dtype.type(y))
    expected = values.astype(np.float64)
    for _ in range(steps):
        expected = expected * x + y
    peak.run(values, steps, x, y, cpus)
    # Values stay within 2 + steps, and each step rounds once.
    np.testing.assert_allclose(values, expected, rtol=0, atol=rounding * (steps + 1) * (steps + 2))


@needs_compiler
@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
@pytest.mark.parametrize("steps", [1, 2, 1001, 5000])
def test_the_peaks_workload_is_exact_and_a_wrong_bit_is_found(dtype, steps):
    peak = compute.Peak(dtype)
    workload = peak.workload(steps=steps)
    result = workload.run()
    workload.verify(result)
    assert workload.work == 2 * steps * result.size
    result[0, 5] = np.nextafter(result[0, 5], peak.dtype.type(9))
    with pytest.raises(compute.WrongResult, match="value 5"):
        workload.verify(result)
    workload.verify(workload.run())  # each run starts afresh


@needs_compiler
def test_the_peak_of_each_core_is_one_figure_per_core():
    rates = compute.Peak("fp32").rates(seconds=0.002)
    assert rates.shape == (len(topology.cores()),)
    # Below 10 MFLOP/s nothing was computed in registers; above 10 TFLOP/s no core of any kind exists.
    assert ((rates > 1e7) & (rates < 1e13)).all()


@needs_compiler
def test_the_peak_loop_refuses_values_of_another_shape():
    peak = compute.Peak("fp64")
    with pytest.raises(ValueError, match="expected"):
        peak.run(np.zeros((1, peak.width + 1)), 1, 1.0, 1.0, [0])
    with pytest.raises(ValueError, match="expected"):
        peak.run(np.zeros((1, peak.width), np.float32), 1, 1.0, 1.0, [0])
    with pytest.raises(ValueError, match="dtype is 'bf16'"):
        compute.Peak("bf16")


@needs_compiler
def test_the_kernels_build_and_agree_without_openmp_too():
    serial = native.load(memory.HERE / "stream.c", openmp=False, contract=False)
    assert serial is not None
    threaded = memory.Stream((topology.allowed_cpus() * 3)[:3], 5000)
    expected = threaded.run("triad", streaming=False).copy()
    a, cpus = np.zeros(5000), np.array((topology.allowed_cpus() * 3)[:3], np.int32)
    pointer = ctypes.POINTER(ctypes.c_double)
    serial.stream_pass.restype = ctypes.c_double
    serial.stream_pass(
        memory.KERNELS["triad"].number, 0, ctypes.c_long(5000), ctypes.c_double(3.0), a.ctypes.data_as(pointer),
        threaded.b.ctypes.data_as(pointer), threaded.c.ctypes.data_as(pointer),
        cpus.ctypes.data_as(ctypes.POINTER(ctypes.c_int)), 3,
    )  # fmt: skip
    np.testing.assert_array_equal(a, expected)
