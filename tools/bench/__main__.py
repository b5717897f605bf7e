"""``python -m tools.bench [NAME…] [--json]``: run the named benchmarks (all without a name), print their rows.

The exit status is 1 when a row misses its limit, so a benchmark can stand in a script.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from tools.bench.rows import Row

_FRAMEWORK = {"__main__", "rows"}


def names() -> list[str]:
    """The benchmarks there are, as written on the command line. A leading underscore marks a module that is not one."""
    modules = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name.replace("_", "-") for name in modules if name not in _FRAMEWORK and not name.startswith("_"))


def run(name: str) -> list[Row]:
    """The rows of one benchmark."""
    return list(importlib.import_module(f"tools.bench.{name.replace('-', '_')}").run())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _print(rows: list[Row]) -> None:
    table = Table("name", "unit", "ours", "peer", "peer is", "ratio", "limit", "n", title="ratio: more is better")
    for line in rows:
        style = "" if line.passed else "bold red"
        figures = (_number(line.ratio), _number(line.limit), str(line.n))
        table.add_row(
            line.name, line.unit, _number(line.ours), _number(line.peer), line.peer_name, *figures, style=style
        )
    Console().print(table)


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(names())}")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names()))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(names())}")
    rows: list[Row] = []
    for name in arguments.names or names():
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += run(name)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
    else:
        _print(rows)
    return 0 if all(line.passed for line in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
