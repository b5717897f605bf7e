"""Claims about the servers that tests lean on."""

from __future__ import annotations

import socket

import pytest
import sqlalchemy


def test_the_broker_can_be_stopped_and_comes_back_on_its_port(mosquitto):
    mosquitto.stop()
    with pytest.raises(OSError):
        socket.create_connection((mosquitto.host, mosquitto.port), timeout=1)
    mosquitto.start()
    socket.create_connection((mosquitto.host, mosquitto.port), timeout=1).close()


def test_postgresql_answers_on_its_url(postgresql):
    engine = sqlalchemy.create_engine(postgresql.url)
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("select 1")).scalar() == 1
    engine.dispose()
