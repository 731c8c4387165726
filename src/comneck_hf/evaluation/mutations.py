"""Broken bitstreams by number: random damage to valid ones, with and without a checksum that fits."""

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from ..coding.bitstream import BITSTREAM_VERSION, MAGIC, Bitstream
from ..coding.gain_map import MAX_GAIN, MIN_GAIN, GainMap


__all__ = ["MUTATIONS", "drawn_mutation", "mutated"]


def _damaged(source: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """One to four edits: flip, replace, cut, append, remove, repeat, splice."""
    result = bytearray(data)
    for _ in range(source.randint(1, 4)):
        size = len(result)
        at, span = source.randrange(size + 1), source.randint(1, 12)
        edit = source.randrange(7)
        if edit == 0 and size:
            result[at % size] ^= 1 << source.randrange(8)
        elif edit == 1:
            result[at : at + span] = source.randbytes(min(span, size - at))
        elif edit == 2:
            del result[at:]
        elif edit == 3:
            result += source.randbytes(span) if source.random() < 0.5 else bytes(span)
        elif edit == 4:
            del result[at : at + span]
        elif edit == 5:
            result[at:at] = result[at : at + span]
        else:
            other = source.choice(corpus)
            result[at:] = other[source.randrange(len(other)) :]
    return bytes(result)


def _one_bit(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    data = bytearray(source.choice(corpus))
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(data)


def _truncated(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    data = source.choice(corpus)
    return data[: source.randrange(len(data))]


def _edited(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    return _damaged(source, source.choice(corpus), corpus)


def _spliced(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    first, second = source.choice(corpus), source.choice(corpus)
    return first[: source.randrange(len(first))] + second[source.randrange(len(second)) :]


def _noise(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    return source.randbytes(source.randrange(300))


def _noise_behind_magic(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    return MAGIC + bytes([source.randint(1, BITSTREAM_VERSION)]) + source.randbytes(source.randrange(300))


def _header(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Any byte of the header, behind a checksum that fits."""
    data = bytearray(source.choice(corpus)[:-4])
    for _ in range(source.randint(1, 3)):
        data[source.randrange(12)] = source.choice([0, 1, 127, 128, 255, source.randrange(256)])
    return _with_checksum(bytes(data))


def _repaired(edit: Callable[[random.Random, Bitstream, list[bytes]], dict[str, Any]]) -> Callable[..., bytes]:
    """A mutation that changes fields of a valid bitstream and packs them with a checksum that fits."""

    def mutation(source: random.Random, corpus: Sequence[bytes]) -> bytes:
        bitstream = Bitstream.parse(source.choice(corpus))
        payloads = [Bitstream.parse(data).payload for data in source.choices(corpus, k=2)]
        fields = {**vars(bitstream), **edit(source, bitstream, payloads)}
        return Bitstream(**fields).pack()

    return mutation


def _random_side(source: random.Random) -> int:
    return min(int(2 ** source.uniform(0, 28)), 2**28 - 1)


def _any_size(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"height": _random_side(source), "width": source.choice([bitstream.width, _random_side(source)])}


def _small_size(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"height": source.randint(1, 200), "width": source.randint(1, 200)}


def _other_fingerprint(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"fingerprint": bitstream.fingerprint ^ 1 << source.randrange(32)}


def _payload_bit(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"payload": _one_bit(source, payloads)}


def _payload_edited(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"payload": _damaged(source, bitstream.payload, payloads)}


def _payload_spliced(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"payload": _spliced(source, payloads)}


def _payload_noise(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    noise = source.randbytes(source.randrange(300))
    return {"payload": source.choice([noise, noise, bytes(len(noise)), b"\xff" * len(noise)])}


def _gains(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    """Any gain, and any map or none."""
    gain = source.choice([MIN_GAIN, MAX_GAIN, 0, source.randint(MIN_GAIN, MAX_GAIN)])
    levels, rows, columns = source.choice([3, 5, 31]), source.randint(1, 12), source.randint(1, 12)
    half = levels // 2
    index = tuple(tuple(source.randint(-half, half) for _ in range(columns)) for _ in range(rows))
    gain_map = source.choice([None, GainMap(index, step=source.randint(1, 15), levels=levels)])
    return {"gain": gain, "gain_map": gain_map}


def _map_bytes(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Any byte of the part of the header that version 2 has, behind a checksum that fits."""
    newest = [data for data in corpus if data[3] == BITSTREAM_VERSION]
    data = bytearray(source.choice(newest or corpus)[:-4])
    for _ in range(source.randint(1, 3)):
        data[source.randrange(10, 32)] = source.choice([0, 1, 127, 128, 255, source.randrange(256)])
    return _with_checksum(bytes(data[: source.choice([len(data), source.randrange(10, 32)])]))


MUTATIONS: dict[str, tuple[int, Callable[[random.Random, Sequence[bytes]], bytes]]] = {
    "one bit flipped": (10, _one_bit),
    "truncated": (10, _truncated),
    "edited": (22, _edited),
    "spliced": (10, _spliced),
    "random": (8, _noise),
    "random behind magic": (10, _noise_behind_magic),
    "header, checksum repaired": (6, _header),
    "sizes, checksum repaired": (6, _repaired(_any_size)),
    "small sizes, checksum repaired": (2, _repaired(_small_size)),
    "fingerprint, checksum repaired": (4, _repaired(_other_fingerprint)),
    "gains, checksum repaired": (4, _repaired(_gains)),
    "gain map bytes, checksum repaired": (4, _map_bytes),
    "payload bit flipped, checksum repaired": (3, _repaired(_payload_bit)),
    "payload edited, checksum repaired": (4, _repaired(_payload_edited)),
    "payload spliced, checksum repaired": (3, _repaired(_payload_spliced)),
    "payload random, checksum repaired": (2, _repaired(_payload_noise)),
}
"""Name -> weight and function. With a repaired checksum, a bitstream reaches the header checks and the decoder."""

_NAMES = tuple(MUTATIONS)
_WEIGHTS = tuple(weight for weight, _ in MUTATIONS.values())


def mutated(number: int, corpus: Sequence[bytes], *, seed: int = 0) -> tuple[str, bytes]:
    """Mutation and bytes of one case.

    Args:
        number: Number of the case.
        corpus: Valid bitstreams of one model.
        seed: Seed of the whole run.
    """
    source, name = drawn_mutation(number, seed=seed)
    return name, MUTATIONS[name][1](source, corpus)


def drawn_mutation(number: int, *, seed: int = 0) -> tuple[random.Random, str]:
    """Source of randomness of one case, and the mutation drawn from it first."""
    source = random.Random(number << 32 | seed)
    return source, source.choices(_NAMES, _WEIGHTS)[0]


def _with_checksum(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")
