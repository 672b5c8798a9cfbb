-- The ledger of reward credits.

-- name: rewards_ready()$
-- Whether the schema tells what is left of each credit: an older one does not.
SELECT to_regprocedure('billing.reward_credits(bigint[])') IS NOT NULL AS ready;

-- name: lock_customer(customer_ref)$
-- One customer, locked until the transaction ends: whoever changes a reward balance takes this lock first.
SELECT customer_id FROM billing.customers WHERE customer_ref = :customer_ref FOR NO KEY UPDATE;

-- name: lock_customer_of_credit(reward_entry_id)$
-- The customer of an earned credit, locked; null where there is no such credit.
SELECT c.customer_id
FROM billing.customers AS c
WHERE
    c.customer_id = (
        SELECT e.customer_id FROM billing.reward_entries AS e WHERE e.reward_entry_id = :reward_entry_id AND e.kind = 'earned'
    )
FOR NO KEY UPDATE;

-- name: lock_customers(customer_ids)$
-- These customers, locked in one order for all; none where rewards have been switched off meanwhile.
SELECT coalesce(array_agg(customer_id), '{}') AS customer_ids
FROM (
    SELECT c.customer_id
    FROM billing.customers AS c
    WHERE
        c.customer_id = any(cast(:customer_ids AS bigint []))
        AND EXISTS (SELECT 1 FROM billing.feature_flags AS f WHERE f.feature = 'rewards' AND f.enabled)
    ORDER BY c.customer_id
    FOR NO KEY UPDATE
) AS locked;

-- name: customer_id_of(customer_ref)$
-- A customer's key; null where there is none.
SELECT customer_id FROM billing.customers WHERE customer_ref = :customer_ref;

-- name: currency_of(customer_ref)$
-- The currency of a customer; nothing where there is none.
SELECT currency FROM billing.customers WHERE customer_ref = :customer_ref;

-- name: credit_owner(reward_entry_id)$
-- Whose credit it is.
SELECT c.customer_ref
FROM billing.reward_entries AS e
INNER JOIN billing.customers AS c ON e.customer_id = c.customer_id
WHERE e.reward_entry_id = :reward_entry_id;

-- name: referrer_of(referred_customer_id)$
-- Who was rewarded for bringing this customer.
SELECT c.customer_ref
FROM billing.reward_entries AS e
INNER JOIN billing.customers AS c ON e.customer_id = c.customer_id
WHERE e.source = 'referral' AND e.referred_customer_id = :referred_customer_id;

-- name: reward_balance(customer_id)$
-- What a customer has left, minor units.
SELECT coalesce(sum(effect_minor), 0)::bigint AS balance_minor FROM billing.reward_entries WHERE customer_id = :customer_id;

-- name: balance_of_customer(customer_ref)^
-- What a customer has left, minor units; no row where there is no such customer.
SELECT
    c.currency,
    coalesce(sum(e.effect_minor), 0)::bigint AS balance_minor
FROM billing.customers AS c
LEFT JOIN billing.reward_entries AS e ON c.customer_id = e.customer_id
WHERE c.customer_ref = :customer_ref
GROUP BY c.customer_id, c.currency;

-- name: entries_of_customer(customer_ref)
-- The ledger of one customer in the order of time, with what is left of each credit.
SELECT
    e.reward_entry_id,
    e.occurred_at,
    e.kind,
    e.source,
    e.amount_minor,
    credit.left_minor,
    e.expires_at,
    e.credit_id,
    e.milestone_months,
    referred.customer_ref AS referred,
    e.reason
FROM billing.customers AS c
INNER JOIN billing.reward_entries AS e ON c.customer_id = e.customer_id
LEFT JOIN billing.customers AS referred ON e.referred_customer_id = referred.customer_id
LEFT JOIN LATERAL billing.reward_credits(ARRAY[c.customer_id]) AS credit ON e.reward_entry_id = credit.reward_entry_id
WHERE c.customer_ref = :customer_ref
ORDER BY e.occurred_at, e.reward_entry_id;

-- name: insert_reward(customer_id, kind, amount_minor, occurred_at, expires_at, reason, source, referred_customer_id)$
-- One entry of the ledger; its trigger refuses what would overdraw the balance. Null where the referred one is rewarded for.
INSERT INTO billing.reward_entries
(customer_id, occurred_at, kind, amount_minor, expires_at, reason, source, referred_customer_id)
VALUES (:customer_id, :occurred_at, :kind, :amount_minor, :expires_at, :reason, :source, :referred_customer_id)
ON CONFLICT (referred_customer_id) WHERE source = 'referral' DO NOTHING
RETURNING reward_entry_id;

-- name: customers_with_expired_credit(now)$
-- Customers with a balance and with credit that has run out: some of it may still have to be written off.
SELECT coalesce(array_agg(b.customer_id ORDER BY b.customer_id), '{}') AS customer_ids
FROM billing.reward_balances AS b
WHERE
    b.balance_minor > 0 AND b.customer_id IN (
        SELECT e.customer_id FROM billing.reward_entries AS e WHERE e.kind = 'earned' AND e.expires_at <= :now
    );

