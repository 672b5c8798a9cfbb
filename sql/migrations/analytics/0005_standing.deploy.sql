-- How a subscription stands at the end of a day, as a type: compared for every change of every subscription, like a number.
CREATE TYPE analytics.standing AS ENUM ('out', 'paused', 'counted');
COMMENT ON TYPE analytics.standing IS
'How a subscription stands at the end of a period: out, paused (and not yet aged out), or counted in the run rate';
