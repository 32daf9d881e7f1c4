"""A tenant whose words are commands, paths, rules and templates. Where they get in is declared here, field by field; what
gets in is in nothing that the platform hands to another program, and in the name of no file.

That real programs on a real host see nothing of them is shown by `tests/real/test_platform_hostile.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shellwego.drivers.clock.system import SystemClock
from tests.api.api_world import Answer, World, make_world
from tests.api.matrix import OPERATIONS, Operation
from tests.api.node_world import NodeWorld, node_world
from tests.api.test_api_hostile import WITH_BODY, Target
from tests.api.words import BRIEF, CLIMBING, MARK, TEXT, listening, places, put, whole
from tests.fuzz.api_things import make_request

CONFIG = {
    *(f"config.processes.web.{field}" for field in ("command.0", "entrypoint.0", "env.A")),
    *("config.release_command.0", "config.remove_processes.0"),
}
LETS_IN = {
    *(f"{operation} {field}" for operation in ("create_app", "update_app", "create_deployment") for field in CONFIG),
    *(f"{operation} config.checks.1.command.0" for operation in ("create_app", "update_app")),
    *("create_app env.A", "change_env env.A", "create_deployment env.A", "create_run command.0"),
    *("create_deployment command.0", "plan_deployment command.0"),
    *(f"{each}_deployment description" for each in ("create", "plan")),
    *("restart_app description", "rollback_app description"),
    *("create_snapshot description", "create_backup description", "update_user name"),
    *(f"{each}_service_account description" for each in ("create", "change")),
    *("create_service_account_token name", "create_token name"),
    *("create_secret value", "create_secret description", "create_secret metadata.a", "rotate_secret value"),
    *("set_password old_password", "enrol_totp password", "disable_totp password", "disable_totp code", "sign_in totp"),
    *("sign_in name", "register name", "register token_name"),
}
"""Texts of the tenant's own. Proofs of who one is are compared only; a process to remove is one that there is not."""
NOBODY_ANSWERS = {"exec_command"}
"""No agent runs here; what is run there is the guest's to read."""
SHORT_FOR = {"check_path": "checks[0].path"}
UNKNOWN = (401, 404, 429)
"""What is asked for by a name, or with a secret, of which there is none."""


def names(answer: Answer, place: str) -> bool:
    """Whether a refusal points at the place: the field, or that of the first level in which it is."""
    parts = [SHORT_FOR.get(part, part) for part in place.split(".") if not part.isdigit()]
    return any(part in error["field"] for error in answer.json["errors"] for part in parts)


async def let_in(world: World, operation: Operation, words: str) -> set[str]:
    """The places in a body of this operation in which these words are taken; all others refuse them and say where."""
    found: set[str] = set()
    target = Target(world, operation, await make_request(world, operation))
    for place in places(whole(operation.name, target.asked.body), target.fields):
        answer = await target.send(body=put(whole(operation.name, target.asked.body), place, words))
        told = ".".join(map(str, place))
        if answer.status < 300:
            found.add(f"{operation.name} {told}")
            target = Target(world, operation, await make_request(world, operation))
        elif answer.status not in UNKNOWN and operation.name not in NOBODY_ANSWERS:
            assert answer.status in (400, 422), (operation.name, told, answer.content)
            assert names(answer, told), (operation.name, told, answer.content)
    return found


async def test_words_get_in_where_they_are_a_text_of_the_tenants_and_nowhere_else(world: World) -> None:
    found = [await let_in(world, operation, BRIEF) for operation in WITH_BODY]
    assert set().union(*found) == LETS_IN


async def test_a_way_up_gets_in_nowhere_else_where_signs_of_paths_do(world: World) -> None:
    placing = [
        each for each in OPERATIONS if each.name in ("create_app", "update_app", "update_node", "create_join_token")
    ]
    found = [await let_in(world, operation, CLIMBING) for operation in placing]
    assert set().union(*found) <= LETS_IN


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeWorld]:
    world = await make_world(tmp_path / "spool", clock=SystemClock())
    made = await node_world(world, tmp_path / "node")
    yield made
    await made.close()


async def deployed(node: NodeWorld, name: str) -> Any:
    """An app with the words wherever they are let in, rolled out; its deployment."""
    check = {"type": "exec", "process": "web", "command": ["/app", TEXT]}
    web = {"command": ["/app", TEXT], "env": {"WORDS": TEXT}}
    release = {"processes": {"web": web}, "checks": [check], "remove_processes": [BRIEF]}
    env = {"TRICK": TEXT, "S": {"secret": "S"}}
    await node.world.made("/v1/apps", {"name": name, "env": env, "config": release})
    body = {"image": "registry.example/hello:v1", "port": 8080, "description": TEXT[:500]}
    path = f"/v1/apps/{name}/deployments"
    begun = await node.world.made(path, body)

    async def over() -> Any:
        seen = (await node.world.get(f"{path}/{begun['id']}")).json
        return seen if seen["state"] in ("succeeded", "failed") else None

    return await node.until(over, f"{name} is rolled out")


async def ran(node: NodeWorld, *command: str) -> None:
    """A command of its own in the app."""
    run = await node.world.made("/v1/apps/shop/runs", {"command": command})

    async def runs() -> bool:
        answer = await node.world.get(f"/v1/apps/shop/instances/{run['id']}")
        return answer.json["phase"] in ("healthy", "stopped")

    await node.until(runs, "the command runs")


async def test_what_gets_in_is_handed_to_no_program_and_names_no_file(node: NodeWorld) -> None:
    node.world.images.publish("registry.example/hello:v1")
    secret = {"name": "S", "value": TEXT, "description": TEXT[:500], "metadata": {"k": TEXT[:200]}}
    await node.world.made("/v1/secrets", secret)
    with listening() as heard:
        (node.directory / f"planted-{MARK}").mkdir()
        assert len(heard) == 1, "what is looked for would be found"
        assert (await deployed(node, "shop"))["state"] == "succeeded"
        await ran(node, "/app", TEXT)
        handed = await node.for_others()
    assert heard[1:] == []
    assert [name for name, text in handed.items() if MARK in text] == []
    assert all(handed.values()), "each was handed something"
