"""Row `core`: all threads that run Python on one core, against the same server spread over cores.

Each run makes a backlog of new queries, which is acceptance, and works it off, which is matching
and delivery; see `deliveries`. The other server idles meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import pictures
from benchmarks.deliveries import SIZES, Bench
from benchmarks.harness import Figure, Findings, median_of, paired, ratios
from benchmarks.receiver import receiving
from benchmarks.service import serving

if TYPE_CHECKING:
    from benchmarks.harness import Setup
    from benchmarks.service import Service

_DESTINATIONS = 4
_TAG = "photo"
_BASELINE = "the same server with --core any"


def measure(setup: Setup) -> Findings:
    """Compare queries accepted and called back per second, and what each costs."""
    with (
        receiving(_DESTINATIONS) as receiver,
        serving(
            setup.scratch / "any", "--core", "any", callbacks=receiver.addresses
        ) as on_any_core,
        serving(
            setup.scratch / "auto", "--core", "auto", callbacks=receiver.addresses
        ) as on_one_core,
    ):
        services = {"one": on_one_core, "any": on_any_core}
        for service in services.values():
            service.add_image(pictures.padded(SIZES[_TAG]), _TAG)
        benches = {name: Bench(setup, each, receiver) for name, each in services.items()}
        found: dict[str, list[dict[str, float]]] = {"accepted": [], "called back": [], "cpu": []}

        def run(name: str) -> dict[str, float]:
            return _run(benches[name], services[name])

        for name in services:
            run(name)  # warm
        runs = paired(setup.runs, {name: lambda name=name: run(name) for name in services})  # type: ignore[misc] # mypy reads no defaults of lambdas
    for what, values in found.items():
        values += [{name: each[name][what] for name in services} for each in runs]
    return Findings(
        figures=[
            Figure(
                title=f"queries {what} per second, Python on one core",
                baseline=_BASELINE,
                unit="x",
                runs=ratios(found[what], "one", "any"),
                details={
                    f"one core, queries {what}/s": median_of(found[what], "one"),
                    f"any core, queries {what}/s": median_of(found[what], "any"),
                },
            )
            for what in ("accepted", "called back")
        ]
        + [
            Figure(
                title="processor time of a query, accepted and called back, Python on one core",
                baseline=_BASELINE,
                unit="x",
                runs=ratios(found["cpu"], "one", "any"),
                details={
                    "one core, CPU µs": 1e6 * median_of(found["cpu"], "one"),
                    "any core, CPU µs": 1e6 * median_of(found["cpu"], "any"),
                },
            )
        ]
    )


def _run(bench: Bench, service: Service) -> dict[str, float]:
    before = service.cpu_seconds()
    called_back = bench.first(_TAG, _DESTINATIONS)
    cpu = (service.cpu_seconds() - before) / bench.count(_TAG)
    return {"accepted": bench.accepted, "called back": called_back, "cpu": cpu}
