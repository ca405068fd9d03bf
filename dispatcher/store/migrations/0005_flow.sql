-- 0005_flow
select 1;
