"""Where backups lie, and with what that is reached: read as root, before the split, and handed to the platform in memory."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from shellwego.boot.givensecrets import aws_profile, read_given
from shellwego.boot.preflight import PreflightError
from shellwego.boot.settings import UpSettings
from shellwego.core.backups import RepositoryPlace
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.objects.choose import open_objects


def read_repository(settings: UpSettings, environment: MutableMapping[str, str] = os.environ) -> RepositoryPlace | None:
    """As the operator gave it; None: there is none.

    Raises:
        PreflightError: the credentials cannot be read, or others can read them.
        InvalidError: there can be no such place.
    """
    given = read_given("backups-credentials", settings.backups_credentials_file, environment, _refused)
    if not settings.backups_url:
        return None
    credentials = {}
    if given is not None:
        profile = aws_profile(given, _refused)
        named = {"secret_access_key": profile.secret_key, "session_token": profile.session_token}
        credentials = {name: value for name, value in named.items() if value is not None}
        credentials["access_key_id"] = Sensitive.of(profile.access_key)
    place = RepositoryPlace(
        url=settings.backups_url,
        endpoint=settings.backups_endpoint,
        region=settings.backups_region,
        credentials=credentials,
    )
    open_objects(place)
    return place


def _refused(reason: str, resolution: str) -> PreflightError:
    return PreflightError("backups", f"the repository of backups cannot be had: {reason}", resolution=resolution)
