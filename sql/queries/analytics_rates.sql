-- name: insert_window_pairs(span, base)!
-- description: For each customer the first and last change that windows of so many days can hold, from which window on they hold
-- no earlier one, and the change after, which is in all later windows.
INSERT INTO metric_window_pairs (
    customer_id, currency, first_change, last_change, next_change, first_window, run_before, run_after, with_before, with_after,
    with_within, splits, ever_before, pauses
)
WITH numbered AS (
    SELECT
        c.*,
        lag(c.period) OVER w AS previous_period,
        lead(c.period) OVER w AS next_period,
        sum(cast(c.with_after AS integer)) OVER w AS times_with
    FROM metric_customer_periods AS c
    -- What no window since the base holds bounds none.
    WHERE c.period + cast(:span AS integer) > coalesce(cast(:base AS date), '-infinity')
    WINDOW w AS (PARTITION BY c.customer_id ORDER BY c.period)
),

pairs AS (
    SELECT
        a.customer_id,
        a.currency,
        a.period AS first_change,
        a.period AS last_change,
        a.previous_period,
        a.next_period,
        a.run_before,
        a.run_after,
        a.with_before,
        a.with_after,
        a.with_after AS with_within,
        a.splits,
        a.ever_before,
        a.paused + a.resumed AS pauses
    FROM numbered AS a
    UNION ALL
    -- Few customers change twice within a window.
    SELECT
        a.customer_id,
        a.currency,
        a.period AS first_change,
        z.period AS last_change,
        a.previous_period,
        z.next_period,
        a.run_before,
        z.run_after,
        a.with_before,
        z.with_after,
        z.times_with - a.times_with + cast(a.with_after AS integer) > 0 AS with_within,
        a.splits,
        a.ever_before,
        0 AS pauses
    FROM numbered AS a
    INNER JOIN numbered AS z
        ON a.customer_id = z.customer_id AND a.period < z.period AND a.period + cast(:span AS integer) > z.period
    WHERE a.next_period < a.period + cast(:span AS integer)
),

bounded AS (
    SELECT
        p.*,
        greatest(p.last_change, p.previous_period + cast(:span AS integer)) AS first_window
    FROM pairs AS p
    WHERE coalesce(p.next_period, p.last_change) > coalesce(cast(:base AS date), '-infinity')
)

SELECT
    b.customer_id,
    b.currency,
    b.first_change,
    b.last_change,
    b.next_period,
    b.first_window,
    b.run_before,
    b.run_after,
    b.with_before,
    b.with_after,
    b.with_within,
    b.splits,
    b.ever_before,
    b.pauses
FROM bounded AS b
WHERE b.first_window < b.first_change + cast(:span AS integer);

-- name: set_window_pauses()!
-- description: Where windows hold several changes: which subscriptions were paused or came back between their ends.
WITH subscriptions AS (
    SELECT
        p.customer_id,
        p.first_change,
        p.last_change,
        c.subscription_id,
        (array_agg(c.kind_before ORDER BY c.period))[1] AS kind_before,
        (array_agg(c.kind_after ORDER BY c.period DESC))[1] AS kind_after,
        (array_agg(c.run_before ORDER BY c.period))[1] AS run_before,
        (array_agg(c.run_after ORDER BY c.period DESC))[1] AS run_after
    FROM metric_window_pairs AS p
    INNER JOIN metric_changes AS c
        ON p.customer_id = c.customer_id AND p.first_change <= c.period AND p.last_change >= c.period
    WHERE p.first_change < p.last_change AND p.splits
    GROUP BY p.customer_id, p.first_change, p.last_change, c.subscription_id
    HAVING bool_or(c.kind_before = 'paused' OR c.kind_after = 'paused')
),

pauses AS (
    SELECT
        s.customer_id,
        s.first_change,
        s.last_change,
        coalesce(sum(-s.run_before) FILTER (WHERE s.kind_before = 'counted' AND s.kind_after = 'paused'), 0)
        + coalesce(sum(s.run_after) FILTER (WHERE s.kind_before = 'paused' AND s.kind_after = 'counted'), 0) AS amount
    FROM subscriptions AS s
    GROUP BY s.customer_id, s.first_change, s.last_change
)

UPDATE metric_window_pairs
SET pauses = pauses.amount
FROM pauses
WHERE metric_window_pairs.customer_id = pauses.customer_id AND metric_window_pairs.first_change = pauses.first_change
    AND metric_window_pairs.last_change = pauses.last_change;

-- name: insert_window_steps(span, base)!
-- description: Both ends of each window compared and classed as one period: from which window on and by what they differ from
-- those before, and on which day that is known. A pair lasts until its first change leaves the window; a next change ends it.
INSERT INTO metric_window_steps (
    known, period, currency, customers_churned, joined, joined_churned, new, reactivation, expansion, contraction, churn, lost
)
WITH classed AS (
    SELECT
        p.*,
        p.first_change + cast(:span AS integer) AS left_window,
        p.run_after - p.run_before - CASE WHEN p.splits THEN p.pauses ELSE 0 END AS rest
    FROM metric_window_pairs AS p
),