-- name: write_off_expired(customer_ids, now)
-- Take back what is left of credit that has run out by now, dated when it did. By currency: entries and minor units.
WITH written AS (
    INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor, credit_id, reason)
    SELECT
        c.customer_id,
        c.expires_at,
        'expired' AS kind,
        c.left_minor,
        c.reward_entry_id,
        'expired' AS reason
    FROM billing.reward_credits(cast(:customer_ids AS bigint [])) AS c
    WHERE c.expires_at <= :now AND c.left_minor > 0
    ORDER BY c.customer_id, c.reward_entry_id
    RETURNING customer_id, amount_minor
)

SELECT
    c.currency,
    count(*) AS entries,
    sum(w.amount_minor)::bigint AS amount_minor
FROM written AS w
INNER JOIN billing.customers AS c ON w.customer_id = c.customer_id
GROUP BY c.currency;

-- name: write_off_reversed(customer_ids, credit_ids, instants, reason)
-- Take back what is left of these credits (of these customers), each dated at its instant. By currency: entries, minor units.
WITH written AS (
    INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor, credit_id, reason)
    SELECT
        c.customer_id,
        r.occurred_at,
        'reversed' AS kind,
        c.left_minor,
        c.reward_entry_id,
        'reversal of credit ' || c.reward_entry_id || ': ' || cast(:reason AS text) AS reason
    FROM billing.reward_credits(cast(:customer_ids AS bigint [])) AS c
    INNER JOIN
        unnest(cast(:credit_ids AS bigint []), cast(:instants AS timestamptz [])) AS r (credit_id, occurred_at)
        ON c.reward_entry_id = r.credit_id
    WHERE c.left_minor > 0
    ORDER BY c.customer_id, c.reward_entry_id
    RETURNING customer_id, amount_minor
)

SELECT
    c.currency,
    count(*) AS entries,
    sum(w.amount_minor)::bigint AS amount_minor
FROM written AS w
INNER JOIN billing.customers AS c ON w.customer_id = c.customer_id
GROUP BY c.currency;

-- name: loyalty_since()$
-- Since when milestones are rewarded, unless a setting says otherwise.
SELECT starts_at FROM billing.reward_programmes WHERE programme = 'loyalty';

-- name: due_milestones(since, now, own, currencies, months, amounts)^
-- Milestones reached from `since` until now and not yet rewarded, as arrays of equal length, ordered by customer.
-- Tenure begins when a subscription that has started (a trial has not) first has a price above zero. Whoever had no subscription
-- that was not canceled, at the very instant of the milestone, gets nothing for it. A milestone without a currency is for
-- every customer whose currency is not among those with milestones of their own.
WITH ledger AS (
    SELECT
        e.customer_id,
        e.occurred_at,
        e.event,
        e.amount_minor,
        bool_or(e.event = 'started') OVER (
            PARTITION BY e.subscription_id ORDER BY e.occurred_at, e.recorded_at, e.event_id
        ) AS has_started
    FROM billing.subscription_events AS e
),

tenures AS (
    SELECT
        customer_id,
        min(occurred_at) AS first_paid_at
    FROM ledger
    WHERE has_started AND amount_minor > 0 AND event <> 'canceled'
    GROUP BY customer_id
),

milestones AS MATERIALIZED (
    -- The exact instant, in the customer's own zone, is worked out only where a rough one is near.
    SELECT
        t.customer_id,
        m.months,
        m.amount_minor,
        billing.payment_at(t.first_paid_at, 'MONTHLY', m.months, c.time_zone) AS reached_at
    FROM tenures AS t
    INNER JOIN billing.customers AS c ON t.customer_id = c.customer_id
    INNER JOIN unnest(cast(:currencies AS text []), cast(:months AS integer []), cast(:amounts AS bigint []))
        AS m (currency, months, amount_minor)
        ON CASE WHEN c.currency = any(cast(:own AS text [])) THEN c.currency = m.currency ELSE m.currency IS NULL END
    WHERE
        t.first_paid_at + make_interval(months => m.months) >= cast(:since AS timestamptz) - interval '4 days'
        AND t.first_paid_at + make_interval(months => m.months) <= cast(:now AS timestamptz) + interval '4 days'
        AND NOT EXISTS (
            SELECT 1 FROM billing.reward_entries AS r
            WHERE r.customer_id = t.customer_id AND r.milestone_months = m.months AND r.source = 'loyalty'
        )
),

due AS (
    SELECT * FROM milestones AS m
    WHERE
        m.reached_at >= :since AND m.reached_at <= :now AND EXISTS (
            SELECT 1 FROM billing.subscriptions AS s
            WHERE
                s.customer_id = m.customer_id AND (
                    SELECT e.event FROM billing.subscription_events AS e
                    WHERE e.subscription_id = s.subscription_id AND e.occurred_at <= m.reached_at AND e.event <> 'changed'
                    ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.event_id DESC
                    LIMIT 1
                ) <> 'canceled'
        )
)

