"""Bytes that the daemon writes to its disk: idle, and for each capture besides the capture itself.

The real box, mosquitto and hub (``tools.programs``); the kernel counts (``/proc/PID/io``, ``write_bytes``) the daemon and the
processes it has started. First a quiet while with the link up, extrapolated to a day; then small films by C-STORE, one
after another, each read, reported, sent and receipted: what was written less the film and its preview, as they lie in the
vault. A day of 200 captures must stay below 1 GB besides the captures.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.health.writes import write_bytes
from tools.bench.rows import Row, row
from tools.programs import Programs, get
from tools.torture import Sender

QUIET_S = 90.0
CAPTURES = 40
A_DAY = 200
LIMIT = 1e9


def written(programs: Programs) -> int:
    """Bytes written so far by the daemon and its processes."""
    box = programs.running["box"].pid
    family = [box]
    for process in family:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            family += [int(word) for word in children.read_text().split()]
    counts = [write_bytes(str(process)) for process in family]
    return sum(count for count in counts if count is not None)


def vault(programs: Programs) -> int:
    """Bytes of all blobs."""
    return sum(path.stat().st_size for path in (programs.folder / "box" / "vault").glob("??/*.blob"))


def _settled(programs: Programs, captures: int) -> bool:
    status = get(programs.bedside_url + "/api/status")
    return int(status["captures"].get("delivered", 0)) >= captures and not status.get("waiting_messages", 0)


def run() -> Iterator[Row]:
    """Idle a day, a capture, and both together."""
    with tempfile.TemporaryDirectory(prefix="bench-writes-") as folder:
        programs = Programs(Path(folder))
        try:
            programs.start()
            programs.link.refuse(False)
            print(f"writes: {QUIET_S:.0f} s of quiet, then {CAPTURES} captures", file=sys.stderr)
            time.sleep(20)  # what a start writes once (derived models, golden checks) is over
            before, began = written(programs), time.monotonic()
            time.sleep(QUIET_S)
            idle = (written(programs) - before) / (time.monotonic() - began) * 86400
            before, blobs = written(programs), vault(programs)
            sender = Sender(programs.dicom, 0)
            for _ in range(CAPTURES):
                sender.send()
            programs.wait("everything delivered", lambda: _settled(programs, len(sender.acknowledged)), 300)
            time.sleep(1)
            each = (written(programs) - before - (vault(programs) - blobs)) / max(1, len(sender.acknowledged))
        finally:
            programs.stop()
    yield row("written, idle", "MB/day", idle / 1e6, n=1)
    yield row("written for a capture, besides it", "kB", each / 1e3, n=len(sender.acknowledged))
    name = f"written a day with {A_DAY} captures, besides them"
    day = idle + A_DAY * each
    yield row(name, "MB/day", day / 1e6, LIMIT / 1e6, peer_name="target", limit=1.0, n=len(sender.acknowledged))
