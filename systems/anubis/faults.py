"""Real gray failures: the machine, or this process on it, made slower or wrong on purpose, and put right again.

    fault = fault_named("cpu_quota(0.3)")        # or cpu_quota(0.3)
    if reason := fault.available():
        print("cannot be injected here:", reason)
    with fault.injected():
        ...                                      # this process gets 30 % of one CPU

A fault ends with its context, on exceptions, on SIGINT and on SIGTERM. What a killed process leaves is removed by the
next one that injects, by the names of control groups (`control_groups.py`) and namespaces (`probes/namespaces.py`);
processes that it had started (`load.py`) end with it by themselves.

    FaultError(RuntimeError)
    ├── UnknownFault(ValueError)   no such fault, or parameters out of range
    └── CannotInject               this machine, or this user, cannot
"""

from __future__ import annotations

import importlib.util
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from systems.anubis import control_groups, load
from systems.anubis.control_groups import ControlGroupError
from systems.anubis.probes import namespaces
from systems.anubis.probes.namespaces import NamespaceError
from systems.anubis.probes.scratch import NoDisk, io_mode, scratch_folder
from systems.anubis.termination import terminated_as_exception

QUOTA_PERIOD_US = 10_000
SEED = 20240206
_START = 60.0  # seconds within which a burden must weigh: a GPU's start takes long
_CALL = re.compile(r"(\w+)\(([^()]*)\)")


class FaultError(RuntimeError):
    """A fault is unknown, or cannot be injected."""


class UnknownFault(FaultError, ValueError):
    """No fault of that name, or parameters out of range."""


class CannotInject(FaultError):
    """The fault cannot be injected here; the message says why."""


@dataclass(frozen=True)
class Fault:
    """A gray failure. name: with its parameters, `cpu_quota(0.5)`; hits: the components that it slows or breaks, the
    one it is to be found in first.
    """

    name: str
    hits: tuple[str, ...]
    _why_not: Callable[[], str | None] = field(repr=False, compare=False)
    _inject: Callable[[], AbstractContextManager[object]] = field(repr=False, compare=False)

    def available(self) -> str | None:
        """None where it can be injected, else the reason why not."""
        return self._why_not()

    @contextmanager
    def injected(self) -> Iterator[None]:
        """Inject it for the time of the context. Raises CannotInject."""
        if reason := self.available():
            raise CannotInject(f"{self.name}: {reason}")
        with terminated_as_exception(), ExitStack() as stack:
            try:
                stack.enter_context(self._inject())
            except (ControlGroupError, NamespaceError, OSError) as error:
                raise CannotInject(f"{self.name}: {error}") from error
            yield


def fault_named(text: str) -> Fault:
    """The fault that `name(parameter, ...)` means, numbers only. Raises UnknownFault, saying what there is."""
    match = _CALL.fullmatch(text.strip())
    name = match[1] if match else text.strip()
    if name not in FAULTS:
        raise UnknownFault(f"no fault {text!r}; there are {', '.join(sorted(FAULTS))}, as in cpu_quota(0.5)")
    try:
        numbers = [_number(part) for part in match[2].split(",") if part.strip()] if match else []
        return FAULTS[name](*numbers)
    except (TypeError, ValueError) as error:
        raise UnknownFault(f"fault {text!r}: {error}") from error


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def remove_leftovers() -> list[str]:
    """Remove what killed processes have left of their faults; returns the names of groups and namespaces."""
    return [*control_groups.remove_leftovers(), *namespaces.remove_leftovers()]


# --- the processor -------------------------------------------------------------------------------------------


