"""Broken input made from numbers, and the watched process that gets it.

What this module keeps true: a case is a function of the run's seed and its number, so that each can be made again; what parses
runs in a process of its own that is watched from outside: no case may take more than ``SECONDS``, make it larger than
``MEMORY``, kill it, or end in anything but a value or a refusal with words. What breaks that is kept and named.
"""

from __future__ import annotations

import json
import random
import select
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import IO, Any, NamedTuple

SECONDS = 5.0
MEMORY = 512_000_000
SEED_MOST = 300_000
"""Bytes of a file to begin from."""
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
    return bytes(out[: 2 * SEED_MOST])


def case(run: int, number: int, pool: list[bytes]) -> bytes:
    """The case of this number in the run of this seed."""
    rng = random.Random(f"{run}:{number}")
    return mutate(rng, rng.choice(pool), rng.choice(pool))


class Child:
    """The process that parses: cases in, one line of JSON out for each."""

    def __init__(self, kind: str) -> None:
        command = [sys.executable, "-m", "tools.fuzz.parsers", kind]
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


def fuzz(kind: str, run: int, pool: list[bytes], go_on: Callable[[int], bool]) -> Outcome:
    """Cases from 0 while ``go_on`` says so, made of ``pool``, for the parsers of ``kind`` (see ``parsers``)."""
    child = Child(kind)
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
            answers.update(answer["answers"])
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
            child = Child(kind)
        number += 1
    child.close()
    return Outcome(number, answers, slowest, largest, problems)
