-- Live work stands in two small tables, `runs` and `tasks`; when a run ends its rows move to history, which is partitioned by
-- the moment of the end. So the tables the hot statements touch stay small whatever has been finished, history rows are
-- written once in their last form, and retention drops partitions without ever meeting a live row.
-- Every key starts with tenant_id. No statement reads a clock: every moment is an argument.

create table tenants (
    id               int generated always as identity primary key,
    slug             text not null unique check (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    name             text not null,
    -- Grows with every change of what starts runs or where they go; intake compares it, so no process acts on an old picture.
    registry_version bigint not null default 1,
    created_at       timestamptz not null
);

create table tokens (
    tenant_id    int not null references tenants,
    public_id    text not null,
    secret_hash  bytea not null,
    name         text not null,
    scopes       text[] not null,
    created_at   timestamptz not null,
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz,
    primary key (tenant_id, public_id)
);
create unique index tokens_public_id on tokens (public_id);

create table signing_keys (
    tenant_id   int not null references tenants,
    kid         text not null,
    seed_sealed bytea not null,
    public_key  text not null,
    created_at  timestamptz not null,
    active_from timestamptz not null,
    expires_at  timestamptz,
    primary key (tenant_id, kid)
);

create table endpoints (
    tenant_id     int not null references tenants,
    id            text collate "C" not null,
    name          text not null,
    version       text not null,
    slots         int not null check (slots > 0),
    labels        jsonb not null,
    auth_sealed   bytea,
    static        boolean not null,
    paused        boolean not null default false,
    circuit       text not null default 'closed' check (circuit in ('closed', 'open', 'retired')),
    circuit_code  text,
    circuit_since timestamptz,
    probe_at      timestamptz,
    probes        int not null default 0,
    created_at    timestamptz not null,
    updated_at    timestamptz not null,
    primary key (tenant_id, id),
    unique (tenant_id, name),
    check ((circuit = 'closed') = (circuit_since is null))
);
create index endpoints_probe on endpoints (probe_at) where probe_at is not null;

create table endpoint_versions (
    tenant_id     int not null,
    endpoint_id   text collate "C" not null,
    version       text not null,
    url           text not null,
    manifest      jsonb not null,
    registered_at timestamptz not null,
    retired_at    timestamptz,
    primary key (tenant_id, endpoint_id, version),
    foreign key (tenant_id, endpoint_id) references endpoints on delete cascade
);

create table endpoint_secrets (
    tenant_id   int not null,
    endpoint_id text collate "C" not null,
    number      int not null,
    sealed      bytea not null,
    created_at  timestamptz not null,
    not_after   timestamptz,
    primary key (tenant_id, endpoint_id, number),
    foreign key (tenant_id, endpoint_id) references endpoints on delete cascade
);

create table workflows (
    tenant_id  int not null references tenants,
    id         int generated always as identity,
    name       text not null,
    version    int not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    primary key (tenant_id, id),
    unique (tenant_id, name)
);

create table workflow_versions (
    tenant_id   int not null,
    workflow_id int not null,
    number      int not null,
    checksum    text not null,
    definition  jsonb not null,
    created_at  timestamptz not null,
    primary key (tenant_id, workflow_id, number),
    unique (tenant_id, workflow_id, checksum),
    foreign key (tenant_id, workflow_id) references workflows on delete cascade
);

-- Which endpoints serve a workflow: the routes its tasks may take.
create table routes (
    tenant_id   int not null,
    workflow_id int not null,
    endpoint_id text collate "C" not null,
    primary key (tenant_id, workflow_id, endpoint_id),
    foreign key (tenant_id, workflow_id) references workflows on delete cascade,
    foreign key (tenant_id, endpoint_id) references endpoints on delete cascade
);

create table dispatchers (
    id         bigint generated always as identity primary key,
    name       text not null,
    started_at timestamptz not null,
    live_until timestamptz not null
);

-- How many of an endpoint's slots each dispatcher may fill on its own authority. The sum over an endpoint, with the tasks
-- that go on without a dispatcher, never exceeds the endpoint's slots.
create table slot_grants (
    tenant_id     int not null,
    endpoint_id   text collate "C" not null,
    dispatcher_id bigint not null references dispatchers on delete cascade,
    slots         int not null check (slots >= 0),
    primary key (tenant_id, endpoint_id, dispatcher_id),
    foreign key (tenant_id, endpoint_id) references endpoints on delete cascade
);

-- No foreign keys on what turns over with every run: the same statement writes both sides, and a check per row would cost
-- more than the row. `stream_id` is null where the run has a stream of its own, named after it.
create table runs (
    tenant_id        int not null,
    id               text collate "C" not null,
    workflow_id      int not null,
    workflow_version int not null,
    input            bytea not null,
    metadata         jsonb,
    priority         smallint not null,
    trigger          text not null,
    event_id         text collate "C",
    parent_run_id    text collate "C",
    stream_id        text collate "C",
    idempotency_key  text,
    created_at       timestamptz not null,
    primary key (tenant_id, id)
);
create index runs_event on runs (tenant_id, event_id) where event_id is not null;
create index runs_parent on runs (tenant_id, parent_run_id) where parent_run_id is not null;

create table tasks (
    tenant_id         int not null,
    run_id            text collate "C" not null,
    node              smallint not null,
    workflow_id       int not null,
    workflow_version  int not null,
    state             text not null check (state in ('scheduled', 'queued', 'running')),
    priority          smallint not null,
    due_at            timestamptz not null,
    schedule_deadline timestamptz,
    execution_ms      int not null,
    epoch             int not null default 0,
    app_retries       int not null default 0,
    infra_retries     int not null default 0,
    spared_since      timestamptz,
    spared_by         text check (spared_by in ('pushback', 'endpoint')),
    dispatcher_id     bigint,
    endpoint_id       text collate "C",
    endpoint_version  text,
    started_at        timestamptz,
    deadline          timestamptz,
    lease_until       timestamptz,
    lease             interval,
    slot_released     boolean not null default false,
    cancel_at         timestamptz,
    cancel_reason     text,
    progress          jsonb,
    primary key (tenant_id, run_id, node),
    -- A running attempt is covered by exactly one of: its dispatcher's heartbeat, or a lease of its own.
    check ((state = 'running') = (dispatcher_id is not null or lease_until is not null)),
    check (dispatcher_id is null or lease_until is null)
);
create index tasks_ready on tasks (tenant_id, workflow_id, priority desc, run_id, node) where state = 'queued';
create index tasks_due on tasks (due_at) where state = 'scheduled';
create index tasks_overdue on tasks (schedule_deadline) where schedule_deadline is not null;
create index tasks_lease on tasks (lease_until) where lease_until is not null;
create index tasks_owner on tasks (dispatcher_id, tenant_id, endpoint_id) where dispatcher_id is not null;
create index tasks_cancel on tasks (cancel_at) where cancel_at is not null;

create table run_history (
    tenant_id        int not null,
    id               text collate "C" not null,
    workflow_id      int not null,
    workflow_version int not null,
    status           text not null check (status in ('succeeded', 'failed', 'cancelled')),
    input            bytea not null,
    metadata         jsonb,
    priority         smallint not null,
    trigger          text not null,
    event_id         text collate "C",
    parent_run_id    text collate "C",
    stream_id        text collate "C",
    idempotency_key  text,
    created_at       timestamptz not null,
    started_at       timestamptz,
    finished_at      timestamptz not null,
    primary key (tenant_id, id, finished_at)
) partition by range (finished_at);
create table run_history_default partition of run_history default;
create index run_history_workflow on run_history (tenant_id, workflow_id, id);
create index run_history_unhappy on run_history (tenant_id, status, id) where status <> 'succeeded';
create index run_history_event on run_history (tenant_id, event_id) where event_id is not null;
create index run_history_parent on run_history (tenant_id, parent_run_id) where parent_run_id is not null;
create index run_history_metadata on run_history using gin (metadata jsonb_path_ops) where metadata is not null;

create table task_history (
    tenant_id        int not null,
    run_id           text collate "C" not null,
    node             smallint not null,
    status           text not null check (status in ('succeeded', 'failed', 'cancelled')),
    output           bytea,
    output_type      text,
    error            jsonb,
    epoch            int not null,
    app_retries      int not null,
    infra_retries    int not null,
    endpoint_id      text collate "C",
    endpoint_version text,
    started_at       timestamptz,
    finished_at      timestamptz not null,
    progress         jsonb,
    primary key (tenant_id, run_id, node, finished_at)
) partition by range (finished_at);
create table task_history_default partition of task_history default;

create table attempts (
    tenant_id        int not null,
    run_id           text collate "C" not null,
    node             smallint not null,
    number           int not null,
    status           text not null,
    http_status      smallint,
    latency_ms       int,
    response         bytea,
    error            jsonb,
    endpoint_id      text collate "C" not null,
    endpoint_version text not null,
    started_at       timestamptz not null,
    finished_at      timestamptz not null,
    primary key (tenant_id, run_id, node, number, finished_at)
) partition by range (finished_at);
create table attempts_default partition of attempts default;
create index attempts_endpoint on attempts (tenant_id, endpoint_id, finished_at);

create table events (
    tenant_id       int not null,
    id              text collate "C" not null,
    type            text not null,
    data            bytea not null,
    metadata        jsonb,
    scope           text,
    priority        smallint,
    stream_id       text collate "C" not null,
    idempotency_key text,
    runs            int not null,
    created_at      timestamptz not null,
    primary key (tenant_id, id, created_at)
) partition by range (created_at);
create table events_default partition of events default;
create index events_type on events (tenant_id, type, id);

create table logs (
    tenant_id int not null,
    run_id    text collate "C" not null,
    node      smallint not null,
    attempt   int not null,
    seq       bigint generated always as identity,
    at        timestamptz not null,
    level     text not null,
    message   text not null,
    primary key (tenant_id, run_id, seq, at)
) partition by range (at);
create table logs_default partition of logs default;

create table chunks (
    tenant_id int not null,
    run_id    text collate "C" not null,
    node      smallint not null,
    attempt   int not null,
    stream    text not null,
    seq       bigint not null,
    data      bytea not null,
    at        timestamptz not null,
    primary key (tenant_id, run_id, node, attempt, stream, seq, at)
) partition by range (at);
create table chunks_default partition of chunks default;

create table idempotency (
    tenant_id  int not null,
    scope      text not null,
    key        text not null,
    first_id   text collate "C" not null,
    expires_at timestamptz not null,
    primary key (tenant_id, scope, key)
);
create index idempotency_expiry on idempotency (expires_at);

-- The live tables turn over completely many times an hour: vacuum them early, and leave room on a page for in-place updates.
alter table tasks set (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
                       autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.2);
alter table runs set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
alter table dispatchers set (fillfactor = 50);
alter table slot_grants set (fillfactor = 50);
