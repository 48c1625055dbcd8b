"""The private SLURM cluster: that it does what real ones do, and leaves nothing behind."""

import pytest

pytestmark = pytest.mark.slurm


def test_a_step_spans_all_nodes(slurm):
    assert sorted(slurm.run(["srun", "--nodes=3", "hostname"]).stdout.split()) == slurm.nodes


def test_a_batch_job_writes_where_it_was_told(slurm, tmp_path):
    job = slurm.sbatch(f"--output={tmp_path}/%j", "--wrap=hostname")
    slurm.wait_for(lambda: slurm.state(job) == "COMPLETED")
    assert (tmp_path / str(job)).read_text() == "n1\n"


def test_a_cancelled_job_ends(slurm):
    job = slurm.sbatch("--output=/dev/null", "--wrap=exec sleep 100")
    slurm.wait_for(lambda: slurm.state(job) == "RUNNING")
    slurm.run(["scancel", job])
    slurm.wait_for(lambda: slurm.state(job) == "CANCELLED")
