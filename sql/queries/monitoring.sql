-- name: deploy_of_run(run_id)$
-- The deploy that a run has recorded already; none.
SELECT deploy_id FROM ops.deploys WHERE run_id = :run_id::text ORDER BY deploy_id LIMIT 1;

-- name: record_deploy(release, deployed_at, run_id, actor, revisions)$
-- Write down a completed deploy.
INSERT INTO ops.deploys (release, deployed_at, run_id, actor, revisions)
VALUES (:release, :deployed_at, :run_id::text, :actor, :revisions::jsonb)
RETURNING deploy_id;

-- name: newest_deploy(now)^
-- The deploy that is in force at an instant.
SELECT
    deploy_id,
    release,
    deployed_at,
    run_id,
    actor,
    revisions
FROM ops.deploys
WHERE deployed_at <= :now
ORDER BY deployed_at DESC, deploy_id DESC
LIMIT 1;

-- name: payment_counts(start, until, tick)
-- First attempts in each tick of [start, until), and how many failed through what a release can cause. An unclassed failure
-- has no known cause: it is counted apart and accuses nobody.
WITH counted AS (
    SELECT
        date_bin(:tick::interval, p.occurred_at, :start::timestamptz) AS tick_at,
        count(*) AS attempts,
        count(*) FILTER (WHERE p.failure_class NOT IN ('issuer_decline', 'block')) AS failures,
        count(*) FILTER (WHERE p.failure_class = 'issuer_decline') AS issuer_declines,
        count(*) FILTER (WHERE p.outcome = 'failed' AND p.failure_class IS NULL) AS unclassed
    FROM billing.payments AS p
    WHERE p.occurred_at >= :start AND p.occurred_at < :until AND p.attempt = 1
    GROUP BY date_bin(:tick::interval, p.occurred_at, :start::timestamptz)
)

SELECT
    t.tick_at,
    coalesce(c.attempts, 0) AS attempts,
    coalesce(c.failures, 0) AS failures,
    coalesce(c.issuer_declines, 0) AS issuer_declines,
    coalesce(c.unclassed, 0) AS unclassed
FROM generate_series(:start::timestamptz, :until::timestamptz - :tick::interval, :tick::interval) AS t (tick_at)
LEFT JOIN counted AS c ON t.tick_at = c.tick_at
ORDER BY t.tick_at;

-- name: payment_ticks(start, until, tick, resumed_within, spent_by, spent_at, spent_within)
-- First attempts in each tick of [start, until), by what each was exposed to: a frequency other than monthly, a pause that
-- ended lately, a reward spent on it. The ledger says what was true when the payment was tried.
WITH spent AS (
    SELECT
        s.customer_id,
        s.spent_at
    FROM unnest(:spent_by::bigint[], :spent_at::timestamptz[]) AS s (customer_id, spent_at)
),

tried AS (
    SELECT
        date_bin(:tick::interval, p.occurred_at, :start::timestamptz) AS tick_at,
        coalesce(p.failure_class NOT IN ('issuer_decline', 'block'), FALSE) AS failed,
        coalesce(p.failure_class = 'issuer_decline', FALSE) AS declined,
        coalesce(terms.payment_frequency <> 'MONTHLY', FALSE) AS non_monthly,
        exists(
            SELECT 1 FROM billing.subscription_events AS r
            WHERE
                r.subscription_id = p.subscription_id AND r.event = 'resumed'
                AND r.occurred_at <= p.occurred_at AND r.occurred_at > p.occurred_at - :resumed_within::interval
        ) AS resumed_lately,
        exists(
            SELECT 1 FROM spent
            WHERE
                spent.customer_id = s.customer_id
                AND spent.spent_at <= p.occurred_at AND spent.spent_at > p.occurred_at - :spent_within::interval
        ) AS reward_applied
    FROM billing.payments AS p
    INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
    LEFT JOIN LATERAL (
        SELECT e.payment_frequency FROM billing.subscription_events AS e
        WHERE e.subscription_id = p.subscription_id AND e.occurred_at <= p.occurred_at
        ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.event_id DESC
        LIMIT 1
    ) AS terms ON TRUE
    WHERE p.occurred_at >= :start AND p.occurred_at < :until AND p.attempt = 1
)

SELECT
    t.tick_at,
    count(f.tick_at) AS attempts,
    count(f.tick_at) FILTER (WHERE f.failed) AS failures,
    count(f.tick_at) FILTER (WHERE f.declined) AS issuer_declines,
    count(f.tick_at) FILTER (WHERE f.non_monthly) AS non_monthly_attempts,
    count(f.tick_at) FILTER (WHERE f.non_monthly AND f.failed) AS non_monthly_failures,
    count(f.tick_at) FILTER (WHERE f.resumed_lately) AS resumed_lately_attempts,
    count(f.tick_at) FILTER (WHERE f.resumed_lately AND f.failed) AS resumed_lately_failures,
    count(f.tick_at) FILTER (WHERE f.reward_applied) AS reward_applied_attempts,
    count(f.tick_at) FILTER (WHERE f.reward_applied AND f.failed) AS reward_applied_failures,
    count(f.tick_at) FILTER (WHERE NOT (f.non_monthly OR f.resumed_lately OR f.reward_applied)) AS none_attempts,
    count(f.tick_at) FILTER (WHERE NOT (f.non_monthly OR f.resumed_lately OR f.reward_applied) AND f.failed) AS none_failures
