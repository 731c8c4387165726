"""ComNeck as the vision tower of a LLaVA that was trained on pixels."""

import copy
import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoModel,
    LlavaNextProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    VideoLlavaConfig,
    VideoLlavaModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..auto import forget_weight_conversions
from ..coding.bitstream import Bitstream
from ..hub.names import resolve_model
from ..models.codec_vision import CodecVisionModel, LatentVisionModel
from ..models.codec_vision_config import CodecVisionConfig
from ..models.comneck.processing_comneck import MAX_CONTAINER_PIXELS
from ..models.comneck.processing_comneck_next import ComNeckNextProcessor
from ..models.cotam.joined_cotam import join_picture
from ..models.llavolta.configuration_llavolta import LlavoltaTextConfig
from ..models.llavolta.pooling_llavolta import map_strides


MAX_DIFFERENCE = 0.004  # relative, in the Euclidean norm: rounding to bfloat16 alone makes 0.0017
OWN_WEIGHTS = ("neck.", "adapter.")  # of our towers; the rest is CLIP's
_LABELS = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "lmbda",
    "quality",
    "scenario",
    "transformers_version",
)
_COMPARED = ("self_attn.q_proj.weight", "self_attn.out_proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def attach_vision_tower(
    llava: PreTrainedModel,
    tower: str | os.PathLike | CodecVisionModel | LatentVisionModel,
    *,
    video_tower: str | os.PathLike | CodecVisionModel | LatentVisionModel | None = None,
    force: bool = False,
) -> PreTrainedModel:
    """Swaps the CLIP tower of a loaded LLaVA for ComNeck's or CoTAM's; projector and language model stay as they are.

    The LLaVA's own CLIP layers are kept, codec and neck or adapter come from `tower`. Afterwards the model takes
    latents in `pixel_values`, and pictures if the tower has a codec; it saves and loads like any LLaVA, and a frozen
    tower stays frozen. Its processor is `ComNeckProcessor.for_llava(llava, old_processor)`, of LLaVA-NeXT
    `llava_next_processor(llava, old_processor)`.

    Video-LLaVA has two CLIPs and one configuration for both, so both become ComNeck's; latents of frames, `(videos,
    frames, channels, height, width)`, then go in `pixel_values_videos`.

    Args:
        llava: A LLaVA, LLaVA-NeXT, ViP-LLaVA, Video-LLaVA or another model with a CLIP in `vision_tower`; changed in
            place.
        tower: Folder, Hub id or packaged name of a ComNeck or CoTAM, or the model, which is copied; a
            `ComNeckVisionModel` takes latents only.
        video_tower: The same for Video-LLaVA's frames, with a neck for its other CLIP; `tower` by default.
        force: Attach a neck or adapter that was trained for another CLIP of the same shape.

    Returns:
        `llava`.

    Raises:
        ValueError: If the model has no CLIP tower, a neck was trained for another CLIP, or Video-LLaVA's two towers
            need different configurations. The model is then as it was.
    """
    llava = _without_adapters(llava)
    base = llava.base_model
    if isinstance(base, VideoLlavaModel):
        sources = {"image_tower": tower, "video_tower": tower if video_tower is None else video_tower}
    elif video_tower is not None:
        raise ValueError(f"{type(llava).__name__} takes no `video_tower`: only Video-LLaVA has a second CLIP.")
    else:
        sources = {"vision_tower": tower}
    clips = {name: _clip_of(llava, name) for name in sources}
    towers = {name: _loaded(source) for name, source in sources.items()}
    _check_configs(*towers.values())
    for name, new in towers.items():
        _check_clip(_vision_model(new), clips[name], name, force=force)
        _check_layers(llava, _vision_model(new))
    for name, new in towers.items():
        _take_over(new, clips[name], training=getattr(base, name).training)
        setattr(base, name, new)
    _set_config(llava, next(iter(towers.values())))
    forget_weight_conversions(llava)
    return llava


def _clip_of(llava: PreTrainedModel, name: str) -> nn.Module:
    """The CLIP of a tower, or of the ComNeck that was attached there before."""
    old = getattr(llava.base_model, name, None)
    clip = old.vision_model if isinstance(old, CodecVisionModel) else old
    if not hasattr(clip, "encoder") or not hasattr(clip, "post_layernorm"):
        raise ValueError(
            f"{type(llava).__name__} has no CLIP in `{name}`, but {type(old).__name__}. A ComNeck tower "
            "replaces a CLIP vision tower."
        )
    return clip


