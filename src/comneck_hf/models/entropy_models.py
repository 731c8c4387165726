"""Float entropy models for training and rate estimates: the factorized prior and the Gaussian conditional.

Coding never uses these numbers: `comneck_hf.coding` works on integers that are derived from them once.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init


SCALE_BOUND = 0.11
LIKELIHOOD_BOUND = 1e-9
TAIL_MASS = 1e-9


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, inputs: torch.Tensor, bound: float) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        ctx.bound = bound
        return inputs.clamp_min(bound)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (inputs,) = ctx.saved_tensors
        return torch.where((inputs >= ctx.bound) | (grad < 0), grad, torch.zeros_like(grad)), None


def lower_bound(inputs: torch.Tensor, bound: float) -> torch.Tensor:
    """`max(inputs, bound)` whose gradient may still push values below the bound upwards (Balle et al. 2018)."""
    return _LowerBound.apply(inputs, bound)


def straight_through_round(inputs: torch.Tensor) -> torch.Tensor:
    """Rounds to integers; the gradient passes unchanged."""
    return inputs + (inputs.round() - inputs).detach()


def additive_noise(inputs: torch.Tensor) -> torch.Tensor:
    """Adds uniform noise in [-0.5, 0.5), the training proxy of rounding."""
    return inputs + torch.rand_like(inputs) - 0.5


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def gaussian_likelihood(values: torch.Tensor, scales: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Probability of the unit bin around each value under N(mean, scale).

    Args:
        values: Any shape; quantized or noisy latents.
        scales: Same shape, standard deviations; bounded below by 0.11.
        means: Same shape.

    Returns:
        Same shape, in [1e-9, 1].
    """
    distance = (_at_least_float32(values) - _at_least_float32(means)).abs()
    scales = lower_bound(_at_least_float32(scales), SCALE_BOUND)
    root = -1 / math.sqrt(2)
    upper = torch.erfc(root * (0.5 - distance) / scales)
    lower = torch.erfc(root * (-0.5 - distance) / scales)
    return lower_bound(0.5 * (upper - lower), LIKELIHOOD_BOUND)


class FactorizedPrior(nn.Module):
    """Learned density of the hyper-latents, one per channel (Balle et al. 2018, appendix 6.1).

    Args:
        channels: Number of channels.
        init_scale: Initial width of the densities.
        filters: Widths of the hidden layers of each channel's cumulative network.
    """

    def __init__(self, channels: int, init_scale: float, filters: tuple[int, ...] = (3, 3, 3, 3)) -> None:
        super().__init__()
        self.channels = channels
        self.init_scale = init_scale
        widths = (1, *filters, 1)
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.matrices = nn.ParameterList(torch.empty(channels, out, inp) for inp, out in pairs)
        self.biases = nn.ParameterList(torch.empty(channels, out, 1) for _, out in pairs)
        self.factors = nn.ParameterList(torch.empty(channels, out, 1) for _, out in pairs[:-1])
        self.quantiles = nn.Parameter(torch.empty(channels, 1, 3))

    def reset_parameters(self) -> None:
        """Fills all parameters with their initial values."""
        scale = self.init_scale ** (1 / len(self.matrices))
        for matrix in self.matrices:
            init.constant_(matrix, math.log(math.expm1(1 / scale / matrix.shape[1])))
        for bias in self.biases:
            init.uniform_(bias, -0.5, 0.5)
        for factor in self.factors:
            init.zeros_(factor)
        start = self.quantiles.new_tensor([-self.init_scale, 0.0, self.init_scale])
        init.copy_(self.quantiles, start.expand_as(self.quantiles))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "FactorizedPrior":
        """Moves with the model, but never below float32: half precision would blur the densities."""
        kept = {name: parameter.data for name, parameter in self.named_parameters()}
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16) and kept[name].dtype == torch.float32:
                parameter.data = kept[name].to(parameter.device)
        return self

    @property
    def medians(self) -> torch.Tensor:
        """Shape `(channels,)`; rounding of `z` is centred there."""
        return self.quantiles[:, 0, 1]

    def logits_cumulative(self, values: torch.Tensor, *, stop_gradient: bool = False) -> torch.Tensor:
        """Logit of the cumulative density; `values` has shape `(channels, 1, n)`, and so has the result."""
        logits = values
        for index, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            weights = (matrix.detach(), bias.detach()) if stop_gradient else (matrix, bias)
            logits = F.softplus(weights[0]) @ logits + weights[1]
            if index < len(self.factors):
                factor = self.factors[index].detach() if stop_gradient else self.factors[index]
                logits = logits + torch.tanh(factor) * torch.tanh(logits)
        return logits

    def likelihood(self, z: torch.Tensor) -> torch.Tensor:
        """Probability of the unit bin around each hyper-latent, `(batch, channels, height, width)`, in [1e-9, 1]."""
        batch, channels, height, width = z.shape
        values = z.to(self.quantiles.dtype).transpose(0, 1).reshape(channels, 1, -1)
        with torch.autocast(z.device.type, enabled=False):
            lower = self.logits_cumulative(values - 0.5)
            upper = self.logits_cumulative(values + 0.5)
            sign = -torch.sign(lower + upper).detach()
            probability = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        probability = lower_bound(probability, LIKELIHOOD_BOUND)
        return probability.reshape(channels, batch, height, width).transpose(0, 1)

    def aux_loss(self) -> torch.Tensor:
        """Pulls `quantiles` to the tails and the median of each density. A scalar; needs an optimizer of its own."""
        target = math.log(2 / TAIL_MASS - 1)
        logits = self.logits_cumulative(self.quantiles, stop_gradient=True)
        return (logits - logits.new_tensor([-target, 0.0, target])).abs().sum()


__all__ = [
    "FactorizedPrior",
    "additive_noise",
    "gaussian_likelihood",
    "lower_bound",
    "straight_through_round",
]
