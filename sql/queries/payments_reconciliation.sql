-- The database against Stripe: what is looked at, what is left out, what differs.

-- name: pass_begins()^
-- The database's own clock, when the last pass began (by it and by ours), and how many subscriptions the last full one read.
SELECT
    clock_timestamp() AS read_at,
    last_pass.read_at AS last_read_at,
    last_pass.started_at AS last_started_at,
    (SELECT f.compared FROM billing.reconciliations AS f WHERE f.scope = 'full' ORDER BY f.reconciliation_id DESC LIMIT 1)
        AS last_full
FROM (SELECT max(reconciliation_id) AS reconciliation_id FROM billing.reconciliations) AS newest
LEFT JOIN billing.reconciliations AS last_pass ON newest.reconciliation_id = last_pass.reconciliation_id;

-- name: look_at_all()!
-- Every subscription, with the version that it has before Stripe is read.
INSERT INTO in_scope (subscription_id, stripe_id, version)
SELECT
    subscription_id,
    stripe_subscription_id,
    version
FROM billing.subscriptions;

-- name: look_at_touched(read_since, told_since)!
-- What changed here, was told, or was mentioned by Stripe since an instant, and what was different then. read_since is on the
-- database's clock, told_since on the clock of whoever delivers.
WITH touched AS (
    SELECT subscription_id FROM billing.subscriptions WHERE changed_at >= least(:read_since, :told_since)
    UNION
    SELECT subscription_id FROM billing.subscription_events WHERE recorded_at >= :read_since
    UNION
    SELECT subscription_id FROM billing.stripe_commands WHERE created_at >= :read_since OR delivered_at >= :told_since
    UNION
    SELECT subscription_id FROM billing.stripe_commands
    WHERE state = 'parked' AND (alerted_at IS NULL OR alerted_at >= :told_since)
    UNION
    SELECT subscription_id FROM billing.reconciliation_differences WHERE subscription_id IS NOT NULL
),

mentioned AS (
    SELECT coalesce(object ->> 'subscription', subject_id) AS stripe_id
    FROM billing.stripe_events
    WHERE received_at >= :read_since AND (object ? 'subscription' OR starts_with(type, 'customer.subscription.'))
    UNION
    SELECT stripe_id FROM billing.reconciliation_differences WHERE stripe_id IS NOT NULL
)

INSERT INTO in_scope (subscription_id, stripe_id, version)
SELECT
    s.subscription_id,
    coalesce(s.stripe_subscription_id, m.stripe_id) AS stripe_id,
    s.version
FROM billing.subscriptions AS s
FULL JOIN mentioned AS m ON s.stripe_subscription_id = m.stripe_id
WHERE m.stripe_id IS NOT NULL OR s.subscription_id IN (SELECT t.subscription_id FROM touched AS t);

-- name: look_at_nothing()!
-- What was chosen is too much to ask for one by one.
DELETE FROM in_scope;

-- name: stripe_ids_in_scope()
-- What Stripe is asked for, one by one.
SELECT DISTINCT stripe_id FROM in_scope WHERE stripe_id IS NOT NULL ORDER BY stripe_id;

-- name: collect_untold()!
-- Subscriptions of which Stripe has not been told everything yet.
INSERT INTO on_their_way
SELECT DISTINCT subscription_id FROM billing.stripe_commands WHERE state = 'pending';

-- name: collect_due_pauses(now)!
-- Subscriptions whose pause begins or ends by now and has not been swept: Stripe ends a pause by itself, and may be ahead.
INSERT INTO on_their_way
SELECT subscription_id
FROM billing.subscription_pauses
WHERE (state = 'scheduled' AND starts_at <= :now) OR (state = 'active' AND ends_at <= :now);

-- name: collect_due_frequency_changes(now)!
-- Subscriptions whose frequency changes by now, and has not been changed here. While one is paused its change waits.
INSERT INTO on_their_way
SELECT f.subscription_id
FROM billing.frequency_changes AS f
INNER JOIN billing.subscriptions AS s ON f.subscription_id = s.subscription_id
WHERE f.state = 'scheduled' AND f.effective_at <= :now AND s.status <> 'paused';

-- name: collect_scheduled_terms()!
-- The terms of the next payment, where they are others than today's: Stripe is told of a change when it is scheduled.
INSERT INTO scheduled_terms (subscription_id, plan, payment_frequency, amount_minor)
SELECT
    subscription_id,
    to_plan,
    to_frequency,
    amount_minor
FROM billing.frequency_changes
WHERE state = 'scheduled';

-- name: collect_moving()!
-- Subscriptions that changed while Stripe was read: what was read may be from before or after. The next pass looks at them.
INSERT INTO on_their_way
SELECT s.subscription_id
FROM in_scope AS b
INNER JOIN billing.subscriptions AS s ON b.subscription_id = s.subscription_id
WHERE b.version <> s.version;

