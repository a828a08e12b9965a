"""A plan on real ranks: torch.distributed over gloo or nccl, checkpoints that fit any plan, and `launch`.

    runner = Runner(plan, model, torch.optim.AdamW)      # on every rank, under torchrun or `launch`
    loss = runner.step((tokens, labels))

Every rank calls the same communications in the global order that the plan fixed, so none can wait for ever; ranks whose
plans or world do not fit are refused before the first step.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from systems.superscaler.errors import PlanMismatch, RankFailure
from systems.superscaler.executor import Given, Rank, flat_piece
from systems.superscaler.graph import narrow
from systems.superscaler.plan import Parameter, Plan
from systems.superscaler.program import Collective, Flat, Instruction, Recv, Send

__all__ = ["Runner", "launch"]

BROADCAST_FROM = 1 << 20
"""Bytes from which several broadcasts beat gloo's all-gather."""
CHECKPOINT = 1


class Runner:
    """A rank of a plan. optimizer: called with this rank's parameters (or shards), such as `torch.optim.AdamW`.

    The model gives the starting weights; each rank keeps its own part only. Optimizers must work element by element
    (SGD, Adam, ...): a rank sees only a part of each parameter.
    """

    rank_type: ClassVar[type[Rank]] = Rank

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
        *,
        seed: int = 0,
    ) -> None:
        if not dist.is_initialized():
            if "RANK" not in os.environ and plan.devices > 1:
                raise PlanMismatch(f"the plan needs {plan.devices} ranks: start it by torchrun or `launch`")
            if plan.devices > 1:
                dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        self.plan = plan
        self.index = dist.get_rank() if dist.is_initialized() else 0
        world = dist.get_world_size() if dist.is_initialized() else 1
        if world != plan.devices:
            raise PlanMismatch(f"the plan is for {plan.devices} ranks, the world has {world}: start that many")
        self.device = torch.device("cpu")
        if dist.is_initialized() and dist.get_backend() == "nccl":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.index)))
            torch.cuda.set_device(self.device)
        self._same_plan()
        values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        own = {n: v.detach().to(self.device) for n, v in values.items()}
        self.rank = self.rank_type(plan, self.index, own, seed=seed)
        self.rank.constants = {t: v.to(self.device) for t, v in self.rank.constants.items()}
        self.rank.optimize_by(optimizer)
        self.names = {name: tuple(v.shape) for name, v in values.items()}
        self.groups = self._groups()
        self.pending: list[tuple[Any, Tensor]] = []

    def step(self, batch: Sequence[Any]) -> Tensor:
        """One training step on the whole batch, of which this rank takes what it needs; returns the whole batch's loss.

        Raises RankFailure naming the instruction where a communication fails or times out.
        """
        moved = [x.to(self.device) if isinstance(x, Tensor) else x for x in batch]
        running = self.rank.run(moved)
        arrived: Given | None = None
        try:
            while True:
                instruction, given = next(running) if arrived is None else running.send(arrived)
                try:
                    arrived = self.exchange(instruction, given)
                except RuntimeError as error:
                    raise RankFailure(f"rank {self.index} waited in {self.plan.say(instruction)}: {error}") from error
        except StopIteration as end:
            for work, _ in self.pending:
                work.wait()
            self.pending.clear()
            loss: Tensor = end.value
            return loss

    def parameters(self) -> list[Tensor]:
        """What this rank's optimizer steps on."""
        return self.rank.weights()

    # ----------------------------------------------------------------------------------- communication

    def exchange(self, instruction: Instruction, given: Given) -> Given:
        """Run one communication."""
        match instruction:
            case Send(task, peer):
                self.pending.append((dist.isend(given[0], peer, tag=task % 32768), given[0]))
                return []
            case Recv(task, peer, result):
                buffer = self.plan.buffers[result]
                dtype = getattr(torch, self.plan.graph.tensors[buffer.tensor].dtype)
                tensor = torch.empty(buffer.shape, dtype=dtype, device=self.device)
                dist.recv(tensor, peer, tag=task % 32768)
                return [tensor]
            case Collective(kind, _, group):
                return self.collective(kind, group, given)
            case Flat(kind, _, group):
                return self.collective(kind.removeprefix("flat_"), group, given)
            case _:
                raise AssertionError(instruction)

    def collective(self, kind: str, group: tuple[int, ...], given: Given) -> Given:
        return collective(kind, group, given, self.groups[group], self.index, self.device)

    def _groups(self) -> dict[tuple[int, ...], Any]:
        """Every rank makes the groups of all programs, in one order."""
        wanted = sorted({
            i.group for program in self.plan.programs for i in program if isinstance(i, Collective | Flat)
        })  # fmt: skip
        return {group: dist.new_group(list(group)) for group in wanted} if dist.is_initialized() else {}

    def _same_plan(self) -> None:
        if not dist.is_initialized():
            return
        digest = bytes.fromhex(self.plan.hash)
        mine = torch.tensor(list(digest), dtype=torch.int64, device=self.device)
        found = [torch.empty_like(mine) for _ in range(self.plan.devices)]
        dist.all_gather(found, mine)
        other = [r for r, theirs in enumerate(found) if not torch.equal(theirs, mine)]
        if other:
            raise PlanMismatch(
                f"rank {self.index} has plan {self.plan.hash[:12]}, ranks {other} have another: build it once, or from "
                "the same graph and calls"
            )

    # ------------------------------------------------------------------------------------- checkpoints

    def state_dict(self, *, full: bool = True) -> dict[str, Tensor]:
        """Parameters by name: whole ones, on every rank, or this rank's parts. All ranks must call it."""
        if not full:
            return {
                self.plan.graph.tensors[p.tensor].name: self.rank.held[p.buffer if p.shard is None else p.shard]
                for p in self.rank.stored
            }
        return self._whole(lambda p: self.rank.held[p.buffer if p.shard is None else p.shard])

    def _whole(self, mine: Callable[[Parameter], Tensor]) -> dict[str, Tensor]:
        """Whole tensors by name, from a tensor that each rank has for each of its parameters."""
        found: dict[str, Tensor] = {}
        boxes: dict[tuple[int, Any], list[Parameter]] = {}
        for p in self.plan.parameters:
            boxes.setdefault((p.tensor, p.box), []).append(p)
        for (tensor, box), holders in boxes.items():
            t = self.plan.graph.tensors[tensor]
            dtype = getattr(torch, t.dtype)
            whole = found.setdefault(t.name, torch.zeros(t.shape, dtype=dtype, device=self.device))
            extents = tuple(hi - lo for lo, hi in box)
            chosen = holders if holders[0].shard is not None else holders[:1]
            pieces = []
            for p in chosen:
                shape = extents if p.shard is None else self.plan.buffers[p.shard].shape
                piece = torch.empty(shape, dtype=dtype, device=self.device)
                if p.device == self.index:
                    piece.copy_(mine(p))
                if dist.is_initialized():
                    dist.broadcast(piece, p.device)
                pieces.append(piece.reshape(-1))
            count = 1
            for n in extents:
                count *= n
            whole[narrow(box)] = torch.cat(pieces)[:count].view(extents)
        return found

    def save(self, path: str | Path) -> None:
        """Write a checkpoint of whole tensors, optimizer state too: it fits any plan of the graph. Rank 0 writes.

        The file appears whole or not at all. All ranks must call it.
        """
        content: dict[str, Any] = {
            "version": CHECKPOINT, "graph": self.plan.graph.hash, "step": self.rank.step_count,
            "model": self.state_dict(), "optimizer": {}, "scalars": {},
        }  # fmt: skip
        optimizer = self.rank.optimizer
        trained = [p for p in self.rank.stored if p.gradient is not None]
        own = {id(p): w for p, w in zip(trained, self.rank.weights(), strict=True)}
        states: dict[int, Mapping[str, Any]] = {
            k: ({} if optimizer is None else optimizer.state.get(w, {})) for k, w in own.items()
        }
        keys = sorted({k for state in states.values() for k, v in state.items() if isinstance(v, Tensor) and v.dim()})
        scalars = {k: float(v) for state in states.values() for k, v in state.items() if not (
            isinstance(v, Tensor) and v.dim())}  # fmt: skip
        for key in self._agreed(keys):

            def piece(p: Parameter, key: str = key) -> Tensor:
                value = states.get(id(p), {}).get(key)
                return (
                    value
                    if value is not None
                    else torch.zeros_like(self.rank.held[p.buffer if p.shard is None else p.shard])
                )

            content["optimizer"][key] = self._whole(piece)
        content["scalars"] = scalars
        if self.index == 0:
            _write(Path(path), content)
        if dist.is_initialized():
            dist.barrier()

    def load(self, path: str | Path) -> None:
        """Take a checkpoint of any plan of this graph. Raises PlanMismatch for one of another graph or version."""
        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise PlanMismatch(f"{path} is no checkpoint: {error}") from error
        if not isinstance(content, dict):
            raise PlanMismatch(f"{path} is no checkpoint: it holds a {type(content).__name__}")
        if content.get("version") != CHECKPOINT or content.get("graph") != self.plan.graph.hash:
            raise PlanMismatch(
                f"{path} is of version {content.get('version')}, graph {str(content.get('graph'))[:12]}; expected "
                f"version {CHECKPOINT}, graph {self.plan.graph.hash[:12]}"
            )
        self.rank.step_count = int(content["step"])
        for p in self.rank.stored:
            for buffer, value in self._mine(p, content["model"]):
                self.rank.held[buffer].copy_(value)
        optimizer = self.rank.optimizer
        if optimizer is None:
            return
        trained = [p for p in self.rank.stored if p.gradient is not None]
        for p, weight in zip(trained, self.rank.weights(), strict=True):
            state = optimizer.state[weight]
            for key, whole in content["optimizer"].items():
                state[key] = self._mine(p, whole)[-1][1].clone()
            for key, value in content["scalars"].items():
                state[key] = torch.tensor(value)

    def _mine(self, p: Parameter, whole: Mapping[str, Tensor]) -> list[tuple[int, Tensor]]:
        box = whole[self.plan.graph.tensors[p.tensor].name][narrow(p.box)]
        found = [(p.buffer, box)] if p.buffer in self.rank.held else []
        if p.shard is not None:
            found.append((p.shard, flat_piece(box, *(self.plan.buffers[p.shard].flat or (0, 1)))))
        return found

    def _agreed(self, keys: list[str]) -> list[str]:
        """The names of optimizer states; a rank without parameters takes those of the first that has some."""
        if not dist.is_initialized():
            return keys
        text = ",".join(keys).encode()
        size = torch.tensor([len(text)], device=self.device)
        dist.all_reduce(size, op=dist.ReduceOp.MAX)
        padded = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        padded[: len(text)] = torch.tensor(list(text), dtype=torch.uint8, device=self.device)
        dist.all_reduce(padded, op=dist.ReduceOp.MAX)
        joined = bytes(padded.tolist()).decode()
        return joined.split(",") if joined else []


