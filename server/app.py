"""The one place where concrete parts meet: built, started and stopped here, in order."""

from __future__ import annotations

import contextlib
import logging
import secrets
import ssl
import threading
import time
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from analysis.image_decoder import ImageDecoder
from analysis.lemmas import Lemmatizer, LemmatizerError, require_pipeline
from analysis.taggers import TaggerLoadError
from analysis.taggers.local_process import LocalTaggerProcess
from dispatcher import (
    CertificateFileError,
    ClockRecord,
    Dispatcher,
    HttpDeliverer,
    SteadyClock,
    UrlGuard,
    boot_id,
    elapsed_time,
    new_secret,
    parse_proxy,
    receiver_context,
)
from picback.v1 import image_service_pb2, image_service_pb2_grpc
from server import descriptors, grpc_internals, reflection
from server.call_log import CallLog
from server.config import ConfigError
from server.connections import ConnectionGuard, defer_accept
from server.health import HealthServicer
from server.interceptors import Interceptor
from server.key_limits import KeyLimits
from server.keyring import Keyring
from server.paging import Paging
from server.refusals import refuse_unread
from server.request_pool import RefusalPool, RequestPool
from server.request_reader import RequestReader
from server.response_budget import ResponseBudget
from server.service import ImageService
from server.stream_limit import StreamLimit
from server.timer import Timer
from storage import settings
from storage.api_keys import DEFAULT_SCOPES, ApiKeys
from storage.breakers import Breakers
from storage.database import Database
from storage.errors import StorageError
from storage.images import Images
from storage.queries import Queries
from storage.tags import Tags

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from analysis.taggers import Tagger
    from server.config import Config, TlsSettings
    from storage.api_keys import Credentials
    from storage.thread_pool import StartedPool

logger = logging.getLogger(__name__)

_SERVICE: Final = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name
_HEALTH: Final = "grpc.health.v1.Health"
#: Most open streams, in all and of one key: WatchQuery, reflection, and Watch of health, which needs
#: no key. Each holds a thread.
_MAX_WATCHERS: Final = 128
_MAX_WATCHERS_PER_KEY: Final = 64
_MAX_REFLECTION_STREAMS: Final = 12
_MAX_REFLECTION_STREAMS_PER_KEY: Final = 4
_MOST_HEALTH_WATCHERS: Final = 128
#: Pool -> its threads, and which of the readers below receives its requests.
_POOLS: Final[Mapping[str, tuple[int, str]]] = {
    "call": (64, "keys"),  # as many as may wait for one commit; the work itself holds the GIL
    "upload": (16, "uploads"),  # they wait for tags; also the most uploads in memory at once
    "watch": (_MAX_WATCHERS + 4, "keys"),  # the four are there to refuse one more
    "reflection": (_MAX_REFLECTION_STREAMS + 4, "keys"),
    "health": (4, "no key"),
    "health-watch": (_MOST_HEALTH_WATCHERS + 4, "no key"),
}
#: Requests that may be received at once, each of which may take as much memory as the largest message;
#: how many of them one owner may have (a key, or a connection without one); and after how many seconds
#: one that has not arrived makes room for another owner's.
_READERS: Final[Mapping[str, tuple[int, int, float]]] = {
    "keys": (16, 8, 1.0),
    "uploads": (16, 12, 5.0),
    "no key": (12, 2, 0.1),  # only probes, which are small
}
#: gRPC rejects calls at random, of every connection, while more than 1,000 have not reached Python.
#: Those of a connection are bounded as it is, and a key's by its limits.
_MAX_PENDING_CALLS: Final = 100_000
#: How often it is looked whether work is stuck, and how long it must be due for that, in
#: seconds: longer than a lane sleeps at most, lest a clock that was set raises an alarm.
_LOOK_SECONDS: Final = 5.0
_STUCK_SECONDS: Final = 90.0
#: The setting that holds what the next process needs to go on with the scheduler's clock.
_CLOCK: Final = "scheduler_clock"
#: What a message may have beyond an image, and how far an image may be over the limit and
#: still be told so by us: gRPC itself refuses longer messages, without our details.
_MESSAGE_MARGIN: Final = 4_000_000
#: How long a connection may take for TLS and the first frames of HTTP/2, in seconds: ten round
#: trips of the slowest networks.
_HANDSHAKE_SECONDS: Final = 10.0
#: How long gRPC may take to cut off what the stop grace did not end, in seconds.
_STOP_MARGIN: Final = 2.0


