"""LayoutLMv2: text tokens and visual tokens of a page through one encoder, and what is read off its outputs.

    model = TokenTagger(TINY, labels=9)
    model(batch)                        # (B, T, 9)

Parameters carry the names of the public checkpoints, so `state_dict` is what they hold; `load` and `save` are in
`checkpoint.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems.layoutlmv2.attention import Backend, RelativeBias, SpatialBias, attend
from systems.layoutlmv2.backbone import ResNeXtFPN
from systems.layoutlmv2.config import GRID, CheckpointError, Config, InputError


@dataclass(frozen=True)
class Batch:
    """Pages as a model takes them.

    ids, segment, pos: (B, T) int64; box: (B, T, 4) int64, x0 y0 x1 y1 in 0..1000; mask: (B, T) bool, False for
    padding; image: (B, 3, S, S) uint8, channels blue green red, S a multiple of 32.
    """

    ids: Tensor
    segment: Tensor
    pos: Tensor
    box: Tensor
    mask: Tensor
    image: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def with_(self, **changes: Tensor) -> Batch:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def __len__(self) -> int:
        return self.ids.shape[0]


class Output(NamedTuple):
    """text: (B, T, D); visual, visual_in: (B, 49, D), after and before the encoder; pooled: (B, D)."""

    text: Tensor
    visual: Tensor
    visual_in: Tensor
    pooled: Tensor


class Embeddings(nn.Module):
    """The tables of words, positions, segments and boxes."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(cfg.vocab_size, cfg.hidden)
        self.position_embeddings = nn.Embedding(cfg.max_positions, cfg.hidden)
        self.layout = cfg.layout
        if cfg.layout:
            self.x_position_embeddings = nn.Embedding(cfg.max_2d, cfg.coordinate_size)
            self.y_position_embeddings = nn.Embedding(cfg.max_2d, cfg.coordinate_size)
            self.h_position_embeddings = nn.Embedding(cfg.max_2d, cfg.shape_size)
            self.w_position_embeddings = nn.Embedding(cfg.max_2d, cfg.shape_size)
        self.token_type_embeddings = nn.Embedding(cfg.segments, cfg.hidden)
        self.LayerNorm = nn.LayerNorm(cfg.hidden, cfg.layer_norm_eps)

    def forward(self, batch: Batch) -> Tensor:
        """(B, T, D), normalised."""
        total = self.word_embeddings(batch.ids) + self.position_embeddings(batch.pos)
        if self.layout:
            total = total + self.boxes(batch.box)
        return self.LayerNorm(total + self.token_type_embeddings(batch.segment))

    def boxes(self, box: Tensor) -> Tensor:
        """box: (..., 4) -> (..., D): left, top, right, bottom, height, width side by side."""
        x0, y0, x1, y1 = box.unbind(-1)
        return torch.cat(
            [
                self.x_position_embeddings(x0),
                self.y_position_embeddings(y0),
                self.x_position_embeddings(x1),
                self.y_position_embeddings(y1),
                self.h_position_embeddings(y1 - y0),
                self.w_position_embeddings(x1 - x0),
            ],
            -1,
        )


