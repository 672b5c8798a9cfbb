-- Billing: feature switches, pauses, the pause sweep, payment outcomes, payment frequencies, reward credits.

-- name: has_table(relation)$
-- Whether a table exists: a component that is not deployed has none.
SELECT to_regclass(:relation) IS NOT NULL AS present;

-- name: feature_enabled(feature)$
-- Whether the kill switch of a component is on; null where the component was never deployed.
SELECT enabled FROM billing.feature_flags WHERE feature = :feature;

-- name: set_feature(feature, enabled, reason, now)!
-- Turn a kill switch on or off and say why.
UPDATE billing.feature_flags SET enabled = :enabled, reason = :reason, changed_at = :now WHERE feature = :feature;

-- name: planned_sweep(up_to)^
-- What is due by an instant and not done. A pause whose start and end have both passed counts under both.
SELECT
    count(*) FILTER (WHERE to_start) AS to_start,
    count(*) FILTER (WHERE kind <> 'payment_failure' AND ends) AS to_end,
    count(*) FILTER (WHERE kind = 'payment_failure' AND ends) AS to_suspend,
    count(*) FILTER (WHERE to_start) + count(*) FILTER (WHERE ends) AS due,
    min(due_at) AS oldest_due_at
FROM (
    SELECT true AS to_start, coalesce(ends_at <= :up_to, false) AS ends, kind, starts_at AS due_at
    FROM billing.subscription_pauses
    WHERE state = 'scheduled' AND starts_at <= :up_to
    UNION ALL
    SELECT false, true, kind, ends_at FROM billing.subscription_pauses WHERE state = 'active' AND ends_at <= :up_to
) AS due;

-- name: plan_for_batches()^
-- For this transaction: rows are found by their keys, not by reading the whole table for each batch of it.
SELECT set_config('random_page_cost', '1.1', true) AS random_page_cost,
       set_config('plan_cache_mode', 'force_custom_plan', true) AS plan_cache_mode;

