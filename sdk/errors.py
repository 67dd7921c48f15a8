"""Every error this package raises on purpose.

::

    ReperioError
    ├── InvalidInput (ValueError)         a value given by the caller is wrong
    │   ├── EmptyText                     a text with nothing to encode
    │   ├── DuplicateId                   one id twice in one call
    │   ├── ShapeError                    an array of the wrong shape, dtype, or not finite
    │   ├── FilterError                   unknown field, or a value of another type
    │   ├── ConfigurationError            a setting out of range, an unknown component
    │   └── TruncationError               a text longer than the model reads, where asked to refuse
    ├── CompositionError (TypeError)      two stages that do not fit
    ├── NotFound (LookupError)            an id, a collection or a generation that is not there
    │   └── StaleResult                   a hit read after compaction took its row away
    ├── FingerprintMismatch               an encoder that is not the one that wrote the collection
    ├── StorageError (OSError)            the disk refused
    │   ├── DiskFull
    │   ├── ReadOnly
    │   ├── WriterBusy                    another process holds the writer lease
    │   ├── CorruptArtifact               bytes on disk that are not the ones written
    │   ├── NewerFormat                   written by a newer release
    │   └── ServerUnavailable             a server that is not there, went away, or took too long
    ├── InvalidResponse                   a server's answer that is not what it was asked for
    ├── OutOfMemory (MemoryError)         not even one text fits
    ├── UnsupportedOperation              declared by a backend, never a surprise
    ├── ConnectorError                    a source failed; never shows a secret
    └── MissingDependency (ImportError)   an extra to install
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CompositionError",
    "ConfigurationError",
    "ConnectorError",
    "CorruptArtifact",
    "DiskFull",
    "DuplicateId",
    "EmptyText",
    "FilterError",
    "FingerprintMismatch",
    "InvalidInput",
    "InvalidResponse",
    "MissingDependency",
    "NewerFormat",
    "NotFound",
    "OutOfMemory",
    "ReadOnly",
    "ReperioError",
    "ServerUnavailable",
    "ShapeError",
    "StaleResult",
    "StorageError",
    "TruncationError",
    "UnsupportedOperation",
    "WriterBusy",
]


class ReperioError(Exception):
    """Base of every error this package raises on purpose.

    Parameters
    ----------
    problem
        What is wrong, naming the field and the value.
    fix
        What to do about it.
    """

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem} {fix}".strip())
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        # It may have to come back from another process.
        return type(self), (self.problem, self.fix), self.__dict__


class InvalidInput(ReperioError, ValueError):
    """A value given by the caller is wrong."""


class EmptyText(InvalidInput):
    """A text with nothing to encode."""


class DuplicateId(InvalidInput):
    """One id twice in one call."""


class ShapeError(InvalidInput):
    """An array has the wrong shape or dtype, or holds NaN or infinity."""


class FilterError(InvalidInput):
    """A filter names an unknown field, or compares it with a value of another type."""


class ConfigurationError(InvalidInput):
    """A setting is out of range, or names a component that does not exist."""


class TruncationError(InvalidInput):
    """A text is longer than the model reads, and the caller asked to be told."""


class CompositionError(ReperioError, TypeError):
    """The output of one stage is not the input of the next."""


class NotFound(ReperioError, LookupError):
    """An id, a collection or a generation that is not there."""


class StaleResult(NotFound):
    """A hit was read after ``compact()`` took its row away."""


class FingerprintMismatch(ReperioError):
    """The encoder is not the one that wrote the collection."""


class StorageError(ReperioError, OSError):
    """The disk refused."""


class DiskFull(StorageError):
    """No room left; what was acknowledged before is intact."""


class ReadOnly(StorageError):
    """A write to something opened, mounted or protected for reading."""


class WriterBusy(StorageError):
    """Another process or object holds the writer lease."""


class CorruptArtifact(StorageError):
    """The bytes on disk are not the ones that were written."""


class NewerFormat(StorageError):
    """Written by a newer release of this package."""


class ServerUnavailable(StorageError):
    """A server cannot be reached, went away, or did not answer in time; what it acknowledged before is intact."""


class InvalidResponse(ReperioError):
    """A server answered, but not with what it was asked for: no part of the answer is used."""


class OutOfMemory(ReperioError, MemoryError):
    """Not even one text fits into memory."""


class UnsupportedOperation(ReperioError):
    """The backend declares that it cannot do this."""


class ConnectorError(ReperioError):
    """A source of documents failed. The message never holds a secret."""


class MissingDependency(ReperioError, ImportError):
    """An optional dependency is absent; the message names the extra to install."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"The package {module!r} is not installed.", f"Run: pip install 'reperio[{extra}]'")
        self.module = module
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.module, self.extra), self.__dict__
