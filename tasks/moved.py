"""Update the absolute paths in MLflow's records after a store was copied or moved. Artifacts are in
the store or in HDM_STATE.

Without this a copy would write its artifacts into the original.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tasks.services import services

WAIT_SEC = 30.0
ARTIFACTS = "/.services/mlartifacts/"
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
PATHS = (("tags", "value"), ("model_version_tags", "value"))


def follow_store(root: Path) -> list[str]:
    """Rewrite every path in the store's own MLflow database that is in a store elsewhere.

    Returns:
        Addresses of the folders in which their artifacts were stored; usually none.
    """
    kept_in = services(root).parent
    path = kept_in / ".services" / "mlflow.db"
    if not path.exists() or path.stat().st_size == 0:
        return []
    # Two contexts: sqlite3's own commits or rolls back, but does not close.
    with contextlib.closing(sqlite3.connect(path, timeout=WAIT_SEC)) as database, database:
        rows = database.execute("SELECT name FROM sqlite_master WHERE type='table'")
        tables = {name for (name,) in rows}
        if "experiments" not in tables:  # MLflow has not created them yet
            return []
        earlier = _stores(database) - {kept_in.as_uri()}
        for address in earlier:
            _rewrite(database, tables, address, root, kept_in)
    return sorted(earlier)


def _stores(database: sqlite3.Connection) -> set[str]:
    """The addresses of the folders in whose `.services` experiments keep their artifacts."""
    addresses = set()
    for (location,) in database.execute("SELECT DISTINCT artifact_location FROM experiments"):
        if location and location.startswith("file://") and ARTIFACTS in location:
            address, _, _ = location.rpartition(ARTIFACTS)
            addresses.add(address)
    return addresses


def _rewrite(
    database: sqlite3.Connection, tables: set[str], address: str, root: Path, kept_in: Path
) -> None:
    path = url2pathname(urlsplit(address).path)
    places = [(*column, f"{address}/", f"{kept_in.as_uri()}/") for column in ADDRESSES]
    places += [(*column, f"{path}/", f"{root}/") for column in PATHS]
    # Inputs are data sets, whose source is JSON.
    places.append(("datasets", "dataset_source", _source(path), _source(str(root))))
    for table, column, old, new in places:
        if table in tables:
            # substr and not LIKE: paths may contain % and _, and LIKE ignores case.
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                f" WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old), old),
            )


def _source(path: str) -> str:
    """The beginning of a data set's source in that folder, as `tasks.tracking` writes it."""
    return json.dumps({"uri": f"{path}/"}).removesuffix('"}')
