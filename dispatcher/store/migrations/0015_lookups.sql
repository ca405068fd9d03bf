-- Rows are looked up by their keys. While a table is empty, or has never been analyzed, all indexes that know the tenant look alike, and of
-- those that do the one that was made last is taken: to go through all that a tenant has would be a way to look up one row then.

drop index rate_limits_list;
create index rate_limits_list on rate_limits (tenant_id, key collate "C") where not gone;

alter table crons drop constraint crons_pkey, add constraint crons_pkey primary key (tenant_id, id);
alter table schedules drop constraint schedules_pkey, add constraint schedules_pkey primary key (tenant_id, id);
