"""Symbols to bytes and back, by integer tables alone.

The coder is the asymmetric numeral system (Duda 2013) of the library `constriction`. Encoder and decoder agree on
every symbol because no rounding of floating-point numbers is between them:

- A table is a row of integer counts, each at least 1, that add up to 2^24, and the lowest symbol. Tables are made from
  floats once, when training ends, and are saved as integers.
- `constriction` takes weights as float64 and gives each symbol 1 + floor(weight x scale) counts, where scale is what is
  left of 2^24 over the sum of the weights. The weights given are counts - 1. Their sum is an integer below 2^53, hence
  exact in any order of summation, and is just what is left, hence scale is 1.0, and the counts come back exactly.
- A symbol outside its table is coded as the table's last entry, the escape, and is written in a list of its own, so
  that every integer below 2^30 can be coded.

Symbols that share a table are coded together, in the order of tables: one call for each table and not for each symbol.
"""

from collections.abc import Iterator

import numpy as np

from .container import CompressedFileError, read_varint, write_varint

PRECISION = 24  # bits: the counts of a table add up to 2^PRECISION
MAX_SYMBOL = 2**30


def quantize_table(probabilities: np.ndarray) -> np.ndarray:
    """Counts `(num_symbols + 1,)` int32 for probabilities `(num_symbols,)`; the last is that of the escape.

    What the probabilities lack of 1 is the escape's. Each count is at least 1; rounding is made up for at the largest.

    Raises:
        ValueError: probabilities that are negative, not finite, or add up to more than 1.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all() and probabilities.sum() < 1 + 1e-4):
        raise ValueError("probabilities must be finite, not negative, and add up to 1 at most")
    weights = np.append(probabilities, max(0.0, 1 - probabilities.sum()))
    free = 2**PRECISION - len(weights)
    counts = 1 + np.floor(weights / weights.sum() * free).astype(np.int64)
    counts[counts.argmax()] += 2**PRECISION - counts.sum()
    return counts.astype(np.int32)


def _constriction():
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            "compressing to bytes needs the library constriction: pip install constriction, or the extra [compression]"
        ) from error
    return constriction.stream


def _by_table(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each table that occurs in `rows`, in rising order, with the places `(n,)` of its symbols, in order."""
    if not len(rows):
        return
    order = np.argsort(rows, kind="stable")
    tables, first = np.unique(rows[order], return_index=True)
    yield from zip(tables.tolist(), np.split(order, first[1:]), strict=True)


class SymbolTables:
    """Tables as they are saved: `counts` `(num_tables, width)` and `lowest` `(num_tables,)`, integers.

    Raises:
        ValueError: counts that are no tables, as those of a model whose tables have never been made.
    """

    def __init__(self, counts: np.ndarray, lowest: np.ndarray):
        self.counts, self.lowest = np.asarray(counts, dtype=np.int64), np.asarray(lowest, dtype=np.int64)
        if self.counts.min() < 1 or (self.counts.sum(axis=1) != 2**PRECISION).any():
            raise ValueError(f"each table must have counts of at least 1 that add up to 2^{PRECISION}")
        self.escape = self.counts.shape[1] - 1
        self._models = {}

    def model(self, row: int):
        """The model of `constriction` for one table."""
        if row not in self._models:
            weights = (self.counts[row] - 1).astype(np.float64)
            self._models[row] = _constriction().model.Categorical(weights, lazy=False, perfect=False)
        return self._models[row]


class SymbolEncoder:
    """Collects symbols, then writes them.

    ```python
    encoder = SymbolEncoder()
    encoder.add(symbols, rows, tables)      # as often as needed
    payload = encoder.to_bytes()
    ```
    """

    def __init__(self):
        self._blocks = []
        self._escapes = bytearray()

    def add(self, symbols: np.ndarray, rows: np.ndarray, tables: SymbolTables) -> None:
        """Append integers `(n,)`, each with its row of the tables `(n,)`.

        Raises:
            ValueError: symbols that are not finite or beyond 2^30.
        """
        symbols = np.asarray(symbols)
        if not np.isfinite(symbols).all() or np.abs(symbols).max(initial=0) >= MAX_SYMBOL:
            raise ValueError(f"symbols must be finite and below {MAX_SYMBOL}: the model's latents are not usable")
        symbols = symbols.astype(np.int64) - tables.lowest[rows]
        for row, places in _by_table(rows):
            block = symbols[places]
            outside = (block < 0) | (block >= tables.escape)
            for value in block[outside].tolist():  # below: odd numbers, above: even ones
                self._escapes += write_varint(-2 * value - 1 if value < 0 else 2 * (value - tables.escape))
            self._blocks.append((np.where(outside, tables.escape, block).astype(np.int32), tables.model(row)))

    def to_bytes(self) -> bytes:
        """Length of the list of escapes, that list, the words of the coder without the zeros at their end."""
        coder = _constriction().stack.AnsCoder()
        for block, model in reversed(self._blocks):
            coder.encode_reverse(block, model)
        words = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
        return write_varint(len(self._escapes)) + bytes(self._escapes) + words


class SymbolDecoder:
    """Reads what a [`SymbolEncoder`] wrote, in the same order.

    Raises:
        CompressedFileError: data that none has written, as far as can be told.
    """

    def __init__(self, payload: bytes):
        length, start = read_varint(payload, 0)
        if length > len(payload) - start:
            raise CompressedFileError("the compressed file is damaged: its escapes are longer than its payload")
        self._escapes, self._position = payload[start : start + length], 0
        words = payload[start + length :]
        if words.endswith(b"\0"):
            raise CompressedFileError("the compressed file is damaged: its words end in zero")
        words = np.frombuffer(words + bytes(-len(words) % 4), dtype="<u4").astype(np.uint32)
        self._coder = _constriction().stack.AnsCoder(words)

    def read(self, rows: np.ndarray, tables: SymbolTables) -> np.ndarray:
        """The next integers `(n,)` int64 for the rows `(n,)` of these tables."""
        symbols = np.empty(len(rows), dtype=np.int64)
        for row, places in _by_table(rows):
            block = self._coder.decode(tables.model(row), len(places)).astype(np.int64)
            for place in np.flatnonzero(block == tables.escape):
                value, self._position = read_varint(self._escapes, self._position)
                block[place] = -(value + 1) // 2 if value % 2 else tables.escape + value // 2
            symbols[places] = block
        return symbols + tables.lowest[rows]

    def finish(self) -> None:
        """Make sure that everything has been read."""
        if not self._coder.is_empty() or self._position != len(self._escapes):
            raise CompressedFileError("the compressed file is damaged: more was written than its size accounts for")


__all__ = ["SymbolDecoder", "SymbolEncoder", "SymbolTables", "quantize_table"]
