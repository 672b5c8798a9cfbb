-- name: use_time_zone(time_zone)$
-- description: Lets days begin at midnight in this time zone, until the connection ends.
SELECT set_config('TimeZone', :time_zone, FALSE) AS time_zone;

-- name: stored_time_zone()$
-- description: The time zone of the stored days; null where none are stored.
SELECT max(time_zone) AS time_zone FROM analytics.snapshots;

-- name: insert_periods(grain, first, last)!
-- description: The periods from first to last, both included.
INSERT INTO metric_periods (period)
SELECT cast(p.at AS date)
FROM generate_series(cast(:first AS timestamp), cast(:last AS timestamp), cast('1 ' || :grain AS interval)) AS p (at);

-- name: insert_day_windows(first, last, span)!
-- description: For each day the window of so many days that ends with it.
INSERT INTO metric_windows (period, label, last_period, before_period, before_day, last_day)
SELECT
    cast(d.at AS date) AS period,
    to_char(d.at, 'YYYY-MM-DD') AS label,
    cast(d.at AS date) AS last_period,
    cast(d.at AS date) - cast(:span AS integer) AS before_period,
    cast(d.at AS date) - cast(:span AS integer) AS before_day,
    cast(d.at AS date) AS last_day
FROM generate_series(cast(:first AS timestamp), cast(:last AS timestamp), '1 day') AS d (at);

-- name: insert_month_windows(first, last)!
-- description: For each month the month itself.
INSERT INTO metric_windows (period, label, last_period, before_period, before_day, last_day)
SELECT
    cast(m.at AS date) AS period,
    to_char(m.at, 'YYYY-MM') AS label,
    cast(m.at AS date) AS last_period,
    cast(m.at - interval '1 month' AS date) AS before_period,
    cast(m.at AS date) - 1 AS before_day,
    cast(m.at + interval '1 month' AS date) - 1 AS last_day
FROM generate_series(cast(:first AS timestamp), cast(:last AS timestamp), '1 month') AS m (at);

-- name: insert_month_end_windows(first, last, span)!
-- description: For each month the window of so many days that ends with its last.
INSERT INTO metric_windows (period, label, last_period, before_period, before_day, last_day)
SELECT
    cast(m.at AS date) AS period,
    to_char(m.at, 'YYYY-MM') AS label,
    cast(m.at + interval '1 month' AS date) - 1 AS last_period,
    cast(m.at + interval '1 month' AS date) - 1 - cast(:span AS integer) AS before_period,
    cast(m.at + interval '1 month' AS date) - 1 - cast(:span AS integer) AS before_day,
    cast(m.at + interval '1 month' AS date) - 1 AS last_day
FROM generate_series(cast(:first AS timestamp), cast(:last AS timestamp), '1 month') AS m (at);

-- name: size(relation)$
-- description: How many bytes a relation takes.
SELECT pg_relation_size(cast(:relation AS regclass)) AS bytes;
