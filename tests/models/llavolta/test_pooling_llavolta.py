"""Groups of tokens and their means, against other ways to compute them."""

import pytest
import torch
from torch.nn import functional as F

from comneck_hf.models.llavolta.pooling_llavolta import (
    TokenGroups,
    compression_ratio,
    image_offsets,
    sequence_offsets,
)


def groups_of(length, **options):
    return TokenGroups.from_offsets(image_offsets(length, **options)[None])


@pytest.mark.parametrize("stride", [1, 2, 3, 8])
def test_runs_are_averaged_as_avg_pool1d_does(stride):
    tokens = torch.randn(1, 24, 5)
    pooled = groups_of(24, stride=stride, pool="avg1d").mean(tokens)
    assert torch.allclose(pooled, F.avg_pool1d(tokens.transpose(1, 2), stride).transpose(1, 2), atol=1e-6)


def test_a_run_that_is_not_full_is_averaged_over_what_it_has():
    tokens = torch.randn(1, 7, 5)
    pooled = groups_of(7, stride=3, pool="avg1d").mean(tokens)
    assert pooled.shape == (1, 3, 5)
    assert torch.equal(pooled[0, 2], tokens[0, 6])


@pytest.mark.parametrize(("grid", "stride"), [((6, 6), 2), ((6, 6), 3), ((4, 6), 2)])
def test_squares_are_averaged_as_avg_pool2d_does(grid, stride):
    tokens = torch.randn(1, grid[0] * grid[1], 5)
    pooled = groups_of(tokens.shape[1], stride=stride, pool="avg2d", grid=grid).mean(tokens)
    expected = F.avg_pool2d(tokens.transpose(1, 2).unflatten(2, grid), stride).flatten(2).transpose(1, 2)
    assert torch.allclose(pooled, expected, atol=1e-6)


def test_squares_at_the_border_may_be_smaller():
    tokens = torch.randn(1, 25, 5)
    pooled = groups_of(25, stride=2, pool="avg2d").mean(tokens)
    expected = F.avg_pool2d(
        tokens.transpose(1, 2).unflatten(2, (5, 5)), 2, ceil_mode=True, count_include_pad=False
    ).flatten(2)
    assert torch.allclose(pooled, expected.transpose(1, 2), atol=1e-6)


def test_squares_need_a_rectangle():
    with pytest.raises(ValueError, match="24 are not 4x4. Set `pool_grid`"):
        image_offsets(24, stride=2, pool="avg2d")


def test_text_stays_and_two_neighboring_images_do_not_mix():
    visual = torch.tensor([[0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1, 1]]).bool()
    images = [image_offsets(n, stride=2, pool="avg1d") for n in (3, 2, 3, 2)]
    groups = TokenGroups.from_offsets(sequence_offsets(visual, images))
    assert groups.group.tolist() == [[0, 1, 1, 2, 3, 3, 4], [0, 0, 1, 2, 3, 4, 4]]
    assert groups.first.tolist() == [[0, 1, 3, 4, 6], [0, 2, 3, 4, 5]]
    assert groups.count.tolist() == [[1, 2, 1, 2, 1], [2, 1, 1, 1, 2]]


def test_rows_of_different_lengths_get_empty_groups_that_are_masked():
    offsets = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 0]])
    groups = TokenGroups.from_offsets(offsets)
    assert groups.count.tolist() == [[3, 1, 0, 0], [1, 1, 1, 1]]
    assert groups.mask(torch.ones(2, 4)).tolist() == [[True, True, False, False], [True] * 4]
    assert groups.mask(torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])).tolist()[1] == [False, False, True, True]
    states = torch.randn(2, 4, 3)
    assert groups.mean(states)[0, 2:].abs().max() == 0
    assert torch.equal(groups.mean(states)[1], states[1])
    assert torch.equal(groups.spread(groups.mean(states))[0, 1], groups.mean(states)[0, 0])


@pytest.mark.parametrize("stride", [2, 3, 8])
def test_positions_are_exact_however_far_the_image_starts(stride):
    groups = groups_of(24, stride=stride, pool="avg1d")
    for start in range(4097):
        positions = torch.arange(start, start + 24)
        expected = [sum(run) // len(run) for run in positions.split(stride) for run in [run.tolist()]]
        assert groups.floor_mean(positions[None])[0].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    tokens = torch.full((1, 512, 1), 1.0, dtype=dtype)
    tokens[0, 0] = 512
    pooled = groups_of(512, stride=512, pool="avg1d").mean(tokens)
    assert pooled.dtype == dtype
    assert pooled.item() == torch.tensor(1023 / 512).to(dtype).item()


def test_interrupted_and_truncated_images_are_refused():
    images = [image_offsets(4, stride=2, pool="avg1d")]
    with pytest.raises(ValueError, match="3 image tokens, but the 1 images have 4"):
        sequence_offsets(torch.tensor([[0, 1, 1, 1]]).bool(), images)
    with pytest.raises(ValueError, match="must follow each other"):
        sequence_offsets(torch.tensor([[1, 1, 0, 1, 1]]).bool(), images)
    with pytest.raises(ValueError, match="must follow each other"):
        sequence_offsets(torch.tensor([[0, 1, 1], [1, 1, 0]]).bool(), images)


@pytest.mark.parametrize(
    ("layer", "stride", "percent"), [(2, 8, 556.5), (2, 2, 188.2), (16, 8, 177.8), (16, 2, 133.3), (0, 1, 100.0)]
)
def test_compression_ratio_gives_the_papers_numbers(layer, stride, percent):
    assert round(100 * compression_ratio(32, 576, pool_layer=layer, pool_stride=stride), 1) == percent
