-- Each statement fails when what it looks for is missing or wrong.
SELECT standing FROM unnest(ARRAY['out', 'paused', 'counted']::analytics.standing []) AS kinds (standing);
