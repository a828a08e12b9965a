"""Spider on a GPU beside its peers, in one call that fits a machine lent for ten minutes.

Every output is compared before it is timed. Contenders take turns, with the L2 cache flushed before each; seconds are
those of CUDA events, medians over the rounds. Conversion, detection and the building of masks are counted whenever the
pattern would be new at each step. What was measured is written after every phase (one JSON file with the machine and
the ratios, one Parquet file with a row per contender), so an interrupted run keeps what it had.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from systems.spider import (
    MaskedLinear,
    RaggedEncoderLayer,
    ReluFFN,
    TileTable,
    attention,
    detect,
    matmul,
    moe_ffn,
    pack,
    plan,
)
from systems.spider.gpu_timing import Bench, Row, difference
from systems.spider.patterns import block_mask
from systems.spider.selection import write_whole

__all__ = ["Sizes", "main", "run"]


@dataclass(frozen=True)
class Sizes:
    """Extents of every case. `Sizes()` is the full run; `TINY` runs in Triton's interpreter, as a test of this file."""

    dense: tuple[int, ...] = (4096, 8192)
    product: int = 4096
    rows: tuple[int, int, int] = (16384, 4096, 4096)
    sparsities: tuple[float, ...] = (0.5, 0.9, 0.95, 0.99)
    tiles: tuple[tuple[int, int], ...] = ((32, 1), (128, 1), (1, 64), (1, 1 << 20), (32, 64), (64, 64))
    bsr: int = 32
    experts: tuple[tuple[int, int, int, int, int], ...] = ((128, 2048, 768, 8, 4096), (128, 2048, 768, 8, 32768))
    lengths: tuple[int, int] = (32, 512)
    model: tuple[int, int, int] = (768, 12, 3072)
    tokens: int = 8192
    attention: tuple[int, int, int, int] = (4096, 256, 64, 12)
    odd: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (33, 65, 17), (130, 127, 129), (256, 512, 64))
    rounds: int = 15


TINY = Sizes(
    dense=(32,), product=32, rows=(64, 32, 32), sparsities=(0.9,), tiles=((32, 1), (1, 1 << 20)), bsr=16,
    experts=((2, 16, 16, 1, 24),), lengths=(3, 20), model=(32, 2, 64), tokens=32, attention=(48, 8, 2, 1),
    odd=((1, 1, 1), (17, 33, 16)), rounds=2,
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------- phases


def correctness(bench: Bench, sizes: Sizes) -> None:
    """Every kernel against float64 on small odd shapes; an error here ends the run."""
    for m, k, n in sizes.odd:
        for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)):
            a = torch.where(block_mask(m, k, (4, 1), 0.7).to(bench.device), bench.randn(m, k), 0).to(dtype)
            b = bench.randn(k, n, dtype=dtype)
            truth = a.double() @ b.double()
            chosen = plan("mk,kn->mn", a, b)
            for rule in ("k 16x1", "k 32x1", "k 128x1", "m 1x32", "m 1x128", "m rows"):
                y = matmul(a, b, plan=chosen.forced(rule, "triton"), backend="triton")
                error = difference(truth, y)
                if error > allowed:
                    raise AssertionError(f"{rule} of {(m, k, n)} {dtype}: differs from float64 by {error:.2g}")
                bench.rows.append(
                    Row("correctness", f"{m}x{k}x{n} {dtype}", rule, math.nan, math.nan, 0, 0, "1", error)
                )
    bench.say(f"correctness: {len(bench.rows)} results agree with float64")


def calibration(bench: Bench, sizes: Sizes) -> None:
    """What this GPU can do: dense products by cuBLAS, and copies."""
    for n in sizes.dense:
        for dtype in (torch.bfloat16, torch.float32):
            a, b = bench.randn(n, n, dtype=dtype), bench.randn(n, n, dtype=dtype)
            bench.versus(
                "calibration", f"dense {n} {_name(dtype)}", {"cublas": partial(torch.matmul, a, b)}, 2.0 * n**3
            )
    x = torch.empty(64 * sizes.product**2, dtype=torch.int8, device=bench.device)
    bench.versus("calibration", "copy", {"copy": x.clone}, 2.0 * x.numel(), "B/s")


