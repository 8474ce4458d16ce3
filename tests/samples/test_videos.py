"""Videos: lists of frames, and files."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shortv_export.samples import video
from shortv_export.samples.decode import Sample
from shortv_export.samples.source import DEFAULT_VIDEO_PROMPT
from shortv_export.samples.video import read_clip
from tests.support.sample_data import (
    EIGHT_OF_30,
    draw,
    movie,
    needs_av,
    picture,
    png,
    refusal,
    snapshot,
    write_rows,
)


def frame_colors(sample: Sample) -> list[bytes]:
    (clip,) = sample.videos
    return [frame.tobytes() for frame in clip.frames]


def colors(*numbers: int) -> list[bytes]:
    return [picture(number).tobytes() for number in numbers]


@pytest.fixture
def frames_folder(tmp_path: Path) -> Path:
    """The frames of two clips, of thirty and of two, in folders of their own."""
    for name, numbers in (("a", range(30)), ("b", range(40, 42))):
        (tmp_path / name).mkdir()
        for number in numbers:
            (tmp_path / name / f"{number:02d}.png").write_bytes(png(number))
    rows = [
        {"video_file_names": [f"{name}/{number:02d}.png" for number in numbers], "question": f"{name} ?"}
        for name, numbers in (("a", range(30)), ("b", range(40, 42)))
    ]
    write_rows(tmp_path / "metadata.jsonl", rows)
    return tmp_path


def test_folder_of_frames(frames_folder: Path) -> None:
    result = draw(frames_folder, num_samples=2)
    samples = {sample.question: sample for sample in result.samples}
    assert frame_colors(samples["a ?"]) == colors(*EIGHT_OF_30)
    assert frame_colors(samples["b ?"]) == colors(40, 41)
    digest = hashlib.sha256(b"video of 2 frames at None:")
    for data in colors(40, 41):
        digest.update(b"12x9:" + data)
    digest.update(b"b ?")
    assert samples["b ?"].digest == digest.hexdigest()
    assert {sample.videos[0].fps for sample in result.samples} == {None}
    record = result.record
    assert (record["num_images"], record["num_videos"]) == (0, 2)
    (source,) = record["sources"]
    assert (source["video"], source["frames"]) == ("video", 8)
    assert not {"image", "fps"} & source.keys()
    assert json.loads(json.dumps(record)) == record


def test_number_and_rate_of_frames(frames_folder: Path) -> None:
    """Three of thirty frames that fill a second; every other way to show the clip is another sample."""
    found = [
        {sample.question: sample for sample in draw(f"{frames_folder}:{keys}", num_samples=2).samples}
        for keys in ("video=video,frames=3,fps=30", "frames=3", "frames=3,fps=15")
    ]
    assert frame_colors(found[0]["a ?"]) == colors(0, 10, 20)
    assert [samples["a ?"].videos[0].fps for samples in found] == [3, None, 1.5]
    assert found[0]["b ?"].videos[0].fps == 30
    assert len({samples["a ?"].digest for samples in found}) == 3


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_table_of_frames(frames_folder: Path, tmp_path: Path, kind: str) -> None:
    from datasets import Dataset, Features, Image, List, Value

    data = tmp_path / f"data.{kind}"
    if kind == "parquet":
        clips = [[{"bytes": png(number), "path": None} for number in range(30)]] * 2
        features = Features({"frames": List(Image()), "question": Value("string")})
        Dataset.from_dict({"frames": clips, "question": ["one ?", "two ?"]}, features).to_parquet(data)
    else:
        names = [f"a/{number:02d}.png" for number in range(30)]
        write_rows(data, [{"frames": names, "question": "one ?"}, {"frames": names, "question": "two ?"}])
    for sample in draw(f"{data}:video=frames", num_samples=2).samples:
        assert frame_colors(sample) == colors(*EIGHT_OF_30)
        assert sample.images == ()


def test_rows_of_images_and_of_videos(frames_folder: Path) -> None:
    rows = [
        {"image": "a/00.png", "video": None, "question": "image ?"},
        {"image": None, "video": ["b/40.png", "b/41.png"], "question": "video ?"},
        {"image": "a/01.png", "video": ["b/40.png"], "question": "both ?"},
    ]
    data = frames_folder / "rows.jsonl"
    write_rows(data, rows)
    result = draw(f"{data}:image=image,video=video", num_samples=3)
    samples = {sample.question: sample for sample in result.samples}
    assert [len(samples[f"{kind} ?"].images) for kind in ("image", "video", "both")] == [1, 0, 1]
    assert [len(samples[f"{kind} ?"].videos) for kind in ("image", "video", "both")] == [0, 1, 1]
    assert (result.record["num_images"], result.record["num_videos"]) == (2, 2)
    # Where nobody names a column, that of the images is taken.
    write_rows(data, rows[2:])
    (sample,) = draw(data, num_samples=1).samples
    assert sample.images
    assert not sample.videos


def test_unusable_frames(frames_folder: Path) -> None:
    data = frames_folder / "rows.jsonl"

    def refused(video: Any, keys: str = "video=video") -> str:
        write_rows(data, [{"video": video, "question": "?"}])
        return refusal(f"{data}:{keys}", num_samples=1)

    picture(0, (6, 4)).save(frames_folder / "small.png")
    assert "no readable video; the last one: the frames of the video differ" in refused(["a/00.png", "small.png"])
    assert "the row has no video" in refused([])
    assert "the row has no video" in refused(None)
    assert "its column 'video' holds int, not images" in refused([1])
    assert "its column 'video' holds int, not videos" in refused(1)
    assert "has no column 'clip'" in refused([], "video=clip")
    write_rows(data, [{"image": "a/00.png", "question": "?"}])
    assert "name their column with video=COLUMN" in refusal(f"{data}:frames=2", num_samples=1)


@needs_av
@pytest.mark.parametrize("named", [True, False])
def test_folder_of_films(tmp_path: Path, named: bool) -> None:
    movie(tmp_path / "a.mkv", range(30))
    movie(tmp_path / "b.mkv", range(40, 42))
    if named:
        rows = [{"video_file_name": f"{name}.mkv", "question": f"{name} ?"} for name in "ab"]
        write_rows(tmp_path / "metadata.jsonl", rows)
    before = snapshot(tmp_path)
    result = draw(tmp_path, num_samples=2)
    samples = {len(sample.videos[0].frames): sample for sample in result.samples}
    assert frame_colors(samples[8]) == [picture(number, (16, 16)).tobytes() for number in EIGHT_OF_30]
    assert frame_colors(samples[2]) == [picture(number, (16, 16)).tobytes() for number in (40, 41)]
    # Eight frames of three seconds, two of a fifth.
    assert (samples[8].videos[0].fps, samples[2].videos[0].fps) == (pytest.approx(8 / 3), pytest.approx(10))
    assert {sample.question for sample in samples.values()} == ({"a ?", "b ?"} if named else {DEFAULT_VIDEO_PROMPT})
    assert result.record["num_videos"] == 2
    assert str(tmp_path) not in json.dumps(result.record)
    assert snapshot(tmp_path) == before
    assert "its videos are files, which say their own fps" in refusal(f"{tmp_path}:fps=2", num_samples=1)


@needs_av
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.mov", "libx264")]
)
def test_formats_of_films(tmp_path: Path, name: str, codec: str) -> None:
    """The right frames, as well as a lossy format keeps them; as files of a table and as its bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, Features, Value, Video

    movie(tmp_path / name, range(0, 240, 8), codec, "yuv420p")
    write_rows(tmp_path / "rows.jsonl", [{"video": name, "question": "?"}])
    cell = {"bytes": (tmp_path / name).read_bytes(), "path": None}
    pq.write_table(pa.table({"video": [cell["bytes"]], "question": ["?"]}), tmp_path / "bytes.parquet")
    features = Features({"video": Video(decode=False), "question": Value("string")})
    Dataset.from_dict({"video": [cell], "question": ["?"]}, features).to_parquet(tmp_path / "video.parquet")
    for data in ("rows.jsonl", "bytes.parquet", "video.parquet"):
        (sample,) = draw(tmp_path / data, num_samples=1).samples
        found = [frame.getpixel((8, 8))[1] for frame in sample.videos[0].frames]
        assert found == pytest.approx([8 * number for number in EIGHT_OF_30], abs=5)


