"""One way to build and load the C and C++ kernels that the systems carry.

    kernels = native.load(Path(__file__).with_name("stream.c"))
    if kernels is None:        # no compiler on this machine: one warning was given
        ...                    # the caller's fallback

A kernel is compiled on first use and kept in a cache (`$MAAT_CACHE/native`, `$XDG_CACHE_HOME/maat/native` or
`~/.cache/maat/native`; a private temporary folder where that cannot be used). Three rules hold everywhere:

- **The key covers all that decides the result**: sources and the local files they include, flags, compiler
  (path, version, target, the environment variables it reads) and CPU (model and features).
- **A library is named by the hash of its own bytes** beside the key, and is checked against it before it is
  loaded. A truncated, overwritten or foreign file is never given to the dynamic loader: it is rebuilt.
- **A library appears under its name only when complete**: it is built in a folder of its own, flushed to disk
  and renamed, so any number of processes may build the same kernel at once and a killed one leaves no damage.

`-ffast-math` and its kin are refused: they link start-up code that makes the whole process flush subnormal
numbers to zero, numpy and torch included.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import functools
import hashlib
import itertools
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, Unpack

__all__ = [
    "CompileError",
    "Compiler",
    "FlagError",
    "LoadError",
    "NativeError",
    "NoCompiler",
    "Options",
    "Plan",
    "build",
    "compiler",
    "load",
    "plan",
]

Language = Literal["c", "c++"]
Source = Path | str | Sequence[Path]


class Options(TypedDict, total=False):
    """The keyword arguments of `plan`, which `build` and `load` take as well."""

    flags: Sequence[str]
    language: Language
    name: str | None
    openmp: bool
    tuned: bool
    contract: bool


class NativeError(Exception):
    """Anything that keeps a kernel from being built or loaded."""


class NoCompiler(NativeError):
    """This machine has no working compiler for the language."""


class CompileError(NativeError):
    """The compiler rejected a kernel. `command` is what was run, `output` all that the compiler said."""

    def __init__(self, message: str, command: Sequence[str], output: str) -> None:
        super().__init__(message)
        self.command = tuple(command)
        self.output = output


class LoadError(NativeError):
    """A library was built but the dynamic loader refuses it, for instance for an undefined symbol."""


class FlagError(NativeError, ValueError):
    """A flag that would harm the whole process, or whose effect the cache could not see."""


# Each of these links crtfastmath.o, or sets the same bits of the floating-point control register.
_PROCESS_WIDE_FLAGS = frozenset(
    {"-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-mdaz-ftz", "-ffp-model=fast"}
)
# Variables that change which headers and libraries a compiler finds (GCC manual, section 3.22).
_COMPILER_VARIABLES = (
    "CPATH",
    "C_INCLUDE_PATH",
    "CPLUS_INCLUDE_PATH",
    "LIBRARY_PATH",
    "COMPILER_PATH",
    "GCC_EXEC_PREFIX",
)
_SUFFIXES: Mapping[str, Language] = {".c": "c", ".cc": "c++", ".cpp": "c++", ".cxx": "c++"}
_DRIVERS: Mapping[Language, tuple[str, tuple[str, ...]]] = {
    "c": ("CC", ("cc", "gcc", "clang")),
    "c++": ("CXX", ("c++", "g++", "clang++")),
}
_KEY_VERSION = "1"  # raise it when the way that a library is built changes
_COMPILE_SECONDS = 600.0
_LITTER_SECONDS = 86_400.0
_PROBE = """\
int main(void) {
    int threads = 0;
    #pragma omp parallel reduction(+ : threads)
    threads += 1;
    return threads < 1;
}
"""


@dataclass(frozen=True)
class Compiler:
    """A compiler that was seen to produce a running program with these flags.

    `command` is the driver and the arguments that `$CC` or `$CXX` gave it; `identity` the file behind it and
    the time of that file's last change; `tuning` what targets this CPU (empty where the compiler knows no
    such flag); `openmp` says whether an OpenMP program built and ran.
    """

    language: Language
    command: tuple[str, ...]
    identity: str
    version: str
    target: str
    tuning: tuple[str, ...]
    openmp: bool


@dataclass(frozen=True)
class Plan:
    """What `build` will do: compile `sources` (or `text`) with `flags`, and keep the library under `key`."""

    name: str
    compiler: Compiler
    sources: tuple[Path, ...]
    text: str | None
    flags: tuple[str, ...]
    key: str

    def command(self, output: Path) -> tuple[str, ...]:
        """The compiler's command line; a kernel given as text is `<name>.c` in the working folder."""
        suffix = ".c" if self.compiler.language == "c" else ".cpp"
        inputs = (self.name + suffix,) if self.text is not None else tuple(map(str, self.sources))
        # Libraries that the flags name must follow the sources that need them.
        libraries = tuple(flag for flag in self.flags if flag.startswith("-l"))
        options = tuple(flag for flag in self.flags if not flag.startswith("-l"))
        shared = ("-shared", "-fPIC", "-o", str(output))
        return (*self.compiler.command, *options, *shared, *inputs, *libraries, "-lm")


