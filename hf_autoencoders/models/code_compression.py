"""Discrete codes to bytes and back, in the container of `container.py` and with the coder of `entropy_coding.py`.

    pixel_values -> encode -> codes -> range coder -> bytes -> range coder -> codes -> decode_codes -> images
                                           ^                        ^
                            counts of each code: equal ones, or those of a prior given the codes before

Guards, so that what is decoded is what was encoded:

- Without a prior all values of a code have equal integer counts. No float is involved.
- With a prior, counts come from the logits of a transformer, which are floats. Both sides compute them in the same
  way, one image and one code at a time, and in float64: the last bits differ with the processor, the number of threads
  and where in memory the weights lie, but that is about 1e-14. Logits are rounded to multiples of 1/256 before they are
  turned into integer counts; such a difference decides on one of them once in 10^11 logits. (In float32 it does so in
  nearly every file.) A checksum of the codes is in the payload: where it happens all the same, the file is refused, and
  never another image shown.
"""

import copy
import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch

from .container import CHECKSUM_SIZE, CompressedFileError, Container, one_or_many
from .entropy_coding import SymbolDecoder, SymbolEncoder, SymbolTables, quantize_table
from .fingerprint import weights_fingerprint

LOGIT_STEPS = 256  # logits are rounded to multiples of 1/256


def counts_of_logits(logits: torch.Tensor) -> np.ndarray:
    """Integer counts `(num_codes + 1,)` of logits `(num_codes,)`; the last is the escape's, which codes never need."""
    logits = np.rint(logits.double().cpu().numpy() * LOGIT_STEPS) / LOGIT_STEPS
    weights = np.exp(logits - logits.max())
    return quantize_table(weights / weights.sum())


