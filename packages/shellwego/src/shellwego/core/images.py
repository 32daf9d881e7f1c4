"""Images as the platform knows them: a name for people, a digest for machines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shellwego.core.plans import UNLIMITED
from shellwego.core.tenancy import Organization

EVERYBODY = "*"


def blames_image(reason_code: str) -> bool:
    """Whether a VM that failed so could not be made from its image: that is bad, or the platform's copy of it is."""
    return reason_code == "digest-mismatch" or reason_code.startswith("image-")


class ImageKind(StrEnum):
    """What an image holds, and so what can run it."""

    LINUX = "linux"
    WASM = "wasm"


class ImageState(StrEnum):
    PENDING = "pending"
    """A node could not build from it: its blobs in the server's store are to be checked."""
    FETCHING = "fetching"
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LoginRule:
    """Whose images are fetched with the operator's logins for registries: what those can read, whoever has them can run."""

    organizations: frozenset[str] = frozenset()
    """Names or ids; `*` stands for all. None: the platform's first, as long as it has no limits."""

    def lets(self, organization: Organization, first_id: str) -> bool:
        """Whether they serve this organization; `first_id`: of the oldest there is."""
        if not self.organizations:
            return organization.id == first_id and organization.plan == UNLIMITED
        return bool(self.organizations & {EVERYBODY, organization.id, organization.name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A manifest known to a project. Its blobs are in the server's store when `state` is ready."""

    id: str
    project_id: str
    reference: str
    """What it was asked for by: a loaded name (`hello:v1`) or a registry reference with its host."""
    digest: str
    state: ImageState
    size_bytes: int = 0
    exposed_ports: tuple[int, ...] = ()
    loaded: bool = False
    """The name was given by a tar: it means this digest, whatever a registry says."""
    reason: str = ""
    created_at: float
    version: int = 1
