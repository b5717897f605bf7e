"""Why a file can't be decoded, and how much memory decoding may ask for.

What this module keeps true: whatever is wrong with a file, decoding ends in one error that names cause and remedy; no size
that a file *declares* is believed before it has been compared with these limits.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator

import msgspec

BROKEN: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, NotImplementedError),
    *(OSError, RuntimeError, TypeError, ValueError, struct.error, zlib.error),
)
"""What parsers and codecs raise over damaged bytes; caught where they are called, nowhere else."""


@contextlib.contextmanager
def panics_are_errors() -> Iterator[None]:
    """Turn the panic of a codec written in Rust, which is no ``Exception``, into a ``RuntimeError``."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise RuntimeError(f"the codec gave up: {error}") from error
        raise


class DecodeError(Exception):
    """The file holds nothing that can be read. ``code`` is stable and becomes the refusal's code."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.code = code
        self.message = message
        self.remedy = remedy


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The most that decoding will take on; the defaults fit a box with 8 GB.

    ``file_bytes``: size of a file. ``frame_pixels``: rows × columns of one frame (the largest film digitisers stay below
    64 million). ``decoded_bytes``: pixels of all frames that are decoded. ``frames``: how many frames of a cine are decoded,
    evenly spread. ``sound_seconds``, ``sound_channels``: length and width of a recording.
    """

    file_bytes: int = 1 << 30
    frame_pixels: int = 100_000_000
    decoded_bytes: int = 512 << 20
    frames: int = 64
    sound_seconds: float = 900.0
    sound_channels: int = 16


DEFAULT_LIMITS = Limits()


def check_size(rows: int, columns: int, frames: int, bytes_per_pixel: float, limits: Limits) -> None:
    """Refuse declared sizes before anything is allocated for them."""
    if rows < 1 or columns < 1 or frames < 1:
        raise DecodeError(
            "no-pixels",
            f"the file declares a picture of {columns}×{rows} pixels in {frames} frames",
            "export the image again from the machine that took it",
        )
    if rows * columns > limits.frame_pixels or rows * columns * frames * bytes_per_pixel > limits.decoded_bytes:
        size = rows * columns * frames * bytes_per_pixel / 2**20
        raise DecodeError(
            "too-large",
            f"the file declares {columns}×{rows} pixels in {frames} frames, {size:,.0f} MiB decoded; "
            f"the limit is {limits.frame_pixels:,} pixels a frame and {limits.decoded_bytes / 2**20:,.0f} MiB",
            "check the file; if it is sound, export it smaller",
        )
