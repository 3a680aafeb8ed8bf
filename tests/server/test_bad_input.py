"""The contract's list of bad input, one line each: a clear error, and nothing is stored."""

from __future__ import annotations

import functools
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2

from picback.v1 import image_pb2, image_service_pb2, query_pb2
from server.errors import STATUS_CODES
from server.interceptors import SCOPES
from storage.api_keys import SCOPES as ALL_SCOPES
from tests.server.refusals import refusal_of, refused
from tests.service import picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.refusals import Refusal
    from tests.service import Metadata, Service

METHODS = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"].methods
UNKNOWN_IMAGE = "img_00000000000000000000000000"
UNKNOWN_QUERY = "qry_00000000000000000000000000"
URL = "http://127.0.0.1:1/callback"


@dataclass(frozen=True, slots=True)
class Stocked:
    """A service with something in it that bad requests could damage."""

    service: Service
    image_id: str
    query_id: str
    tokens: dict[str, str]

    def call(self, method: str, metadata: Metadata | None = None, **fields: Any) -> Any:
        """Make one call with every message of its answer read."""
        request = getattr(image_service_pb2, f"{method}Request")(**fields)
        metadata = self.service.metadata if metadata is None else metadata
        answer = getattr(self.service.stub, method)(request, metadata=metadata, timeout=20)
        return list(answer) if method == "WatchQuery" else answer

    def send(self, path: str, data: bytes, metadata: Metadata | None = None) -> list[bytes]:
        """Send bytes that need not be a request of the method."""
        metadata = self.service.metadata if metadata is None else metadata
        call: Any = self.service.channel.unary_stream(path)
        return list(call(data, metadata=metadata, timeout=20))


@pytest.fixture(scope="module")
def stocked(calling_service: Service) -> Stocked:
    stub, metadata = calling_service.stub, calling_service.metadata
    images = [
        stub.UploadImage(
            image_service_pb2.UploadImageRequest(
                content=picture(seed), tags=[image_pb2.Tag(name="dog")], request_id=f"image-{seed}"
            ),
            metadata=metadata,
        ).image
        for seed in range(3)
    ]
    queries = [
        stub.SubmitQuery(
            image_service_pb2.SubmitQueryRequest(
                text="a dog", callback_url=URL, request_id=f"query-{seed}"
            ),
            metadata=metadata,
        ).query
        for seed in range(3)
    ]
    for query in queries:
        # Final, so that nothing is stored by itself while the tests count rows.
        stub.CancelQuery(image_service_pb2.CancelQueryRequest(query_id=query.id), metadata=metadata)
    tokens = {
        "images-page": stub.ListImages(
            image_service_pb2.ListImagesRequest(page_size=1), metadata=metadata
        ).next_page_token,
        "queries-page": stub.ListQueries(
            image_service_pb2.ListQueriesRequest(page_size=1), metadata=metadata
        ).next_page_token,
    }
    assert all(tokens.values())
    return Stocked(calling_service, images[0].id, queries[0].id, tokens)