def _loaded(tower: str | os.PathLike | PreTrainedModel) -> CodecVisionModel | LatentVisionModel:
    if isinstance(tower, PreTrainedModel):
        tower = copy.deepcopy(tower)
    else:
        tower = AutoModel.from_pretrained(resolve_model(os.fspath(tower)))
    if not isinstance(tower, CodecVisionModel | LatentVisionModel):
        raise ValueError(
            f"The tower must be a `ComNeckModel`, `ComNeckVisionModel` or `CotamModel`, got {type(tower).__name__}."
        )
    if isinstance(tower, LatentVisionModel) and tower.config.reads_pictures:
        raise ValueError("A `CotamVisionModel` reads decoded pictures beside latents. Attach the whole `CotamModel`.")
    return tower


def _vision_model(tower: CodecVisionModel | LatentVisionModel) -> LatentVisionModel:
    return tower.vision_model if isinstance(tower, CodecVisionModel) else tower


def _take_over(tower: CodecVisionModel | LatentVisionModel, clip: nn.Module, *, training: bool) -> None:
    """Gives a tower the weights, type, device and frozen state of the CLIP that it replaces."""
    vision_model, parameter = _vision_model(tower), next(clip.parameters())
    tower.to(device=parameter.device, dtype=parameter.dtype).train(training)
    # Not strict: the layers that the neck replaces are not needed.
    weights = {name: weight for name, weight in clip.state_dict().items() if not name.startswith(OWN_WEIGHTS)}
    vision_model.load_state_dict(weights, strict=False, assign=True)
    trainable = {name for name, weight in clip.named_parameters() if weight.requires_grad}
    tower.requires_grad_(False)
    for name, weight in vision_model.named_parameters():
        weight.requires_grad_(name in trainable)
    if isinstance(tower, CodecVisionModel) and tower.codec is not None:
        tower.codec.update_tables()
    tower.set_attn_implementation(clip.config._attn_implementation)


def _check_configs(tower: PreTrainedModel, *others: PreTrainedModel) -> None:
    """Refuses towers that one configuration cannot build; their rates may differ."""
    expected = _build_options(tower.config)
    for other in others:
        found = _build_options(other.config)
        names = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        if names:
            raise ValueError(
                f"Video-LLaVA builds both towers from one configuration, but those of `tower` and `video_tower` "
                f"differ in {names}. Choose two ComNecks of the same shape."
            )


def _build_options(config: PreTrainedConfig, prefix: str = "") -> dict[str, object]:
    """What decides how a model is built, nested options as `codec_config.latent_channels`."""
    options: dict[str, object] = {}
    for name, value in config.to_dict().items():
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            options |= _build_options(part, f"{prefix}{name}.")
        elif name not in _LABELS:
            options[prefix + name] = value
    return options


