import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.utils import logging as hub_logging
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, CLIPConfig, CLIPModel, logging
from typer.testing import CliRunner

from comneck_hf import (
    ComNeckImageProcessor,
    ComNeckImageProcessorPil,
    ComNeckModel,
    ElicConfig,
    ElicModel,
    __version__,
)
from comneck_hf.cli import app
from comneck_hf.commands import loading
from comneck_hf.training.clip import build_tokenizer, save_clip
from comneck_hf.training.zero_shot import ClassPrompts


SIDE = 64
CLASSES = ("cup", "wild cat", "motorbike")


@pytest.fixture(autouse=True)
def transformers_logging():
    """The command silences the libraries; other tests may want to hear them."""
    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    hub_logging.set_verbosity(hub_verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with `comneck`, `other` (another codec) and `clip`, all random and tiny."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    prompts = ClassPrompts(("a photo of a {}.", "{}"), CLASSES)
    tokenizer = build_tokenizer([template.format(name) for template in prompts.templates for name in CLASSES])
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": len(tokenizer), "projection_dim": 24, **ids}
    vision = {**sizes, "image_size": 56, "patch_size": 14, "projection_dim": 24}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, **ids)).eval()
    save_clip(clip, root / "clip", tokenizer=tokenizer, prompts=prompts)
    for name in ("comneck", "other"):
        model = ComNeckModel.from_codec_and_clip(random_codec(), clip, keep_clip_stem=True, quality=2)
        model.save_pretrained(root / name)
        ComNeckImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(root / name)
    return root


def random_codec():
    config = ElicConfig(
        hidden_channels=8,
        latent_channels=16,
        group_channels=[2, 2, 4, 4, 4],
        context_channels=[8, 8],
        aggregation_channels=[8, 8],
    )
    codec = ElicModel(config).eval()
    with torch.no_grad():  # random transforms end near zero: latents and pictures would hardly differ
        codec.g_a[-1].trunk[-1].conv3.bias.normal_(std=4)
        codec.g_a[0].weight.mul_(8)
        codec.g_s[-1].weight.mul_(8)
    return codec


@pytest.fixture(scope="module")
def model(models):
    return AutoModel.from_pretrained(models / "comneck").eval()


@pytest.fixture(scope="module")
def load_once():
    """The loading functions, but each model is read from disk a single time."""
    return {name: functools.cache(getattr(loading, name)) for name in ("load_codec", "load_model")}


@pytest.fixture
def comneck(models, load_once, tmp_path, monkeypatch):
    """Runs a command in an empty folder, with the tiny model; checks exit code and that there is no traceback."""
    monkeypatch.chdir(tmp_path)
    for name, load in load_once.items():
        monkeypatch.setattr(loading, name, load)

    def run(command, *arguments, code=0, **options):
        options = {"model": models / "comneck", **options} if command != "env" else options
        if command in ("classify", "demo"):
            options = {"clip": models / "clip", **options}
        named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        result = CliRunner().invoke(app, [command, *map(str, arguments), *named])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


def photograph(path, size=(90, 70), seed=0):
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    noise = np.random.default_rng(seed).normal(0, 20, (size[1], size[0], 3))
    waves = np.stack([np.sin(x / (9 + seed)), np.cos(y / 7), np.sin((x + y) / 11)], -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(np.clip(128 + 90 * waves + noise, 0, 255))).save(path)
    return path


@pytest.fixture
def bitstream(model, tmp_path):
    """`photo.cnk` of a cropped picture."""
    picture = Image.open(photograph(tmp_path / "photo.png"))
    (tmp_path / "photo.cnk").write_bytes(model.compress(prepare(picture))[0])
    return tmp_path / "photo.cnk"


def prepare(picture):
    processor = ComNeckImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    return processor(images=picture, return_tensors="pt")["pixel_values"]


def only_error_line(result):
    """The message of a failed command: exactly one line on stderr."""
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    return lines[0]


# --- encode ---------------------------------------------------------------------------------------------------------


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


# --- decode, features, classify -------------------------------------------------------------------------------------


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


