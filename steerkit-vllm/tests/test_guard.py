"""A plug-in that vLLM has not loaded: the server does not start, or refuses what it would have to drop."""

from __future__ import annotations

import os

import httpx
import pytest
from serving import Server, ServerError, post, wish
from tested import V2


def before(folder, package):
    """A PYTHONPATH on which a package can't be imported."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("raise ImportError('it is broken')\n")
    return os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])


@pytest.mark.parametrize("runner", [pytest.param({}, id="V1"), pytest.param(V2, id="V2", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("package", "said"),
    [("steerkit_vllm", r"Failed to load LogitsProcessor plugin .*it is broken"), ("steerkit", "it is broken")],
)
def test_a_server_does_not_start_without_what_it_is_to_steer_with(lab, tmp_path, package, said, runner):
    with pytest.raises(ServerError, match=said):
        Server(lab, tmp_path, ["last"], plain=True, PYTHONPATH=before(tmp_path, package), **runner)


@pytest.mark.parametrize("runner", [pytest.param({}, id="V1"), pytest.param(V2, id="V2", marks=pytest.mark.long)])
def test_a_server_that_is_to_steer_does_not_start_with_other_plug_ins_alone(lab, tmp_path, runner):
    with pytest.raises(ServerError, match="vLLM has not loaded the plug-in.*VLLM_PLUGINS"):
        Server(lab, tmp_path, ["last"], plain=True, VLLM_PLUGINS="another", **runner)


@pytest.mark.parametrize("runner", [pytest.param({}, id="V1"), pytest.param(V2, id="V2", marks=pytest.mark.long)])
def test_requests_that_ask_to_be_steered_are_refused_where_nothing_steers(lab, tmp_path, runner):
    server = Server(lab, tmp_path, settings=None, plain=True, VLLM_PLUGINS="another", **runner)
    try:
        assert httpx.get(f"{server.address}/steerkit").status_code == 404
        assert server.tokens(1) == lab.wanted(None)[1]
        chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
        for path, body in {
            "/v1/completions": {"prompt": "a"},
            "/v1/chat/completions": chat,
            "/v1/responses": {"input": "a"},
            "/v1/messages": chat,
        }.items():
            found = post(server, path, **body, vllm_xargs=wish("last", 1.0))
            assert found.status_code == 400
            assert "vLLM has not loaded steerkit's plug-in" in found.text
        assert server.tokens(1) == lab.wanted(None)[1]
    finally:
        server.stop()