@needs_av
def test_unreadable_films_are_skipped_and_counted(tmp_path: Path) -> None:
    """One of them is a list of other files, which must not be opened."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(3):
        movie(folder / f"{number}.mp4", range(number, number + 2), "libx264", "yuv420p")
    whole = (folder / "0.mp4").read_bytes()
    listed = b"ffconcat version 1.0\nfile '1.mp4'\n"
    for damaged in (b"not a film" * 99, b"", whole[: len(whole) // 2], listed):
        with pytest.raises(ValueError, match=r"the video cannot be read: |the file holds no video"):
            read_clip(io.BytesIO(damaged), 8)
    (folder / "0.mp4").write_bytes(listed)
    result = draw(folder, num_samples=2)
    assert (len(result.samples), result.record["skipped"]) == (2, 1)
    assert "has 2 usable samples (1 unreadable)" in refusal(folder, num_samples=3)


# Bounds


@needs_av
@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("frames", 29, "it has more than 29 frames"),
        ("pixels", 255, "its frames have 16 x 16 pixels; 255 is the limit"),
        ("total_pixels", 8 * 256 - 1, "its frames have together more than 2,047 pixels"),
        ("memory", 1 << 26, "it needs too much memory|its decoder ended with status"),
        ("seconds", 0.01, "it takes more than 300 seconds to read"),
    ],
)
def test_bounds_of_a_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, reason: str
) -> None:
    movie(tmp_path / "a.mkv", range(30))
    content = (tmp_path / "a.mkv").read_bytes()
    assert len(read_clip(io.BytesIO(content), 8).frames) == 8
    monkeypatch.setitem(video._LIMITS, limit, value)
    with pytest.raises(ValueError, match=reason):
        read_clip(io.BytesIO(content), 8)


def announced(count: int, size: int, tracks: int = 1) -> bytes:
    """An MP4 of less than 2 kB per track, whose header announces so many frames of this width and height."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return struct.pack(">I", 8 + len(content)) + kind + content

    def numbers(*values: int) -> bytes:
        return struct.pack(f">{len(values)}I", *values)

    start = box(b"ftyp", b"isom" + bytes(4) + b"isom")
    matrix = numbers(1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    entry = box(b"mp4v", bytes(6), b"\0\1", bytes(16), struct.pack(">HH", size, size), bytes(50))
    table = box(
        b"stbl",
        box(b"stsd", numbers(0, 1), entry),
        box(b"stts", numbers(0, 1, count, 1)),
        box(b"stsc", numbers(0, 1, 1, count, 1)),
        box(b"stsz", numbers(0, 1, count)),
        box(b"stco", numbers(0, 1, len(start) + 8)),
    )
    references = box(b"dinf", box(b"dref", numbers(0, 1), box(b"url ", numbers(1))))
    media = box(
        b"mdia",
        box(b"mdhd", numbers(0, 0, 0, 1000, count, 0)),
        box(b"hdlr", numbers(0, 0), b"vide", bytes(13)),
        box(b"minf", box(b"vmhd", numbers(1, 0, 0)), references, table),
    )
    track = box(b"trak", box(b"tkhd", numbers(3, 0, 0, 1, 0, 1000), bytes(16), matrix, numbers(size, size)), media)
    header = box(b"mvhd", numbers(0, 0, 0, 1000, 1000, 1 << 16, 1 << 24), bytes(8), matrix, bytes(24), numbers(2))
    return start + box(b"mdat", bytes(1000)) + box(b"moov", header, track * tracks)


@needs_av
@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform != "linux", reason="the system limits no memory of a process")
def test_a_film_that_announces_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without limits, the third takes 20 GB; all of them have less than 20 kB."""
    monkeypatch.setitem(video._LIMITS, "memory", 1 << 30)
    for content in (
        announced(10**9, 64),
        announced(80_000_000, 64),
        announced(80_000_000, 64, 10),
        announced(9, 20_000),
    ):
        assert len(content) < 20_000
        with pytest.raises(ValueError, match=r"^(it |its |the video )"):
            read_clip(io.BytesIO(content), 8)
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    assert peak < 2200


@needs_av
def test_the_process_of_a_film_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, env, **k: seen.append(env) or run(*a, env=env, **k))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    movie(tmp_path / "a.mkv", range(2))
    read_clip(io.BytesIO((tmp_path / "a.mkv").read_bytes()), 8)
    assert "hf_secret" not in json.dumps(seen)
    assert seen


def test_films_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"a film")
    message = refusal(tmp_path, num_samples=1)
    assert "reading video files needs PyAV: pip install av; or give each video as" in message
