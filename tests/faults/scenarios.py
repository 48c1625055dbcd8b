"""Every scenario of faults: what strikes, and the tests that show what holds then.

A test is named by its file and its name (`::Class::name` inside of classes); without
parameters, which may be many. What cannot be tested here says what it would need.
"""

from __future__ import annotations

from typing import NamedTuple

KILLS = "tests/faults/test_kills.py"
CALLS = "tests/faults/test_calls.py"
MOUNTS = "tests/faults/test_mounts.py"
HOSTS = "tests/faults/test_hosts.py"
DISORDER = "tests/faults/test_disorder.py"
POWER = "tests/faults/test_powerloss.py"
CRASHES = "tests/faults/test_crashes.py"
NFS = "tests/faults/test_nfs.py"
PURGE = "tests/faults/test_purge.py"
SIM = "tests/test_simulation.py::test_the_rules_hold_in_every_seed"
MODEL = "tests/test_sim_nfs.py"
VERSIONS = "tests/test_versions.py"
TROUBLE = "tests/test_client_trouble.py"
CLIENTS = "tests/test_client_processes.py"
EXECUTOR = "tests/test_executor.py"
IN_JOB = "tests/slurm/test_agent_in_job.py"
JOBS = "tests/slurm/test_dead_jobs.py"
BACKEND = "tests/slurm/test_backend.py"


class Scenario(NamedTuple):
    """One row.

    Attributes:
        fault: what strikes. tests: that run it. needs: what a part that is not run would need.
    """

    fault: str
    tests: tuple[str, ...] = ()
    needs: str = ""


