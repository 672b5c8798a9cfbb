-- The pause sweep: what is due and not done, by the batch.

-- name: planned_sweep(up_to)^
-- What is due by an instant and not done. A pause whose start and end have both passed counts under both.
SELECT
    count(*) FILTER (WHERE to_start) AS to_start,
    count(*) FILTER (WHERE kind <> 'payment_failure' AND ends) AS to_end,
    count(*) FILTER (WHERE kind = 'payment_failure' AND ends) AS to_suspend,
    count(*) FILTER (WHERE to_start) + count(*) FILTER (WHERE ends) AS due,
    min(due_at) AS oldest_due_at
FROM (
    SELECT
        TRUE AS to_start,
        coalesce(ends_at <= :up_to, FALSE) AS ends,
        kind,
        starts_at AS due_at
    FROM billing.subscription_pauses
    WHERE state = 'scheduled' AND starts_at <= :up_to
    UNION ALL
    SELECT
        FALSE AS to_start,
        TRUE AS ends,
        kind,
        ends_at AS due_at
    FROM billing.subscription_pauses
    WHERE state = 'active' AND ends_at <= :up_to
) AS due;

-- name: plan_for_batches()$
-- For this transaction: rows are found by their keys, not by reading the whole table for each batch of it.
SELECT set_config('random_page_cost', '1.1', TRUE) AS random_page_cost;

-- name: forget_plans()!
-- The ledger's trigger keeps the plan of its first call, made for as few rows as that one changed: a batch needs one of its own.
DISCARD PLANS;

-- name: due_starts(up_to, passed)
-- Pauses due to start, in the order of their subscriptions: a batch then touches each page of that table once.
SELECT pause_id
FROM billing.subscription_pauses
WHERE state = 'scheduled' AND starts_at <= :up_to AND coalesce(ends_at <= :up_to, FALSE) = :passed
ORDER BY subscription_id, starts_at;

-- name: due_ends(up_to)
-- Pauses due to end, in the order of their subscriptions.
SELECT pause_id
FROM billing.subscription_pauses
WHERE state = 'active' AND ends_at <= :up_to
ORDER BY subscription_id, ends_at;

-- name: start_due_pauses(pause_ids, up_to, passed, pause_mode)^
-- Start these pauses, where they are still due: those running at up_to, or (passed) those that are over by then already, which
-- Stripe is not told of. Rows that somebody else holds are left to him; a later pause waits for the one before it.
WITH due AS MATERIALIZED (
    SELECT
        p.pause_id,
        p.subscription_id,
        p.kind,
        p.starts_at,
        p.ends_at,
        s.status
    FROM billing.subscription_pauses AS p
    INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
    WHERE
        p.pause_id = any(cast(:pause_ids AS bigint[]))
        -- Not "=": the planner would take the partial index, where statistics lag, and walk all of it.
        AND p.state IS NOT DISTINCT FROM 'scheduled' AND p.starts_at <= :up_to
        AND coalesce(p.ends_at <= :up_to, FALSE) = :passed
        AND EXISTS (SELECT 1 FROM billing.feature_flags AS f WHERE f.feature = 'pauses' AND f.enabled)
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_pauses AS earlier
            WHERE
                earlier.subscription_id = p.subscription_id AND earlier.starts_at < p.starts_at
                AND earlier.state IN ('scheduled', 'active')
        )
    FOR NO KEY UPDATE OF p, s SKIP LOCKED
),

changed AS (
    UPDATE billing.subscriptions AS s
    SET
        status = CASE WHEN due.kind = 'payment_failure' THEN 'past_due' ELSE 'paused' END,
        version = s.version + 1, change_reason = 'pause sweep: ' || due.kind,
        -- After an outage a payment can have failed since the pause was due, or have been made; history, read by its times,
        -- must end paused.
        changed_at = CASE
            WHEN s.changed_at > due.starts_at THEN greatest(due.starts_at, (
                SELECT max(e.occurred_at) FROM billing.subscription_events AS e
                WHERE e.subscription_id = s.subscription_id AND e.event <> 'changed'
            ))
            ELSE due.starts_at
        END
    FROM due
    WHERE
        s.subscription_id = due.subscription_id
        AND (s.status IN ('active', 'trialing') OR (s.status = 'past_due' AND due.kind <> 'payment_failure'))
    RETURNING s.subscription_id, s.version, s.stripe_subscription_id, due.pause_id, due.kind, due.ends_at, due.status AS was
),