-- name: start_due_pauses(up_to, passed, pause_mode, batch_size)^
-- Start one batch of due pauses: those still running at up_to, or (passed) those that are over by then already, which Stripe is
-- not told of. Rows that somebody else holds are left to him; a later pause waits for the one before it.
WITH due AS MATERIALIZED (
    SELECT p.pause_id, p.subscription_id, p.kind, p.starts_at, p.ends_at, s.status
    FROM billing.subscription_pauses AS p
    JOIN billing.subscriptions AS s ON s.subscription_id = p.subscription_id
    WHERE p.state = 'scheduled' AND p.starts_at <= :up_to
        AND coalesce(p.ends_at <= :up_to, false) = :passed
        AND EXISTS (SELECT 1 FROM billing.feature_flags AS f WHERE f.feature = 'pauses' AND f.enabled)
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_pauses AS earlier
            WHERE earlier.subscription_id = p.subscription_id AND earlier.starts_at < p.starts_at
                AND earlier.state IN ('scheduled', 'active')
        )
    ORDER BY p.starts_at, p.pause_id
    LIMIT :batch_size
    FOR NO KEY UPDATE OF p, s SKIP LOCKED
),
changed AS (
    UPDATE billing.subscriptions AS s
    SET status = CASE WHEN due.kind = 'payment_failure' THEN 'past_due' ELSE 'paused' END,
        version = s.version + 1, changed_at = due.starts_at, change_reason = 'pause sweep: ' || due.kind
    FROM due
    WHERE s.subscription_id = due.subscription_id
        AND (s.status IN ('active', 'trialing') OR (s.status = 'past_due' AND due.kind <> 'payment_failure'))
    RETURNING s.subscription_id, s.version, s.stripe_subscription_id, due.pause_id, due.kind, due.ends_at, due.status AS was
),
marked AS (
    UPDATE billing.subscription_pauses AS p
    SET state = CASE WHEN due.status IN ('canceled', 'suspended') THEN 'canceled' ELSE 'active' END,
        version = p.version + 1, changed_at = due.starts_at
    FROM due
    -- Not "=": the planner would take the partial index, where statistics lag, and walk all of it for each row.
    WHERE p.pause_id = due.pause_id AND p.state IS NOT DISTINCT FROM 'scheduled'
),
told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT subscription_id || ':pause:' || version, subscription_id, 'pause',
           jsonb_build_object('mode', :pause_mode::text, 'resumes_at', ends_at)
    FROM changed
    WHERE kind <> 'payment_failure' AND NOT :passed AND stripe_subscription_id IS NOT NULL
    RETURNING 1
),
skipped AS (
    -- Counted, not joined: a join of two CTEs is planned blind, and a nested loop over a batch is quadratic.
    SELECT 'subscription ' || status AS reason, sum(change) AS rows
    FROM (SELECT status, 1 AS change FROM due UNION ALL SELECT was, -1 FROM changed) AS counted
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

-- name: end_due_pauses(up_to, pause_ids, quiet, pause_mode, move_next_payment, batch_size)^
-- End one batch of due pauses (pause_ids: only these): customer and admin pauses resume, a grace period that ran out suspends.
-- Quiet: Stripe never heard of the start, so it is not told of the end either; of a suspension it is always told.
-- Rare lookups (time zone, frequency: a column that need not be deployed) are made only for the rows that need them.
WITH due AS MATERIALIZED (
    SELECT p.pause_id, p.subscription_id, p.kind, p.starts_at, p.ends_at, s.status, s.customer_id, s.next_payment_at,
           s.billing_anchor,
           CASE WHEN s.next_payment_at IS NULL OR NOT :move_next_payment
                THEN coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY') END AS payment_frequency
    FROM billing.subscription_pauses AS p
    JOIN billing.subscriptions AS s ON s.subscription_id = p.subscription_id
    WHERE p.state = 'active' AND p.ends_at <= :up_to
        AND (:pause_ids::bigint[] IS NULL OR p.pause_id = ANY(:pause_ids::bigint[]))
        AND EXISTS (SELECT 1 FROM billing.feature_flags AS f WHERE f.feature = 'pauses' AND f.enabled)
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_pauses AS earlier
            WHERE earlier.subscription_id = p.subscription_id AND earlier.starts_at < p.starts_at
                AND earlier.state IN ('scheduled', 'active')
        )
    ORDER BY p.ends_at, p.pause_id
    LIMIT :batch_size
    FOR NO KEY UPDATE OF p, s SKIP LOCKED
),
planned AS (
    SELECT due.*,
           :move_next_payment AND due.kind <> 'payment_failure' AND held_up.payment_at >= due.starts_at AS moved,
           CASE
               WHEN due.kind = 'payment_failure' OR held_up.payment_at < due.starts_at THEN due.next_payment_at
               WHEN :move_next_payment THEN held_up.payment_at + (due.ends_at - due.starts_at)
               WHEN held_up.payment_at >= due.ends_at THEN held_up.payment_at
               -- What fell into the pause is not asked for; a payment at the very end of it is.
               ELSE billing.next_payment_at(
                   due.billing_anchor, due.payment_frequency, due.ends_at - interval '1 microsecond',
                   (SELECT c.time_zone FROM billing.customers AS c WHERE c.customer_id = due.customer_id)
               )
           END AS resumed_payment_at
    FROM due
    CROSS JOIN LATERAL (
        -- The payment that the pause held up; an import need not know it.
        SELECT CASE
            WHEN due.next_payment_at IS NOT NULL THEN due.next_payment_at
            ELSE billing.next_payment_at(
                due.billing_anchor, due.payment_frequency, due.starts_at - interval '1 microsecond',
                (SELECT c.time_zone FROM billing.customers AS c WHERE c.customer_id = due.customer_id)
            )
        END AS payment_at
    ) AS held_up
),
changed AS (
    UPDATE billing.subscriptions AS s
    SET status = CASE WHEN planned.kind = 'payment_failure' THEN 'suspended' ELSE 'active' END,
        version = s.version + 1, changed_at = planned.ends_at,
        change_reason = 'pause sweep: ' || planned.kind || ' ended',
        next_payment_at = planned.resumed_payment_at,
        -- Dates to come are counted from the one that was moved, or the next period would be shorter by the pause.
        billing_anchor = CASE WHEN planned.moved THEN planned.resumed_payment_at ELSE s.billing_anchor END
    FROM planned
    WHERE s.subscription_id = planned.subscription_id
        AND s.status = CASE WHEN planned.kind = 'payment_failure' THEN 'past_due' ELSE 'paused' END
    RETURNING s.subscription_id, s.version, s.stripe_subscription_id, s.next_payment_at, planned.kind, planned.moved,
              planned.status AS was
),
marked AS (
    UPDATE billing.subscription_pauses AS p
    SET state = 'completed', version = p.version + 1, changed_at = due.ends_at
    FROM due
    WHERE p.pause_id = due.pause_id AND p.state IS NOT DISTINCT FROM 'active'
),
told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT changed.subscription_id || ':' || wanted.operation || ':' || changed.version, changed.subscription_id,
           wanted.operation, wanted.parameters
    FROM changed
    CROSS JOIN LATERAL (
        -- Stripe is resumed in the way in which it was paused, also when the setting has changed in between.
        -- (No ORDER BY … LIMIT 1 over the key: where statistics lag, that is planned as a walk through the whole outbox.)
        SELECT 'resume' AS operation,
               jsonb_build_object(
                   'mode', coalesce((
                       SELECT (array_agg(c.parameters ->> 'mode' ORDER BY c.command_id DESC))[1]
                       FROM billing.stripe_commands AS c
                       WHERE c.subscription_id = changed.subscription_id AND c.operation = 'pause'
                   ), :pause_mode::text)
               ) || CASE WHEN changed.moved THEN jsonb_build_object('next_payment_at', changed.next_payment_at) ELSE '{}' END
                   AS parameters
        WHERE changed.kind <> 'payment_failure' AND NOT :quiet
        UNION ALL
        SELECT 'pause', jsonb_build_object('mode', :pause_mode::text, 'resumes_at', NULL)
        WHERE changed.kind = 'payment_failure'
    ) AS wanted
    WHERE changed.stripe_subscription_id IS NOT NULL
    RETURNING 1
),
skipped AS (
    -- Counted, not joined: a join of two CTEs is planned blind, and a nested loop over a batch is quadratic.
    SELECT 'subscription ' || status AS reason, sum(change) AS rows
    FROM (SELECT status, 1 AS change FROM due UNION ALL SELECT was, -1 FROM changed) AS counted
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

-- name: pauses_by_hour(start, end)
-- For each hour of [start, end): transitions due in it, and how many of them are done. Canceled pauses were never due.
SELECT h.hour, count(t.due_at) AS due, count(t.due_at) FILTER (WHERE t.done) AS done
FROM generate_series(
    date_trunc('hour', :start::timestamptz, 'UTC'), :end::timestamptz - interval '1 microsecond', interval '1 hour'
) AS h (hour)
LEFT JOIN (
    SELECT starts_at AS due_at, state IN ('active', 'completed') AS done
    FROM billing.subscription_pauses WHERE state <> 'canceled' AND starts_at >= :start AND starts_at < :end
    UNION ALL
    SELECT ends_at, state = 'completed'
    FROM billing.subscription_pauses WHERE state <> 'canceled' AND ends_at >= :start AND ends_at < :end
) AS t ON date_trunc('hour', t.due_at, 'UTC') = h.hour
GROUP BY h.hour
ORDER BY h.hour;

-- name: lock_subscription(subscription_ref)^
-- One subscription with its customer's zone, locked until the transaction ends; a component's column may be absent.
SELECT s.subscription_id, s.subscription_ref, s.customer_id, s.status, s.plan, s.amount_minor, s.quantity, s.currency,
       s.billing_anchor, s.next_payment_at, s.stripe_subscription_id, s.version, s.changed_at,
       to_jsonb(s) ->> 'payment_frequency' AS payment_frequency,
       (SELECT c.time_zone FROM billing.customers AS c WHERE c.customer_id = s.customer_id) AS time_zone
FROM billing.subscriptions AS s
WHERE s.subscription_ref = :subscription_ref
FOR NO KEY UPDATE;

-- name: pauses_within_a_year(subscription_id, starts_at)$
-- The most pauses that any of the two years which begin or end with the new pause already holds.
SELECT greatest(
    count(*) FILTER (WHERE starts_at > :starts_at::timestamptz - interval '365 days' AND starts_at <= :starts_at),
    count(*) FILTER (WHERE starts_at >= :starts_at AND starts_at < :starts_at::timestamptz + interval '365 days')
) AS pauses
FROM billing.subscription_pauses
WHERE subscription_id = :subscription_id AND kind = 'customer' AND state <> 'canceled';

-- name: insert_pause(subscription_id, starts_at, ends_at, kind, reason, now)$
-- Put a pause on the calendar; the sweep starts it.
INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, reason, changed_at)
VALUES ('pause-' || gen_random_uuid(), :subscription_id, :starts_at, :ends_at, :kind, :reason, :now)
RETURNING pause_ref;

