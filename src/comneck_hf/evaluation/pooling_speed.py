"""What pooling visual tokens saves: prefill time, cache, and training time of a Llama against layer and stride."""

import time
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..models.llavolta.configuration_llavolta import LlavoltaConfig
from ..models.llavolta.modeling_llavolta import LlavoltaForConditionalGeneration
from ..models.llavolta.pooling_llavolta import compression_ratio
from .benchmark import interleaved_medians


def random_llava(text_config: LlamaConfig) -> LlavoltaForConditionalGeneration:
    """A LLaVA with random weights whose tower is as small as can be: it is not measured."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=28, patch_size=14),
        text_config=text_config,
        image_token_index=text_config.vocab_size - 1,
        vision_feature_layer=-1,
    )
    return LlavoltaForConditionalGeneration(LlavoltaConfig(**config.to_dict()))


def measure_pooling(
    llava: LlavoltaForConditionalGeneration,
    settings: list[tuple[int, int]],
    *,
    visual_tokens: int,
    text_tokens: int,
    repeats: int,
) -> dict[str, Any]:
    """Times and cache sizes of one prompt with one image, side by side.

    Args:
        llava: With random weights.
        settings: Pairs of layer and stride; the first is what the others are compared with.
        visual_tokens: Of the image.
        text_tokens: Half of them before, half behind it; in training those behind are labels.
        repeats: Counted rounds; a round runs all settings.

    Returns:
        Sizes, and for each setting: compression ratio by the formula, cache in bytes, seconds of a prefill and of a
        training step (forward and backward), and their ratios to the first.
    """
    config = llava.config.text_config
    image = torch.randn(visual_tokens, config.hidden_size)
    half = text_tokens // 2
    text = torch.randint(3, config.vocab_size - 1, (1, text_tokens))
    placeholders = torch.full((1, visual_tokens), llava.config.image_token_id)
    input_ids = torch.cat([text[:, :half], placeholders, text[:, half:]], dim=1)
    labels = input_ids.clone()
    labels[:, : half + visual_tokens] = -100

    def inputs() -> dict[str, Any]:
        return {
            "input_ids": input_ids,
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=[image])},
        }

    def prefill(layer: int, stride: int) -> Any:
        llava.set_visual_pooling(layer, stride)
        with torch.no_grad():
            return llava(**inputs(), use_cache=True, logits_to_keep=1)

    def train(layer: int, stride: int) -> None:
        llava.set_visual_pooling(layer, stride)
        llava(**inputs(), labels=labels, use_cache=False).loss.backward()
        llava.zero_grad()

    names = {setting: f"{setting[0]}, {setting[1]}" for setting in settings}
    tasks = {f"prefill {names[s]}": (lambda s=s: prefill(*s)) for s in settings}
    tasks |= {f"train {names[s]}": (lambda s=s: train(*s)) for s in settings}
    seconds = interleaved_medians(tasks, repeats=repeats, clock=time.process_time)
    rows, sizes = [], (config.num_hidden_layers, visual_tokens)
    for layer, stride in settings:
        name, reference = names[layer, stride], names[settings[0]]
        rows.append(
            {
                "pool_layer": layer,
                "pool_stride": stride,
                "compression_ratio": compression_ratio(*sizes, pool_layer=layer, pool_stride=stride),
                "token_layers_ratio": compression_ratio(
                    *sizes, pool_layer=layer, pool_stride=stride, text_tokens=text_tokens
                ),
                "cache_bytes": _cache_bytes(prefill(layer, stride).past_key_values),
                "prefill_seconds": seconds[f"prefill {name}"],
                "prefill_speedup": seconds[f"prefill {reference}"] / seconds[f"prefill {name}"],
                "training_seconds": seconds[f"train {name}"],
                "training_speedup": seconds[f"train {reference}"] / seconds[f"train {name}"],
            }
        )
    parameters = sum(parameter.numel() for parameter in llava.model.language_model.parameters())
    return {
        "parameters": parameters,
        "layers": config.num_hidden_layers,
        "visual_tokens": visual_tokens,
        "text_tokens": text_tokens,
        "dtype": str(llava.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "settings": rows,
    }


def _cache_bytes(cache: Any) -> int:
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))


__all__ = ["measure_pooling", "random_llava"]