counted AS (
    SELECT
        c.currency,
        c.last_change,
        c.next_change,
        c.first_window,
        c.left_window,
        cast(c.with_before AND NOT c.with_after AS integer) AS customers_churned,
        cast(NOT c.with_before AND c.with_within AS integer) AS joined,
        cast(NOT c.with_before AND c.with_within AND NOT c.with_after AS integer) AS joined_churned,
        CASE WHEN NOT c.ever_before THEN c.rest ELSE 0 END AS new,
        CASE WHEN c.ever_before AND NOT c.with_before THEN c.rest ELSE 0 END AS reactivation,
        CASE WHEN c.splits AND c.with_after THEN greatest(c.rest, 0) ELSE 0 END AS expansion,
        CASE WHEN c.splits AND c.with_after THEN greatest(-c.rest, 0) ELSE 0 END AS contraction,
        CASE WHEN c.splits AND NOT c.with_after THEN -c.rest ELSE 0 END AS churn,
        greatest(c.run_before - c.run_after, 0) AS lost
    FROM classed AS c
)

SELECT
    e.known,
    e.period,
    c.currency,
    sum(e.sign * c.customers_churned) AS customers_churned,
    sum(e.sign * c.joined) AS joined,
    sum(e.sign * c.joined_churned) AS joined_churned,
    sum(e.sign * c.new) AS new,
    sum(e.sign * c.reactivation) AS reactivation,
    sum(e.sign * c.expansion) AS expansion,
    sum(e.sign * c.contraction) AS contraction,
    sum(e.sign * c.churn) AS churn,
    sum(e.sign * c.lost) AS lost
FROM counted AS c
CROSS JOIN LATERAL (
    SELECT
c.last_change AS known,
c.first_window AS period,
1 AS sign
    UNION ALL
    SELECT
c.last_change AS known,
c.left_window AS period,
-1 AS sign
    UNION ALL
    SELECT
c.next_change AS known,
greatest(c.next_change, c.first_window) AS period,
-1 AS sign
    WHERE c.next_change < c.left_window
    UNION ALL
    SELECT
c.next_change AS known,
c.left_window AS period,
1 AS sign
    WHERE c.next_change < c.left_window
) AS e
WHERE e.known > coalesce(cast(:base AS date), '-infinity')
GROUP BY e.known, e.period, c.currency;

-- name: insert_window_changes(span, base)!
-- description: What both ends of each window amount to: the sum of the steps up to it, on top of a stored window if there is one.
INSERT INTO metric_window_changes (
    period, currency, customers_churned, joined, joined_churned, new, reactivation, expansion, contraction, churn, lost
)
WITH steps AS (
    SELECT
        period,
        currency,
        sum(customers_churned) AS customers_churned,
        sum(joined) AS joined,
        sum(joined_churned) AS joined_churned,
        sum(new) AS new,
        sum(reactivation) AS reactivation,
        sum(expansion) AS expansion,
        sum(contraction) AS contraction,
        sum(churn) AS churn,
        sum(lost) AS lost
    FROM metric_window_steps
    GROUP BY period, currency
    UNION ALL
    SELECT
        day AS period,
        currency,
        customers_churned,
        joined,
        joined_churned,
        new_minor,
        reactivation_minor,
        expansion_minor,
        contraction_minor,
        churn_minor,
        lost_minor
    FROM analytics.churn_steps
    WHERE known_day > cast(:base AS date) - cast(:span AS integer) AND known_day <= :base AND day > :base
    UNION ALL
    SELECT
        day AS period,
        currency,
        customers_churned,
        joined,
        joined_churned,
        new_minor,
        reactivation_minor,
        expansion_minor,
        contraction_minor,
        churn_minor,
        lost_minor
    FROM analytics.churn_amounts
    WHERE day = :base
)

SELECT
    w.period,
    s.currency,
    sum(s.customers_churned) AS customers_churned,
    sum(s.joined) AS joined,
    sum(s.joined_churned) AS joined_churned,
    sum(s.new) AS new,
    sum(s.reactivation) AS reactivation,
    sum(s.expansion) AS expansion,
    sum(s.contraction) AS contraction,
    sum(s.churn) AS churn,
    sum(s.lost) AS lost
FROM metric_windows AS w
INNER JOIN steps AS s ON w.last_period >= s.period
GROUP BY w.period, s.currency;

