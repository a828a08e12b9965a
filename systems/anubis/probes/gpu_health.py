"""What a GPU says about itself through NVML: error counters, remapped memory rows, links and throttling.

`read_health` reads the facts, `health_findings` judges them. The rules are a pure function of plain data, so
they can be tried on the counters of any GPU, recorded anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

REMAPPED_ROWS_LIMIT = 10
"""More remapped rows than this are a defect: 83.3 % of such nodes regress, 5.6 % of those with 1 to 10
(Anubis, arXiv 2402.06194, as cited second-hand in seeds/anubis.toml, claim row-remap)."""

THROTTLE_REASONS: Mapping[int, str] = {  # bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h)
    0x008: "hardware slowdown",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
}
"""The reasons that mean trouble; idle clocks, chosen clocks and the power cap are how a healthy GPU runs."""


class HealthUnavailable(Exception):
    """NVML cannot be asked here; the message says why."""


@dataclass(frozen=True)
class HealthFacts:
    """Counters of one GPU. None means that this GPU or driver does not tell.

    ecc_*: error counts; volatile ones since the driver was loaded, aggregate ones over the GPU's life
    rows_*: memory rows remapped after (un)correctable errors, whether one waits for a reset, whether one failed
    pcie_*: link width in lanes and generation, now and at most in this slot; packets that were sent again
    nvlink_*: per link, whether it is up; name of a counter -> errors on all links
    throttle: bits of THROTTLE_REASONS and others
    loaded: the facts were read while the GPU worked (an idle GPU slows its PCIe link to save power)
    lost: the driver no longer reaches the GPU
    """

    index: int
    name: str = ""
    uuid: str = ""
    ecc_enabled: bool | None = None
    ecc_corrected_volatile: int | None = None
    ecc_uncorrected_volatile: int | None = None
    ecc_corrected_aggregate: int | None = None
    ecc_uncorrected_aggregate: int | None = None
    rows_remapped_correctable: int | None = None
    rows_remapped_uncorrectable: int | None = None
    rows_pending: bool | None = None
    rows_failed: bool | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_replays: int | None = None
    nvlink_active: tuple[bool, ...] = ()
    nvlink_errors: Mapping[str, int] = field(default_factory=dict)
    temperature_celsius: int | None = None
    throttle: int | None = None
    loaded: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing that a GPU's facts show: a defect fails the machine, evidence explains another failure."""

    severity: Literal["defect", "evidence"]
    gpu: int
    rule: str
    message: str


def health_findings(facts: HealthFacts) -> list[Finding]:
    """What is wrong with the GPU that `facts` describe, defects first; facts that are None are not judged."""
    if facts.lost:
        return [Finding("defect", facts.index, "lost", "the driver has lost the GPU: reboot, then replace it")]
    found = [
        Finding(severity, facts.index, rule, message)
        for rules in (_memory, _pcie, _nvlink, _throttling)
        for severity, rule, message in rules(facts)
    ]
    return sorted(found, key=lambda finding: finding.severity != "defect")


Rule = tuple[Literal["defect", "evidence"], str, str]


def _memory(facts: HealthFacts) -> Iterator[Rule]:
    if facts.ecc_uncorrected_volatile:
        count = facts.ecc_uncorrected_volatile
        yield "defect", "ecc-uncorrected", f"{count} uncorrected memory errors since the driver was loaded"
    elif facts.ecc_uncorrected_aggregate:
        count = facts.ecc_uncorrected_aggregate
        yield (
            "evidence",
            "ecc-uncorrected",
            f"{count} uncorrected memory errors in the GPU's life, none lately",
        )
    if facts.ecc_corrected_volatile:
        count = facts.ecc_corrected_volatile
        yield "evidence", "ecc-corrected", f"{count} corrected memory errors since the driver was loaded"
    if facts.ecc_enabled is False:
        yield "evidence", "ecc-off", "error correction of the memory is switched off"
    rows = (facts.rows_remapped_correctable or 0) + (facts.rows_remapped_uncorrectable or 0)
    if rows > REMAPPED_ROWS_LIMIT:
        yield (
            "defect",
            "row-remap",
            f"{rows} remapped memory rows, more than {REMAPPED_ROWS_LIMIT}: replace the GPU",
        )
    elif rows:
        yield (
            "evidence",
            "row-remap",
            f"{rows} remapped memory rows (up to {REMAPPED_ROWS_LIMIT} are tolerated)",
        )
    if facts.rows_failed:
        yield "defect", "row-remap-failed", "a memory row could not be remapped: replace the GPU"
    if facts.rows_pending:
        yield "evidence", "row-remap-pending", "a memory row waits for its remapping: reset the GPU"


def _pcie(facts: HealthFacts) -> Iterator[Rule]:
    width, most = facts.pcie_width, facts.pcie_width_max
    if width is not None and most is not None and width < most:
        yield "defect", "pcie-width", f"PCIe link has {width} of {most} lanes: reseat the GPU or its riser"
    generation, best = facts.pcie_generation, facts.pcie_generation_max
    if facts.loaded and generation is not None and best is not None and generation < best:
        yield "defect", "pcie-generation", f"PCIe link runs at generation {generation} of {best} under load"
    if facts.pcie_replays:
        yield "evidence", "pcie-replays", f"{facts.pcie_replays} PCIe packets had to be sent again"


