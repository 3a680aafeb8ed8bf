"""The life of one lease on a query, top to bottom: match, build, sign, call back, settle."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from dispatcher import payload, retry, signature
from dispatcher.deliverer import Answered
from storage.errors import ImageNotFoundError
from storage.query_records import Attempt, Delivered, GivenUp, Matched, RetryAt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatcher.deliverer import Deliverer, Outcome
    from dispatcher.matcher import Matcher
    from dispatcher.patience import Patience
    from dispatcher.retry import RetryPolicy
    from dispatcher.schedule import Schedule
    from storage.api_keys import ApiKeys
    from storage.images import Images
    from storage.queries import Queries
    from storage.query_records import QueryLease

logger = logging.getLogger(__name__)


class DeliveryWorker:
    """Works off leases on queries. Holds no state between two leases.

    *clock* tells the wall-clock time in milliseconds. Safe to use from several threads.
    """

    def __init__(
        self,
        *,
        queries: Queries,
        images: Images,
        api_keys: ApiKeys,
        matcher: Matcher,
        deliverer: Deliverer,
        policy: RetryPolicy,
        patience: Patience,
        schedule: Schedule,
        clock: Callable[[], int],
    ) -> None:
        self._queries = queries
        self._images = images
        self._api_keys = api_keys
        self._matcher = matcher
        self._deliverer = deliverer
        self._policy = policy
        self._patience = patience
        self._schedule = schedule
        self._clock = clock

    def process(self, leases: Sequence[QueryLease]) -> None:
        """Bring each leased query one attempt further, and end its lease."""
        for lease in leases:
            outcome = None
            try:
                outcome = self._work(lease)
            finally:
                self._schedule.finished(lease, outcome)

    def _work(self, lease: QueryLease) -> Outcome | None:
        """End *lease*; return the outcome of the attempt, None if none was made."""
        if lease.give_up_at is not None and self._clock() >= lease.give_up_at:
            message = "give_up_after passed before an attempt"
            self._settle(lease, None, GivenUp(reason="DEADLINE_PASSED", message=message))
            return None
        try:
            return self._deliver(lease)
        except Exception:  # a bug, or storage: never lose the query over it
            logger.exception("delivery.crashed", extra={"query": lease.id})
            self._settle_crash(lease)
            return None

    def _deliver(self, lease: QueryLease) -> Outcome | None:
        body = self._body(lease)
        if body is None:
            return None  # cancelled meanwhile
        started_at = self._clock()
        outcome = self._deliverer.deliver(
            lease.callback_url, headers=self._headers(lease, started_at, body), body=body
        )
        ended_at = self._clock()
        attempt = _attempt(lease, outcome, started_at=started_at, ended_at=ended_at)
        decision = self._policy.decide(
            outcome, attempt=lease.attempt_of_cycle, now=ended_at, give_up_at=lease.give_up_at
        )
        self._settle(lease, attempt, _settlement(decision))
        return outcome

    def _body(self, lease: QueryLease) -> bytes | None:
        """Return the bytes to send; the same for every attempt while the match's image exists."""
        matched = lease.matched
        while True:
            if matched is None:
                matched = self._match(lease)
                if not self._queries.record_match(lease, matched):
                    return None
            match = matched.match
            if match is None:
                return payload.unmatched(
                    query_id=lease.id,
                    text=lease.text,
                    lemmas=matched.lemmas,
                    timestamp_at=matched.at,
                )
            try:
                image = self._images.get(match.image_id)
                content = self._images.content(image.seq)
            except ImageNotFoundError:
                matched = None  # deleted: match anew
                continue
            return payload.matched(
                query_id=lease.id,
                text=lease.text,
                lemmas=matched.lemmas,
                score=match.score,
                image=image,
                matched_tags=match.tags,
                timestamp_at=matched.at,
                content=content,
            )

    def _match(self, lease: QueryLease) -> Matched:
        found = self._matcher.match(lease.text, limit=1)
        best = found.matches[0] if found.matches else None
        return Matched(lemmas=found.lemmas, match=best, at=self._clock())

    def _headers(self, lease: QueryLease, at: int, body: bytes) -> dict[str, str]:
        timestamp = at // 1000
        secrets = [
            signature.decode_secret(secret)
            for secret in self._api_keys.signing_secrets(lease.key_id, now=at)
        ]
        return {
            "content-type": "application/json",
            "webhook-id": lease.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature.sign(
                secrets, webhook_id=lease.id, timestamp=timestamp, body=body
            ),
        }

    def _settle_crash(self, lease: QueryLease) -> None:
        now = self._clock()
        crash = retry.crashed()
        decision = self._policy.decide(
            crash, attempt=lease.attempt_of_cycle, now=now, give_up_at=lease.give_up_at
        )
        attempt = _attempt(lease, crash, started_at=now, ended_at=now)
        self._settle(lease, attempt, _settlement(decision))

    def _settle(
        self, lease: QueryLease, attempt: Attempt | None, outcome: Delivered | RetryAt | GivenUp
    ) -> None:
        """Record what came of a lease; not to would mean calling the receiver again for nothing."""
        settle = partial(self._queries.settle, lease, attempt, outcome, now=self._clock())
        held = self._patience.insist(settle, on=lease.id)
        if held is not None:
            _log(lease, attempt, outcome, held=held)


def _attempt(lease: QueryLease, outcome: Outcome, *, started_at: int, ended_at: int) -> Attempt:
    failure = retry.failure_of(outcome)
    status, excerpt = 0, b""
    if isinstance(outcome, Answered):
        status, excerpt = outcome.status, outcome.excerpt
    return Attempt(
        number=lease.attempt,
        started_at=started_at,
        latency_ms=max(0, ended_at - started_at),
        http_status=status,
        failure_reason=failure.reason if failure else None,
        failure_message=failure.message if failure else None,
        excerpt=excerpt.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}"),
    )


def _settlement(decision: retry.Decision) -> Delivered | RetryAt | GivenUp:
    match decision:
        case retry.Delivered():
            return Delivered()
        case retry.RetryAt():
            return RetryAt(due_at=decision.at)
        case retry.GiveUp():
            return GivenUp(reason=decision.reason, message=decision.message)


def _log(
    lease: QueryLease,
    attempt: Attempt | None,
    outcome: Delivered | RetryAt | GivenUp,
    *,
    held: bool,
) -> None:
    logger.info(
        "delivery.attempted",
        extra={
            "query": lease.id,
            "attempt": lease.attempt,
            "outcome": type(outcome).__name__ if held else "LeaseLost",
            "status": attempt.http_status if attempt else 0,
            "reason": attempt.failure_reason if attempt else "DEADLINE_PASSED",
            "latency_ms": attempt.latency_ms if attempt else 0,
        },
    )
