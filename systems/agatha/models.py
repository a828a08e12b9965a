"""The networks of the paper, from torch.nn alone, with weights that are the same on every machine.

The three ImageNet-size networks carry seeded random weights: neither speed nor the protocol depends on them. They
are drawn with numpy's PCG64 as integers and scaled, which is exact, so that no vector unit can change a bit of
them; torch's own normal generator goes through a vectorised logarithm and cosine and gives no such promise.
`digits_cnn` is trained, on scikit-learn's 8 x 8 digits, so that accuracy means something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["MODELS", "calibration", "digits", "digits_cnn", "mobilenet", "resnet50", "train", "vgg16"]


def _conv(
    c_in: int, c_out: int, kernel: int, stride: int = 1, *, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project linearly (Sandler et al. 2018, section 3.3)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = c_in * expand
        first = [_conv(c_in, hidden, 1, act=nn.ReLU6)] if expand > 1 else []
        self.body = nn.Sequential(
            *first, _conv(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6), _conv(hidden, c_out, 1, act=None)
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.residual else y


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 with a residual (He et al. 2016, figure 5; the stride is on the 3 x 3)."""

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = 4 * width
        self.body = nn.Sequential(
            _conv(c_in, width, 1), _conv(width, width, 3, stride), _conv(width, c_out, 1, act=None)
        )
        self.shortcut = _conv(c_in, c_out, 1, stride, act=None) if stride > 1 or c_in != c_out else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))


def mobilenet(seed: int = 0, classes: int = 1000) -> nn.Module:
    """MobileNetV2 for (n, 3, 224, 224) float images: 301 M multiply-adds, 3.5 M parameters; in eval mode."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, act=nn.ReLU6)]
    c_in = 32
    for expand, c_out, repeat, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for i in range(repeat):
            layers.append(InvertedResidual(c_in, c_out, stride if i == 0 else 1, expand))
            c_in = c_out
    layers += [_conv(c_in, 1280, 1, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return _seeded(nn.Sequential(*layers, nn.Linear(1280, classes)), seed)


def resnet50(seed: int = 0, classes: int = 1000) -> nn.Module:
    """ResNet50 (v1.5) for (n, 3, 224, 224) float images: 4.1 G multiply-adds, 25.6 M parameters; in eval mode."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    c_in = 64
    for width, repeat, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(repeat):
            layers.append(Bottleneck(c_in, width, stride if i == 0 else 1))
            c_in = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes)]
    return _seeded(nn.Sequential(*layers), seed)


def vgg16(seed: int = 0, classes: int = 1000) -> nn.Module:
    """VGG16 (configuration D) for (n, 3, 224, 224) float images: 15.5 G multiply-adds, 138 M parameters; eval mode."""
    layers: list[nn.Module] = []
    c_in = 3
    for width, repeat in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeat):
            layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.ReLU()]
            c_in = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
    return _seeded(nn.Sequential(*layers, nn.Dropout(), nn.Linear(4096, classes)), seed)


class DigitsCNN(nn.Module):
    """Convolution, depthwise, residual and pool in 21 k parameters, for (n, 1, 8, 8) images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, 24, 3)
        self.body = nn.Sequential(_conv(24, 24, 3, groups=24), _conv(24, 24, 1, act=None))
        self.head = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), _conv(24, 48, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classify = nn.Linear(48 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.head(x + self.body(x)))


def digits_cnn(seed: int = 0) -> nn.Module:
    """An untrained network for scikit-learn's digits, (n, 1, 8, 8) float in 0..1; see `train`. In eval mode."""
    return _seeded(DigitsCNN(), seed)


MODELS: Mapping[str, Callable[[], nn.Module]] = {"mobilenet": mobilenet, "resnet50": resnet50, "vgg16": vgg16}
"""The three networks of the paper by name; each is called without arguments for its committed weights."""


def calibration(samples: int = 32, shape: tuple[int, int, int] = (3, 224, 224), seed: int = 1) -> Tensor:
    """(samples, *shape) float32 in [-2, 2): smooth random images on a grid of 1/64, the same on every machine."""
    random = np.random.default_rng(seed)
    c, h, w = shape
    coarse = random.integers(-96, 96, (samples, c, -(-h // 8), -(-w // 8)))
    smooth = np.repeat(np.repeat(coarse, 8, axis=2), 8, axis=3)[:, :, :h, :w]
    noise = random.integers(-32, 32, (samples, c, h, w))
    return torch.from_numpy(((smooth + noise) / 64).astype(np.float32))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 digits in four parts: train x (1347, 1, 8, 8) in 0..1, train y, test x, test y."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.from_numpy((images[order] / 16).astype(np.float32)).reshape(-1, 1, 8, 8)
    y = torch.from_numpy(labels[order].astype(np.int64))
    return x[:1347], y[:1347], x[1347:], y[1347:]


def train(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int = 20, batch: int = 64, seed: int = 0) -> nn.Module:
    """Train in place with Adam and a falling rate; about 5 s for the digits. Returns the model in eval mode."""
    order = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    model.train()
    for _ in range(epochs):
        for picks in np.array_split(order.permutation(len(x)), max(1, len(x) // batch)):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[picks]), y[picks]).backward()
            optimiser.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def _seeded(model: nn.Module, seed: int) -> nn.Module:
    """Uniform weights of He's variance, mild BatchNorm statistics; bit-equal everywhere. Returns it in eval mode."""
    random = np.random.default_rng(seed)

    def uniform(shape: torch.Size, low: float, high: float) -> Tensor:
        # 24 random bits, a power of two and one multiply-add in float64: exact or rounded once, on any machine.
        bits = random.integers(0, 1 << 24, tuple(shape), dtype=np.int32)
        return torch.from_numpy((low + (high - low) * (bits * 2.0**-24)).astype(np.float32))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            limit = math.sqrt(6 / math.prod(module.weight.shape[1:]))
            module.weight.copy_(uniform(module.weight.shape, -limit, limit))
            if module.bias is not None:
                module.bias.copy_(uniform(module.bias.shape, -0.1, 0.1))
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(uniform(module.weight.shape, 0.7, 1.1))
            module.bias.copy_(uniform(module.bias.shape, -0.2, 0.2))
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(uniform(module.running_mean.shape, -0.2, 0.2))
            module.running_var.copy_(uniform(module.running_var.shape, 0.8, 1.5))
    return model.eval()
