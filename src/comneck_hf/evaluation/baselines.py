"""Ways in which a picture reaches CLIP: as it is, as a file, decoded by a codec, cleaned by a U-Net, as latents."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..models.codec_vision import CodecVisionModel
from ..models.image_codec import ImageCodec, pad_to_multiple
from ..models.unet import PostProcessingUNet
from ..training.content import model_parts
from .file_formats import decode_file, encode_file, encoder_version, find_format, quality_at_bytes
from .pictures import picture_tensor, tensor_picture


@dataclass
class Received:
    """What arrives of a batch of pictures.

    Attributes:
        num_bytes: Sizes of the whole files or bitstreams; `None` for pictures that were not coded.
        pixel_values: `(n, 3, height, width)` in [0, 1]; `None` where nothing is decoded.
        latents: `(n, latent_channels, height / 16, width / 16)` for a neck; `None` where CLIP sees a picture.
        gains: What decoding the latents takes beside them.
        seconds: Time of the batch by stage, `"encode"` and `"decode"`.
    """

    num_bytes: list[int] | None = None
    pixel_values: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    gains: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        start = now()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now() - start


def now() -> float:
    """Seconds, after everything that runs on a GPU has ended."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Baseline(ABC):
    """A way to CLIP.

    Attributes:
        name: Of its curve.
        quality: Of this point on the curve.
        comneck: The model that reads what arrives, where that is latents.
    """

    name: str
    quality: str = ""
    comneck: CodecVisionModel | None = None

    def depends_on(self) -> tuple[str | nn.Module, ...]:
        """What decides on results, besides the pictures."""
        return (type(self).__name__, self.name, self.quality)

    @abstractmethod
    def receive(self, pictures: torch.Tensor) -> Received:
        """Sends pictures, uint8 `(n, 3, height, width)`, on their way."""

    def look(self, received: Received, size: tuple[int, int]) -> torch.Tensor | None:
        """What a person would see, `(n, 3, *size)` in [0, 1]; `None` if nothing."""
        return received.pixel_values


class Original(Baseline):
    """Pictures as they are."""

    name = "original"

    def receive(self, pictures: torch.Tensor) -> Received:
        """The pictures."""
        return Received(pixel_values=pictures / 255)

    def look(self, received: Received, size: tuple[int, int]) -> None:
        """Nothing was changed."""


class PictureFiles(Baseline):
    """Files of a usual format, at one quality or each of the highest quality that fits a number of bytes.

    Args:
        file_format: As in `encode_picture`.
        quality: Of its encoder; or
        max_bytes: size of a file. A picture that is larger at the lowest quality stays larger.
        num_threads: Pictures coded at a time.
    """

    def __init__(
        self, file_format: str, *, quality: int | None = None, max_bytes: int | None = None, num_threads: int = 1
    ) -> None:
        if (quality is None) == (max_bytes is None):
            raise ValueError(f"Give `quality` or `max_bytes`, got {quality} and {max_bytes}.")
        find_format(file_format)
        self.name = file_format if max_bytes is None else f"{file_format} at {max_bytes} bytes"
        self._file_format, self._level, self._max_bytes = file_format, quality, max_bytes
        self.quality = f"{quality}" if max_bytes is None else ""
        self._num_threads = num_threads

    def depends_on(self) -> tuple[str | nn.Module, ...]:
        """Name, point, the encoder's options and version."""
        return (*super().depends_on(), repr(find_format(self._file_format)), encoder_version(self._file_format))

    def receive(self, pictures: torch.Tensor) -> Received:
        """Files and what they decode to."""
        received = Received()
        with ThreadPoolExecutor(self._num_threads) as pool:
            with received.timed("encode"):
                files = list(pool.map(self._encode, pictures.cpu()))
            with received.timed("decode"):
                decoded = list(pool.map(lambda data: picture_tensor(decode_file(data)), files))
        received.num_bytes = [len(data) for data in files]
        received.pixel_values = torch.stack(decoded).to(pictures.device) / 255
        return received

    def _encode(self, picture: torch.Tensor) -> bytes:
        image, options = tensor_picture(picture), {"file_format": self._file_format}
        quality = self._level if self._max_bytes is None else quality_at_bytes(image, self._max_bytes, **options)
        return encode_file(image, quality=quality, **options)