def wall_clock() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class App:
    """A picback server with its dispatcher, on one data folder and one port.

    Making one opens the data folder and binds the port; nobody is answered before `start`,
    which also loads the models.

    Raises:
        ConfigError: The port is taken, a file cannot be read, a pipeline is not installed.
        StorageError: The data folder is in use or cannot be used; signing secrets in it are
            encrypted with a key that the sealer lacks.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], int] = wall_clock,
        elapsed: Callable[[], int] = elapsed_time,
    ) -> None:
        self._config = config
        self._clock = clock
        self._elapsed = elapsed
        self._stopping = threading.Event()
        self._overseer = threading.Thread(
            target=self._oversee, name="picback-overseer", daemon=True
        )
        self._budget = descriptors.budget(config.dispatcher.delivery_threads)
        self._database = Database.own(
            config.data,
            max_readers=self._budget.readers,
            min_free_bytes=config.min_free_bytes,
            reserve_bytes=config.reserve_bytes,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self._database.close)
            try:
                self._build(config, clock)
            except (LemmatizerError, TaggerLoadError) as error:
                raise ConfigError(str(error)) from error
            undo.pop_all()

    def _build(self, config: Config, clock: Callable[[], int]) -> None:
        self.api_keys = ApiKeys(self._database, sealer=config.sealer)
        self._seal_secrets(config.sealer.current)
        self._images = Images(self._database)
        self._queries = Queries(self._database)
        self._steady_clock = self._make_steady_clock(clock)
        self._keyring = Keyring(
            self.api_keys, clock=clock, on_revoked=self._queries.changes.wake_all
        )
        self._timer = Timer()
        self._call_log = CallLog()
        self._timer.on_tick(self._call_log.flush)
        self._responses = ResponseBudget(config.max_response_bytes, timer=self._timer)
        self._limits = KeyLimits(
            calls_per_second=config.limit_calls_per_second,
            queued_queries=config.limit_queued_queries,
            count_queued=self._queries.queued.count,
        )
        self._health = HealthServicer([_SERVICE], most_watchers=_MOST_HEALTH_WATCHERS)
        self._server, self._pools = self._make_server(config, clock)
        self.port = _bind(self._server, config)
        defer_accept(self.port)
        self._connections = ConnectionGuard(self.port, most=self._budget.callers)

        guard = _make_guard(config)
        self._decoder = ImageDecoder(
            processes=config.decoder_processes,
            memory_bytes=config.decoder_memory,
            cpu_seconds=config.decoder_timeout,
            max_pixels=config.max_image_pixels,
        )
        self._local_tagger = LocalTaggerProcess() if config.tagger_in_use == "local" else None
        require_pipeline(config.pipeline)
        load_tagger = _tagger_loader(config, self._local_tagger)
        self._deliverer = _make_deliverer(config, guard, self._budget.idle_callbacks)
        self._dispatcher = Dispatcher(
            config.dispatcher,
            images=self._images,
            tags=Tags(self._database),
            queries=self._queries,
            api_keys=self.api_keys,
            breakers=Breakers(self._database),
            load_lemmatizer=partial(Lemmatizer, config.pipeline),
            load_tagger=load_tagger,
            decode=self._decoder.decode,
            deliverer=self._deliverer,
            clock=clock,
            time=self._steady_clock,
        )
        service = ImageService(
            images=self._images,
            queries=self._queries,
            dispatcher=self._dispatcher,
            decoder=self._decoder,
            guard=guard,
            paging=Paging(
                settings.get_or_create(
                    self._database, "page_token_secret", lambda: secrets.token_bytes(32)
                )
            ),
            max_image_bytes=config.max_image_bytes,
            responses=self._responses,
            limits=self._limits,
            watchers=StreamLimit("WatchQuery", total=_MAX_WATCHERS, per_key=_MAX_WATCHERS_PER_KEY),
            is_stopping=self._stopping.is_set,
            clock=clock,
            wall_time=self._steady_clock.wall_time,
        )
        image_service_pb2_grpc.add_ImageServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.add_to(self._server, [_SERVICE, _HEALTH])

    def _seal_secrets(self, key: str | None) -> None:
        sealing = self.api_keys.seal_secrets()
        if sealing.changed:
            logger.info("secrets.encrypted", extra={"count": sealing.changed, "key": key})
        if not sealing.wiped:
            logger.warning("secrets.log_not_emptied")  # somebody reads; it is at the next stop

    def _make_steady_clock(self, wall: Callable[[], int]) -> SteadyClock:
        stored = settings.get(self._database, _CLOCK)
        steady = SteadyClock(
            wall=wall,
            elapsed=self._elapsed,
            boot=boot_id(),
            record=None if stored is None else ClockRecord.load(stored),
            newest=self._queries.deadlines.newest(),
        )
        settings.put(self._database, _CLOCK, steady.record().dump())
        return steady

    @property
    def address(self) -> str:
        """Where it listens: HOST:PORT, with the port that was really bound."""
        return f"{self._config.listen.rpartition(':')[0]}:{self.port}"

    def make_first_key(self) -> Credentials | None:
        """Make a key named "default" with the default scopes, if there has never been a key."""
        if self.api_keys.all():
            return None
        return self.api_keys.create(
            "default",
            scopes=DEFAULT_SCOPES,
            signing_secret=new_secret(),
            expires_at=None,
            now=self._clock(),
        )

    def start(self) -> None:
        """Answer calls, and take up what an earlier process left.

        Accepting and redelivering need no models and begin at once; health says SERVING when
        this returns, with the models loaded.

        Raises:
            ConfigError: A model cannot be loaded, or the system refuses a thread; all is stopped again.
            StorageError: The data folder cannot be used; all is stopped again.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            try:
                self._start_all()
            except (LemmatizerError, TaggerLoadError) as error:
                raise ConfigError(str(error)) from error
            except RuntimeError as error:
                if "new thread" not in str(error):  # Python's words for it; there is no type
                    raise
                msg = f"not all threads can be started (pids.max, ulimit -u): {error}"
                raise ConfigError(msg) from error
            undo.pop_all()
        self._health.set_serving(serving=True)
        logger.info(
            "server.started",
            extra={"address": self.address, "tagger": self._config.tagger_in_use},
        )

    def _start_all(self) -> None:
        for pool in self._pools:
            pool.start()
        self._timer.start()
        self._queries.count_queued()
        self._keyring.start()
        self._decoder.start()
        if self._local_tagger is not None:
            self._local_tagger.start()  # it loads its models while we load ours
        self._server.start()
        self._dispatcher.start()
        self._overseer.start()
        self._connections.start()

    def stop(self) -> None:
        """Refuse new calls, let those under way end, finish attempts, close the files.

        Takes at most the stop grace and one attempt's deadline. Nothing accepted is lost:
        what was not begun waits in the database for the next start.
        """
        logger.info("server.stopping")
        self._stopping.set()
        if self._overseer.is_alive():
            self._overseer.join()  # it must not say SERVING again
        self._connections.stop()
        # Streams first: open ones would hold `stop` for the whole grace.
        self._health.end()
        self._queries.changes.wake_all()
        self._images.changes.wake_all()
        if not self._stop_server().wait(self._config.stop_grace + _STOP_MARGIN):
            logger.warning("server.calls_left")  # gRPC has lost track of one; nobody waits for it
        self._decoder.close()
        self._dispatcher.stop()
        if self._local_tagger is not None:
            self._local_tagger.close()
        self._dispatcher.drain()
        self._deliverer.close()
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        self._timer.stop()
        self._keyring.stop()
        with contextlib.suppress(StorageError):
            settings.put(self._database, _CLOCK, self._steady_clock.record().dump())
        self._database.close()
        logger.info("server.stopped")

    def _stop_server(self) -> threading.Event:
        try:
            return self._server.stop(self._config.stop_grace)
        except RuntimeError:  # gRPC needs a thread for the grace, and the system refuses it
            logger.warning("server.no_grace")
            stopped = threading.Event()
            future = self._pools[0].submit(self._server.stop, None)
            future.add_done_callback(lambda _: stopped.set())
            return stopped

    def _oversee(self) -> None:
        """Tell health whether work gets done, and mind the disk, until the server stops."""
        serving = True
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self._database.disk_space.maintain()
                if self._steady_clock.notice_step():
                    settings.put(self._database, _CLOCK, self._steady_clock.record().dump())
                works = not self._dispatcher.is_stuck(grace=_STUCK_SECONDS)
            except StorageError:
                works = False
            if works != serving:
                serving = works
                self._health.set_serving(serving=serving)
                logger.log(
                    logging.INFO if serving else logging.ERROR,
                    "server.works" if serving else "server.stuck",
                )

    def _make_server(
        self, config: Config, clock: Callable[[], int]
    ) -> tuple[grpc.Server, list[StartedPool]]:
        self._readers = readers = self._make_readers(config)
        pools = {
            name: RequestPool(threads, name=name, reader=readers.get(reader))
            for name, (threads, reader) in _POOLS.items()
        }
        refusal_pools = RefusalPool(name="refusal"), RefusalPool(name="refusal-no-key")
        interceptor = Interceptor(
            self._keyring,
            limits=self._limits,
            pools={
                f"/{_SERVICE}/UploadImage": pools["upload"],
                f"/{_SERVICE}/WatchQuery": pools["watch"],
                f"/{_HEALTH}/Check": pools["health"],
                f"/{_HEALTH}/List": pools["health"],
                f"/{_HEALTH}/Watch": pools["health-watch"],
                **dict.fromkeys(reflection.METHODS, pools["reflection"]),
            },
            refusal_pools=refusal_pools,
            responses=self._responses,
            reflection_streams=StreamLimit(
                "reflection",
                total=_MAX_REFLECTION_STREAMS,
                per_key=_MAX_REFLECTION_STREAMS_PER_KEY,
            ),
            timer=self._timer,
            call_log=self._call_log,
            is_stopping=self._stopping.is_set,
            clock=clock,
        )
        server = grpc.server(
            pools["call"],
            interceptors=[interceptor],
            options=[
                ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
                ("grpc.max_receive_message_length", config.max_image_bytes + _MESSAGE_MARGIN),
                ("grpc.max_send_message_length", config.max_image_bytes + _MESSAGE_MARGIN),
                # Against rapid resets. A client whose calls at once are more sees some of them
                # refused, not queued: of 200 at once every second one with 100 here.
                ("grpc.max_concurrent_streams", 1_000),
                # Beyond, a connection is closed as soon as it is accepted.
                ("grpc.max_allowed_incoming_connections", self._budget.callers),
                ("grpc.server_handshake_timeout_ms", round(1000 * _HANDSHAKE_SECONDS)),
                ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
                # Against dead connections; 1 ping in 20 s is nobody's flood.
                ("grpc.max_connection_idle_ms", 300_000),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
            ],
        )
        return server, [*pools.values(), *refusal_pools]

    def _make_readers(self, config: Config) -> Mapping[str, RequestReader]:
        """Return the readers of _READERS; none where the installed gRPC allows none."""
        if not grpc_internals.is_supported():
            logger.warning("server.grpc_unsupported", extra={"version": grpc.__version__})
            return {}
        return {
            name: RequestReader(
                slots=slots,
                share=share,
                timeout_seconds=config.upload_timeout
                if name == "uploads"
                else config.request_timeout,
                yield_seconds=yield_seconds,
                until_end=name == "uploads",
                timer=self._timer,
                refuse=partial(refuse_unread, self._call_log),
            )
            for name, (slots, share, yield_seconds) in _READERS.items()
        }