def collective(
    kind: str, group: tuple[int, ...], given: Given, handle: Any, index: int, device: torch.device
) -> Given:
    """A collective of this rank, `index`, in a group with its handle; gives what arrives, in order."""
    if kind == "all_reduce":
        if len(given) == 1:
            total = given[0].clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total, group=handle)
            return [total]
        flat = torch.cat([g.reshape(-1) for g in given])
        dist.all_reduce(flat, group=handle)
        found, at = [], 0
        for g in given:
            found.append(flat[at : at + g.numel()].view(g.shape))
            at += g.numel()
        return found
    if kind == "all_gather":
        mine = given[0].contiguous()
        if device.type == "cpu" and mine.numel() * mine.element_size() >= BROADCAST_FROM:
            pieces = [mine if r == index else torch.empty_like(mine) for r in group]
            works = [dist.broadcast(p, r, group=handle, async_op=True) for p, r in zip(pieces, group, strict=True)]
            for work in works:
                work.wait()
            return pieces
        pieces = [torch.empty_like(mine) for _ in group]
        dist.all_gather(pieces, mine, group=handle)
        return pieces
    if kind == "reduce_scatter":
        result = torch.empty_like(given[group.index(index)], memory_format=torch.contiguous_format)
        dist.reduce_scatter(result, [g.contiguous() for g in given], group=handle)
        return [result]
    sizes = [g.numel() for g in given]
    arrived = torch.empty(sum(sizes), dtype=given[0].dtype, device=device)
    dist.all_to_all_single(arrived, torch.cat([g.reshape(-1) for g in given]), sizes, sizes, group=handle)
    return [piece.view(g.shape) for piece, g in zip(arrived.split(sizes), given, strict=True)]


