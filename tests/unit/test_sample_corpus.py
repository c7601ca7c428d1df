"""The bundled sample corpus: enough true facts, correct Russian, no leak into the benchmark."""

# ruff: noqa: E501 - a template and the sentence it must give stand on one line

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.sample.compose import COMPARISONS, LINKS
from infra.sample.generate import generate
from infra.sample.grammar import agree, decline_person, decline_phrase, polish
from infra.sample.guard import SHINGLE_WORDS, Guard
from infra.sample.numerals import count, year
from infra.sample.pair_sets import may_agree
from infra.sample.place import tree_hash
from infra.sample.render import render
from infra.sample.split import Split, split_tables
from infra.sample.tables import DOMAINS, Row, Table, count_facts, load_tables

RECORDED = "852bf53370261755ce151c85cbe3af33"
"""What DVC writes into data.dvc for the sample."""
TRAIN_ROWS = {
    "documents.jsonl": 1500,
    "questions.parquet": 6000,
    "title_body.jsonl": 2500,
    "paraphrases.csv": 3000,
    "nli.jsonl": 2000,
    "topics.csv": 2000,
    "intents.jsonl": 1500,
    "clusters.parquet": 2000,
}
TRAIN_COLUMNS = {
    "documents.jsonl": ["title", "text"],
    "questions.parquet": ["question", "passage"],
    "title_body.jsonl": ["title", "body"],
    "paraphrases.csv": ["sentence1", "sentence2", "score"],
    "nli.jsonl": ["premise", "entailment", "contradiction"],
    "topics.csv": ["text", "label"],
    "intents.jsonl": ["text", "intent"],
    "clusters.parquet": ["text", "cluster"],
}
SENTENCE_FIELDS = {"text", "passage", "body", "sentence1", "sentence2", "question"} | {
    "premise",
    "entailment",
    "contradiction",
}
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[«А-ЯЁA-Z0-9])")
LEFTOVERS = re.compile(r"[{}\[\]|]|  |\bNone\b| [,!?:;]| \.(?!\w)|\.\.|,,|\s$|^\s")

GREETING = re.compile(r"^(?:слушай|привет|так|подскажи|скажи|пожалуйста), |^ещё одно: ", re.I)
BLUNDERS = re.compile(
    r"\b[Рр]ек(?:[иеу]|ой) (?:Волга|Лена|Нева)\b"  # the name takes the case of "река"
    r"|\b[Рр]ек(?:[ие]|ой) (?:Дунай|Обь|Амур)\b"
    r"|(?:Автор|Создатель) [^.]* — (?:братья|[^«».]* и )"  # one creator, two names
    r"|\b[Гг]од\b[^.]* — \d+ год"
    r"|поэт\w* — писатель|дерево — (?:это )?дерево"
    r"|(?:что больше|как понять слово|вооружать пехоту)"
)

Record = dict[str, object]


@pytest.fixture(scope="session")
def tables() -> tuple[Table, ...]:
    return load_tables()


@pytest.fixture(scope="session")
def split(tables: tuple[Table, ...]) -> Split:
    return split_tables(tables)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    generate(folder)
    return folder


@pytest.fixture(scope="session")
def train(corpus: Path) -> dict[str, list[Record]]:
    return {name: read(corpus / "train" / name) for name in TRAIN_ROWS}


def read(path: Path) -> list[Record]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return [json.loads(line) for line in file.read().split("\n") if line]


def texts(records: list[Record]) -> Iterator[str]:
    for record in records:
        yield from (value for value in record.values() if isinstance(value, str))


def benchmark_texts(corpus: Path) -> list[str]:
    columns = {"text", "sentences", "sentence1", "sentence2"}
    return [
        str(record[column])
        for path in sorted((corpus / "benchmark").glob("*/*/*.parquet"))
        for record in read(path)
        for column in sorted(columns & record.keys())
    ]


