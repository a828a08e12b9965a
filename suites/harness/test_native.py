"""The builder of native kernels: what it caches, what it refuses, and that nothing it leaves can hurt.

Each check that concerns a whole process (a race, a missing compiler, a damaged cache) runs in a fresh one,
because a crash of the dynamic loader would otherwise take the test run with it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from systems import native

ROOT = Path(__file__).resolve().parents[2]
ADD = "long add(long a, long b) { return a + b; }\n"


@pytest.fixture(scope="session")
def c_compiler():
    try:
        return native.compiler("c")
    except native.NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cpp_compiler():
    try:
        return native.compiler("c++")
    except native.NoCompiler as error:
        pytest.skip(str(error))


needs_compiler = pytest.mark.usefixtures("c_compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty kernel cache; its value is the folder that libraries are kept in."""
    monkeypatch.setenv("MAAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "add.c"
    path.write_text(ADD)
    return path


def start(code: str, *arguments: object, **environment: str | None) -> subprocess.Popen[str]:
    """A fresh interpreter running `code`; a variable given as None is taken out of its environment."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always"}
    for name, value in environment.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output + errors


LOAD_AND_ADD = """
    import sys
    from pathlib import Path
    from systems import native
    library = native.load(Path(sys.argv[1]))
    print("sum", library.add(2, 3) if library else None)
"""


# -------------------------------------------------------------------------------------- building and loading


@needs_compiler
@given(st.integers(-(2**62), 2**62 - 1), st.integers(-(2**62), 2**62 - 1))
def test_a_kernel_given_as_text_computes_what_it_says(a, b):
    library = native.load(ADD, name="add")
    library.add.argtypes = (ctypes.c_long, ctypes.c_long)
    library.add.restype = ctypes.c_long
    assert library.add(a, b) == a + b


@needs_compiler
def test_a_second_build_is_the_same_file_untouched(cache, kernel):
    first = native.build(kernel)
    before = first.stat()
    assert native.build(kernel) == first
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    assert first.stat().st_ino == before.st_ino
    assert first.parent == cache
    assert list(cache.iterdir()) == [first]


@needs_compiler
def test_several_sources_become_one_library(cache, tmp_path):
    (tmp_path / "one.c").write_text("int two(void);\nint one(void) { return two() - 1; }\n")
    (tmp_path / "two.c").write_text("int two(void) { return 2; }\n")
    library = native.load([tmp_path / "one.c", tmp_path / "two.c"])
    assert library is not None
    assert library.one() == 1


@pytest.mark.usefixtures("cpp_compiler")
def test_a_cpp_source_uses_the_standard_library(cache, tmp_path):
    source = tmp_path / "sort.cpp"
    source.write_text(
        "#include <algorithm>\n#include <vector>\n"
        'extern "C" double median(const double* x, long n) {\n'
        "    std::vector<double> v(x, x + n);\n"
        "    std::nth_element(v.begin(), v.begin() + n / 2, v.end());\n"
        "    return v[n / 2];\n}\n"
    )
    library = native.load(source)
    assert library is not None
    library.median.restype = ctypes.c_double
    values = np.random.default_rng(1).standard_normal(1001)
    found = library.median(values.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(values.size))
    assert found == np.median(values)


@needs_compiler
def test_openmp_runs_all_threads_where_the_compiler_has_it(cache):
    library = native.load(
        "long count(long n) {\n    long total = 0;\n"
        "    #pragma omp parallel for reduction(+ : total)\n"
        "    for (long i = 0; i < n; i++) total += i;\n    return total;\n}\n"
        "int parallel(void) {\n#ifdef _OPENMP\n    return 1;\n"
        "#elif defined(MAAT_NO_OPENMP)\n    return 0;\n#endif\n}\n"
    )
    assert library is not None
    library.count.restype = ctypes.c_long
    assert library.count(ctypes.c_long(100_000)) == 100_000 * 99_999 // 2
    assert library.parallel() == int(native.compiler().openmp)


@needs_compiler
def test_without_openmp_the_macro_tells_the_kernel(cache):
    source = (
        "int parallel(void) {\n#if defined(_OPENMP) || !defined(MAAT_NO_OPENMP)\n    return 1;\n#endif\n"
        "    return 0;\n}\n"
    )
    library = native.load(source, openmp=False)
    assert library is not None
    assert library.parallel() == 0


@needs_compiler
def test_contraction_can_be_switched_off_so_that_results_equal_numpy(cache):
    source = (
        "void axpy(double* y, const double* x, double a, long n) {\n"
        "    for (long i = 0; i < n; i++) y[i] = a * x[i] + y[i];\n}\n"
    )
    library = native.load(source, contract=False)
    assert library is not None
    random = np.random.default_rng(2)
    x, y = random.standard_normal((2, 10_000))
    expected = 1.1 * x + y
    library.axpy(
        y.ctypes.data_as(ctypes.c_void_p),
        x.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_double(1.1),
        ctypes.c_long(x.size),
    )
    np.testing.assert_array_equal(y, expected)


@needs_compiler
def test_the_processs_floating_point_mode_stays_as_it_was(cache):
    output = finish(
        start(
            """
            import sys, numpy as np
            from systems import native
            native.load("double f(double x) { return x * 0.5; }\\n", flags=["-fassociative-math"])
            print("subnormal", float(np.float64(2.0**-1060) * np.float64(0.5)) == 2.0**-1061)
            """
        )
    )
    assert "subnormal True" in output


# --------------------------------------------------------------------------------------------- the cache key


@needs_compiler
def test_a_changed_source_flag_or_header_is_a_new_build(cache, tmp_path):
    inner, outer, source = tmp_path / "inner.h", tmp_path / "outer.h", tmp_path / "kernel.c"
    inner.write_text("#define VALUE 1\n")
    outer.write_text('#include "inner.h"\n')
    source.write_text('#include "outer.h"\nint value(void) { return VALUE; }\n')
    libraries = [native.build(source)]
    inner.write_text("#define VALUE 2\n")  # reached through another header only
    libraries.append(native.build(source))
    source.write_text('#include "outer.h"\nint value(void) { return 10 * VALUE; }\n')
    libraries.append(native.build(source))
    libraries.append(native.build(source, flags=["-DVALUE_UNUSED=1"]))
    libraries.append(native.build(source, contract=False))
    libraries.append(native.build(source, tuned=False))
    libraries.append(native.build(source, openmp=False))
    assert len(set(libraries)) == len(libraries)
    values = [ctypes.CDLL(str(library)).value() for library in libraries]
    assert values == [1, 2, 20, 20, 20, 20, 20]
    inner.write_text("#define VALUE 1\n")
    source.write_text('#include "outer.h"\nint value(void) { return VALUE; }\n')
    assert native.build(source) == libraries[0]


@needs_compiler
@pytest.mark.parametrize("spelling", ["-I{}", "-I {}", "-iquote {}", "-isystem{}"])
def test_a_header_in_a_folder_that_a_flag_names_is_part_of_the_key(cache, tmp_path, spelling):
    folder = tmp_path / "include"
    folder.mkdir()
    flags = spelling.format(folder).split(" ")
    (folder / "value.h").write_text("#define VALUE 1\n")
    before = native.build('#include "value.h"\nint value(void) { return VALUE; }\n', flags=flags)
    (folder / "value.h").write_text("#define VALUE 2\n")
    after = native.build('#include "value.h"\nint value(void) { return VALUE; }\n', flags=flags)
    assert ctypes.CDLL(str(before)).value() == 1
    assert ctypes.CDLL(str(after)).value() == 2


@needs_compiler
def test_a_header_that_a_flag_forces_in_is_part_of_the_key(cache, tmp_path):
    header = tmp_path / "forced.h"
    header.write_text("#define VALUE 1\n")
    before = native.plan("int value(void) { return VALUE; }\n", flags=["-include", str(header)])
    header.write_text("#define VALUE 2\n")
    assert native.plan("int value(void) { return VALUE; }\n", flags=["-include", str(header)]).key != before.key


@needs_compiler
def test_an_include_that_the_cache_cannot_follow_is_refused(cache):
    with pytest.raises(native.FlagError, match="write the file's name"):
        native.build('#define HEADER "a.h"\n#include HEADER\n')


@needs_compiler
def test_another_compiler_is_another_key(cache, tmp_path, monkeypatch):
    ours = native.plan(ADD)
    wrapper = tmp_path / "wrapped-cc"
    wrapper.write_text(f'#!/bin/sh\nexec {ours.compiler.command[0]} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", str(wrapper))
    theirs = native.plan(ADD)
    assert theirs.compiler.command == (str(wrapper),)
    assert theirs.key != ours.key


@needs_compiler
@given(st.lists(st.sampled_from(["-DA=1", "-DB=2", "-O2", "-fno-math-errno"]), max_size=4))
def test_equal_plans_have_equal_keys_and_flag_order_counts(flags):
    assert native.plan(ADD, flags=flags) == native.plan(ADD, flags=tuple(flags))
    if flags != flags[::-1]:
        assert native.plan(ADD, flags=flags).key != native.plan(ADD, flags=flags[::-1]).key


# -------------------------------------------------------------------------------------------------- mistakes


@needs_compiler
def test_a_syntax_error_names_file_and_line(cache, tmp_path):
    source = tmp_path / "broken.c"
    source.write_text("int fine(void) { return 1; }\n\nint broken(void) { return 1 }\n")
    with pytest.raises(native.CompileError) as caught:
        native.build(source)
    assert f"{source}:3:" in str(caught.value)
    assert f"{source}:3:" in caught.value.output
    assert str(source) in caught.value.command
    with pytest.raises(native.CompileError, match=r"broken\.c:2:"):
        native.build("int x;\nint y\n", name="broken")
    assert not list(cache.iterdir())  # neither a library nor a working folder


@needs_compiler
def test_a_compile_error_is_not_hidden_by_the_fallback(cache):
    with pytest.raises(native.CompileError):
        native.load("int broken(void) { return 1 }\n")


@needs_compiler
def test_an_undefined_symbol_is_a_load_error(cache):
    with pytest.raises(native.LoadError, match="nowhere_to_be_found"):
        native.load("int nowhere_to_be_found(void);\nint f(void) { return nowhere_to_be_found(); }\n")


@needs_compiler
@pytest.mark.parametrize(
    "flag", ["-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-mdaz-ftz", "-ffp-model=fast"]
)
def test_flags_that_change_the_whole_processs_arithmetic_are_refused(cache, kernel, flag, monkeypatch):
    with pytest.raises(native.FlagError, match=flag):
        native.build(kernel, flags=["-g", flag])
    monkeypatch.setenv("CC", f"cc {flag}")
    with pytest.raises(native.FlagError, match=flag):
        native.load(kernel)
    assert not cache.exists() or not list(cache.glob("*.so"))


def test_bad_sources_are_told_apart(tmp_path):
    (tmp_path / "a.c").write_text(ADD)
    (tmp_path / "b.cpp").write_text(ADD)
    (tmp_path / "c.txt").write_text(ADD)
    with pytest.raises(FileNotFoundError, match=r"absent\.c"):
        native.build(tmp_path / "absent.c")
    with pytest.raises(ValueError, match="mix C and C"):
        native.build([tmp_path / "a.c", tmp_path / "b.cpp"])
    with pytest.raises(ValueError, match=r"\.txt"):
        native.build(tmp_path / "c.txt")
    with pytest.raises(ValueError, match="empty"):
        native.build([])
    with pytest.raises(ValueError, match=r"pathlib\.Path"):
        native.build("kernel.c")


@needs_compiler
@pytest.mark.parametrize("name", ["", "../escape", "a b", "a*", "x" * 65])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(ValueError, match="name is"):
        native.build(ADD, name=name)


# ----------------------------------------------------------------------------------------------- no compiler


@pytest.mark.parametrize("environment", [{"PATH": "", "CC": None}, {"CC": "missing-compiler"}, {"CC": "/bin/false"}])
def test_without_a_compiler_load_gives_none_and_one_warning(tmp_path, kernel, environment):
    output = finish(
        start(
            """
            import sys
            from pathlib import Path
            from systems import native
            print("results", [native.load(Path(sys.argv[1])) for _ in range(3)], native.load("int x;\\n"))
            try:
                native.build(Path(sys.argv[1]))
            except native.NoCompiler as error:
                print("build raises", error)
            """,
            kernel,
            MAAT_CACHE=str(tmp_path / "cache"),
            **environment,
        )
    )
    assert "results [None, None, None] None" in output
    assert "build raises no working C compiler" in output
    assert output.count("RuntimeWarning") == 1


def test_a_named_compiler_that_is_missing_is_not_replaced_by_another(monkeypatch):
    monkeypatch.setenv("CC", "missing-compiler --some-flag")
    with pytest.raises(native.NoCompiler, match="missing-compiler is not there"):
        native.compiler()


@needs_compiler
def test_a_compiler_without_openmp_and_native_tuning_is_used_plain(cache, tmp_path, monkeypatch):
    real = native.compiler().command[0]
    wrapper = tmp_path / "plain-cc"
    wrapper.write_text(
        '#!/bin/sh\nfor flag; do case "$flag" in\n'
        '-fopenmp|-m*=native) echo "unknown $flag" >&2; exit 1;;\nesac; done\n'
        f'exec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", str(wrapper))
    found = native.compiler()
    assert (found.tuning, found.openmp) == ((), False)
    library = native.load("int plain(void) { return MAAT_NO_OPENMP; }\n")
    assert library is not None
    assert library.plain() == 1


# ------------------------------------------------------------------------------------------ damage and races


def _truncate(library: Path) -> None:
    with library.open("rb+") as file:
        file.truncate(library.stat().st_size // 2)


def _garble(library: Path) -> None:
    # The header stays that of a library, so the loader would map it and jump into noise.
    content = bytearray(library.read_bytes())
    content[64:] = np.random.default_rng(3).bytes(len(content) - 64)
    library.write_bytes(content)


def _flip_one_bit(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def _foreign(library: Path) -> None:
    library.write_text("not a library")


def _empty(library: Path) -> None:
    library.write_bytes(b"")


def _delete(library: Path) -> None:
    library.unlink()


def _fold(library: Path) -> None:
    library.unlink()
    library.mkdir()
    (library / "file").write_text("in the way")


@needs_compiler
@pytest.mark.parametrize("damage", [_truncate, _garble, _flip_one_bit, _foreign, _empty, _delete, _fold])
def test_a_damaged_library_is_rebuilt_and_never_loaded(cache, kernel, damage):
    library = native.build(kernel)
    good = library.read_bytes()
    damage(library)
    output = finish(start(LOAD_AND_ADD, kernel, MAAT_CACHE=str(cache.parent)))
    assert "sum 5" in output
    if damage is not _fold:  # a folder in the library's place is left alone, and a private one serves
        assert library.read_bytes() == good


@needs_compiler
def test_a_library_that_is_not_what_its_name_says_is_not_loaded(cache, kernel):
    library = native.build(kernel)
    other = native.build("long add(long a, long b) { return a - b; }\n", name="other")
    shutil.copyfile(other, library)
    assert "sum 5" in finish(start(LOAD_AND_ADD, kernel, MAAT_CACHE=str(cache.parent)))


@needs_compiler
def test_eight_processes_may_build_the_same_kernel_at_once(cache, kernel):
    crowd = [start(LOAD_AND_ADD, kernel, MAAT_CACHE=str(cache.parent)) for _ in range(8)]
    for process in crowd:
        assert "sum 5" in finish(process)
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@needs_compiler
def test_eight_processes_may_repair_the_same_damage_at_once(cache, kernel):
    _garble(native.build(kernel))
    crowd = [start(LOAD_AND_ADD, kernel, MAAT_CACHE=str(cache.parent)) for _ in range(8)]
    for process in crowd:
        assert "sum 5" in finish(process)


@needs_compiler
def test_a_process_killed_while_it_builds_leaves_no_library(cache, kernel, tmp_path):
    real = native.compiler().command[0]
    wrapper = tmp_path / "deadly-cc"
    # Compiles in full, then kills the builder: the library is complete, but not yet under its name.
    wrapper.write_text(f'#!/bin/sh\n{real} "$@" || exit 1\ncase "$*" in *-shared*) kill -9 $PPID;; esac\n')
    wrapper.chmod(0o755)
    victim = start(LOAD_AND_ADD, kernel, MAAT_CACHE=str(cache.parent), CC=str(wrapper))
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    assert list(cache.glob("building-*/library.so"))
    assert not list(cache.glob("*.so"))
    assert "sum 5" in finish(start(LOAD_AND_ADD, kernel, MAAT_CACHE=str(cache.parent)))


@needs_compiler
def test_what_a_build_killed_long_ago_left_is_removed(cache, kernel):
    native.build(kernel)
    old, young = cache / "building-old", cache / "building-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "library.so").write_text("half")
    os.utime(old, (0, 0))
    native.build(kernel, flags=["-DANOTHER"])
    assert not old.exists()
    assert young.exists()


@needs_compiler
def test_a_source_that_changes_during_its_compilation_is_not_cached(cache, kernel, tmp_path, monkeypatch):
    real = native.compiler().command[0]
    wrapper = tmp_path / "editing-cc"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *-shared*) echo "/* edited */" >> {kernel};; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", str(wrapper))
    with pytest.raises(native.CompileError, match="changed while"):
        native.build(kernel)
    assert not list(cache.glob("*.so"))


@needs_compiler
def test_a_cache_that_cannot_be_made_gives_way_to_a_private_one(tmp_path, kernel):
    blocked = tmp_path / "a-file"
    blocked.write_text("no folder")
    output = finish(
        start(
            LOAD_AND_ADD + "    print('where', native.build(Path(sys.argv[1])))\n",
            kernel,
            MAAT_CACHE=str(blocked / "cache"),
        )
    )
    assert "sum 5" in output
    assert output.count("RuntimeWarning") == 1
    where = Path(output.split("where ")[1].splitlines()[0])
    assert "maat-native-" in str(where)
    assert not where.parent.exists()  # gone with its process


@needs_compiler
def test_a_read_only_cache_still_serves_what_it_holds(cache, kernel):
    library = native.build(kernel)
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(cache, os.W_OK):
        pytest.skip("this user may write everywhere")
    try:
        assert native.build(kernel) == library
        assert "maat-native-" in str(native.build(kernel, flags=["-DNEW"]))
    finally:
        cache.chmod(stat.S_IRWXU)


@needs_compiler
def test_a_cache_that_others_may_write_to_is_not_trusted(cache, kernel):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    output = finish(start(LOAD_AND_ADD, kernel, MAAT_CACHE=str(cache.parent)))
    assert "sum 5" in output
    assert "open to other users" in output
    assert not list(cache.iterdir())


@needs_compiler
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a full disk")
@pytest.mark.parametrize("options", ["size=4k,mode=700", "noexec,mode=700"])
def test_a_full_or_noexec_cache_gives_way_to_a_private_one(cache, kernel, options):
    cache.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", cache], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.strip()}")
    try:
        output = finish(start(LOAD_AND_ADD, kernel, MAAT_CACHE=str(cache.parent)))
        assert "sum 5" in output
        assert output.count("RuntimeWarning") == 1
    finally:
        subprocess.run(["umount", cache], check=True)
