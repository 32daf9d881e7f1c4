"""Uploading an image's tar, or a module, in parts; a part that broke off is sent again from where the server stands.

What has arrived lies with one server of the platform, so all parts go over one connection. Where that one is gone, and
another server answers in its place, the upload is begun anew; so what is uploaded is best a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import IO

from shellwego.client.generated import Client, LoadedView, UploadView
from shellwego.client.transport import ApiProblem, Unreachable

_PART = 8 * 1024 * 1024
_TRIES = 5
_UPLOADS = 3

Progress = Callable[[int], None]
"""Told how many bytes have arrived so far."""


def load_image(
    client: Client,
    tar: IO[bytes],
    *,
    name: str | None = None,
    project: str | None = None,
    progress: Progress = lambda _: None,
) -> LoadedView:
    """Upload a tar and load the images that it holds.

    Raises:
        ApiProblem, Unreachable: as every operation; an upload that was begun is thrown away first.
    """
    begin = tar.tell() if tar.seekable() else None
    left = _UPLOADS if begin is not None else 1
    while True:
        left -= 1
        try:
            return _load(client, tar, name, project, progress)
        except ApiProblem as error:
            if error.code != "upload-not-found" or not left:
                raise
            tar.seek(begin or 0)


def _load(client: Client, tar: IO[bytes], name: str | None, project: str | None, progress: Progress) -> LoadedView:
    upload = client.begin_upload(name=name, project=project)
    try:
        digest = _send(client, upload, tar, project, progress)
        return client.finish_upload(upload.id, digest=f"sha256:{digest}", project=project)
    except BaseException:
        _cancel(client, upload, project)
        raise


def _send(client: Client, upload: UploadView, tar: IO[bytes], project: str | None, progress: Progress) -> str:
    digest = hashlib.sha256()
    offset = 0
    while part := tar.read(min(_PART, upload.chunk_bytes)):
        digest.update(part)
        _send_part(client, upload, part, offset, project)
        offset += len(part)
        progress(offset)
    return digest.hexdigest()


def _send_part(client: Client, upload: UploadView, part: bytes, offset: int, project: str | None) -> None:
    content_range = f"bytes {offset}-{offset + len(part) - 1}/*"
    for attempt in range(_TRIES):
        try:
            client.append_upload(upload.id, part, content_range=content_range, project=project)
        except (Unreachable, ApiProblem) as error:
            twice = isinstance(error, Unreachable) or error.code == "bad-offset"
            if not twice or attempt == _TRIES - 1:
                raise
            if client.get_upload(upload.id, project=project).offset == offset + len(part):
                return  # it had arrived; only the answer was lost
        else:
            return


def _cancel(client: Client, upload: UploadView, project: str | None) -> None:
    try:
        client.cancel_upload(upload.id, project=project)
    except (ApiProblem, Unreachable):
        return  # the server forgets it by itself after an hour