def _nvlink(facts: HealthFacts) -> Iterator[Rule]:
    # A GPU without any link up is one that nobody wired; a few links down among many are broken.
    if any(facts.nvlink_active) and not all(facts.nvlink_active):
        down = [str(link) for link, active in enumerate(facts.nvlink_active) if not active]
        yield "defect", "nvlink-down", f"NVLink {', '.join(down)} of {len(facts.nvlink_active)} is down"
    for counter, count in facts.nvlink_errors.items():
        if count:
            yield "evidence", "nvlink-errors", f"{count} NVLink {counter} errors"


def _throttling(facts: HealthFacts) -> Iterator[Rule]:
    for bit, reason in THROTTLE_REASONS.items():
        if (facts.throttle or 0) & bit:
            at = "" if facts.temperature_celsius is None else f" at {facts.temperature_celsius} degrees Celsius"
            yield "defect", "throttled", f"clocks held down by {reason}{at}: check cooling and power"


# ---- reading


def health_unavailable() -> str | None:
    """Why NVML cannot be asked here, or None when it can."""
    try:
        with _nvml() as nvml:
            if nvml.nvmlDeviceGetCount() == 0:
                return "no GPU health: the NVIDIA driver sees no GPU"
    except HealthUnavailable as error:
        return str(error)
    return None


def read_health(*, loaded: Collection[str] = ()) -> tuple[HealthFacts, ...]:
    """The facts of every GPU that the driver knows, in NVML's order, whatever CUDA_VISIBLE_DEVICES says.

    loaded: the uuids of GPUs that work while this reads. Raises HealthUnavailable without NVML or a driver.
    """
    with _nvml() as nvml:
        return tuple(_facts(nvml, index, loaded) for index in range(nvml.nvmlDeviceGetCount()))


@contextmanager
def _nvml() -> Iterator[Any]:
    try:
        import pynvml
    except ImportError as error:
        raise HealthUnavailable("no GPU health: nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise HealthUnavailable(f"no GPU health: NVML does not start ({error})") from error
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _facts(nvml: Any, index: int, loaded: Collection[str]) -> HealthFacts:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        return _read(nvml, handle, index, loaded)
    except nvml.NVMLError_GpuIsLost:
        return HealthFacts(index, lost=True)


def _read(nvml: Any, handle: Any, index: int, loaded: Collection[str]) -> HealthFacts:
    def ask(query: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return query(handle, *arguments)
        except nvml.NVMLError_GpuIsLost:
            raise
        except nvml.NVMLError:  # not supported by this GPU, driver or user: the fact stays unknown
            return None

    def ecc(kind: int, counter: int) -> int | None:
        count: int | None = ask(nvml.nvmlDeviceGetTotalEccErrors, kind, counter)
        return count

    uuid = ask(nvml.nvmlDeviceGetUUID) or ""
    rows = ask(nvml.nvmlDeviceGetRemappedRows) or (None, None, None, None)
    ecc_mode = ask(nvml.nvmlDeviceGetEccMode)
    links = (ask(nvml.nvmlDeviceGetNvLinkState, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS))
    corrected, uncorrected = nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    volatile, aggregate = nvml.NVML_VOLATILE_ECC, nvml.NVML_AGGREGATE_ECC
    return HealthFacts(
        index=index,
        name=ask(nvml.nvmlDeviceGetName) or "",
        uuid=uuid,
        ecc_enabled=None if ecc_mode is None else bool(ecc_mode[0]),
        ecc_corrected_volatile=ecc(corrected, volatile),
        ecc_uncorrected_volatile=ecc(uncorrected, volatile),
        ecc_corrected_aggregate=ecc(corrected, aggregate),
        ecc_uncorrected_aggregate=ecc(uncorrected, aggregate),
        rows_remapped_correctable=rows[0],
        rows_remapped_uncorrectable=rows[1],
        rows_pending=None if rows[2] is None else bool(rows[2]),
        rows_failed=None if rows[3] is None else bool(rows[3]),
        pcie_width=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth),
        pcie_width_max=ask(nvml.nvmlDeviceGetMaxPcieLinkWidth),
        pcie_generation=ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration),
        pcie_generation_max=ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration),
        pcie_replays=ask(nvml.nvmlDeviceGetPcieReplayCounter),
        nvlink_active=tuple(bool(link) for link in links if link is not None),
        nvlink_errors=_nvlink_errors(nvml, ask),
        temperature_celsius=ask(nvml.nvmlDeviceGetTemperatureV, nvml.NVML_TEMPERATURE_GPU),
        throttle=ask(nvml.nvmlDeviceGetCurrentClocksEventReasons),
        loaded=uuid in loaded,
    )


def _nvlink_errors(nvml: Any, ask: Callable[..., Any]) -> dict[str, int]:
    counters = {
        "flit CRC": nvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
        "data CRC": nvml.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
        "replay": nvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
        "recovery": nvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
    }
    values = ask(nvml.nvmlDeviceGetFieldValues, list(counters.values())) or ()
    return {
        # The union is zeroed before the call, so its widest member reads every unsigned type.
        name: int(value.value.ullVal)
        for name, value in zip(counters, values, strict=False)  # no values at all where there are no links
        if value.nvmlReturn == nvml.NVML_SUCCESS
    }
