"""The loopback Hub: unmodified clients use it, and its state is compared with what they did."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from shortv_export.loopback import LoopbackHub, Request

REPO = "loopback/model"
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
CARD = b"---\nlicense: mit\nbase_model: acme/base\ntags:\n- shortv\n---\n# A model\n"


@pytest.fixture(autouse=True)
def plain_lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub without errors at the end of the test."""
    with LoopbackHub() as hub:
        yield hub
        assert hub.errors == []


@pytest.fixture
def strict_hub() -> Iterator[LoopbackHub]:
    """A Hub whose `errors` the test checks itself."""
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


def add(path: str, content: bytes | Path) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def counted(hub: LoopbackHub, method: str, part: str) -> list[Request]:
    return [request for request in hub.requests if request.method == method and part in request.path]


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def post(hub: LoopbackHub, path: str, body: bytes, token: str | None = None) -> tuple[int, dict]:
    request = urllib.request.Request(hub.url + path, data=body, method="POST")
    request.add_header("Authorization", f"Bearer {token or hub.token}")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# Publishing


def test_a_commit_carries_regular_and_lfs_files(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(WEIGHTS)
    api.create_repo(REPO)
    before = hub.commits(REPO)
    info = api.create_commit(
        REPO,
        [add("README.md", CARD), add("model.safetensors", weights), add("sub/notes.txt", b"hello")],
        commit_message="Publish",
        commit_description="why",
        parent_commit=before[0].sha,
    )
    files = hub.files(REPO)
    assert files.pop(".gitattributes")
    assert files == {"README.md": CARD, "model.safetensors": WEIGHTS, "sub/notes.txt": b"hello"}
    head, *rest = hub.commits(REPO)
    assert (head.sha, head.parent, head.message, head.description) == (
        info.oid,
        before[0].sha,
        "Publish",
        "why",
    )
    assert rest == before
    assert [head.files[path].lfs for path in ("README.md", "model.safetensors")] == [False, True]
    assert head.files["sub/notes.txt"].oid == blob_id(b"hello")
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(WEIGHTS)}\n"
    assert head.files["model.safetensors"].oid == blob_id(pointer.encode())
    assert [r.received for r in hub.requests if r.method == "PUT"] == [len(WEIGHTS)]


def test_unchanged_files_are_not_committed_again(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    contents = {"config.json": b"{}", "model.safetensors": WEIGHTS, "empty.bin": b""}
    for _ in range(2):
        api.create_commit(REPO, [add(*item) for item in contents.items()], commit_message="Publish")
    assert len(hub.commits(REPO)) == 2
    assert len([r for r in hub.requests if r.method == "PUT"]) == 1


def test_deleting_files_and_folders(hub: LoopbackHub, api: HfApi) -> None:
    hub.create_repo(REPO, files={"a.txt": b"a", "b.txt": b"b", "dir/c.txt": b"c", "dir/d/e.txt": b"e"})
    operations = [CommitOperationDelete("a.txt"), CommitOperationDelete("dir/")]
    api.create_commit(REPO, operations, commit_message="Delete")
    assert set(hub.files(REPO)) == {".gitattributes", "b.txt"}
    with pytest.raises(EntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("a.txt")], commit_message="Again")


def test_a_stale_parent_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    stale = hub.create_repo(REPO)
    ours = hub.commit(REPO, {"theirs.txt": b"theirs"}, "Somebody else's")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(REPO, [add("a.txt", b"a")], commit_message="Late", parent_commit=stale)
    assert caught.value.response.status_code == 412
    assert hub.commits(REPO)[0].sha == ours


def test_an_existing_repository(hub: LoopbackHub, api: HfApi) -> None:
    first = api.create_repo(REPO, private=True)
    assert api.create_repo(REPO, exist_ok=True) == first == f"{hub.url}/{REPO}"
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo(REPO)
    assert caught.value.response.status_code == 409
    assert api.repo_info(REPO).private
    api.update_repo_settings(REPO, private=False)
    assert HfApi(endpoint=hub.url, token=False).repo_info(REPO).private is False
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)


