//- push
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.push(4).len() == s.len() + 1);
}
//- push_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.push(4).len() == s.len()); // expect: assertion failed
}
//- push_old
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 0 ==> s.push(4)[0] == s[0]);
}
//- push_old_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.push(4)[0] == s[0]); // expect: assertion failed
}
//- push_new
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.push(4)[s.len() as int] == 4);
}
//- push_new_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.push(4)[s.len() as int] == 5); // expect: assertion failed
}
//- update
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 2 ==> s.update(1, 9)[1] == 9);
}
//- update_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.update(1, 9)[1] == 9); // expect: assertion failed
}
//- update_other
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 2 ==> s.update(1, 9)[0] == s[0]);
}
//- update_other_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 2 ==> s.update(1, 9)[1] == s[1]); // expect: assertion failed
}
//- subrange
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 5 ==> s.subrange(2, 4).len() == 2);
}
//- subrange_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.subrange(2, 4).len() == 2); // expect: assertion failed
}
//- subrange_index
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 5 ==> s.subrange(2, 4)[1] == s[3]);
}
//- subrange_index_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 5 ==> s.subrange(2, 4)[1] == s[1]); // expect: assertion failed
}
//- take_skip
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 3 ==> s.take(2).add(s.skip(2)) =~= s);
}
//- take_skip_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 3 ==> s.take(2).add(s.skip(3)) =~= s); // expect: assertion failed
}
//- add
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.add(t).len() == s.len() + t.len());
}
//- add_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.add(t) =~= t.add(s)); // expect: assertion failed
}
//- add_index
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 0 ==> s.add(t)[0] == s[0]);
}
//- add_index_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.add(t)[0] == s[0]); // expect: assertion failed
}
//- last
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.push(3).last() == 3);
}
//- last_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.last() == s[0]); // expect: assertion failed
}
//- first
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 0 ==> s.first() == s[0]);
}
//- first_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.first() == s.last()); // expect: assertion failed
}
//- drop_last
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.push(3).drop_last() =~= s);
}
//- drop_last_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.drop_last() =~= s); // expect: assertion failed
}
//- drop_first
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 1 ==> s.drop_first()[0] == s[1]);
}
//- drop_first_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.drop_first()[0] == s[0]); // expect: assertion failed
}
//- contains
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 0 ==> s.contains(s[0]));
}
//- contains_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.contains(0)); // expect: assertion failed
}
//- contains_pushed
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(({ let p = s.push(8); p[s.len() as int] == 8 && p.contains(8) }));
}
//- contains_pushed_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.push(8).contains(9)); // expect: assertion failed
}
//- reverse
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 0 ==> s.reverse()[0] == s.last());
}
//- reverse_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.reverse() =~= s); // expect: assertion failed
}
//- insert
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.insert(0, 5).len() == s.len() + 1);
}
//- insert_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.insert(0, 5)[0] == 6); // expect: assertion failed
}
//- remove
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 0 ==> s.remove(0).len() == s.len() - 1);
}
//- remove_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.remove(0).len() == s.len()); // expect: assertion failed
}
//- no_duplicates
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() == 1 ==> s.no_duplicates());
}
//- no_duplicates_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.no_duplicates()); // expect: assertion failed
}
//- map_values
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.map_values(|x: int| x + 1).len() == s.len());
}
//- map_values_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.map_values(|x: int| x + 1) =~= s); // expect: assertion failed
}
//- map_values_index
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 0 ==> s.map_values(|x: int| x + 1)[0] == s[0] + 1);
}
//- map_values_index_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 0 ==> s.map_values(|x: int| x + 1)[0] == s[0]); // expect: assertion failed
}
//- map
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 2 ==> s.map(|i: int, x: int| x + i)[2] == s[2] + 2);
}
//- map_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 2 ==> s.map(|i: int, x: int| x + i)[2] == s[2]); // expect: assertion failed
}
//- new
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(Seq::new(5, |i: int| i * 2)[3] == 6);
}
//- new_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(Seq::new(5, |i: int| i * 2)[3] == 3); // expect: assertion failed
}
//- new_len
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(Seq::new(5, |i: int| i).len() == 5);
}
//- new_len_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(Seq::new(5, |i: int| i).len() == 4); // expect: assertion failed
}
//- empty
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(Seq::<int>::empty().len() == 0);
}
//- empty_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() == 0); // expect: assertion failed
}
//- filter_below
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.filter(|x: int| x > 0).len() <= s.len());
}
//- filter_below_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.filter(|x: int| x > 0).len() == s.len()); // expect: assertion failed
}
//- filter_elements
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.filter(|x: int| x > 0).len() > 0 ==> s.filter(|x: int| x > 0)[0] > 0);
}
//- filter_elements_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.filter(|x: int| x > 0)[0] > 0); // expect: assertion failed
}
//- equality
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s == t ==> s.len() == t.len());
}
//- equality_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() == t.len() ==> s == t); // expect: assertion failed
}
//- extensional
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert((s.len() == t.len() && forall|i: int| 0 <= i < s.len() ==> s[i] == t[i]) ==> s =~= t);
}
//- extensional_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert((forall|i: int| 0 <= i < s.len() ==> s[i] == t[i]) ==> s =~= t); // expect: assertion failed
}
//- literal
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(seq![1int, 2int][1] == 2);
}
//- literal_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(seq![1int, 2int][1] == 1); // expect: assertion failed
}
//- to_set
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.len() > 0 ==> (s.contains(s[0]) && s.to_set().contains(s[0])));
}
//- to_set_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s.to_set().contains(0)); // expect: assertion failed
}
//- out_of_bounds
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s[-1] == s[-1] + 0);
}
//- out_of_bounds_wrong
proof fn p(s: Seq<int>, t: Seq<int>) {
    assert(s[-1] == 0); // expect: assertion failed
}
