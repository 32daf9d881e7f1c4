"""One entity of each kind, with values that are easily lost on the way to a database and back."""

from __future__ import annotations

from shellwego.core.apps import App, AppConfig, Check, CheckKind, Process, Release, RestartMode, RestartPolicy, Service
from shellwego.core.buskeys import BusKey
from shellwego.core.credentials import Credentials
from shellwego.core.deployments import Deployment, DeploymentState, Stage
from shellwego.core.envelope import DataKey, MasterKey, SealedValue
from shellwego.core.events import AuditRecord, Counter, Event, IdempotencyRecord, LoopLease
from shellwego.core.images import Image, ImageState
from shellwego.core.instances import Desired, Instance, Observed, Phase
from shellwego.core.invitations import Invitation
from shellwego.core.joins import JoinToken, MemberKind, NodeAuthority, NodeKey
from shellwego.core.nodes import Backend, DrainOrder, Node, NodeFacts, Scheduling
from shellwego.core.quota import Quota
from shellwego.core.routing import Edge
from shellwego.core.secrets import Secret, SecretRef, SecretVersion
from shellwego.core.servers import Server
from shellwego.core.tenancy import Grant, Organization, Project, Role, ServiceAccount, Token, TokenKind, TokenUse, User
from shellwego.core.webhooks import Attempt, Delivery, DeliveryState, Webhook

