"""Configuration of the image codecs of CompressAI's zoo. CompressAI itself is not imported."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..hub_code import HubCode


# Channels of the latents at qualities 1, 2, 3, ... of each codec that CompressAI 1.2.8 builds; a test compares them.
# The zoo's variable-rate codecs code by another interface, and its `bmshj2018-factorized-relu` builds the codec
# without ReLU.
LATENT_CHANNELS = {
    "bmshj2018-factorized": (192,) * 5 + (320,) * 3,
    "bmshj2018-hyperprior": (192,) * 5 + (320,) * 3,
    "mbt2018-mean": (192,) * 4 + (320,) * 4,
    "mbt2018": (192,) * 4 + (320,) * 4,
    "cheng2020-anchor": (128,) * 3 + (192,) * 3,
    "cheng2020-attn": (128,) * 3 + (192,) * 3,
}
METRICS = ("mse", "ms-ssim")


@strict
class CompressaiConfig(HubCode, PreTrainedConfig):
    r"""Configuration of [`CompressaiModel`], an image codec of CompressAI's zoo.

    architecture (`str`, *optional*, defaults to `"mbt2018-mean"`):
        Name of the codec in CompressAI: `"bmshj2018-factorized"`, `"bmshj2018-hyperprior"`, `"mbt2018-mean"`,
        `"mbt2018"`, `"cheng2020-anchor"` or `"cheng2020-attn"`. `"mbt2018"` and the `"cheng2020"` codecs decode one
        position after the other, which takes seconds per picture.
    quality (`int`, *optional*, defaults to 4):
        CompressAI's operating point: 1 (smallest files) to 8, to 6 for the `"cheng2020"` codecs. It also sets the
        number of channels.
    metric (`str`, *optional*, defaults to `"mse"`):
        What the weights were trained for: `"mse"` or `"ms-ssim"`.
    coding_table_shapes (`dict[str, list[int]]`, *optional*):
        Shapes of CompressAI's coding tables, by name. Written when the tables are derived; not to be set by hand.
    max_pixels (`int`, *optional*, defaults to 16777216):
        Largest picture (height times width) that is encoded and that a bitstream may announce.
    """

    model_type = "compressai_wrapper"
    base_config_key = "codec_config"

    architecture: str = "mbt2018-mean"
    quality: int = 4
    metric: str = "mse"
    coding_table_shapes: dict[str, list[int]] | None = None
    max_pixels: int = 1 << 24

    def validate_codec(self) -> None:
        """Refuses codecs that CompressAI's zoo does not have."""
        if self.architecture not in LATENT_CHANNELS:
            raise ValueError(f"`architecture` must be one of {list(LATENT_CHANNELS)}, got {self.architecture!r}.")
        highest = len(LATENT_CHANNELS[self.architecture])
        if not 1 <= self.quality <= highest:
            raise ValueError(f"`quality` must be 1 to {highest} for {self.architecture!r}, got {self.quality}.")
        if self.metric not in METRICS:
            raise ValueError(f"`metric` must be one of {METRICS}, got {self.metric!r}.")
        if self.max_pixels < 1:
            raise ValueError(f"`max_pixels` must be positive, got {self.max_pixels}.")

    @property
    def latent_channels(self) -> int:
        """Channels of the latents `y`, which follow from `architecture` and `quality`."""
        return LATENT_CHANNELS[self.architecture][self.quality - 1]

    @property
    def downsampling_factor(self) -> int:
        """Pixels per latent position along each side."""
        return 16

    @property
    def build_synthesis(self) -> bool:
        """Its decoder is always there."""
        return True

    @property
    def has_gains(self) -> bool:
        """Whether pictures can be coded finer and coarser than trained: not with CompressAI's codecs."""
        return False

    @property
    def size_divisor(self) -> int:
        """Picture sides are padded to a multiple of this."""
        return 64


__all__ = ["CompressaiConfig"]