def _bind(server: grpc.Server, config: Config) -> int:
    try:
        if config.tls is None:
            return server.add_insecure_port(config.listen)
        return server.add_secure_port(config.listen, _server_credentials(config.tls))
    except RuntimeError:
        msg = f"cannot listen on {config.listen}: the port is taken, or the address is not ours"
        raise ConfigError(msg) from None


def _server_credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    try:
        # gRPC would not say what is wrong with the files, nor that anything is before a call.
        check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        check.load_cert_chain(tls.certificate, tls.key, password="")
        if tls.client_ca is not None:
            check.load_verify_locations(tls.client_ca)
        client_ca = None if tls.client_ca is None else tls.client_ca.read_bytes()
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    except OSError as error:  # ssl.SSLError is one, too
        files = ", ".join(map(str, filter(None, (tls.certificate, tls.key, tls.client_ca))))
        msg = f"cannot use TLS with {files}: {error.strerror or error}"
        raise ConfigError(msg) from error
    return grpc.ssl_server_credentials(
        [pair], root_certificates=client_ca, require_client_auth=client_ca is not None
    )


def _make_guard(config: Config) -> UrlGuard:
    try:
        return UrlGuard(allow=config.allow_callback, nat64=config.nat64)
    except ValueError as error:
        msg = f"allow_callback: {error}"
        raise ConfigError(msg) from error


