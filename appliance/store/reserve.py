"""A reserve of disk space, so that the journal, the audit log and the outbox can write when everything else is full."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class Reserve:
    """A file of real blocks that is given up when the journal needs its space, and made again when there is room."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size

    @property
    def held(self) -> bool:
        """Whether the reserve is there."""
        return self.path.exists() and self.path.stat().st_size == self.size

    def hold(self) -> bool:
        """Take the reserve if there is room for it; whether it is held now."""
        if self.held or self.size == 0:
            return True
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self.size)
            finally:
                os.close(fd)
        except OSError:
            with contextlib.suppress(OSError):
                self.path.unlink()
            return False
        return True

    def release(self) -> bool:
        """Give the space up; whether there was any to give."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True