def _write(path: Path, content: Any) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# -------------------------------------------------------------------------------------------------- launch


def launch(
    fn: Callable[[], Any], ranks: int, backend: str = "gloo", *, timeout: float = 120.0, threads: int = 1
) -> list[Any]:
    """Run `fn()` in `ranks` new processes with a process group; returns their results in order.

    Processes are spawned where `fn` can be pickled (a function of a module, or `functools.partial` of one), else
    forked. Results are tensors, numbers, text and containers of them. Raises RankFailure with the first rank that
    fails or dies, and its traceback; the others are stopped.
    """
    try:
        pickle.dumps(fn)
        method = "spawn"
    except (pickle.PicklingError, AttributeError, TypeError):
        method = "fork"
    context = multiprocessing.get_context(method)
    with tempfile.TemporaryDirectory(prefix="superscaler-") as folder:
        pipes, processes = [], []
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(  # type: ignore[attr-defined]
                target=_rank_main, args=(fn, rank, ranks, backend, folder, theirs, timeout, threads), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            return _collect(pipes, processes, timeout)
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
                process.join(10)


def _collect(pipes: Sequence[Any], processes: Sequence[Any], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    end = time.monotonic() + timeout
    failures: list[tuple[int, str]] = []
    while len(results) < len(pipes):
        for rank, (pipe, process) in enumerate(zip(pipes, processes, strict=True)):
            if rank in results:
                continue
            message = None
            with contextlib.suppress(EOFError):
                if pipe.poll(0.01):
                    message = pipe.recv_bytes()
            if message is None:
                if process.is_alive() or pipe.poll(0):
                    continue
                failures.append((rank, f"it died with exit status {process.exitcode}"))
                break
            if message[:1] == b"E":
                failures.append((rank, message[1:].decode()))
                break
            results[rank] = torch.load(io.BytesIO(message[1:]), weights_only=True)
        if failures:
            rank, text = failures[0]
            raise RankFailure(f"rank {rank} of {len(pipes)} failed, the others were stopped: {text}")
        if time.monotonic() > end:
            raise RankFailure(f"ranks {sorted(set(range(len(pipes))) - set(results))} did not finish in {timeout:g} s")
    return [results[r] for r in range(len(pipes))]


def _rank_main(
    fn: Callable[[], Any], rank: int, ranks: int, backend: str, folder: str, pipe: Any, timeout: float, threads: int
) -> None:
    torch.set_num_threads(threads)
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)})
    try:
        store = dist.FileStore(str(Path(folder) / "store"), ranks)
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout))
        result = fn()
        content = io.BytesIO()
        torch.save(result, content)
        pipe.send_bytes(b"R" + content.getvalue())
        dist.barrier()
    except Exception:  # whatever a user's function raises is told to the parent, which raises it
        pipe.send_bytes(b"E" + traceback.format_exc().encode())
        os._exit(1)
    dist.destroy_process_group()