marked AS (
    UPDATE billing.subscription_pauses AS p
    SET
        state = CASE WHEN due.status IN ('canceled', 'suspended') THEN 'canceled' ELSE 'active' END,
        version = p.version + 1, changed_at = due.starts_at
    FROM due
    WHERE p.pause_id = due.pause_id AND p.state IS NOT DISTINCT FROM 'scheduled'
),

told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        subscription_id || ':pause:' || version AS idempotency_key,
        subscription_id,
        'pause' AS operation,
        jsonb_build_object('mode', cast(:pause_mode AS text), 'resumes_at', ends_at) AS parameters
    FROM changed
    WHERE kind <> 'payment_failure' AND NOT :passed AND stripe_subscription_id IS NOT NULL
    RETURNING command_id
),

skipped AS (
    -- Counted, not joined: a join of two CTEs is planned blind, and a nested loop over a batch is quadratic.
    SELECT
        'subscription ' || status AS reason,
        sum(change) AS rows
    FROM (SELECT
        status,
        1 AS change
    FROM due
    UNION ALL
    SELECT
        was AS status,
        -1 AS change
    FROM changed) AS counted
    GROUP BY status
    HAVING sum(change) > 0
)

SELECT
    (SELECT count(*) FROM due) AS due,
    (SELECT count(*) FROM changed) AS changed,
    (SELECT count(*) FROM told) AS commands,
    (SELECT min(starts_at) FROM due) AS oldest_due_at,
    (SELECT coalesce(jsonb_object_agg(reason, rows), '{}') FROM skipped) AS skipped,
    -- Only a passed pause is looked at again at once, by its id.
    CASE WHEN :passed THEN (SELECT array_agg(pause_id) FROM changed) END AS pause_ids;

-- name: end_due_pauses(pause_ids, up_to, quiet, pause_mode, move_next_payment, grace_days, taken_back)^
-- End these pauses, where they are still due: customer and admin pauses resume, a grace period that ran out suspends.
-- Quiet: Stripe never heard of the start, so it is told of no end, only of the payment that moved; of a suspension always.
-- A payment that was tried, and failed, was billed: it is owed still, and what the pause moves is the one after it.
-- Who owes so is past due again, with a grace period from then on.
-- Taken back: the reason, where a rollback ends them: also while pauses are off, and whatever else is on the calendar.
-- Rare lookups (time zone, frequency: a column that need not be deployed) are made only for the rows that need them.
WITH due AS MATERIALIZED (
    SELECT
        p.pause_id,
        p.subscription_id,
        p.kind,
        p.starts_at,
        p.ends_at,
        s.status,
        s.customer_id,
        s.next_payment_at,
        s.billing_anchor,
        CASE
            WHEN s.next_payment_at IS NULL OR NOT :move_next_payment
                THEN coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY')
        END AS payment_frequency
    FROM billing.subscription_pauses AS p
    INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
    WHERE
        p.pause_id = any(cast(:pause_ids AS bigint[]))
        AND p.state IS NOT DISTINCT FROM 'active' AND p.ends_at <= :up_to
        AND EXISTS (
            SELECT 1 FROM billing.feature_flags AS f
            WHERE f.feature = 'pauses' AND (f.enabled OR cast(:taken_back AS text) IS NOT NULL)
        )
        -- The condition inside, not an OR around it: that could not be planned as a join.
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_pauses AS earlier
            WHERE
                earlier.subscription_id = p.subscription_id AND earlier.starts_at < p.starts_at
                AND earlier.state IN ('scheduled', 'active') AND cast(:taken_back AS text) IS NULL
        )
    FOR NO KEY UPDATE OF p, s SKIP LOCKED
),

