-- The calendar of payments, in the customer's own time zone: one definition for the database and everything that reads it.
-- Immutable: each is a function of its arguments alone (PostgreSQL declares AT TIME ZONE with a named zone so, too).

-- A local time that a clock change leaves out is paid when the clock has passed it; one that comes twice, once.
CREATE OR REPLACE FUNCTION billing.payment_at(anchor timestamptz, payment_frequency text, n integer, zone text)
RETURNS timestamptz LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    IF n = 0 THEN
        RETURN anchor;
    END IF;
    -- Months are always counted from the anchor: 31 January, 28 February, 31 March.
    CASE payment_frequency
        WHEN 'WEEKLY' THEN RETURN ((anchor AT TIME ZONE zone) + make_interval(days => 7 * n)) AT TIME ZONE zone;
        WHEN 'BIWEEKLY' THEN RETURN ((anchor AT TIME ZONE zone) + make_interval(days => 14 * n)) AT TIME ZONE zone;
        WHEN 'MONTHLY' THEN RETURN ((anchor AT TIME ZONE zone) + make_interval(months => n)) AT TIME ZONE zone;
        WHEN 'QUARTERLY' THEN RETURN ((anchor AT TIME ZONE zone) + make_interval(months => 3 * n)) AT TIME ZONE zone;
        WHEN 'YEARLY' THEN RETURN ((anchor AT TIME ZONE zone) + make_interval(months => 12 * n)) AT TIME ZONE zone;
        ELSE RAISE EXCEPTION 'unknown payment frequency: %', payment_frequency USING ERRCODE = 'invalid_parameter_value';
    END CASE;
END
$$;
COMMENT ON FUNCTION billing.payment_at(timestamptz, text, integer, text) IS
'The n-th payment after the anchor (0: the anchor itself), at the same local time of day, month ends clamped';

CREATE OR REPLACE FUNCTION billing.next_payment_at(
    anchor timestamptz, payment_frequency text, after timestamptz, zone text
) RETURNS timestamptz LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    local_anchor timestamp := anchor AT TIME ZONE zone;
    local_after timestamp := after AT TIME ZONE zone;
    months integer;
    n integer;
    candidate timestamptz;
BEGIN
    IF after < anchor THEN
        RETURN anchor;
    END IF;
    months := 12 * (extract(year FROM local_after) - extract(year FROM local_anchor))
        + extract(month FROM local_after) - extract(month FROM local_anchor);
    CASE payment_frequency
        WHEN 'WEEKLY' THEN n := floor(extract(epoch FROM local_after - local_anchor) / 604800);
        WHEN 'BIWEEKLY' THEN n := floor(extract(epoch FROM local_after - local_anchor) / 1209600);
        WHEN 'MONTHLY' THEN n := months;
        WHEN 'QUARTERLY' THEN n := months / 3;
        WHEN 'YEARLY' THEN n := months / 12;
        ELSE RAISE EXCEPTION 'unknown payment frequency: %', payment_frequency USING ERRCODE = 'invalid_parameter_value';
    END CASE;
    -- The arithmetic above is exact on the local clock; a clock change can put the instant one payment to either side.
    FOR step IN -1..2 LOOP
        candidate := billing.payment_at(anchor, payment_frequency, greatest(n + step, 0), zone);
        IF candidate > after THEN
            RETURN candidate;
        END IF;
    END LOOP;
    RAISE EXCEPTION 'no payment found after % from anchor % in %', after, anchor, zone USING ERRCODE = 'data_exception';
END
$$;
COMMENT ON FUNCTION billing.next_payment_at(timestamptz, text, timestamptz, text) IS
'The first payment strictly after the given instant; the anchor itself is the first of all';
