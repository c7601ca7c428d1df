"""A made-up run for the tests of the report: the files every stage writes, without the models."""

import math

from tasks.contract.stage import write_json

GAIN = {"random": 0.0, "tfidf": 0.25, "backbone": 0.1, "pretrain": 0.3, "finetune": 0.38}
REASONS = [
    "The mean 0.5421 of final exceeds the mean 0.1400 of random.",
    "The mean changed by +0.0121 against v0003 (0.5300 to 0.5421); at least +0.0000 is asked.",
]


def write_run(artifacts, params, *, publish=True, champion=True):
    """Write the artifacts of a plausible run of the sample profile below `artifacts`."""
    _write_evaluation(artifacts, params)
    _write_gate(artifacts, params, publish=publish, champion=champion)
    _write_data(artifacts, params)
    _write_model(artifacts, params)
    for number, stage in enumerate(("ingest", "validate", "pretrain", "evaluate@final")):
        cost = {"wall_s": 1.4 * 7**number, "peak_bytes": (number + 1) * 2**29}
        _json(artifacts / "timings" / f"{stage}.json", {"stage": stage, **cost})


def _json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _write_evaluation(artifacts, params):
    for number, rung in enumerate(params.evaluate.checkpoints):
        tasks = {
            task: round(0.1 + GAIN.get(rung, 0.44) + 0.02 * (place % 3) - 0.01 * number, 4)
            for place, task in enumerate(params.evaluate.tasks)
        }
        mean = sum(tasks.values()) / len(tasks)
        folder = artifacts / "evaluate" / rung
        _json(
            folder / "scores.json",
            {
                "tasks": tasks,
                "types": dict.fromkeys(tasks, "Retrieval"),
                "splits": {task: ["test"] for task in tasks},
                "by_type": {"Retrieval": mean},
                "mean": mean,
                "mean_by_type": mean,
            },
        )
        for task, score in tasks.items():
            scores = {"test": [{"main_score": score, "hf_subset": "default"}]}
            _json(folder / "results" / f"{task}.json", {"task_name": task, "scores": scores})
        _json(folder / "retrieved.json", _retrieved(params, is_good=rung == "final"))


def _retrieved(params, *, is_good):
    queries = []
    for number in range(3):
        order = [number, 3, 4] if is_good else [3, 4, number + 5]
        passages = [
            {
                "id": f"d{passage}",
                "title": "Озёра",
                "text": f"Текст {passage} <b>с разметкой</b>. " + "Байкал глубок. " * 30,
                "score": 0.9 - 0.1 * place,
                "relevance": int(passage == number),
            }
            for place, passage in enumerate(order)
        ]
        queries.append(
            {"id": f"q{number}", "text": "Какое озеро глубже?", "passages": passages}
            | {"relevant": [f"d{number}"]}
        )
    return {"task": params.report.example_task, "queries": queries}


def _write_gate(artifacts, params, *, publish, champion):
    scores = dict.fromkeys(params.evaluate.tasks, 0.54)
    rows = [
        {"task": task, "candidate": 0.54, "champion": old, "change": round(0.54 - old, 6)}
        for task, old in zip(scores, (0.5, 0.53, 0.6, 0.54, 0.2, 0.5, 0.51, 0.49), strict=True)
    ]
    failure = ["SampleSTS lost 0.0600 against v0003 (0.6000 to 0.5400); at most 0.0500 is allowed."]
    _json(
        artifacts / "gate" / "decision.json",
        {
            "publish": publish,
            "reasons": REASONS if publish else failure,
            "candidate": {
                "rung": "final",
                "mean": 0.5421,
                "scores": scores,
                "fingerprint": "5d41402abc4b2a76b9719d911017c592",
            },
            "champion": {"version": "v0003", "mean": 0.53} if champion else None,
            "must_beat": {"random": 0.14, "backbone": 0.24},
            "tasks": rows,
        },
    )


