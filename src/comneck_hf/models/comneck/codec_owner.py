"""Processors that read bitstreams, and the loading of their codecs from a saved model."""

import os
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, VideoLlavaModel

from ..codec_vision import CodecVisionModel
from ..codec_vision_config import CodecVisionConfig
from ..compressai.configuration_compressai import CompressaiConfig
from ..cotam.configuration_cotam import CotamConfig
from ..cotam.joined_cotam import join_picture
from ..elic.configuration_elic import ElicConfig
from .image_sources import as_source, flatten_images, read_bitstream


_STAND_IN = np.zeros((1, 1, 3))  # for a bitstream where transformers counts images
_DOWNLOAD_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_ADVICE = "Set `processor.codec` to the codec that wrote the bitstreams."
_PLACES = r"^((model\.)?(vision|image)_tower|comneck)\."  # of a ComNeck or CoTAM in another model's weights


class CodecOwner:
    """For processors that read bitstreams: they have a codec, which is saved with the model and not with them."""

    reads_pictures: bool
    _codec: PreTrainedModel | None = None
    _own_decoder: PreTrainedModel | None = None  # loaded for bitstreams alone
    _codec_source: tuple[str | os.PathLike, dict[str, Any]] | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Loads as every processor; the codec follows from the same place when the first bitstream needs it."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        options = {name: kwargs[name] for name in _DOWNLOAD_OPTIONS if name in kwargs}
        processor._codec_source = (pretrained_model_name_or_path, options)
        return processor

    @property
    def codec(self) -> PreTrainedModel:
        """What encodes pictures. Settable, for instance to the model's own, which then also decompresses bitstreams.

        A codec alone codes without CoTAM's guide; with it does the whole `CotamModel`, which can stand here, too, and
        does where this was loaded beside a model that uses its guide.
        """
        if self._codec is None:
            self._codec = self._loaded(coder_from_pretrained)
        return self._codec

    def _loaded(self, load: Callable[..., PreTrainedModel]) -> PreTrainedModel:
        """A part of the model that lies beside the processor."""
        if self._codec_source is None:
            raise ValueError(
                "Bitstreams need a codec. Set `processor.codec`, for instance to `model.model.vision_tower.codec`."
            )
        source, options = self._codec_source
        return load(source, **options)

    @codec.setter
    def codec(self, codec: PreTrainedModel | None) -> None:
        self._codec = codec

    def to_dict(self) -> dict[str, Any]:
        """As `ProcessorMixin`, without copying the codec."""
        models = self._codec, self._own_decoder
        self._codec, self._own_decoder = None, None
        try:
            return super().to_dict()
        finally:
            self._codec, self._own_decoder = models

    def prepare_inputs_layout(self, images: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        """As `ProcessorMixin`, on a flat list in which every bitstream has become `bytes`."""
        if images is None:
            return super().prepare_inputs_layout(**kwargs)
        images = [
            as_source(image) if (data := read_bitstream(image)) is None else data for image in flatten_images(images)
        ]
        pictures = [image for image in images if not isinstance(image, bytes)]
        fetched, *others = super().prepare_inputs_layout(images=pictures, **kwargs)
        remaining = iter(fetched)
        images = [image if isinstance(image, bytes) else next(remaining) for image in images]
        return (images or None, *others)

    def validate_inputs(self, images: list[Any] | None = None, **kwargs: Any) -> None:
        """As `ProcessorMixin`; a bitstream counts as one image."""
        if images is not None:
            images = [_STAND_IN if isinstance(image, bytes) else image for image in images]
        super().validate_inputs(images=images, **kwargs)

    @property
    def _decoder(self) -> PreTrainedModel:
        """The codec without the model around it, which bitstreams need not load."""
        if isinstance(self._codec, CodecVisionModel):
            return self._codec.codec
        if self._codec is not None:
            return self._codec
        if self._own_decoder is None:
            self._own_decoder = self._loaded(codec_from_pretrained)
        return self._own_decoder

    def _coded(self, pictures: torch.Tensor, **options: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Latents of pictures, and what decoding them takes beside them."""
        pictures = pictures.to(self.codec.device)
        if isinstance(self.codec, CodecVisionModel):
            options = self.codec.coding_options(pictures, **options)
        return self.codec.encode(pictures, **options).latents, options

    @torch.no_grad()
    def _joined(self, latents: torch.Tensor, gains: dict[str, Any]) -> torch.Tensor:
        """Latents, with their pictures where the tower could not decode them: it is told no gains."""
        if not (self.reads_pictures and self._decoder.needs_gains):
            return latents
        return join_picture(latents, self._decoder.decode(latents, **gains))


def tower_codec(model: PreTrainedModel) -> PreTrainedModel | None:
    """What a ComNeck or CoTAM tower codes with; of Video-LLaVA's two, that for pictures."""
    base = model.base_model
    return (base.image_tower if isinstance(base, VideoLlavaModel) else base.vision_tower).coder


def codec_from_pretrained(source: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """The codec of a saved ComNeck or CoTAM, of a LLaVA with such a tower, or a codec itself, without the rest.

    Args:
        source: Folder or Hub id.
        options: `revision`, `token` and the like.

    Raises:
        ValueError: If there is no model, or it was saved without its codec.
    """
    config = _config_of(source, **options)
    if isinstance(config, ElicConfig | CompressaiConfig):
        return AutoModel.from_pretrained(source, **options).eval()
    owner = _owner_of(config)
    if owner is None or owner.codec_config is None:
        raise ValueError(f"{source} holds no codec: its tower takes latents only. {_ADVICE}")
    if owner is not config:
        options = {**options, "key_mapping": {rf"{_PLACES}codec\.": ""}}
    return AutoModel.from_pretrained(source, config=owner.codec_config, **options).eval()


def coder_from_pretrained(source: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """What a saved model encodes pictures with: the whole CoTAM where its guide is used, else the codec alone.

    Args:
        source, options: As of `codec_from_pretrained`, whose errors this raises.
    """
    config = _config_of(source, **options)
    owner = _owner_of(config)
    if not isinstance(owner, CotamConfig) or owner.codec_config is None or not owner.use_guide:
        return codec_from_pretrained(source, **options)
    if owner is not config:
        options = {**options, "key_mapping": {_PLACES: ""}}
    return AutoModel.from_pretrained(source, config=owner, **options).eval()


def _config_of(source: str | os.PathLike, **options: Any) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} holds no model to take the codec from. {_ADVICE}") from error


def _owner_of(config: PreTrainedConfig) -> CodecVisionConfig | None:
    """The configuration of the ComNeck or CoTAM, which may be a part of another."""
    parts = [getattr(config, name, None) for name in ("vision_config", "comneck_config")]
    return next((part for part in (config, *parts) if isinstance(part, CodecVisionConfig)), None)


__all__ = ["CodecOwner", "codec_from_pretrained", "coder_from_pretrained", "tower_codec"]
