"""The harness of the evidence: what the rows cost, what the tasks ask, and that killed work goes on where it was."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from click.testing import CliRunner

from edgemem import evidence as library
from tests.benchmarks.conftest import FOLDER

sys.path.insert(0, str(FOLDER))

from evidence import draws, gates, merge, page, plan, rows, runs, tasks
from evidence.__main__ import claimed
from evidence.__main__ import main as evidence_main

BUDGETS = (*plan.MAIN_BUDGETS, *plan.OTHER_BUDGETS)
VARIANTS = [(key, budget) for key in rows.ROWS for budget in BUDGETS if rows.variant(key, budget)]


@pytest.mark.parametrize(("key", "budget"), VARIANTS)
def test_every_row_takes_the_bytes_of_its_budget_and_as_many_parameters_as_a_window(key, budget):
    made, window = rows.variant(key, budget), rows.variant("window", budget)
    model = made.model(0, vocab_size=draws.VOCABULARY)
    if not made.row.grows:
        assert model.contract().state_bytes == pytest.approx(budget, rel=rows.TOLERANCE)
    wanted = rows.parameters(window.model(0, vocab_size=draws.VOCABULARY))
    assert rows.parameters(model) == pytest.approx(wanted, rel=rows.TOLERANCE)


def test_the_plan_has_enough_rows_of_every_task_and_starts_with_the_ceiling_and_the_floor():
    cells = plan.cells()
    for task in tasks.TASKS:
        for budget in plan.MAIN_BUDGETS:
            assert len({cell.row for cell in cells if cell.task == task and cell.budget in (0, budget)}) >= 14
        for budget in plan.OTHER_BUDGETS:
            assert len({cell.row for cell in cells if cell.task == task and cell.budget == budget}) >= 4
    assert [cell.row for cell in cells[:2]] == ["full", "window"]


def answer(value):
    """The token that answers a value."""
    return value - draws.KEYS + draws.VOCABULARY - draws.VALUES


def test_a_query_asks_for_the_value_that_its_key_was_given_with():
    for tokens, targets in (draws.recall(1, 5, _seeded(), 12), draws.recall(30, 5, _seeded(), 12)):
        for sequence, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
            given = dict(zip(sequence[:24:2], sequence[1:24:2], strict=False))
            asked = [at for at, target in enumerate(wanted) if target != draws.SILENT]
            assert asked == list(range(len(sequence) - len(asked), len(sequence)))
            assert all(answer(given[sequence[at]]) == wanted[at] for at in asked)


def test_the_first_query_stands_so_many_steps_after_the_last_pair():
    tokens, targets = draws.recall(64, 2, _seeded())
    assert int((targets[0] != draws.SILENT).nonzero()[0]) - (2 * draws.PAIRS - 1) == 64
    assert tokens.shape[1] == 2 * draws.PAIRS + 63 + draws.PAIRS


def test_copying_asks_for_the_values_in_their_order():
    tokens, targets = draws.copying(3, _seeded())
    for sequence, wanted in zip(tokens, targets, strict=True):
        given = sequence[: draws.SCATTERED]
        values = given[(given >= draws.KEYS) & (given < draws.KEYS + draws.VALUES)]
        assert answer(values).tolist() == wanted[-draws.COPIED :].tolist()


@pytest.mark.parametrize("kind", [tasks.Recall, tasks.Distance])
def test_a_stage_ends_once_nine_of_ten_answers_are_right_and_at_the_latest_after_a_share_of_the_steps(kind):
    def stages(right: bool) -> list[tuple[int, int]]:
        task, generator, seen = kind(300), _seeded(), []
        for _ in range(150):
            _, targets = task.draw(generator)
            outputs = torch.nn.functional.one_hot(targets.clamp(min=0) if right else 0 * targets, draws.VOCABULARY)
            task.loss(10.0 * outputs, targets)
            seen.append(task.STAGES[task._stage])
        return seen

    slow, fast = stages(right=False), stages(right=True)
    second, third = kind.STAGES[1:3]
    assert slow.index(second) == 120
    assert slow.index(third) == 120 + 25
    assert fast.index(second) < 40


@pytest.mark.long
@pytest.mark.parametrize(("row", "task"), [("window_delta", "sensor"), ("mamba2", "sensor"), ("mamba2", "copying")])
def test_a_run_is_scored_through_its_bundle_as_in_torch(tmp_path, row, task):
    run = runs.Run(row, 16 * rows.KIB, task, 3e-3, 0)
    runs.perform(run, tmp_path, steps=2)
    result = runs.score_bundle(run, tmp_path, steps=2)
    assert result["bundle"].keys() == result["torch"].keys()
    assert result["difference"] < 1e-3
    assert 0 < result["output_difference"] < 1e-3
    assert result["state_bytes"] == pytest.approx(run.budget, rel=rows.TOLERANCE)


def fake(folder, run, **more):
    kept = {"rate": run.rate, "label": "window", "turned": "window 4", "budget": run.budget, "state_bytes": 4096}
    runs._write(folder, run, {**kept, "validation": abs(run.rate - 3e-3), **more})


def test_finished_work_is_not_done_again_and_the_other_seeds_follow_the_best_rate(tmp_path):
    cell = plan.Cell("window", 4 * rows.KIB, "text")
    sweep = cell.sweep()
    assert [work.run for work in plan.left(tmp_path, [cell])] == sweep
    for run in sweep:
        fake(tmp_path, run)
    left = list(plan.left(tmp_path, [cell]))
    assert [(work.run.rate, work.run.seed, work.bundle) for work in left] == [
        (3e-3, 0, True),
        *((3e-3, seed, False) for seed in (1, 2)),
        *((3e-3, seed, True) for seed in (1, 2)),
    ]


def test_a_rate_that_diverged_is_not_the_best(tmp_path):
    cell = plan.Cell("window", 4 * rows.KIB, "recall")
    for run, validation in zip(cell.sweep(), (math.nan, 0.2, 0.1), strict=True):
        fake(tmp_path, run, validation=validation)
    assert cell.best_rate(tmp_path) == cell.sweep()[1].rate


def test_rates_that_tie_are_trained_with_all_seeds_and_the_best_mean_decides(tmp_path):
    cell = plan.Cell("full", 0, "recall")
    for run, validation in zip(cell.sweep(), (1.0, 1.0, 0.1), strict=True):
        fake(tmp_path, run, validation=validation)
    first, second = cell.leading_rates(tmp_path)
    assert cell.best_rate(tmp_path) == first == 1e-3
    others = [run for run in cell.trainings(tmp_path) if run.seed]
    assert [(run.rate, run.seed) for run in others] == [(first, 1), (first, 2), (second, 1), (second, 2)]
    for run in others:
        fake(tmp_path, run, validation=1.0 if run.rate == second else 0.6)
    assert cell.best_rate(tmp_path) == second
    left = list(plan.left(tmp_path, [cell]))
    assert [(work.run.rate, work.run.seed, work.bundle) for work in left] == [(second, n, True) for n in range(3)]


def test_a_cell_that_the_plan_lacks_is_a_usage_error(tmp_path):
    result = CliRunner().invoke(evidence_main, ["--row", "linear", "--bytes", "4K", "--results", str(tmp_path)])
    assert result.exit_code == 2
    assert "linear at 4K" in result.output


def scored(row, window, scores):
    memory = [{"type": "window", "window": window}]
    return library.Entry(row, row, f"window {window}", 0, 0, memory, 3e-3, (3e-3,), scores, 9.0, 9.0, 9)


def gated(full, window):
    """The gates for the full cache's scores, and for those of a window of 33 pairs (it reaches 64 steps back)."""
    steps = dict(zip(library.DISTANCES, window, strict=True))
    entries = {
        "recall": [scored("full", 0, {"mqar-32": [full]})],
        "distance": [
            scored("full", 0, {"recall-64": [full]}),
            scored("window", 33, {f"recall-{at}": [share] for at, share in steps.items()}),
        ],
    }
    return gates.gates(library.Evidence(entries, {}, ""))


