"""Where values come from: the data-flow graph of a snippet, by a walk over its tree.

A record says of the name at one place where its value comes from: from a definition that reaches it ("comesFrom") or
from an expression ("computedFrom"). The rules by language are in languages.py; the walk is the official one but for
one thing: where it drops repeated names through an unordered set, and so gives another result in the next run, the
first appearance counts here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from systems.codexglue.languages import Rules
from systems.codexglue.trees import STRINGS, Tree

Record = tuple[str, int, str, list[str], list[int]]
"""name, place, relation, names and places of its sources."""
Normal = tuple[str, str, tuple[str, ...]]
"""Renamed name, relation, renamed sources."""

COMES, COMPUTED = "comesFrom", "computedFrom"


def data_flow(tree: Tree, rules: Rules) -> list[Record]:
    """The records of a snippet by place, one a place, without those that have no relation to any other place."""
    walk = _Walk(tree, rules)
    try:
        walk.node(0)
    except (TypeError, IndexError, RecursionError):  # a tree of broken code lacks a part that a rule reads
        return []
    records = sorted(walk.out, key=_place)
    related: set[int] = set()
    for _, place, _, _, places in records:
        if places:
            related.add(place)
            related.update(places)
    merged: dict[int, Record] = {}
    for record in records:
        if record[1] in related:
            old = merged.get(record[1])
            merged[record[1]] = record if old is None else (*old[:3], _distinct(old[3] + record[3]), old[4])
    return list(merged.values())


def normalised(records: list[Record]) -> list[Normal]:
    """Names replaced by var_0, var_1, ... as they appear, those of sources before that of their target."""
    names: dict[str, str] = {}
    found = []
    for name, _, relation, sources, _ in records:
        renamed = tuple([names.setdefault(source, f"var_{len(names)}") for source in sources])
        found.append((names.setdefault(name, f"var_{len(names)}"), relation, renamed))
    return found


def matches(reference: list[Normal], hypothesis: list[Normal]) -> int:
    """Reference records that the hypothesis has, each of its records used once."""
    return sum((Counter(reference) & Counter(hypothesis)).values())


def _place(record: Record) -> int:
    return record[1]


def _distinct(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


class _Walk:
    """`states`: by name the places of its definitions that reach the node at hand; `out`: the records so far."""

    def __init__(self, tree: Tree, rules: Rules) -> None:
        self.tree, self.rules = tree, rules
        self.out: list[Record] = []
        self.states: dict[str, list[int]] = {}
        act = self.act = _acts(rules)
        # The first node from each one on for which there is a rule: without one, tokens are walked in order.
        following = len(tree.kinds)
        self.following = [following] * (following + 1)
        for k in range(following - 1, -1, -1):
            if tree.kinds[k] in act:
                following = k
            self.following[k] = following

    def node(self, index: int) -> None:
        tree = self.tree
        kind, end = tree.kinds[index], tree.end[index]
        act = None if kind in STRINGS or not tree.counts[index] else self.act.get(kind)
        if act is not None:
            act(self, index)
        elif self.following[index + 1] >= end:
            self._tokens(tree.first[index], tree.first[end])
        else:
            children = tree.children(index)
            if self.rules.first:
                children.sort(key=lambda child: tree.kinds[child] not in self.rules.first)
            for child in children:
                self.node(child)

    def _tokens(self, start: int, stop: int) -> None:
        texts, places, states, out = self.tree.texts, self.tree.place, self.states, self.out
        variable, kinds = self.tree.variable, self.tree.leaf_kinds
        for token in range(start, stop):
            if not variable[token]:
                continue
            text = texts[token]
            known = states.get(text)
            if known is not None:
                out.append((text, places[token], COMES, [text], known))
                continue
            if kinds[token] == "identifier":
                states[text] = [places[token]]
            out.append((text, places[token], COMES, [], []))

    def _variables(self, index: Any) -> list[tuple[int, str]]:
        """(place, text) of the tokens below a node that are no marks or keywords. TypeError for None."""
        tree = self.tree
        tokens = range(tree.first[index], tree.first[tree.end[index]])
        return [(tree.place[t], tree.texts[t]) for t in tokens if tree.variable[t]]

    def _all_to_all(self, names: list[tuple[int, str]], sources: list[tuple[int, str]], relation: str) -> None:
        for place, text in names:
            for source_place, source in sources:
                self.out.append((text, place, relation, [source], [source_place]))
            self.states[text] = [place]

    def _definition(self, index: int) -> None:
        kids = self.tree.children(index)
        name: Any
        value: int | None
        if self.rules.value_field == "second child":
            name, value = kids[0], kids[1] if len(kids) == 2 else None
        else:
            name, value = self.tree.child(index, "name"), self.tree.child(index, self.rules.value_field)
        names = self._variables(name)
        if value is None:
            for place, text in names:
                self.out.append((text, place, COMES, [], []))
                self.states[text] = [place]
            return
        sources = self._variables(value)
        self.node(value)
        self._all_to_all(names, sources, COMES)

    def _assignment(self, index: int) -> None:
        left: Any = self.tree.child(index, "left")
        right: Any = self.tree.child(index, "right")
        self.node(right)
        self._all_to_all(self._variables(left), self._variables(right), COMPUTED)

    def _increment(self, index: int) -> None:
        names = self._variables(index)
        self._all_to_all(names, names, COMPUTED)

    def _pairwise(self, index: int) -> None:
        """An assignment whose sides are matched child by child where they are as many."""
        kids, kind = self.tree.children(index), self.tree.kinds[index]
        if kind == "for_in_clause":
            self._related([self.tree.child(index, "left")], [kids[-1]])
        elif kind == "operator_assignment":
            self._related([kids[0]], [kids[-1]])
        else:
            right: Any = self.tree.child(index, "right")
            if right is None and "default_parameter" in self.rules.definitions:
                return  # a declaration of Python, which only gives a type
            self._related(*self._sides(self.tree.child(index, "left"), right))

    def _sides(self, left: Any, right: Any) -> tuple[list[Any], list[Any]]:
        lefts, rights = self._parts(left), self._parts(right)
        return ([left], [right]) if len(lefts) != len(rights) or not lefts else (lefts, rights)

    def _parts(self, index: Any) -> list[int]:
        return [kid for kid in self.tree.children(index) if self.tree.kinds[kid] != ","]

    def _related(self, lefts: list[Any], rights: list[Any]) -> None:
        for right in rights:
            self.node(right)
        for left, right in zip(lefts, rights, strict=True):
            sources = self._variables(right)
            texts, places = [text for _, text in sources], [place for place, _ in sources]
            for place, text in self._variables(left):
                self.out.append((text, place, COMPUTED, texts, places))
                self.states[text] = [place]

    def _conditional(self, index: int) -> None:
        """Branches start from the state before; the states after them are united."""
        rules, tree = self.rules, self.tree
        before = self.states
        current = dict(before)
        ends = []
        total = "else" in tree.kinds[index]  # one of the branches is taken for sure
        branched = False
        for kid in tree.children(index):
            kind = tree.kinds[kid]
            total = total or "else" in kind
            if kind in rules.branches or branched:
                branched = not rules.only_clauses
                self.states = dict(before)
                self.node(kid)
                ends.append(self.states)
            else:
                self.states = current
                self.node(kid)
                current = self.states
        ends.append(current)
        if not total or rules.joins_before == "always":
            ends.append(before)
        united: dict[str, list[int]] = {}
        for end in ends:
            for name, places in end.items():
                united[name] = united[name] + places if name in united else places
        self.states = {name: sorted(set(places)) for name, places in united.items()}

    def _counted_loop(self, index: int) -> None:
        mark, tree = len(self.out), self.tree
        kids = tree.children(index)
        for kid in kids:
            self.node(kid)
        again = False
        for kid in kids:
            if again:
                self.node(kid)
            elif tree.kinds[kid] == self.rules.loop_start:
                again = True
                if tree.kinds[kid] == "for_clause":
                    update = self.tree.child(kid, "update")
                    if update is not None:
                        self.node(update)
        self._merge(mark)

    def _while(self, index: int) -> None:
        mark = len(self.out)
        for _ in range(2):
            for kid in self.tree.children(index):
                self.node(kid)
        self._merge(mark)

    def _for_each(self, index: int) -> None:
        mark = len(self.out)
        name_field, value_field, body_field = self.rules.for_each_fields
        name: Any = self.tree.child(index, name_field)
        value: Any = self.tree.child(index, value_field)
        body: Any = self.tree.child(index, body_field)
        if self.tree.kinds[index] == "foreach_statement":
            # PHP's: the official rule takes the first variable for what is walked and the second for the name.
            variables = [kid for kid in self.tree.children(index) if self.tree.kinds[kid] == "variable_name"]
            value, name = (*variables[:2], None, None)[:2]
        if self.rules.pairs:
            last = self.tree.children(index)[-1]
            if body_field == "block":
                body = last if self.tree.kinds[last] == "block" else None
            lefts, rights = self._sides(name, value) if body_field == "block" else ([name], [value])
            for _ in range(2):
                self._related(lefts, rights)
                if body is not None or body_field != "block":
                    self.node(body)
        else:
            for _ in range(2):
                self.node(value)
                self._all_to_all(self._variables(name), self._variables(value), COMPUTED)
                self.node(body)
        self._merge(mark)

    def _merge(self, mark: int) -> None:
        """Unite the records since `mark` that say the same of one place, as a loop walked twice has them."""
        merged: dict[tuple[str, int, str], tuple[list[str], list[int]]] = {}
        for name, place, relation, names, places in self.out[mark:]:
            key = (name, place, relation)
            old = merged.get(key)
            if old is None:
                merged[key] = (names, places)
            else:
                merged[key] = (_distinct(old[0] + names), sorted({*old[1], *places}))
        self.out[mark:] = [(*key, *sources) for key, sources in sorted(merged.items(), key=lambda item: item[0][1])]


@lru_cache(maxsize=16)
def _acts(rules: Rules) -> dict[str, Callable[[_Walk, int], None]]:
    """What a walk does at a kind of node; of functions, not of methods of one walk, which would refer to itself."""
    acts: dict[str, Callable[[_Walk, int], None]] = {}
    for kinds, act in (
        (rules.whiles, _Walk._while),
        (rules.for_each, _Walk._for_each),
        (rules.counted_loops, _Walk._counted_loop),
        (rules.conditionals, _Walk._conditional),
        (rules.increments, _Walk._increment),
        (rules.assignments, _Walk._pairwise if rules.pairs else _Walk._assignment),
        (rules.definitions, _Walk._definition),
    ):
        acts |= dict.fromkeys(kinds, act)
    return acts
