"""Plans on local ranks: fixed ones for the gate, and beside what torch itself offers."""

import copy
import functools
import time

import pytest
import torch

from systems.superscaler import capture, models, plans
from systems.superscaler.runtime import Runner, launch

pytestmark = pytest.mark.component("model")

RANKS = 2
PLANS = {
    "tensor": lambda g: plans.tensor_parallel(g, RANKS),
    "pipeline": lambda g: plans.one_f_one_b(g, RANKS, microbatches=4),
    "zero": lambda g: plans.zero(g, RANKS, stage=2),
    "interlaced": lambda g: plans.interlaced(g, RANKS, microbatches=4),
}
SGD = functools.partial(torch.optim.SGD, lr=0.01)


def sample_of():
    return models.gpt(vocabulary=512, width=128, heads=4, layers=4, length=64, samples=8, dtype=torch.float32)


def timed(step, steps):
    """Losses and seconds of steps."""
    losses, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(float(step()))
        seconds.append(time.perf_counter() - start)
    return losses, seconds


def in_rank(built, steps):
    sample = sample_of()
    found = {}
    for name, plan in built.items():
        runner = Runner(plan, copy.deepcopy(sample.model), SGD)
        found[name] = timed(lambda r=runner: r.step(sample.batch), steps)
    return found


