import pytest

pytestmark = pytest.mark.kernel


def test_a_cell_runs_in_a_kernel():
    from jupyter_client.manager import run_kernel

    with run_kernel() as client:
        seen = []
        client.execute_interactive("print(6 * 7)", timeout=60, output_hook=seen.append)
    assert "42\n" in [message["content"].get("text") for message in seen]
