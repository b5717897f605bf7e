"""The DICOM door against real senders: pynetdicom, dcmtk, and a peer that misbehaves on purpose."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA

from appliance.capture import dimse_stream
from appliance.capture.dicom import STORAGE_CLASSES, TRANSFER_SYNTAXES, VERIFICATION, DicomDoor
from appliance.capture.waking import SignallingQueue
from appliance.config import DicomConfig
from appliance.records import Modality
from tests.simulated_intake import SimulatedIntake

CR = "1.2.840.10008.5.1.4.1.1.1"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
CONFIG = DicomConfig(address="127.0.0.1")

Opened = tuple[DicomDoor, SimulatedIntake]


@contextlib.contextmanager
def open_door(intake: SimulatedIntake | None = None, **settings: object) -> Iterator[Opened]:
    intake = intake or SimulatedIntake()
    door = DicomDoor(msgspec.structs.replace(CONFIG, port=0, **settings), intake)
    door.start()
    try:
        yield door, intake
    finally:
        door.stop()
        assert intake.open_now == 0, "something half-received was left"


@contextlib.contextmanager
def association(door: DicomDoor, contexts: dict[str, str], title: str = "BEDSIDE", calling: str = "SENDER") -> Iterator:
    ae = AE(calling)
    for sop_class, syntax in contexts.items():
        ae.add_requested_context(sop_class, syntax)
    link = ae.associate("127.0.0.1", door.port, ae_title=title)
    try:
        yield link
    finally:
        if link.is_established:
            link.release()


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def image(instance: str = "1.2.3.4", side: int = 64, **more: object) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT
    ds.SOPClassUID = CR
    ds.SOPInstanceUID = instance
    ds.Modality = "CR"
    ds.PatientID = "P1"
    ds.PatientName = "Okoro^Ada"
    ds.StudyInstanceUID = "1.2.3"
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = "PA"
    ds.Rows = ds.Columns = side
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.PixelData = np.random.default_rng(1).integers(0, 4096, side * side, dtype=np.uint16).tobytes()
    for key, value in more.items():
        setattr(ds, key, value)
    return ds


def data_set_bytes(content: bytes) -> bytes:
    """The data set of a Part 10 file, without preamble and meta information."""
    file = pydicom.filebase.DicomBytesIO(content)
    pydicom.filereader.read_preamble(file, force=False)
    pydicom.filereader._read_file_meta_info(file)
    return content[file.tell() :]


def encoded(ds: Dataset) -> bytes:
    file = io.BytesIO()
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return data_set_bytes(file.getvalue())


def send(door: DicomDoor, ds: Dataset) -> Dataset:
    with association(door, {ds.SOPClassUID: ds.file_meta.TransferSyntaxUID}) as link:
        assert link.is_established
        return link.send_c_store(ds)


# What comes in


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_UNCI.dcm", "RG1_J2KR.dcm", "RG1_J2KI.dcm", "RG3_UNCR.dcm"])
def test_each_form_of_a_radiograph_is_kept_byte_for_byte(name, monkeypatch):
    monkeypatch.setattr(pynetdicom_config, "STORE_SEND_CHUNKED_DATASET", True)
    path = Path(str(get_testdata_file(name)))
    sent = pydicom.dcmread(path, stop_before_pixels=True)
    with open_door() as (door, intake):
        with association(door, {sent.SOPClassUID: sent.file_meta.TransferSyntaxUID}) as link:
            assert link.send_c_store(path).Status == 0x0000
        [(content, facts)] = intake.kept
        assert data_set_bytes(content) == data_set_bytes(path.read_bytes())
        assert facts.modality is Modality.CHEST_XRAY
        assert facts.transfer_syntax_uid == sent.file_meta.TransferSyntaxUID
        assert facts.study_uid == sent.StudyInstanceUID
        assert facts.body_part == sent.BodyPartExamined
        assert facts.source == "dicom:SENDER"
        assert pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID == sent.SOPInstanceUID


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_every_transfer_syntax_of_the_statement_is_negotiated(syntax):
    with open_door() as (door, _), association(door, dict.fromkeys(STORAGE_CLASSES, syntax)) as link:
        accepted = {(str(cx.abstract_syntax), str(cx.transfer_syntax[0])) for cx in link.accepted_contexts}
        assert accepted == {(sop_class, syntax) for sop_class in STORAGE_CLASSES}


@pytest.mark.parametrize("sop_class", STORAGE_CLASSES)
def test_an_object_of_every_class_of_the_statement_is_kept(sop_class):
    with open_door() as (door, intake):
        assert send(door, image(SOPClassUID=sop_class)).Status == 0x0000
        assert intake.kept[0][1].sop_class_uid == sop_class


def test_a_private_tag_and_a_name_in_a_foreign_character_set_survive_byte_for_byte():
    ds = image(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう")
    ds.add_new(0x00091001, "UN", bytes(range(256)))
    ds.private_block(0x0029, "ODD VENDOR", create=True).add_new(0x01, "LO", "kept")
    with open_door() as (door, intake):
        assert send(door, ds).Status == 0x0000
        [(content, facts)] = intake.kept
    assert data_set_bytes(content) == encoded(ds)
    assert facts.patient.name == "Yamada^Tarou=山田^太郎=やまだ^たろう"


def test_a_character_set_that_does_not_exist_keeps_nothing_out():
    ds = image()
    raw = encoded(ds).replace(b"", b"", 0)
    wrong = b"\x08\x00\x05\x00CS\x08\x00NOT_REAL" + raw
    with open_door() as (door, intake):
        assert store_raw(door, wrong).status == 0x0000
        assert data_set_bytes(intake.kept[0][0]) == wrong


def test_dcmtks_storescu_is_answered_and_what_it_sent_is_kept():
    storescu = shutil.which("storescu") or pytest.skip("dcmtk is not installed (apt-get install dcmtk)")
    files = [str(get_testdata_file(name)) for name in ("RG1_UNCR.dcm", "RG3_UNCR.dcm", "US1_UNCR.dcm")]
    with open_door() as (door, intake):
        command = [storescu, "-aec", "BEDSIDE", "-xe", "127.0.0.1", str(door.port), *files]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
        assert [pydicom.dcmread(io.BytesIO(content)).Modality for content, _ in intake.kept] == ["CR", "CR", "US"]


def test_an_echo_is_answered():
    with open_door() as (door, _), association(door, {"1.2.840.10008.1.1": IMPLICIT}) as link:
        assert link.send_c_echo().Status == 0x0000
        assert door.counts["echo"] == 1


def test_the_same_object_twice_is_success_twice_and_kept_once():
    with open_door() as (door, intake):
        assert [send(door, image()).Status for _ in range(2)] == [0x0000, 0x0000]
        assert len(intake.kept) == 1
        assert (door.counts["kept"], door.counts["duplicate"]) == (1, 1)


def test_other_bytes_under_a_known_instance_are_kept_aside_and_counted():
    with open_door() as (door, intake):
        assert send(door, image()).Status == 0x0000
        assert send(door, image(PatientID="P2")).Status == 0x0000
        assert [facts.patient.id for _, facts in intake.kept] == ["P1", "P2"]
        assert door.counts["conflict"] == 1


def test_from_one_object_to_the_next_pynetdicoms_polling_is_left_out(monkeypatch):
    slowly = []
    read = DULServiceProvider._read_pdu_data
    monkeypatch.setattr(DULServiceProvider, "_read_pdu_data", lambda dul: (slowly.append(type(dul)), read(dul)))
    with open_door() as (door, intake), association(door, {CR: EXPLICIT, VERIFICATION: EXPLICIT}) as link:
        before = slowly.count(dimse_stream.Dul)
        statuses = [link.send_c_store(image(f"1.2.{number}", 300)).Status for number in range(10)]
        assert slowly.count(dimse_stream.Dul) == before
        assert link.send_c_echo().Status == 0
        assert slowly.count(dimse_stream.Dul) == before + 1, "what is no object goes through pynetdicom, as ever"
        assert link.send_c_store(image("1.2.10")).Status == 0
    assert statuses == [0] * 10
    assert len(intake.kept) == 11


def test_an_answer_waits_for_what_was_to_be_sent_before_it(monkeypatch):
    waiting = []
    send_pdu = dimse_stream.Dul.send_pdu
    monkeypatch.setattr(dimse_stream.Dul, "send_pdu", lambda dul, pdu: (waiting.append(pdu), send_pdu(dul, pdu)))
    monkeypatch.setattr(SignallingQueue, "empty", lambda _: False)
    with open_door() as (door, _), association(door, {CR: EXPLICIT}) as link:
        assert [link.send_c_store(image(f"1.2.{number}")).Status for number in range(3)] == [0] * 3
        assert sum(isinstance(pdu, P_DATA) for pdu in waiting) == 3


def test_many_senders_at_once_lose_and_mix_nothing():
    with open_door() as (door, intake):

        def sender(number: int) -> None:
            with association(door, {CR: EXPLICIT}) as link:
                for index in range(4):
                    name = f"1.2.{number}.{index}"
                    ds = image(name, side=256, PixelData=bytes([number, index]) * (256 * 256), PatientID=name)
                    assert link.send_c_store(ds).Status == 0x0000

        threads = [threading.Thread(target=sender, args=(number,)) for number in range(1, 11)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(intake.kept) == 40
        for content, facts in intake.kept:
            number, index = (int(part) for part in facts.instance_uid.split(".")[2:])
            assert facts.patient.id == facts.instance_uid
            assert data_set_bytes(content).endswith(bytes([number, index]) * (256 * 256))


def test_an_object_larger_than_memory_should_hold_streams_through(monkeypatch):
    pieces: list[int] = []

    class Counting(SimulatedIntake):
        def open(self):
            incoming = super().open()
            write = incoming.write
            monkeypatch.setattr(incoming, "write", lambda data: (pieces.append(len(data)), write(data))[1])
            return incoming

    with open_door(Counting()) as (door, _):
        assert send(door, image(side=2048)).Status == 0x0000
    assert len(pieces) > 60
    assert max(pieces) <= dimse_stream.PDU_SIZE


# What is refused


def test_success_is_not_said_when_keeping_fails_at_the_last_moment():
    intake = SimulatedIntake()
    intake.fail_on_keep = OSError(5, "Input/output error")
    with open_door(intake) as (door, _):
        answer = send(door, image())
        assert answer.Status == 0x0110
        assert "Input/output error" in answer.ErrorComment
        assert door.counts["refused-store"] == 1


@pytest.mark.parametrize("room", [0, 4000])
def test_a_full_disk_is_answered_out_of_resources_and_the_association_goes_on(room):
    intake = SimulatedIntake(room_for=room)
    with open_door(intake) as (door, _), association(door, {CR: EXPLICIT}) as link:
        answer = link.send_c_store(image(side=128))
        assert answer.Status == 0xA700
        assert "full" in answer.ErrorComment
        intake.room_for = None
        assert link.send_c_store(image(side=128)).Status == 0x0000
        assert door.counts["refused-full"] == 1


def test_an_object_over_the_limit_is_refused_with_the_setting_to_change():
    with open_door(maximum_object=1) as (door, intake):
        answer = send(door, image(side=1024))
        assert answer.Status == 0xA700
        assert "dicom.maximum_object" in answer.ErrorComment
        assert intake.kept == []


def test_a_data_set_of_another_class_or_instance_than_announced_is_refused():
    with open_door() as (door, intake):
        raw = encoded(image())
        assert store_raw(door, raw, instance="9.9.9").status == 0xA900
        assert store_raw(door, raw, sop_class=CR + ".1").status == 0xA900
        assert intake.kept == []
        assert door.counts["refused-other-class"] == 2


@pytest.mark.parametrize(
    "junk",
    [b"", b"\0" * 64, b"GIF89a" + bytes(range(256)) * 9, np.random.default_rng(7).bytes(300_000), b"\xff" * 5000],
)
def test_what_is_no_data_set_is_not_understood(junk):
    with open_door() as (door, intake):
        answer = store_raw(door, junk)
        assert answer.status in {0xC000, 0xA900}
        assert answer.comment
        assert intake.kept == []


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KR.dcm", "US1_J2KI.dcm"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_dicom_is_refused_with_its_cause(name, share):
    content = Path(str(get_testdata_file(name))).read_bytes()
    sent = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    raw = data_set_bytes(content)
    with open_door() as (door, intake):
        answer = store_raw(
            door,
            raw[: int(len(raw) * share)],
            sop_class=sent.SOPClassUID,
            instance=sent.SOPInstanceUID,
            syntax=sent.file_meta.TransferSyntaxUID,
        )
        assert answer.status == 0xC000
        assert "cut off" in answer.comment
        assert intake.kept == []


def test_a_wrong_ae_title_is_rejected_and_counted():
    with open_door() as (door, _):
        with association(door, {CR: EXPLICIT}, title="SOMEONE") as link:
            assert link.is_rejected
        assert door.counts["rejected-called-ae-title"] == 1


def test_a_sender_not_on_the_list_is_rejected_and_one_on_it_is_not():
    with open_door(allowed_ae_titles=("XRAY1",)) as (door, _):
        with association(door, {CR: EXPLICIT}, calling="XRAY2") as link:
            assert link.is_rejected
        with association(door, {CR: EXPLICIT}, calling="XRAY1") as link:
            assert link.is_established
        assert door.counts["rejected-calling-ae-title"] == 1


def test_an_address_outside_the_allowed_networks_is_cut_off():
    with open_door(allowed_addresses=("192.0.2.0/24",)) as (door, _):
        with association(door, {CR: EXPLICIT}) as link:
            assert not link.is_established
        assert door.counts["rejected-address"] == 1
    with open_door(allowed_addresses=("127.0.0.0/8",)) as (door, _), association(door, {CR: EXPLICIT}) as link:
        assert link.is_established


def test_one_association_more_than_allowed_is_rejected_and_the_others_go_on():
    with open_door(maximum_associations=2) as (door, _), contextlib.ExitStack() as stack:
        links = [stack.enter_context(association(door, {CR: EXPLICIT})) for _ in range(3)]
        assert [link.is_established for link in links] == [True, True, False]
        assert door.counts["rejected-limit"] == 1
        assert links[0].send_c_store(image()).Status == 0x0000


# A peer that misbehaves


class RawPeer:
    """Speaks DICOM by hand, so that it can speak it wrongly."""

    def __init__(self, door: DicomDoor, sop_class: str = CR, syntax: str = EXPLICIT) -> None:
        self.sop_class = sop_class
        self.plain = socket.create_connection(("127.0.0.1", door.port), timeout=20)
        ae = AE("RAW")
        ae.add_requested_context(sop_class, syntax)
        context = ae.requested_contexts[0]
        context.context_id = 1
        request = pynetdicom_request(ae, context)
        self.plain.sendall(request)
        assert self.read_pdu()[0] == 2, "the association was not accepted"

    def read_pdu(self) -> tuple[int, bytes]:
        head = self._exactly(6)
        if not head:
            return 0, b""
        kind, _, length = struct.unpack(">BBL", head)
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            with contextlib.suppress(ConnectionError):
                if piece := self.plain.recv(count - len(data)):
                    data += piece
                    continue
            return b""
        return data

    def p_data(self, *fragments: tuple[int, bytes], context: int = 1) -> None:
        items = b"".join(struct.pack(">IBB", len(data) + 2, context, control) + data for control, data in fragments)
        self.plain.sendall(struct.pack(">BBL", 4, 0, len(items)) + items)

    def command(self, instance: str, sop_class: str = "") -> bytes:
        ds = Dataset()
        ds.AffectedSOPClassUID = sop_class or self.sop_class
        ds.CommandField, ds.MessageID, ds.Priority, ds.CommandDataSetType = 0x0001, 1, 0, 0x0000
        ds.AffectedSOPInstanceUID = instance
        file = pydicom.filebase.DicomBytesIO()
        file.is_implicit_VR, file.is_little_endian = True, True
        pydicom.filewriter.write_dataset(file, ds)
        body = file.getvalue()
        return struct.pack("<HHII", 0, 0, 4, len(body)) + body

    def answer(self) -> Answer:
        kind, body = self.read_pdu()
        if kind != 4:
            return Answer(None, f"PDU {kind}")
        command = pydicom.filereader.read_dataset(io.BytesIO(body[6:]), is_implicit_VR=True, is_little_endian=True)
        return Answer(command.Status, command.get("ErrorComment", ""))


class Answer(msgspec.Struct):
    status: int | None
    comment: str


def pynetdicom_request(ae: AE, context: object) -> bytes:
    from pynetdicom.pdu import A_ASSOCIATE_RQ
    from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = ae.ae_title, "BEDSIDE"
    primitive.calling_presentation_address = primitive.called_presentation_address = None
    primitive.presentation_context_definition_list = [context]
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16382, ae.implementation_class_uid
    primitive.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def store_raw(
    door: DicomDoor,
    raw: bytes,
    sop_class: str = CR,
    instance: str = "1.2.3.4",
    syntax: str = EXPLICIT,
    size: int = 30_000,
) -> Answer:
    peer = RawPeer(door, sop_class, syntax)
    with peer.plain:
        peer.p_data((3, peer.command(instance)))
        pieces = [raw[start : start + size] for start in range(0, len(raw), size)] or [b""]
        for number, piece in enumerate(pieces):
            peer.p_data((2 if number == len(pieces) - 1 else 0, piece))
        return peer.answer()


def test_an_abort_in_the_middle_of_a_transfer_leaves_nothing():
    with open_door() as (door, intake):
        peer = RawPeer(door)
        peer.p_data((3, peer.command("1.2.3.4")))
        peer.p_data((0, encoded(image(side=256))[:60_000]))
        wait_until(lambda: intake.open_now == 1)
        peer.plain.sendall(b"\x07\0\0\0\0\x04\0\0\0\0")
        wait_until(lambda: intake.open_now == 0)
        assert intake.kept == []
        wait_until(lambda: door.counts["aborted"] == 1)


def test_a_connection_that_breaks_in_the_middle_of_a_pdu_leaves_nothing():
    with open_door() as (door, intake):
        peer = RawPeer(door)
        peer.p_data((3, peer.command("1.2.3.4")))
        peer.p_data((0, encoded(image(side=256))[:60_000]))
        peer.plain.sendall(b"\x04\0" + struct.pack(">L", 100_000) + b"half of it")
        wait_until(lambda: intake.open_now == 1)
        peer.plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.plain.close()
        wait_until(lambda: intake.open_now == 0)
        assert send(door, image()).Status == 0x0000


def test_command_and_data_fragments_mixed_in_one_pdu_are_taken_apart_rightly():
    raw = encoded(image(side=32))
    with open_door() as (door, intake):
        peer = RawPeer(door)
        command = peer.command("1.2.3.4")
        with peer.plain:
            peer.p_data((1, command[:10]), (1, command[10:20]))
            peer.p_data((3, command[20:]), (0, raw[:5]), (0, raw[5:500]))
            peer.p_data((0, b""), (0, raw[500:501]))
            peer.p_data((2, raw[501:]), (1, command[:40]))
            assert peer.answer().status == 0x0000
            peer.p_data((3, command[40:]), (2, raw))
            assert peer.answer().status == 0x0000
        assert [data_set_bytes(content) for content, _ in intake.kept] == [raw]


@pytest.mark.parametrize(
    "attack",
    [
        b"GET / HTTP/1.1\r\nHost: box\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"\x01\0\xff\xff\xff\xff" + bytes(1000),
        b"\x04\0\0\0\0\x0a" + bytes(10),
        b"\0" * 4096,
        b"",
    ],
    ids=["http", "tls", "4 GB PDU", "data before association", "zeros", "nothing"],
)
def test_garbage_on_the_port_ends_that_connection_only(attack):
    with open_door() as (door, _):
        with socket.create_connection(("127.0.0.1", door.port), timeout=20) as plain:
            plain.sendall(attack)
            if not attack:
                plain.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while plain.recv(4096):
                    pass
        assert send(door, image()).Status == 0x0000
        wait_until(lambda: len(door._server.active_associations) == 0)


@pytest.mark.parametrize(
    "fragments",
    [
        [(3, b"\x01\x02\x03")],
        [(3, b"")],
        [(0, b"data before any command")],
        [(2, b"data before any command, the last")],
        [(1, bytes(100_000))],
    ],
    ids=["not a command", "empty command", "data first", "data first and last", "endless command"],
)
def test_a_malformed_message_aborts_its_association_only(fragments):
    with open_door() as (door, intake):
        peer = RawPeer(door)
        with peer.plain:
            peer.p_data(*fragments)
            if fragments[0][0] != 0:
                assert peer.read_pdu()[0] in {0, 7}
        assert send(door, image()).Status == 0x0000
        assert len(intake.kept) == 1


def test_a_fragment_in_a_context_that_was_not_agreed_aborts():
    with open_door() as (door, _):
        peer = RawPeer(door)
        with peer.plain:
            peer.p_data((3, peer.command("1.2.3.4")), context=99)
            assert peer.read_pdu()[0] in {0, 7}
        assert door.counts["malformed"] >= 1


def test_a_pdu_whose_items_overrun_it_aborts_and_leaves_nothing():
    with open_door() as (door, intake):
        peer = RawPeer(door)
        with peer.plain:
            peer.p_data((3, peer.command("1.2.3.4")))
            body = struct.pack(">IBB", 5000, 1, 0) + b"short"
            peer.plain.sendall(struct.pack(">BBL", 4, 0, len(body)) + body)
            assert peer.read_pdu()[0] in {0, 7}
        wait_until(lambda: intake.open_now == 0)
        assert intake.kept == []


def test_a_peer_that_stalls_in_a_pdu_is_dropped(monkeypatch):
    monkeypatch.setattr("appliance.capture.dicom.STALL_TIMEOUT", 1)
    with open_door() as (door, intake):
        peer = RawPeer(door)
        with peer.plain:
            peer.p_data((3, peer.command("1.2.3.4")))
            peer.p_data((0, encoded(image())[:100]))
            peer.plain.sendall(b"\x04\0" + struct.pack(">L", 1000) + b"then silence")
            wait_until(lambda: intake.open_now == 1)
            wait_until(lambda: intake.open_now == 0)


def test_a_peer_that_never_speaks_is_dropped(monkeypatch):
    monkeypatch.setattr("appliance.capture.dicom.IDLE_TIMEOUT", 1.0)
    with open_door() as (door, _):
        peer = RawPeer(door)
        with peer.plain:
            assert peer.read_pdu()[0] in {0, 7}


def test_stopping_in_the_middle_of_a_transfer_returns_soon_and_leaves_nothing():
    intake = SimulatedIntake()
    with open_door(intake) as (door, _):
        peer = RawPeer(door)
        peer.p_data((3, peer.command("1.2.3.4")))
        peer.p_data((0, encoded(image())[:3000]))
        wait_until(lambda: intake.open_now == 1)
        start = time.monotonic()
        door.stop()
        assert time.monotonic() - start < 5
        wait_until(lambda: intake.open_now == 0)
        peer.plain.close()


def test_no_threads_or_descriptors_are_left_after_many_associations():
    with open_door() as (door, _):
        send(door, image())
        wait_until(lambda: len(door._server.active_associations) == 0)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            send(door, image())
        wait_until(lambda: len(door._server.active_associations) == 0)
        wait_until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before + 2)


def test_with_unknown_internals_objects_still_arrive(monkeypatch):
    monkeypatch.setattr(dimse_stream, "usable", lambda: "pynetdicom 4.0.0 is not the 3.0 this was written against")
    with open_door() as (door, intake):
        ds = image()
        assert send(door, ds).Status == 0x0000
        assert data_set_bytes(intake.kept[0][0]) == encoded(ds)
        assert store_raw(door, b"no data set").status == 0xC000


def test_a_pynetdicom_requestor_elsewhere_in_the_process_is_not_changed():
    got: list[bytes] = []
    ae = AE("OTHER")
    ae.add_supported_context(CR, EXPLICIT)
    handlers = [(evt.EVT_C_STORE, lambda event: got.append(event.request.DataSet.getvalue()) or 0)]
    other = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    with open_door():
        sender = AE()
        sender.add_requested_context(CR, EXPLICIT)
        link = sender.associate("127.0.0.1", other.server_address[1])
        assert link.send_c_store(image()).Status == 0x0000
        link.release()
    other.shutdown()
    assert got == [encoded(image())]
