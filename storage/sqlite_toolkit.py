"""sqlite-utils, imported so that it uses `storage.driver` and loads no second SQLite library.

sqlite-utils takes pysqlite3 when that is installed and the standard library's sqlite3 otherwise,
and imports the latter in any case. While it is imported, both names stand for the driver.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from storage import driver

if TYPE_CHECKING:
    from types import ModuleType

_REPLACED: Final = ("sqlite3", "sqlite3.dbapi2", "pysqlite3", "pysqlite3.dbapi2")


def _replace(modules: dict[str, ModuleType]) -> dict[str, ModuleType]:
    """Put *modules* in place of those of the same names; return what was there."""
    before: dict[str, ModuleType] = {
        name: sys.modules.pop(name) for name in _REPLACED if name in sys.modules
    }
    sys.modules.update(modules)
    return before


_before = _replace(dict.fromkeys(_REPLACED, driver))
try:
    from sqlite_utils import Database, Migrations
finally:
    _replace(_before)

__all__ = ["Database", "Migrations"]
