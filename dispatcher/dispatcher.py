"""The dispatcher: all that is slow, on threads of its own, between leases and settling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.destinations import Destinations
from dispatcher.lane import Lane
from dispatcher.matcher import Matcher
from dispatcher.patience import Patience
from dispatcher.retry import RetryPolicy
from dispatcher.schedule import Schedule
from dispatcher.tagging import TaggingWorker
from dispatcher.worker import DeliveryWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from analysis.lemmas import Lemmatizer
    from analysis.taggers import Tagger
    from dispatcher.deliverer import Deliverer
    from dispatcher.matcher import Matching
    from dispatcher.settings import DispatcherSettings
    from storage.api_keys import ApiKeys
    from storage.breakers import Breakers
    from storage.images import Images, TaggingLease
    from storage.queries import Queries
    from storage.query_records import QueryLease
    from storage.tags import Tags


class Dispatcher:
    """Tags images, matches queries and calls back, from `start` until `drain`.

    One for a database: `start` takes every lease that it finds for one of a process that
    has died. *clock* tells the wall-clock time in milliseconds since the epoch.
    """

    def __init__(
        self,
        settings: DispatcherSettings,
        *,
        images: Images,
        tags: Tags,
        queries: Queries,
        api_keys: ApiKeys,
        breakers: Breakers,
        lemmatizer: Lemmatizer,
        tagger: Tagger | None,
        deliverer: Deliverer,
        clock: Callable[[], int],
        policy: RetryPolicy | None = None,
    ) -> None:
        self._images = images
        self._queries = queries
        self._clock = clock
        self._policy = policy or RetryPolicy()
        self._patience = Patience()
        self._matcher = Matcher(tags=tags, images=images, lemmatizer=lemmatizer)
        self._schedule = Schedule(
            queries=queries,
            breakers=breakers,
            destinations=Destinations(threads=settings.delivery_threads),
            clock=clock,
        )
        self._delivery = DeliveryWorker(
            queries=queries,
            images=images,
            api_keys=api_keys,
            matcher=self._matcher,
            deliverer=deliverer,
            policy=self._policy,
            patience=self._patience,
            schedule=self._schedule,
            clock=clock,
        )
        self._delivery_lane: Lane[QueryLease] = Lane(
            "delivery",
            threads=settings.delivery_threads,
            lease=self._schedule.lease,
            next_due_at=self._schedule.next_due_at,
            process=self._delivery.process,
            clock=clock,
        )
        self._tagging: TaggingWorker | None = None
        self._tagging_lane: Lane[TaggingLease] | None = None
        if tagger is not None:
            self._tagging = TaggingWorker(
                settings, images=images, tagger=tagger, patience=self._patience, clock=clock
            )
            self._tagging_lane = Lane(
                "tagging",
                threads=settings.tagging_threads,
                lease=self._tagging.lease,
                next_due_at=self._tagging.next_due_at,
                process=self._tagging.process,
                clock=clock,
                batch_size=tagger.batch_size,
            )

    def start(self) -> None:
        """Take up what an earlier process left, then work."""
        now = self._clock()
        self._images.void_leases(now=now)
        self._queries.void_leases(max_attempts=self._policy.max_attempts, now=now)
        self._schedule.restore()
        self._matcher.refresh()
        self._delivery_lane.start()
        if self._tagging_lane is not None:
            self._tagging_lane.start()

    @property
    def tags_images(self) -> bool:
        """Whether there is a tagger, so that new images wait for it."""
        return self._tagging is not None

    @property
    def tagging_is_paused(self) -> bool:
        """Whether the tagger is out of reach, so that waiting for tags would be in vain."""
        return self._tagging is not None and self._tagging.is_paused

    def wake_tagging(self) -> None:
        """There is an image to tag."""
        if self._tagging_lane is not None:
            self._tagging_lane.wake()

    def wake_delivery(self) -> None:
        """There is a query to work on."""
        self._delivery_lane.wake()

    def match(self, text: str, *, limit: int) -> Matching:
        """Return what *text* matches now; see `Matcher.match`."""
        return self._matcher.match(text, limit=limit)

    def is_stuck(self, *, grace: float) -> bool:
        """Tell whether work has been due for *grace* seconds and nobody does it; see `Lane`."""
        if self._tagging_lane is not None and self._tagging_lane.is_stuck(grace=grace):
            return True
        return self._delivery_lane.is_stuck(grace=grace)

    def drain(self) -> None:
        """Begin nothing new, and return when all that is under way has ended.

        That takes at most one attempt's deadline and one call of the tagger. What was not
        begun is in storage for the next start.
        """
        self._patience.stop()
        self._delivery_lane.stop()  # at once, however long the tagger takes
        if self._tagging_lane is not None:
            self._tagging_lane.drain()
        self._delivery_lane.drain()
