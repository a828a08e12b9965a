"""What the checker knows of the standard library: each method and associated function with its types and modes.

A row reads `Owner<T>.name(params) -> result`; `self` is taken by value in specifications, and as the row says in
executable code: `&`, `&mut`, or `own`. Names of operations are `Owner.name`; `theory` gives them meaning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from systems.safe.parser import Parser
from systems.safe.syntax import TypeExpr

_ROWS = """
both Vec<T> & len() -> usize
exec Vec<T> &mut push(T)
exec Vec<T> &mut pop() -> Option<T>
exec Vec<T> &mut set(usize, T)
exec Vec<T> &mut insert(usize, T)
exec Vec<T> &mut remove(usize) -> T
exec Vec<T> &mut clear()
exec Vec<T> &mut truncate(usize)
exec Vec<T> &mut swap(usize, usize)
exec Vec<T> & as_slice() -> &[T]
exec Vec<T> :: new() -> Vec<T>
exec Vec<T> :: with_capacity(usize) -> Vec<T>
spec Vec<T> & view() -> Seq<T>
spec Vec<T> & spec_index(int) -> T
both slice<T> & len() -> usize
exec slice<T> & to_vec() -> Vec<T>
spec slice<T> & view() -> Seq<T>
both array<T> & len() -> usize
spec array<T> & view() -> Seq<T>
exec String & as_str() -> &str
spec String & is_ascii() -> bool
spec String & view() -> Seq<char>
exec str & unicode_len() -> usize
exec str & get_char(usize) -> char
spec str & is_ascii() -> bool
spec str & view() -> Seq<char>
spec Seq<T> own len() -> nat
spec Seq<T> own index(int) -> T
spec Seq<T> own spec_index(int) -> T
spec Seq<T> own push(T) -> Seq<T>
spec Seq<T> own update(int, T) -> Seq<T>
spec Seq<T> own subrange(int, int) -> Seq<T>
spec Seq<T> own add(Seq<T>) -> Seq<T>
spec Seq<T> own take(int) -> Seq<T>
spec Seq<T> own skip(int) -> Seq<T>
spec Seq<T> own first() -> T
spec Seq<T> own last() -> T
spec Seq<T> own drop_first() -> Seq<T>
spec Seq<T> own drop_last() -> Seq<T>
spec Seq<T> own contains(T) -> bool
spec Seq<T> own no_duplicates() -> bool
spec Seq<T> own insert(int, T) -> Seq<T>
spec Seq<T> own remove(int) -> Seq<T>
spec Seq<T> own reverse() -> Seq<T>
spec Seq<T> own map(spec_fn(int, T) -> U) -> Seq<U>
spec Seq<T> own map_values(spec_fn(T) -> U) -> Seq<U>
spec Seq<T> own filter(spec_fn(T) -> bool) -> Seq<T>
spec Seq<T> own fold_left(U, spec_fn(U, T) -> U) -> U
spec Seq<T> own to_set() -> Set<T>
spec Seq<T> :: empty() -> Seq<T>
spec Seq<T> :: new(nat, spec_fn(int) -> T) -> Seq<T>
spec Set<T> own contains(T) -> bool
spec Set<T> own insert(T) -> Set<T>
spec Set<T> own remove(T) -> Set<T>
spec Set<T> own union(Set<T>) -> Set<T>
spec Set<T> own intersect(Set<T>) -> Set<T>
spec Set<T> own difference(Set<T>) -> Set<T>
spec Set<T> own subset_of(Set<T>) -> bool
spec Set<T> own disjoint(Set<T>) -> bool
spec Set<T> own finite() -> bool
spec Set<T> own len() -> nat
spec Set<T> own choose() -> T
spec Set<T> own is_empty() -> bool
spec Set<T> :: empty() -> Set<T>
spec Set<T> :: new(spec_fn(T) -> bool) -> Set<T>
spec Map<K, V> own index(K) -> V
spec Map<K, V> own dom() -> Set<K>
spec Map<K, V> own insert(K, V) -> Map<K, V>
spec Map<K, V> own remove(K) -> Map<K, V>
spec Map<K, V> own contains_key(K) -> bool
spec Map<K, V> :: empty() -> Map<K, V>
both Option<T> & is_some() -> bool
both Option<T> & is_none() -> bool
both Option<T> own unwrap() -> T
"""
GENERICS = frozenset("TUKV")
"""Names that stand for any type in the rows."""


@dataclass(frozen=True)
class Operation:
    """One library operation; `receiver` is '', '&', '&mut' or 'own'."""

    name: str
    modes: frozenset[str]
    owner: TypeExpr
    receiver: str
    params: tuple[TypeExpr, ...]
    result: TypeExpr | None


@cache
def operations() -> dict[str, Operation]:
    """Every operation by `Owner.name`."""
    found = {}
    for row in _ROWS.strip().splitlines():
        mode, rest = row.split(" ", 1)
        at = next(at for mark in (" :: ", " &mut ", " & ", " own ") if (at := rest.find(mark)) >= 0)
        owner_text, mark, signature = rest[:at], rest[at:].split()[0], rest[at:].strip().split(" ", 1)[1]
        reader = Parser(signature)
        name = reader.name()
        reader.expect("(")
        params = []
        while not reader.sees(")"):
            params.append(reader.type())
            reader.accept(",")
        reader.expect(")")
        result = reader.type() if reader.accept("->") else None
        owner = Parser(owner_text).type()
        modes = frozenset(("exec", "spec")) if mode == "both" else frozenset((mode,))
        operation = Operation(
            f"{owner_text.split('<')[0]}.{name}", modes, owner, "" if mark == "::" else mark, tuple(params), result
        )
        found[operation.name] = operation
    return found