# ---------------------------------------------------------------------------------------------------- public


def load(source: Source, **options: Unpack[Options]) -> ctypes.CDLL | None:
    """Build the kernel if need be, and load it; arguments as for `plan`.

    Returns None on a machine without a working compiler, with one RuntimeWarning in the life of the process.
    Raises CompileError, LoadError and FlagError: mistakes in the kernel, which no fallback should hide.
    """
    for attempt in ("first", "last"):
        try:
            library = build(source, **options)
        except NoCompiler as error:
            _warn_once("compiler", f"{error}; the native kernels are replaced by slower ones")
            return None
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            # The cache may have been emptied between the two steps: only that is worth another try.
            if attempt == "last" or library.exists():
                raise LoadError(
                    f"the library built from {_describe(source)} does not load: {error}; "
                    "check that every symbol is defined and that needed libraries are named with -l flags"
                ) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def build(source: Source, **options: Unpack[Options]) -> Path:
    """The path of the library built from a kernel, new or from the cache; arguments as for `plan`.

    Safe against other processes and threads that build the same kernel, and against a damaged cache.
    Raises NoCompiler, CompileError (with the compiler's output, file and line) and FlagError.
    """
    wanted = plan(source, **options)
    shared = _shared_cache()
    if shared is not None:
        found = _lookup(shared, wanted)
        if found is not None:
            return found
        try:
            return _compile(shared, wanted)
        except OSError as error:
            _warn_once(
                "cache",
                f"the kernel cache {shared} cannot be written ({error}): every process rebuilds its kernels; "
                "set MAAT_CACHE to a folder that can",
            )
    private = _private_cache()
    return _lookup(private, wanted) or _compile(private, wanted)


def plan(
    source: Source,
    *,
    flags: Sequence[str] = (),
    language: Language = "c",
    name: str | None = None,
    openmp: bool = True,
    tuned: bool = True,
    contract: bool = True,
) -> Plan:
    """How a kernel would be built.

    source: one file or several (`.c`, or `.cc .cpp .cxx`), or, as a str, the text of one in `language`.
    flags: added after `-O3`; those of the floating-point mode (`-ffast-math`, `-Ofast`, ...) are refused.
    name: of the library, by default that of the first source; letters, digits, `_` and `-`.
    openmp: `-fopenmp` where an OpenMP program is seen to run; elsewhere, and with False, the macro
        MAAT_NO_OPENMP is defined and OpenMP pragmas do nothing.
    tuned: compile for exactly this CPU (`-march=native`).
    contract: False keeps a multiply and an add from becoming one FMA (`-ffp-contract=off`), for results that
        equal a reference bit by bit.
    Raises NoCompiler, FlagError, FileNotFoundError for a missing source, ValueError for one not in C or C++.
    """
    sources, text, spoken = _read_source(source, language)
    _refuse_flags(flags)
    chosen = compiler(spoken)
    name = _library_name(name, sources)
    every_flag = (
        "-O3",
        *(chosen.tuning if tuned else ()),
        *(("-fopenmp",) if openmp and chosen.openmp else ("-DMAAT_NO_OPENMP=1",)),
        *(() if contract else ("-ffp-contract=off",)),
        *flags,
    )
    key = _key(chosen, every_flag, sources, text)
    return Plan(name, chosen, sources, text, every_flag, key)