def cpu_quota(share: float = 0.5) -> Fault:
    """This process, with those that it starts, gets `share` of one CPU's time: by a control group, else by stopping
    it for the rest of each 10 ms (`cpu_duty`, which leaves the processes that it starts alone)."""
    _require(0.01 <= share <= 64, f"share {share}: expected CPUs between 0.01 and 64")
    quota = round(share * QUOTA_PERIOD_US)

    def inject() -> AbstractContextManager[object]:
        if control_groups.available("cpu"):
            return _held(share)
        if control_groups.version("cpu") == 1:
            limits = {"cpu.cfs_period_us": str(QUOTA_PERIOD_US), "cpu.cfs_quota_us": str(quota)}
        else:
            limits = {"cpu.max": f"{quota} {QUOTA_PERIOD_US}"}
        return control_groups.limited("cpu", limits)

    def why_not() -> str | None:
        reason = control_groups.available("cpu")
        return f"{reason}, and stopping a process gives it less than one CPU only" if reason and share >= 1 else None

    return Fault(f"cpu_quota({share:g})", ("compute", "memory", "model"), why_not, inject)


def cpu_duty(share: float = 0.5) -> Fault:
    """This process, not those that it starts, is stopped for all but `share` of each 10 ms. Needs no privilege."""
    _require(0.05 <= share <= 0.95, f"share {share}: expected between 0.05 and 0.95")
    return Fault(f"cpu_duty({share:g})", ("compute", "memory", "model"), lambda: None, lambda: _held(share))


@contextmanager
def _held(share: float) -> Iterator[None]:
    try:
        with _burden("stop", "--pid", str(os.getpid()), "--share", str(share)):
            yield
    finally:
        os.kill(os.getpid(), signal.SIGCONT)


def cpu_burner(processes: int = 2, nice: int = 0, cpu: int = -1) -> Fault:
    """`processes` others compute without end, at niceness `nice`, all on one `cpu` where that is not negative.

    They are children of this process, so that its gate takes their load for its own, and a deficit for a defect."""
    _require(processes >= 1 and 0 <= nice <= 19, f"{processes} processes at niceness {nice}: expected >= 1, 0 to 19")
    arguments = ["--nice", str(int(nice)), *(["--cpu", str(int(cpu))] if cpu >= 0 else [])]

    def why_not() -> str | None:
        there = os.sched_getaffinity(0)
        return f"no CPU {cpu} here, only {sorted(there)}" if cpu >= 0 and cpu not in there else None

    name = ",".join(f"{value:g}" for value in (processes, nice, cpu)[: 3 if cpu >= 0 else 2 if nice else 1])
    hits = ("compute", "model", "memory")
    return Fault(f"cpu_burner({name})", hits, why_not, lambda: _burdens(processes, "spin", *arguments))


def memory_hog(processes: int = 2) -> Fault:
    """`processes` others copy arrays of 240 MB without end: bandwidth goes first, then CPU time."""
    _require(processes >= 1, f"{processes} processes: expected 1 at least")

    def why_not() -> str | None:
        from systems.anubis.probes.topology import available_bytes

        need, there = processes * (load.COPIED_BYTES + 2**26), available_bytes()
        return f"needs {need >> 20} MiB of memory, {there >> 20} MiB are free" if need > there else None

    hits = ("memory", "compute", "model")
    return Fault(f"memory_hog({processes})", hits, why_not, lambda: _burdens(processes, "copy"))


# --- the disk ------------------------------------------------------------------------------------------------


def disk_throttle(bytes_per_second: float = 50e6) -> Fault:
    """Direct transfers of this process, with those that it starts, to and from the disk of the scratch folder get
    `bytes_per_second` each way."""
    _require(bytes_per_second >= 4096, f"{bytes_per_second} B/s: expected 4096 at least")
    rate = int(bytes_per_second)

    def why_not() -> str | None:
        try:
            if io_mode() != "direct":
                return f"{scratch_folder()} takes no direct I/O, and the page cache hides the limit"
            _disk_of(scratch_folder())
        except (NoDisk, CannotInject) as error:
            return str(error)
        return control_groups.available("blkio")

    def inject() -> AbstractContextManager[object]:
        disk = _disk_of(scratch_folder())
        if control_groups.version("blkio") == 1:
            files = ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device")
            limits = dict.fromkeys(files, f"{disk} {rate}")
        else:
            limits = {"io.max": f"{disk} rbps={rate} wbps={rate}"}
        return control_groups.limited("blkio", limits)

    return Fault(f"disk_throttle({rate:d})", ("disk",), why_not, inject)