def test_a_pull_request(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_token("hf_guest", "guest", "write")
    head = hub.create_repo(REPO, files={"config.json": b"{}"})
    guest = HfApi(endpoint=hub.url, token="hf_guest")
    operations = [add("config.json", b'{"a": 1}'), add("model.safetensors", WEIGHTS)]
    info = guest.create_commit(REPO, operations, commit_message="Offer", create_pr=True)
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert hub.commits(REPO)[0].sha == head
    assert hub.commits(REPO, "refs/pr/1")[0].sha == info.oid
    assert hub.files(REPO, "refs/pr/1")["model.safetensors"] == WEIGHTS
    (discussion,) = api.get_repo_discussions(REPO, discussion_type="pull_request")
    assert (discussion.num, discussion.author, discussion.status) == (1, "guest", "open")
    assert api.list_repo_refs(REPO, include_pull_requests=True).pull_requests[0].target_commit == info.oid
    details = api.get_discussion_details(REPO, 1)
    assert [event.oid for event in details.events if event.type == "commit"] == [info.oid]
    draft = api.create_pull_request(REPO, title="Empty")
    api.create_commit(REPO, [add("x.txt", b"x")], commit_message="Fill", revision=draft.git_reference)
    assert hub.files(REPO, "refs/pr/2")["x.txt"] == b"x"


def test_weights_are_copied_between_repositories_on_the_server(hub: LoopbackHub, api: HfApi) -> None:
    revision = hub.create_repo("acme/base", files={"model.safetensors": WEIGHTS, "config.json": b"{}"})
    api.create_repo(REPO)
    copies = [
        CommitOperationCopy(name, name, src_repo_id="acme/base", src_repo_type="model", src_revision=revision)
        for name in ("model.safetensors", "config.json")
    ]
    api.create_commit(REPO, copies, commit_message="Copy")
    assert hub.files(REPO) == hub.files("acme/base")
    assert hub.commits(REPO)[0].files == hub.commits("acme/base")[0].files
    assert sum(request.received for request in hub.requests) < 4096


def test_copying_within_a_repository(hub: LoopbackHub, api: HfApi) -> None:
    hub.create_repo(REPO, files={"a.safetensors": WEIGHTS})
    api.create_commit(REPO, [CommitOperationCopy("a.safetensors", "b.safetensors")], commit_message="Copy")
    assert hub.files(REPO)["b.safetensors"] == WEIGHTS


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        (b"---\ntags: [a\n---\n", "could not be parsed"),
        (b"---\nbase_model: not/a/model\n---\n", "base_model"),
        (b"---\ntags: one\n---\n", "tags"),
        (b"---\nlicense: MIT\n---\n", '"license" must be one of'),
    ],
)
def test_a_card_with_invalid_metadata_is_refused(hub: LoopbackHub, api: HfApi, card: bytes, complaint: str) -> None:
    api.create_repo(REPO)
    with pytest.raises(ValueError, match=complaint):
        api.upload_file(repo_id=REPO, path_or_fileobj=card, path_in_repo="README.md")
    assert "README.md" not in hub.files(REPO)


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ("", {"a.png", "config.json", "sub/b.png", "sub/deep/c.txt"}),
        ("# pictures\n*.png\n", {"config.json", "sub/deep/c.txt"}),
        ("/*.json\nsub/", {"a.png"}),
        ("*\n!config.json", {"config.json"}),
        ("sub/deep\n", {"a.png", "config.json", "sub/b.png"}),
        ("/a.png\nb.png/\n", {"config.json", "sub/b.png", "sub/deep/c.txt"}),
    ],
)
def test_the_client_leaves_out_what_gitignore_names(hub: LoopbackHub, api: HfApi, lines: str, kept: set[str]) -> None:
    names = {"a.png", "config.json", "sub/b.png", "sub/deep/c.txt"}
    hub.create_repo(REPO, files={".gitignore": lines.encode(), "old.png": b"old"})
    api.create_commit(REPO, [add(name, name.encode()) for name in names], commit_message="x")
    assert set(hub.files(REPO)) - {".gitattributes", ".gitignore", "old.png"} == kept
    # One that comes with the commit counts instead.
    api.create_commit(REPO, [add(".gitignore", b"new\n"), add("new", b"x"), add("n.png", b"x")], commit_message="y")
    assert {"new", "n.png"} & set(hub.files(REPO)) == {"n.png"}


