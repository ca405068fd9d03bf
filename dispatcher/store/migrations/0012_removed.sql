-- A workflow that was removed keeps its row and versions, for the runs it had; registering it again takes the mark away.
alter table workflows add column removed_at timestamptz;
