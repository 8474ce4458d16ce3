"""Drawing samples from files and from a loopback Hub, and encoding them."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortv_export.base.model import load_base
from shortv_export.base.processor import load_processor
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Samples
from shortv_export.samples.decode import Sample
from shortv_export.samples.draw import DrawnSamples, draw_samples
from shortv_export.samples.encode import encode_samples
from shortv_export.samples.source import DEFAULT_PROMPT, DEFAULT_VIDEO_PROMPT, PAPER, Source

NUMBER = 12


def picture(seed: int, size: tuple[int, int] = (12, 9)) -> Any:
    """A small image in a colour of its own, which lossless formats keep."""
    from PIL import Image

    return Image.new("RGB", size, (seed * 20 % 256, seed, 255 - seed))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a Parquet stream, `datasets` waits five seconds for threads to end; these streams are tiny."""
    import datasets

    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def photos_folder(tmp_path: Path) -> Path:
    """Twelve images 00.png ... 11.png, with questions and answers."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(NUMBER):
        (folder / f"{index:02d}.png").write_bytes(png(index))
    rows = [
        {"file_name": f"{index:02d}.png", "question": f"what is {index} ?", "answer": str(index)}
        for index in range(NUMBER)
    ]
    write_rows(folder / "metadata.jsonl", rows)
    return folder


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw(data: str | Path, num_samples: int = 40, seed: int = 0, **options: Any) -> DrawnSamples:
    return draw_samples(Samples(str(data), num_samples, seed), **options)


def refusal(data: str | Path, **arguments: Any) -> str:
    """The message with which data is refused, which is one line."""
    with pytest.raises(ShortVError) as caught:
        draw(data, **arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def check(sample: Sample, index: int) -> None:
    """The sample is exactly the one of that number, digest included."""
    (image,) = sample.images
    assert (image.mode, image.tobytes()) == ("RGB", picture(index).tobytes())
    assert (sample.question, sample.answer) == (f"what is {index} ?", str(index))
    assert sample.digest == hashlib.sha256(b"12x9:" + picture(index).tobytes() + sample.question.encode()).hexdigest()


# Local data


def test_folder(photos_folder: Path) -> None:
    before = snapshot(photos_folder)
    result = draw(photos_folder, num_samples=NUMBER)
    drawn = [int(str(sample.answer)) for sample in result.samples]
    assert sorted(drawn) == list(range(NUMBER))
    for index, sample in zip(drawn, result.samples, strict=True):
        check(sample, index)
    assert snapshot(photos_folder) == before

    record = result.record
    digests = [sample.digest for sample in result.samples]
    assert record["sample_digests"] == digests
    assert record["digest"] == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert (record["seed"], record["num_samples"], record["skipped"]) == (0, NUMBER, 0)
    assert record["data"] == "local files"
    assert json.loads(json.dumps(record)) == record
    assert str(photos_folder.parent) not in json.dumps(record)


def test_the_seed_decides_the_draw(photos_folder: Path) -> None:
    def digest(**arguments: Any) -> str:
        return draw(photos_folder, num_samples=4, **arguments).record["digest"]

    assert digest() == digest(seed=0)
    assert len({digest(seed=seed) for seed in range(5)}) > 1
    # A draw, not the head of the file: over a few seeds, most of the rows turn up.
    drawn = {s.answer for seed in range(8) for s in draw(photos_folder, num_samples=4, seed=seed).samples}
    assert len(drawn) >= NUMBER - 3


def test_a_larger_draw_has_the_smaller_one_in_it(photos_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.jsonl"
    write_rows(table, [{"image": str(path), "question": "?"} for path in sorted(photos_folder.glob("*.png"))])
    for data in (photos_folder, table):
        draws = [draw(data, num_samples=count, seed=3).record["sample_digests"] for count in (1, 4, 6, 9)]
        for smaller, larger in itertools.pairwise(draws):
            assert larger[: len(smaller)] == smaller


def test_excluded_samples_are_not_drawn(photos_folder: Path) -> None:
    used = draw(photos_folder, num_samples=5).record["sample_digests"]
    for seed in (0, 1):
        held_out = draw(photos_folder, num_samples=7, seed=seed, exclude=used).record["sample_digests"]
        assert len({*held_out, *used}) == NUMBER
    message = refusal(photos_folder, num_samples=8, exclude=used)
    assert "7 usable samples besides the 5 that are set apart" in message


def test_fewer_samples_where_allowed(photos_folder: Path) -> None:
    result = draw(photos_folder, num_samples=2 * NUMBER, allow_fewer=True)
    assert len(result.samples) == result.record["num_samples"] == NUMBER
    assert result.record["sources"][0]["num_samples"] == NUMBER
    used = result.record["sample_digests"]
    assert "has 0 usable samples" in refusal(photos_folder, num_samples=1, exclude=used, allow_fewer=True)


def test_folder_without_metadata(photos_folder: Path) -> None:
    (photos_folder / "metadata.jsonl").unlink()
    result = draw(photos_folder, num_samples=3)
    assert {sample.question for sample in result.samples} == {DEFAULT_PROMPT}
    assert {sample.answer for sample in result.samples} == {None}
    assert result.record["sources"][0]["prompt"] == DEFAULT_PROMPT


def test_folder_with_glob_characters_and_colon(photos_folder: Path) -> None:
    odd = photos_folder.rename(photos_folder.parent / "a:split=b [1]*")
    assert len(draw(odd, num_samples=NUMBER).samples) == NUMBER


@pytest.mark.parametrize("kind", ["parquet", "parquet of bytes", "parquet of paths", "jsonl", "json", "metadata"])
def test_files(photos_folder: Path, kind: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, Image

    rows = [{"question": f"what is {index} ?", "answer": str(index)} for index in range(NUMBER)]
    paths = [str(photos_folder / f"{index:02d}.png") for index in range(NUMBER)]
    columns = {key: [row[key] for row in rows] for key in ("question", "answer")}
    data = tmp_path / f"data.{kind.split()[0]}"
    if kind == "parquet":
        cells = [{"bytes": png(index), "path": None} for index in range(NUMBER)]
        Dataset.from_dict({"image": cells, **columns}).cast_column("image", Image()).to_parquet(data)
    elif kind == "parquet of bytes":
        pq.write_table(pa.table({"image": [png(index) for index in range(NUMBER)], **columns}), data)
    elif kind == "parquet of paths":
        pq.write_table(pa.table({"image": paths, **columns}), data)
    elif kind == "metadata":
        data = photos_folder / "metadata.jsonl"
    else:
        rows = [{"image": f"photos/{index:02d}.png", **row} for index, row in enumerate(rows)]
        write_rows(data, rows)
        if kind == "json":
            data.write_text(json.dumps(rows), encoding="utf-8")
    result = draw(data, num_samples=NUMBER)
    for sample in result.samples:
        check(sample, int(str(sample.answer)))
    assert len({sample.digest for sample in result.samples}) == NUMBER
    assert str(tmp_path) not in json.dumps(result.record)


def test_folder_of_tables(tmp_path: Path, photos_folder: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    write_rows(
        folder / "a.jsonl", [{"image": str(photos_folder / "00.png"), "question": "what is 0 ?", "answer": "0"}]
    )
    check(draw(folder, num_samples=1).samples[0], 0)


def test_several_images_of_a_sample(photos_folder: Path) -> None:
    rows = [
        {"file_names": ["00.png", "01.png"], "question": "both ?"},
        {"file_names": ["02.png"], "question": "one ?"},
    ]
    write_rows(photos_folder / "metadata.jsonl", rows)
    samples = {sample.question: sample for sample in draw(photos_folder, num_samples=2).samples}
    assert [image.tobytes() for image in samples["both ?"].images] == [picture(0).tobytes(), picture(1).tobytes()]
    assert len(samples["one ?"].images) == 1


def test_columns_and_prompts(photos_folder: Path) -> None:
    (sample,) = draw(f"{photos_folder}:question=answer,suffix=One word, please.", num_samples=1).samples
    assert sample.question == f"{sample.answer}\nOne word, please."
    (sample,) = draw(f"{photos_folder}:prompt=Hm, what?,split=train", num_samples=1).samples
    assert sample.question == "Hm, what?"


def test_list_of_answers(tmp_path: Path) -> None:
    (tmp_path / "00.png").write_bytes(png(0))
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": "00.png", "question": "?", "answer": ["a", "b"]}])
    assert draw(tmp_path, num_samples=1).samples[0].answer == "a"


# Videos

# Every fourth frame of thirty, rounded down: eight of them.
EIGHT_OF_30 = [0, 3, 7, 11, 15, 18, 22, 26]


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


needs_av = pytest.mark.skipif(find_spec("av") is None, reason="needs PyAV")


def movie(path: Path, numbers: range, codec: str = "ffv1", pixels: str = "bgr0") -> None:
    """A film of ten frames a second, each in a colour of its own; by default without loss."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, pixels
        for number in numbers:
            container.mux(stream.encode(av.VideoFrame.from_image(picture(number, (16, 16)))))
        container.mux(stream.encode())


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
@pytest.mark.parametrize("damage", ["text", "nothing", "half", "list"])
def test_unreadable_films_are_skipped_and_counted(tmp_path: Path, damage: str) -> None:
    """One of them is a list of other files, which must not be opened."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(5):
        movie(folder / f"{number}.mp4", range(number, number + 2), "libx264", "yuv420p")
    whole = (folder / "0.mp4").read_bytes()
    listed = b"ffconcat version 1.0\nfile '1.mp4'\n"
    content = {"text": b"not a film" * 99, "nothing": b"", "half": whole[: len(whole) // 2], "list": listed}
    (folder / "0.mp4").write_bytes(content[damage])
    result = draw(folder, num_samples=4)
    assert (len(result.samples), result.record["skipped"]) == (4, 1)
    message = refusal(folder, num_samples=5)
    assert "has 4 usable samples (1 unreadable)" in message


def test_films_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"a film")
    message = refusal(tmp_path, num_samples=1)
    assert "reading video files needs PyAV: pip install 'shortv-export[video]'; or give each video as" in message


# Refusals


def test_no_such_data(tmp_path: Path) -> None:
    for data in (tmp_path / "nowhere", "./nowhere", f"{tmp_path}/nowhere:prompt=x"):
        assert "there is no file or folder" in refusal(data)
    assert "has no name" in refusal("")
    assert "neither a file or folder here nor a Hub id" in refusal("a/b/c")


def test_without_images(tmp_path: Path) -> None:
    assert "holds no images" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    assert "holds no images" in refusal(tmp_path)
    assert "is no data set" in refusal(tmp_path / "notes.txt")
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": "gone.png", "question": "?"}])
    assert "holds no images" in refusal(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [{"question": "?"}])
    assert "has no column 'image'; there are: question." in refusal(tmp_path / "rows.jsonl")
    write_rows(tmp_path / "rows.jsonl", [{"question": "?", "image": None}])
    assert "the row has no image" in refusal(tmp_path / "rows.jsonl", num_samples=1)
    write_rows(tmp_path / "rows.jsonl", [{"question": "?", "image": []}])
    assert "the row has no image" in refusal(tmp_path / "rows.jsonl", num_samples=1)
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    assert str(tmp_path / "rows.jsonl") in refusal(tmp_path / "rows.jsonl")


def test_wrong_columns(photos_folder: Path) -> None:
    message = refusal(f"{photos_folder}:question=caption")
    assert "has no column 'caption'; there are: image, question, answer." in message
    assert "has no column 'photo'; there are: image, question, answer." in refusal(f"{photos_folder}:image=photo")
    assert "has no column 'label'" in refusal(f"{photos_folder}:answer=label")
    assert "no split 'dev'; there are: train." in refusal(f"{photos_folder}:split=dev")
    assert "holds dict, not text" in refusal(f"{photos_folder}:question=image", num_samples=1)


def test_column_of_something_else(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"image": 1, "question": 2}])
    assert "holds int, not images" in refusal(tmp_path / "rows.jsonl", num_samples=1)


def test_broken_metadata(photos_folder: Path) -> None:
    metadata = photos_folder / "metadata.jsonl"
    write_rows(metadata, [{"name": "00.png", "question": "?"}])
    assert "`file_name`" in refusal(photos_folder, num_samples=1)
    metadata.write_text('{"file_name": \n', encoding="utf-8")
    assert "cannot be read" in refusal(photos_folder, num_samples=1)


@pytest.mark.parametrize("damage", [b"not an image", b"", png(3)[:45], ...])
def test_unreadable_images_are_skipped_and_counted(photos_folder: Path, damage: Any) -> None:
    for name in ("03.png", "07.png"):
        if damage is ...:
            (photos_folder / name).unlink()
        else:
            (photos_folder / name).write_bytes(damage)
    result = draw(photos_folder, num_samples=10)
    assert {str(sample.answer) for sample in result.samples} == {str(i) for i in range(NUMBER)} - {"3", "7"}
    assert result.record["skipped"] == result.record["sources"][0]["skipped"]
    assert 1 <= result.record["skipped"] <= 2

    for index in range(0, 10):
        (photos_folder / f"{index:02d}.png").write_bytes(b"not an image")
    assert "have no readable image; the last one: cannot identify" in refusal(photos_folder, num_samples=10)


def test_too_few_samples(photos_folder: Path) -> None:
    message = refusal(photos_folder, num_samples=NUMBER + 1)
    assert f"has {NUMBER} usable samples (0 unreadable), fewer than the {NUMBER + 1} asked for" in message
    assert "at least 1" in refusal(photos_folder, num_samples=0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("acme/photos:colour=red", "unknown key 'colour'"),
        ("acme/photos:split=a,split=b", "repeated or empty"),
        ("acme/photos:split=", "repeated or empty"),
        ("acme/photos:question=a,prompt=b", "both question and prompt"),
        ("acme/photos:images=a", "needs images and image_id"),
        ("acme/photos:image_id=a", "needs images and image_id"),
        ("acme/photos:images=a,image_id=b,image=c", "needs images and image_id"),
        ("acme/photos:images=a,image_id=b,video=c", "needs images and image_id"),
        ("acme/photos:video=a,frames=0", "the key 'frames' in the data 'acme/photos:video=a,frames=0' is"),
        ("acme/photos:video=a,frames=1.5", "is '1.5'; give a number above zero"),
        ("acme/photos:video=a,fps=nan", "is 'nan'; give a number above zero"),
    ],
)
def test_unusable_options(text: str, reason: str) -> None:
    assert reason in refusal(text)


@given(
    options=st.dictionaries(
        st.sampled_from(["config", "split", "revision", "image", "question", "answer", "suffix"]),
        st.text(min_size=1).filter(lambda value: "=" not in value),
    )
)
def test_options_are_read_back(options: dict[str, str]) -> None:
    text = "acme/photos" + ":" * bool(options) + ",".join(f"{key}={value}" for key, value in options.items())
    assert Source.parse(text) == Source("acme/photos", **options)


def test_the_papers_mix_is_what_the_paper_says() -> None:
    gqa, flickr = (Source.parse(text) for text in PAPER)
    assert (gqa.path, gqa.config, gqa.split) == ("lmms-lab/GQA", "testdev_balanced_instructions", "testdev")
    assert gqa.suffix == "Answer the question using a single word or phrase."
    assert (flickr.path, flickr.split) == ("lmms-lab/flickr30k", "test")
    assert flickr.prompt == "Provide a one-sentence caption for the provided image."


# On the Hub: in a process of its own, because `datasets` reads HF_ENDPOINT once

PROBE = """
import json, sys
import datasets
from shortv_export.errors import ShortVError
from shortv_export.options import Samples
from shortv_export.samples import draw_samples
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1
for call in json.loads(sys.argv[1]):
    try:
        result = draw_samples(Samples(**call))
        shown = [[*s.images, *(f for clip in s.videos for f in clip.frames)] for s in result.samples]
        greens = [[image.getpixel((0, 0))[1] for image in images] for images in shown]
        samples = [(s.question, s.answer, *green, s.digest) for s, green in zip(result.samples, greens)]
        print(json.dumps({"samples": samples, "record": result.record}))
    except ShortVError as error:
        print(json.dumps(str(error)))
