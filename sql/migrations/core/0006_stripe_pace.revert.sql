-- Nothing is kept: it says what the next moment may bring, no more.
-- squawk-ignore ban-drop-table
DROP TABLE billing.stripe_pace;