def products(bench: Bench, sizes: Sizes) -> None:
    """The paper's grid at `product`^3, bf16 and fp32: ours by a plan, detection counted; torch with conversion."""
    n = sizes.product
    for dtype in (torch.bfloat16, torch.float32):
        for tile in sizes.tiles:
            for sparsity in sizes.sparsities:
                r, c = min(tile[0], n), min(tile[1], n)
                mask = block_mask(n, n, (r, c), sparsity).to(bench.device)
                a = torch.where(mask, bench.randn(n, n), 0).to(dtype)
                b = bench.randn(n, n, dtype=dtype)
                chosen = plan("mk,kn->mn", a, b)
                contenders: dict[str, Callable[[], Any]] = {
                    "spider": partial(matmul, a, b, plan=chosen),
                    "cublas": partial(torch.matmul, a, b),
                }
                if r > 1 and c > 1 and c < n:
                    contenders["bsr"] = partial(_by_bsr, a, b, (r, c))
                elif dtype == torch.float32:
                    contenders["csr"] = partial(_by_csr, a, b)
                name = f"{'rows' if tile[1] > n else f'{r}x{c}'} {sparsity} {_name(dtype)}"
                found = bench.versus("products", name, contenders, 2.0 * n**3, reference=a @ b)
                if found:
                    row = found["spider"]
                    bench.rows[bench.rows.index(row)] = replace(row, note=f"rule {chosen.rule}")
    size = sizes.bsr
    mask = block_mask(n, n, (size, size), 0.9).to(bench.device)
    a, b = torch.where(mask, bench.randn(n, n), 0).bfloat16(), bench.randn(n, n, dtype=torch.bfloat16)
    chosen = plan("mk,kn->mn", a, b)
    bench.versus(
        "products",
        f"{size}x{size} 0.9 over bsr",
        {
            "spider": lambda: matmul(a, b, plan=chosen),
            "bsr": partial(_by_bsr, a, b, (size, size)),
            "cublas": lambda: a @ b,
        },
        2.0 * n**3,
    )
    m, k, columns = sizes.rows
    x, w = bench.randn(m, k, dtype=torch.bfloat16), bench.randn(k, columns, dtype=torch.bfloat16)
    x[torch.randperm(m, device=bench.device)[: m // 2]] = 0
    half = bench.randn(m // 2, k, dtype=torch.bfloat16)
    by_rows = plan("mk,kn->mn", x, w).forced("m rows", "triton")
    work = 2.0 * (m // 2) * k * columns
    bench.versus("rows", f"{m // 2} of {m}", {"spider": lambda: matmul(x, w, plan=by_rows)}, work, reference=x @ w)
    bench.versus("rows", f"dense {m // 2}", {"cublas": lambda: half @ w}, work)


def detection(bench: Bench, sizes: Sizes) -> None:
    """Finding and packing 32x1 micro-tiles of a bf16 matrix, beside a copy of it and torch's conversions."""
    n = sizes.product
    a = torch.where(block_mask(n, n, (32, 1), 0.9).to(bench.device), bench.randn(n, n), 0).bfloat16()
    index = detect(a, (32, 1), pack=True)
    if not torch.equal(index.to_mask() & (a != 0), a != 0):
        raise AssertionError("detection missed a non-zero")
    read = 2.0 * n * n
    bench.versus("detection", "32x1 0.9", {"spider": lambda: _values(detect(a, (32, 1), pack=True))}, read, "B/s")
    bench.versus("detection", "copy", {"copy": a.clone}, 2 * read, "B/s")
    bench.versus("detection", "to csr", {"csr": lambda: a.to_sparse_csr().values()}, read, "B/s")
    bench.versus("detection", "to bsr", {"bsr": lambda: a.to_sparse_bsr((32, 32)).values()}, read, "B/s")


def experts(bench: Bench, sizes: Sizes) -> None:
    """SwiGLU experts in bf16, forward and forward with backward, beside `grouped_mm`."""
    for number, d, hidden, top, tokens in sizes.experts:
        x = bench.randn(tokens, d, dtype=torch.bfloat16)
        w_in = (bench.randn(number, d, 2 * hidden) / d**0.5).bfloat16()
        w_out = (bench.randn(number, hidden, d) / hidden**0.5).bfloat16()
        ids = torch.rand(tokens, number, generator=bench.generator, device=bench.device).topk(top).indices
        weights = torch.rand(tokens, top, generator=bench.generator, device=bench.device).bfloat16()

        work = 6.0 * tokens * top * d * hidden
        case = f"E={number} D={d} H={hidden} k={top} T={tokens}"
        with torch.no_grad():
            bench.versus(
                "experts",
                case,
                {
                    "spider": partial(_swiglu_experts, ids, weights, x, w_in, w_out),
                    "grouped_mm": partial(_grouped_experts, ids, weights, x, w_in, w_out),
                },
                work,
            )
        leaves = [t.clone().requires_grad_() for t in (x, w_in, w_out)]
        dy = torch.ones_like(x)
        bench.versus(
            "experts",
            f"{case} with backward",
            {
                "spider": partial(_step, partial(_swiglu_experts, ids, weights, *leaves), leaves, dy),
                "grouped_mm": partial(_step, partial(_grouped_experts, ids, weights, *leaves), leaves, dy),
            },
            3 * work,
            tolerance=5e-2,
            graphs=False,
        )


def layers(bench: Bench, sizes: Sizes) -> None:
    """A BERT-size encoder layer on items of many lengths, and a ReLU FFN that fires for one unit in ten."""
    items, longest = sizes.lengths
    d, heads, hidden = sizes.model
    dense = torch.nn.TransformerEncoderLayer(d, heads, hidden, dropout=0.0, activation="gelu", batch_first=True)
    dense = dense.to(bench.device).eval()
    ours = RaggedEncoderLayer(d, heads, hidden).to(bench.device).eval()
    ours.load_dense(dense)
    lengths = (torch.linspace(0.05, 1.0, items) ** 2 * longest).long().clamp(min=1).to(bench.device)
    x = bench.randn(items, longest, d)
    padding = torch.arange(longest, device=bench.device)[None] >= lengths[:, None]
    ragged = pack(x, lengths)
    attend = dense.self_attn

    def padded() -> Tensor:
        h = dense.norm1(x + attend(x, x, x, key_padding_mask=padding, need_weights=False)[0])
        return dense.norm2(h + dense.linear2(F.gelu(dense.linear1(h))))[~padding]

    work = 2.0 * int(lengths.sum()) * (4 * d * d + 2 * d * hidden)
    with torch.no_grad():
        bench.versus(
            "layers", f"encoder, {items} items to {longest}, fp32",
            {"spider": lambda: ours(ragged).values, "padded": padded}, work, tolerance=1e-3, graphs=False,
        )  # fmt: skip
    tokens = sizes.tokens
    ffn = ReluFFN(d, hidden).to(bench.device).bfloat16()
    ffn.b_in.data -= 0.8
    rows = bench.randn(tokens, d, dtype=torch.bfloat16).requires_grad_()
    dy = torch.ones_like(rows)
    leaves = [rows, *ffn.parameters()]

    def plain(x: Tensor) -> Tensor:
        return torch.relu(F.linear(x, ffn.w_in, ffn.b_in)) @ ffn.w_out + ffn.b_out

    bench.versus(
        "layers", f"ReLU FFN step, {tokens} tokens, bf16",
        {
            "spider": partial(_step, lambda: ffn(rows), leaves, dy),
            "dense": partial(_step, lambda: plain(rows), leaves, dy),
        },
        12.0 * tokens * d * hidden, tolerance=5e-2, graphs=False,
    )  # fmt: skip
    masked = MaskedLinear(d, hidden, (32, 1)).to(bench.device).bfloat16()
    masked.prune(0.9)
    wide = torch.ones(tokens, hidden, dtype=torch.bfloat16, device=bench.device)
    inputs = [rows, *masked.parameters()]
    bench.versus(
        "layers", f"masked weights step, 32x1 0.9, {tokens} tokens, bf16",
        {
            "spider": partial(_step, lambda: masked(rows), inputs, wide),
            "dense": partial(
                _step, lambda: F.linear(rows, masked.weight * masked.mask, masked.bias), inputs, wide
            ),
        },
        6.0 * tokens * d * hidden, tolerance=5e-2, graphs=False,
    )  # fmt: skip


def windows(bench: Bench, sizes: Sizes) -> None:
    """Longformer's attention with scattered global tokens, the mask new at each call, beside compiled FlexAttention."""
    size, window, spread, heads = sizes.attention
    q, k, v = (bench.randn(1, heads, size, 64, dtype=torch.bfloat16) for _ in range(3))
    where = torch.randperm(size, device=bench.device)[:spread]
    wide = torch.zeros(size, dtype=torch.bool, device=bench.device)
    wide[where] = True
    i = torch.arange(size, device=bench.device)
    contenders: dict[str, Callable[[], Any]] = {
        "spider": lambda: attention(q, k, v, window=window, global_tokens=where),
    }

    def masked() -> Tensor:
        mask = ((i[:, None] - i).abs() <= window) | wide[:, None] | wide
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    if bench.device == "cuda":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        compiled, built = torch.compile(flex_attention), torch.compile(create_block_mask)

        def seen(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return ((i - j).abs() <= window) | wide[i] | wide[j]

        contenders["flex"] = lambda: compiled(q, k, v, block_mask=built(seen, None, None, size, size, device="cuda"))
    contenders["sdpa"] = masked
    pairs = float((((i[:, None] - i).abs() <= window) | wide[:, None] | wide).sum())
    with torch.no_grad():
        bench.versus("attention", f"S={size} window={window} global={spread}", contenders, 4 * 64 * heads * pairs,
                     graphs=False)  # fmt: skip


PHASES: Mapping[str, Callable[[Bench, Sizes], None]] = {
    "correctness": correctness,
    "calibration": calibration,
    "products": products,
    "detection": detection,
    "experts": experts,
    "layers": layers,
    "attention": windows,
}


# ------------------------------------------------------------------------------------------------------- results


def ratios(rows: list[Row]) -> Iterator[tuple[str, float]]:
    """Of each case, ours over each peer (above 1: ours is faster), and the claims that are no plain ratio."""
    cases: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row.phase, row.case), {})[row.contender] = row
    for (phase, case), found in cases.items():
        if "spider" in found:
            for name, row in found.items():
                if name != "spider" and row.seconds > 0:
                    yield f"{phase}: {case}: over {name}", row.seconds / found["spider"].seconds
    by_phase = {(row.phase, row.contender): row for row in rows if row.phase in {"rows", "detection"}}
    for phase, peer, title in (
        ("rows", "cublas", "rows: share of cuBLAS's rate, %"),
        ("detection", "copy", "detection: share of copy bandwidth, %"),
    ):
        if {(phase, "spider"), (phase, peer)} <= by_phase.keys():
            yield title, 100 * by_phase[phase, "spider"].rate / by_phase[phase, peer].rate
    for row in rows:
        if row.phase == "experts" and row.contender == "spider":
            yield f"experts: {row.case}: TFLOP/s", row.rate / 1e12


def write(out: Path, rows: list[Row], facts: Mapping[str, Any]) -> None:
    """bench_gpu.json and bench_gpu.parquet in `out`, each whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([asdict(row) for row in rows])
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"machine": json.dumps(facts)}), buffer)
    write_whole(out / "bench_gpu.parquet", buffer.getvalue())
    record = {"machine": facts, "ratios": {name: round(value, 4) for name, value in ratios(rows)}}
    write_whole(out / "bench_gpu.json", json.dumps(record, indent=1))


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on: the GPU with its clocks and driver, and the versions."""
    import triton

    facts: dict[str, Any] = {
        "device": device, "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__
    }  # fmt: skip
    if device != "cuda":
        return facts
    properties = torch.cuda.get_device_properties(0)
    facts |= {"gpu": properties.name, "multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda}
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        facts["driver"] = str(pynvml.nvmlSystemGetDriverVersion())
        facts["clock_mhz"] = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        facts["power_limit_w"] = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
    except pynvml.NVMLError as error:
        facts["nvml"] = f"not read: {error}"
    return facts


def run(
    out: Path,
    *,
    device: str = "cuda",
    sizes: Sizes | None = None,
    budget_s: float = 480.0,
    phases: tuple[str, ...] = tuple(PHASES),
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> list[Row]:
    """Run the phases within the budget and write what they give; returns all rows.

    Raises AssertionError where a result of ours is wrong: no time is reported of a wrong kernel.
    """
    began = time.monotonic()
    sizes = sizes or Sizes()
    bench = Bench(device, sizes.rounds, began + budget_s, say)
    facts = machine(device)
    say(json.dumps(facts))
    if device == "cuda" and "products" in phases:
        for dtype in (torch.bfloat16, torch.float32):
            say(f"tile table: {TileTable.profile('cuda', dtype, 30.0).save()}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        torch.backends.cuda.matmul.allow_tf32 = False
        for name in phases:
            PHASES[name](bench, sizes)
            write(out, bench.rows, {**facts, "seconds": round(time.monotonic() - began, 1)})
    return bench.rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a wrong result, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m systems.spider.bench_gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of bench_gpu.json and bench_gpu.parquet")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which nothing new starts")
    parser.add_argument("--phases", default=",".join(PHASES), help=f"of {','.join(PHASES)}")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes on the CPU, as a test of the program")
    given = parser.parse_args(arguments)
    chosen = tuple(given.phases.split(","))
    if unknown := sorted(set(chosen) - set(PHASES)):
        parser.error(f"--phases names {', '.join(unknown)}; there are {', '.join(PHASES)}")
    if not given.interpret and not torch.cuda.is_available():
        print("there is no CUDA GPU that torch can use; --interpret tries the program without one", file=sys.stderr)
        return 2
    device, sizes = ("cpu", TINY) if given.interpret else ("cuda", Sizes())
    try:
        run(given.out, device=device, sizes=sizes, budget_s=given.budget, phases=chosen)
    except AssertionError as error:
        print(f"a wrong result, so no time: {error}", file=sys.stderr)
        return 1
    return 0


def _by_csr(a: Tensor, b: Tensor) -> Tensor:
    return torch.sparse.mm(a.to_sparse_csr(), b)


def _by_bsr(a: Tensor, b: Tensor, block: tuple[int, int]) -> Tensor:
    return a.to_sparse_bsr(block) @ b


def _swiglu_experts(ids: Tensor, weights: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    return moe_ffn(x, w_in, w_out, ids, weights, activation="swiglu")


def _grouped_experts(ids: Tensor, weights: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    flat = ids.reshape(-1)
    order = torch.argsort(flat, stable=True)
    ends = torch.bincount(flat, minlength=w_in.shape[0]).cumsum(0).int()
    token = order // ids.shape[1]
    gate, up = F.grouped_mm(x[token], w_in, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, w_out, offs=ends) * weights.reshape(-1)[order][:, None]
    return torch.zeros_like(x).index_add(0, token, y)


def _step(forward: Callable[[], Tensor], leaves: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(forward(), leaves, dy)


def _name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def _values(index: Any) -> Tensor:
    return index.values


if __name__ == "__main__":
    sys.exit(main())
