"""What a model is made of: sizes, read from and written as the public `config.json`; and what can go wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Norm = Literal["frozen", "batch", "sync"]

# Blocks of res2..res5 by depth (He et al., 2016, table 1).
DEPTHS: Mapping[int, tuple[int, int, int, int]] = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # fmt: skip  # noqa: E501
GRID = 1000
"""Boxes are integers on a grid of this many steps a side of the page."""


class LayoutError(Exception):
    """Anything that this system refuses, said in one line: what was given, what was expected, what to do.

    LayoutError
    ├── InputError (also a ValueError)   a batch, page or argument that no model can take
    ├── CheckpointError                  weights or settings that do not fit
    ├── DocumentError                    a file that cannot be read as a document
    │   └── MissingEngine                reading it needs a package that is not installed
    └── MissingData                      a data set's file is not where its official layout has it
    """


class InputError(LayoutError, ValueError):
    """A batch, page or argument that no model can take."""


class CheckpointError(LayoutError):
    """Weights or settings that do not fit the model."""


class DocumentError(LayoutError):
    """A file that cannot be read as a document."""


class MissingEngine(DocumentError):
    """Reading a document needs a package that is not installed."""


class MissingData(LayoutError):
    """A data set's file is not where the official layout has it."""


@dataclass(frozen=True)
class Config:
    """Sizes of a LayoutLMv2; the defaults are BASE.

    layout, image: False leaves out what the ablations of the paper leave out (no box embeddings and no spatial bias;
    no visual tokens and no backbone). norm: "frozen" as the public weights have it, "batch" or "sync" to train the
    backbone from a random start. image_size: pixels a side, a multiple of 32.
    """

    vocab_size: int = 30522
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512
    segments: int = 2
    max_2d: int = 1024
    coordinate_size: int = 128
    shape_size: int = 128
    dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    rel_pos_bins: int = 32
    max_rel_pos: int = 128
    rel_2d_pos_bins: int = 64
    max_rel_2d_pos: int = 256
    relative_bias: bool = True
    spatial_bias: bool = True
    visual_segment: bool = False
    fast_qkv: bool = True
    pool: tuple[int, int] = (7, 7)
    image_size: int = 224
    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)
    groups: int = 32
    width_per_group: int = 8
    stem_channels: int = 64
    res2_channels: int = 256
    fpn_channels: int = 256
    pixel_mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    pixel_std: tuple[float, float, float] = (57.375, 57.12, 58.395)
    norm: Norm = "frozen"
    layout: bool = True
    image: bool = True

    def __post_init__(self) -> None:
        parts = 4 * self.coordinate_size + 2 * self.shape_size
        if self.layout and parts != self.hidden:
            raise CheckpointError(
                f"4 x coordinate_size {self.coordinate_size} + 2 x shape_size {self.shape_size} = {parts}, expected "
                f"the hidden size {self.hidden}"
            )
        if self.hidden % self.heads:
            raise CheckpointError(f"hidden size {self.hidden} is no multiple of {self.heads} heads")
        if self.image_size % 32:
            raise CheckpointError(f"image_size {self.image_size} is no multiple of 32, the stride of res5")
        if self.norm not in ("frozen", "batch", "sync"):
            raise CheckpointError(f"norm {self.norm!r}, expected frozen, batch or sync")

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of a page: 49, or 0 without the image."""
        return self.pool[0] * self.pool[1] if self.image else 0

    def with_(self, **changes: Any) -> Config:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @classmethod
    def from_json(cls, path: Path | str) -> Config:
        """Read a public `config.json` (a file, or a folder that holds one). Raises CheckpointError."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: no config.json there ({error.strerror})") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not JSON: {error}") from error
        if not isinstance(given, dict):
            raise CheckpointError(f"{path}: a JSON {type(given).__name__}, expected an object")
        return cls.from_dict(given, str(path))

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], source: str = "the given settings") -> Config:
        """The settings of a public `config.json`, with detectron2's keys for the backbone. Raises CheckpointError."""
        kind = given.get("model_type", "layoutlmv2")
        if kind not in ("layoutlmv2", "layoutxlm"):
            raise CheckpointError(f"{source}: model_type {kind!r}, expected 'layoutlmv2'")
        try:
            return cls(**_read(given))
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{source}: {error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The settings under their public names; what the public format lacks is kept under `maat`."""
        visual = {
            "MODEL.RESNETS.NUM_GROUPS": self.groups,
            "MODEL.RESNETS.WIDTH_PER_GROUP": self.width_per_group,
            "MODEL.RESNETS.STEM_OUT_CHANNELS": self.stem_channels,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": self.res2_channels,
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
            "MODEL.FPN.OUT_CHANNELS": self.fpn_channels,
            "MODEL.PIXEL_MEAN": list(self.pixel_mean),
            "MODEL.PIXEL_STD": list(self.pixel_std),
        }
        depth = next((depth for depth, blocks in DEPTHS.items() if blocks == self.blocks), None)
        if depth is not None:
            visual["MODEL.RESNETS.DEPTH"] = depth
        named = {public: getattr(self, name) for name, public in _PUBLIC.items()}
        return {
            "model_type": "layoutlmv2",
            **named,
            "image_feature_pool_shape": [*self.pool, self.fpn_channels],
            "hidden_act": "gelu",
            "convert_sync_batchnorm": self.norm == "sync",
            "detectron2_config_args": visual,
            "maat": {
                "norm": self.norm, "layout": self.layout, "image": self.image, "image_size": self.image_size,
                "blocks": list(self.blocks),
            },
        }  # fmt: skip

    def to_json(self, path: Path | str) -> None:
        """Write `to_dict` to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


_PUBLIC = {
    "vocab_size": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "segments": "type_vocab_size",
    "max_2d": "max_2d_position_embeddings",
    "coordinate_size": "coordinate_size",
    "shape_size": "shape_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "rel_pos_bins": "rel_pos_bins",
    "max_rel_pos": "max_rel_pos",
    "rel_2d_pos_bins": "rel_2d_pos_bins",
    "max_rel_2d_pos": "max_rel_2d_pos",
    "relative_bias": "has_relative_attention_bias",
    "spatial_bias": "has_spatial_attention_bias",
    "visual_segment": "has_visual_segment_embedding",
    "fast_qkv": "fast_qkv",
}


def _read(given: Mapping[str, Any]) -> dict[str, Any]:
    if given.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"hidden_act {given['hidden_act']!r}, expected 'gelu'")
    found = {name: given[public] for name, public in _PUBLIC.items() if public in given}
    if "image_feature_pool_shape" in given:
        rows, columns, found["fpn_channels"] = given["image_feature_pool_shape"]
        found["pool"] = (rows, columns)
    visual = given.get("detectron2_config_args") or {}
    if visual.get("MODEL.RESNETS.STRIDE_IN_1X1", False):
        raise ValueError("MODEL.RESNETS.STRIDE_IN_1X1 is true: only blocks with the stride in conv2 are built here")
    keys = {
        "groups": "NUM_GROUPS",
        "width_per_group": "WIDTH_PER_GROUP",
        "stem_channels": "STEM_OUT_CHANNELS",
        "res2_channels": "RES2_OUT_CHANNELS",
    }
    found |= {
        name: visual[f"MODEL.RESNETS.{key}"] for name, key in keys.items() if f"MODEL.RESNETS.{key}" in visual
    }
    if "MODEL.RESNETS.DEPTH" in visual:
        depth = visual["MODEL.RESNETS.DEPTH"]
        if depth not in DEPTHS:
            raise ValueError(f"MODEL.RESNETS.DEPTH {depth}, expected one of {', '.join(map(str, DEPTHS))}")
        found["blocks"] = DEPTHS[depth]
    for name in ("pixel_mean", "pixel_std"):
        if f"MODEL.{name.upper()}" in visual:
            found[name] = tuple(visual[f"MODEL.{name.upper()}"])
    own = dict(given.get("maat") or {})
    if "blocks" in own:
        own["blocks"] = tuple(own["blocks"])
    return found | own


BASE = Config()
LARGE = Config(
    hidden=1024, layers=24, heads=16, intermediate=4096, coordinate_size=171, shape_size=170, fast_qkv=False
)  # fmt: skip
_LITTLE = {"blocks": (1, 1, 1, 1), "groups": 4, "norm": "batch", "attention_dropout": 0.0}
SMALL = Config(
    vocab_size=4096, hidden=256, layers=6, heads=8, intermediate=768, coordinate_size=43, shape_size=42,
    width_per_group=8, stem_channels=32, res2_channels=64, fpn_channels=96, **_LITTLE,  # type: ignore[arg-type]
)  # fmt: skip
TINY = Config(
    vocab_size=2048, hidden=128, layers=4, heads=4, intermediate=384, coordinate_size=22, shape_size=20,
    width_per_group=4, stem_channels=16, res2_channels=32, fpn_channels=48, image_size=128, **_LITTLE,  # type: ignore[arg-type]
)  # fmt: skip
