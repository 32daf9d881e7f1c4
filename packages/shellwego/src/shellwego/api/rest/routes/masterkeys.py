"""The master key that all secrets are sealed under, for operators of the platform."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.routes.common import Here, resource_router
from shellwego.api.rest.schemas.masterkeys import MasterKeyBody, MasterKeyList, MasterKeyView, master_key_view
from shellwego.control import masterkeys
from shellwego.control.idempotency import Answer
from shellwego.control.targets import SystemTarget
from shellwego.control.unit import Unit

router = resource_router("system")


@operation(router, "GET", "/system/master-keys", permission="keys:read", answer=MasterKeyList)
async def list_master_keys(*, here: Here, access: Granted) -> Response:
    """The versions of the master key, newest first, with how many data keys are still under each."""
    await access.read(SystemTarget(), lambda tx, _: None)
    current = await here.sealer.current()
    found = await access.read(SystemTarget(), lambda tx, _: masterkeys.key_statuses(tx, current))
    views = [master_key_view(status) for status in found]
    return respond(body_answer(MasterKeyList(current=current, data=views)))


@operation(
    router, "POST", "/system/master-keys/actions/rotate", permission="keys:write", answer=MasterKeyView, status=202
)
async def rotate_master_key(*, here: Here, access: Granted) -> Response:
    """Make a new version. What is stored is moved under it in the background; nothing stands still meanwhile."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    await access.read(SystemTarget(), lambda tx, _: None)
    name = await here.sealer.rotate()

    def work(unit: Unit, _: None) -> Answer:
        key = masterkeys.note_rotation(unit, name)
        return body_answer(master_key_view(masterkeys.key_status(unit.tx, key, name)), 202)

    return await write(access, SystemTarget(), work)


@operation(router, "POST", "/system/master-keys/actions/retire", permission="keys:write", answer=MasterKeyView)
async def retire_master_key(*, here: Here, access: Granted, body: MasterKeyBody) -> Response:
    """Let a version go; refused while anything is under it. Where the platform keeps the key itself, it is destroyed."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    await access.read(SystemTarget(), lambda tx, _: None)
    current = await here.sealer.current()

    def work(unit: Unit, _: None) -> Answer:
        key = masterkeys.retire_key(unit, body.name, current)
        return body_answer(master_key_view(masterkeys.key_status(unit.tx, key, current)))

    answer = await write(access, SystemTarget(), work)
    await here.sealer.retire(body.name)
    return answer
