"""Benchmark tasks about test entities, in the layout that mteb reads.

Every task maps a config to splits to records; `guard` drops texts that training also has.
"""

from infra.sample.compose import Composer, Fact, all_facts, seeded
from infra.sample.files import Records
from infra.sample.guard import Guard
from infra.sample.intents import write_intents
from infra.sample.pair_sets import PairWriter, common_stems, stems
from infra.sample.render import render
from infra.sample.split import Split
from infra.sample.tables import DOMAINS, Table
from infra.sample.train_sets import cluster_name, unique_values

Configs = dict[str, dict[str, Records]]

CANDIDATES = 12
"""Passages that each reranking query has to order."""
_REVERSED_SHARE = 0.5
_SMALLEST_CLUSTER = 10


class BenchmarkWriter:
    """Writes all tasks from one seed."""

    def __init__(self, split: Split, tables: tuple[Table, ...], guard: Guard, seed: int) -> None:
        """Prepare the tasks.

        Args:
            split: The test side supplies the entities.
            tables: All tables; they supply wrong values and decide which values are unique.
            guard: Knows the training texts.
            seed: Each task has a generator of its own, made from it.
        """
        self._split = split
        self._tables = tables
        self._guard = guard
        self._seed = seed
        self._facts = all_facts(split.test)
        self._unique = unique_values(tables)

    def _composer(self, name: str) -> Composer:
        return Composer(seeded(self._seed, name), held_out=True)

    def tasks(self) -> dict[str, Configs]:
        """Every task by its folder name."""
        return {
            "SampleRetrieval": self._retrieval(),
            "SampleReranking": self._reranking(),
            "SampleTopicClassification": self._topics(),
            "SampleIntentClassification": self._intents(),
            "SampleMultilabel": self._multilabel(),
            "SampleClustering": self._clustering(),
            "SampleSTS": self._sts(),
            "SamplePairClassification": self._pairs(),
        }

    def _passages(self, composer: Composer) -> list[tuple[str, list[Fact]]]:
        """A passage for each fact, and for half of them one with another fact of the entity."""
        by_row: dict[tuple[str, str], list[Fact]] = {}
        for fact in self._facts:
            by_row.setdefault(fact.key[:2], []).append(fact)
        passages: list[tuple[str, list[Fact]]] = []
        for fact in self._facts:
            others = [f for f in by_row[fact.key[:2]] if f is not fact]
            variants = [[fact]]
            if others and composer.chance(0.5):
                variants.append([fact, composer.rng.choice(others)])
            for facts in variants:
                text = " ".join(composer.passage(facts))
                if self._guard.is_new(text):
                    passages.append((text, facts))
        return passages

    def _question(self, composer: Composer, fact: Fact, passage: str) -> str:
        """The wording that shares the fewest word stems with the passage."""
        reversible = fact.relation.reverse and fact.key in self._unique
        if reversible and composer.chance(_REVERSED_SHARE):
            return render(composer.rng.choice(fact.relation.reverse), fact.row)
        asked = [
            render(template, fact.row, composer.reference(fact))
            for template in composer.questions(fact)
        ]
        return min(asked, key=lambda text: (common_stems(text, passage), text))

    def _search(self, name: str, queries: int) -> tuple[Configs, list[Fact]]:
        composer = self._composer(name)
        found = self._passages(composer)
        corpus = [
            {"_id": f"d{index:04d}", "title": "", "text": text}
            for index, (text, _) in enumerate(found)
        ]
        relevant: dict[tuple[str, str, str], list[int]] = {}
        for index, (_, facts) in enumerate(found):
            for fact in facts:
                relevant.setdefault(fact.key, []).append(index)
        facts = [fact for fact in self._facts if fact.key in relevant]
        chosen = composer.rng.sample(facts, min(queries, len(facts)))
        asked = [
            {
                "_id": f"q{index:04d}",
                "text": self._question(composer, fact, found[relevant[fact.key][0]][0]),
            }
            for index, fact in enumerate(chosen)
        ]
        qrels = [
            {"query-id": f"q{index:04d}", "corpus-id": f"d{passage:04d}", "score": 1}
            for index, fact in enumerate(chosen)
            for passage in relevant[fact.key]
        ]
        configs: Configs = {
            "corpus": {"test": corpus},
            "queries": {"test": asked},
            "default": {"test": qrels},
        }
        return configs, chosen

    def _retrieval(self) -> Configs:
        return self._search("retrieval", queries=400)[0]

    def _reranking(self) -> Configs:
        configs, chosen = self._search("reranking", queries=200)
        rng = seeded(self._seed, "candidates")
        texts = [record["text"] for record in configs["corpus"]["test"]]
        relevant: dict[str, list[str]] = {}
        for record in configs["default"]["test"]:
            relevant.setdefault(str(record["query-id"]), []).append(str(record["corpus-id"]))
        ranked: list[dict[str, str | list[str]]] = []
        for index, fact in enumerate(chosen):
            ours = relevant[f"q{index:04d}"]
            names = stems(fact.row.name)
            close = [f"d{i:04d}" for i, text in enumerate(texts) if names & stems(str(text))]
            near = [doc for doc in close if doc not in ours]
            far = [f"d{i:04d}" for i in range(len(texts)) if f"d{i:04d}" not in {*ours, *near}]
            wrong = rng.sample(near, min(6, len(near)))
            ids = ours + wrong + rng.sample(far, max(0, CANDIDATES - len(ours) - len(wrong)))
            rng.shuffle(ids)
            ranked.append({"query-id": f"q{index:04d}", "corpus-ids": ids})
        configs["top_ranked"] = {"test": ranked}
        return configs

    def _divide(self, records: list[dict], test: int) -> Configs:
        """Drop duplicates and training texts, shuffle, and cut off the test split."""
        unique = {
            record["text"]: record for record in records if self._guard.is_new(record["text"])
        }
        kept = [unique[text] for text in sorted(unique)]
        seeded(self._seed, "divide").shuffle(kept)
        return {"default": {"train": kept[test:], "test": kept[:test]}}

    def _topics(self) -> Configs:
        composer = self._composer("topics")
        topics = sorted({table.meta["topic"] for table in self._tables})
        records = [
            {"text": composer.short_text(fact), "label": topics.index(fact.table.meta["topic"])}
            for fact in self._facts * 2
        ]
        return self._divide(records, test=400)

    def _intents(self) -> Configs:
        rng = seeded(self._seed, "intents-benchmark")
        records = write_intents(self._split.test, rng, 48, True)
        renamed = [{"text": record["text"], "label": record["intent"]} for record in records]
        return self._divide(renamed, test=400)

    def _multilabel(self) -> Configs:
        composer = self._composer("multilabel")
        by_domain: dict[int, list[Fact]] = {}
        for fact in self._facts:
            by_domain.setdefault(DOMAINS.index(fact.table.domain), []).append(fact)
        records: list[dict] = []
        for _ in range(700):
            labels = sorted(composer.rng.sample(sorted(by_domain), composer.rng.randint(1, 3)))
            facts = [composer.rng.choice(by_domain[label]) for label in labels]
            composer.rng.shuffle(facts)
            text = " ".join(composer.say(fact) for fact in facts)
            records.append({"text": text, "label": labels})
        return self._divide(records, test=300)

    def _clustering(self) -> Configs:
        composer = self._composer("clustering")
        by_cluster: dict[str, list[Fact]] = {}
        for fact in self._facts:
            by_cluster.setdefault(cluster_name(fact), []).append(fact)
        records: list[dict[str, str]] = []
        for name in sorted(by_cluster):
            facts = by_cluster[name]
            if len(facts) < _SMALLEST_CLUSTER:
                continue
            for fact in composer.rng.sample(facts, min(30, len(facts))):
                text = composer.short_text(fact)
                if self._guard.is_new(text):
                    records.append({"sentences": text, "labels": name})
        return {"default": {"test": records}}

    def _sts(self) -> Configs:
        writer = PairWriter(self._split.test, self._tables, self._composer("sts"))
        records = [
            record
            for record in writer.paraphrases(per_score=90)
            if self._guard.is_new(str(record["sentence1"]), str(record["sentence2"]))
        ]
        return {"default": {"test": records}}

    def _pairs(self) -> Configs:
        composer = self._composer("pairs")
        writer = PairWriter(self._split.test, self._tables, composer)
        records: list[dict[str, str | int]] = []
        for label, score in [(1, 5)] * 240 + [(0, 3)] * 160 + [(0, 2)] * 80:
            pair = writer.graded(score)
            if pair and pair[0] != pair[1] and self._guard.is_new(*pair):
                records.append({"sentence1": pair[0], "sentence2": pair[1], "labels": label})
        composer.rng.shuffle(records)
        return {"default": {"dev": records}}