class Reconstruction(Baseline):
    """Decoded pictures of a codec, as 8-bit pictures (the paper's Reconstruction).

    Args:
        codec: Any model by our codec contract.
        name, quality: As in [`Baseline`].
        gain: Of the codec's `compress`, where it has one.
    """

    def __init__(
        self, codec: ImageCodec, *, name: str = "reconstruction", quality: str = "", gain: float | None = None
    ) -> None:
        self.codec, self.name, self.quality = codec, name, _at_gain(quality, gain)
        self._options = {} if gain is None else {"gain": gain}

    def depends_on(self) -> tuple[str | nn.Module, ...]:
        """Name, point and codec."""
        return (*super().depends_on(), *model_parts(self.codec))

    def receive(self, pictures: torch.Tensor) -> Received:
        """Bitstreams, and the pictures that they decode to."""
        received = Received()
        with received.timed("encode"):
            bitstreams = self.codec.compress(pictures / 255, **self._options)
        with received.timed("decode"):
            latents, gains = self.codec.decompress(bitstreams), self.codec.coded_gains(bitstreams)
            decoded = self.codec.decode(latents, size=tuple(pictures.shape[-2:]), **gains)
            received.pixel_values = (decoded.float() * 255).round() / 255
        received.num_bytes = [len(bitstream) for bitstream in bitstreams]
        return received


class PostProcessing(Reconstruction):
    """Decoded pictures, made fit for CLIP by a U-Net (the paper's Post-processing).

    Args:
        codec, name, quality: As in [`Reconstruction`].
        unet: Decoded pictures to better ones.
    """

    def __init__(
        self, codec: ImageCodec, unet: PostProcessingUNet, *, name: str = "post-processing", quality: str = ""
    ) -> None:
        super().__init__(codec, name=name, quality=quality)
        self.unet = unet

    def depends_on(self) -> tuple[str | nn.Module, ...]:
        """Name, point, codec and U-Net."""
        return (*super().depends_on(), self.unet)

    def receive(self, pictures: torch.Tensor) -> Received:
        """Bitstreams, and what the U-Net makes of the pictures that they decode to."""
        received = super().receive(pictures)
        with received.timed("decode"):
            height, width = pictures.shape[-2:]
            padded = pad_to_multiple(received.pixel_values, self.unet.size_divisor)
            received.pixel_values = self.unet(padded)[..., :height, :width]
        return received

    def look(self, received: Received, size: tuple[int, int]) -> None:
        """Nothing: the U-Net paints for CLIP, people look at what the codec decodes."""


class Latents(Baseline):
    """ComNeck or CoTAM: latents into the tower.

    Args:
        model: Codec and tower.
        name, quality: As in [`Baseline`]; by default of the model's configuration.
        gain: As in [`Reconstruction`].
    """

    def __init__(
        self,
        model: CodecVisionModel,
        *,
        name: str | None = None,
        quality: str | None = None,
        gain: float | None = None,
    ) -> None:
        self.comneck = model
        self.name = name or model.config.curve
        self.quality = _at_gain(quality or (f"q{model.config.quality}" if model.config.quality else ""), gain)
        self._options = {} if gain is None else {"gain": gain}

    def depends_on(self) -> tuple[str | nn.Module, ...]:
        """Name, point and model."""
        return (*super().depends_on(), *model_parts(self.comneck))

    def receive(self, pictures: torch.Tensor) -> Received:
        """Bitstreams, and their latents."""
        received = Received()
        with received.timed("encode"):
            bitstreams = self.comneck.compress(pictures / 255, **self._options)
        with received.timed("decode"):
            received.latents = self.comneck.decompress(bitstreams)
            received.gains = self.comneck.coded_gains(bitstreams)
        received.num_bytes = [len(bitstream) for bitstream in bitstreams]
        return received

    def look(self, received: Received, size: tuple[int, int]) -> torch.Tensor | None:
        """The decoded pictures of codecs that were trained for people too."""
        if not self.comneck.config.shows_pictures:
            return None
        decoded = self.comneck.reconstruct(received.latents, size=size, **received.gains)
        return (decoded.float() * 255).round() / 255


def _at_gain(quality: str, gain: float | None) -> str:
    return quality if gain is None else f"{quality} {gain:+g}".strip()


__all__ = [
    "Baseline",
    "Latents",
    "Original",
    "PictureFiles",
    "PostProcessing",
    "Received",
    "Reconstruction",
    "now",
]
