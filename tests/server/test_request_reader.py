"""Which requests are received: random callers against the rules that must hold at every moment."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.request_reader import RequestReader
from server.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.errors import RequestError

SLOTS, SHARE = 4, 2
OWNERS = ["a", "b", "c", "d", "e"]


class FakeCall:
    """A call whose request comes when the test says so."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.size_bytes = 0
        self.is_active = True
        self.refused_as = ""
        self.started: Future[Any] | None = None
        self.on_end: Callable[[bool], None] | None = None
        self._on_done: list[Callable[[], object]] = []

    def receive(self, on_end: Callable[[bool], None]) -> bool:
        if self.is_active:
            self.on_end = on_end
        return self.is_active

    def on_done(self, run: Callable[[], object]) -> bool:
        self._on_done.append(run)
        return self.is_active

    def end(self, *, arrived: bool = False) -> None:
        """Let what is received end, as gRPC does; the client is gone unless the request is there."""
        self.is_active = arrived
        on_end, self.on_end = self.on_end, None
        for run in () if arrived else self._on_done:
            run()
        if on_end is not None:
            on_end(arrived)


class Reading(RuleBasedStateMachine):
    """Owners that call, send, leave, and stay silent."""

    def __init__(self) -> None:
        super().__init__()
        self.timer = Timer()  # not started: the test lets timeouts expire
        self.calls: list[FakeCall] = []
        self.reader = RequestReader(
            slots=SLOTS,
            share=SHARE,
            timeout_seconds=1.0,
            yield_seconds=0.0,
            timer=self.timer,
            refuse=self._refuse,
        )

    def _refuse(self, call: Any, error: RequestError) -> None:
        call.refused_as = error.reason
        call.is_active = False

    def _receiving(self) -> list[FakeCall]:
        return [call for call in self.calls if call.on_end is not None]

    @rule(owner=st.sampled_from(OWNERS))
    def call(self, owner: str) -> None:
        call = FakeCall(owner)
        self.calls.append(call)

        def start(_: object) -> Future[Any]:
            call.started = Future()
            return call.started

        self.reader.add(cast("Any", call), owner, start)

    @precondition(lambda self: self._receiving())
    @rule(data=st.data(), size_bytes=st.sampled_from([10, 1_000_000]))
    def request_arrives(self, data: st.DataObject, size_bytes: int) -> None:
        call = data.draw(st.sampled_from(self._receiving()))
        call.size_bytes = size_bytes
        call.end(arrived=call.is_active)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.calls)).end()

    @precondition(lambda self: any(call.started is not None for call in self.calls))
    @rule(data=st.data())
    def handler_ends(self, data: st.DataObject) -> None:
        running = [call for call in self.calls if call.started is not None]
        call = data.draw(st.sampled_from(running))
        assert call.started is not None
        if not call.started.done():
            call.started.set_result(None)

    @rule()
    def time_passes(self) -> None:
        for pending in self.timer._pending.values():
            for timeout in list(pending):
                timeout.cancel()
                timeout.expire()

    @rule()
    def refused_calls_end(self) -> None:
        for call in self._receiving():
            if not call.is_active:
                call.end()

    @invariant()
    def no_more_are_received_than_there_are_slots(self) -> None:
        held = Counter(
            call.owner
            for call in self.calls
            if call.on_end is not None
            or (call.started is not None and not call.started.done() and call.size_bytes > 64_000)
        )
        assert dict(held) == self.reader._held
        assert held.total() == self.reader._held_by_all <= SLOTS
        assert all(count <= SHARE for count in held.values())

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        for owner, queue in self.reader._waiting.items():
            if any(request.call is not None for request in queue):
                assert not self.reader._has_room(owner)

    def teardown(self) -> None:
        for call in self.calls:
            call.end()
            if call.started is not None and not call.started.done():
                call.started.set_result(None)

        assert not self.reader._held
        assert not self.reader._receiving
        assert not any(self.timer._pending.values())


TestReading = Reading.TestCase
TestReading.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def _reader(timer: Timer, **options: Any) -> tuple[RequestReader, list[tuple[FakeCall, str]]]:
    refused: list[tuple[FakeCall, str]] = []
    reader = RequestReader(
        **{
            "slots": SLOTS,
            "share": SHARE,
            "timeout_seconds": 1.0,
            "yield_seconds": 0.0,
            "timer": timer,
            "refuse": lambda call, error: refused.append((call, error.reason)),
            **options,
        }
    )
    return reader, refused


def _add(reader: RequestReader, owner: str) -> FakeCall:
    call = FakeCall(owner)
    reader.add(cast("Any", call), owner, lambda _: Future())
    return call


def test_an_owner_who_holds_nothing_takes_the_slot_of_one_who_is_silent() -> None:
    reader, refused = _reader(Timer(), share=1)
    silent = [_add(reader, owner) for owner in OWNERS[:SLOTS]]

    newcomer = _add(reader, "new")
    refused[0][0].end()

    assert [(silent[0], "OVERLOADED")] == refused
    assert newcomer.on_end is not None


def test_a_request_that_may_still_come_soon_keeps_its_slot() -> None:
    reader, refused = _reader(Timer(), share=1, yield_seconds=3600)
    for owner in OWNERS[:SLOTS]:
        _add(reader, owner)

    newcomer = _add(reader, "new")

    assert not refused
    assert newcomer.on_end is None


def test_the_last_slots_are_for_owners_who_hold_none() -> None:
    reader, _ = _reader(Timer())
    for owner in ("a", "a", "b", "b"):
        _add(reader, owner)

    assert _add(reader, "c").on_end is not None


def test_an_owner_who_has_just_come_does_not_wait_for_those_who_have_many() -> None:
    reader, _ = _reader(Timer(), yield_seconds=3600)
    first, *_ = [_add(reader, owner) for owner in [*OWNERS[:SLOTS], *OWNERS[:SLOTS] * 100]]
    newcomer = _add(reader, "new")

    first.end()

    assert newcomer.on_end is not None
