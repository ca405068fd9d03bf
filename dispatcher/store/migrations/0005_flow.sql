-- Flow control: how many of a group may run at a time (gates), and how many may start in a window of time (rate limits).
--
-- A gate is one group of one rule: `id` is a digest of both, so that a key of any length costs the same. What it counts, `held` and
-- `waiting`, is kept by triggers from the rows that hold and wait, in the transaction that changes them, whoever writes it. So a place in
-- a gate is free the moment its task is over, whatever ended it, and no statement can forget to say so.

create table gates (
    tenant_id  int not null,
    id         uuid not null,
    rule       text not null,
    name       text collate "C",
    key        text not null,
    strategy   text not null check (strategy in ('GROUP_ROUND_ROBIN', 'CANCEL_IN_PROGRESS', 'CANCEL_NEWEST')),
    most       int not null check (most > 0),
    held       int not null default 0,
    waiting    int not null default 0,
    arrivals   bigint not null default 0,
    wake       boolean not null default false,
    idle_since timestamptz,
    primary key (tenant_id, id)
);
-- What changes with every run, `held`, stands in no index: it is updated in place.
create index gates_wake on gates (tenant_id, id) where wake;
create index gates_name on gates (tenant_id, name, id) where name is not null;
alter table gates set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);

-- Shared limits that are other than declared for a time. The row is the limit: it is deleted when its time is over.
create table concurrency_limits (
    tenant_id  int not null references tenants,
    name       text collate "C" not null,
    max_runs   int not null check (max_runs > 0),
    until      timestamptz,
    updated_at timestamptz not null,
    primary key (tenant_id, name)
);
create index concurrency_limits_until on concurrency_limits (until) where until is not null;

-- One bucket of a rate limit: `value` units are left of `most` until `refilled_at` is a window ago. `refill_at` is when the tasks that are
-- parked on it get their turn; null where there are none. A bucket nobody set (`fixed`) is made by the first task that asks for it. One that
-- is `gone` limits nothing, and stays until those parked on it have left.
create table rate_limits (
    tenant_id   int not null,
    id          uuid not null,
    key         text not null,
    fixed       boolean not null,
    gone        boolean not null default false,
    most        int not null check (most > 0),
    duration    text not null check (duration in ('SECOND', 'MINUTE', 'HOUR', 'DAY', 'WEEK', 'MONTH', 'YEAR')),
    window_ms   bigint not null check (window_ms > 0),
    value       int not null check (value >= 0),
    refilled_at timestamptz not null,
    refill_at   timestamptz,
    updated_at  timestamptz not null,
    primary key (tenant_id, id)
);
create index rate_limits_refill on rate_limits (refill_at) where refill_at is not null;
create index rate_limits_list on rate_limits (tenant_id, key collate "C");
alter table rate_limits set (fillfactor = 50);

-- `gates` is the chain a task passes, `gates_held` how many of them it has a place in, `gate_wait` the one it stands in line at, since
-- `arrived_at`. `flow` says what they are, and what units the task takes at its start. A task `parked` waits for units of one bucket.
alter table tasks
    add column gates       uuid[],
    add column gate_limits int[],
    add column gates_held  smallint not null default 0,
    add column gate_wait   uuid,
    add column arrived_at  timestamptz,
    add column preempts    boolean not null default false,
    add column flow        jsonb,
    add column units_taken boolean not null default false,
    add column parked_on   uuid,
    add column parked_for  int;
create index tasks_gated on tasks (tenant_id, gate_wait, arrived_at, run_id, node) where gate_wait is not null;
create index tasks_parked on tasks (tenant_id, parked_on, priority desc, run_id, node) where parked_on is not null;
create index tasks_preempted on tasks using gin (gates) with (fastupdate = off) where preempts;

-- Tasks are taken in the order in which they became ready, so that a group which has many waiting does not overtake one that has few.
drop index tasks_ready;
create index tasks_ready on tasks (tenant_id, workflow_id, durable, priority desc, due_at, run_id, node) where state = 'queued';

