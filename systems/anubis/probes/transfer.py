"""Timed transfers between one file and memory, several in flight: by compiled threads, or by Python's.

The compiled form (`transfer.c`) is what a disk is judged by. Python's threads take turns at the interpreter
lock between two transfers, which a device that answers within 100 us notices; they stand in where there is
no compiler, and the disk probes say so. """

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from systems import native

Engine = Literal["compiled", "interpreted"]

_SHORT_TRANSFER = -1


def library() -> ctypes.CDLL | None:
    """The compiled loop, or None without a compiler (one warning)."""
    loaded = native.load(Path(__file__).with_name("transfer.c"), flags=("-pthread",), openmp=False)
    if loaded is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        loaded.maat_transfer.restype = ctypes.c_int
        loaded.maat_transfer.argtypes = (
            *(ctypes.c_int, number, number, number),
            *(pointer, pointer, pointer, pointer, pointer),
            *(ctypes.c_int, ctypes.POINTER(number)),
        )
    return loaded


def run(
    descriptor: int,
    offsets: npt.NDArray[np.int64],
    writes: npt.NDArray[np.bool_],
    memory: npt.NDArray[np.uint64],
    *,
    block: int,
    depth: int,
    deadline: float,
    compiled: ctypes.CDLL | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Make `len(offsets)` transfers of `block` bytes, transfer i between offsets[i] and memory[i].

    memory: (transfers, block / 8) words, contiguous, aligned as the file demands. depth: transfers in
    flight; each claims the next one as it ends. deadline: on the perf_counter clock, after which none but
    the first is begun. Returns submission and completion times (transfers,) in ns of the perf_counter
    clock, 0 for those not made. Raises OSError, also for a short transfer. """
    started, finished = np.zeros((2, len(offsets)), dtype=np.int64)
    nanoseconds = int(min(deadline * 1e9, 2**62))
    if compiled is None:
        _interpreted(descriptor, offsets, writes, memory, block, depth, nanoseconds, started, finished)
        return started, finished
    places, kinds = np.ascontiguousarray(offsets), np.ascontiguousarray(writes).view(np.uint8)
    at_fault = ctypes.c_int64(-1)
    error = compiled.maat_transfer(
        *(descriptor, len(places), block, nanoseconds, places.ctypes.data, kinds.ctypes.data),
        *(memory.ctypes.data, started.ctypes.data, finished.ctypes.data, depth, ctypes.byref(at_fault)),
    )
    if error == _SHORT_TRANSFER:
        raise _short(int(places[at_fault.value]))
    if error:
        raise OSError(error, os.strerror(error))
    return started, finished


def _interpreted(
    descriptor: int,
    offsets: npt.NDArray[np.int64],
    writes: npt.NDArray[np.bool_],
    memory: npt.NDArray[np.uint64],
    block: int,
    depth: int,
    deadline: int,
    started: npt.NDArray[np.int64],
    finished: npt.NDArray[np.int64],
) -> None:
    whole = memory.reshape(-1).view(np.uint8).data
    places = offsets.tolist()
    # Everything that is not part of a transfer is done beforehand: the loop below is what is timed.
    calls = [os.pwritev if write else os.preadv for write in writes.tolist()]
    views = [[whole[index * block : (index + 1) * block]] for index in range(len(places))]
    claims = itertools.count()  # next() is atomic under the interpreter lock
    clock = time.perf_counter_ns

    def transfer() -> None:
        while (index := next(claims)) < len(places) and (index == 0 or clock() < deadline):
            began = clock()
            done = calls[index](descriptor, views[index], places[index])
            finished[index], started[index] = clock(), began
            if done != block:
                raise _short(places[index])

    with ThreadPoolExecutor(depth, thread_name_prefix="maat-disk") as pool:
        for running in [pool.submit(transfer) for _ in range(depth)]:
            running.result()


def _short(offset: int) -> OSError:
    return OSError(errno.EIO, f"short transfer at byte {offset}")