-- name: cancel_pause(pause_ref, now)!
-- Take a pause off the calendar before it has begun.
UPDATE billing.subscription_pauses
SET state = 'canceled', version = version + 1, changed_at = :now
WHERE pause_ref = :pause_ref AND state = 'scheduled';

-- name: pause_state(pause_ref)$
-- The state of a pause; null where there is none.
SELECT state FROM billing.subscription_pauses WHERE pause_ref = :pause_ref;

-- name: cut_active_pause(subscription_id, now)$
-- Let the customer or admin pause that holds a subscription end now; which one it was.
UPDATE billing.subscription_pauses
SET ends_at = least(ends_at, greatest(:now, starts_at + interval '1 microsecond')), version = version + 1, changed_at = :now
WHERE subscription_id = :subscription_id AND state = 'active' AND kind <> 'payment_failure'
RETURNING pause_id;

-- name: apply_failed_payments(payment_ids)^
-- Subscriptions whose latest attempt failed become past due. One that the ledger already calls past due since then is done.
WITH latest AS MATERIALIZED (
    SELECT s.subscription_id, newest.payment_id, newest.outcome, newest.occurred_at
    FROM billing.subscriptions AS s
    CROSS JOIN LATERAL (
        SELECT p.payment_id, p.outcome, p.occurred_at
        FROM billing.payments AS p
        WHERE p.subscription_id = s.subscription_id
        ORDER BY p.occurred_at DESC, p.attempt DESC, p.payment_id DESC
        LIMIT 1
    ) AS newest
    WHERE s.subscription_id IN (SELECT p.subscription_id FROM billing.payments AS p WHERE p.payment_id = ANY(:payment_ids::bigint[]))
    ORDER BY s.subscription_id
    FOR NO KEY UPDATE OF s
),
changed AS (
    UPDATE billing.subscriptions AS s
    SET status = 'past_due', version = s.version + 1, changed_at = greatest(latest.occurred_at, s.changed_at),
        change_reason = 'payment failed'
    FROM latest
    WHERE s.subscription_id = latest.subscription_id AND latest.outcome = 'failed' AND s.status IN ('active', 'trialing')
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_events AS e
            WHERE e.subscription_id = s.subscription_id AND e.event = 'past_due' AND e.occurred_at >= latest.occurred_at
        )
    RETURNING latest.payment_id
)
SELECT count(*) AS failed, coalesce(array_agg(payment_id), '{}') AS payment_ids FROM changed;

