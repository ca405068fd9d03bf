-- Durable tasks. The log of one is kept as it was written, a row for each append with the text of its entries; what the log comes to
-- (its length, what the endpoint has seen of it, what the task waits for) stands with the task, empty for tasks that are not durable.
-- When the task's run ends its rows are put together as one in history, which goes the way of all history.

alter table tasks
    add column turn         int,
    add column generation   int,
    add column log_len      int,
    add column log_bytes    int,
    add column log_since    timestamptz,
    add column known_len    int,
    add column hashed_len   int,
    add column hashed       bytea,
    add column wake         bytea,
    add column wake_at      timestamptz,
    add column marks        int,
    add column memory       bytea,
    add column input        bytea,
    add column cleanup      boolean,
    add column inbox_closed boolean,
    add column pin_endpoint text collate "C",
    add column pin_version  text;
create index tasks_wake on tasks (wake_at) where wake_at is not null and state = 'waiting';
create index tasks_blocked on tasks (tenant_id, workflow_id) where state = 'blocked';

-- Durable tasks have slots of their own, at endpoints that have any of them.
alter table endpoints add column durable_slots int check (durable_slots > 0);
alter table slot_grants
    add column durable boolean not null default false,
    drop constraint slot_grants_pkey,
    add primary key (tenant_id, endpoint_id, dispatcher_id, durable);

-- What becomes of a run when the run that started it is cancelled: it is too, unless it is on its own. `doomed_at` says that it shall be.
alter table runs
    add column on_its_own boolean,
    add column doomed_at  timestamptz;
create index runs_doomed on runs (doomed_at) where doomed_at is not null;

create table journal (
    tenant_id  int not null,
    run_id     text collate "C" not null,
    node       smallint not null,
    generation int not null,
    base       int not null,
    count      int not null,
    entries    bytea not null,
    scopes     text[],
    checkpoint bytea,
    at         timestamptz not null,
    primary key (tenant_id, run_id, node, generation, base)
);
create index journal_scopes on journal (tenant_id, run_id, node) where scopes is not null;

create table journal_history (
    tenant_id     int not null,
    run_id        text collate "C" not null,
    node          smallint not null,
    generation    int not null,
    count         int not null,
    entries       bytea not null,
    checkpoint    bytea,
    checkpoint_at timestamptz,
    since         timestamptz,
    input         bytea,
    finished_at   timestamptz not null,
    primary key (tenant_id, run_id, node, generation, finished_at)
) partition by range (finished_at);
create table journal_history_default partition of journal_history default;

-- What was sent to a task and not yet received.
create table messages (
    tenant_id  int not null,
    run_id     text collate "C" not null,
    node       smallint not null,
    seq        bigint generated always as identity,
    data       bytea not null,
    created_at timestamptz not null,
    primary key (tenant_id, run_id, node, seq)
);

alter table journal set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
alter table waits set (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
                       autovacuum_vacuum_cost_delay = 0);
