"""How a configuration file is read: one TOML file, validated once, every field with a title, a unit and a default.

What this module keeps true, for the box and the hub alike: a configuration exists only if the whole file is valid; a field
that is wrong is reported with its path and what to write instead; an unknown field is an error (a typo never becomes a
default). ``Form.example`` is made from the same fields, so the documentation can't drift.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class ConfigError(Exception):
    """The configuration can't be used; the message names the file, the field and the remedy."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections: immutable, unknown keys are errors."""


NAME = r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$"
"""A short name that may stand in a topic or a file name."""
_MOST, _LINE = 262_144, 4_096
"""Characters of a file and of a line: TOML's parsers take time that grows with the square of a key's length."""
Port = Annotated[int, Meta(ge=1, le=65535)]
_File = TypeVar("_File", bound=Section)


def field(title: str, unit: str = "", **limits: Any) -> Meta:
    """A field's title, unit and limits (those of ``msgspec.Meta``)."""
    return Meta(title=title, extra={"unit": unit}, **limits)


class Form(Generic[_File]):
    """What a program's file may hold: its sections, the checks across them, and the command that prints an example."""

    def __init__(self, kind: type[_File], check: Callable[[_File, str], None], *, headline: str, command: str) -> None:
        """``check`` gets the valid file and its name and raises ``ConfigError``; ``command`` prints an example."""
        self._kind = kind
        self._check = check
        self._headline = headline
        self._command = command

    def load(self, path: Path) -> _File:
        """Read and validate the file; raises ``ConfigError`` naming the field and the remedy."""
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(_MOST + 1)
        except OSError as error:
            remedy = f"write one with: {self._command} > {path}"
            raise ConfigError(f"{path}: can't be read ({error.strerror}); {remedy}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
        return self.parse(text, str(path))

    def parse(self, text: str, name: str = "configuration") -> _File:
        """Validate the text of a configuration; raises ``ConfigError``. ``name`` stands in the messages."""
        if len(text) > _MOST or any(len(line) > _LINE for line in text.splitlines()):
            most = f"the most is {_MOST:,} characters, {_LINE:,} in a line"
            raise ConfigError(f"{name}: too long to be a configuration ({most}); is it the right file?")
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            remedy = "strings stand in quotes, sections in [brackets]"
            raise ConfigError(f"{name}: not valid TOML: {error}; {remedy}") from error
        except (RecursionError, ValueError) as error:  # tables in tables without end; a number of thousands of digits
            raise ConfigError(f"{name}: not a configuration ({error}); is it the right file?") from error
        unknown = next(_unknown(tables, self._kind, ""), None)
        if unknown is not None:
            raise ConfigError(f"{name}: {unknown}")
        try:
            config = msgspec.convert(tables, self._kind)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{name}: {self._explain(str(error))}") from error
        if "\0" in text or "\\u0000" in text.lower():
            raise ConfigError(f"{name}: holds a character of code 0, which no path or name may have; remove it")
        self._check(config, name)
        return config

    def fields(self) -> Iterator[tuple[str, str, str, str, Any]]:
        """Every field as (section, name, title, unit, default), in the order of the file."""
        for section, kind in self._sections():
            hints = get_type_hints(kind, include_extras=True)
            for one in msgspec.structs.fields(kind):
                meta = next((m for m in get_args(hints[one.name]) if isinstance(m, Meta) and m.title), Meta())
                yield section, one.name, meta.title or "", (meta.extra or {}).get("unit", ""), one.default

    def example(self) -> str:
        """A commented configuration holding every field at its default."""
        lines = [f"# {self._headline}: every field with its default. Remove what you don't change."]
        kinds = dict(self._sections())
        current = ""
        for section, name, title, unit, default in self.fields():
            if section != current:
                purpose = (kinds[section].__doc__ or "").splitlines()
                lines += ["", f"[{section}]", *(f"# {line.strip()}" for line in purpose if line.strip())]
                current = section
            choices = _choices(kinds[section], name)
            lines.append(f"# {title}{f' ({unit})' if unit else ''}{f'; one of {choices}' if choices else ''}")
            lines.append(f"{name} = {_toml(default)}")
        return "\n".join(lines) + "\n"

    def _sections(self) -> Iterator[tuple[str, type]]:
        hints = get_type_hints(self._kind)
        yield from ((section.name, hints[section.name]) for section in msgspec.structs.fields(self._kind))

    def _explain(self, message: str) -> str:
        match = re.match(r"(?s)(.*) - at `\$\.(.*)`$", message)
        if match is None:
            return message
        problem, path = match.groups()
        section, _, name = path.partition(".")
        titles = {(s, n): (t, u, d) for s, n, t, u, d in self.fields()}
        title, unit, default = titles.get((section, re.sub(r"\[.*", "", name)), ("", "", None))
        hint = f" ({title}{f', {unit}' if unit else ''}; default {_toml(default)})" if title else ""
        return f"{path}: {problem}{hint}"


def _choices(kind: type, name: str) -> str:
    hint = get_type_hints(kind, include_extras=True)[name]
    return next((", ".join(get_args(item)) for item in get_args(hint) if get_origin(item) is Literal), "")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return str(value)


def _unknown(tables: dict[str, Any], kind: Any, path: str) -> Iterator[str]:
    known = {one.name: one.type for one in msgspec.structs.fields(kind)}
    for key, value in tables.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            yield f"{path}{key}: no such {'field' if path else 'section'}; {remedy}"
        elif isinstance(value, dict) and isinstance(known[key], type) and issubclass(known[key], msgspec.Struct):
            yield from _unknown(value, known[key], f"{path}{key}.")
