-- When Stripe may be asked next: one pace for all processes. Not worth a line of WAL: lost, it begins anew.
CREATE UNLOGGED TABLE IF NOT EXISTS billing.stripe_pace (
    bucket text PRIMARY KEY,
    next_at timestamptz NOT NULL
) WITH (fillfactor = 10);
COMMENT ON TABLE billing.stripe_pace IS 'The pace of requests to Stripe that all processes share, by bucket: all together, and each endpoint';
COMMENT ON COLUMN billing.stripe_pace.next_at IS 'When the next request that nobody has reserved may be made, by the database''s own clock';
