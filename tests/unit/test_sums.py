"""Where kernels use too much together: who is stopped for it, and how cores are shared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.escalation import Interrupt, Kill, Policy, Warn
from jupyter_kernelpool.sums import HUNGRY, Group, Sums, SumStanding, escalate_sum, share_cores

POLICY = Policy(warn_at=0.8, interrupts=True, grace=3.0, hard=1.5)


def steps(looks, policy=POLICY):
    """Whom each look concerns, and how; *looks* are a time, and what each kernel uses of 100."""
    standing, found = SumStanding(), []
    for now, used in looks:
        standing, step = escalate_sum(standing, used=used, allowed=100.0, policy=policy, now=now)
        found.append(f"{type(step[1]).__name__} {step[0]}" if step else "-")
    return found


@pytest.mark.parametrize(
    "looks, expected",
    [
        ([(0, {"a": 30, "b": 30})], ["-"]),
        ([(0, {"a": 30, "b": 55}), (1, {"a": 30, "b": 60})], ["Warn b", "-"]),
        ([(0, {"a": 60, "b": 50})], ["Interrupt a"]),
        ([(0, {"a": 50, "b": 60}), (1, {"a": 50, "b": 60}), (3, {"a": 50, "b": 60})], ["Interrupt b", "-", "Kill b"]),
        # It stopped, and another one grew: that one has its time, too.
        ([(0, {"a": 90, "b": 20}), (3, {"a": 30, "b": 80}), (6, {"a": 30, "b": 80})],
         ["Interrupt a", "Interrupt b", "Kill b"]),
        # One was ended, and it is still too much.
        ([(0, {"a": 75, "b": 70}), (3, {"a": 75, "b": 70}), (4, {"b": 70, "c": 60}), (7, {"b": 70, "c": 60})],
         ["Interrupt a", "Kill a", "Interrupt b", "Kill b"]),
        ([(0, {"a": 100, "b": 60})], ["Kill a"]),
        ([(0, {"a": 60, "b": 50}), (1, {"a": 20, "b": 50}), (9, {"a": 60, "b": 50})],
         ["Interrupt a", "-", "Interrupt a"]),
        ([(0, {})], ["-"]),
    ],
)  # fmt: skip
def test_one_that_uses_most_is_stopped(looks, expected):
    assert steps(looks) == expected


def test_without_interrupts_the_one_that_uses_most_is_ended_at_once():
    assert steps([(0, {"a": 60, "b": 50})], Policy(interrupts=False, hard=1.0)) == ["Kill a"]


# -- cores ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "used, hungry, limits, cores, expected",
    [
        ({"a": 0.5, "b": 0.4}, "", {}, 1.0, {}),
        ({"a": 1.0, "b": 1.0}, "", {}, 1.0, {"a": 0.5, "b": 0.5}),
        ({"a": 1.0, "b": 0.1}, "", {}, 1.0, {"a": 0.9}),  # who uses little keeps it
        ({"a": 0.5, "b": 0.4}, "ab", {}, 1.0, {"a": 0.5, "b": 0.5}),  # slowed down, both want more
        ({"a": 0.1, "b": 0.5}, "b", {}, 1.0, {"b": 0.9}),  # one has ended
        ({"a": 0.1, "b": 0.1}, "", {}, 1.0, {}),
        ({"a": 1.0, "b": 0.3}, "b", {"b": 0.3}, 1.0, {"a": 0.7}),  # more than its own limit it never gets
        ({"a": 0.3}, "a", {"a": 0.3}, 1.0, {}),
        ({}, "", {}, 1.0, {}),
    ],
)  # fmt: skip
def test_cores_are_shared_fairly(used, hungry, limits, cores, expected):
    assert share_cores(used, set(hungry), limits, cores) == pytest.approx(expected)


@given(
    used=st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 8)),
    hungry=st.sets(st.sampled_from("abcdef")),
    cores=st.floats(0.5, 8),
)
def test_shares_never_exceed_the_cores_and_nobody_who_wants_more_has_less_than_another(used, hungry, cores):
    shared = share_cores(used, hungry, {}, cores)
    left_alone = sum(amount for kernel_id, amount in used.items() if kernel_id not in shared)
    if shared:
        assert len(set(shared.values())) == 1
        assert sum(shared.values()) + left_alone == pytest.approx(cores)
        fair = next(iter(shared.values()))
        assert all(amount <= fair * (1 + 1e-9) for kernel_id, amount in used.items() if kernel_id not in shared)
    else:
        assert left_alone <= cores * (1 + 1e-9)


# -- groups -----------------------------------------------------------------------------------------


def groups_of(*groups):
    return lambda: list(groups)


def test_each_group_is_judged_by_its_own_members_and_its_breach_names_it():
    sums = Sums(POLICY)
    sums.add(
        groups_of(
            Group("kernels of ada", Allowance(memory=100), frozenset("ab")),
            Group("kernels of bob", Allowance(memory=100), frozenset("cd")),
        ),
        Allowance(memory=100),
    )
    used = {"a": {"memory": 60.0}, "b": {"memory": 50.0}, "c": {"memory": 99.0}, "d": {"cpu": 3.0}}
    judgement = sums.judge(used, "", {}, now=0.0, at=1000.0)
    found = [(kernel_id, breach.group, breach.seen, type(step).__name__) for kernel_id, breach, step in judgement.steps]
    assert found == [("a", "kernels of ada", 110.0, "Interrupt"), ("c", "kernels of bob", 99.0, "Warn")]
    assert judgement.near


def test_groups_of_the_same_name_and_members_are_kept_apart():
    """One owner's kernels are all kernels: the quota is not crossed where the sum is."""
    sums = Sums(POLICY)
    for most in (100, 200):
        group = Group("all kernels", Allowance(memory=most), frozenset("a"))
        sums.add(groups_of(group), Allowance(memory=most))
    steps = []
    for look in range(60):
        judgement = sums.judge({"a": {"memory": 105.0}}, "", {}, now=look / 10, at=0.0)
        steps += [type(step).__name__ for _, breach, step in judgement.steps if breach.allowed == 100]
    assert steps[:2] == ["Interrupt", "Kill"]


