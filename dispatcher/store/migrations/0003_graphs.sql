-- Workflows of several tasks. A run of one keeps a letter for each of its nodes in `graph`: '-' not settled what becomes of it, 'w' waiting
-- for conditions, 'a' active (it has a live task), 's' 'f' 'c' 'k' succeeded, failed, cancelled, skipped. Its tasks come into being when
-- they may run, stay as `settled` rows for those that need their output, and move to history with the run. `revision` guards changes of
-- the graph; `advance_at` says that something has happened its rules have not seen; `reasons` says why nodes were settled without running.

alter table runs
    add column graph           text,
    add column reasons         jsonb,
    add column revision        int not null default 0,
    add column advance_at      timestamptz,
    add column cancel_reason   text,
    add column parent_node     smallint,
    add column parent_wait     text,
    add column filter_payload  bytea,
    add column labels          jsonb,
    add column sticky_endpoint text collate "C";
create index runs_advance on runs (advance_at) where advance_at is not null;

alter table run_history
    add column graph           text,
    add column reasons         jsonb,
    add column parent_node     smallint,
    add column parent_wait     text,
    add column filter_payload  bytea,
    add column labels          jsonb,
    add column sticky_endpoint text collate "C";

alter table tasks
    drop constraint tasks_state_check,
    add constraint tasks_state_check
        check (state in ('scheduled', 'queued', 'running', 'waiting', 'blocked', 'gated', 'settled')),
    add column durable     boolean not null default false,
    add column status      text check (status in ('succeeded', 'failed', 'cancelled', 'skipped')),
    add column output      bytea,
    add column output_type text,
    add column error       jsonb,
    add column finished_at timestamptz,
    add constraint tasks_settled_check check ((state = 'settled') = (status is not null));

alter table task_history
    drop constraint task_history_status_check,
    add constraint task_history_status_check check (status in ('succeeded', 'failed', 'cancelled', 'skipped')),
    add column durable  boolean not null default false,
    add column ended_at timestamptz; -- of a task that was over before its run; `finished_at` says which partition both are in

-- What a run waits for: a condition of a node that has not started (`graph`), or an operation of a durable task.
create table waits (
    tenant_id  int not null,
    run_id     text collate "C" not null,
    node       smallint not null,
    id         text collate "C" not null,
    graph      boolean not null,
    kind       text not null check (kind in ('sleep', 'event', 'child', 'step', 'message')),
    event_key  text collate "C",
    scope      text,
    expression text,
    since      timestamptz,
    due_at     timestamptz,
    look_at    timestamptz,
    created_at timestamptz not null,
    settled_at timestamptz,
    position   bigint,
    outcome    text,
    value      bytea,
    primary key (tenant_id, run_id, node, id)
);
create sequence wait_positions;
create index waits_event on waits (tenant_id, event_key) where event_key is not null and settled_at is null;
create index waits_due on waits (due_at) where due_at is not null and settled_at is null;
create index waits_look on waits (look_at) where look_at is not null and settled_at is null;

-- An event that somebody waited for when it was written, until it has been brought to them.
alter table events add column wakes boolean not null default false;
create index events_wakes on events (tenant_id, created_at) where wakes;
