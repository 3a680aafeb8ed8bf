"""One attempt to call a receiver back, and what came of it as a value.

The rule a newcomer would break: whatever a receiver or the network does is an `Outcome`, never an
exception, and the sentences in it name no resolved address and quote no library. What this machine
lacks is an exception, and no outcome.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import h11
import httpx

from dispatcher.deadline import Deadline
from dispatcher.dialer import Dialer, NameLookupError
from dispatcher.happy_eyeballs import begin_tcp
from dispatcher.proxy_tunnel import ProxyTunnel, ReceiverUnreachableError
from dispatcher.receiver_tls import receiver_context
from dispatcher.resolver import BoundedResolver, system_resolver
from dispatcher.retry_after import parse_retry_after
from dispatcher.transport import GuardedTransport
from dispatcher.url_guard import CallbackUrlError, ForbiddenCallbackError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dispatcher.happy_eyeballs import Begin
    from dispatcher.url_guard import Resolver, UrlGuard

#: Seconds for a whole attempt. Source: Standard Webhooks recommends 15 to 30.
ATTEMPT_TIMEOUT = 15.0

#: Bytes of an answer's body that are kept, for the caller who submitted the query.
MAX_EXCERPT_BYTES = 1024

#: Connections kept open while idle, over all receivers.
MAX_IDLE_CONNECTIONS = 256

#: Seconds for which an idle connection is kept. Most servers close theirs earlier, after 5 to 75.
KEEP_IDLE = 60.0

#: Seconds after which a connection is not used again, however busy: a new one follows DNS.
MAX_CONNECTION_AGE = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The receiver gave an HTTP answer, good or bad.

    Attributes:
        status: 200 to 999.
        retry_after: Seconds that the receiver asks us to wait, at least 0, without upper limit.
        excerpt: The first bytes of the body as they came, at most `MAX_EXCERPT_BYTES`.
        gone: The receiver never wants to be called about this again: 410, or a header
            ``webhook-delivery`` of ``disable`` or ``abort-message``.
    """

    status: int
    retry_after: float | None
    excerpt: bytes
    gone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """There was no HTTP answer.

    Attributes:
        reason: A name of ``ErrorReason`` in ``error.proto`` without its prefix, for programs.
        message: One sentence for people, without resolved addresses.
        cut_short: It is a timeout, and the attempt had less time than others have.
    """

    reason: str
    message: str
    cut_short: bool = False


#: What came of an attempt.
Outcome = Answered | Failed


class Deliverer(Protocol):
    """Calls receivers back."""

    def deliver(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Sequence[bytes],
        owner: str = "",
        timeout: float | None = None,
    ) -> Outcome:
        """POST *body* to *url* once. Does not raise for what a receiver or the network does.

        *owner* is who shares what is scarce with others, *timeout* seconds for this attempt if
        that is less than attempts have.

        Raises:
            LocalResourceError: This machine lacks what the request needs, or *owner* has its share
                of that already; no attempt was made that says anything about the receiver.
        """
        ...

    def close(self) -> None:
        """Free what is kept between two calls."""
        ...


