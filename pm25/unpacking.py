"""Reading of compressed content within limits, so that a small file cannot fill the memory."""

import io
from typing import IO, Protocol

from pm25.limits import MOST_RATIO, RATIO_FROM

CHUNK = 1 << 20
"""Bytes that are decompressed at a time."""


class TooLarge(Exception):
    """Compressed content whose unpacked size or ratio is beyond a limit."""


class Reader(Protocol):
    """Stream of decompressed bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end."""
        ...


def read(stream: IO[bytes] | Reader, packed: int, most: int, before: int = 0) -> bytes:
    """Decompress a stream of `packed` bytes. Raises TooLarge, and the errors of the stream.

    `most` is the limit for this stream and the `before` bytes of earlier ones together.
    """
    content = io.BytesIO()
    while chunk := stream.read(CHUNK):
        content.write(chunk)
        size = content.tell()
        if before + size > most:
            raise TooLarge(f"unpacks to more than {most:,} bytes")
        if size > RATIO_FROM and size > MOST_RATIO * packed:
            raise TooLarge(f"unpacks to more than {MOST_RATIO} times its {packed:,} bytes")
    return content.getvalue()
