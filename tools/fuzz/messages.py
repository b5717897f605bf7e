"""Broken associations for ``tools.fuzz``: whole conversations, changed, against a DICOM door over a real store."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from typing_extensions import Self

from tools.fuzz.cases import MEMORY, SECONDS, Outcome, Problem, mutate

CR, VERIFICATION, WORKLIST = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.31"
COMMITMENT, INSTANCE, STEP = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1", "1.2.840.10008.3.1.2.3.3"
CONTEXTS = {1: CR, 3: VERIFICATION, 5: WORKLIST, 7: COMMITMENT, 9: STEP}
_SILENCE = 0.25
_IMPLICIT = "1.2.840.10008.1.2"
_RELEASE = b"\x05\0\0\0\0\x04\0\0\0\0"


def request(title: str = "BEDSIDE") -> bytes:
    """An A-ASSOCIATE-RQ for every service."""
    ae = AE("FUZZ")
    for number, sop_class in CONTEXTS.items():
        ae.add_requested_context(sop_class, _IMPLICIT)
        ae.requested_contexts[-1].context_id = number
    contexts = sorted(ae.requested_contexts, key=lambda one: list(CONTEXTS.values()).index(one.abstract_syntax))
    for context, number in zip(contexts, CONTEXTS, strict=True):
        context.context_id = number
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "FUZZ", title
    primitive.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16382, ae.implementation_class_uid
    primitive.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def message(context: int, command: Dataset, data: bytes | None) -> bytes:
    """A DIMSE message as P-DATA-TF PDUs."""
    command.CommandDataSetType = 0x0101 if data is None else 0x0001
    body = encode(command, True, True) or b""
    parts = [(3, struct.pack("<HHII", 0, 0, 4, len(body)) + body)]
    pieces = [data[start : start + 8000] for start in range(0, len(data), 8000)] if data else []
    parts += [(2 if index == len(pieces) - 1 else 0, piece) for index, piece in enumerate(pieces)]
    items = (struct.pack(">IBB", len(part) + 2, context, control) + part for control, part in parts)
    return b"".join(struct.pack(">BBL", 4, 0, len(item)) + item for item in items)


def _command(field: int, **values: Any) -> Dataset:
    ds = Dataset()
    ds.CommandField, ds.MessageID = field, 1
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def _encoded(ds: Dataset) -> bytes:
    return encode(ds, True, True) or b""


def conversations() -> list[list[bytes]]:
    """Whole conversations as lists of what is sent: a store, an echo, a worklist question, a commitment, a performed step."""
    image = Dataset()
    image.SpecificCharacterSet, image.SOPClassUID, image.SOPInstanceUID = "ISO_IR 192", CR, "1.2.3"
    image.PatientName, image.PatientID, image.StudyInstanceUID = "Fuzz^Ä", "F1", "1.2"
    image.Rows = image.Columns = 64
    image.PixelData = bytes(8192)
    image["PixelData"].VR = "OW"
    item, keys = Dataset(), Dataset()
    item.Modality, item.ScheduledProcedureStepStartDate = "DX", "20260101-20261231"
    keys.PatientName, keys.PatientID, keys.ScheduledProcedureStepSequence = "F*", "", [item]
    asked, reference = Dataset(), Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CR, "1.2.3"
    asked.TransactionUID, asked.ReferencedSOPSequence = "9.1", [reference]
    begun, scheduled = Dataset(), Dataset()
    scheduled.StudyInstanceUID = "1.2"
    begun.PerformedProcedureStepStatus, begun.PatientID = "IN PROGRESS", "F1"
    begun.ScheduledStepAttributesSequence = [scheduled]
    done = Dataset()
    done.PerformedProcedureStepStatus, done.PerformedSeriesSequence = "COMPLETED", [asked]
    store = _command(0x0001, AffectedSOPClassUID=CR, AffectedSOPInstanceUID="1.2.3", Priority=0)
    find = _command(0x0020, AffectedSOPClassUID=WORKLIST, Priority=0)
    action = _command(0x0130, RequestedSOPClassUID=COMMITMENT, RequestedSOPInstanceUID=INSTANCE, ActionTypeID=1)
    create = _command(0x0140, AffectedSOPClassUID=STEP, AffectedSOPInstanceUID="7.1")
    update = _command(0x0120, RequestedSOPClassUID=STEP, RequestedSOPInstanceUID="7.1")
    echo = message(3, _command(0x0030, AffectedSOPClassUID=VERIFICATION), None)
    bodies = [
        [message(1, store, _encoded(image))],
        [echo],
        [message(5, find, _encoded(keys))],
        [message(7, action, _encoded(asked))],
        [message(9, create, _encoded(begun)), message(9, update, _encoded(done))],
    ]
    return [[request(), *body, _RELEASE] for body in bodies]


def case(run: int, number: int, pool: list[list[bytes]]) -> list[bytes]:
    """The case of this number: a conversation with one of its parts changed, the association itself only now and then."""
    rng = random.Random(f"{run}:{number}")
    parts = list(rng.choice(pool))
    at = 0 if rng.random() < 0.1 else rng.randrange(1, len(parts))
    parts[at] = mutate(rng, parts[at], rng.choice(rng.choice(pool)))
    return parts


def fuzz_messages(run: int, go_on: Callable[[int], bool]) -> Outcome:
    """Cases from 0 while ``go_on`` says so."""
    pool = conversations()
    answers: Counter[str] = Counter()
    problems: list[Problem] = []
    slowest, largest, number = 0.0, 0, 0
    with tempfile.TemporaryDirectory(prefix="fuzz-dicom-") as folder, _Box(Path(folder)) as box:
        while go_on(number):
            parts = case(run, number, pool)
            start = time.perf_counter()
            answers[_talk(box.port, parts)] += 1
            alive = _talk(box.port, pool[1], SECONDS) == "answered"
            seconds = time.perf_counter() - start
            rss = box.rss()
            slowest, largest = max(slowest, seconds), max(largest, rss)
            what = "" if alive else "the door does not answer any more"
            what = what or (f"took {seconds:.1f} s" if seconds > SECONDS else "")
            what = what or (f"grew to {rss / 1e6:.0f} MB" if rss > MEMORY else "")
            if what:
                problems.append(Problem(number, what, b"".join(parts)))
                if box.dead or len(problems) > 20:
                    break
            number += 1
        left = box.settled()
        if left:
            problems.append(Problem(number, f"{left} associations or unfinished files were left", b""))
    return Outcome(number, answers, slowest, largest, problems)


def _talk(port: int, parts: list[bytes], patience: float = _SILENCE) -> str:
    """Send everything and read until the end, or until nothing comes for ``patience`` seconds: what became of it."""
    heard = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2 * SECONDS) as plain:
            for part, awaited in ((parts[0], 2), *((part, 4) for part in parts[1:-1]), (parts[-1], 6)):
                plain.settimeout(2 * SECONDS)
                plain.sendall(part)
                plain.settimeout(patience)
                seen = len(heard)
                while not {3, 6, 7, awaited} & set(_kinds(heard[seen:])) and (piece := plain.recv(65536)):
                    heard += piece
    except TimeoutError:
        return "answered, then silence" if 4 in _kinds(heard) else "silence"  # it waits for the rest
    except OSError:
        pass  # the door has cut it off, which is an answer
    kinds = _kinds(heard)
    if 7 in kinds:
        return "aborted"
    if 3 in kinds:
        return "rejected"
    return ("answered" if 4 in kinds else "released") if 6 in kinds else "cut off"


def _kinds(heard: bytes) -> list[int]:
    kinds, at = [], 0
    while at + 6 <= len(heard):
        kinds.append(heard[at])
        at += 6 + struct.unpack_from(">I", heard, at + 2)[0]
    return kinds


class _Box:
    """A door in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.fuzz.messages", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._process.stdout is None or self._process.stdin is None:
            raise RuntimeError("no pipes")
        self._out, self._in = self._process.stdout, self._process.stdin
        self.port = int(self._out.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()
        with contextlib.suppress(BrokenPipeError):
            self._in.close()

    @property
    def dead(self) -> bool:
        return self._process.poll() is not None

    def rss(self) -> int:
        """Resident memory now; 0 when it has died."""
        try:
            pages = int((Path("/proc") / str(self._process.pid) / "statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def settled(self) -> int:
        """How many associations and unfinished files are left once it had time to end them."""
        if self.dead:
            return -1
        self._in.write("\n")
        self._in.flush()
        return int(json.loads(self._out.readline())["left"])


def main() -> int:
    """Serve until standard input ends; at each line of it say what is left."""
    from appliance.capture.dicom import DicomDoor
    from appliance.capture.dicom_offer import services
    from appliance.capture.intake import Intake
    from appliance.config import DicomConfig, StorageConfig
    from appliance.records import Moment, Patient
    from appliance.store.store import Store
    from appliance.store.worklist import ScheduledStep
    from tools.free_port import free_port

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the log must not be taken for an answer

    def now() -> Moment:
        return Moment(boot_id="fuzz", monotonic_ns=time.monotonic_ns(), wall="2026-01-01T00:00:00Z")

    store = Store(StorageConfig(state=sys.argv[1], refuse_below=16, reserve=4), now)
    steps = [ScheduledStep(patient=Patient(id="F1", name="Fuzz^Ä"), modality="DX")]
    store.journal.write(lambda tx: store.worklist.replace(tx, steps, now()))
    config = DicomConfig(address="127.0.0.1", port=free_port(), maximum_object=50)
    door = DicomDoor(config, Intake(store, "fuzz/box"), services(config, store))
    door.start()
    print(door.port, file=out, flush=True)
    for _ in sys.stdin:
        deadline = time.monotonic() + SECONDS
        while (left := door.under_way + len(list(store.vault.unfinished()))) and time.monotonic() < deadline:
            time.sleep(0.05)
        print(json.dumps({"left": left}), file=out, flush=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
