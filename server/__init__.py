"""Speaks gRPC: authenticates, validates, makes the work durable, and answers at once.

Nothing here waits for a receiver or a model, but for an upload that waits a bounded time
for its tags. Of `dispatcher` it uses the front door only; `app` is the one place where
concrete parts meet.
"""

import os

# Read when grpc is imported, so set before that. Its core logs in a form of its own, a line
# for each stranger whose TLS handshake fails; what a caller or operator must know, we tell.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
