"""Retention: finished ones are forgotten when it is over, and not before (I8)."""

from __future__ import annotations

from collections.abc import Iterator

from .evidence import Evidence, Story, key

_SLACK_SECONDS = 0.1  # in which a process is seen to have left


def check(evidence: Evidence) -> Iterator[str]:
    retention = evidence.shape.retention
    if retention is None:
        return
    for epoch in evidence.world.epochs:
        for record in epoch.records:
            story = evidence.stories[str(record.call_cid)]
            over_at = _over_at(evidence, story)
            if record.state == "parked" or record.reason is None or over_at is None:
                continue
            kept = 2 * retention if record.state == "dead" else retention
            if over_at + kept < epoch.at - _SLACK_SECONDS:
                yield f"{key(story.cid)} I8: is over since {over_at}, and kept until {epoch.at}"


def may_be_pruned(evidence: Evidence, story: Story) -> bool:
    """Whether it was over for so long that it may be forgotten."""
    retention, process = evidence.shape.retention, story.of("accepted")[0].process
    at = max((each.at for each in evidence.world.epochs if each.process == process), default=0)
    return retention is not None and _seen_at(story) + retention <= at


def _over_at(evidence: Evidence, story: Story) -> float | None:
    """When the last thing happened to it at the latest."""
    decided_at = evidence.decided_at(story.cid)
    return None if decided_at is None else max(decided_at, _seen_at(story))


def _seen_at(story: Story) -> float:
    """When something was seen to happen to it last."""
    lines = story.of("begin", "end", "told", "took", "refused", "cancel!", "redeliver?", "hook")
    return max((line.at for line in lines), default=0)
