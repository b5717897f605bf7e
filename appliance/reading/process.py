"""The reader as a process of its own: bytes of a request in, bytes of a reading out.

What this module keeps true: a request is answered with a ``Reading`` or fails as a whole; decrypted captures live in this
process's memory only and never touch the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance.inference import heap
from appliance.inference.catalogue import Catalogue
from appliance.inference.trust import trusted
from appliance.reading.live import LiveReader
from appliance.reading.preview import Preview, preview
from appliance.reading.raw import raw
from appliance.reading.reader import Looked, Reader
from appliance.reading.requests import Described, ReadRequest, ReadSettings, Serving


def serve(settings: bytes, open_blob: Callable[[str], bytes | bytearray] | None = None) -> Callable[[bytes], bytes]:
    """Open the models and return the function that answers requests: ``ReadRequest`` to ``Reading`` or ``Preview``, msgpack.

    A capture that can't be shown has an empty preview.

    Args:
        settings: an encoded ``ReadSettings``.
        open_blob: SHA-256 (hex) to the blob's plain bytes; the vault of the settings when ``None``.
    """
    import cv2

    cv2.setNumThreads(1)  # one request at a time on one core: more threads would only wait for each other
    wanted = msgspec.msgpack.decode(settings, type=ReadSettings)
    folders = [Path(folder) for folder in (wanted.models, wanted.installed) if folder]
    catalogue = Catalogue(
        folders, Path(wanted.cache), wanted.engine, None if wanted.trust is None else trusted(wanted.trust)
    )
    catalogue.open(wanted.warm or None)
    heap.give_back()
    reader = Reader(catalogue)
    live = LiveReader(reader)
    blob = open_blob or _vault(wanted)
    requests = msgspec.msgpack.Decoder(ReadRequest)
    encoder = msgspec.msgpack.Encoder()

    last: list[Looked] = []

    def look(asked: ReadRequest) -> Looked:
        source = blob(asked.sha256) if asked.sha256 else Path(asked.path)
        return reader.look(source, asked.known)

    def answer(request: bytes) -> bytes:
        asked = requests.decode(request)
        if asked.describe:
            if catalogue.refresh():  # a plan that is finished, a bundle that was installed
                heap.give_back()
            return encoder.encode(_described(catalogue))
        if asked.live is not None:
            return encoder.encode(live.answer(asked.live, asked.known))
        kept = last.pop() if last else None
        if kept is not None and kept.known.capture_id and kept.known == asked.known:
            looked = kept
        else:
            kept = None  # its memory is wanted
            looked = look(asked)
        if asked.ahead:
            last.append(looked)
            return b""
        if asked.pixels:
            return encoder.encode(raw(looked.capture, asked.frame))
        if asked.preview:
            shown = preview(looked.capture) if looked.capture is not None else Preview(media_type="", data=b"")
            return encoder.encode(shown)
        last.append(looked)
        return encoder.encode(reader.answer(looked))

    return answer


def _described(catalogue: Catalogue) -> Described:
    serving = tuple(
        Serving(
            bundle=one.bundle.id,
            version=one.bundle.version,
            modality=one.bundle.description.modality,
            engine=one.engine_record(),
            state=one.state,
        )
        for one in catalogue.bundles.values()
    )
    step = catalogue.building
    return Described(
        serving=serving,
        problems=tuple(catalogue.problems),
        building="" if step is None else f"{step.bundle}/{step.graph}: {step.phase}",
    )


def _vault(settings: ReadSettings) -> Callable[[str], bytes | bytearray]:
    if not settings.vault:
        return _no_vault
    from appliance.store.files import RealFiles
    from appliance.store.keys import open_key
    from appliance.store.vault import Vault

    vault = Vault(Path(settings.vault), open_key(Path(settings.key or settings.vault), RealFiles()))
    return vault.authentic


def _no_vault(sha256: str) -> bytes:
    raise ValueError(f"blob {sha256[:12]}… was asked for, but the process was started without a vault")
