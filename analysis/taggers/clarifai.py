"""The tagger that asks Clarifai.

The one rule: gRPC's OK says nothing. Clarifai reports throttling, a wrong key and a broken image
in the body, for the request as a whole and for each image.
"""

from __future__ import annotations

import re
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
from clarifai_grpc.grpc.api import resources_pb2, service_pb2

from analysis.taggers import Tagged, TaggerLoadError, Unavailable
from analysis.taggers.clarifai_answers import read_answer
from analysis.taggers.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from analysis.taggers import Outcome
    from analysis.taggers.clarifai_answers import Answer

#: Where Clarifai's public API is.
DEFAULT_BASE = "api.clarifai.com"

#: The model that is asked unless another one is named, by its own id and its app's and owner's.
DEFAULT_MODEL = "general-image-recognition"
DEFAULT_USER = "clarifai"
DEFAULT_APP = "main"

# Requests per second, and at once after a pause: together fewer in any second than the 15 beyond
# which Clarifai throttles. Source: docs.clarifai.com, "Rate Limits".
_RATE = 10.0
_BURST = 4

#: Most bytes of images in one request. Clarifai takes 128 MB; this keeps our copies of them small.
#: An image beyond goes alone. Source: docs.clarifai.com, "Upload inputs".
MAX_REQUEST_BYTES = 32_000_000

# Largest answer in bytes. Source: docs.clarifai.com, "Rate Limits".
_MAX_ANSWER_BYTES = 128_000_000

# Not `V2Stub`: it works only after one of clarifai_grpc's own channel helpers has set a variable
# of its module, and their channels retry by themselves, unseen and out of the caller's time.
_METHOD = "/clarifai.api.V2/PostModelOutputs"
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
    # After an outage: look again within 10 s, not within gRPC's 2 minutes.
    ("grpc.max_reconnect_backoff_ms", 10_000),
)

# "host" or "host:port", as CLARIFAI_GRPC_BASE has it; an IPv6 address in brackets.
_BASE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?P<port>:\d{1,5})?")

# What HTTP/2 carries in a header without complaint. Anything else would make gRPC raise an error
# that quotes the token.
_TOKEN = re.compile(r"[!-~]+")