def compiler(language: Language = "c") -> Compiler:
    """The compiler that builds kernels: `$CC` (`$CXX` for C++) when set, else the first of cc, gcc, clang.

    A variable that names a missing program is not overruled: who set it wanted that compiler or none.
    Raises NoCompiler, which says what was looked for, and FlagError where the variable holds a refused flag.
    """
    variable, programs = _DRIVERS[language]
    setting = os.environ.get(variable, "").strip()
    surroundings = tuple(os.environ.get(name) for name in ("PATH", *_COMPILER_VARIABLES))
    if setting:
        command = tuple(shlex.split(setting))
        _refuse_flags(command[1:])
        candidates, origin = [command], f"${variable} is {setting!r}"
    else:
        candidates, origin = [(program,) for program in programs], f"looked for {', '.join(programs)} in PATH"
    complaints = []
    for command in candidates:
        result = _examine(language, command, surroundings)
        if isinstance(result, Compiler):
            return result
        complaints.append(result)
    raise NoCompiler(f"no working {language.upper()} compiler: {origin}: {'; '.join(complaints)}")


# ----------------------------------------------------------------------------------- what is to be built


def _read_source(source: Source, language: Language) -> tuple[tuple[Path, ...], str | None, Language]:
    if isinstance(source, str):
        if "\n" not in source and Path(source).suffix in _SUFFIXES:
            raise ValueError(
                f"source {source!r} is a str, which stands for the text of a kernel, but looks like a file: "
                "give a pathlib.Path"
            )
        return (), source, language
    sources = (source,) if isinstance(source, Path) else tuple(source)
    if not sources:
        raise ValueError("source is empty: give at least one file")
    for path in sources:
        if path.suffix not in _SUFFIXES:
            expected = ", ".join(_SUFFIXES)
            raise ValueError(f"source {path} has suffix {path.suffix!r}, expected one of {expected}")
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "kernel source does not exist", str(path))
    languages = {_SUFFIXES[path.suffix] for path in sources}
    if len(languages) > 1:
        raise ValueError(
            f"sources {', '.join(map(str, sources))} mix C and C++: build one library for each language"
        )
    return tuple(path.absolute() for path in sources), None, languages.pop()


def _describe(source: Source) -> str:
    if isinstance(source, str):
        return "the given text"
    return str(source) if isinstance(source, Path) else ", ".join(map(str, source))


def _library_name(name: str | None, sources: Sequence[Path]) -> str:
    if name is None:
        return re.sub(r"[^A-Za-z0-9_-]", "_", sources[0].stem)[:64] if sources else "kernel"
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ValueError(f"name is {name!r}, expected 1 to 64 letters, digits, '_' and '-'")
    return name


def _refuse_flags(flags: Sequence[str]) -> None:
    for flag in flags:
        if flag in _PROCESS_WIDE_FLAGS or "crtfastmath" in flag:
            raise FlagError(
                f"flag {flag} changes the arithmetic of the whole process (subnormals become zero, in numpy "
                "and torch too); name the single optimisation instead, such as -fassociative-math "
                "-fno-signed-zeros -fno-trapping-math for a vectorised sum"
            )
        if flag.startswith("@"):
            raise FlagError(
                f"flag {flag} takes flags from a file, which the cache does not see: give them here"
            )


_DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(?:include|include_next|import|embed)\b(.*)$", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/")


