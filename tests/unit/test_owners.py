"""Whose kernels are whose, and how many each may have: starts under way counted, forks their parent's owner's."""

from __future__ import annotations

import pytest
from jupyter_server.auth.identity import IdentityProvider, PasswordIdentityProvider

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.errors import NotValid, QuotaExceeded
from jupyter_kernelpool.owners import SINGLE, Owners, is_anonymous, read_quota


class Known(IdentityProvider):
    """One that knows its users."""


@pytest.mark.parametrize(
    "given, kernels, summed",
    [
        ({}, 0, Allowance()),
        ({"kernels": 3}, 3, Allowance()),
        ({"memory": "2G", "cpu": 1.5, "processes": 200}, 0, Allowance(memory=2 << 30, cpu=1.5, processes=200)),
    ],
)
def test_quota_is_read(given, kernels, summed):
    assert read_quota(given) == (kernels, summed)


@pytest.mark.parametrize("given", [[], {"kernel": 1}, {"kernels": -1}, {"kernels": 1.5}, {"memory": "much"}])
def test_wrong_quota_is_refused(given):
    with pytest.raises(NotValid):
        read_quota(given)


def test_start_under_way_counts():
    owners = Owners("user", 1)
    with owners.starting("ada"), pytest.raises(QuotaExceeded) as refused, owners.starting("ada"):
        pass
    assert refused.value.facts["retry_after"] > 0
    with owners.starting("ada") as owner:
        owners.settle("k", owner)
    with pytest.raises(QuotaExceeded), owners.starting("ada"):
        pass
    owners.forget("k")
    with owners.starting("ada"):
        pass


def test_failed_start_gives_its_place_back():
    owners = Owners("user", 1)
    with pytest.raises(RuntimeError), owners.starting("ada"):
        raise RuntimeError
    with owners.starting("ada"):
        pass


def test_users_have_quotas_of_their_own():
    owners = Owners("user", 1)
    with owners.starting("ada") as ada, owners.starting("bob") as bob:
        owners.settle("a", ada)
        owners.settle("b", bob)
    assert (owners.of("a"), owners.of("b"), owners.everybody()) == ("ada", "bob", {"ada", "bob"})
    assert owners.kernels_of("bob") == {"b"}


def test_single_owner_has_all_whoever_asks():
    owners = Owners("single", 0)
    with owners.starting("ada") as owner:
        owners.settle("a", owner)
    assert owners.of("a") == SINGLE


def test_fork_is_its_parents_owners_whoever_asked():
    owners = Owners("user", 0)
    with owners.acting_for("ada"), owners.starting("bob") as owner:
        assert owner == "ada"
    with owners.starting("bob") as owner:
        assert owner == "bob"


@pytest.mark.parametrize(
    "provider, anonymous", [(IdentityProvider, True), (PasswordIdentityProvider, True), (Known, False)]
)
def test_identity_provider_that_knows_no_users_is_told(provider, anonymous):
    assert is_anonymous(provider) is anonymous