def test_a_card_without_metadata_draws_a_warning(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(repo_id=REPO, path_or_fileobj=b"# Title\n", path_in_repo="README.md")


def test_old_names_lead_to_the_new_one(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.create_repo(REPO, files={"config.json": b"{}"})
    api.move_repo(REPO, "loopback/renamed")
    api.move_repo("loopback/renamed", "loopback/Again")
    for name in (REPO, "loopback/renamed", "loopback/Again", "LOOPBACK/again"):
        assert api.model_info(name).id == "loopback/Again"
        path = api.hf_hub_download(name, "config.json", local_dir=tmp_path / name)
        assert Path(path).read_bytes() == b"{}"
        api.upload_file(repo_id=name, path_or_fileobj=name.encode(), path_in_repo="name.bin")
        assert hub.files("loopback/Again")["name.bin"] == name.encode()
        with pytest.raises(HfHubHTTPError, match="409"):
            api.create_repo("loopback/AGAIN")
    assert list(hub.repos) == ["loopback/Again"]


# Who may do what


def test_tokens(hub: LoopbackHub) -> None:
    hub.add_token("hf_reader", "loopback", "read")
    hub.add_token("hf_member", "member", "write", orgs=("loopback",))
    hub.create_repo(REPO)

    def status(token: str | bool) -> int | None:
        api = HfApi(endpoint=hub.url, token=token)
        try:
            api.create_commit(REPO, [add(f"{token}.txt", b"x")], commit_message="Write")
        except HfHubHTTPError as error:
            return error.response.status_code
        return None

    assert [status(token) for token in ("hf_unknown", False, "hf_reader")] == [401, 401, 403]
    assert set(hub.files(REPO)) == {".gitattributes"}
    assert status("hf_member") is None
    reader = HfApi(endpoint=hub.url, token="hf_reader")
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert HfApi(endpoint=hub.url, token="hf_member").whoami()["orgs"][0]["name"] == "loopback"
    with pytest.raises(HfHubHTTPError):
        HfApi(endpoint=hub.url, token="hf_unknown").whoami()
    reader.auth_check(REPO)
    with pytest.raises(HfHubHTTPError):
        reader.auth_check(REPO, write=True)
    with pytest.raises(HfHubHTTPError) as caught:
        reader.create_repo("loopback/other")
    assert caught.value.response.status_code == 403


def test_private_and_gated_repositories(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.add_token("hf_stranger", "stranger", "write")
    hub.create_repo("loopback/secret", private=True, files={"a.txt": b"a"})
    hub.create_repo("loopback/gated", gated="manual", files={"a.txt": b"a"})
    assert api.hf_hub_download("loopback/secret", "a.txt", cache_dir=tmp_path)
    for token, code in (("hf_stranger", 404), (False, 401)):
        outsider = HfApi(endpoint=hub.url, token=token)
        with pytest.raises(RepositoryNotFoundError) as caught:
            outsider.repo_info("loopback/secret")
        assert caught.value.response.status_code == code
        with pytest.raises(RepositoryNotFoundError):
            outsider.hf_hub_download("loopback/secret", "a.txt", cache_dir=tmp_path / "none")
        assert outsider.repo_info("loopback/gated").gated == "manual"
        with pytest.raises(GatedRepoError):
            outsider.hf_hub_download("loopback/gated", "a.txt", cache_dir=tmp_path / "none")
        with pytest.raises(GatedRepoError):
            outsider.auth_check("loopback/gated")


# Reading


def test_downloads_equal_what_the_hub_holds(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(WEIGHTS)
    hub.create_repo(REPO, files={"config.json": b"{}", "model.safetensors": source, "sub/ünï code.txt": b"u"})
    folder = Path(api.snapshot_download(REPO, cache_dir=tmp_path / "cache"))
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == hub.files(REPO)
    checked = api.verify_repo_checksums(REPO, cache_dir=tmp_path / "cache")
    assert (checked.checked_count, checked.mismatches, checked.missing_paths) == (4, [], [])
    one = api.hf_hub_download(REPO, "model.safetensors", local_dir=tmp_path / "local")
    assert Path(one).read_bytes() == WEIGHTS
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "missing.txt", cache_dir=tmp_path / "cache")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "config.json", revision="v9", cache_dir=tmp_path / "cache")


def test_file_metadata(hub: LoopbackHub, api: HfApi) -> None:
    head = hub.create_repo(REPO, files={"config.json": b"{}", "model.safetensors": WEIGHTS})
    small, large = (
        get_hf_file_metadata(hf_hub_url(REPO, name, endpoint=hub.url), token=hub.token)
        for name in ("config.json", "model.safetensors")
    )
    assert (small.etag, small.size, small.commit_hash) == (blob_id(b"{}"), 2, head)
    assert (large.etag, large.size, large.commit_hash) == (
        hashlib.sha256(WEIGHTS).hexdigest(),
        len(WEIGHTS),
        head,
    )
    assert not large.location.startswith(hub.url)


@pytest.mark.parametrize("wanted", ["bytes=10-19", "bytes=-5", "bytes=1048570-", "bytes=0-99999999"])
def test_ranges(hub: LoopbackHub, wanted: str) -> None:
    hub.create_repo(REPO, files={"model.safetensors": WEIGHTS})
    url = hf_hub_url(REPO, "model.safetensors", endpoint=hub.url)
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": wanted})) as answer:
        assert answer.status == 206
        first, last = wanted.removeprefix("bytes=").split("-")
        start = int(first) if first else len(WEIGHTS) - int(last)
        assert answer.read() == WEIGHTS[start : int(last) + 1 if first and last else None]


def test_trees_come_in_pages(hub: LoopbackHub, api: HfApi) -> None:
    hub.page_size = 3
    hub.create_repo(REPO, files={f"d{i % 2}/f{i}.txt": b"%d" % i for i in range(7)})
    expected = {path: file.oid for path, file in hub.commits(REPO)[0].files.items()}
    tree = list(api.list_repo_tree(REPO, recursive=True, expand=True))
    assert {entry.path: entry.blob_id for entry in tree if hasattr(entry, "blob_id")} == expected
    assert {entry.path for entry in tree if hasattr(entry, "tree_id")} == {"d0", "d1"}
    assert len(counted(hub, "GET", "/tree/")) == 4
    assert [entry.path for entry in api.list_repo_tree(REPO)] == [".gitattributes", "d0", "d1"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "d1")] == ["d1/f1.txt", "d1/f3.txt", "d1/f5.txt"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "d2"))
    infos = api.get_paths_info(REPO, ["d0", "d0/f0.txt", "missing"])
    assert [info.path for info in infos] == ["d0", "d0/f0.txt"]


