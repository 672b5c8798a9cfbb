-- name: insert_native_rates()!
-- description: Every currency as itself: one for one, no effect of rates.
INSERT INTO metric_rates (period, currency, shown, rate_before, rate_now)
SELECT
    w.period,
    c.currency,
    c.currency AS shown,
    1 AS rate_before,
    1 AS rate_now
FROM metric_windows AS w
CROSS JOIN metric_currencies AS c;

-- name: insert_reporting_rates(reporting_currency, currencies, factors)!
-- description: The newest rate of the last day or before it, for the start and the end of each period; null where none is known.
INSERT INTO metric_rates (period, currency, shown, rate_before, rate_now)
SELECT
    w.period,
    c.currency,
    :reporting_currency AS shown,
    CASE WHEN c.currency = :reporting_currency THEN 1 ELSE c.factor * b.rate END AS rate_before,
    CASE WHEN c.currency = :reporting_currency THEN 1 ELSE c.factor * n.rate END AS rate_now
FROM metric_windows AS w
CROSS JOIN unnest(cast(:currencies AS text []), cast(:factors AS numeric [])) AS c (currency, factor)
LEFT JOIN LATERAL (
    SELECT f.rate FROM metric_fx_rates AS f
    WHERE f.currency = c.currency AND f.reporting_currency = :reporting_currency AND f.date <= w.before_day
    ORDER BY f.date DESC LIMIT 1
) AS b ON TRUE
LEFT JOIN LATERAL (
    SELECT f.rate FROM metric_fx_rates AS f
    WHERE f.currency = c.currency AND f.reporting_currency = :reporting_currency AND f.date <= w.last_day
    ORDER BY f.date DESC LIMIT 1
) AS n ON TRUE;

-- name: settle_unknown_rates()!
-- description: Where an amount needs a rate that is unknown: all amounts in their own currency if it is one, else none at all.
WITH amounts AS (
    SELECT
        w.period,
        s.currency,
        e.at_the_end
    FROM metric_windows AS w
    CROSS JOIN LATERAL (
        SELECT
w.before_period AS period,
FALSE AS at_the_end
        UNION ALL
        SELECT
w.last_period AS period,
TRUE AS at_the_end
    ) AS e
    INNER JOIN metric_summary AS s ON e.period = s.period AND s.kind = 'total'
    WHERE s.run_end <> 0
    UNION ALL
    SELECT
        c.period,
        c.currency,
        TRUE AS at_the_end
    FROM metric_window_changes AS c
    WHERE c.new <> 0 OR c.reactivation <> 0 OR c.expansion <> 0 OR c.contraction <> 0 OR c.churn <> 0
),

windows AS (
    SELECT
        a.period,
        CASE WHEN min(a.currency) = max(a.currency) THEN min(a.currency) END AS only_currency
    FROM amounts AS a
    INNER JOIN metric_rates AS r ON a.period = r.period AND a.currency = r.currency
    GROUP BY a.period
    HAVING bool_or(CASE WHEN a.at_the_end THEN r.rate_now ELSE r.rate_before END IS NULL)
)

UPDATE metric_rates
SET
    shown = windows.only_currency,
    rate_before = CASE WHEN metric_rates.currency = windows.only_currency THEN 1 END,
    rate_now = CASE WHEN metric_rates.currency = windows.only_currency THEN 1 END
FROM windows
WHERE metric_rates.period = windows.period;

-- name: insert_currencies()!
-- description: The currencies that customers pay in, looked for once.
INSERT INTO metric_currencies (currency)
SELECT DISTINCT currency FROM billing.customers
ON CONFLICT (currency) DO NOTHING;

-- name: insert_stored_currencies()!
-- description: The same as far as figures are stored; 0 where none are.
INSERT INTO metric_currencies (currency) SELECT DISTINCT currency FROM analytics.churn_amounts;

-- name: insert_touched_currencies()!
-- description: The currencies of touched subscriptions: no figure in them may be stored yet.
INSERT INTO metric_currencies (currency)
SELECT DISTINCT currency FROM metric_fresh
ON CONFLICT (currency) DO NOTHING;

-- name: currencies()
-- description: The currencies that customers pay in.
SELECT currency FROM metric_currencies ORDER BY currency;

-- name: missing_rate(rolling)^
-- description: The first day on which an amount stands in a currency for which no rate is known.
SELECT
    r.currency,
    CASE WHEN r.rate_now IS NULL AND s.period IS NOT NULL THEN w.last_day ELSE w.before_day END AS day
FROM metric_rates AS r
INNER JOIN metric_windows AS w ON r.period = w.period
LEFT JOIN metric_summary AS s ON w.last_period = s.period AND r.currency = s.currency AND s.kind = 'total'
LEFT JOIN metric_summary AS b ON w.before_period = b.period AND r.currency = b.currency AND b.kind = 'total'
WHERE (r.rate_now IS NULL AND s.period IS NOT NULL)
    OR (r.rate_before IS NULL AND (b.run_end <> 0 OR (NOT :rolling AND s.run_start <> 0)))
ORDER BY day, r.currency
LIMIT 1;