-- name: open_grace_periods(payment_ids, grace_days, now)!
-- A grace period for each failed payment that made a subscription past due. A pause that is on the calendar in that time stands.
INSERT INTO billing.subscription_pauses
    (pause_ref, subscription_id, starts_at, ends_at, kind, reason, state, changed_at)
SELECT 'grace-' || p.payment_ref, p.subscription_id, p.occurred_at, p.occurred_at + make_interval(days => :grace_days),
       'payment_failure', coalesce(p.failure_code, p.failure_class, 'payment failed'), 'active', :now
FROM billing.payments AS p
WHERE p.payment_id = ANY(:payment_ids::bigint[])
ON CONFLICT DO NOTHING;

-- name: apply_succeeded_payments(payment_ids, pause_mode)^
-- Subscriptions whose latest attempt succeeded: past due, suspended or on trial become active, the next payment date advances.
-- What was suspended was paused at Stripe, so that is told to resume it.
WITH latest AS MATERIALIZED (
    SELECT s.subscription_id, s.status, s.next_payment_at, newest.outcome, newest.amount_minor, newest.occurred_at,
           billing.next_payment_at(
               s.billing_anchor, coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY'), newest.occurred_at, c.time_zone
           ) AS advanced
    FROM billing.subscriptions AS s
    JOIN billing.customers AS c ON c.customer_id = s.customer_id
    CROSS JOIN LATERAL (
        SELECT p.outcome, p.amount_minor, p.occurred_at
        FROM billing.payments AS p
        WHERE p.subscription_id = s.subscription_id
        ORDER BY p.occurred_at DESC, p.attempt DESC, p.payment_id DESC
        LIMIT 1
    ) AS newest
    WHERE s.subscription_id IN (SELECT p.subscription_id FROM billing.payments AS p WHERE p.payment_id = ANY(:payment_ids::bigint[]))
    ORDER BY s.subscription_id
    FOR NO KEY UPDATE OF s
),
planned AS (
    SELECT *,
           -- The free invoice at the start of a trial is paid, too: only money ends a trial.
           status IN ('past_due', 'suspended') OR (status = 'trialing' AND amount_minor > 0) AS activates
    FROM latest
    WHERE outcome = 'succeeded' AND status <> 'canceled'
),
changed AS (
    UPDATE billing.subscriptions AS s
    SET status = CASE WHEN planned.activates THEN 'active' ELSE s.status END,
        next_payment_at = greatest(s.next_payment_at, planned.advanced),
        version = s.version + 1, changed_at = greatest(planned.occurred_at, s.changed_at), change_reason = 'payment succeeded'
    FROM planned
    WHERE s.subscription_id = planned.subscription_id AND s.status = planned.status
        AND (planned.activates OR planned.advanced > s.next_payment_at OR s.next_payment_at IS NULL)
    RETURNING s.subscription_id, s.version, s.stripe_subscription_id, planned.status AS was
),
told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT changed.subscription_id || ':resume:' || changed.version, changed.subscription_id, 'resume',
           jsonb_build_object('mode', coalesce((
               SELECT (array_agg(c.parameters ->> 'mode' ORDER BY c.command_id DESC))[1]
               FROM billing.stripe_commands AS c
               WHERE c.subscription_id = changed.subscription_id AND c.operation = 'pause'
           ), :pause_mode::text))
    FROM changed
    WHERE changed.was = 'suspended' AND changed.stripe_subscription_id IS NOT NULL
)
SELECT (SELECT count(*) FROM changed WHERE was IN ('past_due', 'suspended')) AS recovered,
       (SELECT coalesce(array_agg(subscription_id), '{}') FROM planned) AS subscription_ids;