FROM generate_series(:start::timestamptz, :until::timestamptz - :tick::interval, :tick::interval) AS t (tick_at)
LEFT JOIN tried AS f ON t.tick_at = f.tick_at
GROUP BY t.tick_at
ORDER BY t.tick_at;

-- name: rewards_deployed()$
-- Whether the rewards component is there to be read.
SELECT to_regclass('billing.reward_entries') IS NOT NULL;

-- name: rewards_spent(start, until)^
-- Who spent a reward in [start, until), and when, as two arrays of equal length.
SELECT
    coalesce(array_agg(r.customer_id ORDER BY r.reward_entry_id), '{}') AS customers,
    coalesce(array_agg(r.occurred_at ORDER BY r.reward_entry_id), '{}') AS instants
FROM billing.reward_entries AS r
WHERE r.kind = 'spent' AND r.occurred_at >= :start AND r.occurred_at < :until;

-- name: payment_feed(start, until, due_until)^
-- Whether any payment was recorded in [start, until), and, if none was, how many subscriptions fell due in [start, due_until).
WITH fed AS MATERIALIZED (
    SELECT count(*) > 0 AS seen FROM (
        SELECT 1 FROM billing.payments AS p WHERE p.occurred_at >= :start AND p.occurred_at < :until
        ORDER BY p.occurred_at LIMIT 1
    ) AS any_payment
),

waiting AS (
    SELECT count(*) AS due FROM billing.subscriptions AS s
    WHERE
        NOT (SELECT fed.seen FROM fed)
        AND s.status IN ('active', 'past_due') AND s.next_payment_at >= :start AND s.next_payment_at < :due_until
)

SELECT
    fed.seen,
    waiting.due
FROM fed CROSS JOIN waiting;

-- name: enabled_features()
-- The components whose kill switch is on.
SELECT feature FROM billing.feature_flags WHERE enabled ORDER BY feature;

-- name: lock_judging()$
-- One judge at a time, until the transaction ends: the guards count what the others have decided.
SELECT pg_advisory_xact_lock(hashtextextended('flexpay judging', 0));

-- name: recent_decisions(trigger, deploy_id, most)
-- The newest ticks judged of a deploy, newest first.
SELECT
    tick_at,
    verdict,
    failures,
    attempts,
    evidence
FROM ops.decisions
WHERE trigger = :trigger AND deploy_id = :deploy_id
ORDER BY tick_at DESC
LIMIT :most;

-- name: judged_totals(trigger, deploy_id, since)^
-- What the ticks judged since an instant have counted.
SELECT
    coalesce(sum(failures), 0)::bigint AS failures,
    coalesce(sum(attempts), 0)::bigint AS attempts
FROM ops.decisions
WHERE trigger = :trigger AND deploy_id = :deploy_id AND tick_at >= :since;

-- name: record_decisions(rows, decided_at)!
-- Write one row a tick; a tick that was judged already keeps its verdict.
INSERT INTO ops.decisions (trigger, deploy_id, tick_at, verdict, failures, attempts, evidence, decided_at)
SELECT
    r.trigger,
    r.deploy_id,
    r.tick_at,
    r.verdict,
    r.failures,
    r.attempts,
    r.evidence,
    :decided_at
FROM
    jsonb_to_recordset(:rows::jsonb)
        AS r (
            trigger text, deploy_id bigint, tick_at timestamptz, verdict text, failures bigint, attempts bigint, evidence jsonb
        )
ON CONFLICT (trigger, deploy_id, tick_at) DO NOTHING;

-- name: incident_of(trigger, deploy_id)^
-- The incident of a deploy and trigger, with the newest rollback that it led to.
SELECT
    i.incident_id,
    i.component,
    i.opened_at,
    i.closed_at,
    i.evidence,
    r.state AS rollback_state,
    r.requested_at AS rollback_at,
    coalesce((r.details ->> 'attempts')::integer, 0) AS rollback_attempts,
    (r.details ->> 'attempt_started_at')::timestamptz AS attempt_started_at
FROM ops.incidents AS i
LEFT JOIN LATERAL (
    SELECT
        b.state,
        b.requested_at,
        b.details
    FROM ops.rollbacks AS b
    WHERE b.incident_id = i.incident_id
    ORDER BY b.rollback_id DESC
    LIMIT 1
) AS r ON TRUE
WHERE i.trigger = :trigger AND i.deploy_id = :deploy_id;

-- name: guards(trigger, deploy_id, now, cooldown, breaker_window)^
-- What forbids another automatic rollback: one of this deploy, one of late, too many in a week.
SELECT
    count(*) FILTER (WHERE i.deploy_id = :deploy_id) AS of_this_deploy,
    count(*) FILTER (WHERE i.detected_at > :now::timestamptz - :breaker_window::interval) AS in_breaker_window,
    greatest(
        max(i.detected_at),
        (SELECT max(r.requested_at) FROM ops.rollbacks AS r WHERE r.requested_at <= :now)
    ) > :now::timestamptz - :cooldown::interval AS cooling_down
