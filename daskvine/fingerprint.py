"""Digest values by their structure, because pickles of equal values may differ: sets, keys, shared strings.

A value is described by a tag and by the values that it consists of. Each value is visited once, in a
search that finds cycles (Tarjan, SIAM J. Comput. 1 (1972) 146), so the time is linear. The digest of a value
outside of cycles is that of its tag and of the digests of its parts. The values of a cycle are distinguished by
their parts, the parts of those, and so on, until a further step distinguishes no more of them (the refinement of
Hopcroft, 1971).

Two equal mutable values may be one object or two, and a change of one of them shows the difference. So a digest
also counts which mutable values occur more than once.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from daskvine.value_descriptions import (
    NO_RESOURCES,
    NotFingerprintable,
    UnorderedParts,
    ValueDescriber,
    ValueDescription,
    digest_parts,
)

_MAX_DEPTH = 2000
_MAX_REFINEMENT_ROUNDS = 500


Blocks = tuple[dict[int, int], ...]
MIN_SHARED_BLOCK_SIZE = 500
"""Values in a block that is passed on as it is."""


class Fingerprint(NamedTuple):
    """The digest of a value and its properties.

    Attributes
    ----------
    digest
        Of its structure.
    mutable
        The identities of the values in it that can be changed, with their places: in blocks that share none, large ones not copied.
    things
        The resources of this machine that it names, as in `vinecore.protocol.used_resources`.
    varies
        Whether there is code in it that makes something else each time.
    """

    digest: bytes
    mutable: Blocks = ()
    resources: frozenset[str] = NO_RESOURCES
    is_nondeterministic: bool = False


class _OpenValue:
    """A value that is being looked into."""

    __slots__ = ("lowest", "number", "part", "rest", "value")

    def __init__(self, value: Any, part: ValueDescription, number: int) -> None:
        self.value, self.part, self.number, self.lowest = value, part, number, number
        self.rest: Iterator[Any] = iter(part.parts)


class Fingerprinter(ValueDescriber):
    """Describes values, and remembers what it has described as long as it lives.

    Parameters
    ----------
    variables
        The environment that vertices will have, as far as it is known.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        super().__init__(variables)
        self._known: dict[int, Fingerprint] = {}
        self._alive: list[Any] = []  # what is known by identity must not be freed meanwhile
        self._texts: dict[str, Fingerprint] = {}
        self._overlaps: dict[tuple[int, int], bool] = {}  # of blocks, by identity

    def digest(self, value: Any) -> bytes:
        """Return the digest of any value.

        Raises
        ------
        NotFingerprintable
            It holds something that has no lasting description, such as an open file.
        """
        return self.fingerprint(value).digest

    def fingerprint(self, value: Any) -> Fingerprint:
        """Return the fingerprint of any value; see `digest`."""
        found = self._find_known(value)
        return self._visit_parts(value) if found is None else found

    def combine_fingerprints(self, tag: bytes, founds: Sequence[Fingerprint]) -> Fingerprint:
        """Combine the fingerprints of several values."""
        again, together = self._find_repeated(founds, {})
        digest = digest_parts(
            tag, *(found.digest for found in founds), *([repr(again).encode()] if again else [])
        )
        things = NO_RESOURCES.union(*(found.resources for found in founds if found.resources))
        return Fingerprint(digest, together, things, any(found.is_nondeterministic for found in founds))

    # ---- the search

    def _find_known(self, value: Any) -> Fingerprint | None:
        """Return what is known of a value already, or at once."""
        kind = type(value)
        if kind is str:
            return self._texts.get(value) or self._fingerprint_text(value)
        if kind in _PLAIN_TYPES:
            return Fingerprint(digest_parts(kind.__name__.encode(), repr(value).encode()))
        if kind is bytes:
            return Fingerprint(digest_parts(b"bytes", value))
        return self._known.get(id(value))

    def _fingerprint_text(self, value: str) -> Fingerprint:
        state, things = self.path_states.find_state(value)
        found = Fingerprint(digest_parts(b"str", value.encode(errors="surrogatepass"), state), (), things)
        self._texts[value] = found
        return found

    def _visit_parts(self, root: Any) -> Fingerprint:
        numbers: dict[int, int] = {}  # of what is open
        path = [self._open_value(root, numbers)]
        open_: list[_OpenValue] = path.copy()
        while path:
            node = path[-1]
            for value in node.rest:
                if self._find_known(value) is not None:
                    continue
                number = numbers.get(id(value))
                if number is None:
                    if len(path) >= _MAX_DEPTH:
                        raise NotFingerprintable
                    path.append(self._open_value(value, numbers))
                    open_.append(path[-1])
                    break
                node.lowest = min(node.lowest, number)
            else:
                path.pop()
                if path:
                    path[-1].lowest = min(path[-1].lowest, node.lowest)
                if node.lowest == node.number:
                    self._close_component(node, open_, numbers)
        return self._known[id(root)]

    def _open_value(self, value: Any, numbers: dict[int, int]) -> _OpenValue:
        number = numbers[id(value)] = len(numbers)
        return _OpenValue(value, self._describe(value), number)

    def _close_component(self, node: _OpenValue, open_: list[_OpenValue], numbers: dict[int, int]) -> None:
        """Fingerprint all values of a cycle, or one outside of any, once their parts are known."""
        members: list[_OpenValue] = []
        while not members or members[-1] is not node:
            members.append(open_.pop())
            # its number stays taken, for numbers only grow
            numbers[id(members[-1].value)] = sys.maxsize
        cyclic = len(members) > 1 or any(part is node.value for part in node.part.parts)
        if cyclic:
            self._close_cycle(members[::-1])
        else:
            self._remember(node.value, self._combine_parts(node))

    def _remember(self, value: Any, found: Fingerprint) -> None:
        self._known[id(value)] = found
        self._alive.append(value)

    def _combine_parts(self, node: _OpenValue) -> Fingerprint:
        part = node.part
        founds: list[Any] = [self._find_known(value) for value in part.parts]
        digests = [found.digest for found in founds]
        again, together = self._find_repeated(
            founds, {id(node.value): 0} if _has_mutable_identity(node.value) else {}
        )
        if again and part.group:  # the places of members are not those of another process
            again = [len(again)]
        rest = [repr(again).encode()] if again else []
        digest = digest_parts(part.tag, *_order_digests(digests, part.group), *rest)
        things = part.resources.union(*(found.resources for found in founds if found.resources))
        varies = part.is_nondeterministic or any(found.is_nondeterministic for found in founds)
        return Fingerprint(digest, together, things, varies)

    def _find_repeated(self, founds: Sequence[Fingerprint], own: dict[int, int]) -> tuple[list[Any], Blocks]:
        """Find which values that can be changed are in several of these, by their places; and all of them together."""
        again: list[Any] = []
        large: list[dict[int, int]] = []
        small = own
        for n, found in enumerate(founds):
            for block in found.mutable:
                known = [(m + 1, other) for m, other in enumerate(large) if self._has_overlap(block, other)]
                if not block.keys().isdisjoint(small.keys()):  # it grows, so nothing is remembered of it
                    known.insert(0, (0, small))
                for m, other in known:
                    if other is block:
                        again.append((n, m))
                    else:
                        fewer, more = sorted((block, other), key=len)
                        again.append((n, m, sorted((block[one], other[one]) for one in fewer if one in more)))
                rest = block
                if known:
                    rest = {one: k for one, k in block.items() if not any(one in o for _m, o in known)}
                if len(rest) >= MIN_SHARED_BLOCK_SIZE:
                    large.append(rest)
                for one in () if len(rest) >= MIN_SHARED_BLOCK_SIZE else rest:
                    small.setdefault(one, len(small))
        return again, (*([small] if small else ()), *large)

    def _has_overlap(self, one: dict[int, int], other: dict[int, int]) -> bool:
        if one is other:
            return True
        if len(one) < MIN_SHARED_BLOCK_SIZE or len(other) < MIN_SHARED_BLOCK_SIZE:
            return not one.keys().isdisjoint(other.keys())
        pair = (id(one), id(other))
        if pair not in self._overlaps:
            self._overlaps[pair] = not one.keys().isdisjoint(other.keys())
            self._alive += [one, other]
        return self._overlaps[pair]

    def _close_cycle(self, members: list[_OpenValue]) -> None:
        inside = {id(node.value): n for n, node in enumerate(members)}
        digests: list[list[bytes | int]] = []  # of parts outside, and the numbers of members
        outside: list[Fingerprint] = []
        for node in members:
            row: list[bytes | int] = []
            for value in node.part.parts:
                number = inside.get(id(value)) if type(value) not in _LEAF_TYPES else None
                if number is not None:
                    row.append(number)
                    continue
                found = self._find_known(value)
                assert found is not None
                outside.append(found)
                row.append(found.digest)
            digests.append(row)
        colours = [digest_parts(b"member", node.part.tag) for node in members]
        groups = [node.part.group for node in members]
        blake2b, told_apart = hashlib.blake2b, 0
        for _round in range(_MAX_REFINEMENT_ROUNDS):
            if told_apart == (told_apart := len(set(colours))):
                break
            colours = [  # all are of one length
                blake2b(
                    colour
                    + b"".join(_order_digests([x if type(x) is bytes else colours[x] for x in row], group)),  # type: ignore[index]
                    digest_size=20,
                ).digest()
                for colour, row, group in zip(colours, digests, groups, strict=True)
            ]
        else:
            raise NotFingerprintable
        own = {id(node.value): n for n, node in enumerate(members) if _has_mutable_identity(node.value)}
        again, mutable = self._find_repeated(outside, own)
        things = NO_RESOURCES.union(
            *(found.resources for found in outside), *(node.part.resources for node in members)
        )
        varies = any(found.is_nondeterministic for found in outside) or any(
            node.part.is_nondeterministic for node in members
        )
        about = f"{len(members)} {sum(map(len, mutable))} {len(again)}".encode()
        for node, colour in zip(members, colours, strict=True):
            self._remember(
                node.value, Fingerprint(digest_parts(b"cycle", about, colour), mutable, things, varies)
            )


_PLAIN_TYPES = frozenset({int, float, complex, bool, type(None), type(Ellipsis), type(NotImplemented), range})
_LEAF_TYPES = _PLAIN_TYPES | {str, bytes}


def _order_digests(digests: list[bytes], group: int) -> list[bytes]:
    if not group:
        return digests
    return sorted(b"".join(digests[n : n + group]) for n in range(0, len(digests), group))


def _has_mutable_identity(value: Any) -> bool:
    """Return whether a change distinguishes two equal values of this type."""
    kind = type(value)
    found = _mutable_types.get(kind)
    if found is None:
        hashes: Any = kind.__hash__
        code = isinstance(value, (type, types.ModuleType)) or kind.__module__ == "builtins"
        found = _mutable_types[kind] = (hashes is None or hashes is object.__hash__) and not code
    return found


_mutable_types: dict[type, bool] = {
    list: True,
    dict: True,
    set: True,
    bytearray: True,
    UnorderedParts: False,
}