"""


def probe(hub: LoopbackHub, home: Path, *calls: dict[str, Any], logged_in: bool = True) -> list[Any]:
    """The outcome of each call: its samples and record, or its message."""
    environment = {**os.environ, **hub.env(), "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    if not logged_in:
        del environment["HF_TOKEN"]
    run = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(calls)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def parquet(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def card(*configs: tuple[str, str, str]) -> bytes:
    """The front matter that tells `datasets` which files make up which configuration and split."""
    lines = [
        f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {path}"
        for config, split, path in configs
    ]
    return ("---\nconfigs:\n" + "\n".join(lines) + "\n---\n").encode()


def test_hub(tmp_path: Path) -> None:
    cells = [{"bytes": png(index), "path": f"{index}.png"} for index in range(NUMBER)]
    questions = [f"what is {index} ?" for index in range(NUMBER)]
    gqa: dict[str, bytes | Path] = {
        "README.md": card(
            ("testdev_balanced_images", "testdev", "i.parquet"),
            ("testdev_balanced_instructions", "testdev", "q.parquet"),
        ),
        "i.parquet": parquet({"id": [f"n{index}" for index in range(NUMBER)], "image": cells}),
        "q.parquet": parquet(
            {"imageId": [f"n{index}" for index in range(NUMBER)], "question": questions, "answer": ["yes"] * NUMBER}
        ),
    }
    flickr: dict[str, bytes | Path] = {
        "README.md": card(("default", "test", "t.parquet")),
        "t.parquet": parquet({"image": cells, "caption": [["a", "b"]] * NUMBER, "img_id": list(range(NUMBER))}),
    }
    script: dict[str, bytes | Path] = {"script.py": b"raise SystemExit('ran')", "README.md": b"a script"}
    outside: dict[str, bytes | Path] = {
        "t.parquet": parquet({"image": [{"bytes": None, "path": str(tmp_path / "own.png")}], "question": ["?"]}),
        "README.md": card(("default", "test", "t.parquet")),
    }
    text: dict[str, bytes | Path] = {"data.jsonl": b'{"image": "own.png", "question": "?"}\n'}
    folder: dict[str, bytes | Path] = {f"{index:02d}.png": png(index) for index in range(NUMBER)}
    folder["metadata.jsonl"] = "".join(
        json.dumps({"file_name": f"{index:02d}.png", "question": question}) + "\n"
        for index, question in enumerate(questions)
    ).encode()
    picture(0).save(tmp_path / "own.png")
    with LoopbackHub() as hub:
        revision = hub.create_repo("datasets/lmms-lab/GQA", files=gqa)
        hub.create_repo("datasets/lmms-lab/flickr30k", files=flickr)
        for name, files in (("script", script), ("outside", outside), ("text", text), ("folder", folder)):
            hub.create_repo(f"datasets/acme/{name}", files=files)
        hub.create_repo("datasets/other/gated", files=flickr, gated=True)
        calls: list[dict[str, Any]] = [
            {"data": "paper", "num_samples": 9},
            {"data": "paper", "num_samples": 9},
            {"data": "lmms-lab/flickr30k", "num_samples": 2},
            {"data": "lmms-lab/GQA", "num_samples": 2},
            {"data": "acme/none"},
            {"data": "acme/script"},
            {"data": "acme/outside", "num_samples": 1},
            {"data": "acme/text", "num_samples": 1},
            {"data": "acme/folder", "num_samples": 3},
            {"data": "other/gated:prompt=?", "num_samples": 1},
            {"data": "lmms-lab/flickr30k:prompt=?,revision=v9"},
        ]
        outcomes = probe(hub, tmp_path / "home", *calls)
        assert hub.errors == []
        assert hub.token not in json.dumps(outcomes)
    paper, again, flickr_only, gqa_only, none, script_only, outside_only, text_only, images, gated, no_revision = (
        outcomes
    )
    assert paper == again
    samples = paper["samples"]
    assert len(samples) == 9
    for question, answer, green, _ in samples[:5]:
        assert (question, answer) == (f"what is {green} ?\nAnswer the question using a single word or phrase.", "yes")
    assert {question for question, *_ in samples[5:]} == {"Provide a one-sentence caption for the provided image."}
    sources = paper["record"]["sources"]
    assert [source["num_samples"] for source in sources] == [5, 4]
    assert (sources[0]["repo_id"], sources[0]["revision"]) == ("lmms-lab/GQA", revision)
    assert (sources[0]["config"], sources[0]["split"]) == ("testdev_balanced_instructions", "testdev")
    assert paper["record"]["data"] == "paper"

    assert "has no column 'question'; there are: image, caption, img_id." in flickr_only
    assert "testdev_balanced_instructions" in gqa_only
    assert "is not on the Hub, or is private" in none
    assert "acme/script cannot be read" in script_only
    assert "names a local file" in outside_only
    assert "holds text, not images" in text_only
    assert {f"what is {green} ?" == question for question, _, green, _ in images["samples"]} == {True}
    assert "other/gated" in gated
    assert "revision v9 has no such revision" in no_revision
    assert all(len(message.splitlines()) == 1 for message in outcomes if isinstance(message, str))


def test_frames_on_the_hub(tmp_path: Path) -> None:
    clip = [{"bytes": png(number), "path": None} for number in range(30)]
    columns = {"clip": [clip] * 3, "question": ["a ?", "b ?", "c ?"]}
    with LoopbackHub() as hub:
        files: dict[str, bytes | Path] = {"README.md": card(("default", "test", "t.parquet"))}
        hub.create_repo("datasets/acme/clips", files=files | {"t.parquet": parquet(columns)})
        (outcome,) = probe(hub, tmp_path / "home", {"data": "acme/clips:video=clip,frames=4,fps=2", "num_samples": 3})
        assert hub.errors == []
    assert {question for question, *_ in outcome["samples"]} == {"a ?", "b ?", "c ?"}
    assert [greens for _, _, *greens, _ in outcome["samples"]] == [[0, 7, 15, 22]] * 3
    assert outcome["record"]["num_videos"] == 3
    assert outcome["record"]["data"] == "acme/clips:video=clip,frames=4,fps=2"


@needs_av
def test_films_on_the_hub(tmp_path: Path) -> None:
    """As files of a repository that only its members may read, streamed; a film's path that is not one is refused."""
    movie(tmp_path / "a.mkv", range(30))
    films: dict[str, bytes | Path] = {
        "a.mkv": (tmp_path / "a.mkv").read_bytes(),
        "metadata.jsonl": b'{"video_file_name": "a.mkv", "question": "a ?"}\n',
    }
    outside: dict[str, bytes | Path] = {
        "t.parquet": parquet({"video": [{"bytes": None, "path": str(tmp_path / "a.mkv")}], "question": ["?"]}),
        "README.md": card(("default", "test", "t.parquet")),
    }
    with LoopbackHub() as hub:
        hub.create_repo("datasets/loopback/films", files=films, private=True)
        hub.create_repo("datasets/loopback/outside", files=outside)
        calls = [{"data": f"loopback/{name}", "num_samples": 1} for name in ("films", "outside")]
        found, refused = probe(hub, tmp_path / "home", *calls)
        (unknown,) = probe(hub, tmp_path / "stranger", calls[0], logged_in=False)
        assert hub.errors == []
    ((question, _, *greens, _),) = found["samples"]
    assert (question, greens) == ("a ?", EIGHT_OF_30)
    assert "is not on the Hub, or is private" in unknown
    assert "names a local file instead of holding its video" in refused


