"""Writes the golden bitstreams of a new bitstream version; those of older versions are never written again.

python tests/data/make_golden.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from comneck_hf.coding.bitstream import BITSTREAM_VERSION
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.initialization import init_transforms_from_images


FOLDER = Path(__file__).parent / "golden" / f"v{BITSTREAM_VERSION}"
SIZES = {"square": (64, 64), "padded": (100, 70), "wide": (64, 192), "one_pixel": (1, 1)}


def main() -> None:
    if FOLDER.exists():
        raise SystemExit(f"{FOLDER} exists. Golden files pin a version for good: raise BITSTREAM_VERSION instead.")
    torch.manual_seed(0)
    config = ElicConfig(
        hidden_channels=8,
        latent_channels=12,
        group_channels=[1, 1, 2, 3, 5],
        context_channels=[6, 4],
        aggregation_channels=[12, 10],
    )
    codec = ElicModel(config).eval()
    pictures = synthetic_pictures(192, 4)
    init_transforms_from_images(codec, pictures, lmbda=0.03)
    codec.calibrate(pictures)
    codec.save_pretrained(FOLDER / "codec")
    for picture, (name, (height, width)) in zip(pictures, SIZES.items(), strict=True):
        (bitstream,) = codec.compress(picture[None, :, :height, :width])
        (FOLDER / f"{name}.cnk").write_bytes(bitstream)
        latents = codec.decompress([bitstream])
        encoded, _ = codec._encode_exact(picture[None, :, :height, :width])
        save_file({"latents": latents, "symbols": encoded.symbols}, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main()