CONFIG = AppConfig(
    image="hello:v1",
    env={"GREETING": "héllo “you”\n", "EMPTY": ""},
    secrets={"DB_URL": SecretRef(secret="DB_URL", secret_id="sec_1", number=3)},
    processes=(
        Process(command=("serve", ""), entrypoint=(), restart=RestartPolicy(mode=RestartMode.NEVER), stop_grace_s=0.5),
        Process(name="worker", memory_bytes=1 << 40),
    ),
    services=(Service(port=8080),),
    checks=(Check(kind=CheckKind.HTTP, path="/health", interval_s=0.25),),
    backend="kvm",
)
FACTS = NodeFacts(
    hostname="one",
    version="1",
    cpu_milli=2000,
    memory_bytes=1 << 34,
    disk_bytes=1 << 50,
    backends=(Backend(name="kvm", status="ready"),),
    warnings=("the CPU is emulated",),
)
SAMPLES: dict[str, object] = {
    "organizations": Organization(id="org_1", name="acme", plan="free", created_at=1.5),
    "projects": Project(id="prj_1", organization_id="org_1", name="p", network_id="n", first=True, created_at=1.5),
    "users": User(id="usr_1", email="a@b.example", created_at=1.5),
    "credentials": Credentials(
        id="usr_1",
        password_hash="$argon2id$",
        password_at=1.5,
        totp_sealed=SealedValue(key_id="dek_1", nonce=b"n", ciphertext=b"c"),
        totp_on=True,
        totp_step=1 << 40,
        recovery_hashes=("a", "b"),
        known_sources=("c",),
    ),
    "invitations": Invitation(
        id="ivt_1",
        organization_id="org_1",
        email="a@b.example",
        role="viewer",
        secret_hash="6f",
        invited_by="usr_1",
        created_at=1.5,
        expires_at=2.5,
        revoked_at=2.0,
    ),
    "tokens": Token(
        id="tok_1",
        kind=TokenKind.SERVICE,
        principal_id="usr_1",
        name="ci",
        secret_hash="5f",
        scopes=("apps:read", "apps:write"),
        created_at=1.5,
        expires_at=None,
        revoked_at=2.5,
        parent_id="tok_0",
        resources=("prj_1",),
    ),
    "token_uses": TokenUse(id="tok_1", used_at=1.5),
    "grants": Grant(id="grt_1", principal_id="usr_1", role="owner", scope_id="", created_at=1.5),
    "service_accounts": ServiceAccount(
        id="svc_1", organization_id="org_1", name="ci", description="the pipeline", created_at=1.5
    ),
    "roles": Role(
        id="rol_1",
        organization_id="org_1",
        name="deployer",
        permissions=("apps:read", "deployments:write"),
        created_at=1.5,
    ),
    "quotas": Quota(id="org_1", limits={"apps": 0, "memory": 1 << 40, "cpu": None}, created_at=1.5),
    "apps": App(
        id="app_1",
        project_id="prj_1",
        name="hello",
        hostname="hello.localhost",
        config=CONFIG,
        counts={"web": 3, "worker": 0},
        created_at=1.5,
        updated_at=2.5,
    ),
    "releases": Release(
        id="rel_1",
        app_id="app_1",
        number=7,
        config=CONFIG,
        image_digest="sha256:0",
        content_hash="ab",
        created_at=1.5,
        created_by="usr_1",
    ),
    "deployments": Deployment(
        id="dep_1",
        app_id="app_1",
        release_id="rel_1",
        state=DeploymentState.FAILED,
        stage=Stage.CHECKING,
        strategy="rolling",
        rollback_on_failure=True,
        wait_timeout_s=300.0,
        log_tail=("one", "two"),
        created_at=1.5,
        created_by="usr_1",
        started_at=2.0,
    ),
    "instances": Instance(
        id="ins_1",
        app_id="app_1",
        process="web",
        slot=2,
        release_id="rel_1",
        content_hash="ab",
        generation=1,
        command=("sh", "-c", "true"),
        memory_bytes=1 << 40,
        cpu_milli=500,
        disk_bytes=1 << 42,
        desired=Desired.DRAIN,
        phase=Phase.HEALTHY,
        observed=Observed(phase=Phase.FAILED, exit_code=-1, log_tail=("x",), epoch=3, sequence=1 << 40),
        routed_version=0,
        unrouted_version=0,
        created_at=1.5,
        phase_since=1.5,
    ),
    "nodes": Node(
        id="node_1",
        name="one",
        labels={"disk": "ssd"},
        facts=FACTS,
        scheduling=Scheduling.DRAINING,
        drain=DrainOrder(since=1.5, deadline=2.5, force=True, parallel=3),
        last_heard_at=1.5,
        ready_since=0.5,
        downs=(0.25, 0.5),
        flapping_since=0.5,
        unreached="nobody — “say so”",
        created_at=1.5,
    ),
    "join_tokens": JoinToken(
        id="jtk_1",
        kind=MemberKind.EDGE,
        name="one",
        labels={"disk": "ssd"},
        secret_hash="4f",
        created_by="usr_1",
        created_at=1.5,
        expires_at=2.5,
        used_at=2.0,
        used_by="edg_1",
        used_key="ab",
    ),
    "node_keys": NodeKey(
        id="nky_1",
        fingerprint="ab",
        member_id="edg_1",
        kind=MemberKind.EDGE,
        token_id="jtk_1",
        authority_id="nca_1",
        created_at=1.5,
        expires_at=2.5,
        retired_at=2.0,
    ),
    "node_authorities": NodeAuthority(
        id="nca_1",
        certificate="-----BEGIN CERTIFICATE-----\n",
        fingerprint="cd",
        sealed=SealedValue(key_id="dek_2", nonce=b"n", ciphertext=b"c"),
        created_at=1.5,
        expires_at=2.5,
    ),
    "servers": Server(id="i1", urls=("https://one.example:7081", "https://two.example:7081"), seen_at=1.5),
    "bus_keys": BusKey(id="bky_1", public_key="UA", member_id="edg_1", created_at=1.5, expires_at=2.5, revoked_at=0.5),
    "images": Image(
        id="img_1",
        project_id="prj_1",
        reference="hello:v1",
        digest="sha256:0",
        state=ImageState.READY,
        size_bytes=1 << 40,
        exposed_ports=(80, 443),
        created_at=1.5,
    ),
    "edges": Edge(id="edg_1", name="one", open_sessions={"ins_1": 4}, lease_until=9.5, created_at=1.5),
    "events": Event(id="evt_1", time=1.5, type="app.created", resource="app_1", data={"name": "hello"}),
    "audit": AuditRecord(id="aud_1", time=1.5, actor="usr_1", action="apps:write", resource="app_1", allowed=False),
    "webhooks": Webhook(
        id="whk_1",
        organization_id="org_1",
        url="https://example.org/hook",
        events=("app.*",),
        sealed_secret=SealedValue(key_id="dek_1", nonce=b"n", ciphertext=b"c"),
        since_seq=1 << 40,
        failing_since=1.5,
        created_at=1.5,
    ),
    "deliveries": Delivery(
        id="dlv_1",
        webhook_id="whk_1",
        event_id="evt_1",
        seq=1 << 40,
        type="app.created",
        body="{}",
        state=DeliveryState.WAITING,
        attempts=(Attempt(1.5, None, "no answer", 10.0), Attempt(9.5, 503, "", 0.5)),
        next_at=9.5,
        created_at=1.5,
    ),
    "idempotency": IdempotencyRecord(id="idm_1", request_hash="ff", status=201, body="{}", created_at=1.5),
    "counters": Counter(id="routes", value=1 << 40),
    "leases": LoopLease(id="rollout", holder="one", until=9.5),
    "secrets": Secret(
        id="sec_1",
        project_id="prj_1",
        name="DB_URL",
        description="of the shop",
        metadata={"team": "shop"},
        data_key_id="dek_1",
        latest=3,
        created_at=1.5,
        updated_at=2.5,
        created_by="usr_1",
    ),
    "secret_versions": SecretVersion(
        id="sev_1",
        secret_id="sec_1",
        number=3,
        sealed=SealedValue(key_id="dek_1", nonce=b"\x00" * 12, ciphertext=bytes(range(256))),
        size_bytes=240,
        created_at=1.5,
        created_by="usr_1",
        expires_at=9.5,
    ),
    "data_keys": DataKey(
        id="dek_1",
        purpose="secret",
        subject="sec_1",
        organization_id="org_1",
        project_id="prj_1",
        master_key="local-1:2",
        wrapped=b"\xff\x00",
        created_at=1.5,
        wrapped_at=2.5,
    ),
    "master_keys": MasterKey(id="local-1:2", created_at=1.5, retired_at=2.5),
}


def user(name: str, created_at: float = 1.0) -> User:
    return User(id=f"usr_{name}", email=f"{name}@example.org", created_at=created_at)


def app(name: str, *, project: str = "prj_1", created_at: float = 1.0) -> App:
    return App(
        id=f"app_{project}_{name}",
        project_id=project,
        name=name,
        hostname=f"{name}.{project}",
        config=AppConfig(),
        counts={},
        created_at=created_at,
        updated_at=created_at,
    )
