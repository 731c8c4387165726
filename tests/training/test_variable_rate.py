"""The training of a codec for all rates: what moves, what the loss is, and that trained codecs code."""

import json
import math

import pytest
import torch

from comneck_hf.coding.gain_map import GainMap
from comneck_hf.models.elic.gain_vectors_elic import add_gain_vectors
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.arguments import RunArguments
from comneck_hf.training.gains import RandomGains
from comneck_hf.training.objective import CodecObjective
from comneck_hf.training.stages import codec_stages

from .launch import load_script, run_script
from .test_configs import CONFIGS, read


GAINS = RandomGains(-1.5, 1.0, random_share=0.75)
LMBDA = 0.01


@pytest.fixture
def codec(codec_folder) -> ElicModel:
    return add_gain_vectors(ElicModel.from_pretrained(codec_folder), levels=3, level_range=(-1.5, 1.0))


def new_objective(codec: ElicModel, gains: RandomGains) -> CodecObjective:
    return CodecObjective(codec, codec_stages(LMBDA), synthetic_pictures(64, 2), gains=gains)


def test_all_of_the_codec_trains_and_every_level_moves(codec):
    objective = new_objective(codec, GAINS)
    for stage in objective.stages:
        objective.begin(stage)
        objective.train()
        before = {name: value.clone() for name, value in objective.named_parameters()}
        optimizers = objective.optimizers(RunArguments(output_dir="", learning_rate=1e-2))
        torch.manual_seed(0)
        loss, _ = objective({"pixel_values": synthetic_pictures(128, 6)}, stage)
        loss.backward()
        assert {name for name, value in objective.named_parameters() if value.grad is not None} == set(before)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        vectors = {name: value for name, value in objective.named_parameters() if name.endswith("log_vectors")}
        assert set(vectors) == {"codec.g_a.log_vectors", "codec.g_s.log_vectors"}
        for name, value in vectors.items():
            assert (value != before[name]).float().mean(1).min() > 0.9


@pytest.mark.parametrize("stage_number", [0, 1])
def test_errors_count_as_lambda_at_the_gain_of_their_pixels_says(codec, stage_number):
    """From the same random numbers, with weights computed pixel by pixel."""
    gains = RandomGains(-1.0, 1.0, random_share=1.0)
    objective, pictures = new_objective(codec, gains), synthetic_pictures(128, 4)
    stage = objective.stages[stage_number]
    objective.begin(stage)
    torch.manual_seed(3)
    loss, terms = objective({"pixel_values": pictures}, stage)
    torch.manual_seed(3)
    octaves, maps = gains.draw(4, generator=torch.default_generator)
    assert any(maps) and len(set(octaves)) == 4
    outputs = codec(pictures, quantization=stage.quantization, gain=octaves, gain_maps=maps)
    squares = (outputs.reconstruction - pictures).square().mean(1)
    total = 0.0
    for picture, (gain, gain_map) in enumerate(zip(octaves, maps, strict=True)):
        grid = (gain_map or GainMap(((0,),))).gains(8, 8, round(64 * gain))
        for row in range(8):
            for column in range(8):
                error = squares[picture, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].sum().item()
                total += LMBDA * 255**2 * 2 ** (grid[row][column] / 32) * error
    rate = -sum(each.log2().sum() for each in outputs.likelihoods.values()).item() / (4 * 128**2)
    assert terms["loss"].item() == pytest.approx(rate + total / (4 * 128**2), rel=1e-4)
    assert terms["psnr"].item() == pytest.approx(-10 * math.log10(squares.mean().item()), rel=1e-4)
    assert loss.item() == pytest.approx(terms["loss"].item() + codec.aux_loss().item(), rel=1e-5)


def test_half_of_the_pictures_have_gains_that_vary_in_them(codec_folder):
    words = ["--codec", str(codec_folder), "--lmbda", "0.001"]
    script = load_script("train_codec")
    objective = script.build_objective(read("comneck-tiny-variable-rate.yaml", *words), synthetic_pictures(64, 2))
    octaves, maps = objective.gains.draw(4000, generator=torch.Generator().manual_seed(0))
    assert sum(gain_map is not None for gain_map in maps) / 4000 == pytest.approx(0.5, abs=0.03)
    assert -1.5 <= min(octaves) < -1.49 and 0.99 < max(octaves) <= 1.0
    assert objective.codec.config.gain_levels == 6 and objective.codec.config.lmbda == 0.001


def test_a_codec_for_all_rates_is_trained_and_measured_at_several(data_folder, codec_folder, tmp_path):
    words = ["--data", data_folder, "--crop_size", 64, "--calibration_pictures", 4, "--validation_pictures", 4]
    words += ["--batch_size", 2, "--logging_steps", 1, "--validation_steps", 0, "--learning_rate", 0.02, "--steps", 4]
    name = CONFIGS / "comneck-tiny-variable-rate.yaml"
    run_script("train_codec", name, *words, "--codec", codec_folder, "--output_dir", tmp_path / "first")
    log = json.loads((tmp_path / "first" / "log.json").read_text())["log"]
    sizes = [log[-1][f"validation_bytes@{gain:g}"] for gain in (-1.0, -0.5, 0.0, 0.5)]
    assert sizes == sorted(sizes) and sizes[0] < 0.9 * sizes[-1]
    losses = [
        0.008 * 4**gain * 255**2 * log[-1][f"validation_mse@{gain:g}"] + log[-1][f"validation_bpp@{gain:g}"]
        for gain in (-1.0, -0.5, 0.0, 0.5)
    ]
    assert log[-1]["validation_score"] == pytest.approx(-sum(losses) / 4, rel=1e-2)  # logs are rounded
    codec = ElicModel.from_pretrained(tmp_path / "first" / "model").eval()
    assert codec.g_a.log_vectors.abs().max() > 0.01 and codec.g_s.log_vectors.abs().max() > 0.01
    again = [*words, "--gain_levels", 0, "--codec", tmp_path / "first" / "model", "--output_dir", tmp_path / "second"]
    run_script("train_codec", name, *again)
    assert ElicModel.from_pretrained(tmp_path / "second" / "model").config.gain_levels == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gain_range", "1.0"], r"`gain_range` must be the lowest and the highest gain, got \[1.0\]"),
        (["--gain_levels", "4"], "`gain_levels` 4 lie in `gain_range`. Give it, too"),
    ],
)
def test_gains_that_lack_a_range_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        read("comneck-tiny-codec.yaml", *words)