def test_hub_data_is_not_downloaded_whole(tmp_path: Path) -> None:
    rows = [{"image": [{"bytes": png(index), "path": None}] * 300, "question": ["?"] * 300} for index in range(40)]
    files: dict[str, bytes | Path] = {f"t-{index:02d}.parquet": parquet(columns) for index, columns in enumerate(rows)}
    with LoopbackHub() as hub:
        hub.create_repo("datasets/acme/large", files={**files, "README.md": card(("default", "test", "t-*.parquet"))})
        (outcome,) = probe(hub, tmp_path / "home", {"data": "acme/large", "num_samples": 4})
        assert hub.errors == []
        asked = {Path(request.path).name for request in hub.requests if request.method == "GET"}
    assert len(outcome["samples"]) == 4
    assert 1 <= len(asked & files.keys()) < 30


# Encoding


@pytest.fixture(params=["llava", "llava_next"])
def model_and_processor(request: pytest.FixtureRequest, tiny_base: Callable[..., Path]) -> tuple[Any, Any]:
    base = resolve_base(tiny_base(request.param))
    return load_base(base, dtype="float32"), load_processor(base.path)


def samples_of(photos: dict[str, Any]) -> list[Sample]:
    astronaut, coffee, chelsea, rocket = photos.values()
    return [
        Sample((astronaut,), "is there a rocket ?", None, ""),
        Sample((coffee, chelsea), "which colour in the picture ? answer using a single word or phrase .", None, ""),
        Sample((rocket,), "yes", None, ""),
    ]


