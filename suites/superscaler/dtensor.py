"""DTensor's redistribution planners on the same pairs of layouts: elements sent and seconds to plan.

Run as a program, since it needs a process group of its own: reads pairs as JSON on standard input, writes JSON. A
layout is a list of roles by mesh dimension: "R", "V" or the tensor dimension that it shards.
"""

import json
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._redistribute import _gen_transform_infos_non_cached
from torch.testing._internal.distributed.fake_pg import FakeStore


def placements(roles):
    return tuple(Replicate() if r == "R" else Partial() if r == "V" else Shard(r) for r in roles)


def sent(infos, start, shape, sizes):
    """Elements per device by ring algorithms, step by step."""
    now, total = list(start), 0.0
    for info in infos:
        shards = 1
        for size, p in zip(sizes, now, strict=True):
            shards *= size if p.is_shard() else 1
        x, s = torch.Size(shape).numel() / shards, sizes[info.mesh_dim]
        a, b = info.src_dst_placements
        if a.is_partial() and b.is_replicate():
            total += 2 * (s - 1) / s * x
        elif a.is_shard() and b.is_replicate():
            total += (s - 1) * x
        elif (a.is_partial() or a.is_shard()) and b.is_shard():
            total += (s - 1) / s * x
        now[info.mesh_dim] = b
    return total


def main():
    given = json.load(sys.stdin)
    sizes, shape = given["mesh"], given["shape"]
    world = torch.Size(sizes).numel()
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    mesh = init_device_mesh("cpu", tuple(sizes))
    meta = TensorMeta(torch.Size(shape), torch.empty(shape, device="meta").stride(), torch.float32)
    found = {}
    for name, graph_based in (("greedy", False), ("min_cost", True)):
        elements, start = [], time.perf_counter()
        for a, b in given["pairs"]:
            specs = [DTensorSpec(mesh, placements(roles), tensor_meta=meta) for roles in (a, b)]
            infos = _gen_transform_infos_non_cached(*specs, graph_based)
            elements.append(sent(infos, placements(a), shape, sizes))
        found[name] = {"elements": elements, "seconds": time.perf_counter() - start}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
