"""The one place where concrete parts meet: built, started and stopped here, in order."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from analysis.lemmas import Lemmatizer
from analysis.pictures import PictureReader
from dispatcher import Dispatcher, HttpDeliverer, UrlGuard, new_secret
from picback.v1 import image_service_pb2, image_service_pb2_grpc
from server import reflection
from server.config import ConfigError
from server.health import HealthServicer
from server.interceptors import Interceptor
from server.keyring import Keyring
from server.paging import Paging
from server.service import ImageService
from storage import settings
from storage.api_keys import SCOPES, ApiKeys
from storage.database import Database
from storage.images import Images
from storage.queries import Queries
from storage.tags import Tags

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from analysis.taggers import Tagger
    from server.config import Config
    from storage.api_keys import Credentials

logger = logging.getLogger(__name__)

_SERVICE: Final = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name
#: Threads that answer short calls. More do not answer faster: the work holds Python's lock.
_CALL_THREADS: Final = 16
#: Threads for uploads, which wait for tags: the most uploads in memory at once.
_UPLOAD_THREADS: Final = 16
#: Threads for WatchQuery, one for each open stream.
_WATCH_THREADS: Final = 64
_REFLECTION_THREADS: Final = 4
#: What a message may have beyond an image, and how far an image may be over the limit and
#: still be told so by us: gRPC itself refuses longer messages, without our details.
_MESSAGE_MARGIN: Final = 4_000_000


def wall_clock() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class App:
    """A picback server with its dispatcher, on one data folder and one port.

    Making one opens the data folder, binds the port and loads the models; nobody is
    answered before `start`.

    Raises:
        ConfigError: The port is taken, a file cannot be read, a model is missing.
        StorageError: The data folder is in use or cannot be used.
    """

    def __init__(self, config: Config, *, clock: Callable[[], int] = wall_clock) -> None:
        self._config = config
        self._clock = clock
        self._stopping = threading.Event()
        self._database = Database.own(config.data)
        try:
            self._build(config, clock)
        except BaseException:
            self._database.close()
            raise

    def _build(self, config: Config, clock: Callable[[], int]) -> None:
        self.api_keys = ApiKeys(self._database)
        self._images = Images(self._database)
        self._queries = Queries(self._database)
        self._keyring = Keyring(self.api_keys, clock=clock)
        self._health = HealthServicer([_SERVICE])
        self._server, self._pools = self._make_server(config, clock)
        self.port = _bind(self._server, config)

        guard = UrlGuard(allow=config.allow_callback)
        self._tagger = _make_tagger(config)
        self._deliverer = HttpDeliverer(
            guard,
            timeout=config.callback_timeout,
            user_agent=f"picback/{metadata.version('picback')}",
        )
        self._dispatcher = Dispatcher(
            config.dispatcher,
            images=self._images,
            tags=Tags(self._database),
            queries=self._queries,
            api_keys=self.api_keys,
            lemmatizer=Lemmatizer(config.pipeline),
            tagger=self._tagger,
            deliverer=self._deliverer,
            clock=clock,
        )
        service = ImageService(
            images=self._images,
            queries=self._queries,
            dispatcher=self._dispatcher,
            pictures=PictureReader(max_pixels=config.max_image_pixels),
            guard=guard,
            paging=Paging(
                settings.get_or_create(
                    self._database, "page_token_secret", lambda: secrets.token_bytes(32)
                )
            ),
            max_image_bytes=config.max_image_bytes,
            most_watchers=_WATCH_THREADS,
            is_stopping=self._stopping.is_set,
            clock=clock,
        )
        image_service_pb2_grpc.add_ImageServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.add_to(
            self._server, [_SERVICE, "grpc.health.v1.Health"], self._pools["reflection"]
        )

    @property
    def address(self) -> str:
        """Where it listens: HOST:PORT, with the port that was really bound."""
        return f"{self._config.listen.rpartition(':')[0]}:{self.port}"

    def make_first_key(self) -> Credentials | None:
        """Make a key named "default" with every scope, if there has never been a key."""
        if self.api_keys.all():
            return None
        return self.api_keys.create(
            "default",
            scopes=SCOPES,
            signing_secret=new_secret(),
            expires_at=None,
            now=self._clock(),
        )

    def start(self) -> None:
        """Take up what an earlier process left, and answer calls."""
        self._keyring.start()
        self._dispatcher.start()
        self._server.start()
        self._health.set_serving(serving=True)
        logger.info(
            "server.started",
            extra={"address": self.address, "tagger": self._config.tagger_in_use},
        )

    def stop(self) -> None:
        """Refuse new calls, let those under way end, finish attempts, close the files.

        Takes at most the stop grace and one attempt's deadline. Nothing accepted is lost:
        what was not begun waits in the database for the next start.
        """
        logger.info("server.stopping")
        self._stopping.set()
        # Streams first: open ones would hold `stop` for the whole grace.
        self._health.end()
        self._queries.changes.wake_all()
        self._images.changes.wake_all()
        self._server.stop(self._config.stop_grace).wait()
        self._dispatcher.drain()
        self._deliverer.close()
        if self._tagger is not None:
            self._tagger.close()
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)
        self._keyring.stop()
        self._database.close()
        logger.info("server.stopped")

    def _make_server(
        self, config: Config, clock: Callable[[], int]
    ) -> tuple[grpc.Server, Mapping[str, ThreadPoolExecutor]]:
        pools = {
            name: ThreadPoolExecutor(threads, thread_name_prefix=f"picback-{name}")
            for name, threads in {
                "call": _CALL_THREADS,
                "upload": _UPLOAD_THREADS,
                "watch": _WATCH_THREADS,
                "reflection": _REFLECTION_THREADS,
            }.items()
        }
        interceptor = Interceptor(
            self._keyring,
            pools={
                f"/{_SERVICE}/UploadImage": pools["upload"],
                f"/{_SERVICE}/WatchQuery": pools["watch"],
            },
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
                # Against rapid resets and dead connections; 1 ping in 20 s is nobody's flood.
                ("grpc.max_concurrent_streams", 100),
                ("grpc.max_connection_idle_ms", 300_000),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
            ],
        )
        return server, pools


def _bind(server: grpc.Server, config: Config) -> int:
    try:
        if config.tls is None:
            return server.add_insecure_port(config.listen)
        return server.add_secure_port(config.listen, _server_credentials(config))
    except RuntimeError:
        msg = f"cannot listen on {config.listen}: the port is taken, or the address is not ours"
        raise ConfigError(msg) from None


def _server_credentials(config: Config) -> Any:
    tls = config.tls
    assert tls is not None  # noqa: S101 - for the type checker
    try:
        client_ca = None if tls.client_ca is None else tls.client_ca.read_bytes()
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    except OSError as error:
        msg = f"cannot read {error.filename}: {error.strerror}"
        raise ConfigError(msg) from error
    return grpc.ssl_server_credentials(
        [pair], root_certificates=client_ca, require_client_auth=client_ca is not None
    )


def _make_tagger(config: Config) -> Tagger | None:
    # Imported when chosen: each brings tens of megabytes that the other does not need.
    match config.tagger_in_use:
        case "clarifai":
            from analysis.taggers.clarifai import ClarifaiTagger  # noqa: PLC0415

            clarifai = config.clarifai
            return ClarifaiTagger(
                token=clarifai.token, base=clarifai.base, insecure=clarifai.insecure
            )
        case "local":
            from analysis.taggers.local import LocalTagger  # noqa: PLC0415

            return LocalTagger()
        case _:
            return None
