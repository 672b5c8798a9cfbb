-- The ledger of reward credits.

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

-- name: lock_customers_with_expiring_credit(now)$
-- Customers with credit that has expired since their last expiry, locked: the sums must be read after the lock.
SELECT coalesce(array_agg(customer_id), '{}') AS customer_ids
FROM (
    SELECT c.customer_id
    FROM billing.customers AS c
    WHERE
        c.customer_id IN (
            SELECT e.customer_id
            FROM billing.reward_entries AS e
            WHERE e.kind = 'earned' AND e.expires_at <= :now AND NOT EXISTS (
                SELECT 1 FROM billing.reward_entries AS x
                WHERE x.customer_id = e.customer_id AND x.kind = 'expired' AND x.occurred_at >= e.expires_at
            )
        )
    ORDER BY c.customer_id
    FOR NO KEY UPDATE
) AS locked;

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

-- name: insert_reward(customer_id, kind, amount_minor, occurred_at, expires_at, reason)$
-- One entry of the ledger; its trigger refuses what would overdraw the balance.
INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor, expires_at, reason)
VALUES (:customer_id, :occurred_at, :kind, :amount_minor, :expires_at, :reason)
RETURNING reward_entry_id;

-- name: write_off_credits(customer_ids, credit_id, now, reason)!
-- Take back what is left unspent: of one credit (credit_id), or of all that has expired by now.
-- Credit is spent oldest first. An expired entry belongs to the credits that ran out last before it, a reversal to the credit
-- that its reason names; both take nothing from older credit, so what has been spent stays the head of the queue.
WITH entries AS MATERIALIZED (
    SELECT
        e.*,
        CASE
            WHEN e.kind = 'reversed'
                THEN (substring(e.reason FROM '^reversal of credit ([0-9]+):'))::bigint
        END AS credit_id
    FROM billing.reward_entries AS e
    WHERE e.customer_id = any(cast(:customer_ids AS bigint[]))
),

spent AS (
    SELECT
        customer_id,
        sum(amount_minor) AS amount
    FROM entries
    WHERE kind = 'spent' OR (kind = 'reversed' AND credit_id IS NULL)
    GROUP BY customer_id
),

expired AS (
    SELECT
        x.customer_id,
        ran_out.expires_at,
        sum(x.amount_minor) AS amount,
        max(x.occurred_at) AS newest
    FROM entries AS x
    CROSS JOIN
        LATERAL (
            SELECT max(e.expires_at) AS expires_at
            FROM entries AS e
            WHERE e.customer_id = x.customer_id AND e.kind = 'earned' AND e.expires_at <= x.occurred_at
        ) AS ran_out
    WHERE x.kind = 'expired'
    GROUP BY x.customer_id, ran_out.expires_at
),

credits AS (
    SELECT
        e.customer_id,
        e.reward_entry_id,
        e.occurred_at,
        e.expires_at,
        e.amount_minor
        - coalesce((SELECT sum(r.amount_minor) FROM entries AS r WHERE r.credit_id = e.reward_entry_id), 0) AS amount
    FROM entries AS e
    WHERE e.kind = 'earned'
),

still_good AS (
    -- Of credits that ran out together, the newest were unspent.
    SELECT
        c.customer_id,
        c.reward_entry_id,
        c.occurred_at,
        c.expires_at,
        c.amount - least(c.amount, greatest(0, coalesce(x.amount, 0) - (
            sum(c.amount) OVER (
                PARTITION BY c.customer_id, c.expires_at ORDER BY c.occurred_at DESC, c.reward_entry_id DESC
            ) - c.amount
        ))) AS amount
    FROM credits AS c
    LEFT JOIN expired AS x ON c.customer_id = x.customer_id AND c.expires_at = x.expires_at
),

queue AS (
    SELECT
        g.customer_id,
        g.reward_entry_id,
        g.expires_at,
        least(g.amount, greatest(0, sum(g.amount) OVER (
            PARTITION BY g.customer_id ORDER BY g.occurred_at, g.reward_entry_id
        ) - coalesce(s.amount, 0))) AS amount_left
    FROM still_good AS g
    LEFT JOIN spent AS s ON g.customer_id = s.customer_id
)

INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor, reason)
SELECT
    q.customer_id,
    CASE WHEN cast(:credit_id AS bigint) IS NULL THEN q.expires_at ELSE :now END AS occurred_at,
    CASE WHEN cast(:credit_id AS bigint) IS NULL THEN 'expired' ELSE 'reversed' END AS kind,
    sum(q.amount_left) AS amount_minor,
    cast(:reason AS text) AS reason
FROM queue AS q
WHERE
    q.reward_entry_id = :credit_id
    OR (cast(:credit_id AS bigint) IS NULL AND q.expires_at <= :now AND NOT EXISTS (
        SELECT 1 FROM expired AS x WHERE x.customer_id = q.customer_id AND x.newest >= q.expires_at
    ))
GROUP BY q.customer_id, q.expires_at
HAVING sum(q.amount_left) > 0;
