-- Tasks that are run many at once: those of one batch are leased together under its id, and fill the slots of one between them.

alter table tasks
    add column batch_id text collate "C",
    drop constraint tasks_slots_check,
    add constraint tasks_slots_check check (slots >= 0);
create index tasks_batches on tasks (tenant_id, workflow_id, requirement) where batch_id is not null and state = 'running';
