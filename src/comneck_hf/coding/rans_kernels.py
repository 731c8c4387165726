"""The loops of the table coder, compiled by numba, and the memory layout they share with `rans.py`."""

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from .jit import compiled
from .tables import ESCAPE_BITS, PRECISION


TOTAL = 2**PRECISION
LOW_BITS = 24
LOW = 2**LOW_BITS
STATE_BITS = LOW_BITS + 16
MAX_WORDS = 3  # words that coding one symbol can emit: the symbol, an escape's side and magnitude, its lower bits
# A slot without its lower bits is its bucket; 32 a table keep the memory of the decoder small enough to stay cached
BUCKET_BITS = 11

# Columns of the decoder's memory, one int64 row per picture.
STATE, POSITION, END, SUM, SUM_OF_SUMS, STATUS = range(6)
OUT_OF_DATA, BAD_VALUE, BAD_INDEX = range(1, 4)

# Columns of the table rows: most probable value, its start and count, first entry in the cdfs, value of symbol 0,
# number of the escape symbol.
MODE, MODE_START, MODE_COUNT, FIRST, OFFSET, ESCAPE = range(6)


def table_rows(cdfs: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Per table: the columns named above, padded to a power of two."""
    rows = np.zeros((len(lengths), 8), np.int32)
    for table, (start, length, offset) in enumerate(zip(starts, lengths, offsets, strict=True)):
        cdf = cdfs[start : start + length + 1]
        mode = np.diff(cdf)[: length - 1].argmax()
        rows[table, :6] = offset + mode, cdf[mode], cdf[mode + 1] - cdf[mode], start, offset, length - 1
    return rows


def slot_buckets(cdfs: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint16 `(tables, buckets)`: the symbol that the first slot of each bucket belongs to."""
    slots = np.arange(0, TOTAL, 2**BUCKET_BITS)
    buckets = np.empty((len(lengths), len(slots)), np.uint16)
    for table, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        buckets[table] = np.searchsorted(cdfs[start : start + length + 1], slots, side="right") - 1
    return buckets


def encoder_entries(cdfs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per entry of `cdfs`: start and count, and the count's reciprocal in units of `2**-63`.

    Rounded up, it makes the high half of a product with a state below `2**40` an exact integer quotient: the
    error is below `2**-23`, less than the `1 / count` that could reach the next integer.
    """
    counts = np.maximum(np.diff(cdfs, append=0), 1)  # the last entry of a row has no symbol
    codes = np.stack([cdfs, counts], axis=1).astype(np.int32)
    return codes, (2**63 // counts.astype(np.uint64) + 1).astype(np.uint64)


def digest(total: int, total_of_totals: int) -> int:
    """24 bits from the sum of the symbols and the sum of its prefixes, both modulo 2**32."""
    mixed = (total * 0x9E3779B1 ^ total_of_totals * 0x85EBCA6B) & 0xFFFFFFFF
    return (mixed ^ mixed >> 15) & (LOW - 1)


@intrinsic
def _high_product(typing_context, first, second):
    """Upper 64 bits of the 128-bit product of two uint64."""

    def generate(context, builder, signature, arguments):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return numba.uint64(numba.uint64, numba.uint64), generate


_jit_digest = numba.njit(digest, nogil=True)


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
    if state < np.uint64(LOW):
        return state << np.uint64(16) | np.uint64(words[min(position, end)]), position + np.uint64(1)
    return state, position


@compiled
def encode_picture(
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
    state = np.uint64(LOW + _jit_digest(np.int64(total), np.int64(total_of_totals)))
    position = np.uint64(words.size)
    for i in range(symbols.shape[1] - 1, -1, -1):
        index = np.uint64(indexes[picture, i])
        symbol = np.int64(symbols[picture, i]) - rows[index, OFFSET]
        escape = np.int64(rows[index, ESCAPE])
        if symbol < 0 or symbol >= escape:
            side = np.uint64(symbol < 0)
            distance = np.uint64(-symbol if symbol < 0 else symbol - escape + 1)
            magnitude = np.uint64(0)
            while distance >> (magnitude + np.uint64(1)):
                magnitude += np.uint64(1)
            if state >> (np.uint64(STATE_BITS) - magnitude):
                position -= np.uint64(1)
                words[position] = np.uint16(state)
                state >>= np.uint64(16)
            state = state << magnitude | (distance ^ np.uint64(1) << magnitude)
            if state >> np.uint64(STATE_BITS - ESCAPE_BITS):
                position -= np.uint64(1)
                words[position] = np.uint16(state)
                state >>= np.uint64(16)
            state = state << np.uint64(ESCAPE_BITS) | magnitude << np.uint64(1) | side
            symbol = escape
        entry = np.uint64(rows[index, FIRST] + symbol)
        count = np.uint64(codes[entry, 1])
        if state >= count << np.uint64(LOW_BITS):
            position -= np.uint64(1)
            words[position] = np.uint16(state)
            state >>= np.uint64(16)
        quotient = _high_product(state << np.uint64(1), reciprocals[entry])
        state += np.uint64(codes[entry, 0]) + quotient * (np.uint64(TOTAL) - count)
    return np.int64(state), np.int64(position)


@compiled
def decode_pictures(
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
            memory[picture, STATUS] = BAD_INDEX
            continue
        state, end = np.uint64(memory[picture, STATE]), np.uint64(memory[picture, END])
        position = np.uint64(memory[picture, POSITION])
        total, total_of_totals = np.uint32(memory[picture, SUM]), np.uint32(memory[picture, SUM_OF_SUMS])
        for i in range(indexes.shape[1]):
            index = np.uint64(np.uint16(indexes[picture, i]))
            slot = state & np.uint64(TOTAL - 1)
            in_mode = slot - np.uint64(rows[index, MODE_START])  # wraps around below the mode
            value = np.int64(rows[index, MODE])
            if in_mode < np.uint64(rows[index, MODE_COUNT]):
                state = np.uint64(rows[index, MODE_COUNT]) * (state >> np.uint64(PRECISION)) + in_mode
            else:
                first = np.uint64(rows[index, FIRST])
                entry = first + np.uint64(buckets[index, slot >> np.uint64(BUCKET_BITS)])
                while np.uint64(cdfs[entry + np.uint64(1)]) <= slot:
                    entry += np.uint64(1)
                start = np.uint64(cdfs[entry])
                count = np.uint64(cdfs[entry + np.uint64(1)]) - start
                state = count * (state >> np.uint64(PRECISION)) + slot - start
                symbol = np.int64(entry - first)
                if symbol == rows[index, ESCAPE]:
                    state, position = _renormalized(state, position, end, words)
                    below, magnitude = state & np.uint64(1), state >> np.uint64(1) & np.uint64(15)
                    state, position = _renormalized(state >> np.uint64(ESCAPE_BITS), position, end, words)
                    leading = np.uint64(1) << magnitude
                    distance = np.int64(leading | state & leading - np.uint64(1))
                    state >>= magnitude
                    symbol = -distance if below else symbol - 1 + distance
                value = symbol + rows[index, OFFSET]
                if value != np.int16(value):
                    memory[picture, STATUS] = BAD_VALUE
            state, position = _renormalized(state, position, end, words)
            symbols[picture, i] = np.int16(value)
            total = np.uint32(total + np.uint32(value))
            total_of_totals = np.uint32(total_of_totals + total)
        memory[picture, STATE], memory[picture, POSITION] = np.int64(state), np.int64(position)
        memory[picture, SUM], memory[picture, SUM_OF_SUMS] = np.int64(total), np.int64(total_of_totals)
        if position > end:
            memory[picture, STATUS] = OUT_OF_DATA
    return memory[first_picture:last_picture, STATUS].any()


__all__ = [
    "BAD_INDEX",
    "END",
    "LOW",
    "MAX_WORDS",
    "OUT_OF_DATA",
    "POSITION",
    "STATE",
    "STATUS",
    "decode_pictures",
    "digest",
    "encode_picture",
    "encoder_entries",
    "slot_buckets",
    "table_rows",
]
