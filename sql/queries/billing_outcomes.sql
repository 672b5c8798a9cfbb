-- What payment attempts do to their subscriptions.

-- name: subscriptions_of_payments(payment_ids)$
-- The subscriptions of these payments.
SELECT coalesce(array_agg(DISTINCT subscription_id), '{}') FROM billing.payments
WHERE payment_id = any(cast(:payment_ids AS bigint[]));

-- name: apply_failed_payments(payment_ids)$
-- Subscriptions whose latest attempt failed become past due, as of the first failure since the last success; where something
-- has changed since then, as of the latest. (Of one instant, a success comes after a failure.) One that was called past due
-- since that was recorded is done. Returns how many.
WITH latest AS MATERIALIZED (
    SELECT
        s.subscription_id,
        newest.occurred_at,
        newest.recorded_at,
        (
            SELECT min(bad.occurred_at)
            FROM billing.payments AS bad
            WHERE
                bad.subscription_id = s.subscription_id AND bad.outcome = 'failed'
                AND NOT EXISTS (
                    SELECT 1 FROM billing.payments AS good
                    WHERE
                        good.subscription_id = s.subscription_id AND good.outcome = 'succeeded'
                        AND good.occurred_at >= bad.occurred_at
                )
        ) AS failing_since
    FROM billing.subscriptions AS s
    CROSS JOIN
        LATERAL (
            SELECT
                p.occurred_at,
                p.recorded_at
            FROM billing.payments AS p
            WHERE p.subscription_id = s.subscription_id
            ORDER BY p.occurred_at DESC, p.outcome DESC, p.attempt DESC, p.payment_ref DESC
            LIMIT 1
        ) AS newest
    WHERE
        s.subscription_id IN (
            SELECT p.subscription_id FROM billing.payments AS p WHERE p.payment_id = any(cast(:payment_ids AS bigint[]))
        )
    ORDER BY s.subscription_id
    FOR NO KEY UPDATE OF s
),

changed AS (
    UPDATE billing.subscriptions AS s
    SET
        status = 'past_due', version = s.version + 1, change_reason = 'payment failed',
        changed_at = CASE
            WHEN s.changed_at <= latest.failing_since THEN latest.failing_since
            ELSE greatest(latest.occurred_at, s.changed_at)
        END
    FROM latest
    WHERE
        s.subscription_id = latest.subscription_id AND latest.failing_since IS NOT NULL
        AND s.status IN ('active', 'trialing')
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_events AS e
            WHERE e.subscription_id = s.subscription_id AND e.event = 'past_due' AND e.recorded_at >= latest.recorded_at
        )
    RETURNING s.subscription_id
)

SELECT count(*) FROM changed;

-- name: close_grace_periods(subscription_ids, now)!
-- A payment came in, or the subscription was canceled: what is left of the grace period is void from then on. Where nothing
-- is left, there was none.
UPDATE billing.subscription_pauses AS g
SET
    state = CASE WHEN ended.at <= g.starts_at AND ended.canceled THEN 'canceled' ELSE 'completed' END,
    version = g.version + 1, changed_at = :now,
    ends_at = greatest(least(g.ends_at, ended.at), g.starts_at + interval '1 microsecond')
FROM billing.subscriptions AS s
CROSS JOIN LATERAL (
    SELECT
        open.pause_id,
        least(paid.at, CASE WHEN s.status = 'canceled' THEN s.canceled_at END) AS at,
        s.status = 'canceled' AND s.canceled_at <= coalesce(paid.at, 'infinity') AS canceled
    FROM billing.subscription_pauses AS open
    CROSS JOIN LATERAL (
        SELECT min(p.occurred_at) AS at
        FROM billing.payments AS p
        WHERE
            p.subscription_id = s.subscription_id AND p.outcome = 'succeeded'
            -- One that began with the end of a pause is about a failure before that: what was paid in between counts, too.
            AND p.occurred_at >= CASE
                WHEN NOT starts_with(open.pause_ref, 'grace-reconciliation-') THEN coalesce((
                    SELECT max(bad.occurred_at) FROM billing.payments AS bad
                    WHERE
                        bad.subscription_id = s.subscription_id AND bad.outcome = 'failed'
                        AND bad.occurred_at <= open.starts_at
                ), open.starts_at)
                ELSE open.starts_at
            END
    ) AS paid
    WHERE open.subscription_id = s.subscription_id AND open.kind = 'payment_failure'
) AS ended
WHERE
    s.subscription_id = any(cast(:subscription_ids AS bigint[]))
    AND g.pause_id = ended.pause_id
    AND ended.at IS NOT NULL
    AND (
        g.state IN ('scheduled', 'active')
        -- It was closed by a later payment than the one that is known now.
        OR (
            g.state = 'completed' AND (starts_with(g.pause_ref, 'grace-') OR starts_with(g.pause_ref, 'grace:'))
            AND g.ends_at > greatest(ended.at, g.starts_at + interval '1 microsecond')
        )
    );

