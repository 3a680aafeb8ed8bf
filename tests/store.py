"""What tests put into a database: the smallest rows that are valid."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from storage.api_keys import SCOPES, ApiKeys
from storage.breakers import Breakers
from storage.images import Images, NewImage, TagsFound
from storage.queries import Queries
from storage.query_filters import QueryFilter
from storage.query_records import Attempt, Turn
from storage.requests import Request
from storage.tags import Tags
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from storage.database import Database
    from storage.images import Image, NewRendition
    from storage.query_records import Query, QueryLease

#: A signing secret: 24 zero bytes.
SECRET = "whsec_" + 32 * "A"
#: Where queries of tests ask to be called back.
CALLBACK_URL = "https://receiver.test/hook"
DESTINATION = "https://receiver.test:443"


class Store:
    """A database's tables, and short ways to fill them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.images = Images(database)
        self.tags = Tags(database)
        self.queries = Queries(database)
        self.api_keys = ApiKeys(database)
        self.breakers = Breakers(database)

    def key(self, name: str = "tests", *, secret: str = SECRET) -> str:
        """Return the id of the API key *name*, made when it is asked for the first time."""
        for key in self.api_keys.all():
            if key.name == name:
                return key.id
        return self.api_keys.create(
            name, scopes=SCOPES, signing_secret=secret, expires_at=None, now=START
        ).id

    def add_image(
        self,
        content: bytes = b"an image",
        *,
        tags: Mapping[str, int] | None = None,
        tag_it: bool = False,
        request: Request | None = None,
        renditions: Sequence[NewRendition] = (),
        now: int = START,
    ) -> Image:
        """Store an image with tags of its caller."""
        image, _ = self.images.add(
            replace(new_image(content), renditions=tuple(renditions)),
            tags_of_caller=tags or {},
            request=request,
            tag_it=tag_it,
            now=now,
        )
        return image

    def tag_by_model(self, image_id: str, tags: Mapping[str, int], *, model: str = "m/1") -> None:
        """Say of an image that waits what a model sees in it; no other may wait."""
        (lease,) = self.images.lease_for_tagging(limit=2, now=START)
        assert image_id == lease.id
        self.images.settle_tagging([(lease, TagsFound(tags=tags, model=model))])

    def submit(
        self,
        text: str = "dog",
        *,
        url: str = CALLBACK_URL,
        destination: str = DESTINATION,
        give_up_after: int | None = None,
        on_unmatched: str = "DELIVER",
        key: str = "tests",
        now: int = START,
    ) -> Query:
        """Accept a query of the API key named *key*."""
        query, _ = self.queries.submit(
            key_id=self.key(key),
            text=text,
            callback_url=url,
            destination=destination,
            give_up_after=give_up_after,
            on_unmatched=on_unmatched,
            request=None,
            now=now,
        )
        return query

    def page(
        self,
        *,
        before: int | None = None,
        size: int = 1000,
        state: str | None = None,
        states: tuple[str, ...] = (),
        **conditions: Any,
    ) -> list[Query]:
        """Return up to *size* queries that satisfy a filter, newest first."""
        where = QueryFilter(states=(state,) if state else states, **conditions)
        found = self.queries.search(where).find(before=before, limit=size)
        return self.queries.records(found.seqs)

    def lease(self, *, limit: int, now: int = START) -> list[QueryLease]:
        """Lease up to *limit* due queries, whosever turn it is: longest due first."""
        leases: list[QueryLease] = []
        for queue in sorted(self.queries.waiting(), key=lambda queue: queue.due_at):
            turn = Turn(
                key_id=queue.key_id,
                destination=queue.destination,
                retries=queue.retries,
                count=limit - len(leases),
            )
            leases += leased(self.queries, [turn], now=now)
        return leases

    def next_due_at(self) -> int | None:
        """Return when the next query is due."""
        return min((queue.due_at for queue in self.queries.waiting()), default=None)

    def request(self, name: str = "r1", *, of: bytes = b"x", key: str = "tests") -> Request:
        """Return a request that its caller named."""
        return Request(key_id=self.key(key), request_id=name, fingerprint=of)

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        return int(self.database.read(f"SELECT count(*) FROM {table}")[0][0])


def leased(queries: Queries, turns: Sequence[Turn], *, now: int) -> list[QueryLease]:
    """Return what some turns lease together."""
    return [lease for each in queries.lease(turns, now=now) for lease in each.leases]


def new_image(content: bytes) -> NewImage:
    """Return an upload; to storage, any bytes will do."""
    return NewImage(
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        media_type="image/png",
        width=3,
        height=2,
    )


def attempt(number: int, *, failure: str | None = None, at: int = START) -> Attempt:
    """Return an attempt that was answered 200, or failed."""
    return Attempt(
        number=number,
        started_at=at,
        latency_ms=7,
        http_status=0 if failure else 200,
        failure_reason=failure,
        failure_message="It failed." if failure else None,
    )
