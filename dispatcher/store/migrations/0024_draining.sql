-- An endpoint that is drained goes on with what has to stay there, and takes nothing else: durable tasks that began there (`pin_endpoint`),
-- and runs that stay where they began (sticky "hard").
alter table endpoints add column draining boolean not null default false;
create index endpoints_draining on endpoints (tenant_id, id) where draining;

-- The endpoint where a task has to stay, null without one. Read from the text as it is written, with `sticky` as the last member and quotes
-- escaped in all that is told by others: a JSON function refuses what the group of a batch may hold and no text in a database may.
create function stays_at(requirement text, pin_endpoint text) returns text stable language sql as $$
    select coalesce(pin_endpoint, case when requirement like '%"sticky":"hard"}' then substring(requirement from '"endpoint":"([^"]*)"') end)
$$;
-- The endpoint where all tasks of a run have to stay, null without one.
create function run_stays_at(tenant int, workflow int, version int, sticky_endpoint text) returns text stable language sql as $$
    select $4 from workflow_versions v
    where $4 is not null and v.tenant_id = $1 and v.workflow_id = $2 and v.number = $3 and v.definition->>'sticky' = 'hard'
$$;
-- Whether what has to stay at an endpoint goes on there although that is drained.
create function goes_on_at(tenant int, endpoint text) returns boolean stable language sql as $$
    select exists (select from endpoints e where e.tenant_id = $1 and e.id = $2 and e.draining and not e.paused and e.circuit <> 'retired')
$$;

-- Durable tasks that have begun, and wait where any endpoint could be claimed for them. Where the one that serves their workflow is drained,
-- they are found here and wait for that one alone.
create index tasks_homeless on tasks (tenant_id, pin_endpoint, due_at)
    where state = 'queued' and pin_endpoint is not null and not starts_with(requirement, '{"pin":');

-- What goes on at an endpoint that is drained is counted by these: durable tasks that began there, and runs that are bound to it.
create index tasks_pinned on tasks (tenant_id, pin_endpoint) where pin_endpoint is not null;
create index runs_bound on runs (tenant_id, sticky_endpoint) where sticky_endpoint is not null;

-- As before, and what has to stay at an endpoint that is drained is not set aside with its workflow, of which nothing else can start.
create or replace function tasks_gated() returns trigger language plpgsql as $$
declare
    aside   text;
    decided boolean := tg_op = 'INSERT'; -- in line, aside, or with all its places: whoever writes it so has looked
begin
    if new.state in ('scheduled', 'blocked', 'settled') then
        new.gates_held := 0;
        new.gate_wait := null;
        new.arrived_at := null;
        new.unschedulable := false;
        return new;
    end if;
    if new.state = 'queued' then
        new.arrived_at := coalesce(new.arrived_at, new.due_at);
        if new.gates_held < cardinality(new.gates) then
            new.state := 'gated';
            new.gate_wait := new.gates[new.gates_held + 1];
            decided := false;
        end if;
    end if;
    if decided and new.requirement = '' then
        return new;
    end if;
    if new.requirement <> '' and new.state in ('queued', 'gated')
       and new.cleanup is null and coalesce(new.turn, 1) = 1 and coalesce(new.log_len, 0) = 0
       and (tg_op = 'INSERT'
            or not old.unschedulable and (old.gate_wait is null or (new.state = 'gated' and new.gate_wait is null))) then
        perform from unschedulable u
        where u.tenant_id = new.tenant_id and u.queue = case when new.durable then -new.workflow_id else new.workflow_id end
          and u.requirement = new.requirement
        for key share;
        if found then
            new.state := 'gated';
            new.gates_held := 0;
            new.gate_wait := null;
            new.parked_on := null;
            new.unschedulable := true;
            return new;
        end if;
    end if;
    if not decided and new.cleanup is null
       and (tg_op = 'INSERT' or old.gate_wait is null) -- who stood in line is let through by those that have looked
       and (new.gate_wait is not null or new.parked_on is not null or new.state = 'queued') then
        select w.aside into aside from workflows w
        where w.tenant_id = new.tenant_id and w.id = new.workflow_id
          and (w.aside is null or w.paused_at is not null or not goes_on_at(new.tenant_id, stays_at(new.requirement, new.pin_endpoint)));
        if aside in ('closed', 'clearing') or (aside = 'opening' and new.gate_wait is not null and (tg_op = 'INSERT' or old.state <> 'gated'))
        then
            new.state := 'gated';
            new.gates_held := 0;
            new.gate_wait := null;
            new.parked_on := null;
        end if;
    end if;
    if new.unschedulable and (new.state <> 'gated' or new.gate_wait is not null) then
        new.unschedulable := false;
    end if;
    return new;
end
$$;
