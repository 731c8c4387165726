"""Llama that pools visual tokens at the input of one of its layers."""

import torch
from transformers import Cache, DynamicCache, LlamaModel
from transformers.cache_utils import DynamicLayer, QuantizedLayer, StaticLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_llavolta import LlavoltaTextConfig
from .pooling_llavolta import TokenGroups


class LlavoltaTextModel(LlamaModel):
    """Llama whose layers from `pool_layer` on see one token for every `pool_stride` visual tokens.

    tokens -> layers 0..K-1 -> mean of each group -> layers K.. -> norm -> every token gets its group's state

    No parameters of its own. Inputs and `last_hidden_state` have the length of the unpooled sequence, so that labels,
    attention masks, positions and `generate` need not know; from layer K on the cache and the recorded hidden states
    and attentions have fewer tokens.
    """

    config: LlavoltaTextConfig

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        pooling_offsets: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """As Llama, with groups of tokens to pool.

        Args:
            attention_mask: 2-D, in the frame of the unpooled sequence; or what `causal_masks` returned.
            pooling_offsets: Shape `(batch, sequence)`: how far back the first token of one's group lies, 0 for tokens
                that stay alone. No groups by default.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is given, or mask or cache do not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(hidden_states.shape[1], device=hidden_states.device) + past_length)[None]
        pools = self.config.pools_inside and pooling_offsets is not None
        groups = TokenGroups.from_offsets(pooling_offsets) if pools else None
        if not isinstance(attention_mask, dict):
            attention_mask = self.causal_masks(hidden_states, attention_mask, past_key_values, position_ids, groups)

        num_unpooled = self.config.pool_layer if self.config.pools_inside else len(self.layers)
        kwargs |= {"past_key_values": past_key_values, "use_cache": use_cache}
        rotary = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers[:num_unpooled]:
            hidden_states = layer(
                hidden_states,
                attention_mask=attention_mask["unpooled"],
                position_embeddings=rotary,
                position_ids=position_ids,
                **kwargs,
            )
        if groups is not None:
            hidden_states = groups.mean(hidden_states)
            rotary = self.rotary_emb(hidden_states, position_ids=groups.floor_mean(position_ids))
            if past_key_values is not None:
                past_key_values.pooled_until = int(past_key_values.get_seq_length()) - groups.num_behind()
        if self.config.pools_inside and hidden_states.shape[1] > 1:
            hidden_states = hidden_states * attention_mask["is_token"][..., None]
        for layer in self.layers[num_unpooled:]:
            # No `position_ids`: their gaps would be taken for the borders of packed sequences.
            mask = attention_mask["pooled"]
            hidden_states = layer(hidden_states, attention_mask=mask, position_embeddings=rotary, **kwargs)
        hidden_states = self.norm(hidden_states)
        hidden_states = hidden_states if groups is None else groups.spread(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def causal_masks(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None = None,
        groups: TokenGroups | None = None,
    ) -> dict[str, torch.Tensor | None]:
        """The masks of the layers before and behind `pool_layer`, as the attention implementation wants them.

        Args:
            inputs_embeds: Shape `(batch, sequence, width)`; only its shape, type and device are read.
            attention_mask: 2-D, `(batch, past + sequence)`, of the unpooled sequence; `None` for all ones.
            past_key_values: The cache, where there is one.
            position_ids: Positions of the tokens.
            groups: The groups that these tokens are pooled by.
        """
        unpooled = create_causal_mask(
            self.config, inputs_embeds, attention_mask, past_key_values, position_ids, layer_idx=0
        )
        if not self.config.pools_inside:
            return {"unpooled": unpooled}
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(
                "A language model that pools tokens needs a 2-D `attention_mask`, got one of "
                f"{attention_mask.dim()} dimensions."
            )
        mask, new_mask = _pooled_attention_mask(
            attention_mask, inputs_embeds, past_key_values, groups, layer=self.config.pool_layer
        )
        pooled_embeds = inputs_embeds if groups is None else inputs_embeds.new_empty(*groups.count.shape, 0)
        pooled = create_causal_mask(
            self.config, pooled_embeds, mask, past_key_values, layer_idx=self.config.pool_layer
        )
        return {"unpooled": unpooled, "pooled": pooled, "is_token": new_mask}


def _pooled_attention_mask(
    attention_mask: torch.Tensor | None,
    inputs_embeds: torch.Tensor,
    cache: Cache | None,
    groups: TokenGroups | None,
    *,
    layer: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which columns may be attended to behind the pooling: all, `(batch, columns)`, and the new ones alone.

    Rows that lost different numbers of tokens have columns without a token. Their states are set to zero before layer
    `layer`, so its cached keys are zero and tell them, however rows were reordered, repeated or selected since.
    """
    batch, length = inputs_embeds.shape[:2]
    past = 0 if cache is None else int(cache.get_seq_length())
    if attention_mask is None:
        attention_mask = torch.ones(batch, past + length, dtype=torch.bool, device=inputs_embeds.device)
    if attention_mask.shape[1] < past + length:
        raise ValueError(
            f"`attention_mask` has {attention_mask.shape[1]} columns, but there are {past} tokens in the cache and "
            f"{length} new ones. It covers both."
        )
    attention_mask = attention_mask.bool()
    new = attention_mask[:, past : past + length]
    new = new if groups is None else groups.mask(new)
    if cache is not None and not past:
        cache.pooled_until = 0
    if not past:
        return new, new
    keys, pooled_until = _cached_keys(cache, layer), getattr(cache, "pooled_until", 0)
    if len(keys) != batch or past < pooled_until:
        raise ValueError(
            f"The cache has {len(keys)} rows and {past} tokens, where {batch} rows and at least {pooled_until} "
            "tokens, up to the last image, are needed. Crop it behind images only, and keep its rows."
        )
    before = (keys != 0).any(dim=3).any(dim=1)
    if before.shape[1] == past:
        before = before & attention_mask[:, :past]
    return torch.cat([before, new], dim=1), new


def _cached_keys(cache: Cache, layer: int) -> torch.Tensor:
    """Keys of the tokens that a layer has seen, `(batch, heads, tokens, width)`."""
    cached = cache.layers[layer]
    if not isinstance(cached, DynamicLayer | StaticLayer) or isinstance(cached, QuantizedLayer):
        raise ValueError(
            f"Pooled tokens need a dynamic or static cache, got layers of {type(cached).__name__}. Leave out "
            "`cache_implementation`."
        )
    return cached.keys[:, :, : int(cached.get_seq_length())]


__all__ = ["LlavoltaTextModel"]
