"""Writes what the code itself documents: the wire's JSON Schemas and the configuration's reference, under ``docs``.

``--check`` says whether they are up to date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from appliance import config
from appliance.protocol.messages import json_schemas

DOCS = Path(__file__).resolve().parent.parent / "docs"


def texts() -> dict[Path, str]:
    """Path → text of every file made here."""
    schemas = {DOCS / "schema" / f"{name}.json": schema for name, schema in json_schemas().items()}
    made = {path: json.dumps(schema, indent=2) + "\n" for path, schema in schemas.items()}
    return {**made, DOCS / "configuration.md": _configuration()}


def _configuration() -> str:
    lines = [
        "# Configuration of the box",
        "",
        "One TOML file; `bedside config --example` prints it with every default. What is not in this table is refused.",
        "",
        "| field | what it is | unit | default |",
        "|---|---|---|---|",
    ]
    for section, name, title, unit, default in config.fields():
        shown = json.dumps(list(default) if isinstance(default, tuple) else default)
        lines.append(f"| `{section}.{name}` | {title} | {unit} | `{shown}` |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check; 1 if a file is out of date."""
    stale = [path for path, text in texts().items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.name} is out of date: make schema")
        return bool(stale)
    for path, text in texts().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(f"{len(texts())} files, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
