-- name: stored_policy()^
-- description: The policy under which the newest stored day was computed.
SELECT
    definition,
    paused,
    paused_churn_days,
    reporting_currency
FROM analytics.snapshots
ORDER BY day DESC
LIMIT 1;

-- name: forget_days()!
-- description: Drops the list of stored days: under another policy none of them stands.
DELETE FROM analytics.snapshots;

-- name: stored_from(day)
-- description: The stored days from a day on.
SELECT day FROM analytics.snapshots WHERE day >= :day ORDER BY day;

-- name: is_stored(day)$
-- description: Whether the figures of a day are stored.
SELECT count(*) > 0 AS stored FROM analytics.snapshots WHERE day = :day;

-- name: keep_movements(days)!
-- description: Adds the movements of these days that are not stored yet.
INSERT INTO analytics.mrr_movements (day, customer_id, movement, currency, annualised_minor)
SELECT
    m.period,
    m.customer_id,
    m.movement,
    m.currency,
    m.amount
FROM metric_movements AS m
WHERE m.period = any(cast(:days AS date[]))
ON CONFLICT (day, customer_id, movement) DO NOTHING;

-- name: first_movements(days)!
-- description: Stores the movements of these days where none are stored yet.
INSERT INTO analytics.mrr_movements (day, customer_id, movement, currency, annualised_minor)
SELECT
    m.period,
    m.customer_id,
    m.movement,
    m.currency,
    m.amount
FROM metric_classed AS m
WHERE m.period = any(cast(:days AS date []));

-- name: insert_movements(days)!
-- description: The classed changes of these days as rows: one for each movement.
INSERT INTO metric_movements (period, customer_id, movement, currency, amount)
SELECT
    m.period,
    m.customer_id,
    m.movement,
    m.currency,
    m.amount
FROM metric_classed AS m
WHERE m.period = any(cast(:days AS date []));

-- name: is_empty(relation)$
-- description: Whether a table has never held a row since it was made or truncated.
SELECT pg_relation_size(cast(:relation AS regclass)) = 0 AS empty;

-- name: index_definitions(relation)
-- description: The indexes of a table as statements: constraint is null where it is none's.
SELECT
    c.conname AS constraint_name,
    cast(cast(x.indexrelid AS regclass) AS text) AS index_name,
    coalesce(pg_get_constraintdef(c.oid), pg_get_indexdef(x.indexrelid)) AS definition
FROM pg_index AS x
LEFT JOIN pg_constraint AS c ON x.indexrelid = c.conindid AND x.indrelid = c.conrelid AND c.contype IN ('p', 'u', 'x')
WHERE x.indrelid = cast(:relation AS regclass)
ORDER BY x.indexrelid;

-- name: drop_stale_movements(days)
-- description: Removes the stored movements of these days that are no longer so; gives the days that they belonged to.
WITH dropped AS (
    DELETE FROM analytics.mrr_movements AS s
    WHERE s.day = any(cast(:days AS date[]))
        AND NOT EXISTS (
            SELECT 1 FROM metric_movements AS m
            WHERE m.period = s.day AND m.customer_id = s.customer_id AND m.movement = s.movement
                AND m.currency = s.currency AND m.amount = s.annualised_minor
        )
    RETURNING s.day
)

SELECT DISTINCT day FROM dropped;

-- name: drop_stale_summary(days)
-- description: Removes the stored summary rows of these days that are no longer so; gives the days that they belonged to.
WITH dropped AS (
    DELETE FROM analytics.mrr_summary AS s
    WHERE s.day = any(cast(:days AS date[]))
        AND NOT EXISTS (
            SELECT 1 FROM metric_summary AS m
            WHERE m.period = s.day AND m.kind = s.segment_kind AND m.segment = s.segment AND m.currency = s.currency
                AND (
                    m.run_start, m.new, m.reactivation, m.expansion, m.contraction, m.churn, m.paused, m.resumed, m.transfer,
                    m.run_end, m.customers, m.paying_customers, m.subscriptions, m.paused_subscriptions
                ) = (
                    s.start_minor, s.new_minor, s.reactivation_minor, s.expansion_minor, s.contraction_minor, s.churn_minor,
                    s.paused_minor, s.resumed_minor, s.transfer_minor, s.end_minor, s.customers, s.paying_customers,
                    s.subscriptions, s.paused_subscriptions
                )
        )
    RETURNING s.day
)

