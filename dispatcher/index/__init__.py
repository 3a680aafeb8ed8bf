"""The index of all tags: which images carry a tag, and how surely.

Immutable posting lists in files (`segment`), made by merging (`writing`), before them the few
changes since (`recent`), and both as one (`tag_index`).
"""

from dispatcher.index.tag_index import Found, TagIndex

__all__ = ["Found", "TagIndex"]
