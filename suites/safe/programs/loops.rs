//- counts_to_n
fn count(n: u32) -> (i: u32)
    ensures i == n,
{
    let mut i: u32 = 0;
    while i < n
        invariant i <= n,
        decreases n - i,
    {
        i += 1;
    }
    i
}
//- invariant_too_weak
fn count(n: u32) -> (i: u32)
    ensures i == n,
{
    let mut i: u32 = 0;
    while i < n
        decreases n - i,
    {
        i += 1;
    }
    i // expect: postcondition not satisfied
}
//- requires_do_not_reach_the_loop
fn count(n: u32, m: u32)
    requires n <= 10, m <= 10,
{
    let mut i: u32 = 0;
    while i < n
        decreases n - i,
    {
        let x: u8 = 250;
        let y = m + 4294967280; // expect: possible arithmetic underflow/overflow
        i += 1;
    }
}
//- requires_reach_the_loop_without_isolation
#[verifier::loop_isolation(false)]
fn count(n: u32, m: u32)
    requires n <= 10, m <= 10,
{
    let mut i: u32 = 0;
    while i < n
        decreases n - i,
    {
        let y = m + 4294967280;
        i += 1;
    }
}
//- before_loop
fn count(n: u32) {
    let mut i: u32 = 1;
    while i < n
        invariant i <= n, // expect: invariant not satisfied before loop
        decreases n - i,
    {
        i += 1;
    }
}
//- end_of_loop
fn count(n: u32) {
    let mut i: u32 = 0;
    while i < n
        invariant i == 0, // expect: invariant not satisfied at end of loop body
        decreases n - i,
    {
        i += 1;
    }
}
//- measure_grows
fn count(n: u32) {
    let mut i: u32 = 0;
    while i < n
        decreases i, // expect: decreases not satisfied
    {
        i += 1;
    }
}
//- measure_stays
fn count(n: u32) {
    let mut i: u32 = 0;
    while i < n
        decreases n - i, // expect: decreases not satisfied
    {
    }
}
//- measure_is_missing
fn count(n: u32) {
    let mut i: u32 = 0;
    while i < n { // expect: type error
        i += 1;
    }
}
//- measure_may_be_missing 2024-08
fn count(n: u32) {
    let mut i: u32 = 0;
    while i < n {
        i += 1;
    }
}
//- break_leaves_only_invariants
fn find(v: &Vec<u8>) -> (i: usize)
    ensures i <= v.len(),
{
    let mut i: usize = 0;
    while i < v.len()
        invariant i <= v.len(),
        decreases v.len() - i,
    {
        if v[i] == 0 {
            break;
        }
        i += 1;
    }
    i
}
//- break_does_not_negate_the_condition
fn find(v: &Vec<u8>) -> (i: usize)
    ensures i == v.len(),
{
    let mut i: usize = 0;
    while i < v.len()
        invariant i <= v.len(),
        decreases v.len() - i,
    {
        if v[i] == 0 {
            break;
        }
        i += 1;
    }
    i // expect: postcondition not satisfied
}
//- loop_ensures
fn find(v: &Vec<u8>) -> (i: usize)
    ensures i < v.len() ==> v[i as int] == 0,
{
    let mut i: usize = 0;
    loop
        invariant i <= v.len(),
        ensures i < v.len() ==> v[i as int] == 0,
        decreases v.len() - i,
    {
        if i == v.len() {
            break;
        }
        if v[i] == 0 {
            break;
        }
        i += 1;
    }
    i
}
//- loop_ensures_fails_at_a_break
fn find(v: &Vec<u8>) {
    let mut i: usize = 0;
    loop
        invariant i <= v.len(),
        ensures i == v.len(),
        decreases v.len() - i,
    {
        if i == v.len() {
            break;
        }
        if v[i] == 0 {
            break; // expect: loop ensures not satisfied
        }
        i += 1;
    }
}
//- except_break
fn find(n: u32) -> (i: u32)
    ensures i == 0 || i == 77,
{
    let mut i: u32 = 0;
    let mut k: u32 = 0;
    while k < n
        invariant_except_break i == 0,
        ensures i == 0 || i == 77,
        decreases n - k,
    {
        if k == 5 {
            i = 77;
            break;
        }
        k += 1;
    }
    i
}
//- break_is_tracked_without_isolation
#[verifier::loop_isolation(false)]
fn find(n: u32) -> (i: u32)
    ensures i == 0 || i == 77,
{
    let mut i: u32 = 0;
    let mut k: u32 = 0;
    while k < n
        invariant i == 0,
        decreases n - k,
    {
        if k == 5 {
            i = 77;
            break;
        }
        k += 1;
    }
    i
}
//- break_value_is_not_forgotten_without_isolation
#[verifier::loop_isolation(false)]
fn find(n: u32) -> (i: u32)
    ensures i == 0,
{
    let mut i: u32 = 0;
    let mut k: u32 = 0;
    while k < n
        invariant i == 0,
        decreases n - k,
    {
        if k == 5 {
            i = 77;
            break;
        }
        k += 1;
    }
    i // expect: postcondition not satisfied
}
//- continue_keeps_the_invariant
fn skip(n: u32) {
    let mut i: u32 = 0;
    while i < n
        invariant i <= n,
        decreases n - i,
    {
        i += 1;
        if i == 3 {
            continue;
        }
        assert(i != 3);
    }
}
//- continue_breaks_the_invariant
fn skip(n: u32) {
    let mut i: u32 = 0;
    let mut j: u32 = 0;
    while i < n
        invariant i == j, // expect: invariant not satisfied at end of loop body
        decreases n - i,
    {
        i += 1;
        if i == 3 {
            continue;
        }
        j = i;
    }
}
//- nested
fn area(n: u8, m: u8) -> (a: u32)
    ensures a == n * m,
{
    let mut i: u8 = 0;
    let mut a: u32 = 0;
    while i < n
        invariant i <= n, a == i * m,
        decreases n - i,
    {
        let mut j: u8 = 0;
        let start = a;
        assert(i * m <= 255 * 255) by(nonlinear_arith)
            requires i <= 255, m <= 255;
        while j < m
            invariant j <= m, a == start + j, start <= 65025,
            decreases m - j,
        {
            a += 1;
            j += 1;
        }
        assert((i + 1) * m == i * m + m) by(nonlinear_arith);
        i += 1;
    }
    a
}
//- return_inside_a_loop
fn find(v: &Vec<u8>) -> (r: bool)
    ensures r ==> exists|k: int| 0 <= k < v.len() && v[k] == 0,
{
    let mut i: usize = 0;
    while i < v.len()
        decreases v.len() - i,
    {
        if v[i] == 0 {
            return true;
        }
        i += 1;
    }
    false
}
//- wrong_return_inside_a_loop
fn find(v: &Vec<u8>) -> (r: bool)
    ensures r ==> exists|k: int| 0 <= k < v.len() && v[k] == 0,
{
    let mut i: usize = 0;
    while i < v.len()
        decreases v.len() - i,
    {
        if v[i] == 1 {
            return true; // expect: postcondition not satisfied
        }
        i += 1;
    }
    false
}
//- for_range
fn total(n: u8) -> (t: u32)
    ensures t == 2 * n,
{
    let mut t: u32 = 0;
    for i in 0..n
        invariant t == 2 * i,
    {
        t += 2;
    }
    t
}
//- for_range_wrong
fn total(n: u8) -> (t: u32)
    ensures t == 2 * n + 1,
{
    let mut t: u32 = 0;
    for i in 0..n
        invariant t == 2 * i,
    {
        t += 2;
    }
    t // expect: postcondition not satisfied
}
//- for_empty_range
fn total() -> (t: u32)
    ensures t == 0,
{
    let mut t: u32 = 0;
    for i in 5..2
        invariant t == 0,
    {
        t = 1; // the body never runs
        t = 0;
    }
    t
}
//- changed_through_a_call
fn bump(x: &mut u32)
    ensures *x == 5,
{
    *x = 5;
}
fn run(n: u32) -> (y: u32)
    ensures y == 0, // the loop may change it
{
    let mut y: u32 = 0;
    let mut i: u32 = 0;
    while i < n
        invariant i <= n,
        decreases n - i,
    {
        bump(&mut y);
        i += 1;
    }
    y // expect: postcondition not satisfied
}
//- current_is_not_old_in_a_loop
fn run(x: &mut u32, n: u32) {
    *x = 5;
    let mut i: u32 = 0;
    while i < n
        decreases n - i,
    {
        assert(*x == *old(x)); // expect: assertion failed
        i += 1;
    }
}
//- changed_parameter_is_not_its_entry_value_in_a_loop
fn run(mut x: u32, n: u32) -> (r: u32)
    ensures r == x,
{
    x = 5;
    let mut i: u32 = 0;
    while i < n
        decreases n - i,
    {
        if i == 7 {
            return x; // expect: postcondition not satisfied
        }
        i += 1;
    }
    x // expect: postcondition not satisfied
}
//- unchanged_parameter_keeps_its_value_in_a_loop
fn run(x: u32, n: u32) -> (r: u32)
    ensures r == x,
{
    let mut i: u32 = 0;
    while i < n
        decreases n - i,
    {
        if i == 7 {
            return x;
        }
        i += 1;
    }
    x
}
//- nonlinear_does_not_know_old
fn run(x: &mut u32) {
    *x = 5;
    assert(*x * 1 == *old(x)) by(nonlinear_arith); // expect: assertion failed
}
//- a_difference_in_range_by_the_requires
#[verifier::loop_isolation(false)]
fn differences(a: &Vec<i32>, b: &Vec<i32>) -> (d: Vec<i32>)
    requires
        a.len() == b.len(),
        forall|k: int| 0 <= k < a.len() ==> i32::MIN <= #[trigger] (a[k] - b[k]) <= i32::MAX,
    ensures
        d.len() == a.len(),
        forall|k: int| 0 <= k < d.len() ==> d[k] == #[trigger] (a[k] - b[k]),
{
    let mut d = Vec::with_capacity(a.len());
    let mut i = 0;
    while i < a.len()
        invariant
            i <= a.len(),
            d.len() == i,
            forall|k: int| 0 <= k < i ==> d[k] == a[k] - b[k],
        decreases a.len() - i,
    {
        d.push(a[i] - b[i]);
        i += 1;
    }
    d
}
//- a_difference_not_in_range_without_the_requires
#[verifier::loop_isolation(false)]
fn differences(a: &Vec<i32>, b: &Vec<i32>)
    requires
        a.len() == b.len(),
{
    let mut d: Vec<i32> = Vec::new();
    let mut i = 0;
    while i < a.len()
        invariant
            i <= a.len(),
        decreases a.len() - i,
    {
        d.push(a[i] - b[i]); // expect: possible arithmetic underflow/overflow
        i += 1;
    }
}
//- a_filtered_copy_holds_elements_of_the_source
#[verifier::loop_isolation(false)]
fn sevens(a: &Vec<u64>, out: &mut Vec<u64>)
    requires
        old(out).len() == 0,
    ensures
        forall|k: int| 0 <= k < out.len() ==> out[k] % 7 == 0 && a@.contains(out@[k]),
{
    let mut i: usize = 0;
    while i < a.len()
        invariant
            i <= a.len(),
            forall|k: int| 0 <= k < out.len() ==> out[k] % 7 == 0 && a@.contains(out@[k]),
        decreases a.len() - i,
    {
        if a[i] % 7 == 0 {
            out.push(a[i]);
        }
        i += 1;
    }
}
//- an_unfiltered_copy_is_refused
#[verifier::loop_isolation(false)]
fn sevens(a: &Vec<u64>, out: &mut Vec<u64>)
    requires
        old(out).len() == 0,
    ensures
        forall|k: int| 0 <= k < out.len() ==> out[k] % 7 == 0,
{
    let mut i: usize = 0;
    while i < a.len()
        invariant
            i <= a.len(),
            forall|k: int| 0 <= k < out.len() ==> out[k] % 7 == 0, // expect: invariant not satisfied at end of loop body
        decreases a.len() - i,
    {
        out.push(a[i]);
        i += 1;
    }
}
