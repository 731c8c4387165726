"""TIC configuration."""

from huggingface_hub.dataclasses import strict

from ..elic.configuration_elic import ElicConfig


@strict
class TicConfig(ElicConfig):
    r"""Configuration of [`TicModel`], the TIC image codec with ELIC's entropy model.

    Fields that are not listed here are [`ElicConfig`]'s and belong to the entropy model, to `h_a`, or to loading. The
    widths of its networks are ELIC's times 0.6, as 192 latent channels are to ELIC's 320. The four entries of
    `depths`, `num_heads` and `window_sizes` are those of the feature maps at 1/2, 1/4, 1/8 and 1/16 of the picture's
    size.

    hidden_channels (`int`, *optional*, defaults to 128):
        Channels N of the transforms and of the hyper-latents. Even, and a multiple of the first three `num_heads`.
    latent_channels (`int`, *optional*, defaults to 192):
        Channels M of the latents `y`. Even, the sum of `group_channels`, and a multiple of the last of `num_heads`.
    group_channels (`list[int]`, *optional*, defaults to `[8, 8, 16, 40, 120]`):
        Channel groups in coding order.
    context_channels (`list[int]`, *optional*, defaults to `[136, 80]`):
        Widths of the two hidden layers of each channel context network.
    aggregation_channels (`list[int]`, *optional*, defaults to `[384, 304]`):
        Widths of the two hidden layers of each parameter aggregation network.
    kernel_size (`int`, *optional*, defaults to 5):
        Kernel of the convolutions next to the picture, of `h_a` and of the entropy model. Odd. Between the Swin blocks
        kernels are 3x3.
    depths (`list[int]`, *optional*, defaults to `[2, 4, 6, 2]`):
        Attention layers of each residual Swin block.
    num_heads (`list[int]`, *optional*, defaults to `[8, 8, 8, 16]`):
        Attention heads of each block.
    window_sizes (`list[int]`, *optional*, defaults to `[8, 8, 8, 4]`):
        Height and width of each block's windows. The defaults divide all feature maps, since pictures are padded to
        multiples of 64; with others the windows at the edges hold fewer positions.
    mlp_ratio (`float`, *optional*, defaults to 2.0):
        Width of the MLPs' hidden layers, in widths of their block.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the initial weights of linear layers and position biases.
    """

    model_type = "tic"

    hidden_channels: int = 128
    latent_channels: int = 192
    group_channels: list[int] | tuple[int, ...] = (8, 8, 16, 40, 120)
    context_channels: list[int] | tuple[int, ...] = (136, 80)
    aggregation_channels: list[int] | tuple[int, ...] = (384, 304)
    depths: list[int] | tuple[int, ...] = (2, 4, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (8, 8, 8, 16)
    window_sizes: list[int] | tuple[int, ...] = (8, 8, 8, 4)
    mlp_ratio: float = 2.0
    initializer_range: float = 0.02

    def validate_blocks(self) -> None:
        """Refuses Swin blocks that cannot be built."""
        for name, least in (("depths", 1), ("num_heads", 1), ("window_sizes", 2)):
            values = list(getattr(self, name))
            if len(values) != 4 or min(values) < least:
                raise ValueError(
                    f"`{name}` must be four numbers of at least {least}, for the feature maps at 1/2, 1/4, 1/8 and "
                    f"1/16 of the picture's size, got {values}."
                )
        for stage, (width, heads) in enumerate(zip(self.block_channels, self.num_heads, strict=True)):
            if width % heads:
                raise ValueError(
                    f"`num_heads` {list(self.num_heads)}: the {heads} heads of entry {stage} do not divide its "
                    f"{width} channels. Choose a divisor, or another `hidden_channels` or `latent_channels`."
                )
        if min(self.mlp_ratio * width for width in self.block_channels) < 1:
            raise ValueError(f"`mlp_ratio` must leave the MLPs a hidden layer, got {self.mlp_ratio}. TIC has 2.0.")

    @property
    def block_channels(self) -> tuple[int, int, int, int]:
        """Widths of the blocks at 1/2, 1/4, 1/8 and 1/16 of the picture's size."""
        return (self.hidden_channels, self.hidden_channels, self.hidden_channels, self.latent_channels)


__all__ = ["TicConfig"]
