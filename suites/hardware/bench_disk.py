"""The disk: direct sequential and random transfers, a mix, and durable appends, every byte verified.

The folder is $MAAT_SCRATCH, else the current one. The parameter `mode` says how the page cache was avoided
(and whether there was no compiler), so that figures of different ways never meet in one criterion.
"""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from systems.anubis.probes import disk, transfer

pytestmark = pytest.mark.component("disk")


def pytest_generate_tests(metafunc):
    if "mode" in metafunc.fixturenames:
        try:
            mode = disk.io_mode()
        except disk.NoDisk:
            mode = "direct"  # the tests then skip with the reason
        metafunc.parametrize("mode", [mode if transfer.library() else f"{mode}-interpreted"], scope="module")


def new_scratch():
    try:
        return disk.Scratch()
    except disk.NoDisk as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def scratch(mode):
    with new_scratch() as file:
        yield file


def test_sequential_write(measure, scratch):
    written = disk.sequential_write(scratch, blocks=768 if measure.full else 64)
    scratch.verify()
    measure.record("throughput", written.bandwidth, "B/s")


def test_sequential_read(measure, scratch):
    done = disk.sequential_read(scratch, blocks=768 if measure.full else 64)
    measure.record("throughput", done.bandwidth, "B/s")


READS = {"read": 1.0, "mixed": 0.7, "write": 0.0}


@pytest.mark.parametrize("kind", READS)
def test_random(measure, scratch, kind):
    done = disk.random_access(scratch, reads=READS[kind], transfers=32768 if measure.full else 4096)
    scratch.verify()
    measure.record("rate", done.iops, "op/s")


def typical(latencies):
    """Medians of 16 in a row: a preemption of this process, which says nothing of the disk, does not move them."""
    return [np.median(some) for some in np.array_split(latencies, max(1, len(latencies) // 16))]


def test_random_read_latency(measure, scratch):
    transfers = 8192 if measure.full else 1024
    latencies = disk.random_access(scratch, reads=1, depth=1, transfers=transfers).latencies
    measure.record("time", typical(latencies), "s")


def test_durable_append(measure, mode):
    try:
        seconds = disk.durable_append(appends=1024 if measure.full else 64)
    except disk.NoDisk as reason:
        pytest.skip(str(reason))
    measure.record("time", typical(seconds), "s")
    measure.record("tail", np.quantile(seconds, 0.99), "s")


OURS = {
    "write": lambda file: disk.sequential_write(file, blocks=1024, limit=2),
    "read": lambda file: disk.sequential_read(file, blocks=1024, limit=2),
    "randwrite": lambda file: disk.random_access(file, reads=0, limit=2),
    "randread": lambda file: disk.random_access(file, reads=1, limit=2),
}


def rate(transfer):
    """Bytes per second over all chunks, as fio counts: all bytes over all seconds."""
    return transfer.block * transfer.operations.sum() / transfer.seconds.sum()


def fio(file, operation, seconds):
    """Bytes per second that fio reports for `operation` on the very file that `file` holds: as many threads, blocks
    of the same size, past the page cache."""
    if operation in ("read", "write"):  # a quarter of the file for each thread
        part = file.size // 4
        extent = [f"--bs={disk.BLOCK}", f"--size={part}", f"--offset_increment={part}"]
    else:
        extent = [f"--bs={disk.SECTOR}", f"--size={file.size}"]
    command = ["fio", "--name=peer", f"--filename=/proc/{os.getpid()}/fd/{file.descriptor}", f"--rw={operation}"]
    command += ["--ioengine=psync", "--thread", "--numjobs=4", "--direct=1", "--allow_file_create=0", *extent]
    command += ["--time_based", f"--runtime={seconds}", "--group_reporting", "--output-format=json"]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    report = json.loads(run.stdout)["jobs"][0]
    return report["read" if operation.endswith("read") else "write"]["bw_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("operation", OURS)
def test_beside_fio(measure, mode, operation):
    """Interleaved with fio: the probe must not be what limits the disk. fio has a file of its own, to spoil."""
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    if disk.io_mode() != "direct":
        pytest.skip("without direct I/O the two tools flush at different points")
    with new_scratch() as mine, new_scratch() as other:
        OURS[operation](mine)
        ours, peer = [], []
        for turn in range(8 if measure.full else 1):
            for tool in ("ours", "fio") if turn % 2 else ("fio", "ours"):
                if tool == "ours":
                    ours.append(rate(OURS[operation](mine)))
                else:
                    peer.append(fio(other, operation, 1))
        mine.verify()
    ratios = np.array(ours) / np.array(peer)
    measure.record("over_fio", ratios, "1", better="higher")
    if measure.full:
        assert np.median(ratios) >= 0.9, f"{np.median(ratios):.2f} of fio's rate, expected at least 0.9"
