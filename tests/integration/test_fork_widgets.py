"""ipywidgets in a fork: models are kept, front ends find them, and each kernel's are its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from queue import Empty
from typing import Any

import pytest

from .kernelside_driver import PATIENCE, Kernel, read_json

pytestmark = pytest.mark.integration

VIEW = "application/vnd.jupyter.widget-view+json"
LOOK = "import json; print(json.dumps([slider.value, seen]))"


@pytest.fixture
def kernel(kp_kernel: Kernel) -> Kernel:
    """A kernel with a slider at 5 that is observed, as a notebook would have it."""
    kp_kernel.run(
        "import ipywidgets\nfrom IPython.display import display\n"
        "slider, seen, out = ipywidgets.IntSlider(3), [], ipywidgets.Output()\n"
        "slider.observe(lambda change: seen.append(change['new']), 'value')\n"
        "label = ipywidgets.Label(); ipywidgets.dlink((slider, 'value'), (label, 'value'), str)\n"
        "slider.value = 5"
    )
    return kp_kernel


def send(kernel: Kernel, kind: str, content: dict[str, Any], **metadata: str) -> str:
    """Send what a front end sends on the shell channel; the message's id."""
    message = kernel.client.session.msg(kind, content, metadata=metadata)
    kernel.client.shell_channel.send(message)
    return str(message["header"]["msg_id"])


def published(kernel: Kernel, request: str) -> Iterator[dict[str, Any]]:
    """What *kernel* publishes on behalf of *request*, until it is idle again."""
    while True:
        message = kernel.client.get_iopub_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") == request:
            if message["content"].get("execution_state") == "idle":
                return
            yield message


def test_front_end_that_connects_to_a_fork_finds_the_models(kernel: Kernel) -> None:
    fork = kernel.fork()
    identifier = fork.run("print(slider.model_id)")
    send(fork, "comm_info_request", {"target_name": "jupyter.widget"})
    while (reply := fork.client.get_shell_msg(timeout=PATIENCE))["msg_type"] != "comm_info_reply":
        pass
    assert reply["content"]["comms"][identifier] == {"target_name": "jupyter.widget"}
    control = {"comm_id": "control", "target_name": "jupyter.widget.control", "data": {}}
    send(fork, "comm_open", control, version="1.0.0")
    request = send(fork, "comm_msg", {"comm_id": "control", "data": {"method": "request_states"}})
    (answer,) = [one["content"] for one in published(fork, request) if one["msg_type"] == "comm_msg"]
    assert (answer["comm_id"], answer["data"]["method"]) == ("control", "update_states")
    states = answer["data"]["states"]
    assert (states[identifier]["model_name"], states[identifier]["state"]["value"]) == ("IntSliderModel", 5)
    assert states[identifier]["state"]["layout"].removeprefix("IPY_MODEL_") in states


def test_what_a_front_end_moves_in_a_fork_is_observed_there_alone(kernel: Kernel) -> None:
    fork = kernel.fork()
    identifier = fork.run("print(slider.model_id)")
    update = {"method": "update", "state": {"value": 9}, "buffer_paths": []}
    request = send(fork, "comm_msg", {"comm_id": identifier, "data": update})
    told = [one["content"]["data"] for one in published(fork, request) if one["msg_type"] == "comm_msg"]
    assert {"value": "9"} in [data["state"] for data in told], "the linked label follows"
    assert read_json(fork.run(LOOK)) == [9, [5, 9]]
    assert read_json(kernel.run(LOOK)) == [5, [5]]
    request = send(kernel, "comm_msg", {"comm_id": identifier, "data": update | {"state": {"value": 2}}})
    assert [one for one in published(kernel, request) if one["msg_type"] == "comm_msg"]
    assert read_json(kernel.run(LOOK)) == [2, [5, 2]]
    assert read_json(fork.run(LOOK)) == [9, [5, 9]]


def test_views_and_new_widgets_of_a_fork_reach_its_front_ends_alone(kernel: Kernel) -> None:
    fork = kernel.fork().fork()
    kernel.run("None")
    identifier = fork.run("print(slider.model_id)")
    request = fork.client.execute("display(slider)\nfresh = ipywidgets.Text('made'); slider.value = 6")
    heard = list(published(fork, request))
    (shown,) = [one["content"]["data"][VIEW] for one in heard if one["msg_type"] == "display_data"]
    assert shown["model_id"] == identifier
    opened = [one["content"]["data"]["state"] for one in heard if one["msg_type"] == "comm_open"]
    assert "made" in [state.get("value") for state in opened]
    moved = [one["content"]["data"]["state"] for one in heard if one["msg_type"] == "comm_msg"]
    assert {"value": 6} in moved
    with contextlib.suppress(Empty):
        while True:
            message = kernel.client.get_iopub_msg(timeout=0.2)
            assert message["msg_type"] not in ("comm_open", "comm_msg", "display_data"), "the parent's hear nothing"


def test_output_widget_of_a_fork_captures_the_forks_output(kernel: Kernel) -> None:
    fork = kernel.fork()
    identifier = fork.run("print(out.model_id)")
    request = fork.client.execute("with out: print('captured')")
    heard = list(published(fork, request))
    captured = [one["content"]["data"]["state"].get("msg_id") for one in heard
                if one["msg_type"] == "comm_msg" and one["content"]["comm_id"] == identifier]  # fmt: skip
    assert captured == [request, ""]
    assert "captured" in [one["content"]["text"].strip() for one in heard if one["msg_type"] == "stream"]
