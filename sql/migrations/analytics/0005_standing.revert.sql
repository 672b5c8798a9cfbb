-- squawk-ignore-file ban-drop-type
-- No stored row is of this type.
DROP TYPE analytics.standing;
