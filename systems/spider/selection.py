"""Which rule to run: a measured tile table, a cost for every candidate, and a plan that shows its reasons.

    cost = call + detect + product
    detect  = elements of S * detect_element + kept micro-tiles * detect_entry
    product = output * out + dense operand * panel + kept elements * columns * mac

The five constants of each rule, and those of the dense product, are measured once per machine and dtype
(`TileTable.profile`). How many micro-tiles each rule would keep is counted on a sample of the rows, in one pass
for all shapes; dense is always a candidate. A plan depends on nothing else, so none is ever stale: what is kept
between calls is the choice for a bucket of densities, not the density.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from systems.spider import cpu, torch_backend
from systems.spider.cpu import Counts
from systems.spider.rules import DtypeError, PatternError

__all__ = ["Candidate", "Plan", "Problem", "RuleCost", "TileTable", "choose", "count", "glance"]

FORMAT = 1
SMALL = 4_000_000  # multiply-adds below which looking costs more than it can save
MODEST = 200_000_000  # multiply-adds below which a glance comes first: where it finds little, nothing more is counted
GLANCED_BLOCKS = 8
SAMPLED_BLOCKS = 64
WIDE_BLOCKS = 16  # blocks of 128 rows that are counted where the native kernel does not count
EXACT_BLOCKS = 32  # at most this many blocks of 8 rows are all counted
BUCKETS = 24  # per factor of e: choices are shared by densities within 4 %
PROFILED_SIDE = 1024
PROFILED_GPU_SIDE = 4096
MARGIN = 0.88  # a rule must be predicted below this share of dense: predictions err, dense is safe
PROFILED = (("cpu", "float32"), ("cpu", "float64"), ("cuda", "float32"), ("cuda", "bfloat16"))
SHIPPED = Path(__file__).with_name("tile_table.json")

K_RULES = {"k 1x1": 1, "k 2x1": 2, "k 4x1": 4, "k 8x1": 8}
M_RULES = {"m 1x16": 16, "m 1x32": 32, "m 1x64": 64, "m rows": 0}
TORCH_RULES = {"k 32x1": 32, "k 128x1": 128, "m rows": 0}
SAMPLED_RULES = {"out 1x1": 1, "out 2x1": 2, "out 4x1": 4, "out 8x1": 8}
GPU_K_RULES = {"k 16x1": 16, "k 32x1": 32, "k 64x1": 64, "k 128x1": 128}
GPU_M_RULES = {"m 1x32": 32, "m 1x64": 64, "m 1x128": 128, "m rows": 0}
GPU_SAMPLED_RULES = {"out 16x1": 16, "out 32x1": 32, "out 64x1": 64, "out 128x1": 128}
RULES = {
    "native": {**K_RULES, **M_RULES, **SAMPLED_RULES},
    "torch": TORCH_RULES,
    "triton": {**GPU_K_RULES, **GPU_M_RULES, **GPU_SAMPLED_RULES},
}


class WideCounts(NamedTuple):
    """As `cpu.Counts`, for the micro-tiles of a GPU and of plain torch."""

    sixteens: float
    thirties: float
    sixties: float
    hundreds: float
    strips32: float
    strips64: float
    strips128: float
    rows: float


SHARES = {
    "native": {
        "1x1": "elements", "2x1": "pairs", "4x1": "fours", "8x1": "eights",
        "1x16": "strips16", "1x32": "strips32", "1x64": "strips64", "rows": "rows",
    },
    "wide": {
        "16x1": "sixteens", "32x1": "thirties", "64x1": "sixties", "128x1": "hundreds",
        "1x32": "strips32", "1x64": "strips64", "1x128": "strips128", "rows": "rows",
    },
}  # fmt: skip
"""Which count belongs to a micro-tile."""


@dataclass(frozen=True)
class RuleCost:
    """Seconds, on one thread, per unit of each kind of work; see the module."""

    detect_element: float
    detect_entry: float
    out: float
    panel: float
    mac: float


@dataclass(frozen=True)
class TileTable:
    """What was measured on one machine for one dtype.

    dense_mac: seconds per multiply-add of a dense product; fixed and call: seconds that a dense product and one by
    a rule take when there is nothing to do. `origin`: "profiled", "cached", "shipped", or "estimated": from the
    rooflines of an H100, for a GPU that was not profiled yet.
    """

    device: str
    dtype: str
    machine: str
    dense_mac: float
    fixed: float
    call: float
    rules: Mapping[str, RuleCost] = field(default_factory=dict)
    origin: str = "profiled"

    @classmethod
    def load(cls, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TileTable:
        """The table of this machine: from the cache of an earlier `save`, else the one that ships.

        A damaged file, or one of another machine, is ignored with a warning.
        """
        name = _dtype_name(dtype)
        path = _cache_file(device, name)
        if path.exists():
            try:
                table = _read(json.loads(path.read_text(encoding="utf-8")), "cached")
                if (table.machine, table.device, table.dtype) == (_machine(device), device, name):
                    return table
                warnings.warn(f"{path} is of another machine ({table.machine}); ignored", RuntimeWarning, stacklevel=2)
            except (OSError, ValueError, TypeError, KeyError) as error:
                warnings.warn(
                    f"the tile table {path} cannot be read ({error}) and is ignored; make a new one with "
                    "python -m systems.spider profile",
                    RuntimeWarning,
                    stacklevel=2,
                )
        tables = json.loads(SHIPPED.read_text(encoding="utf-8"))["tables"]
        if device == "cuda":
            return _read(tables[f"cuda-{name}"], "estimated")
        return _read(tables["float64" if name == "float64" or not cpu.available() else "float32"], "shipped")

    @classmethod
    def profile(cls, device: str = "cpu", dtype: torch.dtype = torch.float32, budget_s: float = 20.0) -> TileTable:
        """Measure this machine, within `budget_s` seconds; what does not fit is left out and never chosen.

        Raises DtypeError for a dtype that has no table of its own: on the CPU 16-bit floats use float32's, on a GPU
        float16 uses bfloat16's.
        """
        name = _dtype_name(dtype)
        if (device, name) not in PROFILED:
            choices = ", ".join(f"{where} {what}" for where, what in PROFILED)
            raise DtypeError(f"there is nothing to profile for {dtype} on {device!r}: expected one of {choices}")
        return _profile(cls, device, name, time.perf_counter() + budget_s)

    def save(self) -> Path:
        """Keep the table for later processes (`$MAAT_CACHE/spider`, or the user's cache); returns the file."""
        path = _cache_file(self.device, self.dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1))
        return path


