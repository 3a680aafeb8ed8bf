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
}

# What only the operator can correct: the account, its payment and its rights, the configured model
# and what it runs on, and requests that Clarifai does not understand at all, which come from a
# wrong base or a version of picback that is too old. No image has a part in any of them.
_OPERATOR = frozenset(
    {
        codes.NOT_IMPLEMENTED,
        codes.MOVED,
        codes.CONN_ACCOUNT_ISSUES,
        codes.CONN_TOKEN_INVALID,
        codes.CONN_CREDENTIALS_INVALID,
        codes.CONN_EXCEED_MONTHLY_LIMIT,
        codes.CONN_EXCEEDS_LIMITS,
        codes.CONN_INSUFFICIENT_SCOPES,
        codes.CONN_KEY_INVALID,
        codes.CONN_KEY_NOT_FOUND,
        codes.CONN_BAD_REQUEST_FORMAT,
        codes.CONN_DOES_NOT_EXIST,
        codes.CONN_INVALID_REQUEST,
        codes.CONN_METHOD_NOT_ALLOWED,
        codes.CONN_NO_GDPR_CONSENT,
        codes.CONN_INVALID_RANGE,
        codes.CONN_AUTH_METHOD_DISABLED,
        codes.RPC_UNKNOWN_METHOD,
        codes.INPUT_PERMISSION_DENIED,
        codes.SIGNUP_FLAGGED,
        codes.USER_FLAGGED,
        codes.USER_CONSENT_FACE,
        codes.SSO_IDENTITY_PROVIDER_DOES_NOT_EXIST,
        codes.AUTH_MISSING_IDP_ASSOC,
        codes.FEATUREFLAG_CONFIG_NOT_FOUND,
        codes.FEATUREFLAG_INVALID_ARGUMENT,
        codes.FEATUREFLAG_BLOCKED,
        codes.FEATUREFLAG_NOT_FOUND,
        codes.BILLING_INVALID_INFO,
        codes.BILLING_MISSING_TOKENS,
        codes.BILLING_UNCATEGORIZED,
        codes.LICENSE_DOES_NOT_EXIST,
        codes.LICENSE_NEED_UPDATE,
        codes.LICENSE_EXPIRED,
        codes.LICENSE_REVOKED,
        codes.LICENSE_DELETED,
        codes.LICENSE_VOLUME_EXCEEDED,
        codes.MODEL_DOES_NOT_EXIST,
        codes.MODEL_PERMISSION_DENIED,
        codes.MODEL_INVALID_ARGUMENT,
        codes.MODEL_INVALID_REQUEST,
        codes.MODEL_UNTRAINED,
        codes.MODEL_UPLOADING_FAILED,
        codes.MODEL_TRAINING_FAILED,
        codes.MODEL_TRAINING_NO_DATA,
        codes.MODEL_TRAINING_NO_POSITIVES,
        codes.MODEL_TRAINING_ONE_VS_N_SINGLE_CLASS,
        codes.MODEL_TRAINING_TIMED_OUT,
        codes.MODEL_TRAINING_WAITING_ERROR,
        codes.MODEL_TRAINING_UNKNOWN_ERROR,
        codes.MODEL_TRAINING_INSUFFICIENT_DATA,
        codes.MODEL_TRAINING_INVALID_PARAMS,
        codes.MODEL_TRAINING_INVALID_DATA_TOLERANCE_EXCEEDED,
        codes.MODEL_BUILDING_FAILED,
        codes.MODEL_BUILD_UNEXPECTED_ERROR,
        codes.MODEL_DEPLOYMENT_FAILED,
        codes.MODEL_NOT_DEPLOYED,
        codes.MODEL_REFERENCE_INVALID_ARGUMENT,
        codes.RUNNER_DOES_NOT_EXIST,
        codes.RUNNER_PERMISSION_DENIED,
        codes.RUNNER_INVALID_ARGUMENT,
        codes.RUNNER_INVALID_REQUEST,
        codes.NODEPOOL_DOES_NOT_EXIST,
        codes.NODEPOOL_INVALID_ARGUMENT,
        codes.NODEPOOL_INVALID_REQUEST,
        codes.COMPUTE_CLUSTER_DOES_NOT_EXIST,
        codes.COMPUTE_CLUSTER_INVALID_ARGUMENT,
        codes.COMPUTE_CLUSTER_INVALID_REQUEST,
        codes.DEPLOYMENT_DOES_NOT_EXIST,
        codes.DEPLOYMENT_INVALID_ARGUMENT,
        codes.DEPLOYMENT_INVALID_REQUEST,
        codes.DEPLOYMENT_DISABLED,
        codes.INSTANCE_TYPE_DOES_NOT_EXIST,
        codes.INSTANCE_TYPE_INVALID_ARGUMENT,
        codes.INSTANCE_TYPE_INVALID_REQUEST,
    }
)

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


def verdict_on(code: int) -> Verdict:
    """Return what to do after a status of *code*, which is not success."""
    if code in _OPERATOR:
        return Verdict.OPERATOR
    return _VERDICTS.get(code, Verdict.WAIT)


def _failed(status: Any, *, alone: bool) -> Refused | Unavailable | None:
    verdict = verdict_on(status.code)
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
