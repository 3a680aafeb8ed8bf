"""Works off what the server accepted: tags images, matches queries, calls back.

This module is the front door; what stands behind it is nobody else's business. The
package imports `storage` and `analysis`, speaks HTTP, and knows nothing of gRPC.
"""

from dispatcher.callback_url import parse_destination
from dispatcher.deliverer import HttpDeliverer
from dispatcher.dispatcher import Dispatcher
from dispatcher.proxy_tunnel import parse_proxy
from dispatcher.receiver_tls import CertificateFileError, receiver_context
from dispatcher.settings import DispatcherSettings
from dispatcher.signature import SignatureError, decode_secret, new_secret, verify
from dispatcher.steady_clock import ClockRecord, SteadyClock, boot_id, elapsed_time
from dispatcher.url_guard import CallbackUrlError, ForbiddenCallbackError, UrlGuard

__all__ = [
    "CallbackUrlError",
    "CertificateFileError",
    "ClockRecord",
    "Dispatcher",
    "DispatcherSettings",
    "ForbiddenCallbackError",
    "HttpDeliverer",
    "SignatureError",
    "SteadyClock",
    "UrlGuard",
    "boot_id",
    "decode_secret",
    "elapsed_time",
    "new_secret",
    "parse_destination",
    "parse_proxy",
    "receiver_context",
    "verify",
]
