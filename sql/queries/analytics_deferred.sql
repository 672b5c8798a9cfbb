-- Money received for periods that have not ended, and what is paused. Days are numbers since 1970-01-01.

-- name: insert_billed_periods(since, until, known_at)!
-- description: Payments that may be deferred in [since, until): received on which day, for which days, of which subscription.
-- A payment belongs to the period that had begun when its first attempt was made. Its dates are counted from the newest start
-- or change of frequency; where none of them is near (a payment that a pause moved), from the attempt itself.
INSERT INTO metric_billed (payment_id, subscription_id, currency, amount, received, first_day, days, over)
WITH relevant AS (
    -- A year and a quarter back is enough, unless a pause has made the period longer.
    SELECT p.*
    FROM billing.payments AS p
    WHERE p.occurred_at >= cast(:since AS timestamptz) - interval '460 days' AND p.occurred_at < :until
    UNION ALL
    SELECT p.*
    FROM billing.payments AS p
    WHERE p.occurred_at < cast(:since AS timestamptz) - interval '460 days'
        AND p.subscription_id IN (SELECT i.subscription_id FROM metric_intervals AS i WHERE i.status = 'paused')
),

attempts AS (
    SELECT
        p.payment_id,
        p.subscription_id,
        p.occurred_at,
        p.amount_minor,
        p.currency,
        p.outcome,
        p.attempt,
        max(p.occurred_at) FILTER (WHERE p.attempt = 1) OVER (
            PARTITION BY p.subscription_id ORDER BY p.occurred_at, p.outcome, p.attempt, p.payment_ref
            ROWS UNBOUNDED PRECEDING
        ) AS first_attempt_at
    FROM relevant AS p
    WHERE p.recorded_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
),

received AS (
    SELECT
        a.payment_id,
        a.subscription_id,
        a.occurred_at,
        a.amount_minor,
        a.currency,
        CASE
            WHEN a.attempt > 1 AND a.first_attempt_at > a.occurred_at - interval '60 days' THEN a.first_attempt_at
            ELSE a.occurred_at
        END AS due_at
    FROM attempts AS a
    WHERE a.outcome = 'succeeded' AND a.amount_minor > 0
),

ordered AS (
    SELECT
        e.*,
        (
            e.event = 'started'
            OR e.payment_frequency <> coalesce(lag(e.payment_frequency) OVER in_time, e.payment_frequency)
        ) AS counts_anew,
        row_number() OVER in_time AS place
    FROM billing.subscription_events AS e
    WHERE e.recorded_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
        AND e.subscription_id IN (SELECT r.subscription_id FROM received AS r)
    WINDOW in_time AS (PARTITION BY e.subscription_id ORDER BY e.occurred_at, e.recorded_at, e.event_id)
),

terms AS (
    SELECT
        o.subscription_id,
        o.customer_id,
        o.payment_frequency,
        o.occurred_at AS since,
        lead(o.occurred_at) OVER (PARTITION BY o.subscription_id ORDER BY o.place) AS until,
        coalesce(
            max(o.occurred_at) FILTER (WHERE o.counts_anew) OVER (PARTITION BY o.subscription_id ORDER BY o.place),
            first_value(o.occurred_at) OVER (PARTITION BY o.subscription_id ORDER BY o.place)
        ) AS anchor
    FROM ordered AS o
),

dated AS (
    SELECT
        r.*,
        t.payment_frequency,
        t.anchor,
        c.time_zone,
        billing.next_payment_at(t.anchor, t.payment_frequency, r.due_at - interval '1 day', c.time_zone) AS nearest
    FROM received AS r
    LEFT JOIN terms AS t
        ON r.subscription_id = t.subscription_id AND r.due_at >= t.since AND (t.until IS NULL OR r.due_at < t.until)
    LEFT JOIN billing.customers AS c ON t.customer_id = c.customer_id
    -- A calendar is costly: it is asked only of payments whose period may reach into the days asked for.
    WHERE r.occurred_at >= :since
        OR r.due_at + CASE t.payment_frequency
            WHEN 'WEEKLY' THEN interval '9 days' WHEN 'BIWEEKLY' THEN interval '16 days' WHEN 'MONTHLY' THEN interval '33 days'
            WHEN 'QUARTERLY' THEN interval '94 days' ELSE interval '368 days'
        END >= :since
        OR r.subscription_id IN (SELECT i.subscription_id FROM metric_intervals AS i WHERE i.status = 'paused')
),

billed AS (
    SELECT
        d.*,
        CASE WHEN d.nearest <= d.due_at THEN d.nearest ELSE d.due_at END AS period_start,
        CASE
            WHEN d.nearest <= d.due_at THEN billing.next_payment_at(d.anchor, d.payment_frequency, d.nearest, d.time_zone)
            ELSE billing.payment_at(d.due_at, d.payment_frequency, 1, d.time_zone)
        END AS period_end
    FROM dated AS d
),

numbered AS (
    SELECT
        b.*,
        cast(b.occurred_at AS date) - date '1970-01-01' AS received,
        cast(b.period_start AS date) - date '1970-01-01' AS first_day,
        greatest(
            cast(b.period_end AS date) - cast(b.period_start AS date), 1
        ) AS days
    FROM billed AS b
),

