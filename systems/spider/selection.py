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

import torch
from torch import Tensor

from systems.spider import cpu, torch_backend
from systems.spider.cpu import Counts
from systems.spider.rules import DtypeError, PatternError

__all__ = ["Candidate", "Plan", "Problem", "RuleCost", "TileTable", "choose", "count"]

FORMAT = 1
SMALL = 4_000_000  # multiply-adds below which looking costs more than it can save
SAMPLED_BLOCKS = 64
EXACT_BLOCKS = 32  # at most this many blocks of 8 rows are all counted
BUCKETS = 24  # per factor of e: choices are shared by densities within 4 %
PROFILED_SIDE = 1024
MARGIN = 0.88  # a rule must be predicted below this share of dense: predictions err, dense is safe
SHIPPED = Path(__file__).with_name("tile_table.json")

K_RULES = {"k 1x1": 1, "k 2x1": 2, "k 4x1": 4, "k 8x1": 8}
M_RULES = {"m 1x16": 16, "m 1x32": 32, "m 1x64": 64, "m rows": 0}
TORCH_RULES = {"k 32x1": 32, "k 128x1": 128, "m rows": 0}
SAMPLED_RULES = {"out 1x1": 1, "out 2x1": 2, "out 4x1": 4, "out 8x1": 8}


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
    a rule take when there is nothing to do. `origin`: "profiled", "cached" or "shipped".
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
                if (table.machine, table.device, table.dtype) == (_machine(), device, name):
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
        return _read(tables["float64" if name == "float64" or not cpu.available() else "float32"], "shipped")

    @classmethod
    def profile(cls, device: str = "cpu", dtype: torch.dtype = torch.float32, budget_s: float = 20.0) -> TileTable:
        """Measure this machine, within `budget_s` seconds; what does not fit is left out and never chosen.

        Raises DtypeError for a dtype that has no kernels of its own: 16-bit floats use float32's table.
        """
        name = _dtype_name(dtype)
        if name not in {"float32", "float64"} or device != "cpu":
            raise DtypeError(f"there is nothing to profile for {dtype} on {device}: give float32 or float64 on the CPU")
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


@dataclass(frozen=True)
class Problem:
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


