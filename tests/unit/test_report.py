"""Stage report: the page, the model card and the ladder."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from tasks.contract.stage import StageError, read_json, write_json
from tasks.params.load import load_params
from tasks.params.teach import Teach
from tasks.report import numbers
from tasks.report.__main__ import write_report
from tasks.report.card import model_card
from tasks.report.ladder import ladder_rows, ladder_text
from tasks.report.line_chart import Line, line_chart, round_ticks
from tasks.report.page import report_page
from tasks.report.run import Run
from tests.unit.fake_embeddings import teacher_at
from tests.unit.report_run import write_run

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
VOID = {"meta", "link", "br", "hr", "img", "input"}


@pytest.fixture(scope="module")
def params():
    return load_params(PROFILE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(PROFILE, "params.yaml")
    return tmp_path


@pytest.fixture
def run(folder, params):
    write_run(folder / "artifacts", params)
    return Run(params=params, artifacts=folder / "artifacts")


class Page(HTMLParser):
    """Text, addresses and balance of a page."""

    def __init__(self, html):
        super().__init__()
        self.text, self.addresses, self.tags, self.open = "", [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def test_the_page_is_well_formed_and_loads_nothing_from_elsewhere(run):
    html = report_page(run)
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    assert all(
        address.startswith("#") or address in {"data:,", "../validate/data_docs/index.html"}
        for address in page.addresses
    )
    assert not re.search(r"@import|url\(|https?://", html)


def test_all_that_it_reads_and_shows_is_declared_in_dvc_yaml(run, folder, params, monkeypatch):
    """Else the report of another run, with other hashes, would be called up to date."""
    stage = yaml.safe_load((PROFILE.parents[2] / "dvc.yaml").read_text("utf-8"))["stages"]["report"]
    asked = set()
    for name in ("exists", "open", "read_text", "read_bytes"):
        plain = getattr(Path, name)

        def noted(path, *args, plain=plain, **options):
            asked.add(path)
            return plain(path, *args, **options)

        monkeypatch.setattr(Path, name, noted)
    report_page(run)
    model_card(run)
    monkeypatch.undo()
    read = {path.relative_to(folder) for path in asked if path.is_relative_to(folder / "artifacts")}
    assert Path("artifacts/ingest/evaluation/manifest.json") in read
    # times and memory differ from run to run, and stand in the page all the same
    declared = {Path("artifacts/timings"), *map(Path, stage["deps"])}
    assert not {path for path in read if not declared & {path, *path.parents}}
    assert set(params.model_dump(by_alias=True)) == {
        key for key in stage["params"] if isinstance(key, str)
    }


def test_a_comment_in_params_yaml_changes_no_report(run, folder):
    before = report_page(run)
    with (folder / "params.yaml").open("a", encoding="utf-8") as file:
        file.write("# a remark\n")
    assert report_page(run) == before


def test_the_verdict_stands_before_everything_else(run):
    text = Page(report_page(run)).text
    assert "The gate lets this model pass" in text
    assert text.index("The gate lets") < text.index("Against the champion")


def test_a_failed_gate_is_said_with_its_reasons(folder, params):
    write_run(folder / "artifacts", params, publish=False)
    text = Page(report_page(Run(params=params, artifacts=folder / "artifacts"))).text
    assert "The gate holds this model back" in text
    assert "SampleSTS lost 0.0600" in text


def test_without_a_champion_there_is_no_comparison(folder, params):
    write_run(folder / "artifacts", params, champion=False)
    page = report_page(Run(params=params, artifacts=folder / "artifacts"))
    assert "Against the champion" not in page


def test_texts_of_the_corpus_are_escaped(run):
    html = report_page(run)
    assert "<b>с разметкой</b>" not in html
    assert "&lt;b&gt;с разметкой&lt;/b&gt;" in html


def test_stages_that_did_not_run_here_are_named(run, folder):
    for stage in ("ingest", "validate", "synthesize", "mine", "prune", "merge", "timings"):
        shutil.rmtree(folder / "artifacts" / stage)
    text = Page(report_page(run)).text
    for stage in ("ingest", "synthesize", "mine", "prune", "merge"):
        assert f"The stage {stage} was not run here." in text


def test_a_stage_without_a_timing_is_not_run_here(run):
    text = Page(report_page(run)).text
    assert re.search(r"prune\s*not run here", text)
    assert re.search(r"ingest\s*1\.4", text)


def test_offline_synthesis_is_said_loudly(run):
    assert "Written offline, not by a language model." in report_page(run)


def test_training_in_domain_is_said(run):
    assert "Trained in domain" in report_page(run)
    assert "Not zero-shot" in model_card(run)


def test_a_rung_above_the_candidate_is_pointed_out(run):
    text = Page(report_page(run)).text
    assert "The candidate stands below multitask-balanced and multitask-retrieval" in text


def test_a_cap_that_refuses_nearly_everything_is_pointed_out(run):
    assert "too few negatives" not in report_page(run)
    path = run.artifacts / "mine" / "metrics.json"
    write_json(path, read_json(path) | {"short_share": 0.99})
    assert "Most rows got too few negatives." in report_page(run)


def test_the_flow_of_data_is_counted_with_reasons(run):
    text = re.sub(r"\s+", " ", Page(report_page(run)).text)
    for name in run.params.ingest.sources:
        assert name in text
    assert "evaluation overlap 17" in text  # of the second source
    assert "duplicate 80" in text


def test_every_training_has_its_curve(run):
    html = report_page(run)
    for name in ("backbone", "pretrain", "finetune", "multitask"):
        assert f'aria-label="Loss of {name} by step"' in html
    assert html.count("<polyline") == 2 * 5  # a line and its trend; multitask has two variants


def test_peak_memory_stands_beside_the_time_of_a_stage(run):
    text = Page(report_page(run)).text
    assert re.search(r"ingest\s*1\.4\s*s\s*512\s*MiB", text)
    assert re.search(r"pretrain\s*1\s*min 09\s*s\s*1\.5\s*GiB", text)


def test_money_is_shown_where_an_hour_has_a_price(folder, params):
    write_run(folder / "artifacts", params)
    timing = {"stage": "pretrain", "wall_s": 5400.0, "peak_bytes": 1}
    write_json(folder / "artifacts" / "timings" / "pretrain.json", timing)

    def page_of(price):
        cost = params.cost.model_copy(update={"machine_hour": price})
        priced = params.model_copy(update={"cost": cost})
        return report_page(Run(params=priced, artifacts=folder / "artifacts"))

    assert "3.00 USD</td>" in page_of(2.0)
    Page(page_of(2.0))
    assert "USD</td>" not in page_of(None)


def test_tokens_have_a_price_where_one_is_given(folder, params):
    write_run(folder / "artifacts", params)
    path = folder / "artifacts" / "synthesize" / "metrics.json"
    write_json(path, read_json(path) | {"prompt_tokens": 3_000_000, "completion_tokens": 500_000})

    def page_of(prompt, completion):
        prices = {"million_prompt_tokens": prompt, "million_completion_tokens": completion}
        cost = params.cost.model_copy(update=prices)
        priced = params.model_copy(update={"cost": cost})
        return Page(report_page(Run(params=priced, artifacts=folder / "artifacts"))).text

    assert "2.00 USD" in page_of(0.5, 1.0)
    assert "1.50 USD" in page_of(0.5, None)
    assert "price of the tokens" not in page_of(None, None)


def test_what_gpus_used_is_shown_where_a_stage_held_some(folder, params):
    run = Run(params=params, artifacts=folder / "artifacts")
    write_run(folder / "artifacts", params)
    assert "<th>GPUs</th>" not in report_page(run)
    timing = {"stage": "pretrain", "wall_s": 60.0, "peak_bytes": 1, "gpu_s": 480.0}
    write_json(folder / "artifacts" / "timings" / "pretrain.json", timing | {"energy_j": 9e6})
    cost = params.cost.model_copy(update={"gpu_hour": 3.0})
    page = report_page(Run(run.params.model_copy(update={"cost": cost}), run.artifacts))
    text = Page(page).text
    assert re.search(r"pretrain\s*0\.40 USD\s*8\s*min 00\s*s\s*2\.50\s*kWh", text)
    assert "0.00 USD" in text, "a stage without a GPU costs nothing"


def test_removed_blocks_are_marked(run):
    text = Page(report_page(run)).text
    assert re.findall(r"block (\d), removed", text) == ["5", "6"]


def test_before_and_after_count_the_queries_with_a_relevant_passage(run):
    text = Page(report_page(run)).text
    assert "backbone finds one for 0 of 3 queries, final finds one for 3 of 3 queries." in text


def test_equal_inputs_give_equal_files(run, folder, params):
    contents = []
    for _ in range(2):
        write_report(params)
        files = sorted((folder / "artifacts" / "report").iterdir())
        contents.append({path.name: path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"index.html", "ladder.json", "model_card.md"}


def test_the_ladder_has_the_rungs_in_order(run, folder, params):
    write_report(params)
    rows = read_json(folder / "artifacts" / "report" / "ladder.json")
    assert [row["rung"] for row in rows] == list(params.evaluate.checkpoints)
    assert rows == ladder_rows(params, folder / "artifacts")


def test_a_partial_ladder_can_be_shown_but_not_reported(run, folder, params):
    shutil.rmtree(folder / "artifacts" / "evaluate" / "pretrain")
    assert len(ladder_rows(params, folder / "artifacts")) == len(params.evaluate.checkpoints) - 1
    with pytest.raises(StageError, match=r"no scores of \['pretrain'\]"):
        write_report(params)


def test_the_ladder_is_aligned_as_text():
    rows = [{"rung": "random", "mean": 0.05}, {"rung": "final", "mean": 0.5}]
    assert ladder_text(rows) == "random    5.0  ##\nfinal    50.0  " + "#" * 20


def test_the_hub_reads_the_model_card(run):
    card = ModelCard(model_card(run))
    assert card.data.language == ["ru"]
    assert card.data.pipeline_tag == "sentence-similarity"
    results = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    scores = read_json(run.artifacts / "evaluate" / "final" / "scores.json")["tasks"]
    assert results == pytest.approx({task: 100 * value for task, value in scores.items()})


def test_a_stand_in_is_not_reported_under_the_official_name(run):
    card = model_card(run)
    assert "MTEB" not in yaml.safe_dump(ModelCard(card).data.to_dict())
    assert "SampleRetrieval (of RiaNewsRetrieval)" in card


def test_an_official_task_is_reported_as_such(run, folder, params):
    tasks = {"SampleSTS": "SampleSTS", "SampleRetrieval": "RiaNewsRetrieval"}
    evaluate = params.evaluate.model_copy(update={"tasks": tasks})
    own = Run(
        params=params.model_copy(update={"evaluate": evaluate}), artifacts=folder / "artifacts"
    )
    names = [result.dataset_name for result in ModelCard(model_card(own)).data.eval_results]
    assert names == ["MTEB SampleSTS", "SampleRetrieval"]


def test_the_card_promises_no_more_removal_than_there_was(run, folder, params):
    overlap = {"SampleRetrieval": "judged", "SampleSTS": "everything"}
    ingest = params.ingest.model_copy(update={"overlap": overlap})
    values = params.model_copy(update={"ingest": ingest})
    card = model_card(Run(params=values, artifacts=folder / "artifacts"))
    told = "Of SampleRetrieval only the queries and the judged documents were compared"
    assert told in card
    assert "Of SampleSTS" not in card
    assert "were compared" not in model_card(run)


def test_a_merge_that_was_asked_for_is_not_said_to_be_chosen(run, folder, params):
    def card_of(method):
        merge = params.merge.model_copy(update={"method": method})
        values = params.model_copy(update={"merge": merge})
        return model_card(Run(params=values, artifacts=folder / "artifacts"))

    assert "chosen on the development split" in card_of("best")
    assert "uniform soup, as params.yaml asks" in card_of("uniform_soup")
    assert "chosen on the development split" not in card_of("uniform_soup")


@pytest.mark.parametrize("sizes", [[], [16, 8]])
def test_a_cut_vector_is_said_to_be_of_other_length(run, folder, params, sizes):
    training = run.params.finetune.training.model_copy(update={"matryoshka_dims": sizes})
    finetune = params.finetune.model_copy(update={"training": training})
    values = params.model_copy(update={"finetune": finetune})
    card = model_card(Run(params=values, artifacts=folder / "artifacts"))
    assert ("The first 16 or 8 numbers" in card) == bool(sizes)
    assert ("normalize_embeddings=True" in card) == bool(sizes)


def test_a_decoder_from_scratch_is_said(run):
    assert "Its decoder was trained from scratch on 1\u2009400 documents" in model_card(run)
    assert ModelCard(model_card(run)).data.base_model is None


def test_a_decoder_of_the_hub_is_the_base_model(run, params):
    update = {"source": "Qwen/Qwen3-0.6B", "scratch": None}
    backbone = params.backbone.model_copy(update=update)
    own = Run(params=params.model_copy(update={"backbone": backbone}), artifacts=run.artifacts)
    record = {"origin": "Qwen/Qwen3-0.6B", "commit": "c1899de2", "licence": "apache-2.0"}
    record_of = run.artifacts / "backbone" / "base" / "base.json"
    write_json(record_of, record | {"notices": ["LICENSE", "NOTICE.md"]})
    text = model_card(own)
    assert ModelCard(text).data.base_model == "Qwen/Qwen3-0.6B"
    assert ModelCard(text).data.license == "apache-2.0"
    assert "from scratch" not in text
    assert "Qwen/Qwen3-0.6B at commit c1899de2" in text
    assert "`LICENSE`, `NOTICE.md` stand beside the weights" in text
    assert "were modified" in text


def test_a_teacher_is_named_in_the_card(run, params):
    model = {"source": "models/e5", "revision": None, "max_length_tokens": 64}
    model |= {"query_prompt": "query: ", "document_prompt": "passage: "}
    teachers = {"e5": model, "far": teacher_at("http://secret.example/v1", model="bge")}
    teachers["both"] = {"average": {"e5": 0.7, "far": 0.3}}
    settings = params.teach.model_dump() | {"teachers": teachers}
    taught = params.model_copy(update={"teach": Teach.model_validate(settings)})
    (run.artifacts / "teach").mkdir()
    told = {"e5": {"texts": 1234}, "far": {"texts": 5, "tokens": 1000}, "both": {"texts": 5}}
    write_json(run.artifacts / "teach" / "metrics.json", {"teachers": told})
    text = model_card(Run(params=taught, artifacts=run.artifacts))
    assert "| teach | e5 (models/e5), asked about 1\u2009234 texts; far (bge, behind an" in text
    assert "asked about 5 texts, 1\u2009000 tokens; both (0.7 e5 + 0.3 far) |" in text
    assert "secret.example" not in text
    assert "| teach |" not in model_card(run)


def test_what_became_of_the_decoder_stands_in_the_card(run, params):
    plain = model_card(run)
    assert "tokens kept" not in plain
    assert "as they were" not in plain
    metrics = run.json("backbone/metrics.json")
    metrics["vocabulary"] = {"tokens_before": 262144, "tokens": 61473}
    adapted = {"steps": 1200, "held_out_loss_nats_before": 3.5, "held_out_loss_nats": 3.125}
    write_json(run.artifacts / "backbone/metrics.json", metrics | {"adapt": adapted})
    training = params.pretrain.training.model_copy(update={"frozen_blocks": 5})
    pretrain = params.pretrain.model_copy(update={"training": training})
    changed = params.model_copy(update={"pretrain": pretrain})
    text = model_card(Run(params=changed, artifacts=run.artifacts))
    assert ", 61\u2009473 of its 262\u2009144 tokens kept, adapted by 1\u2009200 steps of" in text
    assert "held out documents 3.50 to 3.12 nats)" in text
    assert text.count("the lowest 5 blocks and the embeddings as they were") == 1
    metrics["vocabulary"] = {"tokens_before": 1000, "tokens": 1200}
    write_json(run.artifacts / "backbone/metrics.json", metrics)
    assert "200 tokens added to its 1\u2009000" in model_card(run)


def test_a_model_that_failed_says_so_in_its_card(folder, params):
    write_run(folder / "artifacts", params, publish=False)
    card = model_card(Run(params=params, artifacts=folder / "artifacts"))
    assert "held this model back" in card


@pytest.mark.parametrize(("low", "high"), [(0.0, 150.0), (0.98, 4.02), (-1.0, -0.2), (3.0, 3.0)])
def test_ticks_are_few_and_enclose_the_values(low, high):
    ticks = round_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))


def test_a_trend_is_the_mean_with_the_neighbours():
    values = list(np.random.default_rng(1).normal(size=50))
    trend = Line("a", range(50), values).trend
    expected = [np.mean(values[max(0, at - 2) : at + 3]) for at in range(50)]
    np.testing.assert_allclose(trend, expected)
    assert Line("a", range(19), values[:19]).trend == values[:19]


def test_a_chart_stays_on_its_canvas_and_escapes_its_title():
    svg = str(line_chart([Line("a", [1, 50, 100], [4.0, 2.0, 1.5])], 'loss <of> "a"'))
    points = re.search(r'points="([^"]+)"', svg).group(1)
    for point in points.split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= 480
        assert 0 <= y <= 230
    assert "<of>" not in svg


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0\u2009s"), (59.9, "59.9\u2009s"), (60, "1\u2009min 00\u2009s")]
)
def test_durations_are_short(seconds, text):
    assert numbers.duration(seconds) == text


def test_numbers_are_rounded_for_a_reader():
    assert numbers.score(0.41271) == "41.3"
    assert numbers.gain(-0.012) == "\u22121.2"
    assert numbers.count(1234567) == "1\u2009234\u2009567"
    assert numbers.share(0.125) == "12.5\u2009%"
    assert numbers.memory(3 * 2**30) == "3.0\u2009GiB"
    assert numbers.score(None) == numbers.MISSING


def test_the_card_says_which_data_no_commit_holds(run):
    assert "Read from outside" not in model_card(run)
    data = run.params.data.model_copy(update={"corpus": "/somewhere/private"})
    params = run.params.model_copy(update={"data": data})
    card = model_card(Run(params=params, artifacts=run.artifacts))
    assert "what `data.corpus` of `params.yaml` named" in card
    assert "private" not in card
