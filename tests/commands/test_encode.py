"""`comneck encode`."""

import json

import numpy as np
from command_inputs import only_error_line, photograph, prepare
from PIL import Image

from comneck_hf import ElicModel


def test_encode_writes_what_the_python_api_makes(comneck, model, tmp_path):
    path = photograph(tmp_path / "photo.png")
    result = comneck("encode", path, "-o", "coded")
    expected = model.compress(prepare(Image.open(path)))
    assert [(tmp_path / "coded/photo.cnk").read_bytes()] == expected
    assert result.stdout.splitlines() == [
        f"{path} -> coded/photo.cnk  {len(expected[0])} bytes, 64x64 pixels, {8 * len(expected[0]) / 64**2:.3f} bpp"
    ]


def test_encode_names_a_single_result_as_asked(comneck, tmp_path):
    comneck("encode", photograph(tmp_path / "photo.png"), "-o", "deep/other.cnk")
    assert (tmp_path / "deep/other.cnk").read_bytes()[:3] == b"CNK"


def test_encode_takes_folders_and_keeps_their_structure(comneck, tmp_path):
    for seed, name in enumerate(["a.png", "sub/a.png", "sub/b.jpg"]):
        photograph(tmp_path / "in" / name, seed=seed)
    (tmp_path / "in/notes.txt").write_text("no picture")
    comneck("encode", "in", "-o", "out", "--batch-size", 2)
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.cnk"))
    assert written == ["a.cnk", "sub/a.cnk", "sub/b.cnk"]


def test_encode_gives_the_same_bytes_in_every_batch(comneck, tmp_path):
    files = [photograph(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    comneck("encode", *files, "-o", "together")
    comneck("encode", *files, "-o", "apart", "--batch-size", 1)
    together, apart = ([(tmp_path / out / f"{i}.cnk").read_bytes() for i in range(3)] for out in ("together", "apart"))
    assert together == apart
    assert len(set(together)) == 3


def test_encode_no_crop_keeps_the_size_of_every_picture(comneck, tmp_path):
    sizes = [(90, 70), (33, 130)]
    files = [photograph(tmp_path / f"{i}.png", size=size) for i, size in enumerate(sizes)]
    comneck("encode", *files, "--no-crop", "-o", "coded")
    comneck("decode", "coded", "-o", "decoded")
    assert [Image.open(tmp_path / f"decoded/{i}.png").size for i in range(2)] == sizes


def test_encode_rounds_sixteen_bits_to_eight(comneck, tmp_path):
    gray = np.array(Image.open(photograph(tmp_path / "photo.png")).convert("L"))
    Image.fromarray(gray).save(tmp_path / "8.png")
    Image.fromarray(gray.astype(np.uint16) * 257 + 100).save(tmp_path / "16.png")
    comneck("encode", "8.png", "16.png", "-o", "coded")
    assert (tmp_path / "coded/8.cnk").read_bytes() == (tmp_path / "coded/16.cnk").read_bytes()
    Image.fromarray(gray.astype(np.float32)).save(tmp_path / "float.tiff")
    assert "32-bit values (mode F) is unknown" in only_error_line(comneck("encode", "float.tiff", code=1))


def test_encode_turns_pictures_as_their_exif_orientation_says(comneck, tmp_path):
    picture = Image.open(photograph(tmp_path / "upright.png", size=(96, 64)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    comneck("encode", "turned.png", "--no-crop")
    assert json.loads(comneck("info", "turned.cnk", "--json").stdout)["height"] == 96


def test_encode_refuses_to_overwrite_unless_forced(comneck, tmp_path):
    path = photograph(tmp_path / "photo.png")
    (tmp_path / "photo.cnk").write_bytes(b"precious")
    assert "--force" in only_error_line(comneck("encode", path, code=1))
    assert (tmp_path / "photo.cnk").read_bytes() == b"precious"
    comneck("encode", path, "--force")
    assert (tmp_path / "photo.cnk").read_bytes() != b"precious"


def test_encode_refuses_two_results_of_one_name(comneck, tmp_path):
    files = [photograph(tmp_path / name) for name in ("a/photo.png", "b/photo.png")]
    assert "both be written" in only_error_line(comneck("encode", *files, "-o", "out", code=1))
    assert not (tmp_path / "out").exists()


def test_encode_names_an_output_that_can_be_neither_folder_nor_file(comneck, tmp_path):
    path = photograph(tmp_path / "photo.png")
    (tmp_path / "notes.txt").write_text("precious")
    assert "notes.txt is a file" in only_error_line(comneck("encode", path, "-f", "-o", "notes.txt", code=1))
    assert "has the suffix .xyz" in only_error_line(comneck("encode", path, "-o", "new.xyz", code=1))
    (tmp_path / "one.cnk").write_bytes(b"precious")
    assert "one.cnk is a file" in only_error_line(comneck("encode", path, path, "-f", "-o", "one.cnk", code=1))
    assert (tmp_path / "notes.txt").read_text() == "precious" and (tmp_path / "one.cnk").read_bytes() == b"precious"
    assert not (tmp_path / "new.xyz").exists()
    (tmp_path / "v1.5").mkdir()
    comneck("encode", path, "-o", "v1.5")
    assert (tmp_path / "v1.5/photo.cnk").exists()


def test_encode_reports_bad_pictures_and_codes_the_others(comneck, tmp_path):
    good = photograph(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:3000])
    result = comneck("encode", "text.png", "missing.png", "cut.png", "good.png", "--json", "--quiet", code=1)
    failed = json.loads(result.stdout)
    assert [list(entry)[-1] for entry in failed] == ["error", "error", "error", "bpp"]
    assert result.stderr.splitlines() == [f"Error: {entry['input']}: {entry['error']}" for entry in failed[:3]]
    assert "not a picture" in failed[0]["error"]
    assert failed[1]["error"] == "No such file or directory"
    assert "not a readable picture" in failed[2]["error"]
    assert (tmp_path / "good.cnk").exists() and not (tmp_path / "cut.cnk").exists()


def test_encode_shows_progress_for_several_files_only(comneck, tmp_path):
    files = [photograph(tmp_path / f"{seed}.png", seed=seed) for seed in range(2)]
    assert "2/2" in comneck("encode", *files).stderr
    assert comneck("encode", files[0], "-f").stderr == ""
    quiet = comneck("encode", *files, "-f", "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_an_empty_folder_is_an_error(comneck, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no" in only_error_line(comneck("encode", "empty", code=1))


def test_a_picture_beyond_the_limit_of_the_codec_is_an_error(comneck, models, tmp_path):
    codec = ElicModel.from_pretrained(models / "comneck")
    codec.config.max_pixels = 64 * 64
    codec.save_pretrained(tmp_path / "small")
    path = photograph(tmp_path / "photo.png")
    result = comneck("encode", path, "--no-crop", model=tmp_path / "small", code=1)
    assert "limit of 4096" in only_error_line(result)
