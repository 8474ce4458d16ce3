"""Files that anybody may have made."""

import os
import socket

import pytest

from shortv_export.errors import ShortVError
from shortv_export.files import file_sha256, open_regular, read_json, read_regular


def make(kind, path):
    """Something at `path` that is no file of its folder; returns what the error says."""
    if kind == "pipe":
        os.mkfifo(path)
        return "not a regular file"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        return "cannot read"
    if kind == "folder":
        path.mkdir()
        return "not a regular file"
    if kind == "loop":
        path.symlink_to(path.name)
        return "cannot read"
    if kind == "nowhere":
        path.symlink_to("gone")
        return "does not exist"
    target = {"device": "/dev/zero", "outside": "/etc/hostname", "parent": "../secret"}[kind]
    (path.parent.parent / "secret").write_text("secret")
    path.symlink_to(target)
    return "not a regular file" if kind == "device" else "link out of its folder"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "loop", "nowhere", "device", "outside", "parent"])
@pytest.mark.parametrize(
    "read", [read_json, file_sha256, lambda path, folder: read_regular(path, folder=folder, most=99)]
)
def test_what_is_no_file_of_the_folder_is_refused_without_waiting(tmp_path, kind, read):
    folder = tmp_path / "folder"
    folder.mkdir()
    reason = make(kind, folder / "file")
    if kind == "device":
        reason = "link out of its folder"
    with pytest.raises(ShortVError, match=reason):
        read(folder / "file", folder=folder)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/dev/stdin"])
def test_devices_are_refused_wherever_a_file_may_lie(path):
    with pytest.raises(ShortVError, match=r"not a regular file|cannot read"), open_regular(path) as file:
        raise ShortVError(f"cannot read {file.read(1)}")


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", most=5) == b"12345"
    with pytest.raises(ShortVError, match="larger than 4 bytes"):
        read_regular(tmp_path / "file", most=4)


def test_links_inside_the_folder_and_to_the_blobs_of_a_snapshot_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("blob")
    (snapshot / "file").symlink_to("../../blobs/1")
    (snapshot / "other").symlink_to("file")
    for name in ("file", "other"):
        assert read_regular(snapshot / name, folder=snapshot, most=9) == b"blob"


@pytest.mark.parametrize("name", ["a" * 300, "null\0character"])
def test_impossible_names(tmp_path, name):
    with pytest.raises(ShortVError, match="cannot read"):
        read_regular(tmp_path / name, most=1)
