-- The outbox of alerts in the control database.

-- name: lock_fingerprint(fingerprint)$
-- Whoever raises an alert of this fingerprint waits for whoever is raising one now.
SELECT pg_advisory_xact_lock(hashtextextended('flexpay alert ' || :fingerprint, 0));

-- name: raise_alert(fingerprint, severity, title, body, context, now, channels)^
-- A repeat of an alert of the last hour that is at least as severe, or a new alert with its deliveries.
-- An hour to both sides: clocks of two machines may differ.
WITH repeated AS (
    UPDATE ops.alerts
    SET repeats = repeats + 1, last_raised_at = greatest(last_raised_at, :now)
    WHERE alert_id = (
        SELECT a.alert_id
        FROM ops.alerts AS a
        WHERE a.fingerprint = :fingerprint
            AND a.raised_at > :now::timestamptz - interval '1 hour'
            AND a.raised_at < :now::timestamptz + interval '1 hour'
            AND array_position(ARRAY['info', 'warning', 'critical'], a.severity)
            >= array_position(ARRAY['info', 'warning', 'critical'], :severity::text)
        ORDER BY a.raised_at DESC, a.alert_id DESC
        LIMIT 1
    )
    RETURNING alert_id, repeats
),

fresh AS (
    INSERT INTO ops.alerts (fingerprint, severity, title, body, context, raised_at, last_raised_at)
    SELECT
        :fingerprint,
        :severity,
        :title,
        :body,
        :context,
        moment.now,
        moment.now AS last_raised_at
    FROM (SELECT :now::timestamptz AS now) AS moment
    WHERE NOT EXISTS (SELECT 1 FROM repeated)
    RETURNING alert_id, repeats
),

routed AS (
    INSERT INTO ops.alert_deliveries (alert_id, channel)
    SELECT
        fresh.alert_id,
        route.channel
    FROM fresh
    CROSS JOIN unnest(:channels::text[]) AS route (channel)
)

SELECT
    alert_id,
    repeats
FROM repeated
UNION ALL
SELECT
    alert_id,
    repeats
FROM fresh;

-- name: alert_raised(fingerprint)$
-- Whether an alert of this fingerprint was ever raised.
SELECT count(*) > 0 AS raised FROM ops.alerts WHERE fingerprint = :fingerprint;

-- name: claim_delivery(channels, now)^
-- The oldest delivery that is due for one of the channels and that no other relay holds; locked until marked.
SELECT
    d.channel,
    d.attempts,
    a.alert_id,
    a.fingerprint,
    a.severity,
    a.title,
    a.body,
    a.context,
    a.raised_at,
    a.repeats,
    a.last_raised_at
FROM ops.alert_deliveries AS d
INNER JOIN ops.alerts AS a ON d.alert_id = a.alert_id
WHERE d.state = 'pending' AND d.not_before <= :now AND d.channel = any(:channels)
ORDER BY d.alert_id, d.channel
LIMIT 1
FOR UPDATE OF d SKIP LOCKED;

-- name: mark_delivered(alert_id, channel, now)!
-- The channel has it.
UPDATE ops.alert_deliveries
SET state = 'delivered', attempts = attempts + 1, delivered_at = :now, last_error = NULL
WHERE alert_id = :alert_id AND channel = :channel AND state = 'pending';

-- name: put_delivery_back(alert_id, channel, reason, until)!
-- The attempt failed for now.
UPDATE ops.alert_deliveries
SET attempts = attempts + 1, not_before = :until, last_error = :reason
WHERE alert_id = :alert_id AND channel = :channel AND state = 'pending';

-- name: park_delivery(alert_id, channel, reason)!
-- The attempt will fail until somebody changes something.
UPDATE ops.alert_deliveries
SET state = 'parked', attempts = attempts + 1, last_error = :reason
WHERE alert_id = :alert_id AND channel = :channel AND state = 'pending';

-- name: hold_channel(channel, until)!
-- Nothing that waits for the channel is sent before an instant; what another relay holds is its own affair.
UPDATE ops.alert_deliveries AS d
SET not_before = greatest(d.not_before, :until)
FROM (
    SELECT
        h.alert_id,
        h.channel
    FROM ops.alert_deliveries AS h
    WHERE h.state = 'pending' AND h.channel = :channel
    FOR UPDATE SKIP LOCKED
) AS held
WHERE d.alert_id = held.alert_id AND d.channel = held.channel AND d.state = 'pending';

-- name: requeue_parked(channel)!
-- Parked deliveries become pending, at once due.
UPDATE ops.alert_deliveries
SET state = 'pending', attempts = 0, not_before = '-infinity'
WHERE state = 'parked' AND (:channel::text IS NULL OR channel = :channel);

-- name: waiting_by_channel()
-- How many deliveries each channel still has to make.
SELECT
    d.channel,
    count(*) AS deliveries
FROM ops.alert_deliveries AS d
WHERE d.state = 'pending'
GROUP BY d.channel
ORDER BY d.channel;

-- name: pending_deliveries(due_by)$
-- How many deliveries are still to be made, at any time or by an instant.
SELECT count(*) AS deliveries
FROM ops.alert_deliveries
WHERE state = 'pending' AND (:due_by::timestamptz IS NULL OR not_before <= :due_by);

-- name: newest_alerts(at_most)
-- The newest alerts, each with its deliveries as a JSON array.
SELECT
    a.alert_id,
    a.fingerprint,
    a.severity,
    a.title,
    a.body,
    a.context,
    a.raised_at,
    a.repeats,
    a.last_raised_at,
    coalesce((
        SELECT jsonb_agg(
            jsonb_build_object('channel', d.channel, 'state', d.state, 'attempts', d.attempts, 'last_error', d.last_error)
            ORDER BY d.channel
        )
FROM ops.alert_deliveries AS d
        WHERE d.alert_id = a.alert_id
    ), '[]') AS deliveries
FROM ops.alerts AS a
ORDER BY a.raised_at DESC, a.alert_id DESC
LIMIT :at_most;
