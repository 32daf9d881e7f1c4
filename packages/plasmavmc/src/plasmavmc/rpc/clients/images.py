"""A client of ImageService: images, in the engine's own types."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress

import grpc

from plasmavmc.rpc.api import Image, ImageOrder, ImageProgress
from plasmavmc.rpc.clients.calls import UPLOAD_CHUNK, Metadata, answers_of, request_id_of, translated
from plasmavmc.rpc.conversions.images import UPLOAD_WANTED, image_from_pb, order_to_pb, progress_from_pb
from plasmavmc.rpc.conversions.values import scope_to_pb
from plasmavmc.rpc.v1 import image_pb2, types_pb2
from plasmavmc.rpc.v1.image_pb2_grpc import ImageServiceStub
from plasmavmc.types import Scope


class ImageClient:
    """Images. No scope: the caller's only one, and what all may use."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._stub = ImageServiceStub(channel)
        self._metadata = metadata

    async def register(
        self, order: ImageOrder, chunks: AsyncIterator[bytes] | None = None, *, request_id: str = ""
    ) -> AsyncGenerator[ImageProgress | Image]:
        """Progress, and last the image. `chunks` are the bytes of an upload."""
        start = image_pb2.RegisterImageRequest(start=order_to_pb(order, request_id_of(request_id)))
        failure: list[Exception] = []

        async def requests() -> AsyncIterator[image_pb2.RegisterImageRequest]:
            yield start
            if chunks is None or not await _is_wanted(call):
                return
            try:
                async for chunk in chunks:
                    for begin in range(0, len(chunk), UPLOAD_CHUNK):
                        yield image_pb2.RegisterImageRequest(chunk=chunk[begin : begin + UPLOAD_CHUNK])
            except Exception as error:
                failure.append(error)
                raise

        call = self._stub.RegisterImage(requests(), metadata=self._metadata)
        try:
            async with aclosing(answers_of(call, call)) as answers:
                async for answer in answers:
                    if answer.HasField("image"):
                        yield image_from_pb(answer.image)
                    else:
                        yield progress_from_pb(answer.progress)
        except asyncio.CancelledError:
            if failure:  # gRPC cancels a call whose chunks cannot be had; nobody cancelled us
                raise failure[0] from None
            raise

    async def get(self, image: str, scope: Scope | None = None) -> Image:
        """By digest or name."""
        request = image_pb2.GetImageRequest(scope=_scope(scope), image=image)
        with translated():
            return image_from_pb(await self._stub.GetImage(request, metadata=self._metadata))

    async def list_images(self, scope: Scope | None = None, *, page_size: int = 0) -> AsyncIterator[Image]:
        """All that the caller may see, or those of one scope."""
        request = image_pb2.ListImagesRequest(scope=_scope(scope), page_size=page_size)
        while True:
            with translated():
                answer = await self._stub.ListImages(request, metadata=self._metadata)
            for image in answer.images:
                yield image_from_pb(image)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def delete(self, image: str, scope: Scope | None = None, *, request_id: str = "") -> None:
        """A name alone is taken away while others point to the image."""
        request = image_pb2.DeleteImageRequest(request_id=request_id_of(request_id), scope=_scope(scope), image=image)
        with translated():
            await self._stub.DeleteImage(request, metadata=self._metadata)


def _scope(scope: Scope | None) -> types_pb2.Scope | None:
    return None if scope is None else scope_to_pb(scope)


async def _is_wanted(call: grpc.aio.Call) -> bool:
    """Whether the server goes on to listen, which it says in its header."""
    name, value = UPLOAD_WANTED
    with suppress(grpc.aio.AioRpcError):
        header = await call.initial_metadata()
        return header.get(name) == value
    return False
