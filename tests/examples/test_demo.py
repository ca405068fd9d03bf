"""`make demo`, from nothing to four recorded results."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.architecture.source import ROOT
from tests.cli.running import environment


@pytest.mark.slow
def test_demo() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.examples.demo"], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^ +webhook-signature: v1a,\S{88} v1,\S{44}$", done.stdout, re.MULTILINE)) == 2, "the plain endpoint's requests"
    assert len(re.findall(r"^ +webhook-signature: v1a,\S{88}$", done.stdout, re.MULTILINE)) == 3, "the SDK's, one of them twice"
    assert len(re.findall(r"= run_\w{26} \w+ succeeded", done.stdout)) == 4
    assert done.stderr == ""


def test_make_demo_runs_it() -> None:
    recipe = re.search(r"^demo:.*\n\t@?(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert recipe[1].endswith("python -m tests.examples.demo")
