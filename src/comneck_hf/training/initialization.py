"""Starting point of a codec's training: g_a and g_s as a linear transform that already codes pictures."""

import math

import torch
from torch import nn

from comneck_hf.models.elic.layers_elic import AttentionBlock, ResidualBottleneck
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.tic.layers_tic import ResidualSwinBlock, SwinLayer


@torch.no_grad()
def init_transforms_from_images(codec: ElicModel, pixel_values: torch.Tensor, lmbda: float) -> None:
    """Sets g_a to a hierarchical principal component analysis of 2x2 blocks and g_s to its transpose.

    Residual branches start at zero and attention gates almost closed, so both transforms are linear and orthonormal up
    to the quantization step, which is chosen for `lmbda`; the convolutions of TIC halve what its blocks, which are
    near 2x then, double. A training that starts here codes pictures from the first step; one that starts at random
    spends thousands of steps to get there.

    Args:
        codec: The codec, ELIC or TIC; changed in place.
        pixel_values: Sample pictures `(batch, 3, height, width)` in [0, 1], sides multiples of 16.
        lmbda: Trade-off of the training, on `255^2 * MSE + bpp`.
    """
    for module in codec.modules():
        _close_branches(module)
    doubling = 2.0 if any(isinstance(module, ResidualSwinBlock) for module in codec.g_a) else 1.0
    analysis = [module for module in codec.g_a if isinstance(module, nn.Conv2d)]
    synthesis = [module for module in codec.g_s if isinstance(module, nn.ConvTranspose2d)][::-1]
    features = pixel_values
    for stage, (down, up) in enumerate(zip(analysis, synthesis, strict=True)):
        means = features.mean((0, 2, 3)) if stage == 0 else torch.zeros(features.shape[1])
        features = features - means[:, None, None]
        gain = math.sqrt(2 * math.log(2) * lmbda * 255**2 / 36) if stage == len(analysis) - 1 else 1.0
        components = _principal_components(features, down.out_channels)
        centre = slice(down.kernel_size[0] // 2, down.kernel_size[0] // 2 + 2)
        for layer, factor in ((down, gain / doubling), (up, 1 / gain / doubling)):
            nn.init.normal_(layer.weight, std=1e-3)
            layer.weight[: len(components), :, centre, centre] += factor * components
            nn.init.zeros_(layer.bias)
        down.bias[: len(components)] -= gain / doubling * (components.sum((2, 3)) @ means)
        up.bias += means
        features = doubling * torch.nn.functional.conv2d(features, down.weight[:, :, centre, centre], stride=2)
    for size, aggregation in zip(codec.config.group_channels, codec.parameter_aggregations, strict=True):
        aggregation[-1].bias[size:] = 1.0  # scales start away from their lower bound


def _close_branches(module: nn.Module) -> None:
    """Makes what a block adds to its input zero, or nearly so."""
    if isinstance(module, ResidualBottleneck):
        ends = {module.conv3: 0.0}
    elif isinstance(module, SwinLayer):
        ends = {module.attention.projection: 0.0, module.mlp[-1]: 0.0}
    elif isinstance(module, AttentionBlock):
        ends = {module.gate[-1]: -4.0}
    else:
        ends = {}
    for layer, bias in ends.items():
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, bias)


def _principal_components(features: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` leading orthonormal components of all 2x2 blocks: `(at most count, channels, 2, 2)`."""
    channels = features.shape[1]
    blocks = torch.nn.functional.unfold(features, 2, stride=2).transpose(1, 2).flatten(0, 1).double()
    _, vectors = torch.linalg.eigh(blocks.T @ blocks)
    return vectors.flip(1).T[:count].reshape(-1, channels, 2, 2).to(features.dtype)


__all__ = ["init_transforms_from_images"]
