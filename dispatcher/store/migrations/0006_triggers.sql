-- 0006_triggers
select 1;

-- ---- filters, replays, bulk actions -----------------------------------------------------------------------------------------------

-- Which events start a workflow. Those it declares are replaced with each registration. `digest` is of scope, expression and payload:
-- a filter is there once. Every change raises the tenant's registry version, so no event is judged by filters that are gone.
create table filters (
    tenant_id   int not null,
    id          text collate "C" not null,
    workflow_id int not null,
    scope       text not null,
    expression  text not null,
    payload     text,
    digest      bytea not null,
    declared    boolean not null,
    created_at  timestamptz not null,
    updated_at  timestamptz not null,
    primary key (tenant_id, id),
    unique (tenant_id, workflow_id, digest),
    foreign key (tenant_id, workflow_id) references workflows on delete cascade
);

-- Filters that could not be evaluated on an event: written with it.
create table filter_failures (
    tenant_id  int not null,
    event_id   text collate "C" not null,
    number     int not null,
    workflow   text not null,
    filter_id  text not null,
    scope      text not null,
    expression text not null,
    code       text not null,
    message    text not null,
    created_at timestamptz not null,
    primary key (tenant_id, event_id, number, created_at)
) partition by range (created_at);
create table filter_failures_default partition of filter_failures default;

-- What lists of events are asked for; each index holds only events that have what it is about.
create index events_scope on events (tenant_id, scope, id) where scope is not null;
create index events_unmatched on events (tenant_id, id) where runs = 0;

-- Retries of a run before it was replayed: its budgets begin anew, the count its handler is told goes on.
alter table tasks add column retry_base int not null default 0;
alter table task_history add column retry_base int not null default 0;

-- A cancel or a replay of many runs. Which runs is settled when it is made; `bulk_items` are those still to be looked at.
create table bulk_actions (
    tenant_id   int not null,
    id          text collate "C" not null,
    kind        text not null check (kind in ('cancel', 'replay')),
    status      text not null check (status in ('running', 'finished', 'cancelled')),
    filter      jsonb,
    reason      text not null,
    matched     int not null,
    done        int not null default 0,
    skipped     int not null default 0,
    created_by  text,
    created_at  timestamptz not null,
    finished_at timestamptz,
    primary key (tenant_id, id)
);
create index bulk_actions_running on bulk_actions (tenant_id, id) where status = 'running';

create table bulk_items (
    tenant_id int not null,
    bulk_id   text collate "C" not null,
    run_id    text collate "C" not null,
    primary key (tenant_id, bulk_id, run_id)
);

-- Who did what: `actor` is a token's id, null for the developer on this machine.
create table audit (
    tenant_id int not null,
    id        text collate "C" not null,
    at        timestamptz not null,
    actor     text,
    action    text not null,
    target    text not null,
    details   jsonb not null,
    primary key (tenant_id, id, at)
) partition by range (at);
create table audit_default partition of audit default;

-- ---- crons and schedules ----------------------------------------------------------------------------------------------------------

-- `due_at` is the next tick, null for one that is disabled or never comes again, and `due_wall` what the clocks of its zone show then,
-- reckoned by this release of the `rules` of time zones. It only ever moves on, in the transaction that starts the runs of the ticks it
-- passes. A workflow's declared crons are replaced with each registration.
create table crons (
    tenant_id   int not null,
    id          text collate "C" not null,
    workflow_id int not null,
    name        text not null,
    expression  text not null,
    timezone    text not null,
    input       bytea not null,
    metadata    jsonb,
    priority    smallint,
    missed      text not null check (missed in ('skip', 'run_once', 'run_all')),
    enabled     boolean not null,
    declared    boolean not null,
    due_at      timestamptz,
    due_wall    timestamp,
    last_tick   timestamptz,
    last_wall   timestamp,
    last_run_id text collate "C",
    skipped_at  timestamptz,
    rules       text collate "C" not null,
    created_at  timestamptz not null,
    updated_at  timestamptz not null,
    primary key (tenant_id, id),
    unique (tenant_id, workflow_id, name, expression),
    foreign key (tenant_id, workflow_id) references workflows on delete cascade,
    check ((due_at is null) = (due_wall is null))
);
create index crons_due on crons (due_at) where due_at is not null;

-- The run of each tick: claimed in the transaction that starts it, and never twice.
create table cron_ticks (
    tenant_id int not null,
    cron_id   text collate "C" not null,
    tick      timestamptz not null,
    run_id    text collate "C" not null,
    primary key (tenant_id, cron_id, tick)
) partition by range (tick);
create table cron_ticks_default partition of cron_ticks default;

-- A run at one moment. `status` says what became of it; `run_id` is its run once it is started.
create table schedules (
    tenant_id   int not null,
    id          text collate "C" not null,
    workflow_id int not null,
    status      text not null check (status in ('scheduled', 'started', 'missed', 'dropped')),
    run_at      timestamptz not null,
    input       bytea not null,
    metadata    jsonb,
    priority    smallint,
    missed      text not null check (missed in ('skip', 'run_once')),
    grace_ms    bigint not null check (grace_ms >= 0),
    run_id      text collate "C",
    settled_at  timestamptz,
    created_at  timestamptz not null,
    updated_at  timestamptz not null,
    primary key (tenant_id, id),
    foreign key (tenant_id, workflow_id) references workflows on delete cascade,
    check ((status = 'scheduled') = (settled_at is null)),
    check ((status = 'started') = (run_id is not null))
);
create index schedules_due on schedules (run_at) where status = 'scheduled';
create index schedules_workflow on schedules (tenant_id, workflow_id, id);
create index schedules_settled on schedules (settled_at) where settled_at is not null;