held_up AS (
    -- The payment that the pause held up; an import need not know it.
    SELECT
        due.*,
        coalesce(failing.owes, FALSE) AS owes,
        greatest(
            coalesce(due.next_payment_at, billing.next_payment_at(
                due.billing_anchor, due.payment_frequency, due.starts_at - interval '1 microsecond',
                (SELECT c.time_zone FROM billing.customers AS c WHERE c.customer_id = due.customer_id)
            )),
            CASE WHEN failing.billed_at IS NOT NULL THEN (
                SELECT
                    billing.payment_after_invoice(
                        due.billing_anchor, coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY'), failing.billed_at,
                        c.time_zone
                    )
                FROM billing.subscriptions AS s
                INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
                WHERE s.subscription_id = due.subscription_id
            ) END
        ) AS payment_at,
        -- Stripe's date can lie hours after ours (it was told late) or days (it counts months in UTC): a payment of the last
        -- days before the pause that nobody has tried was voided by the pause. One that can still be under way is not judged.
        CASE
            WHEN
                due.next_payment_at < due.starts_at AND due.next_payment_at > due.starts_at - interval '4 days'
                AND due.next_payment_at < due.ends_at - interval '1 hour'
                THEN NOT EXISTS (
                    SELECT 1 FROM billing.payments AS p
                    WHERE p.subscription_id = due.subscription_id AND p.occurred_at > due.next_payment_at - interval '4 days'
                )
            ELSE FALSE
        END AS never_tried
    FROM due
    -- When the newest of the invoices was made that could not be collected, and whether that leaves the subscription past due.
    -- Lateral: a CTE of its own, joined to due, is planned blind, and a nested loop over a batch is quadratic.
    LEFT JOIN LATERAL (
        SELECT
            newest.occurred_at >= due.starts_at OR coalesce((
                SELECT e.event FROM billing.subscription_events AS e
                WHERE e.subscription_id = due.subscription_id AND e.event NOT IN ('paused', 'changed')
                ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.event_id DESC
                LIMIT 1
            ) = 'past_due', FALSE) AS owes,
            billing.failed_invoice_made_at(due.subscription_id) AS billed_at
        FROM (
            SELECT
                p.occurred_at,
                p.outcome
            FROM billing.payments AS p
            WHERE p.subscription_id = due.subscription_id
            ORDER BY p.occurred_at DESC, p.outcome DESC, p.attempt DESC, p.payment_ref DESC
            LIMIT 1
        ) AS newest
        WHERE due.kind <> 'payment_failure' AND newest.outcome = 'failed'
    ) AS failing ON TRUE
),

planned AS (
    SELECT
        held_up.*,
        :move_next_payment AND kind <> 'payment_failure' AND (payment_at >= starts_at OR never_tried) AS moved,
        CASE
            WHEN kind = 'payment_failure' THEN next_payment_at
            WHEN payment_at < starts_at AND NOT (:move_next_payment AND never_tried) THEN next_payment_at
            WHEN :move_next_payment THEN payment_at + (ends_at - starts_at)
            WHEN payment_at >= ends_at THEN payment_at
            -- What fell into the pause is not asked for; a payment at the very end of it is.
            ELSE billing.next_payment_at(
                billing_anchor, payment_frequency, ends_at - interval '1 microsecond',
                (SELECT c.time_zone FROM billing.customers AS c WHERE c.customer_id = held_up.customer_id)
            )
        END AS resumed_payment_at
    FROM held_up
),

changed AS (
    UPDATE billing.subscriptions AS s
    SET
        status = CASE WHEN planned.kind = 'payment_failure' THEN 'suspended' WHEN planned.owes THEN 'past_due' ELSE 'active' END,
        version = s.version + 1,
        changed_at = CASE
            WHEN :quiet THEN greatest(planned.ends_at, s.changed_at)
            -- A failure that was heard of late can have its grace period over before it made the subscription past due.
            WHEN planned.kind = 'payment_failure' THEN greatest(planned.ends_at, (
                SELECT max(e.occurred_at) FROM billing.subscription_events AS e
                WHERE e.subscription_id = planned.subscription_id AND e.event = 'past_due'
            ))
            ELSE planned.ends_at
        END,
        change_reason = coalesce(cast(:taken_back AS text), 'pause sweep: ' || planned.kind || ' ended'),
        next_payment_at = planned.resumed_payment_at,
        -- Dates to come are counted from the one that was moved, or the next period would be shorter by the pause.
        billing_anchor = CASE WHEN planned.moved THEN planned.resumed_payment_at ELSE s.billing_anchor END
    FROM planned
    WHERE
        s.subscription_id = planned.subscription_id
        AND s.status = CASE WHEN planned.kind = 'payment_failure' THEN 'past_due' ELSE 'paused' END
    RETURNING
        s.subscription_id, s.version, s.changed_at, s.stripe_subscription_id, s.next_payment_at, planned.pause_id, planned.kind,
        planned.moved, planned.owes, planned.status AS was,
        CASE WHEN planned.kind = 'payment_failure' THEN 'pause' WHEN :quiet THEN 'move_payment' ELSE 'resume' END AS operation
),

