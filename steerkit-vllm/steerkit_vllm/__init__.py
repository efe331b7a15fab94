"""steerkit in vLLM: packs that are served per request.

vLLM loads `register` in each of its processes, through the entry-point group `vllm.general_plugins`.
"""

from __future__ import annotations

from steerkit_vllm._version import VLLM, __version__

__all__ = ["KEY", "VLLM", "__version__", "loaded", "register"]

KEY = "steerkit"
"""Where the settings are in vLLM's `additional_config`, and where a request's plan is in its `extra_args`."""

loaded = False
"""Whether vLLM has loaded the plug-in in this process; `guard` asks."""


def register() -> None:
    """Prepare a process of vLLM for steering; nothing is steered without `--additional-config`.

    Raises:
        RuntimeError: This version of vLLM is not known.
    """
    from vllm import __version__ as found

    if ".".join(found.split(".")[:2]) not in VLLM:
        raise RuntimeError(
            f"steerkit-vllm {__version__} knows the internals of vLLM {', '.join(VLLM)}, and {found} is installed: "
            "install a version that it knows, or uninstall steerkit-vllm"
        )
    from steerkit_vllm import frontend, worker

    frontend.install()
    worker.install()
    global loaded
    loaded = True