def find(tables: tuple[Table, ...], table: str, name: str) -> Row:
    return next(
        row for each in tables if each.name == table for row in each.rows if row.name == name
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_fact_base_has_the_promised_size(tables: tuple[Table, ...]) -> None:
    names = {row.key for table in tables for row in table.rows}
    assert count_facts(tables) >= 2000
    assert len(names) >= 600
    assert {table.domain for table in tables} == set(DOMAINS)


def test_no_name_stands_twice_in_a_table(tables: tuple[Table, ...]) -> None:
    for table in tables:
        names = [row.name for row in table.rows]
        assert len(names) == len(set(names)), table.name


def test_every_relation_has_at_least_four_wordings(tables: tuple[Table, ...]) -> None:
    for table in tables:
        for relation in table.relations:
            where = f"{table.name}/{relation.column}"
            assert len(relation.statements) >= 4, where
            assert len(relation.questions) >= 4, where
            assert relation.titles, where


def test_every_template_fills_for_every_row(tables: tuple[Table, ...]) -> None:
    """A word that cannot be made to agree, or a phrase without a noun, raises here."""
    for table in tables:
        for relation in table.relations:
            lines = (relation.statements, relation.questions, relation.reverse, relation.titles)
            for row in (row for row in table.rows if relation.column in row.values):
                for template in (line for part in lines for line in part):
                    text = render(template, row)
                    assert not LEFTOVERS.search(text), text


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    generate(tmp_path)
    assert digests(tmp_path) == digests(corpus)


def test_the_generated_corpus_is_the_recorded_one(corpus: Path) -> None:
    """Written here and not read from data.dvc, which names somebody's own data in their checkout."""
    assert tree_hash(corpus) == RECORDED


def test_files_have_their_rows_and_columns(train: dict[str, list[Record]]) -> None:
    for name, least in TRAIN_ROWS.items():
        assert len(train[name]) >= least, name
        assert list(train[name][0]) == TRAIN_COLUMNS[name]


def test_no_row_is_repeated(train: dict[str, list[Record]]) -> None:
    for name, records in train.items():
        rows = [json.dumps(record, sort_keys=True) for record in records]
        assert len(rows) == len(set(rows)), name


def test_test_entities_are_about_a_seventh(tables: tuple[Table, ...], split: Split) -> None:
    total = sum(len(table.rows) for table in tables)
    assert 0.10 < sum(len(table.rows) for table in split.test) / total < 0.20


def test_no_training_text_names_a_test_entity(train: dict[str, list[Record]], split: Split) -> None:
    """In any case form; also as the value of a training entity's fact."""
    for records in train.values():
        for text in texts(records):
            assert not split.test_matcher.find(text), text


def test_what_is_searched_for_is_about_test_entities(corpus: Path, split: Split) -> None:
    for task in ("SampleRetrieval", "SampleReranking"):
        folder = corpus / "benchmark" / task
        texts_by_id = {row["_id"]: str(row["text"]) for row in read(folder / "corpus/test.parquet")}
        judged = read(folder / "default/test.parquet")
        assert judged
        for row in judged:
            passage = texts_by_id[row["corpus-id"]]
            assert split.test_matcher.find(passage), passage


def test_matcher_finds_declined_names(split: Split) -> None:
    rows = [row for table in split.test for row in table.rows if row.mode != "kind"]
    for row in rows:
        for form in row.noun.forms:
            assert row.key in split.test_matcher.find(f"Текст, где есть {form}, и точка.")


def test_benchmark_shares_no_text_with_training(
    corpus: Path, train: dict[str, list[Record]]
) -> None:
    guard = Guard(text for records in train.values() for text in texts(records))
    found = benchmark_texts(corpus)
    assert len(found) > 3000
    long_texts = [text for text in found if len(text.split()) >= SHINGLE_WORDS]
    assert long_texts
    assert all(guard.is_new(text) for text in found)


def test_every_text_is_clean(corpus: Path, train: dict[str, list[Record]]) -> None:
    every = [text for records in train.values() for text in texts(records)]
    for text in every + benchmark_texts(corpus):
        assert not LEFTOVERS.search(text), text


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("documents.jsonl", "text"),
        ("title_body.jsonl", "body"),
        ("questions.parquet", "passage"),
        ("questions.parquet", "question"),
        ("paraphrases.csv", "sentence1"),
        ("paraphrases.csv", "sentence2"),
        ("nli.jsonl", "premise"),
        ("nli.jsonl", "entailment"),
        ("nli.jsonl", "contradiction"),
    ],
)
def test_sentences_begin_with_a_capital_and_end_with_punctuation(
    train: dict[str, list[Record]], name: str, column: str
) -> None:
    for record in train[name]:
        text = str(record[column])
        assert text.endswith(("?", ".") if column == "question" else (".", "!")), text
        for sentence in SENTENCE_END.split(text):
            assert re.match(r"[«А-ЯЁA-Z0-9]", sentence), text


