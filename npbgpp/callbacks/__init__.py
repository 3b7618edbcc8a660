"""Lightning callbacks of a run: evaluation output, costs, progress, checkpoints, preemption."""
