"""The engine's errors as gRPC statuses, and back.

A status carries `google.rpc.Status` with an `ErrorInfo` (reason: our code, domain `plasmavmc`; its metadata say kind,
details, resolution and, where a state forbids the move, that state), and beside it what generic clients know:
`BadRequest` for a field, `PreconditionFailure` for a state, `RetryInfo` where another try may help. The message is the
brief. Sizes are bounded, for all of it travels in HTTP/2 trailers, which clients take up to 8 KiB.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, RetryInfo
from google.rpc.status_pb2 import Status

from plasmavmc.errors import (
    CapacityError,
    ConflictError,
    ForbiddenError,
    GuestError,
    HostError,
    ImageError,
    InvalidSpecError,
    NotFoundError,
    PlasmaError,
    UnauthenticatedError,
    UnavailableError,
    WorkloadError,
)

DOMAIN = "plasmavmc"
DETAILS_KEY = "grpc-status-details-bin"
RETRY_S = 1
_MAX_BRIEF = 1000
_MAX_DETAILS = 2000
_BY_CODE: Mapping[str, grpc.StatusCode] = {
    "vm-exists": grpc.StatusCode.ALREADY_EXISTS,
    "key-collision": grpc.StatusCode.ALREADY_EXISTS,
    "request-id-reused": grpc.StatusCode.ALREADY_EXISTS,
    "image-not-found": grpc.StatusCode.NOT_FOUND,
    "exec-too-many": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "guest-gone": grpc.StatusCode.ABORTED,
}
_BY_KIND: Mapping[type[PlasmaError], grpc.StatusCode] = {
    InvalidSpecError: grpc.StatusCode.INVALID_ARGUMENT,
    ImageError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    CapacityError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}
"""What is in neither table is FAILED_PRECONDITION: something must change before another try."""
_SIMPLE: Mapping[grpc.StatusCode, tuple[type[PlasmaError], str]] = {
    grpc.StatusCode.UNAUTHENTICATED: (UnauthenticatedError, "unauthenticated"),
    grpc.StatusCode.PERMISSION_DENIED: (ForbiddenError, "forbidden"),
    grpc.StatusCode.NOT_FOUND: (NotFoundError, "not-found"),
}
_KINDS: Mapping[str, type[PlasmaError]] = {
    kind.__name__: kind
    for kind in (
        CapacityError,
        ConflictError,
        ForbiddenError,
        GuestError,
        HostError,
        ImageError,
        NotFoundError,
        UnauthenticatedError,
        UnavailableError,
        WorkloadError,
    )
}


def code_of(error: PlasmaError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    if error.code.startswith("registry-"):
        return grpc.StatusCode.FAILED_PRECONDITION if not error.temporary else grpc.StatusCode.UNAVAILABLE
    return next(
        (code for kind, code in _BY_KIND.items() if isinstance(error, kind)), grpc.StatusCode.FAILED_PRECONDITION
    )


def status_of(error: PlasmaError, *, subject: str = "", state: str = "") -> Status:
    """The status to answer with. `subject` and `state` are the thing whose state forbids the move."""
    code, brief = code_of(error), error.brief[:_MAX_BRIEF]
    kind = type(error).__name__ if type(error).__name__ in _KINDS else PlasmaError.__name__
    told = {"kind": kind, "details": error.details[:_MAX_DETAILS], "resolution": error.resolution[:_MAX_BRIEF]}
    if state:
        told["state"] = state
    details: list[Message] = [
        ErrorInfo(reason=error.code, domain=DOMAIN, metadata={name: value for name, value in told.items() if value})
    ]
    if isinstance(error, InvalidSpecError):
        violation = BadRequest.FieldViolation(field=error.field[:_MAX_BRIEF], description=brief)
        details.append(BadRequest(field_violations=[violation]))
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        failure = PreconditionFailure.Violation(type=error.code, subject=subject, description=state or brief)
        details.append(PreconditionFailure(violations=[failure]))
    if error.temporary:
        details.append(RetryInfo(retry_delay=Duration(seconds=RETRY_S)))
    return Status(code=_number(code), message=brief, details=[_packed(detail) for detail in details])


def error_of(error: grpc.aio.AioRpcError) -> PlasmaError:
    """What a server said, as the error that it was there."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            told = _told(value)
            if told is not None:
                return told
    return _plain(error.code(), error.details() or "")


def _told(raw: bytes) -> PlasmaError | None:
    """The error in a status of ours; None where it is another's."""
    try:
        status = Status.FromString(raw)
    except DecodeError:
        return None
    info, field = ErrorInfo(), ""
    for detail in status.details:
        request = BadRequest()
        detail.Unpack(info)
        if detail.Unpack(request) and request.field_violations:
            field = request.field_violations[0].field
    if info.domain != DOMAIN:
        return None
    resolution = info.metadata.get("resolution", "")
    if field:
        return InvalidSpecError(field, status.message.removeprefix(f"{field}: "), resolution=resolution)
    kind = _KINDS.get(info.metadata.get("kind", ""), PlasmaError)
    return kind(info.reason, status.message, details=info.metadata.get("details", ""), resolution=resolution)


def _plain(code: grpc.StatusCode, message: str) -> PlasmaError:
    """An error that gRPC itself made, or a server that is not ours."""
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnavailableError(
                "server-unreachable",
                "the server does not answer",
                details=message[:_MAX_DETAILS],
                resolution="Check that it runs, its address, and that you may open its socket.",
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return CapacityError("too-large", "the message is too large, or too much is asked", details=message)
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.NOT_FOUND:
            kind, reason = _SIMPLE[code]
            return kind(reason, message)
        case grpc.StatusCode.INTERNAL if message == "Internal error from Core":
            return UnavailableError("stream-cut", "the server ended the stream while more was being sent")
        case _:
            return PlasmaError(f"grpc-{code.name.lower().replace('_', '-')}", message or code.name)


def _number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