-- A run of a graph holds the gates of its workflow itself. Its `flow` says what those of its tasks will be.
alter table runs
    add column gates             uuid[],
    add column gate_limits       int[],
    add column gates_held        smallint not null default 0,
    add column gate_wait         uuid,
    add column arrived_at        timestamptz,
    add column preempts          boolean not null default false,
    add column flow              jsonb,
    add column schedule_deadline timestamptz;
create index runs_gated on runs (tenant_id, gate_wait, arrived_at, id) where gate_wait is not null;
create index runs_gated_late on runs (schedule_deadline) where gate_wait is not null;
create index runs_preempted on runs using gin (gates) with (fastupdate = off) where preempts;

-- How many may hold a gate now.
create function gate_limit(g gates) returns int language sql stable as $$
    select case when g.name is null then g.most
           else coalesce((select l.max_runs from concurrency_limits l where l.tenant_id = g.tenant_id and l.name = g.name), g.most) end
$$;

-- Rows that come in. Each gate's row is changed by itself, in the order of their ids, as everybody does; one that is not there is made from
-- the `flow` of a row that comes to it. Who comes in holding may only do so where there is room and nobody waits: otherwise nothing is
-- written, and the gates are named.
create function gates_inserted() returns trigger language plpgsql as $$
declare
    d record;
    crowded boolean;
    full_ids text[];
begin
    if not exists (select from new_rows where gates is not null) then
        return null;
    end if;
    for d in
        select n.tenant_id, i.id, sum((i.place <= n.gates_held)::int)::int as holding,
               sum((n.gate_wait is not distinct from i.id)::int)::int as coming,
               (array_agg(n.gate_limits[i.place]))[1] as declared, (array_agg(n.flow))[1] as flow
        from new_rows n cross join lateral unnest(n.gates) with ordinality as i (id, place)
        where n.gates is not null and (i.place <= n.gates_held or n.gate_wait = i.id)
        group by n.tenant_id, i.id
        order by n.tenant_id, i.id
    loop
        update gates g
        set held = g.held + d.holding, waiting = g.waiting + d.coming, most = coalesce(d.declared, g.most),
            arrivals = g.arrivals + d.coming, idle_since = null,
            wake = g.wake or (g.waiting + d.coming > 0
                              and ((d.coming > 0 and g.strategy <> 'GROUP_ROUND_ROBIN')
                                   or g.held + d.holding < case when g.name is null then coalesce(d.declared, g.most)
                                                           else gate_limit(g) end))
        where g.tenant_id = d.tenant_id and g.id = d.id
        returning d.holding > 0 and (g.waiting > d.coming or g.held > case when g.name is null then g.most else gate_limit(g) end)
        into crowded;
        if not found then
            insert into gates as g (tenant_id, id, rule, name, key, strategy, most, held, waiting, arrivals, wake)
            select d.tenant_id, d.id, v->>1, v->>2, v->>3, v->>4, (v->>5)::int, d.holding, d.coming, d.coming, d.coming > 0
            from jsonb_array_elements(d.flow->'gates') as c (v) where v->>0 = d.id::text
            on conflict (tenant_id, id) do update -- another has made it a moment ago
            set held = g.held + excluded.held, waiting = g.waiting + excluded.waiting, arrivals = g.arrivals + excluded.arrivals,
                wake = true, idle_since = null
            returning d.holding > 0 and (g.waiting > d.coming or g.held > case when g.name is null then g.most else gate_limit(g) end)
            into crowded;
        end if;
        if crowded then
            full_ids := array_append(full_ids, d.id::text);
        end if;
    end loop;
    if full_ids is not null then
        raise exception 'no room in a gate' using errcode = 'DG001', detail = array_to_string(full_ids, ',');
    end if;
    return null;
end
$$;

create function gates_updated() returns trigger language plpgsql as $$
declare
    d record;
