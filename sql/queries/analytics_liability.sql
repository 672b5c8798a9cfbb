-- What customers could still spend of their reward credits.

-- name: rewards_deployed()$
-- description: Whether there is a reward ledger that tells what each write-off was taken from.
SELECT to_regprocedure('billing.reward_credits(bigint[])') IS NOT NULL AS deployed;

-- name: liability_rows(first, last, grain, known_at)
-- description: Credit opened, moved and left in each of the periods, by currency, and when what is left runs out.
-- What is left of each credit changes only with an entry: it is worked out once for each state of a customer, by the rule of
-- billing.reward_credits, and the states are laid beside each other as what they add and take away.
WITH periods AS (
    SELECT
        cast(p.at AS date) AS period,
        row_number() OVER (ORDER BY p.at) AS place,
        cast(p.at AS timestamptz) AS since,
        cast(p.at + cast('1 ' || :grain AS interval) AS timestamptz) AS until
    FROM generate_series(cast(:first AS timestamp), cast(:last AS timestamp), cast('1 ' || :grain AS interval)) AS p (at)
),

-- Place 0: before the first period.
entries AS (
    SELECT
        r.*,
        c.currency,
        coalesce(p.place, 0) AS place
    FROM billing.reward_entries AS r
    INNER JOIN billing.customers AS c ON r.customer_id = c.customer_id
    LEFT JOIN periods AS p ON r.occurred_at >= p.since AND r.occurred_at < p.until
    WHERE r.occurred_at < (SELECT max(q.until) FROM periods AS q)
        AND r.recorded_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
),

flows AS (
    SELECT
        e.currency,
        e.place,
        sum(e.effect_minor) AS effect,
        coalesce(sum(e.amount_minor) FILTER (WHERE e.kind = 'earned'), 0) AS earned,
        coalesce(sum(e.amount_minor) FILTER (WHERE e.kind = 'spent'), 0) AS spent,
        coalesce(sum(e.amount_minor) FILTER (WHERE e.kind = 'expired'), 0) AS expired,
        coalesce(sum(e.amount_minor) FILTER (WHERE e.kind = 'reversed'), 0) AS reversed
    FROM entries AS e
    GROUP BY e.currency, e.place
),

-- A customer's state from one period with entries to the next.
states AS (
    SELECT
        e.customer_id,
        e.currency,
        e.place,
        lead(e.place) OVER (PARTITION BY e.customer_id ORDER BY e.place) AS until_place,
        sum(sum(e.effect_minor)) OVER (PARTITION BY e.customer_id ORDER BY e.place) AS balance
    FROM entries AS e
    GROUP BY e.customer_id, e.currency, e.place
),

known AS (
    SELECT
        s.place AS state,
        e.*
    FROM states AS s
    INNER JOIN entries AS e ON s.customer_id = e.customer_id AND s.place >= e.place
    WHERE s.balance > 0
),

linked AS (
    SELECT
        k.*,
        coalesce(sum(k.amount_minor) FILTER (WHERE k.credit_id IS NOT NULL) OVER credit, 0) AS linked,
        CASE
            WHEN k.expires_at IS NOT NULL OR (k.kind = 'expired' AND k.credit_id IS NULL) THEN max(k.expires_at) OVER by_expiry
        END AS ran_out_at
    FROM known AS k
    WINDOW
        credit AS (PARTITION BY k.customer_id, k.state, coalesce(k.credit_id, k.reward_entry_id)),
        by_expiry AS (PARTITION BY k.customer_id, k.state ORDER BY coalesce(k.expires_at, k.occurred_at))
),

together AS (
    SELECT
        l.*,
        CASE l.kind WHEN 'earned' THEN l.amount_minor - l.linked ELSE 0 END AS kept,
        coalesce(sum(l.amount_minor) FILTER (WHERE l.kind = 'expired' AND l.credit_id IS NULL) OVER ran_out, 0) AS unnamed,
        coalesce(sum(l.amount_minor - l.linked) FILTER (WHERE l.kind = 'earned') OVER newer, 0) AS kept_newer
    FROM linked AS l
    WINDOW
        ran_out AS (PARTITION BY l.customer_id, l.state, l.ran_out_at),
        newer AS (
            PARTITION BY l.customer_id, l.state, l.ran_out_at
            ORDER BY l.recorded_at DESC, l.occurred_at DESC, l.reward_entry_id DESC
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        )
),

attributed AS (
    SELECT
        t.*,
        CASE
            WHEN t.kind = 'earned' AND t.ran_out_at IS NOT NULL THEN least(t.kept, greatest(t.unnamed - t.kept_newer, 0))
            ELSE 0
        END AS taken
    FROM together AS t
),

