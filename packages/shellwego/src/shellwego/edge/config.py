"""HAProxy's configuration, maps and pages as text. Pure: from settings and what the pool holds to file contents.

Theory. The configuration is read at a start and at a reload only; in between everything goes over the runtime API. A reload
forgets every server and map entry that was made at run time, so these files always hold the present ones.

What is in it, and why:

- `fd@${SWG_HTTP_FD}`: the listening socket is inherited. HAProxy itself would bind with SO_REUSEPORT, beside another
  process on the same port, without a word.
- `retry-on conn-failure` with `option redispatch 1`: a request is tried on another server only while it was not sent.
- `balance roundrobin`: in turn, by weight, also where servers are idle. `leastconn` forgets weights there: a canary of a
  tenth would get every second request of a quiet app. `random` left one of three idle servers out.
- `option idle-close-on-response`: at a reload, the old worker answers one more request on each idle connection instead of
  closing it under the client's hands.
- That one more request must not follow the old worker's routes, which nobody can change any more (HAProxy refuses server
  commands in a stopping worker: "Proxy is disabled"). So a worker is *retired* after a reload: its host map is emptied, and
  the key `*` in its page map makes the fall-back backend send everything to the newest worker, over a unix socket and with
  the PROXY protocol, so that the client's address is kept.
- `fhdr(host)`, not `hdr(host)`: the latter takes the last part of `Host: evil,victim`, and the app would see another host
  than the one that was routed. `fhdr(host,1)` stops at the first, and there is no second: HAProxy refuses two that differ,
  and makes one of two that agree. Without the number each use looks through all headers.
- A host with other characters than hosts have is refused (RFC 9112, 3.2): `Host: app.example:80@evil` would be routed by
  what stands before the colon, and apps make links of all of it.
- `Connection` is written anew: it names headers that the next hop drops, and a client would name those that we set.
- Header names are matched with `-` and `_`, because CGI-like apps cannot tell them apart. `CONNECT`, or `Upgrade: h2c`, be
  it beside a `websocket`, would open a tunnel in which our headers are not set.
- `disable-h2-upgrade`: HAProxy turns to HTTP/2 where a connection begins with its preface, in clear and unasked. No browser
  does that; who does has left what is said here of heads, which are read, bounded and rewritten as those of HTTP/1.
- A body in chunks is none of HTTP/1.0's (RFC 9112, 6.1). HAProxy would pass it on as it is, to an app that may take it for
  the next request.
- The client's address becomes text once a connection (`concat` takes text), and not with `option forwardfor` at each
  request: printing it is the dearest step of all these rules.
- `track-sc0` and `be_conn`: a connection that lasts (a WebSocket) costs its owner nothing, and there are only so many. One
  source, and one app, gets a share of them. What a retired worker sends on is not of a source again: it was counted when it
  came. Balancers are no source, or all that is behind one would share one share.
- Defaults that hold rules can be those of frontends or of backends; so the pool has its own.
- Every rule runs at each request, and looking for a header costs as much as the client has headers: one condition that
  does the work of two is worth its denser words. A regular expression over header names is dearer than plain comparisons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from shellwego.edge import pages
from shellwego.edge.pages import Page
from shellwego.edge.pool import Key, Slot, Wanted, backend_name
from shellwego.edge.settings import EdgeSettings, Layout

FRONTEND = "swg_http"
FALLBACK = "swg_fallback"
SOCKET_VARIABLE = "SWG_HTTP_FD"
_DEFAULTS = "swg"
_APP_DEFAULTS = "swg_app"
_SOURCES = "swg_sources"
_RELAY = "relay"
_RETURNED = (pages.NO_APP, pages.BUSY, *pages.HOST_PAGES.values())
"""Pages that a rule answers with."""
_FIRST_HOST = "req.fhdr(host,1)"
_HOST = f"{_FIRST_HOST},host_only,lower,rtrim(.)"
_NO_HOST = "[^][A-Za-z0-9._:-]|^.{256}"
_CLIENT = "sess.swg_client"
RETIRED_KEY = "*"
"""In a worker's page map: send everything to the newest worker. No host name, so no route can set it."""
RETIRED_VALUE = "retired"

