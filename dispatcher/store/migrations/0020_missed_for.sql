-- Why what was due started nothing, where that was its input's or its workflow's doing: what its last tick met, and null after one that
-- started.
alter table schedules add column error text;
alter table crons add column last_error text;
