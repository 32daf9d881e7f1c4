"""Versions of the master key."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, View, when, when_or_none
from shellwego.control.masterkeys import KeyStatus


class MasterKeyBody(Body):
    """`name` as the list tells it."""

    name: Annotated[str, Field(min_length=1, max_length=300)]


class MasterKeyView(View):
    name: str
    current: bool
    """New data keys are wrapped under it."""
    data_keys: int
    """How many are under it; a version is let go when there are none."""
    created_at: datetime
    retired_at: datetime | None


class MasterKeyList(View):
    current: str
    data: list[MasterKeyView]


def master_key_view(status: KeyStatus) -> MasterKeyView:
    return MasterKeyView(
        name=status.key.id,
        current=status.current,
        data_keys=status.data_keys,
        created_at=when(status.key.created_at),
        retired_at=when_or_none(status.key.retired_at),
    )