def _local_files(sources: Sequence[Path], text: str | None, flags: Sequence[str]) -> list[Path]:
    """The sources and every file that they include from their own folders or from one that a flag names.

    An include inside a comment or a false condition counts too: a superset costs a rebuild, a subset would be
    a stale kernel. Headers of the system are not followed: they belong to the compiler's version.
    Raises FlagError for an include whose name is a macro, which cannot be followed without preprocessing.
    """
    folders: list[Path] = []
    forced: list[Path] = []
    for index, flag in enumerate(flags):
        for option, found in (
            ("-I", folders),
            ("-iquote", folders),
            ("-isystem", folders),
            ("-include", forced),
            ("-imacros", forced),
        ):
            if flag == option and index + 1 < len(flags):
                found.append(Path(flags[index + 1]))
            elif found is folders and flag.startswith(option) and flag != option:
                found.append(Path(flag[len(option) :]))
    pending: list[tuple[Path | None, str]] = [] if text is None else [(None, text)]
    seen: dict[Path, None] = {}

    def visit(path: Path) -> None:
        if path not in seen:
            seen[path] = None
            pending.append((path, path.read_text(encoding="utf-8", errors="replace")))

    for path in (*sources, *(file.absolute() for file in forced if file.is_file())):
        visit(path)
    while pending:
        includer, content = pending.pop()
        for match in _DIRECTIVE.finditer(content.replace("\\\r\n", " ").replace("\\\n", " ")):
            target = _COMMENT.sub(" ", match[1]).strip()
            named = re.match(r'"([^"]+)"|<([^>]+)>', target)
            if named is None:
                if re.match(r"[A-Za-z_]", target):
                    raise FlagError(
                        f"{includer or 'the given text'} includes {target!r}, a macro that the cache cannot "
                        "follow: write the file's name"
                    )
                continue
            places = [includer.parent, *folders] if includer is not None and named[1] else folders
            for place in places:
                header = (place / (named[1] or named[2])).absolute()
                if header.is_file():
                    visit(header)
                    break
    return list(seen)


def _key(compiler: Compiler, flags: Sequence[str], sources: Sequence[Path], text: str | None) -> str:
    """128 bits over all that decides what the compiler makes, given as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    facts = [
        _KEY_VERSION,
        repr(compiler),
        repr(tuple(flags)),
        _cpu(),
        *(f"{variable}={os.environ.get(variable)}" for variable in _COMPILER_VARIABLES),
        text or "",
    ]
    for fact in facts:
        _add(digest, fact.encode())
    for path in _local_files(sources, text, flags):
        _add(digest, path.name.encode())
        _add(digest, path.read_bytes())
    return digest.hexdigest()[:32]


def _add(digest: hashlib._Hash, part: bytes) -> None:
    # The length in front keeps two different lists of parts from giving one stream of bytes.
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


@functools.cache
def _cpu() -> str:
    """Model and features of the CPU, of which `-march=native` makes use."""
    fields = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant", "isa", "cpu")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts = {line.strip() for line in lines if line.partition(":")[0].strip() in fields}
    return "\n".join([platform.machine(), platform.processor(), *sorted(facts)])


# ------------------------------------------------------------------------------------------------ compilers


@functools.lru_cache(maxsize=16)
def _examine(
    language: Language, command: tuple[str, ...], surroundings: tuple[str | None, ...]
) -> Compiler | str:
    """What a compiler is and can do, or why it is of no use. `surroundings` keys the memory of the answer."""
    program = shutil.which(command[0])
    if program is None:
        return f"{command[0]} is not there"
    driver = (program, *command[1:])
    try:
        version = _run((*driver, "--version"), Path("/"), 30.0).stdout.strip()
        target = _run((*driver, "-dumpmachine"), Path("/"), 30.0).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} does not run ({error})"
    # The driver keeps the name it was called by: clang++ and ccache act on theirs.
    file = os.path.realpath(program)
    identity = f"{file} {os.stat(file).st_mtime_ns}"
    complaint = "there is no folder to try it in"
    # A cache that is full or may not run programs says nothing about the compiler: a private folder decides.
    places, tunings = (_shared_cache, _private_cache), (("-march=native",), ("-mcpu=native",), ())
    for place, tuning, openmp in itertools.product(places, tunings, (True, False)):
        try:
            folder = place()
            if folder is None:
                continue
            complaint = _try_out(driver, language, (*tuning, *(("-fopenmp",) if openmp else ())), folder)
        except (OSError, subprocess.TimeoutExpired) as error:
            complaint = str(error)
        if not complaint:
            return Compiler(language, driver, identity, version, target, tuning, openmp)
    return f"{program} does not build a program that runs: {complaint}"


def _try_out(driver: Sequence[str], language: Language, flags: Sequence[str], place: Path) -> str:
    """Build and run a small program; the empty string, or what went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="building-", dir=place))
    try:
        source = "probe.c" if language == "c" else "probe.cpp"
        (folder / source).write_text(_PROBE, encoding="utf-8")
        built = _run((*driver, *flags, source, "-o", "probe"), folder, 60.0)
        if built.returncode != 0:
            return built.stdout.strip()[-500:] or f"exit status {built.returncode}"
        status = _run((str(folder / "probe"),), folder, 60.0).returncode
        return f"the program ends with status {status}" if status else ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: Sequence[str], folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
        check=False,
    )


