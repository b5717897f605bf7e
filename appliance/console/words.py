"""All words of the console, through one catalogue: English in the code, other languages as gettext files.

What this module keeps true: no text reaches a person except through ``Words`` (or from a bundle, the sender or the hub,
which speak for themselves). A language is a folder ``locale/<tag>/LC_MESSAGES/console.po``: adding one needs no Python.
Placeholders are named (``{count}``), so that a translation may order them as it likes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from gettext import c2py
from pathlib import Path

from babel import Locale
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po
from babel.numbers import format_decimal, format_percent

LOCALES = Path(__file__).with_name("locale")
SOURCE = "en"


def N_(text: str) -> str:  # noqa: N802 - gettext's own name for "to be translated where it is used"
    """Mark a text for the catalogue without translating it here."""
    return text


class Words:
    """The words of one language. Called with an English text and its values, it gives the text in this language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.locale = Locale.parse(language)
        self.direction = self.locale.text_direction
        self._singular, self._plural, self._form = _load(language)
        whole = (text for text in self._singular if text.endswith(".") and "{" not in text)
        self._sentences = sorted(whole, key=len, reverse=True)

    def __call__(self, text: str, **values: object) -> str:
        """The text in this language (in English when the catalogue has none), ``{name}`` filled from ``values``."""
        said = self._singular.get(text, text)
        return said.format_map(values) if values else said

    def heard(self, text: str) -> str:
        """A text of a bundle or of a reading in this language: the whole of it, or each sentence of it that is known."""
        whole = self._singular.get(text)
        if whole is not None or not text:
            return whole or text
        head, bracket, detail = text.partition(" (")
        if (
            bracket and f"{head}." in self._singular
        ):  # a refusal with what the file says, as ``quality.words_for`` puts it
            said = self._singular[f"{head}."]
            return f"{said[:-1]} ({detail.removesuffix('.')}{said[-1]}"
        for sentence in self._sentences:
            if sentence in text:
                text = text.replace(sentence, self._singular[sentence])
        return text

    def ngettext(self, one: str, many: str, count: int, **values: object) -> str:
        """The form of a text that goes with ``count``; ``{count}`` is filled in, written as the language writes numbers."""
        forms = self._plural.get((one, many))
        said = forms[min(self._form(count), len(forms) - 1)] if forms else (one if count == 1 else many)
        return said.format_map({"count": self.number(count), **values})

    def number(self, value: float, digits: int = 0) -> str:
        """A number with at most ``digits`` decimals."""
        pattern = "#,##0" + ("." + "#" * digits if digits else "")
        return str(format_decimal(value, format=pattern, locale=self.locale))

    def percent(self, share: float) -> str:
        """A share from 0 to 1 as a whole percentage; never a 0 % or 100 % that is not exact."""
        if 0 < share < 0.01:
            return "< " + format_percent(0.01, locale=self.locale)
        if 0.99 < share < 1:
            return "> " + format_percent(0.99, locale=self.locale)
        return format_percent(share, locale=self.locale)

    def size(self, count: int) -> str:
        """Bytes in the unit that people use for them."""
        if count < 1000:
            return self(N_("{n} B"), n=self.number(count))
        for unit, step in ((N_("{n} kB"), 1e3), (N_("{n} MB"), 1e6), (N_("{n} GB"), 1e9)):
            if count < step * 999.5 or step == 1e9:
                return self(unit, n=self.number(count / step, 0 if count >= 10 * step else 1))
        raise AssertionError(count)

    def duration(self, seconds: float) -> str:
        """A length of time in its one most telling unit."""
        if seconds < 60:
            return self(N_("{n} s"), n=self.number(max(0, int(seconds))))
        if seconds < 5400:
            return self(N_("{n} min"), n=self.number(int(seconds // 60)))
        if seconds < 172800:
            return self(N_("{n} h"), n=self.number(int(seconds // 3600)))
        return self.ngettext("{count} day", "{count} days", int(seconds // 86400))


@functools.cache
def languages() -> dict[str, str]:
    """Tag to own name of each language there is, English first."""
    tags = sorted(path.parent.parent.name for path in LOCALES.glob("*/LC_MESSAGES/console.po"))
    return {tag: _own_name(tag) for tag in (SOURCE, *tags)}


@functools.cache
def words(language: str) -> Words:
    """The words of a language; those of English when there are none of it."""
    return Words(language if language in languages() else SOURCE)


def choose(asked: str, accept_language: str) -> str:
    """The language for a visitor: the one asked for, else the first that the browser accepts and there is, else English."""
    if asked in languages():
        return asked
    for part in accept_language.split(",")[:20]:
        tag = part.split(";")[0].strip().lower().split("-")[0]
        if tag in languages():
            return tag
    return SOURCE


def _own_name(tag: str) -> str:
    name = Locale.parse(tag).get_display_name(tag) or tag
    return name[:1].upper() + name[1:]


def _load(language: str) -> tuple[dict[str, str], dict[tuple[str, str], tuple[str, ...]], Callable[[int], int]]:
    singular: dict[str, str] = {}
    plural: dict[tuple[str, str], tuple[str, ...]] = {}
    path = LOCALES / language / "LC_MESSAGES" / "console.po"
    if not path.exists():
        return singular, plural, _english
    catalogue = read_catalogue(path, language)
    for message in catalogue:
        said = message.string
        if isinstance(message.id, str):
            if message.id and isinstance(said, str) and said:
                singular[message.id] = said
        elif said and not isinstance(said, str) and all(said):
            plural[message.id[0], message.id[1]] = tuple(said)
    form: Callable[[int], int] = c2py(catalogue.plural_expr)
    return singular, plural, form


def read_catalogue(path: Path, language: str) -> Catalog:
    """A gettext file as Babel's catalogue."""
    with path.open("rb") as file:
        return read_po(file, locale=language)


def _english(count: int) -> int:
    return int(count != 1)
