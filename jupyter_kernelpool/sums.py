"""What kernels may use together: whom a sum that was crossed stops, and how processor time is shared. Pure.

A `Group` is kernels that share an allowance: all of the server's, or those of an owner.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from jupyter_kernelpool.allowance import Allowance, Breach
from jupyter_kernelpool.escalation import Interrupt, Kill, Policy, Standing, Step, escalate

HUNGRY = 1.0  # seconds for which a kernel that was slowed down is taken to want more than it got
NEAR = 0.5
NOTICEABLE = 0.05  # share by which the cores that a kernel may use have to change before anybody is told
SUMMED = frozenset({"memory", "cpu", "processes"})
NO_CAP = float("inf")


@dataclass(frozen=True)
class Group:
    """Kernels whose sum may be *allowance*; *name* is for people ("all kernels"). Never without a name.

    *refused* are the limits of which the operating system has just refused more: as it holds the sum, too, that never
    is above what is allowed.
    """

    name: str
    allowance: Allowance
    members: frozenset[str]
    refused: frozenset[str] = frozenset()


@dataclass
class Judgement:
    """What comes of one look at the sums: *steps* with the kernels they concern, in *recapped* those whose share of the
    cores has changed (`Sums.caps`), and whether a sum is *near* what is allowed."""

    steps: list[tuple[str, Breach, Step]] = field(default_factory=list)
    recapped: list[str] = field(default_factory=list)
    near: bool = False


class Sums:
    """Judges the groups that whoever called `add` finds, at each look anew. *caps* are cores by kernel id."""

    def __init__(self, policy: Policy) -> None:
        self.limited: frozenset[str] = frozenset()
        self.caps: dict[str, float] = {}
        self._policy = policy
        self._find: list[Callable[[], Iterable[Group]]] = []
        self._standings: dict[tuple[int, str, str], SumStanding] = {}  # by whose group it is, its name, and the limit
        self._slowed: dict[str, float] = {}  # when a kernel was last seen to be slowed down

    def add(self, find_groups: Callable[[], Iterable[Group]], most: Allowance) -> None:
        """Judge the groups that *find_groups* gives, too; *most* has every limit that one of them may have."""
        if most.limited & SUMMED:
            self._find.append(find_groups)
            self.limited |= most.limited & SUMMED

    def judge(
        self,
        used: Mapping[str, Mapping[str, float]],
        slowed: Collection[str],
        cores: Mapping[str, float],
        now: float,
        at: float,
    ) -> Judgement:
        """*used* is what kernels use of each limit, by id, and *slowed* those that were slowed down since the last
        look; *cores* those that they may use by themselves, where that is limited. *now* is monotonic, *at* seconds
        since the epoch."""
        judgement, caps = Judgement(), dict[str, float]()
        hungry = self._hungry(used, slowed, now)
        groups = [(place, group) for place, find in enumerate(self._find) for group in find()]
        for place, group in groups:
            for limit in sorted(group.allowance.limited & SUMMED):
                members = {
                    kernel_id: amounts[limit]
                    for kernel_id, amounts in used.items()
                    if kernel_id in group.members and limit in amounts
                }
                if limit == "cpu":
                    for kernel_id, share in share_cores(members, hungry, cores, group.allowance.cpu).items():
                        caps[kernel_id] = min(share, caps.get(kernel_id, share))
                else:
                    self._judge_sum(judgement, place, group, limit, members, now, at)
        if "cpu" in self.limited:
            self._cap(judgement, caps, used)
        present = {(place, group.name) for place, group in groups}
        self._standings = {key: standing for key, standing in self._standings.items() if key[:2] in present}
        return judgement

    def _hungry(self, used: Mapping[str, Mapping[str, float]], slowed: Collection[str], now: float) -> frozenset[str]:
        over = {kernel_id for kernel_id, cap in self.caps.items() if used.get(kernel_id, {}).get("cpu", 0.0) > cap}
        self._slowed = {key: seen for key, seen in self._slowed.items() if key in used and now - seen < HUNGRY}
        self._slowed |= dict.fromkeys(over.union(slowed) & used.keys(), now)
        return frozenset(self._slowed)

    def _judge_sum(
        self,
        judgement: Judgement,
        place: int,
        group: Group,
        limit: str,
        used: Mapping[str, float],
        now: float,
        at: float,
    ) -> None:
        allowed = getattr(group.allowance, limit)
        judgement.near |= sum(used.values()) > NEAR * allowed
        standing, found = escalate_sum(
            self._standings.get((place, group.name, limit), SumStanding()),
            used=used, refused=limit in group.refused, allowed=allowed, policy=self._policy, now=now,
        )  # fmt: skip
        self._standings[place, group.name, limit] = standing
        if found is not None:
            kernel_id, step = found
            breach = Breach(limit, allowed, standing.standing.seen, at, "", group.name)
            judgement.steps.append((kernel_id, breach, step))

    def _cap(self, judgement: Judgement, caps: Mapping[str, float], present: Iterable[str]) -> None:
        for kernel_id in present:
            before, after = self.caps.pop(kernel_id, None), caps.get(kernel_id)
            if before is not None and after is not None and abs(after - before) <= NOTICEABLE * before:
                after = before
            if after is not None:
                self.caps[kernel_id] = after
            if after != before:
                judgement.recapped.append(kernel_id)


@dataclass(frozen=True)
class SumStanding:
    """How far a group went with one limit, and which of its kernels were interrupted for it since it was crossed."""

    standing: Standing = field(default_factory=Standing)
    asked: frozenset[str] = frozenset()


def escalate_sum(
    present: SumStanding,
    *,
    used: Mapping[str, float],
    allowed: float,
    policy: Policy,
    now: float,
    refused: bool = False,
) -> tuple[SumStanding, tuple[str, Step] | None]:
    """What to do when the kernels, by id, use so much of a resource of which together they are *allowed* so much.

    It concerns the one that uses most. Each is interrupted, and given time, before it is ended for the sum. *refused*:
    they wanted one more than that.
    """
    if not used:
        return SumStanding(), None
    total = max(sum(used.values()), allowed + 1 if refused else 0)
    standing, step = escalate(present.standing, used=total, allowed=allowed, policy=policy, now=now)
    asked = present.asked if standing.interrupted_at is not None else frozenset()
    if step is None:
        return SumStanding(standing, asked), None
    heaviest = max(sorted(used), key=lambda kernel_id: used[kernel_id])
    if isinstance(step, Kill) and policy.interrupts and heaviest not in asked and not _is_hard(used, allowed, policy):
        step, standing = Interrupt(), replace(standing, interrupted_at=now)
    if isinstance(step, Interrupt):
        asked |= {heaviest}
    elif isinstance(step, Kill):
        standing, asked = replace(standing, over_since=None, interrupted_at=None), frozenset()
    return SumStanding(standing, asked), (heaviest, step)


def share_cores(
    used: Mapping[str, float], hungry: Collection[str], limits: Mapping[str, float], cores: float
) -> dict[str, float]:
    """How many cores each kernel may use, by id, where together they want more than *cores*; others are left alone.

    *limits* are their own. Who uses less than a fair share keeps what it uses; the others share the rest evenly, since
    of the *hungry*, which are slowed down and would use more, nobody knows how much.
    """
    wanted = {
        kernel_id: limits.get(kernel_id, NO_CAP) if kernel_id in hungry else amount
        for kernel_id, amount in used.items()
    }
    if sum(wanted.values()) <= cores:
        return {}
    left, fair = cores, 0.0
    for place, amount in enumerate(sorted(wanted.values())):
        fair = left / (len(wanted) - place)
        if amount > fair:
            break
        left -= amount
    return {kernel_id: fair for kernel_id, amount in wanted.items() if amount > fair}


def _is_hard(used: Mapping[str, float], allowed: float, policy: Policy) -> bool:
    return sum(used.values()) >= policy.hard * allowed
