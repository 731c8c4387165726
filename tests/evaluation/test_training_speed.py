import time

import pytest
import torch

from comneck_hf.evaluation.training_speed import full_size_gigaflops, step_times
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.arguments import RunArguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.data import AugmentedPictures, ImagePack, picture_loader
from comneck_hf.training.objective import CodecObjective
from comneck_hf.training.stages import codec_stages


def test_the_parts_of_a_step_add_up_and_a_slow_part_is_seen(tiny_config, pictures):
    codec = ElicModel(tiny_config)
    pack = ImagePack((pictures * 255).to(torch.uint8), None, ())
    loader = picture_loader(AugmentedPictures(pack, Augmentation(64, "window")), batch_size=1)
    objective = CodecObjective(codec, codec_stages(0.01), pictures)
    before = codec.g_a[0].weight.clone()
    times = step_times(
        objective,
        loader,
        objective.stages[1],
        RunArguments(output_dir="", learning_rate=1e-3),
        steps=3,
        parts={"sleep": lambda batch: time.sleep(0.02)},
    )
    assert not torch.equal(codec.g_a[0].weight, before)
    assert times["sleep"] >= 20
    parts = sum(times[name] for name in ("data", "sleep", "student", "backward", "optimizer"))
    assert times["step"] == pytest.approx(parts)
    assert times["images_per_second"] == pytest.approx(1000 / times["step"])
    assert times["data_percent"] == pytest.approx(100 * times["data"] / times["step"])


def test_the_cost_at_full_size_is_that_of_its_products():
    """ViT-L/14: 24 layers with 12 * 1024^2 weights and two products of all pairs of 257 tokens."""
    flops = full_size_gigaflops()
    tokens, width = 257, 1024
    layers = 24 * 2 * (12 * width**2 * tokens + 2 * tokens**2 * width) / 1e9
    assert flops["teacher"] == pytest.approx(layers, rel=0.01)
    # 22 layers and the neck, forward and backward; only the neck has gradients of weights
    assert flops["student, forward and backward"] == pytest.approx(2 * layers * 23 / 24, rel=0.06)
    assert flops["d1"] == pytest.approx(sum(list(flops.values())[:3]))
    assert flops["d1"] < flops["d3 joint"] < flops["d2 joint"]