class Visual(nn.Module):
    """image: (B, 3, S, S) uint8 BGR -> (B, 49, C)."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(cfg.pixel_mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(cfg.pixel_std)[:, None, None], persistent=False)
        self.backbone = ResNeXtFPN(cfg)

    def forward(self, image: Tensor) -> Tensor:
        """The features of the page, row by row."""
        return self.backbone((image.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std)


class SelfAttention(nn.Module):
    """Queries, keys and values from one linear map (`fast_qkv`, no bias for keys) or from three."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.heads, self.fast, self.dropout = cfg.heads, cfg.fast_qkv, cfg.attention_dropout
        size = cfg.hidden
        if cfg.fast_qkv:
            self.qkv_linear = nn.Linear(size, 3 * size, bias=False)
            self.q_bias = nn.Parameter(torch.zeros(1, 1, size))
            self.v_bias = nn.Parameter(torch.zeros(1, 1, size))
        else:
            self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))

    def forward(self, x: Tensor, bias: Tensor | RelativeBias, backend: Backend) -> Tensor:
        """x: (B, L, D) -> (B, L, D)."""
        batch, length, size = x.shape
        if self.fast:
            bias_qkv = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias], -1).flatten()
            qkv = F.linear(x, self.qkv_linear.weight, bias_qkv)
            q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            shape = (batch, length, self.heads, size // self.heads)
            q, k, v = (linear(x).view(shape).transpose(1, 2) for linear in (self.query, self.key, self.value))
        out = attend(q, k, v, bias, backend, self.dropout if self.training else 0.0)
        return out.transpose(1, 2).reshape(batch, length, size)


class Projection(nn.Module):
    """dense, dropout, residual, LayerNorm: how both halves of a layer end."""

    def __init__(self, ins: int, cfg: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(ins, cfg.hidden)
        self.LayerNorm = nn.LayerNorm(cfg.hidden, cfg.layer_norm_eps)
        self.dropout = cfg.dropout

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: (B, L, ins), residual: (B, L, D) -> (B, L, D)."""
        return self.LayerNorm(F.dropout(self.dense(x), self.dropout, self.training) + residual)


class Attention(nn.Module):
    """Self-attention with its projection."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.self = SelfAttention(cfg)
        self.output = Projection(cfg.hidden, cfg)

    def forward(self, x: Tensor, bias: Tensor | RelativeBias, backend: Backend) -> Tensor:
        """x: (B, L, D) -> (B, L, D)."""
        return self.output(self.self(x, bias, backend), x)


class Intermediate(nn.Module):
    """The widening map of a layer and its GELU (by erf)."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(cfg.hidden, cfg.intermediate)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, D) -> (B, L, intermediate)."""
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """One post-norm layer."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.attention = Attention(cfg)
        self.intermediate = Intermediate(cfg)
        self.output = Projection(cfg.intermediate, cfg)

    def forward(self, x: Tensor, bias: Tensor | RelativeBias, backend: Backend = "auto") -> Tensor:
        """x: (B, L, D) -> (B, L, D)."""
        x = self.attention(x, bias, backend)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """The layers, and the bias that they share. Its tables lie beside the layers, as the public names have it."""

    spatial: SpatialBias

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Layer(cfg) for _ in range(cfg.layers)])
        spatial = SpatialBias(cfg)
        object.__setattr__(self, "spatial", spatial)  # not a child of its own: its tables are
        for name, table in spatial.named_children():
            self.add_module(name, table)
        self.backend: Backend = "auto"

    def forward(self, x: Tensor, pos: Tensor, box: Tensor, mask: Tensor) -> Tensor:
        """x: (B, L, D); pos: (B, L); box: (B, L, 4); mask: (B, L) bool -> (B, L, D)."""
        bias: Tensor | RelativeBias
        if self.backend in ("flex", "triton"):
            bias = self.spatial.relative(pos, box, mask)
        else:
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            bias = self.spatial(pos, box, mask).to(dtype)
        for layer in self.layer:
            x = layer(x, bias, self.backend)
        return x


class Pooler(nn.Module):
    """The first token through one more dense layer."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(cfg.hidden, cfg.hidden)

    def forward(self, text: Tensor) -> Tensor:
        """text: (B, T, D) -> (B, D)."""
        return torch.tanh(self.dense(text[:, 0]))


class LayoutLMv2(nn.Module):
    """The model without a head. `backend` of its encoder chooses how to attend."""

    visual_box: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.embeddings = Embeddings(cfg)
        if cfg.image:
            self.visual = Visual(cfg)
            self.visual_proj = nn.Linear(cfg.fpn_channels, cfg.hidden)
            self.visual_LayerNorm = nn.LayerNorm(cfg.hidden, cfg.layer_norm_eps)
            if cfg.visual_segment:
                self.visual_segment_embedding = nn.Parameter(torch.zeros(cfg.hidden))
        self.encoder = Encoder(cfg)
        self.pooler = Pooler(cfg)
        self.register_buffer("visual_box", visual_boxes(*cfg.pool) if cfg.image else None, persistent=False)
        initialise(self, cfg.initializer_range)

    def forward(self, batch: Batch) -> Output:
        """Raises InputError naming the batch row and token of a box, id or position that no table holds."""
        if not torch.compiler.is_compiling():
            check(batch, self.cfg)
        text = F.dropout(self.embeddings(batch), self.cfg.dropout, self.training)
        if not self.cfg.image:
            hidden = self.encoder(text, batch.pos, batch.box, batch.mask)
            none = hidden[:, :0]
            return Output(hidden, none, none, self.pooler(hidden))
        visual = self.visual_tokens(batch.image)
        rows, count = visual.shape[:2]
        pos = torch.arange(count, device=batch.pos.device).expand(rows, -1)
        seen = torch.ones_like(pos, dtype=torch.bool)
        hidden = self.encoder(
            torch.cat([text, visual.to(text.dtype)], 1),
            torch.cat([batch.pos, pos], 1),
            torch.cat([batch.box, self.visual_box.expand(rows, -1, -1)], 1),
            torch.cat([batch.mask, seen], 1),
        )
        length = text.shape[1]
        return Output(hidden[:, :length], hidden[:, length:], visual, self.pooler(hidden))

    def visual_tokens(self, image: Tensor) -> Tensor:
        """image: (B, 3, S, S) uint8 BGR -> (B, 49, D), as they enter the encoder."""
        x = self.visual_proj(self.visual(image))
        x = x + self.embeddings.position_embeddings.weight[: x.shape[1]]
        if self.cfg.layout:
            x = x + self.embeddings.boxes(self.visual_box)
        if self.cfg.visual_segment:
            x = x + self.visual_segment_embedding
        return F.dropout(self.visual_LayerNorm(x), self.cfg.dropout, self.training)


def visual_boxes(rows: int, columns: int) -> Tensor:
    """(rows * columns, 4) int64: the cells of the pooled grid, row by row, on the grid of 0..1000."""
    y = torch.arange(rows + 1) * GRID // rows
    x = torch.arange(columns + 1) * GRID // columns
    top, left = torch.meshgrid(y[:-1], x[:-1], indexing="ij")
    bottom, right = torch.meshgrid(y[1:], x[1:], indexing="ij")
    return torch.stack([left, top, right, bottom], -1).reshape(-1, 4)


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights of `std` for linear maps and tables, except in the backbone, which starts itself."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, 0.0, std)
            if getattr(part, "bias", None) is not None:
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]


def check(batch: Batch, cfg: Config) -> None:
    """Refuse what would index outside a table. Raises InputError with the row, the token and the value."""
    if batch.box.shape != (*batch.ids.shape, 4):
        raise InputError(
            f"{tuple(batch.ids.shape)} tokens and {tuple(batch.box.shape)} boxes, expected (batch, tokens, 4) boxes"
        )
    box = batch.box
    wrong = (box < 0).any(-1) | (box > GRID).any(-1) | (box[..., :2] > box[..., 2:]).any(-1)
    strange = (batch.ids < 0) | (batch.ids >= cfg.vocab_size)
    far = (batch.pos < 0) | (batch.pos >= cfg.max_positions)
    if not bool((wrong | strange | far).any()):
        return
    for bad, values, expected in (
        (wrong, box, f"x0 y0 x1 y1 in 0..{GRID}, x0 <= x1 and y0 <= y1"),
        (strange, batch.ids, f"an id below the vocabulary size {cfg.vocab_size}: is this the model's own vocabulary?"),
        (far, batch.pos, f"a position below {cfg.max_positions}: cut longer pages into windows"),
    ):
        if bool(bad.any()):
            row, token = bad.nonzero()[0].tolist()
            raise InputError(
                f"row {row} of the batch, token {token}: {values[row, token].tolist()}, expected {expected}"
            )


# ------------------------------------------------------------------------------------------------ heads


class TokenTagger(nn.Module):
    """A label for each text token. Names as in the public token classifier."""

    task = "tag"

    def __init__(self, cfg: Config, labels: int) -> None:
        super().__init__()
        self.layoutlmv2 = LayoutLMv2(cfg)
        self.classifier = nn.Linear(cfg.hidden, labels)
        nn.init.normal_(self.classifier.weight, 0.0, cfg.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, batch: Batch) -> Tensor:
        """(B, T, labels) logits."""
        text = self.layoutlmv2(batch).text
        return self.classifier(F.dropout(text, self.layoutlmv2.cfg.dropout, self.training))


class PageClassifier(nn.Module):
    """A label for each page, from the first token and the means of the visual tokens before and after the encoder."""

    task = "classify"

    def __init__(self, cfg: Config, labels: int) -> None:
        super().__init__()
        if not cfg.image:
            raise CheckpointError("a page classifier reads the visual tokens: its Config needs image=True")
        self.layoutlmv2 = LayoutLMv2(cfg)
        self.classifier = nn.Linear(3 * cfg.hidden, labels)
        nn.init.normal_(self.classifier.weight, 0.0, cfg.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, batch: Batch) -> Tensor:
        """(B, labels) logits."""
        out = self.layoutlmv2(batch)
        whole = torch.cat([out.text[:, 0], out.visual_in.mean(1), out.visual.mean(1)], -1)
        return self.classifier(F.dropout(whole, self.layoutlmv2.cfg.dropout, self.training))


class QuestionAnswerer(nn.Module):
    """Where an answer starts and ends among the text tokens."""

    task = "answer"

    def __init__(self, cfg: Config, labels: int = 2) -> None:
        super().__init__()
        if labels != 2:
            raise CheckpointError(f"{labels} labels for a question head, expected 2: start and end")
        self.layoutlmv2 = LayoutLMv2(cfg)
        self.qa_outputs = nn.Linear(cfg.hidden, labels)
        nn.init.normal_(self.qa_outputs.weight, 0.0, cfg.initializer_range)
        nn.init.zeros_(self.qa_outputs.bias)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of start and end, (B, T) each."""
        start, end = self.qa_outputs(self.layoutlmv2(batch).text).unbind(-1)
        return start, end


class Pretrainer(nn.Module):
    """The three heads of pre-training: masked words, covered lines, the page's own picture."""

    task = "pretrain"

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.layoutlmv2 = LayoutLMv2(cfg)
        self.words = nn.Sequential(
            nn.Linear(cfg.hidden, cfg.hidden), nn.GELU(), nn.LayerNorm(cfg.hidden, cfg.layer_norm_eps)
        )
        self.words_bias = nn.Parameter(torch.zeros(cfg.vocab_size))
        self.covered = nn.Linear(cfg.hidden, 2)
        self.matching = nn.Linear(cfg.hidden, 2)
        for head in (self.words, self.covered, self.matching):
            initialise(head, cfg.initializer_range)

    def forward(self, batch: Batch, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """where: (B, T) bool, the N tokens whose words are asked for.

        Returns logits of words (N, vocabulary), of not covered / covered (B, T, 2), of no match / match (B, 2).
        """
        out = self.layoutlmv2(batch)
        words = F.linear(
            self.words(out.text[where]), self.layoutlmv2.embeddings.word_embeddings.weight, self.words_bias
        )
        return words, self.covered(out.text), self.matching(out.text[:, 0])


Head = TokenTagger | PageClassifier | QuestionAnswerer | Pretrainer