SERVER_OPTIONS = "pool-max-conn -1 pool-purge-delay 1s"
"""Of every server, in files and at run time alike. A server made at run time reuses no connection unless told, which triples
the cost of a request; and idle connections are closed soon, before an app closes one just as a request goes out on it."""


def files(settings: EdgeSettings, pool_size: int, wanted: Wanted) -> dict[Path, str]:
    """Everything that HAProxy reads, by path: started with these, it serves `wanted` from the first request on."""
    layout = Layout(settings.run_dir)
    errors = {_error_path(layout, page): pages.raw_response(page) for page in pages.PROXY_PAGES.values()}
    bodies = {_body_path(layout, page): page.body for page in _RETURNED}
    return {
        **errors,
        **bodies,
        layout.hosts_map: _map_text(wanted.hosts),
        layout.pages_map: _map_text(wanted.pages),
        layout.config: config_text(settings, pool_size, wanted.servers),
    }


def argv(program: str, layout: Layout) -> list[str]:
    """The command line of the master: quiet, because its words would go to a file that nobody bounds."""
    return [program, "-q", "-W", "-S", f"{layout.master_socket},mode,600", "-f", str(layout.config)]


def check_argv(program: str, layout: Layout) -> list[str]:
    """The command line that only reads the configuration and says what is wrong with it."""
    return [program, "-c", "-f", str(layout.config)]


def config_text(settings: EdgeSettings, pool_size: int, servers: Mapping[Key, Slot]) -> str:
    """`haproxy.cfg`, with a pool of this size that holds these servers."""
    lines = [*_head(settings, version(settings)), *_pool(pool_size, servers), ""]
    return "\n".join(lines)


def version(settings: EdgeSettings) -> str:
    """Changes whenever a running HAProxy must be reloaded to do what these settings and this code say."""
    text = "\n".join(_head(settings, "")) + "".join(pages.raw_response(page) for page in _all_pages())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _all_pages() -> tuple[Page, ...]:
    return *_RETURNED, *pages.PROXY_PAGES.values()


def _head(settings: EdgeSettings, description: str) -> list[str]:
    layout = Layout(settings.run_dir)
    return [
        *_global(settings, layout, description),
        *_defaults(settings, layout),
        *_frontend(settings, layout),
        *_fallback(layout),
        *_sources(settings),
        *_app_defaults(settings, layout),
    ]


def _global(settings: EdgeSettings, layout: Layout, description: str) -> list[str]:
    threads = [f"    nbthread {settings.threads}"] if settings.threads else []
    return [
        "global",
        f"    description {description}",
        f"    stats socket {layout.admin_socket} mode 600 level admin expose-fd listeners",
        "    stats timeout 30s",
        f"    maxconn {settings.max_connections}",
        f"    hard-stop-after {settings.timeouts.hard_stop}s",
        "    tune.bufsize 16384",
        "    tune.maxrewrite 1024",
        "    tune.http.maxhdr 128",
        *threads,
    ]


def _defaults(settings: EdgeSettings, layout: Layout) -> list[str]:
    timeouts = settings.timeouts
    errors = [f"    errorfile {code} {_error_path(layout, page)}" for code, page in pages.PROXY_PAGES.items()]
    return [
        f"defaults {_DEFAULTS}",
        "    mode http",
        "    balance roundrobin",
        "    retries 3",
        "    retry-on conn-failure",
        "    option redispatch 1",
        "    option idle-close-on-response",
        f"    timeout connect {timeouts.connect}s",
        f"    timeout client {timeouts.client}s",
        f"    timeout server {timeouts.server}s",
        f"    timeout http-request {timeouts.request}s",
        f"    timeout http-keep-alive {timeouts.keep_alive}s",
        f"    timeout tunnel {timeouts.tunnel}s",
        f"    timeout queue {timeouts.connect}s",
        *errors,
    ]