def test_info_history_tags_and_branches(hub: LoopbackHub, api: HfApi) -> None:
    hub.page_size = 2
    first = hub.create_repo(REPO, files={"README.md": CARD, "model.safetensors": WEIGHTS})
    second = hub.commit(REPO, {"README.md": None}, "Drop the card")
    api.create_tag(REPO, tag="v1/rc", revision=first[:10])
    api.create_branch(REPO, branch="dev", revision="v1/rc")
    with pytest.raises(HfHubHTTPError):
        api.create_tag(REPO, tag="v1/rc")
    api.create_tag(REPO, tag="v1/rc", exist_ok=True)
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "dev": first}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1/rc": first}
    info = api.repo_info(REPO, revision="v1/rc", files_metadata=True)
    assert (info.sha, info.card_data.base_model, info.tags) == (first, "acme/base", ["shortv"])
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes == {path: len(content) for path, content in hub.files(REPO, first).items()}
    shas = [commit.commit_id for commit in api.list_repo_commits(REPO)]
    assert shas == [commit.sha for commit in hub.commits(REPO)]
    assert len(shas) == 3
    assert (api.list_repo_commits(REPO)[0].title, api.resolve_revision(REPO).resolved) == (
        "Drop the card",
        second,
    )
    api.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="x.txt", revision="dev")
    assert hub.commits(REPO, "dev")[0].parent == first
    api.delete_tag(REPO, tag="v1/rc")
    api.delete_branch(REPO, branch="dev")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1/rc")
    assert api.list_repo_refs(REPO).tags == []