begin
    if not exists (select from new_rows where gates is not null) then
        return null;
    end if;
    for d in
        select tenant_id, id, sum(holding)::int as holding, sum(coming)::int as coming,
               (array_agg(flow) filter (where flow is not null))[1] as flow
        from (
            select tenant_id, unnest(gates[1:gates_held]) as id, 1 as holding, 0 as coming, flow from new_rows where gates_held > 0
            union all select tenant_id, gate_wait, 0, 1, flow from new_rows where gate_wait is not null
            union all select tenant_id, unnest(gates[1:gates_held]), -1, 0, null from old_rows where gates_held > 0
            union all select tenant_id, gate_wait, 0, -1, null from old_rows where gate_wait is not null
        ) changed
        group by tenant_id, id having sum(holding) <> 0 or sum(coming) <> 0
        order by tenant_id, id
    loop
        update gates g
        set held = greatest(g.held + d.holding, 0), waiting = greatest(g.waiting + d.coming, 0),
            arrivals = g.arrivals + greatest(d.coming, 0), idle_since = null,
            wake = g.wake or (g.waiting + d.coming > 0
                              and ((d.coming > 0 and g.strategy <> 'GROUP_ROUND_ROBIN')
                                   or g.held + d.holding < case when g.name is null then g.most else gate_limit(g) end))
        where g.tenant_id = d.tenant_id and g.id = d.id;
        if not found and d.flow is not null then
            insert into gates as g (tenant_id, id, rule, name, key, strategy, most, held, waiting, arrivals, wake)
            select d.tenant_id, d.id, v->>1, v->>2, v->>3, v->>4, (v->>5)::int, d.holding, d.coming, d.coming, d.coming > 0
            from jsonb_array_elements(d.flow->'gates') as c (v) where v->>0 = d.id::text
            on conflict (tenant_id, id) do update
            set held = g.held + excluded.held, waiting = g.waiting + excluded.waiting, arrivals = g.arrivals + excluded.arrivals,
                wake = true, idle_since = null;
        end if;
    end loop;
    return null;
end
$$;

create function gates_deleted() returns trigger language plpgsql as $$
declare
    d record;
begin
    if not exists (select from old_rows where gates is not null) then
        return null;
    end if;
    for d in
        select tenant_id, id, sum(holding)::int as holding, sum(coming)::int as coming
        from (
            select tenant_id, unnest(gates[1:gates_held]) as id, 1 as holding, 0 as coming from old_rows where gates_held > 0
            union all select tenant_id, gate_wait, 0, 1 from old_rows where gate_wait is not null
        ) gone
        group by tenant_id, id
        order by tenant_id, id
    loop
        update gates g
        set held = greatest(g.held - d.holding, 0), waiting = greatest(g.waiting - d.coming, 0),
            wake = g.wake or (g.waiting > d.coming
                              and g.held - d.holding < case when g.name is null then g.most else gate_limit(g) end)
        where g.tenant_id = d.tenant_id and g.id = d.id;
    end loop;
    return null;
end
$$;

create trigger tasks_gates_inserted after insert on tasks referencing new table as new_rows for each statement execute function gates_inserted();
create trigger tasks_gates_updated after update on tasks referencing old table as old_rows new table as new_rows
    for each statement execute function gates_updated();
create trigger tasks_gates_deleted after delete on tasks referencing old table as old_rows for each statement execute function gates_deleted();
create trigger runs_gates_inserted after insert on runs referencing new table as new_rows for each statement execute function gates_inserted();
create trigger runs_gates_updated after update on runs referencing old table as old_rows new table as new_rows
    for each statement execute function gates_updated();
create trigger runs_gates_deleted after delete on runs referencing old table as old_rows for each statement execute function gates_deleted();

-- What is queued holds all its gates: what does not, stands in line at the first it lacks. What is put off, blocked or over holds none.
create function tasks_gated() returns trigger language plpgsql as $$
begin
    if new.state in ('scheduled', 'blocked', 'settled') then
        new.gates_held := 0;
        new.gate_wait := null;
        new.arrived_at := null;
    elsif new.state = 'queued' and new.gates_held < cardinality(new.gates) then
        new.state := 'gated';
        new.gate_wait := new.gates[new.gates_held + 1];
        new.arrived_at := coalesce(new.arrived_at, new.due_at);
    elsif new.state = 'queued' then
        new.arrived_at := coalesce(new.arrived_at, new.due_at);
    end if;
    return new;
end
$$;
create trigger tasks_gated before insert or update on tasks for each row
    when (new.gates is not null and new.state in ('scheduled', 'blocked', 'settled', 'queued')) execute function tasks_gated();
