"""Experts shared by two processes (gloo) give what one process gives, gradients too."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from systems.spider import MoE, ShapeError

TOKENS = (37, 12)  # each rank has a number of its own
ARGUMENTS = {"d": 12, "hidden": 20, "experts": 6, "top_k": 2}


def tokens_of(rank, lonely):
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(TOKENS[rank], ARGUMENTS["d"], generator=generator)
    return x[:0] if lonely and rank == 1 else x


def step(layer, x):
    x = x.clone().requires_grad_()
    y, load = layer(x)
    (y * torch.arange(1.0, 1 + y.shape[1])).sum().backward()
    return {"y": y.detach(), "load": load, "x": x.grad} | {n: p.grad for n, p in layer.named_parameters()}


def rank_main(rank, folder, activation, lonely):
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        torch.manual_seed(7)
        layer = MoE(**ARGUMENTS, activation=activation, process_group=dist.group.WORLD)
        torch.save(step(layer, tokens_of(rank, lonely)), Path(folder) / f"{rank}.pt")
        with pytest.raises(ShapeError, match="5 experts"):
            MoE(4, 4, 5, process_group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("activation", "lonely"), [("relu", False), ("swiglu", True)])
def test_experts_of_two_ranks_equal_those_of_one(tmp_path, activation, lonely):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=rank_main, args=(r, str(tmp_path), activation, lonely)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{r}.pt") for r in range(2))

    torch.manual_seed(7)
    layer = MoE(**ARGUMENTS, activation=activation)
    whole = step(layer, torch.cat([tokens_of(r, lonely) for r in range(2)]))
    together = {
        "y": torch.cat([first["y"], second["y"]]),
        "x": torch.cat([first["x"], second["x"]]),
        "load": first["load"] + second["load"],
        "router.weight": first["router.weight"] + second["router.weight"],
        "w_in": torch.cat([first["w_in"], second["w_in"]]),
        "w_out": torch.cat([first["w_out"], second["w_out"]]),
    }
    for name, value in whole.items():
        torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-5, msg=name)
