"""Processor for LLaVA-NeXT with a ComNeck tower: pictures of any size, cut into tiles, as pixels or as bitstreams."""

from typing import Any

import torch
from transformers import LlavaNextConfig, LlavaNextImageProcessor, LlavaNextProcessor, PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature, select_best_resolution
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ...coding.bitstream import Bitstream
from ...coding.tiles import TiledBitstream
from ..codec_vision_config import DOWNSAMPLING_FACTOR, CodecVisionConfig
from ..cotam.configuration_cotam import CotamConfig
from ..cotam.joined_cotam import join_picture
from ..hub_code import HubCode
from .canvas_comneck import cut_tiles, join_tiles, pool_latents, resize_picture
from .codec_owner import CodecOwner, tower_codec
from .image_sources import picture_sources
from .processing_comneck import MAX_CONTAINER_PIXELS


OVERVIEWS = ("pooled", "encoded")


class ComNeckNextProcessor(CodecOwner, HubCode, LlavaNextProcessor):
    r"""A `LlavaNextProcessor` whose images may be pictures, bitstreams of `compress`, files or `data:` URLs of them.

    LLaVA-NeXT sees a picture as a view of the whole and tiles of it in more detail. `compress` codes each of these and
    packs them, with the picture's size, into one string of bytes: one bitstream per picture. `pixel_values` holds
    tiles `(images, tiles, 3, height, width)` where all images are pictures, else their latents `(images, tiles,
    latent_channels, height / 16, width / 16)`; pictures are then encoded here. `image_sizes` and `input_ids` are the
    same for both, and so are, in float32, the model's answers.

    With `code_canvas=True` the tiles are coded as the one picture that they are, which takes fewer bytes, and the view
    of the whole is not sent but made of it. Pictures are then always encoded here. For a tower that reads decoded
    pictures, the latents have those as further channels (`join_picture`). Bitstreams of both kinds are read, whatever
    the setting.

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
    code_canvas (`bool`, *optional*, defaults to `False`):
        Whether a picture is coded as one canvas of all its tiles. CoTAM's guide then looks at the whole and at every
        tile.
    overview (`str`, *optional*, defaults to `"pooled"`):
        What the view of the whole is made of where a canvas was sent. `"pooled"`: averages of the canvas's latents
        (CoTAM). `"encoded"`: the decoded canvas, made small and encoded again, which costs the server a decoding and
        an encoding and is closer to what towers were trained with.
    reads_pictures (`bool`, *optional*, defaults to `False`):
        Whether the tower reads decoded pictures beside the latents, as CoTAM's does.
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
        code_canvas: bool = False,
        overview: str = "pooled",
        reads_pictures: bool = False,
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
        if overview not in OVERVIEWS:
            raise ValueError(f"`overview` must be one of {OVERVIEWS}, got {overview!r}.")
        self.code_canvas = code_canvas
        self.overview = overview
        self.reads_pictures = reads_pictures

    @classmethod
    def for_llava(
        cls, model: PreTrainedModel, processor: ProcessorMixin, *, code_canvas: bool = False, overview: str = "pooled"
    ) -> "ComNeckNextProcessor":
        """The processor of a LLaVA-NeXT whose tower is ComNeck's or CoTAM's.

        Args:
            model: With the tower attached; sizes come from its configuration, the codec from its tower.
            processor: The one it had: tokenizer, image token and chat template are taken over.
            code_canvas, overview: As in the constructor.

        Raises:
            ValueError: If the model is no LLaVA-NeXT, its tower has no codec, or there is no such overview.
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
            code_canvas=code_canvas,
            overview=overview,
            reads_pictures=tower.vision_config.reads_pictures,
        )
        result.codec = tower_codec(model)
        return result

    def compress(self, images: Any, **options: Any) -> list[bytes]:
        """One bitstream per picture, of all its tiles or of their canvas: what an edge device sends.

        Args:
            images: A picture or a list of them, of any sizes: PIL images, arrays, tensors, paths or URLs.
            options: Of the codec's `compress`: `gain` or `quality`; of a canvas also `target_bytes`, which leaves out
                the header, `target_bpp`, in pixels of the canvas, and `gain_maps`.

        Raises:
            ValueError: If there is none, one is coded already, or an option needs a canvas.
        """
        whole = sorted({"target_bytes", "target_bpp", "gain_maps"} & set(options))
        if whole and not self.code_canvas:
            raise ValueError(f"{whole} say something of whole pictures, not of tiles. Set `code_canvas=True`.")
        pictures = self.image_processor.fetch_images(picture_sources(images))
        tiles, sizes = self._cut(pictures)
        if self.code_canvas:
            coded = self.codec.compress(self._canvases(tiles, sizes), **self._canvas_options, **options)
            return [TiledBitstream(*size, (canvas,)).pack() for canvas, size in zip(coded, sizes, strict=True)]
        coded = iter(self.codec.compress(torch.cat(tiles), **options))
        return [
            TiledBitstream(*size, tuple(next(coded) for _ in own)).pack()
            for own, size in zip(tiles, sizes, strict=True)
        ]

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholders of an image: one for each token that the model makes of its tiles."""
        height, width = (int(side) for side in image_inputs["image_sizes"][image_idx])
        num_tokens = self._get_number_of_features(height, width, self._tile_size, self._tile_size)
        return self.image_token * (num_tokens - (self.vision_feature_select_strategy == "default"))

    def _process_images(self, images: list[Any], **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        if not self.code_canvas and not any(isinstance(image, bytes) for image in images):
            return super()._process_images(images, **kwargs)
        pictures = [image for image in images if not isinstance(image, bytes)]
        encoded = iter(self._encode(pictures, **kwargs) if pictures else [])
        decoded = iter(self._decompress([image for image in images if isinstance(image, bytes)]))
        latents, sizes = zip(
            *(next(decoded) if isinstance(image, bytes) else next(encoded) for image in images), strict=True
        )
        if len({own.shape[1] for own in latents}) > 1:  # canvases among tiles, for a tower that reads pictures
            latents = [self._with_pictures(own) for own in latents]
        # The model reads as many tiles as the picture's size says; the others only fill the batch.
        padded = torch.nn.utils.rnn.pad_sequence(latents, batch_first=True)
        inputs = BatchFeature({"pixel_values": padded, "image_sizes": torch.tensor(sizes)})
        return inputs, [self.replace_image_token(inputs, index) for index in range(len(images))]

    @property
    def _tile_size(self) -> int:
        return self.image_processor.crop_size["height"]

    def _tile_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tiles of a picture."""
        height, width = self._canvas_size(size)
        return height // self._tile_size, width // self._tile_size

    def _canvas_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the grid that a picture is resized to, in pixels."""
        return tuple(select_best_resolution(size, self.image_processor.image_grid_pinpoints))

    def _cut(self, pictures: list[Any], **kwargs: Any) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """Tiles of each picture, `(tiles, 3, height, width)`, without the padding of a batch; and the sizes."""
        inputs = self.image_processor(pictures, **{**kwargs, "do_pad": False, "return_tensors": None})
        tiles = [torch.as_tensor(own) for own in inputs["pixel_values"]]
        return tiles, [tuple(size) for size in inputs["image_sizes"]]

    def _canvases(self, tiles: list[torch.Tensor], sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
        """The canvas of each picture, `(3, height, width)`: all but the first tile, which is the view of the whole."""
        return [join_tiles(own[1:], *self._tile_grid(size)) for own, size in zip(tiles, sizes, strict=True)]

    @property
    def _canvas_options(self) -> dict[str, int]:
        """What codes a canvas with a guide has to know."""
        return {"tile": self._tile_size} if isinstance(self.codec.config, CotamConfig) else {}

    @torch.no_grad()
    def _encode(self, pictures: list[Any], **kwargs: Any) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        tiles, sizes = self._cut(pictures, **kwargs)
        if self.code_canvas:
            encoded = []
            for canvas, size in zip(self._canvases(tiles, sizes), sizes, strict=True):
                latents, gains = self._coded(canvas[None], **self._canvas_options)
                encoded.append((self._views(latents[0], size, gains), size))
            return encoded
        latents = self._joined(*self._coded(torch.cat(tiles))).cpu()
        return list(zip(latents.split([len(own) for own in tiles]), sizes, strict=True))

    @torch.no_grad()
    def _decompress(self, bitstreams: list[bytes]) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        """Latents `(tiles, channels, height, width)` and the picture's size, of each bitstream."""
        coded = [TiledBitstream.parse(data) for data in bitstreams]
        for one in coded:
            rows, columns = self._tile_grid((one.height, one.width))
            expected, found = 1 + rows * columns, len(one.tiles)
            if not one.is_canvas and found != expected:
                raise ValueError(
                    f"A picture of {one.height}x{one.width} pixels was coded as {found} tiles, but this model reads "
                    f"{expected}. Compress it with the processor of this model (`image_grid_pinpoints`)."
                )
        latents = iter(self._decoder.decompress([tile for one in coded for tile in one.tiles]) if coded else ())
        return [self._read(one, [next(latents) for _ in one.tiles]) for one in coded]

    def _read(self, coded: TiledBitstream, latents: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[int, int]]:
        """What `_decompress` returns for one picture, of its decoded tiles."""
        size = (coded.height, coded.width)
        if coded.is_canvas:
            header = Bitstream.parse(coded.tiles[0], max_pixels=MAX_CONTAINER_PIXELS)
            found, expected = (header.height, header.width), self._canvas_size(size)
            if found != expected:
                raise ValueError(
                    f"A picture of {size[0]}x{size[1]} pixels was coded on a canvas of {found[0]}x{found[1]}, but "
                    f"this model reads one of {expected[0]}x{expected[1]}. Compress it with the processor of this "
                    "model (`image_grid_pinpoints`)."
                )
            return self._views(latents[0], size, self._decoder.coded_gains(coded.tiles)), size
        grid = (self._tile_size // self.patch_size,) * 2
        for tile in latents:
            if tuple(tile.shape[1:]) != grid:
                raise ValueError(
                    f"A tile has latents of {tile.shape[1]}x{tile.shape[2]}, but the tower takes {grid[0]}x{grid[1]}. "
                    "Compress the picture with the processor of this model."
                )
        return self._joined(torch.stack(latents), self._decoder.coded_gains(coded.tiles)).cpu(), size

    def _views(self, latents: torch.Tensor, size: tuple[int, int], gains: dict[str, Any]) -> torch.Tensor:
        """The whole and the tiles of a canvas, `(1 + tiles, channels, height, width)`.

        Args:
            latents: Of the canvas, `(latent_channels, height, width)`.
            size: Height and width of the original picture.
            gains: What decoding the latents takes beside them.
        """
        tiles, (height, width) = self._tile_grid(size), self._canvas_size(size)
        side = self._tile_size // self.patch_size
        overview = canvas = None
        if self.reads_pictures or self.overview == "encoded":
            canvas = self._decoder.decode(latents[None], size=(height, width), **gains)[0].float()
            overview = resize_picture(canvas, (self._tile_size,) * 2, size=size)[None]
        latents = latents[:, : height // self.patch_size, : width // self.patch_size]
        if self.overview == "pooled":
            whole = pool_latents(latents, (side, side), size=size)[None]
        else:
            whole = self.codec.encode(overview).latents
        views = torch.cat([whole, cut_tiles(latents, *tiles)])
        if self.reads_pictures:
            views = join_picture(views, torch.cat([overview, cut_tiles(canvas, *tiles)]))
        return views.cpu()

    @torch.no_grad()
    def _with_pictures(self, views: torch.Tensor) -> torch.Tensor:
        """Latents of tiles, joined with their decoded pictures if they are not yet."""
        if views.shape[1] > self._decoder.config.latent_channels:
            return views
        decoded = self._decoder.decode(views.to(self._decoder.device))
        return join_picture(views, decoded.cpu())


__all__ = ["OVERVIEWS", "ComNeckNextProcessor"]
