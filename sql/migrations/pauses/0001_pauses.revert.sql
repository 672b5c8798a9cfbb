ALTER TABLE billing.subscription_pauses SET SCHEMA archive;
UPDATE billing.feature_flags SET enabled = false, reason = 'schema reverted', changed_at = now() WHERE feature = 'pauses';
