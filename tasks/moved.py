"""MLflow's records of a store that was copied or moved: they hold absolute places, which are
brought to where the store is now. Artifacts lie in the store, or in HDM_STATE.

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
    """Rewrite every place in the store's own MLflow database that lies in a store elsewhere.

    Returns:
        the addresses of the folders where their artifacts were kept; mostly none.
    """
    kept_in = services(root).parent
    path = kept_in / ".services" / "mlflow.db"
    if not path.exists() or path.stat().st_size == 0:
        return []
    with contextlib.closing(sqlite3.connect(path, timeout=WAIT_SEC)) as database, database:
        tables = {
            name
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
        }
        if "experiments" not in tables:  # MLflow is about to make them
            return []
        earlier = _stores(database) - {kept_in.as_uri()}
        for address in earlier:
            _rewrite(database, tables, address, root, kept_in)
    return sorted(earlier)


def _stores(database: sqlite3.Connection) -> set[str]:
    """The addresses of the folders in whose `.services` experiments keep their artifacts."""
    found = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    return {
        location.rpartition(ARTIFACTS)[0]
        for (location,) in found
        if location and location.startswith("file://") and ARTIFACTS in location
    }


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
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                f" WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old), old),
            )


def _source(path: str) -> str:
    """How `tasks.tracking` begins the source of a data set in that folder."""
    return json.dumps({"uri": f"{path}/"}).removesuffix('"}')
