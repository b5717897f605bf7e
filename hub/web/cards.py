"""The cards of the model bundles that this hub was shipped with, as HTML.

What this module keeps true: a card is shown only for the very version it is of; a name from the wire becomes a folder only when
it is one of those there; a card's own HTML is not passed through.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def card(folder: Path | None, bundle: str, version: str) -> Markup | None:
    """The card of ``bundle`` in ``version``, or None when that is not here."""
    there = folder or _shipped()
    home = (
        next((one for one in there.iterdir() if one.name == bundle and one.is_dir()), None) if there.is_dir() else None
    )
    if home is None or not (home / "card.md").is_file() or not (home / "bundle.toml").is_file():
        return None
    said = re.search(r'^version\s*=\s*"([^"]+)"', (home / "bundle.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if said is None or said[1] != version:
        return None
    html = _MARKDOWN.render((home / "card.md").read_text(encoding="utf-8"))
    html = re.sub(r' style="text-align:(left|right|center)"', r' class="\1"', html)  # styles of its own are not let in
    html = re.sub(r"<(/?)h([1-5])>", lambda found: f"<{found[1]}h{int(found[2]) + 1}>", html)
    html = html.replace("<table>", '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>')
    return Markup(html.replace("</table>", "</table></div>"))  # noqa: S704 - made by the renderer, raw HTML is off


def _shipped() -> Path:
    inside = Path(str(resources.files("appliance"))) / "_bundles"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "models"
