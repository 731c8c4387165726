"""Building blocks of ELIC (He et al., CVPR 2022) in the form that ComNeck's codec uses."""

import torch
from torch import nn
from torch.nn import functional as F


def downsample(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """Convolution that halves height and width."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=2, padding=kernel_size // 2)


def upsample(in_channels: int, out_channels: int, kernel_size: int) -> nn.ConvTranspose2d:
    """Transposed convolution that doubles height and width."""
    return nn.ConvTranspose2d(
        in_channels, out_channels, kernel_size, stride=2, padding=kernel_size // 2, output_padding=1
    )


class ResidualBottleneck(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(conv1x1(x))))) at half the width in between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 1)
        self.conv2 = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)
        self.conv3 = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = F.relu(self.conv1(hidden_states))
        residual = F.relu(self.conv2(residual))
        return hidden_states + self.conv3(residual)


class ResidualUnit(ResidualBottleneck):
    """A [`ResidualBottleneck`] followed by ReLU."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(hidden_states))


class AttentionBlock(nn.Module):
    """Gated residual: x + a(x) * sigmoid(b(x)) (Cheng et al., CVPR 2020, without the non-local block)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(ResidualUnit(channels) for _ in range(3)))
        self.gate = nn.Sequential(*(ResidualUnit(channels) for _ in range(3)), nn.Conv2d(channels, channels, 1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.trunk(hidden_states) * torch.sigmoid(self.gate(hidden_states))


def checkerboard(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Boolean mask `(height, width)`, true at the anchors: positions whose row plus column is even."""
    rows = torch.arange(height, device=device)[:, None]
    return (rows + torch.arange(width, device=device)) % 2 == 0


class CheckerboardConv2d(nn.Conv2d):
    """Convolution that sees, from a non-anchor, the anchors only: kernel taps whose row plus column is odd."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    @property
    def masked_weight(self) -> torch.Tensor:
        """The weight with the taps that are not seen set to zero."""
        return self.weight * ~checkerboard(*self.kernel_size, device=self.weight.device)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.conv2d(hidden_states, self.masked_weight, self.bias, padding=self.padding)


def analysis_transform(hidden: int, latent: int, kernel_size: int) -> nn.Sequential:
    """g_a: picture to latents, 16 times smaller."""
    return nn.Sequential(
        downsample(3, hidden, kernel_size),
        *(ResidualBottleneck(hidden) for _ in range(3)),
        downsample(hidden, hidden, kernel_size),
        *(ResidualBottleneck(hidden) for _ in range(3)),
        AttentionBlock(hidden),
        downsample(hidden, hidden, kernel_size),
        *(ResidualBottleneck(hidden) for _ in range(3)),
        downsample(hidden, latent, kernel_size),
        AttentionBlock(latent),
    )


def synthesis_transform(hidden: int, latent: int, kernel_size: int) -> nn.Sequential:
    """g_s: latents to picture."""
    return nn.Sequential(
        AttentionBlock(latent),
        upsample(latent, hidden, kernel_size),
        *(ResidualBottleneck(hidden) for _ in range(3)),
        upsample(hidden, hidden, kernel_size),
        AttentionBlock(hidden),
        *(ResidualBottleneck(hidden) for _ in range(3)),
        upsample(hidden, hidden, kernel_size),
        *(ResidualBottleneck(hidden) for _ in range(3)),
        upsample(hidden, 3, kernel_size),
    )


def hyper_analysis(hidden: int, latent: int, kernel_size: int) -> nn.Sequential:
    """h_a: latents to hyper-latents, 4 times smaller."""
    return nn.Sequential(
        nn.Conv2d(latent, hidden, 3, padding=1),
        nn.ReLU(),
        downsample(hidden, hidden, kernel_size),
        nn.ReLU(),
        downsample(hidden, hidden, kernel_size),
    )


def hyper_synthesis(hidden: int, latent: int, kernel_size: int) -> nn.Sequential:
    """h_s: hyper-latents to `2 * latent` channels, hyper means first."""
    return nn.Sequential(
        upsample(hidden, hidden, kernel_size),
        nn.ReLU(),
        upsample(hidden, hidden * 3 // 2, kernel_size),
        nn.ReLU(),
        nn.Conv2d(hidden * 3 // 2, 2 * latent, 3, padding=1),
    )


def channel_context(in_channels: int, widths: tuple[int, int], out_channels: int, kernel_size: int) -> nn.Sequential:
    """Context of a group from earlier groups: three convolutions."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, widths[0], kernel_size, padding=padding),
        nn.ReLU(),
        nn.Conv2d(widths[0], widths[1], kernel_size, padding=padding),
        nn.ReLU(),
        nn.Conv2d(widths[1], out_channels, kernel_size, padding=padding),
    )


def support_groups(group: int) -> list[int]:
    """Earlier groups that the channel context of `group` sees: the first and the latest (comneck.md 7.1)."""
    return sorted({0, group - 1}) if group else []


def parameter_aggregation(in_channels: int, widths: tuple[int, int], out_channels: int) -> nn.Sequential:
    """Contexts and hyper parameters to means and scales: three 1x1 convolutions."""
    return nn.Sequential(
        nn.Conv2d(in_channels, widths[0], 1),
        nn.ReLU(),
        nn.Conv2d(widths[0], widths[1], 1),
        nn.ReLU(),
        nn.Conv2d(widths[1], out_channels, 1),
    )


__all__ = [
    "AttentionBlock",
    "CheckerboardConv2d",
    "ResidualBottleneck",
    "ResidualUnit",
    "analysis_transform",
    "channel_context",
    "checkerboard",
    "downsample",
    "hyper_analysis",
    "hyper_synthesis",
    "parameter_aggregation",
    "support_groups",
    "synthesis_transform",
    "upsample",
]