def count(x: Tensor) -> Counts:
    """The share of micro-tiles that each shape keeps, from a sample of rows of x, (m, k).

    float32 on the CPU is counted by the native kernel on up to 64 spread blocks of 8 rows; anything else in
    torch, where only the shapes of TORCH_RULES are told apart (as eights: 32x1, as fours: 128x1).
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and cpu.available():
        blocks = -(-x.shape[0] // 8)
        return cpu.profile(x, blocks if blocks <= EXACT_BLOCKS else SAMPLED_BLOCKS)
    kept = x != 0
    rows = kept.any(1)

    def share(size: int) -> float:
        groups = torch.nn.functional.pad(kept, (0, 0, 0, -x.shape[0] % size)).view(-1, size, x.shape[1]).any(1)
        return float(groups.float().mean())

    if not kept.numel():
        return Counts(*[0.0] * len(Counts._fields))
    elements = float(kept.float().mean())
    whole = float(rows.float().mean())
    return Counts(elements, elements, share(128), share(32), whole, whole, whole, whole)


def choose(
    counts: Counts, problem: Problem, table: TileTable, expression: str, backend: str, *, forced: bool = False
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
    counts = Counts(*(math.exp(bucket / BUCKETS) if bucket > -10_000 else 0.0 for bucket in buckets))
    rules = {**K_RULES, **M_RULES} if backend == "native" else TORCH_RULES
    if expression.startswith("out"):
        rules = SAMPLED_RULES
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


def kept_share(rule: str, counts: Counts) -> float:
    """Of `counts`, the one that belongs to a rule."""
    shares = {
        "k 1x1": counts.elements, "k 2x1": counts.pairs, "k 4x1": counts.fours, "k 8x1": counts.eights,
        "m 1x16": counts.strips16, "m 1x32": counts.strips32, "m 1x64": counts.strips64, "m rows": counts.rows,
        "k 32x1": counts.eights, "k 128x1": counts.fours, "out 1x1": counts.elements, "out 2x1": counts.pairs,
        "out 4x1": counts.fours, "out 8x1": counts.eights,
    }  # fmt: skip
    return shares[rule]


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
    n = PROFILED_SIDE
    dtype = getattr(torch, name)
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(n, n, generator=generator, dtype=dtype).to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dense = _seconds(lambda: torch.mm(b, b))
        tiny = torch.ones(8, 8, dtype=dtype, device=device)
        fixed = _seconds(lambda: torch.mm(tiny, tiny))
        native = name == "float32" and device == "cpu" and cpu.available()
        wanted = {**K_RULES, **M_RULES, **SAMPLED_RULES} if native else TORCH_RULES
        rules = {}
        for rule, size in wanted.items():
            if time.perf_counter() > deadline:
                warnings.warn(f"the budget is spent before {rule} was profiled: it is never chosen", stacklevel=3)
                break
            rules[rule] = _cost_of(rule, size or n, b, generator, native)
        call = _seconds(lambda: _by_rule(tiny, native))
        return cls(device, name, _machine(), (dense - fixed) / n**3, fixed, call, rules)
    finally:
        torch.set_num_threads(threads)


def _by_rule(a: Tensor, native: bool) -> Tensor:
    count(a)
    if native:
        return cpu.k_gather(cpu.detect_columns(a, 8, True), 8, a, a.shape[0])
    return torch_backend.k_gather(torch_backend.detect(a, 8, 1, True), 8, a, a.shape[0])


def _cost_of(rule: str, size: int, b: Tensor, generator: torch.Generator, native: bool) -> RuleCost:
    """Fit the five constants from an empty matrix and two densities."""
    n = b.shape[0]
    device = b.device.type
    densities = (0.0, 0.05, 0.4)
    detections, products, entries = [], [], []
    for density in densities:
        if rule.startswith("m"):
            kept = torch.rand(n, n // size, generator=generator).lt(density).repeat_interleave(size, 1)
        else:
            kept = torch.rand(n // size, n, generator=generator).lt(density).repeat_interleave(size, 0)
        a = torch.where(kept.to(device), b, torch.zeros((), dtype=b.dtype, device=device))
        if native:
            detector = cpu.detect_rows if rule.startswith("m") else cpu.detect_columns
            index = detector(a, size, True)
            if rule.startswith("out"):
                product: Callable[[], Tensor] = functools.partial(cpu.sampled, index, size, b, b, "dense")
            elif rule.startswith("m"):
                product = functools.partial(cpu.m_gather, index, size, b, n)
            else:
                product = functools.partial(cpu.k_gather, index, size, b, n)
            detections.append(_seconds(functools.partial(detector, a, size, True)))
        else:
            axis = 0 if rule.startswith("m") else 1
            index = torch_backend.detect(a, size, axis, True)
            gather = torch_backend.m_gather if axis == 0 else torch_backend.k_gather
            product = functools.partial(gather, index, size, b, n)
            detections.append(_seconds(functools.partial(torch_backend.detect, a, size, axis, True)))
        products.append(_seconds(product))
        entries.append(index.indices.numel())
    macs = [float(count) * size * n for count in entries]
    mac = max(products[2] - products[1], 0.0) / max(macs[2] - macs[1], 1.0)
    panel = max(products[1] - products[0] - mac * macs[1], 0.0) / n**2
    entry = max(detections[2] - detections[0], 0.0) / max(entries[2], 1)
    return RuleCost(detections[0] / n**2, entry, products[0] / n**2, panel, mac)


def _seconds(fn: Callable[[], Tensor | cpu.Arrays]) -> float:
    """The best CPU seconds of a few runs: other load only ever adds."""
    fn()
    best = math.inf
    begin = time.perf_counter()
    while time.perf_counter() - begin < 0.06 or best == math.inf:
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


def _machine() -> str:
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


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all: temporary name, flush, rename."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
