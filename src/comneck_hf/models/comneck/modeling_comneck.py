"""CLIP vision tower fed by codec latents, and the model that joins it with a codec."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, CLIPVisionEmbeddings
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_comneck import ComNeckConfig, ComNeckVisionConfig
from .encoder_comneck import ComNeckEncoder
from .neck_comneck import TransformNeck


@dataclass
class ComNeckModelOutput(ModelOutput):
    r"""
    last_hidden_state (`torch.Tensor` of shape `(batch_size, tokens, hidden_size)`):
        Output of the last CLIP layer: class token first, no final layer norm.
    pooler_output (`torch.Tensor` of shape `(batch_size, hidden_size)`):
        Class token after the final layer norm.
    hidden_states (`tuple[torch.Tensor]` of length `num_hidden_layers + 1`, *optional*):
        Numbered as CLIP's: entry `k` is the output of layer `k`. Entries up to `num_skipped_layers` are the neck's
        output.
    attentions (`tuple[torch.Tensor]`, *optional*):
        Attention weights of the layers that ran, in order.
    image_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`):
        Projected class token, not normalized.
    latents (`torch.Tensor` of shape `(batch_size, latent_channels, height / 16, width / 16)`):
        The latents that went into the neck.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_embeds: torch.Tensor | None = None
    latents: torch.Tensor | None = None


class ComNeckVisionModel(CLIPVisionModel):
    """CLIP vision tower that takes codec latents in place of a picture.

    latents -----> neck ------------------------------+
                                                      v
    pixel_values -> embeddings -> layers 0..k-1 -> layers k.. -> post_layernorm (class token)

    k is `num_skipped_layers`. The lower path exists with `keep_clip_stem=True` only and then equals `CLIPVisionModel`.
    """

    config: ComNeckVisionConfig
    base_model_prefix = "vision_model"
    _no_split_modules = ["CLIPEncoderLayer", "CLIPVisionEmbeddings", "TransformNeck"]
    _can_record_outputs = {
        "hidden_states": CLIPEncoderLayer,
        "attentions": OutputRecorder(CLIPAttention, index=1, layer_name="encoder.layers"),
    }
    # What else lies in the folders this model is loaded from: a CLIP, or a ComNeck.
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^(text|visual)_projection\.",
        r"^logit_scale$",
        r"^codec\.",
        r"\.position_ids$",
    ]

    def __init__(self, config: ComNeckVisionConfig) -> None:
        PreTrainedModel.__init__(self, config)
        if config.keep_clip_stem:
            self.embeddings = CLIPVisionEmbeddings(config)
            self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        else:
            missing_layers = "|".join(str(index) for index in range(config.num_skipped_layers))
            self._keys_to_ignore_on_load_unexpected = [
                *self._keys_to_ignore_on_load_unexpected,
                r"(^|\.)embeddings\.(class|patch|position)_embedding",
                r"(^|\.)pre_layrnorm\.",
                *([rf"(^|\.)encoder\.layers\.({missing_layers})\."] if missing_layers else []),
            ]
        self.neck = TransformNeck(config)
        self.encoder = ComNeckEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TransformNeck):
            module.init_weights()

    def get_input_embeddings(self) -> nn.Module:
        """The first layer that sees the input: CLIP's patch embedding, or the neck's projection."""
        return self.embeddings.patch_embedding if self.config.keep_clip_stem else self.neck.projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces what `get_input_embeddings` returns."""
        if self.config.keep_clip_stem:
            self.embeddings.patch_embedding = value
        else:
            self.neck.projection = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Features from latents, or from pictures where the CLIP stem was kept. Exactly one of the two.

        Args:
            pixel_values: Shape `(batch, 3, image_size, image_size)`, normalized as for CLIP. With `latent_channels`
                channels instead of 3 they **are** latents, so that LLaVA can pass them on.
            latents: Shape `(batch, latent_channels, height, width)`.
            interpolate_pos_encoding: Accept other sizes, with positions interpolated.
            kwargs: `output_hidden_states` (also an index or a list of indices), `output_attentions`, `return_dict`.

        Returns:
            `last_hidden_state` of shape `(batch, tokens, hidden_size)`, `pooler_output` `(batch, hidden_size)`;
            `hidden_states` numbered as CLIP's, `attentions` of the layers that ran.

        Raises:
            ValueError: If none or both inputs are given, or their shape fits neither path.
        """
        pixel_values, latents = _sort_inputs(pixel_values, latents, self.config)
        if latents is not None:
            hidden_states = self.neck(latents, interpolate_pos_encoding=bool(interpolate_pos_encoding))
            num_skipped_layers = self.config.num_skipped_layers
        elif self.config.keep_clip_stem:
            embeddings = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
            hidden_states = self.pre_layrnorm(embeddings)
            num_skipped_layers = 0
        else:
            raise ValueError(
                f"`pixel_values` of shape {tuple(pixel_values.shape)} are a picture, but this tower was built without "
                "CLIP's patch embedding. Pass `latents`, or load it with `keep_clip_stem=True`."
            )
        last_hidden_state = self.encoder(
            inputs_embeds=hidden_states, num_skipped_layers=num_skipped_layers, **kwargs
        ).last_hidden_state
        pooled = last_hidden_state[:, 0, :]
        # The released training code normalizes twice before projecting; CLIP does so once.
        for _ in range(self.config.post_layernorm_repeats):
            pooled = self.post_layernorm(pooled)
        return BaseModelOutputWithPooling(last_hidden_state=last_hidden_state, pooler_output=pooled)


class ComNeckModel(PreTrainedModel):
    """Bytes in, CLIP features out: codec, transform-neck, CLIP layers, projection.

    edge    pixel_values -> compress -> bitstreams
    server  bitstreams -> decompress -> latents -> vision_model -> visual_projection -> image_embeds
                                           +-----> reconstruct -> picture, if a person wants to look

    It fits into LLaVA as `vision_tower`.
    """

    config: ComNeckConfig
    config_class = ComNeckConfig
    base_model_prefix = "comneck"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ComNeckConfig) -> None:
        super().__init__(config)
        self.codec = None if config.codec_config is None else AutoModel.from_config(config.codec_config)
        self.vision_model = ComNeckVisionModel._from_config(config.vision_config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()
        # transformers merges the children's lists, and the codec's would hide everything that is not codec.
        self._keys_to_ignore_on_load_unexpected = set(self.vision_model._keys_to_ignore_on_load_unexpected)

    @classmethod
    def from_codec_and_clip(
        cls,
        codec: PreTrainedModel | None,
        clip: CLIPModel | CLIPVisionModelWithProjection,
        *,
        scenario: str = "d1",
        quality: int | None = None,
        **vision_options: Any,
    ) -> "ComNeckModel":
        """A model with copies of the codec's and of CLIP's weights, and a fresh neck.

        Args:
            codec: A codec with `latent_channels` in its config; `None` for a model that takes latents only.
            clip: The CLIP whose layers the neck feeds.
            scenario: `"d1"`, `"d2"` or `"d3"`.
            quality: Operating point, 1 to 4; the codec's by default, where it is one of these.
            vision_options: Fields of [`ComNeckVisionConfig`], such as `num_skipped_layers` or `keep_clip_stem`.

        Raises:
            ValueError: If an option is not a field of `ComNeckVisionConfig`.
        """
        config = ComNeckConfig.from_codec_and_clip_configs(
            None if codec is None else codec.config,
            clip.config.vision_config if isinstance(clip, CLIPModel) else clip.config,
            projection_dim=clip.visual_projection.out_features,
            scenario=scenario,
            quality=quality,
            **vision_options,
        )
        model = cls(config)
        if codec is not None:
            model.codec.load_state_dict(codec.state_dict())
        # Not strict: the neck is new, and without the stem CLIP has weights to spare.
        missing = model.vision_model.load_state_dict(clip.vision_model.state_dict(), strict=False).missing_keys
        assert all(key.startswith("neck.") for key in missing), missing
        model.visual_projection.load_state_dict(clip.visual_projection.state_dict())
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.visual_projection:
            factor = self.config.vision_config.initializer_factor
            init.normal_(module.weight, std=self.config.hidden_size**-0.5 * factor)

    def get_input_embeddings(self) -> nn.Module:
        """The tower's first layer."""
        return self.vision_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces what `get_input_embeddings` returns."""
        self.vision_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "ComNeckModel":
        """Training mode for everything but a codec without trainable parameters, which keeps rounding."""
        super().train(mode)
        if self.codec is not None and not _is_trainable(self.codec):
            self.codec.eval()
        return self

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves a complete model: the codec derives its integer networks and coding tables where it has none."""
        if self.codec is not None:
            self.codec.update_tables()
        super().save_pretrained(save_directory, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ComNeckModelOutput:
        """Features and embeddings from latents, or from pictures through the codec. Exactly one of the two.

        Args:
            pixel_values: Pictures of shape `(batch, 3, height, width)`, values in [0, 1], as `ComNeckImageProcessor`
                makes them; the codec runs inside, without bytes. With `latent_channels` channels they **are** latents.
            latents: Shape `(batch, latent_channels, height / 16, width / 16)`.
            interpolate_pos_encoding: Accept latent grids other than the neck's, with positions interpolated.
            kwargs: `output_hidden_states` (also an index or a list of indices), `output_attentions`, `return_dict`.

        Raises:
            ValueError: If none or both inputs are given, or their shape fits neither path.
        """
        pixel_values, latents = _sort_inputs(pixel_values, latents, self.config.vision_config)
        if latents is None:
            codec = self._require_codec()
            with torch.set_grad_enabled(torch.is_grad_enabled() and _is_trainable(codec)):
                latents = codec.encode(pixel_values).latents
        vision_outputs = self.vision_model(
            latents=latents, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        return ComNeckModelOutput(
            last_hidden_state=vision_outputs.last_hidden_state,
            pooler_output=vision_outputs.pooler_output,
            hidden_states=vision_outputs.hidden_states,
            attentions=vision_outputs.attentions,
            image_embeds=self.visual_projection(vision_outputs.pooler_output),
            latents=latents,
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As `CLIPModel.get_image_features`: `pooler_output` is the projected class token. Arguments of `forward`."""
        outputs = self(pixel_values=pixel_values, latents=latents, return_dict=True, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.image_embeds,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def compress(self, pixel_values: torch.Tensor | Sequence[torch.Tensor]) -> list[bytes]:
        """One self-contained bitstream per picture.

        Args:
            pixel_values: As in `forward`, any size; or a list of `(3, height, width)` pictures of any sizes.
        """
        return self._require_codec().compress(pixel_values)

    def decompress(self, bitstreams: Sequence[bytes]) -> torch.Tensor | list[torch.Tensor]:
        """Latents, bit-equal to the encoder's on every machine.

        Returns:
            float32 `(batch, latent_channels, height / 16, width / 16)`; a list of tensors without the batch dimension
            where the pictures' latent sizes differ.

        Raises:
            BitstreamError: If a bitstream is damaged, of a newer version, or was written by another model.
        """
        return self._require_codec().decompress(bitstreams)

    def reconstruct(self, latents: torch.Tensor, *, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Pictures of shape `(batch, 3, height, width)`, values in [0, 1], cropped to `size` (height, width)."""
        return self._require_codec().decode(latents, size=size)

    def _require_codec(self) -> PreTrainedModel:
        if self.codec is None:
            raise ValueError(
                "This model was built without a codec (`codec_config=None`) and takes `latents` only. Set "
                "`codec_config`, or load the codec by itself and pass its latents."
            )
        return self.codec


def _is_trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _sort_inputs(
    pixel_values: torch.Tensor | None, latents: torch.Tensor | None, config: ComNeckVisionConfig
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Pictures and latents, one of them `None`; `pixel_values` with the channels of latents count as latents."""
    if (pixel_values is None) == (latents is None):
        given = "none" if latents is None else "both"
        raise ValueError(f"Pass exactly one of `pixel_values` and `latents`, got {given}.")
    if latents is not None:
        return None, latents
    if pixel_values.dim() != 4 or pixel_values.shape[1] not in (config.num_channels, config.latent_channels):
        raise ValueError(
            f"`pixel_values` must have shape (batch, {config.num_channels}, height, width), or (batch, "
            f"{config.latent_channels}, height, width) for latents, got {tuple(pixel_values.shape)}."
        )
    return (None, pixel_values) if pixel_values.shape[1] == config.latent_channels else (pixel_values, None)


__all__ = ["ComNeckModel", "ComNeckModelOutput", "ComNeckVisionModel"]
