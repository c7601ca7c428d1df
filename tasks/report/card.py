"""The model card: README.md of the published model, with the metadata of the hub in front."""

import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.params.training import Training
from tasks.report import numbers
from tasks.report.page import usage_example
from tasks.report.run import Run

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TEMPLATES = Path(__file__).parent / "templates"


def model_card(run: Run) -> str:
    """Markdown with YAML front matter."""
    # Markdown is no HTML: nothing is escaped, and nothing in it comes from the corpus.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    params, decision = run.params, run.decision()
    ingest = run.metrics("ingest") or {"sources": {}, "totals": {}}
    merge_source = (run.metrics("finetune") or {}).get("embedding_size")
    return environment.get_template("card.md").render(
        front=yaml.safe_dump(front_matter(run), allow_unicode=True, sort_keys=False),
        name=params.publish.name,
        embedding_size=merge_source or numbers.MISSING,
        languages=", ".join(params.ingest.languages),
        attention=params.backbone.attention,
        pooling=params.backbone.pooling,
        is_scratch=params.backbone.source == "scratch",
        base=run.base(),
        documents=numbers.count(ingest["totals"].get("documents")),
        passed=decision["publish"],
        reasons=decision["reasons"],
        usage=usage_example(run, params.publish.name),
        prompt_names=", ".join(f"`{name}`" for name in params.prompts.tasks),
        stand_ins=_stand_ins(run),
        in_domain=_in_domain(ingest),
        rungs=[row["rung"] for row in run.ladder()],
        scores=_scores(run),
        stages=_stages(run),
        sources=_sources(run, ingest),
        synthesis=_synthesis(run),
        outside=", ".join(f"`{key}`" for key in params.out_of_reach()),
        overlap_words=params.ingest.overlap_words,
        overlap=params.ingest.overlap,
        max_length_tokens=params.backbone.max_length_tokens,
        short_sizes=params.finetune.training.matryoshka_dims,
        measured_tokens=params.evaluate.max_length_tokens,
    )


def front_matter(run: Run) -> dict[str, Any]:
    """Metadata that the hub and mteb read."""
    params = run.params
    front: dict[str, Any] = {
        "language": params.ingest.languages,
        "license": run.base()["licence"] or "other",
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity", "mteb"],
        "metrics": sorted({result["metrics"][0]["type"] for result in _results(run)}),
        "model-index": [{"name": params.publish.name, "results": _results(run)}],
    }
    origin = run.base()["origin"]
    if HUB_ID.fullmatch(origin) and not Path(origin).exists():
        front["base_model"] = origin
    return front


def _results(run: Run) -> list[dict[str, Any]]:
    rung = run.params.gate.candidate
    results = []
    for task, official in run.params.evaluate.tasks.items():
        result = run.json(f"evaluate/{rung}/results/{task}.json")
        kind = (run.json(f"evaluate/{rung}/scores.json") or {})["types"][task]
        if result is None:
            continue
        results += [
            {
                "task": {"type": kind},
                "dataset": {
                    "name": f"MTEB {task}" if task == official else task,
                    "type": task,
                    "config": scores["hf_subset"],
                    "split": split,
                },
                "metrics": [{"type": "main_score", "value": round(100 * scores["main_score"], 3)}],
            }
            for split, subsets in sorted(result["scores"].items())
            for scores in subsets
        ]
    return results


def _scores(run: Run) -> list[dict[str, Any]]:
    ladder = run.ladder()
    rows = [
        {"task": task, "cells": [numbers.score(rung["tasks"][task]) for rung in ladder]}
        for task in run.params.evaluate.tasks
    ]
    means = [f"**{numbers.score(rung['mean'])}**" for rung in ladder]
    return [*rows, {"task": "**mean**", "cells": means}]


