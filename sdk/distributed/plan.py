"""What a job will do, decided once and written down: which pieces, what is in them, which encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from reperio.artifacts import disk_errors, new_folder, read_folder
from reperio.errors import ConfigurationError, CorruptArtifact, FingerprintMismatch, WriterBusy
from reperio.protocols import Part, Spec
from reperio.types import Fingerprint

PLAN = "plan"
PARTS = "parts"


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of the source.

    Attributes
    ----------
    part
        Where it is, as the source says it.
    first
        Key of its first document; the others follow.
    documents, skipped
        Those with a text, and those without.
    digest
        Of ids and texts.
    """

    part: Part
    first: int
    documents: int
    skipped: int
    digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All pieces, and what is done to them.

    Attributes
    ----------
    source
        Name of the source.
    rows
        Rows in a piece.
    encoder, fingerprint
        What encodes them.
    straight
        Whether vectors go to a server and no copy is kept.
    pieces
        In the order of the source.
    """

    source: str
    rows: int
    encoder: Spec
    fingerprint: Fingerprint
    straight: bool
    pieces: tuple[Piece, ...]

    @property
    def documents(self) -> int:
        """In all pieces."""
        return sum(piece.documents for piece in self.pieces)

    def name(self, number: int) -> str:
        """Folder of a piece's embeddings: another text or encoder is another name."""
        piece = self.pieces[number]
        made = hashlib.blake2b(f"{piece.digest} {self.fingerprint.digest}".encode(), digest_size=8)
        return f"{number:06d}-{made.hexdigest()}"

    @property
    def digest(self) -> str:
        """Stands for everything that it will make."""
        names = "\n".join(self.name(number) for number in range(len(self.pieces)))
        return hashlib.blake2b(names.encode(), digest_size=16).hexdigest()

    def write(self, folder: Path) -> None:
        """Write it down."""
        with new_folder(folder / PLAN, "encoding-plan", {}) as new:
            (new / "plan.json").write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what was written down.

        Raises
        ------
        NotFound, CorruptArtifact, NewerFormat
        """
        read_folder(folder / PLAN, "encoding-plan")
        try:
            saved: dict[str, Any] = json.loads((folder / PLAN / "plan.json").read_text(encoding="utf-8"))
            kept = saved["fingerprint"]
            fields = tuple((str(name), str(value)) for name, value in kept["fields"])
            fingerprint = Fingerprint(kept["kind"], kept["model"], kept["dim"], fields)
            pieces = tuple(Piece(**piece) for piece in saved["pieces"])
            saved |= {"fingerprint": fingerprint, "pieces": pieces}
            return cls(**saved)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifact(f"{folder / PLAN} is no plan: {error}.", "Begin in a new folder.") from error

    def same_job(self, folder: Path, *, rows: int, fingerprint: Fingerprint, straight: bool) -> None:
        """Refuse to go on with another encoder, or with other settings.

        Raises
        ------
        FingerprintMismatch, ConfigurationError
        """
        if fingerprint.digest != self.fingerprint.digest:
            differ = "; ".join(self.fingerprint.differences(fingerprint))
            raise FingerprintMismatch(
                f"{folder} was begun with another encoder: {differ}.", "Use that, or a new folder."
            )
        for name, mine, given in (("rows", self.rows, rows), ("into", self.straight, straight)):
            if mine != given:
                shown = (mine, given) if name == "rows" else tuple("a server" if v else "none" for v in (mine, given))
                problem = f"{folder} was begun with {name} {shown[0]}, not {shown[1]}."
                raise ConfigurationError(problem, "Go on with that, or use a new folder.")


def told(part: Part) -> str:
    """A piece as a person reads it."""
    return ", ".join(f"{name} {value}" for name, value in part.items())


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Be the only one who runs a job in this folder.

    Raises
    ------
    WriterBusy
        If another process does.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "job.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise WriterBusy(f"A job is running in {folder}.", "Wait for it, or use another folder.") from error
    try:
        yield
    finally:
        lock.release()


def settings_of(meta: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other settings than those that a job was begun with.

    Raises
    ------
    ConfigurationError
        Naming the first that differs.
    """
    for name, value in given.items():
        if meta.get(name) != value:
            problem = f"{folder} was begun with {name} {meta.get(name)!r}, not {value!r}."
            raise ConfigurationError(problem, "Go on with that, or use a new folder.")
