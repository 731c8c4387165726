"""Processor for LLaVA-NeXT with a ComNeck tower: pictures of any size, cut into tiles, as pixels or as bitstreams."""

from typing import Any

import numpy as np
import torch
from transformers import LlavaNextConfig, LlavaNextImageProcessor, LlavaNextProcessor, PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ...coding.tiles import TiledBitstream
from ..codec_vision_config import DOWNSAMPLING_FACTOR, CodecVisionConfig
from ..hub_code import HubCode
from .processing_comneck import (
    CodecOwner,
    as_source,
    flatten_images,
    picture_sources,
    read_bitstream,
    tower_codec,
)


_STAND_IN = np.zeros((1, 1, 3))  # for a bitstream where transformers counts images


class ComNeckNextProcessor(CodecOwner, HubCode, LlavaNextProcessor):
    r"""A `LlavaNextProcessor` whose images may be pictures, bitstreams of `compress`, files or `data:` URLs of them.

    LLaVA-NeXT sees a picture as a view of the whole and tiles of it in more detail. `compress` codes each of these and
    packs them, with the picture's size, into one string of bytes: one bitstream per picture. `pixel_values` holds
    tiles `(images, tiles, 3, height, width)` where all images are pictures, else their latents `(images, tiles,
    latent_channels, height / 16, width / 16)`; pictures are then encoded here. `image_sizes` and `input_ids` are the
    same for both, and so are, in float32, the model's answers.

    image_processor (`LlavaNextImageProcessor`):
        Cuts pictures into tiles of the size that the tower's neck has positions for; does not normalize.
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

    @classmethod
    def for_llava(cls, model: PreTrainedModel, processor: ProcessorMixin) -> "ComNeckNextProcessor":
        """The processor of a LLaVA-NeXT whose tower is ComNeck's.

        Args:
            model: With the tower attached; sizes come from its configuration, the codec from its tower.
            processor: The one it had: tokenizer, image token and chat template are taken over.

        Raises:
            ValueError: If the model is no LLaVA-NeXT, or its tower is not a `ComNeckModel`.
        """
        config = model.config
        if not isinstance(config, LlavaNextConfig):
            raise ValueError(
                f"{type(model).__name__} does not cut pictures into tiles; its processor is `ComNeckProcessor`."
            )
        tower = config.vision_config
        if not isinstance(tower, CodecVisionConfig):
            raise ValueError(
                f"The tower of this model is {tower.model_type!r}. Attach a `ComNeckModel` or `CotamModel` first."
            )
        pictures = LlavaNextImageProcessor(
            size={"shortest_edge": tower.image_size},
            crop_size=tower.image_size,
            image_grid_pinpoints=config.image_grid_pinpoints,
            do_normalize=False,
        )
        result = cls(
            pictures,
            processor.tokenizer,
            patch_size=tower.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            chat_template=processor.chat_template,
            image_token=processor.image_token,
        )
        result.codec = tower_codec(model)
        return result

    def compress(self, images: Any) -> list[bytes]:
        """One bitstream per picture, of all its tiles: what an edge device sends.

        Args:
            images: A picture or a list of them, of any sizes: PIL images, arrays, tensors, paths or URLs.

        Raises:
            ValueError: If there is none, or one is coded already.
        """
        pictures = self.image_processor.fetch_images(picture_sources(images))
        tiles, sizes = self._cut(pictures)
        coded = iter(self.codec.compress(torch.cat(tiles)))
        return [
            TiledBitstream(*size, tuple(next(coded) for _ in own)).pack()
            for own, size in zip(tiles, sizes, strict=True)
        ]

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

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholders of an image: one for each token that the model makes of its tiles."""
        height, width = (int(side) for side in image_inputs["image_sizes"][image_idx])
        num_tokens = self._get_number_of_features(height, width, self._tile_size, self._tile_size)
        return self.image_token * (num_tokens - (self.vision_feature_select_strategy == "default"))

    def _process_images(self, images: list[Any], **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        if not any(isinstance(image, bytes) for image in images):
            return super()._process_images(images, **kwargs)
        pictures = [image for image in images if not isinstance(image, bytes)]
        encoded = iter(self._encode(pictures, **kwargs) if pictures else [])
        decoded = iter(self._decompress([image for image in images if isinstance(image, bytes)]))
        latents, sizes = zip(
            *(next(decoded) if isinstance(image, bytes) else next(encoded) for image in images), strict=True
        )
        # The model reads as many tiles as the picture's size says; the others only fill the batch.
        padded = torch.nn.utils.rnn.pad_sequence(latents, batch_first=True)
        inputs = BatchFeature({"pixel_values": padded, "image_sizes": torch.tensor(sizes)})
        return inputs, [self.replace_image_token(inputs, index) for index in range(len(images))]

    @property
    def _tile_size(self) -> int:
        return self.image_processor.crop_size["height"]

    def _cut(self, pictures: list[Any], **kwargs: Any) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """Tiles of each picture, `(tiles, 3, height, width)`, without the padding of a batch; and the sizes."""
        inputs = self.image_processor(pictures, **{**kwargs, "do_pad": False, "return_tensors": None})
        tiles = [torch.as_tensor(own) for own in inputs["pixel_values"]]
        return tiles, [tuple(size) for size in inputs["image_sizes"]]

    @torch.no_grad()
    def _encode(self, pictures: list[Any], **kwargs: Any) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        tiles, sizes = self._cut(pictures, **kwargs)
        latents = self.codec.encode(torch.cat(tiles).to(self.codec.device)).latents.cpu()
        return list(zip(latents.split([len(own) for own in tiles]), sizes, strict=True))

    def _decompress(self, bitstreams: list[bytes]) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        """Latents `(tiles, latent_channels, height, width)` and the picture's size, of each bitstream."""
        coded = [TiledBitstream.parse(data) for data in bitstreams]
        sizes = [(one.height, one.width) for one in coded]
        for one, size in zip(coded, sizes, strict=True):
            expected = image_size_to_num_patches(size, self.image_processor.image_grid_pinpoints, self._tile_size)
            if len(one.tiles) != expected:
                raise ValueError(
                    f"A picture of {size[0]}x{size[1]} pixels was coded as {len(one.tiles)} tiles, but this model "
                    f"reads {expected}. Compress it with the processor of this model (`image_grid_pinpoints`)."
                )
        latents = self.codec.decompress([tile for one in coded for tile in one.tiles])
        grid = (self._tile_size // self.patch_size,) * 2
        for tile in latents:
            if tuple(tile.shape[1:]) != grid:
                raise ValueError(
                    f"A tile has latents of {tile.shape[1]}x{tile.shape[2]}, but the tower takes {grid[0]}x{grid[1]}. "
                    "Compress the picture with the processor of this model."
                )
        tiles = torch.stack([tile.cpu() for tile in latents]).split([len(one.tiles) for one in coded])
        return list(zip(tiles, sizes, strict=True))


__all__ = ["ComNeckNextProcessor"]
