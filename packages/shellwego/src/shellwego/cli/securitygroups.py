"""`swg groups`: what VMs of a project may open to the apps that are in a security group."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, show, show_removed
from shellwego.cli.presence import look_first
from shellwego.cli.rules import PORTS_AND_PROTOCOL, ports_and_protocol
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import GroupView, RuleBody, RuleView

_RULE = re.compile(r"(?P<source>project|(?:group|app):[A-Za-z0-9_-]+)" + PORTS_AND_PROTOCOL)
_rules = click.argument("rules", nargs=-1, required=True, metavar="RULE...")


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def groups() -> None:
    """Security groups: what other apps of the project may open to the apps that are in them.

    An app in no group takes anything from its project. One that is in any takes what the rules of its groups let in, and
    nothing else; answers, health checks, the edge and published ports are not asked.

    A rule says who may open what: group:web, app:shop:5432/tcp, project:8000-8100/udp, project/icmp. Ports alone are those
    of tcp. A change acts within seconds on all that runs, open connections too, without a deploy.
    """


@groups.command("ls")
@shared
@about_no_app
def list_groups(session: Session) -> None:
    """List the project's groups."""
    import msgspec  # noqa: PLC0415

    found = every(lambda cursor: session.client.list_groups(project=session.project, limit=MOST, cursor=cursor))
    rows = [
        {
            "name": group.name,
            "rules": ", ".join(map(_text, group.rules)) or "nothing",
            "apps": ", ".join(group.apps),
            "age": age(group.created_at),
        }
        for group in found
    ]
    show(session, msgspec.to_builtins(found), rows, empty="no groups yet: swg groups create NAME")


@groups.command("create")
@click.argument("name")
@click.argument("rules", nargs=-1, metavar="[RULE]...")
@shared
@about_no_app
def create_group(session: Session, name: str, rules: tuple[str, ...]) -> None:
    """Make a group, with these rules. Without any it lets in nothing."""
    from shellwego.client.generated import GroupCreate  # noqa: PLC0415

    body = GroupCreate(name=name, allow=[_parsed(each) for each in rules])
    _show(session, session.client.create_group(body, project=session.project))


@groups.command("show")
@click.argument("name")
@shared
@about_no_app
def show_group(session: Session, name: str) -> None:
    """Show a group's rules, the apps in it, and the groups that name it."""
    _show(session, session.client.get_group(name, project=session.project))


@groups.command("allow")
@click.argument("name")
@_rules
@shared
@about_no_app
def allow(session: Session, name: str, rules: tuple[str, ...]) -> None:
    """Add rules to a group."""
    _change(session, name, allow=rules)


@groups.command("deny")
@click.argument("name")
@_rules
@shared
@about_no_app
def deny(session: Session, name: str, rules: tuple[str, ...]) -> None:
    """Take rules out of a group, each as it is in it."""
    _change(session, name, deny=rules)


@groups.command("attach")
@click.argument("name")
@click.argument("app")
@shared
@about_no_app
def attach(session: Session, name: str, app: str) -> None:
    """Have an app be in a group."""
    from shellwego.client.generated import MemberBody  # noqa: PLC0415

    _show(session, session.client.attach_group(name, MemberBody(app=app), project=session.project))


@groups.command("detach")
@click.argument("name")
@click.argument("app")
@shared
@about_no_app
def detach(session: Session, name: str, app: str) -> None:
    """Take an app out of a group; one that is in none takes anything from its project."""
    from shellwego.client.generated import MemberBody  # noqa: PLC0415

    _show(session, session.client.detach_group(name, MemberBody(app=app), project=session.project))


@groups.command("destroy")
@click.argument("name")
@shared
@about_no_app
def destroy(session: Session, name: str) -> None:
    """Remove a group that no app is in and no other group names."""
    look_first(session, (name,), lambda each: session.client.get_group(each, project=session.project))
    session.confirm(f"Destroy the group {name} with its rules?")
    session.client.delete_group(name, project=session.project)
    session.say(f"the group {name} is gone")
    show_removed(session, name)


def _change(session: Session, name: str, *, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> None:
    from shellwego.client.generated import GroupPatch  # noqa: PLC0415

    patch = GroupPatch(allow=[_parsed(each) for each in allow], deny=[_parsed(each) for each in deny])
    _show(session, session.client.change_group(name, patch, project=session.project))


def _parsed(text: str) -> RuleBody:
    from shellwego.client.generated import RuleBody  # noqa: PLC0415

    match = _RULE.fullmatch(text)
    if match is None:
        raise click.UsageError(f"{text[:80]!r} is no rule, such as project, group:web/icmp or app:shop:5432/tcp.")
    ports, protocol = ports_and_protocol(match)
    return RuleBody(source=match["source"], protocol=protocol, ports=ports)


def _text(rule: RuleView) -> str:
    """As it is written on the command line."""
    protocol = "" if rule.protocol == "any" else f"/{rule.protocol}"
    return rule.source + (f":{rule.ports}" if rule.ports else "") + protocol


def _show(session: Session, group: GroupView) -> None:
    import msgspec  # noqa: PLC0415

    rows = [{"source": rule.source, "protocol": rule.protocol, "ports": rule.ports or "all"} for rule in group.rules]
    session.say(f"{group.name}: {_standing(group)}")
    show(session, msgspec.to_builtins(group), rows, name="source", empty="no rules: nothing is let in")


def _standing(group: GroupView) -> str:
    apps = f"apps in it: {', '.join(group.apps)}" if group.apps else "no app is in it (swg groups attach)"
    return apps + (f"; named by the groups {', '.join(group.named_by)}" if group.named_by else "")