def _disk_of(folder: Path) -> str:
    """`major:minor` of the whole disk that `folder` is on; limits go by disks, not by their partitions."""
    device = os.stat(folder).st_dev
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not node.exists():
        raise CannotInject(f"{folder} is on no block device of its own (device {os.major(device)}:{os.minor(device)})")
    node = node.resolve()
    return ((node.parent if (node / "partition").exists() else node) / "dev").read_text(encoding="ascii").strip()


# --- the network ---------------------------------------------------------------------------------------------


def link_rate(megabits: float = 100) -> Fault:
    """Both directions of this process's namespace pair carry `megabits` per second."""
    _require(megabits > 0, f"{megabits} Mbit/s: expected above 0")

    @contextmanager
    def inject() -> Iterator[None]:
        with namespaces.veth_pair() as pair:
            namespaces.limit_rate(pair, round(megabits * 1e6))
            try:
                yield
            finally:
                namespaces.limit_rate(pair, None)

    return Fault(f"link_rate({megabits:g})", ("network",), namespaces.available, inject)


def link_delay(milliseconds: float = 1) -> Fault:
    """Each packet of this process's namespace pair is delayed by `milliseconds`, where the kernel has `netem`."""
    _require(milliseconds > 0, f"{milliseconds} ms: expected above 0")
    arguments = ("root", "netem", "delay", f"{milliseconds:g}ms", "limit", "100000")

    def why_not() -> str | None:
        if reason := namespaces.available():
            return reason
        with namespaces.veth_pair() as pair:
            try:
                _traffic(pair.a, "replace", pair.interface, *arguments)
            except CannotInject as error:
                return str(error)
            _traffic(pair.a, "del", pair.interface, "root")
        return None

    @contextmanager
    def inject() -> Iterator[None]:
        with namespaces.veth_pair() as pair, ExitStack() as stack:
            for name in (pair.a, pair.b):
                _traffic(name, "replace", pair.interface, *arguments)
                stack.callback(_traffic, name, "del", pair.interface, "root")
            yield

    return Fault(f"link_delay({milliseconds:g})", ("network",), why_not, inject)


