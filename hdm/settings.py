"""Settings: frozen models whose fields declare whether a digest covers them.

Each package has its own in `settings.py`; `hdm.config` composes them into a pipeline. A field is
one of

    name: type = default                    part of every digest
    name: type = runtime(default)           part of no digest: it does not change the result
    name: type = since("0.2.0", default)    added in 0.2.0: part of a digest unless at its default
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from hdm import values


@dataclass(frozen=True)
class Covered:
    """How digests treat a field.

    Args:
        always: digests include its value, whatever it is.
        since: the version that added it. Earlier versions worked as its default does, so the
            default is left out, and digests of existing outputs do not change.
    """

    always: bool = False
    since: str | None = None

    def holds(self, value: Any, default: Any) -> bool:
        """Whether a digest includes this value of the field."""
        return self.always or (self.since is not None and value != default)


ALWAYS = Covered(always=True)
NEVER = Covered()
_KEY = "digest"


def runtime(default: Any, **constraints: Any) -> Any:
    """A field that does not change the result (workers, devices, batches of data stages)."""
    return Field(default, json_schema_extra={_KEY: None}, **constraints)


def since(version: str, default: Any, **constraints: Any) -> Any:
    """A field that a version of this package added after outputs existed."""
    return Field(default, json_schema_extra={_KEY: version}, **constraints)


def covered(field: FieldInfo) -> Covered:
    """How digests cover a field."""
    marks = field.json_schema_extra
    if not isinstance(marks, dict) or _KEY not in marks:
        return ALWAYS
    version = marks[_KEY]
    return NEVER if version is None else Covered(since=str(version))


class Settings(BaseModel):
    """Frozen; unknown keys are refused."""

    # Docstrings of fields become the help of command-line options (`hdm.options`).
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def result_fields(self) -> dict[str, Any]:
        """The fields that change the result, as plain JSON values, for a digest."""
        found = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if covered(field).holds(value, field.default):
                found[name] = _plain(value)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.result_fields()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


class ExecutionSettings(Settings):
    """Where the parts of data stages and of generated images are made. It changes no result."""

    executor: Literal["local", "dask"] = runtime("local")
    """local: on this machine. dask: on a cluster of Dask, which needs the package's extra `dask`;
    every worker has to see the store.
    """
    processes: values.Workers | None = runtime(None)
    """Number of processes that make parts at the same time, each with one thread. None: with local,
    the run's own process makes them, and its threads decode pictures ahead; with dask, one for each
    core. A cluster with an address has its own number.
    """
    address: str | None = runtime(None)
    """Address of a Dask scheduler, as tcp://127.0.0.1:8786; beyond this machine tls://… alone, with
    Dask's own settings of certificates. None: a cluster of this machine is started for the run.
    """
    deadline_sec: values.Seconds | None = runtime(None)
    """On a cluster, another worker too makes a part that takes longer; the first result counts.
    None: wait.
    """


class WithExecution(Protocol):
    """The part of a pipeline that sets how much of the machine it uses."""

    @property
    def threads(self) -> int | None: ...
    @property
    def execution(self) -> ExecutionSettings: ...