def serial_losses(sample, steps):
    model = copy.deepcopy(sample.model)
    optimizer = SGD(model.parameters())

    def step():
        optimizer.zero_grad()
        loss = model(*sample.batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return timed(step, steps)[0]


def test_plans(measure):
    """Four plans of one model on two ranks: each step's loss equals the serial one, and its seconds are recorded."""
    sample = sample_of()
    graph = capture(sample.model, sample.batch)
    steps = 8 if measure.full else 3
    wanted = serial_losses(sample, steps)
    ranks = launch(functools.partial(in_rank, {n: make(graph).build() for n, make in PLANS.items()}, steps), RANKS)
    for name in PLANS:
        for found in ranks:
            assert found[name][0] == pytest.approx(wanted, rel=1e-4), name
        slowest = [max(seconds) for seconds in zip(*(found[name][1] for found in ranks), strict=True)]
        measure.record(f"step_{name}", slowest[1:], "s")


def data_parallel_step(model, sample, rank):
    """A step of a wrapped model on this rank's share of the batch, and the mean loss of all ranks."""
    optimizer = SGD(model.parameters())
    share = len(sample.batch[0]) // RANKS
    own = [x[rank * share : (rank + 1) * share] for x in sample.batch]

    def step():
        optimizer.zero_grad()
        loss = model(*own)
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        return total / RANKS

    return step


def ours_and_ddp(plan, rounds):
    from torch.nn.parallel import DistributedDataParallel

    sample = sample_of()
    rank = torch.distributed.get_rank()
    runner = Runner(plan, copy.deepcopy(sample.model), SGD)
    model = DistributedDataParallel(copy.deepcopy(sample.model))
    return interleaved(lambda: runner.step(sample.batch), data_parallel_step(model, sample, rank), rounds)


def ours_and_dtensor(plan, rounds):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    sample = mlp_sample()
    runner = Runner(plan, copy.deepcopy(sample.model), SGD)
    model = copy.deepcopy(sample.model)
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in model.layers:
        parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    optimizer = SGD(model.parameters())

    def theirs():
        optimizer.zero_grad()
        loss = model(*sample.batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return interleaved(lambda: runner.step(sample.batch), theirs, rounds)


def ours_and_fsdp(plan, rounds):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sample = sample_of()
    rank = torch.distributed.get_rank()
    runner = Runner(plan, copy.deepcopy(sample.model), SGD)
    model = copy.deepcopy(sample.model)
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return interleaved(lambda: runner.step(sample.batch), data_parallel_step(model, sample, rank), rounds)


class Front(torch.nn.Module):
    """The first half of a GPT."""

    def __init__(self, model):
        super().__init__()
        self.tokens, self.positions = model.tokens, model.positions
        self.layers = model.layers[: len(model.layers) // 2]

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions
        for layer in self.layers:
            x = layer(x)
        return x


class Back(torch.nn.Module):
    """The second half, up to the logits."""

    def __init__(self, model):
        super().__init__()
        self.layers, self.norm, self.head = model.layers[len(model.layers) // 2 :], model.norm, model.head

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def ours_and_pipelining(plan, rounds):
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    sample = sample_of()
    rank = torch.distributed.get_rank()
    runner = Runner(plan, copy.deepcopy(sample.model), SGD)
    half = (Front, Back)[rank](copy.deepcopy(sample.model))
    optimizer = SGD(half.parameters())
    stage = PipelineStage(half, rank, RANKS, torch.device("cpu"))
    tokens, labels = sample.batch

    def loss_of(logits, wanted):
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    schedule = Schedule1F1B(stage, plan.microbatches, loss_fn=loss_of)

    def theirs():
        optimizer.zero_grad()
        losses = []
        if rank == 0:
            schedule.step(tokens)
        else:
            schedule.step(target=labels, losses=losses)
        optimizer.step()
        total = torch.stack(losses).mean().detach() if losses else torch.zeros(())
        torch.distributed.all_reduce(total)
        return total

    return interleaved(lambda: runner.step(sample.batch), theirs, rounds)


class Mlp(torch.nn.Module):
    """A stack of feed-forwards with residuals: what both tensor parallelisms cut alike."""

    def __init__(self, width, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(models.Feedforward(width, 4 * width) for _ in range(layers))

    def forward(self, x, y):
        for layer in self.layers:
            x = x + layer(x)
        return torch.nn.functional.mse_loss(x, y)


def mlp_sample():
    torch.manual_seed(0)
    return models.Sample(Mlp(128, 4), (torch.randn(64, 16, 128), torch.randn(64, 16, 128)))


def interleaved(ours, theirs, rounds):
    found = {"ours": ([], []), "theirs": ([], [])}
    for i in range(rounds):
        for name, step in (("ours", ours), ("theirs", theirs))[:: 1 if i % 2 else -1]:
            losses, seconds = timed(step, 1)
            found[name][0].extend(losses)
            found[name][1].extend(seconds)
    return found


def beside(measure, job, floor):
    """Run a job on both ranks, compare the losses, record both, and show the ratio of medians with its floor."""
    ranks = launch(job, RANKS, timeout=300)
    for found in ranks:
        assert found["ours"][0] == pytest.approx(found["theirs"][0], rel=1e-4)
    slowest = {
        name: [max(s) for s in zip(*(found[name][1] for found in ranks), strict=True)][1:]
        for name in ("ours", "theirs")
    }
    for name, seconds in slowest.items():
        measure.record(f"step_{name}", seconds, "s")
    medians = {name: float(torch.tensor(s).median()) for name, s in slowest.items()}
    ratio = medians["theirs"] / medians["ours"]
    measure.evidence(f"ours over theirs: {ratio:.2f}x, floor {floor}x")
    print(f"ours over theirs: {ratio:.2f}x, floor {floor}x")


@pytest.mark.slow
def test_beside_ddp(measure):
    sample = sample_of()
    plan = plans.data_parallel(capture(sample.model, sample.batch), RANKS).build()
    beside(measure, functools.partial(ours_and_ddp, plan, 40 if measure.full else 6), 0.95)


@pytest.mark.slow
def test_beside_dtensor(measure):
    sample = mlp_sample()
    plan = plans.tensor_parallel(capture(sample.model, sample.batch), RANKS).build()
    beside(measure, functools.partial(ours_and_dtensor, plan, 40 if measure.full else 6), 1.2)


@pytest.mark.slow
def test_beside_fsdp(measure):
    sample = sample_of()
    plan = plans.zero(capture(sample.model, sample.batch), RANKS, stage=3).build()
    beside(measure, functools.partial(ours_and_fsdp, plan, 40 if measure.full else 6), 0.95)


@pytest.mark.slow
def test_beside_torch_pipelining(measure):
    sample = sample_of()
    plan = plans.one_f_one_b(capture(sample.model, sample.batch), RANKS, microbatches=4).build()
    beside(measure, functools.partial(ours_and_pipelining, plan, 40 if measure.full else 6), 1.0)
