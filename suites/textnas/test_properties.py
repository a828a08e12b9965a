"""What holds for every architecture, every sentence and every batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from systems.textnas import kernels
from systems.textnas.network import OPERATIONS, Supernet, TextNet, parameters_of
from systems.textnas.space import OPS, OPS_PLUS, Arch, Layer, Space
from systems.textnas.vocabulary import Batches, Encoded

seeds = st.integers(0, 2**31 - 1)
spaces = st.builds(
    Space,
    layers=st.integers(1, 12),
    ops=st.sampled_from([OPS, OPS_PLUS, ("conv1", "gru")]),
    reach=st.integers(1, 6),
    skips=st.sampled_from(["free", "none", "all"]),
)


# ----------------------------------------------------------------------------------------------------- the space


@given(spaces, seeds)
def test_a_sampled_mutated_or_crossed_architecture_is_in_the_space(space, seed):
    rng = np.random.default_rng(seed)
    one, other = space.sample(rng), space.sample(rng)
    for arch in (one, other, space.mutate(one, rng), space.mutate(one, rng, 5), space.crossover(one, other, rng)):
        space.check(arch)


@given(spaces, seeds)
def test_vector_text_and_json_give_the_architecture_back(space, seed):
    arch = space.sample(np.random.default_rng(seed))
    assert space.decode(space.encode(arch)) == arch
    assert Arch.from_json(arch.to_json(), space.reach) == arch
    if space.reach <= 5:
        text = arch.to_text(OPS_PLUS)
        assert Arch.from_text(text, OPS_PLUS) == arch
        assert Arch.from_text(text.replace("\n", " "), OPS_PLUS) == arch


@given(spaces, seeds, st.integers(1, 4))
def test_a_mutation_of_n_steps_differs_in_exactly_n_decisions(space, seed, n):
    rng = np.random.default_rng(seed)
    arch = space.sample(rng)
    decisions = sum(choices > 1 for choices in space.choices())
    assert space.differences(arch, space.mutate(arch, rng, n)) == min(n, decisions)


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from(["free", "none", "all"]))
def test_the_size_counts_the_architectures_and_neighbours_are_one_step_away(layers, reach, skips):
    space = Space(layers, ops=("conv1", "gru", "attention"), reach=reach, skips=skips)
    everything = list(space)
    assert len(set(everything)) == len(everything) == space.size()
    near = list(space.neighbours(everything[-1]))
    brute = [arch for arch in everything if space.differences(arch, everything[-1]) == 1]
    assert sorted(map(str, near)) == sorted(map(str, brute))


# ------------------------------------------------------------------------------------- kernels beside plain torch


def sentences(seed, count, longest, full=False):
    rng = np.random.default_rng(seed)
    lengths = np.full(count, longest) if full else rng.integers(1, longest + 1, count)
    lengths[int(rng.integers(count))] = longest
    return torch.from_numpy(lengths.astype(np.int64))


def both(act, tensors, lengths, longest):
    """Outputs and gradients of `act(words, *tensors)` by the native kernels and by torch."""
    found = []
    for native in (True, False):
        words = kernels.Words(lengths, longest, native)
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        y = act(words, *leaves)
        weight = torch.linspace(-1.0, 2.0, y.numel()).view_as(y).cos()
        (y * weight).sum().backward()
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    return zip(*found, strict=True)


@pytest.fixture(scope="module")
def compiled():
    if kernels.library() is None:
        pytest.skip("no compiler: the native kernels are not there to compare")


@pytest.mark.usefixtures("compiled")
@settings(max_examples=20)
@given(
    seeds, st.integers(1, 9), st.integers(1, 21), st.sampled_from([16, 32]), st.sampled_from(OPS_PLUS), st.booleans()
)
def test_a_native_operation_and_its_gradients_equal_torch(seed, count, longest, hidden, op, full):
    generator = torch.Generator().manual_seed(seed)
    module = OPERATIONS[op](hidden, 0.0, generator)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    lengths = sentences(seed, count, longest, full)
    mask = kernels.Words(lengths, longest).mask
    x = torch.randn(count, longest, hidden, generator=generator) * mask
    if lengths.sum() < 4:
        module.eval()  # the statistics of so few words divide by almost nothing
    for ours, theirs in both(lambda words, x: module(x, words) * mask, [x], lengths, longest):
        assert torch.allclose(ours * mask, theirs * mask, atol=2e-4 * max(1.0, float(theirs.abs().max())))


@pytest.mark.usefixtures("compiled")
@settings(max_examples=20)
@given(seeds, st.integers(2, 9), st.integers(2, 21), st.integers(1, 6), st.booleans(), st.booleans())
def test_the_native_norm_of_a_sum_equals_torch(seed, count, longest, sources, relu, train):
    generator = torch.Generator().manual_seed(seed)
    lengths = sentences(seed, count, longest)
    words = kernels.Words(lengths, longest)
    parts = [torch.randn(count, longest, 32, generator=generator) * words.mask for _ in range(sources)]
    norms = [torch.nn.BatchNorm1d(32).train(train) for _ in range(2)]
    states = []

    def act(words, *parts):
        norm = norms.pop()
        states.append(norm)
        return kernels.norm(parts, norm, words, relu=relu)

    for ours, theirs in both(act, parts, lengths, longest):
        assert torch.allclose(ours * words.mask, theirs * words.mask, atol=2e-4)
    assert torch.allclose(states[0].running_var, states[1].running_var, atol=1e-5)
    real = torch.cat([sum(parts)[b, : lengths[b]] for b in range(count)])
    if train:
        assert torch.allclose(states[0].running_mean, 0.1 * real.mean(0), atol=1e-5)
        assert torch.allclose(states[0].running_var, 0.9 + 0.1 * real.var(0), atol=1e-4)


@pytest.mark.usefixtures("compiled")
@settings(max_examples=20)
@given(seeds, st.integers(1, 9), st.integers(1, 15), st.integers(1, 6))
def test_the_native_mix_of_layers_equals_torch(seed, count, longest, layers):
    generator = torch.Generator().manual_seed(seed)
    lengths = sentences(seed, count, longest)
    mask = kernels.Words(lengths, longest).mask
    parts = [torch.randn(count, longest, 16, generator=generator) * mask for _ in range(layers)]
    weight = torch.rand(layers, generator=generator)
    pairs = both(lambda words, weight, *p: kernels.mix(p, weight, words), [weight, *parts], lengths, longest)
    (y, plain), (dw, dw_plain), *rest = pairs
    assert torch.allclose(y, plain, atol=1e-5)
    assert torch.allclose(dw, dw_plain, atol=1e-4)
    assert all(torch.allclose(a * mask, b * mask, atol=1e-5) for a, b in rest)


@settings(max_examples=20)
@given(seeds, st.floats(0.05, 0.9))
def test_dropout_keeps_its_share_and_its_gradient_the_same_places(seed, p):
    torch.manual_seed(seed)
    words = kernels.Words(torch.tensor([64]), 64)
    x = torch.ones(1, 64, 512, requires_grad=True)
    y = kernels.dropout(x, p, words)
    y.sum().backward()
    assert abs(float((y == 0).float().mean()) - p) < 0.02
    assert torch.equal(x.grad, y.detach())
    assert set(y.detach().unique().tolist()) <= {0.0, float(torch.tensor(1 / (1 - p)))}
    assert not torch.equal(kernels.dropout(x, p, words), y)


def test_attention_drops_weights_and_its_gradient_follows():
    """By finite differences: dropout inside the kernel is a function of its seed alone."""
    lengths = torch.tensor([5, 3])
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(2, 5, 48, generator=generator)
    weight = torch.randn(2, 5, 16, generator=generator)

    def act(x):
        words = kernels.Words(lengths, 5)
        words._seed = 7
        return (kernels.attention(x, 4, words, relu=False, p=0.4) * weight).sum()

    leaf = qkv.clone().requires_grad_()
    act(leaf).backward()
    direction = torch.randn(qkv.shape, generator=generator)
    slope = float((act(qkv + 1e-2 * direction) - act(qkv - 1e-2 * direction)) / 2e-2)
    assert slope == pytest.approx(float((leaf.grad * direction).sum()), rel=2e-2, abs=2e-3)


def trained(start, peer, tokens, eps, l2):
    """A table after some steps of ours and of a peer on the same sparse gradients."""
    generator = torch.Generator().manual_seed(len(tokens))
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    first, second = torch.zeros_like(ours), torch.zeros_like(ours)
    optimizer = peer(theirs)
    for step in range(1, 5):
        used = tokens[step - 1]
        weight = torch.randn(len(used), ours.shape[1], generator=generator)
        table = ours.clone().requires_grad_()
        (F.embedding(used, table, sparse=True) * weight).sum().backward()
        kernels.lazy_adam(ours, first, second, table.grad, 0.01, step, eps, l2)
        optimizer.zero_grad()
        (F.embedding(used, theirs, sparse=isinstance(optimizer, torch.optim.SparseAdam)) * weight).sum().backward()
        optimizer.step()
    return ours, theirs.detach()


@settings(max_examples=20)
@given(seeds)
def test_lazy_adam_moves_the_rows_that_sparse_adam_moves_and_no_others(seed):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(12, 8, generator=generator)
    tokens = [torch.randint(0, 9, (11,), generator=generator) for _ in range(4)]
    ours, theirs = trained(start, lambda p: torch.optim.SparseAdam([p], lr=0.01, eps=1e-12), tokens, 1e-12, 0.0)
    assert torch.equal(ours[9:], start[9:])
    assert torch.allclose(ours, theirs, atol=1e-4)


@settings(max_examples=20)
@given(seeds, st.sampled_from([1e-3, 1e-1]), st.sampled_from([0.0, 0.1]))
def test_lazy_adam_is_adam_where_every_row_is_used(seed, eps, l2):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(6, 8, generator=generator)
    tokens = [torch.cat((torch.arange(6), torch.randint(0, 6, (5,), generator=generator))) for _ in range(4)]
    adam = lambda p: torch.optim.Adam([p], lr=0.01, eps=eps, weight_decay=l2)  # noqa: E731
    ours, theirs = trained(start, adam, tokens, eps, l2)
    assert torch.allclose(ours, theirs, atol=2e-5)


# ---------------------------------------------------------------------------------------------------- the network

EVERY_OP = Arch(tuple(Layer(k - 1, op, tuple(range(0, k, 2))) for k, op in enumerate(OPS_PLUS)))


def padded(rows, extra=0):
    longest = max(map(len, rows)) + extra
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, torch.tensor([len(row) for row in rows])


texts = st.lists(st.lists(st.integers(1, 29), min_size=1, max_size=12), min_size=2, max_size=6)


@settings(max_examples=25)
@given(seeds, texts, st.sampled_from([16, 24]), st.sampled_from(["mean", "max"]))
def test_logits_depend_on_the_sentence_alone(seed, rows, hidden, pool):
    """Alone, in a batch, in a longer one, or permuted: with all operations, native (16) or not (24)."""
    net = TextNet(EVERY_OP, 30, hidden, classes=3, pool=pool, seed=seed).eval()
    with torch.no_grad():
        together = net(*padded(rows))
        for i, row in enumerate(rows):
            assert torch.allclose(net(*padded([row]))[0], together[i], atol=1e-5)
        assert torch.allclose(net(*padded(rows, extra=5)), together, atol=1e-5)
        assert torch.allclose(net(*padded(rows[::-1])), together.flip(0), atol=1e-5)


@settings(max_examples=15)
@given(seeds, st.sampled_from(["skip", "always"]), st.booleans())
def test_a_supernet_and_the_network_extracted_from_it_agree_exactly(seed, norm, pair):
    rng = np.random.default_rng(seed)
    space = Space(layers=5)
    net = Supernet(space, 30, 16, classes=3, norm=norm, pair=pair, seed=seed)
    tokens, lengths = padded([rng.integers(1, 30, n).tolist() for n in (3, 7, 7, 1)])
    for _ in range(2):
        arch = space.sample(rng)
        net.train()
        net(tokens, lengths, arch)  # moves the running statistics
        net.eval()
        assert torch.equal(net.extract(arch)(tokens, lengths), net(tokens, lengths, arch))


@settings(max_examples=15)
@given(seeds, st.sampled_from(["skip", "always"]))
def test_only_what_an_architecture_uses_gets_a_gradient(seed, norm):
    rng = np.random.default_rng(seed)
    space = Space(layers=4)
    arch = space.sample(rng)
    net = Supernet(space, 30, 16, norm=norm, seed=seed)
    net(*padded([[1, 2, 3], [4, 5]]), arch).sum().backward()
    moved = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert moved == set(net.active(arch))
    assert len(net.active_parameters(arch)) < len(list(net.parameters()))


@settings(max_examples=30)
@given(spaces, seeds, st.sampled_from(["skip", "always"]))
def test_the_parameter_count_is_that_of_the_network(space, seed, norm):
    arch = space.sample(np.random.default_rng(seed))
    net = TextNet(arch, torch.zeros(5, 24), 16, classes=3, norm=norm)
    there = sum(parameter.numel() for name, parameter in net.named_parameters() if name != "encoder.embedding")
    assert parameters_of(arch, 16, 24, 3, norm) == there


@settings(max_examples=20)
@given(seeds, st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_batches_hold_every_row_once_with_its_own_words(seed, count, size, pair):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 2 * count if pair else count)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    words = rng.integers(2, 50, int(starts[-1]))
    data = Encoded(words, starts, np.arange(count), count, pair)
    found = {}
    for batch in Batches(data, size).epoch(seed):
        assert batch.tokens.shape[0] == len(batch.lengths) == len(batch) * (2 if pair else 1)
        for side in range(2 if pair else 1):
            for i, label in enumerate(batch.labels.tolist()):
                row = side * len(batch) + i
                length = int(batch.lengths[row])
                assert not batch.tokens[row, length:].any()
                found[label, side] = batch.tokens[row, :length].tolist()
    for row in range(count):
        for side in range(2 if pair else 1):
            at = 2 * row + side if pair else row
            assert found.pop((row, side)) == words[starts[at] : starts[at + 1]].tolist()
    assert not found
