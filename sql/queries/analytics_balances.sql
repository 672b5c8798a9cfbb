-- The stored daily balances.

-- name: drop_liability(first, last)!
-- description: Reward credit of these days is computed again.
DELETE FROM analytics.rewards_liability WHERE day BETWEEN :first AND :last;

-- name: keep_liability(rows, now)!
-- description: Reward credit, a JSON object for each day and currency.
INSERT INTO analytics.rewards_liability (
    day, currency, opening_minor, earned_minor, spent_minor, expired_minor, reversed_minor, closing_minor, customers,
    overdue_minor, within_30_days_minor, within_90_days_minor, within_365_days_minor, later_minor, never_minor, computed_at
)
SELECT
    r.period,
    r.currency,
    r.opening,
    r.earned,
    r.spent,
    r.expired,
    r.reversed,
    r.closing,
    r.customers,
    r.overdue,
    r.within_30_days,
    r.within_90_days,
    r.within_365_days,
    r.later,
    r.never,
    :now AS computed_at
FROM jsonb_to_recordset(cast(:rows AS jsonb)) AS r (
    period date, currency text, opening bigint, earned bigint, spent bigint, expired bigint, reversed bigint, closing bigint,
    customers bigint, overdue bigint, within_30_days bigint, within_90_days bigint, within_365_days bigint, later bigint,
    never bigint
);

-- name: stored_liability(first, last)
-- description: Reward credit of these days, with the columns of the data contract.
SELECT
    to_char(day, 'YYYY-MM-DD') AS period,
    currency,
    opening_minor AS opening,
    earned_minor AS earned,
    spent_minor AS spent,
    expired_minor AS expired,
    reversed_minor AS reversed,
    closing_minor AS closing,
    customers,
    overdue_minor AS overdue,
    within_30_days_minor AS within_30_days,
    within_90_days_minor AS within_90_days,
    within_365_days_minor AS within_365_days,
    later_minor AS later,
    never_minor AS never
FROM analytics.rewards_liability
WHERE day BETWEEN :first AND :last
ORDER BY day, currency;

-- name: drop_deferred(first, last)!
-- description: Deferred money of these days is computed again.
DELETE FROM analytics.deferred_revenue WHERE day BETWEEN :first AND :last;

-- name: keep_deferred(rows, now)!
-- description: Deferred money, a JSON object for each day and currency.
INSERT INTO analytics.deferred_revenue (
    day, currency, opening_minor, received_minor, recognised_minor, closing_minor, closing_paused_minor, computed_at
)
SELECT
    r.period,
    r.currency,
    r.opening,
    r.received,
    r.recognised,
    r.closing,
    r.closing_paused,
    :now AS computed_at
FROM jsonb_to_recordset(cast(:rows AS jsonb)) AS r (
    period date, currency text, opening bigint, received bigint, recognised bigint, closing bigint, closing_paused bigint
);

-- name: stored_deferred(first, last)
-- description: Deferred money of these days, with the columns of the data contract.
SELECT
    to_char(day, 'YYYY-MM-DD') AS period,
    currency,
    opening_minor AS opening,
    received_minor AS received,
    recognised_minor AS recognised,
    closing_minor AS closing,
    closing_paused_minor AS closing_paused
FROM analytics.deferred_revenue
WHERE day BETWEEN :first AND :last
ORDER BY day, currency;

-- name: drop_paused(first, last)!
-- description: Paused run rate of these days is computed again.
DELETE FROM analytics.paused_revenue WHERE day BETWEEN :first AND :last;

-- name: keep_paused(rows, now)!
-- description: Paused run rate, a JSON object for each day and currency.
INSERT INTO analytics.paused_revenue (
    day, currency, subscriptions, annualised_minor, up_to_30_days_minor, up_to_90_days_minor, longer_minor, computed_at
)
SELECT
    r.period,
    r.currency,
    r.subscriptions,
    r.annualised_minor,
    r.up_to_30_days,
    r.up_to_90_days,
    r.longer,
    :now AS computed_at
FROM jsonb_to_recordset(cast(:rows AS jsonb)) AS r (
    period date, currency text, subscriptions bigint, annualised_minor bigint, up_to_30_days bigint, up_to_90_days bigint,
    longer bigint
);

-- name: stored_paused(first, last)
-- description: Paused run rate of these days, with the columns of the data contract.
SELECT
    to_char(day, 'YYYY-MM-DD') AS period,
    currency,
    subscriptions,
    annualised_minor,
    round(annualised_minor / 12.0, 4) AS mrr,
    up_to_30_days_minor AS up_to_30_days,
    up_to_90_days_minor AS up_to_90_days,
    longer_minor AS longer
FROM analytics.paused_revenue
WHERE day BETWEEN :first AND :last
ORDER BY day, currency;

-- name: keep_days(first, last, asked, now)!
-- description: Note which days are stored: those asked for, and earlier ones that were stored before.
INSERT INTO analytics.balance_days (day, computed_at)
SELECT
    cast(d.at AS date) AS day,
    :now AS computed_at
FROM generate_series(cast(:first AS timestamp), cast(:last AS timestamp), '1 day') AS d (at)
WHERE d.at >= :asked OR EXISTS (SELECT 1 FROM analytics.balance_days AS b WHERE b.day = d.at)
ON CONFLICT (day) DO UPDATE SET computed_at = excluded.computed_at;

