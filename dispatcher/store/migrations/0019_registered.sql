-- When an endpoint was last registered, in whatever version: a turn under way then that finds its code does not fit is not left blocked.

alter table endpoints add column registered_at timestamptz;
