"""Access to a bus on NATS: passes are user tokens of its account, and what was revoked stands in the account's own token.

Signing asks nobody. Revoking takes what the servers know, adds what is new, and tells them; a server cuts the connections
that are open with a revoked pass, and keeps the list over its restarts. Nothing there keeps two that revoke at once from
overwriting each other: so one server of the platform does it at a time, and what was told is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from shellwego.core.errors import UnavailableError
from shellwego.core.nkeys import Role, check_public
from shellwego.drivers.busaccess.authority import ACCOUNT_NAME, Authority, new_key
from shellwego.drivers.busaccess.tokens import Audience, account_token, revoked_in, user_token
from shellwego.drivers.natslink import PREFIX, TROUBLE, Login, close, connect
from shellwego.ports.busaccess import PASS_S, BusPass
from shellwego.ports.clock import Clock
from shellwego.wire.subjects import audible

_TIMEOUT_S = 5.0
_TRIES = 5
_SYSTEM_PASS_S = 60.0


class _Problem(msgspec.Struct):
    description: str = ""


class _Answer(msgspec.Struct):
    error: _Problem | None = None


@dataclass(frozen=True, slots=True)
class NatsBusAccess:
    """See `ports.busaccess.BusAccess`."""

    authority: Authority
    clock: Clock
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    def admit(self, listener_id: str, public_key: str, lifetime_s: float = PASS_S) -> BusPass:
        check_public(Role.USER, public_key)
        audience = Audience([f"{PREFIX}{pattern}" for pattern in audible(listener_id)])
        now = self.clock.now()
        return BusPass(
            token=user_token(
                self.authority.account, public_key, listener_id, now=now, lifetime_s=lifetime_s, audience=audience
            ),
            urls=self.authority.urls,
            certificate=self.authority.certificate,
            expires_at=float(int(now + lifetime_s)),
            lifetime_s=lifetime_s,
        )

    async def revoke(self, keys: Mapping[str, float]) -> None:
        for key in keys:
            check_public(Role.USER, key)
        try:
            async with self._one_at_a_time, asyncio.timeout(_TIMEOUT_S):
                await self._revoke(self._lasting({key: int(until) for key, until in keys.items()}))
        except (*TROUBLE, ValueError) as error:
            raise UnavailableError(
                "bus-unavailable", f"the bus could not be told what was revoked: {error or type(error).__name__}"
            ) from error

    async def close(self) -> None:
        pass

    async def _revoke(self, wanted: Mapping[str, int]) -> None:
        client = await self._system()
        try:
            for _ in range(_TRIES):
                known = await self._known(client)
                missing = {key: until for key, until in wanted.items() if known.get(key, -1) < until}
                if not missing:
                    return
                await self._tell(client, self._lasting({**known, **missing}))
            raise NatsError("nats: others change the account all the time")
        finally:
            await close(client)

    def _lasting(self, keys: Mapping[str, int]) -> dict[str, int]:
        """Without those for which nothing was signed that could hold still, so that the list does not grow for ever."""
        ended = self.clock.now() - 2 * PASS_S
        return {key: until for key, until in keys.items() if until > ended}

    async def _system(self) -> Client:
        """A connection of the system account, to the first server that answers."""
        key, refused = new_key(Role.USER), NatsError("nats: no server is named")
        token = user_token(self.authority.system, key.public, "server", now=self.clock.now(), lifetime_s=_SYSTEM_PASS_S)
        for url in self.authority.urls:
            try:
                return await connect(url, self.authority.certificate, Login(token, key))
            except (NatsError, OSError) as error:
                refused = NatsError(f"{url}: {error}")
        raise refused

    async def _known(self, client: Client) -> dict[str, int]:
        subject = f"$SYS.REQ.ACCOUNT.{self.authority.account.public}.CLAIMS.LOOKUP"
        answer = await client.request(subject, b"", timeout=_TIMEOUT_S)
        return revoked_in(answer.data.decode())

    async def _tell(self, client: Client, revoked: Mapping[str, int]) -> None:
        token = account_token(
            self.authority.operator,
            self.authority.account.public,
            ACCOUNT_NAME,
            self.clock.now(),
            streams=True,
            revoked=revoked,
        )
        answer = await client.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=_TIMEOUT_S)
        problem = msgspec.json.decode(answer.data, type=_Answer).error
        if problem is not None:
            raise NatsError(f"nats: {problem.description or 'the account was refused'}")
