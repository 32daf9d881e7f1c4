"""Options of the command line over what a manifest says."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from shellwego.cli.placement import where_of

if TYPE_CHECKING:
    from shellwego.client.generated import ConfigBody, DeploymentCreate

_FIELDS = {
    "rollback": ("rollback_on_failure",),
    "strategy": ("strategy",),
    "wait_timeout": ("wait_timeout",),
    "max_unavailable": ("max_unavailable",),
    "surge": ("surge",),
    "canary_steps": ("strategy", "canary_steps"),
    "canary_pause": ("canary_pause",),
}
"""Option → the fields of the deployment that it says."""


def given_options() -> set[str]:
    """The options of the running command that somebody gave, by their parameters' names."""
    from click.core import ParameterSource  # noqa: PLC0415

    context = click.get_current_context()
    spoken = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return {name for name in context.params if context.get_parameter_source(name) in spoken}


def overlay(wish: DeploymentCreate, options: DeploymentCreate, given: Collection[str]) -> DeploymentCreate:
    """Put what options say in place of what the manifest says; returns `wish`, changed."""
    for field in (field for option, fields in _FIELDS.items() if option in given for field in fields):
        setattr(wish, field, getattr(options, field))
    wish.image = options.image or wish.image
    wish.backend = wish.backend if options.backend is None else options.backend
    wish.env = {**wish.env, **options.env}
    config = _config(wish)
    if "release_command" in given:
        config.release_command = _config(options).release_command
    where_of(_config(options)).put_into(config)
    _overlay_process(config, options)
    return wish


def _config(wish: DeploymentCreate) -> ConfigBody:
    from shellwego.client.generated import ConfigBody  # noqa: PLC0415

    if not isinstance(wish.config, ConfigBody):
        wish.config = ConfigBody()
    return wish.config


def _overlay_process(config: ConfigBody, options: DeploymentCreate) -> None:
    """The short forms for one process."""
    from shellwego.client.generated import CheckBody, ProcessBody, ServiceBody  # noqa: PLC0415

    if options.command is not None:
        config.processes.setdefault(options.process, ProcessBody()).command = options.command
    if options.port is not None:
        config.services = [ServiceBody(process=options.process, port=options.port)]
    if options.check_path is not None:
        others = [check for check in config.checks or () if check.process != options.process]
        config.checks = [*others, CheckBody(type="http", process=options.process, path=options.check_path)]
