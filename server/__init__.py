"""Speaks gRPC: authenticates, validates, makes the work durable, and answers at once.

Nothing here waits for a receiver or a model, but for an upload that waits a bounded time
for its tags. Of `dispatcher` it uses the front door only; `app` is the one place where
concrete parts meet.
"""