-- name: keep_steps(days, currencies)!
-- description: Stores the steps that are known on these days, and for each day that they are.
INSERT INTO analytics.churn_steps (
    known_day, day, currency, customers_churned, joined, joined_churned, new_minor, reactivation_minor, expansion_minor,
    contraction_minor, churn_minor, lost_minor
)
WITH steps AS (
    SELECT * FROM metric_window_steps WHERE known = any(cast(:days AS date []))
    UNION ALL
    SELECT
        d.day AS known,
        d.day AS period,
        c.currency,
        0 AS customers_churned,
        0 AS joined,
        0 AS joined_churned,
        0 AS new,
        0 AS reactivation,
        0 AS expansion,
        0 AS contraction,
        0 AS churn,
        0 AS lost
    FROM unnest(cast(:days AS date [])) AS d (day)
    CROSS JOIN unnest(cast(:currencies AS text [])) AS c (currency)
)

SELECT
    known,
    period,
    currency,
    sum(customers_churned) AS customers_churned,
    sum(joined) AS joined,
    sum(joined_churned) AS joined_churned,
    sum(new) AS new_minor,
    sum(reactivation) AS reactivation_minor,
    sum(expansion) AS expansion_minor,
    sum(contraction) AS contraction_minor,
    sum(churn) AS churn_minor,
    sum(lost) AS lost_minor
FROM steps
GROUP BY known, period, currency;

-- name: insert_rate_rows(definition)!
-- description: The rates of each window over all currencies; null where a denominator is 0 or an exchange rate is unknown.
INSERT INTO metric_rate_rows (
    period, definition, currency, customers_start, customers_churned, customer_churn_rate, gross_mrr_churn, net_mrr_churn, nrr,
    grr, quick_ratio, arpa, ltv, pause_rate
)
WITH amounts AS (
    SELECT
        w.period,
        w.label,
        max(r.shown) AS currency,
        sum(coalesce(b.customers, 0)) AS customers_start,
        sum(coalesce(c.customers_churned, 0)) AS customers_churned,
        sum(coalesce(b.run_end, 0) * r.rate_before) AS run_start,
        sum(coalesce(c.lost, 0) * r.rate_before) AS lost,
        sum(coalesce(c.new, 0) * r.rate_now) AS new,
        sum(coalesce(c.reactivation, 0) * r.rate_now) AS reactivation,
        sum(coalesce(c.expansion, 0) * r.rate_now) AS expansion,
        sum(coalesce(c.contraction, 0) * r.rate_now) AS contraction,
        sum(coalesce(c.churn, 0) * r.rate_now) AS churn,
        sum(coalesce(e.run_end, 0) * r.rate_now) AS run_end,
        sum(coalesce(e.paying_customers, 0)) AS paying_customers,
        sum(coalesce(e.subscriptions, 0)) AS subscriptions,
        sum(coalesce(e.paused_subscriptions, 0)) AS paused_subscriptions
    FROM metric_windows AS w
    LEFT JOIN metric_rates AS r ON w.period = r.period
    LEFT JOIN metric_summary AS b ON w.before_period = b.period AND r.currency = b.currency AND b.kind = 'total'
    LEFT JOIN metric_summary AS e ON w.last_period = e.period AND r.currency = e.currency AND e.kind = 'total'
    LEFT JOIN metric_window_changes AS c ON w.period = c.period AND r.currency = c.currency
    GROUP BY w.period, w.label
),

rates AS (
    SELECT
        a.*,
        a.customers_churned / nullif(a.customers_start, 0) AS customer_churn_rate,
        a.run_end / 12 / nullif(a.paying_customers, 0) AS arpa
    FROM amounts AS a
)

SELECT
    r.label AS period,
    :definition,
    r.currency,
    cast(r.customers_start AS bigint) AS customers_start,
    cast(r.customers_churned AS bigint) AS customers_churned,
    round(r.customer_churn_rate, 6) AS customer_churn_rate,
    round((r.churn + r.contraction) / nullif(r.run_start, 0), 6) AS gross_mrr_churn,
    round((r.churn + r.contraction - r.expansion - r.reactivation) / nullif(r.run_start, 0), 6) AS net_mrr_churn,
    round((r.run_start + r.expansion - r.contraction - r.churn) / nullif(r.run_start, 0), 6) AS nrr,
    round((r.run_start - r.lost) / nullif(r.run_start, 0), 6) AS grr,
    round((r.new + r.expansion + r.reactivation) / nullif(r.contraction + r.churn, 0), 6) AS quick_ratio,
    round(r.arpa, 4) AS arpa,
    round(r.arpa / nullif(r.customer_churn_rate, 0), 4) AS ltv,
    round(r.paused_subscriptions / nullif(r.subscriptions + r.paused_subscriptions, 0), 6) AS pause_rate
FROM rates AS r;

