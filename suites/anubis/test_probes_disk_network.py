"""The disk and network probes: what they find, what they refuse, and what they leave behind (nothing)."""

import contextlib
import errno
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from systems.anubis.probes import disk, link, namespaces, network

SMALL = 16 * disk.BLOCK  # bytes: the smallest scratch file
TOKEN = secrets.token_bytes(link.TOKEN_BYTES)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("disk")
    try:
        return disk.scratch_folder(path)
    except disk.NoDisk as reason:
        pytest.skip(f"{reason}; or give pytest a --basetemp on a disk")


@pytest.fixture(params=[("direct", True), ("direct", False), ("buffered", True)], ids=str)
def scratch(folder, request):
    mode, compiled = request.param
    if mode == "direct" and disk.io_mode(folder) != "direct":
        pytest.skip(f"the filesystem of {folder} refuses O_DIRECT")
    with disk.Scratch(folder, size=SMALL, mode=mode, compiled=compiled) as file:
        if compiled and file.engine != "compiled":
            pytest.skip("there is no C compiler here")
        yield file


@contextlib.contextmanager
def behind_the_back(scratch):
    """The scratch file opened a second time, as whatever corrupts it would have it."""
    descriptor = os.open(f"/proc/self/fd/{scratch.descriptor}", os.O_RDWR)
    try:
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


# ----------------------------------------------------------------------------------------------------- disk


def test_what_was_written_in_any_order_reads_back(scratch):
    disk.random_access(scratch, reads=0, transfers=4096)
    disk.sequential_write(scratch, blocks=16)
    disk.random_access(scratch, reads=0.7, transfers=8192)
    disk.random_access(scratch, reads=0, depth=1, transfers=64)
    scratch.verify()
    disk.sequential_read(scratch, blocks=16)
    disk.random_access(scratch, reads=1, transfers=4096)


def test_every_sector_on_the_disk_differs_from_every_other(scratch):
    """Equal sectors would hide a misdirected write, and a device that deduplicates would be measured as fast."""
    with behind_the_back(scratch) as descriptor:
        content = os.pread(descriptor, SMALL, 0)
    sectors = {content[at : at + disk.SECTOR] for at in range(0, SMALL, disk.SECTOR)}
    assert len(sectors) == SMALL // disk.SECTOR


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, SMALL - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_at_its_offset(scratch, offset, bit):
    with behind_the_back(scratch) as descriptor:
        right = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([right[0] ^ (1 << bit)]), offset)
    with pytest.raises(disk.CorruptBlock, match=f"byte {offset} .* 1 of its 4096 bytes") as found:
        scratch.verify()
    assert found.value.offset == offset
    with behind_the_back(scratch) as descriptor:
        os.pwrite(descriptor, right, offset)
    scratch.verify()


@pytest.mark.parametrize(
    "read",
    [
        lambda file: disk.sequential_read(file, blocks=16),
        lambda file: disk.random_access(file, reads=1, transfers=4096),
        lambda file: disk.random_access(file, reads=1, depth=1, transfers=4096),
    ],
    ids=["sequential", "random", "depth-1"],
)
def test_each_timed_read_finds_a_corrupt_block(scratch, read):
    with behind_the_back(scratch) as descriptor:
        os.pwrite(descriptor, bytes(disk.SECTOR), 5 * disk.BLOCK)
    with pytest.raises(disk.CorruptBlock) as found:
        read(scratch)
    assert found.value.offset // disk.SECTOR == 5 * disk.BLOCK // disk.SECTOR


def test_two_exchanged_sectors_are_found(scratch):
    with behind_the_back(scratch) as descriptor:
        one, other = (os.pread(descriptor, disk.SECTOR, at * disk.SECTOR) for at in (7, 11))
        os.pwrite(descriptor, other, 7 * disk.SECTOR)
        os.pwrite(descriptor, one, 11 * disk.SECTOR)
    with pytest.raises(disk.CorruptBlock) as found:
        scratch.verify()
    assert found.value.offset // disk.SECTOR == 7


def test_a_lost_write_is_told_from_an_altered_block(scratch):
    with behind_the_back(scratch) as descriptor:
        old = os.pread(descriptor, disk.SECTOR, 9 * disk.SECTOR)
    disk.sequential_write(scratch, blocks=16)
    with behind_the_back(scratch) as descriptor:
        os.pwrite(descriptor, old, 9 * disk.SECTOR)
    with pytest.raises(disk.CorruptBlock, match="acknowledged and lost"):
        scratch.verify()


