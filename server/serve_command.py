"""`picback serve`: options and variables in, one `Config` out that can refuse, then the server.

Environment variables are read here and nowhere else, by click.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from callers.secret_files import SecretFileError, read_secret
from dispatcher import DispatcherSettings
from server import allocator, descriptors, logs
from server.app import App
from server.beside import data_option, secrets_key_option
from server.config import ClarifaiSettings, Config, ConfigError, TlsSettings
from server.home_core import LOOK_SECONDS, HomeCore, allowed_cores
from server.keys_command import credentials_json, print_credentials
from server.secrets_key_file import read_sealer
from server.thread_monitor import ThreadMonitor, ending_on_failure
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.api_keys import Credentials


logger = logging.getLogger(__name__)

#: Where a first key is left, in the data folder, when nobody looks.
_FIRST_KEY: Final = "first-key.json"
#: Objects that are made before Python looks for garbage among them. Its own 700 are made by a few
#: calls, and to look took a twentieth of the time under load.
_GARBAGE: Final = 10_000


@click.command()
@click.option(
    "--listen",
    envvar="PICBACK_LISTEN",
    show_envvar=True,
    default="127.0.0.1:50051",
    help="HOST:PORT; port 0 picks a free one, and the first line printed names it.",
)
@data_option
@secrets_key_option
@click.option(
    "--tagger",
    envvar="PICBACK_TAGGER",
    show_envvar=True,
    type=click.Choice(["auto", "clarifai", "local", "none"]),
    default="auto",
    help="Who tags images. auto: Clarifai when a token is set, the local model otherwise.",
)
@click.option(
    "--allow-callback",
    envvar="PICBACK_ALLOW_CALLBACK",
    show_envvar=True,
    multiple=True,
    metavar="HOST:PORT|CIDR",
    help="A private or loopback place that may be called back; repeatable. "
    "In the variable, separated by spaces.",
)
@click.option(
    "--clarifai-pat",
    envvar=["PICBACK_CLARIFAI_PAT", "CLARIFAI_PAT"],
    show_envvar=True,
    default="",
    show_default=False,
    help="Clarifai's personal access token. Prefer the variable or the file: other users of "
    "the machine can read command lines.",
)
@click.option(
    "--clarifai-pat-file",
    envvar="PICBACK_CLARIFAI_PAT_FILE",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file that holds the token.",
)
@click.option(
    "--clarifai-base",
    envvar=["PICBACK_CLARIFAI_BASE", "CLARIFAI_GRPC_BASE"],
    show_envvar=True,
    help="HOST or HOST:PORT to reach Clarifai at, instead of its own.",
)
@click.option(
    "--clarifai-insecure",
    envvar="PICBACK_CLARIFAI_INSECURE",
    show_envvar=True,
    is_flag=True,
    help="Reach it without TLS: for a stand-in on this machine.",
)
@click.option(
    "--clarifai-model",
    envvar="PICBACK_CLARIFAI_MODEL",
    show_envvar=True,
    default=ClarifaiSettings().model,
    help="The id of Clarifai's model.",
)
@click.option(
    "--clarifai-model-version",
    envvar="PICBACK_CLARIFAI_MODEL_VERSION",
    show_envvar=True,
    help="The id of the model's version. Without it, the newest, which may change from day to day.",
)
@click.option(
    "--clarifai-user",
    envvar="PICBACK_CLARIFAI_USER",
    show_envvar=True,
    default=ClarifaiSettings().user,
    help="The id of the user whose app the model is in.",
)
@click.option(
    "--clarifai-app",
    envvar="PICBACK_CLARIFAI_APP",
    show_envvar=True,
    default=ClarifaiSettings().app,
    help="The id of the app that the model is in.",
)
@click.option(
    "--pipeline",
    envvar="PICBACK_PIPELINE",
    show_envvar=True,
    default=Config().pipeline,
    help="The spaCy pipeline that lemmas come from: an installed package, or a path.",
)
@click.option(
    "--max-image-bytes",
    envvar="PICBACK_MAX_IMAGE_BYTES",
    show_envvar=True,
    default=Config().max_image_bytes,
    help="Largest image, in bytes.",
)
@click.option(
    "--max-image-pixels",
    envvar="PICBACK_MAX_IMAGE_PIXELS",
    show_envvar=True,
    default=Config().max_image_pixels,
    help="Largest image, in pixels.",
)
@click.option(
    "--decoder-processes",
    envvar="PICBACK_DECODER_PROCESSES",
    show_envvar=True,
    default=Config().decoder_processes,
    help="Images that are decoded at once, each in a process of its own; one more that is large.",
)
@click.option(
    "--decoder-memory",
    envvar="PICBACK_DECODER_MEMORY",
    show_envvar=True,
    default=Config().decoder_memory,
    help="Most memory of such a process, in bytes of address space.",
)
@click.option(
    "--decoder-timeout",
    envvar="PICBACK_DECODER_TIMEOUT",
    show_envvar=True,
    default=Config().decoder_timeout,
    help="Seconds of processor time that decoding one image may take.",
)
@click.option(
    "--callback-ca",
    envvar="PICBACK_CALLBACK_CA",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Trust receivers whose certificates this authority (PEM) signed, too.",
)
@click.option(
    "--callback-cert",
    envvar="PICBACK_CALLBACK_CERT",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The certificate (PEM, with its chain) to show to receivers that ask for one.",
)
@click.option(
    "--callback-key",
    envvar="PICBACK_CALLBACK_KEY",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its private key (PEM), if that is in a file of its own.",
)
@click.option(
    "--callback-proxy",
    metavar="http://HOST:PORT",
    envvar="PICBACK_CALLBACK_PROXY",
    show_envvar=True,
    default="",
    help="Reach all receivers through this HTTP proxy, by CONNECT.",
)
@click.option(
    "--nat64",
    envvar="PICBACK_NAT64",
    show_envvar=True,
    is_flag=True,
    help="This network reaches IPv4 through NAT64: judge 64:ff9b:: by the address within.",
)
@click.option(
    "--callback-timeout",
    envvar="PICBACK_CALLBACK_TIMEOUT",
    show_envvar=True,
    default=Config().callback_timeout,
    help="Seconds that one attempt to call back may take as a whole.",
)
@click.option(
    "--delivery-bytes",
    envvar="PICBACK_DELIVERY_BYTES",
    show_envvar=True,
    type=click.IntRange(min=1),
    default=DispatcherSettings().delivery_bytes,
    help="Most bytes of images, in base64, in all attempts under way together.",
)
@click.option(
    "--stop-grace",
    envvar="PICBACK_STOP_GRACE",
    show_envvar=True,
    default=Config().stop_grace,
    help="Seconds that calls under way may take to end when the server stops.",
)
@click.option(
    "--request-timeout",
    envvar="PICBACK_REQUEST_TIMEOUT",
    show_envvar=True,
    default=Config().request_timeout,
    help="Seconds in which the whole request of a call must arrive; UploadImage has one more for "
    "each MB of --max-image-bytes.",
)
@click.option(
    "--max-response-bytes",
    envvar="PICBACK_MAX_RESPONSE_BYTES",
    show_envvar=True,
    default=Config().max_response_bytes,
    help="Most bytes of memory that responses take until their clients have read them.",
)
@click.option(
    "--limit-calls-per-second",
    envvar="PICBACK_LIMIT_CALLS_PER_SECOND",
    show_envvar=True,
    default=Config().limit_calls_per_second,
    help="Most calls of one API key in a second; 0 for no limit.",
)
@click.option(
    "--limit-queued-queries",
    envvar="PICBACK_LIMIT_QUEUED_QUERIES",
    show_envvar=True,
    default=Config().limit_queued_queries,
    help="Most queries of one API key that are not final; 0 for no limit.",
)
@click.option(
    "--min-free-bytes",
    envvar="PICBACK_MIN_FREE_BYTES",
    show_envvar=True,
    default=Config().min_free_bytes,
    help="Reject uploads and queries while less is free on the data folder's disk; 0: when it is full.",
)
@click.option(
    "--tls-cert",
    envvar="PICBACK_TLS_CERT",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The server's certificate (PEM). With it the port speaks TLS.",
)
@click.option(
    "--tls-key",
    envvar="PICBACK_TLS_KEY",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The certificate's private key (PEM).",
)
@click.option(
    "--tls-client-ca",
    envvar="PICBACK_TLS_CLIENT_CA",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Callers must show a certificate that this authority (PEM) signed.",
)
@click.option(
    "--insecure",
    envvar="PICBACK_INSECURE",
    show_envvar=True,
    is_flag=True,
    help="Allow a plaintext port that other machines can reach.",
)
@click.option(
    "--core",
    envvar="PICBACK_CORE",
    show_envvar=True,
    metavar="auto|any|NUMBER",
    default="auto",
    help="The processor core that all threads keep to that run Python: auto takes the calmest "
    "one, now and later; any lets the kernel spread them.",
)
@click.option(
    "--log-format",
    envvar="PICBACK_LOG_FORMAT",
    show_envvar=True,
    type=click.Choice(["text", "json"]),
    default="text",
    help="How to log to standard error.",
)
@click.option(
    "--log-level",
    envvar="PICBACK_LOG_LEVEL",
    show_envvar=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="What to log.",
)
def serve(**options: Any) -> None:
    """Run the server and its dispatcher until SIGTERM or Ctrl-C."""
    allocator.tune()
    logs.configure(level=options["log_level"], json_lines=options["log_format"] == "json")
    descriptors.raise_limit()
    with _noting_stop_signals() as noted:
        home = _home(options["core"])
        app = _start(options, home)
        monitor = ThreadMonitor()
        with ending_on_failure():
            while not select.select([noted], [], [], LOOK_SECONDS)[0]:
                home.gather()
                monitor.check()
    app.stop()


@contextmanager
def _noting_stop_signals() -> Iterator[socket.socket]:
    """Yield where a byte can be read as soon as SIGTERM or Ctrl-C has come.

    They are not blocked and waited for: numpy's threads, made when it is imported, would
    take them instead, and end the process. After the block they do end it, at once; what
    was accepted is on disk.
    """
    signals = (signal.SIGTERM, signal.SIGINT)
    noted, note = socket.socketpair()
    with noted, note:
        note.setblocking(False)  # noqa: FBT003 - its own way to say so
        signal.set_wakeup_fd(note.fileno())
        for each in signals:
            signal.signal(each, lambda *_: None)
        try:
            yield noted
        finally:
            signal.set_wakeup_fd(-1)
            for each in signals:
                signal.signal(each, signal.SIG_DFL)


def _home(core: str) -> HomeCore:
    """Return where threads that run Python belong, as option *core* says."""
    allowed = allowed_cores()
    if core in ("auto", "any"):
        return HomeCore(None, allowed=allowed if core == "auto" else frozenset())
    if core.isascii() and core.isdecimal() and int(core) in allowed:
        return HomeCore(int(core), allowed=allowed)
    cores = ", ".join(map(str, sorted(allowed))) or "none can be chosen on this system"
    msg = f"core must be auto, any, or one that this process may use ({cores}), not {core!r}"
    raise click.ClickException(msg)


def _start(options: dict[str, Any], home: HomeCore) -> App:
    try:
        app = App(_config(options))
        first_key = app.make_first_key()
        app.start()
        gc.freeze()  # models are here to stay: no need to look through them for garbage,
        gc.set_threshold(_GARBAGE)  # nor through what calls make so often
        home.gather()
        on_a_terminal = sys.stdout.isatty()
        if first_key is not None and not on_a_terminal:
            # Before the first line, so that whoever waits for that can read the file.
            _write_first_key(first_key, options["data"])
        elif options["secrets_key_file"] is not None and (options["data"] / _FIRST_KEY).exists():
            logger.warning("secrets.first_key_in_clear", extra={"file": _FIRST_KEY})
    except (ConfigError, SecretFileError, StorageError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"picback is serving on {app.address}")
    if first_key is not None and on_a_terminal:
        click.echo("This is a new data folder. Its first API key, shown only now:\n")
        print_credentials(first_key, as_json=False)
    sys.stdout.flush()
    return app


def _config(options: dict[str, Any]) -> Config:
    token_file = options["clarifai_pat_file"]
    certificate, key = options["tls_cert"], options["tls_key"]
    if (certificate is None) != (key is None):
        msg = "--tls-cert and --tls-key belong together"
        raise ConfigError(msg)
    if options["tls_client_ca"] is not None and certificate is None:
        msg = "--tls-client-ca needs --tls-cert and --tls-key"
        raise ConfigError(msg)
    return Config(
        listen=options["listen"],
        data=options["data"],
        tagger=options["tagger"],
        clarifai=ClarifaiSettings(
            token=read_secret(token_file, "token") if token_file else options["clarifai_pat"],
            base=options["clarifai_base"] or None,
            insecure=options["clarifai_insecure"],
            model=options["clarifai_model"],
            model_version=options["clarifai_model_version"] or None,
            user=options["clarifai_user"],
            app=options["clarifai_app"],
        ),
        allow_callback=options["allow_callback"],
        callback_ca=options["callback_ca"],
        callback_cert=options["callback_cert"],
        callback_key=options["callback_key"],
        callback_proxy=options["callback_proxy"],
        nat64=options["nat64"],
        pipeline=options["pipeline"],
        max_image_bytes=options["max_image_bytes"],
        max_image_pixels=options["max_image_pixels"],
        decoder_processes=options["decoder_processes"],
        decoder_memory=options["decoder_memory"],
        decoder_timeout=options["decoder_timeout"],
        tls=None
        if certificate is None
        else TlsSettings(certificate=certificate, key=key, client_ca=options["tls_client_ca"]),
        insecure=options["insecure"],
        callback_timeout=options["callback_timeout"],
        stop_grace=options["stop_grace"],
        request_timeout=options["request_timeout"],
        max_response_bytes=options["max_response_bytes"],
        limit_calls_per_second=options["limit_calls_per_second"],
        limit_queued_queries=options["limit_queued_queries"],
        min_free_bytes=options["min_free_bytes"],
        dispatcher=DispatcherSettings(delivery_bytes=options["delivery_bytes"]),
        sealer=read_sealer(options["secrets_key_file"], data=options["data"]),
    )


def _write_first_key(credentials: Credentials, data: Path) -> None:
    """Leave the key in a file that only its owner can read, never in a log."""
    path = data / _FIRST_KEY
    try:
        path.unlink(missing_ok=True)  # whatever is there may be a link, or open to others
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(credentials_json(credentials) + "\n")
    except OSError as error:
        msg = f"cannot write the first key to {path}: {error.strerror}; make one by picback keys"
        raise ConfigError(msg) from error
