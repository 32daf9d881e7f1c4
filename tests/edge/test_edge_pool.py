"""The pool's plans: for any sequence of tables they converge, and no step on the way fails a request."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shellwego.core.routing import Endpoint, Route, RouteState, RouteTable
from shellwego.edge.pool import (
    AddServer,
    CutSessions,
    DeleteServer,
    DropHost,
    Operation,
    Plan,
    Pool,
    Progress,
    Server,
    ServerState,
    SetState,
    SetWeight,
    Slot,
    TurnHost,
    Wanted,
    apply,
    claim,
    confirmed,
    grown,
    occupied,
    plan,
)
from shellwego.edge.targets import Targets, read_table, want

APPS = ("app_a", "app_b", "app_c")
HOSTS = ("a.example", "b.example", "c.example")
SIZE = 5
BACKEND = "swg_b0000"


@st.composite
def tables(draw: st.DrawFn) -> RouteTable:
    """Up to three hosts, which may move between apps; up to three instances of each app, in any mixture of releases."""
    routes = []
    taken: set[str] = set()
    for host in HOSTS:
        if not draw(st.booleans()):
            continue
        app = draw(st.sampled_from(APPS))
        endpoints = () if app in taken else tuple(draw(st.lists(endpoint(app), max_size=3, unique_by=_id)))
        taken.add(app)
        state = RouteState.SERVING if endpoints else draw(st.sampled_from(RouteState))
        routes.append(Route(host=host, app_id=app, app_name=app, state=state, endpoints=endpoints))
    return RouteTable(version=1, routes=tuple(routes))


def _id(item: Endpoint) -> str:
    return item.instance_id


@st.composite
def endpoint(draw: st.DrawFn, app: str) -> Endpoint:
    number = draw(st.integers(0, 3))
    port = 1000 + 100 * APPS.index(app) + 10 * number + draw(st.integers(0, 1))
    return Endpoint(
        instance_id=f"ins_{app}-{number}", address=f"tcp:10.0.0.1:{port}", weight=draw(st.sampled_from((0, 50, 100)))
    )


@dataclass
class World:
    """HAProxy as the planner knows it, which refuses what the real one refuses, and sometimes more."""

    pool: Pool = field(default_factory=lambda: Pool(SIZE))
    held: dict[str, int] = field(default_factory=dict)
    refuses: float = 0.0
    rng: random.Random = field(default_factory=random.Random)

    def do(self, operation: Operation) -> bool:
        if self.lacks_what_failed_before(operation):
            return False
        self.check(operation)
        if self.refuses and self.rng.random() < self.refuses:
            return False
        apply(self.pool, operation)
        return True

    def lacks_what_failed_before(self, operation: Operation) -> bool:
        """Within a phase, operations are sent together: one may follow on another that was refused."""
        match operation:
            case SetState(key):
                return key not in self.pool.servers
            case DeleteServer(key):
                return self.pool.servers[key].state is not ServerState.MAINT
            case _:
                return False

    def check(self, operation: Operation) -> None:
        match operation:
            case AddServer(key, slot):
                assert key not in self.pool.servers
                assert int(key[0].removeprefix("swg_b")) < self.pool.size
                assert 0 <= slot.weight <= 256
            case DeleteServer(key):
                assert self.pool.servers[key].state is ServerState.MAINT
                assert self.pool.servers[key].connections == 0, "a request would be cut"
            case SetState(key, ServerState.MAINT):
                assert self.pool.servers[key].connections == 0
            case SetState(key) | SetWeight(key):
                assert key in self.pool.servers
            case TurnHost(host, _, previous):
                assert self.pool.hosts.get(host) == previous
            case DropHost(host):
                assert host in self.pool.hosts
            case _:
                pass

    def reachable(self, host: str) -> set[str]:
        """Servers that a request to this host could be sent to."""
        backend = self.pool.hosts.get(host)
        return {
            name
            for (place, name), server in self.pool.servers.items()
            if place == backend and server.state is ServerState.READY and server.weight > 0
        }

    def forget_connections(self) -> None:
        for key, server in self.pool.servers.items():
            self.pool.servers[key] = replace(server, connections=0)

    def open_connections(self) -> None:
        for key, server in self.pool.servers.items():
            self.pool.servers[key] = replace(server, connections=self.rng.randint(0, 1))


def rounds(world: World, targets: Targets) -> Iterator[Plan]:
    """Plan as the ingress does, once per step."""
    while True:
        claims = claim(targets.apps, world.held, occupied(world.pool), world.pool.size)
        world.held = dict(claims.backends)
        yield plan(world.pool, want(targets, world.held))


def carry_out(world: World, todo: Plan) -> Iterator[None]:
    """Do a plan; yields after each step."""
    progress = Progress()
    for phase in todo.phases:
        for operation in progress.possible(phase):
            if not world.do(operation):
                progress.fail(operation)
            yield


def good_names(targets: Targets, host: str) -> set[str]:
    """Servers of the host's app that take requests, by the table."""
    app = targets.hosts.get(host)
    return {name for name, slot in targets.apps.get(app or "", {}).items() if slot.weight > 0}


