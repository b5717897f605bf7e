"""The bytes of a capture for a browser: its original from the vault, in part when asked so, its preview, its overlay.

What this module keeps true: only kinds that can't run anything are shown in place; all else is a download. A range is
decrypted by the frames that hold it, so that a sound starts at once. A whole original is compared with its hash.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from appliance.records import Capture
from appliance.store.vault import Vault

SHOWN = {
    "image/png",
    "image/jpeg",
    "image/webp",
    "audio/wav",
    "audio/flac",
    "audio/ogg",
    "audio/mpeg",
    "video/mp4",
    "video/webm",
}
_ENDINGS = {
    "application/dicom": ".dcm",
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "audio/wav": ".wav",
    "audio/flac": ".flac",
}
_ALIASES = {
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/x-flac": "audio/flac",
}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def kind(media_type: str) -> str:
    """A media type without parameters, under its usual name."""
    plain = media_type.split(";", maxsplit=1)[0].strip().lower()
    return _ALIASES.get(plain, plain)


def shown(data: bytes, media_type: str) -> Response:
    """Bytes to show in the page, if they are of a kind for that; else ``415``."""
    plain = kind(media_type)
    if plain not in SHOWN:
        return Response(status_code=415)
    return Response(data, media_type=plain)


def original(request: Request, vault: Vault, capture: Capture) -> Response:
    """The original as received, whole or one range of it (RFC 9110, 14); raises ``StoreError`` when it is damaged."""
    plain = kind(capture.media_type)
    inline = plain in SHOWN
    name = quote(f"{capture.id}{_ENDINGS.get(plain, '')}")
    headers = {
        "accept-ranges": "bytes",
        "etag": f'"{capture.sha256}"',
        "content-disposition": f'{"inline" if inline else "attachment"}; filename="{name}"',
    }
    media_type = plain if inline or plain in _ENDINGS else "application/octet-stream"
    size = vault.size(capture.sha256)
    asked = _range(request.headers.get("range", ""), size)
    if asked is None:
        return Response(vault.read(capture.sha256), media_type=media_type, headers=headers)
    part = vault.read_range(capture.sha256, asked[0], asked[1] - asked[0] + 1) if _answerable(asked, size) else b""
    return _partial(part, asked, size, media_type, headers)


def ranged(request: Request, data: bytes, media_type: str) -> Response:
    """Bytes in memory, whole or one range of them."""
    headers = {"accept-ranges": "bytes"}
    asked = _range(request.headers.get("range", ""), len(data))
    if asked is None:
        return Response(data, media_type=media_type, headers=headers)
    return _partial(data[asked[0] : asked[1] + 1], asked, len(data), media_type, headers)


def _answerable(asked: tuple[int, int], size: int) -> bool:
    return asked[0] <= asked[1] < size


def _partial(part: bytes, asked: tuple[int, int], size: int, media_type: str, headers: dict[str, str]) -> Response:
    if not _answerable(asked, size):
        return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
    return Response(
        part,
        status_code=206,
        media_type=media_type,
        headers={**headers, "content-range": f"bytes {asked[0]}-{asked[1]}/{size}"},
    )


def _range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte asked for; ``None`` for the whole (no range, or one that this server may ignore)."""
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) else (size, 0)
    return int(first), min(int(last), size - 1) if last else size - 1
