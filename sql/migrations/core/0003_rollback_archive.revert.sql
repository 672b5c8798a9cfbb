-- The entries are what an undo needs: they are set aside, never dropped.
-- squawk-ignore renaming-table
ALTER TABLE archive.rollback_entries RENAME TO rollback_entries_set_aside;