-- name: insert_stripe_rate_rows(definition)!
-- description: Churn as Stripe defines it: of those with us 30 days ago and those who joined since, who is not with us now.
INSERT INTO metric_rate_rows (period, definition, customers_start, customers_churned, customer_churn_rate)
SELECT
    w.label,
    :definition,
    sum(coalesce(b.customers, 0) + coalesce(c.joined, 0)) AS customers_start,
    sum(coalesce(c.customers_churned, 0) + coalesce(c.joined_churned, 0)) AS customers_churned,
    round(
        sum(coalesce(c.customers_churned, 0) + coalesce(c.joined_churned, 0))
        / nullif(sum(coalesce(b.customers, 0) + coalesce(c.joined, 0)), 0),
        6
    ) AS customer_churn_rate
FROM metric_windows AS w
LEFT JOIN metric_currencies AS r ON TRUE
LEFT JOIN metric_summary AS b ON w.before_period = b.period AND r.currency = b.currency AND b.kind = 'total'
LEFT JOIN metric_window_changes AS c ON w.period = c.period AND r.currency = c.currency
GROUP BY w.label;

-- name: rate_rows()
-- description: The rates computed, by period and definition.
SELECT
    period,
    definition,
    customers_start,
    customers_churned,
    customer_churn_rate,
    gross_mrr_churn,
    net_mrr_churn,
    nrr,
    grr,
    quick_ratio,
    arpa,
    ltv,
    pause_rate
FROM metric_rate_rows
ORDER BY period, definition;

-- name: keep_amounts(days, currencies)!
-- description: Stores what these rates were computed from; a currency in which nothing has changed has zeros.
INSERT INTO analytics.churn_amounts (
    day, currency, customers_churned, joined, joined_churned, new_minor, reactivation_minor, expansion_minor, contraction_minor,
    churn_minor, lost_minor
)
SELECT
    w.period,
    c.currency,
    coalesce(m.customers_churned, 0) AS customers_churned,
    coalesce(m.joined, 0) AS joined,
    coalesce(m.joined_churned, 0) AS joined_churned,
    coalesce(m.new, 0) AS new_minor,
    coalesce(m.reactivation, 0) AS reactivation_minor,
    coalesce(m.expansion, 0) AS expansion_minor,
    coalesce(m.contraction, 0) AS contraction_minor,
    coalesce(m.churn, 0) AS churn_minor,
    coalesce(m.lost, 0) AS lost_minor
FROM metric_windows AS w
CROSS JOIN unnest(cast(:currencies AS text [])) AS c (currency)
LEFT JOIN metric_window_changes AS m ON w.period = m.period AND c.currency = m.currency
WHERE w.period = any(cast(:days AS date []));

-- name: keep_rates(days)!
-- description: Stores the rates shown in metric_rate_rows for these days.
INSERT INTO analytics.churn (
    day, definition, currency, customers_start, customers_churned, customer_churn_rate, gross_mrr_churn, net_mrr_churn, nrr, grr,
    quick_ratio, arpa, ltv, pause_rate
)
SELECT
    cast(r.period AS date) AS day,
    r.definition,
    r.currency,
    r.customers_start,
    r.customers_churned,
    r.customer_churn_rate,
    r.gross_mrr_churn,
    r.net_mrr_churn,
    r.nrr,
    r.grr,
    r.quick_ratio,
    r.arpa,
    r.ltv,
    r.pause_rate
FROM metric_rate_rows AS r
WHERE cast(r.period AS date) = any(cast(:days AS date []));

-- name: load_amounts(days)!
-- description: What the stored rates of these days were computed from.
INSERT INTO metric_window_changes (
    period, currency, customers_churned, joined, joined_churned, new, reactivation, expansion, contraction, churn, lost
)
SELECT
    day,
    currency,
    customers_churned,
    joined,
    joined_churned,
    new_minor,
    reactivation_minor,
    expansion_minor,
    contraction_minor,
    churn_minor,
    lost_minor
FROM analytics.churn_amounts
WHERE day = any(cast(:days AS date []));

-- name: keep_values(days)
-- description: Stores the rates of these days where exchange rates have changed them; gives those days.
UPDATE analytics.churn AS c
SET
    currency = r.currency, gross_mrr_churn = r.gross_mrr_churn, net_mrr_churn = r.net_mrr_churn, nrr = r.nrr, grr = r.grr,
    quick_ratio = r.quick_ratio, arpa = r.arpa, ltv = r.ltv
FROM metric_rate_rows AS r
WHERE c.day = cast(r.period AS date) AND c.definition = r.definition AND c.day = any(cast(:days AS date []))
    AND (c.currency, c.gross_mrr_churn, c.net_mrr_churn, c.nrr, c.grr, c.quick_ratio, c.arpa, c.ltv)
    IS DISTINCT FROM (r.currency, r.gross_mrr_churn, r.net_mrr_churn, r.nrr, r.grr, r.quick_ratio, r.arpa, r.ltv)
RETURNING c.day;
