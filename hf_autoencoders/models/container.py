"""The files that compressed images are kept in: a few bytes of header, the payload, a checksum.

    4  magic "HFAE"
    1  version of this format
    1  kind of payload
    8  fingerprint of the model that wrote it
    .  the fields of the kind, and the length of the payload: variable-length integers (LEB128), 1 to 5 bytes each
    .  payload
    4  CRC-32 of all that comes before, little-endian

A file is looked at from outside to inside: size, magic, version, checksum, fingerprint, fields. Nothing is allocated
that the file's own length does not justify before its fields have been found to be within bounds.
"""

import zlib
from dataclasses import dataclass

MAGIC, VERSION = b"HFAE", 1
FINGERPRINT_SIZE = 8  # bytes
CHECKSUM_SIZE = 4
MAX_FIELD = 2**32 - 1
DEFAULT_MAX_PIXELS = 2**25  # of one image: 33.6 million
FIELDS = {  # kind -> its number in the file, and its fields in order
    "image codec": (1, ("quality", "height", "width", "channels")),
    "codes": (2, ("num_codebooks", "height", "width")),
}
KINDS = {number: kind for kind, (number, _) in FIELDS.items()}


class CompressedFileError(ValueError):
    """A compressed file is truncated, altered, of another model or format, or larger than allowed."""


@dataclass(frozen=True)
class Container:
    """What one compressed file holds.

    Args:
        kind: of the payload, one of `FIELDS`.
        fingerprint: 8 bytes that tell the model from all others.
        fields: the numbers that belong to this kind, each from 0 to 2^32 - 1.
        payload: the bytes of the entropy coder.
    """

    kind: str
    fingerprint: bytes
    fields: dict[str, int]
    payload: bytes

    def to_bytes(self) -> bytes:
        """The file.

        Raises:
            ValueError: an unknown kind, other fields than those of the kind, or a value out of range.
        """
        if self.kind not in FIELDS:
            raise ValueError(f"unknown kind of payload {self.kind!r}: expected one of {', '.join(FIELDS)}")
        number, names = FIELDS[self.kind]
        if set(self.fields) != set(names):
            raise ValueError(f"{self.kind} needs the fields {', '.join(names)}, got {', '.join(self.fields)}")
        if len(self.fingerprint) != FINGERPRINT_SIZE:
            raise ValueError(f"a fingerprint has {FINGERPRINT_SIZE} bytes, got {len(self.fingerprint)}")
        head = MAGIC + bytes([VERSION, number]) + self.fingerprint
        head += b"".join(write_varint(self.fields[name]) for name in names) + write_varint(len(self.payload))
        body = head + self.payload
        return body + zlib.crc32(body).to_bytes(CHECKSUM_SIZE, "little")

    @classmethod
    def from_bytes(
        cls, data: bytes, kind: str, fingerprint: bytes, max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> "Container":
        """Read a file that a model with this fingerprint wrote.

        Args:
            data: the whole file.
            kind: what the model can decode.
            fingerprint: of the model.
            max_pixels: the largest `height x width` that is accepted.

        Raises:
            CompressedFileError: anything else than such a file; the message says what is wrong with it.
            TypeError: `data` is not bytes.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"expected the bytes of a compressed file, got {type(data).__name__}")
        data = bytes(data)
        number, names = FIELDS[kind]
        fixed = len(MAGIC) + 2 + FINGERPRINT_SIZE
        if not data.startswith(MAGIC):
            raise CompressedFileError("not a compressed file of this library: it does not begin with HFAE")
        if len(data) < fixed + len(names) + 1 + CHECKSUM_SIZE:
            raise CompressedFileError(f"the compressed file is truncated: {len(data)} bytes are less than a header")
        if data[4] != VERSION:
            raise CompressedFileError(f"the compressed file is of format {data[4]}, this version reads {VERSION} only")
        body, checksum = data[:-CHECKSUM_SIZE], data[-CHECKSUM_SIZE:]
        if zlib.crc32(body).to_bytes(CHECKSUM_SIZE, "little") != checksum:
            raise CompressedFileError("the compressed file is truncated or altered: its checksum does not fit")
        if data[5] != number:
            found = KINDS.get(data[5], f"an unknown kind of payload ({data[5]})")
            raise CompressedFileError(f"the compressed file holds {found}, this model decodes {kind}")
        if body[6:fixed] != fingerprint:
            raise CompressedFileError(
                f"the compressed file was written by another model: its fingerprint is {body[6:fixed].hex()}, that of "
                f"this model {fingerprint.hex()}. Decompress it with the model it was compressed with, and "
                "the prior if there was one"
            )
        position, fields = fixed, {}
        for name in names:
            fields[name], position = read_varint(body, position)
        length, position = read_varint(body, position)
        if length != len(body) - position:
            raise CompressedFileError(
                f"the compressed file is damaged: it announces {length} bytes and holds {len(body) - position}"
            )
        pixels = fields["height"] * fields["width"]
        if not 1 <= pixels <= max_pixels:
            size = f"{fields['height']} x {fields['width']}"
            raise CompressedFileError(f"the compressed file is of {size} pixels, allowed are 1 to {max_pixels} in all")
        return cls(kind, fingerprint, fields, body[position:])


def one_or_many(data) -> list:
    """A list of files, of which one may be given alone."""
    return [data] if isinstance(data, (bytes, bytearray, memoryview)) else list(data)


def write_varint(value: int) -> bytes:
    """A number from 0 to 2^32 - 1 in LEB128: seven bits a byte, lowest first, the high bit says that more follow."""
    if not 0 <= value <= MAX_FIELD:
        raise ValueError(f"expected a number from 0 to {MAX_FIELD}, got {value}")
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number written at a position, and the position behind it.

    Raises:
        CompressedFileError: the data end within it, it is too large, or it is longer than it need be.
    """
    value = 0
    for index in range(5):
        if position + index >= len(data):
            raise CompressedFileError("the compressed file is damaged: it ends within a number")
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value > MAX_FIELD or (index and not byte):
                break
            return value, position + index + 1
    raise CompressedFileError("the compressed file is damaged: it holds a number that this format cannot write")


__all__ = ["CompressedFileError", "Container", "one_or_many"]