graced AS (
    -- From the end of the pause, however late that is made; where the payment failed after it, from then. No payment's own
    -- grace period is named so ('grace-' and its reference), and none is ever moved into this one's place. What is on the
    -- calendar in that time stands.
    INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, reason, state, changed_at)
    SELECT
        'grace:' || owing.pause_id || ':' || owing.version AS pause_ref,
        owing.subscription_id,
        owing.starts_at,
        owing.starts_at + make_interval(days => :grace_days) AS ends_at,
        'payment_failure' AS kind,
        owing.reason,
        'active' AS state,
        owing.starts_at AS changed_at
    FROM (
        SELECT
            changed.pause_id,
            changed.version,
            changed.subscription_id,
            greatest(changed.changed_at, failed.occurred_at) AS starts_at,
            coalesce(failed.failure_code, failed.failure_class, 'payment failed') AS reason
        FROM changed
        CROSS JOIN LATERAL (
            SELECT
                bad.occurred_at,
                bad.failure_code,
                bad.failure_class
            FROM billing.payments AS bad
            WHERE
                bad.subscription_id = changed.subscription_id AND bad.outcome = 'failed'
                AND NOT EXISTS (
                    SELECT 1 FROM billing.payments AS good
                    WHERE
                        good.subscription_id = bad.subscription_id AND good.outcome = 'succeeded'
                        AND good.occurred_at >= bad.occurred_at
                )
            ORDER BY bad.occurred_at, bad.attempt, bad.payment_ref
            LIMIT 1
        ) AS failed
        WHERE changed.owes
    ) AS owing
    ORDER BY owing.subscription_id
    ON CONFLICT DO NOTHING
),

marked AS (
    UPDATE billing.subscription_pauses AS p
    SET state = 'completed', version = p.version + 1, changed_at = due.ends_at
    FROM due
    WHERE p.pause_id = due.pause_id AND p.state IS NOT DISTINCT FROM 'active'
),

told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        subscription_id || ':' || operation || ':' || version AS idempotency_key,
        subscription_id,
        operation,
        CASE
            WHEN kind = 'payment_failure' THEN jsonb_build_object('mode', cast(:pause_mode AS text), 'resumes_at', NULL)
            WHEN :quiet THEN jsonb_build_object('next_payment_at', next_payment_at)
            -- Stripe is resumed in the way in which it was paused, also when the setting has changed in between.
            -- (No ORDER BY … LIMIT 1 over the key: where statistics lag, that is planned as a walk through the whole outbox.)
            ELSE jsonb_build_object('mode', coalesce((
                SELECT (array_agg(c.parameters ->> 'mode' ORDER BY c.command_id DESC))[1]
                FROM billing.stripe_commands AS c
                WHERE c.subscription_id = changed.subscription_id AND c.operation = 'pause'
            ), cast(:pause_mode AS text))) || CASE
                WHEN moved THEN jsonb_build_object('next_payment_at', next_payment_at)
                ELSE '{}'
            END
        END AS parameters
    FROM changed
    WHERE stripe_subscription_id IS NOT NULL AND (kind = 'payment_failure' OR NOT :quiet OR moved)
    RETURNING command_id
),

skipped AS (
    -- Counted, not joined: a join of two CTEs is planned blind, and a nested loop over a batch is quadratic.
    SELECT
        'subscription ' || status AS reason,
        sum(change) AS rows
    FROM (SELECT
        status,
        1 AS change
    FROM due
    UNION ALL
    SELECT
        was AS status,
        -1 AS change
    FROM changed) AS counted
    GROUP BY status
    HAVING sum(change) > 0
)

SELECT
    (SELECT count(*) FROM due) AS due,
    (SELECT count(*) FROM changed WHERE kind <> 'payment_failure') AS ended,
    (SELECT count(*) FROM changed WHERE kind = 'payment_failure') AS suspended,
    (SELECT count(*) FROM told) AS commands,
    (SELECT min(ends_at) FROM due) AS oldest_due_at,
    (SELECT coalesce(jsonb_object_agg(reason, rows), '{}') FROM skipped) AS skipped;

-- name: pauses_by_hour(since, until)
-- For each hour of [since, until): transitions due in it, and how many of them are done. Canceled pauses were never due.
WITH transitions AS (
    SELECT
        starts_at AS due_at,
        state IN ('active', 'completed') AS done
    FROM billing.subscription_pauses
    WHERE state <> 'canceled' AND starts_at >= :since AND starts_at < :until
    UNION ALL
    SELECT
        ends_at AS due_at,
        state = 'completed' AS done
    FROM billing.subscription_pauses
    WHERE state <> 'canceled' AND ends_at >= :since AND ends_at < :until
)

SELECT
    h.hour,
    count(t.due_at) AS due,
    count(t.due_at) FILTER (WHERE t.done) AS done
FROM generate_series(
    date_trunc('hour', cast(:since AS timestamptz), 'UTC'),
    cast(:until AS timestamptz) - interval '1 microsecond',
    interval '1 hour'
) AS h (hour)
LEFT JOIN transitions AS t ON date_trunc('hour', t.due_at, 'UTC') = h.hour
GROUP BY h.hour
ORDER BY h.hour;