# ---------------------------------------------------------------------------------------------------- cache


def _shared_cache() -> Path | None:
    """The cache of this user, or None where it cannot be made, cannot be trusted or may not hold programs."""
    chosen = os.environ.get("MAAT_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if chosen:
            folder = Path(chosen).absolute() / "native"
        elif os.path.isabs(xdg):  # the XDG specification has relative paths ignored
            folder = Path(xdg) / "maat" / "native"
        else:
            folder = Path.home() / ".cache" / "maat" / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
        noexec = bool(os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0))
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        _warn_once("cache", f"no kernel cache ({error}): every process rebuilds its kernels; set MAAT_CACHE")
        return None
    # Code is loaded from here: whoever else may write here would run code as this user.
    if facts.st_uid not in {0, os.geteuid()} or facts.st_mode & 0o002:
        _warn_once("cache", f"the kernel cache {folder} is open to other users, so not used; set MAAT_CACHE")
        return None
    if noexec:
        _warn_once("cache", f"the kernel cache {folder} is mounted noexec and is not used; set MAAT_CACHE")
        return None
    return folder


def _private_cache() -> Path:
    """A folder that lives as long as this process."""
    return _private_cache_of(os.getpid())


@functools.cache
def _private_cache_of(process: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="maat-native-"))

    def remove() -> None:
        if os.getpid() == process:  # a forked child inherits this, and must leave its parent's folder alone
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _lookup(cache: Path, wanted: Plan) -> Path | None:
    """An undamaged library of this plan, or None."""
    for candidate in sorted(cache.glob(f"{wanted.name}-{wanted.key}-*.so")):
        checksum = candidate.stem.rpartition("-")[2]
        try:
            if _checksum(candidate) == checksum:
                return candidate
        except OSError:  # unreadable or no file at all: as good as absent
            continue
    return None


def _compile(cache: Path, wanted: Plan) -> Path:
    """Compile into the cache. Raises CompileError; OSError where the cache, not the kernel, is at fault."""
    _sweep(cache)
    folder = Path(tempfile.mkdtemp(prefix="building-", dir=cache))
    try:
        if wanted.text is not None:
            suffix = ".c" if wanted.compiler.language == "c" else ".cpp"
            (folder / (wanted.name + suffix)).write_text(wanted.text, encoding="utf-8")
        output = folder / "library.so"
        command = wanted.command(output)
        try:
            result = _run(command, folder, _COMPILE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise CompileError(
                f"compiling {wanted.name} took over {_COMPILE_SECONDS:.0f} s: {shlex.join(command)}",
                command,
                "",
            ) from error
        if result.returncode != 0 or not output.is_file():
            if "No space left on device" in result.stdout or "Disk quota exceeded" in result.stdout:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cache))
            raise CompileError(
                f"{wanted.name} does not compile (exit status {result.returncode}).\n"
                f"command: {shlex.join(command)}\n{result.stdout.strip()}",
                command,
                result.stdout,
            )
        if _key(wanted.compiler, wanted.flags, wanted.sources, wanted.text) != wanted.key:
            raise CompileError(
                f"the sources of {wanted.name} changed while they were compiled: build again", command, ""
            )
        with output.open("rb+") as file:
            os.fsync(file.fileno())
        library = cache / f"{wanted.name}-{wanted.key}-{_checksum(output)}.so"
        output.replace(library)
        _flush_folder(cache)
        return library
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(cache: Path) -> None:
    """Remove what builds that were killed long ago left behind."""
    for folder in cache.glob("building-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _LITTER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


# -------------------------------------------------------------------------------------------------- warnings

_WARNING_LOCK = threading.Lock()  # functools.cache alone would let two threads both be the first


@functools.cache
def _turns(subject: str) -> Iterator[bool]:
    return iter((True,))


def _warn_once(subject: str, message: str) -> None:
    with _WARNING_LOCK:
        first = next(_turns(subject), False)
    if first:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