def test_datasets_live_beside_models(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.create_repo("datasets/loopback/model", files={"a.txt": b"data"})
    hub.create_repo(REPO, files={"a.txt": b"model"})
    path = api.hf_hub_download(REPO, "a.txt", repo_type="dataset", cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"data"
    api.upload_file(repo_id=REPO, repo_type="dataset", path_or_fileobj=WEIGHTS, path_in_repo="x.bin")
    assert hub.files("datasets/loopback/model")["x.bin"] == WEIGHTS
    assert "x.bin" not in hub.files(REPO)


# Faults


def refused_status(call: object) -> int | None:
    try:
        call()  # type: ignore[operator]
    except HfHubHTTPError as error:
        return error.response.status_code
    return None


def test_a_status_before_and_after_the_hub_has_acted(hub: LoopbackHub, api: HfApi) -> None:
    hub.fail(lambda r: r.path.endswith("/repos/create"), status=502, times=2)
    assert [refused_status(lambda: api.create_repo(REPO)) for _ in range(3)] == [502, 502, None]
    hub.fail(lambda r: "/commit/" in r.path, nth=2, status=504, when="after")

    def upload(name: str) -> int | None:
        return refused_status(lambda: api.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo=name))

    assert [upload(name) for name in ("a", "b", "c")] == [None, 504, None]
    assert set(hub.files(REPO)) == {".gitattributes", "a", "b", "c"}
    assert [r.status for r in counted(hub, "POST", "/commit/")] == [200, 504, 200]


@pytest.mark.parametrize(("when", "acted"), [("before", False), ("after", True)])
def test_a_dropped_connection(hub: LoopbackHub, api: HfApi, when: str, acted: bool) -> None:
    hub.create_repo(REPO)
    hub.fail(lambda r: "/commit/" in r.path, action="drop", when=when)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"disconnected|reset"):
        api.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="x.txt")
    assert ("x.txt" in hub.files(REPO)) is acted
    assert counted(hub, "POST", "/commit/")[0].status == 0


@pytest.mark.parametrize(("action", "when"), [("page", "before"), ("page", "after"), ("cut", "after")])
def test_an_answer_that_is_not_the_hubs(hub: LoopbackHub, api: HfApi, action: str, when: str) -> None:
    hub.create_repo(REPO)
    hub.fail(lambda r: "/commit/" in r.path, action=action, when=when)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"Expecting value|not JSON|incomplete|peer closed"):
        api.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="x.txt")
    assert ("x.txt" in hub.files(REPO)) is (when == "after")


def test_a_change_in_between(hub: LoopbackHub, api: HfApi) -> None:
    hub.create_repo(REPO, files={"x.txt": b"old"})
    hub.meanwhile(lambda: hub.commit(REPO, {"x.txt": b"new"}), lambda r: r.path.endswith("/x.txt"), nth=2)
    kept = [hub.files(REPO)["x.txt"] for _ in range(3) if api.file_exists(REPO, "x.txt")]
    assert kept == [b"old", b"new", b"new"]


