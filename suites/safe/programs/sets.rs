//- insert
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.insert(3).contains(3));
}
//- insert_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.contains(3)); // expect: assertion failed
}
//- insert_other
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.contains(4) ==> s.insert(3).contains(4));
}
//- insert_other_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.insert(3).contains(4)); // expect: assertion failed
}
//- remove
proof fn p(s: Set<int>, t: Set<int>) {
    assert(!s.remove(3).contains(3));
}
//- remove_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.remove(3) =~= s); // expect: assertion failed
}
//- union
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.contains(1) ==> s.union(t).contains(1));
}
//- union_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.union(t).contains(1)); // expect: assertion failed
}
//- intersect
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.intersect(t).contains(1) ==> t.contains(1));
}
//- intersect_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.contains(1) ==> s.intersect(t).contains(1)); // expect: assertion failed
}
//- difference
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.difference(t).contains(1) ==> !t.contains(1));
}
//- difference_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.contains(1) ==> s.difference(t).contains(1)); // expect: assertion failed
}
//- commutes
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.union(t) =~= t.union(s));
}
//- commutes_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.difference(t) =~= t.difference(s)); // expect: assertion failed
}
//- empty
proof fn p(s: Set<int>, t: Set<int>) {
    assert(!Set::<int>::empty().contains(1));
}
//- empty_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s =~= Set::<int>::empty()); // expect: assertion failed
}
//- empty_len
proof fn p(s: Set<int>, t: Set<int>) {
    assert(Set::<int>::empty().len() == 0);
}
//- empty_len_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.len() == 0); // expect: assertion failed
}
//- finite
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.finite() ==> s.insert(1).finite());
}
//- finite_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.finite()); // expect: assertion failed
}
//- finite_intersect
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.finite() ==> s.intersect(t).finite());
}
//- finite_intersect_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.finite() ==> s.union(t).finite()); // expect: assertion failed
}
//- len_insert
proof fn p(s: Set<int>, t: Set<int>) {
    assert((s.finite() && !s.contains(1)) ==> s.insert(1).len() == s.len() + 1);
}
//- len_insert_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.finite() ==> s.insert(1).len() == s.len() + 1); // expect: assertion failed
}
//- len_remove
proof fn p(s: Set<int>, t: Set<int>) {
    assert((s.finite() && s.contains(1)) ==> s.remove(1).len() == s.len() - 1);
}
//- len_remove_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.finite() ==> s.remove(1).len() == s.len() - 1); // expect: assertion failed
}
//- subset
proof fn p(s: Set<int>, t: Set<int>) {
    assert((s.subset_of(t) && s.contains(1)) ==> t.contains(1));
}
//- subset_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.subset_of(t)); // expect: assertion failed
}
//- choose
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.contains(2) ==> s.contains(s.choose()));
}
//- choose_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.contains(s.choose())); // expect: assertion failed
}
//- literal
proof fn p(s: Set<int>, t: Set<int>) {
    assert(set![1int, 2int].contains(2));
}
//- literal_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(set![1int, 2int].contains(3)); // expect: assertion failed
}
//- new
proof fn p(s: Set<int>, t: Set<int>) {
    assert(Set::new(|x: int| x > 3).contains(4));
}
//- new_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(Set::new(|x: int| x > 3).contains(3)); // expect: assertion failed
}
//- disjoint
proof fn p(s: Set<int>, t: Set<int>) {
    assert((s.disjoint(t) && s.contains(1)) ==> !t.contains(1));
}
//- disjoint_wrong
proof fn p(s: Set<int>, t: Set<int>) {
    assert(s.disjoint(t)); // expect: assertion failed
}
