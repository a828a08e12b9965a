"""The visual backbone: ResNeXt with a feature pyramid, pooled to a grid of features, under detectron2's names.

    ResNeXtFPN(BASE)(images)            # (B, 3, 224, 224) normalised BGR -> (B, 49, 256)

Only the finest map of the pyramid is used, and only after pooling. All that lies between the residual stages and the
pooled grid is linear and, but for the channel mixing, separable in rows and columns; so it is evaluated at the pooled
points alone (`pooled_pyramid`). `collapse=False` runs it map by map, as detectron2 does.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems.layoutlmv2.config import Config, InputError, Norm

EPS = 1e-5
LEVELS = (2, 3, 4, 5)


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and scale never change: buffers weight, bias, running_mean, running_var."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - EPS)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        scale, shift = scale_and_shift(self)
        return x * scale[:, None, None] + shift[:, None, None]


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(C,) and (C,): what a batch norm with fixed statistics multiplies by and adds."""
    weight, bias, mean, var = (getattr(norm, name) for name in ("weight", "bias", "running_mean", "running_var"))
    scale = weight * torch.rsqrt(var + getattr(norm, "eps", EPS))
    return scale, bias - mean * scale


class ConvNorm(nn.Conv2d):
    """A convolution without bias and its norm (`.norm`), run as one convolution wherever the statistics are fixed."""

    def __init__(self, ins: int, outs: int, size: int, stride: int, groups: int, norm: Norm) -> None:
        super().__init__(ins, outs, size, stride, size // 2, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = {"frozen": FrozenBatchNorm, "batch": nn.BatchNorm2d, "sync": nn.SyncBatchNorm}[norm](outs)
        self._folded: tuple[tuple[object, ...], Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        if self.norm.training and not isinstance(self.norm, FrozenBatchNorm):
            return self.norm(super().forward(x))
        weight, bias = self._fold(x)
        return F.conv2d(x, weight, bias, self.stride, self.padding, 1, self.groups)

    def _fold(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution's weight and bias with the norm in them; kept while no gradient is wanted."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            scale, shift = scale_and_shift(self.norm)
            return self.weight * scale[:, None, None, None], shift
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight.dtype
        tensors = (self.weight, *self.norm.state_dict(keep_vars=True).values())
        # An inference tensor has no version; it cannot change in place outside of inference mode either.
        key = (dtype, *((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors))
        if self._folded is None or self._folded[0] != key:
            scale, shift = scale_and_shift(self.norm)
            weight = (self.weight * scale[:, None, None, None]).to(dtype, memory_format=torch.channels_last)
            self._folded = (key, weight.detach(), shift.to(dtype).detach())
        return self._folded[1:]


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 with the stride, 1x1, and the shortcut; each convolution with its norm."""

    def __init__(self, ins: int, outs: int, width: int, stride: int, groups: int, norm: Norm) -> None:
        super().__init__()
        self.shortcut = ConvNorm(ins, outs, 1, stride, 1, norm) if ins != outs else None
        self.conv1 = ConvNorm(ins, width, 1, 1, 1, norm)
        self.conv2 = ConvNorm(width, width, 3, stride, groups, norm)
        self.conv3 = ConvNorm(width, outs, 1, 1, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ins, H, W) -> (B, outs, H / stride, W / stride)."""
        y = F.relu_(self.conv1(x))
        y = F.relu_(self.conv2(y))
        y = self.conv3(y)
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return F.relu_(y)


class Stem(nn.Module):
    """7x7 convolution of stride 2 and a 3x3 maximum of stride 2."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, channels, 7, 2, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S) -> (B, channels, S / 4, S / 4)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), 3, 2, 1)


class ResNeXt(nn.Module):
    """The stem and the four residual stages."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.stem = Stem(cfg.stem_channels, cfg.norm)
        ins, outs, width = cfg.stem_channels, cfg.res2_channels, cfg.groups * cfg.width_per_group
        for level, count in zip(LEVELS, cfg.blocks, strict=True):
            blocks = []
            for number in range(count):
                stride = 2 if number == 0 and level > 2 else 1
                blocks.append(Bottleneck(ins, outs, width, stride, cfg.groups, cfg.norm))
                ins = outs
            self.add_module(f"res{level}", nn.Sequential(*blocks))
            outs, width = 2 * outs, 2 * width

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, 3, S, S) -> res2..res5, (B, C, S / stride, S / stride) each."""
        x = self.stem(x)
        maps = []
        for level in LEVELS:
            x = getattr(self, f"res{level}")(x)
            maps.append(x)
        return maps


class ResNeXtFPN(nn.Module):
    """images (B, 3, S, S), normalised BGR, S a multiple of 32 -> (B, rows x columns of the pool, fpn_channels)."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.pool = cfg.pool
        self.collapse = True
        channels = cfg.res2_channels
        for level in LEVELS:
            lateral = nn.Conv2d(channels, cfg.fpn_channels, 1)
            output = nn.Conv2d(cfg.fpn_channels, cfg.fpn_channels, 3, padding=1)
            for conv in (lateral, output):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            channels *= 2
        self.bottom_up = ResNeXt(cfg)

    def forward(self, images: Tensor) -> Tensor:
        """Raises InputError on sides that are no multiple of 32."""
        if images.shape[-1] % 32 or images.shape[-2] % 32:
            raise InputError(f"images of {tuple(images.shape[-2:])} pixels, expected multiples of 32 a side")
        maps = self.bottom_up(images.contiguous(memory_format=torch.channels_last))
        pooled = self.pooled_pyramid(maps) if self.collapse else self.plain_pyramid(maps)
        return pooled.flatten(1, 2)

    def plain_pyramid(self, maps: list[Tensor]) -> Tensor:
        """The pyramid map by map, pooled at the end: (B, rows, columns, C)."""
        top: Tensor | None = None
        for level, x in reversed(list(zip(LEVELS, maps, strict=True))):
            lateral = getattr(self, f"fpn_lateral{level}")(x)
            top = lateral if top is None else lateral + F.interpolate(top, scale_factor=2.0, mode="nearest")
        assert top is not None
        p2 = getattr(self, f"fpn_output{LEVELS[0]}")(top)
        return F.adaptive_avg_pool2d(p2, self.pool).permute(0, 2, 3, 1)

    def pooled_pyramid(self, maps: list[Tensor]) -> Tensor:
        """The same values, evaluated at the pooled points only: (B, rows, columns, C).

        A 3x3 convolution followed by averaging equals, tap by tap, the average of a shifted map times the tap's
        weight. Averaging, shifting and nearest upsampling all act on rows and columns apart, so each is one small
        matrix a side. Where a map has fewer points than taps x pool, its lateral convolution goes first.
        """
        rows, columns = self.pool
        output = getattr(self, f"fpn_output{LEVELS[0]}")
        height, width = maps[0].shape[-2:]
        total: Tensor | None = None
        for k, (level, x) in enumerate(zip(LEVELS, maps, strict=True)):
            lateral = getattr(self, f"fpn_lateral{level}")
            down = _tap_rows(height, rows, k, x.dtype, x.device)
            across = _tap_rows(width, columns, k, x.dtype, x.device)
            flat = x.permute(0, 2, 3, 1)  # (B, H, W, C), contiguous in channels_last
            weight = lateral.weight.flatten(1)
            late = flat.shape[1] * flat.shape[2] > 9 * rows * columns
            if not late:
                flat = F.linear(flat, weight)
            batch, h, w, channels = flat.shape
            pooled = down @ flat.reshape(batch, h, w * channels)
            pooled = across @ pooled.reshape(batch * 3 * rows, w, channels)
            if late:
                pooled = F.linear(pooled, weight)
            total = pooled if total is None else total + pooled
        assert total is not None
        laterals = sum(getattr(self, f"fpn_lateral{level}").bias for level in LEVELS)
        inside_down = _tap_rows(height, rows, 0, total.dtype, total.device).sum(1)
        inside_across = _tap_rows(width, columns, 0, total.dtype, total.device).sum(1)
        inside = inside_down[:, None] * inside_across[None, :]
        channels = total.shape[-1]
        total = total.reshape(-1, 3 * rows, 3 * columns, channels) + inside[..., None] * laterals
        taps = total.reshape(-1, 3, rows, 3, columns, channels).permute(0, 2, 4, 1, 3, 5)
        weight = output.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(taps.reshape(-1, rows, columns, 9 * channels), weight, output.bias)


@lru_cache(maxsize=64)
def _tap_matrix(side: int, points: int, level: int) -> Tensor:
    """(3 x points, side >> level) float64: row `tap * points + i` averages window i of the map moved by tap - 1.

    side: of the finest map; a coarser map (level k) is meant as upsampled 2**k times. Outside lies zero.
    """
    matrix = torch.zeros(3, points, side, dtype=torch.float64)
    for i in range(points):
        start, stop = i * side // points, -(-(i + 1) * side // points)
        for tap in range(3):
            for at in range(start + tap - 1, stop + tap - 1):
                if 0 <= at < side:
                    matrix[tap, i, at] = 1.0 / (stop - start)
    return matrix.reshape(3 * points, side >> level, 1 << level).sum(-1)


def _tap_rows(side: int, points: int, level: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _tap_matrix(side, points, level).to(device=device, dtype=dtype)
