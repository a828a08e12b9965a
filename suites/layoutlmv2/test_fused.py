"""The Triton kernel equals plain attention, its gradients and those of the tables; on the CPU by the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from systems.layoutlmv2 import TINY, InputError
from systems.layoutlmv2.attention import SpatialBias, attend

pytest.importorskip("triton", reason="the fused kernel needs triton")
ROOT = Path(__file__).resolve().parents[2]


def compare(device, dtype=torch.float32, tolerance=2e-5, length=45):
    draw = torch.Generator().manual_seed(0)
    cfg = TINY.with_(heads=2, hidden=64, coordinate_size=11, shape_size=10)
    spatial = SpatialBias(cfg).to(device)
    for table in spatial.parameters():
        table.data = torch.randn(table.shape, generator=draw).to(device)
    pos = torch.arange(length).expand(2, -1).to(device)
    box = torch.randint(0, 1001, (2, length, 4), generator=draw).to(device)
    mask = torch.rand(2, length, generator=draw) < 0.8
    mask[:, 0] = True
    mask = mask.to(device)
    q, k, v, grad = torch.randn(4, 2, 2, length, 16, generator=draw).to(device)
    grads = {}
    for backend in ("math", "triton"):
        ins = [t.to(torch.float32 if backend == "math" else dtype).requires_grad_() for t in (q, k, v)]
        spatial.zero_grad()
        out = attend(*ins, spatial.relative(pos, box, mask), backend)
        out.backward(grad.to(out.dtype))
        grads[backend] = [out, *(t.grad for t in ins), *(t.grad for t in spatial.parameters())]
    for ours, plain in zip(grads["triton"], grads["math"], strict=True):
        scale = max(1.0, float(plain.abs().max()))
        torch.testing.assert_close(ours.float(), plain, atol=tolerance * scale, rtol=0)


@pytest.mark.slow
def test_the_interpreted_kernel_equals_plain_attention_and_its_gradients():
    code = "from suites.layoutlmv2.test_fused import compare; compare('cpu'); print('equal')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_the_kernel_on_a_gpu_equals_plain_attention_and_its_gradients(dtype, tolerance):
    compare("cuda", dtype, tolerance, length=561)


def test_what_the_kernel_cannot_do_is_told():
    cfg = TINY.with_(heads=2, hidden=48, coordinate_size=8, shape_size=8, spatial_bias=False)
    pos, box = torch.arange(3)[None], torch.zeros(1, 3, 4, dtype=torch.int64)
    relative = SpatialBias(cfg).relative(pos, box, torch.ones(1, 3, dtype=torch.bool))
    q = torch.zeros(1, 2, 3, 16)
    with pytest.raises(InputError, match="needs all three tables"):
        attend(q, q, q, relative, "triton")
    with pytest.raises(InputError, match="has no dropout"):
        attend(q, q, q, relative, "flex", dropout=0.1)
    with pytest.raises(InputError, match="reads the tables by difference"):
        attend(q, q, q, relative.dense(), "triton")
    with pytest.raises(InputError, match="expected one of"):
        attend(q, q, q, relative, "fast")
    whole = SpatialBias(cfg.with_(spatial_bias=True)).relative(pos, box, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="power of two"):
        attend(q[..., :12], q[..., :12], q[..., :12], whole, "triton")