def _frontend(settings: EdgeSettings, layout: Layout) -> list[str]:
    balancers = " ".join(settings.balancers)
    return [
        f"frontend {FRONTEND} from {_DEFAULTS}",
        f"    bind fd@${{{SOCKET_VARIABLE}}}",
        f"    bind unix@{layout.relay_socket} mode 600 accept-proxy name {_RELAY}",
        "    option disable-h2-upgrade",
        f"    tcp-request session track-sc0 src,ipmask(32,64) table {_SOURCES}"
        f" if !{{ so_name {_RELAY} }} !{{ src {balancers} }}",
        f"    tcp-request session reject if {{ sc0_conn_cur gt {settings.source_share} }}",
        f"    tcp-request session set-var({_CLIENT}) src,concat()",
        f"    http-request deny deny_status 400 if {{ method CONNECT }} or {{ req.fhdr(host) -m reg {_NO_HOST} }}"
        " or HTTP_1.0 { req.fhdr_cnt(transfer-encoding) gt 0 }",
        "    http-request del-header forwarded -m sub",
        "    http-request del-header x-real -m beg",
        "    http-request del-header x_real -m beg",
        "    http-request del-header proxy",
        "    http-request del-header upgrade if { req.hdr(upgrade) -m reg -i ^(?!websocket$) }",
        "    http-request del-header connection",
        "    http-request set-header Connection Upgrade if { req.hdr(upgrade) -m found }",
        "    http-request add-header X-Forwarded-Proto http",
        f"    http-request add-header X-Forwarded-Host %[{_FIRST_HOST}]",
        f"    http-request add-header X-Forwarded-For %[var({_CLIENT})]",
        f"    use_backend %[{_HOST},map({layout.hosts_map},{FALLBACK})]",
        f"    default_backend {FALLBACK}",
    ]


def _fallback(layout: Layout) -> list[str]:
    shown = [
        _return(layout, page, f"if !retired {{ {_HOST},map({layout.pages_map}) -m str {name} }}")
        for name, page in pages.HOST_PAGES.items()
    ]
    return [
        f"backend {FALLBACK} from {_DEFAULTS}",
        "    http-reuse never",
        f"    acl retired str({RETIRED_KEY}),map({layout.pages_map}) -m found",
        "    http-request deny deny_status 400 unless { req.fhdr_cnt(host) eq 1 }",
        *shown,
        _return(layout, pages.NO_APP, "unless retired"),
        f"    server relay unix@{layout.relay_socket} send-proxy-v2",
    ]


def _sources(settings: EdgeSettings) -> list[str]:
    """The connections of each source, which count while they are open. An entry in use is never given up."""
    size = 2 * settings.max_connections
    return [
        f"backend {_SOURCES} from {_DEFAULTS}",
        f"    stick-table type ipv6 size {size} expire 1m store conn_cur",
    ]


def _app_defaults(settings: EdgeSettings, layout: Layout) -> list[str]:
    """What holds for all backends of the pool, which follow."""
    busy = _return(layout, pages.BUSY, f"if {{ be_conn gt {settings.app_share} }}")
    return [f"defaults {_APP_DEFAULTS} from {_DEFAULTS}", busy]


def _return(layout: Layout, page: Page, condition: str) -> str:
    headers = " ".join(f'hdr {name} "{value}"' for name, value in page.headers)
    content = f'content-type "text/html; charset=utf-8" file {_body_path(layout, page)}'
    return f"    http-request return status {page.status.value} {content} {headers} {condition}"


def _pool(size: int, servers: Mapping[Key, Slot]) -> Iterator[str]:
    lines = {
        backend: [
            f"    server {name} {slot.address} weight {slot.weight} {SERVER_OPTIONS}" for (_, name), slot in group
        ]
        for backend, group in groupby(sorted(servers.items()), key=lambda item: item[0][0])
    }
    for index in range(size):
        name = backend_name(index)
        yield f"backend {name}"
        yield from lines.get(name, ())


def _map_text(entries: Mapping[str, str]) -> str:
    return "".join(f"{key} {value}\n" for key, value in sorted(entries.items()))


def _error_path(layout: Layout, page: Page) -> Path:
    return layout.pages_dir / f"{page.name}.http"


def _body_path(layout: Layout, page: Page) -> Path:
    return layout.pages_dir / f"{page.name}.html"
