"""The paper's claims: known and new plans can be written, and each equals the serial model."""

import functools
import inspect

import pytest
import torch

from suites.superscaler.equality import in_memory_equals, run_all, serial
from systems.superscaler import SProgram, capture, models, plans, verify
from systems.superscaler.runtime import launch

KNOWN = {
    "serial": (lambda g: plans.serial(g, microbatches=2), 1),
    "data": (lambda g: plans.data_parallel(g, 2, microbatches=2), 2),
    "tensor": (lambda g: plans.tensor_parallel(g, 2), 2),
    "gpipe": (lambda g: plans.gpipe(g, 2, microbatches=2), 2),
    "1f1b": (lambda g: plans.one_f_one_b(g, 2, microbatches=4), 2),
    "zero1": (lambda g: plans.zero(g, 2, stage=1), 2),
    "zero2": (lambda g: plans.zero(g, 2, stage=2, microbatches=2), 2),
    "zero3": (lambda g: plans.zero(g, 2, stage=3, microbatches=2), 2),
    "sequence": (lambda g: plans.sequence_parallel(g, 2), 2),
    "dap": (lambda g: plans.dap(g, 2), 2),
    "data x tensor": (lambda g: plans.megatron(g, 2, 2, 1), 4),
    "tensor x pipeline": (lambda g: plans.megatron(g, 1, 2, 2, microbatches=2, recompute=True), 4),
    "data x pipeline, zero": (lambda g: plans.megatron(g, 2, 1, 2, microbatches=2, zero_stage=1), 4),
}
NEW = {
    "co-shard": (lambda g: plans.co_shard(g, 2), 1),
    "co-shard in 1f1b": (lambda g: plans.co_shard(g, 2, pp=2, microbatches=2), 2),
    "interlaced": (lambda g: plans.interlaced(g, 2, microbatches=2), 2),
    "interlaced x tensor": (lambda g: plans.interlaced(g, 2, tp=2, microbatches=2), 4),
    "3f1b": (lambda g: plans.three_f_one_b(g, 2, microbatches=2), 2),
}
MODELS = {
    "gpt": lambda: models.gpt(ragged=True, layers=2),
    "tied": lambda: models.gpt(tied=True, layers=2),
    "multilingual": lambda: models.multilingual(layers=1),
    "swin": lambda: models.swin(),
    "evoformer": lambda: models.evoformer(recycles=2, layers=2, residues=4),
}


@functools.cache
def sample_of(name):
    return MODELS[name]()


@functools.cache
def graph_of(name):
    return capture(sample_of(name).model, sample_of(name).batch)


@functools.cache
def reference_of(name):
    return serial(sample_of(name))


def differing(table, model):
    """The names of plans that do not build, verify or equal the serial model."""
    wrong = {}
    for name, (make, _) in table.items():
        try:
            plan = make(graph_of(model)).build()
            assert verify(plan).ok
            in_memory_equals(plan, sample_of(model), reference_of(model))
        except AssertionError as error:
            wrong[name] = error
    return wrong


@pytest.mark.parametrize("model", ["gpt", "swin"])
@pytest.mark.claim("superscaler/empirical-plans")
def test_every_known_plan_equals_the_serial_model(claim, model):
    wrong = differing(KNOWN, model)
    assert claim.holds(len(wrong)), wrong


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tied", "multilingual", "evoformer"])
def test_every_known_plan_equals_the_serial_model_of_other_kinds(model):
    assert not differing(KNOWN, model)


@pytest.mark.claim("superscaler/new-plans")
def test_the_new_plans_equal_the_serial_model(claim):
    wrong = {**differing({k: v for k, v in NEW.items() if k != "3f1b"}, "multilingual"),
             **differing({"3f1b": NEW["3f1b"]}, "evoformer")}  # fmt: skip
    assert claim.holds(3 - len({name.split()[0] for name in wrong})), wrong


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt", "tied", "swin", "evoformer"])
def test_the_new_plans_equal_the_serial_model_of_other_kinds(model):
    assert not differing(NEW, model)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_plans_on_gloo_equal_the_serial_model(ranks):
    table = {**KNOWN, **NEW}
    names = [n for n, (_, devices) in table.items() if devices == ranks]
    cases = {n: (table[n][0](graph_of(m)).build(), m) for n in names for m in ["evoformer" if n == "3f1b" else "gpt"]}
    samples = {m: sample_of(m) for m in ("gpt", "evoformer")}
    for found in launch(functools.partial(run_all, cases, samples), ranks, timeout=300):
        for name, (_, model) in cases.items():
            steps, after = reference_of(model)
            losses = torch.stack([loss for loss, _ in steps])
            torch.testing.assert_close(
                found[name]["losses"], losses, rtol=1e-9, atol=0, msg=lambda t, n=name: f"{n}: {t}"
            )
            for key, value in found[name]["after"].items():
                torch.testing.assert_close(value, after[key], rtol=1e-9, atol=1e-7)


