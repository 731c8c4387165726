"""CoTAM: bits go where CLIP looks, and CLIP sees the decoded picture and, through an adapter, the latents."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionEmbeddings
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ...coding.gain_map import GainMap
from ..clip_inputs import clip_inputs
from ..codec_vision import CodecVisionModel, ComNeckModelOutput, LatentVisionModel, sort_inputs
from ..comneck.neck_comneck import TransformNeck
from ..image_codec import CodecEncoderOutput, latent_size
from .canvas_cotam import canvas_grid, canvas_importance
from .configuration_cotam import CotamConfig, CotamVisionConfig
from .guide_cotam import ShallowAttentionGuide
from .importance_cotam import padded_window, quantize_importance
from .joined_cotam import PICTURE_CHANNELS, split_picture


class CotamVisionModel(LatentVisionModel):
    """CLIP vision tower that sees a decoded picture and, through an adapter, the latents it was decoded from.

    latents --------> adapter (gated) ---------------+
                                                     v
    reconstruction -> embeddings -> pre_layrnorm --> + -> layers 0.. -> post_layernorm (class token)

    The adapter is a [`TransformNeck`]; its gate is 0 before training, so that the tower starts as CLIP on decoded
    pictures.
    """

    config: CotamVisionConfig
    reader = "adapter"
    _keys_to_ignore_on_load_unexpected = [
        *LatentVisionModel._keys_to_ignore_on_load_unexpected,
        r"^(vision_model\.)?neck\.",  # in the file of a ComNeck that has the same codec
    ]

    def __init__(self, config: CotamVisionConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.adapter = TransformNeck(config) if config.use_adapter else None
        self.encoder = CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def picture_tokens(self, pictures: torch.Tensor, *, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """What CLIP's first layer reads of pictures: the reconstruction prior.

        Args:
            pictures: Shape `(batch, 3, height, width)`, values in [0, 1], any size.
            grid: Rows and columns of patches, the tower's own by default; positions are interpolated for others.

        Returns:
            Shape `(batch, 1 + rows * columns, hidden_size)`: class token first.
        """
        rows, columns = grid or self.config.latent_grid
        size = (rows * self.config.patch_size, columns * self.config.patch_size)
        weight = self.embeddings.patch_embedding.weight
        pixels = clip_inputs(pictures.to(weight.device, weight.dtype), size)
        is_other = size != (self.config.image_size,) * 2
        return self.pre_layrnorm(self.embeddings(pixels, interpolate_pos_encoding=is_other))

    def tokens(
        self,
        latents: torch.Tensor,
        picture_tokens: torch.Tensor | None = None,
        *,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        """The sum that CLIP's first layer reads, `(batch, 1 + height * width, hidden_size)`.

        Args:
            latents: Shape `(batch, latent_channels, height, width)`.
            picture_tokens: Of the decoded picture; `None` without reconstruction prior.
            interpolate_pos_encoding: As in `forward`.
        """
        if self.adapter is None:
            return picture_tokens
        tokens = self.adapter(latents, interpolate_pos_encoding=interpolate_pos_encoding)
        return tokens if picture_tokens is None else picture_tokens + tokens

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        reconstruction: torch.Tensor | None = None,
        picture_tokens: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Features from latents and the picture they decode to; or, as `CLIPVisionModel`, from a picture alone.

        Args:
            pixel_values: Shape `(batch, 3, image_size, image_size)`, normalized as for CLIP: takes CLIP's path,
                without adapter. With `latent_channels` channels they **are** latents.
            latents: Shape `(batch, latent_channels, height, width)`.
            reconstruction: What the codec decodes from them: `(batch, 3, height, width)` of any size, values in
                [0, 1]. With the reconstruction prior either it is needed, or
            picture_tokens: what the method of that name makes of it.
            interpolate_pos_encoding: Accept other sizes, with positions interpolated.
            kwargs: `output_hidden_states` (also an index or a list of indices), `output_attentions`, `return_dict`.

        Returns:
            `last_hidden_state` of shape `(batch, tokens, hidden_size)`, `pooler_output` `(batch, hidden_size)`;
            `hidden_states` and `attentions` numbered as CLIP's.

        Raises:
            ValueError: If the inputs are too many or too few, or their shapes fit no path.
        """
        pixel_values, latents = sort_inputs(pixel_values, latents, self.config)
        if latents is None:
            embeddings = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
            return self._features(self.pre_layrnorm(embeddings), **kwargs)
        if reconstruction is not None and picture_tokens is not None:
            raise ValueError("Pass `reconstruction` or `picture_tokens`, which are made of it, not both.")
        needs_picture = self.config.reads_pictures
        if needs_picture == (reconstruction is None and picture_tokens is None):
            raise ValueError(
                "This tower reads latents and the picture they decode to: pass `reconstruction`, or use `CotamModel`, "
                "which decodes it."
                if needs_picture
                else "This tower has `use_reconstruction_prior=False` and reads `latents` alone."
            )
        grid = tuple(latents.shape[2:])
        if self.adapter is None and grid != self.config.latent_grid and not interpolate_pos_encoding:
            raise ValueError(
                f"The latents have a grid of {grid[0]}x{grid[1]}, but the tower was built for "
                f"{self.config.latent_grid[0]}x{self.config.latent_grid[1]}. Pass `interpolate_pos_encoding=True`."
            )
        if reconstruction is not None:
            picture_tokens = self.picture_tokens(reconstruction, grid=grid)
        tokens = self.tokens(latents, picture_tokens, interpolate_pos_encoding=bool(interpolate_pos_encoding))
        return self._features(tokens, **kwargs)


