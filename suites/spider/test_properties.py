"""Properties that hold for every shape, pattern, dtype and rule, each against an independent computation: numpy loops,
float64, dense torch."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from systems import spider
from systems.spider import TileIndex, analyze, cpu, detect, einsum, matmul, ops, plan, torch_backend
from systems.spider.rules import SEMIRINGS

quick = settings(max_examples=60, deadline=None)
RULES = ["k 1x1", "k 2x1", "k 4x1", "k 8x1", "k 3x1", "k 11x1", "k 32x1", "m 1x16", "m 1x64", "m 1x5", "m rows"]
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INTEGERS = [torch.int8, torch.uint8, torch.int32, torch.int64]
extent = st.integers(0, 130) | st.sampled_from([0, 1, 7, 8, 9, 47, 48, 49, 128])


@pytest.fixture(autouse=True)
def _native():
    assert cpu.available(), "these tests are about the native kernels: a C compiler is needed"


@st.composite
def patterns(draw, rows=extent, columns=extent):
    """A bool mask of any shape, sparsity and hidden granularity."""
    m, k = draw(rows), draw(columns)
    r, c = draw(st.sampled_from([(1, 1), (2, 1), (8, 1), (32, 1), (1, 16), (1, 64), (8, 8), (1, 1000), (1000, 1)]))
    sparsity = draw(st.sampled_from([0.0, 0.3, 0.7, 0.9, 0.98, 1.0]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    blocks = random.random((-(-m // r), -(-k // c))) >= sparsity
    return torch.from_numpy(blocks.repeat(r, 0).repeat(c, 1)[:m, :k].copy())


@st.composite
def products(draw, rows=extent, columns=extent):
    """(a, b) in float64: a sparse."""
    mask = draw(patterns(rows, columns))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    a = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    b = torch.randn(mask.shape[1], draw(extent), generator=generator, dtype=torch.float64)
    return torch.where(mask, a, 0), b


def forced(rule, a, b, backend="native"):
    return plan("mk,kn->mn", a, b).forced(rule, backend)


def bits(x):
    return x.contiguous().numpy().view(np.uint32)


# ------------------------------------------------------------------------------------------------- products


@quick
@given(products(), st.sampled_from([*RULES, "dense"]), st.sampled_from(FLOATS), st.sampled_from(["native", "torch"]))
@example((torch.zeros(0, 5), torch.zeros(5, 3)), "k 8x1", torch.float32, "native")
@example((torch.zeros(5, 0), torch.zeros(0, 3)), "m rows", torch.float32, "native")
@example((torch.ones(300, 40), torch.ones(40, 3)), "k 8x1", torch.float32, "native")  # several threads detect
def test_every_rule_equals_dense_in_every_float(product, rule, dtype, backend):
    a, b = (x.to(dtype) for x in product)
    if dtype == torch.float64:
        backend = "torch"
    y = matmul(a, b, plan=forced(rule, a, b, backend))
    expected = a.double() @ b.double()
    assert y.dtype == dtype
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    scale = a.double().abs() @ b.double().abs() + 1e-3
    assert bool(((y.double() - expected).abs() <= tolerance * scale).all())


@quick
@given(products(), st.sampled_from(["k 1x1", "k 8x1", "m 1x16", "m rows", "dense"]), st.sampled_from(INTEGERS))
def test_integers_are_exact(product, rule, dtype):
    a, b = ((x * 3).round().clamp(-3, 3).abs().to(dtype) for x in product)
    y = matmul(a, b, plan=forced(rule, a, b, "torch"))
    expected = (a.numpy().astype(np.int64) @ b.numpy().astype(np.int64)).astype(y.numpy().dtype)
    assert y.dtype == dtype
    assert np.array_equal(y.numpy(), expected)


@quick
@given(products(rows=st.integers(1, 130)), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_native_results_are_the_same_bits_by_all_rules_threads_and_row_orders(product, threads, seed):
    a, b = (x.float() for x in product)
    order = torch.randperm(a.shape[0], generator=torch.Generator().manual_seed(seed))
    before = torch.get_num_threads()
    reference = bits(matmul(a, b, plan=forced("k 1x1", a, b)))
    try:
        torch.set_num_threads(threads)
        for rule in RULES:
            assert np.array_equal(bits(matmul(a, b, plan=forced(rule, a, b))), reference), rule
            shuffled = matmul(a[order], b, plan=forced(rule, a, b))
            assert np.array_equal(bits(shuffled), reference[order.numpy()]), rule
    finally:
        torch.set_num_threads(before)


@quick
@given(products(rows=st.integers(1, 90), columns=st.integers(1, 90)), st.data())
def test_strided_expanded_and_overlapping_inputs_are_read_as_they_are(product, data):
    a, b = (x.float() for x in product)
    rule = data.draw(st.sampled_from(RULES))
    views = {
        "transposed": (a.t().contiguous().t(), b.t().contiguous().t()),
        "sliced": (torch.cat([a, a], 1)[:, : a.shape[1]], torch.stack([b, b], 2)[:, :, 0]),
        "expanded": (a[:1].expand(a.shape), b[:1].expand(b.shape)),
        "reversed": (a.flip(0), b.flip(1)),
        "overlapping": (torch.arange(float(a.shape[0] + a.shape[1])).unfold(0, a.shape[1], 1)[: a.shape[0]], b),
    }
    for name, (x, y) in views.items():
        untouched = x.clone(), y.clone()
        result = matmul(x, y, plan=forced(rule, x, y))
        torch.testing.assert_close(result.double(), x.double() @ y.double(), rtol=1e-4, atol=1e-2, msg=name)
        assert torch.equal(x, untouched[0]), name
        assert torch.equal(y, untouched[1]), name


def test_the_same_memory_with_a_new_pattern_gives_the_new_result_and_keeps_the_old():
    a, b = torch.zeros(64, 64), torch.randn(64, 300)
    p = forced("k 8x1", a, b)
    results, copies = [], []
    for step in range(5):
        a.zero_()
        a[step::7, step::5] = 1.0 + step
        results.append(matmul(a, b, plan=p))
        copies.append(results[-1].clone())
        torch.testing.assert_close(results[-1], a @ b, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(x, y) for x, y in zip(results, copies, strict=True))


@quick
@given(products(), patterns(), st.sampled_from(["a", "b"]))
def test_the_chosen_plan_equals_dense_on_either_side_and_in_batches(product, mask, side):
    a, b = (x.float() for x in product)
    expected = a.double() @ b.double()
    flipped = side == "b"
    y = matmul(b.t(), a.t(), sparse="b", backend="native").t() if flipped else matmul(a, b, backend="native")
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-3)
    for first, second in ((a[None], b[None]), (a[None], b), (a, b[None])):
        torch.testing.assert_close(matmul(first, second).double(), expected[None], rtol=1e-4, atol=1e-3)


@quick
@given(patterns(), st.integers(0, 70), st.sampled_from([1, 2, 4, 8]), st.sampled_from(["native", "torch"]))
def test_a_masked_output_has_the_wanted_elements_and_zeros(mask, depth, size, backend):
    x, y = torch.randn(mask.shape[0], depth), torch.randn(depth, mask.shape[1])
    expected = torch.where(mask, x.double() @ y.double(), 0)
    chosen = ops.make_plan(x, y, sparse="out", mask=mask).forced(f"out {size}x1", backend)
    torch.testing.assert_close(
        matmul(x, y, sparse="out", mask=mask, plan=chosen).double(), expected, rtol=1e-4, atol=1e-3
    )
    index = detect(mask, (1, size))
    whole = torch.where(index.to_mask(), x.double() @ y.double(), 0)
    torch.testing.assert_close(matmul(x, y, sparse="out", mask=index).double(), whole, rtol=1e-4, atol=1e-3)


SPECIAL = [math.nan, math.inf, -math.inf, 1e-42, -1e-42, 3.4e38]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", SPECIAL, ids=str)
def test_whatever_is_not_zero_in_the_sparse_operand_counts(rule, value):
    a, b = torch.zeros(20, 30), torch.ones(30, 50)
    a[13, 17] = value
    expected = torch.zeros(20, 50)
    expected[13] = value
    assert torch.equal(matmul(a, b, plan=forced(rule, a, b)).nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    assert detect(a).indices.tolist() == [17]


def test_minus_zero_does_not_count_and_denormals_do_in_every_dtype():
    for dtype in FLOATS:
        x = torch.zeros(9, 9, dtype=dtype)
        x[4, 4] = -0.0
        assert not detect(x).indices.numel()
        x[4, 5] = torch.finfo(dtype).smallest_normal / 2
        assert detect(x).indices.tolist() == [5], dtype


def test_nonfinite_values_of_the_dense_operand_count_only_where_they_are_met_unless_strict():
    a, b = torch.zeros(8, 16), torch.ones(16, 4)
    a[0, 3] = 2.0
    b[9] = math.inf
    p = forced("k 8x1", a, b)
    assert torch.equal(matmul(a, b, plan=p), a @ torch.ones(16, 4))
    assert bool(matmul(a, b, plan=p, nonfinite="strict").isnan().all())
    b[9], b[3] = 1.0, math.inf
    met = matmul(a, b, plan=p)
    assert bool(met[0].isinf().all())
    assert bool(met[1:].isnan().all())  # 0 * inf inside the kept 8x1 micro-tile


@pytest.mark.parametrize(
    "flags",
    [("-mno-avx512f",), ("-mno-avx512f", "-mtune=znver3"), ("-mno-avx",)],
    ids=["AVX2", "AVX2 of Zen", "SSE"],
)
def test_narrower_machines_get_the_same_results(flags, monkeypatch):
    """The kernels for 8 and 4 lanes, which this machine would not build by itself. Tuned for Zen, a compiler left to
    itself fuses a multiply and an add in some loops only."""
    try:
        other = cpu.native.load(Path(cpu.__file__).with_name("kernels.c"), name="spider", openmp=False, flags=flags)
    except cpu.native.CompileError as error:
        pytest.skip(f"the compiler knows no {flags[0]}: {error.command[0]}")
    for name, signature in cpu.SIGNATURES.items():
        function = getattr(other, name)
        function.argtypes = [cpu.ctypes.c_void_p if kind == "p" else cpu.ctypes.c_int64 for kind in signature]
        function.restype = cpu.ctypes.c_int64 if name in cpu.RETURNING else None
    monkeypatch.setattr(cpu, "_library", lambda: other)
    assert other.lanes() in (4, 8)
    torch.manual_seed(0)
    a, b = torch.randn(61, 83) * (torch.rand(61, 83) > 0.8), torch.randn(83, 147)
    reference = matmul(a, b, plan=forced("k 1x1", a, b))
    torch.testing.assert_close(reference, a @ b, rtol=1e-4, atol=1e-4)
    for width in (8, b.shape[1]):
        for rule in RULES:
            y = matmul(a, b[:, :width], plan=forced(rule, a, b[:, :width]))
            assert np.array_equal(bits(y), bits(reference[:, :width])), (rule, width)
    for size in (1, 2, 8):
        index = detect(a, (size, 1), pack=True)
        expected = torch.where(a != 0, a @ a.t() @ a, 0)
        torch.testing.assert_close(
            ops.sample(index, a @ a.t(), a.t(), "dense", "native"), expected, rtol=1e-3, atol=1e-3
        )


# ------------------------------------------------------------------------------------------------- detection


def lists_of(index):
    bounds = index.offsets.tolist()
    return [index.indices[begin:end].tolist() for begin, end in itertools.pairwise(bounds)]


def brute_force_index(x, size, axis):
    """The lists, one element at a time."""
    along = x if axis == 1 else x.T
    return [
        [j for j in range(along.shape[1]) if any(v != 0 for v in along[q * size : (q + 1) * size, j])]
        for q in range(-(-along.shape[0] // size))
    ]


@quick
@given(
    patterns(rows=st.integers(0, 40), columns=st.integers(0, 40)),
    st.sampled_from([1, 2, 3, 4, 8, 11, 16, 64]),
    st.sampled_from([0, 1]),
    st.sampled_from([*FLOATS, torch.bool, *INTEGERS]),
)
def test_detection_equals_brute_force(mask, size, axis, dtype):
    x = (mask * 3).to(dtype)
    index = detect(x, (size, 1) if axis == 1 else (1, size), pack=True)
    axis = index.axis  # of a single element, both readings are the same and axis 1 is meant
    lists = lists_of(index)
    assert lists == brute_force_index(x.float().numpy(), size, axis)
    assert torch.equal(x != 0, (x != 0) & index.to_mask())
    along = x if axis == 1 else x.t()
    for entry, (q, j) in enumerate((q, j) for q, row in enumerate(lists) for j in row):
        part = along[q * size : (q + 1) * size, j]
        assert torch.equal(index.values[entry, : part.numel()].to(dtype), part)
        assert not bool(index.values[entry, part.numel() :].any())
    back = index.transpose()
    assert torch.equal(back.to_mask(), index.to_mask().t())
    twice = back.transpose()
    assert (twice.shape, twice.axis, twice.micro_tile) == (index.shape, index.axis, index.micro_tile)


@quick
@given(patterns(), st.sampled_from([1, 2, 4, 8, 32]))
def test_native_detection_equals_the_torch_one_and_so_do_the_lists_of_the_transpose(mask, size):
    x = torch.where(mask, torch.randn(mask.shape), 0)
    for axis, native in ((1, cpu.detect_columns), (0, cpu.detect_rows)):
        ours, theirs = native(x, size, True), torch_backend.detect(x, size, axis, True)
        assert all(torch.equal(p, q) for p, q in zip(ours[:3], theirs[:3], strict=True))
        view = x if axis == 1 else x.t()
        assert torch.equal(cpu.pack(ours, size, view), torch_backend.pack(theirs, size, view))
    index = cpu.detect_columns(x, size, True)
    flipped, expected = cpu.elements(index, size, x.shape[1]), torch_backend.detect(x.t(), 1, 1, True)
    assert all(torch.equal(p, q) for p, q in zip(flipped[:3], expected[:3], strict=True))
    again = torch_backend.elements(index, size, x.shape[1])
    assert all(torch.equal(p, q) for p, q in zip(again[:3], expected[:3], strict=True))


@quick
@given(patterns(rows=st.integers(1, 250), columns=st.integers(1, 130)))
def test_the_profile_counts_every_shape_of_micro_tile_exactly_when_it_sees_all_rows(mask):
    x = mask.float()
    counts = cpu.profile(x, 10_000)
    rows, columns = x.shape
    for share, (r, c) in zip(
        counts, [(1, 1), (2, 1), (4, 1), (8, 1), (1, 16), (1, 32), (1, 64), (1, columns)], strict=True
    ):
        padded = torch.nn.functional.pad(mask, (0, -columns % c, 0, -rows % r))
        tiles = padded.view(padded.shape[0] // r, r, padded.shape[1] // c, c).any(3).any(1)
        assert share == pytest.approx(float(tiles.double().mean()), abs=1e-9)


@quick
@given(st.lists(st.integers(0, 9), max_size=6))
def test_lengths_become_the_index_of_the_real_tokens(lengths):
    index = TileIndex.from_lengths(torch.tensor(lengths, dtype=torch.int64), 9)
    expected = torch.arange(9)[None] < torch.tensor(lengths, dtype=torch.int64)[:, None]
    assert torch.equal(index.to_mask(), expected)


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=20))
def test_routing_lists_every_slot_once_in_order(ids):
    table = torch.tensor(ids, dtype=torch.int64).reshape(-1, 2)
    index = TileIndex.from_experts(table, 5)
    lists = lists_of(index)
    assert lists == [[i for i, e in enumerate(table.reshape(-1).tolist()) if e == expert] for expert in range(5)]


# ------------------------------------------------------------------------------------------------- gradients


@settings(max_examples=15, deadline=None)
@given(
    products(rows=st.integers(1, 9), columns=st.integers(1, 9)),
    st.sampled_from(["k 1x1", "k 4x1", "k 8x1", "m 1x4", "m rows"]),
)
def test_exact_gradients_and_their_gradients(product, rule):
    a, b = product[0], product[1][:, :5]
    p = forced(rule, a, b, "torch")
    inputs = a.clone().requires_grad_(), b.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: matmul(x, y, plan=p), inputs) if b.numel() else True
    assert torch.autograd.gradgradcheck(lambda x, y: matmul(x, y, plan=p), inputs) if b.numel() else True


@quick
@given(products(rows=st.integers(1, 70)), st.sampled_from(RULES), st.sampled_from(["exact", "pattern"]))
def test_native_gradients_equal_dense_ones(product, rule, grad):
    a, b = (x.float().requires_grad_() for x in product)
    dy = torch.randn(a.shape[0], b.shape[1])
    da, db = torch.autograd.grad(matmul(a, b, plan=forced(rule, a, b), grad=grad), (a, b), dy)
    dense = dy.double() @ b.detach().double().t()
    expected = dense if grad == "exact" else torch.where(a != 0, dense, 0)
    torch.testing.assert_close(da.double(), expected.detach(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(db.double(), a.detach().double().t() @ dy.double(), rtol=1e-4, atol=1e-3)
    if grad == "exact" and b.numel():
        assert bool((da[(a == 0) & (dense != 0)] != 0).any()) or not bool((a == 0).any())


@pytest.mark.parametrize("size", [1, 4, 16])
def test_gradients_of_a_masked_output_and_their_gradients(size):
    mask = torch.rand(9, 6, generator=torch.Generator().manual_seed(1)) > 0.6
    inputs = (
        torch.randn(9, 4, dtype=torch.float64).requires_grad_(),
        torch.randn(4, 6, dtype=torch.float64).requires_grad_(),
    )

    def product(x, y):
        chosen = ops.make_plan(x, y, sparse="out", mask=mask).forced(f"out {size}x1", "torch")
        return matmul(x, y, sparse="out", mask=mask, plan=chosen)

    assert torch.autograd.gradcheck(product, inputs)
    assert torch.autograd.gradgradcheck(product, inputs)


def test_forward_mode_and_vmap_are_refused_clearly():
    a, b = torch.eye(200), torch.randn(200, 200)
    p = forced("k 1x1", a, b)
    with pytest.raises(NotImplementedError, match="forward"), torch.autograd.forward_ad.dual_level():
        matmul(torch.autograd.forward_ad.make_dual(a, a), b, plan=p)
    with pytest.raises(spider.SpiderError, match="vmap"):
        torch.func.vmap(lambda x: matmul(x, b, plan=p))(a[None])


def test_a_compiled_graph_keeps_the_product_whole():
    torch.manual_seed(0)
    a = torch.randn(200, 200) * (torch.rand(200, 200) > 0.9)
    b = torch.randn(200, 200)
    compiled = torch.compile(
        lambda x, y: torch.relu(matmul(x, y, grad="pattern")).sum(), fullgraph=True, backend="aot_eager"
    )
    results = []
    for fn in (compiled, lambda x, y: torch.relu(x @ y).sum()):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        fn(x, y).backward()
        results.append((torch.where(a != 0, x.grad, 0), y.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


# -------------------------------------------------------------------------------------------------- analysis


def reduced(values, ring):
    return {"sum": np.sum, "max": np.max, "min": np.min, "or": np.any}[ring.reduce](values)


def combined(values, ring):
    if ring.combine == "plus":
        return sum(values)
    return math.prod(values) if ring.combine == "product" else all(values)


def evaluate(expression, operands, ring):
    """An expression by its definition, one term at a time."""
    sizes = expression.sizes([x.shape for x in operands])
    inner = [x for x in expression.letters if x not in expression.output]
    out = np.zeros([sizes[x] for x in expression.output])
    for place in np.ndindex(*out.shape):
        terms = []
        for rest in itertools.product(*(range(sizes[x]) for x in inner)):
            at = dict(zip((*expression.output, *inner), (*place, *rest), strict=True))
            picked = [
                x[tuple(sum(f * at[name] for f, name in index) for index in indices)]
                for indices, x in zip(expression.inputs, operands, strict=True)
            ]
            terms.append(combined(picked, ring))
        out[place] = reduced(terms, ring)
    return out


EXPRESSIONS = [
    "mk,kn->mn",
    "bmk,bkn->bmn",
    "al->a",
    "a,a->a",
    "et,tk,ekn->tn",
    "c(x+i),fci->fx",
    "ab,b->ab",
    "ii,ij->j",
]
SIZES = dict(zip("mknbaletcxifj", (3, 4, 2, 2, 3, 3, 2, 3, 2, 3, 2, 2, 3), strict=True))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(EXPRESSIONS), st.sampled_from(sorted(SEMIRINGS)), st.integers(0, 2**32 - 1))
def test_permuting_a_permutable_axis_changes_the_order_of_the_output_only(text, semiring, seed):
    random = np.random.default_rng(seed)
    analysis = analyze(text, 0, semiring)
    expression, ring = analysis.expression, analysis.semiring
    shapes = [
        tuple(sum(f * (SIZES[name] - 1) for f, name in index) + 1 for index in indices) for indices in expression.inputs
    ]
    operands = [random.integers(0, 2 if ring.combine == "and" else 7, shape).astype(float) for shape in shapes]
    before = evaluate(expression, operands, ring)
    for axis in analysis.axes.values():
        if not axis.permutable:
            continue
        order = random.permutation(SIZES[axis.name])
        moved = [
            x[
                np.ix_(
                    *(
                        order if index == ((1, axis.name),) else range(n)
                        for index, n in zip(indices, x.shape, strict=True)
                    )
                )
            ]
            for indices, x in zip(expression.inputs, operands, strict=True)
        ]
        where = np.ix_(
            *(order if name == axis.name else range(n) for name, n in zip(expression.output, before.shape, strict=True))
        )
        assert np.allclose(evaluate(expression, moved, ring), before[where] if before.ndim else before), axis
        if axis.skippable and axis.condensable and ring.absent is not None and axis.kind == "reduction":
            # Dropping a position where the sparse operand is absent changes nothing.
            gone = order[0]
            dropped = []
            for number, (indices, x) in enumerate(zip(expression.inputs, operands, strict=True)):
                x = x.copy()
                for dimension, index in enumerate(indices):
                    if index == ((1, axis.name),):
                        at = [slice(None)] * x.ndim
                        at[dimension] = gone
                        x[tuple(at)] = ring.absent if number == 0 else x[tuple(at)]
                dropped.append(x)
            with np.errstate(invalid="ignore"):
                kept = [
                    np.delete(x, gone, indices.index(((1, axis.name),)))
                    if any(index == ((1, axis.name),) for index in indices)
                    else x
                    for indices, x in zip(expression.inputs, dropped, strict=True)
                ]
                assert np.allclose(evaluate(expression, kept, ring), evaluate(expression, dropped, ring)), axis


def test_an_axis_of_index_arithmetic_is_not_permutable_and_here_is_why():
    analysis = analyze("(x+i),i->x")
    assert not analysis.axes["x"].permutable
    assert not analysis.axes["i"].permutable
    signal, kernel = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 0.0])
    before = evaluate(analysis.expression, [signal, kernel], analysis.semiring)
    after = evaluate(analysis.expression, [signal, kernel[::-1]], analysis.semiring)
    assert not np.allclose(before, after)


REFERENCE = [  # the table of the method: expression, semiring, permutable, skippable for operand 0
    ("al->a", "sum_product", "al", "al"),
    ("a,a->a", "sum_plus", "a", ""),
    ("mk,kn->mn", "sum_product", "mkn", "mk"),
    ("bmk,bkn->bmn", "sum_product", "bmkn", "bmk"),
    ("nc(x+i)(y+j),fcij->nfxy", "sum_product", "ncf", "nc"),
    ("et,tk,ekn->tn", "sum_product", "etkn", "et"),
]


@pytest.mark.parametrize(("text", "semiring", "permutable", "skippable"), REFERENCE)
def test_the_axes_of_known_operators(text, semiring, permutable, skippable):
    axes = analyze(text, 0, semiring).axes.values()
    assert {x.name for x in axes if x.permutable} == set(permutable)
    assert {x.name for x in axes if x.skippable} == set(skippable)


def test_zeros_are_not_absent_in_a_maximum_but_minus_infinity_is():
    assert analyze("qk,kd->qd", 0, "max_plus").axes["k"].skippable
    assert not analyze("qk,kd->qd", 0, "max_plus", absent=0.0).axes["k"].skippable
    repeated = analyze("ii->i").axes["i"]
    assert (repeated.permutable, repeated.condensable) == (True, False)


def test_the_rules_of_a_matrix_product_are_those_of_the_table():
    rules = {rule.name: rule for rule in analyze("mk,kn->mn").rules([(512, 256), (256, 64)])}
    assert set(rules) == {"k 1x1", "k 2x1", "k 4x1", "k 8x1", "m 1x16", "m 1x32", "m 1x64", "m 1x256"}
    assert (rules["k 8x1"].reads, rules["k 8x1"].writes, rules["k 8x1"].accumulates) == ((0, 1), False, False)
    assert (rules["m 1x32"].reads, rules["m 1x32"].writes, rules["m 1x32"].accumulates) == ((0,), True, True)
    assert not rules["m 1x256"].accumulates
    assert {rule.axis for rule in analyze("nc(x+i),fci->nfx").rules([(2, 3, 9), (4, 3, 2)])} == {"n", "c"}
    assert {rule.axis for rule in analyze("mk,kn->mn", "out").rules([(9, 8), (8, 7)])} == {"m", "n"}


# ---------------------------------------------------------------------------------------------------- einsum


@quick
@given(
    st.sampled_from(
        [
            "mk,kn->mn",
            "mk,kn->nm",
            "bmk,bkn->bnm",
            "et,tk,ekn->tn",
            "ab,cd->dacb",
            "iij,jk->ik",
            "abc,cd->ad",
            "mk,k->m",
            "ab->ba",
        ]
    ),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_einsum_equals_numpys(text, masked, seed):
    random = np.random.default_rng(seed)
    left = text.partition("->")[0]
    operands = [
        torch.from_numpy(random.standard_normal([SIZES.get(x, 4) * 3 for x in part])) for part in left.split(",")
    ]
    operands[0] = operands[0] * (torch.from_numpy(random.random(operands[0].shape)) > 0.6)
    expected = np.einsum(text, *(x.numpy() for x in operands))
    if masked:
        mask = torch.from_numpy(random.random(expected.shape) > 0.5)
        y = einsum(text, *operands, sparse="out", mask=mask)
        expected = np.where(mask.numpy(), expected, 0)
    else:
        y = einsum(text, *operands, sparse=int(random.integers(len(operands))))
    assert np.allclose(y.numpy(), expected)


@pytest.mark.parametrize("backend", ["auto", "torch", "native"])
def test_a_convolution_with_few_live_channels(backend):
    torch.manual_seed(0)
    x, w = torch.randn(2, 8, 12, 11), torch.randn(5, 8, 3, 3)
    x[:, 2:] = 0
    y = einsum("nc(x+i)(y+j),fcij->nfxy", x, w, backend=backend)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ primitives


@quick
@given(patterns(rows=st.just(1), columns=st.integers(1, 40)), st.integers(1, 5))
def test_reading_and_writing_listed_rows_are_inverse(mask, width):
    index = detect(mask, (1, 1))
    x = torch.randn(mask.shape[1], width)
    kept = spider.sread(x, index, 0)
    assert torch.equal(kept, x[mask[0]])
    blank = torch.zeros_like(x)
    assert torch.equal(spider.swrite(kept, index, 0, blank), torch.where(mask[0][:, None], x, 0))
    assert torch.equal(spider.swrite(kept, index, 0, x, accumulate=True), torch.where(mask[0][:, None], 2 * x, x))
    assert not bool(blank.any())


def test_a_plan_explains_itself_and_is_the_same_for_the_same_densities():
    torch.manual_seed(0)
    a = torch.randn(512, 512) * (torch.rand(64, 512) > 0.95).repeat_interleave(8, 0)
    b = torch.randn(512, 512)
    p = plan("mk,kn->mn", a, b)
    text = p.explain()
    assert p.rule.startswith("k ")
    assert all(c.name in text for c in p.candidates)
    assert "dense" in [c.name for c in p.candidates]
    assert p.predicted_s == min(c.seconds for c in p.candidates)
    assert plan("mk,kn->mn", a.clone(), b) is p
    assert replace(p, rule="dense", backend="dense").micro_tile is None
