"""An administrator with a password and one-time codes, and how he signs in."""

from __future__ import annotations

from typing import Any

from pyotp import TOTP

from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import ADMIN, Answer, World

ADMIN_EMAIL = "admin@localhost"
PASSWORD = "correct horse battery"
NEW = "staple battery correct"
HOST = {"host": "cloud.example", "origin": "https://cloud.example"}


async def sign_in(world: World, password: str = PASSWORD, *, email: str = ADMIN_EMAIL, **more: Any) -> Answer:
    options = {name: more.pop(name) for name in ("client", "headers") if name in more}
    return await world.post("/v1/auth/token", {"email": email, "password": password, **more}, token=None, **options)


async def set_password(world: World, new: str = PASSWORD, *, token: str = ADMIN, **more: Any) -> Answer:
    return await world.call("PUT", "/v1/user/password", {"new_password": new, **more}, token=token)


async def later(world: World, seconds: float) -> None:
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(seconds)


def code(world: World, secret: str, steps: int = 0) -> str:
    return str(TOTP(secret).generate_otp(int(world.clock.now() // 30) + steps))


async def enrolled(world: World) -> tuple[str, list[str]]:
    """The administrator with a password and one-time codes: the secret and the recovery codes."""
    await set_password(world)
    secret = (await world.made("/v1/user/totp", {}, token=ADMIN))["secret"]
    confirmed = await world.made("/v1/user/totp/confirm", {"code": code(world, secret, -1)}, token=ADMIN)
    return secret, confirmed["recovery_codes"]
