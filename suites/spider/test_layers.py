"""Layers against their dense forms, and every kind of bad input."""

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from systems import spider
from systems.spider import (
    DtypeError,
    MaskedLinear,
    MoE,
    PatternError,
    Ragged,
    RaggedEncoderLayer,
    ReluFFN,
    RoutingError,
    ShapeError,
    SpiderError,
    TileIndex,
    TileTable,
    analyze,
    attention,
    detect,
    einsum,
    figure,
    matmul,
    moe_ffn,
    pack,
    selection,
    unpack,
)
from systems.spider.patterns import related_bars

ROOT = Path(__file__).resolve().parents[2]
quick = settings(max_examples=30, deadline=None)


def gradients(y, inputs, dy):
    return torch.autograd.grad(y, inputs, dy, allow_unused=True)


def assert_same_gradients(ours, theirs, inputs, dy, tolerance=1e-3):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for a, b in zip(gradients(ours, inputs, dy), gradients(theirs, inputs, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max() + 1))


@pytest.mark.parametrize("shift", [0.0, 1.2, 9.0], ids=["half", "few", "none"])
@pytest.mark.parametrize("tokens", [256, 301])
def test_a_relu_layer_equals_its_dense_form_with_gradients(shift, tokens):
    torch.manual_seed(0)
    layer = ReluFFN(128, 512)
    layer.b_in.data -= shift
    x = torch.randn(tokens, 128, requires_grad=True)
    dense = torch.relu(F.linear(x, layer.w_in, layer.b_in)) @ layer.w_out + layer.b_out
    assert_same_gradients(layer(x), dense, [x, *layer.parameters()], torch.randn(tokens, 128))


@pytest.mark.parametrize("granularity", [(32, 1), (32, 64), (1, 1)])
@pytest.mark.parametrize("sparsity", [0.0, 0.9, 1.0])
def test_a_masked_layer_equals_its_dense_form_and_follows_the_mask(granularity, sparsity):
    torch.manual_seed(0)
    layer = MaskedLinear(200, 256, granularity)
    x = torch.randn(190, 200, requires_grad=True)
    for step in range(3):
        layer.prune(sparsity)
        dense = F.linear(x, layer.weight * layer.mask, layer.bias)
        assert_same_gradients(layer(x), dense, [x, *layer.parameters()], torch.randn(190, 256))
        layer.weight.data += torch.randn_like(layer.weight) * (step + 1)


def test_a_weight_that_is_zero_inside_the_mask_still_has_a_gradient():
    layer = MaskedLinear(256, 256, (32, 1))
    layer.prune(0.9)
    layer.weight.data.zero_()
    layer(torch.ones(200, 256)).sum().backward()
    assert torch.equal(layer.weight.grad != 0, layer.mask)


