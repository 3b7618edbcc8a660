"""The pretrained NPBG++ on scenes that it has not seen: one pass over their photos, then finetuned coefficients and NPBG from its refiner, beside NPBG from scratch.

The budgets are those of ``budgets.py``: CPU seconds of training, with the whole schedule of learning rates for every budget.

Run: ``python benchmarks/unseen.py out=experiments/unseen [minutes=1,5] [scenes=still_life,lego] [data=<folder>]``. Results that are in ``out`` are not measured
again. The bust needs the cloud of ``npbgpp prepare dense`` in its folder.
"""

import json
import sys
import time
from pathlib import Path

from budgets import Method, add_result, measure, read_words, results, run_train

NAMES = ("still_life", "lego", "dtu65", "bust")
TRAINED = {"npbg from scratch": Method(("experiment=npbg_quick",)), "npbg from the refiner": Method(("experiment=npbg_small",))}


def one_pass(scene: str, words: tuple[str, ...], out: Path) -> Path:
    """Evaluates the weights, unless that has been done; the folder of the run."""
    run = out / "runs" / f"{scene}_one_pass"
    if not any((r["scene"], r["method"]) == (scene, "one pass") for r in results(out)):
        begin = time.monotonic()
        done = run_train(["experiment=npbgpp_small", *words, "loggers=none", "test_video=null", f"hydra.run.dir={run}"])
        if done.returncode:
            sys.exit(done.stdout[-2000:] + done.stderr[-3000:])
        (scores,) = json.loads((run / "metrics.json").read_text())["datasets"].values()
        found = {"seconds": time.monotonic() - begin, "psnr": scores["psnr"], "ssim": scores["ssim"]}
        add_result(out, scene=scene, method="one pass", minutes=0, **found)
    return run


def main() -> None:
    """Measures what is asked for, then writes table.md."""
    _, out, minutes, scenes = read_words("unseen", "1,5", NAMES)
    for scene, chosen in scenes.items():
        run = one_pass(scene, chosen, out)
        finetuned = Method(("experiment=coefficients_small", f"system.descriptors_pretrained_dir={run / 'descriptors'}"))
        for name, method in {"coefficients": finetuned, **TRAINED}.items():
            for budget in sorted(minutes):
                measure(name, method, scene, budget, out, chosen)
    lines = ["| scene | method | minutes | PSNR | SSIM |", "|---|---|---|---|---|"]
    lines += [f"| {r['scene']} | {r['method']} | {r['minutes']:g} | {r['psnr']:.2f} | {r['ssim']:.3f} |" for r in results(out)]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
