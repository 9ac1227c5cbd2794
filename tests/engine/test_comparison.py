"""What differs between runs, the groups over seeds and the verdicts."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from engine.catalog import Catalog, Entry
from engine.comparison import (
    AtCost,
    at_equal,
    compare,
    describe,
    lower_is_better,
    plus_minus,
    probability,
    text,
)

BASE = """
name = "{name}"
seed = {seed}
[task]
use = "blobs"
[model]
use = "net"
{model}
[optimizer]
use = "{optimizer}"
{settings}
{techniques}
[budget]
epochs = 5
"""


def run(id: str, seed: int = 0, state: str = "done", metrics: dict | None = None, **recipe: str) -> dict:
    name = recipe.pop("name", "")
    values = {"optimizer": "slow", "settings": "", "techniques": "", "model": "", **recipe}
    return {
        "id": id,
        "name": name,
        "state": state,
        "seed": seed,
        "recipe": BASE.format(name=name, seed=seed, **values),
        "metrics": metrics or {},
        "checkpoints": [{"name": "last", "bytes": 100}, {"name": "best", "bytes": 23}],
    }


def part(id: str, kind: str, properties: dict, default: bool = False) -> Entry:
    schema = {"type": "object", "properties": properties}
    return Entry(id, id.title(), kind + "s", kind, "Words.", "m:C", schema, default=default)


CATALOG = Catalog(
    [
        part("slow", "optimizer", {"lr": {"type": "number", "default": 0.1}}, default=True),
        part("fast", "optimizer", {"lr": {"type": "number", "default": 0.01}, "nesterov": {"type": "boolean"}}),
        part("net", "model", {"layer": {"x-part": "layer", "default": {"use": "plain"}}}),
        part("plain", "layer", {"eps": {"type": "number", "default": 1e-5}}),
        part("blobs", "task", {}),
        part("clip", "technique", {"norm": {"type": "number", "default": 1.0}}),
    ],
    {"budget": {"type": "object", "properties": {"epochs": {"type": "integer", "default": 10}}}},
)


def paths(told: dict) -> dict:
    return {each["path"]: each["values"] for each in told["differs"]}


def test_only_what_differs_is_told():
    told = compare([run("a", settings="lr = 0.1"), run("b", seed=3, settings="lr = 0.2")])
    assert paths(told) == {"optimizer.lr": [0.1, 0.2], "seed": [0, 3]}
    assert [each["bytes"] for each in told["runs"]] == [123, 123]


def test_one_and_no_run_differ_in_nothing():
    assert compare([run("a")])["differs"] == []
    assert compare([]) == {"runs": [], "differs": [], "groups": [], "verdicts": []}


def test_whole_numbers_equal_their_decimals_and_true_is_not_one():
    assert paths(compare([run("a", settings="lr = 1"), run("b", settings="lr = 1.0")])) == {}
    assert paths(compare([run("a", settings="lr = 1"), run("b", settings="lr = true")])) == {"optimizer.lr": [1, True]}


def test_a_default_equals_the_value_written_out():
    runs = [run("a"), run("b", settings="lr = 0.1"), run("c", settings="lr = 0.3")]
    assert paths(compare(runs[:2], CATALOG)) == {}
    assert paths(compare(runs, CATALOG)) == {"optimizer.lr": [0.1, 0.1, 0.3]}
    nested = [run("a"), run("b", model='layer = { use = "plain", eps = 1e-5 }')]
    assert paths(compare(nested, CATALOG)) == {}
    other = [run("a"), run("b", optimizer="fast", settings="nesterov = true")]
    assert paths(compare(other, CATALOG)) == {"optimizer.use": ["slow", "fast"], "optimizer.nesterov": [None, True]}


def test_techniques_go_by_id_whatever_their_place():
    clip = '[[techniques]]\nuse = "clip"\nnorm = {}\n'
    other = '[[techniques]]\nuse = "smooth"\n'
    told = paths(compare([run("a", techniques=clip.format(1)), run("b", techniques=other + clip.format(2))]))
    assert told == {"techniques": [["clip"], ["smooth", "clip"]], "techniques.clip.norm": [1, 2]}
    off = '[[techniques]]\nuse = "clip"\nenabled = false\n'
    assert paths(compare([run("a", techniques=off), run("b")])) == {}
    twice = paths(compare([run("a", techniques=clip.format(1) * 2), run("b", techniques=clip.format(1))]))
    assert twice == {"techniques": [["clip", "clip#2"], ["clip"]], "techniques.clip#2.norm": [1, None]}


def test_a_branch_differs_from_its_parent():
    branch = {**run("b"), "parent": "a", "parent_step": 40}
    assert paths(compare([run("a"), branch])) == {"parent": [None, "a @ 40"]}


def test_a_broken_recipe_does_not_stop_the_table():
    told = compare([run("a"), {**run("b"), "recipe": "not [ toml"}])
    assert "optimizer.use" in paths(told)


def test_groups_share_everything_but_the_seed():
    scores = [0.91, 0.94, 0.95]
    runs = [run(f"a{i}", i, metrics={"val/accuracy": s}, settings="lr = 0.1") for i, s in enumerate(scores)]
    runs += [run("b", 0, metrics={"val/accuracy": 0.5}, settings="lr = 0.2")]
    first, second = compare(runs)["groups"]
    assert first["runs"] == ["a0", "a1", "a2"]
    assert first["settings"] == {"optimizer.lr": 0.1}
    cell = first["metrics"]["val/accuracy"]
    assert cell["mean"] == pytest.approx(statistics.mean(scores), rel=1e-12)
    assert cell["std"] == pytest.approx(statistics.stdev(scores), rel=1e-12)
    assert cell["n"] == 3
    assert second["metrics"]["val/accuracy"] == {"mean": 0.5, "std": None, "n": 1}


def test_grouping_by_a_chosen_setting_only():
    runs = [run(f"{i}{lr}", i, settings=f"lr = {lr}") for i in range(2) for lr in (1, 2)]
    assert [each["runs"] for each in compare(runs, by=["seed"])["groups"]] == [["01", "02"], ["11", "12"]]
    assert len(compare(runs, by=[])["groups"]) == 1


def test_runs_that_did_not_finish_are_left_out_and_said():
    runs = [run(f"a{i}", i, metrics={"m": i}) for i in range(2)]
    runs += [run("a2", 2, "diverged", {"m": 1e9}), run("a3", 3, metrics={"m": math.nan})]
    (each,) = compare(runs)["groups"]
    assert each["metrics"]["m"] == {"mean": 0.5, "std": pytest.approx(math.sqrt(0.5)), "n": 2}
    assert each["left_out"] == {"diverged": 1}


def two(a: list[float], b: list[float], metric: str = "test/accuracy") -> dict:
    runs = [run(f"a{i}", i, metrics={metric: v}, name="A", settings="lr = 1") for i, v in enumerate(a)]
    runs += [run(f"b{i}", i, metrics={metric: v}, name="B", settings="lr = 2") for i, v in enumerate(b)]
    (verdict,) = compare(runs)["verdicts"]
    return verdict


def test_a_clear_difference_is_called_by_welchs_test():
    a, b = [0.95, 0.952, 0.948, 0.951, 0.949], [0.968, 0.97, 0.966, 0.971, 0.967]
    verdict = two(a, b)
    told = stats.ttest_ind(b, a, equal_var=False)
    assert verdict["p"] == pytest.approx(told.pvalue, rel=1e-9)
    assert verdict["interval"] == pytest.approx(list(told.confidence_interval()), rel=1e-7)
    assert verdict["sentence"] == "test/accuracy: B is better than A by 1.84 ± 0.12 points (n = 5 + 5, p < 0.0001)."


def test_less_is_better_for_a_loss():
    verdict = two([0.5, 0.51], [0.3, 0.31], "val/loss")
    assert verdict["names"] == ["B", "A"] and verdict["better"] == "lower"
    assert verdict["sentence"].startswith("val/loss: B is better than A by 0.2000 ± 0.0071 (n = 2 + 2, p = 0.0012).")


def test_noise_is_not_called_a_difference():
    assert "no clear difference between B and A" in two([0.9, 0.95, 0.92], [0.93, 0.91, 0.96])["sentence"]


def test_one_seed_is_not_enough():
    verdict = two([0.9], [0.95, 0.96])
    assert verdict["p"] is None and not verdict["clear"]
    assert "not enough runs to tell" in verdict["sentence"]


def test_no_spread_has_no_p():
    assert "in every run (n = 2 + 2, no spread)" in two([0.9, 0.9], [0.95, 0.95])["sentence"]
    assert "are the same in every run" in two([0.9, 0.9], [0.9, 0.9])["sentence"]


def test_many_groups_are_corrected_for_all_pairs():
    random = np.random.default_rng(0)
    runs, samples = [], {}
    for lr in range(4):
        samples[lr] = random.normal(0.9 + 0.02 * lr, 0.01, 3)
        runs += [run(f"{lr}-{i}", i, metrics={"acc": v}, settings=f"lr = {lr}") for i, v in enumerate(samples[lr])]
    told = compare(runs)
    raw = [stats.ttest_ind(samples[i], samples[j], equal_var=False).pvalue for i in range(4) for j in range(i)]
    for verdict in told["verdicts"]:
        mine, other = (told["groups"][verdict[key]]["settings"]["optimizer.lr"] for key in ("best", "other"))
        plain = stats.ttest_ind(samples[mine], samples[other], equal_var=False).pvalue
        rank = sorted(raw).index(min(raw, key=lambda p, plain=plain: abs(p - plain)))
        steps = [p * (6 - i) for i, p in enumerate(sorted(raw))]
        assert verdict["p"] == pytest.approx(min(1.0, max(steps[: rank + 1])), rel=1e-9)


def test_groups_are_called_by_their_name_or_by_what_differs():
    runs = [run("a", name="x", settings="lr = 1"), run("b", name="x", settings="lr = 2")]
    assert [each["name"] for each in compare(runs)["groups"]] == ["lr 1", "lr 2"]
    assert describe({"optimizer.use": "fast", "techniques": ["clip"], "seed": None}) == "fast, clip"


def test_words_for_values():
    assert text(True) == "on" and text([1, 0.5]) == "1, 0.5" and text(None) == "–" and text(3e-4) == "0.0003"
    assert (
        plus_minus(97.6234, 0.4123) == "97.62 ± 0.41" and plus_minus(1.0, None) == "1" and plus_minus(2.0, 0) == "2 ± 0"
    )
    assert probability(0.00312) == "= 0.0031"
    assert lower_is_better("test@ema/loss") and not lower_is_better("test/accuracy")


def test_what_is_told_is_json():
    json.dumps(compare([run("a", metrics={"m": 1.0}), run("b", 1, metrics={"m": 2.0})], CATALOG))


# -- at equal cost -----------------------------------------------------------------------------------------------------

CURVES = {  # run -> series -> steps, values, times
    "cheap": {
        "val/accuracy": ([10, 20, 40], [0.5, 0.6, 0.9], [1.0, 2.0, 4.0]),
        "count/gradient-passes": ([10, 20, 40], [10.0, 20.0, 40.0], [1.0, 2.0, 4.0]),
    },
    "dear": {
        "val/accuracy": ([10, 20], [0.7, 0.8], [1.0, 8.0]),
        "count/gradient-passes": ([10, 20], [50.0, 100.0], [1.0, 8.0]),
    },
    "silent": {"val/accuracy": ([10], [0.99], [1.0])},
}


def weighed(axis: str, *ids: str) -> AtCost:
    runs = [run(id, metrics={"val/accuracy": CURVES[id]["val/accuracy"][1][-1], "test/accuracy": 0.4}) for id in ids]
    for each in runs:
        each["started"], each["name"] = 0.0, each["id"]

    def points(id: str, name: str) -> tuple:
        return tuple(np.array(each) for each in CURVES[id][name])

    return at_equal(axis, runs, lambda id: list(CURVES[id]), points)


def test_at_equal_steps_the_longer_run_is_read_where_the_shorter_ended() -> None:
    equal = weighed("step", "cheap", "dear")
    assert equal.limit == 20 and equal.sentence == "At equal steps: 20."
    assert [each["metrics"] for each in equal.runs] == [
        {"val/accuracy": 0.6},
        {"val/accuracy": 0.8, "test/accuracy": 0.4},
    ]


def test_at_equal_gradient_passes_the_dear_run_has_come_less_far() -> None:
    equal = weighed("count/gradient-passes", "cheap", "dear", "silent")
    assert equal.limit == 40
    assert [each["metrics"].get("val/accuracy") for each in equal.runs] == [0.9, None]
    assert equal.left_out == ["silent"]
    assert equal.sentence == "At equal gradient passes: 40. Left out, without a count: silent."


def test_at_equal_time() -> None:
    equal = weighed("time", "cheap", "dear")
    assert equal.limit == 4 and [each["metrics"]["val/accuracy"] for each in equal.runs] == [0.9, 0.7]
    assert equal.sentence == "At equal time: 4 s."