def experts_one_by_one(x, w_in, w_out, ids, weights, activation):
    """Token by token, in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t in range(x.shape[0]):
        for j in range(ids.shape[1]):
            e = int(ids[t, j])
            inner = x[t].double() @ w_in[e].double()
            if activation == "swiglu":
                gate, up = inner.chunk(2)
                inner = F.silu(gate) * up
            else:
                inner = {"relu": torch.relu, "gelu": F.gelu, "silu": F.silu}[activation](inner)
            out[t] += weights[t, j].double() * (inner @ w_out[e].double())
    return out


@quick
@given(
    tokens=st.integers(0, 40),
    experts=st.integers(1, 9),
    top_k=st.integers(1, 3),
    activation=st.sampled_from(["relu", "gelu", "silu", "swiglu"]),
    lonely=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_experts_equal_a_loop_over_tokens(tokens, experts, top_k, activation, lonely, dtype):
    torch.manual_seed(tokens)
    x = torch.randn(tokens, 11, dtype=dtype)
    wide = 26 if activation == "swiglu" else 13
    w_in, w_out = torch.randn(experts, 11, wide, dtype=dtype), torch.randn(experts, 13, 11, dtype=dtype)
    # With duplicates: a token may choose one expert twice.
    ids = torch.zeros(tokens, top_k, dtype=torch.int64) if lonely else torch.randint(experts, (tokens, top_k))
    weights = torch.rand(tokens, top_k, dtype=dtype)
    y = moe_ffn(x, w_in, w_out, ids, weights, activation)
    expected = experts_one_by_one(x, w_in, w_out, ids, weights, activation)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-3)


def test_experts_have_gradients_and_more_than_4096_tokens_each():
    torch.manual_seed(0)
    x, w_in, w_out = torch.randn(7, 3), torch.randn(3, 3, 5), torch.randn(3, 5, 3)
    ids, weights = torch.tensor([[0, 2], [2, 2], [0, 0], [2, 0], [0, 2], [2, 0], [0, 0]]), torch.rand(7, 2)
    inputs = [t.double().requires_grad_() for t in (x, w_in, w_out, weights)]
    assert torch.autograd.gradcheck(lambda x, a, b, w: moe_ffn(x, a, b, ids, w, "gelu"), inputs)
    many = torch.randn(9001, 3)
    everyone = torch.ones(9001, 1, dtype=torch.int64)
    y = moe_ffn(many, w_in, w_out, everyone, torch.ones(9001, 1))
    torch.testing.assert_close(y, torch.relu(many @ w_in[1]) @ w_out[1], rtol=1e-4, atol=1e-4)


def test_float16_experts_never_multiply_in_float16_on_a_cpu(monkeypatch):
    """There it takes twenty times as long as in float32."""
    torch.manual_seed(0)
    shapes = ((20, 11), (3, 11, 13), (3, 13, 11))
    x, w_in, w_out = ((torch.randn(shape) / 2).half().requires_grad_() for shape in shapes)
    ids, weights = torch.randint(3, (20, 2)), torch.rand(20, 2).half()
    multiply, dtypes = torch.mm, []
    monkeypatch.setattr(torch, "mm", lambda a, b, **options: dtypes.append(a.dtype) or multiply(a, b, **options))
    y = moe_ffn(x, w_in, w_out, ids, weights)
    y.sum().backward()
    assert dtypes
    assert torch.float16 not in dtypes
    expected = experts_one_by_one(x.detach(), w_in.detach(), w_out.detach(), ids, weights, "relu")
    assert y.dtype == x.grad.dtype == w_in.grad.dtype == torch.float16
    torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=5e-2)


def test_a_mixture_of_experts_drops_no_token():
    layer = MoE(16, 32, 5, top_k=2)
    y, load = layer(torch.randn(3, 7, 16))
    assert y.shape == (3, 7, 16)
    assert int(load.sum()) == 3 * 7 * 2
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@quick
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_packing_and_unpacking_leave_the_tokens_and_never_read_padding(lengths):
    lengths = torch.tensor(lengths)
    x = torch.randn(len(lengths), 9, 4)
    real = torch.arange(9)[None] < lengths[:, None]
    ragged = pack(x.masked_fill(~real[:, :, None], math.nan), lengths)
    assert torch.equal(ragged.values, x[real])
    back = unpack(ragged, fill=-1.0)
    assert torch.equal(back, x.masked_fill(~real[:, :, None], -1.0))


@pytest.mark.parametrize("lengths", [[5, 9, 9, 1], [0, 9, 3, 3], [0, 0, 0, 0]])
def test_a_ragged_encoder_layer_equals_the_padded_one_on_real_tokens(lengths):
    torch.manual_seed(0)
    dense = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
    ours = RaggedEncoderLayer(32, 4, 64)
    ours.load_dense(dense)
    lengths = torch.tensor(lengths)
    x = torch.randn(4, 9, 32)
    padding = torch.arange(9)[None] >= lengths[:, None]
    y = unpack(ours(pack(x.masked_fill(padding[:, :, None], math.nan), lengths)))
    expected = dense.train()(x, src_key_padding_mask=padding)
    torch.testing.assert_close(y[~padding], expected[~padding], rtol=1e-4, atol=1e-4)
    assert not bool(y[padding].any())


# Of the largest value: of one rounding to 8 or 11 bits, and of the 16-bit values between the products.
ROUNDING = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def relu_by_definition(layer, x, w_in, b_in, w_out, b_out):
    return torch.relu(F.linear(x, w_in, b_in)) @ w_out + b_out


def masked_by_definition(layer, x, weight, bias):
    return F.linear(x, weight * layer.mask, bias)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("kind", ["relu", "masked"])
def test_layers_in_16_bits_equal_float64_with_gradients(kind, dtype):
    torch.manual_seed(0)
    if kind == "relu":
        layer, definition, tokens = ReluFFN(128, 512), relu_by_definition, 256
        layer.b_in.data -= 0.8
    else:
        layer, definition, tokens = MaskedLinear(256, 256, (32, 1)), masked_by_definition, 512
        layer.prune(0.9)
    layer = layer.to(dtype)
    x = torch.randn(tokens, 128 if kind == "relu" else 256).to(dtype).requires_grad_()
    y = layer(x)
    assert f"_{type(layer).__name__}Backward" in {fn.name() for fn, _ in y.grad_fn.next_functions} | {y.grad_fn.name()}
    dy = torch.randn(y.shape).to(dtype)
    exact = [p.detach().double().requires_grad_() for p in (x, *layer.parameters())]
    expected = definition(layer, *exact)
    ours = [y, *gradients(y, [x, *layer.parameters()], dy)]
    for a, b in zip(ours, [expected, *gradients(expected, exact, dy.double())], strict=True):
        assert a.dtype == dtype
        assert float((a.double() - b).detach().abs().max()) <= ROUNDING[dtype] * float(b.detach().abs().max())


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_ragged_encoder_layer_in_16_bits_equals_float64_with_gradients(dtype):
    torch.manual_seed(0)
    dense = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
    ours = RaggedEncoderLayer(32, 4, 64)
    dense = dense.to(dtype).double()  # weights that both hold exactly
    ours.load_dense(dense)
    ours = ours.to(dtype)
    lengths = torch.tensor([5, 9, 0, 3])
    real = torch.arange(9)[None] < lengths[:, None]
    x = torch.randn(4, 9, 32).to(dtype)
    inputs, exact = (x.detach().to(kind).requires_grad_() for kind in (dtype, torch.float64))
    y = ours(pack(inputs, lengths)).values
    expected = dense(exact[real.any(1)], src_key_padding_mask=~real[real.any(1)])[real[real.any(1)]]
    dy = torch.randn(y.shape).to(dtype)
    attention = dense.self_attn
    parts = (ours.qkv, ours.out, ours.w_in, ours.w_out, ours.norm1, ours.norm2)
    mine = [p for layer in parts for p in (layer.weight, layer.bias)]
    theirs = [attention.in_proj_weight, attention.in_proj_bias]
    for layer in (attention.out_proj, dense.linear1, dense.linear2, dense.norm1, dense.norm2):
        theirs += [layer.weight, layer.bias]
    pairs = zip(
        [y, *gradients(y, [inputs, *mine], dy)],
        [expected, *gradients(expected, [exact, *theirs], dy.double())],
        strict=True,
    )
    for a, b in pairs:
        assert a.dtype == dtype
        assert float((a.double() - b).detach().abs().max()) <= 2 * ROUNDING[dtype] * float(b.detach().abs().max())


@quick
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=40))
@example(lengths=[0])
def test_related_bars_equal_their_definition(lengths):
    mask = related_bars(torch.tensor(lengths))
    tokens = [(bar, t == n) for bar, n in enumerate(lengths) for t in range(n + 1)]  # (bar, whether it sums it up)
    assert mask.shape == (len(tokens), len(tokens))
    for i, (bar, sums_up) in enumerate(tokens):
        for j, (other, is_sum) in enumerate(tokens):
            back = bar - other
            seen = back == 0 or (is_sum and back > 0) or (not sums_up and back in (1, 2, 4, 8, 12, 16, 24, 32))
            assert bool(mask[i, j]) == (j <= i and seen), (i, j)


def attention_by_definition(q, k, v, allowed):
    scores = (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~allowed, -1e300)
    weights = torch.where(allowed.any(-1, keepdim=True), torch.softmax(scores, -1), 0)
    return weights @ v.double()


@quick
@given(
    size=st.integers(1, 150),
    window=st.none() | st.integers(0, 40),
    spread=st.integers(0, 3),
    causal=st.booleans(),
    with_lengths=st.booleans(),
    with_mask=st.sampled_from([None, "shared", "own"]),
)
def test_sparse_attention_equals_its_definition_with_gradients(size, window, spread, causal, with_lengths, with_mask):
    torch.manual_seed(size)
    q, k, v = (torch.randn(2, 2, size, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    i = torch.arange(size)
    allowed = torch.ones(2, 1, size, size, dtype=torch.bool)
    options = {"causal": causal}
    if window is not None:
        tokens = torch.randperm(size)[:spread]
        wide = torch.zeros(size, dtype=torch.bool)
        wide[tokens] = True
        options |= {"window": window, "global_tokens": tokens}
        allowed &= ((i[:, None] - i).abs() <= window) | wide[:, None] | wide
    if causal:
        allowed &= i <= i[:, None]
    if with_mask:
        mask = torch.rand((size, size) if with_mask == "shared" else (2, size, size)) > 0.7
        options["mask"] = mask
        allowed &= mask if mask.ndim == 2 else mask[:, None]
    if with_lengths:
        lengths = torch.tensor([size, size // 2])
        options["lengths"] = lengths
        real = i < lengths[:, None]
        allowed &= real[:, None, None, :] & real[:, None, :, None]
    y, expected = attention(q, k, v, **options), attention_by_definition(q, k, v, allowed)
    dy = torch.randn_like(y)
    torch.testing.assert_close(y, expected)
    for a, b in zip(gradients(y, (q, k, v), dy), gradients(expected, (q, k, v), dy), strict=True):
        torch.testing.assert_close(a, b)


def test_a_query_that_sees_nothing_gives_zeros_and_zero_gradients():
    q, k, v = (torch.randn(1, 1, 70, 4, requires_grad=True) for _ in range(3))
    mask = torch.zeros(70, 70, dtype=torch.bool)
    mask[3, 5] = True
    y = attention(q, k, v, mask=mask)
    torch.testing.assert_close(y[0, 0, 3], v[0, 0, 5])
    y.sum().backward()
    for x in (q, k, v):
        assert not bool(x.grad.isnan().any())
    assert not bool(torch.cat([y[0, 0, :3], y[0, 0, 4:]]).any())
    assert not bool(q.grad[0, 0, 6].any())


# ------------------------------------------------------------------------------------------------- bad input

A, B = torch.ones(8, 4), torch.ones(4, 6)
LONG = torch.int64
REFUSED = {
    "unfitting shapes": (lambda: matmul(A, A), ShapeError, r"\(8, 4\)"),
    "vectors": (lambda: matmul(A[0], B), ShapeError, r"\(4,\)"),
    "two dtypes": (lambda: matmul(A, B.double()), DtypeError, "float64"),
    "complex": (lambda: matmul(A + 0j, B + 0j), DtypeError, "complex"),
    "a side that is not there": (lambda: matmul(A, B, sparse="c"), PatternError, "'c'"),
    "a gradient that is not there": (lambda: matmul(A, B, grad="all"), PatternError, "'all'"),
    "a rule for the non-finite that is not there": (lambda: matmul(A, B, nonfinite="?"), PatternError, "'?'"),
    "a backend that is not there": (lambda: matmul(A, B, backend="mps"), SpiderError, "'mps'"),
    "native integers": (lambda: matmul(A.int(), B.int(), backend="native"), DtypeError, "int32"),
    "an output without mask": (lambda: matmul(A, B, sparse="out"), PatternError, "mask"),
    "a mask without output": (lambda: matmul(A, B, mask=torch.ones(8, 6).bool()), PatternError, "mask"),
    "a mask of another shape": (lambda: matmul(A, B, sparse="out", mask=A.bool()), PatternError, r"\(8, 4\)"),
    "a mask of floats": (lambda: matmul(A, B, sparse="out", mask=torch.ones(8, 6)), PatternError, "float32"),
    "batches of two sizes": (lambda: matmul(A.expand(2, 8, 4), B.expand(3, 4, 6)), ShapeError, "2 batch"),
    "another problem's plan": (
        lambda: matmul(A, B, plan=spider.plan("mk,kn->mn", A.t(), A).forced("k 8x1", "native")), ShapeError, "plan",
    ),
    "a rule of no form": (lambda: spider.plan("mk,kn->mn", A, B).forced("k 8x8"), PatternError, "k 8x8"),
    "no arrow": (lambda: analyze("mk,kn"), PatternError, "->"),
    "a sign": (lambda: analyze("m-k,kn->mn"), PatternError, "-k"),
    "an axis from nowhere": (lambda: analyze("mk,kn->mz"), PatternError, "'z'"),
    "an axis named twice": (lambda: analyze("mk,kn->mm"), PatternError, "twice"),
    "an empty bracket": (lambda: analyze("(x+),i->x"), PatternError, "sum of letters"),
    "an operand out of range": (lambda: analyze("mk,kn->mn", 2), PatternError, "0 to 1"),
    "an unknown semiring": (lambda: analyze("mk,kn->mn", 0, "max"), PatternError, "max_plus"),
    "an axis of two sizes": (lambda: einsum("mk,kn->mn", A, A), ShapeError, "'k'"),
    "too many axes": (lambda: einsum("mkl,kn->mn", A, B), ShapeError, "3 indices"),
    "a missing operand": (lambda: einsum("mk,kn->mn", A), ShapeError, "2 operands"),
    "a window that is too wide": (
        lambda: einsum("(x+i),i,x->x", torch.ones(3), torch.ones(3), torch.ones(4)), ShapeError, "reaches",
    ),
    "a block as micro-tile": (lambda: detect(A, (8, 8)), PatternError, r"\(8, 8\)"),
    "a vector to detect": (lambda: detect(A[0]), ShapeError, "two axes"),
    "complex to detect": (lambda: detect(A + 0j), DtypeError, "complex"),
    "an index from floats": (lambda: TileIndex.from_mask(A), PatternError, "float32"),
    "a length below zero": (lambda: TileIndex.from_lengths(torch.tensor([1, -2]), 3), PatternError, r"\[1\] is -2"),
    "a length above the size": (lambda: pack(torch.ones(2, 3, 1), torch.tensor([4, 1])), PatternError, r"\[0\] is 4"),
    "an expert too many": (lambda: TileIndex.from_experts(torch.tensor([0, 3]), 3), RoutingError, "0 to 2"),
    "a negative expert": (lambda: TileIndex.from_experts(torch.tensor([-1]), 3), RoutingError, "-1"),
    "falling offsets": (lambda: Ragged(torch.ones(3, 1), torch.tensor([0, 2, 1, 3]), 3), PatternError, "never fall"),
    "offsets past the end": (lambda: Ragged(torch.ones(3, 1), torch.tensor([0, 4]), 9), PatternError, "end at 3"),
    "experts of another width": (
        lambda: moe_ffn(A, torch.ones(2, 3, 5), torch.ones(2, 5, 3), torch.zeros(8, 1, dtype=LONG), torch.ones(8, 1)),
        ShapeError, r"\(2, 3, 5\)",
    ),
    "heads that do not divide": (lambda: RaggedEncoderLayer(10, 3, 4), ShapeError, "multiple"),
    "a mask of another layer": (lambda: MaskedLinear(4, 4).set_mask(A.bool()), PatternError, r"\(8, 4\)"),
    "sparsity in percent": (lambda: MaskedLinear(4, 4).prune(90), PatternError, "90"),
    "a negative window": (
        lambda: attention(*[torch.ones(1, 1, 3, 2)] * 3, window=-1), PatternError, "-1",
    ),
    "a global token beyond the end": (
        lambda: attention(*[torch.ones(1, 1, 3, 2)] * 3, window=1, global_tokens=torch.tensor([3])),
        PatternError, "0 to 2",
    ),
    "overlapping writes": (
        lambda: spider.swrite(torch.ones(2, 1), detect(torch.ones(2, 1)[:, :1], (1, 1)), 0, torch.ones(1, 1)),
        PatternError, "twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_bad_input_is_refused_by_name_and_reason(name):
    call, error, text = REFUSED[name]
    with pytest.raises(error, match=text) as caught:
        call()
    assert isinstance(caught.value, SpiderError)


@pytest.mark.parametrize("content", ["", "{", '{"format": 9}', '{"format": 1, "rules": []}', "[1]"])
def test_a_damaged_tile_table_is_ignored_with_a_warning(content, monkeypatch, tmp_path):
    monkeypatch.setenv("MAAT_CACHE", str(tmp_path))
    shipped = TileTable.load()
    assert shipped.origin == "shipped"
    path = shipped.save()
    path.write_text(content)
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        assert TileTable.load() == shipped


def test_a_saved_table_is_found_again_and_one_of_another_machine_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("MAAT_CACHE", str(tmp_path))
    shipped = TileTable.load()
    record = json.loads(shipped.save().read_text())
    path = next((tmp_path / "spider").iterdir())
    path.write_text(json.dumps(record | {"machine": selection._machine(), "dense_mac": 1.5}))
    again = TileTable.load()
    assert (again.origin, again.dense_mac, again.rules) == ("cached", 1.5, shipped.rules)
    path.write_text(json.dumps(record | {"machine": "another"}))
    with pytest.warns(RuntimeWarning, match="another machine"):
        assert TileTable.load().origin == "shipped"


def test_without_a_compiler_torch_takes_over_with_one_warning():
    code = (
        "import warnings, torch; from systems.spider import matmul, cpu, detect, plan\n"
        "a = torch.eye(300); b = torch.randn(300, 300)\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    assert torch.allclose(matmul(a, b), b, atol=1e-5) and torch.allclose(matmul(a, b, backend='torch'), b)\n"
        "    assert detect(a).indices.numel() == 300 and not cpu.available()\n"
        "assert sum('slower ones' in str(w.message) for w in seen) == 1, seen\n"
    )
    import os

    environment = {**os.environ, "CC": "/nonexistent/cc"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tool_explains_a_pattern(capsys):
    from systems.spider.__main__ import main

    assert main(["explain", "--size", "256", "--sparsity", "0.95"]) == 0
    assert "dense" in capsys.readouterr().out


def run_file(path, *cells):
    """cells: (cell of the grid, rival, seconds)."""
    rows = [
        {"test": f"suites/spider/bench_spider.py::test_grid[{cell}]", "rival": rival, "unit": "s", "values": seconds}
        for cell, rival, seconds in cells
    ]
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_the_figure_is_drawn_from_the_recorded_times(tmp_path):
    run = run_file(
        tmp_path / "run.parquet",
        ("32x1-0.5", "spider", [1.0, 9.0, 2.0]), ("32x1-0.5", "dense", [4.0]), ("32x1-0.99", "spider", [0.5]),
        ("32x1-0.99", "dense", [4.0]), ("1x1-0.99", "spider", [1.0]),
    )  # fmt: skip
    curves = figure.speedups(run)
    assert curves == {"32x1": {0.5: 2.0, 0.99: 8.0}}
    picture = ElementTree.fromstring(figure.draw(curves, "a < b"))
    assert len([part for part in picture.iter() if part.tag.endswith("circle")]) == 2
    assert {"a < b", "32x1", "50%", "99%", "8x"} <= {part.text for part in picture.iter()}


def test_the_figure_says_what_a_run_lacks_and_what_is_no_run(tmp_path, capsys):
    from systems.spider.__main__ import main

    with pytest.raises(PatternError, match="test_grid"):
        figure.speedups(run_file(tmp_path / "short.parquet", ("32x1-0.5", "spider", [1.0])))
    (tmp_path / "run.parquet").write_text("no run")
    assert main(["figure", str(tmp_path / "run.parquet"), "-o", str(tmp_path / "f.svg")]) == 2
    assert "run.parquet" in capsys.readouterr().err
    assert not (tmp_path / "f.svg").exists()


def test_no_result_depends_on_memory_that_nobody_wrote():
    """torch fills what it hands out with NaN here; 301 tokens leave the last group of 8 rows cut."""
    layer = ReluFFN(128, 512)
    layer.b_in.data -= 0.5
    x = torch.randn(301, 128, requires_grad=True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        layer(x).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(bool(p.grad.isfinite().all()) for p in (x, *layer.parameters()))
