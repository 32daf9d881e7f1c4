"""For each operation that takes one, a body that makes sense."""

from __future__ import annotations

from typing import Any

IMAGE = "registry.example/hello:v1"

BODIES: dict[str, Any] = {
    "update_app": {"config": {}},
    "scale_app": {"counts": {"web": 2}},
    "restart_app": {},
    "change_env": {"env": {"A": "b"}},
    "create_deployment": {"image": IMAGE},
    "plan_deployment": {"image": IMAGE},
    "rollback_app": {},
    "register_image": {"reference": IMAGE},
    "create_run": {"command": ["true"]},
    "exec_command": {"command": ["true"]},
    "create_token": {"name": "ci"},
    "create_webhook": {"url": "https://hooks.example/", "events": ["app.*"]},
    "update_webhook": {"active": True},
}