def _traffic(namespace: str, action: str, interface: str, *arguments: str) -> None:
    command = ["tc", "-n", namespace, "qdisc", action, "dev", interface, *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip()
        raise CannotInject(f"`{' '.join(command)}` failed: {detail}") from error


# --- models: their steps and their results -------------------------------------------------------------------


def slow_steps(share: float = 0.3, factor: float = 1.5) -> Fault:
    """A `share` of the forward passes of torch models take `factor` times as long; the rest are as before, which only
    the distribution shows."""
    _require(0 < share <= 1 < factor, f"share {share}, factor {factor}: expected a share in (0, 1], a factor above 1")

    @contextmanager
    def inject() -> Iterator[None]:
        random = np.random.default_rng(SEED)

        def after(output: Any, seconds: float) -> Any:
            if random.random() < share:
                time.sleep((factor - 1) * seconds)
            return output

        with _after_forward_passes(after):
            yield

    return Fault(f"slow_steps({share:g},{factor:g})", ("model",), _no_torch, inject)


def bit_flip(rate: float = 1.0) -> Fault:
    """In a share `rate` of the forward passes of torch models, one bit of one entry of the result is wrong."""
    _require(0 < rate <= 1, f"rate {rate}: expected a share of forward passes in (0, 1]")

    @contextmanager
    def inject() -> Iterator[None]:
        random = np.random.default_rng(SEED)

        def after(output: Any, seconds: float) -> Any:
            if random.random() < rate:
                flip_a_bit(output, random)
            return output

        with _after_forward_passes(after):
            yield

    return Fault(f"bit_flip({rate:g})", ("model",), _no_torch, inject)


def flip_a_bit(output: Any, random: np.random.Generator) -> bool:
    """Flip one random bit, in place, in the first tensor with entries that `output` holds (a tensor, or tensors in
    tuples, lists and mappings); whether there was one."""
    import torch

    if isinstance(output, torch.Tensor):
        if not output.numel():
            return False
        entry = tuple(int(random.integers(size)) for size in output.shape)
        with torch.no_grad():
            there = output.detach()[entry].reshape(1).clone()
            bits = 1 if output.dtype == torch.bool else 8  # a bool is one bit, kept in a byte
            there.view(torch.uint8)[int(random.integers(output.element_size()))] ^= 1 << int(random.integers(bits))
            output.detach()[entry] = there[0]
        return True
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return any(flip_a_bit(part, random) for part in parts)


def _no_torch() -> str | None:
    return None if importlib.util.find_spec("torch") else "torch is not installed"


@contextmanager
def _after_forward_passes(after: Callable[[Any, float], Any]) -> Iterator[None]:
    """Call `after(output, seconds)` at the end of each outermost forward pass of a module, for its output."""
    from torch.nn.modules import module

    depth = 0
    began = 0.0

    def enter(*_: Any) -> None:
        nonlocal depth, began
        began = time.perf_counter() if depth == 0 else began
        depth += 1

    def leave(_module: Any, _inputs: Any, output: Any) -> Any:
        nonlocal depth
        depth -= 1
        return after(output, time.perf_counter() - began) if depth == 0 and output is not None else output

    hooks = [
        module.register_module_forward_pre_hook(enter),
        module.register_module_forward_hook(leave, always_call=True),  # or a pass that fails would count as open
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- GPUs ----------------------------------------------------------------------------------------------------


def gpu_contend(processes: int = 1) -> Fault:
    """`processes` others multiply matrices on the first GPU. Clocks and power are left alone."""
    _require(processes >= 1, f"{processes} processes: expected 1 at least")
    return Fault(f"gpu_contend({processes})", ("gpu",), _no_gpu, lambda: _burdens(processes, "gemm"))


def gpu_hbm_hog(processes: int = 1) -> Fault:
    """`processes` others copy within the first GPU's memory."""
    _require(processes >= 1, f"{processes} processes: expected 1 at least")
    return Fault(f"gpu_hbm_hog({processes})", ("gpu",), _no_gpu, lambda: _burdens(processes, "hbm"))


def _no_gpu() -> str | None:
    from systems.anubis.probes.gpu import unavailable

    return unavailable()


FAULTS: Mapping[str, Callable[..., Fault]] = MappingProxyType(
    {
        make.__name__: make
        for make in (
            *(cpu_quota, cpu_duty, cpu_burner, memory_hog, disk_throttle, link_rate, link_delay),
            *(slow_steps, bit_flip, gpu_contend, gpu_hbm_hog),
        )
    }
)
"""What makes each fault, by name; called without arguments it makes one of default strength."""


# --- processes and signals -----------------------------------------------------------------------------------


@contextmanager
def _burdens(processes: int, *arguments: str) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(processes):
            stack.enter_context(_burden(*arguments))
        yield


@contextmanager
def _burden(*arguments: str) -> Iterator[None]:
    """`load.py` with `arguments` in a process of its own, from when it weighs."""
    process = subprocess.Popen(
        [sys.executable, "-I", str(Path(load.__file__).resolve()), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process, which ends the other in its own time
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(_START) or not process.stdout.readline().startswith(b"ready"):
                raise CannotInject(f"`load.py {' '.join(arguments)}` did not start")
        yield
    finally:
        process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UnknownFault(message)
