"""Tables as Great Expectations gets them: numbers, flags and short names, one row per row.

It copies a frame several times and cannot look into lists; on texts and lists it took four times
as long and as much memory. Lengths, counts and flags are computed here by polars, slice by slice.
"""

from collections.abc import Collection
from typing import cast

import pandas as pd
import polars as pl
import pyarrow as pa

from tasks.contract.records import CLASS_TASKS

SLICE_ROWS = 100_000


def fields_view(table: pa.Table, expected: pa.Schema) -> pd.DataFrame:
    """One row per column that either has: its name, expected and found type, whether they agree."""
    names = [*expected.names, *(name for name in table.column_names if name not in expected.names)]
    rows = [
        {
            "column": name,
            "expected": _type_name(expected, name),
            "found": _type_name(table.schema, name),
        }
        for name in names
    ]
    frame = pd.DataFrame(rows, columns=["column", "expected", "found"])
    return frame.assign(agrees=frame["expected"] == frame["found"])


def examples_view(
    table: pa.Table, *, in_evaluation: Collection[str], in_development: Collection[str]
) -> pd.DataFrame:
    """One row per example.

    Args:
        table: EXAMPLE_SCHEMA.
        in_evaluation: Texts that an evaluation set holds.
        in_development: Texts that are queries of the development split.
    """
    columns = _example_columns(in_evaluation, in_development)
    view = _sliced(table, columns).with_columns(
        repeats_earlier_row=~pl.col("pair").is_first_distinct(),
        rows_of_label=_rows_of_label(_frame(table.select(["source", "label"]))),
    )
    return view.drop("pair").to_pandas()


def documents_view(table: pa.Table, *, in_evaluation: Collection[str]) -> pd.DataFrame:
    """One row per document; `in_evaluation` are the texts that an evaluation set holds."""
    columns = [
        *_names("id", "source", "lang"),
        _characters(pl.col("title")).alias("title_characters"),
        _characters(pl.col("text")).alias("text_characters"),
        _holds(in_evaluation, [pl.col("text")], []).alias("text_in_evaluation"),
    ]
    return _sliced(table, columns).to_pandas()


def _example_columns(
    in_evaluation: Collection[str], in_development: Collection[str]
) -> list[pl.Expr]:
    """What is computed of each row alone; `pair` is a 64-bit hash of query and positives."""
    query, positives, negatives = pl.col("query"), pl.col("positives"), pl.col("negatives")
    is_class = pl.col("task").is_in(CLASS_TASKS)
    shared = positives.list.set_intersection(negatives).list.len().fill_null(0)
    scores = pl.col("negative_scores")
    pair = [query, positives.list.join("\x1f", ignore_nulls=True)]
    columns = {
        "query_characters": _characters(query),
        "positives": positives.list.len().fill_null(0),
        "shortest_positive": _lengths(positives).list.min(),
        "longest_positive": _lengths(positives).list.max(),
        "shortest_negative": _lengths(negatives).list.min(),
        "positive_among_negatives": shared > 0,
        "lacks_label": is_class & (pl.col("label").fill_null("") == ""),
        "lacks_score": (pl.col("task") == "sts") & pl.col("score").is_null(),
        "score": pl.col("score"),
        "scores_fit_negatives": scores.is_null() | (scores.list.len() == negatives.list.len()),
        "text_in_evaluation": _holds(in_evaluation, [query], [positives, negatives]),
        "text_in_development": _holds(in_development, [query], [positives]),
        "pair": pl.concat_str(pair, separator="\x1e", ignore_nulls=True).hash(),
    }
    names = _names("id", "task", "source", "lang")
    return [*names, *(column.alias(name) for name, column in columns.items())]


def _sliced(table: pa.Table, columns: list[pl.Expr]) -> pl.DataFrame:
    """`columns` of the whole table; only a slice of its texts is copied at a time."""
    starts = range(0, max(table.num_rows, 1), SLICE_ROWS)
    return pl.concat(_frame(table.slice(start, SLICE_ROWS)).select(columns) for start in starts)


def _frame(table: pa.Table) -> pl.DataFrame:
    return cast(pl.DataFrame, pl.from_arrow(table))


def _names(*columns: str) -> list[pl.Expr]:
    """Short strings as they are; an empty one counts as missing."""
    return [pl.col(name).replace("", None) for name in columns]


def _characters(text: pl.Expr) -> pl.Expr:
    return text.str.strip_chars().str.len_chars()


def _lengths(texts: pl.Expr) -> pl.Expr:
    """Characters of each text of a list; a null in it counts as an empty text."""
    return texts.list.eval(pl.element().str.strip_chars().str.len_chars().fill_null(0))


def _rows_of_label(frame: pl.DataFrame) -> pl.Series:
    """Rows of the source that share the row's label; of several labels the commonest counts."""
    labels = frame.select("source", pl.col("label").str.split("|")).with_row_index("row")
    counted = labels.explode("label").with_columns(rows=pl.len().over("source", "label"))
    rows = pl.when(pl.col("label").is_not_null()).then("rows").max()
    return counted.group_by("row", maintain_order=True).agg(rows)["rows"]


def _holds(texts: Collection[str], columns: list[pl.Expr], lists: list[pl.Expr]) -> pl.Expr:
    """Whether a column of the row, or an element of one of its lists, is one of `texts`."""
    if not texts:
        return pl.lit(value=False)
    known = pl.Series(sorted(texts), dtype=pl.String).implode()
    hits = [column.is_in(known) for column in columns]
    hits += [each.list.eval(pl.element().is_in(known)).list.any() for each in lists]
    return pl.any_horizontal(hits).fill_null(value=False)


def _type_name(schema: pa.Schema, name: str) -> str:
    if name not in schema.names:
        return "missing"
    kind = schema.field(name).type
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)
