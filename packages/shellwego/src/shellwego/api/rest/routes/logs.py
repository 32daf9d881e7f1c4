"""Logs of an app as a list and as a stream; commands run in an instance."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, refuse_key, respond
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Project
from shellwego.api.rest.rights import renew, while_allowed
from shellwego.api.rest.routes.common import Here, Ref, resource_router
from shellwego.api.rest.schemas.common import when
from shellwego.api.rest.schemas.resources import ExecBody, ExecView, LogLineView, LogList
from shellwego.api.rest.sse import EVENT_STREAM, EventStream, message
from shellwego.control.instances import find_instance, logged_instances, reachable_instance
from shellwego.control.logs import MAX_TAIL, LogFollower, LogLine, LogQuery, read_logs
from shellwego.control.streams import run_command
from shellwego.control.targets import AppTarget, InstanceTarget
from shellwego.core.apps import App
from shellwego.core.errors import ConflictError
from shellwego.core.instances import Instance
from shellwego.ports.store import Transaction
from shellwego.ports.streams import StreamKind, StreamRequest

router = resource_router("logs")
_MAX_OUTPUT = 256 * 1024
_MAX_TIME = 253_402_300_799.0  # the last second of the year 9999

Tail = Annotated[
    int, Query(ge=0, le=MAX_TAIL, description="Lines at most, the newest; of long ones fewer, 8 MiB in all.")
]
SinceTime = Annotated[float, Query(ge=0, le=1e11, allow_inf_nan=False, description="Seconds since the epoch.")]
InstanceId = Annotated[str, Query(max_length=64)]
ProcessName = Annotated[str, Query(max_length=64)]


@operation(router, "GET", "/apps/{app}/logs", permission="instances:read", answer=LogList)
async def get_logs(
    *,
    here: Here,
    access: Granted,
    app: Ref,
    project: Project = "",
    tail: Tail = 100,
    since: SinceTime = 0.0,
    instance: InstanceId = "",
    process: ProcessName = "",
) -> Response:
    """The last lines of an app's instances, in the order of their time."""
    query = LogQuery(tail=tail, since=since, instance_id=instance, process=process)
    found = await access.read(AppTarget(app, project), lambda tx, row: logged_instances(tx, row, instance, process))
    lines = await read_logs(here.streams, found, query)
    return respond(body_answer(LogList(data=[_line_view(line) for line in lines])))


@operation(router, "GET", "/apps/{app}/logs/stream", permission="instances:read", answer=None, media_type=EVENT_STREAM)
async def stream_logs(
    *,
    here: Here,
    access: Granted,
    app: Ref,
    project: Project = "",
    tail: Tail = 100,
    since: SinceTime = 0.0,
    instance: InstanceId = "",
    process: ProcessName = "",
) -> Response:
    """An app's log as server-sent events: the last lines, then each as it is written, new instances included."""
    target = AppTarget(app, project)

    def first_look(tx: Transaction, row: App) -> tuple[str, str]:
        """Ids of app and instance. What cannot be followed is a problem here, and not the end of a stream."""
        logged_instances(tx, row, instance, process)
        return row.id, find_instance(tx, row, instance).id if instance else ""

    app_id, instance_id = await access.read(target, first_look)
    query = LogQuery(tail=tail, since=since, instance_id=instance_id, process=process)

    async def look() -> list[Instance]:
        await renew(here, access)
        return await access.read(target, lambda tx, row: logged_instances(tx, row, instance_id, process))

    async def messages() -> AsyncGenerator[bytes]:
        follower = LogFollower(here.control, here.streams, query)
        async with contextlib.aclosing(follower.lines(app_id, look)) as lines:
            async for line in lines:
                yield message(_line_view(line).model_dump_json(), event="log")

    return EventStream(messages(), here)


@operation(router, "POST", "/apps/{app}/exec", permission="instances:exec", answer=ExecView, seconds=660)
async def exec_command(*, here: Here, access: Granted, app: Ref, body: ExecBody, project: Project = "") -> Response:
    """Run a command in an instance to its end. For a terminal, or long output, open a WebSocket on this path."""
    refuse_key(access)
    request = StreamRequest(kind=StreamKind.EXEC, instance_id="", command=tuple(body.command))
    instance = await access.write(
        AppTarget(app, project),
        lambda unit, row: reachable_instance(unit.tx, row, body.instance or "", body.process or ""),
    )
    try:
        with here.shares.lasting(access):
            async with asyncio.timeout(body.timeout):
                running = run_command(here.streams, instance, request, body.stdin.encode(), _MAX_OUTPUT)
                result = await while_allowed(here, access, InstanceTarget(instance.id), running)
    except TimeoutError:
        raise ConflictError(
            "exec-timeout",
            f"the command did not end within {body.timeout:g} s, and was ended",
            resolution="Give it more time, or open a WebSocket on this path.",
        ) from None
    view = ExecView(
        instance_id=instance.id,
        exit_code=result.exit_code,
        stdout=result.stdout.decode(errors="replace"),
        stderr=result.stderr.decode(errors="replace"),
        truncated=result.truncated,
    )
    return respond(body_answer(view))


def _line_view(line: LogLine) -> LogLineView:
    record = line.record
    moment = record.time if 0 <= record.time <= _MAX_TIME else 0.0  # a guest's host may tell any number
    return LogLineView(
        time=when(moment),
        instance_id=line.instance_id,
        process=line.process,
        stream=record.stream,
        text=record.text,
    )