def test_features_are_bit_equal_to_the_python_api(comneck, model, tmp_path):
    files = [photograph(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    comneck("encode", *files)
    names = ["2.cnk", "0.cnk", "1.cnk"]
    report = json.loads(comneck("features", *names, "-o", "deep/out.safetensors", "--json", "--quiet").stdout)
    tensors = load_file(tmp_path / "deep/out.safetensors")
    latents = model.decompress([(tmp_path / name).read_bytes() for name in names])
    with torch.no_grad():
        outputs = model(latents=latents)
    assert sorted(tensors) == ["image_embeds", "last_hidden_state", "latents", "pooler_output"]
    assert all(torch.equal(tensors[name], outputs[name]) for name in tensors)
    assert report["files"] == names
    assert report["shapes"] == {name: list(outputs[name].shape) for name in report["shapes"]}
    with safe_open(tmp_path / "deep/out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["files"]) == names


def test_features_of_several_batches_are_joined(comneck, tmp_path):
    files = [photograph(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    comneck("encode", *files)
    comneck("features", "0.cnk", "1.cnk", "2.cnk", "--batch-size", 2)
    assert load_file(tmp_path / "features.safetensors")["latents"].shape == (3, 16, 4, 4)


def test_features_of_whole_pictures_need_interpolation(comneck, tmp_path):
    comneck("encode", photograph(tmp_path / "photo.png"), "--no-crop")
    assert "--interpolate" in only_error_line(comneck("features", "photo.cnk", code=1))
    comneck("features", "photo.cnk", "--interpolate")
    assert load_file(tmp_path / "features.safetensors")["last_hidden_state"].shape == (1, 65, 32)


def test_features_in_bfloat16_come_from_the_same_latents(comneck, bitstream, tmp_path):
    comneck("features", bitstream, "-o", "full.safetensors")
    comneck("features", bitstream, "-o", "half.safetensors", dtype="bfloat16")
    full, half = (load_file(tmp_path / f"{name}.safetensors") for name in ("full", "half"))
    assert half["image_embeds"].dtype == torch.bfloat16
    assert torch.equal(full["latents"], half["latents"])


def test_one_bad_file_leaves_no_features(comneck, bitstream, tmp_path):
    (tmp_path / "bad.cnk").write_bytes(bitstream.read_bytes()[:50])
    message = only_error_line(comneck("features", bitstream, "bad.cnk", "--quiet", code=1))
    assert message.startswith("Error: bad.cnk: ")
    assert not (tmp_path / "features.safetensors").exists()


def test_classify_ranks_the_classes_of_the_clip(comneck, bitstream):
    (entry,) = json.loads(comneck("classify", bitstream, "--json").stdout)
    assert sorted(row["label"] for row in entry["labels"]) == sorted(CLASSES)
    probabilities = [row["probability"] for row in entry["labels"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_classify_compares_latent_embeddings_with_prompts(comneck, models, model, bitstream):
    clip = CLIPModel.from_pretrained(models / "clip").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "clip")
    with torch.no_grad():
        image = model(latents=model.decompress([bitstream.read_bytes()])).image_embeds[0]
        rows = []
        for name in ("tree", "a red car"):
            inputs = tokenizer([f"a photo of a {name}.", name], padding=True, return_tensors="pt")
            rows.append(torch.nn.functional.normalize(clip.get_text_features(**inputs).pooler_output, dim=-1).mean(0))
        weights = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
        expected = (clip.logit_scale.exp() * torch.nn.functional.normalize(image, dim=0) @ weights.T).softmax(0)
    (entry,) = json.loads(comneck("classify", bitstream, "--json", labels="tree, a red car,").stdout)
    probabilities = {row["label"]: row["probability"] for row in entry["labels"]}
    assert probabilities == pytest.approx({"tree": expected[0].item(), "a red car": expected[1].item()}, abs=1e-5)


def test_classify_prints_a_line_per_file_with_the_labels_asked_for(comneck, bitstream, tmp_path):
    (tmp_path / "bad.cnk").write_bytes(b"CNK")
    result = comneck("classify", "bad.cnk", "photo.cnk", "--top", 2, "--quiet", code=1)
    assert "truncated" in only_error_line(result)
    (line,) = comneck("classify", "photo.cnk", "--top", 2).stdout.splitlines()
    assert line.startswith("photo.cnk  ") and line.count("%") == 2


def test_labels_without_a_name_are_wrong_usage(comneck, bitstream):
    assert "names no label" in comneck("classify", bitstream, labels=" , ", code=2).stderr


def test_a_clip_of_another_width_is_an_error(comneck, models, bitstream, tmp_path):
    clip = CLIPModel.from_pretrained(models / "clip")
    config = CLIPConfig.from_dict({**clip.config.to_dict(), "projection_dim": 8})
    CLIPModel(config).save_pretrained(tmp_path / "narrow")
    for file in (models / "clip").iterdir():
        if not (tmp_path / "narrow" / file.name).exists():
            (tmp_path / "narrow" / file.name).write_bytes(file.read_bytes())
    message = only_error_line(comneck("classify", bitstream, clip=tmp_path / "narrow", code=1))
    assert "24 dimensions" in message and "8" in message


def test_a_clip_without_classes_needs_labels(comneck, models, bitstream, tmp_path):
    (tmp_path / "bare").mkdir()
    for file in (models / "clip").iterdir():
        if file.name != "zero_shot.json":
            (tmp_path / "bare" / file.name).write_bytes(file.read_bytes())
    assert "--labels" in only_error_line(comneck("classify", bitstream, clip=tmp_path / "bare", code=1))
    comneck("classify", bitstream, clip=tmp_path / "bare", labels="cup, cat")


# --- info, env, demo ------------------------------------------------------------------------------------------------


def test_info_accounts_for_every_bit(comneck, bitstream):
    facts = json.loads(comneck("info", bitstream, "--json").stdout)
    size = bitstream.stat().st_size
    names = ["header", "z", *(f"y group {number}" for number in range(1, 6)), "coder"]
    assert [segment["name"] for segment in facts["segments"]] == names
    assert sum(segment["bits"] for segment in facts["segments"]) == pytest.approx(8 * size)
    assert [segment["symbols"] for segment in facts["segments"]] == [0, 8, 32, 32, 64, 64, 64, 0]
    assert facts["segments"][0]["bits"] == 8 * (size - facts["payload_bytes"])
    assert 24 <= facts["segments"][-1]["bits"] <= 48
    assert facts["bytes"] == size
    assert facts["bpp"] == pytest.approx(8 * size / 64**2)
    assert facts["model_matches"] and facts["fingerprint"] == facts["model_fingerprint"]


def test_info_estimates_what_the_likelihoods_say(comneck, model, bitstream, tmp_path):
    facts = json.loads(comneck("info", bitstream, "--json").stdout)
    likelihoods = model.codec.encode(prepare(Image.open(tmp_path / "photo.png"))).likelihoods
    bits = sum(-part.double().log2().sum().item() for part in likelihoods.values())
    assert facts["estimated_bytes"] == pytest.approx(bits / 8, rel=1e-5)


def test_info_tells_original_and_coded_size(comneck, tmp_path):
    comneck("encode", photograph(tmp_path / "photo.png", size=(90, 70)), "--no-crop")
    facts = json.loads(comneck("info", "photo.cnk", "--json").stdout)
    assert (facts["width"], facts["height"], facts["coded_width"], facts["coded_height"]) == (90, 70, 128, 128)
    assert "90x70 pixels" in comneck("info", "photo.cnk").stdout


def test_info_without_the_right_model_reads_the_container(comneck, models, bitstream):
    alone = json.loads(comneck("info", bitstream, "--json", "--no-model").stdout)
    other = json.loads(comneck("info", bitstream, "--json", model=models / "other").stdout)
    assert alone["height"] == other["height"] == 64
    assert "segments" not in alone and "segments" not in other
    assert other["model_matches"] is False
    assert "cannot decode it" in comneck("info", bitstream, model=models / "other").stdout


def test_info_needs_no_model_to_find_damage(comneck, bitstream, tmp_path):
    (tmp_path / "bad.cnk").write_bytes(bitstream.read_bytes()[:-1])
    assert "checksum" in only_error_line(comneck("info", "bad.cnk", model="nobody", code=1))


def test_env_names_versions_executor_and_models(comneck):
    facts = json.loads(comneck("env", "--json").stdout)
    assert facts["torch"] == torch.__version__
    assert facts["executor_cpu"] in ("int8", "float32")
    assert facts["torch_threads"] == torch.get_num_threads()
    assert f"comneck_hf      {__version__}" in comneck("env").stdout


def test_demo_shows_and_draws_one_picture(comneck, tmp_path):
    path = photograph(tmp_path / "photo.png")
    result = comneck("demo", path)
    for word in ("photo.png, 64x64", "JPEG, equal PSNR", "JPEG, equal bytes", "bytes to latents", "from the latents"):
        assert word in result.stdout
    assert Image.open(tmp_path / "comneck_demo.png").size[0] > 800


def test_demo_numbers_agree_with_encode_and_classify(comneck, tmp_path):
    path = photograph(tmp_path / "photo.png")
    facts = json.loads(comneck("demo", path, "--json", "-o", "figure.png").stdout)
    coded = json.loads(comneck("encode", path, "--json").stdout)[0]
    (labeled,) = json.loads(comneck("classify", "photo.cnk", "--top", 3, "--json").stdout)
    assert (facts["bytes"], facts["bpp"]) == (coded["bytes"], coded["bpp"])
    assert facts["labels"]["latents"] == labeled["labels"]
    assert facts["jpeg_at_equal_psnr"]["psnr"] >= facts["psnr"]
    assert len(facts["seconds"]) == 5 and min(facts["seconds"].values()) >= 0
    assert "--force" in only_error_line(comneck("demo", path, "-o", "figure.png", code=1))


# --- errors and usage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["decode", "features", "classify"])
def test_bitstreams_of_another_model_are_refused(comneck, models, bitstream, command):
    output = [] if command == "classify" else ["-o", "out"]
    result = comneck(command, bitstream, *output, model=models / "other", code=1)
    assert "encoded with another model" in only_error_line(result)


@pytest.mark.parametrize("name", ["nobody", "./nowhere", "/no/such/folder"])
def test_models_that_do_not_exist_are_an_error(comneck, bitstream, name):
    assert f"No model at {name!r}" in only_error_line(comneck("decode", bitstream, "-f", model=name, code=1))


def test_a_folder_without_a_model_is_an_error(comneck, bitstream, tmp_path):
    (tmp_path / "empty").mkdir()
    only_error_line(comneck("decode", bitstream, "-f", model=tmp_path / "empty", code=1))


def test_damaged_weights_are_an_error(comneck, models, bitstream, tmp_path):
    (tmp_path / "cut").mkdir()
    for file in (models / "comneck").iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes()[:5000])
    message = only_error_line(comneck("decode", bitstream, "-o", "picture.png", model=tmp_path / "cut", code=1))
    assert "damaged" in message


def test_models_of_other_kinds_are_named(comneck, models, bitstream, tmp_path):
    assert "no codec" in only_error_line(comneck("decode", bitstream, "-f", model=models / "clip", code=1))
    ElicModel.from_pretrained(models / "comneck").save_pretrained(tmp_path / "codec")
    comneck("decode", bitstream, "-o", "from_codec.png", model=tmp_path / "codec")
    assert "makes no features" in only_error_line(comneck("features", bitstream, model=tmp_path / "codec", code=1))


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99"])
def test_unusable_devices_are_wrong_usage(comneck, bitstream, device):
    result = comneck("decode", bitstream, "-o", "picture.png", device=device, code=2)
    assert device in result.stderr and "--device" in result.stderr


def test_wrong_options_are_wrong_usage(comneck, bitstream):
    comneck("decode", bitstream, dtype="int4", code=2)
    comneck("classify", bitstream, "--top", 0, code=2)
    comneck("encode", code=2)
    comneck("encode", bitstream, "--unknown", code=2)


def test_version_is_printed():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"comneck_hf {__version__}\n"


def test_help_imports_nothing_heavy():
    script = Path(sys.executable).parent / "comneck"
    code = (
        f"import sys; sys.argv = [{str(script)!r}, '--help']\n"
        "from comneck_hf.cli import app\n"
        "try:\n    app()\nexcept SystemExit as exit:\n    assert not exit.code\n"
        "assert not {'torch', 'transformers', 'numpy', 'numba', 'PIL', 'matplotlib'} & set(sys.modules), sys.modules"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "encode" in output and "classify" in output
