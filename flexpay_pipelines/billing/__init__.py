"""Billing: the pause sweep, pauses, payment outcomes, payment frequencies, reward credits, and the switch of each.

What belongs here: what happens to subscriptions and balances in our own database. What does not: speaking to Stripe
(`flexpay_pipelines.payments`: billing writes commands, payments delivers them), figures about it (`analytics`).
"""

from flexpay_pipelines.billing.due_changes import (
    AppliedChanges,
    apply_changes_before_periods,
    apply_due_frequency_changes,
    overdue_frequency_changes,
    settle_due_changes,
)
from flexpay_pipelines.billing.features import feature_enabled, set_feature
from flexpay_pipelines.billing.frequencies import (
    ScheduledChange,
    cancel_frequency_change,
    change_frequency,
    quote_frequency_change,
    scheduled_change,
)
from flexpay_pipelines.billing.history import HistoryBreak, history_breaks
from flexpay_pipelines.billing.importing import FileCounts, ImportResult, import_directory
from flexpay_pipelines.billing.outcomes import PaymentEffects, apply_payment_outcomes, close_grace_periods
from flexpay_pipelines.billing.pauses import (
    Pause,
    PausePolicy,
    cancel_pause,
    end_pause_now,
    list_pauses,
    schedule_pause,
)
from flexpay_pipelines.billing.quotes import FrequencyQuote, When
from flexpay_pipelines.billing.reward_changes import (
    RewardAction,
    RewardChange,
    apply_reward_change,
    plan_reward_change,
)
from flexpay_pipelines.billing.reward_settlement import (
    Entries,
    RewardPolicy,
    SettlementResult,
    excess_write_offs,
    expire_rewards,
    grant_loyalty,
    negative_balances,
    plan_settlement,
    reverse_referrals,
    settle_rewards,
)
from flexpay_pipelines.billing.rewards import (
    earn_reward,
    reverse_reward,
    reward_balance,
    reward_entries,
    spend_reward,
)
from flexpay_pipelines.billing.sweep import (
    SweepPlan,
    SweepPolicy,
    SweepResult,
    pauses_by_hour,
    plan_sweep,
    sweep_pauses,
    take_pauses_back,
)

__all__ = [
    "AppliedChanges",
    "Entries",
    "FileCounts",
    "FrequencyQuote",
    "HistoryBreak",
    "ImportResult",
    "Pause",
    "PausePolicy",
    "PaymentEffects",
    "RewardAction",
    "RewardChange",
    "RewardPolicy",
    "ScheduledChange",
    "SettlementResult",
    "SweepPlan",
    "SweepPolicy",
    "SweepResult",
    "When",
    "apply_changes_before_periods",
    "apply_due_frequency_changes",
    "apply_payment_outcomes",
    "apply_reward_change",
    "cancel_frequency_change",
    "cancel_pause",
    "change_frequency",
    "close_grace_periods",
    "earn_reward",
    "end_pause_now",
    "excess_write_offs",
    "expire_rewards",
    "feature_enabled",
    "grant_loyalty",
    "history_breaks",
    "import_directory",
    "list_pauses",
    "negative_balances",
    "overdue_frequency_changes",
    "pauses_by_hour",
    "plan_reward_change",
    "plan_settlement",
    "plan_sweep",
    "quote_frequency_change",
    "reverse_referrals",
    "reverse_reward",
    "reward_balance",
    "reward_entries",
    "schedule_pause",
    "scheduled_change",
    "set_feature",
    "settle_due_changes",
    "settle_rewards",
    "spend_reward",
    "sweep_pauses",
    "take_pauses_back",
]
