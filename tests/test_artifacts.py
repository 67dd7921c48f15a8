"""A folder is whole or absent, and says when its bytes have changed."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from reperio import artifacts
from reperio.artifacts import disk_errors, loading, new_folder, read_folder, replace_text, when_filled
from reperio.errors import CorruptArtifact, DiskFull, NewerFormat, NotFound, ReadOnly, StorageError


def write(path: Path, text: str = "hello") -> None:
    with new_folder(path, "thing", {"a": 1}) as folder:
        (folder / "data.txt").write_text(text)


def test_a_folder_is_written_and_read(tmp_path: Path) -> None:
    write(tmp_path / "x")
    assert read_folder(tmp_path / "x", "thing") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def nest(path: Path, *names: str) -> None:
    with new_folder(path, "thing", {"a": 1}) as folder:
        (folder / "data.txt").write_text(path.name)
        if names:
            nest(folder / names[0], *names[1:])


def test_nothing_reaches_the_disk_before_a_folder_that_is_awaited_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, sync = list[str](), artifacts.sync

    def noted(path: Path) -> None:
        told.append(path.name.rsplit(".", 2)[0] if path.is_dir() else f"{path.parent.name}/{path.name}")
        sync(path)

    nest(tmp_path / "plain", "b", "c")
    monkeypatch.setattr(artifacts, "sync", noted)
    with when_filled(tmp_path / "x", lambda: told.append("filled")):
        nest(tmp_path / "x", "b", "c")
        nest(tmp_path / "other")
    assert told[:7] == ["filled", "c/data.txt", "c/manifest.json", "c", "b/data.txt", "b/manifest.json", "b"]
    assert len(told) == 7 + 4 + 4  # the folder itself and its parent, then the other
    for names in ("", "b", "b/c"):
        assert read_folder(tmp_path / "x" / names, "thing") == {"a": 1}
        mine, plain = (sorted(p.name for p in (tmp_path / at / names).iterdir()) for at in ("x", "plain"))
        assert mine == plain


def test_a_folder_inside_that_cannot_be_sealed_takes_the_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(artifacts, "sync", full)
    with pytest.raises(DiskFull, match=r"x/b|x\..*/b"), when_filled(tmp_path / "x", lambda: None):
        nest(tmp_path / "x", "b")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "x", "thing", {}) as folder:
            (folder / "data.txt").write_text("half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "x")
    with pytest.raises(StorageError, match="exists already"):
        write(tmp_path / "x", "other")
    assert (tmp_path / "x" / "data.txt").read_text() == "hello"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_place_that_cannot_be_made_is_named() -> None:
    with pytest.raises(StorageError, match="/proc/absent/x cannot be made: No such file or directory"):
        write(Path("/proc/absent/x"))


def test_of_two_writers_the_slower_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    def slow() -> None:
        with new_folder(tmp_path / "x", "thing", {}):
            write(tmp_path / "x")

    with pytest.raises(StorageError, match="x is in the way of a folder"):
        slow()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert read_folder(tmp_path / "x", "thing") == {"a": 1}


def damage(path: Path, kind: str) -> None:
    data, manifest = path / "data.txt", path / "manifest.json"
    if kind == "altered":
        data.write_text("jello")
    elif kind == "truncated":
        data.write_text("hell")
    elif kind == "missing":
        data.unlink()
    elif kind == "manifest truncated":
        manifest.write_text(manifest.read_text()[:-10])
    else:
        manifest.write_text("[]")


def test_any_byte_altered_in_a_manifest_is_found(tmp_path: Path) -> None:
    write(tmp_path / "x")
    manifest = tmp_path / "x" / "manifest.json"
    data = manifest.read_bytes()
    for at in range(len(data)):
        for bit in (1, 2, 16, 128):
            manifest.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            try:
                assert read_folder(tmp_path / "x", "thing") == {"a": 1}  # between two values, where nothing is said
            except (CorruptArtifact, NewerFormat):
                continue


@pytest.mark.parametrize("kind", ["altered", "truncated", "missing", "manifest truncated", "manifest replaced"])
def test_damage_is_found_and_named(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "x")
    damage(tmp_path / "x", kind)
    with pytest.raises(CorruptArtifact, match="x"):
        read_folder(tmp_path / "x", "thing")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "null",
        '{"format": true}',
        '{"format": "1", "kind": "thing", "meta": {}, "files": {}}',
        '{"format": 1, "kind": "thing", "meta": {}, "files": {}, "sha256": "0"}',
        '{"format": 1e999}',
        "\ufeff{}",
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "x")
    (tmp_path / "x" / "manifest.json").write_text(text)
    with pytest.raises(CorruptArtifact, match=r"manifest\.json"):
        read_folder(tmp_path / "x", "thing")


@pytest.mark.parametrize("name", ["../data.txt", "/etc/hostname", "a/b/manifest.json", "inner/data.txt", "n" * 300, ""])
@pytest.mark.parametrize("checksums", [True, False])
def test_a_manifest_names_files_of_its_own_folder_only(tmp_path: Path, name: str, checksums: bool) -> None:
    write(tmp_path / "x")
    manifest = tmp_path / "x" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["files"][name] = told["files"]["data.txt"]
    manifest.write_text(artifacts.sealed(told))
    with pytest.raises(CorruptArtifact, match="no manifest of format"):
        read_folder(tmp_path / "x", "thing", checksums=checksums)


def test_a_file_that_was_not_saved_is_not_taken_for_part_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "x")
    (tmp_path / "x" / ".DS_Store").touch()
    read_folder(tmp_path / "x", "thing")
    (tmp_path / "x" / "cuts.npy").touch()
    with pytest.raises(CorruptArtifact, match=r"cuts\.npy, which was not saved"):
        read_folder(tmp_path / "x", "thing")


def test_an_inner_folder_is_vouched_for(tmp_path: Path) -> None:
    with new_folder(tmp_path / "outer", "outer", {}) as folder:
        write(folder / "inner")
    read_folder(tmp_path / "outer", "outer")
    (tmp_path / "outer" / "inner" / "manifest.json").unlink()
    with pytest.raises(CorruptArtifact, match="inner"):
        read_folder(tmp_path / "outer", "outer")


def test_other_kinds_newer_formats_and_absent_folders_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "x")
    with pytest.raises(CorruptArtifact, match="a thing, not a bench"):
        read_folder(tmp_path / "x", "bench")
    manifest = tmp_path / "x" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": artifacts.FORMAT + 1}))
    with pytest.raises(NewerFormat, match="Upgrade"):
        read_folder(tmp_path / "x", "thing")
    with pytest.raises(NotFound):
        read_folder(tmp_path / "y", "thing")
    with pytest.raises(NotFound, match="too long"):
        read_folder("x" * 300, "thing")


def test_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_text(tmp_path / "CURRENT", "old")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifacts, "sync", full)
    with pytest.raises(DiskFull, match="Free some space"):
        replace_text(tmp_path / "CURRENT", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["CURRENT"]
    assert (tmp_path / "CURRENT").read_text() == "old"


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (OSError(errno.ENOSPC, "full"), DiskFull),
        (OSError(errno.EROFS, "read-only"), ReadOnly),
        (OSError(errno.EIO, "broken"), StorageError),
        (OSError(errno.EMFILE, "too many"), StorageError),
        (OSError(errno.ENOTEMPTY, "not empty"), StorageError),
        (OSError(errno.ECHILD, "strange"), ChildProcessError),
        (sqlite3.OperationalError("database or disk is full"), DiskFull),
        (sqlite3.OperationalError("attempt to write a readonly database"), ReadOnly),
        (sqlite3.OperationalError("database is locked"), StorageError),
        (sqlite3.OperationalError("no such table: x"), StorageError),
        (sqlite3.DatabaseError("file is not a database"), CorruptArtifact),
        (NotFound("x"), NotFound),
    ],
)
def test_refusals_of_the_disk_say_what_to_do(tmp_path: Path, raised: Exception, wanted: type[Exception]) -> None:
    with pytest.raises(wanted), disk_errors(tmp_path):
        raise raised


@pytest.mark.parametrize(
    ("raised", "damaged"),
    [
        *((OSError(code, "no"), False) for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)),
        (RuntimeError(f"could not open x for reading: {os.strerror(errno.EMFILE)}"), False),  # as FAISS says it
        (RuntimeError(f"read error in x: 155 != 3200 ({os.strerror(errno.EMFILE)})"), True),  # of an older call
        (PermissionError(errno.EACCES, "no"), True),
        (OSError(errno.EIO, "broken"), True),
        (OSError("half a file"), True),
        (FileNotFoundError(errno.ENOENT, "gone"), True),
    ],
)
def test_what_cannot_be_opened_is_not_called_damaged(tmp_path: Path, raised: Exception, damaged: bool) -> None:
    with pytest.raises(StorageError) as told, loading(tmp_path, "thing"):
        raise raised
    assert isinstance(told.value, CorruptArtifact) == damaged
    assert not damaged or str(told.value).endswith(". Rebuild it.")
