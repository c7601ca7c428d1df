"""The tables of a run, for Prefect's UI and for the terminal alike."""

from typing import Any

from flows.plan.schedule import Outcome

WORDS = {
    "Completed": "ran",
    "Cached": "from the run cache",
    "Skipped": "up to date",
    "NotRun": "not run",
}


def stage_rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """One row per step that is no push: what it was, what became of it, how long it took."""
    return [
        {
            "stage": outcome.name,
            "state": WORDS.get(outcome.state, outcome.state.lower()),
            "seconds": round(outcome.seconds, 1),
        }
        for outcome in outcomes
        if outcome.kind != "push"
    ]


def ladder_rows(ladder: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per rung: its mean and its score on each task, in points of 0-100."""
    return [
        {
            "rung": rung["rung"],
            "mean": points(rung["mean"]),
            **{task: points(score) for task, score in rung["tasks"].items()},
        }
        for rung in ladder
    ]


def champion_row(decision: dict[str, Any]) -> dict[str, Any] | None:
    """The model that is published now, as a row below the ladder; None where there is none."""
    champion = decision["champion"]
    if champion is None:
        return None
    tasks = {row["task"]: points(row["champion"]) for row in decision["tasks"]}
    name = f"champion {champion['version']}"
    return {"rung": name, "mean": points(champion["mean"]), **tasks}


def gate_text(decision: dict[str, Any]) -> str:
    """What the gate decided, and why, as markdown."""
    head = "The gate lets this model pass" if decision["publish"] else "The gate holds it back"
    return "\n".join([f"**{head}**", "", *(f"- {reason}" for reason in decision["reasons"])])


def data_flow_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per source: rows read, kept, held out, refused, and why."""
    return [
        {
            "source": name,
            "read": source["read"],
            "kept": source["kept"],
            "held out": source["development"],
            "refused": sum(source["quarantined"].values()),
            "why": ", ".join(
                f"{reason.replace('_', ' ')} {number}"
                for reason, number in source["quarantined"].items()
            ),
        }
        for name, source in metrics["sources"].items()
    ]


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as markdown."""
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    cells = [[" ".join(str(cell).replace("|", "/").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def points(score: float | None) -> str:
    """A score of 0-1 as points of 0-100 with one decimal, as leaderboards print it."""
    return "" if score is None else f"{100 * score:.1f}"
