"""ELIC configuration."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...coding.gain_map import GAINS_PER_OCTAVE, MAX_GAIN, MIN_GAIN
from ..hub_code import HubCode


@strict
class ElicConfig(HubCode, PreTrainedConfig):
    r"""Configuration of [`ElicModel`], the ELIC image codec as ComNeck uses it (33,792,771 parameters by default).

    hidden_channels (`int`, *optional*, defaults to 192):
        Channels N of the transforms and of the hyper-latents. Even.
    latent_channels (`int`, *optional*, defaults to 320):
        Channels M of the latents `y`. Even, and the sum of `group_channels`.
    group_channels (`list[int]`, *optional*, defaults to `[16, 16, 32, 64, 192]`):
        Channel groups in coding order (ELIC, section 3.2).
    context_channels (`list[int]`, *optional*, defaults to `[224, 128]`):
        Widths of the two hidden layers of each channel context network.
    aggregation_channels (`list[int]`, *optional*, defaults to `[640, 512]`):
        Widths of the two hidden layers of each parameter aggregation network.
    kernel_size (`int`, *optional*, defaults to 5):
        Kernel of the strided and of the context convolutions. Odd.
    initializer_scale (`float`, *optional*, defaults to 10.0):
        Initial width of the factorized prior, in quantization steps.
    coding_table_size (`int`, *optional*, defaults to 1):
        Entries of the integer CDF tables. Written when the tables are derived; not to be set by hand.
    lmbda (`float`, *optional*):
        Rate-distortion trade-off this codec was trained for, on `255^2 * MSE + bpp`.
    quality (`int`, *optional*):
        Operating point, 1 (smallest files) to 4.
    build_analysis (`bool`, *optional*, defaults to `True`):
        Build `g_a` and `h_a`. A server that only decodes needs neither.
    build_synthesis (`bool`, *optional*, defaults to `True`):
        Build `g_s`. A server that never shows pictures, or an edge device, does not need it.
    build_entropy_networks (`bool`, *optional*, defaults to `True`):
        Build the float `h_s`, contexts and aggregations, half of the codec. Only training and float estimates need
        them: coding has their integer twins.
    max_pixels (`int`, *optional*, defaults to 16777216):
        Largest picture (padded height times width) that a bitstream may announce.
    gain_levels (`int`, *optional*, defaults to 0):
        Gains for which `g_a` and `g_s` have learned channel vectors (CoTAM's variable-rate codec), 2 or more; 0 for
        transforms that do not follow the gain.
    gain_level_range (`list[float]`, *optional*, defaults to `[-1.5, 1.0]`):
        Gains of the first and of the last level in octaves, within -8 and 5.
    """

    model_type = "elic"
    base_config_key = "codec_config"

    hidden_channels: int = 192
    latent_channels: int = 320
    group_channels: list[int] | tuple[int, ...] = (16, 16, 32, 64, 192)
    context_channels: list[int] | tuple[int, ...] = (224, 128)
    aggregation_channels: list[int] | tuple[int, ...] = (640, 512)
    kernel_size: int = 5
    initializer_scale: float = 10.0
    coding_table_size: int = 1
    lmbda: float | None = None
    quality: int | None = None
    build_analysis: bool = True
    build_synthesis: bool = True
    build_entropy_networks: bool = True
    max_pixels: int = 1 << 24
    gain_levels: int = 0
    gain_level_range: list[float | int] | tuple[float | int, ...] = (-1.5, 1.0)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers does it, but for codecs of this type only: others have other transforms.

        Raises:
            ValueError: If the dictionary is that of another type of model.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"`{cls.__name__}` describes {cls.model_type!r} codecs, but this is the configuration of a {found!r} "
                "model. `AutoModel.from_pretrained` loads each with its own class."
            )
        return super().from_dict(config_dict, **kwargs)

    def validate_channels(self) -> None:
        """Refuses widths that ELIC cannot be built with."""
        if sum(self.group_channels) != self.latent_channels:
            raise ValueError(
                f"`group_channels` {list(self.group_channels)} sum to {sum(self.group_channels)}, but "
                f"`latent_channels` is {self.latent_channels}. They must agree."
            )
        for name in ("hidden_channels", "latent_channels"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise ValueError(f"`{name}` must be an even number of at least 2, got {getattr(self, name)}.")
        if len(self.context_channels) != 2 or len(self.aggregation_channels) != 2:
            raise ValueError(
                "`context_channels` and `aggregation_channels` take two widths each, got "
                f"{list(self.context_channels)} and {list(self.aggregation_channels)}."
            )
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd and at least 3, got {self.kernel_size}.")
        if self.quality is not None and self.quality not in (1, 2, 3, 4):
            raise ValueError(f"`quality` must be 1, 2, 3 or 4, got {self.quality}.")

    def validate_gain_levels(self) -> None:
        """Refuses levels between which no gain lies, or that no bitstream reaches."""
        if self.gain_levels < 0 or self.gain_levels == 1:
            raise ValueError(f"`gain_levels` must be 0, or 2 or more, got {self.gain_levels}.")
        limits = (MIN_GAIN / GAINS_PER_OCTAVE, MAX_GAIN / GAINS_PER_OCTAVE)
        ends = list(self.gain_level_range)
        if len(ends) != 2 or not limits[0] <= ends[0] < ends[1] <= limits[1]:
            raise ValueError(
                f"`gain_level_range` must be the lowest and the highest gain, within {limits[0]:g} and {limits[1]:g} "
                f"octaves, got {ends}."
            )

    @property
    def downsampling_factor(self) -> int:
        """Pixels per latent position along each side."""
        return 16

    @property
    def has_gains(self) -> bool:
        """Whether pictures can be coded finer and coarser than trained, everywhere or by region."""
        return True

    @property
    def size_divisor(self) -> int:
        """Picture sides are padded to a multiple of this."""
        return 64


__all__ = ["ElicConfig"]
