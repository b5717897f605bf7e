"""The commands about who may sign in: ``bedside-hub user …`` and ``bedside-hub token …``.

What this module keeps true: it parses, wires and prints; the work is done in ``people`` and ``sessions``. A password is asked
for, or comes from ``BEDSIDE_PASSWORD``; it never stands on a command line that others see, unless somebody insists.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from sqlalchemy import exc

from hub.cli_authority import ConfigOption, fail
from hub.config import ConfigError, load
from hub.database import Database, DatabaseError
from hub.people import People, Role, roles_of
from hub.sessions import Sessions
from hub.users import Users, UsersError

user_app = typer.Typer(name="user", help="People who may sign in, and what they may do.", no_args_is_help=True)
token_app = typer.Typer(name="token", help="Tokens of programs.", no_args_is_help=True)
_DEFAULT = Path("/etc/bedside/hub.toml")
_T = TypeVar("_T")
RoleOption = Annotated[
    list[str], typer.Option("--role", help="viewer, reader (radiologist) or administrator; again for several.")
]
PasswordOption = Annotated[
    str,
    typer.Option("--password", prompt=True, hide_input=True, confirmation_prompt=True, envvar="BEDSIDE_PASSWORD"),
]
NameArgument = Annotated[str, typer.Argument(help="Who.")]


@user_app.command()
def add(name: NameArgument, password: PasswordOption, role: RoleOption, config: ConfigOption = _DEFAULT) -> None:
    """Let NAME sign in with these roles; asks for the password."""
    _with(config, lambda people, _: people.add(name, roles_of(role), password, _actor(), _now_ms()))
    typer.echo(f"{name}: {', '.join(sorted(role))}")


@user_app.command("role")
def change_role(name: NameArgument, role: RoleOption, config: ConfigOption = _DEFAULT) -> None:
    """Give NAME these roles instead of those before."""
    _with(config, lambda people, _: people.set_roles(name, roles_of(role), _actor(), _now_ms()))
    typer.echo(f"{name}: {', '.join(sorted(role))}")


@user_app.command("password")
def change_password(name: NameArgument, password: PasswordOption, config: ConfigOption = _DEFAULT) -> None:
    """Give NAME a new password and end their sessions."""
    _with(config, lambda people, _: people.set_password(name, password, _actor(), _now_ms()))
    typer.echo(f"{name}: has a new password; every session of theirs has ended")


@user_app.command()
def remove(name: NameArgument, config: ConfigOption = _DEFAULT) -> None:
    """NAME can't sign in any more; what they did stays theirs."""
    _with(config, lambda people, _: people.remove(name, _actor(), _now_ms()))
    typer.echo(f"{name}: may not sign in any more; every session of theirs has ended")


@user_app.command("list")
def list_people(config: ConfigOption = _DEFAULT) -> None:
    """Everybody with their roles."""
    for one in _with(config, lambda people, _: people.all()):
        words = ", ".join(sorted(role.value for role in one.roles))
        typer.echo(f"{one.name}: {words} ({one.source}){'' if one.active else ', removed'}")


@token_app.command("add")
def add_token(
    label: Annotated[str, typer.Argument(help="What the program is, e.g. statistics.")],
    role: Annotated[str, typer.Option(help="viewer, or administrator; a token never reviews.")] = "viewer",
    config: ConfigOption = _DEFAULT,
) -> None:
    """Print a token for a program, this once; it goes into the header `Authorization: Bearer TOKEN`."""
    wanted = next(iter(_roles(role)))
    if wanted is Role.READER:
        fail("a program does not read cases; say --role viewer", 2)
    typer.echo(_with(config, lambda _, sessions: sessions.make_token(label, wanted, _actor(), _now_ms())))


@token_app.command("list")
def list_tokens(config: ConfigOption = _DEFAULT) -> None:
    """Every token there ever was, without its secret."""
    for one in _with(config, lambda _, sessions: sessions.tokens()):
        typer.echo(f"{one.id}  {one.label}: {one.role.value}, by {one.by}{', revoked' if one.ended_ms else ''}")


@token_app.command("revoke")
def revoke_token(
    token: Annotated[str, typer.Argument(help="Its id, as `bedside-hub token list` shows it.")],
    config: ConfigOption = _DEFAULT,
) -> None:
    """End a token at once."""
    if not _with(config, lambda _, sessions: sessions.revoke(token, _actor(), _now_ms())):
        fail(f"no token {token!r} that is still good; see bedside-hub token list")
    typer.echo(f"{token}: revoked")


def _roles(word: str) -> frozenset[Role]:
    try:
        return roles_of([word])
    except UsersError as error:
        fail(str(error), 2)


def _with(config: Path, act: Callable[[People, Sessions], _T]) -> _T:
    try:
        settings = load(config)
        database = Database(settings.database_url)
        database.migrate()
        people = People(database, Users(Path(settings.web.users_file)) if settings.web.users_file else None)
        return act(people, Sessions(database, people))
    except (ConfigError, UsersError) as error:
        fail(str(error), 2)
    except (DatabaseError, exc.SQLAlchemyError) as error:
        fail(str(error).splitlines()[0])


def _actor() -> str:
    return f"console:{getpass.getuser()}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