class HttpDeliverer:
    """Calls receivers back over HTTP/1.1. Safe to share between threads.

    It speaks to its httpx transport without an ``httpx.Client``, which would add what a sender
    of callbacks must not have: a cookie jar, proxies from the environment, redirects, and a log
    line with the whole URL.

    Args:
        guard: Decides where to call, before look-up and again for each address.
        timeout: Seconds for everything: look-up, connecting, TLS, sending, and reading the answer.
        user_agent: The header of that name.
        resolver: Looks names up; may hang.
        begin: As `happy_eyeballs.begin_tcp`.
        ssl_context: Verifies receivers. None: as `receiver_context` makes it without files.
        proxy: Host and port of an HTTP proxy through which receivers are reached by CONNECT; None:
            directly.
        max_idle_connections: Connections kept open while idle, over all receivers.
        keep_idle: Seconds for which one is kept.
        clock: Wall clock in seconds, for Retry-After dates.
        monotonic: Clock for deadlines, in seconds.
    """

    def __init__(
        self,
        guard: UrlGuard,
        *,
        timeout: float = ATTEMPT_TIMEOUT,
        user_agent: str = "picback",
        resolver: Resolver = system_resolver,
        begin: Begin = begin_tcp,
        ssl_context: ssl.SSLContext | None = None,
        proxy: tuple[str, int] | None = None,
        max_idle_connections: int = MAX_IDLE_CONNECTIONS,
        keep_idle: float = KEEP_IDLE,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        ssl_context = ssl_context or receiver_context()
        ssl_context.set_alpn_protocols(["http/1.1"])
        # A subjectAltName is the only name (RFC 9110, section 4.3.4).
        ssl_context.hostname_checks_common_name = False
        self._guard = guard
        self._timeout = timeout
        self._user_agent = user_agent
        self._clock = clock
        self._monotonic = monotonic
        names = BoundedResolver(resolver)
        self._transport = GuardedTransport(
            Dialer(
                guard,
                resolver=names,
                ssl_context=ssl_context,
                begin=begin,
                tunnel=ProxyTunnel(*proxy, resolver=names, begin=begin) if proxy else None,
            ),
            max_idle=max_idle_connections,
            keep_idle=keep_idle,
            max_age=MAX_CONNECTION_AGE,
            clock=monotonic,
        )

    @property
    def requests(self) -> int:
        """Requests sent so far, for metrics."""
        return self._transport.requests

    @property
    def connections(self) -> int:
        """Connections opened so far; the rest of the requests reused one."""
        return self._transport.connections

    def deliver(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Sequence[bytes],
        owner: str = "",
        timeout: float | None = None,
    ) -> Outcome:
        """POST *body* to *url*, once, within one deadline. Redirects are not followed.

        Args:
            url: Checked here again, because it may have been stored under another policy.
            headers: In lower case; ``host``, ``user-agent``, ``accept-encoding`` and
                ``content-length`` are added.
            body: In pieces, sent as they are.
            owner: Whose share of look-ups is used.
            timeout: Seconds, if less than this deliverer's.

        Raises:
            LocalResourceError: As `Deliverer.deliver`.
        """
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        deadline = Deadline(self._monotonic() + seconds, self._monotonic, owner)
        try:
            target = self._guard.check(url)
            answer = self._transport.handle_request(
                httpx.Request(
                    "POST",
                    _url(target.url),
                    headers={
                        "host": target.authority,
                        **headers,
                        "user-agent": self._user_agent,
                        "accept-encoding": "identity",
                        "content-length": str(sum(map(len, body))),
                    },
                    content=body,
                    extensions={"target": target, "deadline": deadline},
                )
            )
        except tuple(_FAILURES) as exc:
            return _failed(exc, cut_short=seconds < self._timeout)
        wish = answer.headers.get("webhook-delivery", "").lower()
        return Answered(
            status=answer.status_code,
            retry_after=parse_retry_after(
                answer.headers.get_list("retry-after"), now=self._clock()
            ),
            excerpt=b"".join(answer.iter_raw())[:MAX_EXCERPT_BYTES],
            gone=answer.status_code == 410 or wish in {"disable", "abort-message"},
        )

    def close(self) -> None:
        """Close idle connections now, and those in use when their attempt ends."""
        self._transport.close()


@lru_cache(maxsize=1024)
def _url(text: str) -> httpx.URL:
    return httpx.URL(text)


# What the transport may raise, and what that means to a caller. The first that fits counts.
_FAILURES: dict[type[Exception], tuple[str, str]] = {
    CallbackUrlError: ("CALLBACK_URL_INVALID", "The callback URL cannot be parsed without doubt."),
    ForbiddenCallbackError: ("ADDRESS_FORBIDDEN", "This server may not call the callback's host."),
    NameLookupError: ("DNS_ERROR", "The callback's host name could not be resolved."),
    TimeoutError: ("TIMEOUT", "There was no complete answer before the deadline."),
    ConnectionRefusedError: ("CONNECTION_REFUSED", "Nobody listens at the callback's address."),
    ssl.SSLError: ("TLS_ERROR", "There is no TLS connection that proves the callback's name"),
    ReceiverUnreachableError: (
        "CONNECTION_FAILED",
        "The egress proxy did not connect to the callback's address.",
    ),
    h11.RemoteProtocolError: ("PROTOCOL_ERROR", "The answer was not HTTP."),
    OSError: ("CONNECTION_FAILED", "The connection broke, or there was no route."),
}


def _failed(exc: Exception, *, cut_short: bool) -> Failed:
    reason, message = next(failure for kind, failure in _FAILURES.items() if isinstance(exc, kind))
    if isinstance(exc, ssl.SSLError):
        message = f"{message}: {_words_of(exc)}."
    is_timeout = isinstance(exc, TimeoutError)
    return Failed(reason=reason, message=message, cut_short=cut_short and is_timeout)


def _words_of(error: ssl.SSLError) -> str:
    """Return OpenSSL's words: "certificate has expired" tells the receiver's owner what to do."""
    verify_message = getattr(error, "verify_message", "")  # SSLCertVerificationError only
    if verify_message:
        return str(verify_message).rstrip(".")
    # Not the whole text, which names source lines.
    reason = error.reason or "HANDSHAKE_FAILURE"
    return _TLS_HELP.get(reason, reason.replace("_", " ").lower())


#: What OpenSSL's names of alerts leave unsaid.
_TLS_HELP = {
    "TLSV1_ALERT_UNKNOWN_CA": (
        "unknown authority: the receiver does not trust the certificate that picback shows"
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        "certificate required: the receiver accepts only clients with a certificate, and picback "
        "shows none"
    ),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        "handshake failure: the receiver found no version and cipher in common, or accepts only "
        "clients with a certificate"
    ),
}
