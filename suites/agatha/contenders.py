"""What XCE is measured against: the same networks by torch, in float32 and in int8, made once a session."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch

from systems.agatha import Trace, integer, localise, models, xce
from systems.agatha import graph as graphs
from systems.agatha.descriptor import CONVOLUTIONS, Op, tensor_bytes


class Contest:
    """One network: the model, its two graphs, one image as each contender wants it."""

    def __init__(self, name):
        self.model = models.MODELS[name]()
        exported = torch.export.export(self.model, (torch.zeros(1, 3, 224, 224),))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # four samples are enough for random weights
            self.int8 = graphs.compile(exported, "int8", models.calibration(4))
        self.ieee32 = graphs.compile(exported, "ieee32")
        self.image = models.calibration(1, seed=5)
        self.codes = torch.from_numpy(xce.encode(self.int8, self.image))
        self.floats = torch.from_numpy(xce.encode(self.ieee32, self.image))

    def native(self):
        """torch float32, eager, channels last: what a user runs."""
        model = self.model.to(memory_format=torch.channels_last)
        x = self.image.to(memory_format=torch.channels_last)

        def run():
            with torch.no_grad():
                return model(x)

        return run

    def executor(self, profile):
        graph, x = (self.int8, self.codes) if profile == "int8" else (self.ieee32, self.floats)
        ready = xce.prepare(graph, xce.backends(graph.profile)[0])
        return lambda: ready(x)

    def as_floats(self, y):
        """(1000,) of any contender's output."""
        if y.dtype == torch.uint8:
            return xce.decode(self.int8, y.numpy()).reshape(-1)
        return y.numpy().reshape(-1)

    def agree(self, reference, result):
        a, b = self.as_floats(reference), self.as_floats(result)
        assert np.corrcoef(a, b)[0, 1] > 0.99

    def bare(self):
        """The same oneDNN kernels as torch's own quantisation calls them: eight-bit weights, arbitrary scales."""
        op, steps = torch.ops.onednn, []
        for i, node in enumerate(self.int8.nodes):
            if node.op not in CONVOLUTIONS:
                steps.append(None if i == 0 else (node.inputs, integer.step(self.int8, i, True)))
                continue
            first, weight = self.int8.nodes[node.inputs[0]], self.ieee32.nodes[i].weight
            scale = np.maximum(abs(weight.reshape(len(weight), -1)).max(1), 1e-9) / 127
            codes = np.rint(weight / scale[:, None, None, None]).astype(np.int8).transpose(0, 3, 1, 2)
            step_x, step_y = 2.0**first.scale.exponent, 2.0**node.scale.exponent
            steps.append((node.inputs, _bare_step(op, self, i, np.ascontiguousarray(codes), scale, step_x, step_y)))

        def run():
            values = [self.codes.permute(0, 3, 1, 2)]
            for inputs, step in steps[1:]:
                values.append(step(*(values[j] for j in inputs)))
            return values[-1].permute(0, 2, 3, 1)

        return run


def _bare_step(op, contest, i, codes, scale, step_x, step_y):
    graph = contest.int8
    node = graph.nodes[i]
    zero_x, zero_y = graph.nodes[node.inputs[0]].scale.zero, node.scale.zero
    scale, bias = torch.from_numpy(scale.astype(np.float32)), torch.from_numpy(contest.ieee32.nodes[i].bias.copy())
    zero = torch.zeros(len(scale), dtype=torch.int64)
    high = [0.0 - step_y * zero_y, step_y * (node.hi - zero_y)]
    unary = ("none", []) if node.hi >= 255 else ("hardtanh", high)
    if node.op is Op.LINEAR:
        flat = codes.transpose(0, 2, 3, 1).reshape(len(codes), -1)
        packed = op.qlinear_prepack(torch.from_numpy(np.ascontiguousarray(flat)), [1, flat.shape[1]])

        def linear(x):
            rows = x.permute(0, 2, 3, 1).reshape(len(x), -1)
            y = op.qlinear_pointwise.default(
                rows, step_x, zero_x, packed, scale, zero, bias, step_y, zero_y, torch.uint8, *unary, ""
            )
            return y[:, :, None, None]

        return linear
    window = [[node.stride] * 2, [node.pad] * 2, [node.dilation] * 2, node.groups]
    h, w, c = node.input_shape
    packed = op.qconv_prepack(torch.from_numpy(codes), scale, step_x, zero_x, *window, [1, c, h, w])
    if node.residual:
        other = graph.nodes[node.inputs[1]].scale
        shared = graph.consumers[node.inputs[1]][-1] != i
        tail = (step_y, zero_y, torch.uint8, 2.0**other.exponent, other.zero, "sum", 1.0, "none", [], "")
        return lambda x, r: op.qconv2d_pointwise.binary(
            x, step_x, zero_x, packed, scale, zero, r.clone() if shared else r, bias, *window, *tail
        )
    end = (step_y, zero_y, torch.uint8, *unary, "")
    return lambda x: op.qconv2d_pointwise.default(x, step_x, zero_x, packed, scale, zero, bias, *window, *end)


def parting(graph, a, b):
    """The operator and the element in which two runs of a graph part: two lists of every node's output."""
    first, second = (Trace([tensor_bytes(value.numpy()) for value in values]) for values in (a, b))
    found = localise(first, second, graph.commitment)
    if found is None:
        return "two runs give the same bits"
    node, element = found
    return f"two runs of the same network part at node {node} ({graph.nodes[node].op.name}), element {element}"


@functools.lru_cache(maxsize=1)
def contest(name):
    """The contest of a network; only the last one is kept, VGG16 alone takes a gigabyte."""
    return Contest(name)
