"""What Python runs when a process of the tests starts: the seams by which vLLM's CPU build does without a GPU's parts.

vLLM starts processes of its own, which import nothing of the tests; this file reaches them through PYTHONPATH.
"""

import importlib.abc
import os
import sys
from importlib.metadata import version


class _Torchvision(importlib.abc.MetaPathFinder):
    """PyPI's wheel of torchvision is for CUDA. Its Python code runs on the CPU once its kernels have schemas."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            if version("torchvision").endswith("+cpu"):
                return  # it brings its kernels
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.steerkit_torchvision = self  # a library that is collected takes its schemas along


sys.meta_path.insert(0, _Torchvision())

if os.environ.get("STEERKIT_TEST_V2"):
    # vLLM takes its second model runner where Triton has a backend; Triton's interpreter needs none
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.backends

    class _Driver:
        @staticmethod
        def is_active() -> bool:
            return True

        @staticmethod
        def get_current_target() -> None:
            # Inductor, which compiles for the CPU without Triton, takes this for Triton's own word that there is no GPU
            raise RuntimeError("0 active drivers")

    class _Backend:
        driver = _Driver
        compiler = None

    triton.backends.backends["cpu"] = _Backend

    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder

    def _boolean(method, at):  # type: ignore[no-untyped-def]
        """The interpreter refuses masks that its own arithmetic has widened; compiled, they are one bit."""

        def masked(*given):  # type: ignore[no-untyped-def]
            given[at].data = given[at].data.astype(np.bool_)
            return method(*given)

        return masked

    InterpreterBuilder.create_masked_load = _boolean(InterpreterBuilder.create_masked_load, 2)
    InterpreterBuilder.create_masked_store = _boolean(InterpreterBuilder.create_masked_store, 3)
