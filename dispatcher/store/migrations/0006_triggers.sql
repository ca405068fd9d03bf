-- 0006_triggers
select 1;
