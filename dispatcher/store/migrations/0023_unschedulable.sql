-- What a task asks of its endpoint (its `requirement`) may be had nowhere, while others of its workflow can start: its run has to stay at an
-- endpoint that is paused, no endpoint has the label. A queue of tasks nothing can take is a row here for as long as that lasts, and such tasks
-- are set aside as those of workflows are of which nothing can start: `gated`, in no line, without a place, and `unschedulable`.
--
-- `queue` is the workflow's id, negative for its durable tasks. `aside` says what it says of a workflow: `closed` while nothing can take them;
-- `clearing` when something can, and some of them may stand in line still that came later than what is aside; `opening` while they come back
-- into line. The row goes when the last of them is there.
create table unschedulable (
    tenant_id   int not null references tenants,
    queue       int not null,
    requirement text collate "C" not null,
    aside       text not null default 'closed' check (aside in ('closed', 'clearing', 'opening')),
    aside_at    timestamptz not null,
    primary key (tenant_id, queue, requirement)
);
create index unschedulable_moving on unschedulable (tenant_id, queue, requirement) where aside <> 'closed';

alter table tasks add column unschedulable boolean not null default false;
create index tasks_unschedulable on tasks (tenant_id, workflow_id, durable, requirement, arrived_at, run_id, node) where unschedulable;
create index tasks_standing_asking on tasks (tenant_id, workflow_id, durable, requirement, arrived_at, run_id, node)
    where state = 'gated' and (gate_wait is not null or parked_on is not null) and requirement <> '';
drop index tasks_aside;
create index tasks_aside on tasks (tenant_id, workflow_id, arrived_at, run_id, node)
    where state = 'gated' and gate_wait is null and parked_on is null and not unschedulable;

-- As before, and who asks something that can be had nowhere is set aside, whoever writes it: who let it through its line has looked. Who finds
-- such a row keeps it from being deleted until the task is written, so that none is set aside that nobody lets back. A durable task that has
-- begun keeps its places, as it does while it is suspended.
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
        select w.aside into aside from workflows w where w.tenant_id = new.tenant_id and w.id = new.workflow_id;
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
