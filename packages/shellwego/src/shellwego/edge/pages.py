"""The edge's own answers: why a request did not reach an app. Fixed text; nothing of the request is repeated in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

ERROR_HEADER = "X-ShellWeGo-Error"
"""On every answer of the edge itself, with the page's name, so that it is told from an app's own error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    name: str
    status: HTTPStatus
    title: str
    text: str
    retry_after_s: int | None = None

    @property
    def body(self) -> str:
        """A small HTML document that loads nothing."""
        return _HTML.format(title=self.title, text=self.text, status=self.status.value)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        retry = (("Retry-After", str(self.retry_after_s)),) if self.retry_after_s is not None else ()
        return (("Cache-Control", "no-store"), (ERROR_HEADER, self.name), *retry)


_HTML = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:20vh auto;padding:0 1em}}</style></head>
<body><h1>{title}</h1><p>{text}</p><p><small>{status} · ShellWeGo</small></p></body>
</html>
"""

_S = HTTPStatus

NO_APP = Page(
    name="no-such-app",
    status=_S.NOT_FOUND,
    title="No such app",
    text="No app answers to this host name here. Check the name for typing errors.",
)
STOPPED = Page(
    name="app-stopped",
    status=_S.SERVICE_UNAVAILABLE,
    title="App stopped",
    text="Nothing of this app runs: it was stopped, or never deployed. It answers once its owner starts it.",
    retry_after_s=60,
)
STARTING = Page(
    name="app-starting",
    status=_S.SERVICE_UNAVAILABLE,
    title="App starting",
    text="This app is starting and not ready yet. Try again in a few seconds.",
    retry_after_s=2,
)
FAILING = Page(
    name="app-failing",
    status=_S.SERVICE_UNAVAILABLE,
    title="App failing",
    text="This app does not start, or does not pass its checks. Its owner finds the reason in its logs.",
    retry_after_s=10,
)
ASLEEP = Page(
    name="app-asleep",
    status=_S.SERVICE_UNAVAILABLE,
    title="App asleep",
    text="This app was put to sleep by its owner. It answers again once it is woken.",
    retry_after_s=60,
)
NO_SERVER = Page(
    name="no-server-ready",
    status=_S.SERVICE_UNAVAILABLE,
    title="No server ready",
    text="No instance of this app takes requests now. Try again in a few seconds.",
    retry_after_s=2,
)
BUSY = Page(
    name="app-busy",
    status=_S.SERVICE_UNAVAILABLE,
    title="App busy",
    text="This app has as many requests and connections open as it may have here. Try again in a few seconds.",
    retry_after_s=5,
)
HOST_PAGES: Mapping[str, Page] = {page.name: page for page in (STOPPED, STARTING, FAILING, ASLEEP, NO_SERVER)}
"""Pages that a host without a serving app can show, by name."""

PROXY_PAGES: Mapping[int, Page] = {
    page.status.value: page
    for page in (
        Page(
            name="bad-request",
            status=_S.BAD_REQUEST,
            title="Bad request",
            text="The request was malformed, or its headers were too long.",
        ),
        Page(
            name="forbidden",
            status=_S.FORBIDDEN,
            title="Forbidden",
            text="The request was refused.",
        ),
        Page(
            name="request-timeout",
            status=_S.REQUEST_TIMEOUT,
            title="Request time-out",
            text="The request did not arrive in time.",
        ),
        Page(
            name="edge-error",
            status=_S.INTERNAL_SERVER_ERROR,
            title="Internal error",
            text="The edge failed at this request.",
        ),
        Page(
            name="bad-gateway",
            status=_S.BAD_GATEWAY,
            title="Bad gateway",
            text="The app broke off, or its answer was not valid HTTP.",
        ),
        NO_SERVER,
        Page(
            name="gateway-timeout",
            status=_S.GATEWAY_TIMEOUT,
            title="Gateway time-out",
            text="The app did not answer in time.",
        ),
    )
}
"""Pages for the failures that HAProxy itself meets, by status."""


def raw_response(page: Page) -> str:
    """A whole HTTP response, as HAProxy's `errorfile` takes it."""
    size = len(page.body.encode())
    fields = (("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(size)), *page.headers)
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {page.status.value} {page.status.phrase}\r\n{head}\r\n{page.body}"
