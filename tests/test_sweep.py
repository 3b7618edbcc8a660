"""A sweep goes on past a run that fails, and ends with the table of its runs."""

import json

import pytest


@pytest.mark.slow
def test_a_sweep_ends_with_its_table(run_command, tmp_path):
    """The second run cannot begin, and the others are trained all the same."""
    done = run_command(
        *("hydra.sweep.dir=sweep", "datasets.n_point=150,0,200", "test_after_fit=true", "trainer.limit_val_batches=0"),
        "-m",
    )
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "1 of 3 runs failed: 1" in done.stderr
    sweep = tmp_path / "sweep"
    assert "datasets.n_point: expected a positive number or null, got 0" in (sweep / "1" / "failure.txt").read_text()
    lines = (sweep / "compare.md").read_text().splitlines()
    assert lines[0].startswith("| dataset | run | datasets.n_point | PSNR [dB] |") and lines[0].endswith("| ended with |")
    assert [line.split(" | ")[1:3] for line in lines[2:]] == [["0", "150"], ["2", "200"], ["1", "0"]]
    assert "datasets.n_point" in done.stdout and "comparison" in done.stdout
    assert (sweep / "compare.html").read_text().count("data:image/jpeg") == 2 * 3
    for run in ("0", "2"):
        costs = json.loads((sweep / run / "metrics.json").read_text())["costs"]
        assert costs["steps"] == 4 and costs["train_seconds"] > 0 and costs["peak_host_mib"] > 100
        assert json.loads((sweep / run / "environment.json").read_text())["packages"]["torch"]
    assert not (sweep / "0" / "failure.txt").exists()


def test_a_sweep_folder_that_cannot_be_made_ends_before_any_work(run_command, tmp_path):
    (tmp_path / "occupied").write_text("a file")
    done = run_command("hydra.sweep.dir=occupied/sweep", "seed=1,2", "-m")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "hydra.sweep.dir=occupied/sweep: expected a folder that can be written" in done.stderr and "HYDRA" not in done.stdout
