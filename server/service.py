"""The RPCs: each validates, calls one collaborator, and converts the answer."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from analysis.processes.turns import Cancellation
from picback.v1 import image_service_pb2 as pb
from picback.v1 import image_service_pb2_grpc
from server import convert
from server.bulk_queries import BulkQueries
from server.caller import CALLER
from server.errors import RequestError
from server.paging import MAX_PAGE_BYTES, fill_page
from server.validation import Validation
from storage.api_keys import QUERIES_ALL
from storage.errors import ImageNotFoundError
from storage.images import NewImage
from storage.queries import FINAL_STATES
from storage.requests import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import grpc

    from analysis.image_decoder import ImageDecoder
    from analysis.images import DecodedImage
    from dispatcher import Dispatcher, UrlGuard
    from picback.v1 import query_pb2
    from server.key_limits import KeyLimits
    from server.paging import Paging
    from server.response_budget import ResponseBudget
    from server.stream_limit import StreamLimit
    from storage.images import Image, Images
    from storage.queries import Queries
    from storage.query_filters import QueryFilter
    from storage.query_records import Query

#: How long UploadImage waits for tags at most, in seconds.
_LONGEST_WAIT: Final = 15.0
#: What is kept back of the caller's deadline to answer in, in seconds.
_ANSWER_MARGIN: Final = 0.5
#: How long one WatchQuery call may stay open, in seconds.
_LONGEST_WATCH: Final = 600.0
#: What an entry of a page may take before that is known, in bytes: an image with 100 tags.
_ENTRY_BYTES: Final = 4_000
#: Queries that are read at once for a page: with 100 attempts each of them has some 150 KB.
_QUERIES_READ: Final = 32
#: States that CancelQueries and RedeliverQueries change.
_CANCELLED_STATES: Final = ("QUEUED", "DELIVERING")
_REDELIVERED_STATES: Final = ("DELIVERED", "FAILED", "CANCELLED", "UNMATCHED")


class ImageService(image_service_pb2_grpc.ImageServiceServicer):
    """picback.v1.ImageService. Holds no state between calls.

    What each RPC promises stands in protos/picback/v1/image_service.proto.
    """

    def __init__(
        self,
        *,
        images: Images,
        queries: Queries,
        dispatcher: Dispatcher,
        decoder: ImageDecoder,
        guard: UrlGuard,
        paging: Paging,
        max_image_bytes: int,
        responses: ResponseBudget,
        limits: KeyLimits,
        watchers: StreamLimit,
        is_stopping: Callable[[], bool],
        clock: Callable[[], int],
        wall_time: Callable[[int], int] = int,
    ) -> None:
        self._images = images
        self._queries = queries
        self._dispatcher = dispatcher
        self._decoder = decoder
        self._guard = guard
        self._paging = paging
        self._max_image_bytes = max_image_bytes
        self._responses = responses
        self._limits = limits
        self._watchers = watchers
        self._is_stopping = is_stopping
        self._clock = clock
        self._bulk = BulkQueries(
            queries=queries, dispatcher=dispatcher, is_stopping=is_stopping, clock=clock
        )
        self._wall_time = wall_time

    def UploadImage(
        self, request: pb.UploadImageRequest, context: grpc.ServicerContext
    ) -> pb.UploadImageResponse:
        """Store an image, and wait a while for its tags."""
        content = request.content  # once: each look at the field makes a copy
        validation = Validation()
        tags = validation.tags("tags", request.tags)
        request_id = validation.request_id(request.request_id)
        validation.content(content)
        validation.finish()
        self._check_size(len(content))
        decoded = self._decode(content, context)
        picture = decoded.picture
        sha256 = hashlib.sha256(content).hexdigest()
        image, created = self._images.add(
            NewImage(
                content=content,
                sha256=sha256,
                media_type=picture.media_type,
                width=picture.width,
                height=picture.height,
                renditions=(decoded.preview, decoded.thumbnail),
            ),
            tags_of_caller=tags,
            request=_named(request_id, "UploadImage", sha256, *sorted(tags.items())),
            tag_it=self._dispatcher.tags_images,
            now=self._clock(),
        )
        if image.state == "PENDING":
            self._dispatcher.wake_tagging()
            if not request.no_wait:
                image = self._wait_for_tags(image, context)
        return pb.UploadImageResponse(image=convert.image(image), created=created)

    def GetImage(
        self, request: pb.GetImageRequest, context: grpc.ServicerContext
    ) -> pb.GetImageResponse:
        """Return one image."""
        return pb.GetImageResponse(image=convert.image(self._image(request.image_id)))

    def GetImageContent(
        self, request: pb.GetImageContentRequest, context: grpc.ServicerContext
    ) -> pb.GetImageContentResponse:
        """Return one image's bytes."""
        image = self._image(request.image_id)
        self._responses.reserve(context, CALLER.get().key_id, image.size_bytes)
        return pb.GetImageContentResponse(
            content=self._images.content(image.seq),
            media_type=image.media_type,
            sha256=image.sha256,
        )

    def ListImages(
        self, request: pb.ListImagesRequest, context: grpc.ServicerContext
    ) -> pb.ListImagesResponse:
        """Return a page of images."""
        validation = Validation()
        size = validation.page_size(request.page_size)
        validation.finish()
        before = self._paging.position(request.page_token, of="images")
        self._reserve_page(context, size)
        found = self._images.page(before=before, size=size + 1)
        images, last = fill_page((image.seq, convert.image(image)) for image in found[:size])
        if last is None and len(found) > size:
            last = found[size - 1].seq
        return pb.ListImagesResponse(
            images=images, next_page_token=self._paging.next_token(last, of="images")
        )

    def UpdateImageTags(
        self, request: pb.UpdateImageTagsRequest, context: grpc.ServicerContext
    ) -> pb.UpdateImageTagsResponse:
        """Set and remove tags by hand."""
        validation = Validation()
        image_id = validation.id("image_id", request.image_id)
        set_tags = validation.tags("set_tags", request.set_tags)
        remove = validation.names("remove_tags", request.remove_tags)
        validation.disjoint("remove_tags", remove, set_tags)
        validation.finish()
        image = self._images.update_tags(image_id, set_tags=set_tags, remove=remove)
        return pb.UpdateImageTagsResponse(image=convert.image(image))

    def DeleteImage(
        self, request: pb.DeleteImageRequest, context: grpc.ServicerContext
    ) -> pb.DeleteImageResponse:
        """Delete an image."""
        validation = Validation()
        image_id = validation.id("image_id", request.image_id)
        validation.finish()
        try:
            self._images.delete(image_id)
        except ImageNotFoundError:
            if not request.allow_missing:
                raise
        return pb.DeleteImageResponse()

    def MatchImages(
        self, request: pb.MatchImagesRequest, context: grpc.ServicerContext
    ) -> pb.MatchImagesResponse:
        """Return what a text would match now."""
        validation = Validation()
        text = validation.text(request.text)
        limit = validation.limit(request.limit)
        validation.finish()
        found = self._dispatcher.match(text, limit=limit)
        return pb.MatchImagesResponse(
            lemmas=found.lemmas, matches=[convert.match(match) for match in found.matches]
        )

    def SubmitQuery(
        self, request: pb.SubmitQueryRequest, context: grpc.ServicerContext
    ) -> pb.SubmitQueryResponse:
        """Accept a query; the dispatcher does the rest."""
        validation = Validation()
        text = validation.text(request.text)
        url = validation.callback_url(request.callback_url)
        request_id = validation.request_id(request.request_id)
        give_up_after = (
            validation.give_up_after(request.give_up_after)
            if request.HasField("give_up_after")
            else None
        )
        on_unmatched = validation.on_unmatched(request.on_unmatched)
        validation.finish()
        target = self._guard.check(url)
        self._limits.check_queued(CALLER.get().key_id)
        query, created = self._queries.submit(
            key_id=CALLER.get().key_id,
            text=text,
            callback_url=url,
            destination=target.destination,
            give_up_after=give_up_after,
            on_unmatched=on_unmatched,
            request=_named(
                request_id,
                *("SubmitQuery", text, url, give_up_after),
                # Only what departs from the default, so that fingerprints that were stored
                # before this field existed still fit.
                *(["on_unmatched END"] if on_unmatched == "END" else []),
            ),
            now=self._clock(),
            due_at=self._dispatcher.time(),
        )
        self._dispatcher.wake_delivery(query.destination)
        return pb.SubmitQueryResponse(query=self._query(query), created=created)

    def GetQuery(
        self, request: pb.GetQueryRequest, context: grpc.ServicerContext
    ) -> pb.GetQueryResponse:
        """Return one query."""
        query = self._queries.get(_query_id(request.query_id), key_id=_visible_key_id())
        return pb.GetQueryResponse(query=self._query(query))

    def ListQueries(
        self, request: pb.ListQueriesRequest, context: grpc.ServicerContext
    ) -> pb.ListQueriesResponse:
        """Return a page of queries."""
        validation = Validation()
        size = validation.page_size(request.page_size)
        where = validation.query_filter("", request)
        validation.finish()
        where = _visible(where)
        listing = f"queries:{CALLER.get().key_id}:{where}"
        before = self._paging.position(request.page_token, of=listing)
        self._reserve_page(context, size)
        found = self._queries.search(where).find(before=before, limit=size)
        queries, last = fill_page(self._entries(found.seqs))
        return pb.ListQueriesResponse(
            queries=queries,
            next_page_token=self._paging.next_token(
                found.before if last is None else last, of=listing
            ),
        )

    def WatchQuery(
        self, request: pb.WatchQueryRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchQueryResponse]:
        """Send a query now and after each change, until it is final."""
        query_id = _query_id(request.query_id)
        with self._watchers.open(CALLER.get().key_id):
            yield from self._watch(query_id, context)

    def CancelQuery(
        self, request: pb.CancelQueryRequest, context: grpc.ServicerContext
    ) -> pb.CancelQueryResponse:
        """Stop a query."""
        query = self._queries.cancel(
            _query_id(request.query_id), key_id=_visible_key_id(), now=self._clock()
        )
        return pb.CancelQueryResponse(query=self._query(query))

    def RedeliverQuery(
        self, request: pb.RedeliverQueryRequest, context: grpc.ServicerContext
    ) -> pb.RedeliverQueryResponse:
        """Make a final query due now."""
        query = self._queries.redeliver(
            _query_id(request.query_id),
            key_id=_visible_key_id(),
            now=self._dispatcher.time(),
            wall_now=self._clock(),
        )
        self._dispatcher.wake_delivery(query.destination)
        return pb.RedeliverQueryResponse(query=self._query(query))

    def _query(self, record: Query) -> query_pb2.Query:
        return convert.query(record, reader_key_id=CALLER.get().key_id, wall_time=self._wall_time)

    def CancelQueries(
        self, request: pb.CancelQueriesRequest, context: grpc.ServicerContext
    ) -> pb.CancelQueriesResponse:
        """Stop every query that satisfies a filter."""
        validation = Validation()
        where = validation.query_filter("filter.", request.filter, allowed=_CANCELLED_STATES)
        is_empty = not request.filter.ListFields()
        if is_empty and not request.all:
            validation.refuse("filter", 'must have a condition, or set "all" to cancel all queries')
        if request.all and not is_empty:
            validation.refuse("all", "must not be set with a filter that has conditions")
        validation.finish()
        where = _visible(replace(where, states=where.states or _CANCELLED_STATES))
        listing = f"CancelQueries:{CALLER.get().key_id}:{request.validate_only}:{where}"
        before = self._paging.position(request.page_token, of=listing)
        run = self._bulk.count if request.validate_only else self._bulk.cancel
        progress = run(where, context, before=before)
        return pb.CancelQueriesResponse(
            matched_count=progress.matched,
            cancelled_count=progress.changed,
            next_page_token=self._paging.next_token(progress.before, of=listing),
        )

    def RedeliverQueries(
        self, request: pb.RedeliverQueriesRequest, context: grpc.ServicerContext
    ) -> pb.RedeliverQueriesResponse:
        """Make every query due that satisfies a filter."""
        validation = Validation()
        where = validation.query_filter("filter.", request.filter, allowed=_REDELIVERED_STATES)
        if not request.filter.state:
            validation.refuse("filter.state", "is required")
        validation.finish()
        where = _visible(where)
        listing = f"RedeliverQueries:{CALLER.get().key_id}:{request.validate_only}:{where}"
        before = self._paging.position(request.page_token, of=listing)
        run = self._bulk.count if request.validate_only else self._bulk.redeliver
        progress = run(where, context, before=before)
        return pb.RedeliverQueriesResponse(
            matched_count=progress.matched,
            redelivered_count=progress.changed,
            next_page_token=self._paging.next_token(progress.before, of=listing),
        )

    def _reserve_page(self, context: grpc.ServicerContext, size: int) -> None:
        self._responses.reserve(
            context, CALLER.get().key_id, min(size * _ENTRY_BYTES, MAX_PAGE_BYTES)
        )

    def _entries(self, seqs: Sequence[int]) -> Iterator[tuple[int, query_pb2.Query]]:
        for start in range(0, len(seqs), _QUERIES_READ):
            for record in self._queries.records(seqs[start : start + _QUERIES_READ]):
                yield record.seq, self._query(record)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_image_bytes:
            raise RequestError(
                "IMAGE_TOO_LARGE",
                f"the image has {size_bytes:,} bytes, more than {self._max_image_bytes:,}",
                metadata={"limit": str(self._max_image_bytes)},
            )

    def _decode(self, content: bytes, context: grpc.ServicerContext) -> DecodedImage:
        cancellation = Cancellation()
        context.add_callback(cancellation.cancel)  # when the caller leaves or its deadline passes
        if not context.is_active():
            cancellation.cancel()
        return self._decoder.decode(content, caller=CALLER.get().key_id, cancellation=cancellation)

    def _image(self, image_id: str) -> Image:
        validation = Validation()
        validation.id("image_id", image_id)
        validation.finish()
        return self._images.get(image_id)

    def _wait_for_tags(self, image: Image, context: grpc.ServicerContext) -> Image:
        """Return *image* after the tagger's next word on it, or when it is time to answer."""
        wait = _LONGEST_WAIT
        remaining = context.time_remaining()  # a huge number, or None, without a deadline
        if remaining is not None:
            wait = min(wait, remaining - _ANSWER_MARGIN)
        with self._images.changes.watch(image.id) as changed:
            context.add_callback(changed.set)  # so that a caller who left is noticed
            # A tagger that is out of reach has spoken already.
            if wait > 0 and context.is_active() and not self._dispatcher.tagging_is_paused:
                latest = self._images.get(image.id)
                if latest.state == "PENDING" and not self._is_stopping():
                    changed.wait(wait)
        return self._images.get(image.id)

    def _watch(
        self, query_id: str, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchQueryResponse]:
        until = time.monotonic() + _LONGEST_WATCH
        last, key_id = None, _visible_key_id()
        with self._queries.changes.watch(query_id) as changed:
            context.add_callback(changed.set)  # so that a caller who left is noticed
            while True:
                changed.clear()  # before all looking: what happens from here on sets it again
                if not context.is_active():
                    return
                CALLER.get().check_key()
                query = self._queries.get(query_id, key_id=key_id)
                if query != last:
                    yield pb.WatchQueryResponse(query=self._query(query))
                    last = query
                if query.state in FINAL_STATES:
                    return
                if self._is_stopping() or time.monotonic() >= until:
                    raise RequestError("SHUTTING_DOWN", "the stream ends; call WatchQuery again")
                changed.wait(until - time.monotonic())


def _visible_key_id() -> str | None:
    """Return the key whose queries exist for the caller; None when those of all keys do."""
    caller = CALLER.get()
    return None if QUERIES_ALL in caller.scopes else caller.key_id


def _visible(where: QueryFilter) -> QueryFilter:
    """Return *where*, restricted to the queries that exist for the caller.

    Raises:
        RequestError: SCOPE_MISSING; it asks for those of a key, which needs queries.all.
    """
    if QUERIES_ALL in CALLER.get().scopes:
        return where
    if where.key_id is not None:
        raise RequestError(
            "SCOPE_MISSING",
            f"a filter by key needs the scope {QUERIES_ALL}",
            metadata={"scope": QUERIES_ALL},
        )
    return replace(where, key_id=CALLER.get().key_id)


def _query_id(query_id: str) -> str:
    validation = Validation()
    validation.id("query_id", query_id)
    validation.finish()
    return query_id


def _named(request_id: str, *parts: object) -> Request | None:
    """Return the idempotency record of a request made of *parts*, if the caller named it."""
    if not request_id:
        return None
    return Request(
        key_id=CALLER.get().key_id,
        request_id=request_id,
        fingerprint=hashlib.sha256(repr(parts).encode()).digest(),
    )
