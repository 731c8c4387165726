"""What all models share that join a codec with a CLIP vision tower."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import AutoModel, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

from ..coding.gain_map import GainMap
from .codec_vision_config import CodecVisionConfig, LatentVisionConfig
from .image_codec import CodecEncoderOutput


@dataclass
class ComNeckModelOutput(ModelOutput):
    r"""
    last_hidden_state (`torch.Tensor` of shape `(batch_size, tokens, hidden_size)`):
        Output of the last CLIP layer: class token first, no final layer norm.
    pooler_output (`torch.Tensor` of shape `(batch_size, hidden_size)`):
        Class token after the final layer norm.
    hidden_states (`tuple[torch.Tensor]` of length `num_hidden_layers + 1`, *optional*):
        Numbered as CLIP's: entry `k` is the output of layer `k`. Entries up to ComNeck's `num_skipped_layers` are the
        neck's output; CoTAM skips none.
    attentions (`tuple[torch.Tensor]`, *optional*):
        Attention weights of the layers that ran, in order.
    image_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`):
        Projected class token, not normalized.
    latents (`torch.Tensor` of shape `(batch_size, latent_channels, height / 16, width / 16)`):
        The latents that the features come from.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_embeds: torch.Tensor | None = None
    latents: torch.Tensor | None = None


class LatentVisionModel(CLIPVisionModel):
    """CLIP vision tower that reads codec latents through a module of its own.

    Attributes:
        reader: Name of that module, a [`TransformNeck`]; it is no part of CLIP.
    """

    config: LatentVisionConfig
    reader: ClassVar[str]
    base_model_prefix = "vision_model"
    _no_split_modules = ["CLIPEncoderLayer", "CLIPVisionEmbeddings", "TransformNeck"]
    _can_record_outputs = {
        "hidden_states": CLIPEncoderLayer,
        "attentions": OutputRecorder(CLIPAttention, index=1, layer_name="encoder.layers"),
    }
    # What else lies in the folders this model is loaded from: a CLIP, or a model with a codec.
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^(text|visual)_projection\.",
        r"^logit_scale$",
        r"^codec\.",
        r"\.position_ids$",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, self.reader):
            module.init_weights()

    def _features(self, hidden_states: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Runs CLIP's layers and pools the class token."""
        last_hidden_state = self.encoder(inputs_embeds=hidden_states, **kwargs).last_hidden_state
        pooled = last_hidden_state[:, 0, :]
        # ComNeck's released training code normalizes twice before projecting; CLIP does so once.
        for _ in range(self.config.post_layernorm_repeats):
            pooled = self.post_layernorm(pooled)
        return BaseModelOutputWithPooling(last_hidden_state=last_hidden_state, pooler_output=pooled)


class CodecVisionModel(PreTrainedModel):
    """Bytes in, CLIP features out: codec, tower, projection. Fits into LLaVA as `vision_tower`."""

    config: CodecVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: CodecVisionConfig) -> None:
        super().__init__(config)
        self.codec = None if config.codec_config is None else AutoModel.from_config(config.codec_config)
        self.vision_model = self._build_tower(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()
        # transformers merges the children's lists, and the codec's would hide everything that is not codec.
        self._keys_to_ignore_on_load_unexpected = {
            *self.vision_model._keys_to_ignore_on_load_unexpected,
            r"^(model\.)?(language_model|multi_modal_projector|image_newline)\b",  # of a LLaVA around it
            r"^lm_head\.",
        }

    @abstractmethod
    def _build_tower(self, config: CodecVisionConfig) -> LatentVisionModel:
        """The tower of `config.vision_config`."""

    @classmethod
    def from_codec_and_clip(
        cls,
        codec: PreTrainedModel | None,
        clip: CLIPModel | CLIPVisionModelWithProjection,
        *,
        quality: int | None = None,
        **options: Any,
    ) -> Self:
        """A model with copies of the codec's and of CLIP's weights; what reads the latents is fresh.

        Args:
            codec: A codec with `latent_channels` in its config; `None` for a model that takes latents only.
            clip: The CLIP whose layers see what is read.
            quality: Operating point, 1 to 4; the codec's by default, where it is one of these.
            options: Other fields of the configuration and of its `vision_config`, such as `scenario`,
                `num_skipped_layers` and `keep_clip_stem` of ComNeck, `guide_layers` and `use_adapter` of CoTAM.

        Raises:
            ValueError: If an option is a field of neither.
        """
        config = cls.config_class.from_codec_and_clip_configs(
            None if codec is None else codec.config,
            clip.config.vision_config if isinstance(clip, CLIPModel) else clip.config,
            projection_dim=clip.visual_projection.out_features,
            quality=quality,
            **options,
        )
        model = cls(config)
        if codec is not None:
            model.codec.load_state_dict(codec.state_dict())
        # Not strict: the reader is new, and without the stem CLIP has weights to spare.
        missing = model.vision_model.load_state_dict(clip.vision_model.state_dict(), strict=False).missing_keys
        assert all(key.startswith(f"{model.vision_model.reader}.") for key in missing), missing
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

    def train(self, mode: bool = True) -> Self:
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
        gain: float | Sequence[float] | None = None,
        gain_maps: GainMap | Sequence[GainMap | None] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ComNeckModelOutput:
        """Features and embeddings from latents, or from pictures through the codec. Exactly one of the two.

        Args:
            pixel_values: Pictures of shape `(batch, 3, height, width)`, values in [0, 1], as `ComNeckImageProcessor`
                makes them; the codec runs inside, without bytes. With `latent_channels` channels they **are** latents.
            latents: Shape `(batch, latent_channels, height / 16, width / 16)`.
            interpolate_pos_encoding: Accept other latent grids than the tower's, with positions interpolated.
            gain, gain_maps: What pictures are to be coded with, as in the codec's `compress`; `None` leaves it to the
                model, and a CoTAM's guide makes maps then. Or what the latents were coded with, as `coded_gains`
                tells: a CoTAM whose codec has gain vectors decodes pictures with them.
            kwargs: `output_hidden_states` (also an index or a list of indices), `output_attentions`, `return_dict`.

        Raises:
            ValueError: If none or both inputs are given, or their shape fits neither path.
        """
        pixel_values, latents = sort_inputs(pixel_values, latents, self.config.vision_config)
        options = {"gain": gain, "gain_maps": gain_maps}
        options = {name: value for name, value in options.items() if value is not None}
        if latents is None:
            options = self.coding_options(pixel_values, **options)
            with torch.set_grad_enabled(torch.is_grad_enabled() and _is_trainable(self._require_codec())):
                latents = self.encode(pixel_values, **options).latents
        kwargs |= {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": True}
        outputs = self._see(latents, options, **kwargs)
        return ComNeckModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.pooler_output,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_embeds=self.visual_projection(outputs.pooler_output),
            latents=latents,
        )

    def coding_options(self, pixel_values: torch.Tensor | Sequence[torch.Tensor], **options: Any) -> dict[str, Any]:
        """What `encode` codes pictures with, and `reconstruct` takes beside their latents.

        Args:
            pixel_values: As in `encode`.
            options: What is given of it: `gain` and `gain_maps`.
        """
        return {"gain": 0.0, **options} if self._require_codec().needs_gains else options

    def _see(self, latents: torch.Tensor, gains: Mapping[str, Any], **kwargs: Any) -> BaseModelOutputWithPooling:
        """The tower's features of latents that were coded with `gains`, as `coded_gains` has them."""
        return self.vision_model(latents=latents, **kwargs)

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

    def encode(self, pixel_values: torch.Tensor, **options: Any) -> CodecEncoderOutput:
        """Latents as `decompress` yields them for what `compress` writes, without the bytes, and their likelihoods.

        Args:
            pixel_values: As in `forward`, any size.
            options: Of the codec's `encode`, such as `gain` and `gain_maps`.
        """
        return self._require_codec().encode(pixel_values, **options)

    def compress(self, pixel_values: torch.Tensor | Sequence[torch.Tensor], **options: Any) -> list[bytes]:
        """One self-contained bitstream per picture.

        Args:
            pixel_values: As in `forward`, any size; or a list of `(3, height, width)` pictures of any sizes.
            options: Of the codec's `compress`, such as `gain`, `gain_maps` and `target_bytes`.
        """
        return self._require_codec().compress(pixel_values, **options)

    def decompress(self, bitstreams: Sequence[bytes]) -> torch.Tensor | list[torch.Tensor]:
        """Latents, bit-equal to the encoder's on every machine.

        Returns:
            float32 `(batch, latent_channels, height / 16, width / 16)`; a list of tensors without the batch dimension
            where the pictures' latent sizes differ.

        Raises:
            BitstreamError: If a bitstream is damaged, of a newer version, or was written by another model.
        """
        return self._require_codec().decompress(bitstreams)

    def coded_gains(self, bitstreams: Sequence[bytes]) -> dict[str, Any]:
        """What `reconstruct` and `forward` take beside the latents of these bitstreams, as the codec tells."""
        return self._require_codec().coded_gains(bitstreams)

    def reconstruct(self, latents: torch.Tensor, *, size: tuple[int, int] | None = None, **gains: Any) -> torch.Tensor:
        """Pictures of shape `(batch, 3, height, width)`, values in [0, 1].

        Args:
            latents: As `decompress` returns them.
            size: Height and width to crop to.
            gains: `gain` and `gain_maps`, as `coded_gains` tells. Only codecs with gain vectors need them.

        Raises:
            ValueError: If the codec needs gains, and there are none.
        """
        codec = self._require_codec()
        if codec.needs_gains and "gain" not in gains:
            raise ValueError(
                "The codec of this model has gain vectors and decodes pictures only with the gains that their latents "
                "were coded with. Pass `**model.coded_gains(bitstreams)` beside the latents. LLaVA has no place for "
                "them: give it pictures, or latents that `join_picture` joined with their decoded pictures."
            )
        return codec.decode(latents, size=size, **gains)

    @property
    def coder(self) -> PreTrainedModel | None:
        """What compresses and decompresses: the codec, or this model where more than that decides on bitstreams."""
        return self.codec

    def _require_codec(self) -> PreTrainedModel:
        if self.codec is None:
            raise ValueError(
                "This model was built without a codec (`codec_config=None`) and takes `latents` only. Set "
                "`codec_config`, or load the codec by itself and pass its latents."
            )
        return self.codec


def _is_trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def sort_inputs(
    pixel_values: torch.Tensor | None, latents: torch.Tensor | None, config: LatentVisionConfig
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Pictures and latents, one of them `None`; `pixel_values` with the channels of latents count as latents.

    Raises:
        ValueError: If none or both are given, or `pixel_values` are neither pictures nor latents.
    """
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


__all__ = ["CodecVisionModel", "ComNeckModelOutput", "LatentVisionModel", "sort_inputs"]
