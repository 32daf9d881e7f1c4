"""Page tokens: opaque to the client, checked when they come back.

A token says after which key the next page begins, and for which question it was made; another question's is refused. It
grants nothing: what a page may show is asked anew each time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from plasmavmc.errors import InvalidSpecError
from plasmavmc.types import MIB

Item = TypeVar("Item")
Told = TypeVar("Told", bound=Message)

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_PAGE_BYTES = 2 * MIB
_VERSION = b"\1"
_MARK = 8
_LONGEST = 1024


def page_size(asked: int) -> int:
    """How many items a page has: 0 means 100; at most 1000."""
    return min(asked or DEFAULT_PAGE, MAX_PAGE)


def after_of(token: str, question: Message) -> str:
    """The key after which a page begins; the first page's token is empty.

    Raises:
        InvalidSpecError: `page_token`, it is none that we made for this question.
    """
    if not token:
        return ""
    try:
        raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True) if len(token) <= _LONGEST else b""
        version, mark, key = raw[:1], raw[1 : 1 + _MARK], raw[1 + _MARK :].decode()
    except (binascii.Error, ValueError):
        raise _refused() from None
    if version != _VERSION or not key or mark != _mark(key, question):
        raise _refused()
    return key


def token_for(key: str, question: Message) -> str:
    return base64.urlsafe_b64encode(_VERSION + _mark(key, question) + key.encode()).decode()


def cut(
    found: Sequence[Item],
    size: int,
    *,
    key_of: Callable[[Item], str],
    to_pb: Callable[[Item], Told],
    question: Message,
) -> tuple[list[Told], str]:
    """A page of what was found (one more than its size was asked for), and the next one's token, or none.

    A page also ends where its messages get too large together; one item at least is on it.
    """
    page: list[Told] = []
    total = 0
    for item in found[:size]:
        message = to_pb(item)
        total += message.ByteSize()
        if page and total > MAX_PAGE_BYTES:
            break
        page.append(message)
    more = len(page) < len(found)
    return page, token_for(key_of(found[len(page) - 1]), question) if more else ""


def _mark(key: str, question: Message) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + question.SerializeToString(deterministic=True)).digest()[:_MARK]


def _refused() -> InvalidSpecError:
    return InvalidSpecError(
        "page_token", "it is no token of this list", resolution="Begin with the first page: leave it empty."
    )
