SELECT bucket, next_at FROM billing.stripe_pace WHERE false;

DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_index WHERE indrelid = 'billing.stripe_pace'::regclass AND indisprimary) THEN
        RAISE EXCEPTION 'core: the pace of Stripe has no key';
    END IF;
END
$$;
