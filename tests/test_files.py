"""Writing: whole or not at all, one process at a time, nowhere but where it belongs."""

import multiprocessing
import os
import resource
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litemed.runtime.errors import OutputError
from litemed.runtime.files import (
    FolderLock,
    LockedError,
    atomic_write,
    make_folder,
    open_input,
    output_path,
    remove_leftovers,
    same_name_key,
    sha256_of_file,
)

OLD, NEW = b"old", b"new"
FORK = multiprocessing.get_context("fork")


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_appears_when_the_block_ends_and_nothing_else_does(durable, tmp_path):
    path = tmp_path / "a.npz"
    for before in (None, NEW):
        with atomic_write(path, durable=durable) as file:
            file.write(NEW)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == NEW
        assert names(tmp_path) == {"a.npz"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_what_was_there(error, tmp_path):
    (tmp_path / "a.npz").write_bytes(OLD)
    for name in ("a.npz", "b.npz"):
        with pytest.raises(error), atomic_write(tmp_path / name) as file:  # noqa: PT012
            file.write(NEW)
            raise error
    assert names(tmp_path) == {"a.npz"}
    assert (tmp_path / "a.npz").read_bytes() == OLD


def write_half_and_hang(path: Path, writing: Event) -> None:
    with FolderLock(path.parent, path.name) as lock, atomic_write(path) as file:
        lock.mark()
        file.write(b"half")
        file.flush()
        writing.set()
        time.sleep(60)


def test_a_kill_leaves_what_was_there_and_its_traces_can_be_removed(tmp_path):
    path = tmp_path / "a"
    for name in "ab":
        (tmp_path / name).write_bytes(OLD)
    writing = FORK.Event()
    process = FORK.Process(target=write_half_and_hang, args=(path, writing))
    process.start()
    assert writing.wait(60)
    with pytest.raises(LockedError), FolderLock(tmp_path, "a"):
        pass
    process.kill()
    process.join()
    assert path.read_bytes() == OLD
    hidden = names(tmp_path) - {"a", "b"}
    assert len(hidden) == 2
    assert all(name.startswith(".litemed-") for name in hidden)
    remove_leftovers(tmp_path / "b")
    assert names(tmp_path) - {"a", "b"} == hidden
    with FolderLock(tmp_path, "a") as lock:
        assert lock.abandoned
        remove_leftovers(path)
    assert names(tmp_path) == {"a", "b"}


def test_a_full_disk_or_a_failing_fsync_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(OLD)

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with (
            pytest.raises(OutputError, match="cannot be written: File too large"),
            atomic_write(path) as file,
        ):
            file.write(bytes(10**6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.setattr(os, "fsync", fail)  # no file system at hand does so on demand
    with pytest.raises(OutputError, match="a: cannot be written: Input/output"), atomic_write(path) as file:
        file.write(NEW)
    assert names(tmp_path) == {"a"}
    assert path.read_bytes() == OLD


def test_what_is_no_plain_file_is_neither_followed_nor_replaced(tmp_path):
    (tmp_path / "elsewhere").write_bytes(OLD)
    (tmp_path / "a").symlink_to("elsewhere")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    for name, why in {
        "a": "is a link",
        "dangling": "is a link",
        "folder": "is a link, folder or device",
        "none/a": "cannot be written: No such file",
    }.items():
        with pytest.raises(OutputError, match=f"{name}: {why}"), atomic_write(tmp_path / name) as file:
            file.write(NEW)
    assert (tmp_path / "elsewhere").read_bytes() == OLD
    assert names(tmp_path) == {"elsewhere", "a", "dangling", "folder"}


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").touch()
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(OutputError, match="cannot be made a folder"):
            make_folder(path)
    for _ in range(2):
        make_folder(tmp_path / "b" / "c")
    assert (tmp_path / "b" / "c").is_dir()


@given(st.text(st.characters(exclude_categories=[]), max_size=300))
def test_any_name_ends_up_directly_in_the_folder_or_is_refused_in_one_line(name):
    try:
        path = output_path(Path("/out"), name, ".npz")
    except OutputError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert (path.parent, path.name) == (Path("/out"), f"{name}.npz")
        assert len(os.fsencode(path.name)) <= 255


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "/a", "a\nb", "a\0b", ".hidden", "a" * 252, "ä" * 126]
)
def test_a_name_that_leads_elsewhere_or_that_no_file_can_have_is_refused(name):
    with pytest.raises(OutputError, match="rename the case"):
        output_path(Path("/out"), name, ".npz")


@pytest.mark.parametrize(
    ("one", "other"), [("a", "A"), ("straße", "STRASSE"), ("\u00e9", "e\u0301"), ("É", "e\u0301")]
)
def test_names_that_some_file_system_takes_for_one_have_one_key(one, other):
    assert same_name_key(one) == same_name_key(other)
    assert same_name_key(one) != same_name_key(one + "x")


def test_a_lock_keeps_others_out_until_it_is_released_and_leaves_nothing(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(LockedError, match="another process is working on it"), FolderLock(tmp_path):
            pass
        with FolderLock(tmp_path, "a"), FolderLock(tmp_path, "b"):
            pass
    assert names(tmp_path) == set()


def test_a_lock_is_abandoned_if_its_holder_was_killed_after_it_began_to_write(tmp_path):
    with FolderLock(tmp_path, "a"):
        (path,) = tmp_path.iterdir()
    for content in (b"", b"1"):
        path.write_bytes(content)  # as a kill leaves it
        with FolderLock(tmp_path, "a") as lock:
            assert lock.abandoned == bool(content)


def test_a_lock_that_cannot_be_made_or_is_a_link_is_refused(tmp_path):
    with FolderLock(tmp_path):
        (lock,) = names(tmp_path)
    (tmp_path / lock).symlink_to(tmp_path / "elsewhere")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(OutputError, match="cannot be locked"), FolderLock(folder):
            pass
    assert not (tmp_path / "elsewhere").exists()


def count_up(path: Path, times: int) -> None:
    for _ in range(times):
        with FolderLock(path.parent, "counter", wait=True):
            number = int(path.read_text())
            with atomic_write(path, durable=False) as file:
                file.write(str(number + 1).encode())


def test_processes_that_count_under_a_lock_lose_nothing(tmp_path):
    (tmp_path / "counter").write_text("0")
    processes = [FORK.Process(target=count_up, args=(tmp_path / "counter", 25)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "counter").read_text() == "100"
    assert names(tmp_path) == {"counter"}


def test_a_device_or_pipe_that_a_file_of_a_stranger_names_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe.npz")
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a plain file"):
            open_input(path)
        with pytest.raises(OSError, match="not a plain file"):
            sha256_of_file(path)
    (tmp_path / "link").symlink_to(whole := tmp_path / "whole")
    whole.write_bytes(b"abc")
    with open_input(tmp_path / "link") as file:
        assert file.read() == b"abc"
