"""The life of one lease on a query, top to bottom: match, build, sign, call back, settle.

The rule a newcomer would break: what goes wrong before the receiver is called costs the query an
attempt only if the query itself may be the cause. A full disk or a lack of descriptors is no query's
attempt; a crash is,
because a query that crashes us each time must come to an end.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from dispatcher import payload, retry, signature
from dispatcher.deliverer import Answered
from dispatcher.late_matcher import NoMatcherError
from dispatcher.local_resources import LocalResourceError, local_resources
from storage.errors import ImageNotFoundError, StorageBusyError, StorageFullError
from storage.query_records import Attempt, Delivered, GivenUp, Matched, NotMade, RetryAt, Unmatched
from storage.thread_pool import StartedPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatcher.byte_budget import ByteBudget
    from dispatcher.deliverer import Deliverer, Outcome
    from dispatcher.late_matcher import LateMatcher
    from dispatcher.matcher import Matcher
    from dispatcher.patience import Patience
    from dispatcher.retry import RetryPolicy
    from dispatcher.schedule import Schedule
    from dispatcher.shortage import Shortage
    from storage.api_keys import ApiKeys
    from storage.images import ImageFile, Images
    from storage.queries import Queries
    from storage.query_records import QueryLease, Settlement

logger = logging.getLogger(__name__)

#: Images of this size and more become bodies on threads of their own: to read, encode and sign
#: them takes milliseconds without Python's lock, which need not pass where Python runs.
_LARGE_BYTES: Final = 500_000
_LARGE_AT_ONCE: Final = 4
#: How long a query waits when storage had no room for its match, in milliseconds.
_STORAGE_PAUSE: Final = 1000


class DeliveryWorker:
    """Works off leases on queries, until closed. Holds no state between two leases.

    *clock* tells the scheduler's time and *wall* the wall clock's (None: the same), in
    milliseconds; *monotonic* is in seconds. Safe to use from several threads.
    """

    def __init__(
        self,
        *,
        queries: Queries,
        images: Images,
        api_keys: ApiKeys,
        matcher: Matcher | LateMatcher,
        deliverer: Deliverer,
        budget: ByteBudget,
        policy: RetryPolicy,
        patience: Patience,
        shortage: Shortage,
        schedule: Schedule,
        clock: Callable[[], int],
        wall: Callable[[], int] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queries = queries
        self._images = images
        self._api_keys = api_keys
        self._matcher = matcher
        self._deliverer = deliverer
        self._budget = budget
        self._policy = policy
        self._patience = patience
        self._shortage = shortage
        self._schedule = schedule
        self._clock = clock
        self._wall = wall or clock
        self._monotonic = monotonic
        self._large = StartedPool(_LARGE_AT_ONCE, name="body")
        self._large.start()

    def close(self) -> None:
        """End its threads; nothing is being processed any more."""
        self._large.shutdown()

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
        try:
            if self._is_too_late(lease):
                return None
            return self._deliver(lease)
        except NoMatcherError:
            self._hand_back(lease, due_at=self._clock())
        except (StorageFullError, StorageBusyError):
            self._hand_back(lease, due_at=self._clock() + _STORAGE_PAUSE)
        except LocalResourceError as error:
            pause = self._shortage.hold_up(error)
            self._hand_back(lease, due_at=self._clock() + round(1000 * pause))
        except Exception:  # a bug, or storage: never lose the query over it
            logger.exception("delivery.crashed", extra={"query": lease.id})
            self._settle_crash(lease)
        return None

    def _is_too_late(self, lease: QueryLease) -> bool:
        """Give the query up if its time has passed."""
        end = self._policy.end_of(lease)
        if self._clock() < end.at:
            return False
        message = "its time had passed before an attempt"
        self._settle(lease, None, GivenUp(reason=end.reason, message=message))
        return True

    def _seconds_left(self, lease: QueryLease) -> float:
        """Return how long an attempt may take before the query's time has passed, more than 0."""
        return max(1, self._policy.end_of(lease).at - self._clock()) / 1000

    def _deliver(self, lease: QueryLease) -> Outcome | None:
        matched = lease.matched or self._match(lease)
        while matched is not None:
            try:
                return self._attempt(lease, matched)
            except ImageNotFoundError:
                matched = self._match(lease)  # deleted: match anew
        return None  # it ended: cancelled, or no image matches

    def _attempt(self, lease: QueryLease, matched: Matched) -> Outcome | None:
        image = self._images.file_of(matched.match.image_id) if matched.match else None
        size = payload.encoded_bytes(image.size_bytes) if image else 0
        with self._budget.hold(size, timeout=self._seconds_left(lease)) as there_is_room:
            if self._is_too_late(lease):  # after the wait for room
                return None
            if not there_is_room:  # we stop: the next start has more
                self._hand_back(lease, due_at=self._clock())
                return None
            started_at, latency, outcome = self._post(lease, matched, image)
        attempt = _attempt(lease, outcome, started_at=started_at, latency=latency)
        decision = self._policy.decide(
            outcome, attempt=lease.attempt_of_cycle, now=self._clock(), cycle=lease
        )
        self._settle(lease, attempt, _settlement(decision))
        return outcome

    def _post(
        self, lease: QueryLease, matched: Matched, image: ImageFile | None
    ) -> tuple[int, float, Outcome]:
        """Deliver; return when that began, for how many seconds, and what came of it.

        Nothing keeps the body.
        """
        make = partial(self._request, lease, matched, image)
        is_large = image is not None and image.size_bytes >= _LARGE_BYTES
        with local_resources():
            started_at, headers, body = self._large.submit(make).result() if is_large else make()
            before = self._monotonic()
            outcome = self._deliverer.deliver(
                lease.callback_url,
                headers=headers,
                body=body,
                owner=lease.key_id,
                timeout=self._seconds_left(lease),
            )
            latency = self._monotonic() - before
        self._shortage.end()
        return started_at, latency, outcome

    def _request(
        self, lease: QueryLease, matched: Matched, image: ImageFile | None
    ) -> tuple[int, dict[str, str], Sequence[bytes]]:
        """Return when the attempt begins, its headers, and its body."""
        body = self._body(lease, matched, image)
        started_at = self._wall()
        return started_at, self._headers(lease, started_at, body), body

    def _body(
        self, lease: QueryLease, matched: Matched, image: ImageFile | None
    ) -> Sequence[bytes]:
        """Return the bytes to send; the same for every attempt while the match's image exists."""
        if matched.match is None or image is None:
            return payload.unmatched(
                query_id=lease.id,
                text=lease.text,
                lemmas=matched.lemmas,
                timestamp_at=matched.at,
            )
        return payload.matched(
            query_id=lease.id,
            text=lease.text,
            lemmas=matched.lemmas,
            score=matched.match.score,
            image=image,
            matched_tags=matched.match.tags,
            timestamp_at=matched.at,
            content=self._images.content(image.seq),
        )

    def _match(self, lease: QueryLease) -> Matched | None:
        """Match the text and record the match; None if the lease was lost or has ended."""
        found = self._matcher.match(lease.text, limit=1)
        best = found.matches[0] if found.matches else None
        matched = Matched(lemmas=found.lemmas, match=best, at=self._wall())
        if best is None and lease.ends_unmatched:
            self._settle(lease, None, Unmatched(matched=matched))
            return None
        return matched if self._queries.record_match(lease, matched) else None

    def _headers(self, lease: QueryLease, at: int, body: Sequence[bytes]) -> dict[str, str]:
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
        crash = retry.crashed()
        decision = self._policy.decide(
            crash, attempt=lease.attempt_of_cycle, now=self._clock(), cycle=lease
        )
        attempt = _attempt(lease, crash, started_at=self._wall(), latency=0)
        self._settle(lease, attempt, _settlement(decision))

    def _hand_back(self, lease: QueryLease, *, due_at: int) -> None:
        """End a lease as if it had not been."""
        self._settle(lease, None, NotMade(due_at=due_at))

    def _settle(self, lease: QueryLease, attempt: Attempt | None, outcome: Settlement) -> None:
        """Record what came of a lease; not to would mean calling the receiver again for nothing."""
        settle = partial(self._queries.settle, lease, attempt, outcome, now=self._wall())
        held = self._patience.insist(settle, on=lease.id)
        if held is not None:
            _log(lease, attempt, outcome, held=held)


def _attempt(lease: QueryLease, outcome: Outcome, *, started_at: int, latency: float) -> Attempt:
    failure = retry.failure_of(outcome)
    status, excerpt = 0, b""
    if isinstance(outcome, Answered):
        status, excerpt = outcome.status, outcome.excerpt
    return Attempt(
        number=lease.attempt,
        started_at=started_at,
        latency_ms=round(1000 * latency),
        http_status=status,
        failure_reason=failure.reason if failure else None,
        failure_message=failure.message if failure else None,
        excerpt=excerpt.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}"),
    )


def _settlement(decision: retry.Decision) -> Settlement:
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
    outcome: Settlement,
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
            "reason": attempt.failure_reason if attempt else getattr(outcome, "reason", None),
            "latency_ms": attempt.latency_ms if attempt else 0,
        },
    )