cancellations AS (
    SELECT
        i.subscription_id,
        cast(i.valid_from AS date) - date '1970-01-01' AS starts,
        coalesce(cast(i.valid_to AS date) - date '1970-01-01', 10000000) AS ends
    FROM metric_intervals AS i
    WHERE i.status = 'canceled'
),

-- The first day of the period at whose end the subscription is over.
ended AS (
    SELECT
        n.payment_id,
        min(greatest(c.starts, n.first_day)) AS over
    FROM numbered AS n
    INNER JOIN cancellations AS c ON n.subscription_id = c.subscription_id AND greatest(c.starts, n.first_day) < c.ends
    GROUP BY n.payment_id
)

SELECT
    n.payment_id,
    n.subscription_id,
    n.currency,
    n.amount_minor,
    n.received,
    n.first_day,
    CASE WHEN n.period_end IS NOT NULL THEN n.days END AS days,
    e.over
FROM numbered AS n
LEFT JOIN ended AS e ON n.payment_id = e.payment_id;

-- name: insert_service_stretches()!
-- description: For each payment the stretches of days in which its period runs, between pauses, and the pause that follows each.
-- A day counts as paused when the subscription is paused at its end.
INSERT INTO metric_service (payment_id, starts, ends, pause_ends, elapsed, length)
WITH pauses AS (
    SELECT
        i.subscription_id,
        cast(i.valid_from AS date) - date '1970-01-01' AS starts,
        coalesce(cast(i.valid_to AS date) - date '1970-01-01', 10000000) AS ends
    FROM metric_intervals AS i
    WHERE i.status = 'paused' AND i.subscription_id IN (SELECT b.subscription_id FROM metric_billed AS b)
),

stretches AS (
    SELECT
        p.subscription_id,
        coalesce(lag(p.ends) OVER in_time, -10000000) AS starts,
        p.starts AS ends,
        p.ends AS pause_ends
    FROM pauses AS p
    WHERE p.ends > p.starts
    WINDOW in_time AS (PARTITION BY p.subscription_id ORDER BY p.starts)
    UNION ALL
    SELECT
        p.subscription_id,
        max(p.ends) AS starts,
        10000000 AS ends,
        10000000 AS pause_ends
    FROM pauses AS p
    WHERE p.ends > p.starts
    GROUP BY p.subscription_id
),

clipped AS (
    SELECT
        b.payment_id,
        b.days,
        greatest(coalesce(s.starts, b.first_day), b.first_day) AS starts,
        least(coalesce(s.ends, 10000000), coalesce(b.over, 10000000)) AS ends,
        least(coalesce(s.pause_ends, 10000000), coalesce(b.over, 10000000)) AS pause_ends
    FROM metric_billed AS b
    LEFT JOIN stretches AS s ON b.subscription_id = s.subscription_id AND b.first_day < s.pause_ends
    WHERE b.days IS NOT NULL
),

measured AS (
    SELECT
        c.*,
        greatest(c.ends - c.starts, 0) AS available,
        coalesce(
            sum(greatest(c.ends - c.starts, 0)) OVER (
                PARTITION BY c.payment_id ORDER BY c.starts, c.pause_ends ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ), 0
        ) AS elapsed
    FROM clipped AS c
)

SELECT
    m.payment_id,
    m.starts,
    m.starts + least(m.available, m.days - m.elapsed) AS ends,
    m.pause_ends,
    m.elapsed,
    least(m.available, m.days - m.elapsed) AS length
FROM measured AS m
WHERE m.elapsed < m.days;

-- name: insert_deferred_courses(since_day, last_day)!
-- description: Days in which the deferred part of a payment shrinks or stands still; payments of one amount and course together.
INSERT INTO metric_courses (currency, amount, days, from_day, to_day, served, moving, payments)
WITH courses AS (
    SELECT
        b.currency,
        b.amount,
        b.days,
        greatest(v.starts, b.received) AS from_day,
        v.ends AS to_day,
        v.elapsed + greatest(v.starts, b.received) - v.starts + 1 AS served,
        1 AS moving
    FROM metric_billed AS b
    INNER JOIN metric_service AS v ON b.payment_id = v.payment_id
    UNION ALL
    SELECT
        b.currency,
        b.amount,
        b.days,
        greatest(v.ends, b.received) AS from_day,
        v.pause_ends AS to_day,
        v.elapsed + v.length AS served,
        0 AS moving
    FROM metric_billed AS b
    INNER JOIN metric_service AS v ON b.payment_id = v.payment_id
    WHERE v.elapsed + v.length < b.days
)

SELECT
    c.currency,
    c.amount,
    c.days,
    c.from_day,
    c.to_day,
    c.served,
    c.moving,
    count(*) AS payments
FROM courses AS c
WHERE c.to_day > c.from_day AND c.to_day > cast(:since_day AS date) - date '1970-01-01'
    AND c.from_day <= cast(:last_day AS date) - date '1970-01-01'
