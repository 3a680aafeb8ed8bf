"""The server's configuration: one frozen value, checked as a whole before anything starts."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from analysis.lemmas import DEFAULT_PIPELINE
from dispatcher import DispatcherSettings, parse_proxy
from storage.sealing import Sealer

if TYPE_CHECKING:
    from collections.abc import Mapping


_DAY: Final = 86_400
#: Ours, so that a URL or a name with spaces is refused here and not by each image.
_CLARIFAI_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
#: Slowest line over which the largest image can be uploaded.
_UPLOAD_BYTES_PER_SECOND: Final = 1_000_000
#: Smallest and largest values that make sense.
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "max_image_bytes": (1, 500_000_000),  # SQLite's and gRPC's own limits lie above
    "max_image_pixels": (1, 178_956_970),  # above, Pillow itself refuses
    "decoder_processes": (1, 64),
    "decoder_memory": (200_000_000, 64_000_000_000),
    "decoder_timeout": (0.1, 3600),
    "callback_timeout": (0.1, _DAY),
    "stop_grace": (0, _DAY),
    "request_timeout": (0.1, _DAY),
    "max_response_bytes": (1_000_000, 1 << 40),
    "limit_calls_per_second": (0, 1_000_000),
    "limit_queued_queries": (0, 1_000_000_000),
    "min_free_bytes": (0, 2**63 - 1),
}


class ConfigError(ValueError):
    """The configuration cannot work; the text says which part, and what would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClarifaiSettings:
    """How to reach Clarifai. The token is a secret and stays out of reprs."""

    token: str = field(default="", repr=False)
    #: HOST or HOST:PORT; None for Clarifai's own.
    base: str | None = None
    #: Without TLS: for a stand-in on this machine.
    insecure: bool = False
    #: The model, by its id, and that of the app that it is in and of the app's owner.
    model: str = "general-image-recognition"
    user: str = "clarifai"
    app: str = "main"
    #: None for the newest.
    model_version: str | None = None

    def __post_init__(self) -> None:
        for name in ("model", "user", "app", "model_version"):
            value = getattr(self, name)
            if value is not None and not _CLARIFAI_ID.fullmatch(value):
                msg = (
                    f"clarifai_{name} must be an id of 1 to 100 letters, digits, dots, dashes and "
                    f"underscores, not {value!r}"
                )
                raise ConfigError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """Files in PEM. With a client_ca, callers must show a certificate that it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that `picback serve` can be told. Times are in seconds."""

    listen: str = "127.0.0.1:50051"
    data: Path = Path("picback-data")
    #: "auto", "clarifai", "local" or "none".
    tagger: str = "auto"
    clarifai: ClarifaiSettings = field(default_factory=ClarifaiSettings)
    #: HOST:PORT or CIDR; see `dispatcher.UrlGuard`.
    allow_callback: tuple[str, ...] = ()
    #: Certificates (PEM) to trust receivers by, beside the public authorities'.
    callback_ca: Path | None = None
    #: A certificate (PEM) to show to receivers that ask for one.
    callback_cert: Path | None = None
    #: Its private key (PEM); None: it is in the same file.
    callback_key: Path | None = None
    #: "http://HOST:PORT" of a proxy through which receivers are reached; empty: directly.
    callback_proxy: str = ""
    #: See `dispatcher.UrlGuard`.
    nat64: bool = False
    pipeline: str = DEFAULT_PIPELINE
    #: Clarifai's limit. Source: docs.clarifai.com, "Upload Inputs".
    max_image_bytes: int = 20_000_000
    #: Clarifai's limit. Source: as above.
    max_image_pixels: int = 85_000_000
    #: Images that are decoded at once, each in a process of its own; one more that is large.
    decoder_processes: int = 2
    #: Address space of each, in bytes.
    decoder_memory: int = 448_000_000
    #: Processor time for one image.
    decoder_timeout: float = 3.5
    tls: TlsSettings | None = None
    #: Allow a plaintext port that other machines can reach.
    insecure: bool = False
    callback_timeout: float = 15.0
    #: How long calls under way may take to end when the server stops.
    stop_grace: float = 5.0
    #: How long after its beginning a call's request must have arrived; see `upload_timeout`.
    request_timeout: float = 5.0
    #: Most bytes of memory that responses take until they are read.
    max_response_bytes: int = 512_000_000
    #: Of one API key; 0 for no limit.
    limit_calls_per_second: float = 10_000.0
    #: Of one API key, those that are not final; 0 for no limit.
    limit_queued_queries: int = 1_000_000
    #: Uploads and queries are rejected while less is free in the data folder's file system, in
    #: bytes; 0: only when it is full.
    min_free_bytes: int = 128_000_000
    #: What is kept for deleting, ending work, and starting on a full disk, in bytes; 0: nothing.
    #: Not an option: no other size is better on any disk that a server should have.
    reserve_bytes: int = 64_000_000
    #: What encrypts signing secrets; without keys they are stored in clear.
    sealer: Sealer = field(default_factory=Sealer)
    dispatcher: DispatcherSettings = field(default_factory=DispatcherSettings)

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            msg = f"listen must be HOST:PORT, not {self.listen!r}"
            raise ConfigError(msg)
        if self.tls is None and not self.insecure and not _is_loopback(host):
            msg = (
                f"listen {self.listen} can be reached by other machines, and API keys would cross "
                "the network in clear: configure TLS, or allow it with insecure"
            )
            raise ConfigError(msg)
        if self.tagger not in ("auto", "clarifai", "local", "none"):
            msg = f"tagger must be auto, clarifai, local or none, not {self.tagger!r}"
            raise ConfigError(msg)
        if self.tagger == "clarifai" and not self.clarifai.token:
            msg = "tagger clarifai needs a personal access token (CLARIFAI_PAT)"
            raise ConfigError(msg)
        if self.callback_key is not None and self.callback_cert is None:
            msg = "callback_key needs callback_cert"
            raise ConfigError(msg)
        if self.callback_proxy:
            try:
                parse_proxy(self.callback_proxy)
            except ValueError as error:
                msg = f"callback_proxy {error}"
                raise ConfigError(msg) from error
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:  # nor is "not a number" in between
                msg = f"{name} must be from {least:,} to {most:,}, not {value:,}"
                raise ConfigError(msg)

    @property
    def upload_timeout(self) -> float:
        """How long after its beginning an UploadImage must have arrived.

        gRPC does not tell how much of a request has come, so there must be time for the largest.
        """
        return self.request_timeout + self.max_image_bytes / _UPLOAD_BYTES_PER_SECOND

    @property
    def tagger_in_use(self) -> str:
        """What `auto` comes to: Clarifai when there is a token, the local model otherwise."""
        if self.tagger == "auto":
            return "clarifai" if self.clarifai.token else "local"
        return self.tagger


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
