DO $$
DECLARE
    wrong text;
BEGIN
    SELECT string_agg(format('made at %s from %s %s = %s, expected %s', c.made_at, c.anchor, c.frequency, c.got, c.expected), '; ')
    INTO wrong
    FROM (
        SELECT anchor, frequency, made_at, expected, billing.payment_after_invoice(anchor, frequency, made_at, 'UTC') AS got
        FROM (VALUES
            (timestamptz '2025-01-01 10:00+00', 'MONTHLY', timestamptz '2025-02-26 10:00+00', timestamptz '2025-04-01 10:00+00'),
            ('2025-01-01 10:00+00', 'MONTHLY', '2025-02-25 10:00+00', '2025-03-01 10:00+00'),
            ('2025-01-06 10:00+00', 'WEEKLY', '2025-01-12 09:00+00', '2025-01-20 10:00+00'),
            ('2025-01-06 10:00+00', 'WEEKLY', '2025-01-11 10:00+00', '2025-01-13 10:00+00'),
            ('2025-01-06 10:00+00', 'WEEKLY', NULL, NULL)
        ) AS given (anchor, frequency, made_at, expected)
    ) AS c
    WHERE c.got IS DISTINCT FROM c.expected;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'core: payment_after_invoice() is wrong: %', wrong;
    END IF;
    IF billing.failed_invoice_made_at(0) IS NOT NULL THEN
        RAISE EXCEPTION 'core: failed_invoice_made_at() knows of an invoice of nobody';
    END IF;
END
$$;