-- name: close_grace_periods(subscription_ids, now)!
-- A payment came in: what is left of the grace period is void. The latest attempt says when.
UPDATE billing.subscription_pauses AS g
SET state = 'completed', version = g.version + 1, changed_at = :now,
    ends_at = greatest(least(g.ends_at, paid.occurred_at), g.starts_at + interval '1 microsecond')
FROM (
    SELECT p.subscription_id, max(p.occurred_at) AS occurred_at
    FROM billing.payments AS p
    WHERE p.subscription_id = ANY(:subscription_ids::bigint[]) AND p.outcome = 'succeeded'
    GROUP BY p.subscription_id
) AS paid
WHERE g.subscription_id = paid.subscription_id AND g.kind = 'payment_failure' AND g.state IN ('scheduled', 'active')
    AND g.starts_at <= paid.occurred_at;

-- name: plan_price(plan, payment_frequency, currency)$
-- The price of one unit for one period, minor units; null where the plan is not sold so.
SELECT amount_minor FROM billing.plan_prices
WHERE plan = :plan AND payment_frequency = :payment_frequency AND currency = :currency;

-- name: paid_period(anchor, payment_frequency, at, zone)^
-- The period around an instant: its end, how much of it is left and how long it is, on the customer's own clock, where a day
-- has 24 hours also when the clock changes. The payment before the next one is the first after a little more than a period ago.
SELECT
    period.ends_at,
    (extract(epoch FROM (period.ends_at AT TIME ZONE :zone) - (:at::timestamptz AT TIME ZONE :zone)) * 1000000)::bigint AS left_us,
    (extract(epoch FROM (period.ends_at AT TIME ZONE :zone) - (period.starts_at AT TIME ZONE :zone)) * 1000000)::bigint AS period_us
