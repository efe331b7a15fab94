"""Bounds of a GGUF file, checked before the `gguf` package sees it.

That package trusts counts and lengths: a file of 40 bytes that announces an array of 2^60 numbers keeps it busy for
ever. A control vector is small, so that every bound can be tight.
"""

from __future__ import annotations

from steerkit_vectors_hub.interop.base import malformed

MAX_HEADER = 2**20
MAX_ENTRIES = 4096
MAX_ELEMENTS = 2**16
MAX_NAME = 64
MAGIC = b"GGUF"

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_FLOATS = {0: 4, 1: 2}
"""F32 and F16, the only tensor types a control vector is read in."""


def audit(data: bytes) -> None:
    """Refuse a file whose counts, lengths or offsets are out of bounds.

    Raises:
        PackFormatError: See above.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != MAGIC:
        raise malformed("it does not begin with 'GGUF'", "a GGUF file")
    version = cursor.number(4)
    if version not in (2, 3):
        raise malformed(f"GGUF version {version}", "2 or 3, little-endian")
    tensors, entries = cursor.number(8), cursor.number(8)
    if tensors > MAX_ENTRIES or entries > MAX_ENTRIES:
        raise malformed(f"{tensors} tensors and {entries} entries", f"at most {MAX_ENTRIES} of each")
    alignment = 32
    for _ in range(entries):
        key = cursor.string()
        value = cursor.value(cursor.number(4))
        if key == b"general.alignment":
            if not isinstance(value, int) or value == 0 or value & (value - 1) or value > 2**16:
                raise malformed(f"an alignment of {value!r:.40}", "a power of two up to 65536")
            alignment = value
    spans = [cursor.tensor() for _ in range(tensors)]
    start = -(-cursor.position // alignment) * alignment
    end = start
    for offset, size in sorted(spans):
        if offset % alignment or start + offset < end:
            raise malformed(f"a tensor at offset {offset}", f"aligned to {alignment}, without overlap")
        end = start + offset + size
        if end > len(data):
            raise malformed(f"it is truncated: {len(data)} bytes", f"at least {end}", "download it again")


class _Cursor:
    """Reads forward through the header, never past its bound."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._elements = 0
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > min(len(self._data), MAX_HEADER):
            raise malformed("its header is truncated, or too long", f"at most {MAX_HEADER} bytes, all of them there")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def string(self) -> bytes:
        return self.take(self.number(8))

    def value(self, kind: int) -> object:
        """A metadata value; only unsigned numbers are of use."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, length = self.number(4), self.number(8)
            self._elements += length
            if self._elements > MAX_ELEMENTS or inner == _ARRAY:
                raise malformed(f"an array of {length} elements", "at most 65536, not nested")
            for _ in range(length):
                self.value(inner)
            return None
        if kind not in _SCALARS:
            raise malformed(f"a value of type {kind}", "a type of GGUF")
        raw = self.take(_SCALARS[kind])
        return int.from_bytes(raw, "little") if kind == 4 else raw

    def tensor(self) -> tuple[int, int]:
        """`(offset, size)` of a tensor."""
        label = self.string()
        if len(label) > MAX_NAME:
            raise malformed(f"a tensor name of {len(label)} bytes", f"at most {MAX_NAME}")
        what = f"tensor {label.decode(errors='replace')!r}"
        dimensions = self.number(4)
        if dimensions != 1:
            raise malformed(f"{what} has {dimensions} dimensions", "1")
        width, kind, offset = self.number(8), self.number(4), self.number(8)
        if kind not in _FLOATS:
            raise malformed(f"{what} has type {kind}", "F32 (0) or F16 (1)")
        if not 0 < width <= 2**20:
            raise malformed(f"{what} has {width} elements", "1 to 1048576")
        return offset, width * _FLOATS[kind]