def _make_deliverer(config: Config, guard: UrlGuard, max_idle: int) -> HttpDeliverer:
    try:
        ssl_context = receiver_context(
            ca_file=config.callback_ca,
            cert_file=config.callback_cert,
            key_file=config.callback_key,
        )
    except CertificateFileError as error:
        raise ConfigError(str(error)) from error
    return HttpDeliverer(
        guard,
        timeout=config.callback_timeout,
        user_agent=f"picback/{metadata.version('picback')}",
        ssl_context=ssl_context,
        proxy=parse_proxy(config.callback_proxy) if config.callback_proxy else None,
        max_idle_connections=max_idle,
    )


def _tagger_loader(
    config: Config, local_tagger: LocalTaggerProcess | None
) -> Callable[[], Tagger] | None:
    """Check what the tagger is told, and return what loads it; None for none."""
    if local_tagger is not None:
        return local_tagger.loaded
    match config.tagger_in_use:
        case "clarifai":
            # Imported when chosen: it brings tens of megabytes.
            from analysis.taggers.clarifai import ClarifaiTagger  # noqa: PLC0415

            clarifai = config.clarifai
            tagger = ClarifaiTagger(
                token=clarifai.token,
                base=clarifai.base,
                insecure=clarifai.insecure,
                user_id=clarifai.user,
                app_id=clarifai.app,
                model_id=clarifai.model,
                model_version_id=clarifai.model_version,
            )
            return lambda: tagger
        case _:
            return None
