DROP TRIGGER reward_entries_append_only ON billing.reward_entries;
DROP TRIGGER reward_entries_balance ON billing.reward_entries;
DROP FUNCTION billing.guard_reward_balance();
DROP VIEW billing.reward_balances;
ALTER TABLE billing.reward_entries SET SCHEMA archive;
UPDATE billing.feature_flags SET enabled = false, reason = 'schema reverted', changed_at = now() WHERE feature = 'rewards';
