"""The catalogue of what a receiver can do to a sender, and what must come of it.

A new fault gets an entry here; `test_deliverer_hostile` plays it and measures what it costs.
"""

from __future__ import annotations

import ssl
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.dispatcher.calling import NAME, TLS
from tests.fault_server import answering, close_one_half, drip, flood, hang, reset, sip

if TYPE_CHECKING:
    import socket

    from tests.fault_server import FaultServer, Script

HEAD: Final = b"HTTP/1.1 200 OK\r\n"
LENGTH_9: Final = HEAD + b"content-length: 9\r\n\r\n"
CHUNKED: Final = HEAD + b"transfer-encoding: chunked\r\n\r\n"
ENOUGH: Final = b"content-length: 0\r\n\r\n"
BLOCK: Final = b"x" * 4096
#: 58 KB that unpack to 60 MB; less than what is read of any answer, so all of it is read.
BOMB: Final = zlib.compress(bytes(60_000_000), wbits=31)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that a receiver, or the way to it, does.

    Attributes:
        script: The receiver's part.
        outcome: A reason of a failure, or the status of an answer.
        scheme: ``https`` where the script speaks TLS, or should.
        host: As in the URL.
        resolver: A name in `measuring.RESOLVERS`.
        connections: How many there must have been.
    """

    script: Script
    outcome: str
    scheme: str = "http"
    host: str = "127.0.0.1"
    resolver: str = "loopback"
    connections: int = 1


def over_tls(script: Script, context: ssl.SSLContext | None = None) -> Script:
    """Agree on TLS, then do *script*."""
    context = context or server_context()

    def wrapped(server: FaultServer, connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            script(server, tls)

    return wrapped


def server_context(certificate: str = "receiver") -> ssl.SSLContext:
    """Return what serves TLS with one of the certificates in `TLS`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{certificate}.pem")
    return context


def obsolete_context() -> ssl.SSLContext:
    """Return what serves TLS in versions that are broken."""
    context = server_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def after_hello(then: Script) -> Script:
    """Take the first message of a TLS handshake, then do *then*."""

    def script(server: FaultServer, connection: socket.socket) -> None:
        connection.recv(65536)
        then(server, connection)

    return script


