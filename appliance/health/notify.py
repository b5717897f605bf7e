"""The service manager's notify protocol: one datagram with ``NAME=value`` lines to the socket it names in the environment.

What this module keeps true: saying something never blocks and never raises: a manager that is not there, or went away,
must not disturb the box (what could not be said is counted in ``lost``). Source: systemd, ``sd_notify(3)`` and
``sd_watchdog_enabled(3)``; the protocol is declared stable there, so no library is needed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping

MICROSECONDS = 1_000_000


class Notifier:
    """Speaks to the service manager at ``address``: a path, ``@name`` (abstract), or empty when there is no manager."""

    def __init__(self, address: str = "") -> None:
        self.address = address
        self.lost = 0
        self._target = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def there(self) -> bool:
        """Whether somebody is said to listen."""
        return self._socket is not None

    def send(self, **fields: str | int) -> bool:
        """Send the fields in one datagram; whether the manager's socket took it. Line breaks in values become spaces."""
        if self._socket is None:
            return False
        text = "".join(f"{name}={' '.join(str(value).splitlines())}\n" for name, value in fields.items())
        try:
            self._socket.sendto(text.encode("utf-8", "replace"), self._target)
        except OSError:  # full queue, socket gone: the next word counts, not this one
            self.lost += 1
            return False
        return True

    def ready(self, status: str) -> bool:
        """Started: what is ordered after this unit may go on."""
        return self.send(READY=1, STATUS=status)

    def status(self, text: str) -> bool:
        """One line for ``systemctl status``. Nothing identifying a person may stand in it."""
        return self.send(STATUS=text)

    def alive(self) -> bool:
        """Every stage makes progress (see ``appliance.health.watchdog``)."""
        return self.send(WATCHDOG=1)

    def stopping(self, status: str = "stopping") -> bool:
        """On the way to an orderly end."""
        return self.send(STOPPING=1, STATUS=status)

    def extend(self, seconds: float) -> bool:
        """Starting, or stopping, needs up to ``seconds`` more from now."""
        return self.send(EXTEND_TIMEOUT_USEC=int(seconds * MICROSECONDS))

    @contextlib.contextmanager
    def preparing(self, what: str, *, limit_s: float = 900.0, every_s: float = 5.0) -> Iterator[None]:
        """Keep the manager patient while something slow is prepared, a model's plan say, for at most ``limit_s``.

        The limit is what makes it honest: preparation that hangs is ended by the manager ``limit_s`` after it began.
        """
        done = threading.Event()

        def keep_asking() -> None:
            for _ in range(int(limit_s / every_s)):
                self.extend(every_s * 3)
                if done.wait(every_s):
                    return

        self.status(what)
        thread = threading.Thread(target=keep_asking, name="notify", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def from_environment(environ: Mapping[str, str] = os.environ) -> Notifier:
    """The manager that started this process, as it says itself in ``NOTIFY_SOCKET``."""
    address = environ.get("NOTIFY_SOCKET", "")
    return Notifier(address if address.startswith(("/", "@")) else "")


def watchdog_period(environ: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Seconds within which the manager wants a ping; ``None`` when it wants none from this process."""
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
        wanted = int(environ.get("WATCHDOG_PID", "0"))
    except ValueError:
        return None
    if microseconds <= 0 or (wanted and wanted != (os.getpid() if pid is None else pid)):
        return None
    return microseconds / MICROSECONDS
