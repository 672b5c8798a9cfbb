-- The pace of requests to Stripe that all processes share.

-- name: be_brief()$
-- For a session that only reserves: it waits for no disk, and not long for anybody.
SELECT set_config('synchronous_commit', 'off', false) || set_config('lock_timeout', '250ms', false) AS settings;

-- name: reserve(bucket, slots, interval, saved, longest)$
-- Reserve the next slots of a bucket: seconds from now to the first of them, below zero where some were saved up. A time further
-- ahead than the longest queue is that of a clock that was put back: it counts for nothing. Every time is this server's.
INSERT INTO billing.stripe_pace AS pace (bucket, next_at)
VALUES (:bucket, clock_timestamp() + :slots * cast(:interval AS interval))
ON CONFLICT (bucket) DO UPDATE SET
    next_at = CASE
        WHEN pace.next_at > clock_timestamp() + :longest THEN clock_timestamp()
        ELSE greatest(pace.next_at, clock_timestamp() - :saved)
    END + :slots * cast(:interval AS interval)
RETURNING
    cast(extract(EPOCH FROM next_at - :slots * cast(:interval AS interval) - clock_timestamp()) AS double precision) AS first_in;
