"""One of each thing that the API knows, and for each operation that changes something a body that makes sense.

A fuzzer that only guessed would see refusals; with these, its guesses about one part of a request meet a whole that works.
"""

from __future__ import annotations

import itertools
from typing import Any

from shellwego.core.instances import Phase
from tests.api.api_bodies import BODIES, IMAGE
from tests.api.api_world import ADMIN, World
from tests.contract.images_samples import digest_of, docker_save, entry, layer

_numbers = itertools.count(1)


async def make_things(world: World) -> dict[str, Any]:
    """Fresh ones: `paths` of all operations, what differs for some of them, `queries`, `headers` and `bodies`."""
    name = f"fuzz-{next(_numbers)}"
    _end_uploads(world)
    deployment = await world.deployed(name)
    healthy = await world.running(name)
    asleep = await world.running(name, phase=Phase.ASLEEP)
    second = await world.made(f"/v1/apps/{name}/deployments", {"image": IMAGE, "port": 8081})
    await world.running(name)
    pending = await world.deployed(f"{name}-p")
    run = await world.made(f"/v1/apps/{name}/runs", {"command": ["true"]})
    upload = await world.made("/v1/images/uploads")
    full, digest = await _full_upload(world)
    world.images.publish(f"registry.example/{name}:v1")
    image = await world.made("/v1/images", {"reference": f"registry.example/{name}:v1"})
    webhook = await _webhook(world)
    test = await world.made(f"/v1/webhooks/{webhook}/actions/test")
    await world.call("PATCH", f"/v1/webhooks/{webhook}", {"active": False})
    token = await world.made("/v1/user/tokens", {"name": "fuzz"}, token=ADMIN)
    return {
        "paths": {
            "app": deployment["app_id"],
            "deployment": second["id"],
            "release": "v2",
            "instance": healthy.id,
            "image": image["id"],
            "upload": upload["id"],
            "node": world.node.id,
            "project": world.project.id,
            "organization": world.project.organization_id,
            "token": token["id"],
            "webhook": webhook,
            "delivery": test["id"],
        },
        "special": {
            "cancel_deployment": {"app": pending["app_id"], "deployment": pending["id"]},
            "stop_run": {"instance": run["id"]},
            "resume_vm": {"instance": asleep.id},
            "finish_upload": {"upload": full},
        },
        "queries": {"project": world.project.id, "against": "v1", "digest": digest, "timeout": "0"},
        "headers": {"Content-Range": "bytes 0-0/*"},
        "bodies": {**BODIES, "create_app": {"name": f"{name}-c"}},
    }


def _end_uploads(world: World) -> None:
    """There may be few at a time."""
    spool = world.app.state.context.spool
    for upload in list(spool._uploads.values()):
        if not upload.busy:
            spool.remove(upload)


async def _webhook(world: World) -> str:
    """A new one; the oldest goes where there are as many as may be."""
    found = (await world.get("/v1/webhooks?limit=100&sort=created_at:asc")).json["data"]
    if len(found) > 10:
        await world.call("DELETE", f"/v1/webhooks/{found[0]['id']}")
    return str((await world.made("/v1/webhooks", {"url": "https://hooks.example/"}))["id"])


async def _full_upload(world: World) -> tuple[str, str]:
    """An upload with an image in it, and its digest."""
    tar = docker_save([layer(entry("bin/hello", b"hello"))], ["fuzz:v1"])
    upload = await world.made("/v1/images/uploads")
    headers = {"Content-Range": f"bytes 0-{len(tar) - 1}/*", "content-type": "application/octet-stream"}
    answer = await world.call("PATCH", f"/v1/images/uploads/{upload['id']}", raw=tar, headers=headers)
    assert answer.status in (200, 202, 204), answer.content
    return str(upload["id"]), digest_of(tar)