-- name: subscriptions_in_flight()$
-- How many subscriptions are on their way.
SELECT count(DISTINCT subscription_id) AS number FROM on_their_way;

-- name: find_differences(now, tolerance)!
-- The database against what Stripe has just listed, one row a difference; what is on its way is left out.
WITH ours AS (
    SELECT
        s.subscription_id,
        s.version,
        s.subscription_ref,
        s.stripe_subscription_id,
        s.status,
        s.quantity,
        s.next_payment_at,
        s.billing_anchor,
        (SELECT c.time_zone FROM billing.customers AS c WHERE c.customer_id = s.customer_id) AS time_zone,
        lower(s.currency) AS currency,
        -- The terms that Stripe has been told of: whatever else decides them is joined here, and nowhere else.
        coalesce(n.amount_minor, s.amount_minor) AS amount_minor,
        coalesce(n.payment_frequency, to_jsonb(s) ->> 'payment_frequency', 'MONTHLY') AS frequency
    FROM in_scope AS b
    -- The version once more: nothing may have changed after what is left out was collected.
    INNER JOIN billing.subscriptions AS s ON b.subscription_id = s.subscription_id AND b.version = s.version
    LEFT JOIN scheduled_terms AS n ON b.subscription_id = n.subscription_id
    WHERE
        NOT EXISTS (SELECT 1 FROM on_their_way AS w WHERE w.subscription_id = s.subscription_id)
),

-- Living ones that are linked to none of ours; several with one reference are for a person.
unlinked AS (
    SELECT
        t.subscription_ref,
        min(t.stripe_id) AS stripe_id,
        min(t.status) AS status
    FROM stripe_now AS t
    WHERE
        t.status <> 'canceled'
        AND t.subscription_ref IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM billing.subscriptions AS s WHERE s.stripe_subscription_id = t.stripe_id)
    GROUP BY t.subscription_ref
    HAVING count(*) = 1
),

pairs AS (
    SELECT
        o.*,
        t.stripe_id,
        t.status AS there,
        o.status IN ('paused', 'suspended') AS paused,
        t.paused AS there_paused,
        t.unit_amount,
        t.quantity AS there_quantity,
        t.currency AS there_currency,
        t.frequency AS there_frequency,
        t.period_end,
        -- A trial that only keeps a payment date is none.
        t.status = 'trialing' AND NOT t.keeps_date AS there_trialing,
        t.status = 'trialing' AND t.keeps_date AS there_keeps_date,
        u.stripe_id AS unlinked_id,
        u.status AS unlinked_status
    FROM ours AS o
    LEFT JOIN stripe_now AS t ON o.stripe_subscription_id = t.stripe_id
    LEFT JOIN unlinked AS u
        ON
            o.subscription_ref = u.subscription_ref
            AND (t.stripe_id IS NULL OR (t.status = 'canceled' AND o.status <> 'canceled'))
    -- What is gone on both sides is no matter.
    WHERE o.status <> 'canceled' OR coalesce(t.status, u.status, 'canceled') <> 'canceled'
),

