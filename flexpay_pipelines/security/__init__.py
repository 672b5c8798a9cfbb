"""Security: the audit trail, what must never be written down, and the proof that no card number is kept.

What belongs here: audit entries, redaction, the search for card numbers in a database. What does not: who may log in
(PostgreSQL and the proxy before the UI decide that), and advisories about our dependencies (`monitoring`).
"""

from flexpay_pipelines.security import audit
from flexpay_pipelines.security.audit import AuditEntry, Outcome, entries, record
from flexpay_pipelines.security.cards import CardColumn, card_numbers_in
from flexpay_pipelines.security.redaction import is_card_number, redact, redact_json

__all__ = [
    "AuditEntry",
    "CardColumn",
    "Outcome",
    "audit",
    "card_numbers_in",
    "entries",
    "is_card_number",
    "record",
    "redact",
    "redact_json",
]
