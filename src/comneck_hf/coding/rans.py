"""The table coder: range asymmetric numeral systems (rANS) over integer tables, compiled by numba.

One stream per picture. The state stays in `[2**24, 2**40)` and is renormalized in 16-bit words:

    payload = state after encoding (4 bytes, or 5 if it needs them; the payload's parity tells) | words, little endian

The encoder starts from the state `2**24 + check`, where `check` is a 24-bit digest of all symbols, and goes backwards.
The decoder must therefore end with all words read and with a state that agrees with the symbols it saw: the digest
costs nothing beyond its 24 bits, and a corrupt payload passes with a probability of `2**-24`. With 16-bit counts a
lower bound of `2**16` would lose 0.15 % of the bits to rounding; here it is 0.001 %.

A value outside its table is coded as the table's escape symbol, 5 bits for its side and the magnitude of its distance
from the table, and that distance without its leading bit.

Most symbols are their table's most probable one. The decoder tests for that one first: when the branch predictor
is right, neither the search nor its memory accesses lie on the path from one state to the next. One state then
outruns several interleaved ones, which would waste 24 bits each.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic

from .bitstream import BitstreamError
from .jit import compiled
from .tables import ESCAPE_BITS, PRECISION, CodingTables


__all__ = ["Decoder", "TableCoder"]

_TOTAL = 2**PRECISION
_LOW_BITS = 24
_LOW = 2**_LOW_BITS
_STATE_BITS = _LOW_BITS + 16
_MAX_WORDS = 3  # words that coding one symbol can emit: the symbol, an escape's side and magnitude, its lower bits
_BUCKET_BITS = 11  # of a slot's lower bits: 32 buckets a table keep the decoder's memory small, so that it stays cached
_PARALLEL_SYMBOLS = 2**15  # below, handing work to a thread takes longer than doing it

# Columns of the decoder's memory, one int64 row per picture.
_STATE, _POSITION, _END, _SUM, _SUM_OF_SUMS, _STATUS = range(6)
_OUT_OF_DATA, _BAD_VALUE, _BAD_INDEX = range(1, 4)

# Columns of the table rows: most probable value, its start and count, first entry in the cdfs, value of symbol 0,
# number of the escape symbol.
_MODE, _MODE_START, _MODE_COUNT, _FIRST, _OFFSET, _ESCAPE = range(6)


class TableCoder:
    """Codes integer symbols with a set of tables; keeps what the compiled loops need.

    Args:
        tables: Valid coding tables.

    Raises:
        ValueError: If the tables are not valid.
    """

    def __init__(self, tables: CodingTables) -> None:
        tables.validate()
        self.tables = tables
        cdfs = tables.cdfs.numpy().astype(np.int64)
        lengths = tables.lengths.numpy().astype(np.int64)
        offsets = tables.offsets.numpy().astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        rows = _table_rows(cdfs, lengths, offsets, starts)
        self._encoder_tables = (rows, *_encoder_entries(cdfs))
        self._decoder_tables = (rows, cdfs.astype(np.int32), _slot_buckets(cdfs, lengths, starts))

    def encode(self, symbols: np.ndarray, indexes: np.ndarray) -> list[bytes]:
        """Codes one payload per picture.

        Args:
            symbols: Shape `(pictures, symbols)`, any integer type, values of 16 bits.
            indexes: Same shape: each symbol's table, in `[0, len(tables))`.

        Raises:
            ValueError: If shapes differ, or a symbol or an index is out of range.
        """
        symbols = _as_int16(symbols, name="symbols")
        indexes = _as_int16(indexes, name="indexes")
        if symbols.shape != indexes.shape:
            raise ValueError(f"`symbols` has shape {symbols.shape} and `indexes` {indexes.shape}; they must be equal.")
        payloads: list[bytes] = [b""] * len(symbols)

        def encode_rows(first: int, last: int) -> None:
            words = np.empty(_MAX_WORDS * symbols.shape[1], np.uint16)
            for row in range(first, last):
                state, position = _encode(symbols, indexes, row, words, *self._encoder_tables)
                if position < 0:
                    raise ValueError(_bad_index(self.tables, row))
                header = state.to_bytes(4 if state < 2**32 else 5, "little")
                payloads[row] = header + words[position:].astype("<u2", copy=False).tobytes()

        _in_threads(encode_rows, symbols.shape)
        return payloads

    def decoder(self, payloads: Sequence[bytes]) -> "Decoder":
        """Starts decoding one payload per picture. Raises `BitstreamError` if a payload is too short to be one."""
        return Decoder(self, payloads)


class Decoder:
    """Decodes a batch of payloads step by step, because later table indexes depend on earlier symbols.

    Call `decode` as often as needed, then `finish`; use the symbols only if `finish` did not raise.

    Args:
        coder: The tables, prepared.
        payloads: One per picture, made by `TableCoder.encode`.

    Raises:
        BitstreamError: If a payload cannot hold a state.
    """

    def __init__(self, coder: TableCoder, payloads: Sequence[bytes]) -> None:
        self._coder = coder
        self._memory = np.zeros((len(payloads), 6), np.int64)
        words, end = [], 0
        for picture, payload in enumerate(payloads):
            header = 4 + len(payload) % 2
            state = int.from_bytes(payload[:header], "little")
            # A state that fits 4 bytes is never written with 5.
            if len(payload) < header or state < (2**32 if header == 5 else _LOW):
                raise BitstreamError(self._complaint(picture, "does not start with a state of the entropy coder"))
            words.append(np.frombuffer(payload, "<u2", offset=header))
            start, end = end, end + len(words[-1])
            self._memory[picture, [_STATE, _POSITION, _END]] = state, start, end
        words.append(np.zeros(1, "<u2"))
        self._words = np.concatenate(words).astype(np.uint16, copy=False)

    def decode(self, indexes: np.ndarray) -> np.ndarray:
        """Decodes the next symbols of every picture.

        Args:
            indexes: Shape `(pictures, symbols)`: each symbol's table, in `[0, len(tables))`.

        Returns:
            int16, same shape.

        Raises:
            BitstreamError: If a payload ends too early or holds an impossible value.
            ValueError: If an index is out of range or the number of pictures differs.
        """
        indexes = _as_int16(indexes, name="indexes")
        if len(indexes) != len(self._memory):
            raise ValueError(f"This decoder has {len(self._memory)} pictures, got indexes for {len(indexes)}.")
        symbols = np.empty(indexes.shape, np.int16)

        def decode_rows(first: int, last: int) -> None:
            if _decode(self._memory, self._words, indexes, symbols, first, last, *self._coder._decoder_tables):
                self._raise_for_status()

        _in_threads(decode_rows, indexes.shape)
        return symbols

    def finish(self) -> None:
        """Checks that every payload is used up and agrees with the decoded symbols.

        Raises:
            BitstreamError: If not: the payload is damaged, or was made with other table indexes.
        """
        for picture, (state, position, end, total, total_of_totals, _) in enumerate(self._memory.tolist()):
            if position != end or state != _LOW + _digest(total, total_of_totals):
                raise BitstreamError(self._complaint(picture, "fails the check of its decoded symbols"))

    def _raise_for_status(self) -> None:
        picture = int(self._memory[:, _STATUS].nonzero()[0][0])
        status = self._memory[picture, _STATUS]
        if status == _BAD_INDEX:
            raise ValueError(_bad_index(self._coder.tables, picture))
        reason = "ends too early" if status == _OUT_OF_DATA else "holds an impossible value"
        raise BitstreamError(self._complaint(picture, reason))

    def _complaint(self, picture: int, reason: str) -> str:
        return (
            f"The entropy-coded payload of picture {picture} {reason}: it is damaged, or was encoded with another "
            "model. Encode the picture again."
        )


def _bad_index(tables: CodingTables, picture: int) -> str:
    return f"Table indexes must be in [0, {len(tables)}); those of picture {picture} are not."


def _table_rows(cdfs: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Per table: the columns named above, padded to a power of two."""
    rows = np.zeros((len(lengths), 8), np.int32)
    for table, (start, length, offset) in enumerate(zip(starts, lengths, offsets, strict=True)):
        cdf = cdfs[start : start + length + 1]
        mode = np.diff(cdf)[: length - 1].argmax()
        rows[table, :6] = offset + mode, cdf[mode], cdf[mode + 1] - cdf[mode], start, offset, length - 1
    return rows


