"""`comneck decode`."""

import numpy as np
import torch
from command_inputs import only_error_line
from PIL import Image


def test_decode_writes_the_reconstruction(comneck, model, bitstream, tmp_path):
    comneck("decode", bitstream, "-o", "picture.png")
    latents = model.decompress([bitstream.read_bytes()])
    with torch.no_grad():
        expected = (model.reconstruct(latents)[0] * 255).round().to(torch.uint8)
    picture = np.array(Image.open(tmp_path / "picture.png"))
    assert np.array_equal(picture, expected.permute(1, 2, 0).numpy())
    assert picture.std() > 0


def test_decode_writes_the_format_of_the_suffix_and_refuses_to_overwrite(comneck, bitstream, tmp_path):
    comneck("decode", bitstream, "-o", "picture.webp")
    assert Image.open(tmp_path / "picture.webp").format == "WEBP"
    assert "--force" in only_error_line(comneck("decode", bitstream, "-o", "picture.webp", code=1))


def test_decode_reports_damaged_files_and_decodes_the_others(comneck, bitstream, tmp_path):
    data = bytearray(bitstream.read_bytes())
    data[-9] ^= 1
    (tmp_path / "bad.cnk").write_bytes(data)
    result = comneck("decode", "bad.cnk", "photo.cnk", "nothing.cnk", "-o", "out", "--quiet", code=1)
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["bad.cnk", "nothing.cnk"]
    assert "checksum" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo.png"]
