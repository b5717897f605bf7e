"""Writes the JSON Schemas of the wire's messages under ``docs/schema``; ``--check`` says whether they are up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from appliance.protocol.messages import json_schemas

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schema"


def texts() -> dict[Path, str]:
    """Path → text of every schema file."""
    return {FOLDER / f"{name}.json": json.dumps(schema, indent=2) + "\n" for name, schema in json_schemas().items()}


def main(arguments: list[str]) -> int:
    """Write or check; 1 if a file is out of date."""
    stale = [path for path, text in texts().items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.name} is out of date: make schema")
        return bool(stale)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in texts().items():
        path.write_text(text)
    print(f"{len(texts())} schemas, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