@dataclass(frozen=True)
class Candidate:
    """One way to do the work, with its predicted seconds and the share of micro-tiles that it keeps."""

    name: str
    seconds: float
    kept: float


class Problem(NamedTuple):
    """S of shape (m, k) times (k, n) on `threads` threads; for a sampled output S is (m, k), n the dots' length."""

    m: int
    k: int
    n: int
    threads: int


@dataclass(frozen=True)
class Plan:
    """What will run: `rule` ("dense", "k 8x1", "m 1x32", "m rows", ...), and every candidate, cheapest first."""

    expression: str
    backend: str
    rule: str
    candidates: tuple[Candidate, ...]
    problem: Problem
    table: str
    why: str = "the cheapest by the tile table"

    @property
    def micro_tile(self) -> tuple[int, int] | None:
        """(r, 1) or (1, c) of the sparse operand; None where the product is dense."""
        found = re.fullmatch(r"(?:k|out) (\d+)x1", self.rule)
        if found:
            return int(found[1]), 1
        found = re.fullmatch(r"m 1x(\d+)", self.rule)
        return (1, int(found[1])) if found else (1, max(1, self.problem.k)) if self.rule == "m rows" else None

    def forced(self, rule: str, backend: str | None = None) -> Plan:
        """This plan with another rule: "dense", "k 8x1", "m 1x32", "m rows", "out 4x1" and the like.

        Raises PatternError for a rule of no such form.
        """
        if not re.fullmatch(r"dense|m rows|(k|out) [1-9]\d*x1|m 1x[1-9]\d*", rule):
            raise PatternError(f"rule is {rule!r}, expected 'dense', 'm rows', or the like of 'k 8x1' and 'm 1x32'")
        return replace(self, rule=rule, backend="dense" if rule == "dense" else backend or self.backend, why="forced")

    @property
    def predicted_s(self) -> float:
        """Seconds that the chosen rule should take; NaN where nothing was predicted."""
        return next((c.seconds for c in self.candidates if c.name == self.rule), math.nan)

    def explain(self) -> str:
        """Every candidate with its predicted cost; the chosen one is marked."""
        p = self.problem
        what = (
            f"{self.expression}: S ({p.m}, {p.k}) times ({p.k}, {p.n}), {p.threads} threads, {self.backend} backend, "
            f"{self.table} tile table"
        )
        lines = [what, f"chosen: {self.rule} ({self.why})"]
        best = self.predicted_s
        for c in self.candidates:
            mark = ">" if c.name == self.rule else " "
            lines.append(f"{mark} {c.name:8} {c.seconds * 1e3:10.3f} ms  {c.seconds / best:6.2f}x  keeps {c.kept:6.1%}")
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------------- selection


