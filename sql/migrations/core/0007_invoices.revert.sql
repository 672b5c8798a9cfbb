DROP FUNCTION billing.failed_invoice_made_at(bigint);
DROP FUNCTION billing.payment_after_invoice(timestamptz, text, timestamptz, text);
