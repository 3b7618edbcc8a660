"""The viewer of a run that trains."""

import threading
import time

import pytest
import torch

from npbgpp.callbacks.viewer import TrainingViewer, Turns, compute_alone
from npbgpp.errors import InputError


def browser(turns: Turns, work, times: int | None = 1):
    """A thread that wants ``work`` done again and again."""

    def ask():
        done = 0
        while times is None or done < times:
            try:
                turns(work)
            except InputError:
                return
            done += 1

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def test_training_waits_for_its_share_at_most():
    turns, rendered = Turns(0.1), []
    thread = browser(turns, lambda: rendered.append(time.sleep(0.02)), None)
    begun = time.perf_counter()
    while time.perf_counter() - begun < 2.0:
        time.sleep(0.005)  # a step
        if turns.affordable():
            turns.give()
    elapsed = time.perf_counter() - begun
    turns.end()
    thread.join(5)
    assert not thread.is_alive()
    assert len(rendered) > 3
    assert turns.seconds <= 0.1 * elapsed + 0.15


def test_time_without_a_browser_is_not_saved():
    turns = Turns(0.1)
    time.sleep(1.0)
    thread = browser(turns, lambda: time.sleep(0.02), None)
    rendered, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < 0.5:
        time.sleep(0.005)
        if turns.affordable():
            turns.give()
            rendered += 1
    turns.end()
    thread.join(5)
    assert 0 < rendered <= 6  # 0.05 s of before and a tenth of 0.5 s, and the picture that passes the limit


def test_what_the_thread_of_a_browser_computes_counts():
    turns = Turns(0.1)

    def compute():
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass

    def ask():
        turns(lambda: None)
        compute()  # the picture is compressed
        turns(lambda: None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    for _ in range(2):
        while not turns.waiting:
            time.sleep(0.01)
        turns.give()
    thread.join(5)
    assert turns.seconds < 0.05
    assert turns._allowance < -0.04


def test_pictures_are_rendered_between_steps_in_the_thread_of_the_training():
    turns, threads = Turns(0.5), []
    thread = browser(turns, lambda: threads.append(threading.get_ident()))
    thread.join(0.2)
    assert not threads and turns.waiting
    turns.give()
    thread.join(5)
    assert threads == [threading.get_ident()] and not turns.waiting


def test_errors_reach_the_browser_alone():
    turns, errors = Turns(0.5), []

    def fail():
        raise ValueError("no picture")

    def ask():
        try:
            turns(fail)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    while not turns.waiting:
        time.sleep(0.01)
    turns.give()
    thread.join(5)
    assert [str(error) for error in errors] == ["no picture"]


def test_the_end_refuses_who_waits_and_who_comes():
    turns = Turns(0.5)
    thread = browser(turns, lambda: None, None)
    while not turns.waiting:
        time.sleep(0.01)
    turns.end()
    thread.join(5)
    assert not thread.is_alive()
    with pytest.raises(InputError, match="npbgpp view"):
        turns(lambda: None)


def test_threads_of_browsers_compute_alone():
    pytest.importorskip("threadpoolctl", reason="the extra viewer is not installed")
    before, threads = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        thread = threading.Thread(target=lambda: (compute_alone(), threads.append(torch.get_num_threads())))
        thread.start()
        thread.join(5)
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_pauses_do_not_count():
    turns = Turns(0.1)
    thread = browser(turns, lambda: None, 2)
    while not turns.waiting:
        time.sleep(0.01)
    with turns.uncounted():
        time.sleep(0.2)
        turns.give()
    assert turns.seconds == 0
    while not turns.waiting:
        time.sleep(0.01)
    assert turns.affordable()
    turns.give()
    thread.join(5)


def test_shares_are_checked():
    with pytest.raises(InputError, match="share: expected a number above 0"):
        TrainingViewer(share=0.9)


def test_a_training_with_the_viewer(run_here):
    pytest.importorskip("viser", reason="the extra viewer is not installed")
    folder = run_here("callbacks=viewer", "callbacks.fit.viewer.port=18200", "trainer.max_steps=3", "test_after_fit=false")
    assert (folder / "checkpoints" / "last.ckpt").is_file()
