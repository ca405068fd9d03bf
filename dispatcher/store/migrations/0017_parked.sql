-- Who is parked on a rate limit stands at a gate that only a refill opens. Whatever else moves it on, its end or a cancel, takes it away
-- from there, whichever statement does: who is not, and is found among those that are parked, keeps everybody's refills from being written.

create function tasks_parked() returns trigger language plpgsql as $$
begin
    new.parked_on := null;
    new.parked_for := null;
    return new;
end
$$;
create trigger tasks_parked before update on tasks for each row
    when (new.parked_on is not null and new.state <> 'gated') execute function tasks_parked();

update tasks set parked_on = null, parked_for = null where parked_on is not null and state <> 'gated';