# UNIMPLEMENTED: whoever answers at this address is not Clarifai. All other codes may pass.
_OPERATOR_RPC_CODES = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class ClarifaiTagger:
    """Tags images with a model at Clarifai. Thread safe; connects at the first image.

    The token is in no log, exception or outcome of ours.
    """

    def __init__(
        self,
        *,
        token: str,
        base: str | None = None,
        insecure: bool = False,
        ca_file: Path | None = None,
        user_id: str = DEFAULT_USER,
        app_id: str = DEFAULT_APP,
        model_id: str = DEFAULT_MODEL,
        model_version_id: str | None = None,
        max_concepts: int = 20,
        min_value: float = 0.0,
        batch_size: int = 32,
        clock: Callable[[], float] = time.monotonic,
        pace: Pace | None = None,
    ) -> None:
        """Prepare a channel; whether Clarifai is there and takes the token shows at the first image.

        Args:
            token: Personal access token, or an app's API key.
            base: "host" or "host:port"; None means `DEFAULT_BASE`.
            insecure: Without TLS, so only for a Clarifai on this machine: the token is readable.
            ca_file: PEM file of the authorities to trust instead of the usual ones.
            user_id: Owner of the model's app; the default is Clarifai itself.
            app_id: The app that the model is in.
            model_id: The model.
            model_version_id: None takes the newest, whose answers may change from day to day.
            max_concepts: Most tags per image. Source of 20: Clarifai's default.
            min_value: Concepts below, 0 to 1, are left out.
            batch_size: Most images per request; Clarifai takes 128.
            clock: Seconds, monotonic.
            pace: When requests may begin. None: below what Clarifai throttles.

        Raises:
            TaggerLoadError: Token, base or file cannot be right.
        """
        self.batch_size = batch_size
        self.reads_previews = False
        self._token = token.strip()
        if not _TOKEN.fullmatch(self._token):
            msg = "the Clarifai token is empty or has characters that no token has"
            raise TaggerLoadError(msg)
        self._metadata = (("authorization", f"Key {self._token}"),)
        self._clock = clock
        self._pace = pace or Pace(_RATE, burst=_BURST)
        self._head = service_pb2.PostModelOutputsRequest(
            user_app_id=resources_pb2.UserAppIDSet(user_id=user_id, app_id=app_id),
            model_id=model_id,
            version_id=model_version_id or "",
            model=resources_pb2.Model(
                output_info=resources_pb2.OutputInfo(
                    output_config=resources_pb2.OutputConfig(
                        max_concepts=max_concepts, min_value=min_value
                    )
                )
            ),
        )
        self._channel = _channel(base or DEFAULT_BASE, insecure=insecure, ca_file=ca_file)
        self._post_model_outputs = self._channel.unary_unary(
            _METHOD,
            request_serializer=service_pb2.PostModelOutputsRequest.SerializeToString,
            response_deserializer=service_pb2.MultiOutputResponse.FromString,
        )

    def tag(self, contents: Sequence[bytes], *, timeout: float) -> list[Outcome]:
        """Tag images as `Tagger.tag`, in as few requests as can be.

        Images that Clarifai did not look at because of another one in their batch are sent again,
        each alone.
        """
        deadline = self._clock() + timeout
        outcomes: list[Outcome | None] = [None] * len(contents)
        requests = deque(_batches(contents, self.batch_size))
        while requests:
            positions = requests.popleft()
            answer = self._ask([contents[position] for position in positions], deadline)
            if isinstance(answer, Unavailable):  # as the next one would be
                outcomes = [outcome or answer for outcome in outcomes]
                break
            for position, outcome in zip(positions, answer, strict=True):
                outcomes[position] = outcome
                if outcome is None:
                    requests.append([position])
        return [self._hushed(outcome) for outcome in outcomes if outcome]

    def close(self) -> None:
        """Close the connection; calls that wait or are in flight end as `Unavailable`."""
        self._pace.close()
        self._channel.close()

    def _ask(self, contents: list[bytes], deadline: float) -> Answer:
        """Send one request."""
        remaining = deadline - self._clock()
        waited = self._pace.take(timeout=remaining) if remaining > 0 else None
        if waited is None:
            return Unavailable("no time was left to ask Clarifai")
        request = service_pb2.PostModelOutputsRequest()
        request.CopyFrom(self._head)
        for content in contents:
            request.inputs.add().data.image.base64 = content  # over gRPC: the bytes themselves
        try:
            response = self._post_model_outputs(
                request, timeout=remaining - waited, metadata=self._metadata
            )
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            message = f"Clarifai: {code.name}: {details}"
            return Unavailable(message, operator=code in _OPERATOR_RPC_CODES)
        return read_answer(
            response,
            len(contents),
            model=f"clarifai/{self._head.model_id}",
            version=self._head.version_id or "unknown",
        )

    def _hushed(self, outcome: Outcome) -> Outcome:
        """Take the token out of Clarifai's words, should they quote it."""
        if isinstance(outcome, Tagged):
            return outcome
        return replace(outcome, message=outcome.message.replace(self._token, "[token]"))


def _channel(base: str, *, insecure: bool, ca_file: Path | None) -> grpc.Channel:
    form = _BASE.fullmatch(base)
    if not form:
        msg = f"Clarifai's base is host or host:port, without http:// or a path, not {base!r}"
        raise TaggerLoadError(msg)
    if insecure:
        if not form["port"] or ca_file:
            msg = "Clarifai without TLS needs a base with a port, and no CA file"
            raise TaggerLoadError(msg)
        return grpc.insecure_channel(base, options=_CHANNEL_OPTIONS)
    authorities = None
    if ca_file:
        try:
            authorities = ca_file.read_bytes()
        except OSError as error:
            msg = f"the CA file for Clarifai cannot be read: {error}"
            raise TaggerLoadError(msg) from error
        if b"-----BEGIN CERTIFICATE-----" not in authorities:
            msg = f"the CA file for Clarifai, {ca_file}, has no PEM certificate"
            raise TaggerLoadError(msg)
    return grpc.secure_channel(
        base, grpc.ssl_channel_credentials(authorities), options=_CHANNEL_OPTIONS
    )


def _batches(contents: Sequence[bytes], most: int) -> Iterator[list[int]]:
    """Yield the positions of *contents* in runs of at most *most* and `MAX_REQUEST_BYTES`."""
    batch: list[int] = []
    size = 0
    for position, content in enumerate(contents):
        if batch and (len(batch) == most or size + len(content) > MAX_REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(position)
        size += len(content)
    if batch:
        yield batch
