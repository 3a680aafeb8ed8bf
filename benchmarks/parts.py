"""The parts of a delivery, each by itself: what it costs in processor time.

They run in this process, with picback's own code, on a database of their own and on as many threads
as picback delivers with, so that they share commits as they do there:

* match: lemmas and the best image
* body: the image read from the database, base64, JSON, the signature
* post: ready bytes, sent and answered
* record: the lease, the match and the outcome written to the database
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from analysis.lemmas import Lemmatizer
from benchmarks import pictures
from benchmarks.deliveries import THREADS
from dispatcher import HttpDeliverer, UrlGuard, decode_secret, new_secret, payload, signature
from dispatcher.matcher import Matcher
from storage.api_keys import SCOPES, ApiKeys
from storage.database import Database
from storage.images import Images, NewImage
from storage.queries import Queries
from storage.query_records import Attempt, Delivered, Matched, Turn
from storage.tags import Tags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.receiver import Receiver
    from storage.query_records import QueryLease

SIZE_BYTES: Final = 200_000
TEXT: Final = "a dog on a beach"
#: Some time: nothing here looks at a clock.
_NOW: Final = 1_800_000_000_000


class Parts:
    """What `opened_parts` opens."""

    def __init__(self, database: Database) -> None:
        self._images = Images(database)
        self._queries = Queries(database)
        self._matcher = Matcher(tags=Tags(database), images=self._images, lemmatizer=Lemmatizer())
        self._secret = new_secret()
        self._key = ApiKeys(database).create(
            "parts", scopes=SCOPES, signing_secret=self._secret, expires_at=None, now=_NOW
        )
        new = NewImage(
            content=pictures.padded(SIZE_BYTES),
            sha256=64 * "0",
            media_type="image/jpeg",
            width=64,
            height=48,
        )
        self._images.add(
            new, tags_of_caller={"dog": 1_000_000}, request=None, tag_it=False, now=_NOW
        )
        self._matched = self._match()
        self._pool = ThreadPoolExecutor(THREADS)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def measure(self, receiver: Receiver, count: int) -> dict[str, float]:
        """Return the processor seconds of each part, for one query."""
        everything = range(count)
        body = self._body()
        url = receiver.urls[0]
        deliverer = HttpDeliverer(UrlGuard(allow=receiver.addresses))
        receiver.expect(count)
        post = self._cpu(lambda _: deliverer.deliver(url, headers={}, body=body), everything)
        receiver.wait()
        deliverer.close()
        return {
            "match": self._cpu(lambda _: self._match(), everything),
            "body": self._cpu(lambda _: self._body(), everything),
            "post": post,
            "record": self._record(url, count),
        }

    def _cpu(self, work: Callable[[Any], object], items: Sequence[Any]) -> float:
        before = time.process_time()
        for _ in self._pool.map(work, items):
            pass
        return (time.process_time() - before) / len(items)

    def _match(self) -> Matched:
        found = self._matcher.match(TEXT, limit=1)
        return Matched(lemmas=found.lemmas, match=found.matches[0], at=_NOW)

    def _body(self) -> Sequence[bytes]:
        match = self._matched.match
        assert match is not None  # noqa: S101 - for the type checker
        image = self._images.file_of(match.image_id)
        body = payload.matched(
            query_id=28 * "q",
            text=TEXT,
            lemmas=self._matched.lemmas,
            score=match.score,
            image=image,
            matched_tags=match.tags,
            timestamp_at=_NOW,
            content=self._images.content(image.seq),
        )
        signature.sign(
            [decode_secret(self._secret)],
            webhook_id=28 * "q",
            timestamp=_NOW // 1000,
            body=body,
        )
        return body

    def _record(self, url: str, count: int) -> float:
        self._cpu(lambda _: self._submit(url), range(count))
        before = time.process_time()
        for _ in range(0, count, THREADS):
            waiting = self._queries.waiting()
            turn = Turn(
                key_id=waiting[0].key_id,
                destination=waiting[0].destination,
                retries=False,
                count=THREADS,
            )
            (leased,) = self._queries.lease([turn], now=_NOW)
            for _ in self._pool.map(self._settle, leased.leases):
                pass
        return (time.process_time() - before) / count

    def _submit(self, url: str) -> None:
        self._queries.submit(
            key_id=self._key.id,
            text=TEXT,
            callback_url=url,
            destination=url,
            give_up_after=None,
            request=None,
            now=_NOW,
        )

    def _settle(self, lease: QueryLease) -> None:
        self._queries.record_match(lease, self._matched)
        attempt = Attempt(number=lease.attempt, started_at=_NOW, latency_ms=1, http_status=200)
        self._queries.settle(lease, attempt, Delivered(), now=_NOW)


@contextlib.contextmanager
def opened_parts(folder: Path) -> Iterator[Parts]:
    """Open a database in *folder* with one image, while the block runs."""
    with (
        contextlib.closing(Database.own(folder)) as database,
        contextlib.closing(Parts(database)) as parts,
    ):
        yield parts
