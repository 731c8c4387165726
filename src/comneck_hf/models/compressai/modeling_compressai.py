"""Image codecs of CompressAI's zoo: picture to bitstream, bitstream to latents, latents to picture."""

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from ...coding.bitstream import Bitstream, BitstreamError
from ..image_codec import CodecEncoderOutput, CodecOutput, ImageCodec, check_range, pad_to_multiple
from .configuration_compressai import CompressaiConfig
from .payload_compressai import pack_payload, split_payload, symbol_check


class CompressaiModel(ImageCodec):
    """An image codec of CompressAI's zoo (Begaint et al. 2020, arXiv 2011.03029) by this package's contract.

    pixel_values -> network.g_a -> y -> CompressAI's entropy models -> y_hat -> network.g_s -> reconstruction
                                              |         ^
                                              +- bytes -+

    `network` is CompressAI's model. It always computes in float32, and codes one picture at a time.

    Unlike [`ElicModel`], whose coding is defined in integers, these codecs let float networks decide probabilities:

    - A bitstream is sure to decode only on the machine, device and number of threads that encoded it. Elsewhere it
      decodes to the same symbols or, with a probability of 1 - 2^-16, to a `BitstreamError`. Only
      `"bmshj2018-factorized"` has fixed tables, and decodes alike everywhere.
    - Damaged bitstreams, and those of other models, are refused before CompressAI sees them. A bitstream that someone
      made for the purpose, with a matching checksum, does reach its decoder, which is memory-unsafe. Decode only what
      comes from a source that you trust.
    """

    config: CompressaiConfig
    config_class = CompressaiConfig
    _no_split_modules = ["CompressaiModel"]

    def __init__(self, config: CompressaiConfig) -> None:
        super().__init__(config)
        from .networks_compressai import build_network

        self.network = build_network(config.architecture, config.quality, config.coding_table_shapes)
        if self.device.type != "meta":  # CompressAI's constructors have set the weights
            self._note_initialized()
        self._weights_moved = False
        self._fingerprint: tuple[Any, int] | None = None
        self.register_load_state_dict_pre_hook(_make_room_for_tables)
        self.register_load_state_dict_post_hook(_note_missing_tables)
        self.post_init()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "CompressaiModel":
        """Moves the network, but leaves its floats as they are: their bits decide what decodes."""
        network = self._modules.pop("network")
        super()._apply(fn, recurse)
        self._modules["network"] = network
        device = fn(torch.empty(0, device=self.device)).device
        network._apply(lambda tensor: fn(tensor) if tensor.is_meta else tensor.to(device))
        return self

    @classmethod
    def from_zoo(
        cls, architecture: str, quality: int, *, metric: str = "mse", pretrained: bool = True
    ) -> "CompressaiModel":
        """A codec of CompressAI's zoo, in eval mode.

        Args:
            architecture: CompressAI's name, such as `"mbt2018-mean"`.
            quality: 1 (smallest files) to 8, to 6 for the `"cheng2020"` codecs.
            metric: What the weights were trained for, `"mse"` or `"ms-ssim"`.
            pretrained: Whether to fetch CompressAI's weights (5 to 100 MB, kept in torch's hub cache). They are
                pickle files, which CompressAI loads without checking. Otherwise weights are random.

        Raises:
            ValueError: If the zoo has no such codec.
            OSError: If the weights cannot be fetched or read.
        """
        model = cls(CompressaiConfig(architecture=architecture, quality=quality, metric=metric))
        if pretrained:
            from .networks_compressai import image_models

            try:
                weights = image_models[architecture](quality, metric=metric, pretrained=True).state_dict()
            except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise OSError(
                    f"CompressAI's weights of {architecture!r}, quality {quality}, {metric!r} cannot be loaded "
                    f"({reason}). They come from compressai.s3.amazonaws.com: try again where it can be reached, or "
                    f"copy the file into {os.path.join(torch.hub.get_dir(), 'checkpoints')}. `pretrained=False` "
                    "gives random weights."
                ) from error
            model.load_state_dict({f"network.{name}": value for name, value in weights.items()})
        return model.eval()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Gives what was not loaded the values that CompressAI's constructors set, in all of the network at once."""
        from .networks_compressai import build_network

        with torch.device("cpu"):
            new = build_network(self.config.architecture, self.config.quality, self.config.coding_table_shapes)
        values = {**dict(new.named_parameters()), **dict(new.named_buffers())}
        for name, tensor in (*self.network.named_parameters(), *self.network.named_buffers()):
            init.copy_(tensor, values[name])
        self._note_initialized()

    def _note_initialized(self) -> None:
        for module in self.modules():
            module._is_hf_initialized = True

    def forward(
        self,
        pixel_values: torch.Tensor,
        *,
        quantization: str | None = None,
        reconstruct: bool = True,
        return_dict: bool | None = None,
    ) -> CodecOutput | tuple[Any, ...]:
        """Latents, reconstruction and likelihoods, with gradients.

        Args:
            pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1].
            quantization: `"noise"` (uniform noise for rate and g_s), `"ste"` (rounding with straight-through
                gradient), or `None`: noise in training mode, else ste. Values are those of CompressAI's `forward`.
                Under rounding the latents are `encode`'s but for `"mbt2018"` and the `"cheng2020"` codecs, where
                only coding tells the means that they are rounded around.
            reconstruct: Also run g_s. Without it `reconstruction` is `None`.
            return_dict: A tuple where `False`.
        """
        from .networks_compressai import Pass, observe

        if quantization is None:
            quantization = "noise" if self.training else "ste"
        if quantization not in ("noise", "ste"):
            raise ValueError(f"`quantization` must be 'noise' or 'ste', got {quantization!r}.")
        self._weights_moved |= self.training and torch.is_grad_enabled()
        height, width = pixel_values.shape[-2:]
        with observe(Pass(quantization=quantization, synthesize=reconstruct)) as current:
            outputs = self.network(self._pad(self._on_device(pixel_values)))
        output = CodecOutput(
            latents=current.latents,
            reconstruction=outputs["x_hat"][..., :height, :width] if reconstruct else None,
            likelihoods=outputs["likelihoods"],
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    def decode(self, latents: torch.Tensor, *, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Picture from latents (g_s).

        Args:
            latents: Shape `(batch, latent_channels, height / 16, width / 16)`.
            size: Height and width to crop to; the padded size by default.

        Returns:
            Shape `(batch, 3, height, width)`, values in [0, 1].
        """
        self._check_latents(latents)
        pixel_values = self.network.g_s(latents.to(self.device, self.dtype)).clamp(0, 1)
        return pixel_values if size is None else pixel_values[..., : size[0], : size[1]]

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> CodecEncoderOutput:
        """Latents as `compress` followed by `decompress` yields them on this machine, without the bytes.

        Args:
            pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1], any size: sides are padded to multiples
                of 64 by repeating the last row and column.

        Raises:
            ValueError: If the shape is another, or latents are not finite.
        """
        from .networks_compressai import is_autoregressive

        latents, likelihoods = [], []
        with torch.autocast(self.device.type, enabled=False):
            for picture in self._on_device(pixel_values).split(1):
                outputs = self(picture, quantization="ste", reconstruct=False)
                coded = self._encode_picture(picture)[1] if is_autoregressive(self.network) else outputs.latents
                latents.append(coded.float() + 0.0)  # no negative zeros: decoding yields none
                likelihoods.append(outputs.likelihoods)
        return CodecEncoderOutput(
            latents=torch.cat(latents),
            likelihoods={name: torch.cat([part[name] for part in likelihoods]) for name in likelihoods[0]},
        )

    @torch.no_grad()
    def compress(self, pixel_values: torch.Tensor | Sequence[torch.Tensor]) -> list[bytes]:
        """Self-contained bitstreams, one per picture.

        Args:
            pixel_values: Shape `(batch, 3, height, width)`, or a list of `(3, height, width)` pictures of any sizes;
                values in [0, 1].

        Raises:
            ValueError: If a picture has another shape, values far from [0, 1] or more than `config.max_pixels`, or
                latents are not finite.
        """
        if isinstance(pixel_values, torch.Tensor):
            pictures = list(self._on_device(pixel_values).split(1))
        else:
            pictures = [self._on_device(picture[None]) for picture in pixel_values]
        bitstreams = []
        for picture in pictures:
            height, width = picture.shape[-2:]
            self._check_size(height, width)
            payload, _ = self._encode_picture(check_range(picture))
            bitstreams.append(Bitstream(self.fingerprint, height, width, payload).pack())
        return bitstreams

    @torch.no_grad()
    def decompress(self, bitstreams: Sequence[bytes]) -> torch.Tensor | list[torch.Tensor]:
        """Latents from bitstreams; equal to the encoder's on the machine that encoded them.

        Args:
            bitstreams: What `compress` returned.

        Returns:
            float32 `(batch, latent_channels, height / 16, width / 16)` on the model's device; where the latent sizes
            differ, a list of `(latent_channels, height / 16, width / 16)` tensors.

        Raises:
            BitstreamError: If a bitstream is damaged, of a newer version, was written by another model, or decodes to
                other symbols than were encoded.
        """
        parsed = self._parse(bitstreams)
        fingerprint = self.fingerprint
        for bitstream in parsed:
            bitstream.check_fingerprint(fingerprint)
        with torch.autocast(self.device.type, enabled=False):
            latents = [self._decode_picture(bitstream) for bitstream in parsed]
        return torch.stack(latents) if len({picture.shape for picture in latents}) == 1 else latents

    @property
    def fingerprint(self) -> int:
        """32-bit number of the weights and tables that decoding depends on; every bitstream carries it."""
        from .networks_compressai import check_tables, fingerprint

        self.update_tables()
        tensors = (*self.network.parameters(), *self.network.buffers())
        key = [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors]
        if self._fingerprint is None or self._fingerprint[0] != key:
            check_tables(self.network)
            self._fingerprint = (key, fingerprint(self.network, self.config.architecture))
        return self._fingerprint[1]

    @torch.no_grad()
    def update_tables(self) -> None:
        """Derives CompressAI's coding tables where there are none, or where the weights were trained since.

        Coding and saving call it; nobody has to.
        """
        from .networks_compressai import has_tables, table_shapes

        if self._weights_moved or not has_tables(self.network):
            self.network.update(force=True)
            self.config.coding_table_shapes = table_shapes(self.network)
            self._weights_moved = False

    def aux_loss(self) -> torch.Tensor:
        """Loss of the bottleneck's quantiles, for an optimizer of its own over `entropy_bottleneck.quantiles`."""
        return self.network.aux_loss()

    def _encode_picture(self, picture: torch.Tensor) -> tuple[bytes, torch.Tensor]:
        """Payload and latents of a checked picture of shape `(1, 3, height, width)`."""
        from .networks_compressai import encode_picture

        self.update_tables()
        padded = self._pad(picture)
        with torch.autocast(self.device.type, enabled=False):
            strings, current = encode_picture(self.network, padded)
        symbols, latents = current.coded(self.config.latent_channels)
        payload = pack_payload(symbol_check(symbols), strings)
        return payload, latents.unflatten(1, self._latent_size(*picture.shape[-2:]))[None]

    def _decode_picture(self, bitstream: Bitstream) -> torch.Tensor:
        from .networks_compressai import decode_picture

        height, width = self._latent_size(bitstream.height, bitstream.width)
        stride = self.network.downsampling_factor // self.config.downsampling_factor
        shape = (height // stride, width // stride)
        counts = [self.config.latent_channels * height * width]
        if stride > 1:
            counts.append(self.network.entropy_bottleneck.channels * shape[0] * shape[1])
        check, strings = split_payload(bitstream.payload, counts)
        symbols, latents = decode_picture(self.network, strings, shape).coded(self.config.latent_channels)
        if symbol_check(symbols) != check:
            raise BitstreamError(
                "The bitstream decodes to other symbols than were encoded. This codec's floats differ between "
                "machines, devices and numbers of threads: decode as it was encoded, or use a codec that is exact "
                "everywhere, such as `ElicModel`."
            )
        return latents.unflatten(1, (height, width)).float() + 0.0

    def _pad(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pad_to_multiple(pixel_values, self.config.size_divisor)


def _make_room_for_tables(module: CompressaiModel, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Coding tables that are to be loaded may have other sizes than the present ones."""
    from .networks_compressai import allocate_tables, table_shapes

    present = table_shapes(module.network)
    names = {name: f"{prefix}network.{name}" for name in present}
    shapes = {name: list(state_dict[key].shape) for name, key in names.items() if key in state_dict}
    if any(shapes[name] != present[name] for name in shapes):
        allocate_tables(module.network, shapes)
        module.config.coding_table_shapes = table_shapes(module.network)


def _note_missing_tables(module: CompressaiModel, incompatible_keys: Any) -> None:
    """Weights that came without their tables make the present tables stale."""
    if any(key.endswith("._quantized_cdf") for key in incompatible_keys.missing_keys):
        module._weights_moved = True


__all__ = ["CompressaiModel"]