def _check_clip(vision_model: LatentVisionModel, clip: nn.Module, slot: str, *, force: bool) -> None:
    """Compares a few weights of the layers that neck and CLIP of a slot both have."""
    ours, theirs = vision_model.state_dict(), clip.state_dict()
    last = vision_model.config.num_hidden_layers - 1
    first = vision_model.config.num_skipped_layers
    layers = sorted({first, (last + first) // 2, last})
    names = ["post_layernorm.weight", *(f"encoder.layers.{layer}.{name}" for layer in layers for name in _COMPARED)]
    num_layers = clip.config.num_hidden_layers
    for name in names:
        if f"{name.removesuffix('.weight')}.base_layer.weight" in theirs:
            raise ValueError("This model's CLIP has adapters. Merge them first, with `merge_and_unload()`.")
        if name in theirs and (theirs[name].is_meta or not theirs[name].is_floating_point()):
            raise ValueError(
                f"The weights of this model's CLIP are offloaded or quantized ({name}: {theirs[name].dtype}). Load it "
                "without, or leave its `vision_tower` out of the quantization (`llm_int8_skip_modules`)."
            )
        shapes = [tuple(weights[name].shape) if name in weights else None for weights in (ours, theirs)]
        if shapes[0] != shapes[1] or num_layers != vision_model.config.num_hidden_layers:
            raise ValueError(
                f"The neck was trained for a CLIP of {vision_model.config.num_hidden_layers} layers and width "
                f"{vision_model.config.hidden_size}, this model has {num_layers} layers and width "
                f"{clip.config.hidden_size} ({name}: {shapes[1]}). Choose a ComNeck for this CLIP."
            )
        expected = ours[name].float().cpu()
        difference = float((theirs[name].float().cpu() - expected).norm() / expected.norm())
        if difference > MAX_DIFFERENCE and not force:
            raise ValueError(
                f"The neck was trained for another CLIP: {slot}.{name} differs by {100 * difference:.2g} % (at most "
                f"{100 * MAX_DIFFERENCE:.2g} % is rounding). Choose a ComNeck for this CLIP, or pass `force=True` if "
                "a fine-tuned one is close enough."
            )


def _check_layers(llava: PreTrainedModel, vision_model: LatentVisionModel) -> None:
    """Refuses a LLaVA that reads hidden states which the neck leaves out."""
    layers = getattr(llava.config, "vision_feature_layer", getattr(llava.config, "vision_feature_layers", []))
    num_states = vision_model.config.num_hidden_layers + 1
    for layer in [layers] if isinstance(layers, int) else layers:
        if layer % num_states < vision_model.config.num_skipped_layers:
            raise ValueError(
                f"This model reads hidden state {layer} of its tower, but the neck replaces the first "
                f"{vision_model.config.num_skipped_layers} layers. Choose a ComNeck with fewer skipped layers."
            )


def _set_config(llava: PreTrainedModel, tower: CodecVisionModel | LatentVisionModel) -> None:
    config, old_size = llava.config, llava.config.vision_config.image_size
    height, width = _vision_model(tower).config.latent_grid
    config.vision_config = tower.config
    if hasattr(config, "image_seq_length"):
        keeps_class_token = getattr(config, "vision_feature_select_strategy", "default") == "full"
        if isinstance(config, VideoLlavaConfig):  # of frames, it always keeps the class token
            num_frames = config.video_seq_length // (config.image_seq_length + 1 - keeps_class_token)
            config.video_seq_length = num_frames * (height * width + 1)
        config.image_seq_length = height * width + keeps_class_token
    if getattr(config, "image_grid_pinpoints", None):
        size = tower.config.image_size
        config.image_grid_pinpoints = [
            [side // old_size * size for side in point] for point in config.image_grid_pinpoints
        ]


def llava_next_processor(
    llava: PreTrainedModel, processor: LlavaNextProcessor, *, code_canvas: bool = False, overview: str = "pooled"
) -> ComNeckNextProcessor:
    """The processor of a LLaVA-NeXT with a ComNeck or CoTAM tower, as `ComNeckNextProcessor.for_llava` makes it.

    Args:
        llava: With the tower attached.
        processor: The one it had.
        code_canvas: Whether a picture is coded as one canvas of all its tiles.
        overview: Of a canvas, `"pooled"` or `"encoded"`, as in [`ComNeckNextProcessor`].
    """
    return ComNeckNextProcessor.for_llava(llava, processor, code_canvas=code_canvas, overview=overview)


def _without_adapters(llava: PreTrainedModel) -> PreTrainedModel:
    """The model inside PEFT's wrapper."""
    return llava if isinstance(llava, PreTrainedModel) else llava.get_base_model()


def _image_tower(base: PreTrainedModel) -> nn.Module:
    return base.image_tower if isinstance(base, VideoLlavaModel) else base.vision_tower


@dataclass(frozen=True)
class ImageFeatures:
    """Features of images behind the projector, as language models read them.

    Attributes:
        images: One tensor of shape `(tokens, hidden_size)` per image, in the language model's width and type.
        are_stacked: Whether the model takes them as one tensor, as ViP-LLaVA does.
    """

    images: list[torch.Tensor]
    are_stacked: bool = False

    def mm_encoder_outputs(self) -> dict[str, BaseModelOutputWithPooling]:
        """For `generate` and `forward` of transformers: `model.generate(..., mm_encoder_outputs=...)`."""
        features = self.image_embeds() if self.are_stacked else list(self.images)
        return {"image": BaseModelOutputWithPooling(pooler_output=features)}

    def image_embeds(self) -> torch.Tensor:
        """For vLLM: `multi_modal_data={"image": ...}`, shape `(images, tokens, hidden_size)`.

        Raises:
            ValueError: If the images have different numbers of tokens; vLLM then takes `images`, one request each.
        """
        lengths = {len(image) for image in self.images}
        if len(lengths) > 1:
            raise ValueError(
                f"The images have {sorted(lengths)} tokens and cannot be stacked. Use `images` one by one."
            )
        return torch.stack(self.images)

    def precomputed_embeddings(self) -> list[dict[str, object]]:
        """For SGLang: `image_data=[...]` with one dictionary per image."""
        return [{"format": "precomputed_embedding", "feature": image} for image in self.images]


@torch.no_grad()
def image_features(
    llava: PreTrainedModel,
    pixel_values: torch.Tensor | None = None,
    *,
    bitstreams: list[bytes] | None = None,
    image_sizes: torch.Tensor | None = None,
    pool_strides: torch.Tensor | None = None,
) -> ImageFeatures:
    """What the language model will read for images, computed apart from it.

    Args:
        llava: A LLaVA; with a ComNeck tower it takes latents and bitstreams, too.
        pixel_values: Pictures as its processor makes them, or latents of shape `(images, channels, height, width)`.
        bitstreams: Instead of `pixel_values`; not of LLaVA-NeXT, whose processor makes `pixel_values` of them.
        image_sizes: Of LLaVA-NeXT's pictures, `(images, 2)`.
        pool_strides: Of a model with `region_strides`, `(images, height, width)`, as its processor returns them with
            `pixel_values`. Those of bitstreams follow from their gain maps.

    Raises:
        ValueError: If none or both inputs are given, or the tower has no codec for bitstreams or is LLaVA-NeXT's,
            or takes latents of another size.
    """
    if (pixel_values is None) == (bitstreams is None):
        raise ValueError("Pass exactly one of `pixel_values` and `bitstreams`.")
    llava = _without_adapters(llava)
    base = llava.base_model
    is_next = hasattr(llava.config, "image_grid_pinpoints")
    if bitstreams is not None:
        if is_next:
            raise ValueError(
                "LLaVA-NeXT's bitstreams hold several tiles, which its processor reads. Pass "
                '`**processor(images=bitstreams, return_tensors="pt")` instead.'
            )
        if not isinstance(llava.config.vision_config, CodecVisionConfig):
            raise ValueError(
                "Bitstreams need a `ComNeckModel` or `CotamModel` in `vision_tower`; attach one, or decompress "
                "them first."
            )
        pixel_values = _decompressed(_image_tower(base), bitstreams)
        pool_strides = _strides_of(bitstreams, llava.config.get_text_config(), grid=tuple(pixel_values.shape[2:]))
    if image_sizes is None and is_next:
        raise ValueError("LLaVA-NeXT needs `image_sizes`, the height and width of each picture before it was cut.")
    options = {"image_sizes": image_sizes, "pool_strides": pool_strides}
    options = {name: value for name, value in options.items() if value is not None}
    outputs = base.get_image_features(pixel_values.to(llava.device), return_dict=True, **options)
    dtype = llava.get_input_embeddings().weight.dtype
    are_stacked = isinstance(outputs.pooler_output, torch.Tensor)
    return ImageFeatures([image.to(dtype) for image in outputs.pooler_output], are_stacked)


def _decompressed(tower: CodecVisionModel, bitstreams: list[bytes]) -> torch.Tensor:
    """Latents as a tower takes them: of its size, and joined with their pictures where it is to be told no gains."""
    latents = tower.decompress(bitstreams)
    if isinstance(latents, list):
        sizes = sorted({tuple(one.shape[1:]) for one in latents})
        raise ValueError(f"The bitstreams have latents of different sizes, {sizes}. Crop the pictures first.")
    found, expected = tuple(latents.shape[2:]), tower.config.vision_config.latent_grid
    if found != expected:
        raise ValueError(
            f"The bitstreams have latents of {found[0]}x{found[1]}, but the tower takes {expected[0]}x{expected[1]}. "
            "Crop pictures before they are coded, as `processor.compress` and `comneck encode` do."
        )
    if not (tower.config.vision_config.reads_pictures and tower.codec.needs_gains):
        return latents
    return join_picture(latents, tower.reconstruct(latents, **tower.coded_gains(bitstreams)))


def _strides_of(bitstreams: list[bytes], config: PreTrainedConfig, *, grid: tuple[int, int]) -> torch.Tensor | None:
    """The strides that the gain maps of bitstreams stand for, in a model that pools by them."""
    if not isinstance(config, LlavoltaTextConfig) or config.region_strides is None:
        return None
    maps = [Bitstream.parse(data, max_pixels=MAX_CONTAINER_PIXELS).gain_map for data in bitstreams]
    options = {"region_strides": config.region_strides, "pool_stride": config.pool_stride}
    return torch.stack([map_strides(gain_map, grid, **options) for gain_map in maps])


__all__ = ["MAX_DIFFERENCE", "ImageFeatures", "attach_vision_tower", "image_features", "llava_next_processor"]