def test_batch_equals_single_samples(model_and_processor: tuple[Any, Any], photos: dict[str, Any]) -> None:
    """Left padding: the last position is every sample's last token, and nothing depends on its neighbours."""
    import torch

    model, processor = model_and_processor
    samples = samples_of(photos)
    batch = encode_samples(processor, samples)
    lengths = batch["attention_mask"].sum(1)
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        for row, sample in enumerate(samples):
            single = encode_samples(processor, [sample])
            assert single["attention_mask"].all()
            assert torch.equal(batch["input_ids"][row, -lengths[row] :], single["input_ids"][0])
            assert not batch["attention_mask"][row, : -lengths[row]].any()
            alone = model(**single).logits[0, -1]
            assert (together[row] - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_prompt_is_the_chat_templates(model_and_processor: tuple[Any, Any], photos: dict[str, Any]) -> None:
    """The same ids as transformers' own one-step call gives, here asked with the images in the conversation."""
    import torch

    _, processor = model_and_processor
    for sample in samples_of(photos):
        images = [{"type": "image", "image": image} for image in sample.images]
        conversation = [{"role": "user", "content": [*images, {"type": "text", "text": sample.question}]}]
        expected = processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        actual = encode_samples(processor, [sample])
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "template", [..., None, "{{ bos_token }}USER: <image>\n{{ messages[0]['content'][1]['text'] }}"]
)
def test_first_token_comes_once(model_and_processor: tuple[Any, Any], photos: dict[str, Any], template: Any) -> None:
    _, processor = model_and_processor
    if template is not ...:
        processor.chat_template = template
    tokens = processor.tokenizer.convert_ids_to_tokens(
        encode_samples(processor, samples_of(photos)[:1])["input_ids"][0]
    )
    assert tokens[0] == "<s>"
    assert tokens.count("<s>") == 1
    assert tokens[1] == "USER"


def test_without_a_template_the_prompt_is_vicunas(
    model_and_processor: tuple[Any, Any], photos: dict[str, Any]
) -> None:
    _, processor = model_and_processor
    processor.chat_template = None
    batch = encode_samples(processor, samples_of(photos))
    for row, sample in zip(batch["input_ids"], samples_of(photos), strict=True):
        tokens = [
            token for token in processor.tokenizer.convert_ids_to_tokens(row) if token not in ("<pad>", "<image>")
        ]
        assert tokens == ["<s>", "USER", ":", *sample.question.split(), "ASSISTANT", ":"]


def test_placeholder_in_the_question(model_and_processor: tuple[Any, Any], photos: dict[str, Any]) -> None:
    import torch

    _, processor = model_and_processor
    plain, *_ = samples_of(photos)
    marked = Sample(plain.images, f"<image>\n{plain.question}", None, "")
    assert torch.equal(
        encode_samples(processor, [marked])["input_ids"], encode_samples(processor, [plain])["input_ids"]
    )
