"""Originals back from their encoding (``appliance.protocol.originals``), in a process of their own.

What this module keeps true: bytes from the wire reach a decoder only in a child process with limits on memory and time, so
a hostile or broken transfer costs itself and nothing else; what comes out is named by the SHA-256 of its bytes.

``python -m hub.restore CONTAINER FILE`` writes FILE and prints its SHA-256.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

_MEMORY = 4 << 30
_SECONDS = 120
_NO_SPACE = 3
_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class RestoreError(Exception):
    """The transfer does not become an original; the message says why. ``full``: only the disk's space was missing."""

    def __init__(self, reason: str, *, full: bool = False) -> None:
        super().__init__(reason)
        self.full = full


def restore(container: Path, file: Path) -> str:
    """Write the original that ``container`` holds to ``file``; its SHA-256. Raises ``RestoreError``."""
    command = [sys.executable, "-m", "hub.restore", str(container), str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        child = subprocess.run(command, check=False, capture_output=True, timeout=_SECONDS + 10, env=environment)
    except subprocess.TimeoutExpired as error:
        raise RestoreError("decoding took too long") from error
    if child.returncode == 0:
        return child.stdout.decode().strip()
    if child.returncode == _NO_SPACE:
        raise RestoreError("no space for the original", full=True)
    lines = child.stderr.decode(errors="replace").strip().splitlines()
    raise RestoreError(lines[-1][:200] if lines else f"the decoder ended with status {child.returncode}")


def main(container: Path, file: Path) -> int:
    """The child: limits first, then decode."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    from appliance.protocol.originals import restored

    digest = hashlib.sha256()
    try:
        with file.open("wb") as out:
            for plain in restored(container.read_bytes()):
                digest.update(plain)
                out.write(plain)
    except Exception as error:  # noqa: BLE001 - the edge of a process that exists to contain them
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        file.unlink(missing_ok=True)
        return _NO_SPACE if isinstance(error, OSError) and error.errno in _SPACE else 1
    sys.stdout.write(digest.hexdigest() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
