-- A paused workflow takes work in and hands none out. `queue_ttl_ms` is how long what waits for it may wait, null for ever; `on_schedule`
-- says whether its crons and schedules go on putting runs into the queue.

alter table workflows
    add column paused_at    timestamptz,
    add column queue_ttl_ms bigint check (queue_ttl_ms > 0),
    add column on_schedule  text not null default 'queue' check (on_schedule in ('queue', 'drop'));
