"""Attack a box, a broker and a hub of this machine's own making, and say what each attacker got.

    python -m tools.attack [--only NAME …] [--keep DIR]

They are the real programs with TLS, enrolled by the real commands, on loopback, in a folder that is removed again. Ends with 1
if anybody got anything. What each attempt is about stands in docs/threat-model.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from rich.console import Console

from tools.attack import brokers, devices, guest, replays, thief
from tools.attack.report import Try
from tools.attack.world import World, running

ATTACKERS: Mapping[str, Callable[[World], Iterable[Try]]] = {
    "thief": thief.attack,
    "guest": guest.attack,
    "broker": brokers.attack,
    "replayer": replays.attack,
    "device": devices.attack,
}
"""In this order: the last one has a box revoked."""


def attack(folder: Path, names: Iterable[str] = tuple(ATTACKERS)) -> Iterator[Try]:
    """Everything that the attackers of these names tried, as they try it."""
    with running(folder) as world:
        world.wait("the box on its link", world.is_online)
        world.deliver()
        for name in names:
            yield from ATTACKERS[name](world)
            world.repair_broker()


def main() -> int:
    """Run and tell; 1 if anybody got anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ATTACKERS, default=list(ATTACKERS), help="these attackers")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder and leave it")
    options = parser.parse_args()
    say = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="bedside-attack-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tries = []
        for one in attack(folder.resolve(), options.only):
            tries.append(one)
            well = "holds" if one.what.startswith("control") else "nothing"
            got = f"[red]{one.got}[/]" if one.got else f"[green]{well}[/]"
            say.print(f"{one.who:13} {one.what:62} {got}", soft_wrap=True)
    successes = sum(bool(one.got) for one in tries)
    say.print(f"\n{len(tries)} attempts, {successes} got something")
    return int(bool(successes) or not tries)


if __name__ == "__main__":
    sys.exit(main())