-- name: stored_time_zone()$
-- description: The time zone of the stored days; null where none are stored.
SELECT max(time_zone) AS time_zone FROM analytics.balance_days;

-- name: forget_days()!
-- description: Drops every stored balance: in another time zone none of the days stands.
WITH liability AS (
    DELETE FROM analytics.rewards_liability
),

deferred AS (
    DELETE FROM analytics.deferred_revenue
),

paused AS (
    DELETE FROM analytics.paused_revenue
)

DELETE FROM analytics.balance_days;

-- name: stored_days(first, last)
-- description: Which of these days are stored.
SELECT day FROM analytics.balance_days WHERE day BETWEEN :first AND :last;

-- name: first_stored_day(since)$
-- description: The first stored day from a day on.
SELECT min(day) AS day FROM analytics.balance_days WHERE day >= :since;

-- name: first_late_day(before, margin)$
-- description: The first day before one of which a payment or an event became known after balances were last stored.
WITH known AS (
    SELECT max(b.computed_at) - :margin AS until FROM analytics.balance_days AS b
),

late AS (
    SELECT p.occurred_at
    FROM billing.payments AS p
    CROSS JOIN known AS k
    WHERE p.occurred_at < :before AND p.recorded_at >= k.until
    UNION ALL
    SELECT e.occurred_at
    FROM billing.subscription_events AS e
    CROSS JOIN known AS k
    WHERE e.occurred_at < :before AND e.recorded_at >= k.until
)

SELECT min(cast(l.occurred_at AS date)) AS day FROM late AS l;

-- name: first_late_credit_day(before, margin)$
-- description: The same of reward entries.
WITH known AS (
    SELECT max(b.computed_at) - :margin AS until FROM analytics.balance_days AS b
)

SELECT min(cast(r.occurred_at AS date)) AS day
FROM billing.reward_entries AS r
CROSS JOIN known AS k
WHERE r.occurred_at < :before AND r.recorded_at >= k.until;

-- name: admit_analysts()$
-- description: Let the analysts' role read what is new; says how it went.
SELECT analytics.admit_analysts() AS said;

-- name: balance_breaks(first, last)
-- description: Stored balances of these days that do not add up; no row is the good answer.
WITH balances AS (
    SELECT
        l.day,
        'rewards-liability' AS balance,
        l.currency,
        l.opening_minor AS opening,
        l.opening_minor + l.earned_minor - l.spent_minor - l.expired_minor - l.reversed_minor AS reached,
        l.closing_minor AS closing,
        l.overdue_minor + l.within_30_days_minor + l.within_90_days_minor + l.within_365_days_minor + l.later_minor
        + l.never_minor AS parts
    FROM analytics.rewards_liability AS l
    UNION ALL
    SELECT
        d.day,
        'deferred-revenue' AS balance,
        d.currency,
        d.opening_minor AS opening,
        d.opening_minor + d.received_minor - d.recognised_minor AS reached,
        d.closing_minor AS closing,
        greatest(d.closing_minor, d.closing_paused_minor) AS parts
    FROM analytics.deferred_revenue AS d
    UNION ALL
    SELECT
        p.day,
        'paused-revenue' AS balance,
        p.currency,
        0 AS opening,
        p.annualised_minor AS reached,
        p.annualised_minor AS closing,
        p.up_to_30_days_minor + p.up_to_90_days_minor + p.longer_minor AS parts
    FROM analytics.paused_revenue AS p
),

chosen AS (
    SELECT b.* FROM balances AS b WHERE b.day BETWEEN :first AND :last
),

followers AS (
    SELECT c.* FROM chosen AS c INNER JOIN analytics.balance_days AS d ON c.day - 1 = d.day
),

leaders AS (
    SELECT b.*
    FROM balances AS b
    INNER JOIN analytics.balance_days AS d ON b.day + 1 = d.day
    WHERE b.day + 1 BETWEEN :first AND :last
),

-- What each balance closed with the day before, where that day is stored; without a row it stood at 0.
chained AS (
    SELECT
        coalesce(c.day, p.day + 1) AS day,
        coalesce(c.balance, p.balance) AS balance,
        coalesce(c.currency, p.currency) AS currency,
        coalesce(p.closing, 0) AS before,
        coalesce(c.opening, 0) AS opening,
        (c.day IS NOT NULL AND p.day IS NOT NULL) AS paired
    FROM followers AS c
    FULL JOIN leaders AS p
        ON c.day = p.day + 1 AND c.balance = p.balance AND c.currency = p.currency
)

SELECT
    day,
    balance,
    currency,
    'closing is not opening plus what came less what went' AS problem,
    reached AS expected,
    closing AS found
FROM chosen
WHERE closing <> reached
UNION ALL
SELECT
    day,
    balance,
    currency,
    'parts do not sum to the closing' AS problem,
    closing AS expected,
    parts AS found
FROM chosen
WHERE parts <> closing OR closing < 0
UNION ALL
SELECT
    day,
    balance,
    currency,
    'opening is not the closing of the day before' AS problem,
    before AS expected,
    opening AS found
FROM chained
-- Rewards may be rolled back for some days: these have no row.
WHERE opening <> before AND balance <> 'paused-revenue' AND (paired OR balance <> 'rewards-liability')
ORDER BY day, balance, currency, problem;
