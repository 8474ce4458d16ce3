"""The command line as users run it: files in, files out, exit status and messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shortv_export import cli
from shortv_export.loopback import LoopbackHub
from shortv_export.recipe import Scores


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``run("score", ...)`` -> (exit status, stdout, stderr), in this process."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shortv-export", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as exit:
            status = int(exit.code or 0)
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def photo_folder(tmp_path: Path, photos: dict[str, Any]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for name, image in photos.items():
        image.save(folder / f"{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "question": "what is in this picture ?"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.errors == []


def test_each_step_starts_from_the_previous_ones_file(
    run: Any, tiny_base: Any, photo_folder: Path, tmp_path: Path
) -> None:
    base = tiny_base()
    scores = tmp_path / "scores.json"
    assert run("score", base, "--data", photo_folder, "--num-samples", 4, "--output", scores)[0] == 0
    visual = Scores.load(scores).visual
    lowest = sorted(sorted(range(4), key=visual.__getitem__)[:2])

    status, out, _ = run("package", base, tmp_path / "package", "--scores", scores, "--num-frozen", 2, "--json")
    assert status == 0
    assert json.loads(out)["frozen_layers"] == lowest
    assert json.loads((tmp_path / "package" / "config.json").read_text())["frozen_layers"] == lowest

    status, out, _ = run("verify", tmp_path / "package", "--json")
    assert status == 0
    assert all(check["passed"] for check in json.loads(out)["checks"])


def test_push_runs_every_step_from_a_base_on_the_hub(
    hub: LoopbackHub, tiny_base: Any, photo_folder: Path, tmp_path: Path
) -> None:
    hub.create_repo("loopback/base", files={path.name: path for path in tiny_base().iterdir()})
    command = [sys.executable, "-m", "shortv_export", "push", "loopback/base", "loopback/faster", "--json"]
    environment = {**os.environ, **hub.env(), "HF_HOME": str(tmp_path / "hf-home")}
    options = ["--data", str(photo_folder), "--num-samples", "2", "--num-frozen", "3"]
    result = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    push = json.loads(result.stdout)

    published = hub.files("loopback/faster", push["tag"])
    config = json.loads(published["config.json"])
    assert config["model_type"] == "shortv_llava"
    assert len(config["frozen_layers"]) == 3
    assert published["model.safetensors"] == (tiny_base() / "model.safetensors").read_bytes()
    assert hub.commits("loopback/faster")[0].sha == push["commit"]

    # A second run finds the finished package, and nothing to do.
    again = subprocess.run([*command[:4], "faster", *command[5:]], cwd=tmp_path, env=environment, capture_output=True)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["changed"] is False
    assert hub.token not in result.stdout + result.stderr


def test_a_push_that_cannot_succeed_fails_before_any_work(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_token("hf_reader", "loopback", role="read")
    environment = {**os.environ, **hub.env(), "HF_HOME": str(tmp_path / "hf-home")}
    for token, words in (("", "no token"), ("hf_reader", "write")):
        result = subprocess.run(
            [sys.executable, "-m", "shortv_export", "push", "loopback/missing", "loopback/faster"],
            cwd=tmp_path,
            env={**environment, "HF_TOKEN": token},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 1
        assert result.stderr.startswith("error: ")
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert not token or token not in result.stderr
    assert not any(path.name != "hf-home" for path in tmp_path.iterdir())


def break_nothing(base: Path) -> None:
    pass


def only_pickles(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def truncate_shard(base: Path) -> None:
    shard = base / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def remove_shard(base: Path) -> None:
    (base / "model.safetensors").unlink()


def change_config(**fields: Any) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        config = json.loads((base / "config.json").read_text())
        config.update(fields)
        (base / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != ...}))

    change.__name__ = "config_" + "_".join(fields)
    return change


@pytest.mark.parametrize(
    ("damage", "options", "words"),
    [
        (break_nothing, ["--frozen-layers", "0,4"], ["4", "0"]),
        (break_nothing, ["--frozen-layers", "1,1"], ["1"]),
        (break_nothing, ["--frozen-layers", ""], ["empty"]),
        (break_nothing, ["--frozen-layers", "one,two"], ["one"]),
        (break_nothing, ["--frozen-layers", "1.5"], ["1.5"]),
        (break_nothing, ["--preset", "paper"], ["llava-hf/llava-1.5-7b-hf"]),
        (break_nothing, ["--preset", "mine"], ["mine", "paper"]),
        (break_nothing, [], ["--scores", "--preset", "--frozen-layers"]),
        (break_nothing, ["--frozen-layers", "1", "--num-frozen", "1"], ["--num-frozen"]),
        (break_nothing, ["--scores", "{other_scores}"], ["3", "4"]),
        (break_nothing, ["--scores", "{missing}"], ["does not exist"]),
        (only_pickles, ["--frozen-layers", "1"], ["safetensors"]),
        (truncate_shard, ["--frozen-layers", "1"], ["model.safetensors"]),
        (remove_shard, ["--frozen-layers", "1"], ["safetensors"]),
        (change_config(model_type="bert"), ["--frozen-layers", "1"], ["bert", "llava, llava_next"]),
        (change_config(image_token_index=..., image_token_id=...), ["--frozen-layers", "1"], ["image"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Any,
    tiny_base: Any,
    tmp_path: Path,
    damage: Callable[[Path], None],
    options: list[str],
    words: list[str],
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base().iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    damage(base)
    Scores((0.1, 0.2, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 1).save(tmp_path / "other.json")
    before = sorted(tmp_path.iterdir())

    places = {"other_scores": tmp_path / "other.json", "missing": tmp_path / "missing.json"}
    status, out, err = run("package", base, tmp_path / "out", *(option.format(**places) for option in options))

    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words), err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["package", "{tmp}/nowhere", "{tmp}/out", "--frozen-layers", "1"], "nowhere"),
        (["score", "{base}", "--data", "{tmp}/empty", "--output", "{tmp}/scores.json"], "image"),
        (["score", "{base}", "--data", "{tmp}/nowhere", "--output", "{tmp}/scores.json"], "nowhere"),
        (["verify", "{tmp}/empty"], "shortv.json"),
        (["package", "{base}", "{tmp}/full", "--frozen-layers", "1"], "not empty"),
        (["demo", "--output", "{tmp}/full"], "demo"),
    ],
)
def test_bad_places_are_one_line(
    run: Any,
    tiny_base: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False) if arguments[0] == "demo" else None
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    status, _, err = run(*(argument.format(tmp=tmp_path, base=tiny_base()) for argument in arguments))
    assert status == 1
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]
    assert (tmp_path / "full" / "precious").exists()


def test_wrong_usage_is_status_2(run: Any) -> None:
    assert run("package")[0] == 2
    assert run("score", "base", "--num-samples", "many")[0] == 2
    assert run("nothing")[0] == 2


def test_the_traceback_is_for_debug_only(run: Any, tmp_path: Path) -> None:
    from shortv_export.errors import ShortVError

    arguments = ("package", tmp_path / "nowhere", tmp_path / "out", "--frozen-layers", "1")
    assert "Traceback" not in run(*arguments)[2]
    with pytest.raises(ShortVError):
        run("--debug", *arguments)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom shortv_export import cli\n"
        "heavy = {'torch', 'transformers', 'datasets', 'huggingface_hub', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_demo_goes_the_whole_way(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    result = subprocess.run(
        [sys.executable, "-m", "shortv_export", "demo", "--output", str(tmp_path / "demo")],
        cwd=tmp_path,
        env={**environment, "HF_HOME": str(tmp_path / "untouched")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    for word in ("score", "package", "verify", "publish", "ShortVLlavaForConditionalGeneration", "answer"):
        assert word in result.stdout
    assert not (tmp_path / "untouched").exists()
    config = json.loads((tmp_path / "demo" / "package" / "config.json").read_text())
    scores = Scores.load(tmp_path / "demo" / "scores.json")
    assert config["frozen_layers"] == sorted(sorted(range(8), key=scores.visual.__getitem__)[:5])
