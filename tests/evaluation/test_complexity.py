"""Parameters and multiply-adds, against sums by hand and against the paper's table."""

import json

import pytest
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

from comneck_hf import ComNeckConfig, pretrained
from comneck_hf.cli import app
from comneck_hf.evaluation.complexity import PAPER, Server, complexity_table, count_complexity, system_totals
from comneck_hf.models.unet import PostProcessingUNet


@pytest.fixture(scope="module")
def full_size():
    return count_complexity(ComNeckConfig())


def test_parameters_are_the_papers(full_size):
    for name, (millions, _) in PAPER.items():
        # The paper counts CLIP's stem without class token, positions and norm.
        extra = (1024 + 257 * 1024 + 2 * 1024) if name == "CLIP stem" else 0
        assert (full_size[name]["num_params"] - extra) / 1e6 == pytest.approx(millions, abs=0.02)


def test_multiply_adds_of_the_neck_are_those_on_paper(full_size):
    """257 tokens of width 1024: latents in, four attention matrices, two products over all pairs, the MLP."""
    tokens, width = 257, 1024
    by_hand = 256 * 320 * width + tokens * width * (4 * width + 2 * 4 * width) + 2 * tokens**2 * width
    assert full_size["neck"]["kmac_per_pixel"] == pytest.approx(by_hand / 65536 / 1000, rel=1e-6)
    assert full_size["neck"]["kmac_per_pixel"] == pytest.approx(PAPER["neck"][1], rel=0.003)


def test_multiply_adds_of_convolutions_are_those_on_paper():
    """A U-Net of two levels: 16x16 pixels at width 4, 8x8 at width 6."""
    unet = PostProcessingUNet((4, 6))
    sizes = (
        256 * 9 * (3 * 4 + 4 * 4),
        64 * 9 * (4 * 6 + 6 * 6),
        64 * 4 * 6 * 4,
        256 * 9 * (8 * 4 + 4 * 4),
        256 * 4 * 3,
    )
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        assert unet(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    assert counter.get_total_flops() == 2 * sum(sizes)


def test_the_neck_saves_what_the_paper_says(full_size):
    totals = system_totals(full_size)
    saving = 1 - totals["ComNeck"]["kmac_per_pixel"] / totals["Post-processing"]["kmac_per_pixel"]
    assert saving == pytest.approx(0.952, abs=0.001)  # about 95 % in the paper
    table = complexity_table(full_size, is_paper_size=True)
    assert "20.8 times ComNeck's" in table and "835.7" in table


def test_parts_compute_what_they_are_counted_for():
    config = AutoConfig.from_pretrained(pretrained("comneck-tiny-d1-q2"))
    parts = Server.random(config).parts(2)
    with torch.no_grad():
        shapes = {name: tuple(part.run().shape) for name, part in parts.items()}
    assert shapes["neck"] == shapes["CLIP stem"] == shapes["CLIP layers behind it"] == (2, 65, 192)
    assert shapes["g_s"] == shapes["U-Net"] == (2, 3, 128, 128)


def test_the_command_prints_tables_and_json():
    result = CliRunner().invoke(app, ["complexity"])
    assert result.exit_code == 0, result.output
    assert "13,191,168       52.69    13.19 M   52.8" in result.output
    result = CliRunner().invoke(app, ["complexity", "--model", "comneck-tiny-d1-q2", "--json"])
    assert json.loads(result.stdout)["parts"]["neck"]["num_params"] < 1e6
    result = CliRunner().invoke(app, ["complexity", "--model", "comneck-tiny-clip"])
    assert result.exit_code == 1
    assert "which makes no features" in result.output


def test_a_model_without_codec_and_odd_pictures_are_refused():
    with pytest.raises(ValueError, match="needs a model with an ELIC or TIC codec"):
        count_complexity(ComNeckConfig(codec_config=None))
    with pytest.raises(ValueError, match="multiples of 16, got 24x32"):
        PostProcessingUNet((2, 2, 2, 2, 2))(torch.rand(1, 3, 24, 32))