def _slot_buckets(cdfs: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint16 `(tables, buckets)`: the symbol that the first slot of each bucket belongs to."""
    slots = np.arange(0, _TOTAL, 2**_BUCKET_BITS)
    buckets = np.empty((len(lengths), len(slots)), np.uint16)
    for table, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        buckets[table] = np.searchsorted(cdfs[start : start + length + 1], slots, side="right") - 1
    return buckets


def _encoder_entries(cdfs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per entry of `cdfs`: start and count, and the count's reciprocal in units of `2**-63`.

    Rounded up, it makes the high half of a product with a state below `2**40` an exact integer quotient: the
    error is below `2**-23`, less than the `1 / count` that could reach the next integer.
    """
    counts = np.maximum(np.diff(cdfs, append=0), 1)  # the last entry of a row has no symbol
    codes = np.stack([cdfs, counts], axis=1).astype(np.int32)
    return codes, (2**63 // counts.astype(np.uint64) + 1).astype(np.uint64)


def _as_int16(array: np.ndarray, *, name: str) -> np.ndarray:
    """C-contiguous int16 of shape `(pictures, symbols)`; refuses what does not fit."""
    if type(array) is np.ndarray and array.dtype == np.int16 and array.ndim == 2 and array.flags.c_contiguous:
        return array
    array = np.asarray(array)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"`{name}` must be a 2-D integer array, got {array.ndim}-D {array.dtype}.")
    if not np.can_cast(array.dtype, np.int16) and array.size and not -(2**15) <= array.min() <= array.max() < 2**15:
        raise ValueError(f"`{name}` must be 16-bit integers, got {array.min()} to {array.max()}.")
    return np.ascontiguousarray(array, np.int16)


def _in_threads(work: Callable[[int, int], None], shape: tuple[int, int]) -> None:
    """Runs `work(first, last)` over the pictures, split among torch's number of threads where that pays."""
    pictures = shape[0]
    if pictures < 2 or pictures * shape[1] < _PARALLEL_SYMBOLS or torch.get_num_threads() == 1:
        work(0, pictures)
        return
    threads = min(torch.get_num_threads(), pictures)
    bounds = [pictures * part // threads for part in range(threads + 1)]
    futures = [_pool(threads).submit(work, first, last) for first, last in zip(bounds[1:-1], bounds[2:], strict=True)]
    try:
        work(0, bounds[1])
    finally:
        wait(futures)
    for future in futures:
        future.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="comneck-coder")


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _digest(total: int, total_of_totals: int) -> int:
    """24 bits from the sum of the symbols and the sum of its prefixes, both modulo 2**32."""
    mixed = (total * 0x9E3779B1 ^ total_of_totals * 0x85EBCA6B) & 0xFFFFFFFF
    return (mixed ^ mixed >> 15) & (_LOW - 1)


@intrinsic
def _high_product(typing_context, first, second):
    """Upper 64 bits of the 128-bit product of two uint64."""

    def generate(context, builder, signature, arguments):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return numba.uint64(numba.uint64, numba.uint64), generate


_jit_digest = numba.njit(_digest, nogil=True)


@numba.njit(nogil=True)
def _largest(indexes: np.ndarray) -> np.uint16:
    """The largest of some table indexes; negative ones count as large."""
    largest = np.uint16(0)
    for i in range(indexes.size):
        largest = max(largest, np.uint16(indexes[i]))
    return largest


@numba.njit(nogil=True)
def _renormalized(state: np.uint64, position: np.uint64, end: np.uint64, words: np.ndarray) -> tuple:
    """The state with one more word below, if it is under its lower bound, and the position after that word."""
    if state < np.uint64(_LOW):
        return state << np.uint64(16) | np.uint64(words[min(position, end)]), position + np.uint64(1)
    return state, position


@compiled
def _encode(
    symbols: np.ndarray,
    indexes: np.ndarray,
    picture: int,
    words: np.ndarray,
    rows: np.ndarray,
    codes: np.ndarray,
    reciprocals: np.ndarray,
) -> tuple[int, int]:
    """Codes one picture backwards into the end of `words`.

    Returns the final state and the first word's position, which is -1 if an index is out of range.
    """
    if _largest(indexes[picture]) >= rows.shape[0]:
        return np.int64(0), np.int64(-1)
    total = np.uint32(0)
    total_of_totals = np.uint32(0)
    for i in range(symbols.shape[1]):
        total = np.uint32(total + np.uint32(symbols[picture, i]))
        total_of_totals = np.uint32(total_of_totals + total)
    state = np.uint64(_LOW + _jit_digest(np.int64(total), np.int64(total_of_totals)))
    position = np.uint64(words.size)
    for i in range(symbols.shape[1] - 1, -1, -1):
        index = np.uint64(indexes[picture, i])
        symbol = np.int64(symbols[picture, i]) - rows[index, _OFFSET]
        escape = np.int64(rows[index, _ESCAPE])
        if symbol < 0 or symbol >= escape:
            side = np.uint64(symbol < 0)
            distance = np.uint64(-symbol if symbol < 0 else symbol - escape + 1)
            magnitude = np.uint64(0)
            while distance >> (magnitude + np.uint64(1)):
                magnitude += np.uint64(1)
            if state >> (np.uint64(_STATE_BITS) - magnitude):
                position -= np.uint64(1)
                words[position] = np.uint16(state)
                state >>= np.uint64(16)
            state = state << magnitude | (distance ^ np.uint64(1) << magnitude)
            if state >> np.uint64(_STATE_BITS - ESCAPE_BITS):
                position -= np.uint64(1)
                words[position] = np.uint16(state)
                state >>= np.uint64(16)
            state = state << np.uint64(ESCAPE_BITS) | magnitude << np.uint64(1) | side
            symbol = escape
        entry = np.uint64(rows[index, _FIRST] + symbol)
        count = np.uint64(codes[entry, 1])
        if state >= count << np.uint64(_LOW_BITS):
            position -= np.uint64(1)
            words[position] = np.uint16(state)
            state >>= np.uint64(16)
        quotient = _high_product(state << np.uint64(1), reciprocals[entry])
        state += np.uint64(codes[entry, 0]) + quotient * (np.uint64(_TOTAL) - count)
    return np.int64(state), np.int64(position)


@compiled
def _decode(
    memory: np.ndarray,
    words: np.ndarray,
    indexes: np.ndarray,
    symbols: np.ndarray,
    first_picture: int,
    last_picture: int,
    rows: np.ndarray,
    cdfs: np.ndarray,
    buckets: np.ndarray,
) -> bool:
    """Decodes the next symbols of a range of pictures and leaves their status in `memory`.

    Reads behind a picture's end give the word there (`words` has a spare one), and the position tells afterwards.
    Returns whether any of these pictures has an error.
    """
    for picture in range(first_picture, last_picture):
        if _largest(indexes[picture]) >= rows.shape[0]:
            memory[picture, _STATUS] = _BAD_INDEX
            continue
        state, end = np.uint64(memory[picture, _STATE]), np.uint64(memory[picture, _END])
        position = np.uint64(memory[picture, _POSITION])
        total, total_of_totals = np.uint32(memory[picture, _SUM]), np.uint32(memory[picture, _SUM_OF_SUMS])
        for i in range(indexes.shape[1]):
            index = np.uint64(np.uint16(indexes[picture, i]))
            slot = state & np.uint64(_TOTAL - 1)
            in_mode = slot - np.uint64(rows[index, _MODE_START])  # wraps around below the mode
            value = np.int64(rows[index, _MODE])
            if in_mode < np.uint64(rows[index, _MODE_COUNT]):
                state = np.uint64(rows[index, _MODE_COUNT]) * (state >> np.uint64(PRECISION)) + in_mode
            else:
                first = np.uint64(rows[index, _FIRST])
                entry = first + np.uint64(buckets[index, slot >> np.uint64(_BUCKET_BITS)])
                while np.uint64(cdfs[entry + np.uint64(1)]) <= slot:
                    entry += np.uint64(1)
                start = np.uint64(cdfs[entry])
                count = np.uint64(cdfs[entry + np.uint64(1)]) - start
                state = count * (state >> np.uint64(PRECISION)) + slot - start
                symbol = np.int64(entry - first)
                if symbol == rows[index, _ESCAPE]:
                    state, position = _renormalized(state, position, end, words)
                    below, magnitude = state & np.uint64(1), state >> np.uint64(1) & np.uint64(15)
                    state, position = _renormalized(state >> np.uint64(ESCAPE_BITS), position, end, words)
                    leading = np.uint64(1) << magnitude
                    distance = np.int64(leading | state & leading - np.uint64(1))
                    state >>= magnitude
                    symbol = -distance if below else symbol - 1 + distance
                value = symbol + rows[index, _OFFSET]
                if value != np.int16(value):
                    memory[picture, _STATUS] = _BAD_VALUE
            state, position = _renormalized(state, position, end, words)
            symbols[picture, i] = np.int16(value)
            total = np.uint32(total + np.uint32(value))
            total_of_totals = np.uint32(total_of_totals + total)
        memory[picture, _STATE], memory[picture, _POSITION] = np.int64(state), np.int64(position)
        memory[picture, _SUM], memory[picture, _SUM_OF_SUMS] = np.int64(total), np.int64(total_of_totals)
        if position > end:
            memory[picture, _STATUS] = _OUT_OF_DATA
    return memory[first_picture:last_picture, _STATUS].any()