class CompressesCodes:
    """What a model with discrete codes does with bytes: `compress(pixel_values)` and `decompress(files)`."""

    def _checked_prior(self, prior) -> tuple[bytes, object]:
        """8 bytes that name this model and the prior, and the prior in float64; checks that they belong together."""
        own = bytes.fromhex(weights_fingerprint(self, exact=True))
        if prior is None:
            return own, None
        if not getattr(prior, "gives_codes", False):
            raise ValueError(f"expected a prior of codes (CodePriorModel), got {type(prior).__name__}")
        prior.check_autoencoder(self)
        if prior.training or prior.dtype != torch.float32:
            raise ValueError(
                "the prior must be in evaluation mode and float32, since both sides have to compute the same, got "
                f"{'training' if prior.training else 'evaluation'} mode and {prior.dtype}: call prior.eval(), or load "
                "it with dtype=torch.float32"
            )
        theirs = bytes.fromhex(weights_fingerprint(prior, exact=True))
        return bytes(a ^ b for a, b in zip(own, theirs, strict=True)), copy.deepcopy(prior).double()

    def _code_fields(self) -> dict[str, int]:
        """The shape of the codes of one image, as the container names it: of a vector its length alone."""
        shape = tuple(self.config.codes_shape)
        return dict(zip(("num_codebooks", "height", "width"), (*shape, 1, 1)[: max(3, len(shape))], strict=True))

    @torch.no_grad()
    def compress(self, pixel_values: torch.Tensor, prior=None) -> list[bytes]:
        """The bytes of each image: a whole file, see `container.py`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, H, W)`): images in [0, 1].
            prior ([`CodePriorModel`], *optional*): of the codes of this model; what it finds likely takes few bits. It
                computes code by code, some milliseconds each. Without it every code takes `log2(num_codes)` bits.

        Raises:
            ValueError: images of another shape, a prior of another model, in training mode or not float32.
            ImportError: `constriction` is not installed.
        """
        (fingerprint, prior), fields = self._checked_prior(prior), self._code_fields()
        files = []
        for codes in self.encode(_on_device(pixel_values, self.device)).codes:
            encoder = SymbolEncoder()
            if prior is None:
                payload = b""
                tables, rows = self._equal_tables(), np.zeros(codes.numel(), dtype=np.int64)
                symbols = codes.flatten().cpu().numpy()
            else:
                sequence = prior.to_sequence(codes[None].to(prior.device))
                symbols = sequence[0].cpu().numpy()
                state, before, counts = prior.start(), None, []
                for position in range(len(symbols)):
                    counts.append(counts_of_logits(prior.next_logits(state, before)[0]))
                    before = sequence[:, position]
                tables, rows = SymbolTables(np.stack(counts), np.zeros(len(counts))), np.arange(len(counts))
                payload = _checksum(symbols)
            encoder.add(symbols, rows, tables)
            files.append(Container("codes", fingerprint, fields, payload + encoder.to_bytes()).to_bytes())
        return files

    @torch.no_grad()
    def decompress_codes(self, data: Sequence[bytes], prior=None) -> torch.Tensor:
        """Codes `(batch_size, *codes_shape)`, int64, of what `compress` wrote with the same prior.

        Raises:
            CompressedFileError: a file that this model with this prior did not write, or that has been altered since.
        """
        (fingerprint, prior), expected = self._checked_prior(prior), self._code_fields()
        shape, num_codes = tuple(self.config.codes_shape), self.config.num_codes
        found = []
        for file in one_or_many(data):
            container = Container.from_bytes(file, "codes", fingerprint, max_pixels=math.prod(shape))
            if container.fields != expected:
                raise CompressedFileError(
                    f"the compressed file is damaged: it holds codes of {container.fields}, those of this model are of "
                    f"{expected}"
                )
            payload = container.payload
            if prior is None:
                decoder = SymbolDecoder(payload)
                symbols = decoder.read(np.zeros(math.prod(shape), dtype=np.int64), self._equal_tables())
            else:
                decoder, written = SymbolDecoder(payload[CHECKSUM_SIZE:]), []
                state, before = prior.start(), None
                for _ in range(math.prod(shape)):
                    counts = counts_of_logits(prior.next_logits(state, before)[0])
                    symbol = decoder.read(np.zeros(1, dtype=np.int64), SymbolTables(counts[None], np.zeros(1)))
                    if not 0 <= symbol[0] < num_codes:
                        break
                    written.append(symbol[0])
                    before = torch.tensor(symbol, device=prior.device)
                symbols = np.array(written, dtype=np.int64)
                if payload[:CHECKSUM_SIZE] != _checksum(symbols):
                    raise CompressedFileError(
                        "the codes that were decoded are not those that were written: this machine computes the "
                        "prior's probabilities otherwise than the one that compressed the file (another processor, "
                        "device or version of torch). Decompress it where it was compressed, or compress without one"
                    )
            decoder.finish()
            if symbols.min() < 0 or symbols.max() >= num_codes:
                raise CompressedFileError(f"the compressed file is damaged: a code is not in [0, {num_codes})")
            codes = torch.from_numpy(symbols)[None]
            found.append(codes.view(1, *shape) if prior is None else prior.to_codes(codes.to(prior.device)).cpu())
        return torch.cat(found) if found else torch.empty(0, *shape, dtype=torch.int64)

    @torch.no_grad()
    def decompress(self, data: Sequence[bytes], prior=None) -> list[torch.Tensor]:
        """The images `(C, H, W)`, uint8, of what `compress` wrote with the same prior; decoded one by one, in
        float64, so that a pixel is not rounded otherwise on another machine.

        Raises:
            CompressedFileError: a file that this model with this prior did not write, or that has been altered since.
            ValueError: a prior of another model, in training mode or not float32.
        """
        codes, exact = self.decompress_codes(data, prior).to(self.device), copy.deepcopy(self).double()
        images = [exact.decode_codes(one[None])[0] for one in codes]
        return [(image.clamp(0, 1) * 255).round().to(torch.uint8) for image in images]

    def _equal_tables(self) -> SymbolTables:
        num_codes = self.config.num_codes
        return SymbolTables(quantize_table(np.full(num_codes, 1 / num_codes))[None], np.zeros(1))


def _on_device(pixel_values, device: torch.device):
    """What is no tensor is refused by `encode`, which says what it expects."""
    return pixel_values.to(device) if torch.is_tensor(pixel_values) else pixel_values


def _checksum(symbols: np.ndarray) -> bytes:
    return zlib.crc32(symbols.astype("<i8").tobytes()).to_bytes(CHECKSUM_SIZE, "little")


__all__ = ["CompressesCodes"]