def test_float32_plans_are_within_its_rounding():
    sample = models.gpt(dtype=torch.float32, layers=2)
    graph = capture(sample.model, sample.batch)
    reference = serial(sample, steps=1)
    for make in (KNOWN["tensor"][0], KNOWN["zero3"][0], NEW["interlaced"][0]):
        in_memory_equals(make(graph).build(), sample, (reference[0], {}), rtol=1e-4, atol=1e-6)


def test_dropout_does_not_depend_on_the_plan():
    sample = models.gpt(dropout=0.2, layers=2)
    graph = capture(sample.model, sample.batch)
    values = {n: p.detach().clone().requires_grad_() for n, p in sample.model.named_parameters()}
    loss = graph.run(values, sample.batch)
    loss.backward()
    grads = {n: p.grad for n, p in values.items() if p.grad is not None}
    assert abs(loss.item() - models.gpt(layers=2).model(*sample.batch).item()) > 1e-6  # something was dropped
    for make in (KNOWN["data"][0], KNOWN["tensor"][0], KNOWN["gpipe"][0], NEW["co-shard"][0]):
        in_memory_equals(make(graph).build(), sample, ([(loss.detach(), grads)], {}))


@pytest.mark.parametrize("name", ["gpt", pytest.param("evoformer", marks=pytest.mark.slow),
                                  pytest.param("multilingual", marks=pytest.mark.slow)])  # fmt: skip
def test_interleaved_pipelines_equal_the_serial_model(name):
    """Two chunks on each of two devices, so four blocks."""
    sample = {
        "gpt": lambda: models.gpt(layers=4, tied=True), "evoformer": lambda: models.evoformer(layers=4, residues=4),
        "multilingual": lambda: models.multilingual(layers=2),
    }[name]()  # fmt: skip
    graph = capture(sample.model, sample.batch)
    in_memory_equals(plans.interleaved(graph, 2, microbatches=4).build(), sample, serial(sample))


class Biased(torch.nn.Module):
    """Scores of windows that share one learned bias, repeated for the batch: a tensor without samples, read by them."""

    def __init__(self):
        super().__init__()
        self.w, self.bias = torch.nn.Linear(4, 4, dtype=torch.float64), torch.nn.Parameter(torch.ones(1, 4).double())

    def forward(self, x):
        bias = (2 * self.bias).expand(8, 4).reshape(32).reshape(8, 4)
        return (self.w(x) * bias).square().mean()


def test_a_tensor_without_batch_that_is_read_by_samples():
    sample = models.Sample(Biased(), (torch.arange(32.0, dtype=torch.float64).view(8, 4) / 32,))
    graph = capture(sample.model, sample.batch)
    assert any(t.kind == "activation" and t.grad and t.batch is None and t.shape == (8, 4) for t in graph.tensors)
    for s in (plans.serial(graph, microbatches=4), plans.data_parallel(graph, 2, microbatches=2)):
        in_memory_equals(s.build(), sample, serial(sample))


def test_stages_of_different_shape():
    """Tensor parallelism, one device, data parallelism, one after another: layouts cross groups of devices."""
    sample, graph = sample_of("gpt"), graph_of("gpt")
    s = SProgram(graph, 4)
    s.microbatch(2)
    for op in graph.ops:
        if op.block < 0 and op.id < 5:
            s.op_assign(op, 3)
        elif op.block == 0:
            cut = "n" if "n" in op.annotation.divisible else "b"
            s.op_assign(s.op_trans(op, {cut: 2}), [0, 1])
        else:
            s.op_assign(s.op_trans(op, {"b": 2}), [2, 3])
    in_memory_equals(s.build(), sample, reference_of("gpt"))


def test_each_plan_of_the_library_is_at_most_25_lines():
    names = [n for n in plans.__all__ if n != "serial"]
    lengths = {name: len(inspect.getsource(getattr(plans, name)).rstrip().splitlines()) for name in names}
    assert max(lengths.values()) <= 25, lengths


def test_one_forward_one_backward_holds_fewer_micro_batches_than_gpipe():
    def most_held(plan):
        held, most = 0, 0
        for instruction in plan.programs[0]:
            kind = getattr(instruction, "kind", "")
            held += (kind == "forward") - (kind == "backward")
            most = max(most, held)
        return most

    graph = graph_of("gpt")
    assert most_held(plans.gpipe(graph, 2, microbatches=8).build()) == 8
    assert most_held(plans.one_f_one_b(graph, 2, microbatches=8).build()) == 2
