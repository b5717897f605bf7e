"""Throws broken DICOM at what parses it: ``python -m tools.fuzz_dicom files|messages [--minutes N] [--seed N]``.

What this module keeps true: a case is a function of the run's seed and its number, so that each can be made again; what parses
runs in a process of its own that is watched from outside: no case may take more than ``SECONDS``, make it larger than
``MEMORY``, kill it, or end in anything but a value or a refusal with words. What breaks that is kept as a file and named.

``files``: Part 10 files through the door's reader and the decoders of the reading side. ``messages``: byte streams of whole
associations against a DICOM door over a real store, which afterwards must still answer C-ECHO.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

SECONDS = 5.0
MEMORY = 512_000_000
_SEED_MOST = 300_000
_LENGTHS = (0, 1, 0xFE, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


class Problem(NamedTuple):
    """A case that broke a promise."""

    number: int
    what: str
    data: bytes


class Outcome(NamedTuple):
    """How a run ended."""

    cases: int
    answers: Counter[str]
    slowest: float
    largest: int
    problems: list[Problem]


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """``data`` with one to six things wrong: bits, bytes, lengths, pieces cut out, doubled, or taken from ``other``."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        if not out:
            break
        # Most of what is parsed stands at the beginning; a fifth of the changes go anywhere.
        at = rng.randrange(len(out) if rng.random() < 0.2 else min(len(out), 1 << rng.randint(3, 14)))
        kind = rng.randrange(8)
        size = rng.randint(1, 1 << rng.randint(0, 8))
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            out[at : at + 4] = struct.pack("<I" if rng.random() < 0.7 else ">I", rng.choice(_LENGTHS))
        elif kind == 3:
            out[at : at + 2] = struct.pack("<H", rng.choice(_LENGTHS) & 0xFFFF)
        elif kind == 4:
            del out[at : at + size]
        elif kind == 5:
            out[at:at] = out[at : at + size] * rng.randint(1, 20)
        elif kind == 6:
            start = rng.randrange(len(other)) if other else 0
            out[at : at + size] = other[start : start + size]
        else:
            del out[rng.randrange(at, len(out)) + 1 :]
    return bytes(out[: 2 * _SEED_MOST])


def seeds() -> list[bytes]:
    """The small files that pydicom and pydicom-data bring."""
    import data_store
    import pydicom

    folders = (Path(pydicom.__file__).parent / "data" / "test_files", Path(data_store.__file__).parent / "data")
    files = [path for folder in folders for path in sorted(folder.glob("*.dcm")) if path.stat().st_size <= _SEED_MOST]
    return [path.read_bytes() for path in files]


def case(run: int, number: int, pool: list[bytes]) -> bytes:
    """The case of this number in the run of this seed."""
    rng = random.Random(f"{run}:{number}")
    return mutate(rng, rng.choice(pool), rng.choice(pool))


