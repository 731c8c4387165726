"""Writes the golden bitstreams of a new bitstream version; those of older versions are never written again.

Version 1 (plain streams) and its codec were written by the release that introduced it; this writes version 2.

python tests/data/make_golden.py
"""

from pathlib import Path

from safetensors.torch import save_file

from comneck_hf.coding.bitstream import BITSTREAM_VERSION, Bitstream
from comneck_hf.coding.gain_map import GainMap
from comneck_hf.models.elic.gains_elic import gain_grid
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures


FOLDER = Path(__file__).parent / "golden" / f"v{BITSTREAM_VERSION}"
STRIPES = GainMap(((-1, 0, 1), (1, 1, -1)), step=3)
FINE = GainMap(tuple(tuple((row * column) % 7 - 3 for column in range(12)) for row in range(4)), step=1, levels=7)
CASES = (
    ("finer", (64, 64), {"gain": 1.25}),
    ("coarser_with_map", (100, 70), {"gain": -0.7, "gain_maps": STRIPES}),
    ("map", (64, 192), {"gain_maps": FINE}),
    ("finest", (1, 1), {"gain": 5}),
)


def main() -> None:
    if FOLDER.exists():
        raise SystemExit(f"{FOLDER} exists. Golden files pin a version for good: raise BITSTREAM_VERSION instead.")
    codec = ElicModel.from_pretrained(FOLDER.parent / "v1" / "codec").eval()
    FOLDER.mkdir()
    for picture, (name, (height, width), options) in zip(synthetic_pictures(192, 4), CASES, strict=True):
        pixel_values = picture[None, :, :height, :width]
        (bitstream,) = codec.compress(pixel_values, **options)
        (FOLDER / f"{name}.cnk").write_bytes(bitstream)
        y, z_symbols = codec._analyse(pixel_values)
        header = Bitstream.parse(bitstream)
        gains = gain_grid([header.gain], [header.gain_map], *y.shape[2:], y.device)
        encoded = codec.exact.encode(y, z_symbols, gains)
        save_file(
            {"latents": codec.decompress([bitstream]), "symbols": encoded.symbols}, FOLDER / f"{name}.safetensors"
        )


if __name__ == "__main__":
    main()
