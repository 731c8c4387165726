import math

import pytest
import torch
from PIL import Image

from comneck_hf.evaluation.metrics import bits_per_pixel, picture_psnr, psnr, region_psnr


def test_psnr_of_a_known_error_is_exact():
    reference = torch.zeros(2, 3, 4, 4)
    image = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    assert psnr(image, reference).tolist() == pytest.approx([20, 40], abs=1e-5)


def test_psnr_averages_the_squared_error_within_each_picture():
    reference = torch.zeros(1, 3, 2, 2)
    image = reference.clone()
    image[0, 0, 0, 0] = 0.6
    assert psnr(image, reference).item() == pytest.approx(10 * math.log10(12 / 0.36), abs=1e-5)


def test_equal_pictures_have_infinite_psnr():
    image = torch.rand(2, 3, 4, 4)
    assert psnr(image, image).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (1, 1, 4, 4), (3, 4, 4)])
def test_psnr_refuses_pictures_of_other_shapes(shape):
    with pytest.raises(ValueError, match="same shape"):
        psnr(torch.zeros(shape), torch.zeros(1, 3, 4, 4))


def test_psnr_of_8_bit_pictures_is_that_of_their_values():
    black, gray = Image.new("RGB", (5, 3)), Image.new("RGB", (5, 3), (51, 51, 51))
    assert picture_psnr(gray, black) == pytest.approx(-20 * math.log10(0.2), abs=1e-9)


def test_bits_per_pixel_counts_eight_bits_a_byte_on_the_pixels_given():
    assert bits_per_pixel(300, height=30, width=20) == 4


@pytest.mark.parametrize("num_bytes, height, width", [(1, 0, 4), (1, 4, -1), (-1, 4, 4)])
def test_bits_per_pixel_refuses_impossible_sizes(num_bytes, height, width):
    with pytest.raises(ValueError, match="must be positive"):
        bits_per_pixel(num_bytes, height=height, width=width)


def test_the_psnr_of_a_region_leaves_the_rest_out():
    reference, image = torch.zeros(3, 4, 6), torch.zeros(3, 4, 6)
    image[:, :2, :3] = 0.1
    region = torch.zeros(4, 6, dtype=torch.bool)
    region[:2, :3] = True
    assert region_psnr(image, reference, region) == pytest.approx(20, abs=1e-5)
    assert region_psnr(image, reference, ~region) == math.inf
    everywhere = torch.ones(4, 6, dtype=torch.bool)
    assert region_psnr(image, reference, everywhere) == pytest.approx(float(psnr(image[None], reference[None])))