def amid_the_request(data: bytes, then: Script) -> Script:
    """Send *data* after the first bytes of the request, then do *then*."""

    def script(server: FaultServer, connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(data)
        then(server, connection)

    return script


def swallow(_: FaultServer, connection: socket.socket) -> None:
    """Read all there is."""
    while connection.recv(1_000_000):
        continue


def redirecting(status: int, location: str) -> Script:
    """Answer with a redirect."""
    head = f"HTTP/1.1 {status} Elsewhere\r\nlocation: {location}\r\n"
    return answering(head.encode() + ENOUGH)


FAULTS: Final[dict[str, Fault]] = {
    # Silence.
    "hangs before the request": Fault(hang, "TIMEOUT"),
    "hangs after the request": Fault(answering(b"", hang), "TIMEOUT"),
    "hangs inside the head": Fault(answering(HEAD, hang), "TIMEOUT"),
    "hangs inside the body": Fault(answering(LENGTH_9 + b"x", hang), "TIMEOUT"),
    "hangs inside a chunk": Fault(answering(CHUNKED + b"9\r\nx", hang), "TIMEOUT"),
    "hangs before the last chunk": Fault(answering(CHUNKED + b"1\r\nx\r\n", hang), "TIMEOUT"),
    "hangs after an informational answer": Fault(
        answering(b"HTTP/1.1 100 Continue\r\n\r\n", hang), "TIMEOUT"
    ),
    "closes its half without an answer": Fault(answering(b"", close_one_half), "CONNECTION_FAILED"),
    "answers early and never reads the rest": Fault(
        amid_the_request(b"HTTP/1.1 413 Too Large\r\n" + ENOUGH, hang), "TIMEOUT"
    ),
    # A byte now and then, at every phase.
    "reads the request by the byte": Fault(sip, "TIMEOUT"),
    "drips the status line": Fault(answering(b"", drip(HEAD)), "TIMEOUT"),
    "drips headers": Fault(answering(HEAD, drip(b"x: y\r\n")), "TIMEOUT"),
    "drips a body of known length": Fault(
        answering(HEAD + b"content-length: 999\r\n\r\n", drip(b"x")), "TIMEOUT"
    ),
    "drips a body of unknown length": Fault(answering(HEAD + b"\r\n", drip(b"x")), "TIMEOUT"),
    "drips chunks": Fault(answering(CHUNKED, drip(b"1\r\nx\r\n")), "TIMEOUT"),
    "drips a chunk's size": Fault(answering(CHUNKED, drip(b"0")), "TIMEOUT"),
    "drips trailers": Fault(answering(CHUNKED + b"0\r\n", drip(b"x: y\r\n")), "TIMEOUT"),
    "drips informational answers": Fault(
        answering(b"", drip(b"HTTP/1.1 100 Continue\r\n\r\n")), "TIMEOUT"
    ),
    # Too much.
    "floods while it should read": Fault(amid_the_request(b"", flood(BLOCK)), "TIMEOUT"),
    "floods informational answers": Fault(
        answering(b"", flood(b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" * 100)), "PROTOCOL_ERROR"
    ),
    "floods headers": Fault(answering(HEAD, flood(b"x: y\r\n" * 100)), "PROTOCOL_ERROR"),
    "floods folded header lines": Fault(
        answering(HEAD + b"x: y\r\n", flood(b" y\r\n" * 100)), "PROTOCOL_ERROR"
    ),
    "has as many headers as it may": Fault(answering(HEAD + b"a:\r\n" * 16_000 + ENOUGH), "200"),
    "one endless header": Fault(answering(HEAD + b"x: ", flood(BLOCK)), "PROTOCOL_ERROR"),
    "a header of 200 KiB": Fault(
        answering(HEAD + b"x: " + BLOCK * 50 + b"\r\n" + ENOUGH), "PROTOCOL_ERROR"
    ),
    "one endless line": Fault(answering(b"HTTP/1.1 200 ", flood(BLOCK)), "PROTOCOL_ERROR"),
    "empty lines without end": Fault(answering(b"", flood(b"\r\n" * 1000)), "PROTOCOL_ERROR"),
    "more framing than content": Fault(
        answering(CHUNKED, flood(b"1;" + BLOCK + b"\r\nx\r\n")), "PROTOCOL_ERROR"
    ),
    "one endless chunk extension": Fault(
        answering(CHUNKED + b"1;", flood(BLOCK)), "PROTOCOL_ERROR"
    ),
    "empty chunk extensions": Fault(
        answering(CHUNKED, flood(b"1;\r\nx\r\n" * 100)), "PROTOCOL_ERROR"
    ),
    "floods trailers": Fault(
        answering(CHUNKED + b"0\r\n", flood(b"x: y\r\n" * 100)), "PROTOCOL_ERROR"
    ),
    "a body of 10 GB": Fault(
        answering(HEAD + b"content-length: 9999999999\r\n\r\n", flood(BLOCK)), "200"
    ),
    "a body without end": Fault(answering(HEAD + b"\r\n", flood(BLOCK)), "200"),
    "chunks without end": Fault(answering(CHUNKED, flood(b"1000\r\n" + BLOCK + b"\r\n")), "200"),
    "a chunk of an exabyte": Fault(
        answering(CHUNKED + b"fffffffffffffff\r\n", flood(BLOCK)), "200"
    ),
    "a compressed body that is huge unpacked": Fault(
        answering(
            HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(BOMB) + BOMB
        ),
        "200",
    ),
    "a compressed transfer that is huge unpacked": Fault(
        answering(HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n%x\r\n" % len(BOMB) + BOMB),
        "PROTOCOL_ERROR",
    ),
    # Endings.
    "resets at once": Fault(reset, "CONNECTION_FAILED"),
    "resets inside the request": Fault(amid_the_request(b"", reset), "CONNECTION_FAILED"),
    "resets before the answer": Fault(answering(b"", reset), "CONNECTION_FAILED"),
    "resets inside the head": Fault(answering(HEAD, reset), "CONNECTION_FAILED"),
    "resets inside the body": Fault(answering(LENGTH_9 + b"x", reset), "200"),
    "resets inside a chunk": Fault(answering(CHUNKED + b"9\r\nx", reset), "200"),
    "closes at once": Fault(lambda *_: None, "CONNECTION_FAILED"),
    "closes inside the request": Fault(amid_the_request(b"", lambda *_: None), "CONNECTION_FAILED"),
    "closes before the answer": Fault(answering(b""), "CONNECTION_FAILED"),
    "closes after an informational answer": Fault(
        answering(b"HTTP/1.1 100 Continue\r\n\r\n"), "CONNECTION_FAILED"
    ),
    "closes inside the status line": Fault(answering(HEAD[:9]), "CONNECTION_FAILED"),
    "closes inside the head": Fault(answering(HEAD), "CONNECTION_FAILED"),
    "closes inside the body": Fault(answering(LENGTH_9 + b"x"), "200"),
    "closes inside a chunk": Fault(answering(CHUNKED + b"9\r\nx"), "200"),
    "closes before the last chunk": Fault(answering(CHUNKED + b"1\r\nx\r\n"), "200"),
    # Not HTTP, or another one.
    "greets like SSH and waits": Fault(
        answering(b"SSH-2.0-OpenSSH_9.2\r\n", hang), "PROTOCOL_ERROR"
    ),
    "greets like SMTP and waits": Fault(answering(b"220 mail ESMTP\r\n", hang), "PROTOCOL_ERROR"),
    "speaks TLS": Fault(answering(b"\x15\x03\x01\x00\x02\x02\x16", hang), "PROTOCOL_ERROR"),
    "speaks HTTP/2": Fault(answering(b"\x00\x00\x12\x04" + bytes(20), hang), "PROTOCOL_ERROR"),
    "speaks HTTP/0.9": Fault(answering(b"<html></html>"), "PROTOCOL_ERROR"),
    "says HTTP/2": Fault(answering(b"HTTP/2 200 OK\r\n" + ENOUGH), "PROTOCOL_ERROR"),
    "says HTTP/1.10": Fault(answering(b"HTTP/1.10 200 OK\r\n" + ENOUGH), "PROTOCOL_ERROR"),
    "says http/1.1": Fault(answering(b"http/1.1 200 OK\r\n" + ENOUGH), "PROTOCOL_ERROR"),
    "says HTTP/1.0": Fault(answering(b"HTTP/1.0 200 OK\r\n\r\nx"), "200"),
    # Of a future version that looks like this one: sloppy, and no less of an answer.
    "says HTTP/9.9": Fault(answering(b"HTTP/9.9 200 OK\r\n" + ENOUGH), "200"),
    "speaks as a client": Fault(answering(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"), "PROTOCOL_ERROR"),
    "garbage": Fault(answering(bytes(range(256)), hang), "PROTOCOL_ERROR"),
    "upgrades": Fault(
        answering(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", hang), "PROTOCOL_ERROR"
    ),
    # Nonsense in HTTP.
    "has two lengths": Fault(
        answering(HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab"), "PROTOCOL_ERROR"
    ),
    "has two lengths in one": Fault(
        answering(HEAD + b"content-length: 1, 2\r\n\r\nab"), "PROTOCOL_ERROR"
    ),
    "has a negative length": Fault(
        answering(HEAD + b"content-length: -1\r\n\r\n"), "PROTOCOL_ERROR"
    ),
    "has a signed length": Fault(
        answering(HEAD + b"content-length: +1\r\n\r\nx"), "PROTOCOL_ERROR"
    ),
    "has a hexadecimal length": Fault(
        answering(HEAD + b"content-length: 0x1\r\n\r\nx"), "PROTOCOL_ERROR"
    ),
    "has a length of many digits": Fault(
        answering(HEAD + b"content-length: " + b"9" * 5000 + b"\r\n\r\nx"), "PROTOCOL_ERROR"
    ),
    "has a length and chunks": Fault(
        answering(HEAD + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), "200"
    ),
    "has an unknown transfer coding": Fault(
        answering(HEAD + b"transfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n"), "PROTOCOL_ERROR"
    ),
    "has a bad chunk size": Fault(answering(CHUNKED + b"zz\r\nx\r\n"), "PROTOCOL_ERROR"),
    "has a negative chunk size": Fault(answering(CHUNKED + b"-1\r\nx\r\n"), "PROTOCOL_ERROR"),
    "has an endless chunk size": Fault(answering(CHUNKED, flood(b"0" * 4096)), "PROTOCOL_ERROR"),
    "has a chunk longer than it said": Fault(
        answering(CHUNKED + b"1\r\nxyz\r\n0\r\n\r\n"), "PROTOCOL_ERROR"
    ),
    "has a status of letters": Fault(answering(b"HTTP/1.1 abc OK\r\n\r\n"), "PROTOCOL_ERROR"),
    "has a status of four digits": Fault(answering(b"HTTP/1.1 2000 OK\r\n\r\n"), "PROTOCOL_ERROR"),
    "has a status of 0": Fault(answering(b"HTTP/1.1 000 OK\r\n\r\n"), "PROTOCOL_ERROR"),
    "has a NUL in a header": Fault(answering(HEAD + b"x: \x00\r\n\r\n"), "PROTOCOL_ERROR"),
    "has a space before the colon": Fault(answering(HEAD + b"x : y\r\n\r\n"), "PROTOCOL_ERROR"),
    "has a header without a name": Fault(answering(HEAD + b": y\r\n\r\n"), "PROTOCOL_ERROR"),
    # Errands.
    "redirects to metadata": Fault(redirecting(302, "http://169.254.169.254/latest/"), "302"),
    "redirects to loopback": Fault(redirecting(307, "http://127.0.0.1:1/"), "307"),
    "redirects to a file": Fault(redirecting(301, "file:///etc/passwd"), "301"),
    "redirects to itself": Fault(redirecting(308, "/callback"), "308"),
    "redirects to nowhere": Fault(redirecting(303, "http://[/"), "303"),
    "offers other ways": Fault(
        answering(
            HEAD + b'refresh: 0; url=/\r\nalt-svc: h2="127.0.0.1:1"\r\nset-cookie: a=b\r\n' + ENOUGH
        ),
        "200",
    ),
    "wants a password": Fault(
        answering(b"HTTP/1.1 401 Who?\r\nwww-authenticate: Basic realm=x\r\n" + ENOUGH), "401"
    ),
    # TLS.
    "hangs before the TLS handshake": Fault(hang, "TIMEOUT", "https"),
    "hangs inside the TLS handshake": Fault(after_hello(hang), "TIMEOUT", "https"),
    "drips a TLS record": Fault(  # of 16 KiB, that never gets there
        after_hello(drip(b"\x16\x03\x03\x40\x00" + bytes(16384))), "TIMEOUT", "https"
    ),
    "floods the TLS handshake": Fault(after_hello(flood(BLOCK)), "TLS_ERROR", "https"),
    "floods empty TLS records": Fault(
        after_hello(flood(b"\x16\x03\x03\x00\x00" * 500)), "TLS_ERROR", "https"
    ),
    "resets inside the TLS handshake": Fault(after_hello(reset), "CONNECTION_FAILED", "https"),
    "closes inside the TLS handshake": Fault(after_hello(lambda *_: None), "TLS_ERROR", "https"),
    "answers the TLS handshake in the clear": Fault(after_hello(flood(HEAD)), "TLS_ERROR", "https"),
    "proves another name": Fault(
        over_tls(hang, server_context("other")), "TLS_ERROR", "https", NAME
    ),
    "proves an expired name": Fault(
        over_tls(hang, server_context("expired")), "TLS_ERROR", "https", NAME
    ),
    "vouches for its name itself": Fault(
        over_tls(hang, server_context("self-signed")), "TLS_ERROR", "https", NAME
    ),
    "speaks TLS 1.1": Fault(over_tls(hang, obsolete_context()), "TLS_ERROR", "https"),
    "hangs after the TLS handshake": Fault(over_tls(hang), "TIMEOUT", "https"),
    "reads the request by the byte over TLS": Fault(over_tls(sip), "TIMEOUT", "https"),
    "drips headers over TLS": Fault(
        over_tls(answering(HEAD, drip(b"x: y\r\n"))), "TIMEOUT", "https"
    ),
    "drips a body over TLS": Fault(
        over_tls(answering(HEAD + b"\r\n", drip(b"x"))), "TIMEOUT", "https"
    ),
    "floods headers over TLS": Fault(
        over_tls(answering(HEAD, flood(b"x: y\r\n" * 100))), "PROTOCOL_ERROR", "https"
    ),
    "a body without end over TLS": Fault(
        over_tls(answering(HEAD + b"\r\n", flood(BLOCK))), "200", "https"
    ),
    "closes inside the body over TLS": Fault(over_tls(answering(LENGTH_9 + b"x")), "200", "https"),
    # Names.
    "has a name server that hangs": Fault(
        hang, "TIMEOUT", host=NAME, resolver="hanging", connections=0
    ),
    "has 100,000 addresses": Fault(
        answering(HEAD + ENOUGH), "200", host=NAME, resolver="answering_at_length"
    ),
}
