"""What presets say lies below what is configured, and names only settings that there are."""

from __future__ import annotations

import pytest
from jupyter_server.serverapp import ServerApp
from traitlets import TraitError
from traitlets.config import Config

from jupyter_kernelpool.culler import KernelCuller
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.limits.settings import KernelLimits
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.presets import PRESETS, for_server, under

CLASSES = {each.__name__: each for each in (KernelPool, KernelLimits, KernelHealth, KernelCuller, ServerApp)}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_names_settings_that_there_are_with_values_they_take(name):
    for owner, traits in PRESETS[name].items():
        made = CLASSES[owner] if owner == "ServerApp" else CLASSES[owner](config=Config({owner: traits}))
        for trait, value in traits.items():
            assert owner == "ServerApp" or getattr(made, trait) == value
            assert trait in CLASSES[owner].class_traits(config=True), f"{owner}.{trait}"


def test_what_is_configured_holds():
    config = Config({"KernelPool": {"preset": "hub", "warm": 5, "max_warm": 6}})
    pool = KernelPool(config=under(config))
    assert (pool.warm, pool.max_warm, pool.warm_at_start) == (5, 6, False)
    assert config == Config({"KernelPool": {"preset": "hub", "warm": 5, "max_warm": 6}}), "left as it was"


def test_presets_are_told_apart_whatever_their_case_and_wrong_ones_refused():
    assert KernelPool(config=under(Config({"KernelPool": {"preset": "CodeRunner"}}))).max_kernels == 5
    with pytest.raises(TraitError, match="hub"):
        KernelPool(config=under(Config({"KernelPool": {"preset": "cloud"}})))


def test_the_servers_own_settings_are_set_where_nobody_set_them():
    config = Config({"KernelPool": {"preset": "coderunner"}, "ServerApp": {"websocket_ping_timeout": 5}})
    assert for_server(config) == {"websocket_ping_interval": 30}
    assert for_server(Config()) == {}