def settle(world: World, targets: Targets) -> None:
    """Step until nothing is left to do."""
    world.refuses = 0
    for todo, _ in zip(rounds(world, targets), range(20), strict=False):
        if not any(todo.phases):
            return
        for _step in carry_out(world, todo):
            pass
        world.forget_connections()
    raise AssertionError("it does not converge")


def assert_agrees(world: World, targets: Targets) -> None:
    wanted = want(targets, world.held)
    assert world.pool.hosts == wanted.hosts
    assert world.pool.pages == wanted.pages
    assert {key: Slot(server.address, server.weight) for key, server in world.pool.servers.items()} == wanted.servers
    assert all(server.state is ServerState.READY for server in world.pool.servers.values())


@settings(max_examples=250, deadline=None)
@given(st.lists(tables(), min_size=1, max_size=6), st.integers(0, 2**32), st.sampled_from((0.0, 0.0, 0.2)))
def test_any_sequence_of_tables_converges_and_no_step_fails_a_request(
    sequence: list[RouteTable], seed: int, refuses: float
) -> None:
    world = World(rng=random.Random(seed))
    before = Targets()
    for table in sequence:
        after = read_table(table)
        world.refuses = refuses
        steps = rounds(world, after)
        for _ in range(3):
            todo = next(steps)
            for _step in carry_out(world, todo):
                assert_serves(world, before, after)
            world.open_connections()
        world.forget_connections()
        settle(world, after)
        assert_agrees(world, after)
        before = after


def assert_serves(world: World, before: Targets, after: Targets) -> None:
    for host in HOSTS:
        reached = world.reachable(host)
        apps = {targets.hosts[host] for targets in (before, after) if host in targets.hosts}
        own = {name for app in apps for targets in (before, after) for name in targets.apps.get(app, ())}
        assert reached <= own, "a request reaches another app's instance"
        if good_names(before, host) and good_names(after, host):
            assert reached, f"{host} has no server, though it had one before and has one after"


@settings(max_examples=100, deadline=None)
@given(st.lists(tables(), min_size=2, max_size=5))
def test_an_app_that_stays_keeps_its_backend(sequence: list[RouteTable]) -> None:
    world = World()
    served: set[str] = set()
    for table in sequence:
        targets = read_table(table)
        kept = {app: world.held[app] for app in served & targets.apps.keys()}
        settle(world, targets)
        assert {app: world.held[app] for app in kept} == kept
        assert len(set(world.held.values())) == len(world.held), "two apps share a backend"
        served = set(targets.apps)


@settings(max_examples=100, deadline=None)
@given(tables(), st.lists(st.tuples(st.integers(0, SIZE - 1), st.sampled_from(ServerState)), max_size=4))
def test_planted_servers_and_hosts_are_removed(table: RouteTable, planted: list[tuple[int, ServerState]]) -> None:
    world, targets = World(), read_table(table)
    settle(world, targets)
    for number, (index, state) in enumerate(planted):
        world.pool.servers[f"swg_b{index:04d}", f"planted{number}"] = Server("6.6.6.6:1", 100, state, 1)
        world.pool.hosts[f"planted{number}.example"] = f"swg_b{index:04d}"
    world.pool.pages["*"] = "retired"
    world.forget_connections()
    settle(world, targets)
    assert_agrees(world, targets)