def test_the_gates_hold_when_full_attention_recalls_and_a_window_is_at_chance_beyond_its_reach():
    found = gated(0.995, (0.9, 0.03, 0.04, 0.02))
    assert [gate.holds for gate in found] == [True] * 5
    assert [int(gate.what.split()[-2].replace(",", "")) for gate in found[2:]] == [256, 1024, 4096]


def test_a_gate_fails_for_a_ceiling_that_is_too_low_and_for_a_window_that_sees_too_far():
    found = gated(0.98, (0.9, 0.03, 0.08, 0.02))
    assert [gate.verdict.strip("*") for gate in found] == [*["does not hold"] * 2, "holds", "does not hold", "holds"]


def test_the_committed_results_hold_every_gate():
    assert [gate.what for gate in gates.gates(library.Evidence.load()) if not gate.holds] == []


def test_without_results_no_gate_holds():
    nothing = library.Evidence({task: [] for task in library.TASKS}, {}, "")
    assert [(gate.holds, gate.verdict) for gate in gates.gates(nothing)] == [(False, "not run yet")] * 3


def test_the_intervals_of_many_looks_are_wider_so_that_all_hold_together():
    assert gates.interval(0.5, 100, 1) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = gates.interval(0.5, 100, 10)
    assert low < 0.4
    assert high > 0.6


def test_scores_are_read_before_their_rows_have_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(merge.costs, "COSTS", tmp_path / "costs.json")
    for run in plan.Cell("window", 16 * rows.KIB, "text").sweep():
        fake(tmp_path, run, row="window", bundle={"bits per byte": 2.5})
    (entry,) = merge.merged(tmp_path, scores_alone=True)["entries"]["text"]
    assert entry["scores"] == {"bits per byte": [2.5]}
    with pytest.raises(SystemExit, match="make evidence-costs"):
        merge.merged(tmp_path)


def test_work_that_another_process_does_is_passed_over(tmp_path):
    work = plan.Work(runs.Run("window", 4 * rows.KIB, "text", 3e-3, 0), bundle=False)
    with claimed(work, tmp_path) as mine, claimed(work, tmp_path) as again:
        assert mine
        assert not again


def test_the_page_is_what_the_results_say():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(library.Evidence.load()), "run: make evidence-page"


def test_the_package_brings_the_merged_results():
    assert json.loads(library.FILE.read_text(encoding="utf-8")) == json.loads(merge.encoded(merge.merged()))


def test_every_bundle_computed_what_torch_did_and_was_scored_alike():
    """Of 512 answers one may differ: where two answers are equally likely, the rounding of an output chooses.

    So it does where two exact pairs surprised equally, and other pairs are kept from there on. One run shows
    that: see docs/evidence.md.
    """
    near_tie = "text-64K-delta_exact-0.003-0.json"
    for path in runs.RESULTS.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "bundle" in result:
            assert result["output_difference"] <= 1e-3 or path.name == near_tie, path.name
            assert result["difference"] <= (1 / 512 if tasks.TASKS[result["task"]].more_is_better else 1e-3), path.name


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)
