"""Names of apps, and the hostnames that follow from them.

One name space for the whole platform: `<app>.<domain>` for an app in its organization's first project, if that is free,
else `<app>-<project>.<domain>`. Two pairs of app and project may spell the same label (`a-b` in `c`, `a` in `b-c`), so a
last candidate carries a hash of the pair.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from shellwego.core.errors import FieldError, InvalidError
from shellwego.core.tenancy import Project

MAX_NAME = 40
MAX_LABEL = 63
"""RFC 1035, section 2.3.4."""
_NAME = re.compile(r"[a-z](?:-?[a-z0-9])*")
_HASH_LENGTH = 8


def check_name(name: str, field: str = "name") -> None:
    """Refuse a name that could not be a DNS label.

    Raises:
        InvalidError: it is not a-z, 0-9 and single hyphens, beginning with a letter, at most 40 characters.
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        message = f"a name has a-z, 0-9 and single hyphens, begins with a letter and has at most {MAX_NAME} characters"
        fault = FieldError(field, "bad-name", message)
        raise InvalidError("bad-name", f"{field}: {message}", errors=(fault,))


def candidates(app: str, project: Project, domain: str) -> Iterator[str]:
    """Hostnames for an app of this project, best first; the caller takes the first that is free."""
    if project.first:
        yield f"{app}.{domain}"
    joined = f"{app}-{project.name}"
    if len(joined) <= MAX_LABEL:
        yield f"{joined}.{domain}"
    digest = hashlib.sha256(f"{project.id}/{app}".encode()).hexdigest()[:_HASH_LENGTH]
    yield f"{joined[: MAX_LABEL - _HASH_LENGTH - 1].rstrip('-')}-{digest}.{domain}"
