"""Answers: bodies written once, entity tags, and writes that may be asked twice.

An endpoint builds its answer inside the transaction, so that body, tag and change belong together; the bytes are made
here and FastAPI does not look at them again (the answer model is for the document, and tests compare the two).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header
from pydantic import BaseModel
from starlette.responses import Response

from shellwego.control.authorization import Access
from shellwego.control.idempotency import Answer
from shellwego.control.targets import Target
from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError, StaleError
from shellwego.ports.store import Transaction

R = TypeVar("R")

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Precondition:
    """What the client's If-Match asks for; none where the header is absent."""

    tags: frozenset[str]

    def check(self, version: int) -> None:
        """Refuse another version than the client saw.

        Raises:
            StaleError: RFC 9110, section 13.1.1.
        """
        if self.tags and "*" not in self.tags and etag(version) not in self.tags:
            raise StaleError(
                "etag-mismatch",
                f"it is at {etag(version)} now, which is none of those in If-Match",
                resolution="Read it again, and repeat the change on what it is now.",
            )


async def _if_match(value: Annotated[str | None, Header(alias="If-Match", max_length=512)] = None) -> Precondition:
    return Precondition(frozenset(tag.strip() for tag in (value or "").split(",") if tag.strip()))


IfMatch = Annotated[Precondition, Depends(_if_match)]
"""The parameter by which an endpoint gets the precondition of the If-Match header."""


def etag(version: int) -> str:
    """A strong entity tag."""
    return f'"{version}"'


def body_answer(view: BaseModel, status: int = 200, version: int | None = None) -> Answer:
    """A view as an answer; `version` makes its tag."""
    return Answer(status, view.model_dump_json(), "" if version is None else etag(version))


def respond(answer: Answer) -> Response:
    """An answer as HTTP."""
    headers = {"ETag": answer.etag} if answer.etag else None
    if not answer.body:
        return Response(status_code=answer.status, headers=headers)
    return Response(answer.body, answer.status, headers=headers, media_type=JSON)


def refuse_key(access: Access) -> None:
    """For answers that are not kept, because they hold a secret or are large: refuse to promise that they would be.

    Raises:
        ConflictError: the request carries an Idempotency-Key.
    """
    if access.key is not None:
        raise ConflictError(
            "not-repeatable",
            "the answer of this operation is not kept, so it cannot be asked twice with one key",
            resolution="Leave Idempotency-Key out.",
        )


async def read(access: Access, target: Target[R], fn: Callable[[Transaction, R], Answer]) -> Response:
    """Answer a read."""
    return respond(await access.read(target, fn))


async def write(access: Access, target: Target[R], fn: Callable[[Unit, R], Answer]) -> Response:
    """Answer a write; one that comes again with its Idempotency-Key gets the first answer."""
    return respond(await access.write_once(target, fn))