@pytest.mark.parametrize(("reads", "low", "high"), [(1.0, 0, 0), (0.7, 1000, 1500), (0.0, 4096, 4096)])
def test_the_mix_holds_its_share_of_writes(folder, reads, low, high):
    with disk.Scratch(folder, size=SMALL) as scratch:
        done = disk.random_access(scratch, reads=reads, transfers=4096)
        assert low <= scratch.generation.sum() <= high  # writes per sector, counted by the file and not the probe
        assert len(done.latencies) == done.operations.sum() == 4096


def test_rates_are_those_of_the_wall_clock(folder):
    """Chunks may neither overlap nor leave gaps: their seconds add up to no more than the call took."""
    with disk.Scratch(folder, size=SMALL) as scratch:
        began = time.perf_counter()
        done = disk.sequential_read(scratch, depth=2, blocks=64)
        took = time.perf_counter() - began
    assert done.operations.sum() == 64
    assert 0 < done.seconds.sum() <= took
    assert np.allclose(done.bandwidth * done.seconds, done.operations * disk.BLOCK)
    assert done.latencies.sum() <= 2 * took  # two in flight at most
    assert (done.latencies > 0).all()


@pytest.mark.parametrize("reads", [0.0, 0.5, 1.0])
def test_a_probe_whose_time_is_up_leaves_a_file_that_verifies(scratch, reads):
    done = disk.random_access(scratch, reads=reads, transfers=4096, limit=0.0)
    assert 1 <= len(done.latencies) < 4096
    assert (done.iops > 0).all()
    scratch.verify()


def test_a_file_that_cannot_be_filled_in_time_is_smaller(folder):
    with disk.Scratch(folder, size=4 * SMALL, limit=0.0) as scratch:
        assert scratch.size == SMALL
        assert os.fstat(scratch.descriptor).st_size == SMALL
        scratch.verify()


def test_a_transfer_past_the_end_is_an_error(scratch):
    """What a file loses behind the probe's back is no figure: a short transfer would count as a fast one."""
    os.ftruncate(scratch.descriptor, SMALL // 2 + 512)
    with pytest.raises(disk.DiskError, match=r"short transfer at byte 8388608"):
        disk.sequential_read(scratch, blocks=16, depth=1)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_failing_device_is_an_error(folder, compiled):
    """EBADF from a descriptor that is not open for writing takes the way that EIO from a disk would take."""
    with disk.Scratch(folder, size=SMALL, compiled=compiled) as scratch:
        writable, scratch.descriptor = scratch.descriptor, os.open("/dev/zero", os.O_RDONLY)
        try:
            with pytest.raises(disk.DiskError, match="failed a transfer: Bad file descriptor"):
                disk.sequential_write(scratch, blocks=16)
        finally:
            os.close(writable)


def test_durable_appends_are_timed_one_by_one(folder):
    seconds = disk.durable_append(folder, appends=20)
    assert seconds.shape == (20,)
    assert (seconds > 0).all()
    assert len(disk.durable_append(folder, appends=1000, limit=0.0)) == 1


def test_a_scratch_file_has_no_name(folder, tmp_path):
    with disk.Scratch(tmp_path, size=SMALL) as scratch:
        assert os.fstat(scratch.descriptor).st_nlink == 0
        assert list(tmp_path.iterdir()) == []


def test_a_filesystem_without_nameless_files_gets_an_unlinked_one(folder, tmp_path, monkeypatch):
    """Such a filesystem is rare (NFS, old overlayfs), so that its refusal is played here."""
    real = os.open

    def refusing(path, flags, *rest, **named):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refusing)
    with disk.Scratch(tmp_path, size=SMALL) as scratch:
        assert os.fstat(scratch.descriptor).st_nlink == 0
        assert list(tmp_path.iterdir()) == []
        scratch.verify()


def test_a_filesystem_that_refuses_direct_io_is_named_buffered(folder, tmp_path, monkeypatch):
    real = os.open

    def refusing(path, flags, *rest, **named):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refusing)
    assert disk.io_mode(tmp_path) == "buffered"
    with disk.Scratch(tmp_path, size=SMALL) as scratch:
        assert disk.sequential_read(scratch, blocks=16).mode == "buffered"