def _png(width: int, height: int) -> bytes:
    """Return a PNG that only says how large it is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def _tags(*tags: tuple[str, float] | str) -> list[image_pb2.Tag]:
    return [
        image_pb2.Tag(name=tag)
        if isinstance(tag, str)
        else image_pb2.Tag(name=tag[0], confidence=tag[1])
        for tag in tags
    ]


def _upload(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "UploadImage", {"content": picture(99), **fields}


def _update(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "UpdateImageTags", {"image_id": UNKNOWN_IMAGE, **fields}


def _submit(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "SubmitQuery", {"text": "a dog", "callback_url": URL, **fields}


def _give_up_after(seconds: int, nanos: int = 0) -> tuple[str, dict[str, Any]]:
    return _submit(give_up_after=duration_pb2.Duration(seconds=seconds, nanos=nanos))


#: Name -> (call, the fields that BadRequest lists, every one of them).
BAD_FIELDS = {
    "empty image": (_upload(content=b""), ["content"]),
    "tag without a name": (_upload(tags=_tags("dog", "")), ["tags[1].name"]),
    "tag of spaces": (_upload(tags=_tags(" \t ")), ["tags[0].name"]),
    "tag of 101 characters": (_upload(tags=_tags("x" * 101)), ["tags[0].name"]),
    "tag of a megabyte": (_upload(tags=_tags("x" * 1_000_000)), ["tags[0].name"]),
    "tag with NUL": (_upload(tags=_tags("do\0g")), ["tags[0].name"]),
    "tag twice": (_upload(tags=_tags("dog", "Dog ")), ["tags[1].name"]),
    "confidence above 1": (_upload(tags=_tags(("dog", 1.001))), ["tags[0].confidence"]),
    "negative confidence": (_upload(tags=_tags(("dog", -0.1))), ["tags[0].confidence"]),
    "confidence that is no number": (
        _upload(tags=_tags(("dog", float("nan")))),
        ["tags[0].confidence"],
    ),
    "infinite confidence": (_upload(tags=_tags(("dog", float("inf")))), ["tags[0].confidence"]),
    "101 tags": (_upload(tags=_tags(*map(str, range(101)))), ["tags"]),
    "request_id of 129 characters": (_upload(request_id="x" * 129), ["request_id"]),
    "request_id with a space": (_upload(request_id="a b"), ["request_id"]),
    "request_id beyond ASCII": (_upload(request_id="é"), ["request_id"]),
    "all of an upload": (
        _upload(content=b"", tags=_tags("", ("cat", 2)), request_id="\n"),
        ["tags[0].name", "tags[1].confidence", "request_id", "content"],
    ),
    "no image to update": (_update(image_id=""), ["image_id"]),
    "tag set and removed": (
        _update(set_tags=_tags("dog", "cat"), remove_tags=["DOG"]),
        ["remove_tags"],
    ),
    "101 tags to set": (_update(set_tags=_tags(*map(str, range(101)))), ["set_tags"]),
    "101 tags to remove": (_update(remove_tags=[str(n) for n in range(101)]), ["remove_tags"]),
    "tag to remove without a name": (_update(remove_tags=["dog", ""]), ["remove_tags[1]"]),
    "all of an update": (
        _update(image_id="", set_tags=_tags(("dog", 9), "cat"), remove_tags=["", "cat"]),
        ["image_id", "set_tags[0].confidence", "remove_tags[0]", "remove_tags"],
    ),
    "no image to get": (("GetImage", {}), ["image_id"]),
    "no image to get the content of": (("GetImageContent", {}), ["image_id"]),
    "no image to delete": (("DeleteImage", {}), ["image_id"]),
    # An id is needed even where a missing image is no error.
    "no image to delete, if missing": (("DeleteImage", {"allow_missing": True}), ["image_id"]),
    "negative page_size of images": (("ListImages", {"page_size": -1}), ["page_size"]),
    "nothing to match": (("MatchImages", {}), ["text"]),
    "spaces to match": (("MatchImages", {"text": " \n"}), ["text"]),
    "1,001 characters to match": (("MatchImages", {"text": "a " * 500 + "b"}), ["text"]),
    "NUL to match": (("MatchImages", {"text": "a\0dog"}), ["text"]),
    "negative limit": (("MatchImages", {"text": "a dog", "limit": -1}), ["limit"]),
    "limit of 101": (("MatchImages", {"text": "a dog", "limit": 101}), ["limit"]),
    "all of a match": (("MatchImages", {"limit": 101}), ["text", "limit"]),
    "empty text": (_submit(text=""), ["text"]),
    "over-long text": (_submit(text="é" * 1001), ["text"]),
    "text with NUL": (_submit(text="dog\0"), ["text"]),
    "no callback_url": (_submit(callback_url=""), ["callback_url"]),
    "over-long callback_url": (_submit(callback_url=f"{URL}?{'x' * 2048}"), ["callback_url"]),
    "give_up_after of nothing": (_give_up_after(0), ["give_up_after"]),
    "give_up_after below a second": (_give_up_after(0, 999_999_999), ["give_up_after"]),
    "negative give_up_after": (_give_up_after(-60), ["give_up_after"]),
    "give_up_after above 30 days": (_give_up_after(30 * 86_400, 1), ["give_up_after"]),
    "endless give_up_after": (_give_up_after(2**63 - 1), ["give_up_after"]),
    "give_up_after of too many nanoseconds": (_give_up_after(5, 2**31 - 1), ["give_up_after"]),
    "all of a query": (
        _submit(text="", callback_url="", request_id=" ", give_up_after=duration_pb2.Duration()),
        ["text", "callback_url", "request_id", "give_up_after"],
    ),
    "no query to get": (("GetQuery", {}), ["query_id"]),
    "no query to watch": (("WatchQuery", {}), ["query_id"]),
    "no query to cancel": (("CancelQuery", {}), ["query_id"]),
    "no query to redeliver": (("RedeliverQuery", {}), ["query_id"]),
    "negative page_size of queries": (("ListQueries", {"page_size": -(2**31)}), ["page_size"]),
    "unknown state": (("ListQueries", {"state": 99}), ["state"]),
    "unknown on_unmatched": (_submit(on_unmatched=99), ["on_unmatched"]),
    "negative on_unmatched": (_submit(on_unmatched=-1), ["on_unmatched"]),
    "negative state": (("ListQueries", {"state": -1}), ["state"]),
    "destination that is none": (("ListQueries", {"destination": "example.com"}), ["destination"]),
    "destination with a path": (
        ("ListQueries", {"destination": "https://example.com/x"}),
        ["destination"],
    ),
    "unknown failure_reason": (("ListQueries", {"failure_reason": "BAD_LUCK"}), ["failure_reason"]),
    "failure_reason with the prefix": (
        ("ListQueries", {"failure_reason": "ERROR_REASON_TIMEOUT"}),
        ["failure_reason"],
    ),
    "failure_reason of what did not fail": (
        ("ListQueries", {"failure_reason": "TIMEOUT", "state": query_pb2.QUERY_STATE_DELIVERED}),
        ["failure_reason"],
    ),
    "time after the year 9999": (
        ("ListQueries", {"created_after": timestamp_pb2.Timestamp(seconds=2**62)}),
        ["created_after"],
    ),
    "time of too many nanoseconds": (
        ("ListQueries", {"created_before": timestamp_pb2.Timestamp(nanos=-1)}),
        ["created_before"],
    ),
    "span of no time": (
        (
            "ListQueries",
            {
                "created_after": timestamp_pb2.Timestamp(seconds=5),
                "created_before": timestamp_pb2.Timestamp(seconds=5),
            },
        ),
        ["created_before"],
    ),
    "no filter to cancel by": (("CancelQueries", {}), ["filter"]),
    "empty filter to cancel by": (("CancelQueries", {"filter": {}}), ["filter"]),
    "all to be cancelled, and a filter": (
        ("CancelQueries", {"filter": {"destination": "http://a.test"}, "all": True}),
        ["all"],
    ),
    "final state to cancel": (
        ("CancelQueries", {"filter": {"state": query_pb2.QUERY_STATE_DELIVERED}}),
        ["filter.state"],
    ),
    "failure_reason to cancel": (
        ("CancelQueries", {"filter": {"failure_reason": "TIMEOUT"}}),
        ["filter.failure_reason"],
    ),
    "no state to redeliver": (
        ("RedeliverQueries", {"filter": {"destination": "http://a.test"}}),
        ["filter.state"],
    ),
    "state to redeliver that is not final": (
        ("RedeliverQueries", {"filter": {"state": query_pb2.QUERY_STATE_QUEUED}}),
        ["filter.state"],
    ),
    "all of a filter": (
        (
            "RedeliverQueries",
            {
                "filter": {
                    "state": 99,
                    "destination": "x",
                    "failure_reason": "x",
                    "created_after": timestamp_pb2.Timestamp(nanos=-1),
                }
            },
        ),
        [
            "filter.state",
            "filter.failure_reason",
            "filter.created_after",
            "filter.destination",
        ],
    ),
    "all of a list": (("ListQueries", {"state": 99, "page_size": -1}), ["page_size", "state"]),
}
BAD_PICTURES = {
    "not an image": (b"hello", "IMAGE_UNSUPPORTED"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "IMAGE_UNSUPPORTED"),
    "PDF": (b"%PDF-1.7\n", "IMAGE_UNSUPPORTED"),
    "an unknown type of image": (b"\0\0\1\0" + bytes(60), "IMAGE_UNSUPPORTED"),  # ICO
    "truncated PNG": (picture(1, size=(64, 64))[:-100], "IMAGE_DAMAGED"),
    "truncated JPEG": (picture(1, size=(64, 64), format_="JPEG")[:-500], "IMAGE_DAMAGED"),
    "first bytes of a GIF": (b"GIF89a<script>", "IMAGE_DAMAGED"),
    "bomb": (_png(30_000, 30_000), "IMAGE_TOO_LARGE"),
    "one pixel too many": (_png(85_000_001, 1), "IMAGE_TOO_LARGE"),
    "one byte too many": (picture(1) + bytes(20_000_001 - len(picture(1))), "IMAGE_TOO_LARGE"),
}
BAD_URLS = {
    "no-url": "CALLBACK_URL_INVALID",
    "ftp://example.com/": "CALLBACK_URL_INVALID",
    "//example.com/": "CALLBACK_URL_INVALID",
    "http://": "CALLBACK_URL_INVALID",
    "http://user:secret@example.com/": "CALLBACK_URL_INVALID",
    "http://example.com:99999/": "CALLBACK_URL_INVALID",
    "http://exa mple.com/": "CALLBACK_URL_INVALID",
    "http://example.com/#part": "CALLBACK_URL_INVALID",
    "http://example.com\\@127.0.0.1/": "CALLBACK_URL_INVALID",
    "http://0x7f000001/": "CALLBACK_URL_INVALID",
    "http://例え.jp/": "CALLBACK_URL_INVALID",
    "http://127.0.0.1/": "CALLBACK_FORBIDDEN",
    "http://127.0.0.1:2/callback": "CALLBACK_FORBIDDEN",  # another port than the one allowed
    "http://localhost:1/": "CALLBACK_FORBIDDEN",  # another name than the one allowed
    "http://[::1]/": "CALLBACK_FORBIDDEN",
    "http://10.0.0.1/": "CALLBACK_FORBIDDEN",
    "http://169.254.169.254/latest/meta-data/": "CALLBACK_FORBIDDEN",
    "http://0.0.0.0/": "CALLBACK_FORBIDDEN",
    "http://intranet/": "CALLBACK_FORBIDDEN",
    "https://example.com:22/": "CALLBACK_FORBIDDEN",
}
UNKNOWN_IDS = {
    "GetImage": {"image_id": UNKNOWN_IMAGE},
    "GetImageContent": {"image_id": UNKNOWN_IMAGE},
    "UpdateImageTags": {"image_id": UNKNOWN_IMAGE},
    "DeleteImage": {"image_id": UNKNOWN_IMAGE},
    "GetQuery": {"query_id": UNKNOWN_QUERY},
    "WatchQuery": {"query_id": UNKNOWN_QUERY},
    "CancelQuery": {"query_id": UNKNOWN_QUERY},
    "RedeliverQuery": {"query_id": UNKNOWN_QUERY},
}
ODD_IDS = ["x", "img_", "qry_", "'; DROP TABLE image; --", "\0", "🐶", "x" * 100_000]


def _refused_unchanged(stocked: Stocked, call: Callable[[], object], reason: str) -> Refusal:
    before = stocked.service.row_counts()

    refusal = refused(call)

    assert reason == refusal.reason
    assert STATUS_CODES[reason] == refusal.code
    assert before == stocked.service.row_counts()
    return refusal


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_fields_are_told_all_at_once(stocked: Stocked, name: str) -> None:
    (method, fields), bad = BAD_FIELDS[name]

    refusal = _refused_unchanged(stocked, lambda: stocked.call(method, **fields), "FIELD_INVALID")

    assert bad == refusal.fields
    assert refusal.message.startswith(f"{bad[0]}: ")


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures_are_refused(stocked: Stocked, name: str) -> None:
    content, reason = BAD_PICTURES[name]

    refusal = _refused_unchanged(
        stocked, lambda: stocked.call("UploadImage", content=content, request_id="bad"), reason
    )

    assert (reason == "IMAGE_TOO_LARGE") == ("limit" in refusal.metadata)
    if reason == "IMAGE_TOO_LARGE":
        assert {"limit": "20000000" if "byte" in name else "85000000"} == refusal.metadata


@pytest.mark.parametrize("url", BAD_URLS)
def test_bad_callback_urls_are_refused(stocked: Stocked, url: str) -> None:
    call = functools.partial(stocked.call, "SubmitQuery", text="a dog", callback_url=url)

    refusal = _refused_unchanged(stocked, call, BAD_URLS[url])

    assert "secret" not in refusal.message


@pytest.mark.parametrize("method", UNKNOWN_IDS)
def test_unknown_ids_are_not_found(stocked: Stocked, method: str) -> None:
    ((field, unknown),) = UNKNOWN_IDS[method].items()
    reason = "IMAGE_NOT_FOUND" if field == "image_id" else "QUERY_NOT_FOUND"
    # An id of the other kind exists, but not here.
    other = stocked.query_id if field == "image_id" else stocked.image_id
    for id_ in (unknown, other, *ODD_IDS):
        fields: dict[str, Any] = {field: id_}
        call = functools.partial(stocked.call, method, **fields)
        refusal = _refused_unchanged(stocked, call, reason)
        assert grpc.StatusCode.NOT_FOUND == refusal.code


def _flipped(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "B")


#: Name -> (method, fields by page tokens of both listings).
BAD_PAGE_TOKENS: dict[str, tuple[str, Callable[[dict[str, str]], dict[str, Any]]]] = {
    "garbage": ("ListImages", lambda _: {"page_token": "garbage"}),
    "beyond ASCII": ("ListImages", lambda _: {"page_token": "🐶"}),
    "NUL": ("ListImages", lambda _: {"page_token": "\0"}),
    "a megabyte": ("ListImages", lambda _: {"page_token": "A" * 1_000_000}),
    "nothing in it": ("ListImages", lambda _: {"page_token": "===="}),
    "too short": ("ListImages", lambda tokens: {"page_token": tokens["images-page"][:-4]}),
    "too long": ("ListImages", lambda tokens: {"page_token": tokens["images-page"] + "AAAA"}),
    "another place": (
        "ListImages",
        lambda tokens: {"page_token": "AAAB" + tokens["images-page"][4:]},
    ),
    "of another listing": ("ListImages", lambda tokens: {"page_token": tokens["queries-page"]}),
    "of images": ("ListQueries", lambda tokens: {"page_token": tokens["images-page"]}),
    "of another filter": (
        "ListQueries",
        lambda tokens: {
            "page_token": tokens["queries-page"],
            "state": query_pb2.QUERY_STATE_CANCELLED,
        },
    ),
    "of a list, to cancel by": (
        "CancelQueries",
        lambda tokens: {"page_token": tokens["queries-page"], "all": True},
    ),
    "of a list, to redeliver by": (
        "RedeliverQueries",
        lambda tokens: {
            "page_token": tokens["queries-page"],
            "filter": {"state": query_pb2.QUERY_STATE_FAILED},
        },
    ),
}


@pytest.mark.parametrize("name", BAD_PAGE_TOKENS)
def test_bad_page_tokens_are_refused(stocked: Stocked, name: str) -> None:
    method, fields = BAD_PAGE_TOKENS[name]
    call = functools.partial(stocked.call, method, **fields(stocked.tokens))

    _refused_unchanged(stocked, call, "PAGE_TOKEN_INVALID")


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        _upload(request_id="image-0"),
        # The same bytes, but other tags.
        ("UploadImage", {"content": picture(0), "request_id": "image-0"}),
        _submit(text="a cat", request_id="query-0"),
        _submit(callback_url=f"{URL}/2", request_id="query-0"),
        _submit(request_id="query-0", give_up_after=duration_pb2.Duration(seconds=60)),
        _submit(request_id="query-0", on_unmatched=query_pb2.ON_UNMATCHED_END),
        # Of another method.
        _upload(request_id="query-0"),
        _submit(request_id="image-0"),
    ],
)
def test_a_request_id_reused_for_another_request_is_refused(
    stocked: Stocked, method: str, fields: dict[str, Any]
) -> None:
    call = functools.partial(stocked.call, method, **fields)

    refusal = _refused_unchanged(stocked, call, "REQUEST_ID_REUSED")

    assert fields["request_id"] in refusal.message


@pytest.mark.parametrize("method", [method.name for method in METHODS])
@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff",  # no protobuf
        b"\x0a\xff\xff\xff\xff\x0f",  # a field that is longer than the message
        b"\x0a\x05ab",  # one that is cut off
        b"\xff" * 100_000,
    ],
)
def test_garbage_is_malformed_for_every_method(stocked: Stocked, method: str, data: bytes) -> None:
    path = f"/picback.v1.ImageService/{method}"

    _refused_unchanged(stocked, lambda: stocked.send(path, data), "REQUEST_MALFORMED")


@pytest.mark.parametrize(
    ("method", "field"),
    [
        (method.name, field.number)
        for method in METHODS
        for field in method.input_type.fields
        if field.type == field.TYPE_STRING
    ],
)
def test_text_that_is_not_utf8_is_malformed_in_every_field(
    stocked: Stocked, method: str, field: int
) -> None:
    for text in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"do\xe9"):  # also half a surrogate pair
        data = bytes([field << 3 | 2, len(text)]) + text
        call = functools.partial(stocked.send, f"/picback.v1.ImageService/{method}", data)
        _refused_unchanged(stocked, call, "REQUEST_MALFORMED")


#: Name -> the metadata that is made of a good key.
BAD_KEYS: dict[str, tuple[str, Callable[[str], Metadata]]] = {
    "no metadata": ("API_KEY_MISSING", lambda _: ()),
    "another header": ("API_KEY_MISSING", lambda key: (("authorization", f"Bearer {key}"),)),
    "empty": ("API_KEY_INVALID", lambda _: (("x-api-key", ""),)),
    "no key at all": ("API_KEY_INVALID", lambda _: (("x-api-key", "letmein"),)),
    "typo": ("API_KEY_INVALID", lambda key: (("x-api-key", _flipped(key)),)),
    "typo inside": (
        "API_KEY_INVALID",
        lambda key: (("x-api-key", key[:9] + _flipped(key[9:10]) + key[10:]),),
    ),
    "well-formed but unknown": (
        "API_KEY_INVALID",
        lambda _: (("x-api-key", f"pbk_{'A' * 43}{zlib.crc32(b'A' * 43):08x}"),),
    ),
    "lower case": ("API_KEY_INVALID", lambda key: (("x-api-key", key.lower()),)),
    "with a prefix": ("API_KEY_INVALID", lambda key: (("x-api-key", f"Bearer {key}"),)),
    "twice": ("API_KEY_INVALID", lambda key: (("x-api-key", key), ("x-api-key", key))),
    "with a wrong one": ("API_KEY_INVALID", lambda key: (("x-api-key", key), ("x-api-key", "a"))),
    "of a megabyte's kind": ("API_KEY_INVALID", lambda _: (("x-api-key", "x" * 4000),)),
}


@pytest.mark.parametrize("name", BAD_KEYS)
@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_no_method_is_answered_without_a_good_key(stocked: Stocked, method: str, name: str) -> None:
    reason, metadata = BAD_KEYS[name]
    call = functools.partial(stocked.call, method, metadata=metadata(stocked.service.api_key))

    refusal = _refused_unchanged(stocked, call, reason)

    assert grpc.StatusCode.UNAUTHENTICATED == refusal.code
    assert stocked.service.api_key not in refusal.message


def test_revoked_and_expired_keys_are_as_invalid_as_unknown_ones(stocked: Stocked) -> None:
    service = stocked.service
    revoked = service.make_key("revoked")
    service.app.api_keys.revoke("revoked", now=0)
    expired = service.make_key("expired", expires_at=1)

    refusals = [
        _refused_unchanged(
            stocked,
            functools.partial(stocked.call, "ListImages", metadata=(("x-api-key", key),)),
            "API_KEY_INVALID",
        )
        for key in (revoked, expired, "unknown")
    ]

    (message,) = {refusal.message for refusal in refusals}
    assert "the API key is not valid" == message


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_every_method_needs_its_scope(stocked: Stocked, method: str) -> None:
    scope = SCOPES[f"/picback.v1.ImageService/{method}"]
    others = [other for other in ALL_SCOPES if other != scope]
    key = stocked.service.make_key(f"all but {method}", scopes=others)

    refusal = _refused_unchanged(
        stocked,
        lambda: stocked.call(method, metadata=(("x-api-key", key),)),
        "SCOPE_MISSING",
    )

    assert {"scope": scope} == refusal.metadata


def test_an_unknown_method_is_unimplemented_with_a_key_and_a_secret_without(
    stocked: Stocked,
) -> None:
    path = "/picback.v1.ImageService/DropEverything"

    with pytest.raises(grpc.RpcError) as caught:
        stocked.send(path, b"")
    refusal = refused(lambda: stocked.send(path, b"", metadata=()))

    assert grpc.StatusCode.UNIMPLEMENTED == caught.value.code()
    assert "API_KEY_MISSING" == refusal.reason


def test_the_worst_request_is_told_within_the_limits_of_metadata(stocked: Stocked) -> None:
    names = [chr(0x1F400 + index) + "🐶" * 99 for index in range(100)]

    refusal = _refused_unchanged(
        stocked,
        lambda: stocked.call(
            "UpdateImageTags",
            image_id=stocked.image_id,
            set_tags=_tags(*names),
            remove_tags=names,
        ),
        "FIELD_INVALID",
    )

    assert ["remove_tags"] * 20 == refusal.fields  # of 100: see server.errors


def test_a_message_beyond_all_limits_is_refused_before_it_is_read(stocked: Stocked) -> None:
    """GRPC itself says so, in its own words: with a code, but without our details."""
    before = stocked.service.row_counts()

    with pytest.raises(grpc.RpcError) as caught:
        stocked.call("UploadImage", content=bytes(24_500_000))
    refusal = refused(lambda: stocked.call("UploadImage", (), content=bytes(24_500_000)))

    error: Any = caught.value
    assert grpc.StatusCode.RESOURCE_EXHAUSTED == error.code()
    assert "larger than max" in error.details()
    assert "API_KEY_MISSING" == refusal.reason  # strangers are told nothing else
    assert before == stocked.service.row_counts()


def test_a_request_that_is_never_sent_is_told_nothing_but_harms_nobody(stocked: Stocked) -> None:
    """A call that ends before its request came: gRPC's own error, as there is none to answer."""
    empty: Any = stocked.service.channel.stream_unary("/picback.v1.ImageService/ListImages")

    with pytest.raises(grpc.RpcError) as caught:
        empty(iter(()), metadata=stocked.service.metadata, timeout=20)

    error: Any = caught.value
    assert grpc.StatusCode.UNIMPLEMENTED == error.code()
    assert stocked.call("ListImages").images


def test_calls_that_race_each_other_are_refused_one_by_one(stocked: Stocked) -> None:
    request = image_service_pb2.GetImageRequest(image_id=UNKNOWN_IMAGE)
    get = stocked.service.stub.GetImage
    calls: list[Any] = [get.future(request, metadata=stocked.service.metadata) for _ in range(200)]

    reasons = [refusal_of(call.exception()).reason for call in calls]

    assert ["IMAGE_NOT_FOUND"] * 200 == reasons
