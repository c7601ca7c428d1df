"""Where the training data came from, what was refused, made up and mined."""

from collections import Counter
from typing import Any

from tasks.report import numbers
from tasks.report.run import Run

MANY_SHORT = 0.5
"""Share of rows short of negatives from which the page warns."""


def flow_view(run: Run) -> dict[str, Any] | None:
    """Rows in and out of ingest, per source and in total."""
    metrics = run.metrics("ingest")
    if metrics is None:
        return None
    reasons: Counter[str] = Counter()
    rows = []
    for name, source in metrics["sources"].items():
        reasons.update(source["quarantined"])
        refused = sum(source["quarantined"].values())
        rows.append(
            {
                "name": name,
                "task": _task_of(run, name),
                "read": numbers.count(source["read"]),
                "kept": numbers.count(source["kept"]),
                "development": numbers.count(source["development"]),
                "unsampled": numbers.count(source["unsampled"]),
                "refused": numbers.count(refused),
                "why": ", ".join(
                    f"{_words(reason)} {numbers.count(number)}"
                    for reason, number in _largest(source["quarantined"])
                ),
                "bar": _parts(source, refused),
            }
        )
    in_domain: Counter[str] = Counter()
    for source in metrics["sources"].values():
        in_domain.update(source.get("in_domain") or {})
    return {
        "rows": rows,
        "totals": {name: numbers.count(value) for name, value in metrics["totals"].items()},
        "reasons": _bars(reasons),
        "in_domain": [
            {"task": task, "rows": numbers.count(number)}
            for task, number in _largest(in_domain)
            if number
        ],
    }


def validation_view(run: Run) -> dict[str, Any] | None:
    """Checks passed and failed, suite by suite."""
    summary = run.json("validate/summary.json")
    if summary is None:
        return None
    suites = [
        {
            "name": suite["suite"],
            "rows": numbers.count(suite["rows"]),
            "checks": len(suite["checks"]),
            "failed": sum(not check["success"] for check in suite["checks"]),
        }
        for suite in summary["suites"]
    ]
    return {
        "passed": summary["success"],
        "checks": sum(suite["checks"] for suite in suites),
        "failed": sum(suite["failed"] for suite in suites),
        "suites": suites,
    }


def synthesis_view(run: Run) -> dict[str, Any] | None:
    """What wrote the synthetic queries, how many, and how many were refused."""
    metrics = run.metrics("synthesize")
    if metrics is None:
        return None
    facts = [
        ("documents read", metrics["documents"]),
        ("examples kept", metrics["examples"]),
        ("drafts refused", sum(metrics["rejected"].values())),
        ("prompt tokens", metrics.get("prompt_tokens")),
        ("completion tokens", metrics.get("completion_tokens")),
    ]
    price = run.params.cost.of_tokens(
        metrics.get("prompt_tokens", 0), metrics.get("completion_tokens", 0)
    )
    return {
        "generator": metrics["generator"],
        "is_offline": run.params.synthesize.endpoint is None,
        "facts": [
            {"label": label, "value": numbers.count(value)}
            for label, value in facts
            if value is not None
        ]
        + ([{"label": "price of the tokens", "value": price}] if price else []),
        "kinds": _bars(Counter(metrics["kinds"])),
        "rejected": _bars(Counter(metrics["rejected"])),
    }


def mining_view(run: Run) -> dict[str, Any] | None:
    """How many candidates each cap would refuse, to calibrate mine.max_positive_share."""
    metrics = run.metrics("mine")
    if metrics is None:
        return None
    chosen = run.params.mine.max_positive_share
    return {
        "chosen": f"{chosen:g}",
        "is_too_strict": metrics["short_share"] > MANY_SHORT,
        "rates": [
            {
                "cap": cap,
                "share": numbers.share(share),
                "width": round(100 * share, 1),
                "is_chosen": abs(float(cap) - chosen) < 1e-9,  # noqa: PLR2004 - equal as printed
            }
            for cap, share in metrics["removed_by_cap_share_at"].items()
        ],
        "facts": [
            {"label": "queries", "value": numbers.count(metrics["queries"])},
            {"label": "candidate passages", "value": numbers.count(metrics["corpus"])},
            {"label": "negatives mined", "value": numbers.count(metrics["negatives_mined"])},
            {"label": "rows short of negatives", "value": numbers.share(metrics["short_share"])},
            {"label": "mean cosine of positives", "value": _cosine(metrics["mean_positive_score"])},
            {"label": "of mined negatives", "value": _cosine(metrics["mean_negative_score"])},
        ],
    }


def _task_of(run: Run, name: str) -> str:
    source = run.params.ingest.sources.get(name)
    return "" if source is None else source.task


def _parts(source: dict[str, Any], refused: int) -> list[dict[str, Any]]:
    read = source["read"] or 1
    amounts = [
        ("kept", source["kept"]),
        ("development", source["development"]),
        ("unsampled", source["unsampled"]),
        ("refused", refused),
    ]
    return [
        {"kind": kind, "width": round(100 * amount / read, 2)} for kind, amount in amounts if amount
    ]


def _largest(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _bars(counts: Counter[str]) -> list[dict[str, Any]]:
    most = max(counts.values(), default=0) or 1
    return [
        {
            "name": _words(name),
            "count": numbers.count(number),
            "width": round(100 * number / most, 1),
        }
        for name, number in _largest(counts)
    ]


def _words(identifier: str) -> str:
    return identifier.replace("_", " ")


def _cosine(value: float | None) -> str:
    return numbers.MISSING if value is None else f"{value:.3f}"
