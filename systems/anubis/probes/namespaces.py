"""Two network namespaces joined by a veth pair: a link of two machines inside one, and what a link fault
acts on.

Names begin with `maat` and carry the identifier of the process that made them, so that a later process
removes what a killed one has left, and nothing that is in use. Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)
and `ip`; `available` says what is missing. Nothing outside the two namespaces is touched: their addresses
exist in them alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from systems.anubis.termination import terminated_as_exception

_PREFIX = "maat"
_NAME = re.compile(rf"{_PREFIX}(\d+)[ab]")
_FOLDER = Path("/run/netns")  # where `ip netns` keeps its names
_CLONE_NEWNET = 0x40000000

T = TypeVar("T")


class NamespaceError(RuntimeError):
    """A namespace pair could not be made or shaped."""


@dataclass(frozen=True)
class VethPair:
    """Namespaces `a` and `b` by name; each holds one end of the link, an interface `veth0` with its
    address.
    """

    a: str
    b: str
    address_a: str = "10.213.0.1"
    address_b: str = "10.213.0.2"
    interface: str = "veth0"


def available() -> str | None:
    """None when a pair can be made here, else the reason why not. It tries, for only that tells in a
    container.
    """
    if os.geteuid() != 0:
        return "a namespace pair needs root"
    if shutil.which("ip") is None:
        return "a namespace pair needs the command `ip` (Debian: iproute2)"
    name = f"{_PREFIX}{os.getpid()}a"
    if (_FOLDER / name).exists():  # made by this very process
        return None
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    except NamespaceError as error:
        return str(error)
    finally:
        _remove(name)
    return None


@contextmanager
def veth_pair() -> Iterator[VethPair]:
    """The namespace pair of this process, made when there is none yet; removed by whoever made it.

    Entered inside another `veth_pair()` of this process, it yields the same one: a fault that shapes the
    pair and a probe that measures it meet in it. Removed on return, on exceptions and on SIGTERM; what
    SIGKILL leaves is removed by the next process. Raises NamespaceError.
    """
    remove_leftovers()
    pair = VethPair(f"{_PREFIX}{os.getpid()}a", f"{_PREFIX}{os.getpid()}b")
    if (_FOLDER / pair.a).exists():
        yield pair
        return
    with terminated_as_exception():
        try:
            _make(pair)
            yield pair
        finally:
            _remove(pair.a)
            _remove(pair.b)


def _make(pair: VethPair) -> None:
    end = pair.interface
    for name in (pair.a, pair.b):
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
    _run("ip", "-n", pair.a, "link", "add", end, "type", "veth", "peer", "name", end, "netns", pair.b)
    for name, address in ((pair.a, pair.address_a), (pair.b, pair.address_b)):
        _run("ip", "-n", name, "address", "add", f"{address}/30", "dev", end)
        _run("ip", "-n", name, "link", "set", end, "up")


def limit_rate(pair: VethPair, bits_per_second: int | None) -> None:
    """Limit both directions of the link by a token bucket; None lifts the limit. Raises NamespaceError,
    ValueError.
    """
    if bits_per_second is not None and bits_per_second <= 0:
        raise ValueError(f"rate {bits_per_second} bit/s: expected a positive number, or None for no limit")
    for name in (pair.a, pair.b):
        if bits_per_second is None:
            _run("tc", "-n", name, "qdisc", "del", "dev", pair.interface, "root")
        else:
            _run(
                *("tc", "-n", name, "qdisc", "replace", "dev", pair.interface, "root", "tbf"),
                *("rate", f"{bits_per_second}bit", "burst", "256kb", "latency", "50ms"),
            )


def remove_leftovers() -> list[str]:
    """Remove the namespaces of processes that are gone; returns their names."""
    removed = []
    for entry in _FOLDER.iterdir() if _FOLDER.is_dir() else ():
        match = _NAME.fullmatch(entry.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(entry.name)
            removed.append(entry.name)
    return removed


def call_inside(name: str | None, function: Callable[[], T], *, cpu: int | None = None) -> T:
    """function() on a thread of its own that is inside namespace `name` and on CPU `cpu`, where given.

    A network namespace and an affinity belong to a thread, so that the caller's stay as they are and no
    state has to be restored. Raises NamespaceError, and what `function` raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if name is not None:
                _enter(name)
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})
            results.append(function())
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=run, name=f"maat-inside-{name}", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _enter(name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(_FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise NamespaceError(f"cannot enter the namespace {name}: {os.strerror(code)}")
    finally:
        os.close(descriptor)


def _remove(name: str) -> None:
    # Processes inside keep the namespace itself alive until they end; the name goes at once.
    try:
        if (_FOLDER / name).exists():
            _run("ip", "netns", "del", name)
    except NamespaceError:
        if (_FOLDER / name).exists():  # else another process removed the same leftover first
            raise


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    except FileNotFoundError as error:
        raise NamespaceError(f"the command `{command[0]}` is missing (Debian: iproute2)") from error
    except subprocess.TimeoutExpired as error:
        raise NamespaceError(f"`{' '.join(command)}` did not end within 10 s") from error
    except subprocess.CalledProcessError as error:
        raise NamespaceError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from error
