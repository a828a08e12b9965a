"""The published supernet and its training step, written from the description: what the supernet is timed against.

Words last; masks repeated to the full tensor; heads split and joined by concatenation; the recurrent layer always on
packed sequences; every sentence padded to one length; one dense Adam over everything, the embedding too.
"""

import torch
from torch import nn
from torch.nn import functional as F

KERNELS = {"conv1": 1, "conv3": 3, "conv5": 5, "conv7": 7}
LENGTH = 32
GRU_NAMES = {"weight_ih": "w_in", "weight_hh": "w_hidden", "bias_ih": "b_in", "bias_hh": "b_hidden"}


def masked(x, mask):
    """x: (B, H, T); mask: (B, T)."""
    full = mask.unsqueeze(1).repeat(1, x.shape[1], 1)
    return torch.where(full.bool(), x, torch.zeros_like(x))


class Normed(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.bn = nn.BatchNorm1d(hidden)

    def forward(self, x, mask):
        return masked(self.bn(x), mask)


class Convolution(nn.Module):
    def __init__(self, width, hidden, k, p):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv1d(width, hidden, k, padding=k // 2), Normed(hidden), nn.Dropout(p)

    def forward(self, x, mask):
        return self.drop(F.relu(self.norm(masked(self.conv(x), mask), mask)))


class Pool(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.pool = kind(3, 1, padding=1)

    def forward(self, x, mask):
        return masked(self.pool(x), mask)


class Recurrent(nn.Module):
    def __init__(self, hidden, p):
        super().__init__()
        self.gru, self.drop = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True), nn.Dropout(p)

    def forward(self, x, mask):
        lengths = mask.sum(1).long().cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x.transpose(1, 2), lengths, batch_first=True, enforce_sorted=False)
        y = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[2])[0]
        return self.drop(y.view(*y.shape[:2], 2, -1).sum(2)).transpose(1, 2)


class Heads(nn.Module):
    def __init__(self, hidden, p, heads=4):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(hidden, hidden) for _ in range(3))
        self.norm, self.drop, self.heads = Normed(hidden), nn.Dropout(p), heads

    def forward(self, x, mask):
        rows, heads = x.transpose(1, 2), self.heads
        wide = x.shape[1] // heads
        q, k, v = (torch.cat(torch.split(F.relu(project(rows)), wide, 2), 0) for project in (self.q, self.k, self.v))
        scores = q @ k.transpose(1, 2) / wide**0.5
        keys = mask.repeat(heads, 1).unsqueeze(1).repeat(1, x.shape[2], 1)
        scores = torch.where(keys == 0, torch.full_like(scores, -(2.0**32) + 1), scores)
        queries = mask.repeat(heads, 1).unsqueeze(2).repeat(1, 1, x.shape[2]).float()
        y = self.drop(torch.softmax(scores, 2) * queries) @ v
        y = torch.cat(torch.split(y, x.shape[0], 0), 2).transpose(1, 2)
        return self.norm(masked(y, mask), mask)


class PublishedSupernet(nn.Module):
    def __init__(self, layers, vectors, hidden, classes, p=0.2):
        super().__init__()
        self.embedding = nn.Parameter(vectors.clone())
        self.drop, self.stem = nn.Dropout(p), Convolution(vectors.shape[1], hidden, 1, p)
        self.layers = nn.ModuleList(
            nn.ModuleDict({
                **{op: Convolution(hidden, hidden, k, p) for op, k in KERNELS.items()},
                "avgpool3": Pool(nn.AvgPool1d), "maxpool3": Pool(nn.MaxPool1d), "gru": Recurrent(hidden, p),
                "attention": Heads(hidden, p),
            })
            for _ in range(layers)
        )  # fmt: skip
        self.norms = nn.ModuleList(Normed(hidden) for _ in range(layers))
        self.mix = nn.Parameter(torch.zeros(layers, 1, 1, 1))
        self.head = nn.Linear(hidden, classes)

    def forward(self, tokens, mask, arch):
        x = self.stem(self.drop(F.embedding(tokens, self.embedding)).transpose(1, 2), mask)
        outputs = []
        for k, layer in enumerate(arch.layers):
            parts = [self.layers[k][layer.op](outputs[layer.input] if layer.input >= 0 else x, mask)]
            parts += [outputs[j] for j in layer.skips]
            total = sum(parts)
            outputs.append(self.norms[k](total, mask) if len(parts) > 1 else total)
        total = torch.sum(torch.stack(outputs) * torch.softmax(self.mix, 0), 0)
        return self.head(self.drop((total * mask.unsqueeze(1)).sum(2) / mask.sum(1, keepdim=True)))


@torch.no_grad()
def copy_weights(ours, theirs):
    """Give the published network the weights of a Supernet."""
    mine = dict(ours.named_parameters())
    theirs.embedding.copy_(mine["encoder.embedding"])
    theirs.stem.conv.weight.copy_(mine["encoder.stem"].t()[..., None])
    theirs.stem.conv.bias.copy_(mine["encoder.stem_bias"])
    theirs.mix.copy_(mine["encoder.mix"].view(-1, 1, 1, 1))
    theirs.head.weight.copy_(mine["head"].t())
    theirs.head.bias.copy_(mine["head_bias"])
    for k, layer in enumerate(theirs.layers):
        for op in KERNELS:
            layer[op].conv.weight.copy_(mine[f"encoder.layers.{k}.{op}.weight"].permute(2, 1, 0))
            layer[op].conv.bias.copy_(mine[f"encoder.layers.{k}.{op}.bias"])
        for d, end in enumerate(("", "_reverse")):
            for name, weight in GRU_NAMES.items():
                getattr(layer["gru"].gru, f"{name}_l0{end}").copy_(mine[f"encoder.layers.{k}.gru.{weight}"][d])
        weights, biases = mine[f"encoder.layers.{k}.attention.weight"], mine[f"encoder.layers.{k}.attention.bias"]
        for part, project in enumerate((layer["attention"].q, layer["attention"].k, layer["attention"].v)):
            h = project.weight.shape[0]
            project.weight.copy_(weights[:, part * h : (part + 1) * h].t())
            project.bias.copy_(biases[part * h : (part + 1) * h])
