"""The transform-neck: codec latents to the hidden states of a CLIP layer."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention

from ..codec_vision_config import DOWNSAMPLING_FACTOR, LatentVisionConfig


LAYER_NORM_EPS = 1e-5


class TransformNeckLayer(GradientCheckpointingLayer):
    """One pre-norm transformer block with QuickGELU.

    It shares attention and MLP with CLIP's layers, but is a class of its own: transformers records the hidden states
    of every `CLIPEncoderLayer`, and the neck is not one of the tower's layers.
    """

    def __init__(self, config: LatentVisionConfig) -> None:
        super().__init__()
        neck_config = copy.copy(config)
        neck_config.num_attention_heads = config.neck_num_attention_heads or config.num_attention_heads
        neck_config.intermediate_size = config.neck_intermediate_size or config.intermediate_size
        neck_config.hidden_act = "quick_gelu"
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.self_attn = CLIPAttention(neck_config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.mlp = CLIPMLP(neck_config)
        # The attention implementation is read from here at every call, and may be changed on the model's config.
        self.self_attn.config = config

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to the same shape."""
        attention_output, _ = self.self_attn(self.layer_norm1(hidden_states))
        hidden_states = hidden_states + attention_output
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class TransformNeck(nn.Module):
    """Latents to tokens: linear map, class token, positions, layer norm, one transformer block.

    latents -> projection -> [class token, tokens] + positions -> pre_layer_norm -> layer -> tokens

    13,191,168 parameters for ELIC latents and CLIP ViT-L/14. The tokens stand for the input of CLIP layer
    `num_skipped_layers` (counted from 0): class token first, then the latent positions row by row.

    CoTAM's adapter is one, too: its tokens are added to those of the decoded picture. It is gated, which means that
    they are multiplied by a learned number that starts at 0.
    """

    def __init__(self, config: LatentVisionConfig) -> None:
        super().__init__()
        self.latent_channels = config.latent_channels
        self.latent_grid = config.latent_grid
        num_positions = self.latent_grid[0] * self.latent_grid[1] + 1
        self.projection = nn.Linear(config.latent_channels, config.hidden_size)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.position_embedding = nn.Parameter(torch.empty(num_positions, config.hidden_size))
        self.pre_layer_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.layer = TransformNeckLayer(config)
        self.gate = nn.Parameter(torch.empty(())) if config.reads_pictures else None
        self.init_weights()

    def forward(self, latents: torch.Tensor, *, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Tokens for the CLIP layer behind the neck.

        Args:
            latents: Shape `(batch, latent_channels, height, width)`, quantized, any floating type.
            interpolate_pos_encoding: Accept grids other than `latent_grid`, with positions interpolated.

        Returns:
            Shape `(batch, 1 + height * width, hidden_size)`.

        Raises:
            ValueError: If the channels or the grid are not the neck's.
        """
        if latents.dim() != 4 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"`latents` must have shape (batch, {self.latent_channels}, height, width), got "
                f"{tuple(latents.shape)}. They come from a codec's `encode(...).latents` or `decompress`."
            )
        positions = self._positions(latents.shape[2], latents.shape[3], interpolate_pos_encoding)
        tokens = self.projection(latents.to(self.class_embedding.dtype).flatten(2).transpose(1, 2))
        class_token = self.class_embedding.expand(tokens.shape[0], 1, -1)
        tokens = torch.cat([class_token, tokens], dim=1) + positions
        tokens = self.layer(self.pre_layer_norm(tokens))
        return tokens if self.gate is None else self.gate * tokens

    def _positions(self, height: int, width: int, interpolate: bool) -> torch.Tensor:
        expected = self.latent_grid
        if (height, width) == expected:
            return self.position_embedding
        if not interpolate:
            raise ValueError(
                f"Latents are {height}x{width}, but this neck was built for {expected[0]}x{expected[1]} (pictures of "
                f"{DOWNSAMPLING_FACTOR * expected[0]}x{DOWNSAMPLING_FACTOR * expected[1]} pixels). Resize with "
                "`ComNeckImageProcessor`, or pass `interpolate_pos_encoding=True`."
            )
        grid = self.position_embedding[1:].T.unflatten(1, expected)[None]
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([self.position_embedding[:1], grid[0].flatten(1).T])

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws all weights as the authors' code does; leaves those that were loaded from a checkpoint.

        Behind a gate, which starts at 0, both branches of the layer start at 0 as well.
        """
        width = self.class_embedding.shape[0]
        init.normal_(self.class_embedding, std=width**-0.5)
        init.normal_(self.position_embedding, std=width**-0.5)
        for linear in (self.projection, self.layer.mlp.fc1, self.layer.mlp.fc2):
            init.kaiming_uniform_(linear.weight, a=5**0.5)
            init.uniform_(linear.bias, -(linear.in_features**-0.5), linear.in_features**-0.5)
        attention = self.layer.self_attn
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            # Xavier's bound for the three as one matrix of 3 * width rows, as torch's MultiheadAttention holds them
            init.uniform_(linear.weight, -((1.5 / width) ** 0.5), (1.5 / width) ** 0.5)
            init.zeros_(linear.bias)
        init.kaiming_uniform_(attention.out_proj.weight, a=5**0.5)
        init.zeros_(attention.out_proj.bias)
        for norm in (self.pre_layer_norm, self.layer.layer_norm1, self.layer.layer_norm2):
            init.ones_(norm.weight)
            init.zeros_(norm.bias)
        if self.gate is not None:
            for parameter in (
                self.gate,
                attention.out_proj.weight,
                self.layer.mlp.fc2.weight,
                self.layer.mlp.fc2.bias,
            ):
                init.zeros_(parameter)


__all__ = ["TransformNeck", "TransformNeckLayer"]
