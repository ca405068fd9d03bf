-- Of a workflow that is paused, or that only paused endpoints serve, nothing can start. Where it has limits with a name, which others share,
-- what waits for it is set aside: a task that is `gated` and waits at no gate and for no units, a run of a graph that has gates, holds none
-- and waits at none. It holds no place, counts nowhere, and stands in no line's index, so it costs those who use the limit nothing.
--
-- `aside` says so of the workflow: `closed` while nothing of it can start; `clearing` when it can, and some of it may stand in line still that
-- came later than what is aside; `opening` while what was set aside comes back into line, in its order. Who comes meanwhile is set aside too,
-- behind it.
alter table workflows
    add column aside    text check (aside in ('closed', 'clearing', 'opening')),
    add column aside_at timestamptz;
create index workflows_aside on workflows (tenant_id, id) where aside is not null;

create index tasks_aside on tasks (tenant_id, workflow_id, arrived_at, run_id, node)
    where state = 'gated' and gate_wait is null and parked_on is null;
create index tasks_standing on tasks (tenant_id, workflow_id)
    where state = 'gated' and (gate_wait is not null or parked_on is not null);
create index runs_aside on runs (tenant_id, workflow_id, arrived_at, id)
    where gates is not null and gates_held = 0 and gate_wait is null and advance_at is null;
create index runs_standing on runs (tenant_id, workflow_id) where gate_wait is not null;
-- Runs of graphs wait for their gates in line or aside.
drop index runs_gated_late;
create index runs_gated_late on runs (schedule_deadline)
    where gates is not null and gates_held < cardinality(gates) and advance_at is null;

-- What is queued holds all its gates: what does not, stands in line at the first it lacks. What is put off, blocked or over holds none.
--
-- Whether what would stand in line, or hold places while it waits, is set aside is asked by the statements that see many at once, intake and
-- admission, for all of them. This asks for what comes otherwise: tasks of graphs and children, retries, what was suspended or waited for
-- units. What came between is found where it waits. What cleans up after it was cancelled is not set aside: it is short and has a deadline,
-- so it keeps its places, and stands in line where it has none.
create or replace function tasks_gated() returns trigger language plpgsql as $$
declare
    aside text;
begin
    if new.state in ('scheduled', 'blocked', 'settled') then
        new.gates_held := 0;
        new.gate_wait := null;
        new.arrived_at := null;
        return new;
    end if;
    if new.state = 'queued' then
        new.arrived_at := coalesce(new.arrived_at, new.due_at);
        if new.gates_held < cardinality(new.gates) then
            new.state := 'gated';
            new.gate_wait := new.gates[new.gates_held + 1];
        elsif tg_op = 'INSERT' then
            return new; -- with all its places: whoever writes it so has looked
        end if;
    elsif tg_op = 'INSERT' then
        return new; -- in line or aside, as has been decided
    end if;
    if new.cleanup is null
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
    return new;
end
$$;
