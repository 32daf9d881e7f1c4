"""For each operation that takes one, a body that makes sense.

`BODIES` are of operations that a developer asks about his things; `OF_ACCESS` of those about accounts, organizations and
keys."""

from __future__ import annotations

from typing import Any

IMAGE = "registry.example/hello:v1"

BODIES: dict[str, Any] = {
    "update_app": {"config": {}},
    "scale_app": {"counts": {"web": 2}},
    "restart_app": {},
    "change_env": {"env": {"A": "b"}},
    "change_egress": {"mode": "listed", "allow": [{"network": "203.0.113.0/24"}]},
    "create_group": {"name": "fresh", "allow": [{"source": "project", "protocol": "tcp", "ports": "5432"}]},
    "change_group": {"allow": [{"source": "project", "protocol": "icmp"}]},
    "attach_group": {"app": "shop"},
    "detach_group": {"app": "shop"},
    "create_deployment": {"image": IMAGE},
    "plan_deployment": {"image": IMAGE},
    "rollback_app": {},
    "register_image": {"reference": IMAGE},
    "create_run": {"command": ["true"]},
    "exec_command": {"command": ["true"]},
    "create_token": {"name": "ci"},
    "create_volume": {"name": "fresh", "size": "1gb"},
    "update_volume": {"protected": True},
    "resize_volume": {"size": "2gb"},
    "attach_volume": {"app": "shop", "destination": "/data"},
    "detach_volume": {},
    "move_volume": {"node": "two"},
    "replicate_volume": {"every_s": 60, "node": "two"},
    "create_snapshot": {},
    "restore_volume": {"snapshot": "snap_x"},
    "create_backup": {},
    "publish_port": {"port": 29_999, "target_port": 5432},
    "restore_backup": {"to": "again"},
    "set_backup_policy": {},
    "create_webhook": {"url": "https://hooks.example/", "events": ["app.*"]},
    "update_webhook": {"active": True},
}

OF_ACCESS: dict[str, Any] = {
    "sign_in": {"email": "owner@x", "password": "correct horse battery"},
    "register": {"invitation": "inv_x", "password": "correct horse battery"},
    "create_grant": {"scope": "prj_x", "principal": "usr_x", "role": "viewer"},
    "change_grant": {"role": "viewer"},
    "update_user": {"name": "Ann"},
    "set_password": {"new_password": "correct horse battery"},
    "enrol_totp": {},
    "confirm_totp": {"code": "123456"},
    "disable_totp": {},
    "update_user_of_platform": {"disabled": True},
    "update_node": {"labels": {"disk": "ssd", "gpu": None}, "region": "eu", "zone": "a"},
    "drain_node": {"deadline": 600, "force": True, "parallel": 4, "volumes": True},
    "create_organization": {"name": "fresh"},
    "rename_organization": {"name": "fresh"},
    "create_project": {"name": "fresh"},
    "rename_project": {"name": "fresh"},
    "change_member": {"role": "viewer"},
    "create_service_account": {"name": "fresh"},
    "change_service_account": {"description": "fresh"},
    "create_service_account_token": {"name": "fresh"},
    "create_role": {"name": "fresh", "permissions": ["apps:read"]},
    "change_role": {"name": "fresh"},
    "set_organization_quotas": {"limits": {"apps": 9}},
    "set_project_quotas": {"limits": {"apps": 9}},
    "create_invitation": {"email": "ann@x", "role": "viewer"},
    "accept_invitation": {"invitation": "inv_x"},
    "create_secret": {"name": "FRESH", "value": "x"},
    "rotate_secret": {"value": "x"},
    "retire_master_key": {"name": "memory:0"},
    "create_join_token": {"region": "north"},
}