def _write_data(artifacts, params):
    sources = {
        name: {
            "read": 1000 + 97 * number,
            "kept": 900 + 60 * number,
            "development": 40,
            "unsampled": 0,
            "documents": 0,
            "in_domain": {"SampleMultilabel": 12} if name == "topics" else {},
            "quarantined": {"duplicate": 50 + 30 * number, "evaluation_overlap": 10 + 7 * number},
        }
        for number, name in enumerate(params.ingest.sources)
    }
    totals = {"examples": 9000, "development": 400, "documents": 1400, "evaluation": 5000}
    totals |= {"quarantine": 1234, "read": 12345, "unsampled": 0}
    _json(artifacts / "ingest" / "metrics.json", {"sources": sources, "totals": totals})
    _json(artifacts / "ingest" / "examples" / "manifest.json", {"rows": 9000})
    check = {"says": "ids are unique", "success": True, "observed": "9000 of 9000"}
    suites = [
        {"suite": suite, "rows": 9000, "success": True, "checks": [check] * 5}
        for suite in ("examples", "development", "documents", "evaluation")
    ]
    _json(artifacts / "validate" / "summary.json", {"success": True, "suites": suites})
    _json(
        artifacts / "synthesize" / "metrics.json",
        {
            "generator": "offline",
            "documents": 1400,
            "skipped_documents": {"no_sentence": 3},
            "examples": 2345,
            "kinds": {"title": 1200, "cloze": 1145},
            "rejected": {"too_short": 120, "evaluation_overlap": 3},
        },
    )
    _json(
        artifacts / "mine" / "metrics.json",
        {
            "queries": 1234,
            "corpus": 4321,
            "negatives_mined": 8000,
            "short_share": 0.012,
            "mean_positive_score": 0.8123,
            "mean_negative_score": 0.5012,
            "removed_by_cap_share_at": {"0.90": 0.31, "0.95": 0.12, "1.00": 0.04},
        },
    )


def _write_model(artifacts, params):
    _json(artifacts / "backbone" / "metrics.json", {"parameters": 5_000_000})
    _json(
        artifacts / "backbone" / "base" / "base.json",
        {"origin": "scratch", "commit": None, "licence": None, "notices": []},
    )
    write_curve(artifacts / "backbone", 9.0, 4.2)
    trainings = [
        "pretrain",
        "finetune",
        *[f"multitask/{name}" for name in params.multitask.variants],
    ]
    for number, name in enumerate(trainings):
        metrics = {"steps": 150, "pairs_seen": 19200, "first_loss": 3.9, "last_loss": 1.21}
        _json(artifacts / name / "metrics.json", metrics | {"embedding_size": 192})
        write_curve(artifacts / name, 4.0 - 0.3 * number, 1.0 + 0.1 * number)
    _json(
        artifacts / "prune" / "metrics.json",
        {
            "method": "block_influence",
            "blocks_before": 8,
            "blocks_after": 6,
            "removed": "5,6",
            "parameters": 4_300_000,
            "block_influence": {f"block_{n:03d}": 0.02 + abs(n - 5.5) / 20 for n in range(8)},
        },
    )
    scores = {
        "uniform_soup": {"ndcg_at_10": 0.61, "spearman": 0.7, "mean": 0.655},
        "variant:balanced": {"ndcg_at_10": 0.6, "spearman": 0.69, "mean": 0.645},
        "self_positioning": {"ndcg_at_10": 0.62, "spearman": 0.7, "mean": 0.66},
    }
    _json(
        artifacts / "merge" / "metrics.json",
        {
            "method": "best",
            "chosen": "self_positioning",
            "scores": scores,
            "development_queries": 300,
            "development_documents": 800,
            "development_pairs": 60,
            "development_labelled": 45,
            "task_vectors": {"norms": {}, "cosines": {"balanced|retrieval": 0.412}},
            "self_positioning": {"weights": {"balanced": 0.6, "retrieval": 0.4}, "length": 1.12},
        },
    )


def write_curve(folder, first, last):
    """A falling loss curve of 30 points."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["step,loss,learning_rate"]
    for number in range(30):
        loss = last + (first - last) * math.exp(-number / 6) + 0.05 * math.sin(number)
        lines.append(f"{(number + 1) * 5},{loss:.6g},0.001")
    (folder / "curves.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