def test_sum_of_which_the_system_refuses_more_is_crossed_though_it_never_is_above():
    sums, refused = Sums(POLICY), frozenset({"processes"})

    def judge(now, refused):
        sums._find.clear()
        sums.add(
            groups_of(Group("all kernels", Allowance(processes=100), frozenset("ab"), refused)),
            Allowance(processes=100),
        )
        used = {"a": {"processes": 90.0}, "b": {"processes": 10.0}}
        return [(kernel_id, type(step)) for kernel_id, _, step in sums.judge(used, "", {}, now=now, at=0.0).steps]

    assert judge(0.0, frozenset()) == [("a", Warn)]
    assert judge(1.0, refused) == [("a", Interrupt)]
    assert judge(1.1, frozenset()) == []
    assert judge(1.0 + POLICY.grace, frozenset()) == [], "it asks for no more"
    assert judge(1.1 + POLICY.grace, refused) == [("a", Kill)]


def test_smallest_share_of_all_groups_holds_and_only_changes_are_told():
    sums = Sums(POLICY)
    sums.add(groups_of(Group("all kernels", Allowance(cpu=4.0), frozenset("abc"))), Allowance(cpu=4.0))
    sums.add(groups_of(Group("kernels of ada", Allowance(cpu=1.0), frozenset("ab"))), Allowance(cpu=1.0))
    used = {name: {"cpu": 4.0} for name in "abc"}
    judgement = sums.judge(used, "", {}, now=0.0, at=0.0)
    assert sorted(judgement.recapped) == ["a", "b", "c"]
    assert sums.caps == pytest.approx({"a": 0.5, "b": 0.5, "c": 4 / 3})
    used = {name: {"cpu": 0.8 * cap} for name, cap in sums.caps.items()}
    assert sums.judge(used, "abc", {}, now=1.0, at=1.0).recapped == []
    assert sums.judge(used, "", {}, now=1.0 + HUNGRY / 2, at=1.5).recapped == [], "it is not slowed down at each look"
    assert sums.caps == pytest.approx({"a": 0.5, "b": 0.5, "c": 4 / 3})
    idle = {name: {"cpu": 0.0} for name in "abc"}
    assert sorted(sums.judge(idle, "", {}, now=9.0, at=9.0).recapped) == ["a", "b", "c"]
    assert sums.caps == {}


def test_hungry_kernels_end_at_equal_shares_and_get_all_back():
    sums = Sums(POLICY)
    sums.add(groups_of(Group("all kernels", Allowance(cpu=2.0), frozenset("abc"))), Allowance(cpu=2.0))
    demand, now = {"a": 4.0, "b": 4.0, "c": 0.2}, 0.0

    def settle() -> None:
        nonlocal now
        for _ in range(10):
            now += 0.5
            slowed = {key for key, most in demand.items() if most > sums.caps.get(key, most)}
            used = {key: {"cpu": min(most, sums.caps.get(key, most))} for key, most in demand.items()}
            sums.judge(used, slowed, {}, now=now, at=now)

    settle()
    assert sums.caps == pytest.approx({"a": 0.9, "b": 0.9})
    demand.update(a=1.0, b=0.0)
    settle()
    assert sums.caps == {}


def test_group_that_is_gone_is_forgotten():
    sums = Sums(POLICY)
    present = [Group("kernels of ada", Allowance(memory=100), frozenset("a"))]
    sums.add(lambda: present, Allowance(memory=100))
    used = {"a": {"memory": 90.0}}
    assert len(sums.judge(used, "", {}, now=0.0, at=0.0).steps) == 1
    assert sums.judge(used, "", {}, now=1.0, at=1.0).steps == []
    group = present.pop()
    sums.judge({}, "", {}, now=2.0, at=2.0)
    present.append(group)
    assert len(sums.judge(used, "", {}, now=3.0, at=3.0).steps) == 1


def test_limits_that_are_no_sums_are_not_judged():
    sums = Sums(POLICY)
    sums.add(groups_of(), Allowance(open_files=200, output=5))
    assert sums.limited == frozenset()
