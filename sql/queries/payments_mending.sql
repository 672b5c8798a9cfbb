-- Mends: what makes the database and Stripe agree again. Each works on the differences that are held: planned, still there, and
-- of subscriptions that are locked and have not changed since they were compared.

-- name: choose_mends(planned, kinds, by_hand)$
-- Of what differs now, choose what was shown by the planned pass and still has the same mend. Returns how many.
WITH chosen AS (
    UPDATE differences_found AS f
    SET outcome = 'planned'
    FROM billing.reconciliation_differences AS d
    WHERE
        d.subscription_ref = f.subscription_ref AND d.kind = f.kind
        AND d.first_seen <= :planned
        AND (d.mend, d.in_database) IS NOT DISTINCT FROM (f.mend, f.in_database)
        AND f.mend <> all(cast(:by_hand AS text []))
        AND (cast(:kinds AS text []) IS NULL OR f.kind = any(cast(:kinds AS text [])))
    RETURNING f.subscription_ref
)

SELECT count(*) FROM chosen;

-- name: hold_mends(most)!
-- Lock the subscriptions of one batch; one that has changed since it was compared is left alone.
WITH held AS MATERIALIZED (
    SELECT
        s.subscription_id,
        s.version
    FROM billing.subscriptions AS s
    WHERE
        s.subscription_id IN (
            SELECT DISTINCT f.subscription_id FROM differences_found AS f WHERE f.outcome = 'planned'
            ORDER BY f.subscription_id
            LIMIT :most
        )
    ORDER BY s.subscription_id
    FOR NO KEY UPDATE
)

UPDATE differences_found AS f
SET outcome = CASE WHEN f.version = held.version THEN 'held' ELSE 'changed since' END
FROM held
WHERE f.subscription_id = held.subscription_id AND f.outcome = 'planned';

-- name: link()!
-- The Stripe subscription that carries our reference, unless somebody has linked it since. The version is raised here, so that
-- the trigger leaves changed_at and its reason alone.
UPDATE billing.subscriptions AS s
SET stripe_subscription_id = f.stripe_id, version = s.version + 1
FROM differences_found AS f
WHERE
    f.outcome = 'held' AND f.mend = 'link' AND s.subscription_id = f.subscription_id
    AND NOT EXISTS (SELECT 1 FROM billing.subscriptions AS o WHERE o.stripe_subscription_id = f.stripe_id);

-- name: cancel_here(now)!
-- Canceled at Stripe, by its dunning or by a person: canceled here as of then, but after what history already says of it.
UPDATE billing.subscriptions AS s
SET
    status = 'canceled',
    canceled_at = gone.ended_at,
    next_payment_at = NULL,
    version = s.version + 1,
    changed_at = greatest(gone.ended_at, gone.last_known),
    change_reason = 'reconciliation: canceled at Stripe'
FROM (
    SELECT
        f.subscription_id,
        coalesce(t.ended_at, :now) AS ended_at,
        max(e.occurred_at) AS last_known
    FROM differences_found AS f
    INNER JOIN stripe_now AS t ON f.stripe_id = t.stripe_id
    LEFT JOIN billing.subscription_events AS e ON f.subscription_id = e.subscription_id
    WHERE f.outcome = 'held' AND f.mend = 'cancel_here'
    GROUP BY f.subscription_id, t.ended_at
) AS gone
WHERE s.subscription_id = gone.subscription_id AND s.status <> 'canceled';

-- name: follow_status(now)!
-- Stripe knows of the money: its status is ours.
UPDATE billing.subscriptions AS s
SET
    status = CASE
        WHEN t.status = 'trialing' AND NOT t.keeps_date THEN 'trialing'
        WHEN t.status IN ('active', 'trialing') THEN 'active'
        ELSE 'past_due'
    END,
    version = s.version + 1,
    changed_at = greatest(:now, s.changed_at),
    change_reason = 'reconciliation: ' || t.status || ' at Stripe'
FROM differences_found AS f
INNER JOIN stripe_now AS t ON f.stripe_id = t.stripe_id
WHERE f.outcome = 'held' AND f.mend = 'follow_status' AND s.subscription_id = f.subscription_id;

-- name: open_grace_periods(now, grace_days)!
-- Who has become past due so gets a grace period from now. A pause that is on the calendar in that time stands.
INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, reason, state, changed_at)
SELECT
    'grace-reconciliation-' || s.subscription_id || ':' || s.version AS pause_ref,
    s.subscription_id,
    :now AS starts_at,
    cast(:now AS timestamptz) + make_interval(days => :grace_days) AS ends_at,
    'payment_failure' AS kind,
    s.change_reason AS reason,
    'active' AS state,
    :now AS changed_at
FROM differences_found AS f
INNER JOIN billing.subscriptions AS s ON f.subscription_id = s.subscription_id
WHERE f.outcome = 'held' AND f.mend = 'follow_status' AND s.status = 'past_due'
ON CONFLICT DO NOTHING;

-- name: close_grace_periods(now)!
-- Who is no longer past due needs no grace period.
UPDATE billing.subscription_pauses AS g
SET
    state = 'completed', version = g.version + 1, changed_at = :now,
    ends_at = greatest(least(g.ends_at, :now), g.starts_at + interval '1 microsecond')
FROM differences_found AS f
INNER JOIN billing.subscriptions AS s ON f.subscription_id = s.subscription_id
WHERE
    f.outcome = 'held' AND f.mend = 'follow_status' AND s.status <> 'past_due'
    AND g.subscription_id = f.subscription_id AND g.kind = 'payment_failure' AND g.state IN ('scheduled', 'active');