SELECT DISTINCT day FROM dropped;

-- name: keep_summary(days)
-- description: Adds the summary rows of these days that are not stored yet; gives the days that they belong to.
WITH added AS (
    INSERT INTO analytics.mrr_summary (
        day, segment_kind, segment, currency, start_minor, new_minor, reactivation_minor, expansion_minor, contraction_minor,
        churn_minor, paused_minor, resumed_minor, transfer_minor, end_minor, customers, paying_customers, subscriptions,
        paused_subscriptions
    )
    SELECT
        m.period,
        m.kind,
        m.segment,
        m.currency,
        m.run_start,
        m.new,
        m.reactivation,
        m.expansion,
        m.contraction,
        m.churn,
        m.paused,
        m.resumed,
        m.transfer,
        m.run_end,
        m.customers,
        m.paying_customers,
        m.subscriptions,
        m.paused_subscriptions
    FROM metric_summary AS m
    WHERE m.period = any(cast(:days AS date[]))
    ON CONFLICT (day, segment_kind, segment, currency) DO NOTHING
    RETURNING day
)

SELECT DISTINCT day FROM added;

-- name: drop_rates(days)!
-- description: Makes room for the rates of these days.
DELETE FROM analytics.churn WHERE day = any(cast(:days AS date[]));

-- name: drop_amounts(days)!
-- description: Makes room for what these rates are computed from.
DELETE FROM analytics.churn_amounts WHERE day = any(cast(:days AS date[]));

-- name: drop_steps(days)!
-- description: Makes room for the steps that are known on these days.
DELETE FROM analytics.churn_steps WHERE known_day = any(cast(:days AS date[]));

-- name: rates_base(day, days)$
-- description: Whether rates can be built on those of a day: they and the steps of so many days to its end are stored.
SELECT
    EXISTS (SELECT 1 FROM analytics.churn_amounts WHERE day = :day)
    AND (
        SELECT count(DISTINCT known_day) FROM analytics.churn_steps
        WHERE known_day > cast(:day AS date) - cast(:days AS integer) AND known_day <= :day
    ) = :days
    AS stands;

-- name: days_to_value(first, computed, span)$
-- description: The stored days from the first on, but these, so many days before which another one is stored.
SELECT array_agg(s.day ORDER BY s.day) AS days
FROM analytics.snapshots AS s
INNER JOIN analytics.snapshots AS b ON s.day - cast(:span AS integer) = b.day
WHERE s.day >= :first AND s.day <> all(cast(:computed AS date[]));

-- name: mark_restated(days, now)!
-- description: Records that stored days have other figures than before.
UPDATE analytics.snapshots SET restated_at = :now WHERE day = any(cast(:days AS date[]));

-- name: keep_snapshots(days, restated, definition, paused, paused_churn_days, reporting_currency, now, event_high_water)!
-- description: Records which days are stored, by which definition and policy, and which were restated.
INSERT INTO analytics.snapshots (
    day, definition, paused, paused_churn_days, reporting_currency, computed_at, restated_at, event_high_water
)
SELECT
    d.day,
    :definition,
    :paused,
    :paused_churn_days,
    :reporting_currency,
    :now AS computed_at,
    NULL AS restated_at,
    :event_high_water
FROM unnest(cast(:days AS date[])) AS d (day)
ON CONFLICT (day) DO UPDATE SET
    definition = excluded.definition,
    paused = excluded.paused,
    paused_churn_days = excluded.paused_churn_days,
    reporting_currency = excluded.reporting_currency,
    computed_at = excluded.computed_at,
    restated_at = CASE
        WHEN snapshots.day = any(cast(:restated AS date[])) THEN excluded.computed_at
        ELSE snapshots.restated_at
    END,
    event_high_water = excluded.event_high_water;
