"""What interprets a base ends within limits, and in one line. The processes are real."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shortv_export.base import worker as limits
from shortv_export.base.confined import entering
from shortv_export.base.worker import PartError, Worker, in_worker
from shortv_export.errors import ShortVError


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limits.SECONDS, "chat template", 0.5)
    monkeypatch.setattr(limits, "MEMORY", 1 << 29)


# What a base may do to its interpreter.


def loop_for_ever() -> None:
    entering("chat template")
    while True:
        pass


def sleep_for_ever() -> None:
    entering("chat template")
    time.sleep(1000)


def grow() -> None:
    text = "a"
    while True:
        text += text


def grow_in_small_parts() -> None:
    words = []
    while True:
        words.append(str(len(words)))


def grow_in_torch() -> Any:
    import torch

    return torch.ones(1 << 32).numpy()


def grow_in_rust() -> None:
    """A tokenizer whose normalizer makes ten letters of one, thirty times."""
    from tokenizers import Tokenizer, models, normalizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "a" * 10)] * 30)
    entering("tokenizer")
    tokenizer.encode("a")


def nest() -> None:
    nest()


def panic() -> None:
    """As the panics of Rust, which are no `Exception`."""
    raise type("PanicException", (BaseException,), {})("called `Option::unwrap()` on a `None` value")


def abort() -> None:
    os.abort()


def fault() -> None:
    ctypes.string_at(0)


def leave() -> None:
    sys.exit("enough")


def leave_at_once() -> None:
    os._exit(3)


def say_several_lines() -> None:
    raise ValueError("one\ntwo\r\n\tthree")


def refuse() -> None:
    raise ShortVError("the base takes no videos; give images.")


def need_a_package() -> None:
    raise ImportError("TimmWrapperModel requires the timm library but it was not found in your environment.")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (loop_for_ever, "its chat template takes more than 0.5 seconds; correct its files or use another base."),
        (sleep_for_ever, "its chat template takes more than 0.5 seconds"),
        (grow, "its processor takes more than 0.5 GiB of memory"),
        (grow_in_small_parts, "its processor takes more than 0.5 GiB of memory;"),
        (grow_in_torch, "its processor takes more than 0.5 GiB of memory"),
        (grow_in_rust, "its tokenizer takes more than 0.5 GiB of memory"),
        (nest, "its processor fails: RecursionError: maximum recursion depth exceeded"),
        (panic, "its processor fails: PanicException: called `Option::unwrap()` on a `None` value"),
        (abort, "its processor takes more than 0.5 GiB of memory, or crashes"),
        (fault, "its processor crashes (SIGSEGV)"),
        (leave, "its processor fails: SystemExit: enough"),
        (leave_at_once, "its processor ends its process with status 3"),
        (say_several_lines, "its processor fails: one two three;"),
        (refuse, "the base takes no videos; give images."),
        (need_a_package, "needs timm, which is not installed: pip install timm."),
    ],
)
def test_every_end_is_one_line(capfd: pytest.CaptureFixture[str], function: Callable[[], Any], says: str) -> None:
    with pytest.raises(ShortVError) as caught:
        in_worker("acme/base", function)
    message = str(caught.value)
    assert says in message
    assert len(message.splitlines()) == 1
    assert isinstance(caught.value, PartError) == message.startswith("acme/base: its ") * ("timm" not in message)
    assert capfd.readouterr() == ("", ""), "libraries print nothing into the output of the command"


def values(_: object, *given: Any) -> Any:
    return given


def test_values_come_back() -> None:
    with Worker("acme/base", tuple) as worker:
        arrays = {
            "pixels": np.arange(6, dtype="float32").reshape(1, 2, 3),
            "none": np.zeros((0, 3)),
            "mask": np.array(True),
            "turned": np.arange(6).reshape(2, 3).T,
        }
        (found, text), _ = worker.run(values, arrays, "模型"), worker.run(values)
        assert text == "模型"
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
            assert found[name].flags.writeable


def made(words: list[str]) -> list[str]:
    return [*words, str(os.getpid())]


def add(words: list[str], word: str) -> list[str]:
    words.append(word)
    return words


def die(words: list[str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_state_is_made_once_and_again_after_the_process_died() -> None:
    with Worker("acme/base", made, ["a"]) as worker:
        first = worker.run(add, "b")
        assert worker.run(add, "c") == [*first, "c"]
        with pytest.raises(PartError):
            worker.run(die)
        second = worker.run(add, "d")
        assert (second[0], second[2]) == ("a", "d")
        assert second[1] != first[1]
        # One picture may do that. Two make it the base's fault, which is no `PartError`.
        with pytest.raises(ShortVError, match=r"^acme/base: its processor takes more than .* or crashes") as caught:
            worker.run(die)
        assert not isinstance(caught.value, PartError)


def exists(pid: str) -> bool:
    return os.path.exists(f"/proc/{pid}") if sys.platform == "linux" else subprocess.call(["kill", "-0", pid]) == 0


def test_no_process_is_left() -> None:
    with Worker("acme/base", made, []) as worker:
        pid = worker.run(add, "")[0]
        assert exists(pid)
    assert not exists(pid)
    worker = Worker("acme/base", made, [])
    pid = worker.run(add, "")[0]
    del worker
    gc.collect()
    assert not exists(pid)


ORPHAN = """
import os, signal, sys
from shortv_export.base.confined import entering
from shortv_export.base.worker import Worker

def busy(_):
    entering(str(os.getpid()))
    while True:
        pass

worker = Worker("acme/base", tuple)
worker._start()
print(worker._process.pid, flush=True)
signal.alarm(2)  # ends this process, and nothing of it runs any more
worker.run(busy)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
@pytest.mark.timeout(60)
def test_it_dies_with_its_parent() -> None:
    """Also if the parent is killed while the process never looks up."""
    parent = subprocess.run([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, check=False)
    assert parent.returncode == -signal.SIGALRM
    for _ in range(100):
        if not exists(parent.stdout.strip()):
            return
        time.sleep(0.1)
    pytest.fail("the process outlives its parent")


def interrupted(_: object) -> str:
    entering("chat template")
    time.sleep(0.3)
    return "late"


def test_an_interruption_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def alarm(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(limits, "_SECONDS", 30)
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with Worker("acme/base", tuple) as worker:
            worker.run(values)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                worker.run(interrupted)
            assert worker.run(values, 1) == (1,)
    finally:
        signal.signal(signal.SIGALRM, before)


def environment() -> tuple[int, int, bool, int]:
    import torch
    from huggingface_hub import constants

    with open("/proc/self/fd/0"):
        pass
    handles = len(os.listdir("/proc/self/fd")) - 1  # one is that of the listing
    return torch.get_num_threads(), handles, constants.HF_HUB_OFFLINE, signal.getsignal(signal.SIGINT)


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux lists them")
def test_it_has_one_thread_no_network_and_no_open_file() -> None:
    with open(__file__), open(os.devnull):
        assert in_worker("acme/base", environment) == (1, 5, True, signal.SIG_IGN)


def test_without_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems that cannot fork: the process is a new interpreter."""
    monkeypatch.setattr(sys, "platform", "other")
    with Worker("acme/base", made, ["a"]) as worker:
        assert worker.run(add, "b")[0] == "a"
