"""vLLM's server, or none: `python -m steerkit_vllm --model MODEL ...`, with the options of `vllm serve`.

vLLM only logs a plug-in that it can't load; `guard` stops the server then, and this says so before the model is loaded.
"""

from __future__ import annotations


def main() -> None:
    """Start it.

    Raises:
        SystemExit: vLLM has not loaded the plug-in.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.launchers.api_server.entry import main as serve
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    if not hasattr(EngineArgs.create_engine_config, "steerkit"):
        raise SystemExit(
            "steerkit-vllm: vLLM has not loaded the plug-in and would serve without steering. Expected: the entry "
            "point 'steerkit' of the group 'vllm.general_plugins', allowed by VLLM_PLUGINS where that is set. Fix: see "
            "the error above if there is one, or install steerkit-vllm into this environment (a folder on PYTHONPATH "
            "has no entry points)"
        )
    serve()


if __name__ == "__main__":
    main()
