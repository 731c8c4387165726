"""Times and memory of servers, at the size of the tiny models."""

import pytest
import torch
from transformers import AutoConfig

import comneck_hf
from comneck_hf.evaluation.complexity import SYSTEMS
from comneck_hf.evaluation.compressai_reference import CompressAICodec, to_compressai
from comneck_hf.evaluation.server_speed import PARTS, Form, part_memory, part_speed, server_speed
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel


@pytest.fixture(scope="module")
def config() -> comneck_hf.ComNeckConfig:
    return AutoConfig.from_pretrained(comneck_hf.pretrained("comneck-tiny-d1-q2"))


def test_systems_take_the_time_of_their_parts(config):
    report = part_speed(Form().server(config), batch_sizes=(2,), repeats=2)["batch_2"]
    times = report["ms_per_picture"]
    assert set(times) == set(PARTS) and min(times.values()) > 0
    for system, parts in SYSTEMS.items():
        expected = sum(times[part] for part in parts) / times["neck"]
        assert report["times_comneck"][system] == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_servers_are_measured_on_the_same_pictures(config, pictures, dtype):
    torch.manual_seed(0)
    codec = ElicModel(ElicConfig(**{**config.codec_config.to_dict(), "build_entropy_networks": True})).eval()
    server, other = Form(dtype).server(config, codec), CompressAICodec(to_compressai(codec))
    report = server_speed(server, other, (pictures[:2] * 255).round().to(torch.uint8), repeats=1)
    times = report["ms_per_picture"]
    assert set(times) == {"ComNeck", "Reconstruction", "Post-processing", "authors' path", "JPEG"}
    assert report["times_comneck"]["JPEG"] == pytest.approx(times["JPEG"] / times["ComNeck"])
    assert codec.h_a[0].weight.dtype == torch.float32  # what decides on symbols keeps its type


def test_forms_are_named_after_what_they_do():
    assert Form().name == "float32"
    assert Form(torch.bfloat16, True).name == "bfloat16, channels last, compiled"


def test_memory_is_that_of_each_part(config):
    report = part_memory(config)
    assert set(report) == set(PARTS)
    assert report["U-Net"]["weights"] == pytest.approx(31_037_763 * 4 / 2**20)
    assert report["U-Net"]["first_call"] > report["neck"]["first_call"] >= 0
