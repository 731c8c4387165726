import math

import numpy as np
import pytest
import torch

from comneck_hf.coding.tables import (
    ESCAPE_BITS,
    MAX_VALUE,
    PRECISION,
    SCALE_TABLE,
    CodingTables,
    concatenate,
    gaussian_tables,
    ideal_bits,
    tables_from_pmfs,
)


TOTAL = 2**PRECISION


def rows_of(tables: CodingTables) -> list[list[int]]:
    lengths = (tables.lengths + 1).tolist()
    return [cdf.tolist() for cdf in tables.cdfs.split(lengths)]


def tensors(cdfs: list[int], lengths: list[int], offsets: list[int]) -> CodingTables:
    return CodingTables(*(torch.tensor(values, dtype=torch.int32) for values in (cdfs, lengths, offsets)))


def test_the_standard_scales_run_from_011_to_256_in_equal_ratios():
    assert len(SCALE_TABLE) == 64
    assert SCALE_TABLE[0] == pytest.approx(0.11) and SCALE_TABLE[-1] == pytest.approx(256)
    ratios = [b / a for a, b in zip(SCALE_TABLE, SCALE_TABLE[1:], strict=False)]
    assert max(ratios) == pytest.approx(min(ratios))


@pytest.mark.parametrize("level", [0, 1, 8, 20, 40, 63])
def test_gaussian_tables_cost_less_than_01_percent_more_than_the_gaussian(level):
    scale = SCALE_TABLE[level]
    tables = gaussian_tables([scale])
    values = torch.arange(-math.ceil(12 * scale) - 2, math.ceil(12 * scale) + 3)
    edges = (values.abs().double() - 0.5) / scale
    pmf = torch.special.ndtr(-edges) - torch.special.ndtr(-edges - 1 / scale)
    entropy = -torch.special.xlogy(pmf, pmf).sum().item() / math.log(2)
    bits = [ideal_bits(np.array([value]), np.array([0]), tables) for value in values.tolist()]
    cost = (pmf * torch.tensor(bits)).sum().item()
    assert cost < 1.001 * entropy + 1e-4


def test_zeros_of_the_smallest_scale_cost_less_than_a_ten_thousandth_of_a_bit():
    zeros = np.zeros(1000, np.int16)
    assert ideal_bits(zeros, zeros, gaussian_tables()) / 1000 < 1e-4


def test_gaussian_tables_are_symmetric_and_hold_at_least_minus_one_to_one():
    tables = gaussian_tables()
    for row, offset in zip(rows_of(tables), tables.offsets.tolist(), strict=True):
        counts = np.diff(row)[:-1]
        assert len(counts) == 1 - 2 * offset >= 3
        assert np.abs(counts - counts[::-1]).max() <= 1


@pytest.mark.parametrize("scales", [[0.0], [-1.0], [1.0, 1e9], [float("nan")]])
def test_impossible_scales_are_refused(scales):
    with pytest.raises(ValueError, match="Scales must be in"):
        gaussian_tables(scales)


def test_every_symbol_keeps_a_count_whatever_its_probability():
    tables = tables_from_pmfs([torch.tensor([1.0, 0.0, 1e-30, 0.0], dtype=torch.float64)], [0])
    assert np.diff(rows_of(tables)[0]).tolist() == [TOTAL - 3, 1, 1, 1]


def test_counts_are_the_best_integers_for_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        pmf = torch.rand(6, generator=generator, dtype=torch.float64) ** 20
        pmf /= pmf.sum()
        counts = torch.tensor(rows_of(tables_from_pmfs([pmf], [0]))[0]).diff().double()
        # No single count can move to another symbol and shorten the code.
        gain = (pmf * torch.log1p(1 / counts)).max()
        loss = (-pmf * torch.log1p(-1 / counts)).masked_fill(counts == 1, math.inf).min()
        assert gain <= loss + 1e-15


@pytest.mark.parametrize(
    "pmf",
    [torch.zeros(3), torch.tensor([0.5, float("nan")]), torch.tensor([1.5, -0.5]), torch.ones(1), torch.ones(2, 2)],
)
def test_rows_that_are_no_probabilities_are_refused(pmf):
    with pytest.raises(ValueError, match="Table 1"):
        tables_from_pmfs([torch.ones(2), pmf], [0, 0])


def test_every_pmf_needs_an_offset():
    with pytest.raises(ValueError, match="as many offsets"):
        tables_from_pmfs([torch.ones(2)], [])


def test_concatenation_keeps_all_tables_in_order():
    first, second = gaussian_tables([0.5, 4.0]), tables_from_pmfs([torch.ones(4)], [-7])
    both = concatenate([first, second])
    both.validate()
    assert rows_of(both) == rows_of(first) + rows_of(second)
    assert both.offsets.tolist() == [*first.offsets.tolist(), -7]
    assert len(both) == 3


@pytest.mark.parametrize(
    "tables, complaint",
    [
        (tensors([0] * 6, [2, 2], [0, 0]), "no coding tables"),
        (tensors([0, 9, TOTAL], [2], [0, 0]), "as many offsets"),
        (tensors([0, 9, TOTAL, 0, TOTAL], [2, 1], [0, 0]), "table 1 has fewer than 2"),
        (tensors([0, 9, TOTAL], [TOTAL + 1], [0]), "table 0 has more than"),
        (tensors([0, 9, TOTAL], [3], [0]), "need 4 cumulative counts, got 3"),
        (tensors([0, 9, TOTAL, 1, 9, TOTAL], [2, 2], [0, 0]), "table 1 does not start with 0"),
        (tensors([0, 9, TOTAL, 0, 9, TOTAL - 1], [2, 2], [0, 0]), "table 1 does not end with"),
        (tensors([0, 9, TOTAL, 0, 9, 9, TOTAL], [2, 3], [0, 0]), "table 1 is not strictly increasing"),
        (tensors([0, 9, 8, TOTAL, 0, 9, TOTAL], [3, 2], [0, 0]), "table 0 is not strictly increasing"),
        (tensors([0, -9, TOTAL], [2], [0]), "table 0 is not strictly increasing"),
        (tensors([0, 9, TOTAL], [2], [MAX_VALUE + 1]), "table 0 holds values beyond"),
        (tensors([0, 9, TOTAL], [2], [-MAX_VALUE - 1]), "table 0 holds values beyond"),
        (CodingTables(torch.zeros(3), torch.zeros(1), torch.zeros(1)), "must be a 1-D int32 tensor"),
    ],
)
def test_damaged_tables_are_refused_with_their_row(tables, complaint):
    with pytest.raises(ValueError, match=complaint):
        tables.validate()


def test_ideal_bits_count_escapes_with_their_side_and_distance():
    tables = tensors([0, TOTAL // 2, TOTAL * 3 // 4, TOTAL], [3], [10])  # 10: 1 bit, 11: 2 bits, escape: 2 bits
    expected = {10: 1, 11: 2, 12: 2 + ESCAPE_BITS, 9: 2 + ESCAPE_BITS, 14: 2 + ESCAPE_BITS + 1, 5: 2 + ESCAPE_BITS + 2}
    for value, bits in expected.items():
        assert ideal_bits(np.array([value]), np.array([0]), tables) == bits
