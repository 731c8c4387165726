"""Windows, their shift and their masks, against attention that is computed window by window."""

import pytest
import torch

from comneck_hf.models.tic.layers_tic import (
    ResidualSwinBlock,
    WindowAttention,
    analysis_transform,
    relative_positions,
    synthesis_transform,
    window_numbers,
)


WINDOW = 4
SIZES = [(8, 8), (4, 4), (12, 8), (5, 7), (3, 3), (1, 9)]


@pytest.fixture
def attention():
    def make(shift):
        torch.manual_seed(0)
        layer = WindowAttention(6, 2, WINDOW, shift).double()
        torch.nn.init.normal_(layer.position_bias)
        return layer

    return make


def spans(length, shift):
    """The windows along one axis: they begin at `shift`, and the edges cut the first and the last."""
    edges = sorted({0, length, *range(shift, length, WINDOW)})
    return list(zip(edges, edges[1:], strict=False))


def attend_one_window(layer, window):
    """Attention among all positions of a window `(height, width, channels)`, head by head, pair by pair."""
    height, width, channels = window.shape
    positions = [(row, column) for row in range(height) for column in range(width)]
    query, key, value = layer.qkv(window.reshape(-1, channels)).chunk(3, -1)
    heads = []
    size = channels // layer.num_heads
    for head in range(layer.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / size**0.5
        bias = torch.zeros_like(scores)
        for i, (row, column) in enumerate(positions):
            for j, (other_row, other_column) in enumerate(positions):
                down, right = row - other_row + WINDOW - 1, column - other_column + WINDOW - 1
                bias[i, j] = layer.position_bias[down * (2 * WINDOW - 1) + right, head]
        heads.append((scores + bias).softmax(-1) @ value[:, part])
    return layer.projection(torch.cat(heads, -1)).view(height, width, channels)


@torch.no_grad()
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_attention_is_that_of_every_window_by_itself(attention, size, shift):
    layer = attention(shift)
    features = torch.randn(2, *size, 6, dtype=torch.float64)
    expected = torch.empty_like(features)
    for picture, result in zip(features, expected, strict=True):
        for top, bottom in spans(size[0], shift):
            for left, right in spans(size[1], shift):
                result[top:bottom, left:right] = attend_one_window(layer, picture[top:bottom, left:right])
    assert torch.allclose(layer(features), expected, atol=1e-12)


def what_is_seen(layer, size, row, column):
    """Where the output at a position depends on the input: bool `size`."""
    features = torch.randn(1, *size, 6, dtype=torch.float64, requires_grad=True)
    layer(features)[0, row, column].square().sum().backward()
    return features.grad[0].abs().sum(-1) > 0


@pytest.mark.parametrize("position", [(0, 0), (7, 7), (0, 7), (4, 1), (3, 3)])
def test_nothing_leaks_between_windows_that_the_roll_brings_together(attention, position):
    row, column = position
    seen = what_is_seen(attention(2), (8, 8), row, column)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    (top, bottom), (left, right) = (next(s for s in spans(8, 2) if s[0] <= at < s[1]) for at in position)
    expected[top:bottom, left:right] = True
    assert torch.equal(seen, expected)


def test_without_the_mask_opposite_edges_would_see_each_other(attention, monkeypatch):
    """The control of the test above: it can fail."""
    monkeypatch.setattr(WindowAttention, "_hidden", lambda *_: None)
    seen = what_is_seen(attention(2), (8, 8), 0, 0)
    assert seen[7, 7] and seen[0, 7] and seen[7, 0]


def test_a_block_joins_neighboring_windows_by_its_shifted_layer():
    torch.manual_seed(0)
    for depth, reach in ((1, 4), (2, 6)):
        block = ResidualSwinBlock(6, depth, 2, WINDOW, 2.0).double()
        features = torch.randn(1, 6, 12, 12, dtype=torch.float64, requires_grad=True)
        block(features)[0, :, 0, 3].square().sum().backward()
        seen = features.grad[0].abs().sum(0).nonzero()
        assert seen.amax().item() == {4: 3, 6: 7}[reach]


def test_a_block_whose_layers_add_nothing_doubles():
    block = ResidualSwinBlock(6, 2, 2, WINDOW, 2.0)
    with torch.no_grad():
        for layer in block.layers:
            for end in (layer.attention.projection, layer.mlp[-1]):
                end.weight.zero_()
                end.bias.zero_()
    features = torch.randn(1, 6, 5, 9)
    assert torch.equal(block(features), 2 * features)


@pytest.mark.parametrize(
    ("length", "shift", "expected"),
    [
        (8, 0, [0, 0, 0, 0, 1, 1, 1, 1]),
        (8, 2, [0, 0, 0, 0, 1, 1, -1, -1]),
        (5, 0, [0, 0, 0, 0, 1, -2, -2, -2]),
        (5, 2, [0, 0, 0, -2, -2, -2, -1, -1]),
        (4, 2, [0, 0, -1, -1]),
    ],
)
def test_rows_are_numbered_by_their_window(length, shift, expected):
    assert window_numbers(length, WINDOW, shift).tolist() == expected


def test_equal_offsets_share_a_bias_and_different_ones_do_not():
    numbers = relative_positions(3)
    offsets = {}
    for i in range(9):
        for j in range(9):
            offsets.setdefault((i // 3 - j // 3, i % 3 - j % 3), set()).add(numbers[i, j].item())
    assert all(len(found) == 1 for found in offsets.values())
    assert sorted(number for (number,) in offsets.values()) == list(range(25))


def test_g_s_is_the_mirror_of_g_a(tic_config):
    analysis, synthesis = analysis_transform(tic_config), synthesis_transform(tic_config)
    blocks = [layer for layer in analysis if isinstance(layer, ResidualSwinBlock)]
    mirrored = [layer for layer in synthesis if isinstance(layer, ResidualSwinBlock)][::-1]
    assert [str(block) for block in blocks] == [str(block) for block in mirrored]
    assert [layer.kernel_size[0] for layer in analysis[::2]] == [5, 3, 3, 3]
    assert [layer.kernel_size[0] for layer in synthesis[1::2]] == [3, 3, 3, 5]
    latents = analysis(torch.rand(2, 3, 64, 128))
    assert latents.shape == (2, 20, 4, 8)
    assert synthesis(latents).shape == (2, 3, 64, 128)