found AS (
    SELECT
        p.subscription_ref,
        d.kind,
        d.in_database,
        d.in_stripe,
        d.mend,
        p.subscription_id,
        p.version,
        coalesce(p.unlinked_id, p.stripe_id) AS stripe_id,
        d.operations
    FROM pairs AS p
    CROSS JOIN LATERAL (
        VALUES
        (
            p.unlinked_id IS NOT NULL OR p.stripe_id IS NULL,
            'missing_in_stripe', p.status, p.unlinked_status || ', not linked',
            CASE WHEN p.unlinked_id IS NOT NULL THEN 'link' ELSE 'create_by_hand' END,
            NULL::text []
        ),
        (
            p.unlinked_id IS NULL AND p.stripe_id IS NOT NULL AND CASE
                WHEN p.status = 'canceled' THEN p.there <> 'canceled'
                WHEN p.there = 'canceled' THEN TRUE
                WHEN p.there = 'paused' OR p.paused THEN FALSE
                WHEN p.status = 'trialing' THEN NOT (p.there_trialing OR p.there_keeps_date)
                WHEN p.status = 'active' THEN p.there IN ('past_due', 'unpaid', 'incomplete') OR p.there_trialing
                ELSE p.there IN ('active', 'trialing') AND NOT p.there_keeps_date
            END,
            'status', p.status, p.there,
            CASE
                WHEN p.status = 'canceled' THEN 'cancel_at_stripe'
                WHEN p.there = 'canceled' THEN 'cancel_here'
                ELSE 'follow_status'
            END,
            ARRAY['cancel']
        ),
        (
            p.status <> 'canceled' AND p.there <> 'canceled' AND p.paused <> p.there_paused,
            'pause',
            CASE WHEN p.paused THEN 'paused' ELSE 'not paused' END,
            CASE WHEN p.there_paused THEN 'paused' ELSE 'not paused' END,
            CASE WHEN p.paused THEN 'pause_at_stripe' ELSE 'resume_at_stripe' END,
            ARRAY['pause', 'resume']
        ),
        (
            p.status <> 'canceled' AND p.there <> 'canceled'
            AND (p.amount_minor, p.currency, p.frequency) IS DISTINCT FROM (p.unit_amount, p.there_currency, p.there_frequency),
            'price',
            concat_ws(' ', p.amount_minor, p.currency, p.frequency),
            concat_ws(' ', p.unit_amount, p.there_currency, p.there_frequency),
            CASE WHEN p.currency = p.there_currency THEN 'change_price' ELSE 'currency_by_hand' END,
            ARRAY['change_price']
        ),
        (
            p.status <> 'canceled' AND p.there <> 'canceled' AND p.quantity <> p.there_quantity,
            'quantity', p.quantity::text, p.there_quantity::text, 'change_quantity', ARRAY['change_quantity']
        ),
        (
            -- A payment that fell due a moment ago is being collected: the date moves on when it is paid.
            p.status IN ('active', 'trialing')
            AND p.there IN ('active', 'trialing') AND NOT p.there_paused
            AND abs(extract(EPOCH FROM p.next_payment_at - p.period_end)) > extract(EPOCH FROM cast(:tolerance AS interval))
            -- Stripe counts months in UTC: where our anchor is another day there, its dates lie up to three days from ours.
            AND NOT coalesce(
                billing.next_payment_at(
                    p.billing_anchor, p.frequency, p.next_payment_at - interval '1 microsecond', p.time_zone
                ) = p.next_payment_at
                AND abs(extract(EPOCH FROM p.period_end - billing.next_payment_at(
                    p.billing_anchor, p.frequency, p.next_payment_at - interval '74 hours', 'UTC'
                ))) <= extract(EPOCH FROM cast(:tolerance AS interval)), FALSE
            )
            AND NOT (p.next_payment_at <= :now AND p.next_payment_at > :now - cast(:tolerance AS interval)),
            'next_payment', p.next_payment_at::text, p.period_end::text,
            CASE WHEN p.next_payment_at > :now THEN 'move_payment' ELSE 'adopt_date' END,
            ARRAY['move_payment', 'resume', 'change_price']
        )
    ) AS d (differs, kind, in_database, in_stripe, mend, operations)
    WHERE d.differs
    UNION ALL
    SELECT
        t.stripe_id AS subscription_ref,
        'missing_in_database' AS kind,
        NULL AS in_database,
        concat_ws(', reference ', t.status, t.subscription_ref) AS in_stripe,
        'import_by_hand' AS mend,
        NULL AS subscription_id,
        NULL AS version,
        t.stripe_id,
        NULL AS operations
    FROM stripe_now AS t
    WHERE
        t.status <> 'canceled'
        AND NOT EXISTS (SELECT 1 FROM billing.subscriptions AS s WHERE s.stripe_subscription_id = t.stripe_id)
        AND NOT EXISTS (SELECT 1 FROM pairs AS p WHERE p.unlinked_id = t.stripe_id)
        -- Its own may be on its way, or changing as we look.
        AND NOT EXISTS (
            SELECT 1
            FROM on_their_way AS w
            INNER JOIN billing.subscriptions AS s ON w.subscription_id = s.subscription_id
            WHERE s.subscription_ref = t.subscription_ref
        )
)

INSERT INTO differences_found
(subscription_ref, kind, in_database, in_stripe, mend, subscription_id, version, stripe_id, parked_command, parked)
SELECT
    f.subscription_ref,
    f.kind,
    f.in_database,
    f.in_stripe,
    f.mend,
    f.subscription_id,
    f.version,
    f.stripe_id,
    c.command_id,
    'command ' || c.command_id || ' is parked: ' || coalesce(c.last_error, 'no reason was kept') AS parked
FROM found AS f
-- The newest command of this kind, where it is parked.
LEFT JOIN LATERAL (
    SELECT max(told.command_id) AS command_id
    FROM billing.stripe_commands AS told
    WHERE told.subscription_id = f.subscription_id AND told.operation = any(f.operations) AND told.state <> 'superseded'
) AS newest ON TRUE
LEFT JOIN billing.stripe_commands AS c ON newest.command_id = c.command_id AND c.state = 'parked'
ORDER BY f.subscription_ref, f.kind;