FROM (
    SELECT upcoming.at AS ends_at,
           CASE
               WHEN upcoming.at = :anchor THEN billing.payment_at(:anchor, :payment_frequency, -1, :zone)
               ELSE billing.next_payment_at(:anchor, :payment_frequency, upcoming.at - CASE :payment_frequency
                   WHEN 'WEEKLY' THEN interval '10 days'
                   WHEN 'BIWEEKLY' THEN interval '18 days'
                   WHEN 'MONTHLY' THEN interval '33 days'
                   WHEN 'QUARTERLY' THEN interval '100 days'
                   ELSE interval '370 days'
               END, :zone)
           END AS starts_at
    FROM (SELECT billing.next_payment_at(:anchor, :payment_frequency, :at, :zone) AS at) AS upcoming
) AS period;

-- name: payment_dates(anchor, payment_frequency, first, last, zone)
-- The payments from the first to the last number after an anchor.
SELECT billing.payment_at(:anchor, :payment_frequency, n, :zone) AS payment_at
FROM generate_series(:first::integer, :last::integer) AS n
ORDER BY n;

-- name: record_frequency_change(subscription_id, from_frequency, to_frequency, amount_minor, requested_at, effective_at, credit_minor, debit_minor, currency, state)!
-- One row for each change of a frequency, made or to be made.
INSERT INTO billing.frequency_changes
    (subscription_id, from_frequency, to_frequency, amount_minor, requested_at, effective_at, credit_minor, debit_minor, currency, state)
VALUES
    (:subscription_id, :from_frequency, :to_frequency, :amount_minor, :requested_at, :effective_at, :credit_minor, :debit_minor,
     :currency, :state);

-- name: scheduled_frequency_change(subscription_id)$
-- When a change that is already scheduled will be made; null where there is none.
SELECT effective_at FROM billing.frequency_changes WHERE subscription_id = :subscription_id AND state = 'scheduled';

-- name: change_frequency_now(subscription_id, version, to_frequency, amount_minor, anchor, next_payment_at, at)!
-- New terms and the command that tells Stripe of them; only if the subscription is still as it was quoted.
WITH changed AS (
    UPDATE billing.subscriptions
    SET payment_frequency = :to_frequency, amount_minor = :amount_minor, billing_anchor = :anchor,
        next_payment_at = :next_payment_at, version = version + 1, changed_at = :at,
        change_reason = 'payment frequency changed'
    WHERE subscription_id = :subscription_id AND version = :version AND status IN ('active', 'trialing')
    RETURNING subscription_id, version, stripe_subscription_id, plan, currency, payment_frequency, amount_minor
),
told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT subscription_id || ':change_price:' || version, subscription_id, 'change_price', jsonb_build_object(
        'plan', plan, 'payment_frequency', payment_frequency, 'currency', currency, 'amount_minor', amount_minor,
        'proration', 'create_prorations'
    )
    FROM changed
    WHERE stripe_subscription_id IS NOT NULL
)
SELECT subscription_id FROM changed;

