DO $$
DECLARE
    wrong text;
BEGIN
    SELECT string_agg(format('%s + %s %s = %s, expected %s', c.anchor, c.n, c.frequency, c.got, c.expected), '; ') INTO wrong
    FROM (
        SELECT anchor, frequency, n, expected, billing.payment_at(anchor, frequency, n, zone) AS got
        FROM (VALUES
            (timestamptz '2025-01-31 10:00+00', 'MONTHLY', 1, 'UTC', timestamptz '2025-02-28 10:00+00'),
            ('2025-01-31 10:00+00', 'MONTHLY', 2, 'UTC', '2025-03-31 10:00+00'),
            ('2024-01-31 10:00+00', 'MONTHLY', 1, 'UTC', '2024-02-29 10:00+00'),
            ('2024-02-29 10:00+00', 'YEARLY', 1, 'UTC', '2025-02-28 10:00+00'),
            ('2024-02-29 10:00+00', 'YEARLY', 4, 'UTC', '2028-02-29 10:00+00'),
            ('2025-11-30 10:00+00', 'QUARTERLY', 1, 'UTC', '2026-02-28 10:00+00'),
            ('2025-03-24 08:00+00', 'WEEKLY', 1, 'Europe/Berlin', '2025-03-31 07:00+00'),
            ('2025-10-20 07:00+00', 'BIWEEKLY', 1, 'Europe/Berlin', '2025-11-03 08:00+00'),
            ('2025-02-09 07:30+00', 'MONTHLY', 1, 'America/New_York', '2025-03-09 07:30+00'),
            ('2025-01-31 10:00+00', 'MONTHLY', 0, 'UTC', '2025-01-31 10:00+00')
        ) AS given (anchor, frequency, n, zone, expected)
    ) AS c
    WHERE c.got IS DISTINCT FROM c.expected;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'core: payment_at() is wrong: %', wrong;
    END IF;

    SELECT string_agg(format('after %s from %s %s = %s, expected %s', c.after, c.anchor, c.frequency, c.got, c.expected), '; ')
    INTO wrong
    FROM (
        SELECT anchor, frequency, after, expected, billing.next_payment_at(anchor, frequency, after, 'UTC') AS got
        FROM (VALUES
            (timestamptz '2025-01-31 10:00+00', 'MONTHLY', timestamptz '2025-02-28 09:59+00', timestamptz '2025-02-28 10:00+00'),
            ('2025-01-31 10:00+00', 'MONTHLY', '2025-02-28 10:00+00', '2025-03-31 10:00+00'),
            ('2025-01-31 10:00+00', 'MONTHLY', '2024-06-01 00:00+00', '2025-01-31 10:00+00'),
            ('2024-02-29 10:00+00', 'YEARLY', '2025-03-01 00:00+00', '2026-02-28 10:00+00'),
            ('2025-01-01 00:00+00', 'WEEKLY', '2025-12-31 00:00+00', '2026-01-07 00:00+00')
        ) AS given (anchor, frequency, after, expected)
    ) AS c
    WHERE c.got IS DISTINCT FROM c.expected;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'core: next_payment_at() is wrong: %', wrong;
    END IF;

    SELECT string_agg(proname, ', ') INTO wrong
    FROM pg_proc
    WHERE pronamespace = 'billing'::regnamespace AND proname IN ('payment_at', 'next_payment_at') AND provolatile <> 'i';
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'core: not immutable: %', wrong;
    END IF;
END
$$;