-- name: adopt_date(now, tolerance)!
-- Our date has passed without a payment: Stripe's is the next. Where it is not one of our own dates, they are counted from it.
UPDATE billing.subscriptions AS s
SET
    next_payment_at = t.period_end,
    billing_anchor = CASE
        WHEN
            billing.next_payment_at(
                s.billing_anchor, coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY'),
                t.period_end - cast(:tolerance AS interval), c.time_zone
            ) <= t.period_end + cast(:tolerance AS interval)
            THEN s.billing_anchor
        ELSE t.period_end
    END,
    version = s.version + 1,
    changed_at = greatest(:now, s.changed_at),
    change_reason = 'reconciliation: the date at which Stripe bills'
FROM differences_found AS f
INNER JOIN stripe_now AS t ON f.stripe_id = t.stripe_id
CROSS JOIN billing.customers AS c
WHERE
    f.outcome = 'held' AND f.mend = 'adopt_date' AND s.subscription_id = f.subscription_id AND c.customer_id = s.customer_id;

-- name: note_pause_ends()!
-- Until when the pauses last of which Stripe is to be told.
UPDATE differences_found AS f
SET pause_ends = p.ends_at
FROM billing.subscription_pauses AS p
WHERE
    f.outcome = 'held' AND f.mend = 'pause_at_stripe'
    AND p.subscription_id = f.subscription_id AND p.state = 'active' AND p.kind <> 'payment_failure';

-- name: supersede_parked()!
-- What Stripe refused before is asked for anew.
UPDATE billing.stripe_commands AS c
SET state = 'superseded', last_error = concat_ws(': ', 'a mend asks for it anew', c.last_error)
FROM differences_found AS f
WHERE f.outcome = 'held' AND f.parked_command = c.command_id AND c.state = 'parked';

-- name: tell_stripe(now, tolerance, pause_mode)!
-- Commands for all that Stripe has to change. The version is raised, so that their keys are their own: with those of the
-- commands that were delivered once, Stripe would only give its old answers again. Nothing is charged at once: a date is sent
-- only if it lies ahead and is another one.
WITH asked AS MATERIALIZED (
    SELECT
        f.subscription_id,
        array_agg(f.mend) AS mends,
        max(f.pause_ends) AS pause_ends,
        max(t.period_end) AS period_end,
        max(n.plan) AS plan,
        max(n.payment_frequency) AS payment_frequency,
        max(n.amount_minor) AS amount_minor
    FROM differences_found AS f
    INNER JOIN stripe_now AS t ON f.stripe_id = t.stripe_id
    LEFT JOIN scheduled_terms AS n ON f.subscription_id = n.subscription_id
    WHERE
        f.outcome = 'held' AND f.mend IN (
            'change_price', 'change_quantity', 'pause_at_stripe', 'resume_at_stripe', 'move_payment', 'cancel_at_stripe'
        )
    GROUP BY f.subscription_id
),

raised AS (
    UPDATE billing.subscriptions AS s
    SET version = s.version + 1
    FROM asked
    WHERE s.subscription_id = asked.subscription_id
    RETURNING
        s.subscription_id, s.version, s.currency, s.quantity, s.next_payment_at, coalesce(asked.plan, s.plan) AS plan,
        coalesce(asked.amount_minor, s.amount_minor) AS amount_minor,
        coalesce(asked.payment_frequency, to_jsonb(s) ->> 'payment_frequency', 'MONTHLY') AS payment_frequency,
        asked.mends, asked.pause_ends, asked.period_end
)

INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
SELECT
    r.subscription_id || ':' || c.operation || ':' || r.version AS idempotency_key,
    r.subscription_id,
    c.operation,
    c.parameters
FROM raised AS r
LEFT JOIN scheduled_terms AS n ON r.subscription_id = n.subscription_id
CROSS JOIN LATERAL (
    VALUES
    (1, 'change_price', 'change_price', jsonb_build_object(
        'plan', coalesce(n.plan, r.plan), 'payment_frequency', coalesce(n.payment_frequency, r.payment_frequency),
        'currency', r.currency, 'amount_minor', coalesce(n.amount_minor, r.amount_minor), 'proration', 'none'
    )),
    (2, 'change_quantity', 'change_quantity', jsonb_build_object('quantity', r.quantity)),
    (3, 'pause_at_stripe', 'pause', jsonb_build_object('mode', cast(:pause_mode AS text), 'resumes_at', r.pause_ends)),
    (3, 'resume_at_stripe', 'resume', jsonb_build_object('mode', cast(:pause_mode AS text)) || CASE
        WHEN
            r.next_payment_at > :now
            AND abs(extract(EPOCH FROM r.next_payment_at - r.period_end)) > extract(EPOCH FROM cast(:tolerance AS interval))
            THEN jsonb_build_object('next_payment_at', r.next_payment_at)
        ELSE '{}'
    END),
    (4, 'move_payment', 'move_payment', jsonb_build_object('next_payment_at', r.next_payment_at)),
    (5, 'cancel_at_stripe', 'cancel', '{}')
) AS c (position, mend, operation, parameters)
WHERE c.mend = any(r.mends)
ORDER BY r.subscription_id, c.position;

-- name: settle_mends()!
-- The batch is done.
UPDATE differences_found SET outcome = 'mended' WHERE outcome = 'held';

-- name: mends_by_outcome()
-- How many differences were mended, and how many left alone, by kind.
SELECT
    kind,
    outcome,
    count(*) AS number
FROM differences_found
WHERE outcome IS NOT NULL
GROUP BY kind, outcome
ORDER BY kind, outcome;
