-- name: payment_health_rows(grain, since, until, known_at)
-- description: Payment attempts by period and by the payment frequency that the ledger gives for their instant.
SELECT
    CASE WHEN :grain = 'day' THEN to_char(p.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')
        ELSE to_char(p.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM')
    END AS period,
    coalesce(f.payment_frequency, 'unknown') AS payment_frequency,
    count(*) AS attempts,
    count(*) FILTER (WHERE p.outcome = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE p.outcome = 'failed') AS failed,
    round(cast(count(*) FILTER (WHERE p.outcome = 'succeeded') AS numeric) / count(*), 6) AS success_rate,
    count(*) FILTER (WHERE p.failure_class = 'issuer_decline') AS issuer_decline,
    count(*) FILTER (WHERE p.failure_class = 'block') AS block,
    count(*) FILTER (WHERE p.failure_class = 'integration_error') AS integration_error,
    count(*) FILTER (WHERE p.failure_class = 'provider_error') AS provider_error,
    count(*) FILTER (
        WHERE p.outcome = 'failed'
            AND coalesce(p.failure_class, '') NOT IN ('issuer_decline', 'block', 'integration_error', 'provider_error')
    ) AS other_failure,
    count(*) FILTER (WHERE p.outcome = 'succeeded' AND p.attempt > 1) AS recovered
FROM billing.payments AS p
LEFT JOIN LATERAL (
    SELECT e.payment_frequency
    FROM billing.subscription_events AS e
    WHERE e.subscription_id = p.subscription_id AND e.occurred_at <= p.occurred_at
        AND e.recorded_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
    ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.event_id DESC
    LIMIT 1
) AS f ON TRUE
WHERE p.occurred_at >= :since AND p.occurred_at < :until
    AND p.recorded_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
GROUP BY period, f.payment_frequency
ORDER BY period, payment_frequency;
