"""What pooling visual tokens saves: prefill time, cache, and training time of a Llama against layer and stride."""

import time
from functools import partial
from typing import Any

import torch
from transformers import Cache, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

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


class PooledPrompt:
    """One prompt with one image, run at any setting.

    Args:
        llava: With random weights.
        visual_tokens: Of the image, between the two halves of the text.
        text_tokens: In training those behind the image are labels.
    """

    def __init__(self, llava: LlavoltaForConditionalGeneration, *, visual_tokens: int, text_tokens: int) -> None:
        config, half = llava.config.text_config, text_tokens // 2
        self.llava = llava
        self.image = torch.randn(visual_tokens, config.hidden_size)
        text = torch.randint(3, config.vocab_size - 1, (1, text_tokens))
        placeholders = torch.full((1, visual_tokens), llava.config.image_token_id)
        self.input_ids = torch.cat([text[:, :half], placeholders, text[:, half:]], dim=1)
        self.labels = self.input_ids.clone()
        self.labels[:, : half + visual_tokens] = -100

    @torch.no_grad()
    def prefill(self, setting: tuple[int, int]) -> Cache:
        """Reads the prompt as generation does; returns the cache."""
        return self._run(setting, use_cache=True, logits_to_keep=1).past_key_values

    def train(self, setting: tuple[int, int]) -> None:
        """Forward and backward pass."""
        self._run(setting, labels=self.labels, use_cache=False).loss.backward()
        self.llava.zero_grad()

    def _run(self, setting: tuple[int, int], **options: Any) -> ModelOutput:
        self.llava.set_visual_pooling(*setting)
        features = BaseModelOutputWithPooling(pooler_output=[self.image])
        return self.llava(input_ids=self.input_ids, mm_encoder_outputs={"image": features}, **options)


def measure_pooling(
    llava: LlavoltaForConditionalGeneration,
    settings: list[tuple[int, int]],
    *,
    visual_tokens: int,
    text_tokens: int,
    repeats: int,
) -> dict[str, Any]:
    """Times and cache sizes of one prompt, side by side.

    Args:
        llava: With random weights.
        settings: Pairs of layer and stride; the first is what the others are compared with.
        visual_tokens, text_tokens: As in [`PooledPrompt`].
        repeats: Counted rounds; a round runs all settings.

    Returns:
        Sizes, and for each setting: compression ratio by the formula, cache in bytes, seconds of a prefill and of a
        training step (forward and backward), and how many times faster than the first they are.
    """
    config = llava.config.text_config
    prompt = PooledPrompt(llava, visual_tokens=visual_tokens, text_tokens=text_tokens)
    tasks = {f"prefill {setting}": partial(prompt.prefill, setting) for setting in settings}
    tasks |= {f"train {setting}": partial(prompt.train, setting) for setting in settings}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = interleaved_medians(tasks, repeats=repeats, clock=clock)
    sizes, rows = (config.num_hidden_layers, visual_tokens), []
    for setting in settings:
        pooling = {"pool_layer": setting[0], "pool_stride": setting[1]}
        prefill, training = seconds[f"prefill {setting}"], seconds[f"train {setting}"]
        rows.append(
            {
                **pooling,
                "compression_ratio": compression_ratio(*sizes, **pooling),
                "token_layers_ratio": compression_ratio(*sizes, **pooling, text_tokens=text_tokens),
                "cache_bytes": _cache_bytes(prompt.prefill(setting)),
                "prefill_seconds": prefill,
                "prefill_speedup": seconds[f"prefill {settings[0]}"] / prefill,
                "training_seconds": training,
                "training_speedup": seconds[f"train {settings[0]}"] / training,
            }
        )
    return {
        "parameters": sum(parameter.numel() for parameter in llava.model.language_model.parameters()),
        "layers": config.num_hidden_layers,
        "visual_tokens": visual_tokens,
        "text_tokens": text_tokens,
        "dtype": str(llava.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "settings": rows,
    }


def _cache_bytes(cache: Cache) -> int:
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))


__all__ = ["PooledPrompt", "measure_pooling", "random_llava"]