-- name: place_grace_periods(payment_ids, grace_days, now)$
-- A grace period for each row of failures with no success in between, from its first failure on: begun, moved where an
-- earlier failure has become known, its reason corrected. Returns how many began that are not over.
-- A pause that is on the calendar in that time stands; a grace period that somebody has canceled stays canceled.
WITH named AS MATERIALIZED (
    SELECT
        p.payment_id,
        p.subscription_id,
        p.outcome,
        p.occurred_at
    FROM billing.payments AS p
    WHERE p.payment_id = any(cast(:payment_ids AS bigint[]))
),

failures AS (
    SELECT
        p.*,
        (
            SELECT min(good.occurred_at) FROM billing.payments AS good
            WHERE good.subscription_id = p.subscription_id AND good.outcome = 'succeeded' AND good.occurred_at >= p.occurred_at
        ) AS paid_at
    FROM billing.payments AS p
    WHERE p.subscription_id IN (SELECT named.subscription_id FROM named) AND p.outcome = 'failed'
),

episodes AS (
    SELECT
        f.subscription_id,
        f.paid_at,
        (array_agg(f.payment_id ORDER BY f.occurred_at, f.attempt, f.payment_ref))[1] AS first_id,
        array_agg('grace-' || f.payment_ref) AS refs
    FROM failures AS f
    GROUP BY f.subscription_id, f.paid_at
),

wanted AS MATERIALIZED (
    SELECT
        e.subscription_id,
        s.status,
        s.canceled_at,
        e.refs,
        f.payment_id,
        'grace-' || f.payment_ref AS pause_ref,
        begins.at AS starts_at,
        begins.at + make_interval(days => :grace_days) AS longest,
        least(e.paid_at, CASE WHEN s.status = 'canceled' THEN s.canceled_at END) AS over_at,
        coalesce(f.failure_code, f.failure_class, 'payment failed') AS reason
    FROM episodes AS e
    INNER JOIN failures AS f ON e.first_id = f.payment_id
    INNER JOIN billing.subscriptions AS s ON e.subscription_id = s.subscription_id
    CROSS JOIN LATERAL (
        -- Heard of when a pause in that time is over: from its end on, as the sweep does for one that it has heard of.
        SELECT coalesce(max(over.ends_at), f.occurred_at) AS at
        FROM billing.subscription_pauses AS over
        WHERE
            over.subscription_id = e.subscription_id AND over.kind <> 'payment_failure' AND over.state = 'completed'
            AND tstzrange(over.starts_at, over.ends_at)
            && tstzrange(f.occurred_at, f.occurred_at + make_interval(days => :grace_days))
    ) AS begins
    WHERE
        (s.status <> 'canceled' OR begins.at < s.canceled_at)
        AND (begins.at = f.occurred_at OR e.paid_at IS NULL OR begins.at < e.paid_at)
),

placed AS (
    SELECT
        wanted.*,
        greatest(least(longest, over_at), starts_at + interval '1 microsecond') AS ends_at,
        CASE WHEN over_at IS NULL THEN 'active' ELSE 'completed' END AS state
    FROM wanted
),

moved AS (
    UPDATE billing.subscription_pauses AS g
    SET
        pause_ref = placed.pause_ref, starts_at = placed.starts_at, reason = placed.reason,
        ends_at = CASE WHEN g.starts_at = placed.starts_at THEN g.ends_at ELSE placed.ends_at END,
        state = CASE
            WHEN g.state = 'canceled' THEN placed.state
            WHEN g.starts_at = placed.starts_at OR g.state = 'completed' THEN g.state
            ELSE placed.state
        END,
        version = g.version + 1, changed_at = :now
    FROM placed
    WHERE
        g.subscription_id = placed.subscription_id AND g.kind = 'payment_failure' AND g.pause_ref = any(placed.refs)
        -- Not one that somebody has canceled; one that seemed to begin after the subscription's end begins earlier after all.
        AND (g.state <> 'canceled' OR g.starts_at >= placed.canceled_at)
        AND (g.pause_ref, g.starts_at, g.reason) IS DISTINCT FROM (placed.pause_ref, placed.starts_at, placed.reason)
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_pauses AS other
            WHERE
                placed.state = 'active' AND g.state <> 'completed'
                AND other.subscription_id = g.subscription_id AND other.pause_id <> g.pause_id
                AND other.state IN ('scheduled', 'active')
                AND tstzrange(other.starts_at, other.ends_at) && tstzrange(placed.starts_at, placed.ends_at)
        )
),

