-- Fails where the aggregate is missing or forgets at the wrong time, or an index still stands that nothing reads.
SELECT subscription_id, valid_from, valid_to, customer_id, status, paused_since, annualised_minor, plan, payment_frequency,
       currency, country, event_id
FROM analytics.staged_intervals WHERE false;
SELECT day, customer_id, movement, currency, annualised_minor FROM analytics.staged_movements WHERE false;

DO $$
DECLARE
    wrong text;
BEGIN
    SELECT string_agg(coalesce(got.first, 'null'), ' ' ORDER BY got.position) INTO wrong
    FROM (
        SELECT inputs.position, analytics.first_since(inputs.length, inputs.input) OVER (ORDER BY inputs.position) AS first
        FROM (VALUES (1, 1, 'a'), (2, 1, 'b'), (3, NULL, NULL), (4, 0, ''), (5, 1, 'c')) AS inputs (position, length, input)
    ) AS got;
    IF wrong <> 'a a a  c' THEN
        RAISE EXCEPTION 'analytics: first_since() is wrong: %', wrong;
    END IF;
    SELECT string_agg(unread.name, ', ') INTO wrong
    FROM unnest(ARRAY['run_rate_intervals_from', 'run_rate_intervals_paused', 'mrr_movements_customer']) AS unread (name)
    WHERE to_regclass('analytics.' || unread.name) IS NOT NULL;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: index that nothing reads: %', wrong;
    END IF;
END
$$;