class CotamModel(CodecVisionModel):
    """Bytes in, CLIP features out, with bits where CLIP looks: guide, codec, adapter, CLIP, projection.

    edge    pixel_values -> guide -> gain_maps -+
               +--------------------------------+-> compress -> bitstreams
    server  bitstreams -> decompress -> latents -> reconstruct -> vision_model -> visual_projection -> image_embeds
                                           +--------------------------^

    It fits into LLaVA as `vision_tower`.
    """

    config: CotamConfig
    config_class = CotamConfig
    base_model_prefix = "cotam"

    def _build_tower(self, config: CotamConfig) -> CotamVisionModel:
        return CotamVisionModel._from_config(config.vision_config)

    @property
    def coder(self) -> PreTrainedModel | None:
        """The model itself, with its guide."""
        return None if self.codec is None else self

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        reconstruction: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ComNeckModelOutput:
        """As in [`CodecVisionModel`], and from latents whose decoded picture is there already.

        Args:
            pixel_values: As there; with `latent_channels + 768` channels they are latents and decoded pictures, as
                `join_picture` packs them.
            latents: As there.
            interpolate_pos_encoding: As there.
            reconstruction: The decoded pictures of `latents`, `(batch, 3, height, width)` of any size, values in
                [0, 1]. Decoded here by default.
            kwargs: As there.

        Raises:
            ValueError: As there.
        """
        channels = self.config.vision_config.latent_channels + PICTURE_CHANNELS
        if pixel_values is not None and pixel_values.dim() == 4 and pixel_values.shape[1] == channels:
            if latents is not None or reconstruction is not None:
                raise ValueError("Pass joined latents and pictures in `pixel_values` alone.")
            pixel_values, (latents, reconstruction) = None, split_picture(pixel_values)
        kwargs["reconstruction"] = reconstruction
        return super().forward(pixel_values, latents, interpolate_pos_encoding, **kwargs)

    @property
    def guide(self) -> ShallowAttentionGuide:
        """What makes the importance maps, on the tower's own layers."""
        return ShallowAttentionGuide(
            self.vision_model, layers=self.config.guide_layers, source=self.config.guide_source
        )

    @torch.no_grad()
    def importance(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Where CLIP's shallow layers look in pictures: float `(batch, 1, rows, columns)` of the patch grid.

        Args:
            pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1], any size.
        """
        return self.guide(pixel_values)

    def gain_maps(
        self, pixel_values: torch.Tensor | Sequence[torch.Tensor], *, tile: int | None = None
    ) -> list[GainMap]:
        """The guide's gain map of every picture. It spans the picture as the codec pads it.

        Args:
            pixel_values: As in `compress`.
            tile: Side in pixels of the tiles that the pictures consist of. The guide then looks at the whole picture
                and at each tile, and the map has `guide_grid` cells per tile, fewer if there are very many. No map has
                more cells than there are latents.

        Raises:
            ValueError: If a picture does not consist of whole tiles.
        """
        if not isinstance(pixel_values, torch.Tensor):
            return [self.gain_maps(picture[None], tile=tile)[0] for picture in pixel_values]
        config, (height, width) = self.config, pixel_values.shape[-2:]
        grid = tuple(config.guide_grid)
        if tile is None:
            importance_map = self.importance(pixel_values)
        else:
            importance_map = canvas_importance(self.guide, pixel_values, tile=tile)
            grid = canvas_grid(grid, rows=height // tile, columns=width // tile)
        divisor = self._require_codec().config.size_divisor
        rows, columns = latent_size(height, width, divisor=divisor)
        return quantize_importance(
            importance_map,
            grid=(min(grid[0], rows), min(grid[1], columns)),
            threshold=config.guide_threshold,
            levels=config.guide_levels,
            step=config.gain_step,
            window=padded_window(height, width, divisor=divisor),
        )

    def encode(self, pixel_values: torch.Tensor, *, tile: int | None = None, **options: Any) -> CodecEncoderOutput:
        """As in [`CodecVisionModel`], with the guide's gain maps where `options` have no `gain_maps`.

        Args:
            pixel_values: As in `forward`, any size.
            tile: As in `compress`.
            options: Of the codec's `encode`.
        """
        return super().encode(pixel_values, **self.coding_options(pixel_values, tile=tile, **options))

    def compress(
        self, pixel_values: torch.Tensor | Sequence[torch.Tensor], *, tile: int | None = None, **options: Any
    ) -> list[bytes]:
        """One self-contained bitstream per picture, with the guide's gain maps where there are no others.

        Args:
            pixel_values: As in `forward`, any size; or a list of `(3, height, width)` pictures of any sizes.
            tile: Side of tiles in pixels, for pictures that a model reads in tiles; as in `gain_maps`.
            options: Of the codec's `compress`, such as `gain` and `target_bytes`. `gain_maps` take the place of the
                guide's; `None` stands for no map.
        """
        return super().compress(pixel_values, **self.coding_options(pixel_values, tile=tile, **options))

    def coding_options(
        self, pixel_values: torch.Tensor | Sequence[torch.Tensor], *, tile: int | None = None, **options: Any
    ) -> dict[str, Any]:
        """As in [`CodecVisionModel`], with the guide's gain maps; arguments as in `compress`."""
        options = super().coding_options(pixel_values, **options)
        if "gain_maps" in options or not self.config.use_guide:
            return options
        return {**options, "gain_maps": self.gain_maps(pixel_values, tile=tile)}

    def _see(self, latents: torch.Tensor, gains: Mapping[str, Any], **kwargs: Any) -> BaseModelOutputWithPooling:
        if self.config.vision_config.reads_pictures and kwargs["reconstruction"] is None:
            kwargs["reconstruction"] = self.reconstruct(latents, **gains)
        return self.vision_model(latents=latents, **kwargs)


__all__ = ["CotamModel", "CotamVisionModel"]
