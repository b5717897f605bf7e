"""Storage commitment is honest: what is called safe was read back from the disk; and a report is offered until it is taken."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from appliance.capture.commitment import PUSH_INSTANCE, PUSH_MODEL
from tests.contract.test_dicom_door import CR, image
from tests.dicom_box import Box, association, box
from tests.servers import free_port


class Results:
    """A sender that takes reports; ``answer``: the status it gives."""

    def __init__(self) -> None:
        self.got: list[tuple[int, Dataset]] = []
        self.answer = 0x0000
        self.came = threading.Condition()

    def handler(self, event: Any) -> tuple[int, None]:
        with self.came:
            self.got.append((event.event_type, event.event_information))
            self.came.notify_all()
        return self.answer, None

    def wait(self, count: int = 1, seconds: float = 15.0) -> tuple[int, Dataset]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.got) >= count, seconds), "no report came"
            return self.got[count - 1]


@contextlib.contextmanager
def listening(results: Results, port: int, title: str = "XRAY") -> Iterator[None]:
    """The sender as it waits for the box to call."""
    ae = AE(title)
    ae.add_supported_context(PUSH_MODEL, scu_role=False, scp_role=True)
    handlers = [(evt.EVT_N_EVENT_REPORT, results.handler)]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield
    finally:
        server.shutdown()


def asked(transaction: str, *instances: str, sop_class: str = CR) -> Dataset:
    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = []
    for instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        request.ReferencedSOPSequence.append(item)
    return request


def ask(link: Any, request: Dataset) -> int:
    status, _ = link.send_n_action(request, 1, PUSH_MODEL, PUSH_INSTANCE)
    return int(status.Status)


def send(opened: Box, *instances: str) -> None:
    with association(opened.door.port, CR) as link:
        for instance in instances:
            assert link.send_c_store(image(instance)).Status == 0x0000


def states(opened: Box) -> dict[str, int]:
    return opened.store.commitments.counts()


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def committed(information: Dataset) -> list[str]:
    return [item.ReferencedSOPInstanceUID for item in information.get("ReferencedSOPSequence", [])]


def failed(information: Dataset) -> dict[str, int]:
    items = information.get("FailedSOPSequence", [])
    return {item.ReferencedSOPInstanceUID: item.FailureReason for item in items}


def test_what_is_safe_is_reported_on_the_same_association(tmp_path):
    results = Results()
    handlers = [(evt.EVT_N_EVENT_REPORT, results.handler)]
    with box(tmp_path) as opened, association(opened.door.port, PUSH_MODEL, CR, evt_handlers=handlers) as link:
        for instance in ("1.1", "1.2"):
            assert link.send_c_store(image(instance)).Status == 0x0000
        assert ask(link, asked("9.1", "1.1", "1.2")) == 0x0000
        event_type, information = results.wait()
        assert (event_type, information.TransactionUID) == (1, "9.1")
        assert committed(information) == ["1.1", "1.2"]
        assert failed(information) == {}
        wait_until(lambda: states(opened) == {"reported": 1})
        assert link.send_c_store(image("1.3")).Status == 0x0000  # and the association goes on


def test_a_sender_that_goes_on_at_once_is_not_disturbed_by_its_reports(tmp_path):
    results = Results()
    handlers = [(evt.EVT_N_EVENT_REPORT, results.handler)]
    with box(tmp_path) as opened, association(opened.door.port, PUSH_MODEL, CR, evt_handlers=handlers) as link:
        for number in range(1, 13):
            assert link.send_c_store(image(f"1.{number}", side=256)).Status == 0x0000
            assert ask(link, asked(f"9.{number}", f"1.{number}")) == 0x0000
        results.wait(12)
        assert sorted(information.TransactionUID for _, information in results.got) == sorted(
            f"9.{number}" for number in range(1, 13)
        )


def test_what_is_not_here_or_of_another_class_or_damaged_is_not_called_safe(tmp_path):
    results = Results()
    handlers = [(evt.EVT_N_EVENT_REPORT, results.handler)]
    with box(tmp_path) as opened:
        send(opened, "1.1", "1.2", "1.3", "1.4")
        entries = {entry.capture.instance_uid: entry.capture for entry in opened.store.captures.latest()}
        damaged = opened.store.vault.path(entries["1.2"].sha256)
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        opened.store.vault.remove(entries["1.3"].sha256)
        request = asked("9.1", "1.1", "1.2", "1.3", "7.7")
        request.ReferencedSOPSequence.append(asked("", "1.4", sop_class=CR + ".1").ReferencedSOPSequence[0])
        with association(opened.door.port, PUSH_MODEL, evt_handlers=handlers) as link:
            assert ask(link, request) == 0x0000
            event_type, information = results.wait()
    assert event_type == 2
    assert committed(information) == ["1.1"]
    assert failed(information) == {"1.2": 0x0110, "1.3": 0x0110, "7.7": 0x0112, "1.4": 0x0119}


def test_a_sender_that_hangs_up_at_once_is_told_when_it_comes_back_even_after_a_restart(tmp_path):
    results = Results()
    handlers = [(evt.EVT_N_EVENT_REPORT, results.handler)]
    with box(tmp_path) as opened:
        send(opened, "1.1")
        with association(opened.door.port, PUSH_MODEL) as link:  # takes no reports
            assert ask(link, asked("9.1", "1.1")) == 0x0000
        assert states(opened) == {"waiting": 1}
    with box(tmp_path) as opened:
        with association(opened.door.port, PUSH_MODEL, calling="OTHER", evt_handlers=handlers):
            time.sleep(0.3)
        assert results.got == []
        for _ in range(5):  # it comes back until it was told
            with association(opened.door.port, PUSH_MODEL, evt_handlers=handlers):
                deadline = time.monotonic() + 4
                while states(opened) != {"reported": 1} and time.monotonic() < deadline:
                    time.sleep(0.05)
            if results.got:
                break
        assert committed(results.got[0][1]) == ["1.1"]
        assert states(opened) == {"reported": 1}


def test_a_sender_with_an_address_is_called_and_called_again_until_it_takes_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr("appliance.capture.commitment._FIRST", 0.4)
    results, port = Results(), free_port()
    results.answer = 0x0110
    with box(tmp_path, peers=(f"XRAY=127.0.0.1:{port}",)) as opened:
        send(opened, "1.1")
        with association(opened.door.port, PUSH_MODEL) as link:
            assert ask(link, asked("9.1", "1.1")) == 0x0000
        wait_until(lambda: opened.store.commitments.waiting()[0].attempts >= 1)  # nobody listens yet
        with listening(results, port):
            results.wait()
            results.answer = 0x0000
            assert committed(results.wait(2)[1]) == ["1.1"]
            wait_until(lambda: states(opened) == {"reported": 1})


def test_a_request_survives_a_restart_of_the_box(tmp_path):
    results, port = Results(), free_port()
    settings = {"peers": (f"XRAY=127.0.0.1:{port}",)}
    with box(tmp_path, **settings) as opened:
        send(opened, "1.1")
        with association(opened.door.port, PUSH_MODEL) as link:
            assert ask(link, asked("9.1", "1.1")) == 0x0000
        assert states(opened) == {"waiting": 1}
    with listening(results, port), box(tmp_path, **settings) as opened:
        assert committed(results.wait()[1]) == ["1.1"]
        wait_until(lambda: states(opened) == {"reported": 1})


def test_after_many_attempts_the_report_is_given_up_and_asking_again_offers_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr("appliance.capture.commitment.ATTEMPTS", 1)
    port = free_port()
    with box(tmp_path, peers=(f"XRAY=127.0.0.1:{port}",)) as opened:
        send(opened, "1.1")
        with association(opened.door.port, PUSH_MODEL) as link:
            assert ask(link, asked("9.1", "1.1")) == 0x0000
            wait_until(lambda: states(opened) == {"given-up": 1})
            results = Results()
            with listening(results, port):
                assert ask(link, asked("9.1", "1.1")) == 0x0000
                results.wait()
                wait_until(lambda: states(opened) == {"reported": 1})


@pytest.mark.parametrize(
    ("request_", "status"),
    [(asked("9.1"), 0x0115), (asked("", "1.1"), 0x0115), (Dataset(), 0x0115), (asked("9.9", "1.2"), 0x0115)],
    ids=["no references", "no transaction", "nothing", "other instances"],
)
def test_a_request_that_is_none_is_refused(tmp_path, monkeypatch, request_, status):
    monkeypatch.setattr("appliance.capture.dimse_stream.QUIET", 60.0)  # pynetdicom's sender can't be told while it asks
    with box(tmp_path) as opened, association(opened.door.port, PUSH_MODEL) as link:
        assert ask(link, asked("9.9", "1.1")) == 0x0000
        request_ = request_ if len(request_) else asked("not a uid", "1.1")
        assert ask(link, request_) == status
        answer, _ = link.send_n_action(asked("9.2", "1.1"), 2, PUSH_MODEL, PUSH_INSTANCE)
        assert answer.Status == 0x0123
        answer, _ = link.send_n_action(asked("9.2", "1.1"), 1, PUSH_MODEL, "1.2.3")
        assert answer.Status == 0x0112
        assert states(opened) == {"waiting": 1}


def test_a_request_lies_sealed(tmp_path):
    with box(tmp_path) as opened, association(opened.door.port, PUSH_MODEL) as link:
        assert ask(link, asked("9.123456789", "1.987654321")) == 0x0000
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("journal.sqlite*"))
    assert b"1.987654321" not in kept
