"""ComNeck as the vision tower of a LLaVA that was trained on pixels."""

import copy
import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, LlavaNextImageProcessor, LlavaNextProcessor, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..auto import forget_weight_conversions
from ..models.codec_vision import CodecVisionModel, LatentVisionModel
from ..models.codec_vision_config import CodecVisionConfig


MAX_DIFFERENCE = 0.004  # relative, in the Euclidean norm: rounding to bfloat16 alone makes 0.0017
OWN_WEIGHTS = ("neck.", "adapter.")  # of our towers; the rest is CLIP's
_COMPARED = ("self_attn.q_proj.weight", "self_attn.out_proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def attach_vision_tower(
    llava: PreTrainedModel, tower: str | os.PathLike | CodecVisionModel | LatentVisionModel, *, force: bool = False
) -> PreTrainedModel:
    """Swaps the CLIP tower of a loaded LLaVA for ComNeck's or CoTAM's; projector and language model stay as they are.

    The LLaVA's own CLIP layers are kept, codec and neck or adapter come from `tower`. Afterwards the model takes
    latents in `pixel_values`, and pictures if the tower has a codec; it saves and loads like any LLaVA, and a frozen
    tower stays frozen. Its processor is `ComNeckProcessor.for_llava(llava, old_processor)`, of LLaVA-NeXT
    `llava_next_processor(llava, old_processor)`.

    Args:
        llava: A LLaVA, LLaVA-NeXT, ViP-LLaVA or another model with a CLIP in `vision_tower`; changed in place.
        tower: Folder or Hub id of a ComNeck or CoTAM, or the model, which is copied; a `ComNeckVisionModel` takes
            latents only.
        force: Attach a neck or adapter that was trained for another CLIP of the same shape.

    Returns:
        `llava`.

    Raises:
        ValueError: If the model has no CLIP tower, or the neck was trained for another CLIP.
    """
    llava = _without_adapters(llava)
    base = llava.base_model
    old = getattr(base, "vision_tower", None)
    clip = old.vision_model if isinstance(old, CodecVisionModel) else old
    if not hasattr(clip, "encoder") or not hasattr(clip, "post_layernorm"):
        raise ValueError(
            f"{type(llava).__name__} has no CLIP in `vision_tower`, but {type(old).__name__}. A ComNeck tower "
            "replaces a CLIP vision tower."
        )
    tower = copy.deepcopy(tower) if isinstance(tower, PreTrainedModel) else AutoModel.from_pretrained(tower)
    if not isinstance(tower, CodecVisionModel | LatentVisionModel):
        raise ValueError(
            f"The tower must be a `ComNeckModel`, `ComNeckVisionModel` or `CotamModel`, got {type(tower).__name__}."
        )
    vision_model = tower.vision_model if isinstance(tower, CodecVisionModel) else tower
    if vision_model is tower and tower.config.reads_pictures:
        raise ValueError("A `CotamVisionModel` reads decoded pictures beside latents. Attach the whole `CotamModel`.")
    _check_clip(vision_model, clip, force=force)
    _check_layers(llava, vision_model)

    parameter = next(clip.parameters())
    tower.to(device=parameter.device, dtype=parameter.dtype).train(old.training)
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
    base.vision_tower = tower
    _set_config(llava, tower, vision_model)
    forget_weight_conversions(llava)
    return llava


def _check_clip(vision_model: LatentVisionModel, clip: nn.Module, *, force: bool) -> None:
    """Compares a few weights of the layers that both have."""
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
                f"The neck was trained for another CLIP: {name} differs by {100 * difference:.2g} % (at most "
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


def _set_config(llava: PreTrainedModel, tower: PreTrainedModel, vision_model: LatentVisionModel) -> None:
    config, old_size = llava.config, llava.config.vision_config.image_size
    height, width = vision_model.config.latent_grid
    config.vision_config = tower.config
    if hasattr(config, "image_seq_length"):
        keeps_class_token = getattr(config, "vision_feature_select_strategy", "default") == "full"
        config.image_seq_length = height * width + keeps_class_token
    if getattr(config, "image_grid_pinpoints", None):
        size = tower.config.image_size
        config.image_grid_pinpoints = [
            [side // old_size * size for side in point] for point in config.image_grid_pinpoints
        ]


def llava_next_processor(llava: PreTrainedModel, processor: LlavaNextProcessor) -> LlavaNextProcessor:
    """The processor of a LLaVA-NeXT with a ComNeck tower: tiles of the tower's size, not normalized.

    Its `pixel_values`, `(images, tiles, 3, height, width)`, may be replaced by the latents of the tiles.

    Args:
        llava: With the tower attached.
        processor: The one it had.
    """
    config, tower = llava.config, llava.config.vision_config
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
    return LlavaNextProcessor(
        pictures,
        processor.tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=1,
    )


def _without_adapters(llava: PreTrainedModel) -> PreTrainedModel:
    """The model inside PEFT's wrapper."""
    return llava if isinstance(llava, PreTrainedModel) else llava.get_base_model()


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
) -> ImageFeatures:
    """What the language model will read for images, computed apart from it.

    Args:
        llava: A LLaVA; with a ComNeck tower it takes latents and bitstreams, too.
        pixel_values: Pictures as its processor makes them, or latents of shape `(images, channels, height, width)`.
        bitstreams: Instead of `pixel_values`.
        image_sizes: Of LLaVA-NeXT's pictures, `(images, 2)`.

    Raises:
        ValueError: If none or both inputs are given, or the tower has no codec for bitstreams.
    """
    if (pixel_values is None) == (bitstreams is None):
        raise ValueError("Pass exactly one of `pixel_values` and `bitstreams`.")
    llava = _without_adapters(llava)
    base = llava.base_model
    if bitstreams is not None:
        if not isinstance(llava.config.vision_config, CodecVisionConfig):
            raise ValueError(
                "Bitstreams need a `ComNeckModel` or `CotamModel` in `vision_tower`; attach one, or decompress "
                "them first."
            )
        pixel_values = base.vision_tower.decompress(bitstreams)
        if isinstance(pixel_values, list):
            sizes = sorted({tuple(latents.shape[1:]) for latents in pixel_values})
            raise ValueError(f"The bitstreams have latents of different sizes, {sizes}. Crop the pictures first.")
    if image_sizes is None and hasattr(llava.config, "image_grid_pinpoints"):
        raise ValueError("LLaVA-NeXT needs `image_sizes`, the height and width of each picture before it was cut.")
    options = {} if image_sizes is None else {"image_sizes": image_sizes}
    outputs = base.get_image_features(pixel_values.to(llava.device), return_dict=True, **options)
    dtype = llava.get_input_embeddings().weight.dtype
    are_stacked = isinstance(outputs.pooler_output, torch.Tensor)
    return ImageFeatures([image.to(dtype) for image in outputs.pooler_output], are_stacked)


__all__ = ["MAX_DIFFERENCE", "ImageFeatures", "attach_vision_tower", "image_features", "llava_next_processor"]
