-- What cleans up after it was cancelled is not set aside: it is short and has a deadline, so it keeps its places, and stands in line where it
-- has none.

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
