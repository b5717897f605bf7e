"""What every test may use: the real servers of ``tests.servers``."""

from __future__ import annotations

from tests.servers import mosquitto, postgresql

__all__ = ["mosquitto", "postgresql"]