-- name: apply_due_frequency_changes(now)$
-- Changes whose period has ended, on subscriptions that are active; a paused or unpaid one keeps its change for later, a canceled
-- one loses it. The payment at the change itself is at the new price, unless it has been made already.
WITH due AS MATERIALIZED (
    SELECT f.frequency_change_id, f.subscription_id, f.to_frequency, f.amount_minor, f.effective_at, s.status, c.time_zone
    FROM billing.frequency_changes AS f
    JOIN billing.subscriptions AS s ON s.subscription_id = f.subscription_id
    JOIN billing.customers AS c ON c.customer_id = s.customer_id
    WHERE f.state = 'scheduled' AND f.effective_at <= :now AND s.status IN ('active', 'trialing', 'canceled')
        AND EXISTS (SELECT 1 FROM billing.feature_flags AS flag WHERE flag.feature = 'frequencies' AND flag.enabled)
    ORDER BY f.effective_at, f.frequency_change_id
    FOR NO KEY UPDATE OF f, s SKIP LOCKED
),
changed AS (
    UPDATE billing.subscriptions AS s
    SET payment_frequency = due.to_frequency, amount_minor = due.amount_minor, billing_anchor = due.effective_at,
        next_payment_at = CASE
            WHEN s.next_payment_at > due.effective_at
                THEN billing.next_payment_at(due.effective_at, due.to_frequency, due.effective_at, due.time_zone)
            ELSE due.effective_at
        END,
        version = s.version + 1, changed_at = greatest(due.effective_at, s.changed_at),
        change_reason = 'payment frequency changed at the end of the period'
    FROM due
    WHERE s.subscription_id = due.subscription_id AND s.status IN ('active', 'trialing')
    RETURNING s.subscription_id, s.version, s.stripe_subscription_id, s.plan, s.currency, s.payment_frequency, s.amount_minor
),
marked AS (
    UPDATE billing.frequency_changes AS f
    SET state = CASE WHEN due.status = 'canceled' THEN 'canceled' ELSE 'applied' END
    FROM due
    WHERE f.frequency_change_id = due.frequency_change_id AND f.state = 'scheduled'
),
told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT subscription_id || ':change_price:' || version, subscription_id, 'change_price', jsonb_build_object(
        'plan', plan, 'payment_frequency', payment_frequency, 'currency', currency, 'amount_minor', amount_minor,
        'proration', 'none'
    )
    FROM changed
    WHERE stripe_subscription_id IS NOT NULL
)
SELECT count(*) AS applied FROM changed;

-- name: lock_customer(customer_ref)$
-- One customer, locked until the transaction ends: whoever changes a reward balance takes this lock first.
SELECT customer_id FROM billing.customers WHERE customer_ref = :customer_ref FOR NO KEY UPDATE;

-- name: lock_customer_of_credit(reward_entry_id)$
-- The customer of an earned credit, locked; null where there is no such credit.
SELECT c.customer_id
FROM billing.customers AS c
WHERE c.customer_id = (
    SELECT e.customer_id FROM billing.reward_entries AS e WHERE e.reward_entry_id = :reward_entry_id AND e.kind = 'earned'
)
FOR NO KEY UPDATE;