def test_a_plan_on_what_is_already_so_is_empty() -> None:
    wanted = Wanted(
        {("swg_b0000", "i"): Slot("10.0.0.1:80", 100)}, {"a.example": "swg_b0000"}, {"b.example": "app-stopped"}
    )
    present = Pool(
        1, {("swg_b0000", "i"): Server("10.0.0.1:80", 100, ServerState.READY)}, dict(wanted.hosts), dict(wanted.pages)
    )
    assert not any(plan(present, wanted).phases)


def test_a_swap_builds_first_then_drains_and_clears_only_what_is_empty() -> None:
    old, new = ("swg_b0000", "old"), ("swg_b0000", "new")
    present = Pool(1, {old: Server("10.0.0.1:80", 100, ServerState.READY, 3)}, {"a.example": "swg_b0000"})
    wanted = Wanted({new: Slot("10.0.0.2:80", 100)}, {"a.example": "swg_b0000"})
    first = plan(present, wanted)
    assert first.build == (AddServer(new, wanted.servers[new]), SetState(new, ServerState.READY))
    assert first.drain == (SetState(old, ServerState.DRAIN),)
    assert first.clear == ()
    for operation in (*first.build, *first.drain):
        apply(present, operation)
    assert plan(present, wanted) == Plan(), "three requests are still in flight"
    present.servers[old] = replace(present.servers[old], connections=0)
    assert plan(present, wanted).clear == (SetState(old, ServerState.MAINT), DeleteServer(old))


def test_what_waits_for_the_dead_vm_of_an_instance_that_has_a_new_one_is_cut() -> None:
    """It would wait for its whole time-out. A server whose instance has left altogether is drained in peace."""
    dead, left, new = (BACKEND, "ins_a.1"), (BACKEND, "ins_b.1"), (BACKEND, "ins_a.2")
    busy = Server("10.0.0.1:80", 100, ServerState.DRAIN, connections=3)
    slot = Slot("10.0.0.2:80", 100)
    present = Pool(1, {dead: busy, left: busy, new: Server(slot.address, 100, ServerState.READY)})
    todo = plan(present, Wanted({new: slot}))
    assert todo == Plan(clear=(CutSessions(dead),))
    apply(present, todo.clear[0])
    assert plan(present, Wanted({new: slot})).clear == (SetState(dead, ServerState.MAINT), DeleteServer(dead))


def test_what_waits_for_a_departed_instance_is_cut_and_its_next_vm_is_spared() -> None:
    former, following, draining = (BACKEND, "ins_a.1"), (BACKEND, "ins_a.2"), (BACKEND, "ins_b.1")
    busy = Server("10.0.0.1:80", 100, ServerState.DRAIN, connections=3)
    present = Pool(1, {former: busy, following: busy, draining: busy})
    assert plan(present, Wanted()) == Plan()
    assert plan(present, Wanted(departed={"ins_a": "ins_a.2"})) == Plan(clear=(CutSessions(former),))
    assert plan(present, Wanted(departed={"ins_a": ""})) == Plan(clear=(CutSessions(former), CutSessions(following)))


def test_an_instance_that_comes_back_while_it_drains_is_simply_made_ready() -> None:
    key = ("swg_b0000", "i")
    present = Pool(1, {key: Server("10.0.0.1:80", 100, ServerState.DRAIN, 1)}, {"a.example": "swg_b0000"})
    wanted = Wanted({key: Slot("10.0.0.1:80", 100)}, {"a.example": "swg_b0000"})
    assert plan(present, wanted) == Plan(build=(SetState(key, ServerState.READY),))


def test_weights_are_raised_before_others_are_lowered() -> None:
    one, two = ("swg_b0000", "one"), ("swg_b0000", "two")
    present = Pool(
        1,
        {one: Server("10.0.0.1:80", 100, ServerState.READY), two: Server("10.0.0.2:80", 0, ServerState.READY)},
        {"a.example": "swg_b0000"},
    )
    wanted = Wanted({one: Slot("10.0.0.1:80", 0), two: Slot("10.0.0.2:80", 100)}, {"a.example": "swg_b0000"})
    todo = plan(present, wanted)
    assert (todo.build, todo.drain) == ((SetWeight(two, 100),), (SetWeight(one, 0),))


