"""The dispatcher: all that is slow, on threads of its own, between leases and settling."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dispatcher.byte_budget import ByteBudget
from dispatcher.deadlines import DeadlineSweeper
from dispatcher.destinations import Destinations
from dispatcher.lane import Lane
from dispatcher.late_matcher import LateMatcher
from dispatcher.matcher import Matcher
from dispatcher.patience import Patience
from dispatcher.retry import RetryPolicy
from dispatcher.schedule import Schedule
from dispatcher.shortage import Shortage
from dispatcher.tagging import TaggingWorker
from dispatcher.worker import DeliveryWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from analysis.images import DecodedImage
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

logger = logging.getLogger(__name__)


class Dispatcher:
    """Tags images, matches queries and calls back, from `start` until `drain`.

    One for a database: `start` takes every lease that it finds for one of a process that
    has died.

    Args:
        load_lemmatizer: Called by `start`, once what needs no lemmas is under way.
        load_tagger: The same for the tagger; None: nobody tags images.
        decode: Decodes an image, as `analysis.image_decoder.ImageDecoder.decode`: the preview of
            one that an earlier version stored.
        clock: Tells the wall-clock time in milliseconds since the epoch.
        time: The scheduler's clock, the same unless the wall clock was set: `SteadyClock`. None:
            the wall clock.
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
        load_lemmatizer: Callable[[], Lemmatizer],
        load_tagger: Callable[[], Tagger] | None,
        decode: Callable[[bytes], DecodedImage],
        deliverer: Deliverer,
        clock: Callable[[], int],
        time: Callable[[], int] | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        self._settings = settings
        self._images = images
        self._tags = tags
        self._queries = queries
        self._load_lemmatizer = load_lemmatizer
        self._load_tagger = load_tagger
        self._decode = decode
        self._clock = clock
        #: The scheduler's time: when a query that is accepted now is due.
        self.time = time or clock
        self._policy = policy or RetryPolicy()
        self._budget = ByteBudget(settings.delivery_bytes)
        self._patience = Patience()
        self._shortage = Shortage()
        self._matcher = LateMatcher()
        self._schedule = Schedule(
            queries=queries,
            breakers=breakers,
            destinations=Destinations(threads=settings.delivery_threads),
            can_match=self._matcher.has_come,
            clock=self.time,
            wall=clock,
            max_wait=self._policy.max_wait,
        )
        self._deadlines = DeadlineSweeper(
            queries=queries, lifetime=self._policy.lifetime, clock=self.time, wall=clock
        )
        self._delivery = DeliveryWorker(
            queries=queries,
            images=images,
            api_keys=api_keys,
            matcher=self._matcher,
            deliverer=deliverer,
            budget=self._budget,
            policy=self._policy,
            patience=self._patience,
            shortage=self._shortage,
            schedule=self._schedule,
            clock=self.time,
            wall=clock,
        )
        self._delivery_lane: Lane[QueryLease] = Lane(
            "delivery",
            threads=settings.delivery_threads,
            lease=self._schedule.lease,
            next_due_at=self._schedule.next_due_at,
            process=self._delivery.process,
            clock=self.time,
        )
        self._tagger: Tagger | None = None
        self._tagging: TaggingWorker | None = None
        self._tagging_lane: Lane[TaggingLease] | None = None

    def start(self) -> None:
        """Take up what an earlier process left, load the models, then do all that there is.

        Queries that were tried before have their match, as a rule: they go out again while
        the models load.

        Raises:
            Exception: What the loaders raise. `drain` is still to be called.
        """
        now = self._clock()
        for image_id in self._images.void_leases(
            max_interruptions=self._settings.max_interruptions, now=now
        ):
            logger.error("image.unprocessable", extra={"image": image_id})
        self._queries.void_leases(
            max_attempts=self._policy.max_attempts, now=self.time(), wall_now=now
        )
        self._schedule.restore()
        self._delivery_lane.start()
        self._deadlines.start()
        matcher = Matcher(tags=self._tags, images=self._images, lemmatizer=self._load_lemmatizer())
        matcher.refresh()
        self._matcher.come(matcher)
        self._delivery_lane.wake()  # first attempts may begin now
        if self._load_tagger is not None:
            self._start_tagging(self._load_tagger())

    @property
    def tags_images(self) -> bool:
        """Whether there is or will be a tagger, so that new images wait for it."""
        return self._load_tagger is not None

    def _start_tagging(self, tagger: Tagger) -> None:
        tagging = TaggingWorker(
            self._settings,
            images=self._images,
            tagger=tagger,
            decode=self._decode,
            patience=self._patience,
            clock=self._clock,
        )
        self._tagger, self._tagging = tagger, tagging
        self._tagging_lane = Lane(
            "tagging",
            threads=self._settings.tagging_threads,
            lease=tagging.lease,
            next_due_at=tagging.next_due_at,
            process=tagging.process,
            clock=self._clock,
            batch_size=tagger.batch_size,
        )
        self._tagging_lane.start()

    @property
    def tagging_is_paused(self) -> bool:
        """Whether the tagger is out of reach, so that waiting for tags would be in vain."""
        return self._tagging is not None and self._tagging.is_paused

    def wake_tagging(self) -> None:
        """There is an image to tag."""
        if self._tagging_lane is not None:
            self._tagging_lane.wake()

    def wake_delivery(self, destination: int) -> None:
        """There is a query to work on, to be called back at *destination*."""
        if not self._schedule.is_saturated(destination):
            self._delivery_lane.wake()

    def match(self, text: str, *, limit: int) -> Matching:
        """Return what *text* matches now; see `Matcher.match`."""
        return self._matcher.match(text, limit=limit)

    def is_stuck(self, *, grace: float) -> bool:
        """Tell whether work has been due for *grace* seconds and nobody does it; see `Lane`.

        Or whether storage has refused to record it for so long: it then holds its threads and
        its destinations' share of them, which no lane can tell from work in flight. Or whether
        this machine has lacked what callbacks need for so long.
        """
        if self._patience.has_waited(grace) or self._shortage.has_lasted(grace):
            return True
        if self._tagging_lane is not None and self._tagging_lane.is_stuck(grace=grace):
            return True
        if self._deadlines.is_late(grace=grace):
            return True
        # Asked every few seconds: in passing the lane learns what operators did meanwhile.
        self._delivery_lane.wake()
        return self._delivery_lane.is_stuck(grace=grace)

    def stop(self) -> None:
        """Begin nothing new; what is in flight goes on."""
        self._delivery_lane.stop()
        self._deadlines.stop()
        if self._tagging_lane is not None:
            self._tagging_lane.stop()

    def drain(self) -> None:
        """Begin nothing new, and return when all that is under way has ended.

        That takes at most one attempt's deadline and one call of the tagger. What was not
        begun is in storage for the next start.
        """
        self._patience.stop()
        self.stop()
        self._budget.close()
        self._matcher.close()
        if self._tagging_lane is not None:
            self._tagging_lane.drain()
        self._delivery_lane.drain()
        self._delivery.close()
        if self._tagger is not None:
            self._tagger.close()
