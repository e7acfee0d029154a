"""Problems of the executor, before anything runs."""

from __future__ import annotations

import ipaddress
from importlib.util import find_spec
from urllib.parse import urlsplit

from hdm.errors import ConfigError
from hdm.settings import ExecutionSettings


def check_execution(execution: ExecutionSettings) -> None:
    """Raise a ConfigError if the executor cannot be used."""
    if execution.executor == "dask" and find_spec("distributed") is None:
        raise ConfigError(
            "Dask is not installed",
            where="execution.executor",
            do="pip install 'hdm-pipeline[dask]'",
        )
    if execution.address is not None:
        if execution.executor != "dask":
            raise ConfigError(
                "this is the address of a Dask cluster, and the parts are made locally",
                where=f"execution.address={execution.address}",
                do="add --executor dask, or leave the address out",
            )
        _check_reach(execution.address)


def _check_reach(address: str) -> None:
    """Refuse a way to a cluster on which strangers could send its workers code."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    if parts.scheme != "tls" and not is_here:
        raise ConfigError(
            "a cluster beyond this machine needs TLS: whoever reaches its scheduler can run any"
            " command on its workers",
            where=f"execution.address={address}",
            do="name it as tls://HOST:PORT, with certificates in Dask's settings",
        )
