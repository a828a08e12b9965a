//- forall_and_exists
proof fn both(s: Seq<int>)
    requires s.len() > 0, forall|i: int| 0 <= i < s.len() ==> s[i] > 3,
    ensures exists|i: int| 0 <= i < s.len() && s[i] > 2,
{
    assert(s[0] > 2);
}
//- exists_needs_a_witness
proof fn none(s: Seq<int>)
    ensures exists|i: int| 0 <= i < s.len() && s[i] > 2,
{
} // expect: postcondition not satisfied
//- no_trigger
proof fn none()
    ensures forall|i: int| i < 5 ==> i < 6, // expect: type error
{
}
//- trigger_misses_a_variable
proof fn none(s: Seq<int>)
    ensures forall|i: int, j: int| #[trigger] s[i] == s[i] && j == j, // expect: type error
{
}
//- recursive_function_unfolds_once
spec fn sum(n: nat) -> nat
    decreases n,
{
    if n == 0 { 0 } else { n + sum((n - 1) as nat) }
}
proof fn one()
    ensures sum(1) == 1,
{
    assert(sum(0) == 0);
}
//- recursive_function_does_not_unfold_deeply
spec fn sum(n: nat) -> nat
    decreases n,
{
    if n == 0 { 0 } else { n + sum((n - 1) as nat) }
}
proof fn many()
    ensures sum(5) == 15,
{
} // expect: postcondition not satisfied
//- reveal_with_fuel_unfolds_deeply
spec fn sum(n: nat) -> nat
    decreases n,
{
    if n == 0 { 0 } else { n + sum((n - 1) as nat) }
}
proof fn many()
    ensures sum(5) == 15,
{
    reveal_with_fuel(sum, 6);
}
//- wrong_value
spec fn sum(n: nat) -> nat
    decreases n,
{
    if n == 0 { 0 } else { n + sum((n - 1) as nat) }
}
proof fn many()
    ensures sum(5) == 16,
{
    reveal_with_fuel(sum, 6);
} // expect: postcondition not satisfied
//- recursion_does_not_end
spec fn bad(n: int) -> int
    decreases n,
{
    bad(n - 1) + 1 // expect: decreases not satisfied
}
//- recursion_without_measure
spec fn bad(n: int) -> int { // expect: type error
    bad(n) + 1
}
//- mutual_recursion
spec fn even(n: nat) -> bool
    decreases n,
{
    if n == 0 { true } else { odd((n - 1) as nat) }
}
spec fn odd(n: nat) -> bool
    decreases n,
{
    if n == 0 { false } else { even((n - 1) as nat) }
}
proof fn two()
    ensures even(2),
{
    assert(even(0));
    assert(odd(1));
}
//- mutual_recursion_does_not_end
spec fn even(n: nat) -> bool
    decreases n,
{
    odd(n) // expect: decreases not satisfied
}
spec fn odd(n: nat) -> bool
    decreases n,
{
    even(n) // expect: decreases not satisfied
}
//- induction
spec fn sum(n: nat) -> nat
    decreases n,
{
    if n == 0 { 0 } else { n + sum((n - 1) as nat) }
}
proof fn grows(n: nat)
    ensures sum(n) >= n,
    decreases n,
{
    if n > 0 {
        grows((n - 1) as nat);
    }
}
//- induction_in_a_circle
proof fn anything(n: nat)
    ensures n == 7,
    decreases n,
{
    anything(n); // expect: decreases not satisfied
}
//- induction_without_measure
proof fn anything(n: nat) // expect: type error
    ensures n == 7,
{
    anything(n);
}
//- opaque_is_hidden
#[verifier::opaque]
spec fn three() -> int {
    3
}
proof fn hidden() {
    assert(three() == 3); // expect: assertion failed
}
//- reveal_shows
#[verifier::opaque]
spec fn three() -> int {
    3
}
proof fn shown() {
    reveal(three);
    assert(three() == 3);
}
//- reveal_lasts_for_its_branch
#[verifier::opaque]
spec fn three() -> int {
    3
}
proof fn shown(b: bool) {
    if b {
        reveal(three);
    }
    assert(three() == 3); // expect: assertion failed
}
//- assert_by_keeps_only_the_claim
spec fn p(x: int) -> bool;
spec fn q(x: int) -> bool;
proof fn lemma(x: int)
    requires p(x),
    ensures q(x),
{
    assume(q(x));
}
proof fn use_it(x: int)
    requires p(x),
{
    assert(p(x)) by {
        lemma(x);
    }
    assert(q(x)); // expect: assertion failed
}
//- assert_by_proves
spec fn p(x: int) -> bool;
spec fn q(x: int) -> bool;
proof fn lemma(x: int)
    requires p(x),
    ensures q(x),
{
    assume(q(x));
}
proof fn use_it(x: int)
    requires p(x),
{
    assert(q(x)) by {
        lemma(x);
    }
    assert(q(x));
}
//- assert_forall
spec fn p(x: int) -> bool;
spec fn q(x: int) -> bool;
proof fn lemma(x: int)
    requires p(x),
    ensures q(x),
{
    assume(q(x));
}
proof fn all()
    requires forall|x: int| p(x),
    ensures forall|x: int| q(x),
{
    assert forall|x: int| q(x) by {
        assert(p(x));
        lemma(x);
    }
}
//- assert_forall_implies
spec fn p(x: int) -> bool;
spec fn q(x: int) -> bool;
proof fn lemma(x: int)
    requires p(x),
    ensures q(x),
{
    assume(q(x));
}
proof fn all()
    ensures forall|x: int| p(x) ==> q(x),
{
    assert forall|x: int| p(x) implies q(x) by {
        lemma(x);
    }
}
//- assert_forall_needs_its_premise
spec fn p(x: int) -> bool;
spec fn q(x: int) -> bool;
proof fn lemma(x: int)
    requires p(x),
    ensures q(x),
{
    assume(q(x));
}
proof fn all() {
    assert forall|x: int| q(x) by {
        lemma(x); // expect: precondition not satisfied
    }
}
//- filter_is_opaque
fn keep(v: &Vec<u8>)
    requires v.len() > 0,
{
    assert(v@.filter(|x: u8| x > 3).len() == 0); // expect: assertion failed
}
//- filter_of_empty
proof fn none() {
    assert(Seq::<u8>::empty().filter(|x: u8| x > 3) =~= Seq::<u8>::empty());
}
//- filter_unfolds
proof fn one() {
    reveal(Seq::filter);
    let s = seq![5u8];
    assert(s.drop_last() =~= Seq::<u8>::empty());
    assert(s.filter(|x: u8| x > 3) =~= s.drop_last().filter(|x: u8| x > 3).push(5));
}
//- choose_meets_its_condition
proof fn some(s: Seq<int>)
    requires exists|i: int| 0 <= i < s.len() && s[i] == 4,
{
    let k = choose|i: int| 0 <= i < s.len() && s[i] == 4;
    assert(s[k] == 4);
}
//- choose_of_nothing
proof fn some(s: Seq<int>) {
    let k = choose|i: int| 0 <= i < s.len() && s[i] == 4;
    assert(s[k] == 4); // expect: assertion failed
}
//- equality_is_extensional_in_assert 2024-08
proof fn same(s: Seq<int>) {
    assert(s.push(1).drop_last() == s);
}
//- equality_is_not_extensional_in_ensures 2024-08
proof fn same(s: Seq<int>)
    ensures s.push(1).drop_last() == s,
{
} // expect: postcondition not satisfied
//- equality_is_extensional_in_ensures
proof fn same(s: Seq<int>)
    ensures s.push(1).drop_last() == s,
{
}
//- negative_equality_is_not_extensional
proof fn same(s: Seq<int>) {
    assert(!(s.push(1).drop_last() != s)); // expect: assertion failed
}
//- sets
proof fn grow(s: Set<int>)
    requires s.finite(), !s.contains(3),
    ensures s.insert(3).len() == s.len() + 1, s.insert(3).remove(3) =~= s,
{
}
//- infinite_sets_have_no_known_size
proof fn grow(s: Set<int>)
    requires !s.contains(3),
    ensures s.insert(3).len() == s.len() + 1,
{
} // expect: postcondition not satisfied
//- generic_lemma
proof fn ends<T>(s: Seq<T>, x: T)
    ensures s.push(x).last() == x,
{
}
proof fn use_it() {
    ends(seq![1int], 2int);
    assert(seq![1int].push(2int).last() == 2);
}
//- spec_function_on_machine_integers
spec fn clip(x: u8) -> u8 {
    (x + 200) as u8
}
proof fn bounded(x: u8)
    ensures clip(x) <= 255,
{
}
//- termination_may_not_rest_on_the_definition
spec fn bad(n: int) -> int
    decreases n,
{
    if bad(n) == 0 { 1 } else { 0 } // expect: decreases not satisfied
}
//- measure_may_not_call_the_function
spec fn bad(n: int) -> int
    decreases bad(n), // expect: type error
{
    bad(n - 1)
}
