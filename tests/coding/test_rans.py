import os
import random
import threading

import numpy as np
import pytest
import torch

from comneck_hf.coding.bitstream import BitstreamError
from comneck_hf.coding.rans import TableCoder
from comneck_hf.coding.tables import (
    SCALE_TABLE,
    CodingTables,
    concatenate,
    gaussian_tables,
    ideal_bits,
    tables_from_pmfs,
)


@pytest.fixture(scope="module")
def coder() -> TableCoder:
    return TableCoder(gaussian_tables())


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gaussian_symbols(shape: tuple[int, int], *, level: float = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Symbols as a codec makes them: most at small scales, over 90 % zeros at the default level."""
    generator = np.random.default_rng(seed)
    indexes = generator.normal(level, 4, shape).round().clip(0, 63).astype(np.int16)
    return np.rint(generator.normal(size=shape) * np.array(SCALE_TABLE)[indexes]).astype(np.int16), indexes


def decoded(coder: TableCoder, payloads: list[bytes], indexes: np.ndarray, *, calls: int = 1) -> np.ndarray:
    decoder = coder.decoder(payloads)
    parts = [decoder.decode(part) for part in np.array_split(indexes, calls, axis=1)]
    decoder.finish()
    return np.concatenate(parts, axis=1)


def random_tables(generator: np.random.Generator) -> CodingTables:
    pmfs = []
    for _ in range(generator.integers(1, 6)):
        length = generator.choice([2, 3, 17, 300])
        pmfs.append(torch.from_numpy(generator.dirichlet(np.full(length, generator.choice([0.03, 1.0])))))
    return tables_from_pmfs(pmfs, generator.integers(-400, 400, len(pmfs)).tolist())


@pytest.mark.parametrize("seed", range(60))
def test_any_symbols_under_any_tables_come_back_in_near_ideal_size(seed):
    generator = np.random.default_rng(seed)
    tables = concatenate([random_tables(generator), gaussian_tables([0.11, 30.0])])
    coder = TableCoder(tables)
    shape = (generator.integers(1, 5), generator.choice([0, 1, 2, 3, 999, 2000]))
    indexes = generator.integers(0, len(tables), shape)
    spread = generator.choice([0.1, 3, 300, 20000])
    symbols = np.rint(generator.normal(0, spread, shape)).clip(-(2**15), 2**15 - 1).astype(np.int32)
    payloads = coder.encode(symbols, indexes)
    assert np.array_equal(decoded(coder, payloads, indexes, calls=generator.integers(1, 6)), symbols)
    for payload, symbol, index in zip(payloads, symbols, indexes, strict=True):
        ideal = ideal_bits(symbol, index, tables)
        assert ideal <= 8 * len(payload) <= 1.001 * ideal + 24 + 10  # the check, the last byte's rest


@pytest.mark.parametrize("value", [-(2**15), -300, -1, 0, 1, 7, 2**15 - 1])
@pytest.mark.parametrize("offset", [-(2**15) + 1, 0, 2**15 - 1])
def test_escapes_reach_every_16_bit_value_from_every_table(value, offset):
    coder = TableCoder(tables_from_pmfs([torch.ones(2)], [offset]))
    symbols = np.full((1, 50), value)
    indexes = np.zeros_like(symbols)
    assert np.array_equal(decoded(coder, coder.encode(symbols, indexes), indexes), symbols)


def test_a_picture_of_36_kilobit_is_within_a_thousandth_of_its_ideal(coder):
    symbols, indexes = gaussian_symbols((1, 81920))
    ideal = ideal_bits(symbols, indexes, coder.tables)
    assert 0.9 < (symbols == 0).mean() < 0.97
    assert 20_000 < ideal < 50_000
    assert 8 * len(coder.encode(symbols, indexes)[0]) < 1.0005 * ideal + 24


@pytest.mark.parametrize("level", [0, 20, 40, 63])
def test_the_state_loses_nothing_at_any_rate(coder, level):
    symbols, indexes = gaussian_symbols((1, 20000), level=level)
    ideal = ideal_bits(symbols, indexes, coder.tables)
    assert 8 * len(coder.encode(symbols, indexes)[0]) <= 1.0001 * ideal + 24 + 9


def test_an_empty_picture_is_its_check_alone(coder):
    nothing = np.empty((2, 0), np.int16)
    payloads = coder.encode(nothing, nothing)
    assert [len(payload) for payload in payloads] == [4, 4]
    assert decoded(coder, payloads, nothing).shape == (2, 0)


def test_an_empty_batch_is_an_empty_list(coder):
    nothing = np.empty((0, 5), np.int16)
    assert coder.encode(nothing, nothing) == []
    assert decoded(coder, [], nothing).shape == (0, 5)


def test_the_payload_of_version_1_is_fixed():
    coder = TableCoder(tables_from_pmfs([torch.tensor([1.0, 2.0, 1.0, 0.1]), torch.ones(5)], [-1, 0]))
    symbols = np.array([[0, 1, -1, 0, 5, 0, 2, -7, 0, 0, 3, 1]])
    indexes = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]])
    assert coder.encode(symbols, indexes)[0].hex() == "f36d679202849f2f45"


def test_every_integer_type_and_memory_layout_gives_the_same_bytes(coder):
    symbols, indexes = gaussian_symbols((3, 500))
    expected = coder.encode(symbols, indexes)
    for dtype in (np.int32, np.int64):
        assert coder.encode(np.asfortranarray(symbols.astype(dtype)), indexes.astype(np.uint8)) == expected
    strided = np.zeros((3, 1000), np.int16)
    strided[:, ::2] = indexes
    assert np.array_equal(decoded(coder, expected, strided[:, ::2]), symbols)


def test_each_picture_of_a_batch_has_the_bytes_it_has_alone(coder):
    symbols, indexes = gaussian_symbols((5, 300))
    alone = [coder.encode(symbols[row : row + 1], indexes[row : row + 1])[0] for row in range(5)]
    assert coder.encode(symbols, indexes) == alone


def test_threads_change_neither_bytes_nor_symbols(coder, two_threads):
    symbols, indexes = gaussian_symbols((7, 9001))
    payloads = coder.encode(symbols, indexes)
    assert np.array_equal(decoded(coder, payloads, indexes, calls=2), symbols)
    torch.set_num_threads(1)
    assert coder.encode(symbols, indexes) == payloads
    torch.set_num_threads(3)
    assert np.array_equal(decoded(coder, payloads, indexes), symbols)


def test_callers_in_several_threads_do_not_disturb_each_other(coder, two_threads):
    batches = [gaussian_symbols((4, 9000), seed=seed) for seed in range(4)]
    results = {}

    def work(seed: int) -> None:
        symbols, indexes = batches[seed]
        results[seed] = np.array_equal(decoded(coder, coder.encode(symbols, indexes), indexes, calls=3), symbols)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_can_code(coder, two_threads):
    symbols, indexes = gaussian_symbols((4, 20000))
    payloads = coder.encode(symbols, indexes)
    child = os.fork()
    if child == 0:
        os._exit(0 if coder.encode(symbols, indexes) == payloads else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_in_a_thread_reaches_the_caller(coder, two_threads):
    symbols, indexes = gaussian_symbols((2, 20000))
    indexes[1, 5] = 64
    with pytest.raises(ValueError, match=r"\[0, 64\); those of picture 1 are not"):
        coder.encode(symbols, indexes)


@pytest.mark.parametrize("index", [-1, 64, 2**15 - 1, 255])
def test_an_index_without_a_table_is_refused(coder, index):
    symbols, indexes = gaussian_symbols((2, 10))
    payloads = coder.encode(symbols, indexes)
    indexes[1, 9] = index
    with pytest.raises(ValueError, match=r"must be in \[0, 64\)"):
        coder.encode(symbols, indexes)
    with pytest.raises(ValueError, match=r"must be in \[0, 64\)"):
        coder.decoder(payloads).decode(indexes)


def test_arguments_of_the_wrong_shape_or_type_are_refused(coder):
    symbols, indexes = gaussian_symbols((2, 10))
    with pytest.raises(ValueError, match="must be equal"):
        coder.encode(symbols, indexes[:1])
    with pytest.raises(ValueError, match="2-D integer array, got 1-D int16"):
        coder.encode(symbols[0], indexes[0])
    with pytest.raises(ValueError, match="got 2-D float64"):
        coder.encode(symbols.astype(float), indexes)
    with pytest.raises(ValueError, match="16-bit integers, got 0 to 32768"):
        coder.encode(np.array([[0, 32768]]), indexes[:1, :2])
    with pytest.raises(ValueError, match="has 2 pictures, got indexes for 1"):
        coder.decoder(coder.encode(symbols, indexes)).decode(indexes[:1])


def test_a_coder_refuses_damaged_tables():
    with pytest.raises(ValueError, match="no coding tables"):
        TableCoder(CodingTables(*(torch.zeros(size, dtype=torch.int32) for size in (6, 2, 2))))


def test_every_flipped_bit_is_detected(coder):
    symbols, indexes = gaussian_symbols((1, 3000))
    payload = coder.encode(symbols, indexes)[0]
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError, match="picture 0"):
            decoded(coder, [bytes(damaged)], indexes)


def test_every_truncation_and_extension_is_detected(coder):
    symbols, indexes = gaussian_symbols((1, 3000))
    payload = coder.encode(symbols, indexes)[0]
    for length in range(len(payload)):
        with pytest.raises(BitstreamError):
            decoded(coder, [payload[:length]], indexes)
    for tail in (b"\0", b"\0\0", b"\xff\xff", bytes(1000)):
        with pytest.raises(BitstreamError):
            decoded(coder, [payload + tail], indexes)


def test_another_index_or_a_missing_symbol_is_detected(coder):
    symbols, indexes = gaussian_symbols((1, 3000), level=16)
    payloads = coder.encode(symbols, indexes)
    for position in range(0, 3000, 100):
        other = indexes.copy()
        other[0, position] = (other[0, position] + 1) % 64
        with pytest.raises(BitstreamError):
            decoded(coder, payloads, other)
    with pytest.raises(BitstreamError, match="check of its decoded symbols"):
        decoded(coder, payloads, indexes[:, :-1])


def test_the_damaged_picture_of_a_batch_is_named(coder):
    symbols, indexes = gaussian_symbols((3, 1000))
    payloads = coder.encode(symbols, indexes)
    with pytest.raises(BitstreamError, match="picture 2 ends too early"):
        decoded(coder, [*payloads[:2], payloads[2][:-6]], indexes)
    with pytest.raises(BitstreamError, match="picture 1 does not start with a state"):
        coder.decoder([payloads[0], b"abc", payloads[2]])


def test_a_decoder_stays_failed_after_an_error(coder):
    symbols, indexes = gaussian_symbols((1, 1000))
    decoder = coder.decoder([coder.encode(symbols, indexes)[0][:-6]])
    for _ in range(2):
        with pytest.raises(BitstreamError, match="ends too early"):
            decoder.decode(indexes)


def test_random_payloads_with_random_indexes_are_refused(coder):
    generator, source = np.random.default_rng(0), random.Random(0)
    tables = [coder, TableCoder(concatenate([random_tables(generator), gaussian_tables([0.11])]))]
    for case in range(4000):
        chosen = tables[case % 2]
        indexes = generator.integers(0, len(chosen.tables), (1, generator.integers(1, 200)))
        with pytest.raises(BitstreamError):
            decoded(chosen, [source.randbytes(source.randrange(100))], indexes, calls=2)


def test_mutated_payloads_are_refused(coder):
    source = random.Random(0)
    symbols, indexes = gaussian_symbols((2, 800), level=20)
    first, second = coder.encode(symbols, indexes)
    for _ in range(4000):
        damaged = bytearray(first)
        for _ in range(source.randrange(1, 5)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        if source.random() < 0.3:
            cut = source.randrange(len(damaged))
            damaged[cut:] = second[cut:]
        if damaged != first:
            with pytest.raises(BitstreamError):
                decoded(coder, [bytes(damaged)], indexes[:1])
