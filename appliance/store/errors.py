"""The errors of the store, each with a message that a clinic's technician can act on."""

from __future__ import annotations


class StoreError(Exception):
    """The store can't do what was asked; nothing that was saved before is lost."""


class StoreFull(StoreError):  # noqa: N818 - the condition's name, not a programming error
    """Too little space: new captures are refused, what is kept stays."""


class InUse(StoreError):  # noqa: N818 - the condition's name
    """Another program has the state folder open."""


class IllegalTransition(StoreError):  # noqa: N818
    """A state machine was asked for a step that its present state doesn't allow."""


class Damaged(StoreError):  # noqa: N818
    """Bytes on the disk are not those that were written."""
