"""ClarifaiTagger against a Clarifai on loopback: real gRPC, scripted bad days."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from clarifai_grpc.grpc.api.status import status_code_pb2 as codes

from analysis.taggers import Refused, Tag, Tagged, TaggerLoadError, Unavailable
from analysis.taggers.clarifai import MAX_REQUEST_BYTES, ClarifaiTagger
from analysis.taggers.pace import Pace
from tests.analysis.test_pace import PassingClock
from tests.fake_clarifai import MODEL_VERSION_ID, FakeClarifai

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analysis.taggers import Outcome

TLS = Path(__file__).parents[1] / "dispatcher" / "tls"
TIMEOUT = 30.0  # far more than loopback needs: only the tests that say so reach it

MODEL = f"clarifai/general-image-recognition/{MODEL_VERSION_ID}"
CAT, DOG, BAD = b"cat picture", b"dog picture", b"bad picture"
SEEN = {CAT: Tag("cat", 750_000), DOG: Tag("dog", 500_000)}


@pytest.fixture
def clarifai() -> Iterator[FakeClarifai]:
    with FakeClarifai() as fake:
        fake.concepts = {CAT: {"cat": 0.75}, DOG: {"dog": 0.5}}
        yield fake


@pytest.fixture
def tagger(clarifai: FakeClarifai) -> Iterator[ClarifaiTagger]:
    tagger = ClarifaiTagger(token=clarifai.key, base=clarifai.base, insecure=True)
    yield tagger
    tagger.close()


def seen(content: bytes) -> Tagged:
    return Tagged((SEEN[content],), MODEL)


def verdict(outcome: Outcome) -> tuple[float | None, bool]:
    assert isinstance(outcome, Unavailable)
    return outcome.retry_after, outcome.operator


def batches(clarifai: FakeClarifai) -> list[list[bytes]]:
    return [[item.data.image.base64 for item in request.inputs] for request in clarifai.requests]


def test_images_are_tagged_in_one_request_and_in_order(
    clarifai: FakeClarifai, tagger: ClarifaiTagger
) -> None:
    outcomes = tagger.tag([DOG, CAT, DOG], timeout=TIMEOUT)

    assert [seen(DOG), seen(CAT), seen(DOG)] == outcomes
    assert [[DOG, CAT, DOG]] == batches(clarifai)


def test_no_images_are_no_request(clarifai: FakeClarifai, tagger: ClarifaiTagger) -> None:
    assert [] == tagger.tag([], timeout=TIMEOUT)
    assert [] == clarifai.requests


def test_the_request_names_model_version_and_limits(clarifai: FakeClarifai) -> None:
    tagger = ClarifaiTagger(
        token=clarifai.key,
        base=clarifai.base,
        insecure=True,
        user_id="me",
        app_id="mine",
        model_id="birds",
        model_version_id="v7",
        max_concepts=3,
        min_value=0.5,
    )

    (outcome,) = tagger.tag([CAT], timeout=TIMEOUT)
    tagger.close()

    (request,) = clarifai.requests
    config = request.model.output_info.output_config
    assert ("me", "mine") == (request.user_app_id.user_id, request.user_app_id.app_id)
    assert ("birds", "v7") == (request.model_id, request.version_id)
    assert (3, 0.5) == (config.max_concepts, config.min_value)
    assert Tagged((SEEN[CAT],), "clarifai/birds/v7") == outcome


def test_concepts_become_canonical_tags_best_first_then_by_name(
    clarifai: FakeClarifai, tagger: ClarifaiTagger
) -> None:
    clarifai.concepts[CAT] = {
        "Tabby  CAT": 0.25,
        "no person": 0.5,  # one tag, never a tag "person"
        "pet": 0.5,
        "Pet": 0.75,  # the same tag as the line before, once
        "": 0.9,  # no name
        "x" * 101: 0.9,  # no name that can be stored
        "fur": 0.0,  # nothing to rank by
        "whisker": float("nan"),
        "animal": 1.5,  # more than certain
    }

    outcomes = tagger.tag([CAT], timeout=TIMEOUT)

    tags = (
        Tag("animal", 1_000_000),
        Tag("pet", 750_000),
        Tag("no person", 500_000),
        Tag("tabby cat", 250_000),
    )
    assert [Tagged(tags, MODEL)] == outcomes


def test_an_image_that_shows_nothing_is_tagged_with_nothing(
    clarifai: FakeClarifai, tagger: ClarifaiTagger
) -> None:
    clarifai.concepts[CAT] = {}

    assert [Tagged((), MODEL)] == tagger.tag([CAT], timeout=TIMEOUT)


def test_more_images_than_a_batch_are_several_requests(clarifai: FakeClarifai) -> None:
    tagger = ClarifaiTagger(token=clarifai.key, base=clarifai.base, insecure=True, batch_size=2)

    outcomes = tagger.tag([CAT, DOG, CAT], timeout=TIMEOUT)
    tagger.close()

    assert [seen(CAT), seen(DOG), seen(CAT)] == outcomes
    assert [[CAT, DOG], [CAT]] == batches(clarifai)


def test_a_request_holds_no_more_bytes_than_allowed_unless_one_image_does(
    clarifai: FakeClarifai, tagger: ClarifaiTagger
) -> None:
    half = bytes(MAX_REQUEST_BYTES // 2)
    huge = bytes(MAX_REQUEST_BYTES + 1)

    tagger.tag([half, half, CAT, huge, DOG], timeout=TIMEOUT)

    sizes = [[len(content) for content in batch] for batch in batches(clarifai)]
    assert [[len(half)] * 2, [len(CAT)], [len(huge)], [len(DOG)]] == sizes


def test_a_bad_image_among_good_ones_is_refused_alone(
    clarifai: FakeClarifai, tagger: ClarifaiTagger
) -> None:
    clarifai.statuses[BAD] = codes.INPUT_UNSUPPORTED_FORMAT

    cat, bad, dog = tagger.tag([CAT, BAD, DOG], timeout=TIMEOUT)

    assert [seen(CAT), seen(DOG)] == [cat, dog]
    assert isinstance(bad, Refused)
    assert "INPUT_UNSUPPORTED_FORMAT (30101)" in bad.message
    assert 1 == len(clarifai.requests)


def test_images_failed_for_the_sake_of_another_are_sent_again_alone(
    clarifai: FakeClarifai, tagger: ClarifaiTagger
) -> None:
    clarifai.statuses[BAD] = codes.INPUT_INVALID_ARGUMENT
    clarifai.all_or_nothing = True

    cat, bad, dog = tagger.tag([CAT, BAD, DOG], timeout=TIMEOUT)

    assert [seen(CAT), seen(DOG)] == [cat, dog]
    assert isinstance(bad, Refused)
    assert [[CAT, BAD, DOG], [CAT], [DOG]] == batches(clarifai)


@pytest.mark.parametrize(
    "code",
    [
        codes.FAILURE,  # and no word about each image
        codes.PREDICT_INVALID_REQUEST,  # of one of the images, but of which?
        codes.RPC_MAX_MESSAGE_SIZE_EXCEEDED,
    ],
)
def test_a_batch_that_failed_without_details_is_sent_again_one_by_one(
    clarifai: FakeClarifai, tagger: ClarifaiTagger, code: int
) -> None:
    clarifai.next_statuses.append(code)

    outcomes = tagger.tag([CAT, DOG], timeout=TIMEOUT)

    assert [seen(CAT), seen(DOG)] == outcomes
    assert [[CAT, DOG], [CAT], [DOG]] == batches(clarifai)


@pytest.mark.parametrize(
    "code",
    [
        codes.INPUT_UNSUPPORTED_FORMAT,
        codes.INPUT_INVALID_ARGUMENT,
        codes.INPUT_OVER_LIMIT,
        codes.INPUT_INVALID_URL,
        codes.ALL_INPUT_INVALID_BYTES,
        codes.INPUT_INVALID_REQUEST,
        codes.PREDICT_INVALID_REQUEST,
        codes.INPUT_FAILED,  # in a batch another image's fault, alone its own
        codes.RPC_MAX_MESSAGE_SIZE_EXCEEDED,  # too large even alone
    ],
)
def test_what_is_wrong_with_a_single_image_is_refused(
    clarifai: FakeClarifai, tagger: ClarifaiTagger, code: int
) -> None:
    clarifai.next_statuses.append(code)

    (outcome,) = tagger.tag([CAT], timeout=TIMEOUT)

    assert isinstance(outcome, Refused)
    assert codes.StatusCode.Name(code) in outcome.message
    assert "req_id fake-request" in outcome.message
    assert 1 == len(clarifai.requests)


@pytest.mark.parametrize(
    ("code", "retry_after"),
    [
        (codes.CONN_THROTTLED, 15.0),
        (codes.CONN_EXCEED_HOURLY_LIMIT, 300.0),
        (codes.MODEL_DEPLOYING, 10.0),
        (codes.MODEL_LOADING, 10.0),
        (codes.MODEL_BUSY_PLEASE_RETRY, 10.0),
        (codes.TRY_AGAIN, None),
        (codes.RPC_REQUEST_QUEUE_FULL, None),
        (codes.REQUEST_DISABLED_FOR_MAINTENANCE, None),
        (codes.INTERNAL_UNCATEGORIZED, None),
        (codes.TEAPOT, None),  # in no table: rather once too often than an image lost
        (0, None),  # an answer without a status
    ],
)
def test_what_may_pass_is_unavailable_and_not_asked_twice(
    clarifai: FakeClarifai, tagger: ClarifaiTagger, code: int, retry_after: float | None
) -> None:
    clarifai.next_statuses.append(code)

    outcomes = tagger.tag([CAT, DOG], timeout=TIMEOUT)

    assert [(retry_after, False)] * 2 == [verdict(outcome) for outcome in outcomes]
    assert 1 == len(clarifai.requests)
    assert [seen(CAT)] == tagger.tag([CAT], timeout=TIMEOUT)


#: Passing states and faults of Clarifai's own, in families whose other codes are the operator's.
PASSING = {
    codes.CONN_EXCEED_HOURLY_LIMIT,
    codes.CONN_THROTTLED,
    codes.CONN_UNCATEGORIZED,
    codes.LICENSE_ACTIVE,
}
#: Families of codes that are about the account, its rights, its payment or the model's machines.
OPERATORS_FAMILIES = (
    "AUTH_",
    "BILLING_",
    "COMPUTE_CLUSTER_",
    "CONN_",
    "DEPLOYMENT_",
    "FEATUREFLAG_",
    "INSTANCE_TYPE_",
    "LICENSE_",
    "NODEPOOL_",
    "SSO_",
    "USER_",
)
OPERATORS = {
    number
    for name, number in codes.StatusCode.items()
    if name.startswith(OPERATORS_FAMILIES) and number not in PASSING
} | {
    codes.NOT_IMPLEMENTED,
    codes.MOVED,
    codes.RPC_UNKNOWN_METHOD,
    codes.INPUT_PERMISSION_DENIED,
    codes.SIGNUP_FLAGGED,
    codes.MODEL_DOES_NOT_EXIST,
    codes.MODEL_PERMISSION_DENIED,
    codes.MODEL_INVALID_ARGUMENT,
    codes.MODEL_INVALID_REQUEST,
    codes.MODEL_UNTRAINED,
    codes.MODEL_DEPLOYMENT_FAILED,
    codes.MODEL_NOT_DEPLOYED,
    codes.RUNNER_DOES_NOT_EXIST,
    codes.RUNNER_PERMISSION_DENIED,
}


def test_the_codes_of_bug_reports_are_among_the_operators() -> None:
    assert {69000, 69001, 99005, 46006, 21202, 11100, 11102} <= OPERATORS


@pytest.mark.parametrize("code", sorted(OPERATORS), ids=codes.StatusCode.Name)
def test_what_only_the_operator_can_mend_says_so(
    clarifai: FakeClarifai, tagger: ClarifaiTagger, code: int
) -> None:
    clarifai.next_statuses.append(code)

    outcomes = tagger.tag([CAT, DOG], timeout=TIMEOUT)

    assert [(None, True)] * 2 == [verdict(outcome) for outcome in outcomes]
    assert 1 == len(clarifai.requests)


def test_what_was_tagged_before_clarifai_throttled_is_kept(clarifai: FakeClarifai) -> None:
    tagger = ClarifaiTagger(token=clarifai.key, base=clarifai.base, insecure=True, batch_size=1)
    clarifai.next_statuses.extend([None, codes.CONN_THROTTLED])

    cat, *others = tagger.tag([CAT, DOG, DOG], timeout=TIMEOUT)
    tagger.close()

    assert seen(CAT) == cat
    assert [(15.0, False)] * 2 == [verdict(outcome) for outcome in others]
    assert [[CAT], [DOG]] == batches(clarifai)  # no third request into a closed door


def test_a_wrong_token_needs_the_operator_and_is_never_quoted(
    clarifai: FakeClarifai, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tagger = ClarifaiTagger(token="s3cret-token", base=clarifai.base, insecure=True)

    (outcome,) = tagger.tag([CAT], timeout=TIMEOUT)
    tagger.close()

    assert isinstance(outcome, Unavailable)
    assert outcome.operator
    assert "CONN_KEY_INVALID (11008)" in outcome.message
    assert "Key [token]" in outcome.message  # the fake did quote it
    written = "".join((repr(outcome), repr(tagger), caplog.text, *capfd.readouterr()))
    assert "s3cret" not in written


@pytest.mark.parametrize(
    ("code", "operator"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, True),
        (grpc.StatusCode.PERMISSION_DENIED, True),
        (grpc.StatusCode.UNIMPLEMENTED, True),
        (grpc.StatusCode.UNAVAILABLE, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False),
        (grpc.StatusCode.INTERNAL, False),
    ],
)
def test_a_failed_call_is_unavailable(
    clarifai: FakeClarifai, tagger: ClarifaiTagger, code: grpc.StatusCode, *, operator: bool
) -> None:
    clarifai.rpc_failure = code

    outcomes = tagger.tag([CAT, DOG], timeout=TIMEOUT)

    assert [Unavailable(f"Clarifai: {code.name}: scripted", operator=operator)] * 2 == outcomes
    assert 1 == len(clarifai.requests)  # nothing was retried behind our back


def test_fewer_answers_than_images_are_not_guessed_apart(
    clarifai: FakeClarifai, tagger: ClarifaiTagger
) -> None:
    clarifai.outputs_missing = 1

    outcomes = tagger.tag([CAT, DOG], timeout=TIMEOUT)

    assert [Unavailable("Clarifai: 1 answers for 2 images")] * 2 == outcomes


def test_a_clarifai_that_hangs_is_given_up_in_time(
    clarifai: FakeClarifai, tagger: ClarifaiTagger
) -> None:
    clarifai.held.clear()

    outcomes = tagger.tag([CAT, DOG], timeout=0.2)

    assert [(None, False)] * 2 == [verdict(outcome) for outcome in outcomes]
    assert "DEADLINE_EXCEEDED" in repr(outcomes[0])


def test_the_timeout_is_for_all_requests_of_a_call_together(clarifai: FakeClarifai) -> None:
    now = iter([0.0, 9.9, 10.0])
    tagger = ClarifaiTagger(
        token=clarifai.key,
        base=clarifai.base,
        insecure=True,
        batch_size=1,
        clock=lambda: next(now),
    )

    cat, dog = tagger.tag([CAT, DOG], timeout=10.0)
    tagger.close()

    assert seen(CAT) == cat
    assert Unavailable("no time was left to ask Clarifai") == dog


def test_requests_wait_for_their_turn_and_none_is_throttled(clarifai: FakeClarifai) -> None:
    clock = PassingClock()
    tagger = ClarifaiTagger(
        token=clarifai.key,
        base=clarifai.base,
        insecure=True,
        batch_size=1,
        pace=Pace(8, burst=2, clock=clock, wait=clock.wait),
    )

    outcomes = tagger.tag([CAT] * 5, timeout=TIMEOUT)
    tagger.close()

    assert [seen(CAT)] * 5 == outcomes
    assert [0.125] * 3 == clock.waits


def test_images_whose_turn_would_come_too_late_are_unavailable_at_once(
    clarifai: FakeClarifai,
) -> None:
    clock = PassingClock()
    tagger = ClarifaiTagger(
        token=clarifai.key,
        base=clarifai.base,
        insecure=True,
        batch_size=1,
        pace=Pace(0.01, burst=1, clock=clock, wait=clock.wait),
    )

    cat, dog = tagger.tag([CAT, DOG], timeout=TIMEOUT)
    tagger.close()

    assert seen(CAT) == cat
    assert Unavailable("no time was left to ask Clarifai") == dog
    assert [] == clock.waits


def test_an_outage_is_unavailable_and_passes(
    clarifai: FakeClarifai, tagger: ClarifaiTagger
) -> None:
    clarifai.stop()
    (outcome,) = tagger.tag([CAT], timeout=TIMEOUT)
    clarifai.start()
    grpc.channel_ready_future(tagger._channel).result(timeout=TIMEOUT)

    assert isinstance(outcome, Unavailable)
    assert not outcome.operator
    assert [seen(CAT)] == tagger.tag([CAT], timeout=TIMEOUT)


def test_closing_ends_a_call_under_way_as_unavailable(
    clarifai: FakeClarifai, tagger: ClarifaiTagger
) -> None:
    clarifai.held.clear()
    outcomes = []
    call = threading.Thread(target=lambda: outcomes.extend(tagger.tag([CAT], timeout=TIMEOUT)))
    call.start()
    assert clarifai.arrived.wait(TIMEOUT)

    tagger.close()
    call.join()

    (outcome,) = outcomes
    assert isinstance(outcome, Unavailable)


@pytest.mark.usefixtures("clarifai")
def test_threads_share_a_tagger(tagger: ClarifaiTagger) -> None:
    outcomes: dict[int, bool] = {}

    def tag(number: int) -> None:
        content = [CAT, DOG][number % 2]
        outcomes[number] = tagger.tag([content] * 3, timeout=TIMEOUT) == [seen(content)] * 3

    threads = [threading.Thread(target=tag, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert dict.fromkeys(range(8), True) == outcomes


@pytest.mark.parametrize("token", ["", " ", "two words", "line\nbreak", "ünicode", "nul\0"])
def test_an_impossible_token_is_refused_without_quoting_it(token: str) -> None:
    with pytest.raises(TaggerLoadError) as caught:
        ClarifaiTagger(token=token)

    assert "token is empty or has characters that no token has" in str(caught.value)
    assert not token.strip() or token not in str(caught.value)


def test_a_token_may_have_the_line_end_of_its_file(clarifai: FakeClarifai) -> None:
    tagger = ClarifaiTagger(token=f"{clarifai.key}\n", base=clarifai.base, insecure=True)

    assert [seen(CAT)] == tagger.tag([CAT], timeout=TIMEOUT)
    tagger.close()


@pytest.mark.parametrize(
    "base",
    ["https://api.clarifai.com", "api.clarifai.com/v2", "host:port", "host:", "a b", "::1", ""],
)
def test_a_base_is_host_or_host_and_port(base: str | None) -> None:
    with pytest.raises(TaggerLoadError, match="base is host or host:port"):
        ClarifaiTagger(token="t", base=base or " ")


@pytest.mark.parametrize("base", [None, "api.clarifai.com", "clarifai.example:8443", "[::1]:443"])
def test_a_base_needs_no_port_and_nobody_there_yet(base: str | None) -> None:
    ClarifaiTagger(token="t", base=base).close()


def test_without_tls_a_port_is_needed() -> None:
    with pytest.raises(TaggerLoadError, match="needs a base with a port"):
        ClarifaiTagger(token="t", base="localhost", insecure=True)


def test_a_ca_file_must_be_there_and_be_one(tmp_path: Path) -> None:
    absent, empty = tmp_path / "absent.pem", tmp_path / "empty.pem"
    empty.write_text("not a certificate")

    with pytest.raises(TaggerLoadError, match="cannot be read"):
        ClarifaiTagger(token="t", ca_file=absent)
    with pytest.raises(TaggerLoadError, match="has no PEM certificate"):
        ClarifaiTagger(token="t", ca_file=empty)


def test_over_tls_only_a_clarifai_that_the_ca_file_vouches_for_gets_the_token() -> None:
    with FakeClarifai(tls=TLS / "receiver.pem") as clarifai:
        trusting = ClarifaiTagger(token=clarifai.key, base=clarifai.base, ca_file=TLS / "ca.pem")
        wary = ClarifaiTagger(token=clarifai.key, base=clarifai.base)
        (trusted,) = trusting.tag([CAT], timeout=TIMEOUT)
        (distrusted,) = wary.tag([CAT], timeout=TIMEOUT)
        trusting.close()
        wary.close()

    assert isinstance(trusted, Tagged)
    assert isinstance(distrusted, Unavailable)
    assert 1 == len(clarifai.requests)


def test_a_tls_tagger_does_not_speak_to_a_clarifai_without_tls(clarifai: FakeClarifai) -> None:
    tagger = ClarifaiTagger(token=clarifai.key, base=clarifai.base)

    (outcome,) = tagger.tag([CAT], timeout=TIMEOUT)
    tagger.close()

    assert isinstance(outcome, Unavailable)
    assert [] == clarifai.requests


def test_an_address_where_nobody_listens_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        base = f"127.0.0.1:{taken.getsockname()[1]}"
        tagger = ClarifaiTagger(token="t", base=base, insecure=True)
        (outcome,) = tagger.tag([CAT], timeout=TIMEOUT)
        tagger.close()

    assert isinstance(outcome, Unavailable)
    assert not outcome.operator