def test_documents_have_three_to_eight_sentences(train: dict[str, list[Record]]) -> None:
    for record in train["documents.jsonl"]:
        assert 3 <= len(SENTENCE_END.split(str(record["text"]))) <= 8, record["text"]


def test_no_opener_stands_twice_in_a_body(train: dict[str, list[Record]]) -> None:
    openers = (*LINKS, *COMPARISONS)
    for name, column in [
        ("documents.jsonl", "text"),
        ("title_body.jsonl", "body"),
        ("questions.parquet", "passage"),
    ]:
        for record in train[name]:
            text = str(record[column])
            assert all(text.count(opener) < 2 for opener in openers), text


def test_no_known_blunder_is_left(corpus: Path, train: dict[str, list[Record]]) -> None:
    every = [text for records in train.values() for text in texts(records)]
    for text in every + benchmark_texts(corpus):
        assert not BLUNDERS.search(text), text


def test_contradicted_relations_have_one_answer(
    tables: tuple[Table, ...], train: dict[str, list[Record]]
) -> None:
    """A lake may lie in Africa and in Eastern Africa: such values deny nothing."""
    open_relations = {
        ("lakes", "place"),
        ("mountains", "place"),
        ("plants", "homeland"),
        ("writers", "nation"),
        ("elements", "family"),
        ("battles", "winner"),
    }
    exclusive = {(t.name, r.column) for t in tables for r in t.relations if r.exclusive}
    assert not exclusive & open_relations
    assert len(train["nli.jsonl"]) >= 2300


def intent_texts(corpus: Path, train: dict[str, list[Record]]) -> list[str]:
    folder = corpus / "benchmark" / "SampleIntentClassification" / "default"
    held_out = [row for split in ("train", "test") for row in read(folder / f"{split}.parquet")]
    return [str(row["text"]) for row in train["intents.jsonl"] + held_out]


def test_request_after_a_greeting_begins_small_unless_it_is_a_name(
    corpus: Path, train: dict[str, list[Record]], tables: tuple[Table, ...]
) -> None:
    """Not "Привет, Сохрани статью о Сириусе"."""
    names = tuple({row.noun.text for table in tables for row in table.rows})
    for text in intent_texts(corpus, train):
        core = GREETING.sub("", text)
        if core != text and core[:1].isupper():
            assert core.startswith(names), text


def test_polite_words_fit_the_kind_of_request(corpus: Path, train: dict[str, list[Record]]) -> None:
    """Not "…, срочно нужно?", and "пожалуйста" only beside an order."""
    for text in intent_texts(corpus, train):
        assert not re.search(r"(?:нужно|школы|пожалуйста|узнать, .*)\?", text), text
        assert not ("пожалуйста" in text.lower() and "?" in text), text


def test_paraphrase_scores_cover_the_scale(train: dict[str, list[Record]]) -> None:
    scores = [float(str(record["score"])) for record in train["paraphrases.csv"]]
    assert all(scores.count(score) > 300 for score in range(6))
    assert set(scores) == {0, 1, 2, 3, 4, 5}


def test_contradiction_differs_from_the_entailed_facts(train: dict[str, list[Record]]) -> None:
    for record in train["nli.jsonl"]:
        assert len({record["premise"], record["entailment"], record["contradiction"]}) == 3


def test_labels_are_many_and_balanced(train: dict[str, list[Record]]) -> None:
    for name, column, least in [
        ("topics.csv", "label", 12),
        ("intents.jsonl", "intent", 12),
        ("clusters.parquet", "cluster", 15),
    ]:
        labels = [str(record[column]) for record in train[name]]
        counts = {label: labels.count(label) for label in set(labels)}
        assert len(counts) >= least, name
        assert min(counts.values()) >= 25, (name, counts)


def test_corpus_is_small(corpus: Path) -> None:
    size_bytes = sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file())
    assert size_bytes < 12 * 2**20


