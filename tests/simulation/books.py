"""Whether the books of a run balance: what always holds (I1-I8), from outside.

What the coordinator says (its records, its counts, what it told callbacks and callers) is held
against what its targets, its callers and its processes have written down. There is a file for each
thing that is audited.
"""

from __future__ import annotations

from . import (
    audit_attempts,
    audit_balance,
    audit_callers,
    audit_content,
    audit_decisions,
    audit_deliveries,
    audit_inline,
    audit_leaving,
    audit_limits,
    audit_outcomes,
    audit_retention,
)
from .evidence import Evidence
from .world import World

_AUDITS = (
    audit_balance.check,
    audit_leaving.check,
    audit_callers.check,
    audit_inline.check,
    audit_attempts.check,
    audit_outcomes.check,
    audit_deliveries.check,
    audit_content.check,
    audit_limits.check,
    audit_decisions.check,
    audit_retention.check,
)


def audit(world: World) -> list[str]:
    """What is wrong with a run that has come to its end."""
    evidence = Evidence(world)
    return [text for check in _AUDITS for text in check(evidence)]
