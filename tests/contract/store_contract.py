"""What every store must do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from shellwego.core.apps import App
from shellwego.core.errors import ConflictError, InvalidError, NotFoundError, StaleError, UnavailableError
from shellwego.core.events import Counter, Event
from shellwego.core.instances import Instance, Phase
from shellwego.core.nodes import Node
from shellwego.core.tenancy import Token, User
from shellwego.ports.store import Op, Order, Scalar, Store, Transaction, Where, eq, within
from tests.contract.store_samples import SAMPLES, app, user

T = TypeVar("T")


def names(apps: list[App]) -> list[str]:
    return [found.name for found in apps]


async def insert(store: Store, *apps: App) -> None:
    await store.transact(lambda tx: [tx.apps.insert(one) for one in apps])


async def select_names(
    store: Store, *conditions: Where, order: Order | None = None, limit: int | None = None
) -> list[str]:
    return names(await store.read(lambda tx: tx.apps.select(*conditions, order=order or Order(), limit=limit)))


class StoreContract:
    """Inherit, and give a fixture `store`."""

    @pytest.mark.parametrize("table", SAMPLES)
    async def test_every_kind_of_entity_comes_back_as_it_went_in(self, store: Store, table: str) -> None:
        sample = SAMPLES[table]
        await store.transact(lambda tx: getattr(tx, table).insert(sample))
        assert await store.read(lambda tx: getattr(tx, table).get(getattr(sample, "id"))) == sample  # noqa: B009
        assert await store.read(lambda tx: getattr(tx, table).select()) == [sample]

    async def test_what_is_not_there_is_none(self, store: Store) -> None:
        assert await store.read(lambda tx: tx.users.get("usr_x")) is None

    async def test_a_transaction_returns_what_its_function_returned(self, store: Store) -> None:
        assert await store.transact(lambda tx: 42) == 42

    async def test_an_exception_undoes_the_whole_of_a_transaction(self, store: Store) -> None:
        await store.transact(lambda tx: [tx.users.insert(user("kept")), tx.users.insert(user("old"))])

        def fail(tx: Transaction) -> None:
            tx.users.insert(user("a"))
            tx.users.update(replace(user("kept"), email="changed@example.org"))
            tx.users.delete("usr_old")
            tx.users.insert(replace(user("old"), id="usr_new"))
            tx.next("routes")
            raise LookupError("the use case changed its mind")

        with pytest.raises(LookupError, match="changed its mind"):
            await store.transact(fail)
        assert await store.read(lambda tx: tx.users.select()) == [user("kept"), user("old")]
        assert await store.read(lambda tx: tx.counters.select()) == []

    async def test_a_transaction_sees_its_own_writes(self, store: Store) -> None:
        def work(tx: Transaction) -> list[str]:
            tx.users.insert(user("a"))
            tx.users.insert(user("b"))
            tx.users.delete("usr_a")
            return [found.id for found in tx.users.select()]

        assert await store.transact(work) == ["usr_b"]

    async def test_concurrent_changes_of_one_row_lose_nothing(self, store: Store) -> None:
        await store.transact(lambda tx: tx.counters.insert(Counter(id="n", value=0)))

        def add_one(tx: Transaction) -> None:
            counter = tx.counters.get("n")
            assert counter
            tx.counters.update(replace(counter, value=counter.value + 1))

        await asyncio.gather(*(store.transact(add_one) for _ in range(50)))
        assert await store.read(lambda tx: tx.counters.get("n")) == Counter(id="n", value=50, version=51)

    async def test_a_reader_never_sees_half_of_a_transaction(self, store: Store) -> None:
        await store.transact(lambda tx: [tx.counters.insert(Counter(id=id_, value=50)) for id_ in "ab"])

        def move(tx: Transaction) -> None:
            for id_, change in (("a", 1), ("b", -1)):
                counter = tx.counters.get(id_)
                assert counter
                tx.counters.update(replace(counter, value=counter.value + change))

        def total(tx: Transaction) -> int:
            return sum(counter.value for counter in tx.counters.select())

        totals, _ = await asyncio.gather(
            asyncio.gather(*(store.read(total) for _ in range(40))),
            asyncio.gather(*(store.transact(move) for _ in range(40))),
        )
        assert set(totals) == {100}

    async def test_one_that_fails_among_many_undoes_only_itself(self, store: Store) -> None:
        def work(number: int) -> Callable[[Transaction], User]:
            def insert_one(tx: Transaction) -> User:
                inserted = tx.users.insert(user(f"{number:03}"))
                if number == 17:
                    raise LookupError("the bad one")
                return inserted

            return insert_one

        results = await asyncio.gather(*(store.transact(work(n)) for n in range(60)), return_exceptions=True)
        assert [n for n, result in enumerate(results) if isinstance(result, LookupError)] == [17]
        stored = await store.read(lambda tx: tx.users.select())
        assert [one.id for one in stored] == [f"usr_{n:03}" for n in range(60) if n != 17]

    async def test_a_caller_that_leaves_disturbs_nobody(self, store: Store) -> None:
        leaving = asyncio.ensure_future(store.transact(lambda tx: tx.users.insert(user("a"))))
        await asyncio.sleep(0)
        leaving.cancel()
        await store.transact(lambda tx: tx.users.insert(user("b")))
        assert await store.read(lambda tx: tx.users.get("usr_b"))

    async def test_a_second_row_with_the_same_id_is_refused(self, store: Store) -> None:
        await store.transact(lambda tx: tx.users.insert(user("a")))
        with pytest.raises(ConflictError) as caught:
            await store.transact(lambda tx: tx.users.insert(replace(user("b"), id="usr_a")))
        assert caught.value.errors[0].field == "id"

    async def test_a_unique_key_that_is_taken_is_refused_and_its_field_named(self, store: Store) -> None:
        await insert(store, app("shop"))
        twin = replace(app("shop"), id="app_twin", hostname="other")
        with pytest.raises(ConflictError) as caught:
            await insert(store, twin)
        assert caught.value.errors[0].field == "name"
        with pytest.raises(ConflictError) as caught:
            await insert(store, replace(app("other"), hostname="shop.prj_1"))
        assert caught.value.errors[0].field == "hostname"
        await insert(store, app("shop", project="prj_2"))

    async def test_a_field_that_is_unique_if_given_may_be_empty_in_many_rows(self, store: Store) -> None:
        def put(name: str, subnet: str) -> Callable[[Transaction], object]:
            sample = SAMPLES["nodes"]
            assert isinstance(sample, Node)
            return lambda tx: tx.nodes.insert(replace(sample, id=f"node_{name}", name=name, subnet=subnet))

        for name, subnet in (("a", ""), ("b", ""), ("c", "10.64.0.0/20")):
            await store.transact(put(name, subnet))
        with pytest.raises(ConflictError) as caught:
            await store.transact(put("d", "10.64.0.0/20"))
        assert caught.value.errors[0].field == "subnet"
        await store.transact(lambda tx: tx.nodes.delete("node_c"))
        await store.transact(put("d", "10.64.0.0/20"))

    async def test_the_refusal_of_a_unique_key_does_not_tell_its_value(self, store: Store) -> None:
        token = SAMPLES["tokens"]
        assert isinstance(token, Token)
        await store.transact(lambda tx: tx.tokens.insert(replace(token, secret_hash="deadbeef")))
        with pytest.raises(ConflictError) as caught:
            await store.transact(lambda tx: tx.tokens.insert(replace(token, id="tok_2", secret_hash="deadbeef")))
        assert "deadbeef" not in f"{caught.value.message} {caught.value.errors}"

    async def test_an_update_cannot_take_a_unique_key_either(self, store: Store) -> None:
        await store.transact(lambda tx: [tx.users.insert(user("a")), tx.users.insert(user("b"))])
        with pytest.raises(ConflictError):
            await store.transact(lambda tx: tx.users.update(replace(user("b"), email=user("a").email)))
        await store.transact(lambda tx: tx.users.update(user("b")))

    async def test_a_unique_key_is_free_again_when_its_row_gave_it_up(self, store: Store) -> None:
        await store.transact(lambda tx: [tx.users.insert(user("a")), tx.users.insert(user("b"))])
        await store.transact(lambda tx: tx.users.delete("usr_a"))
        await store.transact(lambda tx: tx.users.update(replace(user("b"), email="c@example.org")))
        await store.transact(
            lambda tx: [tx.users.insert(replace(user(n), id=f"usr_2{n}")) for n in ("a", "b")],
        )

    async def test_a_refused_write_leaves_the_transaction_usable(self, store: Store) -> None:
        await store.transact(lambda tx: [tx.users.insert(user("a")), tx.users.insert(user("b"))])

        def work(tx: Transaction) -> list[str]:
            tx.users.insert(user("c"))
            with pytest.raises(ConflictError):
                tx.users.insert(user("a"))
            with pytest.raises(ConflictError):
                tx.users.update(replace(user("b"), email=user("a").email))
            tx.users.insert(user("d"))
            return [found.id for found in tx.users.select()]

        assert await store.transact(work) == ["usr_a", "usr_b", "usr_c", "usr_d"]
        assert await store.read(lambda tx: tx.users.count()) == 4

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"name": "a\0b"}, "name"),
            ({"name": "\ud800"}, "name"),
            ({"hostname": "h" * 1025}, "hostname"),
            ({"release_id": "r\0"}, "release_id"),
            ({"id": "app_" + "x" * 1024}, "id"),
            ({"generation": 1 << 31}, "generation"),
            ({"version": 1 << 63}, "version"),
            ({"created_at": float("nan")}, "created_at"),
        ],
    )
    async def test_a_value_that_not_every_database_can_hold_is_refused_and_its_field_named(
        self, store: Store, change: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(InvalidError) as caught:
            await store.transact(lambda tx: [tx.users.insert(user("a")), tx.apps.insert(replace(app("a"), **change))])
        assert (caught.value.code, caught.value.errors[0].field) == ("not-storable", field)
        assert await store.read(lambda tx: (tx.apps.count(), tx.users.count())) == (0, 0)

    async def test_a_change_to_such_a_value_is_refused_too(self, store: Store) -> None:
        await insert(store, app("a"))
        with pytest.raises(InvalidError) as caught:
            await store.transact(lambda tx: tx.apps.update(replace(app("a"), name="a\0b")))
        assert caught.value.errors[0].field == "name"
        assert await select_names(store) == ["a"]

    async def test_the_longest_texts_of_an_index_can_be_held(self, store: Store) -> None:
        longest = "".join(chr(0x4E00 + n * 37 % 20000) for n in range(341))
        await insert(store, replace(app("x"), id=f"{longest}x", project_id=longest, name=longest, hostname=longest))
        assert await select_names(store, eq("name", longest)) == [longest]

    @pytest.mark.parametrize("value", ["a\0", "\ud800"])
    async def test_what_no_row_can_hold_is_found_nowhere(self, store: Store, value: str) -> None:
        await insert(store, app("a"))
        assert await store.read(lambda tx: tx.apps.get(value)) is None
        assert await select_names(store, eq("name", value)) == []
        assert await select_names(store, Where("name", Op.CONTAINS, value)) == []
        assert await select_names(store, within("name", [value, "a"])) == ["a"]
        assert await store.read(lambda tx: tx.apps.count(eq("name", value))) == 0
        assert await store.read(lambda tx: tx.releases.count(eq("number", 1 << 40))) == 0
        with pytest.raises(NotFoundError):
            await store.transact(lambda tx: tx.apps.delete(value))

    async def test_what_lies_beyond_a_value_that_no_row_can_hold_is_refused_by_name(self, store: Store) -> None:
        for ask in (
            lambda tx: tx.apps.select(Where("name", Op.GT, "a\0")),
            lambda tx: tx.apps.count(Where("name", Op.LTE, "a\0")),
            lambda tx: tx.apps.select(order=Order("name"), after=("a\0", "")),
            lambda tx: tx.apps.select(order=Order("name"), after=("a", "\0")),
            lambda tx: tx.events.select(Where("seq", Op.GT, 1 << 64)),
        ):
            with pytest.raises(InvalidError) as caught:
                await store.read(ask)
            assert caught.value.code == "not-storable"

    async def test_text_sorts_by_code_points(self, store: Store) -> None:
        given = ["Zoe", "a-b", "a_b", "ab", "a b", "B", "Ä", "z", "10", "9", "～", "\U0001f600"]
        await insert(store, *(app(name) for name in given))
        rows = await store.read(lambda tx: tx.apps.select(order=Order("name")))
        assert names(rows) == sorted(given)
        assert await select_names(store, Where("name", Op.GT, "a"), order=Order("name")) == [
            name for name in sorted(given) if name > "a"
        ]

    async def test_time_stands_still_within_a_transaction(self, store: Store) -> None:
        first, second = await store.transact(lambda tx: (tx.now(), (tx.users.insert(user("a")), tx.now())[1]))
        assert first == second
        assert await store.read(lambda tx: tx.now()) >= first

    @pytest.mark.parametrize("kind", ["transact", "read"])
    async def test_a_function_that_raises_stop_iteration_does_not_hang_its_caller(
        self, store: Store, kind: str
    ) -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await getattr(store, kind)(lambda tx: next(iter(tx.users.select())))

    async def test_an_update_raises_the_version(self, store: Store) -> None:
        await store.transact(lambda tx: tx.users.insert(user("a")))
        updated = await store.transact(lambda tx: tx.users.update(replace(user("a"), email="x@example.org")))
        assert updated == replace(user("a"), email="x@example.org", version=2)
        assert await store.read(lambda tx: tx.users.get("usr_a")) == updated

    async def test_an_update_of_another_version_is_stale(self, store: Store) -> None:
        await store.transact(lambda tx: tx.users.insert(user("a")))
        await store.transact(lambda tx: tx.users.update(user("a")))
        with pytest.raises(StaleError):
            await store.transact(lambda tx: tx.users.update(replace(user("a"), email="x@example.org")))
        with pytest.raises(StaleError):
            await store.transact(lambda tx: tx.users.update(replace(user("a"), version=3)))
        assert await store.read(lambda tx: tx.users.get("usr_a")) == replace(user("a"), version=2)

    async def test_entities_without_a_version_are_simply_replaced(self, store: Store) -> None:
        event = SAMPLES["events"]
        assert isinstance(event, Event)
        await store.transact(lambda tx: tx.events.insert(event))
        await store.transact(lambda tx: tx.events.update(replace(event, seq=9)))
        assert await store.read(lambda tx: tx.events.get(event.id)) == replace(event, seq=9)

    async def test_updating_or_deleting_what_is_not_there_is_an_error(self, store: Store) -> None:
        with pytest.raises(NotFoundError):
            await store.transact(lambda tx: tx.users.update(user("x")))
        with pytest.raises(NotFoundError):
            await store.transact(lambda tx: tx.users.delete("usr_x"))

    @pytest.mark.parametrize(
        ("where", "found"),
        [
            (eq("name", "b"), ["b"]),
            (eq("deleting", False), ["a", "b", "c", "d"]),
            (within("name", ["a", "d", "x"]), ["a", "d"]),
            (within("name", []), []),
            (Where("created_at", Op.GT, 2.0), ["c", "d"]),
            (Where("created_at", Op.GTE, 2.0), ["b", "c", "d"]),
            (Where("created_at", Op.LT, 3), ["a", "b"]),
            (Where("created_at", Op.LTE, 3.0), ["a", "b", "c"]),
        ],
    )
    async def test_a_condition_selects_the_rows_that_fulfil_it(
        self, store: Store, where: Where, found: list[str]
    ) -> None:
        await insert(store, *(app(name, created_at=at) for at, name in enumerate("abcd", start=1)))
        assert await select_names(store, where) == found
        assert await store.read(lambda tx: tx.apps.count(where)) == len(found)

    async def test_all_conditions_must_hold(self, store: Store) -> None:
        await insert(store, app("a"), app("b"), app("a", project="prj_2"))
        assert await select_names(store, eq("project_id", "prj_1"), eq("name", "a")) == ["a"]

    @pytest.mark.parametrize(
        ("part", "found"),
        [
            ("SHOP", ["shop", "workshop"]),
            ("ört", ["Örtchen"]),
            ("%", ["100%"]),
            ("_", ["a_b"]),
            ("\\", []),
            ("", ["100%", "a_b", "shop", "workshop", "Örtchen"]),
        ],
    )
    async def test_contains_ignores_case_and_takes_every_character_as_itself(
        self, store: Store, part: str, found: list[str]
    ) -> None:
        await insert(store, *(app(name) for name in ("shop", "workshop", "100%", "a_b", "Örtchen")))
        assert await select_names(store, Where("name", Op.CONTAINS, part)) == found

    @pytest.mark.parametrize("descending", [False, True])
    async def test_pages_go_through_all_rows_once_also_where_values_are_equal(
        self, store: Store, descending: bool
    ) -> None:
        apps = [app(f"{n:02}", created_at=float(n // 4)) for n in range(11)]
        await insert(store, *apps)
        order = Order("created_at", descending=descending)
        seen: list[App] = []
        after: tuple[Scalar, str] | None = None
        while True:
            from_here = after

            def page(tx: Transaction, start: tuple[Scalar, str] | None = from_here) -> list[App]:
                return tx.apps.select(order=order, limit=3, after=start)

            rows = await store.read(page)
            if not rows:
                break
            seen += rows
            after = (rows[-1].created_at, rows[-1].id)
        assert names(seen) == [f"{n:02}" for n in (reversed(range(11)) if descending else range(11))]

    async def test_rows_are_counted_and_summed_by_a_field(self, store: Store) -> None:
        sample = SAMPLES["instances"]
        assert isinstance(sample, Instance)
        rows = [
            replace(sample, id=f"ins_{number}", node_id=node, phase=phase, cpu_milli=number)
            for number, (node, phase) in enumerate(
                [("", Phase.PENDING), ("one", Phase.HEALTHY), ("two", Phase.LOST), ("one", Phase.HEALTHY)]
            )
        ]
        await store.transact(lambda tx: [tx.instances.insert(row) for row in rows])
        amounts = ("cpu_milli", "disk_bytes")

        def healthy(tx: Transaction) -> dict[str, tuple[int, ...]]:
            return tx.instances.sums("node_id", amounts, eq("phase", Phase.HEALTHY))

        assert await store.read(healthy) == {"one": (2, 4, 2 << 42)}
        found = await store.read(lambda tx: tx.instances.sums("node_id", amounts))
        assert found == {"": (1, 0, 1 << 42), "one": (2, 4, 2 << 42), "two": (1, 2, 1 << 42)}
        assert await store.read(lambda tx: tx.instances.sums("node_id", (), eq("node_id", "three"))) == {}
        assert await store.read(lambda tx: tx.instances.sums("node_id", (), eq("node_id", "\0"))) == {}
        with pytest.raises(ValueError, match="process"):
            await store.read(lambda tx: tx.instances.sums("process", amounts))

    async def test_only_fields_with_an_index_can_be_asked_for(self, store: Store) -> None:
        with pytest.raises(ValueError, match="config"):
            await store.read(lambda tx: tx.apps.select(eq("config", "x")))
        with pytest.raises(ValueError, match="updated_at"):
            await store.read(lambda tx: tx.apps.select(order=Order("updated_at")))
        with pytest.raises(ValueError, match="stopped"):
            await store.read(lambda tx: tx.apps.count(eq("stopped", True)))

    async def test_a_counter_only_rises(self, store: Store) -> None:
        numbers = await asyncio.gather(*(store.transact(lambda tx: tx.next("events")) for _ in range(20)))
        assert sorted(numbers) == list(range(1, 21))
        assert await store.transact(lambda tx: tx.next("routes")) == 1
        assert await store.transact(lambda tx: [tx.next("events"), tx.next("events")]) == [21, 22]

    @pytest.mark.parametrize(
        "write",
        [
            lambda tx: tx.users.insert(user("b")),
            lambda tx: tx.users.update(user("a")),
            lambda tx: tx.users.delete("usr_a"),
            lambda tx: tx.next("routes"),
        ],
    )
    async def test_a_read_cannot_write(self, store: Store, write: Callable[[Transaction], object]) -> None:
        await store.transact(lambda tx: tx.users.insert(user("a")))
        with pytest.raises(RuntimeError, match="must not write"):
            await store.read(write)
        assert await store.read(lambda tx: (tx.users.select(), tx.counters.select())) == ([user("a")], [])

    async def test_a_transaction_that_is_over_cannot_be_used(self, store: Store) -> None:
        kept: list[Transaction] = []
        await store.transact(kept.append)
        await store.read(kept.append)
        for tx in kept:
            with pytest.raises(RuntimeError, match="over"):
                tx.users.get("usr_a")
            with pytest.raises(RuntimeError, match="over"):
                tx.users.select()

    async def test_a_closed_store_says_so(self, store: Store) -> None:
        await store.close()
        with pytest.raises(UnavailableError):
            await store.transact(lambda tx: tx.users.insert(user("a")))
        with pytest.raises(UnavailableError):
            await store.read(lambda tx: tx.users.select())
