"""The paper's claims on a GPU, each beside its peer in one run; without one they are skipped, never estimated.

`python -m systems.spider.bench_gpu` measures more, apart from the gate. Sizes are small in a plain run.
"""

import pytest
import torch
import torch.nn.functional as F

from systems.spider import attention, detect, matmul, moe_ffn, plan
from systems.spider.patterns import block_mask

pytestmark = [pytest.mark.component("model"), pytest.mark.gpu, pytest.mark.slow]
BF16 = torch.bfloat16


def side(measure):
    return 4096 if measure.full else 512


def close(a, b):
    largest = float(a.abs().max())
    torch.testing.assert_close(b, a, rtol=2e-2, atol=2e-2 * largest)


def operands(n, tile, sparsity, dtype):
    mask = block_mask(n, n, tile, sparsity).cuda()
    torch.manual_seed(0)
    a = torch.where(mask, torch.randn(n, n, device="cuda"), 0).to(dtype)
    return a, torch.randn(n, n, device="cuda").to(dtype)


@pytest.mark.parametrize(
    ("tile", "sparsity", "dtype"),
    [
        pytest.param((32, 1), 0.9, BF16, marks=pytest.mark.claim("spider/micro-kernel-gpu-32x1-90"), id="32x1-90"),
        pytest.param((32, 1), 0.95, BF16, marks=pytest.mark.claim("spider/micro-kernel-gpu-32x1-95"), id="32x1-95"),
        pytest.param((32, 1), 0.99, BF16, marks=pytest.mark.claim("spider/micro-kernel-gpu-32x1-99"), id="32x1-99"),
        pytest.param(
            (32, 1), 0.9, torch.float32, marks=pytest.mark.claim("spider/micro-kernel-gpu-32x1-fp32"), id="32x1-fp32"
        ),
        pytest.param((128, 1), 0.9, BF16, marks=pytest.mark.claim("spider/micro-kernel-gpu-128x1"), id="128x1-90"),
    ],
)
def test_products_over_cublas(measure, claim, tile, sparsity, dtype):
    a, b = operands(side(measure), tile, sparsity, dtype)
    chosen = plan("mk,kn->mn", a, b)
    speed = measure.versus({"spider": lambda: matmul(a, b, plan=chosen), "cublas": lambda: a @ b}, check=close)
    assert claim.holds(speed.over("cublas"))


@pytest.mark.claim("spider/micro-kernel-gpu-bsr")
def test_products_over_torchs_blocks(measure, claim):
    a, b = operands(side(measure), (32, 32), 0.9, BF16)
    chosen = plan("mk,kn->mn", a, b)
    speed = measure.versus(
        {"spider": lambda: matmul(a, b, plan=chosen), "bsr": lambda: a.to_sparse_bsr((32, 32)) @ b}, check=close
    )
    assert claim.holds(speed.over("bsr"))


@pytest.mark.claim("spider/micro-kernel-gpu-rows")
def test_gathered_rows_run_at_the_dense_rate(measure, claim):
    n = side(measure)
    x, w = torch.randn(4 * n, n, device="cuda").to(BF16), torch.randn(n, n, device="cuda").to(BF16)
    kept = torch.randperm(4 * n, device="cuda")[: 2 * n]
    half = x[kept].contiguous()
    x = torch.zeros_like(x).index_copy(0, kept, half)
    rows = plan("mk,kn->mn", x, w).forced("m rows", "triton")
    speed = measure.versus(
        {"spider": lambda: matmul(x, w, plan=rows), "cublas": lambda: half @ w},
        check=lambda ours, theirs: close(theirs, ours[kept]),
    )
    ratio = speed.over("cublas")
    assert not measure.full or claim.holds(100 * ratio.low)


@pytest.mark.claim("spider/overhead-gpu-detection")
def test_detection_runs_near_the_speed_of_memory(measure, claim):
    a, _ = operands(side(measure), (32, 1), 0.9, BF16)
    found = detect(a, (32, 1), pack=True).to_mask()
    assert torch.equal(found & (a != 0), a != 0)
    speed = measure.versus(
        {"detection": lambda: detect(a, (32, 1), pack=True), "copy": a.clone},
        check=lambda index, copy: index.shape == tuple(copy.shape),
    )
    # A copy reads and writes as many bytes; detection reads them once.
    assert not measure.full or claim.holds(50 * speed.over("copy").low)


@pytest.mark.claim("spider/moe-gpu")
def test_experts(measure, claim):
    experts, d, hidden, top, tokens = (128, 2048, 768, 8, 32768) if measure.full else (8, 256, 128, 2, 512)
    x = torch.randn(tokens, d, device="cuda").to(BF16)
    w_in = (torch.randn(experts, d, 2 * hidden, device="cuda") / d**0.5).to(BF16)
    w_out = (torch.randn(experts, hidden, d, device="cuda") / hidden**0.5).to(BF16)
    ids = torch.rand(tokens, experts, device="cuda").topk(top).indices
    weights = torch.rand(tokens, top, device="cuda").to(BF16)

    def ours():
        with torch.no_grad():
            return moe_ffn(x, w_in, w_out, ids, weights, activation="swiglu")

    def grouped():
        flat = ids.reshape(-1)
        order = torch.argsort(flat, stable=True)
        ends = torch.bincount(flat, minlength=experts).cumsum(0).int()
        gate, up = F.grouped_mm(x[order // top], w_in, offs=ends).chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, w_out, offs=ends) * weights.reshape(-1)[order][:, None]
        return torch.zeros_like(x).index_add(0, order // top, y)

    close(grouped(), ours())
    flops = 6.0 * tokens * top * d * hidden
    measure(ours, work=flops, unit="FLOP/s", metric="rate")
    speed = measure.versus({"spider": ours, "grouped_mm": grouped}, check=close)
    speed.over("grouped_mm")
    assert not measure.full or claim.holds(flops / float(speed.seconds["spider"].max()) / 1e12)


@pytest.mark.claim("spider/longformer-gpu")
def test_attention_over_compiled_flex_attention(measure, claim):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    size, window, tokens = (4096, 256, 64) if measure.full else (512, 32, 8)
    q, k, v = (torch.randn(1, 12, size, 64, device="cuda").to(BF16) for _ in range(3))
    where = torch.randperm(size, device="cuda")[:tokens]
    wide = torch.zeros(size, dtype=torch.bool, device="cuda")
    wide[where] = True
    compiled, built = torch.compile(flex_attention), torch.compile(create_block_mask)

    def seen(batch, head, i, j):
        return ((i - j).abs() <= window) | wide[i] | wide[j]

    with torch.no_grad():
        speed = measure.versus(
            {
                "spider": lambda: attention(q, k, v, window=window, global_tokens=where),
                "flex": lambda: compiled(q, k, v, block_mask=built(seen, None, None, size, size, device="cuda")),
            },
            check=close,
        )
    assert claim.holds(speed.over("flex"))
