"""The HTML report: one file that loads nothing from elsewhere."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.contract.prompts import query_prompt
from tasks.report.cost_view import cost_view, inputs_view
from tasks.report.data_view import flow_view, mining_view, synthesis_view, validation_view
from tasks.report.examples_view import examples_view
from tasks.report.ladder_view import champion_view, ladder_view, verdict_view
from tasks.report.model_view import curves_view, merge_view, pruning_view
from tasks.report.run import Run

TEMPLATES = Path(__file__).parent / "templates"


def report_page(run: Run) -> str:
    """The page of a run; texts of the corpus are escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        name=run.params.publish.name,
        style=Markup(style),  # noqa: S704 - our own file
        checkpoint=run.params.publish.checkpoint,
        usage=usage_example(run, f"artifacts/{run.params.publish.checkpoint}"),
        verdict=verdict_view(run),
        champion=champion_view(run),
        ladder=ladder_view(run),
        curves=curves_view(run),
        flow=flow_view(run),
        validation=validation_view(run),
        synthesis=synthesis_view(run),
        mining=mining_view(run),
        pruning=pruning_view(run),
        merge=merge_view(run),
        examples=examples_view(run),
        cost=cost_view(run),
        inputs=inputs_view(run),
    )


def usage_example(run: Run, folder: str) -> str:
    """Python that embeds a query and two documents with the model in `folder`."""
    has_prompt = query_prompt(run.params.prompts, "retrieval") if _has_retrieval(run) else ""
    prompt = ', prompt_name="retrieval"' if has_prompt else ""
    return (
        "from sentence_transformers import SentenceTransformer\n"
        "\n"
        f'model = SentenceTransformer("{folder}")\n'
        f'queries = model.encode(["Какое озеро самое глубокое?"]{prompt})\n'
        'documents = model.encode(["Байкал: глубина 1642 метра.", "Волга: длина 3531 километр."])\n'
        "print(model.similarity(queries, documents))\n"
    )


def _has_retrieval(run: Run) -> bool:
    return "retrieval" in {str(task) for task in run.params.prompts.tasks}
