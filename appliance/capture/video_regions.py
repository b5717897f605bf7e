"""The picture areas that a person confirmed, by device.

What this module keeps true: what was confirmed is there after a restart; a file that can't be read means that nothing was
confirmed, never another area.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance.capture.video_area import Region
from appliance.store.files import Files, durable


class Regions:
    """Confirmed areas in the JSON file ``path``: device id to region. It holds nothing of a patient."""

    def __init__(self, files: Files, path: Path) -> None:
        self._files, self._path = files, path

    def known(self) -> dict[str, Region]:
        """All of them."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Region])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return {}

    def remember(self, device: str, region: Region) -> None:
        """Durable on return; raises ``OSError``."""
        self._write({**self.known(), device: region})

    def forget(self, device: str) -> None:
        """The device's area is to be found anew."""
        known = self.known()
        if known.pop(device, None) is not None:
            self._write(known)

    def _write(self, known: dict[str, Region]) -> None:
        self._files.make_folder(self._path.parent)
        with durable(self._files, self._path) as file:
            file.write(msgspec.json.encode(known))
