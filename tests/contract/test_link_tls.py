"""The link to a real broker over TLS, on a box that does not know the time."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import pytest

from appliance.config import LinkConfig
from appliance.protocol.messages import Status
from appliance.protocol.topics import Address
from appliance.sync.link import Link
from appliance.sync.uplink import Uplink
from tests.boxes import open_store
from tests.servers import running_mosquitto
from tests.unit.test_certificates import DAY, IN_1970, ISSUED, LONG_PAST, PRESENT, SYSTEM, certificate


@pytest.mark.parametrize(("dates", "online"), [(PRESENT, True), (LONG_PAST, False)], ids=["present", "long past"])
def test_a_box_that_woke_in_1970_reaches_its_broker_and_no_outdated_one(
    tmp_path: Path, dates: tuple[dt.datetime, dt.datetime], online: bool
) -> None:
    authority = certificate(tmp_path, "authority", ISSUED, SYSTEM + 4000 * DAY, None)
    certificate(tmp_path, "broker", *dates, authority)
    options = (f"certfile {tmp_path}/broker.pem", f"keyfile {tmp_path}/broker.key")
    with running_mosquitto(*options) as broker:
        config = LinkConfig(host="localhost", port=broker.port, tls=True, ca_file=str(tmp_path / "authority.pem"))
        store = open_store(tmp_path / "box")
        uplink = Uplink(store, config, time.monotonic, lambda: "2026-01-01")
        link = Link(config, Address("site-1", "box-1"), uplink, lambda *_: None, _status, lambda: IN_1970)
        link.start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (link.online or link.problem):
            time.sleep(0.02)
        problem = link.problem
        assert link.online is online
        link.stop()
        store.close()
    assert ("certificate can't be valid" in problem) is not online


def _status(online: bool) -> Status:
    return Status(online=online)
