"""What every test may use: the real servers of ``tests.servers``. No test is timed: a busy machine is no fault of the code."""

from __future__ import annotations

import hypothesis

from tests.servers import mosquitto, postgresql

__all__ = ["mosquitto", "postgresql"]

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