FROM ops.incidents AS i
WHERE
    i.component IS NOT NULL AND i.detected_at <= :now
    AND NOT (i.trigger = :trigger AND i.deploy_id IS NOT DISTINCT FROM :deploy_id::bigint);

-- name: open_incident(trigger, deploy_id, component, opened_at, detected_at, evidence)$
-- Open the incident of a deploy and trigger; none if there is one.
INSERT INTO ops.incidents (trigger, deploy_id, component, opened_at, detected_at, evidence)
VALUES (:trigger, :deploy_id, :component, :opened_at, :detected_at, :evidence::jsonb)
ON CONFLICT (deploy_id, trigger) DO NOTHING
RETURNING incident_id;

-- name: regime_began(since, now)$
-- When the newest rollback, or its undoing, since an instant took effect: what was seen before it proves nothing after it.
SELECT max(greatest(r.finished_at, r.undone_at))
FROM ops.rollbacks AS r
WHERE r.state IN ('done', 'undone') AND r.finished_at >= :since AND greatest(r.finished_at, r.undone_at) <= :now;

-- name: incident_times(trigger, start, until)
-- When incidents of a trigger lasted, for what is not a healthy baseline.
SELECT
    opened_at,
    coalesce(closed_at, detected_at) AS ended_at
FROM ops.incidents
WHERE trigger = :trigger AND opened_at < :until AND coalesce(closed_at, detected_at) > :start;

-- name: cursor_position(name)$
-- What was noted under a name.
SELECT position FROM ops.cursors WHERE name = :name;

-- name: move_cursor(name, position, moved_at)!
-- Note a position under a name.
INSERT INTO ops.cursors (name, position, moved_at) VALUES (:name, :position::jsonb, :moved_at)
ON CONFLICT (name) DO UPDATE SET position = excluded.position, moved_at = excluded.moved_at;

-- name: statement_statistics_usable()$
-- Whether pg_stat_statements is installed in reach and loaded.
SELECT
    to_regclass('pg_stat_statements') IS NOT NULL AND to_regclass('pg_stat_statements_info') IS NOT NULL
    AND current_setting('pg_stat_statements.max', TRUE) IS NOT NULL;

-- name: statement_statistics(most)
-- Calls and total milliseconds of the statements of this database that have cost most.
SELECT
    s.queryid::text AS statement,
    sum(s.calls)::bigint AS calls,
    sum(s.total_exec_time) AS total_ms
FROM pg_stat_statements AS s
WHERE s.dbid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()) AND s.queryid IS NOT NULL
GROUP BY s.queryid
ORDER BY total_ms DESC
LIMIT :most;

-- name: statement_statistics_reset()$
-- When the counters last began at zero.
SELECT stats_reset FROM pg_stat_statements_info;

-- name: probe_payments(until)^
-- Probe: the newest payments by time.
SELECT count(*) AS seen FROM (
    SELECT 1 FROM billing.payments WHERE occurred_at < :until ORDER BY occurred_at DESC LIMIT 2000
) AS newest;

-- name: probe_ledger(until)^
-- Probe: the newest events of the ledger, with their subscriptions.
SELECT
    count(*) AS seen,
    sum(newest.amount_minor) AS total
FROM (
    SELECT s.amount_minor FROM billing.subscription_events AS e
    INNER JOIN billing.subscriptions AS s ON e.subscription_id = s.subscription_id
    WHERE e.occurred_at < :until
    ORDER BY e.occurred_at DESC
    LIMIT 2000
) AS newest;

-- name: probe_customers()^
-- Probe: customers by key, each with its subscriptions.
SELECT
    count(*) AS seen,
    sum(s.quantity) AS total
FROM (SELECT customer_id FROM billing.customers ORDER BY customer_id DESC LIMIT 500) AS c
INNER JOIN billing.subscriptions AS s ON c.customer_id = s.customer_id;

-- name: probe_outbox()^
-- Probe: the commands that wait for Stripe.
SELECT count(*) AS seen FROM (
    SELECT 1 FROM billing.stripe_commands WHERE state = 'pending' ORDER BY subscription_id, command_id LIMIT 2000
) AS waiting;

-- name: keep_lock(deploy_id, lock)!
-- What a deploy was built from.
INSERT INTO ops.cursors (name, position) VALUES ('lock:' || :deploy_id, to_jsonb(:lock::text))
ON CONFLICT (name) DO UPDATE SET position = excluded.position, moved_at = clock_timestamp();

-- name: previous_lock()$
-- The lock file of the release before the newest.
SELECT c.position #>> '{}' AS lock
FROM (
    SELECT deploy_id FROM ops.deploys
    ORDER BY deployed_at DESC, deploy_id DESC
    LIMIT 1 OFFSET 1
) AS d
INNER JOIN ops.cursors AS c ON c.name = 'lock:' || d.deploy_id;