def test_a_server_with_our_name_at_a_foreign_address_is_drained_and_later_replaced() -> None:
    key = ("swg_b0000", "i")
    present = Pool(1, {key: Server("6.6.6.6:80", 100, ServerState.READY)}, {"a.example": "swg_b0000"})
    wanted = Wanted({key: Slot("10.0.0.1:80", 100)}, {"a.example": "swg_b0000"})
    for _ in range(4):
        for phase in plan(present, wanted).phases:
            for operation in phase:
                apply(present, operation)
    assert present.servers == {key: Server("10.0.0.1:80", 100, ServerState.READY)}


def test_a_server_that_could_not_be_added_costs_neither_the_route_nor_the_old_server() -> None:
    old, new = ("swg_b0000", "old"), ("swg_b0001", "new")
    todo = plan(
        Pool(2, {old: Server("10.0.0.1:80", 100, ServerState.READY)}, {"a.example": "swg_b0000"}),
        Wanted({new: Slot("10.0.0.2:80", 100)}, {"a.example": "swg_b0001"}),
    )
    progress = Progress()
    progress.fail(todo.build[0])
    assert progress.possible(todo.turn) == []
    assert progress.possible(todo.drain) == []


# --- claims


def test_a_backend_with_a_server_left_in_it_is_given_to_nobody_else() -> None:
    claims = claim(["app_b"], {"app_a": 0}, frozenset({"swg_b0000"}), 2)
    assert claims.backends == {"app_a": 0, "app_b": 1}
    assert claim(["app_b"], {}, frozenset({"swg_b0000"}), 2).backends == {"app_b": 1}, "nor one whose owner is unknown"
    assert claim(["app_b"], {}, frozenset(), 2).backends == {"app_b": 0}


def test_a_backend_is_occupied_by_a_server_and_by_a_host_that_leads_to_it() -> None:
    server = Server("10.0.0.1:80", 100, ServerState.MAINT)
    assert occupied(Pool(4, {("swg_b0001", "i"): server}, {"a.example": "swg_b0002"})) == {"swg_b0001", "swg_b0002"}


def test_apps_that_find_no_backend_wait() -> None:
    claims = claim(["app_a", "app_b"], {"app_c": 0}, frozenset({"swg_b0000"}), 2)
    assert claims.backends == {"app_c": 0, "app_a": 1}
    assert claims.waiting == ("app_b",)


@pytest.mark.parametrize(
    ("servers", "hosts", "kept"),
    [
        ({("swg_b0000", "own")}, {"a.example": "swg_b0000"}, {"app_a": 0}),
        (set(), {}, {"app_a": 0}),
        ({("swg_b0000", "foreign")}, {}, {}),
        ({("swg_b0000", "own")}, {"foreign.example": "swg_b0000"}, {}),
    ],
)
def test_a_claim_on_record_is_believed_only_if_haproxy_bears_it_out(
    servers: set[tuple[str, str]], hosts: dict[str, str], kept: dict[str, int]
) -> None:
    record = Wanted({("swg_b0000", "own"): Slot("10.0.0.1:80", 100)}, {"a.example": "swg_b0000"})
    server = Server("10.0.0.1:80", 100, ServerState.READY)
    present = Pool(4, dict.fromkeys(servers, server), hosts)
    assert confirmed({"app_a": 0}, present, record) == kept


def test_the_pool_doubles_until_all_fit_within_its_limit() -> None:
    assert grown(1024, 0, 32_768) == 1024
    assert grown(1024, 1, 32_768) == 2048
    assert grown(1024, 5000, 32_768) == 8192
    assert grown(1024, 100_000, 32_768) == 32_768


def test_plans_leave_the_pool_they_look_at_as_it_is() -> None:
    present = Pool(1, {("swg_b0000", "i"): Server("10.0.0.1:80", 100, ServerState.READY)}, {"a.example": "swg_b0000"})
    before = copy.deepcopy(present)
    plan(present, Wanted())
    assert present == before
