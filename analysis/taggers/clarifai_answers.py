"""What Clarifai's answers mean: from a response to an outcome for each image of the request.

The one rule: a status code that is in no table here is worth another try later. The dispatcher
gives up after hours anyway, but a wrong `REFUSE` loses an image for good.

Sources of the codes, unless a line says otherwise: the official Python SDK, clarifai/client/auth/
stub.py and clarifai/utils/misc.py; the official tests of clarifai-grpc; and their names.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeAlias

from clarifai_grpc.grpc.api.status import status_code_pb2 as codes

from analysis.taggers import (
    Outcome,
    Refused,
    Tag,
    Tagged,
    Unavailable,
    best_first,
    canonical,
    millionths,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Outcomes in the order of the images, None for one to be asked about alone; or what kept Clarifai
#: from looking at any.
Answer: TypeAlias = list[Outcome | None] | Unavailable

# Of Clarifai's own words in a message, which goes to logs and callers: characters.
_MAX_MESSAGE_LENGTH = 300


class Verdict(Enum):
    """What to do after a status other than success."""

    #: Something is wrong with this image, for good.
    REFUSE = auto()
    #: Something is wrong with some image, or with all together. If there is only one: `REFUSE`.
    ALONE = auto()
    #: Nothing is wrong with the image; later it may work.
    WAIT = auto()
    #: Nothing works before the operator acts.
    OPERATOR = auto()


_VERDICTS = {
    codes.INPUT_UNSUPPORTED_FORMAT: Verdict.REFUSE,
    codes.INPUT_INVALID_ARGUMENT: Verdict.REFUSE,
    codes.INPUT_OVER_LIMIT: Verdict.REFUSE,
    codes.INPUT_INVALID_URL: Verdict.REFUSE,
    codes.ALL_INPUT_INVALID_BYTES: Verdict.REFUSE,
    codes.INPUT_INVALID_REQUEST: Verdict.REFUSE,
    codes.PREDICT_INVALID_REQUEST: Verdict.REFUSE,
    # Also what the good images of a request get when Clarifai fails all for one bad image.
    codes.INPUT_FAILED: Verdict.ALONE,
    codes.RPC_MAX_MESSAGE_SIZE_EXCEEDED: Verdict.ALONE,
    codes.CONN_ACCOUNT_ISSUES: Verdict.OPERATOR,
    codes.CONN_TOKEN_INVALID: Verdict.OPERATOR,
    codes.CONN_CREDENTIALS_INVALID: Verdict.OPERATOR,
    codes.CONN_EXCEED_MONTHLY_LIMIT: Verdict.OPERATOR,
    codes.CONN_EXCEEDS_LIMITS: Verdict.OPERATOR,
    codes.CONN_INSUFFICIENT_SCOPES: Verdict.OPERATOR,
    codes.CONN_KEY_INVALID: Verdict.OPERATOR,
    codes.CONN_KEY_NOT_FOUND: Verdict.OPERATOR,
    codes.CONN_DOES_NOT_EXIST: Verdict.OPERATOR,
    codes.CONN_NO_GDPR_CONSENT: Verdict.OPERATOR,
    codes.CONN_AUTH_METHOD_DISABLED: Verdict.OPERATOR,
    codes.MODEL_DOES_NOT_EXIST: Verdict.OPERATOR,
    codes.MODEL_PERMISSION_DENIED: Verdict.OPERATOR,
    codes.LICENSE_DOES_NOT_EXIST: Verdict.OPERATOR,
    codes.LICENSE_NEED_UPDATE: Verdict.OPERATOR,
    codes.LICENSE_EXPIRED: Verdict.OPERATOR,
    codes.LICENSE_REVOKED: Verdict.OPERATOR,
    codes.LICENSE_DELETED: Verdict.OPERATOR,
    codes.LICENSE_VOLUME_EXCEEDED: Verdict.OPERATOR,
}

# Seconds to leave Clarifai alone.
_PAUSES = {
    codes.CONN_THROTTLED: 15.0,  # source: docs.clarifai.com, "Rate Limits"
    codes.CONN_EXCEED_HOURLY_LIMIT: 300.0,  # ours: a twelfth of the hour
    codes.MODEL_DEPLOYING: 10.0,  # as long as the SDK waits first; likewise the next two
    codes.MODEL_LOADING: 10.0,
    codes.MODEL_BUSY_PLEASE_RETRY: 10.0,
}


def read_answer(response: Any, count: int, *, model: str, version: str) -> Answer:
    """Return what *response*, a `MultiOutputResponse`, says about the *count* images asked about.

    Args:
        response: As it came, whatever it says.
        count: Images in the request. A single one never gets None.
        model: Put before the model's version in `Tagged.model`.
        version: The version asked for, in case that the answer names none.
    """
    code = response.status.code
    if code in {codes.SUCCESS, codes.MIXED_STATUS, codes.FAILURE}:
        if len(response.outputs) == count:
            return [
                _outcome(output, model=f"{model}/{output.model.model_version.id or version}")
                if output.status.code == codes.SUCCESS
                else _failed(output.status, alone=count == 1)
                for output in response.outputs
            ]
        if code != codes.FAILURE:
            return Unavailable(f"Clarifai: {len(response.outputs)} answers for {count} images")
    failed = _failed(response.status, alone=count == 1)
    if isinstance(failed, Unavailable):
        return failed
    return [failed] if count == 1 else [None] * count  # which of them it was, it does not say


def _outcome(output: Any, *, model: str) -> Tagged:
    confidences: dict[str, int] = {}
    for name, confidence in _named(output.data.concepts):
        confidences[name] = max(confidence, confidences.get(name, 0))
    return Tagged(best_first(Tag(name, value) for name, value in confidences.items()), model)


def _named(concepts: Iterable[Any]) -> Iterable[tuple[str, int]]:
    """Yield name and confidence of those *concepts* that have both."""
    for concept in concepts:
        try:
            name = canonical(concept.name)
        except ValueError:  # never seen; not worth losing the other concepts for
            continue
        if confidence := millionths(concept.value):
            yield name, confidence


def _failed(status: Any, *, alone: bool) -> Refused | Unavailable | None:
    verdict = _VERDICTS.get(status.code, Verdict.WAIT)
    if not alone and (verdict is Verdict.ALONE or status.code == codes.FAILURE):
        return None
    message = _message(status)
    if verdict in {Verdict.REFUSE, Verdict.ALONE}:
        return Refused(message)
    return Unavailable(message, _PAUSES.get(status.code), operator=verdict is Verdict.OPERATOR)


def _message(status: Any) -> str:
    known = codes.StatusCode.DESCRIPTOR.values_by_number.get(status.code)
    parts = (
        f"Clarifai: {known.name if known else 'status'} ({status.code})",
        status.description,
        status.details,
        f"req_id {status.req_id}" if status.req_id else "",
    )
    return ": ".join(filter(None, parts))[:_MAX_MESSAGE_LENGTH]
