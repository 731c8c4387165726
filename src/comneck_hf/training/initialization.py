"""Starting point of a codec's training: g_a and g_s as a linear transform that already codes pictures."""

import math

import torch
from torch import nn

from comneck_hf.models.elic.layers_elic import AttentionBlock, ResidualBottleneck
from comneck_hf.models.elic.modeling_elic import ElicModel


@torch.no_grad()
def init_transforms_from_images(codec: ElicModel, pixel_values: torch.Tensor, lmbda: float) -> None:
    """Sets g_a to a hierarchical principal component analysis of 2x2 blocks and g_s to its transpose.

    Residual branches start at zero and attention gates almost closed, so both transforms are linear and orthonormal up
    to the quantization step, which is chosen for `lmbda`. A training that starts here codes pictures from the first
    step; one that starts at random spends thousands of steps to get there.

    Args:
        codec: The codec; changed in place.
        pixel_values: Sample pictures `(batch, 3, height, width)` in [0, 1], sides multiples of 16.
        lmbda: Trade-off of the training, on `255^2 * MSE + bpp`.
    """
    for module in codec.modules():
        if isinstance(module, ResidualBottleneck):
            nn.init.zeros_(module.conv3.weight)
            nn.init.zeros_(module.conv3.bias)
        elif isinstance(module, AttentionBlock):
            nn.init.zeros_(module.gate[-1].weight)
            nn.init.constant_(module.gate[-1].bias, -4.0)
    analysis = [module for module in codec.g_a if isinstance(module, nn.Conv2d)]
    synthesis = [module for module in codec.g_s if isinstance(module, nn.ConvTranspose2d)][::-1]
    features = pixel_values
    for stage, (down, up) in enumerate(zip(analysis, synthesis, strict=True)):
        means = features.mean((0, 2, 3)) if stage == 0 else torch.zeros(features.shape[1])
        features = features - means[:, None, None]
        gain = math.sqrt(2 * math.log(2) * lmbda * 255**2 / 36) if stage == len(analysis) - 1 else 1.0
        components = _principal_components(features, down.out_channels)
        centre = slice(down.kernel_size[0] // 2, down.kernel_size[0] // 2 + 2)
        for layer, factor in ((down, gain), (up, 1 / gain)):
            nn.init.normal_(layer.weight, std=1e-3)
            layer.weight[: len(components), :, centre, centre] += factor * components
            nn.init.zeros_(layer.bias)
        down.bias -= gain * torch.nn.functional.pad(
            components.sum((2, 3)) @ means, (0, down.out_channels - len(components))
        )
        up.bias += means
        features = torch.nn.functional.conv2d(features, down.weight[:, :, centre, centre], stride=2)
    for size, aggregation in zip(codec.config.group_channels, codec.parameter_aggregations, strict=True):
        aggregation[-1].bias[size:] = 1.0  # scales start away from their lower bound


def _principal_components(features: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` leading orthonormal components of all 2x2 blocks: `(at most count, channels, 2, 2)`."""
    channels = features.shape[1]
    blocks = torch.nn.functional.unfold(features, 2, stride=2).transpose(1, 2).flatten(0, 1).double()
    _, vectors = torch.linalg.eigh(blocks.T @ blocks)
    return vectors.flip(1).T[:count].reshape(-1, channels, 2, 2).to(features.dtype)


__all__ = ["init_transforms_from_images"]
