DROP FUNCTION billing.next_payment_at(timestamptz, text, timestamptz, text);
DROP FUNCTION billing.payment_at(timestamptz, text, integer, text);