def test_reranking_candidates_contain_the_answers(corpus: Path) -> None:
    folder = corpus / "benchmark" / "SampleReranking"
    ranked = {
        str(row["query-id"]): row["corpus-ids"] for row in read(folder / "top_ranked/test.parquet")
    }
    known = {str(row["_id"]) for row in read(folder / "corpus/test.parquet")}
    assert len(ranked) >= 150
    for row in read(folder / "default/test.parquet"):
        assert row["corpus-id"] in ranked[str(row["query-id"])]
    assert all(known.issuperset(ids) and len(ids) == len(set(ids)) for ids in ranked.values())


@pytest.mark.parametrize(
    ("task", "config", "columns"),
    [
        ("SampleRetrieval", "corpus", {"_id", "title", "text"}),
        ("SampleRetrieval", "queries", {"_id", "text"}),
        ("SampleRetrieval", "default", {"query-id", "corpus-id", "score"}),
        ("SampleReranking", "top_ranked", {"query-id", "corpus-ids"}),
        ("SampleTopicClassification", "default", {"text", "label"}),
        ("SampleIntentClassification", "default", {"text", "label"}),
        ("SampleMultilabel", "default", {"text", "label"}),
        ("SampleClustering", "default", {"sentences", "labels"}),
        ("SampleSTS", "default", {"sentence1", "sentence2", "score"}),
        ("SamplePairClassification", "default", {"sentence1", "sentence2", "labels"}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_layout_loads_with_datasets(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    config: str,
    columns: set[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        str(corpus / "benchmark" / task), config, cache_dir=str(tmp_path)
    )
    split = loaded["dev" if task == "SamplePairClassification" else "test"]
    assert set(split.column_names) == columns
    assert len(split) >= 150


EXACT = [
    ("countries", "Франция", "Столица {S:g} — {capital}.", "Столица Франции — Париж."),
    ("countries", "Нидерланды", "{S} [находится] в {continent:p}.", "Нидерланды находятся в Европе."),
    ("countries", "Куба", "В {S:p} в ходу {currency}.", "На Кубе в ходу кубинское песо."),
    ("countries", "Чили", "Где [расположен] {S}?", "Где расположена Чили?"),
    ("countries", "Перу", "Где [расположен] {S}?", "Где расположено Перу?"),
    ("rivers", "Волга", "{S} [протянулся] на {length:+километр}.", "Волга протянулась на 3530 километров."),
    ("rivers", "Вилюй", "{S} впадает в {mouth:a}.", "Вилюй впадает в Лену."),
    ("rivers", "Нева", "Длина {S:g} — {length:+километр}.", "Длина Невы — 74 километра."),
    ("rivers", "Припять", "Длина {S:g} — {length:+километр}.", "Длина Припяти — 761 километр."),
    ("lakes", "Онежское озеро", "Вода {S:g} {water}.", "Вода Онежского озера пресная."),
    ("lakes", "Большое Медвежье озеро", "{S} [лежит] {place}.", "Большое Медвежье озеро лежит в Канаде."),
    ("mountains", "Белуха", "{S} [поднимается] на {height:+метр}.", "Белуха поднимается на 4506 метров."),
    ("elements", "золото", "{S} [плавится] при температуре {melting:+градус} Цельсия.", "Золото плавится при температуре 1064 градуса Цельсия."),
    ("elements", "ртуть", "Точка плавления {S:g} — {melting:+градус}.", "Точка плавления ртути — минус 39 градусов."),
    ("elements", "неон", "У атома {S:g} {period:+электронная оболочка}.", "У атома неона 2 электронные оболочки."),
    ("elements", "водород", "У атома {S:g} {period:+электронная оболочка}.", "У атома водорода 1 электронная оболочка."),
    ("elements", "платина", "Впервые о {S:p} сообщили.", "Впервые о платине сообщили."),
    ("elements", "олово", "Говорят об {S:p}.", "Говорят об олове."),
    ("moons", "Титания", "{S} [открыт] в {year:yp}.", "Титания открыта в 1787 году."),
    ("planets", "Юпитер", "Диаметр {S:g} — около {diameter:*километр}.", "Диаметр Юпитера — около 139\u00a0820 километров."),
    ("stars", "Сириус", "До {S:g} {distance:+световой год}.", "До Сириуса 8,6 светового года."),
    ("stars", "Сириус", "{S} [находится] в созвездии {constellation:g}.", "Сириус находится в созвездии Большого Пса."),
    ("spacecraft", "«Кассини»", "Объектом изучения для {S:g} [стал@target] {target}.", "Объектом изучения для космического аппарата «Кассини» стал Сатурн."),
    ("animals", "бурый медведь", "Систематики помещают {S:a} в семейство {family}.", "Систематики помещают бурого медведя в семейство медвежьих."),
    ("animals", "африканский слон", "{S} [живёт] до {lifespan:*год}.", "Африканский слон живёт до 65 лет."),
    ("animals", "большая панда", "Чем кормится {S} и что известно о {S:p}?", "Чем кормится большая панда и что известно о большой панде?"),
    ("plants", "берёза", "Где растёт {S} и кто знает {S:a}?", "Где растёт берёза и кто знает берёзу?"),
    ("writers", "Анна Ахматова", "{S} [родился] в {born:yp}.", "Анна Ахматова родилась в 1889 году."),
    ("writers", "Лев Толстой", "Литература простилась с {S:i} в {died:yp}.", "Литература простилась со Львом Толстым в 1910 году."),
    ("writers", "Агата Кристи", "{S} — {nation@S} {kind}.", "Агата Кристи — английская писательница."),
    ("writers", "Михаил Салтыков-Щедрин", "Год смерти {S:g} — {died}.", "Год смерти Михаила Салтыкова-Щедрина — 1889."),
    ("books", "Капитанская дочка", "{S} [опубликован] в {year:yp}.", "Повесть «Капитанская дочка» опубликована в 1836 году."),
    ("books", "Эмма", "{S:a} [написал@author] {author}.", "Роман «Эмма» написала Джейн Остин."),
    ("battles", "Марафонская битва", "{S} [состоялся] в {year:yp}.", "Марафонская битва состоялась в 490 году до н. э."),
    ("battles", "Гангутское сражение", "В {S:p} [победил@winner] {winner}.", "В Гангутском сражении победили русские войска."),
    ("battles", "Чесменское сражение", "В {S:p} [победил@winner] {winner}.", "В Чесменском сражении победил русский флот."),
    ("rulers", "Екатерина Великая", "{S} [правил] в {country:p}.", "Екатерина Великая правила в России."),
    ("rulers", "Марк Аврелий", "Подданными {S:g} были жители {country:g}.", "Подданными Марка Аврелия были жители Древнего Рима."),
    ("inventions", "самолёт", "{S:a} [подарил@inventor] миру {inventor}.", "Самолёт подарили миру братья Райт."),
    ("inventions", "маятниковые часы", "{S} [появился] в {year:yp}.", "Маятниковые часы появились в 1656 году."),
    ("companies", "«Нестле»", "{S} [основан] в {year:yp}.", "Компания «Нестле» основана в 1866 году."),
    ("languages", "C++", "Программисты пишут на {S:p}.", "Программисты пишут на языке программирования C++."),
    ("languages", "BASIC", "{S:a} [создал@author] {author}.", "Язык программирования BASIC создали Джон Кемени и Томас Курц."),
    ("languages", "JavaScript", "Чаще всего {S} [нужен] для таких задач: {use}.", "Чаще всего язык программирования JavaScript нужен для таких задач: создание сайтов."),
    ("inventions", "самолёт", "{S:a} [создал@inventor] {inventor}.", "Самолёт создали братья Райт."),
    ("inventions", "рентгеновский снимок", "{S:a} придумали, чтобы {use}.", "Рентгеновский снимок придумали, чтобы рассматривать кости внутри тела."),
    ("inventions", "маятниковые часы", "{S} [служит] для того, чтобы {use}.", "Маятниковые часы служат для того, чтобы точно измерять время."),
    ("elements", "йод", "В таблице Менделеева {S:a} обозначают знаком {symbol}.", "В таблице Менделеева йод обозначают знаком I."),
    ("elements", "медь", "В твёрдом виде {S} [остаётся].", "В твёрдом виде медь остаётся."),
    ("elements", "водород", "Число электронных оболочек у атома {S:g} — {period}.", "Число электронных оболочек у атома водорода — 1."),
    ("lakes", "Гарда", "Насколько [глубок] {S}?", "Насколько глубока Гарда?"),
    ("lakes", "Женевское озеро", "Насколько [глубок] {S}?", "Насколько глубоко Женевское озеро?"),
    ("moons", "Европа", "{S:a} открыл {discoverer}.", "Европу открыл Галилео Галилей."),
    ("stars", "Арктур", "Каким видят цвет {S:g}?", "Каким видят цвет Арктура?"),
    ("rulers", "Елизавета Первая", "Последним в правлении {S:g} стал {end:yn}.", "Последним в правлении Елизаветы Первой стал 1603 год."),
    ("companies", "«Гугл»", "Главное направление {S:g} — {product}.", "Главное направление компании «Гугл» — интернет-поиск."),
    ("plants", "шоколадное дерево", "Дикие предки {S:g} росли в таких краях: {homeland}.", "Дикие предки шоколадного дерева росли в таких краях: Америка."),
    ("writers", "Марина Цветаева", "{S} — {nation@S} {kind}.", "Марина Цветаева — русская поэтесса."),
    ("writers", "Данте Алигьери", "{S} — {nation@S} {kind}.", "Данте Алигьери — итальянский поэт."),
    ("books", "Король Лир", "В центре {S:g} стоит персонаж по имени {hero}.", "В центре трагедии «Король Лир» стоит персонаж по имени Лир."),
]  # fmt: skip


@pytest.mark.parametrize(("table", "name", "template", "expected"), EXACT)
def test_sentence_is_exactly_as_an_editor_would_write_it(
    tables: tuple[Table, ...], table: str, name: str, template: str, expected: str
) -> None:
    assert render(template, find(tables, table, name)) == expected


def test_demonstrative_agrees_with_the_kind(tables: tuple[Table, ...]) -> None:
    writer = find(tables, "writers", "Агата Кристи")
    river = find(tables, "rivers", "Дунай")
    assert render("Год рождения {S:g} — {born}.", writer, "this").startswith(
        "Год рождения этой писательницы"
    )
    assert render("{S} [протянулся] далеко.", river, "this") == "Эта река протянулась далеко."
    assert render("{S} [протянулся] далеко.", river, "kind") == "Река Дунай протянулась далеко."
    assert render("{S} [протянулся] далеко.", river) == "Дунай протянулся далеко."


def test_river_keeps_the_case_of_its_kind() -> None:
    """Not "длина реки Волга"; lakes and stars stay in the nominative after the kind."""
    tables = load_tables()
    volga, baikal = find(tables, "rivers", "Волга"), find(tables, "lakes", "Байкал")
    assert render("Длина {S:g}.", volga, "kind") == "Длина реки Волги."
    assert render("В {S:p}.", volga, "kind") == "В реке Волге."
    assert render("Глубина {S:g}.", baikal, "kind") == "Глубина озера Байкал."


def test_value_in_fewer_words_is_no_contradiction() -> None:
    assert may_agree("в Африке", "в Восточной Африке")
    assert may_agree("Евгений Онегин", "Евгений")
    assert not may_agree("Европа", "Азия")


def test_numerals_agree() -> None:
    years = ["1 год", "2 года", "5 лет", "11 лет", "21 год", "112 лет"]
    assert [count(text.split()[0], "год") for text in years] == years
    assert count("21", "год", genitive=True) == "21 года"
    assert count("37", "световой год") == "37 световых лет"
    assert count("2", "световой год") == "2 световых года"
    assert year("-27", "p") == "27 году до н. э."


def test_prepositions_take_their_vowel() -> None:
    assert polish("в Франции и в Вьетнаме.") == "Во Франции и во Вьетнаме."
    assert polish("в Венгрии о Иране.") == "В Венгрии об Иране."
    assert polish("до 480 года до н. э..") == "До 480 года до н. э."


def test_names_decline() -> None:
    assert decline_person("Франц Кафка", "m").case("g") == "Франца Кафки"
    assert decline_person("Астрид Линдгрен", "f").case("i") == "Астрид Линдгрен"
    assert decline_phrase("Южная Корея").case("p") == "Южной Корее"
    assert decline_phrase("битва при Ватерлоо").case("a") == "битву при Ватерлоо"
    assert [agree("нужен", gender) for gender in "mfnp"] == ["нужен", "нужна", "нужно", "нужны"]
