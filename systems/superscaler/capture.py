"""From a torch module to a `Graph`: torch.export before decomposition, then passes that make every operator splittable.

In order: in-place operators become their pure twins and no-ops vanish; bodies without gradient are inlined; split and
chunk become slices, and a packed projection becomes one linear per part on views of one parameter; means become a sum
over a count, the cross entropy its row maxima, exponentials and picked logits; dropout is named by a counter; the batch
is followed through the operators, under the identifier `b`; repeated blocks are found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from systems.superscaler.annotations import Annotation
from systems.superscaler.errors import Unsupported
from systems.superscaler.graph import Graph, Op, PTensor, Ref, VTensor, check_loss
from systems.superscaler.mask import Box, Mask
from systems.superscaler.operators import Call, annotation_of, flops_of, max_groups

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Builder", "capture"]

DROPPED = ("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range", "_assert_async.msg")
PASSED_ON = {"alias", "contiguous", "lift_fresh_copy", "lift_fresh", "dropout_", "detach_"}
CASTS = {"to.dtype", "to.dtype_layout", "_to_copy.default", "to.device"}


def capture(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    batched: Sequence[int] | None = None,
) -> Graph:
    """The graph of `model(*args, **kwargs)`, which returns a scalar loss (or a tuple that begins with one).

    batched: the indices of tensor inputs whose first dimension is the batch; by default those whose first dimension is
    as long as that of the first input. Raises Unsupported for data-dependent shapes or control flow, for a model
    without a scalar loss, and for in-place writes through views, naming the module or operator.
    """
    import torch
    from torch.export import export

    try:
        program = export(model, tuple(args), dict(kwargs or {}), strict=False)
    except Exception as error:  # torch.export has no common exception: whatever it says, the model is not captured
        raise Unsupported(
            f"torch.export cannot capture {type(model).__name__}: {str(error).strip()[:2000]}\n"
            "shapes and control flow may not depend on data; rewrite the named line, or capture a part of the model"
        ) from error
    builder = Builder(program)
    with torch.no_grad():
        builder.read()
    return builder.finish(batched)


class Builder:
    """The graph as it grows: tensors and operators by id, and what each node of the exported program stands for."""

    def __init__(self, program: Any = None) -> None:
        """program: what torch.export gave; None for a graph that is put together by `add` and `emit`."""
        self.program = program
        self.tensors: list[PTensor] = []
        self.ops: list[Op] = []
        self.values: dict[Any, Any] = {}
        self.views: set[int] = set()
        self.constants: dict[int, Tensor] = {}
        self.users: list[int] = []
        self.trainable: set[int] = set()
        self.slices: dict[int, tuple[int, Box]] = {}
        self.loss = -1
        self.keys = 0

    # ------------------------------------------------------------------------------------------ reading

    def read(self) -> None:
        signature = self.program.graph_signature
        state = {**self.program.state_dict, **self.program.constants}
        kinds = {}
        for spec in signature.input_specs:
            kinds[spec.arg.name] = (spec.kind.name, spec.target)
        tied: dict[int, int] = {}
        for node in self.program.graph.nodes:
            if node.op != "placeholder":
                continue
            kind, target = kinds[node.name]
            value = node.meta.get("val")
            if kind == "USER_INPUT":
                if not hasattr(value, "shape"):
                    self.values[node] = value
                    continue
                self.values[node] = self.add(value.shape, value.dtype, "input", node.name)
                self.users.append(self.values[node])
            elif kind == "PARAMETER":
                real = state[target]
                known = tied.get(id(real))
                if known is None:
                    known = self.add(real.shape, real.dtype, "param", target, grad=real.requires_grad)
                    tied[id(real)] = known
                self.values[node] = known
            else:
                real = state[target]
                self.values[node] = self.add(real.shape, real.dtype, "buffer", target)
                self.constants[self.values[node]] = real.detach()
        self.body(self.program.graph_module, self.values, grad=True)
        output = next(n for n in self.program.graph.nodes if n.op == "output")
        mutated = [s for s in signature.output_specs if s.kind.name in ("BUFFER_MUTATION", "USER_INPUT_MUTATION")]
        if mutated:
            raise Unsupported(f"the model writes its buffer or input {mutated[0].target}: return the new value instead")
        found = output.args[0][0]
        loss = self.values.get(found)
        if not isinstance(loss, int):
            raise Unsupported(f"the model returns {found!r}: training needs a scalar loss; return it first")
        self.loss = loss

    def body(self, module: Any, values: dict[Any, Any], *, grad: bool) -> Any:
        """Read the calls of a graph module; returns what its output node names."""
        for node in module.graph.nodes:
            if node.op == "call_function":
                values[node] = self.call(node, values, grad, module)
            elif node.op == "get_attr":
                held = getattr(module, node.target)
                if hasattr(held, "shape"):
                    values[node] = self.add(held.shape, held.dtype, "buffer", f"constant_{len(self.tensors)}")
                    self.constants[values[node]] = held.detach()
                else:
                    values[node] = held
            elif node.op == "output":
                return self.fetch(node.args[0], values)
        return None

    def fetch(self, value: Any, values: Mapping[Any, Any]) -> Any:
        import torch

        if isinstance(value, torch.fx.Node):
            return Operand(values[value]) if isinstance(values[value], int) and _is_tensor(value) else values[value]
        if isinstance(value, list | tuple):
            return tuple(self.fetch(v, values) for v in value)
        if isinstance(value, torch.dtype | torch.layout | torch.device | torch.memory_format):
            return str(value)
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            raise Unsupported(f"a size depends on data or is symbolic ({value}): shapes must be static")
        return value

    def call(self, node: Any, values: dict[Any, Any], grad: bool, module: Any) -> Any:
        import operator as builtin

        target = node.target
        if target is builtin.getitem:
            return self.fetch(node.args[0], values)[node.args[1]]
        text = str(target)
        if "set_grad_enabled" in text or "wrap_with_autocast" in text:
            return self.inline(node, values, grad, text)
        if not hasattr(target, "_schema"):
            raise Unsupported(f"{self.where(node)} calls {text}, which is data-dependent control flow or no operator")
        if any(name in text for name in DROPPED):
            return None
        arguments, keywords = self.normalised(node, values)
        return self.operator(node, text, arguments, keywords, grad)

    def normalised(self, node: Any, values: Mapping[Any, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keywords = {k: self.fetch(v, values) for k, v in node.kwargs.items() if k not in ("device", "pin_memory")}
        return tuple(self.fetch(a, values) for a in node.args), keywords

    def inline(self, node: Any, values: dict[Any, Any], grad: bool, text: str) -> Any:
        offset = (
            1
            if "set_grad_enabled" in text
            else next(i for i, a in enumerate(node.args) if hasattr(a, "op") and a.op == "get_attr")
        )
        inner = getattr(node.graph.owning_module, node.args[offset].target)
        holders = [n for n in inner.graph.nodes if n.op == "placeholder"]
        local = {h: values[a] for h, a in zip(holders, node.args[offset + 1 :], strict=True)}
        enabled = bool(node.args[0]) if "set_grad_enabled" in text else True
        result = self.body(inner, local, grad=grad and enabled)
        return result if isinstance(result, tuple) else (result,)

    def where(self, node: Any) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        trace = (node.meta.get("stack_trace") or "").strip().splitlines()
        line = trace[-2].strip() if len(trace) > 1 else ""
        return f"{path or 'the model'} ({line})" if line else path or "the model"

    # ---------------------------------------------------------------------------------------- operators

    def operator(self, node: Any, target: str, arguments: tuple[Any, ...], keywords: dict[str, Any], grad: bool) -> Any:
        name = target.removeprefix("aten.")
        stem = name.partition(".")[0]
        if stem in PASSED_ON:
            return arguments[0].id
        value = node.meta.get("val")
        if stem in ("split", "split_with_sizes", "chunk", "unbind", "tensor_split"):
            return self.pieces(node, stem, arguments, grad)
        if stem == "broadcast_tensors":
            return tuple(self.broadcast(node, a, v, grad) for a, v in zip(arguments[0], value, strict=True))
        if stem == "topk":
            return tuple(
                Operand(self.emit(node, f"superscaler.topk_{what}", arguments, keywords, v, grad))
                for what, v in zip(("values", "indices"), value, strict=True)
            )
        if isinstance(value, list | tuple):
            raise Unsupported(f"{self.where(node)}: {name} has several outputs; only split, chunk and unbind are known")
        if name in CASTS and value.dtype == self.dtype(arguments[0]) and value.shape == self.shape(arguments[0]):
            return arguments[0].id
        if stem == "type_as":
            target, arguments, keywords = "aten.to.dtype", (arguments[0], str(value.dtype)), {}
        if name in CASTS:
            target, arguments, keywords = "aten.to.dtype", (arguments[0], str(value.dtype)), {}
        if stem.endswith("_") and not stem.startswith("_") and not stem.endswith("__"):
            target = "aten." + name.replace(stem, stem[:-1], 1)
            if arguments[0].id in self.views or any(t == arguments[0].id for t in self.users):
                raise Unsupported(f"{self.where(node)}: {name} writes through a view or into an input: use {stem[:-1]}")
        if stem == "dropout":
            p, train = arguments[1], arguments[2] if len(arguments) > 2 else True
            if not train or p == 0:
                return arguments[0].id
            self.keys += 1
            return self.emit(node, "superscaler.dropout", (arguments[0], float(p), self.keys), {}, value, grad)
        if stem == "scaled_dot_product_attention":
            p = arguments[4] if len(arguments) > 4 else keywords.get("dropout_p", 0.0)
            if p:
                raise Unsupported(f"{self.where(node)}: attention with dropout inside: apply dropout to its output")
        if stem == "cross_entropy_loss":
            made = self.cross_entropy(node, arguments, keywords, grad)
            if made is not None:
                return made
        if stem == "mse_loss" and len(arguments) < 3:
            gap = self.emit(node, "aten.sub.Tensor", arguments[:2], {}, self.like(arguments[0]), grad)
            square = self.emit(node, "aten.mul.Tensor", (Operand(gap), Operand(gap)), {}, self.like(arguments[0]), grad)
            return self.mean(node, Operand(square), (), value, grad)
        if stem == "mean" and (name == "mean.default" or name == "mean.dim"):
            return self.mean(node, arguments[0], arguments[1:], value, grad)
        if stem in ("view", "reshape", "_unsafe_view", "transpose", "permute", "select", "slice", "expand", "t"):
            new = self.emit(node, target, arguments, keywords, value, grad)
            self.views.add(new)
            self.views.add(arguments[0].id)
            return new
        if stem == "linear":
            return self.emit(node, "aten.linear.default", tuple(a for a in arguments if a is not None), {}, value, grad)
        new = self.emit(node, target, arguments, keywords, value, grad)
        if stem.endswith("_") and not stem.startswith("_") and not stem.endswith("__"):
            self.renew(arguments[0].id, new)
        return new

    def renew(self, old: int, new: int) -> None:
        """After an in-place write whoever held the old value holds the new one."""
        for key, held in list(self.values.items()):
            if held == old and _is_tensor(key):
                self.values[key] = new

    def pieces(self, node: Any, stem: str, arguments: tuple[Any, ...], grad: bool) -> tuple[Any, ...]:
        values = node.meta["val"]
        source = arguments[0]
        rank = len(self.shape(source))
        if stem == "unbind":
            dim = (arguments[1] if len(arguments) > 1 else 0) % rank
            return tuple(
                Operand(self.emit(node, "aten.select.int", (source, dim, i), {}, v, grad)) for i, v in enumerate(values)
            )
        dim = (arguments[2] if len(arguments) > 2 else 0) % rank
        made, at = [], 0
        for v in values:
            size = v.shape[dim]
            made.append(self.sliced(node, source, dim, at, at + size, v, grad))
            at += size
        return tuple(map(Operand, made))

    def sliced(self, node: Any, source: Any, dim: int, lo: int, hi: int, value: Any, grad: bool) -> int:
        """A slice; of the output dimension of a linear it is a linear of its own, on a view of the parameter."""
        made = next((op for op in reversed(self.ops) if op.output == source.id), None)
        if made is not None and made.target == "aten.linear.default" and dim == len(value.shape) - 1:
            inputs = [made.inputs[0]]
            for v in made.inputs[1:]:
                start = v.box[0][0]
                inputs.append(VTensor(v.tensor, ((start + lo, start + hi), *v.box[1:])))
            return self.emit(node, made.target, made.arguments, {}, value, made.grad, inputs=inputs)
        return self.emit(node, "aten.slice.Tensor", (source, dim, lo, hi), {}, value, grad)

    def broadcast(self, node: Any, source: Any, value: Any, grad: bool) -> Any:
        if self.shape(source) == tuple(value.shape):
            return source
        return Operand(self.emit(node, "aten.expand.default", (source, tuple(value.shape)), {}, value, grad))

    def mean(self, node: Any, source: Any, rest: tuple[Any, ...], value: Any, grad: bool) -> int:
        import torch

        dims = rest[0] if rest and rest[0] is not None else ()
        shape = self.shape(source)
        count = prod(shape[d] for d in dims) if dims else prod(shape)
        if not value.dtype.is_floating_point:
            raise Unsupported(f"{self.where(node)}: the mean of {value.dtype}")
        if dims:
            kept = bool(rest[1]) if len(rest) > 1 else False
            total = self.emit(node, "aten.sum.dim_IntList", (source, tuple(dims), kept), {}, value, grad)
        else:
            total = self.emit(node, "aten.sum.default", (source,), {}, value, grad)
        return self.emit(node, "aten.div.Scalar", (Operand(total), float(count)), {}, torch.empty_like(value), grad)

    def cross_entropy(self, node: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], grad: bool) -> int | None:
        import torch

        logits, labels = arguments[:2]
        padded = [*arguments, None, 1, -100, 0.0][: max(len(arguments), 2)]
        weight = padded[2] if len(padded) > 2 else keywords.get("weight")
        reduction = padded[3] if len(padded) > 3 else keywords.get("reduction", 1)
        ignored = padded[4] if len(padded) > 4 else keywords.get("ignore_index", -100)
        smoothing = padded[5] if len(padded) > 5 else keywords.get("label_smoothing", 0.0)
        shape, dtype = self.shape(logits), self.dtype(logits)
        if weight is not None or smoothing or len(shape) != 2 or self.dtype(labels).is_floating_point:
            return None  # whole: it may still be replicated
        v = shape[-1]
        meta = torch.empty(shape[:-1], dtype=dtype, device="meta")

        def ours(name: str, inputs: tuple[Any, ...], like: Any, grad: bool) -> Any:
            return Operand(self.emit(node, name, inputs, {}, like, grad))

        groups = torch.empty((*shape[:-1], max_groups(v)), dtype=dtype, device="meta")
        maxima = ours("superscaler.row_max", (logits,), groups, False)
        highest = ours("aten.amax.default", (maxima, (-1,)), meta, False)
        total = ours("superscaler.sum_exp", (logits, highest), meta, grad)
        picked = ours("superscaler.pick", (logits, labels), meta, grad)
        each = ours("superscaler.negative_log", (total, highest, picked, labels, ignored), meta, grad)
        if reduction == 0:
            return int(each.id)
        scalar = torch.empty((), dtype=dtype, device="meta")
        loss = ours("aten.sum.default", (each,), scalar, grad)
        if reduction == 1:
            count = ours("superscaler.count", (labels, ignored, str(dtype).removeprefix("torch.")), scalar, False)
            loss = ours("aten.div.Tensor", (loss, count), scalar, grad)
        return int(loss.id)

    # -------------------------------------------------------------------------------------------- parts

    def shape(self, tensor: Any) -> tuple[int, ...]:
        return self.tensors[tensor.id].shape

    def dtype(self, tensor: Any) -> Any:
        import torch

        return getattr(torch, self.tensors[tensor.id].dtype)

    def like(self, tensor: Any) -> Any:
        import torch

        return torch.empty(self.shape(tensor), dtype=self.dtype(tensor), device="meta")

    def add(self, shape: Sequence[int], dtype: Any, kind: str, name: str, *, grad: bool = False) -> int:
        for n in shape:
            if type(n) is not int:
                raise Unsupported(f"{name} has a symbolic size {n}: shapes must be static")
        tensor = PTensor(len(self.tensors), tuple(shape), str(dtype).removeprefix("torch."), kind, name, grad)
        self.tensors.append(tensor)
        return tensor.id

    def emit(
        self,
        node: Any,
        target: str,
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any],
        value: Any,
        grad: bool,
        inputs: Sequence[VTensor] | None = None,
    ) -> int:
        """Add an operator; returns the id of its output."""
        if inputs is None:
            found: list[VTensor] = []
            arguments = tuple(self.placed(a, found) for a in arguments)
            keywords = {k: self.placed(v, found) for k, v in keywords.items()}
            inputs = found
        shapes = tuple(tuple(hi - lo for lo, hi in v.box) for v in inputs)
        dtypes = tuple(self.tensors[v.tensor].dtype for v in inputs)
        output = tuple(value.shape)
        call = Call(target, shapes, dtypes, output, arguments, keywords)
        needs = grad and value.dtype.is_floating_point and any(self.tensors[v.tensor].grad for v in inputs)
        new = self.add(output, value.dtype, "activation", f"{node.name}", grad=needs)
        stack = node.meta.get("nn_module_stack") or {}
        module = next(reversed(stack.values()))[0] if stack else ""
        op = Op(
            len(self.ops), target, tuple(inputs), new, arguments, dict(keywords), annotation_of(call),
            f"{node.name}", module, grad=needs, flops=flops_of(call),
        )  # fmt: skip
        self.ops.append(op)
        return new

    def placed(self, value: Any, found: list[VTensor]) -> Any:
        if isinstance(value, Operand):
            found.append(VTensor(value.id, Mask.full(self.tensors[value.id].shape).box))
            return Ref(len(found) - 1)
        if isinstance(value, tuple):
            return tuple(self.placed(v, found) for v in value)
        return value

    # ------------------------------------------------------------------------------------------- finish

    def finish(self, batched: Sequence[int] | None) -> Graph:
        ops = self.live()
        tensors = list(self.tensors)
        sizes = [tensors[i].shape[0] for i in self.users if tensors[i].shape]
        samples = sizes[0] if sizes else 1
        chosen = range(len(self.users)) if batched is None else batched
        for i in chosen:
            t = tensors[self.users[i]]
            if t.shape and t.shape[0] == samples:
                tensors[t.id] = _with(t, batch=(0, 1))
        found: list[Op] = []
        depends = {t.id for t in tensors if t.kind == "param"}
        summed: set[int] = set()
        copies: dict[int, int] = {}
        for op in ops:
            new, output = follow_batch(op, tensors)
            tensors[op.output] = output
            if any(v.tensor in depends for v in op.inputs):
                depends.add(op.output)
            elif new.annotation.sizes.get("b") and "b" in new.annotation.contracted:
                new = _with(new, prologue=True, inputs=tuple(self.early(v, found, tensors, copies) for v in new.inputs))
            new = sum_over_samples(new, summed, self.loss)
            found.append(new)
        found = self.reached([_with(op, id=i) for i, op in enumerate(found)], tensors)
        used = {v.tensor for op in found for v in op.inputs}
        labelled = blocks_of(found)
        check_loss(tensors[self.loss])
        tensors[self.loss] = _with(tensors[self.loss], kind="loss")
        constants = {t: v for t, v in self.constants.items() if t in used}
        return Graph(tuple(tensors), tuple(labelled), tuple(self.users), self.loss, samples, constants)

    def early(self, v: VTensor, found: list[Op], tensors: list[PTensor], copies: dict[int, int]) -> VTensor:
        """A tensor for an operator of the prologue: computed there too, if by micro-batches also."""
        made = next((op for op in found if op.output == v.tensor), None)
        if made is None or made.prologue:
            return v
        if v.tensor not in copies:
            inputs = tuple(self.early(u, found, tensors, copies) for u in made.inputs)
            old = tensors[v.tensor]
            copy = _with(old, id=len(tensors), name=f"{old.name}_whole", grad=False)
            tensors.append(copy)
            copies[v.tensor] = copy.id
            found.append(_with(made, output=copy.id, inputs=inputs, prologue=True, grad=False, name=copy.name))
        return VTensor(copies[v.tensor], v.box)

    def reached(self, ops: list[Op], tensors: list[PTensor]) -> list[Op]:
        """Gradients only where they come from the loss: what is read without gradient alone needs none."""
        wanted, found = {self.loss}, []
        for op in reversed(ops):
            grad = op.grad and op.output in wanted
            if grad:
                wanted.update(v.tensor for v in op.inputs)
            if tensors[op.output].grad and not grad:
                tensors[op.output] = _with(tensors[op.output], grad=False)
            found.append(_with(op, grad=grad))
        return found[::-1]

    def live(self) -> list[Op]:
        """The operators that the loss depends on, numbered anew in order."""
        needed, kept = {self.loss}, []
        for op in reversed(self.ops):
            if op.output in needed:
                needed.update(v.tensor for v in op.inputs)
                kept.append(op)
        return [_with(op, id=i) for i, op in enumerate(reversed(kept))]


class Operand:
    """A tensor among the arguments of a call that is being read."""

    def __init__(self, id: int) -> None:
        self.id = id


def _is_tensor(node: Any) -> bool:
    return hasattr(node.meta.get("val"), "shape")


def _with(record: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(record, **changes)


def follow_batch(op: Op, tensors: Sequence[PTensor]) -> tuple[Op, PTensor]:
    """The operator with its batch identifier called `b`, and its output with its batch dimension."""
    output = tensors[op.output]
    names: dict[str, int] = {}
    blocked = None
    for v, dims in zip(op.inputs, op.annotation.inputs, strict=True):
        batch = tensors[v.tensor].batch
        if batch is None or dims is None:
            continue
        dim, unit = batch
        if dim >= len(dims) or not dims[dim]:
            blocked = f"dimension {dim} of input {tensors[v.tensor].name} has no identifier"
            continue
        name = dims[dim][0]
        inner = prod(op.annotation.sizes[n] for n in dims[dim][1:])
        if unit % inner:
            blocked = f"samples of {unit} elements are not whole rows of {op.annotation}"
            continue
        names[name] = unit // inner
    if not names or blocked:
        if blocked:
            return _with(op, blocked=blocked, annotation=op.annotation.renamed("b", "b_")), output
        return _with(op, annotation=_without_b(op.annotation)), output
    if len(names) > 1:
        blocked = f"the batch stands under several identifiers {sorted(names)} of {op.annotation}"
        return _with(op, blocked=blocked, annotation=_without_b(op.annotation)), output
    ((name, unit),) = names.items()
    if name not in op.annotation.divisible:
        return _with(
            op, blocked=f"{name} may not be cut in {op.annotation}", annotation=_without_b(op.annotation)
        ), output
    annotation = op.annotation.renamed(name, "b")
    annotation = _with(annotation, units={**annotation.units, "b": unit})
    dims = annotation.outputs[0]
    for k, dim in enumerate(dims):
        if dim and dim[0] == "b":
            inner = prod(annotation.sizes[n] for n in dim[1:])
            output = _with(output, batch=(k, unit * inner))
    return _with(op, annotation=annotation), output


LINEAR = ("neg", "mul", "div", "to", "clone", "reshape", "view", "squeeze", "unsqueeze")


def sum_over_samples(op: Op, summed: set[int], loss: int) -> Op:
    """The operator, blocked if what micro-batches give could not be added up behind it.

    summed: the tensors so far that are sums over samples; the output joins them where it is one.
    """
    among = [v.tensor in summed for v in op.inputs]
    stem = op.target.removeprefix("aten.").partition(".")[0]
    if op.prologue:
        return op
    if "b" in op.annotation.contracted or (any(among) and stem in ("add", "sub") and all(among)):
        summed.add(op.output)
    elif any(among):
        if stem in LINEAR and sum(among) == 1 and among[0]:
            summed.add(op.output)
        else:
            return _with(op, blocked=f"{stem} of a sum over the batch is not the sum over micro-batches")
    elif op.output == loss:
        return _with(op, blocked="the loss is no sum over the batch")
    return op


def _without_b(annotation: Annotation) -> Annotation:
    return annotation.renamed("b", "b_") if "b" in annotation.sizes else annotation


def blocks_of(ops: Sequence[Op]) -> list[Op]:
    """Operators labelled by the repeated block that they are in.

    A block is a numbered module (layers.3) in the outermost list whose members look alike; those without numbers get
    -1. Members of several lists (encoder.layers.0, decoder.layers.0), and passes over one list, are numbered on.
    """
    labels: dict[tuple[str, int], int] = {}
    found = []
    passes: dict[str, int] = {}
    last = ""
    for op in ops:
        parts = op.module.split(".")
        at = next((i for i, p in enumerate(parts) if p.isdigit()), None)
        if at is None:
            found.append(op)
            last = "" if op.module else last
            continue
        key = ".".join(parts[: at + 1])
        if key != last and key in passes:
            passes[key] += 1
        passes.setdefault(key, 0)
        last = key
        found.append(_with(op, block=labels.setdefault((key, passes[key]), len(labels))))
    return found


def structure(ops: Sequence[Op], graph: Graph) -> str:
    """A digest of a run of operators up to names: targets, constants, shapes and how they are wired."""
    local: dict[int, int] = {}
    words = []
    for op in ops:
        wires = [local.get(v.tensor, -1) for v in op.inputs]
        shapes = [(graph.tensors[v.tensor].dtype, v.box if local.get(v.tensor) is None else None) for v in op.inputs]
        local[op.output] = len(local)
        words.append(repr((op.target, wires, shapes, op.arguments, sorted(op.keywords.items()), op.grad)))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def chains(graph: Graph) -> Iterator[tuple[int, list[Op]]]:
    """(block, operators) for each block, and (-1, operators) for what stands between them, in order."""
    run: list[Op] = []
    label = None
    for op in graph.ops:
        if label is not None and op.block != label:
            yield label, run
            run = []
        label = op.block
        run.append(op)
    if run and label is not None:
        yield label, run
