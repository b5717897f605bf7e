"""The servers of ``tools.servers`` as fixtures: a missing program skips the test with the reason printed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import pytest

from tools import servers
from tools.free_port import free_port
from tools.servers import MissingServer, Mosquitto, PostgreSQL, wait_for_port

__all__ = ["Mosquitto", "PostgreSQL", "free_port", "mosquitto", "postgresql", "running_mosquitto", "wait_for_port"]

_Server = TypeVar("_Server", Mosquitto, PostgreSQL)


@contextlib.contextmanager
def _or_skip(server: contextlib.AbstractContextManager[_Server]) -> Iterator[_Server]:
    try:
        running = server.__enter__()
    except MissingServer as error:
        pytest.skip(str(error))
    with contextlib.ExitStack() as stack:
        stack.push(server.__exit__)
        yield running


def running_mosquitto(*options: str) -> contextlib.AbstractContextManager[Mosquitto]:
    """A broker in a folder of its own; ``options`` are further lines of its configuration."""
    return _or_skip(servers.running_mosquitto(*options))


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    """A broker for this test alone: ``.host``, ``.port``, ``.stop()``, ``.kill()``, ``.start()``."""
    with running_mosquitto() as broker:
        yield broker


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server for the whole run: make a database or a schema of your own in it."""
    with _or_skip(servers.running_postgresql()) as server:
        yield server
