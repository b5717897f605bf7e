"""Throws broken input at what parses it: ``python -m tools.fuzz files|messages|sounds|config [--minutes N] [--seed N]``.

``files``: DICOM Part 10 files through the door's reader and the decoders of the reading side. ``messages``: byte streams of
whole associations against a DICOM door over a real store, which afterwards must still answer C-ECHO. ``sounds``: WAV and FLAC
through everything that reads them. ``config``: the files of box, hub and site. Ends with 1 when anything broke a promise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tools.fuzz.cases import Outcome, fuzz
from tools.fuzz.messages import fuzz_messages
from tools.fuzz.seeds import POOLS


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("kind", choices=[*POOLS, "messages"])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "bedside-fuzz")
    arguments = parser.parse_args()
    until: float = time.monotonic() + 60 * arguments.minutes
    last = time.monotonic()

    def go_on(number: int) -> bool:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{number} cases, {max(0.0, until - last):.0f} s left", file=sys.stderr, flush=True)
        return time.monotonic() < until

    if arguments.kind == "messages":
        outcome = fuzz_messages(arguments.seed, go_on)
    else:
        outcome = fuzz(arguments.kind, arguments.seed, POOLS[arguments.kind](), go_on)
    _tell(outcome, arguments.kind, arguments.seed, arguments.keep)
    return 1 if outcome.problems else 0


def _tell(outcome: Outcome, kind: str, seed: int, keep: Path) -> None:
    for problem in outcome.problems:
        keep.mkdir(parents=True, exist_ok=True)
        path = keep / f"{kind}-{seed}-{problem.number}.bin"
        path.write_bytes(problem.data)
        print(f"{problem.what}: {path}")
    print(f"seed {seed}: {outcome.cases} cases, slowest {outcome.slowest:.2f} s, {outcome.largest / 1e6:.0f} MB")
    for answer, count in outcome.answers.most_common():
        print(f"{count:8} {answer}")


if __name__ == "__main__":
    sys.exit(main())
