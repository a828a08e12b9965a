"""How layers run: which back end, how many threads, which optimisations."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from systems.ngra.graph import ProgramError


@dataclass(frozen=True)
class Settings:
    """optimize: run the passes; backend: "auto" (by the device of the data), "c", "torch" or "triton"; threads: None
    for torch's number; hoist: reuse sums of data that never change; pointwise: vertices from which elementwise
    stretches of vertex stages get kernels.
    """

    optimize: bool = True
    backend: str = "auto"
    threads: int | None = None
    hoist: bool = True
    pointwise: int = 4096

    @property
    def thread_count(self) -> int:
        """Threads that a kernel uses."""
        return self.threads or torch.get_num_threads()


_SETTINGS: contextvars.ContextVar[Settings] = contextvars.ContextVar("ngra_settings")


def current_settings() -> Settings:
    """How layers run here: as the innermost `settings` block says."""
    return _SETTINGS.get(Settings())


@contextlib.contextmanager
def settings(**changes: Any) -> Iterator[Settings]:
    """`with settings(backend="torch", threads=1): ...`: how layers run inside of the block; see `Settings`.

    Raises ProgramError for a back end that does not exist.
    """
    chosen = replace(current_settings(), **changes)
    if chosen.backend not in {"auto", "c", "torch", "triton"}:
        raise ProgramError(f'backend is {chosen.backend!r}, expected "auto", "c", "torch" or "triton"')
    if chosen.threads is not None and chosen.threads < 1:
        raise ProgramError(f"threads is {chosen.threads}, expected at least 1")
    token = _SETTINGS.set(chosen)
    try:
        yield chosen
    finally:
        _SETTINGS.reset(token)
