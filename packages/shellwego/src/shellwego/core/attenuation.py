"""A token made by a token: never stronger, never longer.

Theory. What a token may is the meeting of three sets: its scopes, the resources it is narrowed to, and its principal's
grants. A child has the same principal, so it is enough that each of its scopes is covered by one of its parent's, that each
of its resources lies in or below one of its parent's, and that it ends no later. Empty means "all" in both lists, so a
child that names nothing gets what its parent has, and never more than that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shellwego.core.errors import FieldError, InvalidError
from shellwego.core.iam import covers

_SCOPE = re.compile(r"(?:[a-z][a-z-]{0,38}|\*):(?:[a-z][a-z-]{0,38}|\*)")


@dataclass(frozen=True, slots=True)
class Power:
    """What a token adds to its principal's grants: nothing, and what it takes from them."""

    scopes: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    expires_at: float | None = None


def attenuate(parent: Power, wish: Power, chains: Mapping[str, Sequence[str]]) -> Power:
    """The power of a child that is wished for by the holder of `parent`.

    `chains` gives for each wished resource the scopes from the system down to it, as far as the holder can see it; a
    resource without one is told as unknown. A wish to live longer is cut.

    Raises:
        InvalidError: a scope or resource is malformed, unknown, or more than the parent has; names each.
    """
    faults = (*_scope_faults(parent, wish.scopes), *_resource_faults(parent, wish.resources, chains))
    if faults:
        told = "; ".join(f"{fault.field}: {fault.message}" for fault in faults[:3])
        raise InvalidError("token-refused", told, errors=faults)
    ends = [end for end in (parent.expires_at, wish.expires_at) if end is not None]
    return Power(wish.scopes or parent.scopes, wish.resources or parent.resources, min(ends, default=None))


def _scope_faults(parent: Power, scopes: Sequence[str]) -> Iterator[FieldError]:
    for number, scope in enumerate(scopes):
        at = f"scopes.{number}"
        if not _SCOPE.fullmatch(scope):
            yield FieldError(at, "bad-scope", f"“{scope[:80]}” is not of the form resource:action")
        elif parent.scopes and not covers(parent.scopes, (scope,)):
            yield FieldError(at, "not-held", f"the asking token does not hold {scope}")


def _resource_faults(
    parent: Power, resources: Sequence[str], chains: Mapping[str, Sequence[str]]
) -> Iterator[FieldError]:
    for number, resource in enumerate(resources):
        chain = chains.get(resource, ())
        reached = not parent.resources or any(held in chain for held in parent.resources)
        if not (chain and reached):
            what = "organization, project or app"
            yield FieldError(f"resources.{number}", "not-found", f"there is no {what} “{resource[:64]}”")