begun AS (
    INSERT INTO billing.subscription_pauses
    (pause_ref, subscription_id, starts_at, ends_at, kind, reason, state, changed_at)
    SELECT
        placed.pause_ref,
        placed.subscription_id,
        placed.starts_at,
        placed.ends_at,
        'payment_failure' AS kind,
        placed.reason,
        placed.state,
        :now AS changed_at
    FROM placed
    WHERE
        (placed.over_at IS NOT NULL OR placed.status = 'past_due')
        -- Only what has just become known begins one: its first failure, or the success that parts it from those before.
        AND EXISTS (
            SELECT 1 FROM named
            WHERE
                named.subscription_id = placed.subscription_id
                AND (
                    named.payment_id = placed.payment_id
                    OR (named.outcome = 'succeeded' AND named.occurred_at = (
                        SELECT max(good.occurred_at) FROM billing.payments AS good
                        WHERE
                            good.subscription_id = placed.subscription_id AND good.outcome = 'succeeded'
                            AND good.occurred_at < placed.starts_at
                    ))
                )
        )
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_pauses AS g
            WHERE
                g.subscription_id = placed.subscription_id
                AND (
                    g.pause_ref = any(placed.refs)
                    OR (
                        g.state <> 'canceled'
                        AND (g.kind <> 'payment_failure' OR NOT starts_with(g.pause_ref, 'grace-'))
                        AND tstzrange(g.starts_at, g.ends_at) && tstzrange(placed.starts_at, placed.longest)
                    )
                )
        )
    ORDER BY placed.subscription_id, placed.starts_at
    ON CONFLICT DO NOTHING
    RETURNING state
)

SELECT count(*) FROM begun WHERE state = 'active';

-- name: apply_succeeded_payments(payment_ids, pause_mode)^
-- Subscriptions whose latest attempt succeeded: past due, suspended or on trial become active, as of the first success since
-- the last failure. Each success advances the next payment date, whatever came after it: past the one that was billed.
-- What was suspended was paused at Stripe, so that is told to resume it.
WITH latest AS MATERIALIZED (
    SELECT
        s.subscription_id,
        s.status,
        s.next_payment_at,
        newest.outcome,
        newest.amount_minor,
        newest.occurred_at,
        paid.occurred_at AS paid_at,
        (
            SELECT min(good.occurred_at)
            FROM billing.payments AS good
            WHERE
                good.subscription_id = s.subscription_id AND good.outcome = 'succeeded'
                AND NOT EXISTS (
                    SELECT 1 FROM billing.payments AS bad
                    WHERE
                        bad.subscription_id = s.subscription_id AND bad.outcome = 'failed'
                        AND bad.occurred_at > good.occurred_at
                )
        ) AS recovered_at,
        greatest(
            billing.next_payment_at(
                s.billing_anchor, coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY'), paid.occurred_at, c.time_zone
            ),
            billing.payment_after_invoice(
                s.billing_anchor, coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY'), billed.at, c.time_zone
            )
        ) AS advanced,
        billing.payment_at(
            s.billing_anchor, coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY'), unaware.times, c.time_zone
        ) AS paid_until,
        unaware.told
    FROM billing.subscriptions AS s
    INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
    CROSS JOIN
        LATERAL (
            SELECT
                p.outcome,
                p.amount_minor,
                p.occurred_at
            FROM billing.payments AS p
            WHERE p.subscription_id = s.subscription_id
            ORDER BY p.occurred_at DESC, p.outcome DESC, p.attempt DESC, p.payment_ref DESC
            LIMIT 1
        ) AS newest
    CROSS JOIN
        LATERAL (
            SELECT max(p.occurred_at) AS occurred_at
            FROM billing.payments AS p
            WHERE
                p.payment_id = any(cast(:payment_ids AS bigint[]))
                AND p.subscription_id = s.subscription_id AND p.outcome = 'succeeded'
        ) AS paid
    CROSS JOIN
        LATERAL (
            SELECT to_timestamp(max((e.object ->> 'created')::bigint)) AS at
            FROM billing.payments AS p
            INNER JOIN billing.stripe_events AS e ON e.subject_id = split_part(p.payment_ref, ':', 1)
            WHERE
                p.payment_id = any(cast(:payment_ids AS bigint[])) AND p.subscription_id = s.subscription_id
                AND p.outcome = 'succeeded' AND e.type = 'invoice.paid'
        ) AS billed
    CROSS JOIN
        LATERAL (
            -- A pause moved the payment to the anchor, and Stripe heard of it long after, if at all: what it billed by itself
            -- since the pause began, and what nobody knew of when the date was set, pays for the periods from that date on.
            SELECT
                nullif(count(DISTINCT e.subject_id)::integer, 0) AS times,
                bool_or(moved.state = 'delivered' AND to_timestamp((e.object ->> 'created')::bigint) < s.billing_anchor) AS told
            FROM billing.stripe_commands AS moved
            INNER JOIN billing.payments AS p
                ON moved.subscription_id = p.subscription_id AND p.outcome = 'succeeded' AND moved.created_at < p.recorded_at
            INNER JOIN billing.stripe_events AS e
                ON
                    e.subject_id = split_part(p.payment_ref, ':', 1) AND e.type = 'invoice.paid'
                    AND e.object ->> 'billing_reason' = 'subscription_cycle'
            WHERE
                moved.subscription_id = s.subscription_id AND moved.operation IN ('resume', 'move_payment')
                AND moved.state IN ('pending', 'delivered')
                AND (moved.parameters ->> 'next_payment_at')::timestamptz = s.billing_anchor
                AND to_timestamp((e.object ->> 'created')::bigint) BETWEEN (
                    SELECT max(h.occurred_at) FROM billing.subscription_events AS h
                    WHERE h.subscription_id = s.subscription_id AND h.event = 'paused' AND h.occurred_at <= moved.created_at
                ) AND coalesce(moved.delivered_at, 'infinity')
                AND NOT EXISTS (
                    SELECT 1 FROM billing.payments AS known
                    WHERE
                        known.subscription_id = s.subscription_id AND known.recorded_at <= moved.created_at
                        AND split_part(known.payment_ref, ':', 1) = e.subject_id
                )
        ) AS unaware
    WHERE
        s.subscription_id IN (
            SELECT p.subscription_id FROM billing.payments AS p WHERE p.payment_id = any(cast(:payment_ids AS bigint[]))
        )
    ORDER BY s.subscription_id
    FOR NO KEY UPDATE OF s
),

