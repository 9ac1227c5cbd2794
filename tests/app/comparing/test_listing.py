"""The table's data: columns, rows, groups, filter, sort, and how it leaves the window."""

from __future__ import annotations

import csv
import io
import math

import pytest

from app.comparing.listing import ALL_BUT_SEED, View, as_csv, as_text, build, keep, ordered, ranked, title
from tests.app.saved_runs import recipe


def run(id: str, seed: int = 0, state: str = "done", name: str = "", metrics: dict | None = None, **changes) -> dict:
    return {
        "id": id, "name": name, "seed": seed, "state": state, "recipe": recipe(seed=seed, name=name, **changes),
        "metrics": metrics or {}, "seconds": 75.0, "created": 1000.0 + seed, "checkpoints": [{"bytes": 5000}],
        "tags": [], "notes": "", "archived": 0,
    }  # fmt: skip


def cells(listing, row: int) -> dict:
    return dict(zip((column.key for column in listing.columns), listing.rows[row].texts, strict=True))


def test_columns_are_state_name_what_differs_metrics_time_and_size():
    runs = [run("a", lr=0.1, metrics={"val/accuracy": 0.91}), run("b", lr=0.2, metrics={"val/loss": 0.5})]
    listing = build(runs, View())
    assert [column.title for column in listing.columns] == [
        "State", "Name", "lr", "val/accuracy", "val/loss", "Time", "Size", "Begun",
    ]  # fmt: skip
    told = cells(listing, 0)
    assert told["state"] == "Done" and told["name"] == "a" and told["setting:optimizer.lr"] == "0.1"
    assert told["metric:val/accuracy"].startswith("0.91") and told["metric:val/loss"] == "–"
    assert told["time"] == "1 min 15 s" and told["size"] == "5.0 kB"


def test_hidden_columns_and_chosen_metrics():
    runs = [run("a", lr=0.1, metrics={"x": 1, "y": 2}), run("b", lr=0.2, metrics={"x": 2, "y": 3})]
    listing = build(runs, View(metrics=("y",), hidden=frozenset({"size", "setting:optimizer.lr", "name"})))
    assert [column.key for column in listing.columns] == ["state", "name", "metric:y", "time", "begun"]


def test_what_differs_is_told_of_the_filtered_runs():
    runs = [run("a", lr=0.1, name="first"), run("b", lr=0.2, name="first"), run("c", model="cnn", name="second")]
    assert "model.use" in build(runs, View()).paths
    listing = build(runs, View(text="first"))
    assert listing.paths == ("optimizer.lr",) and listing.total == 3 and set(listing.runs) == {"a", "b"}


def test_groups_show_mean_spread_and_number():
    runs = [run(f"a{i}", i, metrics={"m": v}, lr=0.1) for i, v in enumerate((1.0, 2.0, 3.0))]
    runs += [run("b", 0, metrics={"m": 5.0}, lr=0.2), run("a9", 9, "diverged", metrics={"m": 1e9}, lr=0.1)]
    listing = build(runs, View(grouping=(ALL_BUT_SEED,)))
    assert [len(row.runs) for row in listing.rows] == [4, 1]
    assert cells(listing, 0)["metric:m"] == "2.0 ± 1.0 (3)"
    assert cells(listing, 0)["state"] == "3 of 4 done"
    assert cells(listing, 1)["metric:m"].endswith(" (1)")
    assert "setting:seed" not in cells(listing, 0)


def test_grouping_by_one_setting():
    runs = [run("a", 0, lr=0.1), run("b", 0, lr=0.2), run("c", 1, lr=0.1, optimizer="lion")]
    listing = build(runs, View(grouping=("optimizer.lr",)))
    assert [row.runs for row in listing.rows] == [("a", "c"), ("b",)]
    assert [c.key for c in listing.columns if c.kind == "setting"] == ["setting:optimizer.lr"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("LION", {"b"}),
        ("lr<0.05", {"b"}),
        ("optimizer=adamw", {"a", "c"}),
        ("state=done accuracy>=0.9", {"a"}),
        ("gradient-clipping", {"c"}),
        ("seed!=0", {"c"}),
        ("lr<word", set()),
        ("nothing", set()),
        ("", {"a", "b", "c"}),
    ],
)
def test_filter(text, left):
    runs = [
        run("a", lr=0.1, metrics={"val/accuracy": 0.95}),
        run("b", lr=0.01, optimizer="lion", metrics={"val/accuracy": 0.5}),
        run("c", 3, "failed", lr=0.1, techniques=["gradient-clipping"]),
    ]
    assert {each["id"] for each in keep(runs, text)} == left


def test_sorting_puts_missing_values_last_both_ways():
    runs = [run("a", metrics={"m": 2.0}), run("b"), run("c", metrics={"m": 10.0}), run("d", metrics={"m": math.nan})]
    listing = build(runs, View())
    at = [column.key for column in listing.columns].index("metric:m")
    assert [row.key for row in ordered(listing.rows, at, False)] == ["a", "c", "b", "d"]
    assert [row.key for row in ordered(listing.rows, at, True)] == ["c", "a", "b", "d"]


def test_metrics_in_the_order_of_interest():
    names = ["train/loss", "val/loss", "val/accuracy", "test/loss", "test@ema/accuracy", "test/accuracy"]
    assert ranked(names) == [
        "test/accuracy", "test/loss", "test@ema/accuracy", "val/accuracy", "val/loss", "train/loss",
    ]  # fmt: skip


def test_titles():
    assert [title(path) for path in ("optimizer.use", "optimizer.lr", "techniques", "techniques.ema.decay")] == [
        "optimizer", "lr", "techniques", "ema decay",
    ]  # fmt: skip


def test_csv_has_full_numbers_and_groups_have_three_columns_a_metric():
    runs = [run(f"a{i}", i, metrics={"m": v}, techniques=["x", "y"]) for i, v in enumerate((1 / 3, 2 / 3))]
    listing = build([*runs, run("b", metrics={"m": 1.0})], View(grouping=(ALL_BUT_SEED,)))
    rows = list(csv.DictReader(io.StringIO(as_csv(listing.columns, listing.rows))))
    assert float(rows[0]["m mean"]) == 0.5 and float(rows[0]["m std"]) == pytest.approx(math.sqrt(1 / 18))
    assert rows[0]["m n"] == "2" and rows[1]["m std"] == "" and rows[0]["techniques"] == "x, y"
    assert as_text(listing.columns, listing.rows).splitlines()[0].split("\t")[:2] == ["State", "Name"]
