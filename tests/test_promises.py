"""Promises of exactness in docstrings, README and guide, each beside the test that would fail.

A promise is quoted as its source has it, so that neither can change alone. Tests are
``module::name`` within this directory.
"""

import ast
from pathlib import Path

import pytest

import tokenshift_utils

TESTS = Path(__file__).parent
PACKAGE = Path(tokenshift_utils.__file__).parent
PAGES = [TESTS.parent / "README.md", *sorted((TESTS.parent / "notebooks/guide").glob("*.md"))]

# quoted words (spaces count as one) -> tests that hold them
PROMISES = {
    # measures
    "are legal and handled exactly; NaN is refused with the place where it was found": (
        "test_measures::test_disjoint_supports_are_ln2_apart",
        "test_measures::test_nan_is_refused_with_its_place",
    ),
    "from log-probabilities in float32, never in a model's half precision": (
        "test_measures::test_fault_05_half_precision_is_refused_and_float32_is_accurate",
        "test_nucleus::test_log_softmax_widens_half_precision_and_keeps_float64",
    ),
    "so a vocabulary is never sorted": ("test_nucleus::test_never_sorts",),
    "ties broken by lower id": (
        "test_nucleus::test_ties_go_to_lower_ids",
        "test_measures::test_top_k_breaks_ties_by_lower_id",
    ),
    # noise, sampling and mixing
    "So a draw does not depend on batch": (
        "test_noise::test_noise_does_not_depend_on_its_neighbours",
        "test_huggingface::test_samples_do_not_depend_on_batch_or_order",
        "test_cross_sample::test_runs_depend_neither_on_batch_nor_on_block",
    ),
    "``-inf`` is never drawn": ("test_promises::test_an_impossible_token_is_never_drawn",),
    "so that never more than ``SCORED_LOGITS`` logits are held": (
        "test_huggingface::test_score_never_holds_the_logits_of_a_long_sequence",
    ),
    "changes whenever its outputs could": (
        "test_huggingface::test_fingerprint_follows_the_files",
        "test_huggingface::test_fingerprint_of_a_live_model_follows_its_weights",
    ),
    # records and the store
    "Part of the study, so that records are identical everywhere": (
        "test_store::test_workers_compute_the_same_records",
        "test_executor_ray::test_the_same_records_as_in_this_process",
    ),
    "so that records do not depend on how many processes there are, or where": (
        "test_store::test_workers_compute_the_same_records",
    ),
    "so that what is there is whole; one that does not match its checksum": (
        "test_store::test_a_damaged_shard_counts_as_missing",
        "test_store::test_nothing_half_written_stays",
        "test_sentences::test_a_checksum_of_any_bytes_counts_as_another",
    ),
    "comments, docstrings and layout do not count": (
        "test_store::test_code_version_ignores_what_does_nothing",
    ),
    "Exactly the columns of the kind are expected": (
        "test_store::test_tables_hold_exactly_their_columns",
    ),
    "with that of one process, byte for byte": (
        "test_executor_ray::test_smoke_study_has_the_same_records_as_in_one_process",
    ),
    "results don't depend on batch sizes or on resuming": (
        "test_cross_sample::test_runs_depend_neither_on_batch_nor_on_block",
        "test_records_end_to_end::test_shifts_do_not_depend_on_batches_blocks_or_shards",
        "test_store::test_an_interrupted_run_goes_on_where_it_stopped",
    ),
    "a reader, or a crash, sees all of it or what was before": (
        "test_sentences::test_a_file_is_replaced_whole_or_not_at_all",
    ),
    # statistics, tables and figures
    "Two estimates made with the same `Bootstrap` share their draws": (
        "test_bootstrap::test_differences_are_paired",
    ),
    "there is none then, and the estimate says why": (
        "test_bootstrap::test_too_little_is_said_in_place_of_an_interval",
    ),
    "without dates, so that equal figures are equal files": (
        "test_promises::test_equal_figures_are_equal_files",
    ),
    "whatever the user's settings are": (
        "test_sentences::test_figures_are_the_same_under_any_settings_and_text_is_no_formula",
    ),
    "Starts kernels in the interpreter that is running, whatever kernelspecs are installed": (
        "test_sentences::test_neither_kernelspecs_nor_settings_nor_the_home_of_the_user_have_a_part",
    ),
    "what differs between equal runs": (
        "test_reproduce::test_run_makes_everything_twice_the_same",
        "test_smoke::test_second_run_gives_the_same_outputs_from_the_same_records",
    ),
    # the trainer
    "with `scale=0` loss and gradient are TRL's own, bit for bit": (
        "test_weighted_trainer::test_without_strength_loss_and_gradient_are_trls_own",
    ),
    "unbiased and never negative": (
        "test_weighting::test_k3_is_unbiased_for_kl_of_old_and_new",
        "test_weighting::test_k3_is_finite_and_not_negative_for_any_input",
    ),
}


def one_spaced(text: str) -> str:
    return " ".join(text.split())


def promised() -> str:
    """README, guide and the package's source, in which all promises are made."""
    files = [*PAGES, *sorted(PACKAGE.rglob("*.py"))]
    return one_spaced("\n".join(file.read_text(encoding="utf-8") for file in files))


def names_in(module: str) -> set[str]:
    file = TESTS / f"{module}.py"
    if not file.is_file():
        return set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_is_made_and_has_its_test(promise):
    assert one_spaced(promise) in promised(), "no longer promised: take it off the list"
    for name in PROMISES[promise]:
        module, _, test = name.partition("::")
        assert test in names_in(module), f"{name} is gone"


# Tests that no other module has ------------------------------------------------------------------


def test_an_impossible_token_is_never_drawn():
    import torch

    from tokenshift_utils.measures.noise import draw

    keys = torch.arange(4000)
    logp = torch.tensor([0.5, 0.0, 0.5]).log()
    drawn = draw(logp.expand(4000, 3), keys, torch.zeros(4000, dtype=torch.long))
    assert set(drawn.tolist()) == {0, 2}


def test_equal_figures_are_equal_files(tmp_path):
    import matplotlib.pyplot as plt

    from tokenshift_utils.report.style import save_figure, use_style

    made = []
    for name in ("a", "b"):
        use_style()
        fig, ax = plt.subplots()
        ax.plot([0, 1], [0, 1])
        made.append([file.read_bytes() for file in save_figure(fig, tmp_path, name)])
    assert made[0] == made[1]
