"""`plasmavmc.v1.ImageService` over the protocol `ImageApi`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from plasmavmc.deadlines import within
from plasmavmc.errors import InvalidSpecError, NotFoundError, UnavailableError
from plasmavmc.rpc.api import Image, ImageApi, ImageOrder, key_of_image
from plasmavmc.rpc.conversions.images import (
    MAX_REFERENCE,
    UPLOAD_WANTED,
    image_to_pb,
    order_from_pb,
    progress_to_pb,
)
from plasmavmc.rpc.conversions.values import NO_SCOPE, scope_from_pb, text
from plasmavmc.rpc.gate import Context, current_call
from plasmavmc.rpc.idempotency import Answers
from plasmavmc.rpc.paging import after_of, cut, page_size
from plasmavmc.rpc.sessions import START_DEADLINE_S, first_message
from plasmavmc.rpc.v1 import image_pb2, image_pb2_grpc
from plasmavmc.types import MIB, SYSTEM_SCOPE, Scope

MAX_CHUNK = MIB
CHUNK_DEADLINE_S = 60.0
"""Between two chunks of an upload: one that stalls holds room on the disk."""
PATIENCE_S = 60.0
"""After so long of waiting for chunks they must have come at the lowest pace."""
_SLOWEST = 16 * 1024
"""Bytes per second, as a registry must send at least."""


def image_not_found(image: str) -> NotFoundError:
    return NotFoundError("image-not-found", f"there is no image {image}")


class ImageServicer(image_pb2_grpc.ImageServiceServicer):
    """See the module's head. Each method asks the gate before it does or tells anything."""

    def __init__(self, api: ImageApi, answers: Answers) -> None:
        self._api = api
        self._answers = answers

    async def RegisterImage(
        self, request_iterator: AsyncIterator[image_pb2.RegisterImageRequest], context: Context
    ) -> AsyncIterator[image_pb2.RegisterImageResponse]:
        """Registering is idempotent by its content, so its request id is a remark: the same bytes are the same image."""
        first = await first_message(request_iterator, START_DEADLINE_S)
        if first.WhichOneof("message") != "start":
            raise InvalidSpecError("start", "the first message says what comes")
        call, asked = current_call(), order_from_pb(first.start)
        scope = call.home(asked.scope, "start.scope")
        await call.admit(scope)
        order = ImageOrder(scope, asked.source, asked.name, asked.login, call.principal.id)
        call.subject = order.name
        await context.send_initial_metadata((UPLOAD_WANTED,))
        async with aclosing(self._api.register(order, _chunks(request_iterator))) as events:
            async for event in events:
                match event:
                    case Image():
                        yield image_pb2.RegisterImageResponse(image=image_to_pb(event))
                    case _:
                        yield image_pb2.RegisterImageResponse(progress=progress_to_pb(event))

    async def GetImage(self, request: image_pb2.GetImageRequest, context: Context) -> image_pb2.Image:
        call, asked = current_call(), _checked_image(request.image)
        scope = call.home(scope_from_pb("scope", request.scope), "scope")
        absent = image_not_found(asked)
        if scope == SYSTEM_SCOPE:
            call.checked = True  # all may see what all may use
        else:
            await call.admit(scope, asked, absent=absent)
        return image_to_pb(await self._find(scope, asked))

    async def ListImages(self, request: image_pb2.ListImagesRequest, context: Context) -> image_pb2.ListImagesResponse:
        scope, size = scope_from_pb("scope", request.scope), page_size(request.page_size)
        question = image_pb2.ListImagesRequest(scope=request.scope)
        after = after_of(request.page_token, question)
        reach = (await current_call().reach()).with_system()
        chosen: Scope | None = None if scope == NO_SCOPE else scope
        found = await self._api.list_images(chosen, reach, after=after, limit=size + 1)
        page, token = cut(found, size, key_of=key_of_image, to_pb=image_to_pb, question=question)
        return image_pb2.ListImagesResponse(images=page, next_page_token=token)

    async def DeleteImage(
        self, request: image_pb2.DeleteImageRequest, context: Context
    ) -> image_pb2.DeleteImageResponse:
        async def work() -> image_pb2.DeleteImageResponse:
            call, asked = current_call(), _checked_image(request.image)
            scope = call.home(scope_from_pb("scope", request.scope), "scope")
            await call.admit(scope, asked, absent=image_not_found(asked))
            call.subject = asked
            await self._api.delete_image(scope, asked)
            return image_pb2.DeleteImageResponse()

        return await self._answers.once(request, work)

    async def _find(self, scope: Scope, image: str) -> Image:
        try:
            return await self._api.get_image(scope, image)
        except NotFoundError:
            raise image_not_found(image) from None


def _checked_image(image: str) -> str:
    if not image:
        raise InvalidSpecError("image", "a digest or a name is needed")
    return text("image", image, MAX_REFERENCE)


async def _chunks(messages: AsyncIterator[image_pb2.RegisterImageRequest]) -> AsyncIterator[bytes]:
    """An upload's bytes. The next message is read when the last one was taken in; only the client's time counts."""
    count, waited = 0, 0.0
    while True:
        asked = time.monotonic()
        try:
            async with within(CHUNK_DEADLINE_S):
                chunk = await _next_chunk(messages)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise UnavailableError("upload-stalled", f"no chunk came for {CHUNK_DEADLINE_S:g} s") from None
        waited += time.monotonic() - asked
        count += len(chunk)
        if waited > PATIENCE_S + count / _SLOWEST:
            raise UnavailableError("upload-slow", f"less than {_SLOWEST} bytes of it come per second")
        yield chunk


async def _next_chunk(messages: AsyncIterator[image_pb2.RegisterImageRequest]) -> bytes:
    """Past empty ones: such is the last that some read of a file."""
    while True:
        if chunk := _checked_chunk(await anext(messages)):
            return chunk


def _checked_chunk(message: image_pb2.RegisterImageRequest) -> bytes:
    if message.WhichOneof("message") != "chunk":
        raise InvalidSpecError("chunk", "only chunks follow the start")
    if len(message.chunk) > MAX_CHUNK:
        raise InvalidSpecError("chunk", f"it has {len(message.chunk)} bytes; at most {MAX_CHUNK} are taken")
    return message.chunk
