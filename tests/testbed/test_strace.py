import subprocess
import sys

import pytest

pytestmark = pytest.mark.strace


def test_a_system_call_can_be_made_to_fail(tmp_path):
    script = "import os; os.mkdir('a'); os.mkdir('b')"
    inject = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=mkdir:error=EDQUOT:when=2"]
    argv = [*inject, sys.executable, "-c", script]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Disk quota exceeded: 'b'" in done.stderr