SELECT
    coalesce(array_agg(customer_id ORDER BY customer_id, months), '{}') AS customer_ids,
    coalesce(array_agg(months ORDER BY customer_id, months), '{}') AS months,
    coalesce(array_agg(amount_minor ORDER BY customer_id, months), '{}') AS amounts,
    coalesce(array_agg(reached_at ORDER BY customer_id, months), '{}') AS instants
FROM due;

-- name: insert_milestones(locked, customer_ids, months, amounts, instants, lifetime_days)
-- Credit for milestones of the customers that are locked, once each. By currency: entries and minor units.
WITH written AS (
    INSERT INTO billing.reward_entries
    (customer_id, occurred_at, kind, amount_minor, expires_at, reason, source, milestone_months)
    SELECT
        m.customer_id,
        m.occurred_at,
        'earned' AS kind,
        m.amount_minor,
        m.occurred_at + make_interval(hours => 24 * cast(:lifetime_days AS integer)) AS expires_at,
        m.months || ' months a customer' AS reason,
        'loyalty' AS source,
        m.months
    FROM unnest(
        cast(:customer_ids AS bigint []), cast(:months AS integer []), cast(:amounts AS bigint []),
        cast(:instants AS timestamptz [])
    ) AS m (customer_id, months, amount_minor, occurred_at)
    WHERE m.customer_id = any(cast(:locked AS bigint []))
    ON CONFLICT (customer_id, milestone_months) WHERE source = 'loyalty' DO NOTHING
    RETURNING customer_id, amount_minor
)

SELECT
    c.currency,
    count(*) AS entries,
    sum(w.amount_minor)::bigint AS amount_minor
FROM written AS w
INNER JOIN billing.customers AS c ON w.customer_id = c.customer_id
GROUP BY c.currency;

-- name: due_reversals(now, months)^
-- Referrals whose referred customer left in time, as arrays of equal length, ordered by customer: credit, customer, instant.
-- He left when his last subscription was canceled: none of his was alive at that instant. Credit that ran out before is not
-- reversed, it expires.
WITH referrals AS (
    SELECT
        e.reward_entry_id,
        e.customer_id,
        e.referred_customer_id,
        e.occurred_at,
        least(e.expires_at, billing.payment_at(e.occurred_at, 'MONTHLY', cast(:months AS integer), c.time_zone)) AS until
    FROM billing.reward_entries AS e
    INNER JOIN billing.customers AS c ON e.customer_id = c.customer_id
    WHERE
        e.source = 'referral' AND e.occurred_at <= :now AND NOT EXISTS (
            SELECT 1 FROM billing.reward_entries AS r WHERE r.credit_id = e.reward_entry_id AND r.kind = 'reversed'
        )
),

gone AS (
    SELECT
        r.reward_entry_id,
        r.customer_id,
        min(x.occurred_at) AS left_at
    FROM referrals AS r
    INNER JOIN billing.subscription_events AS x ON r.referred_customer_id = x.customer_id
    WHERE
        x.event = 'canceled' AND x.occurred_at >= r.occurred_at AND x.occurred_at < r.until AND x.occurred_at <= :now
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscriptions AS s
            WHERE
                s.customer_id = r.referred_customer_id AND (
                    SELECT e.event FROM billing.subscription_events AS e
                    WHERE e.subscription_id = s.subscription_id AND e.occurred_at <= x.occurred_at AND e.event <> 'changed'
                    ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.event_id DESC
                    LIMIT 1
                ) <> 'canceled'
        )
    GROUP BY r.reward_entry_id, r.customer_id
)

SELECT
    coalesce(array_agg(reward_entry_id ORDER BY customer_id, reward_entry_id), '{}') AS credit_ids,
    coalesce(array_agg(customer_id ORDER BY customer_id, reward_entry_id), '{}') AS customer_ids,
    coalesce(array_agg(left_at ORDER BY customer_id, reward_entry_id), '{}') AS instants
FROM gone;

-- name: negative_balances()
-- Customers who have spent or lost more credit than they had.
SELECT
    c.customer_ref,
    b.balance_minor
FROM billing.reward_balances AS b
INNER JOIN billing.customers AS c ON b.customer_id = c.customer_id
WHERE b.balance_minor < 0
ORDER BY c.customer_ref;

-- name: excess_write_offs()
-- Credits of which reversals and expiries took more than was earned, or that are no credit of the same customer.
SELECT
    c.customer_ref,
    w.credit_id,
    coalesce(credit.amount_minor, 0) AS earned_minor,
    sum(w.amount_minor)::bigint AS taken_minor
FROM billing.reward_entries AS w
INNER JOIN billing.customers AS c ON w.customer_id = c.customer_id
LEFT JOIN billing.reward_entries AS credit
    ON w.credit_id = credit.reward_entry_id AND w.customer_id = credit.customer_id AND credit.kind = 'earned'
WHERE w.credit_id IS NOT NULL
GROUP BY c.customer_ref, w.credit_id, credit.amount_minor
HAVING sum(w.amount_minor) > coalesce(credit.amount_minor, 0)
ORDER BY c.customer_ref, w.credit_id;
