"""ELIC image codec: picture to bitstream, bitstream to latents, latents to picture."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from ...coding.bitstream import Bitstream
from ...coding.gain_map import GAINS_PER_OCTAVE, GainMap
from ..entropy_models import FactorizedPrior, gaussian_likelihood
from ..image_codec import CodecEncoderOutput, CodecOutput, ImageCodec, batches_of_one_size, pad_to_multiple
from .configuration_elic import ElicConfig
from .exact_elic import EncodedLatents, ExactElic
from .float_elic import code_float, quantize_hyper
from .gain_vectors_elic import GainTransform, with_gain_vectors
from .gains_elic import PictureGains, check_one_rate, quality_gain
from .layers_elic import (
    CheckerboardConv2d,
    analysis_transform,
    channel_context,
    hyper_analysis,
    hyper_synthesis,
    parameter_aggregation,
    support_groups,
    synthesis_transform,
)
from .rate_control import Coder, reach_sizes


# Latent positions that are decoded together: bounds the memory, whatever the number of pictures
_POSITIONS_PER_BATCH = 2**15

# Modules that exist only with these flags of the configuration
_PARTS = {
    "build_analysis": ("g_a", "h_a"),
    "build_synthesis": ("g_s",),
    "build_entropy_networks": ("h_s", "channel_contexts", "spatial_contexts", "parameter_aggregations"),
}


class ElicPreTrainedModel(ImageCodec):
    """Initialization and loading rules of the codec."""

    config: ElicConfig
    config_class = ElicConfig
    _no_split_modules = ["ElicModel"]
    _keep_in_fp32_modules_strict = ["entropy_bottleneck"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            fan_in = module.weight[0].numel()
            init.uniform_(module.bias, -(fan_in**-0.5), fan_in**-0.5)
        elif isinstance(module, FactorizedPrior):
            module.reset_parameters()
        elif isinstance(module, GainTransform):
            init.zeros_(module.log_vectors)
        elif isinstance(module, ExactElic):
            for buffer in module.buffers():
                init.zeros_(buffer)


class ElicModel(ElicPreTrainedModel):
    """ELIC with five uneven channel groups and a two-pass checkerboard (He et al., CVPR 2022).

    pixel_values -> g_a -> y -> quantize -> y_hat -> g_s -> reconstruction
                           |       ^
                           h_a     | means, scales   (channel + spatial contexts, aggregation)
                           v       |
                           z -> quantize -> h_s

    `encode`, `compress` and `decompress` use the integer networks, so that `decompress(compress(x))` equals
    `encode(x).latents` bit for bit anywhere. `forward` is the float path for training and estimates.
    """

    def __init__(self, config: ElicConfig) -> None:
        super().__init__(config)
        hidden, latent, kernel = config.hidden_channels, config.latent_channels, config.kernel_size
        self.g_a = with_gain_vectors(self._build_g_a(config), config) if config.build_analysis else None
        self.g_s = with_gain_vectors(self._build_g_s(config), config) if config.build_synthesis else None
        self.h_a = hyper_analysis(hidden, latent, kernel) if config.build_analysis else None
        if config.build_entropy_networks:
            self._build_entropy_networks(config)
        self.entropy_bottleneck = FactorizedPrior(hidden, config.initializer_scale)
        self.exact = ExactElic(config)
        self._weights_moved = False
        left_out = [name for flag, names in _PARTS.items() if not getattr(config, flag) for name in names]
        self._keys_to_ignore_on_load_unexpected = [
            *self._keys_to_ignore_on_load_unexpected,
            *(rf"^(codec\.)?{name}\." for name in left_out),
        ]
        self.register_load_state_dict_post_hook(_note_missing_integers)
        self.post_init()

    def _build_g_a(self, config: ElicConfig) -> nn.Sequential:
        """The analysis transform, picture to latents; with `_build_g_s`, all that other codecs replace."""
        return analysis_transform(config.hidden_channels, config.latent_channels, config.kernel_size)

    def _build_g_s(self, config: ElicConfig) -> nn.Sequential:
        """The synthesis transform, latents to picture."""
        return synthesis_transform(config.hidden_channels, config.latent_channels, config.kernel_size)

    def _build_entropy_networks(self, config: ElicConfig) -> None:
        latent, kernel, groups = config.latent_channels, config.kernel_size, list(config.group_channels)
        self.h_s = hyper_synthesis(config.hidden_channels, latent, kernel)
        self.channel_contexts = nn.ModuleList(
            channel_context(
                sum(groups[i] for i in support_groups(k)), tuple(config.context_channels), 2 * groups[k], kernel
            )
            for k in range(1, len(groups))
        )
        self.spatial_contexts = nn.ModuleList(CheckerboardConv2d(size, 2 * size, kernel) for size in groups)
        self.parameter_aggregations = nn.ModuleList(
            parameter_aggregation(
                2 * latent + (2 * size if k == 0 else 4 * size), tuple(config.aggregation_channels), 2 * size
            )
            for k, size in enumerate(groups)
        )

    def forward(
        self,
        pixel_values: torch.Tensor,
        *,
        quantization: str | None = None,
        reconstruct: bool = True,
        gain: float | Sequence[float] | None = None,
        gain_maps: GainMap | Sequence[GainMap | None] | None = None,
        return_dict: bool | None = None,
    ) -> CodecOutput | tuple[Any, ...]:
        """Float path: latents, reconstruction and likelihoods, with gradients.

        Args:
            pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1].
            quantization: `"noise"` (uniform noise for the rate, rounding with straight-through gradient for g_s),
                `"ste"` (straight-through rounding around the means), or `None`: noise in training mode, else ste.
            reconstruct: Also run g_s. Without it `reconstruction` is `None`.
            gain, gain_maps: As in `compress`. With them g_s gets latents that are rounded around the means.
            return_dict: A tuple where `False`.
        """
        if quantization is None:
            quantization = "noise" if self.training else "ste"
        if quantization not in ("noise", "ste"):
            raise ValueError(f"`quantization` must be 'noise' or 'ste', got {quantization!r}.")
        height, width = pixel_values.shape[-2:]
        self._require("build_entropy_networks")
        if reconstruct:
            self._require("build_synthesis")
        self._weights_moved |= self.training and torch.is_grad_enabled()
        padded, octaves = self._check_pixels(pixel_values), None
        if gain is not None or gain_maps is not None:
            octaves = self._octaves(PictureGains.of(gain or 0.0, gain_maps, len(padded)), height, width)
        y = self._transform(self.g_a, padded, octaves)
        z_hat = quantize_hyper(self.h_a(y), self.entropy_bottleneck.medians.detach(), quantization)
        y_hat, y_likelihoods = code_float(self, y, self.h_s(z_hat), quantization, octaves)
        output = CodecOutput(
            latents=y_hat,
            reconstruction=self._transform(self.g_s, y_hat, octaves)[..., :height, :width] if reconstruct else None,
            likelihoods={"y": y_likelihoods, "z": self.entropy_bottleneck.likelihood(z_hat)},
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    def decode(
        self,
        latents: torch.Tensor,
        *,
        size: tuple[int, int] | None = None,
        gain: float | Sequence[float] = 0.0,
        gain_maps: GainMap | Sequence[GainMap | None] | None = None,
    ) -> torch.Tensor:
        """Picture from latents (g_s).

        Args:
            latents: Shape `(batch, latent_channels, height / 16, width / 16)`.
            size: Height and width to crop to; the padded size by default.
            gain, gain_maps: What the latents were coded with, as `coded_gains` reads them from bitstreams. They matter
                to codecs with `gain_levels` only.

        Returns:
            Shape `(batch, 3, height, width)`, values in [0, 1].
        """
        self._check_latents(latents)
        self._require("build_synthesis")
        gains = PictureGains.of(gain, gain_maps, len(latents))
        octaves = gains.octaves(*latents.shape[-2:], self.device) if self.needs_gains else None
        pixel_values = self._transform(self.g_s, latents.to(self.dtype), octaves).clamp(0, 1)
        return pixel_values if size is None else pixel_values[..., : size[0], : size[1]]

    @torch.no_grad()
    def encode(
        self,
        pixel_values: torch.Tensor,
        *,
        gain: float | Sequence[float] = 0.0,
        gain_maps: GainMap | Sequence[GainMap | None] | None = None,
    ) -> CodecEncoderOutput:
        """Latents as `compress` followed by `decompress` yields them, without the bytes.

        Args:
            pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1], any size: sides are padded to multiples
                of 64 by repeating the last row and column.
            gain, gain_maps: As in `compress`.

        Returns:
            Latents in float32 and the estimated likelihoods under the integer networks' means and scales.
        """
        gains = PictureGains.of(gain, gain_maps, len(pixel_values))
        y, z_symbols = self._analyse(pixel_values, gains)
        encoded = self.exact.encode(y, z_symbols, gains.grid(*y.shape[-2:], y.device))
        likelihoods = {
            "y": gaussian_likelihood(encoded.deviations.round(), encoded.scales, torch.zeros_like(encoded.scales)),
            "z": self.entropy_bottleneck.likelihood(z_symbols + self._medians()),
        }
        return CodecEncoderOutput(latents=encoded.latents, likelihoods=likelihoods)

    @torch.no_grad()
    def compress(
        self,
        pixel_values: torch.Tensor | Sequence[torch.Tensor],
        *,
        gain: float | Sequence[float] = 0.0,
        gain_maps: GainMap | Sequence[GainMap | None] | None = None,
        quality: float | None = None,
        target_bytes: int | None = None,
        target_bpp: float | None = None,
    ) -> list[bytes]:
        """Self-contained bitstreams, one per picture, at the rate the codec was trained for or any other.

        Args:
            pixel_values: Shape `(batch, 3, height, width)`, or a list of `(3, height, width)` pictures of any sizes;
                values in [0, 1].
            gain: Octaves by which the quantizer is finer than it was trained, -8 to 5, for all pictures or one each;
                rounded to 1/64. 1 halves its step.
            gain_maps: Which regions get more and which less, for all pictures or one each.
            quality: In place of `gain`, on the scale of the trained rates: 2.5 lies between 2 and 3. Where lambda
                doubles from each to the next, that is half an octave.
            target_bytes: In place of `gain`, the size of every bitstream, reached as closely as three encodes allow.
            target_bpp: Likewise, in bits per pixel.

        Raises:
            ValueError: If more than one of `gain`, `quality`, `target_bytes` and `target_bpp` is given, one is out of
                range, pixels are far from [0, 1], or a picture cannot be made as small as wanted.
        """
        check_one_rate(gain, quality=quality, target_bytes=target_bytes, target_bpp=target_bpp)
        batches = batches_of_one_size(pixel_values)
        count = sum(len(pictures) for pictures in batches)
        wanted = gain if quality is None else quality_gain(quality, self.config.quality)
        gains = PictureGains.of(wanted, gain_maps, count)
        bitstreams: list[bytes] = []
        for pictures in batches:
            height, width = pictures.shape[-2:]
            chosen = slice(len(bitstreams), len(bitstreams) + len(pictures))
            code = self._coder(pictures, gains.gain_maps[chosen])
            if target_bytes is None and target_bpp is None:
                bitstreams += code(gains.gains[chosen])[1]
            else:
                target = target_bytes if target_bpp is None else target_bpp * height * width / 8
                bitstreams += reach_sizes(code, [target] * len(pictures), self.exact.cost)
        return bitstreams

    def _coder(self, pictures: torch.Tensor, maps: Sequence[GainMap | None]) -> Coder:
        """Encodes pictures of one size at any gains; without gain vectors, g_a and h_a run only once."""
        height, width = pictures.shape[-2:]
        self._check_size(height, width)
        analysed = None if self.needs_gains else self._analyse(pictures)

        def code(gains: list[int]) -> tuple[EncodedLatents, list[bytes]]:
            chosen = PictureGains(gains, maps)
            y, z_symbols = analysed or self._analyse(pictures, chosen)
            encoded = self.exact.encode(y, z_symbols, chosen.grid(*y.shape[-2:], y.device))
            parts = zip(self.exact.pack(encoded), gains, maps, strict=True)
            return encoded, [Bitstream(self.exact.fingerprint, height, width, *part).pack() for part in parts]

        return code

    @torch.no_grad()
    def decompress(self, bitstreams: Sequence[bytes]) -> torch.Tensor | list[torch.Tensor]:
        """Latents from bitstreams, bit-equal to the encoder's on every device.

        Args:
            bitstreams: What `compress` returned. Pictures of one latent size are decoded together.

        Returns:
            float32 `(batch, latent_channels, height / 16, width / 16)` on the model's device; where the latent sizes
            differ, a list of `(latent_channels, height / 16, width / 16)` tensors.

        Raises:
            BitstreamError: If a bitstream is damaged, of a newer version, or was written by another model.
        """
        parsed = self._parse(bitstreams)
        self.update_tables()
        buckets: dict[tuple[int, int], list[int]] = {}
        for index, bitstream in enumerate(parsed):
            bitstream.check_fingerprint(self.exact.fingerprint)
            buckets.setdefault(self._latent_size(bitstream.height, bitstream.width), []).append(index)
        latents: list[torch.Tensor] = [torch.empty(0)] * len(parsed)
        for (height, width), indexes in buckets.items():
            count = max(1, _POSITIONS_PER_BATCH // (height * width))
            for first in range(0, len(indexes), count):
                chosen = indexes[first : first + count]
                pictures = [parsed[index] for index in chosen]
                gains = PictureGains([one.gain for one in pictures], [one.gain_map for one in pictures])
                grid = gains.grid(height, width, self.device)
                decoded = self.exact.decode([one.payload for one in pictures], height, width, grid)
                for index, picture in zip(chosen, decoded, strict=True):
                    latents[index] = picture
        return torch.stack(latents) if len(buckets) == 1 else latents

    @property
    def needs_gains(self) -> bool:
        """Whether g_s follows the gain: `config.gain_levels` is not 0."""
        return self.config.gain_levels > 0

    def coded_gains(self, bitstreams: Sequence[bytes]) -> dict[str, Any]:
        """What `decode` takes beside the latents of these bitstreams: `gain`, in octaves, and `gain_maps`.

        Raises:
            BitstreamError: If a container is damaged or of a newer version.
        """
        parsed = self._parse(bitstreams)
        return {
            "gain": [picture.gain / GAINS_PER_OCTAVE for picture in parsed],
            "gain_maps": [picture.gain_map for picture in parsed],
        }

    @torch.no_grad()
    def calibrate(self, pixel_values: torch.Tensor) -> None:
        """Derives the integer networks and coding tables anew, with activation ranges from these pictures.

        Saving and coding derive them by themselves where they are missing, from drawn pictures; 16 or more
        photographs of the kind to be coded save a little rate. Bitstreams written before can then not be decoded.

        Args:
            pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1].
        """
        from .quantization_elic import derive_exact

        self._require("build_entropy_networks")
        derive_exact(self, self._check_pixels(pixel_values))
        self._weights_moved = False

    @property
    def fingerprint(self) -> int:
        """32-bit digest of every integer that decides a bitstream; bitstreams carry it."""
        return self.exact.fingerprint

    def update_tables(self) -> None:
        """Derives integer networks and tables where there are none, or where the float weights were trained since.

        Coding and saving call it; nobody has to.
        """
        if self._weights_moved or not self.exact.is_derived:
            from .quantization_elic import synthetic_pictures

            self.calibrate(synthetic_pictures())

    def aux_loss(self) -> torch.Tensor:
        """Loss of the prior's quantiles, for an optimizer of its own over `entropy_bottleneck.quantiles`."""
        return self.entropy_bottleneck.aux_loss()

    def _analyse(
        self, pixel_values: torch.Tensor, gains: PictureGains | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """y, and the hyper-latents rounded relative to the medians."""
        self.update_tables()
        octaves = None if gains is None else self._octaves(gains, *pixel_values.shape[-2:])
        y = self._transform(self.g_a, self._check_pixels(pixel_values), octaves)
        return y, (self.h_a(y).float() - self._medians()).round()

    def _octaves(self, gains: PictureGains, height: int, width: int) -> torch.Tensor:
        """Gains of pictures of this size, as the transforms take them."""
        return gains.octaves(*self._latent_size(height, width), self.device)

    def _transform(
        self, transform: nn.Sequential, features: torch.Tensor, octaves: torch.Tensor | None
    ) -> torch.Tensor:
        return transform(features, octaves) if self.needs_gains else transform(features)

    def _medians(self) -> torch.Tensor:
        return self.entropy_bottleneck.medians.float()[:, None, None]

    def _require(self, part: str) -> None:
        if not getattr(self.config, part):
            raise ValueError(f"This codec was saved with `{part}=False` (d3: without g_s). Use one with all parts.")

    def _check_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self._require("build_analysis")
        return pad_to_multiple(self._on_device(pixel_values), self.config.size_divisor)


def _note_missing_integers(module: nn.Module, incompatible_keys: Any) -> None:
    """Float weights that came without their integers make the present integers stale."""
    if any(key.split("exact.")[0] in ("", "codec.") and "exact." in key for key in incompatible_keys.missing_keys):
        module._weights_moved = True


__all__ = ["ElicModel", "ElicPreTrainedModel"]
