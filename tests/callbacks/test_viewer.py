"""The viewer of a run that trains."""

import threading
import time

import pytest

from npbgpp.callbacks.viewer import TrainingViewer, Turn
from npbgpp.errors import InputError


def test_training_waits_for_its_share_at_most():
    turn, rendered, stop = Turn(0.1), [], threading.Event()

    def browser():
        while not stop.is_set():
            with turn:
                time.sleep(0.02)
                rendered.append(time.perf_counter())

    thread = threading.Thread(target=browser, daemon=True)
    thread.start()
    begun = time.perf_counter()
    while time.perf_counter() - begun < 2.0:
        time.sleep(0.005)  # a step
        if turn.affordable():
            turn.give(0.5)
    elapsed = time.perf_counter() - begun
    stop.set()
    turn.give(0.5)
    assert len(rendered) > 3
    assert turn.seconds <= 0.1 * elapsed + 0.15


def test_nobody_renders_beside_a_step():
    turn, inside = Turn(0.5), threading.Event()

    def browser():
        with turn:
            inside.set()

    threading.Thread(target=browser, daemon=True).start()
    assert not inside.wait(0.2)
    turn.give(1.0)
    assert inside.is_set()
    start = time.perf_counter()
    turn.give(0.05)
    assert time.perf_counter() - start < 0.5, "nobody came"


def test_the_end_refuses():
    turn, errors = Turn(0.5), []

    def browser():
        try:
            with turn:
                pass
        except InputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=browser, daemon=True)
    thread.start()
    turn.end()
    thread.join(5)
    assert "npbgpp view" in errors[0]


def test_pauses_do_not_count():
    turn = Turn(0.1)
    with turn.uncounted():
        time.sleep(0.2)
        turn.give(0.01)
    assert turn.seconds == 0
    turn.waiting = 1
    time.sleep(0.01)
    assert turn.affordable()


def test_shares_are_checked():
    with pytest.raises(InputError, match="share: expected a number above 0"):
        TrainingViewer(share=0.9)


def test_a_training_with_the_viewer(run_here):
    pytest.importorskip("viser", reason="the extra viewer is not installed")
    folder = run_here("callbacks=viewer", "callbacks.fit.viewer.port=18200", "trainer.max_steps=3", "test_after_fit=false")
    assert (folder / "checkpoints" / "last.ckpt").is_file()
