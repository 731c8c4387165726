"""A full-width codec without published weights: linear transforms, entropy networks that were really trained.

What it is for: speed, size and exactness at full width need realistic latents (most symbols zero, 0.2-0.6 bits per
pixel), which random weights do not give. Its pictures are no match for a trained ELIC.
"""

from pathlib import Path

import torch
from tqdm.auto import tqdm, trange

from ..models.elic.configuration_elic import ElicConfig
from ..models.elic.float_elic import code_float, quantize_hyper
from ..models.elic.modeling_elic import ElicModel
from ..models.entropy_models import SCALE_BOUND
from ..training.augmentation import random_crops
from ..training.initialization import init_transforms_from_images
from .pictures import load_pictures


CALIBRATION_PICTURES = 16
TRAINING_PICTURES = 224
_CROP = 192  # pixels of each picture whose latents are cached
_WINDOW = 8  # latent rows and columns that a training step sees
_BATCH = 12
_ENTROPY_PARTS = ("h_a", "h_s", "channel_contexts", "spatial_contexts", "parameter_aggregations", "entropy_bottleneck")


def load_reference_codec(folder: str | Path, pictures: str | Path) -> ElicModel:
    """The codec saved in `folder`; trained and saved there first where it is missing.

    Args:
        folder: A folder written by `save_pretrained`, or one that does not exist yet.
        pictures: Image pack whose first `TRAINING_PICTURES` pictures train the codec. Measure on the others.
    """
    if not (Path(folder) / "config.json").exists():
        train_reference_codec(load_pictures(pictures, stop=TRAINING_PICTURES)).save_pretrained(folder)
    return ElicModel.from_pretrained(folder).eval()


def train_reference_codec(
    images: torch.Tensor,
    *,
    steps: int = 400,
    seed: int = 0,
    lmbda: float = 0.0015,
    config: ElicConfig | None = None,
) -> ElicModel:
    """Builds the codec and trains its entropy networks on cached latents. About five minutes on one core.

    g_a and g_s are set by principal components of the pictures and stay as they are. The entropy networks see random
    windows of the latents, with noise and, for the last third of the steps, with rounding.

    Args:
        images: uint8 `(count, 3, height, width)`, sides multiples of 64 and at least 192. The first ones calibrate.
        steps: Training steps.
        seed: Of all random numbers. The global generator is left as it was.
        lmbda: Trade-off that sets the quantization step, on `255^2 * MSE + bpp`.
        config: Widths; ELIC's own by default.

    Returns:
        The codec in eval mode, calibrated.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codec = ElicModel(config or ElicConfig(lmbda=lmbda))
        init_transforms_from_images(codec, images[:48, :, 64:192, 64:192].float() / 255, lmbda)
        latents = _analyze(codec, images)
        _start_at_statistics(codec, latents)
        _train_entropy_networks(codec, latents, steps)
        _settle_quantiles(codec)
    codec.requires_grad_(False).eval()
    codec.calibrate(images[:CALIBRATION_PICTURES].float() / 255)
    return codec


@torch.no_grad()
def _analyze(codec: ElicModel, images: torch.Tensor) -> torch.Tensor:
    crops = random_crops(images, _CROP, generator=torch.Generator().manual_seed(torch.initial_seed()))
    return torch.cat([codec.g_a(batch) for batch in tqdm(crops.split(4), desc="latents of the reference codec")])


@torch.no_grad()
def _start_at_statistics(codec: ElicModel, latents: torch.Tensor) -> None:
    """Means and scales start at those of each channel, so that a short training is enough."""
    sizes = list(codec.config.group_channels)
    means = latents.mean((0, 2, 3)).split(sizes)
    scales = latents.std((0, 2, 3)).clamp_min(SCALE_BOUND).split(sizes)
    for aggregation, mean, scale in zip(codec.parameter_aggregations, means, scales, strict=True):
        aggregation[-1].bias.copy_(torch.cat([mean, scale]))


def _train_entropy_networks(codec: ElicModel, latents: torch.Tensor, steps: int) -> None:
    parameters = [
        parameter
        for part in _ENTROPY_PARTS
        for name, parameter in getattr(codec, part).named_parameters()
        if name != "quantiles"
    ]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    aux_optimizer = torch.optim.Adam([codec.entropy_bottleneck.quantiles], lr=2e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    pixels = _BATCH * (16 * _WINDOW) ** 2
    progress = trange(steps, desc="entropy networks of the reference codec")
    for step in progress:
        window = _windows(latents)
        z = codec.h_a(window)
        quantization = "noise" if step < steps * 2 // 3 else "ste"
        z_hat = quantize_hyper(z, codec.entropy_bottleneck.medians.detach(), quantization)
        _, likelihood = code_float(codec, window, codec.h_s(z_hat), quantization)
        bits = -likelihood.log2().sum() - codec.entropy_bottleneck.likelihood(z_hat).log2().sum()
        loss = bits / pixels
        (loss + codec.aux_loss()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for each in (optimizer, aux_optimizer):
            each.step()
            each.zero_grad()
        scheduler.step()
        progress.set_postfix(bpp=f"{loss.item():.4f}")


def _windows(latents: torch.Tensor) -> torch.Tensor:
    """Random windows: `(_BATCH, channels, _WINDOW, _WINDOW)`."""
    chosen = []
    for index in torch.randint(len(latents), (_BATCH,)).tolist():
        top, left = (int(torch.randint(side - _WINDOW + 1, ())) for side in latents.shape[-2:])
        chosen.append(latents[index, :, top : top + _WINDOW, left : left + _WINDOW])
    return torch.stack(chosen)


def _settle_quantiles(codec: ElicModel, steps: int = 500) -> None:
    """The prior has stopped moving: a few cheap steps bring its quantiles to the tails."""
    optimizer = torch.optim.Adam([codec.entropy_bottleneck.quantiles], lr=5e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        codec.aux_loss().backward()
        optimizer.step()
        scheduler.step()


__all__ = ["CALIBRATION_PICTURES", "TRAINING_PICTURES", "load_reference_codec", "train_reference_codec"]
