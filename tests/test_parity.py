"""Where executorlib 1.11.0 fails, and the tests that show that fsbroker does not.

Each row of the table is one of its failures, as it was seen. A test that is named here must
exist: renamed or removed, it is missed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ELSEWHERE = "test_failures_elsewhere.py::"
EXECUTOR = "test_executor.py::"
PROCESSES = "test_client_processes.py::"
WORKERS = "test_workers.py::"
MPI = "test_mpi.py::"
PARTS = "test_parts.py::"
PLAN = "test_plan.py::"
PRESETS = "test_presets.py::"
FACES = "test_executorlib.py::"
SLURM = "slurm/test_backend.py::"

TABLE: dict[str, list[str]] = {
    # -- keys and cached values
    "a path edited between runs of a notebook: an earlier run's data": [
        ELSEWHERE + "test_a_path_that_is_edited_between_runs_of_a_notebook",
        "test_keys/test_code.py::test_paths_in_arguments_and_defaults_count",
    ],
    "cores=1, then cores=2: the one-rank result": [EXECUTOR + "test_ranks_are_part_of_the_key"],
    "init_function changed: stale result": [
        PRESETS + "test_a_changed_preset_is_another_call",
        "test_keys/test_calls.py::test_ranks_and_preset_count",
    ],
    "an imported module edited: stale result": [
        ELSEWHERE + "test_an_imported_module_that_is_edited",
        "test_keys/test_modules.py::test_an_own_module_counts_with_the_code_that_is_used",
        "test_keys/test_modules.py::test_a_worker_with_stale_code_is_told_so",
    ],
    "same cache_key, other arguments: first result, unchecked": [
        EXECUTOR + "test_cache_key_with_other_arguments",
        EXECUTOR + "test_cache_key_of_another_client",
    ],
    "a failed task read through another executor: the exception as the result": [
        ELSEWHERE + "test_a_failure_is_an_exception_for_every_executor",
        EXECUTOR + "test_attach_to_what_has_failed",
    ],
    "keys that change though the call does not": [
        "test_keys/test_processes.py::test_keys_are_the_same_in_another_interpreter_folder_and_line",
        "test_keys/test_processes.py::test_a_cell_has_the_same_key_in_another_kernel",
        "test_keys/test_arguments.py::test_the_order_of_dicts_and_sets_does_not_matter",
        "test_keys/test_arguments.py::test_equal_values_have_one_key_however_they_were_made",
        "test_keys/test_calls.py::test_position_and_keyword_are_one_call",
        "test_keys/test_code.py::test_the_cells_file_and_line_do_not_matter",
        SLURM + "test_local_agents_and_queue_jobs_share_the_work",
    ],
    "damaged, truncated or empty cache file: hangs; no listing": [
        ELSEWHERE + "test_damaged_results_are_computed_again",
        "test_cache.py::test_damaged_files_are_left_out_with_a_warning",
        "test_client_trouble.py::test_a_damaged_task_file_ends_its_tasks_and_not_the_agent",
    ],
    "cache_key='../x': written outside the cache": [EXECUTOR + "test_cache_key_is_no_path"],
    "failed tasks are never tried again": [
        EXECUTOR + "test_failed_task_runs_again",
        EXECUTOR + "test_failed_dependents_run_again",
    ],
    "max, min, dict, int, np.linalg.norm as functions: refused": [
        ELSEWHERE + "test_functions_without_a_signature",
    ],
    "a 64 MB array: pickled, compressed": [ELSEWHERE + "test_a_large_array_is_stored_as_it_is"],
    "one cached submit walks the whole cache": [
        ELSEWHERE + "test_one_cached_submit_does_not_walk_the_cache",
    ],
    # -- futures
    "the same task again right after its result: hangs": [
        ELSEWHERE + "test_the_same_task_right_after_its_result",
    ],
    "cancel one of two identical tasks: hangs": [
        EXECUTOR + "test_cancel_one_of_two_identical_tasks",
    ],
    "cancel a queued upstream: hangs": [
        EXECUTOR + "test_cancelled_dependency_fails_its_dependents",
        PARTS + "test_batches_of_what_was_cancelled",
    ],
    "futures nested in tuples, or at all in file executors: TypeError": [
        PARTS + "test_futures_anywhere",
        PARTS + "test_dataclass_of_futures_and_parts",
    ],
    "batched in file executors: NotImplementedError; a failure stalls a batch": [
        PARTS + "test_batches_hold_what_ends_first",
        PARTS + "test_a_call_with_a_batch_starts_when_it_is_full",
        PARTS + "test_what_fails_comes_last",
    ],
    "as_completed on split futures: KeyError": [PARTS + "test_wait_and_as_completed"],
    "waiting: 8.2 s of CPU in 12.3 s": [ELSEWHERE + "test_waiting_takes_no_processor"],
    "the remote traceback is missing": [
        EXECUTOR + "test_the_original_exception_with_where_it_happened",
    ],
    # -- workers and ranks
    "after an exception of rank 0 every later task of the block has another's value": [
        PRESETS + "test_a_block_on_two_ranks_after_an_exception",
        MPI + "TestGroups::test_a_warm_group_gives_right_values",
        MPI + "TestGroups::test_a_rank_that_raises_does_not_hang_the_others",
    ],
    "a foreign process delivers the result through the open port": [
        "test_door.py::test_who_does_not_is_hung_up_on",
        MPI + "TestStart::test_a_stranger_is_not_let_in",
    ],
    "a rank other than 0 raises, or returns what cannot be pickled: hangs": [
        MPI + "TestGroups::test_a_rank_that_raises_does_not_hang_the_others",
        MPI + "TestGroups::test_a_result_of_one_rank_that_cannot_be_pickled",
        MPI + "TestGroups::test_a_rank_that_is_killed",
    ],
    "worker killed, sys.exit, KeyboardInterrupt: hangs, or all later tasks do": [
        ELSEWHERE + "test_what_ends_a_worker_ends_its_task_alone",
        EXECUTOR + "test_exceptions_that_would_end_the_client",
    ],
    "an exception whose unpickling fails, a result that cannot be pickled: hangs": [
        EXECUTOR + "test_exceptions_that_cannot_travel",
        EXECUTOR + "test_unpicklable_results_and_arguments",
    ],
    # -- clients
    "client killed and started again while the task runs: runs twice": [
        PROCESSES + "test_client_killed_and_started_again_attaches",
        "test_kernel.py::test_a_cell_in_a_new_kernel_attaches_to_the_running_task",
    ],
    "two clients with the same tasks: run twice": [
        PROCESSES + "test_two_clients_submit_the_same_at_once",
    ],
    "three clients share a cache directory: 34 of 54 futures hang": [
        ELSEWHERE + "test_three_clients_share_a_spool",
    ],
    "disk full: segmentation fault, or hangs": [
        "test_client_trouble.py::test_submit_to_a_full_spool",
        "test_client_trouble.py::test_full_while_waiting",
    ],
    "a script that ends without shutdown never exits": [
        FACES + "test_a_script_that_ends_without_shutdown",
        PROCESSES + "test_a_script_ends_with_work_pending_and_the_work_goes_on",
        "test_script_end.py::test_script_that_only_submits_ends_well",
    ],
    "client killed: its workers stay for ever": [
        FACES + "test_a_client_that_is_killed",
        PROCESSES + "test_local_agents_outlive_the_client_and_end_when_idle",
    ],
    "executor collected, or shutdown(wait=False): futures cancelled": [
        FACES + "test_an_executor_that_is_collected",
        FACES + "test_shutdown_without_waiting",
        EXECUTOR + "test_executor_that_was_collected",
        EXECUTOR + "test_shutdown_without_wait",
    ],
    "one resource_dict for two executors: the second fails": [
        EXECUTOR + "test_one_resource_dict_for_two_executors",
        FACES + "test_resources_of_a_call_win_and_nothing_is_changed",
    ],
    # -- queue jobs
    "one failing squeue: futures never end": [SLURM + "test_controller_away_under_load"],
    "the dependents of a dead job never end": [
        "slurm/test_dead_jobs.py::TestWaiting::test_dependencies_of_jobs",
    ],
    "100 waiting tasks: 100 squeue processes at a time": [
        SLURM + "test_queries_do_not_grow_with_tasks",
    ],
    "resources of a call are dropped or changed on their way to the job": [
        SLURM + "test_resources_of_a_call_are_those_of_its_job",
        "test_job_script.py::test_a_job_for_one_task",
    ],
    "every row in squeue has the same job name": ["test_job_script.py::test_a_job_for_one_task"],
    "resources that cannot be had, or are no number: hangs": [
        FACES + "test_resources_of_calls",
        "test_needs.py::test_wrong_values_are_refused",
        "test_needs.py::test_what_is_impossible_here_is_refused_with_the_limit",
    ],
    "OMP_NUM_THREADS is not set in workers": [
        WORKERS + "TestSerialContract::test_the_environment_is_the_slots",
    ],
    # -- workflows
    "export loses values, merges 1 and '1', leaves truncated JSON": [
        PLAN + "test_the_package_loads_and_runs_what_was_written",
        PLAN + "test_what_json_cannot_hold_is_refused_and_nothing_is_written",
        "test_workflow_files.py::test_lists_dicts_and_calls_by_place_become_arguments_again",
        "test_workflow_files.py::test_ports_of_split_futures_as_executorlib_writes_them",
    ],
}


def test_every_row_has_a_test():
    assert [row for row, tests in TABLE.items() if not tests] == []


@pytest.mark.timeout(180)
def test_the_tests_exist():
    """pytest collects every one of them."""
    wanted = sorted({f"tests/{test}" for tests in TABLE.values() for test in tests})
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*words, *wanted], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for test in wanted:
        assert test in done.stdout
