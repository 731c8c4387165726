"""A small convolutional network that guides a vision transformer on few pictures.

A transformer needs millions of pictures to find out that neighboring patches belong together; a convolutional network
knows. Here one is trained for some minutes, and the patch tokens of the transformer then regress its feature map
(locality guidance, Li et al. 2022) while its class probabilities join the targets (distillation).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


__all__ = ["GuideNetwork", "hint_loss"]


def _convolution(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = _convolution(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.convolution(features)


class GuideNetwork(nn.Module):
    """Convolutional classifier with feature maps of an eighth of the picture's side.

    Args:
        num_classes: number of classes.
        width: channels of the first convolution; the feature map has six times as many.
    """

    def __init__(self, num_classes: int, *, width: int = 32) -> None:
        super().__init__()
        self.num_channels = 6 * width
        self.body = nn.Sequential(
            _convolution(3, width, stride=2),
            _convolution(width, 2 * width),
            nn.MaxPool2d(2),
            _convolution(2 * width, 3 * width),
            _Residual(3 * width),
            nn.MaxPool2d(2),
            _convolution(3 * width, 6 * width),
            _Residual(6 * width),
        )
        self.classifier = nn.Linear(6 * width, num_classes)
        # Maxima over space are large; a small classifier starts with even probabilities.
        nn.init.normal_(self.classifier.weight, std=0.02)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map and logits.

        Args:
            pixels: normalized pictures `(batch, 3, height, width)`.

        Returns:
            Features `(batch, num_channels, height / 8, width / 8)` and logits `(batch, num_classes)`.
        """
        features = self.body(pixels)
        return features, self.classifier(features.amax((2, 3)))


def hint_loss(tokens: Tensor, features: Tensor) -> Tensor:
    """Mean squared distance of patch tokens from a feature map, which is brought to their grid and standardized.

    Args:
        tokens: projected patch tokens `(batch, grid * grid, channels)`, without the class token.
        features: feature map `(batch, channels, height, width)`.

    Returns:
        A scalar; 1 for tokens that are zero.
    """
    grid = round(tokens.shape[1] ** 0.5)
    if features.shape[2:] != (grid, grid):
        features = F.interpolate(features, (grid, grid), mode="bilinear", antialias=True)
    targets = F.layer_norm(features.flatten(2).transpose(1, 2), features.shape[1:2])
    return F.mse_loss(tokens, targets)