SCENARIOS = {
    1: Scenario(
        "agent killed at every file call from claim to publish",
        (
            f"{KILLS}::test_agent",
            f"{KILLS}::test_agent_that_ends_task_files",
            f"{KILLS}::test_agent_that_recovers",
            f"{CALLS}::test_an_agent_whose_file_calls_fail",
        ),
    ),
    2: Scenario(
        "client killed at every call of submit",
        (
            f"{KILLS}::test_client",
            f"{KILLS}::test_client_that_puts_off",
            f"{CALLS}::test_a_client_whose_file_calls_fail",
        ),
    ),
    3: Scenario(
        "power loss at every step of publish",
        (
            f"{POWER}::test_every_promise_is_kept_at_every_step",
            f"{CRASHES}::test_every_promise_is_kept_in_every_state",
        ),
    ),
    4: Scenario(
        "a missing fsync (the test of the test)",
        (f"{POWER}::test_a_missing_sync_is_noticed", f"{CRASHES}::test_a_missing_sync_is_noticed"),
    ),
    5: Scenario(
        "EIO at the n-th call",
        (
            f"{CALLS}::test_an_agent_whose_file_calls_fail",
            f"{CALLS}::test_a_client_whose_file_calls_fail",
            f"{MOUNTS}::test_a_file_system_that_lies_and_fails",
        ),
    ),
    6: Scenario(
        "no space",
        (
            f"{MOUNTS}::test_a_full_disk_while_agents_claim_and_publish",
            f"{TROUBLE}::test_submit_to_a_full_spool",
            f"{TROUBLE}::test_full_while_waiting",
        ),
    ),
    7: Scenario("no inodes", (f"{MOUNTS}::test_a_full_disk_while_agents_claim_and_publish",)),
    8: Scenario(
        "quota used up",
        (f"{CALLS}::test_an_agent_whose_file_calls_fail",),
        "real quotas: CONFIG_QFMT_V2; here the error is injected",
    ),
    9: Scenario(
        "ESTALE",
        (
            f"{MOUNTS}::test_a_file_system_that_lies_and_fails",
            f"{CALLS}::test_an_agent_whose_file_calls_fail",
        ),
    ),
    10: Scenario(
        "done, but the reply says EIO, EEXIST or ENOENT",
        (
            f"{MOUNTS}::test_a_file_system_that_lies_and_fails",
            "tests/test_spool_publish.py::test_a_link_that_was_done_counts_whatever_the_reply",
        ),
    ),
    11: Scenario(
        "absent names are believed for 30 s",
        (
            f"{MOUNTS}::test_two_hosts_that_believe_old_names_and_sizes",
            f"{NFS}::test_two_hosts_share_a_spool_and_one_dies",
        ),
    ),
    12: Scenario(
        "two changes of a directory in one tick (NFS v3)",
        (
            f"{NFS}::test_two_hosts_share_a_spool_and_one_dies",
            f"{MODEL}::test_two_changes_of_a_directory_in_one_tick",
            SIM,
        ),
    ),
    13: Scenario("old attributes", (f"{MOUNTS}::test_two_hosts_that_believe_old_names_and_sizes",)),
    14: Scenario("old content after a replacement: nothing is ever replaced", (SIM,)),
    15: Scenario("strange names in the spool", (f"{MOUNTS}::test_strange_names_everywhere",)),
    16: Scenario(
        "locks that exclude nobody",
        (
            f"{MOUNTS}::test_two_hosts_that_believe_old_names_and_sizes",
            f"{DISORDER}::test_two_agents_share_ten_thousand_tasks",
            f"{DISORDER}::test_four_claim_row_by_row_without_a_lock",
        ),
    ),
    17: Scenario("ENOLCK", (f"{CALLS}::test_a_host_without_locks",)),
    18: Scenario("ENOSYS on one host", (f"{CALLS}::test_a_host_without_locks",)),
    19: Scenario("a lock that an orphan keeps", (f"{HOSTS}::test_locks_that_an_orphan_keeps",)),
    20: Scenario(
        "cut off, taken over, and back",
        (
            f"{DISORDER}::test_an_agent_that_slept_in_the_middle_of_a_step",
            f"{DISORDER}::test_an_agent_that_slept_past_its_lease_discards_its_work",
            f"{NFS}::test_a_host_whose_link_is_cut_and_mended",
            SIM,
        ),
    ),
    21: Scenario(
        "stopped past its lease, then awake",
        (
            f"{DISORDER}::test_an_agent_that_slept_past_its_lease_discards_its_work",
            f"{DISORDER}::test_an_agent_that_slept_in_the_middle_of_a_step",
        ),
    ),
    22: Scenario("clocks", (f"{HOSTS}::test_clocks_that_differ_by_hours_and_jump", SIM)),
    23: Scenario(
        "hosts of one name, pids alike", (f"{HOSTS}::test_hosts_of_one_name_with_the_same_pids",)
    ),
    24: Scenario(
        "two agents and ten thousand tasks",
        (f"{DISORDER}::test_two_agents_share_ten_thousand_tasks",),
    ),
    25: Scenario(
        "requeue",
        (
            f"{IN_JOB}::TestEnds::test_requeue",
            f"{JOBS}::TestCancelled::test_a_requeued_job_has_the_same_id",
        ),
    ),
    26: Scenario(
        "a lost node whose first instance lives", (f"{JOBS}::TestNodes::test_lost_nodes",)
    ),
    27: Scenario(
        "the job's time limit",
        (f"{IN_JOB}::TestTime::test_the_end_of_the_job", f"{JOBS}::TestTime::test_time_limits"),
    ),
    28: Scenario(
        "an orphan after scancel",
        (f"{IN_JOB}::TestEnds::test_an_orphan", f"{JOBS}::TestCancelled::test_an_orphan"),
    ),
    29: Scenario("no controller", (f"{BACKEND}::test_controller_away_under_load",)),
    30: Scenario(
        "jobs that never start",
        (
            f"{JOBS}::TestWaiting::test_a_job_that_slurm_holds_is_replaced",
            f"{JOBS}::TestBadStarts::test_three_are_enough",
        ),
    ),
    31: Scenario(
        "a job that ends without a result", (f"{JOBS}::TestBadStarts::test_another_python",)
    ),
    32: Scenario(
        "a job that is forgotten", (f"{JOBS}::TestAgents::test_a_job_that_slurm_has_forgotten",)
    ),
    33: Scenario(
        "a rank dies",
        (
            "tests/faults/test_mpi_kills.py::test_a_killed_rank_is_an_attempt_and_the_agent_lives",
            f"{IN_JOB}::TestMpi::test_a_rank_that_fails",
        ),
    ),
    34: Scenario("the wrong MPI", (f"{IN_JOB}::TestMpi::test_the_wrong_pmi_is_named",)),
    35: Scenario(
        "a task that kills its worker or its agent",
        (f"{JOBS}::TestAgents::test_a_task_that_kills_its_agent", f"{KILLS}::test_records_of_rows"),
    ),
    36: Scenario(
        "out of memory", (f"{JOBS}::TestAgents::test_out_of_memory",), "a cgroup's OOM killer"
    ),
    37: Scenario(
        "what cannot be pickled",
        (
            f"{EXECUTOR}::test_unpicklable_results_and_arguments",
            f"{EXECUTOR}::test_exceptions_that_cannot_travel",
        ),
    ),
    38: Scenario(
        "a notebook that starts again",
        (
            f"{CLIENTS}::test_client_killed_and_started_again_attaches",
            "tests/slurm/test_sessions.py::test_another_session_goes_on",
        ),
    ),
    39: Scenario(
        "two clients with the same graph", (f"{CLIENTS}::test_two_clients_submit_the_same_at_once",)
    ),
    40: Scenario(
        "dependencies that failed or were cancelled",
        (
            f"{EXECUTOR}::test_failed_dependencies_chain_to_the_original",
            f"{EXECUTOR}::test_cancelled_dependency_fails_its_dependents",
        ),
        "cycles: a key is made from the keys of its inputs, so there can be none",
    ),
    41: Scenario(
        "cancel races with claim and publish", (SIM, f"{KILLS}::test_client_that_cancels")
    ),
    42: Scenario(
        "a spool that is gone or read-only",
        (
            f"{TROUBLE}::test_spool_deleted_while_waiting",
            f"{TROUBLE}::test_spool_unmounted_while_waiting",
            f"{TROUBLE}::test_read_only_while_waiting",
            f"{TROUBLE}::test_submit_to_a_read_only_spool",
        ),
    ),
    43: Scenario(
        "flipped bits and torn files",
        (
            f"{MOUNTS}::test_a_result_that_was_damaged_is_never_loaded",
            f"{TROUBLE}::test_a_damaged_task_file_ends_its_tasks_and_not_the_agent",
            "tests/test_spool_container.py::test_a_flipped_bit_never_changes_what_is_read",
            "tests/test_spool_container.py::test_a_file_that_is_cut_off_anywhere_is_never_read_half",
        ),
    ),
    44: Scenario(
        "HDF5: cut off in a write; its locks",
        (f"{MOUNTS}::test_how_hdf5_locks_makes_no_difference", f"{KILLS}::test_agent"),
    ),
    45: Scenario(
        "two versions of fsbroker",
        (
            "tests/test_spool_container.py::test_a_newer_format_is_refused_and_both_versions_are_named",
            f"{VERSIONS}::test_a_newer_spool_is_refused_by_everybody_and_left_as_it_is",
            f"{VERSIONS}::test_each_version_runs_what_it_can_read",
            f"{VERSIONS}::test_no_newer_file_of_any_kind_is_touched",
        ),
    ),
    46: Scenario(
        "a slow file system; very many names",
        (
            f"{MOUNTS}::test_a_slow_file_system",
            f"{MOUNTS}::test_directories_full_of_strange_names",
        ),
    ),
    47: Scenario("EIO for seconds, then healthy", (f"{MOUNTS}::test_trouble_that_passes",)),
    48: Scenario("the NFS server starts again", (f"{NFS}::test_a_server_that_goes_and_comes",)),
    49: Scenario(
        "ctrl-C, SIGTERM, exit and fork in the client",
        (
            f"{CLIENTS}::test_a_script_ends_with_work_pending_and_the_work_goes_on",
            f"{CLIENTS}::test_forked_child",
            f"{CLIENTS}::test_multiprocessing_pool_beside_an_executor",
        ),
    ),
    50: Scenario(
        "files of other users",
        ("tests/test_spool_container.py::test_only_own_regular_files_are_opened",),
    ),
    51: Scenario(
        "gc beside a slow reader or a late publisher",
        (SIM, "tests/test_gc.py::test_a_task_born_after_the_survey_keeps_what_it_names"),
    ),
    52: Scenario(
        "no space for the error", (f"{MOUNTS}::test_a_full_disk_while_an_error_is_reported",)
    ),
    53: Scenario(
        "a site's purge",
        (
            f"{PURGE}::test_one_kind_of_file_goes_while_it_is_in_use",
            f"{PURGE}::test_one_kind_of_file_goes_from_a_spool_at_rest",
            f"{TROUBLE}::test_task_file_removed_by_hand",
        ),
    ),
    54: Scenario(
        "a spool that was copied",
        (
            f"{HOSTS}::test_a_spool_that_was_copied_elsewhere",
            "tests/test_moved.py::test_a_spool_that_was_copied_under_load_goes_on_elsewhere",
        ),
    ),
}
"""By their number."""
