"""Control groups of the first and second version: a group of this process's own, with limits, for a while.

    with limited("cpu", {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": "3000"}):
        ...

Groups are named `maat-fault-<pid>-<controller>`, so that a later process removes what a killed one has left, and
nothing that is in use.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "maat-fault-"
_NAME = re.compile(rf"{PREFIX}(\d+)-\w+")
_REMOVAL = 10.0  # seconds within which a transfer under way ends, and the kernel lets an emptied group go


class ControlGroupError(RuntimeError):
    """A control group could not be made, limited, entered or left."""


def version(controller: str, root: Path = ROOT) -> int | None:
    """1 or 2: the hierarchy at `root` that has `controller`; None where neither has."""
    if (root / controller / "cgroup.procs").exists():
        return 1
    enabled = root / "cgroup.subtree_control"
    if enabled.exists() and controller_of_v2(controller) in enabled.read_text(encoding="ascii").split():
        return 2
    return None


def controller_of_v2(controller: str) -> str:
    """The second version's name of a controller of the first."""
    return {"blkio": "io"}.get(controller, controller)


def hierarchy(controller: str, root: Path = ROOT) -> Path:
    """The top folder of the hierarchy that has `controller`. Raises ControlGroupError where there is none."""
    found = version(controller, root)
    if found is None:
        raise ControlGroupError(f"no control groups with the controller {controller!r} under {root}")
    return root / controller if found == 1 else root


def available(controller: str, root: Path = ROOT) -> str | None:
    """None when a group with `controller` can be made here, else the reason why not; it tries."""
    try:
        folder = hierarchy(controller, root) / f"{PREFIX}{os.getpid()}-trial"
        folder.mkdir()
    except (ControlGroupError, OSError) as error:
        return f"cannot make a control group: {error}"
    folder.rmdir()
    return None


@contextmanager
def limited(controller: str, limits: Mapping[str, str], root: Path = ROOT) -> Iterator[Path]:
    """Move this process, all threads of it, into a new group with `limits` (file name -> text); yields its folder.

    Processes started meanwhile are in it too, and go back with it. Raises ControlGroupError.
    """
    remove_leftovers(root)
    top = hierarchy(controller, root)
    group = top / f"{PREFIX}{os.getpid()}-{controller}"
    home = top / own_group(controller, root)
    if group.exists():
        raise ControlGroupError(f"this process is under a limit of {controller!r} already, in {group}")
    try:
        try:
            group.mkdir()
            for name, text in limits.items():
                _write(group / name, text)
            _write(group / "cgroup.procs", str(os.getpid()))
        except OSError as error:
            raise ControlGroupError(f"cannot limit {controller!r} in {group}: {error}") from error
        with _lifted_by_signals(group):
            yield group
    finally:
        _dissolve(group, home)


def own_group(controller: str, root: Path = ROOT) -> str:
    """The path of this process's group below the top of the hierarchy with `controller`."""
    second = version(controller, root) == 2
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, names, path = line.split(":", 2)
        if (not names) if second else (controller in names.split(",")):
            return path.lstrip("/")
    return ""


def remove_leftovers(root: Path = ROOT) -> list[str]:
    """Remove the groups of processes that are gone; their members go to the top. Returns the groups' names."""
    removed = []
    for top in {hierarchy(name, root) for name in ("cpu", "blkio") if version(name, root)}:
        for group in sorted(top.glob(f"{PREFIX}*")):
            match = _NAME.fullmatch(group.name)
            if match and not Path(f"/proc/{match[1]}").exists():
                _dissolve(group, top)
                removed.append(group.name)
    return removed


def _dissolve(group: Path, home: Path) -> None:
    """Lift the limits of `group`, move its members to `home`, remove it; what cannot be done yet is tried again.

    A thread that waits for a throttled transfer sleeps uninterruptibly: it ends neither by a signal nor by its
    process's exit, and keeps the group busy until the transfer is through. So the limits go first.
    """
    if not group.exists():
        return
    _lift(group)
    deadline = time.monotonic() + _REMOVAL
    while True:  # a member may fork while it is moved, and an emptied group is busy for a moment
        for member in (group / "cgroup.procs").read_text(encoding="ascii").split():
            try:
                _write(home / "cgroup.procs", member)
            except ProcessLookupError:  # it has ended meanwhile
                continue
        try:
            group.rmdir()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ControlGroupError(
                    f"cannot remove {group} within {_REMOVAL:g} s: {error}; {_members(group)}; its limits are lifted, "
                    "and the next process that injects a fault removes it"
                ) from error
            time.sleep(0.01)


def _lift(group: Path) -> None:
    """Take every limit that this module may have set off `group`, of either version."""
    for path in sorted(group.glob("blkio.throttle.*_bps_device")):
        for line in path.read_text(encoding="ascii").splitlines():
            _try_to_write(path, f"{line.split()[0]} 0")
    if (group / "io.max").exists():
        for line in (group / "io.max").read_text(encoding="ascii").splitlines():
            _try_to_write(group / "io.max", f"{line.split()[0]} rbps=max wbps=max")
    for name, text in (("cpu.cfs_quota_us", "-1"), ("cpu.max", "max")):
        if (group / name).exists():
            _try_to_write(group / name, text)


@contextmanager
def _lifted_by_signals(group: Path) -> Iterator[None]:
    """Lift the limits of `group` the moment that a signal comes which is to end this process.

    Python runs a handler once its main thread is back from native code; a thread there that waits for a throttled
    transfer may not be back for minutes. The number of a signal is written to a file at once, and a thread reads it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while numbers := reading.recv(64):
            if {signal.SIGTERM, signal.SIGINT} & set(numbers):
                _lift(group)
            if before >= 0:
                with suppress(OSError):
                    os.write(before, numbers)

    thread = threading.Thread(target=watch, name="maat-fault-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writing.close()
        thread.join()
        reading.close()


def _try_to_write(path: Path, text: str) -> None:
    with suppress(OSError):  # a disk that is gone, or a limit above: the group goes all the same
        _write(path, text)


def _members(group: Path) -> str:
    """The threads in `group` with the states that they are in."""
    states = []
    try:
        for thread in (group / "tasks" if (group / "tasks").exists() else group / "cgroup.threads").read_text().split():
            with suppress(OSError):
                stat = Path(f"/proc/{thread}/stat").read_text(encoding="utf-8", errors="replace")
                states.append(f"{thread} ({stat.rpartition(')')[2].split()[0]})")
    except OSError:
        return "its members cannot be read"
    return "members and their states: " + (", ".join(states) or "none")


def _write(path: Path, text: str) -> None:
    # Unbuffered, and not created: a name that the kernel does not offer is an error, not a new file.
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)
