"""From torch.export to the graph: folding, views, refusals, exactness proofs, and a root that survives the disk."""

import dataclasses
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from systems.agatha import graph as graphs
from systems.agatha import lowering, models, quantise, reference
from systems.agatha.commit import Model
from systems.agatha.descriptor import Descriptor, ExactnessError, Op, Profile, ProofError, UnsupportedOperator
from systems.agatha.graph import Node, Scale

IMAGE = (1, 3, 12, 12)


def export(model, shape=IMAGE):
    return torch.export.export(model.eval(), (torch.zeros(shape),))


def randomised(model, seed=0):
    """A model with seeded weights, whose BatchNorms do something."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()  # the cases are made at import time, before any seed
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def compiled(model, shape=IMAGE, profile="int8", samples=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if profile == "int8" and samples is None:
            samples = torch.randn(8, *shape[1:], generator=torch.Generator().manual_seed(3))
        return graphs.compile(export(model, shape), profile, samples)


class Net(nn.Module):
    """A module around a function, with named children."""

    def __init__(self, forward, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def attention(self, x):
    rows = self.a(x).flatten(2).transpose(1, 2)
    keys = self.b(x).flatten(2).transpose(1, 2)
    return rows @ keys.transpose(1, 2)


CASES = {
    "conv": nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "conv without bias": nn.Conv2d(3, 5, 3, bias=False),
    "conv kernel not square": nn.Conv2d(3, 5, (1, 3)),
    "conv same padding": nn.Conv2d(3, 5, 3, padding="same"),
    "dilated": nn.Conv2d(3, 4, 3, padding=2, dilation=2),
    "grouped": nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1, groups=4)),
    "depthwise": nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, padding=2, groups=8)),
    "two outputs a group": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4)),
    "batch norm": nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
    "batch norm twice": nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)),
    "batch norm first": nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    "batch norm after relu": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
    "relu6": nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(inplace=True)),
    "clamp": Net(lambda s, x: s.c(x).clamp(-0.25, 0.5), c=nn.Conv2d(3, 6, 3)),
    "scalars": Net(lambda s, x: s.c(x) * 0.5 + 0.25, c=nn.Conv2d(3, 6, 3)),
    "clamp alone": Net(lambda s, x: nn.functional.hardtanh(x)),
    "max pool": nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(3, 2, 1)),
    "average pool": nn.Sequential(nn.Conv2d(3, 6, 3), nn.AvgPool2d(2)),
    "average pool padded": nn.Sequential(nn.Conv2d(3, 6, 3), nn.AvgPool2d(3, 1, 1)),
    "flatten and linear": nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(150, 7)),
    "two linear": nn.Sequential(nn.Flatten(), nn.Linear(432, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 4)),
    "mean": Net(lambda s, x: s.l(s.c(x).mean((2, 3))), c=nn.Conv2d(3, 6, 3), l=nn.Linear(6, 4)),
    "residual": Net(lambda s, x: torch.relu(s.a(x) + s.b(x)), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1)),
    "residual of the input": Net(lambda s, x: x + s.a(x), a=nn.Conv2d(3, 3, 3, padding=1)),
    "add of activations": Net(
        lambda s, x: torch.relu(s.a(x)) + torch.relu(s.b(x)), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1)
    ),
    "added to itself": Net(lambda s, x: s.a(x) + torch.relu(s.a(x)), a=nn.Conv2d(3, 6, 1)),
    "read twice": Net(lambda s, x: (lambda y: torch.relu(y) + y)(s.a(x)), a=nn.Conv2d(3, 6, 1)),
    "concat": Net(lambda s, x: torch.cat([s.a(x), x, s.b(x)], 1), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 2, 1)),
    "squeeze and excite": Net(
        lambda s, x: (lambda y: y * torch.relu(s.e(nn.functional.adaptive_avg_pool2d(y, 1))))(s.a(x)),
        a=nn.Conv2d(3, 6, 3),
        e=nn.Conv2d(6, 6, 1),
    ),
    "matrix product": Net(attention, a=nn.Conv2d(3, 8, 3, stride=2), b=nn.Conv2d(3, 8, 5, stride=2)),
    "dead branch": Net(lambda s, x: (s.b(x), s.a(x))[1], a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1)),
    "digits": models.DigitsCNN(),
}  # fmt: skip
SHAPES = {"digits": (1, 1, 8, 8)}


@pytest.mark.parametrize("name", CASES)
def test_the_graph_computes_what_the_model_computes(name):
    model, shape = randomised(CASES[name]), SHAPES.get(name, IMAGE)
    x = torch.randn(3, *shape[1:])
    expected = model.double()(x.double()).detach().numpy()
    model.float()
    for profile, tolerance in (("ieee32", 1e-5), ("int8", 0.1)):
        graph = compiled(model, shape, profile, x)
        *_, y = reference.outputs(graph, quantise.encode(graph, x))
        got = quantise.decode(graph, y)
        if expected.ndim == 4:
            got = got.transpose(0, 3, 1, 2)
        error = abs(got.reshape(expected.shape) - expected).max() / abs(expected).max()
        assert error < tolerance, (profile, error)


@pytest.mark.parametrize("name", ["Sigmoid", "SiLU", "Tanh", "GELU", "Hardsigmoid", "Hardswish"])
def test_a_function_becomes_a_table_in_int8_and_is_refused_in_ieee32(name):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), getattr(nn, name)())
    torch.manual_seed(0)
    x = torch.randn(2, *IMAGE[1:])
    graph = compiled(model)
    assert [node.op for node in graph.nodes] == [Op.INPUT, Op.CONV, Op.LUT]
    *_, y = reference.outputs(graph, quantise.encode(graph, x))
    expected = model(x).detach().numpy()
    assert abs(quantise.decode(graph, y).transpose(0, 3, 1, 2) - expected).max() < 0.05 * max(1, abs(expected).max())
    with pytest.raises(UnsupportedOperator, match="int8"):
        compiled(model, profile="ieee32")


def test_batch_norm_activation_and_residual_fold_away():
    graph = compiled(models.digits_cnn(), (1, 1, 8, 8))
    ops = [node.op.name for node in graph.nodes]
    assert ops == ["INPUT", "CONV", "CONV", "CONV", "MAXPOOL", "CONV", "AVGPOOL", "LINEAR"]
    assert graph.nodes[3].inputs == (2, 1)
    assert graph.nodes[3].residual


def test_resnet50_and_mobilenet_fold_to_their_convolutions():
    for build, convolutions in ((models.resnet50, 53), (models.mobilenet, 52)):
        graph = lowering.lower(export(build(), (1, 3, 224, 224)))
        ops = [node.op for node in graph.nodes]
        assert ops.count(Op.CONV) == convolutions
        assert ops.count(Op.ADD) == ops.count(Op.CLAMP) == 0


REFUSED = {
    "softmax": (nn.Softmax(1), "softmax"),
    "transposed": (nn.ConvTranspose2d(3, 3, 2), "transpose"),
    "stride not square": (nn.Conv2d(3, 3, 3, stride=(1, 2)), "stride"),
    "ceil mode": (nn.MaxPool2d(3, 2, ceil_mode=True), "ceil_mode"),
    "uneven divisor": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "divisor"),
    "overlapping windows": (nn.AdaptiveAvgPool2d(5), "overlap"),
    "addition of rows": (Net(lambda s, x: x + x.mean(3, keepdim=True)), "mean"),
    "two outputs": (Net(lambda s, x: (s.a(x), x), a=nn.Conv2d(3, 3, 1)), "2 values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_with_its_name(name):
    model, word = REFUSED[name]
    with pytest.raises(UnsupportedOperator, match=word):
        compiled(model, profile="ieee32")


def test_training_mode_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    with pytest.raises(UnsupportedOperator, match=r"eval\(\)|batch_norm|add"):
        graphs.compile(torch.export.export(model, (torch.zeros(2, *IMAGE[1:]),)), "ieee32")


def test_a_dynamic_image_size_is_refused_and_a_dynamic_batch_is_not():
    model = nn.Conv2d(3, 4, 3).eval()
    for axis, fails in ((0, False), (2, True)):
        sizes = {"x": {axis: torch.export.Dim("size", min=4, max=64)}}
        try:
            exported = torch.export.export(
                Net(lambda s, x: s.c(x), c=model).eval(), (torch.zeros(8, 3, 12, 12),), dynamic_shapes=sizes
            )
        except TypeError:
            pytest.skip("this torch names the input otherwise")
        if fails:
            with pytest.raises(UnsupportedOperator, match="dynamic"):
                graphs.compile(exported, "ieee32")
        else:
            assert graphs.compile(exported, "ieee32").output_shape == (10, 10, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    model = nn.Conv2d(3, 4, 3)
    model.weight.data[1, 2, 0, 0] = value
    with pytest.raises(ExactnessError, match="not finite"):
        compiled(model, profile="ieee32")


def test_calibration_is_checked():
    model = nn.Conv2d(3, 4, 3)
    with pytest.raises(ValueError, match="calibration"):
        graphs.compile(export(model), "int8")
    with pytest.raises(ValueError, match="all zero"):
        compiled(model, samples=torch.zeros(32, *IMAGE[1:]))
    with pytest.raises(ValueError, match="not finite"):
        compiled(model, samples=torch.full((32, *IMAGE[1:]), torch.nan))
    with pytest.raises(ValueError, match="expected float32"):
        compiled(model, samples=torch.randn(32, 3, 5, 5))
    with pytest.warns(UserWarning, match="31 calibration samples"):
        graphs.compile(export(model), "int8", torch.randn(31, *IMAGE[1:]))
    with pytest.raises(ValueError, match="profile"):
        graphs.compile(export(model), "int4")


def one_convolution(weight, bias, shifts, zero=0, **more):
    c_out, kh, kw, c_in = weight.shape
    nodes = (
        Node(Op.INPUT, (), (4, 4, c_in), lo=0, hi=255, scale=Scale(zero)),
        Node(Op.CONV, (0,), (5 - kh, 5 - kw, c_out), (4, 4, c_in), (kh, kw), weight=weight, bias=bias, shifts=shifts,
             lo=0, hi=255, scale=Scale(), name="c", **more),
    )  # fmt: skip
    return graphs.Graph(Profile.INT8, nodes)


def numbers(c, *values):
    return np.full(c, values[0], values[1])


@pytest.mark.parametrize("weight", [65, -65, 127, -128])
def test_eight_bit_weights_are_refused(weight):
    array = np.zeros((3, 1, 1, 2), np.int8)
    array[1, 0, 0, 1] = weight
    graph = one_convolution(array, numbers(3, 0, np.int32), numbers(3, 4, np.int8))
    with pytest.raises(ExactnessError, match=r"node 1 \(c\), channel 1: a weight is"):
        graphs.check(graph)


@pytest.mark.parametrize(
    ("bias", "shift", "match"),
    [
        (0, 17, "shift"),
        (0, -9, "shift"),
        ((1 << 24) + 1, 4, "float32"),
        (2**31 - 200, 4, r"2\^31"),
        (1 << 24, 16, "float32"),
    ],
)
def test_each_rule_of_exactness_is_checked(bias, shift, match):
    weight = np.full((2, 1, 1, 1100), 64, np.int8)
    graph = one_convolution(weight, numbers(2, bias, np.int32), numbers(2, shift, np.int8))
    with pytest.raises(ExactnessError, match=match):
        graphs.check(graph)


def test_a_large_bias_costs_weight_bits_instead_of_exactness():
    model = nn.Conv2d(3, 4, 1)
    model.weight.data.uniform_(-1e-3, 1e-3)
    model.bias.data[:] = torch.tensor([3.0, -3.0, 0.1, 0.0])
    graph = compiled(model)
    assert abs(graph.nodes[1].bias).max() <= 1 << 24


@settings(max_examples=60)
@given(st.data())
def test_accumulator_bounds_are_sound(data):
    """No input passes them, and the adversarial one reaches them."""
    zero = data.draw(st.sampled_from([0, 128]))
    c_in, c_out, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    weight = random.integers(-64, 65, (c_out, k, k, c_in)).astype(np.int8)
    bias = random.integers(-1000, 1000, c_out).astype(np.int32)
    graph = one_convolution(weight, bias, numbers(c_out, 8, np.int8), zero)
    bound = graph.bounds[1]
    flat = weight.reshape(c_out, -1).astype(np.int64)
    codes = random.integers(0, 256, (50, flat.shape[1]))
    sums = (codes - zero) @ flat.T + bias
    assert (bound.low <= sums).all()
    assert (sums <= bound.high).all()
    for o in range(c_out):
        assert ((np.where(flat[o] > 0, 255, 0) - zero) * flat[o]).sum() + bias[o] == bound.high[o]
        assert ((np.where(flat[o] > 0, 0, 255) - zero) * flat[o]).sum() + bias[o] == bound.low[o]
    assert (bound.sums >= np.maximum(abs(bound.low), abs(bound.high))).all()


@settings(max_examples=300)
@given(
    st.integers(-(2**31) + 1, 2**31 - 1),
    st.integers(-(2**31) + 1, 2**31 - 1),
    st.integers(-8, 16),
    st.integers(0, 8),
    st.integers(-255, 255),
    st.booleans(),
    st.sampled_from([0, 128]),
)
def test_a_float32_epilogue_that_the_proof_admits_is_exact(dot, bias, shift, residual_shift, residual, has, zero):
    """The proof of `inexact`, against the arithmetic itself: one accumulator through float32 and through integers."""
    shift = min(shift, 15) if has else shift
    extreme = np.array([abs(dot)])
    bound = graphs.Bound(-extreme + bias, extreme + bias, extreme + abs(bias))
    if graphs.inexact(bound, np.array([bias]), np.array([shift]), residual_shift if has else None)[0]:
        return
    if not has:
        residual = 0
    exact = (dot + bias) * Fraction(2) ** -shift + residual * Fraction(2) ** -residual_shift
    expected = min(max(round(exact) + zero, 0), 255)
    power = np.float32(2.0**-shift)
    value = np.float32(dot) * power + np.float32(bias) * power + np.float32(residual) * np.float32(2.0**-residual_shift)
    assert min(max(float(np.rint(value)) + zero, 0), 255) == expected


@settings(max_examples=200)
@given(st.integers(-(2**40), 2**40), st.integers(-8, 32))
def test_shift_round_is_round_half_to_even(value, shift):
    assert int(reference.shift_round(np.array([value]), shift)[0]) == round(Fraction(value) / Fraction(2) ** shift)


@given(st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1, max_size=50), st.sampled_from([0, 128]))
def test_a_calibrated_exponent_is_the_smallest_that_holds_the_largest_value(values, zero):
    graph = lowering.lower(export(Net(lambda s, x: x.clamp(-1e38, 1e38)), (1, len(values))))
    seen = quantise.ranges(graph, torch.tensor([values], dtype=torch.float32))
    top, e = {0: 255, 128: 127}[zero], seen[0].exponents[zero]
    largest = float(np.float32(max(values)))
    assert largest <= top * 2.0**e
    assert largest > top * 2.0 ** (e - 1)


def test_one_value_in_ten_thousand_may_saturate():
    graph = lowering.lower(export(Net(lambda s, x: x.clamp(-1e38, 1e38)), (1, 20_000)))
    values = torch.ones(1, 20_000)
    values[0, :2] = 1e6
    assert quantise.ranges(graph, values)[0].exponents[0] == -7
    values[0, 2] = 1e6
    assert quantise.ranges(graph, values)[0].exponents[0] > 3


# --- commitment


def test_the_root_names_the_model_and_nothing_else():
    roots = {
        compiled(models.digits_cnn(seed), (1, 1, 8, 8), profile).root
        for seed in (0, 1)
        for profile in ("int8", "ieee32")
    }
    assert len(roots) == 4
    again = compiled(models.digits_cnn(0), (1, 1, 8, 8)).root
    assert again in roots


def test_every_number_of_a_graph_reaches_its_root():
    graph = compiled(models.digits_cnn(), (1, 1, 8, 8))
    for i, node in enumerate(graph.nodes):
        changes = {"lo": node.lo + 1, "hi": node.hi - 1} if i else {}
        if node.weight is not None:
            weight, bias, shifts = node.weight.copy(), node.bias.copy(), node.shifts.copy()
            weight[-1, -1, -1, -1] ^= 1
            bias[-1] += 1
            shifts[0] += 1
            changes |= {"weight": weight, "bias": bias, "shifts": shifts}
        for name, value in changes.items():
            nodes = list(graph.nodes)
            nodes[i] = dataclasses.replace(node, **{name: value})
            assert graphs.Graph(graph.profile, tuple(nodes)).root != graph.root, (i, name)


@pytest.mark.parametrize("name", CASES)
def test_plan_roundtrip_keeps_the_root(name, tmp_path):
    for profile in ("int8", "ieee32"):
        graph = compiled(randomised(CASES[name]), SHAPES.get(name, IMAGE), profile)
        graph.save(tmp_path / "graph.safetensors")
        again = graphs.load(tmp_path / "graph.safetensors")
        assert again.root == graph.root
        assert [node.scale for node in again.nodes] == [node.scale for node in graph.nodes]
        x = quantise.encode(graph, torch.randn(1, *SHAPES.get(name, IMAGE)[1:]))
        *_, a = reference.outputs(graph, x)
        *_, b = reference.outputs(again, x)
        assert np.array_equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] == ["graph.safetensors"]


def test_a_damaged_file_is_refused_with_its_name(tmp_path):
    path = tmp_path / "graph.safetensors"
    compiled(models.digits_cnn(), (1, 1, 8, 8)).save(path)
    content = path.read_bytes()
    for at in (len(content) - 3, len(content) // 2):  # weights, biases
        path.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
        with pytest.raises(ProofError, match=r"graph\.safetensors"):
            graphs.load(path)
    for part in (b"", content[:40], content[: len(content) // 2], b"x" * 200):
        path.write_bytes(part)
        with pytest.raises(ProofError, match=r"graph\.safetensors"):
            graphs.load(path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    graph = compiled(models.digits_cnn(), (1, 1, 8, 8))
    path = tmp_path / "graph.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError, match="no space"):
        graph.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("profile", ["int8", "ieee32"])
def test_the_commitment_is_what_the_chain_reads(profile):
    graph = compiled(models.digits_cnn(), (1, 1, 8, 8), profile)
    model = graph.commitment  # a Model checks that its bytes hash to its roots
    assert isinstance(model, Model)
    assert model.root == graph.root
    for descriptor in model.descriptors:
        assert Descriptor.decode(descriptor.encode()) == descriptor
