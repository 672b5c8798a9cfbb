-- squawk-ignore-file ban-drop-table, ban-drop-column
-- It can be derived again, and would be stale after days that the release before computes: nothing is set aside.
DROP TABLE analytics.churn_steps;
CREATE OR REPLACE FUNCTION analytics.note_rates() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF tg_op <> 'INSERT' THEN
        UPDATE analytics.known_rates AS k SET known_until = clock_timestamp()
        FROM gone AS g
        WHERE k.date = g.date AND k.currency = g.currency AND k.reporting_currency = g.reporting_currency
            AND k.known_until IS NULL;
    END IF;
    IF tg_op <> 'DELETE' THEN
        INSERT INTO analytics.known_rates (date, currency, reporting_currency, rate, known_from)
        SELECT
            c.date, c.currency, c.reporting_currency, c.rate,
            CASE WHEN EXISTS (
                SELECT 1 FROM analytics.known_rates AS k
                WHERE k.currency = c.currency AND k.reporting_currency = c.reporting_currency
            ) THEN clock_timestamp() END
        FROM came AS c;
    END IF;
    RETURN NULL;
END
$$;
ALTER TABLE analytics.known_rates DROP COLUMN valued;
