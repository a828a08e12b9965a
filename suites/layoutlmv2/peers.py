"""The public implementation without detectron2: a stand-in of the few names that it imports, in memory.

transformers refuses to build LayoutLMv2 without detectron2. What it takes from there is a backbone; the one given here
has our stages, run as detectron2 runs them: convolution, then norm, in the default memory layout, the pyramid map by
map. Of the pyramid only p2 is made, which is less work than detectron2 does.
"""

import sys
import types
from importlib.machinery import ModuleSpec

import torch
from torch import nn
from torch.nn import functional as F

from systems.layoutlmv2.backbone import EPS, ConvNorm, ResNeXtFPN
from systems.layoutlmv2.config import Config


class FrozenBatchNorm2d(nn.Module):
    """Only asked for by isinstance."""


class PeerConv(ConvNorm):
    """A convolution and then its norm, two operations."""

    def forward(self, x):
        y = nn.Conv2d.forward(self, x)
        n = self.norm
        return F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, False, 0.0, EPS)


class FPN(ResNeXtFPN):
    """{"p2": (B, C, S / 4, S / 4)}."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.channels = cfg.fpn_channels
        for part in self.modules():
            if isinstance(part, ConvNorm):
                part.__class__ = PeerConv

    def forward(self, images):
        maps = self.bottom_up(images)
        top = None
        for level, x in ((5, maps[3]), (4, maps[2]), (3, maps[1]), (2, maps[0])):
            lateral = getattr(self, f"fpn_lateral{level}")(x)
            top = lateral if top is None else lateral + F.interpolate(top, scale_factor=2.0, mode="nearest")
        return {"p2": self.fpn_output2(top)}

    def output_shape(self):
        return {"p2": types.SimpleNamespace(stride=4, channels=self.channels)}


def _settings(cfg: Config):
    model = types.SimpleNamespace(META_ARCHITECTURE="stand-in", PIXEL_MEAN=cfg.pixel_mean, PIXEL_STD=cfg.pixel_std)
    return types.SimpleNamespace(MODEL=model, ours=cfg)


def transformers_classes(monkeypatch):
    """The module `transformers.models.layoutlmv2.modeling_layoutlmv2`, with a backbone at hand."""
    import pytest

    pytest.importorskip("transformers", reason="a peer: pip install transformers")
    import transformers.image_transforms  # noqa: F401  (looks for detectron2's friends by itself, so it goes first)

    if "detectron2" not in sys.modules:
        registry = types.SimpleNamespace(
            get=lambda name: lambda cfg: types.SimpleNamespace(backbone=FPN(cfg.ours))
        )  # fmt: skip
        contents = {
            "detectron2": {},
            "detectron2.modeling": {"META_ARCH_REGISTRY": registry},
            "detectron2.modeling.backbone": {"FPN": FPN},
            "detectron2.layers": {"FrozenBatchNorm2d": FrozenBatchNorm2d},
            "detectron2.layers.batch_norm": {"FrozenBatchNorm2d": FrozenBatchNorm2d},
            "detectron2.config": {"get_cfg": lambda: None},
        }
        for name, names in contents.items():
            module = types.ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            module.__dict__.update(names)
            monkeypatch.setitem(sys.modules, name, module)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    from transformers.models.layoutlmv2 import modeling_layoutlmv2 as modeling

    monkeypatch.setattr(modeling, "detectron2", sys.modules["detectron2"], raising=False)
    monkeypatch.setattr(
        modeling, "META_ARCH_REGISTRY", sys.modules["detectron2.modeling"].META_ARCH_REGISTRY, raising=False
    )
    monkeypatch.setattr(modeling, "requires_backends", lambda *_: None)
    return modeling


def twin(monkeypatch, model, head="LayoutLMv2Model", labels=2):
    """The peer of a model of ours, with the same weights, in evaluation mode."""
    modeling = transformers_classes(monkeypatch)
    cfg = getattr(model, "cfg", None) or model.layoutlmv2.cfg
    settings = modeling.LayoutLMv2Config(**cfg.to_dict(), num_labels=labels)
    monkeypatch.setattr(type(settings), "get_detectron2_config", lambda self: _settings(cfg))
    settings._attn_implementation = "eager"
    peer = getattr(modeling, head)(settings)
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith(("position_ids", "num_batches_tracked")) for name in missing), missing
    return peer.eval()


def inputs(batch):
    """A batch of ours under the peer's names."""
    return {
        "input_ids": batch.ids,
        "bbox": batch.box,
        "image": batch.image,
        "attention_mask": batch.mask.long(),
        "token_type_ids": batch.segment,
        "position_ids": batch.pos,
    }


def random_batch(cfg, rows=2, length=40, seed=0, size=None):
    """Random pages: words of several pieces that share a box, some padding."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, cfg.vocab_size, (rows, length), generator=draw)
    corner = torch.randint(0, 900, (rows, length, 2), generator=draw)
    corner = corner[:, torch.arange(length) // 3 * 3]
    box = torch.cat([corner, corner + torch.randint(1, 100, (rows, length, 2), generator=draw)], -1)
    mask = torch.ones(rows, length, dtype=torch.bool)
    for row in range(1, rows):
        mask[row, length - 5 * row :] = False
    from systems.layoutlmv2.model import Batch

    size = size or cfg.image_size
    image = torch.randint(0, 256, (rows, 3, size, size), generator=draw, dtype=torch.uint8)
    pos = torch.arange(length).expand(rows, -1).contiguous()
    return Batch(ids, torch.zeros_like(ids), pos, box, mask, image)
