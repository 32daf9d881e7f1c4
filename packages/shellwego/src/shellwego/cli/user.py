"""`swg user`: your own account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.groups import NounGroup
from shellwego.cli.output import show_one
from shellwego.cli.prompts import Prompts, at_terminal
from shellwego.cli.session import Session, about_no_app, shared

if TYPE_CHECKING:
    from shellwego.client.generated import UserView


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def user() -> None:
    """Show your account, change its name, password and one-time codes."""


def _show(session: Session, found: UserView) -> None:
    import msgspec  # noqa: PLC0415

    pairs = {
        "user" if found.email else "service account": found.email,
        "name": found.name,
        "id": found.id,
        "password": found.has_password,
        "one-time codes": found.totp,
    }
    show_one(session, msgspec.to_builtins(found), pairs, name=found.email or found.name)


@user.command("show")
@shared
@about_no_app
def show_user(session: Session) -> None:
    """Show your account."""
    _show(session, session.client.get_user())


@user.command("rename")
@click.argument("name")
@shared
@about_no_app
def rename(session: Session, name: str) -> None:
    """Change the name that others read."""
    from shellwego.client.generated import UserUpdate  # noqa: PLC0415

    _show(session, session.client.update_user(UserUpdate(name=name)))


@user.command("password")
@shared
@about_no_app
def password(session: Session) -> None:
    """Change your password, and end all your other sign-ins.

    On the platform's machine the context made by `swg up` needs no old password: so the administrator gets the first one,
    or one in place of a lost one. Without a terminal, stdin has the old password (or an empty line), then the new one.
    """
    from shellwego.client.generated import PasswordChange  # noqa: PLC0415

    prompts = Prompts()
    old = _own_password(session, prompts, "Old password")
    changed = session.client.set_password(
        PasswordChange(old_password=old, new_password=prompts.new_secret("New password"))
    )
    session.say(f"the password is changed; other tokens that were ended: {changed.revoked_tokens}")


def _own_password(session: Session, prompts: Prompts, question: str) -> str | None:
    """The password again; None where there is none, or where it is left out, as the host's own token may. Without a
    terminal it is a line of stdin in any case, so that what stands where does not depend on the account."""
    if at_terminal() and not session.client.get_user().has_password:
        return None
    return prompts.secret(question, optional=True) or None


@user.group("totp", cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def totp() -> None:
    """One-time codes of an authenticator app, asked for when you sign in."""


@totp.command("enrol")
@shared
@about_no_app
def enrol(session: Session) -> None:
    """Get a secret for your authenticator app. Nothing changes until you confirm a first code."""
    import msgspec  # noqa: PLC0415

    from shellwego.client.generated import TotpEnrol  # noqa: PLC0415

    made = session.client.enrol_totp(TotpEnrol(password=_own_password(session, Prompts(), "Password")))
    show_one(session, msgspec.to_builtins(made), {"secret": made.secret, "uri": made.uri}, name=made.secret)
    session.say("type the secret into the app, then: swg user totp confirm")


@totp.command("confirm")
@shared
@about_no_app
def confirm(session: Session) -> None:
    """Turn codes on with the first one. Prints recovery codes, each good once in place of a code; keep them."""
    import msgspec  # noqa: PLC0415

    from shellwego.client.generated import TotpConfirm  # noqa: PLC0415

    confirmed = session.client.confirm_totp(TotpConfirm(code=Prompts().secret("Code")))
    if session.output in ("json", "yaml"):
        show_one(session, msgspec.to_builtins(confirmed), {}, name="")
        return
    session.say("codes are on. Recovery codes, shown this once:")
    click.echo("\n".join(confirmed.recovery_codes))


@totp.command("disable")
@shared
@about_no_app
def disable(session: Session) -> None:
    """Sign in without codes from now on. Takes the password and a code, or a recovery code."""
    from shellwego.client.generated import TotpDisable  # noqa: PLC0415

    prompts = Prompts()
    given = _own_password(session, prompts, "Password")
    code = prompts.secret("Code", optional=True)
    session.client.disable_totp(TotpDisable(password=given, code=code))
    session.say("codes are off")
