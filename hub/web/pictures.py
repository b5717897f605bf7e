"""What a case looks or sounds like in the browser: the picture, its 16-bit pixels, the overlay, the sound.

What this module keeps true: what arrived over the wire is never served under the type it claims, only under one that its
first bytes show; anything else goes out as a download.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from appliance.protocol.messages import OverlayPart
from hub.blobs import BlobStore
from hub.cases import BlobPart
from hub.render import Picture, RenderError, frame, rendered

_OVERLAY_SIDE = 384


def sniffed(head: bytes) -> str:
    """The media type that the first bytes (16 suffice, DICOM needs 132) show, or ``application/octet-stream``."""
    if head[128:132] == b"DICM":
        return "application/dicom"
    for magic, kind in (
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"fLaC", "audio/flac"),
        (b"OggS", "audio/ogg"),
    ):
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] in (b"WAVE", b"WEBP"):
        return "audio/wav" if head[8:12] == b"WAVE" else "image/webp"
    return "application/octet-stream"


def kind_of(path: Path) -> str:
    """``sniffed`` of a file."""
    with path.open("rb") as file:
        return sniffed(file.read(132))


class Shown:
    """What there is to show of one case: the original's picture or sound once it has arrived, else the preview's."""

    def __init__(self, blobs: BlobStore, parts: list[BlobPart]) -> None:
        """Looks only at first bytes; nothing is decoded yet."""
        self.image: Path | None = None
        self.image_type = ""
        self.image_sha256 = ""
        self.original = False
        self.sound = ""
        self._blobs = blobs
        for kind in ("original", "preview"):
            for part in parts:
                if part.kind == kind and part.state == "stored":
                    self._take(part)

    def _take(self, part: BlobPart) -> None:
        path = self._blobs.path(part.sha256)
        if not path.exists():
            return
        kind = kind_of(path)
        if kind.startswith("audio/"):
            self.sound = self.sound or part.sha256
        elif self.image is None and (kind.startswith("image/") or kind == "application/dicom"):
            self.image, self.image_type, self.image_sha256 = path, kind, part.sha256
            self.original = part.kind == "original"

    def rendered(self) -> tuple[Path, str, Path | None, Picture | None]:
        """(picture, its type, 16-bit pixels, their description); decodes a DICOM original the first time it is asked.

        Raises ``RenderError``.
        """
        if self.image is None:
            raise RenderError("no picture of this case has arrived yet")
        if self.image_type != "application/dicom":
            return self.image, self.image_type, None, None
        folder = self._folder()
        picture = rendered(self.image, folder)
        return folder / "image.png", "image/png", folder / "pixels.bin" if picture.grey else None, picture

    def frame(self, number: int) -> Path:
        """One frame of a clip as JPEG, 0 first; raises ``RenderError``."""
        if self.image is None or self.image_type != "application/dicom":
            raise RenderError("no clip of this case has arrived yet")
        return frame(self.image, self._folder(), number)

    def _folder(self) -> Path:
        return self._blobs.folder / "derived" / self.image_sha256


def overlay_png(overlay: OverlayPart) -> bytes:
    """The activation map as a transparent picture to be stretched over the whole image: yellow to red, alpha its value."""
    top, left, bottom, right = overlay.box
    size = _OVERLAY_SIDE
    values = np.frombuffer(overlay.data, np.uint8).reshape(overlay.rows, overlay.columns)
    grid = values.astype(np.float32) / np.float32(255)
    canvas = np.zeros((size, size), np.float32)
    y0, y1 = math.floor(top * size), max(math.ceil(bottom * size), math.floor(top * size) + 1)
    x0, x1 = math.floor(left * size), max(math.ceil(right * size), math.floor(left * size) + 1)
    canvas[y0:y1, x0:x1] = _stretched(grid, y1 - y0, x1 - x0)[: size - y0, : size - x0]
    red = np.full_like(canvas, 255.0)
    green = 230.0 * (1.0 - canvas)
    blue = 40.0 * (1.0 - canvas)
    return png(np.stack([red, green, blue, 255.0 * canvas], axis=-1).round().astype(np.uint8))


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """RGBA (rows × columns × 4) as PNG (ISO/IEC 15948: no filter, one IDAT)."""
    rows, columns = image.shape[:2]
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), image.reshape(rows, columns * 4)], axis=1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def _stretched(grid: npt.NDArray[np.float32], rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Bilinear, with pixel centres aligned."""
    for axis, size in ((0, rows), (1, columns)):
        count = grid.shape[axis]
        position = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
        low = np.floor(position).astype(np.intp)
        high = np.minimum(low + 1, count - 1)
        share = (position - low).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None, :]
        grid = np.take(grid, low, axis) * (1 - share) + np.take(grid, high, axis) * share
    return grid