planned AS (
    SELECT
        *,
        -- The free invoice at the start of a trial is paid, too: only money ends a trial.
        outcome = 'succeeded' AND (status IN ('past_due', 'suspended') OR (status = 'trialing' AND amount_minor > 0)) AS activates
    FROM latest
    WHERE (outcome = 'succeeded' OR paid_at IS NOT NULL) AND status <> 'canceled'
),

changed AS (
    UPDATE billing.subscriptions AS s
    SET
        status = CASE WHEN planned.activates THEN 'active' ELSE s.status END,
        next_payment_at = greatest(s.next_payment_at, planned.advanced, planned.paid_until),
        version = s.version + 1, change_reason = 'payment succeeded',
        changed_at = greatest(
            CASE
                WHEN NOT planned.activates THEN planned.paid_at
                WHEN planned.status = 'trialing' THEN planned.occurred_at
                ELSE planned.recovered_at
            END,
            s.changed_at
        )
    FROM planned
    WHERE
        s.subscription_id = planned.subscription_id AND s.status = planned.status
        AND (
            planned.activates OR greatest(planned.advanced, planned.paid_until) > s.next_payment_at
            OR (s.next_payment_at IS NULL AND planned.advanced IS NOT NULL)
        )
    RETURNING
        s.subscription_id, s.version, s.stripe_subscription_id, s.next_payment_at, planned.status AS was,
        -- Stripe would bill once more on the date that it was told.
        planned.told AND planned.paid_until = s.next_payment_at AS misled
),

told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        changed.subscription_id || ':resume:' || changed.version AS idempotency_key,
        changed.subscription_id,
        'resume' AS operation,
        jsonb_build_object('mode', coalesce((
            SELECT (array_agg(c.parameters ->> 'mode' ORDER BY c.command_id DESC))[1]
            FROM billing.stripe_commands AS c
            WHERE c.subscription_id = changed.subscription_id AND c.operation = 'pause'
        ), cast(:pause_mode AS text))) AS parameters
    FROM changed
    WHERE changed.was = 'suspended' AND changed.stripe_subscription_id IS NOT NULL
    UNION ALL
    SELECT
        changed.subscription_id || ':move_payment:' || changed.version AS idempotency_key,
        changed.subscription_id,
        'move_payment' AS operation,
        jsonb_build_object('next_payment_at', changed.next_payment_at) AS parameters
    FROM changed
    WHERE changed.misled AND changed.was NOT IN ('suspended', 'paused') AND changed.stripe_subscription_id IS NOT NULL
)

SELECT
    (SELECT count(*) FROM changed WHERE was IN ('past_due', 'suspended')) AS recovered,
    (SELECT coalesce(array_agg(subscription_id), '{}') FROM latest) AS subscription_ids;
