"""Limits that an execution asks for itself, of what is measured: its kernel is held to them for as long as it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from jupyter_kernelpool.allowances import Allowances
from jupyter_kernelpool.cell_ends import CellEnd
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.errors import NotEnforceable
from jupyter_kernelpool.ledger import Execution, Ledger

Act = Coroutine[Any, Any, None]


class SingleCells:
    """For the kernels of one guard, whose acts these are.

    *hold* has it hold a kernel to what is in force by now; *settle* tells what a cell that has ended did to a limit,
    which is to be told before that is lifted; *begin* runs an act.
    """

    def __init__(
        self,
        allowances: Allowances,
        edge: Edge,
        *,
        hold: Callable[[str], Act],
        settle: Callable[[str, CellEnd], Act],
        begin: Callable[[Act], None],
    ) -> None:
        self._allowances = allowances
        self._edge = edge
        self._hold = hold
        self._settle = settle
        self._begin = begin
        self._holding: dict[str, bool] = {}  # kernels that are just being held, and whether that is to be done again
        edge.on_ledger.append(self._follow)

    def _follow(self, kernel_id: str, ledger: Ledger) -> None:
        ledger.on_begin.append(functools.partial(self._began, kernel_id))
        ledger.on_end.append(functools.partial(self._ended, kernel_id))

    def _began(self, kernel_id: str, execution: Execution) -> None:
        asked = self._edge.requested.get(kernel_id, {}).get(execution.msg_id)
        if asked is not None and self._allowances.begin_execution(kernel_id, execution.msg_id, asked):
            self._hold_soon(kernel_id)

    def _ended(self, kernel_id: str, execution: Execution) -> None:
        # One that is lost may be the cause of its process's end: the next process is held anew.
        concerned = self._allowances.asked_by(kernel_id, execution.msg_id)
        if concerned and not execution.lost:
            self._begin(self._lift(kernel_id, execution, concerned))

    async def _lift(self, kernel_id: str, execution: Execution, concerned: frozenset[str]) -> None:
        if "memory" in concerned:
            await self._settle(kernel_id, CellEnd(execution.header))
        self._allowances.end_execution(kernel_id, execution.msg_id)
        self._hold_soon(kernel_id)

    def _hold_soon(self, kernel_id: str) -> None:
        if kernel_id in self._holding:
            self._holding[kernel_id] = True
        else:
            self._begin(self._hold_until_settled(kernel_id))

    async def _hold_until_settled(self, kernel_id: str) -> None:
        """One after the other, however many cells begin and end meanwhile; the last has what is in force then."""
        self._holding[kernel_id] = True
        try:
            while self._holding[kernel_id]:
                self._holding[kernel_id] = False
                try:
                    await self._hold(kernel_id)
                except NotEnforceable as error:
                    self._edge.say(kernel_id, f"Limit not heeded: {error}.")
        finally:
            del self._holding[kernel_id]
