"""Writes the hashes of a bundle's files into its ``bundle.toml`` anew, after a person has edited words, card or figures.

What this module keeps true: the list of files stays as it was, the rest of ``bundle.toml`` keeps every byte, and what was
written loads; otherwise the folder is as before.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path

from appliance.inference.bundle import DESCRIPTION, Bundle, BundleError, load

_FILE = re.compile(r'^(?P<key>"[^"]+"|[\w-]+) = "[0-9a-f]{64}"$', re.MULTILINE)


def seal(root: Path) -> Bundle:
    """Renew the hashes under ``[files]`` of the bundle in ``root`` and load it.

    Raises:
        appliance.inference.bundle.BundleError: It still can't be loaded; ``bundle.toml`` is as it was.
    """
    path = root / DESCRIPTION
    before = path.read_text()
    head, mark, files = before.partition("\n[files]\n")
    if not mark:
        raise BundleError(f"{path}: has no table [files]; name each file there with any hash of 64 digits")

    def renewed(found: re.Match[str]) -> str:
        return f'{found["key"]} = "{_sha256(root / found["key"].strip(chr(34)))}"'

    after = head + mark + _FILE.sub(renewed, files)
    partial = path.with_suffix(".part")
    partial.write_text(after)
    partial.replace(path)
    try:
        return load(root)
    except BundleError:
        path.write_text(before)
        raise


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Seal the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    given = parser.parse_args()
    try:
        made = seal(given.bundle)
    except (BundleError, OSError) as error:
        raise SystemExit(str(error)) from error
    print(f"{made.root}: {made.id} {made.version} is sealed and loads.")


if __name__ == "__main__":
    main()
