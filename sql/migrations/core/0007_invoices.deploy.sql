-- When an invoice was made, and the payment that comes after it: one definition for all that a payment or its failure moves.

-- Stripe counts in UTC, we on the customer's clock: its invoice of a date can be made an hour before it, where the clock has
-- changed, and three days where our anchor is the first of March and Stripe's the last of February. Weeks have no such days.
CREATE OR REPLACE FUNCTION billing.payment_after_invoice(
    anchor timestamptz, payment_frequency text, made_at timestamptz, zone text
) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT billing.next_payment_at(
        anchor, payment_frequency,
        made_at + CASE WHEN payment_frequency IN ('WEEKLY', 'BIWEEKLY') THEN interval '26 hours' ELSE interval '74 hours' END,
        zone
    )
$$;
COMMENT ON FUNCTION billing.payment_after_invoice(timestamptz, text, timestamptz, text) IS
'The first payment after the one that an invoice made then asks for, which can be made some time before its date';

-- The tries of an invoice are payments that name it: the first of them is as near to its making as we know.
CREATE OR REPLACE FUNCTION billing.failed_invoice_made_at(subscription bigint)
RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT max(invoices.made_at)
    FROM (
        SELECT min(p.occurred_at) AS made_at FROM billing.payments AS p
        WHERE p.subscription_id = subscription AND p.outcome = 'failed'
        GROUP BY split_part(p.payment_ref, ':', 1)
    ) AS invoices
$$;
COMMENT ON FUNCTION billing.failed_invoice_made_at(bigint) IS
'When the newest of a subscription''s invoices was made that could not be collected at once; null: none is known';
