-- What a task asks of the endpoint it runs at, as text: tasks of one requirement make one queue of their workflow, so that what nobody may take
-- now does not stand before what somebody may. `slots` is how many it fills there. `asks` marks workflows that may have such queues.

alter table tasks
    add column requirement text collate "C" not null default '',
    add column slots  int not null default 1 check (slots > 0);
alter table workflows add column asks boolean not null default false;

drop index tasks_ready;
create index tasks_ready on tasks (tenant_id, workflow_id, durable, requirement, priority desc, due_at, run_id, node) where state = 'queued';