def test_a_download_that_breaks_off_is_resumed(
    hub: LoopbackHub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # the client discards a chunk that is not complete
    hub.create_repo(REPO, files={"model.safetensors": WEIGHTS})
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    hub.fail(lambda r: r.method == "GET" and sha256 in r.path, action="drop", when="after")
    path = api.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    assert [r.status for r in counted(hub, "GET", sha256)] == [200, 206]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stall(hub: LoopbackHub, api: HfApi, when: str) -> None:
    hub.create_repo(REPO)
    hub.fail(action="stall", when=when, seconds=0.3)  # type: ignore[arg-type]
    begin = time.monotonic()
    assert api.repo_info(REPO).sha == hub.commits(REPO)[0].sha
    assert time.monotonic() - begin >= 0.3


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hang(hub: LoopbackHub, when: str) -> None:
    """A client that times out or dies while its request hangs. The Hub has acted on it or not, as set by `when`."""
    hub.create_repo(REPO)
    struck = hub.fail(lambda r: "/tag/" in r.path, action="hang", when=when)  # type: ignore[arg-type]
    body, headers = b'{"tag": "v1"}', {"Authorization": f"Bearer {hub.token}"}
    request = urllib.request.Request(f"{hub.url}/api/models/{REPO}/tag/main", data=body, headers=headers)
    with pytest.raises(TimeoutError):
        urllib.request.urlopen(request, timeout=0.3)
    assert struck.is_set()
    assert ("refs/tags/v1" in hub.repos[REPO].refs) == (when == "after")
    assert hub.requests[-1].status == 0


def test_a_body_that_breaks_off(hub: LoopbackHub) -> None:
    """The Hub has read half of the request and has not acted on it."""
    import socket

    size = 20_000_000
    port = int(hub.url.rsplit(":", 1)[1])
    head = f"POST /api/repos/create HTTP/1.1\r\nHost: hub\r\nContent-Length: {size}\r\n\r\n".encode()
    struck = hub.fail(action="drop", when="during")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(20)
        client.sendall(head)
        assert not struck.wait(0.1)
        with pytest.raises(OSError, match=r"reset|Broken pipe"):  # noqa: PT012
            while True:
                client.sendall(b" " * 1_000_000)
    request = hub.requests[-1]
    assert (struck.is_set(), request.received, request.status) == (True, size // 2, 0)

    # A client cannot send the rest while the request hangs.
    struck = hub.fail(action="hang", when="during")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(1)
        client.sendall(head)
        sent = 0
        with pytest.raises(TimeoutError):  # noqa: PT012
            while sent < size:
                sent += client.send(b" " * 100_000)
    assert struck.is_set()
    assert size // 2 <= sent < size


def test_fine_grained_tokens(hub: LoopbackHub) -> None:
    hub.create_repo("acme/here")
    permissions = {"acme": ["repo.content.write"], "": ["discussion.write"], "me": ["repo.content.read"]}
    hub.add_token("hf_fine", "me", "fineGrained", ("acme",), permissions=permissions)
    api = HfApi(endpoint=hub.url, token="hf_fine")
    access = api.whoami()["auth"]["accessToken"]
    assert (access["role"], access["fineGrained"]["global"]) == ("fineGrained", ["discussion.write"])
    scoped = access["fineGrained"]["scoped"]
    assert [(each["entity"]["type"], each["entity"]["name"]) for each in scoped] == [("org", "acme"), ("user", "me")]
    assert scoped[0]["permissions"] == ["repo.content.write"]
    api.create_commit("acme/here", operations=[add("a.txt", b"a")], commit_message="Add")
    assert refused_status(lambda: api.create_repo("acme/new")) == 403
    assert refused_status(lambda: api.create_repo("me/new")) == 403


def test_retry_after(hub: LoopbackHub) -> None:
    hub.fail(status=429, retry_after=7)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{hub.url}/api/whoami-v2")
    assert (caught.value.code, caught.value.headers["Retry-After"]) == (429, "7")


def test_stopping_closes_connections() -> None:
    with LoopbackHub() as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        hub.create_repo(REPO)
        api.repo_info(REPO)
        begin = time.monotonic()
    with pytest.raises(Exception, match=r"refused|disconnected|reset"):
        api.repo_info(REPO)
    assert time.monotonic() - begin < 2


# Violations: requests that a correct client never sends


def commit_lines(*operations: dict) -> bytes:
    header = {"key": "header", "value": {"summary": "s", "description": ""}}
    return b"\n".join(json.dumps(line).encode() for line in (header, *operations))


def test_unknown_routes_are_noted(strict_hub: LoopbackHub) -> None:
    status, _ = post(strict_hub, "/api/nonsense", b"{}")
    assert status == 404
    assert strict_hub.errors == ["POST /api/nonsense: Unknown route: POST /api/nonsense"]
    assert [(r.path, r.received, r.status) for r in strict_hub.requests] == [("/api/nonsense", 2, 404)]


@pytest.mark.parametrize(
    ("operation", "complaint"),
    [
        ({"key": "lfsFile", "value": {"path": "w.bin", "oid": "0" * 64, "size": 1}}, "never uploaded"),
        ({"key": "file", "value": {"path": "w.bin", "content": "eHh4", "encoding": "base64"}}, "with LFS"),
        ({"key": "file", "value": {"path": "../x", "content": "eHh4", "encoding": "base64"}}, "Not a path"),
        ({"key": "renamed", "value": {"path": "x"}}, "Unknown operation"),
    ],
)
def test_malformed_commits_are_noted(strict_hub: LoopbackHub, operation: dict, complaint: str) -> None:
    head = strict_hub.create_repo(REPO)
    status, answer = post(strict_hub, f"/api/models/{REPO}/commit/main", commit_lines(operation))
    assert status == 400
    assert complaint in answer["error"]
    assert len(strict_hub.errors) == 1
    assert complaint in strict_hub.errors[0]
    assert strict_hub.commits(REPO)[0].sha == head


def test_a_body_of_unknown_length_is_noted(strict_hub: LoopbackHub) -> None:
    request = urllib.request.Request(f"{strict_hub.url}/api/validate-yaml", data=iter([b"{}"]), method="POST")
    with pytest.raises(OSError, match=r"closed|reset|Broken"):
        urllib.request.urlopen(request)
    assert strict_hub.errors == ["POST /api/validate-yaml: a body of unknown length"]


@pytest.mark.parametrize("defect", ["content", "token", "address"])
def test_wrong_uploads_are_noted(strict_hub: LoopbackHub, defect: str) -> None:
    strict_hub.create_repo(REPO)
    content = b"\0" * 100
    entry = {"oid": hashlib.sha256(content).hexdigest(), "size": 100}
    batch = json.dumps({"operation": "upload", "objects": [entry], "ref": {"name": "main"}}).encode()
    _, answer = post(strict_hub, f"/{REPO}.git/info/lfs/objects/batch", batch)
    actions = answer["objects"][0]["actions"]
    href = actions["upload"]["href"]
    if defect == "address":
        href = f"{href.rsplit('/', 2)[0]}/guessed/{entry['oid']}"
    put = urllib.request.Request(href, data=content[1:] if defect == "content" else content, method="PUT")
    if defect == "token":
        put.add_header("Authorization", f"Bearer {strict_hub.token}")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(put)
    assert len(strict_hub.errors) == 1
    verify = actions["verify"]["href"].removeprefix(strict_hub.url)
    assert post(strict_hub, verify, json.dumps(entry).encode())[0] == 404
    assert len(strict_hub.errors) == 2


# In fresh processes, which read the endpoint from the environment as in real use

REMOTE_CODE = {
    "config.json": json.dumps(
        {"model_type": "tiny_remote", "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"}, "width": 3}
    ).encode(),
    "configuration_tiny.py": b"""
from transformers import PretrainedConfig
from .tiny_default import WIDTH

class TinyConfig(PretrainedConfig):
    model_type = "tiny_remote"
    def __init__(self, width=WIDTH, **kwargs):
        self.width = width
        super().__init__(**kwargs)
""",
    "tiny_default.py": b"WIDTH = 1\n",
    "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
    "tokenizer.json": json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
            "pre_tokenizer": {"type": "Whitespace"},
        }
    ).encode(),
}
LOAD = """
import json
from transformers import AutoConfig, AutoTokenizer
config = AutoConfig.from_pretrained("loopback/model", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("loopback/model", trust_remote_code=True)
print(json.dumps([type(config).__name__, config.width, tokenizer("b a b")["input_ids"]]))
"""


def in_process(hub: LoopbackHub, home: Path, *command: str) -> str:
    env = {**os.environ, **hub.env(), "HF_HOME": str(home)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_loads_remote_code(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.create_repo(REPO, private=True, files=REMOTE_CODE)
    answer = json.loads(in_process(hub, tmp_path, sys.executable, "-c", LOAD).splitlines()[-1])
    assert answer == ["TinyConfig", 3, [1, 0, 1]]


def test_the_command_line_client(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").write_bytes(WEIGHTS)
    hf = [sys.executable, "-m", "huggingface_hub.cli.hf"]
    in_process(hub, tmp_path, *hf, "upload", REPO, str(tmp_path / "folder"), ".")
    assert hub.files(REPO)["model.safetensors"] == WEIGHTS
    in_process(hub, tmp_path, *hf, "download", REPO, "--local-dir", str(tmp_path / "back"))
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == WEIGHTS
