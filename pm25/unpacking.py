"""Reading of compressed content within limits, so that a small file cannot fill the memory."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from pm25.limits import KEPT_BYTES, MOST_RATIO, RATIO_FROM

CHUNK = 1 << 20
"""Bytes that are decompressed at a time."""


class TooLarge(Exception):
    """Compressed content whose unpacked size or ratio is beyond a limit."""


class Reader(Protocol):
    """Stream of decompressed bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end."""
        ...


def read(opened: Callable[[], AbstractContextManager[Reader]], packed: int, most: int) -> bytes:
    """Decompress a stream of `packed` bytes to at most `most`. Raises TooLarge, and the errors of the stream.

    `opened` opens the stream. Content of more than `KEPT_BYTES` is read twice: it is kept only when its size
    is known to be allowed, so that a refused file needs little memory.
    """
    kept, size = io.BytesIO(), 0
    with opened() as stream:
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            if size > most:
                raise TooLarge(f"unpacks to more than {most:,} bytes")
            if size > RATIO_FROM and size > MOST_RATIO * packed:
                raise TooLarge(f"unpacks to more than {MOST_RATIO} times its {packed:,} bytes")
            if size <= KEPT_BYTES:
                kept.write(chunk)
    if size <= KEPT_BYTES:
        return kept.getvalue()
    kept = io.BytesIO()
    with opened() as stream:
        while chunk := stream.read(CHUNK):
            kept.write(chunk)
    return kept.getvalue()
