"""Which driver a repository's address means."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from shellwego.core.backups import RepositoryPlace
from shellwego.core.errors import InvalidError
from shellwego.ports.objects import Objects


def open_objects(place: RepositoryPlace, owner: tuple[int, int] | None = None) -> Objects:
    """See `ports.objects.OpenObjects`. `owner`: whose the files are to be, in a directory; None: whoever makes them."""
    try:
        parts = urlsplit(place.url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme == "file" and not parts.netloc and parts.path.strip("/"):
        from shellwego.drivers.objects.directory import DirectoryObjects  # noqa: PLC0415 - one of the two is needed

        return DirectoryObjects(Path(unquote(parts.path)), owner)
    if parts.scheme == "s3" and parts.netloc and not parts.query and not parts.fragment:
        from shellwego.drivers.objects.s3 import S3Objects  # noqa: PLC0415 - as above

        return S3Objects(
            parts.netloc, parts.path, endpoint=place.endpoint, region=place.region, credentials=place.credentials
        )
    raise InvalidError(
        "bad-repository",
        "backups lie in a directory or in a bucket of S3",
        resolution="Set url in the table [backups] to file:///directory or s3://bucket/prefix.",
    )