def count(x: Tensor, backend: str) -> Counts | WideCounts:
    """The share of micro-tiles that each shape of a backend keeps, from a sample of rows of x, (m, k).

    "native": of float32 on the CPU, up to 64 spread blocks of 8 rows; else up to 16 spread blocks of 128 rows, counted
    in torch. On a GPU the host waits here once, for eight numbers: a plan given to `matmul` spares it that.
    """
    if backend == "native":
        blocks = -(-x.shape[0] // 8)
        return cpu.profile(x, blocks if blocks <= EXACT_BLOCKS else SAMPLED_BLOCKS)
    if not x.numel():
        return WideCounts(*[0.0] * len(WideCounts._fields))
    rows = x.shape[0]
    if rows > WIDE_BLOCKS * 128:
        starts = torch.linspace(0, rows // 128 - 1, WIDE_BLOCKS, device=x.device).long() * 128
        x = x[(starts[:, None] + torch.arange(128, device=x.device)).view(-1)]
    kept = x != 0
    shares = []
    for part, sizes in ((kept, (16, 32, 64, 128)), (kept.t(), (32, 64, 128))):
        extent = part.shape[0]
        wide = torch.nn.functional.pad(part, (0, 0, 0, -extent % 128)).unflatten(0, (-1, sizes[0])).any(1)
        for size in sizes:
            blocks = -(-extent // size)
            shares.append(wide[:blocks].float().mean())
            wide = wide.unflatten(0, (-1, 2)).any(1) if size < 128 else wide
    return WideCounts(*torch.stack([*shares, kept.any(1).float().mean()]).tolist())


def glance(x: Tensor) -> Counts:
    """As `count` for the native kernels, of 8 spread blocks of 8 rows of x, (m, k) float32 with unit stride."""
    return cpu.profile(x, GLANCED_BLOCKS)


def choose(
    counts: Counts | WideCounts,
    problem: Problem,
    table: TileTable,
    expression: str,
    backend: str,
    *,
    forced: bool = False,
) -> Plan:
    """The cheapest candidate for S with these counts; equal inputs to within a bucket give the same plan.

    forced: leave dense out, for a caller who names a backend.
    """
    buckets = tuple(round(BUCKETS * math.log(share)) if share > 0 else -10_000 for share in counts)
    return _choose(buckets, problem, _Key(table), expression, backend, forced)


@dataclass(frozen=True, eq=False)
class _Key:
    """A table as the key of a cache: by identity, since tables are immutable and loaded once."""

    table: TileTable

    def __hash__(self) -> int:
        return id(self.table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.table is self.table


@functools.lru_cache(maxsize=4096)
def _choose(buckets: tuple[int, ...], p: Problem, key: _Key, expression: str, backend: str, forced: bool) -> Plan:
    table = key.table
    values = (math.exp(bucket / BUCKETS) if bucket > -10_000 else 0.0 for bucket in buckets)
    counts = Counts(*values) if backend == "native" else WideCounts(*values)
    wanted = expression.startswith("out")
    rules = {name: size for name, size in RULES[backend].items() if name.startswith("out") == wanted}
    candidates = [Candidate("dense", table.fixed + table.dense_mac * p.m * p.k * p.n / p.threads, 1.0)]
    for name, size in rules.items():
        cost = table.rules.get(name)
        if cost is not None:
            kept = min(1.0, kept_share(name, counts))
            candidates.append(Candidate(name, predicted(cost, name, size, kept, p) + table.call, kept))
    candidates.sort(key=lambda c: c.seconds)
    best = next((c for c in candidates if c.name != "dense" or not forced), candidates[0])
    dense = next(c for c in candidates if c.name == "dense")
    if not forced and best.name != "dense" and best.seconds > MARGIN * dense.seconds:
        why = f"{best.name} is predicted within {1 - MARGIN:.0%} of it"
        return Plan(expression, "dense", "dense", tuple(candidates), p, table.origin, why)
    backend = "dense" if best.name == "dense" else backend
    return Plan(expression, backend, best.name, tuple(candidates), p, table.origin)


def kept_share(rule: str, counts: Counts | WideCounts) -> float:
    """Of `counts`, the one that belongs to a rule."""
    shares = SHARES["native" if isinstance(counts, Counts) else "wide"]
    return float(getattr(counts, shares[rule.partition(" ")[2]]))


def predicted(cost: RuleCost, name: str, size: int, kept: float, p: Problem) -> float:
    """Seconds of detection and product for a rule that keeps a share `kept` of its micro-tiles."""
    size = size or max(1, p.k)
    elements = p.m * p.k * kept
    detect = p.m * p.k * cost.detect_element + elements / size * cost.detect_entry
    if name.startswith("out"):  # S is (m, k): n is the length of each dot product
        return (detect + p.m * p.k * cost.out + elements * p.n * cost.mac) / p.threads
    copied = p.k * p.n * cost.panel * min(1.0, elements / size / max(1, p.k) / cpu.REUSE)
    return (detect + p.m * p.n * cost.out + copied + elements * p.n * cost.mac) / p.threads


# ------------------------------------------------------------------------------------------------- profiling


def _profile(cls: type[TileTable], device: str, name: str, deadline: float) -> TileTable:
    n = PROFILED_SIDE if device == "cpu" else PROFILED_GPU_SIDE
    dtype = getattr(torch, name)
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(n, n, generator=generator).to(device, dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dense = _seconds(lambda: torch.mm(b, b), device)
        tiny = torch.ones(8, 8, dtype=dtype, device=device)
        fixed = _seconds(lambda: torch.mm(tiny, tiny), device)
        backend = "torch"
        if device == "cuda":
            backend = "triton"
        elif name == "float32" and cpu.available():
            backend = "native"
        rules = {}
        for rule, size in RULES[backend].items():
            if time.perf_counter() > deadline:
                warnings.warn(f"the budget is spent before {rule} was profiled: it is never chosen", stacklevel=3)
                break
            rules[rule] = _cost_of(rule, size or n, b, generator, backend)
        call = max(_seconds(lambda: _by_rule(tiny, backend), device) - fixed, 0.0)
        return cls(device, name, _machine(device), (dense - fixed) / n**3, fixed, call, rules)
    finally:
        torch.set_num_threads(threads)


def _module(backend: str) -> ModuleType:
    if backend == "triton":
        from systems.spider import gpu

        return gpu
    return cpu if backend == "native" else torch_backend


def _find(x: Tensor, size: int, axis: int, backend: str) -> cpu.Arrays:
    if backend == "native":
        return cpu.detect_columns(x, size, True) if axis == 1 else cpu.detect_rows(x, size, True)
    found = _module(backend).detect(x, size, axis, True)
    return cpu.Arrays(*found)


def _by_rule(a: Tensor, backend: str) -> Tensor:
    """All that a product by a rule does, for an operand so small that only the calls take time."""
    count(a, backend)
    size = 8 if backend == "native" else 32
    product: Tensor = _module(backend).k_gather(_find(a, size, 1, backend), size, a, a.shape[0])
    return product


def _cost_of(rule: str, size: int, b: Tensor, generator: torch.Generator, backend: str) -> RuleCost:
    """Fit the five constants from an empty matrix and two densities."""
    n, device, module = b.shape[0], b.device.type, _module(backend)
    axis = 0 if rule.startswith("m") else 1
    densities = (0.0, 0.05, 0.4)
    detections, products, entries = [], [], []
    for density in densities:
        blocks = (n, n // size) if axis == 0 else (n // size, n)
        kept = torch.rand(*blocks, generator=generator).lt(density).repeat_interleave(size, 1 - axis)
        a = torch.where(kept.to(device), b, torch.zeros((), dtype=b.dtype, device=device))
        index = _find(a, size, axis, backend)
        if rule.startswith("out"):
            product: Callable[[], object] = functools.partial(module.sampled, index, size, b, b, "dense")
        else:
            product = functools.partial(module.k_gather if axis == 1 else module.m_gather, index, size, b, n)
        detections.append(_seconds(functools.partial(_find, a, size, axis, backend), device))
        products.append(_seconds(product, device))
        entries.append(int((index.offsets[1:] if index.ends is None else index.ends).sub(index.offsets[:-1]).sum()))
    macs = [float(count) * size * n for count in entries]
    mac = max(products[2] - products[1], 0.0) / max(macs[2] - macs[1], 1.0)
    panel = max(products[1] - products[0] - mac * macs[1], 0.0) / n**2
    entry = max(detections[2] - detections[0], 0.0) / max(entries[2], 1)
    return RuleCost(detections[0] / n**2, entry, products[0] / n**2, panel, mac)


def _seconds(fn: Callable[[], object], device: str) -> float:
    """The best seconds of a few runs, of the CPU or as a GPU's events count them: other load only ever adds."""
    fn()
    best = math.inf
    begin = time.perf_counter()
    while time.perf_counter() - begin < 0.06 or best == math.inf:
        if device == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            fn()
            last.record()
            last.synchronize()
            best = min(best, first.elapsed_time(last) / 1e3)
        else:
            start = time.process_time()
            fn()
            best = min(best, time.process_time() - start)
    return max(best, 1e-7)


# ----------------------------------------------------------------------------------------------------- files


def _read(record: Mapping[str, object], origin: str) -> TileTable:
    fields = dict(record)
    if fields.pop("format", FORMAT) != FORMAT:
        raise ValueError(f"format is not {FORMAT}")
    rules = fields.pop("rules")
    if not isinstance(rules, Mapping):
        raise TypeError("rules is not a table")
    costs = {str(name): RuleCost(**{key: float(value) for key, value in cost.items()}) for name, cost in rules.items()}
    numbers = {name: float(str(fields.pop(name))) for name in ("dense_mac", "fixed", "call")}
    texts = {name: str(fields.pop(name)) for name in ("device", "dtype", "machine")}
    values = [*numbers.values(), *(value for cost in costs.values() for value in asdict(cost).values())]
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError("a cost is not a number of seconds")
    machine = (texts["device"], texts["dtype"], texts["machine"])
    return TileTable(*machine, numbers["dense_mac"], numbers["fixed"], numbers["call"], costs, origin)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _machine(device: str = "cpu") -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = next(
        (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith(("model name", "CPU part"))), ""
    )
    return f"{platform.machine()} {model}".strip()


@functools.cache
def _cpu_lines() -> tuple[str, ...]:
    try:
        return tuple(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return ()


def _cache_file(device: str, dtype: str) -> Path:
    root = os.environ.get("MAAT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maat"
    return Path(root).absolute() / "spider" / f"tile_table-{device}-{dtype}.json"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary name, flush, rename. Text as UTF-8."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
