import torch

from comneck_hf.models.clip_inputs import clip_inputs, normalize
from comneck_hf.training.augmentation import center_crop_resize


def test_normalize_maps_the_mean_color_of_clip_to_zero():
    gray = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.allclose(normalize(gray), torch.zeros(1, 3, 2, 2))
    assert torch.allclose(
        normalize(torch.ones(1, 3, 1, 1)).flatten(), torch.tensor([1.9303, 2.0749, 2.1459]), atol=1e-3
    )


def test_clip_inputs_are_resized_and_normalized():
    pictures = torch.rand((2, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    inputs = clip_inputs(pictures, 112)
    assert inputs.shape == (2, 3, 112, 112)
    expected = normalize(center_crop_resize((pictures * 255).round().to(torch.uint8), 112))
    assert (inputs - expected).abs().max() < 0.03


def test_clip_inputs_take_the_normalization_of_other_encoders():
    pictures = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    inputs = clip_inputs(pictures, 8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert torch.allclose(inputs, 2 * pictures - 1, atol=1e-5)