def test_a_killed_probe_leaves_nothing(folder, tmp_path):
    code = (
        "import sys, time; from systems.anubis.probes import disk\n"
        f"s = disk.Scratch(sys.argv[1], size={SMALL}); print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout.readline() == b"up\n"
    child.kill()
    child.communicate()
    assert list(tmp_path.iterdir()) == []


def test_memory_is_refused_as_a_disk():
    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no /dev/shm here")
    with pytest.raises(disk.NoDisk, match=r"tmpfs, which is memory.*MAAT_SCRATCH"):
        disk.Scratch("/dev/shm")


def test_the_scratch_folder_is_given_or_from_the_environment_or_the_current_one(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MAAT_SCRATCH", raising=False)
    assert disk.scratch_folder() == folder
    monkeypatch.setenv("MAAT_SCRATCH", str(tmp_path))
    assert disk.scratch_folder() == tmp_path.resolve()
    assert disk.scratch_folder(folder) == folder


def test_too_little_space_is_told_with_both_figures(folder):
    with pytest.raises(disk.NoSpace, match=r"has \d+ MiB free; a disk probe needs 1073741888 MiB"):
        disk.Scratch(folder, size=1 << 50)


def test_bad_arguments_are_refused(folder, tmp_path):
    with pytest.raises(disk.NoDisk, match="writable folder"):
        disk.Scratch(tmp_path / "absent")
    with pytest.raises(ValueError, match="multiple of"):
        disk.Scratch(folder, size=SMALL + 1)
    with pytest.raises(ValueError, match="appends 0"):
        disk.durable_append(folder, appends=0)
    with disk.Scratch(folder, size=SMALL) as scratch:
        with pytest.raises(ValueError, match=r"reads 1.5"):
            disk.random_access(scratch, reads=1.5)
        with pytest.raises(ValueError, match="depth 0"):
            disk.sequential_read(scratch, depth=0)


# -------------------------------------------------------------------------------------------------- network


def quick(host, port, *, token=TOKEN, timeout=5.0):
    return link.probe(host, port, token=token, seconds=5, chunks=2, pings=20, connections=5, timeout=timeout)


@contextlib.contextmanager
def server(answer):
    """A TCP server on a thread that hands each connection to `answer`; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_link_is_measured_in_both_directions():
    with network.responder(token=TOKEN) as (host, port):
        found = quick(host, port)
    assert [len(found.receive), len(found.send), len(found.round_trip), len(found.connect)] == [2, 2, 20, 5]
    assert min(found.receive + found.send + found.round_trip + found.connect) > 0


def test_loopback_measures_itself():
    found = network.loopback(seconds=0.2)
    assert found.host == "127.0.0.1"
    assert min(found.receive + found.send + found.round_trip + found.connect) > 0


def test_a_stranger_is_refused():
    with network.responder(token=TOKEN) as (host, port):
        with pytest.raises(link.LinkRefused, match="token"):
            quick(host, port, token=secrets.token_bytes(link.TOKEN_BYTES))
        assert quick(host, port).receive  # and the far end still serves its own


@settings(max_examples=15, deadline=None)
@given(request=st.binary(max_size=200))
def test_garbage_does_not_disturb_a_far_end(request):
    with far_end() as address:
        with contextlib.suppress(ConnectionError), socket.create_connection(address, timeout=2) as stranger:
            stranger.sendall(request)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) in (b"", b"\x01")
        assert quick(*address).receive


@contextlib.contextmanager
def far_end():
    """`link.serve` on a thread of this process."""
    stop, ports = threading.Event(), []
    ready = threading.Event()

    def announce(port):
        ports.append(port)
        ready.set()

    thread = threading.Thread(
        target=link.serve, args=("127.0.0.1",), kwargs={"token": TOKEN, "ready": announce, "stop": stop}
    )
    thread.start()
    try:
        assert ready.wait(5)
        yield "127.0.0.1", ports[0]
    finally:
        stop.set()
        thread.join()


def test_nobody_listening_is_told():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(link.LinkRefused, match="nothing listens"):
        quick("127.0.0.1", port)


def test_a_silent_far_end_times_out():
    kept = []
    with server(kept.append) as address, pytest.raises(link.LinkTimeout, match=r"no progress within 0.3 s"):
        quick(*address, timeout=0.3)


def relay_to(address, alter):
    """An answer for `server`: forward to `address` and back, `alter`ing what comes back."""

    def answer(near):
        far = socket.create_connection(address)

        def there():
            with contextlib.suppress(OSError):
                while data := near.recv(65536):
                    far.sendall(data)
                far.shutdown(socket.SHUT_WR)

        threading.Thread(target=there, daemon=True).start()
        with near, far, contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(alter(data))

    return answer


def test_altered_data_is_corruption_and_no_figure():
    def flip_one_bit(data):
        return data if len(data) < 32 else data[:-1] + bytes([data[-1] ^ 4])

    with (
        far_end() as address,
        server(relay_to(address, flip_one_bit)) as altering,
        pytest.raises(link.CorruptTransfer, match="altered"),
    ):
        quick(*altering)
    with far_end() as address, server(relay_to(address, lambda data: data)) as faithful:
        assert quick(*faithful).receive


def test_a_link_that_is_slow_ends_in_time():
    """A relay at about 1.6 MB/s moves less than one chunk in the time given: the rate is that of the part, with what
    the buffers on the way held when it began."""

    def slowly(data):
        time.sleep(len(data) / 1.6e6)
        return data

    with far_end() as address, server(relay_to(address, slowly)) as slow:
        found = link.probe(*slow, token=TOKEN, seconds=0.3, pings=5, connections=1)
    assert len(found.receive) == 1
    assert found.receive[0] < 3.2e6  # no machine is so busy that the relay gets twice as fast


@given(nodes=st.integers(0, 40))
def test_a_tournament_lets_each_pair_meet_once(nodes):
    tournament = network.rounds(nodes)
    met = [pair for pairs in tournament for pair in pairs]
    assert sorted(met) == list(itertools.combinations(range(nodes), 2))
    for pairs in tournament:
        players = [player for pair in pairs for player in pair]
        assert len(players) == len(set(players))
        assert len(pairs) == nodes // 2


def test_all_pairs_are_measured_and_a_dead_node_hides_none():
    with contextlib.ExitStack() as stack:
        hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        addresses = [stack.enter_context(network.responder(host, token=TOKEN)) for host in hosts]
        with socket.create_server(("127.0.0.4", 0)) as free:
            dead = free.getsockname()
        links = network.pairwise([*addresses, dead], token=TOKEN, seconds=0.1)
    assert sorted(links) == list(itertools.combinations(range(4), 2))
    for pair, found in links.items():
        if 3 in pair:
            assert isinstance(found, link.LinkError)
            assert "nothing listens at 127.0.0.4" in str(found)
        else:
            assert isinstance(found, link.Link)
            assert found.host == hosts[pair[1]]
            assert min(found.receive) > 0


def test_pairs_of_one_node_are_refused():
    with pytest.raises(ValueError, match="two at least, each once"):
        network.pairwise([("127.0.0.1", 1), ("127.0.0.1", 1)], token=TOKEN)


def group_is_gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


# What is started in the background of a shell ignores SIGINT, and so do its children.
INTERRUPTIBLE = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_far_end_outlives_its_near_end(number):
    code = (
        f"{INTERRUPTIBLE}import time\nfrom systems.anubis.probes import network\n"
        f"with network.responder(token=bytes.fromhex('{TOKEN.hex()}')) as (host, port):\n"
        "    print(port, flush=True)\n    time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )
    assert quick("127.0.0.1", int(child.stdout.readline())).receive
    child.send_signal(number)
    child.wait(10)
    child.stdout.close()
    assert wait_until(lambda: group_is_gone(child.pid))


def test_a_far_end_that_cannot_start_says_why():
    with (
        pytest.raises(link.LinkError, match=r"did not start: cannot listen.*Cannot assign"),
        network.responder("192.0.2.1", token=TOKEN),  # TEST-NET-1: never an address of this machine
    ):
        pass


# ----------------------------------------------------------------------------------------------- namespaces


@pytest.fixture
def pair():
    reason = namespaces.available()
    if reason:
        pytest.skip(reason)
    with namespaces.veth_pair() as made:
        yield made


def names():
    folder = Path("/run/netns")
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def test_a_pair_carries_traffic_and_is_removed(pair):
    assert {pair.a, pair.b} <= names()
    assert min(network.over_veth(pair, seconds=0.1).receive) > 0
    with namespaces.veth_pair() as again:
        assert again == pair
    assert {pair.a, pair.b} <= names()  # it belongs to whoever made it


def test_a_call_inside_a_namespace_leaves_the_caller_outside(pair):
    def where():
        return os.readlink("/proc/thread-self/ns/net")

    outside = where()
    assert namespaces.call_inside(pair.a, where) not in (outside, namespaces.call_inside(pair.b, where))
    assert where() == outside
    with pytest.raises(ZeroDivisionError):
        namespaces.call_inside(pair.a, lambda: 1 // 0)


def test_a_limited_link_is_never_faster_than_its_limit(pair):
    namespaces.limit_rate(pair, 200_000_000)
    found = network.over_veth(pair, seconds=0.5)
    assert max(found.receive + found.send) < 1.1 * 200_000_000 / 8
    namespaces.limit_rate(pair, None)
    rules = subprocess.run(["tc", "-n", pair.a, "qdisc"], capture_output=True, text=True, check=True)
    assert "tbf" not in rules.stdout


def test_a_rate_of_nothing_is_refused(pair):
    with pytest.raises(ValueError, match="positive"):
        namespaces.limit_rate(pair, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_pair_outlives_its_process_or_the_next_one(number):
    reason = namespaces.available()
    if reason:
        pytest.skip(reason)
    code = (
        f"{INTERRUPTIBLE}import time\nfrom systems.anubis.probes import namespaces\n"
        "with namespaces.veth_pair() as pair:\n    print(pair.a, pair.b, flush=True)\n    time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True
    )
    made = set(child.stdout.readline().split())
    assert made <= names()
    child.send_signal(number)
    child.wait(10)
    child.stdout.close()
    if number == signal.SIGKILL:
        assert made <= names()
        assert made <= set(namespaces.remove_leftovers())
    assert not made & names()


# ---------------------------------------------------------------------------------------------- collectives


def test_collectives_are_right_and_timed_by_the_slowest_rank():
    done = network.collectives(ranks=2, size=1 << 20, iterations=3)
    assert list(done) == ["all_reduce", "all_gather", "all_to_all"]
    for collective in done.values():
        assert len(collective.seconds) == 3
        assert min(collective.bus_bandwidth) > 0


@pytest.mark.parametrize(
    ("name", "expected"), [("all_reduce", 2 * 3 / 4 * 500), ("all_gather", 3 / 4 * 500), ("all_to_all", 3 / 4 * 500)]
)
def test_bus_bandwidth_is_that_of_nccl_tests(name, expected):
    assert network.Collective(name, ranks=4, size=1000, seconds=(2.0,)).bus_bandwidth == (expected,)


def start_rank(folder, rank, ranks, size):
    script = Path(network.__file__).with_name("collective.py")
    return subprocess.Popen(
        [sys.executable, "-P", script, *map(str, (folder, rank, ranks, size, 1))],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
    )


def test_a_rank_ends_with_its_parent(tmp_path):
    """Rank 1 never comes, and rank 0 would wait for it; its standard input closes as that of a dead parent does."""
    rank = start_rank(tmp_path, 0, 2, 1 << 20)
    assert rank.poll() is None
    rank.communicate(timeout=30)
    assert rank.returncode != 0


def test_collectives_that_hang_are_ended():
    before = children()
    with pytest.raises(link.LinkTimeout, match=r"within 0.05 s"):
        network.collectives(limit=0.05)
    assert children() == before


def children():
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_wrong_result_of_a_collective_is_found(tmp_path):
    torch = pytest.importorskip("torch")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import json, collective, torch.distributed as dist\n"
        "dist.init_process_group('gloo', store=dist.FileStore(sys.argv[2], 1), rank=0, world_size=1)\n"
        "plans = collective._plans(0, 1, 64)\n"
        "times = {name: collective._time(plan, 2) for name, plan in plans.items()}\n"
        "plans['all_reduce'].expected[17] += 1\n"
        "print(json.dumps([times, collective._time(plans['all_reduce'], 2)]))\n"
    )
    folder = str(Path(network.__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path / "store"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
    )
    times, wrong = json.loads(run.stdout)
    assert torch is not None
    assert [len(seconds) for seconds in times.values()] == [2, 2, 2]
    assert wrong is None


@pytest.mark.parametrize("arguments", [{"ranks": 1}, {"size": 12}, {"iterations": 0}])
def test_collectives_of_nothing_are_refused(arguments):
    with pytest.raises(ValueError, match="expected two ranks at least"):
        network.collectives(**arguments)
