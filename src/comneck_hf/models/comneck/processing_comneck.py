"""Processor for LLaVA with a ComNeck tower: text with pictures, latents, bitstreams and `.cnk` files."""

from typing import Any

import numpy as np
import torch
from transformers import (
    LlavaNextConfig,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ...coding.bitstream import Bitstream
from ...coding.gain_map import GainMap
from ..codec_vision_config import DOWNSAMPLING_FACTOR, CodecVisionConfig, LatentVisionConfig
from ..cotam.configuration_cotam import CotamConfig
from ..cotam.joined_cotam import PICTURE_CHANNELS
from ..hub_code import HubCode
from ..llavolta.configuration_llavolta import LlavoltaTextConfig
from ..llavolta.pooling_llavolta import image_offsets, map_strides, region_offsets
from .codec_owner import CodecOwner, tower_codec
from .image_processing_comneck import ComNeckImageProcessor
from .image_sources import picture_sources


MAX_CONTAINER_PIXELS = 2**56  # any: what is too large, `decompress` refuses


class ComNeckProcessor(CodecOwner, HubCode, LlavaProcessor):
    r"""A `LlavaProcessor` whose images may be pictures, latents, bitstreams, `.cnk` files or `data:` URLs of them.

    `images` takes, in any mixture and nesting, what `LlavaProcessor` takes; latents of shape `(latent_channels,
    height, width)` or a batch of them; `bytes`; paths that end in `.cnk`; and `data:application/x-comneck;base64,...`.
    In chat templates: `{"type": "image", "path": "photo.cnk"}` or `"url": "data:..."`. `pixel_values` holds pictures
    where all images are pictures, else latents: then pictures are encoded here. Both are what the tower takes; in
    float32 they lead to the same tokens, while a model in half precision encodes pictures less exactly than `codec`.

    image_processor (`ComNeckImageProcessor`):
        Makes pictures of the size that the tower's neck has positions for.
    tokenizer (`PreTrainedTokenizerBase`):
        The language model's.
    patch_size (`int`, *optional*, defaults to 16):
        Pixels per token along each side.
    vision_feature_select_strategy (`str`, *optional*, defaults to `"default"`):
        As in the model's configuration; `"default"` drops the class token.
    chat_template (`str`, *optional*):
        Jinja template of a conversation.
    image_token (`str`, *optional*, defaults to `"<image>"`):
        Placeholder of an image in the text.
    num_additional_image_tokens (`int`, *optional*, defaults to 1):
        Tokens besides the grid, the class token.
    latent_channels (`int`, *optional*, defaults to 320):
        Channels of the codec's latents, by which they are told from pictures.
    reads_pictures (`bool`, *optional*, defaults to `False`):
        Whether the tower reads decoded pictures beside the latents, as CoTAM's does. Where its codec has gain vectors,
        latents come with these pictures as further channels (`join_picture`).
    pool_stride, pool, pool_grid, region_strides:
        Settings of [`LlavoltaTextConfig`] for a model with `pool_layer=0`, which needs fewer placeholders. With
        `region_strides` there is another input for the model, `pool_strides` of shape `(images, height, width)`: the
        stride at every token, from the gain map of the image's bitstream or, for a picture, of the codec's guide;
        `pool_stride` where there is no map.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        patch_size: int = DOWNSAMPLING_FACTOR,
        vision_feature_select_strategy: str = "default",
        chat_template: str | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 1,
        latent_channels: int = 320,
        reads_pictures: bool = False,
        pool_stride: int = 1,
        pool: str = "avg1d",
        pool_grid: tuple[int, int] | None = None,
        region_strides: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
        )
        self.latent_channels = latent_channels
        self.reads_pictures = reads_pictures
        self.pool_stride = pool_stride
        self.pool = pool
        self.pool_grid = pool_grid
        self.region_strides = region_strides

    @classmethod
    def for_llava(cls, model: PreTrainedModel, processor: ProcessorMixin) -> "ComNeckProcessor":
        """The processor of a LLaVA whose tower is ComNeck's, or that pools before its language model.

        Args:
            model: The LLaVA; sizes and token counts come from its configuration, the codec from its tower.
            processor: The one it had: tokenizer, image token and chat template are taken over.

        Raises:
            ValueError: If neither is the case, or the model is a LLaVA-NeXT.
        """
        config, tower, text_config = model.config, model.config.vision_config, model.config.get_text_config()
        if isinstance(config, LlavaNextConfig):
            raise ValueError(
                "LLaVA-NeXT cuts pictures into tiles; its processor is `llava_next_processor(model, processor)`."
            )
        pooling, codec = {}, None
        if isinstance(text_config, LlavoltaTextConfig) and text_config.pools_before:
            names = ("pool_stride", "pool", "pool_grid", "region_strides")
            pooling = {name: getattr(text_config, name) for name in names}
        if isinstance(tower, CodecVisionConfig | LatentVisionConfig):
            has_codec = isinstance(tower, CodecVisionConfig)
            reader = tower.vision_config if has_codec else tower
            patch_size = tower.patch_size if has_codec else DOWNSAMPLING_FACTOR
            pictures = ComNeckImageProcessor.for_size(tuple(patch_size * side for side in reader.latent_grid))
            pooling |= {"latent_channels": reader.latent_channels, "reads_pictures": reader.reads_pictures}
            codec = tower_codec(model) if has_codec else None
        elif pooling:
            pictures, patch_size = processor.image_processor, processor.patch_size
        else:
            raise ValueError(
                f"The tower of this model is {tower.model_type!r}. Attach ComNeck's first, with `attach_vision_tower`."
            )
        result = cls(
            pictures,
            processor.tokenizer,
            patch_size=patch_size,
            # ViP-LLaVA has no such setting and drops the class token.
            vision_feature_select_strategy=getattr(config, "vision_feature_select_strategy", "default"),
            chat_template=processor.chat_template,
            image_token=processor.image_token,
            **pooling,
        )
        result.codec = codec
        return result

    def compress(self, images: Any, **options: Any) -> list[bytes]:
        """Bitstreams of pictures, resized and cropped to what the tower takes: what an edge device sends.

        Args:
            images: A picture or a list of them: PIL images, arrays, tensors, paths or URLs.
            options: Of the codec's `compress`, such as `target_bytes`, `quality`, `gain` and `gain_maps`.

        Raises:
            ValueError: If there is none, or one is coded already.
        """
        pictures = self.image_processor.fetch_images(picture_sources(images))
        return self.codec.compress(self.image_processor(pictures, return_tensors="pt").pixel_values, **options)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholders of an image: one for each token that the tower makes of it and that pooling leaves."""
        channels, height, width = image_inputs["pixel_values"][image_idx].shape
        patch_size = 1 if channels in self._channels else self.patch_size
        strides = image_inputs["pool_strides"][image_idx] if "pool_strides" in image_inputs else None
        return self.image_token * self._num_image_tokens(height // patch_size, width // patch_size, strides)

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> Any:
        data = super()._get_num_multimodal_tokens(image_sizes, **kwargs)
        if data.num_image_tokens is not None:
            data.num_image_tokens = [self._num_image_tokens(*self._grid)] * len(data.num_image_tokens)
        return data

    def _process_images(self, images: list[Any], **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        maps = [self._gain_map(image) for image in images]
        images = self._decompressed(images)
        pictures = [index for index, image in enumerate(images) if not self._is_latents(image)]
        if len(pictures) == len(images) and not self._follows_guide:
            inputs, _ = super()._process_images(images, **kwargs)
        else:
            encoded = self._encode([images[index] for index in pictures], **kwargs) if pictures else []
            latents = dict(enumerate(images))
            for index, (picture_latents, gain_map) in zip(pictures, encoded, strict=True):
                latents[index], maps[index] = picture_latents, gain_map
            checked = [self._checked_latents(image) for image in latents.values()]
            if len({image.shape[0] for image in checked}) > 1:
                raise ValueError(
                    "Some of these latents are joined with their pictures, and some are not. This codec decodes by "
                    "gains: join all with `join_picture(latents, codec.decode(latents, **gains))`."
                )
            inputs = BatchFeature({"pixel_values": torch.stack(checked)})
        if self.region_strides is not None:
            options = {"region_strides": self.region_strides, "pool_stride": self.pool_stride}
            inputs["pool_strides"] = torch.stack([map_strides(one, self._grid, **options) for one in maps])
        return inputs, [self.replace_image_token(inputs, index) for index in range(len(images))]

    @torch.no_grad()
    def _encode(self, pictures: list[Any], **kwargs: Any) -> list[tuple[torch.Tensor, GainMap | None]]:
        """Latents of pictures, and the maps of a guide that regions are pooled by."""
        pixel_values = self.image_processor(pictures, **{**kwargs, "return_tensors": "pt"}).pixel_values
        latents, options = self._coded(pixel_values)
        maps = options["gain_maps"] if self._follows_guide else [None] * len(latents)
        return list(zip(self._joined(latents, options).cpu(), maps, strict=True))

    @property
    def _follows_guide(self) -> bool:
        """Whether tokens of pictures are pooled by the map of a guide, which then has to be known here."""
        if self.region_strides is None or (self._codec is None and self._codec_source is None):
            return False
        config = self.codec.config
        return isinstance(config, CotamConfig) and config.use_guide

    def _gain_map(self, image: Any) -> GainMap | None:
        """The map in a bitstream."""
        if self.region_strides is None or not isinstance(image, bytes):
            return None
        return Bitstream.parse(image, max_pixels=MAX_CONTAINER_PIXELS).gain_map

    @property
    def _grid(self) -> tuple[int, int]:
        size = self.image_processor.crop_size
        return size["height"] // self.patch_size, size["width"] // self.patch_size

    def _num_image_tokens(self, height: int, width: int, strides: torch.Tensor | None = None) -> int:
        length = height * width + self.num_additional_image_tokens
        length -= self.vision_feature_select_strategy == "default"
        if strides is None:
            offsets = image_offsets(length, stride=self.pool_stride, pool=self.pool, grid=self.pool_grid)
        else:
            offsets = region_offsets(strides, length=length, pool=self.pool)
        return int((offsets == 0).sum())

    def _is_latents(self, image: Any) -> bool:
        if not isinstance(image, torch.Tensor | np.ndarray) or image.ndim != 3:
            return False
        is_picture = image.shape[2] in (1, 3, 4)  # channels last, as high as latents have channels
        return image.shape[0] in self._channels and not is_picture

    @property
    def _channels(self) -> tuple[int, int]:
        """Of latents, alone and joined with their pictures."""
        return self.latent_channels, self.latent_channels + PICTURE_CHANNELS

    def _checked_latents(self, latents: torch.Tensor | np.ndarray) -> torch.Tensor:
        latents = torch.as_tensor(latents).cpu()
        if latents.shape[1:] != self._grid:
            raise ValueError(
                f"An image has latents of {latents.shape[1]}x{latents.shape[2]}, but the tower takes "
                f"{self._grid[0]}x{self._grid[1]}. Crop the picture before it is coded, as `processor.compress` does."
            )
        return latents

    def _decompressed(self, images: list[Any]) -> list[Any]:
        """The images, with latents in place of bitstreams."""
        bitstreams = [image for image in images if isinstance(image, bytes)]
        if not bitstreams:
            return images
        latents = self._decoder.decompress(bitstreams)
        gains = [self._decoder.coded_gains([data]) for data in bitstreams]
        joined = iter([self._joined(one[None], own)[0] for one, own in zip(latents, gains, strict=True)])
        return [next(joined).cpu() if isinstance(image, bytes) else image for image in images]


__all__ = ["MAX_CONTAINER_PIXELS", "ComNeckProcessor"]