queue AS (
    SELECT
        a.*,
        coalesce(sum(a.amount_minor) FILTER (WHERE a.kind <> 'earned' AND a.credit_id IS NULL) OVER customer, 0)
        - sum(a.taken) OVER customer AS used,
        coalesce(sum(a.kept - a.taken) OVER before, 0) AS ahead
    FROM attributed AS a
    WINDOW
        customer AS (PARTITION BY a.customer_id, a.state),
        before AS (
            PARTITION BY a.customer_id, a.state ORDER BY a.recorded_at, a.occurred_at, a.reward_entry_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        )
),

lots AS (
    SELECT
        q.customer_id,
        q.currency,
        q.state,
        cast(q.expires_at AS date) AS runs_out,
        q.kept - q.taken - least(q.kept - q.taken, greatest(q.used - q.ahead, 0)) AS remains
    FROM queue AS q
    WHERE q.kind = 'earned'
),

-- What each state adds where it begins and takes away where the next one does, by the day on which it runs out.
changes AS (
    SELECT
        l.currency,
        b.place,
        l.runs_out,
        sum(b.sign * l.remains) AS change
    FROM lots AS l
    INNER JOIN states AS s ON l.customer_id = s.customer_id AND l.state = s.place
    CROSS JOIN LATERAL (VALUES (s.place, 1), (s.until_place, -1)) AS b (place, sign)
    WHERE b.place IS NOT NULL AND l.remains > 0
    GROUP BY l.currency, b.place, l.runs_out
),

aged AS (
    SELECT
        c.currency,
        p.period,
        coalesce(sum(c.change) FILTER (WHERE c.runs_out < cast(p.until AS date)), 0) AS overdue,
        coalesce(sum(c.change) FILTER (WHERE c.runs_out - cast(p.until AS date) BETWEEN 0 AND 29), 0)
            AS within_30_days,
        coalesce(sum(c.change) FILTER (WHERE c.runs_out - cast(p.until AS date) BETWEEN 30 AND 89), 0)
            AS within_90_days,
        coalesce(sum(c.change) FILTER (WHERE c.runs_out - cast(p.until AS date) BETWEEN 90 AND 364), 0)
            AS within_365_days,
        coalesce(sum(c.change) FILTER (WHERE c.runs_out - cast(p.until AS date) >= 365), 0) AS later,
        coalesce(sum(c.change) FILTER (WHERE c.runs_out IS NULL), 0) AS never
    FROM periods AS p
    INNER JOIN changes AS c ON p.place >= c.place
    GROUP BY c.currency, p.period
),

owners AS (
    SELECT
        s.currency,
        p.period,
        sum(s.change) AS customers
    FROM (
        SELECT
            s.currency,
            b.place,
            sum(b.sign) AS change
        FROM states AS s
        CROSS JOIN LATERAL (VALUES (s.place, 1), (s.until_place, -1)) AS b (place, sign)
        WHERE b.place IS NOT NULL AND s.balance > 0
        GROUP BY s.currency, b.place
    ) AS s
    INNER JOIN periods AS p ON s.place <= p.place
    GROUP BY s.currency, p.period
),

carried AS (
    SELECT
        c.currency,
        p.period,
        p.place,
        coalesce(f.effect, 0) AS effect,
        coalesce(f.earned, 0) AS earned,
        coalesce(f.spent, 0) AS spent,
        coalesce(f.expired, 0) AS expired,
        coalesce(f.reversed, 0) AS reversed,
        sum(coalesce(f.effect, 0)) OVER (PARTITION BY c.currency ORDER BY p.place)
        + coalesce((SELECT b.effect FROM flows AS b WHERE b.currency = c.currency AND b.place = 0), 0) AS closing
    FROM (SELECT DISTINCT g.currency FROM flows AS g) AS c
    CROSS JOIN periods AS p
    LEFT JOIN flows AS f ON c.currency = f.currency AND p.place = f.place
)

SELECT
    r.period,
    r.currency,
    r.closing - r.effect AS opening,
    r.earned,
    r.spent,
    r.expired,
    r.reversed,
    r.closing,
    coalesce(o.customers, 0) AS customers,
    coalesce(a.overdue, 0) AS overdue,
    coalesce(a.within_30_days, 0) AS within_30_days,
    coalesce(a.within_90_days, 0) AS within_90_days,
    coalesce(a.within_365_days, 0) AS within_365_days,
    coalesce(a.later, 0) AS later,
    coalesce(a.never, 0) AS never
FROM carried AS r
LEFT JOIN aged AS a ON r.currency = a.currency AND r.period = a.period
LEFT JOIN owners AS o ON r.currency = o.currency AND r.period = o.period
WHERE r.closing <> 0 OR r.earned <> 0 OR r.spent <> 0 OR r.expired <> 0 OR r.reversed <> 0
ORDER BY r.period, r.currency;