GROUP BY c.currency, c.amount, c.days, c.from_day, c.to_day, c.served, c.moving;

-- name: deferred_rows(first, last, grain)
-- description: Deferred money at the start and end of each period, and what lies between, by currency.
-- Recognised of an amount after so many days of its period: amount x days served / days, half up.
WITH ends AS (
    SELECT
        cast(p.at AS date) AS period,
        cast(p.at AS date) - date '1970-01-01' - 1 AS day_before,
        cast(p.at + cast('1 ' || :grain AS interval) AS date) - date '1970-01-01' - 1 AS last_day
    FROM generate_series(cast(:first AS timestamp), cast(:last AS timestamp), cast('1 ' || :grain AS interval)) AS p (at)
),

boundaries AS (
    SELECT e.last_day AS day FROM ends AS e
    UNION DISTINCT
    SELECT e.day_before AS day FROM ends AS e
),

levels AS (
    SELECT
        b.day,
        c.currency,
        sum(v.deferred) AS deferred,
        coalesce(sum(v.deferred) FILTER (WHERE c.moving = 0), 0) AS standing
    FROM boundaries AS b
    INNER JOIN metric_courses AS c ON b.day >= c.from_day AND b.day < c.to_day
    CROSS JOIN LATERAL (
        VALUES (
            c.payments
            * (c.amount - (2 * c.amount * (c.served + c.moving * (b.day - c.from_day)) + c.days) / (2 * c.days))
        )
    ) AS v (deferred)
    GROUP BY b.day, c.currency
),

receipts AS (
    SELECT
        e.period,
        b.currency,
        sum(b.amount) AS received
    FROM metric_billed AS b
    INNER JOIN ends AS e ON b.received > e.day_before AND b.received <= e.last_day
    GROUP BY e.period, b.currency
),

known AS (
    SELECT v.currency FROM levels AS v
    UNION DISTINCT
    SELECT r.currency FROM receipts AS r
),

compared AS (
    SELECT
        e.period,
        k.currency,
        coalesce(o.deferred, 0) AS opening,
        coalesce(r.received, 0) AS received,
        coalesce(c.deferred, 0) AS closing,
        coalesce(c.standing, 0) AS closing_paused
    FROM ends AS e
    CROSS JOIN known AS k
    LEFT JOIN levels AS o ON e.day_before = o.day AND k.currency = o.currency
    LEFT JOIN levels AS c ON e.last_day = c.day AND k.currency = c.currency
    LEFT JOIN receipts AS r ON e.period = r.period AND k.currency = r.currency
)

SELECT
    c.period,
    c.currency,
    c.opening,
    c.received,
    c.opening + c.received - c.closing AS recognised,
    c.closing,
    c.closing_paused
FROM compared AS c
WHERE c.opening <> 0 OR c.received <> 0 OR c.closing <> 0
ORDER BY c.period, c.currency;

-- name: paused_rows(first, last, grain)
-- description: Run rate that is paused at the end of each period, by how long it has been, by currency.
WITH ends AS (
    SELECT
        cast(p.at AS date) AS period,
        cast(p.at + cast('1 ' || :grain AS interval) AS timestamptz) AS until
    FROM generate_series(cast(:first AS timestamp), cast(:last AS timestamp), cast('1 ' || :grain AS interval)) AS p (at)
),

steps AS (
    SELECT
        i.currency,
        b.at,
        b.sign,
        b.sign * i.annualised_minor AS amount,
        CASE b.aged WHEN 0 THEN b.sign * i.annualised_minor ELSE 0 END AS up_to_30_days,
        CASE b.aged WHEN 1 THEN b.sign * i.annualised_minor ELSE 0 END AS up_to_90_days,
        CASE b.aged WHEN 2 THEN b.sign * i.annualised_minor ELSE 0 END AS longer
    FROM metric_intervals AS i
    CROSS JOIN LATERAL (
        VALUES
        (0, i.valid_from, i.paused_since + interval '720 hours'),
        (1, i.paused_since + interval '720 hours', i.paused_since + interval '2160 hours'),
        (2, i.paused_since + interval '2160 hours', 'infinity')
    ) AS a (aged, since, until)
    CROSS JOIN LATERAL (
        VALUES
        (a.aged, greatest(a.since, i.valid_from), 1),
        (a.aged, least(a.until, coalesce(i.valid_to, 'infinity')), -1)
    ) AS b (aged, at, sign)
    WHERE i.status = 'paused'
        AND greatest(a.since, i.valid_from) < least(a.until, coalesce(i.valid_to, 'infinity'))
)

SELECT
    e.period,
    s.currency,
    sum(s.sign) AS subscriptions,
    sum(s.amount) AS annualised_minor,
    round(sum(s.amount) / 12, 4) AS mrr,
    sum(s.up_to_30_days) AS up_to_30_days,
    sum(s.up_to_90_days) AS up_to_90_days,
    sum(s.longer) AS longer
FROM ends AS e
INNER JOIN steps AS s ON e.until > s.at
GROUP BY e.period, s.currency
HAVING sum(s.sign) <> 0
ORDER BY e.period, s.currency;