class Child:
    """The process that parses: cases in, one line of JSON out for each."""

    def __init__(self, kind: str) -> None:
        command = [sys.executable, "-m", "tools.fuzz_dicom", f"--child-{kind}"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("no pipes")
        self._to: IO[bytes] = self.process.stdin
        self._from: IO[bytes] = self.process.stdout
        self.ready = json.loads(self._from.readline())

    def ask(self, data: bytes, seconds: float) -> dict[str, Any] | None:
        """The answer to a case, ``None`` when none came in time or the process died."""
        try:
            self._to.write(struct.pack("<I", len(data)) + data)
            self._to.flush()
        except BrokenPipeError:
            return None
        if not select.select([self._from], [], [], seconds)[0]:
            return None
        line = self._from.readline()
        found: dict[str, Any] | None = json.loads(line) if line else None
        return found

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self._to.close()
        self._from.close()


def fuzz_files(run: int, go_on: Callable[[int], bool]) -> Outcome:
    """Cases from 0 while ``go_on`` says so."""
    pool, child = seeds(), Child("files")
    answers: Counter[str] = Counter()
    problems: list[Problem] = []
    slowest, largest, number = 0.0, 0, 0
    while go_on(number):
        data = case(run, number, pool)
        answer = child.ask(data, SECONDS + 5)
        what = ""
        if answer is None:
            ended = child.process.poll()
            what = "no answer in time" if ended is None else f"the process died ({ended})"
        else:
            answers[answer["door"]] += 1
            answers[answer["decode"]] += 1
            slowest, largest = max(slowest, answer["seconds"]), max(largest, answer["rss"])
            if answer["seconds"] > SECONDS:
                what = f"took {answer['seconds']:.1f} s"
            elif answer["rss"] > MEMORY:
                what = f"grew to {answer['rss'] / 1e6:.0f} MB"
            elif answer["escaped"]:
                what = f"escaped: {answer['escaped']}"
        if what:
            problems.append(Problem(number, what, data))
            child.close()
            child = Child("files")
        number += 1
    child.close()
    return Outcome(number, answers, slowest, largest, problems)


def _most_memory() -> int:
    """The most memory that this process held, in bytes (``ru_maxrss`` would begin with that of the one that started it)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def _child_files() -> None:
    from appliance.capture.facts import facts_of
    from appliance.capture.header import NotDicom
    from appliance.reading.decode import DecodeError, Limits, decode

    limits = Limits(file_bytes=1 << 26, decoded_bytes=1 << 27, frame_pixels=1 << 25)

    def one(data: bytes) -> dict[str, Any]:
        start, escaped = time.perf_counter(), ""
        door = "door: kept"
        try:
            facts_of(data, "fuzz")
        except NotDicom as error:
            door, escaped = "door: refused", "" if str(error) else "a refusal without words"
        except Exception as error:  # noqa: BLE001 - what is looked for
            door, escaped = "door: escaped", f"door {type(error).__name__}: {error}"
        decoded = "decode: read"
        try:
            decode(data, "x.dcm", limits=limits)
        except DecodeError as error:
            decoded = f"decode: refused {error.code}"
            escaped = escaped or ("" if error.message and error.remedy else "a refusal without words")
        except Exception as error:  # noqa: BLE001 - what is looked for
            decoded, escaped = "decode: escaped", f"decode {type(error).__name__}: {error}"
        rss = _most_memory()
        return {
            "door": door,
            "decode": decoded,
            "escaped": escaped,
            "seconds": time.perf_counter() - start,
            "rss": rss,
        }

    _serve(one, {})


def _serve(one: Callable[[bytes], dict[str, Any]], ready: dict[str, Any]) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a codec prints must not be taken for an answer
    print(json.dumps(ready), file=out, flush=True)
    while head := sys.stdin.buffer.read(4):
        data = sys.stdin.buffer.read(struct.unpack("<I", head)[0])
        print(json.dumps(one(data)), file=out, flush=True)


def main() -> int:
    """Run what the command line says; 1 when anything broke a promise."""
    if sys.argv[1:] == ["--child-files"]:
        _child_files()
        return 0
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz_dicom", description=__doc__)
    parser.add_argument("kind", choices=["files", "messages"])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-dicom")
    arguments = parser.parse_args()
    until: float = time.monotonic() + 60 * arguments.minutes
    last = time.monotonic()

    def go_on(number: int) -> bool:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{number} cases, {max(0.0, until - last):.0f} s left", file=sys.stderr, flush=True)
        return time.monotonic() < until

    if arguments.kind == "files":
        outcome = fuzz_files(arguments.seed, go_on)
    else:
        from tools.fuzz_dicom_messages import fuzz_messages

        outcome = fuzz_messages(arguments.seed, go_on)
    for problem in outcome.problems:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        path = arguments.keep / f"{arguments.kind}-{arguments.seed}-{problem.number}.bin"
        path.write_bytes(problem.data)
        print(f"{problem.what}: {path}")
    print(
        f"seed {arguments.seed}: {outcome.cases} cases, slowest {outcome.slowest:.2f} s, {outcome.largest / 1e6:.0f} MB"
    )
    for answer, count in outcome.answers.most_common():
        print(f"{count:8} {answer}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
