"""Originals and previews for a hub that must not know the patient, made in a process of their own.

What this module keeps true: nothing of a picture goes to such a hub but what ``interop`` made of it, and the preview is made
from that; what can't be cleaned is withheld with its reason, never sent as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance.interop.deidentify import Withheld
from appliance.interop.outgoing import cleaned
from appliance.interop.profile import Options
from appliance.sync.originals import Encoded, EncodeRequest


class CleanSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is started with: the folders of the vault and of the box key, and what the site lets out."""

    vault: str
    key: str
    options: Options


def serve(settings: bytes) -> Callable[[bytes], bytes]:
    """Entry point of the process: ``EncodeRequest`` to ``Encoded``, msgpack. Its blobs are durable when it answers."""
    from appliance.store.files import RealFiles
    from appliance.store.keys import open_key
    from appliance.store.vault import Vault

    wanted = msgspec.msgpack.decode(settings, type=CleanSettings)
    key = open_key(Path(wanted.key), RealFiles())
    vault = Vault(Path(wanted.vault), key)

    def answer(request: bytes) -> bytes:
        asked = msgspec.msgpack.decode(request, type=EncodeRequest)
        if asked.capture is None:
            raise ValueError("a capture to be cleaned is missing in the request")
        try:
            clean = cleaned(asked.capture, vault.read(asked.sha256), key.blind, wanted.options)
        except Withheld as error:
            return msgspec.msgpack.encode(Encoded(withheld=str(error)))
        blob = vault.put(clean.data)
        made = Encoded(sha256=blob.sha256, size=blob.size, media_type=clean.media_type)
        small = _preview(clean.data)
        if small is not None:
            kept = vault.put(small[1])
            made = msgspec.structs.replace(
                made, preview_sha256=kept.sha256, preview_size=kept.size, preview_media_type=small[0]
            )
        return msgspec.msgpack.encode(made)

    return answer


def _preview(data: bytes) -> tuple[str, bytes] | None:
    """A small picture of the cleaned file; none for sounds, whose spectrogram went with the result."""
    from appliance.reading.decode import DecodeError, decode
    from appliance.reading.prepared import Picture
    from appliance.reading.preview import preview

    try:
        found = decode(data)
    except DecodeError:
        return None
    if not isinstance(found, Picture):
        return None
    small = preview(found)
    return small.media_type, small.data
