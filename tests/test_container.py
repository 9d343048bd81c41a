"""Compressed files and the entropy coder: round trips, exactness of the integer tables, and files that are refused."""

import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_autoencoders.models.container import FIELDS, CompressedFileError, Container, read_varint, write_varint
from hf_autoencoders.models.entropy_coding import (
    MAX_SYMBOL,
    PRECISION,
    SymbolDecoder,
    SymbolEncoder,
    SymbolTables,
    quantize_table,
)

FINGERPRINT = bytes(range(8))
KIND = "image codec"


def container(payload=b"payload", **fields):
    return Container(KIND, FINGERPRINT, {"quality": 32, "height": 256, "width": 192, "channels": 3} | fields, payload)


def with_checksum(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def read(data, **kwargs):
    return Container.from_bytes(data, KIND, FINGERPRINT, **kwargs)


# ---- the container


@settings(deadline=None)
@given(
    payload=st.binary(max_size=300),
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    quality=st.integers(0, 2**32 - 1),
)
def test_what_was_written_is_read(payload, height, width, quality):
    written = container(payload, height=height, width=width, quality=quality)
    assert read(written.to_bytes()) == written


@given(st.integers(0, 2**32 - 1), st.binary(max_size=4))
def test_numbers_of_variable_length(value, behind):
    data = write_varint(value)
    assert len(data) == max(1, -(-value.bit_length() // 7))
    assert read_varint(data + behind, 0) == (value, len(data))
    for end in range(len(data)):
        with pytest.raises(CompressedFileError, match="ends within a number"):
            read_varint(data[:end], 0)


@pytest.mark.parametrize("data", [b"\xff" * 5, b"\x80\x00", b"\xff\xff\xff\xff\x7f", b"\xff" * 4 + b"\x10"])
def test_numbers_that_cannot_have_been_written(data):
    with pytest.raises(CompressedFileError, match="cannot write"):
        read_varint(data, 0)


def test_the_header_of_a_photo_is_short():
    assert len(container(b"").to_bytes()) <= 25
    assert len(container(bytes(3000), height=4000, width=6000).to_bytes()) - 3000 <= 26


def test_files_cut_off_anywhere_are_refused():
    data = container(bytes(range(40))).to_bytes()
    for end in range(len(data)):
        with pytest.raises(CompressedFileError):
            read(data[:end])
    with pytest.raises(CompressedFileError, match="checksum"):
        read(data + b"\0")


def test_any_flipped_bit_is_noticed():
    data = container(bytes(range(20))).to_bytes()
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(CompressedFileError):
            read(bytes(changed))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    for attempt in (data, b"HFAE" + data, with_checksum(b"HFAE\x01\x01" + data)):
        with pytest.raises(CompressedFileError):
            read(attempt)


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_random_fields_with_a_good_checksum_are_read_or_refused(data):
    """Who writes hostile files knows how to compute a checksum."""
    try:
        found = read(with_checksum(b"HFAE\x01\x01" + FINGERPRINT + data), max_pixels=10**6)
    except CompressedFileError:
        return
    assert 1 <= found.fields["height"] * found.fields["width"] <= 10**6
    assert found.to_bytes() == with_checksum(b"HFAE\x01\x01" + FINGERPRINT + data)


def test_foreign_files_are_told_apart():
    data = container().to_bytes()
    body = bytearray(data[:-4])
    with pytest.raises(CompressedFileError, match="does not begin with HFAE"):
        read(b"\x89PNG" + data[4:])
    body[4] = 2
    with pytest.raises(CompressedFileError, match="of format 2, this version reads 1"):
        read(with_checksum(bytes(body)))
    body[4:6] = 1, 2
    with pytest.raises(CompressedFileError, match="holds codes, this model decodes image codec"):
        read(with_checksum(bytes(body)))
    body[5] = 77
    with pytest.raises(CompressedFileError, match=r"an unknown kind of payload \(77\)"):
        read(with_checksum(bytes(body)))
    with pytest.raises(CompressedFileError, match="another model.*0001020304050607.*that of this model 0000"):
        Container.from_bytes(data, KIND, bytes(8))
    with pytest.raises(TypeError, match="expected the bytes of a compressed file, got str"):
        read("HFAE")


@pytest.mark.parametrize(("height", "width"), [(0, 5), (2**32 - 1, 2**32 - 1), (1000, 1001)])
def test_sizes_beyond_the_limit_are_refused(height, width):
    data = container(height=height, width=width).to_bytes()
    with pytest.raises(CompressedFileError, match=f"{height} x {width} pixels, allowed are 1 to 1000000"):
        read(data, max_pixels=10**6)


def test_announced_length_must_be_there():
    whole = container(b"12345").to_bytes()[:-4]
    with pytest.raises(CompressedFileError, match="announces 5 bytes and holds 4"):
        read(with_checksum(whole[:-1]))


def test_wrong_containers_cannot_be_written():
    with pytest.raises(ValueError, match="unknown kind of payload 'zip'"):
        Container("zip", FINGERPRINT, {}, b"").to_bytes()
    with pytest.raises(ValueError, match="needs the fields quality, height, width, channels, got height"):
        Container(KIND, FINGERPRINT, {"height": 1}, b"").to_bytes()
    with pytest.raises(ValueError, match="has 8 bytes, got 3"):
        Container(KIND, b"abc", container().fields, b"").to_bytes()
    with pytest.raises(ValueError, match="from 0 to 4294967295, got -1"):
        container(quality=-1).to_bytes()
    assert len({number for number, _ in FIELDS.values()}) == len(FIELDS)


# ---- the entropy coder


def random_tables(seed=0, num_tables=5, num_symbols=12):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(num_symbols, 0.3), size=num_tables) * rng.uniform(0.5, 1, (num_tables, 1))
    return SymbolTables(np.stack([quantize_table(row) for row in probabilities]), rng.integers(-9, 3, size=num_tables))


@settings(deadline=None)
@given(
    symbols=st.lists(st.one_of(st.integers(-15, 15), st.integers(-MAX_SYMBOL + 1, MAX_SYMBOL - 1)), max_size=60),
    seed=st.integers(0, 100),
)
def test_any_integers_come_back(symbols, seed):
    tables, rng = random_tables(seed), np.random.default_rng(seed)
    rows = rng.integers(0, 5, size=len(symbols))
    cut = len(symbols) // 3
    encoder = SymbolEncoder()
    encoder.add(np.array(symbols[:cut], dtype=np.int64), rows[:cut], tables)
    encoder.add(np.array(symbols[cut:], dtype=np.float64), rows[cut:], tables)
    decoder = SymbolDecoder(encoder.to_bytes())
    decoded = [*decoder.read(rows[:cut], tables), *decoder.read(rows[cut:], tables)]
    decoder.finish()
    assert decoded == symbols


def reference_words(symbols, counts):
    """The asymmetric numeral system in Python's integers: 64 bits of state, 32 bit words."""
    state, words = 0, []
    for symbol, row in reversed(list(zip(symbols, counts, strict=True))):
        count, below = int(row[symbol]), int(row[:symbol].sum())
        if state >> (64 - PRECISION) >= count:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // count << PRECISION) | (state % count + below)
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return words


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_of_the_coder_are_those_of_the_tables(seed):
    """Words equal to those of a coder that knows integers only: no rounding is between a table and its bytes."""
    tables, rng = random_tables(seed, num_tables=4, num_symbols=300), np.random.default_rng(seed)
    rows = np.sort(rng.integers(0, 4, size=2000))
    symbols = np.array([rng.choice(301, p=tables.counts[row] / 2**PRECISION) for row in rows])
    symbols[symbols == tables.escape] = 0
    encoder = SymbolEncoder()
    encoder.add(symbols + tables.lowest[rows], rows, tables)
    words = np.array(reference_words(symbols, tables.counts[rows]), dtype="<u4").tobytes().rstrip(b"\0")
    assert encoder.to_bytes() == b"\0" + words
    cost = -np.log2(tables.counts[rows, symbols] / 2**PRECISION).sum() / 8
    assert cost - 1 <= len(words) <= cost + 5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_tables_are_whole_and_close(weights):
    probabilities = np.array(weights) / max(1.0, sum(weights))
    counts = quantize_table(probabilities)
    assert counts.sum() == 2**PRECISION and counts.min() >= 1 and len(counts) == len(weights) + 1
    assert np.abs(counts[:-1] / 2**PRECISION - probabilities).max() < 2e-5


def test_wrong_tables_and_symbols_are_refused():
    for wrong in ([0.5, float("nan")], [-0.1, 0.5], [0.7, 0.7]):
        with pytest.raises(ValueError, match="finite, not negative, and add up to 1"):
            quantize_table(np.array(wrong))
    with pytest.raises(ValueError, match=r"at least 1 that add up to 2\^24"):
        SymbolTables(np.zeros((2, 3), dtype=np.int32), np.zeros(2, dtype=np.int32))
    for wrong in (float("nan"), float("inf"), MAX_SYMBOL, -MAX_SYMBOL):
        with pytest.raises(ValueError, match="finite and below 1073741824"):
            SymbolEncoder().add(np.array([0.0, wrong]), np.zeros(2, dtype=np.int64), random_tables())


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 40))
def test_any_payload_is_decoded_or_refused(payload, count):
    """In time and memory that the number of symbols bounds, whatever the bytes."""
    tables, rows = random_tables(), np.arange(count) % 5
    try:
        decoder = SymbolDecoder(payload)
        symbols = decoder.read(rows, tables)
        decoder.finish()
    except CompressedFileError:
        return
    encoder = SymbolEncoder()
    if np.abs(symbols).max(initial=0) < MAX_SYMBOL:
        encoder.add(symbols, rows, tables)
        assert len(encoder.to_bytes()) <= len(payload) + 4


def test_a_missing_coder_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match="pip install constriction"):
        SymbolEncoder().to_bytes()
