"""Who was forked from whom: the forest of kernels and checkpoints. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A kernel or a checkpoint, gone or not. *parent* is the id of what it was forked from."""

    id: str
    kind: str
    parent: str | None
    created: float
    name: str | None = None


class Lineage:
    """The forest. What ended stays while something descends from it."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._living: set[str] = set()

    def add(self, node: Node) -> None:
        """Enter *node*, which lives; its parent is entered as a kernel if it is not known yet."""
        self._nodes[node.id] = node
        self._living.add(node.id)

    def find(self, key: str) -> Node | None:
        """The node with the id *key*."""
        return self._nodes.get(key)

    def end(self, key: str) -> None:
        """*key* has ended; forget it, and each ended ancestor, that nothing descends from."""
        self._living.discard(key)
        node = self._nodes.get(key)
        while node is not None and node.id not in self._living and not self.children(node.id):
            del self._nodes[node.id]
            node = self._nodes.get(node.parent) if node.parent is not None else None

    def children(self, key: str) -> list[Node]:
        """What was forked from *key*, in order of time."""
        return sorted((node for node in self._nodes.values() if node.parent == key), key=lambda node: node.created)

    def root(self, key: str) -> str:
        """The first ancestor of *key*; itself if it was not forked."""
        node = self._nodes.get(key)
        while node is not None and node.parent is not None and node.parent in self._nodes:
            node = self._nodes[node.parent]
        return node.id if node is not None else key

    def related(self, one: str, other: str) -> bool:
        """Whether both descend from the same kernel."""
        return self.root(one) == self.root(other)

    def is_living(self, key: str) -> bool:
        """Whether *key* has not ended."""
        return key in self._living

    def nodes(self) -> list[Node]:
        """All of them, in order of time."""
        return sorted(self._nodes.values(), key=lambda node: node.created)