def _stages(run: Run) -> list[dict[str, str]]:
    params = run.params
    base = run.base()
    commit = f" at commit {base['commit']}" if base["commit"] else ""
    decoder = (
        "trained from scratch"
        if params.backbone.source == "scratch"
        else f"{base['origin']}{commit}"
    )
    rows = [
        (
            "backbone",
            f"{decoder}{_changes(run)}; attention {params.backbone.attention}, proved on the saved "
            "folder",
        ),
        (
            "prune",
            f"{params.prune.fraction:.0%} of the blocks by {params.prune.method.replace('_', ' ')}",
        ),
        ("pretrain", _training(run, "pretrain", params.pretrain.training, params.pretrain.sources)),
        ("mine", f"{params.mine.negatives} hard negatives for {', '.join(params.mine.sources)}"),
        ("finetune", _training(run, "finetune", params.finetune.training, params.finetune.sources)),
    ]
    if params.teach.teachers:
        rows.insert(2, ("teach", _teachers(run)))
    rows += [
        (
            f"multitask {name}",
            _training(run, f"multitask/{name}", params.multitask.training, variant.sources),
        )
        for name, variant in params.multitask.variants.items()
    ]
    rows.append(("merge", _merge(run)))
    return [{"stage": stage, "what": what} for stage, what in rows]


def _teachers(run: Run) -> str:
    known = (run.metrics("teach") or {"teachers": {}})["teachers"]
    asked = run.params.teach.asked
    return "; ".join(
        f"{name} ({model.told}){_asked(known.get(name)) if name in asked else ''}"
        for name, model in run.params.teach.teachers.items()
    )


def _asked(told: dict[str, Any] | None) -> str:
    texts = numbers.MISSING if told is None else numbers.count(told["texts"])
    tokens = (told or {}).get("tokens", 0)
    return f", asked about {texts} texts" + (f", {numbers.count(tokens)} tokens" if tokens else "")


def _merge(run: Run) -> str:
    method = run.params.merge.method
    if method != "best":
        return f"{method.replace('_', ' ')}, as params.yaml asks"
    chosen = (run.metrics("merge") or {}).get("chosen", "one of all methods")
    return f"{chosen.replace('_', ' ')}, chosen on the development split"


def _training(run: Run, stage: str, training: Training, sources: dict[str, float]) -> str:
    metrics, names = run.metrics(stage), ", ".join(sources)
    frozen = training.frozen_blocks
    left = f"; the lowest {frozen} blocks and the embeddings as they were" if frozen else ""
    if metrics is None:
        return names + left
    return (
        f"{metrics['steps']} steps, {numbers.count(metrics['pairs_seen'])} pairs of {names}; "
        f"loss {metrics['first_loss']:.2f} to {metrics['last_loss']:.2f} nats{left}"
    )


def _changes(run: Run) -> str:
    """What became of the vocabulary and the weights of a decoder from elsewhere."""
    metrics = run.metrics("backbone") or {}
    vocabulary, adapted = metrics.get("vocabulary"), metrics.get("adapt")
    changes = ""
    if vocabulary is not None:
        before, after = vocabulary["tokens_before"], vocabulary["tokens"]
        done = (
            f"{numbers.count(after - before)} tokens added to its {numbers.count(before)}"
            if after > before
            else f"{numbers.count(after)} of its {numbers.count(before)} tokens kept"
        )
        changes += f", {done}"
    if adapted is not None:
        settings = run.params.backbone.adapt
        kind = "" if settings is None else f"{settings.objective} "
        changes += (
            f", adapted by {numbers.count(adapted['steps'])} steps of {kind}language modelling "
            f"(loss of held out documents {adapted['held_out_loss_nats_before']:.2f} to "
            f"{adapted['held_out_loss_nats']:.2f} nats)"
        )
    return changes


def _sources(run: Run, ingest: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "task": run.params.ingest.sources[name].task,
            "read": numbers.count(counts["read"]),
            "kept": numbers.count(counts["kept"]),
        }
        for name, counts in ingest["sources"].items()
    ]


def _synthesis(run: Run) -> str:
    metrics = run.metrics("synthesize")
    if metrics is None or not metrics["examples"]:
        return "No synthetic examples were used."
    author = (
        "a rule-based offline generator, not by a language model,"
        if run.params.synthesize.endpoint is None
        else metrics["generator"]
    )
    return (
        f"{numbers.count(metrics['examples'])} synthetic examples were written by {author} besides."
    )


def _stand_ins(run: Run) -> str:
    return ", ".join(
        f"{task} (of {official})"
        for task, official in run.params.evaluate.tasks.items()
        if task != official
    )


def _in_domain(ingest: dict[str, Any]) -> str:
    tasks = {
        task
        for counts in ingest["sources"].values()
        for task, number in (counts.get("in_domain") or {}).items()
        if number
    }
    return ", ".join(sorted(tasks))
