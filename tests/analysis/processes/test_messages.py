"""Messages over a socket: what was sent comes, and what is none is no more than an error."""

from __future__ import annotations

import json
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.processes import messages

FIELDS = st.dictionaries(
    st.text(max_size=5).filter(lambda name: name != "blobs"),
    st.integers() | st.text(max_size=9) | st.none(),
    max_size=5,
)


@given(FIELDS, st.lists(st.binary(max_size=50), max_size=4))
def test_a_message_comes_as_it_was_sent(fields: dict[str, object], blobs: list[bytes]) -> None:
    here, there = socket.socketpair()
    with here, there:
        messages.send(here, fields, blobs)

        assert (fields, blobs) == messages.receive(there, max_blob_bytes=1000)


def test_a_message_longer_than_what_a_socket_holds_comes_whole() -> None:
    here, there = socket.socketpair()
    blob = bytes(range(256)) * 40_000
    with here, there:
        thread = threading.Thread(target=messages.send, args=(here, {}, [blob]))
        thread.start()
        _, (found,) = messages.receive(there, max_blob_bytes=len(blob))
        thread.join()

    assert blob == found


def receive(content: bytes) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(content)
        here.close()
        messages.receive(there, max_blob_bytes=100)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_an_error(content: bytes) -> None:
    try:
        receive(content)
    except (EOFError, messages.MessageError):
        return
    raise AssertionError(content)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=5,
    )
)
def test_any_json_is_a_message_or_an_error(value: object) -> None:
    head = json.dumps(value).encode()
    with pytest.raises((EOFError, messages.MessageError)):
        receive(struct.pack("!I", len(head)) + head)


@pytest.mark.parametrize("sizes", [[101], [60, 60], [-1], [2**63]])
def test_byte_strings_beyond_the_limit_are_not_taken_in(sizes: list[int]) -> None:
    head = json.dumps({"blobs": sizes}).encode()

    with pytest.raises(messages.MessageError):
        receive(struct.pack("!I", len(head)) + head)
