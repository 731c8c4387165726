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
from functools import lru_cache, partial
from queue import SimpleQueue
from threading import Lock, Thread

import numpy as np
import torch

from .bitstream import BitstreamError
from .rans_kernels import (
    BAD_INDEX,
    END,
    LOW,
    MAX_WORDS,
    OUT_OF_DATA,
    POSITION,
    STATE,
    STATUS,
    decode_pictures,
    digest,
    encode_picture,
    encoder_entries,
    slot_buckets,
    table_rows,
)
from .tables import CodingTables


__all__ = ["Decoder", "TableCoder"]

_WAKE_UP_SYMBOLS = 2**12  # about as many as a thread codes while another one wakes up


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
        rows = table_rows(cdfs, lengths, offsets, starts)
        self._encoder_tables = (rows, *encoder_entries(cdfs))
        self._decoder_tables = (rows, cdfs.astype(np.int32), slot_buckets(cdfs, lengths, starts))

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
            words = np.empty(MAX_WORDS * symbols.shape[1], np.uint16)
            for row in range(first, last):
                state, position = encode_picture(symbols, indexes, row, words, *self._encoder_tables)
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
            if len(payload) < header or state < (2**32 if header == 5 else LOW):
                raise BitstreamError(self._complaint(picture, "does not start with a state of the entropy coder"))
            words.append(np.frombuffer(payload, "<u2", offset=header))
            start, end = end, end + len(words[-1])
            self._memory[picture, [STATE, POSITION, END]] = state, start, end
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
            if decode_pictures(self._memory, self._words, indexes, symbols, first, last, *self._coder._decoder_tables):
                self._raise_for_status()

        _in_threads(decode_rows, indexes.shape)
        return symbols

    def finish(self) -> None:
        """Checks that every payload is used up and agrees with the decoded symbols.

        Raises:
            BitstreamError: If not: the payload is damaged, or was made with other table indexes.
        """
        for picture, (state, position, end, total, total_of_totals, _) in enumerate(self._memory.tolist()):
            if position != end or state != LOW + digest(total, total_of_totals):
                raise BitstreamError(self._complaint(picture, "fails the check of its decoded symbols"))

    def _raise_for_status(self) -> None:
        picture = int(self._memory[:, STATUS].nonzero()[0][0])
        status = self._memory[picture, STATUS]
        if status == BAD_INDEX:
            raise ValueError(_bad_index(self._coder.tables, picture))
        reason = "ends too early" if status == OUT_OF_DATA else "holds an impossible value"
        raise BitstreamError(self._complaint(picture, reason))

    def _complaint(self, picture: int, reason: str) -> str:
        return (
            f"The entropy-coded payload of picture {picture} {reason}: it is damaged, or was encoded with another "
            "model. Encode the picture again."
        )


def _bad_index(tables: CodingTables, picture: int) -> str:
    return f"Table indexes must be in [0, {len(tables)}); those of picture {picture} are not."


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
    """Runs `work(first, last)` over the pictures, shared among torch's number of threads where that pays.

    The calling thread begins at once and gets more of the pictures than those that have to wake up first.
    """
    pictures, threads = shape[0], torch.get_num_threads()
    share = max(0, pictures - _WAKE_UP_SYMBOLS // max(1, shape[1])) // threads
    if threads == 1 or share == 0:
        work(0, pictures)
        return
    own = pictures - share * (threads - 1)
    parts, done = range(own, pictures, share), SimpleQueue()
    jobs = _workers().jobs(threads - 1)
    for first in parts:
        jobs.put((partial(work, first, first + share), done))
    try:
        work(0, own)
    finally:
        errors = [done.get() for _ in parts]
    for error in errors:
        if error is not None:
            raise error


class _Workers:
    """Threads that wait for work. An executor's futures would take twice as long to hand over."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue = SimpleQueue()
        self._count, self._lock = 0, Lock()

    def jobs(self, threads: int) -> SimpleQueue:
        """Takes pairs of a function and the queue that gets its error or `None`; at least so many threads serve it."""
        with self._lock:
            for _ in range(self._count, threads):
                Thread(target=self._work, name="comneck-coder", daemon=True).start()
            self._count = max(self._count, threads)
        return self._jobs

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            try:
                job()
            except Exception as error:
                done.put(error)
            else:
                done.put(None)


@lru_cache(maxsize=1)
def _workers() -> _Workers:
    return _Workers()


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=_workers.cache_clear)