-- name: lock_customers_with_expiring_credit(now)$
-- Customers with credit that has expired since their last expiry, locked: the sums must be read after the lock.
SELECT coalesce(array_agg(customer_id), '{}') AS customer_ids
FROM (
    SELECT c.customer_id
    FROM billing.customers AS c
    WHERE c.customer_id IN (
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
SELECT c.currency, coalesce(sum(e.effect_minor), 0)::bigint AS balance_minor
FROM billing.customers AS c
LEFT JOIN billing.reward_entries AS e ON e.customer_id = c.customer_id
WHERE c.customer_ref = :customer_ref
GROUP BY c.customer_id, c.currency;

-- name: insert_reward(customer_id, kind, amount_minor, occurred_at, expires_at, reason)$
-- One entry of the ledger; its trigger refuses what would overdraw the balance.
INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor, expires_at, reason)
VALUES (:customer_id, :occurred_at, :kind, :amount_minor, :expires_at, :reason)
RETURNING reward_entry_id;

-- name: write_off_credits(customer_ids, credit_id, now, reason)!
-- Take back what is left unspent: of one credit (credit_id), or of all that has expired by now.
-- Credit is spent oldest first. An expired entry belongs to the credits that ran out last before it, a reversal to the credit that
-- its reason names; both take nothing from older credit, so what has been spent stays the head of the queue.
WITH entries AS MATERIALIZED (
    SELECT e.*, CASE WHEN e.kind = 'reversed' THEN substring(e.reason FROM '^reversal of credit ([0-9]+):')::bigint END AS credit_id
    FROM billing.reward_entries AS e
    WHERE e.customer_id = ANY(:customer_ids::bigint[])
),
spent AS (
    SELECT customer_id, sum(amount_minor) AS amount
    FROM entries
    WHERE kind = 'spent' OR (kind = 'reversed' AND credit_id IS NULL)
    GROUP BY customer_id
),
expired AS (
    SELECT x.customer_id, ran_out.expires_at, sum(x.amount_minor) AS amount, max(x.occurred_at) AS newest
    FROM entries AS x
    CROSS JOIN LATERAL (
        SELECT max(e.expires_at) AS expires_at
        FROM entries AS e
        WHERE e.customer_id = x.customer_id AND e.kind = 'earned' AND e.expires_at <= x.occurred_at
    ) AS ran_out
    WHERE x.kind = 'expired'
    GROUP BY x.customer_id, ran_out.expires_at
),
credits AS (
    SELECT e.customer_id, e.reward_entry_id, e.occurred_at, e.expires_at,
           e.amount_minor - coalesce((SELECT sum(r.amount_minor) FROM entries AS r WHERE r.credit_id = e.reward_entry_id), 0) AS amount
    FROM entries AS e
    WHERE e.kind = 'earned'
),
still_good AS (
    -- Of credits that ran out together, the newest were unspent.
    SELECT c.customer_id, c.reward_entry_id, c.occurred_at, c.expires_at,
           c.amount - least(c.amount, greatest(0, coalesce(x.amount, 0) - (
               sum(c.amount) OVER (
                   PARTITION BY c.customer_id, c.expires_at ORDER BY c.occurred_at DESC, c.reward_entry_id DESC
               ) - c.amount
           ))) AS amount
    FROM credits AS c
    LEFT JOIN expired AS x ON x.customer_id = c.customer_id AND x.expires_at = c.expires_at
),
queue AS (
    SELECT g.customer_id, g.reward_entry_id, g.expires_at,
           least(g.amount, greatest(0, sum(g.amount) OVER (
               PARTITION BY g.customer_id ORDER BY g.occurred_at, g.reward_entry_id
           ) - coalesce(s.amount, 0))) AS amount_left
    FROM still_good AS g
    LEFT JOIN spent AS s ON s.customer_id = g.customer_id
)
INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor, reason)
SELECT q.customer_id,
       CASE WHEN :credit_id::bigint IS NULL THEN q.expires_at ELSE :now END,
       CASE WHEN :credit_id::bigint IS NULL THEN 'expired' ELSE 'reversed' END,
       sum(q.amount_left), :reason::text
FROM queue AS q
WHERE q.reward_entry_id = :credit_id
    OR (:credit_id::bigint IS NULL AND q.expires_at <= :now AND NOT EXISTS (
        SELECT 1 FROM expired AS x WHERE x.customer_id = q.customer_id AND x.newest >= q.expires_at
    ))
GROUP BY q.customer_id, q.expires_at
HAVING sum(q.amount_left) > 0;
