"""Two processes, each with half of the heads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.vllm.engines import Answer, ask, difference, engine

SCRIPT = """
import dataclasses, json, sys
from tests.vllm.engines import ask, engine

if __name__ == "__main__":
    with engine(sys.argv[1], tensor_parallel_size=2, max_num_batched_tokens=23, max_num_seqs=8) as llm:
        print("ANSWERS" + json.dumps([dataclasses.asdict(answer) for answer in ask(llm)]))
"""


def test_tensor_parallel(llava: Callable[..., Path], tmp_path: Path) -> None:
    package = llava()
    (tmp_path / "parallel.py").write_text(SCRIPT)
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(tmp_path / "parallel.py"), str(package)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("ANSWERS")]
    parallel = [Answer(**answer) for answer in json.loads(line.removeprefix("ANSWERS"))]
    with engine(package) as llm:
        assert difference(parallel, ask(llm)) <= 1e-5
