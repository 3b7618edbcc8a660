"""When the viewer renders, and how large: with a clock that the test moves."""

import threading
import time

import pytest

from npbgpp.viewer.pacing import REST_S, Job, Pacer, RenderThread, ResolutionControl, SpeedMeter


def test_small_while_moving_and_full_when_it_rests():
    pacer: Pacer[str] = Pacer()
    assert pacer.next(0.0) is None, "nothing was asked for"
    pacer.ask("a", 10.0, moving=True)
    job = pacer.next(10.0)
    assert job == Job("a", 1, full=False)
    pacer.finished(job, as_full=False)
    assert pacer.next(10.1) == pytest.approx(REST_S - 0.1), "waits for the camera to rest"
    pacer.ask("b", 10.1, moving=True)
    assert pacer.next(10.2) == Job("b", 2, full=False)
    full = pacer.next(10.1 + REST_S)
    assert full == Job("b", 2, full=True)
    pacer.finished(full, as_full=True)
    assert pacer.next(99.0) is None


def test_a_fast_picture_in_full_is_not_rendered_again():
    pacer: Pacer[str] = Pacer()
    pacer.ask("a", 0.0, moving=True)
    pacer.finished(pacer.next(0.0), as_full=True)
    assert pacer.next(5.0) is None


def test_changes_of_the_panel_are_rendered_in_full_at_once():
    pacer: Pacer[str] = Pacer()
    pacer.ask("a", 0.0, moving=False)
    assert pacer.next(0.0) == Job("a", 1, full=True)


def test_only_full_pictures_are_given_up():
    pacer: Pacer[str] = Pacer()
    pacer.ask("a", 0.0, moving=True)
    small, full = pacer.next(0.0), Job("a", 1, full=True)
    assert not pacer.outdated(full)
    pacer.ask("b", 0.1, moving=True)
    assert pacer.outdated(full)
    assert not pacer.outdated(small), "movement would show nothing otherwise"


@pytest.mark.parametrize(("per_pixel", "overhead"), [(1e-6, 0.0), (1e-5, 0.01), (1e-8, 0.001)])
def test_resolution_reaches_the_frame_rate(per_pixel, overhead):
    control, full = ResolutionControl(10.0), 512 * 512
    for _ in range(20):
        pixels = full * control.moving_share(full) ** 2
        seconds = overhead + per_pixel * pixels
        control.measured(round(pixels), seconds)
    assert seconds == pytest.approx(0.1, rel=0.05) or (pixels == pytest.approx(full) and seconds < 0.1)


def test_resolution_is_kept_where_less_would_not_be_faster():
    control, full = ResolutionControl(30.0), 512 * 512
    control.measured(full, 0.2 + 1e-5 * full)
    for _ in range(20):
        pixels = full * control.moving_share(full) ** 2
        control.measured(round(pixels), 0.2 + 1e-5 * pixels)
    assert 1e-5 * pixels == pytest.approx(0.2, rel=0.2)


def test_resolution_has_a_lower_bound():
    control, full = ResolutionControl(60.0), 512 * 512
    for _ in range(20):
        pixels = full * control.moving_share(full) ** 2
        control.measured(round(pixels), 1e-2 * pixels)
    assert 512 * control.moving_share(full) == pytest.approx(48)


def test_the_thread_stops_full_pictures_for_newer_requests():
    shown, started = [], threading.Event()

    def render(job, stop):
        if job.view == "slow" and job.full:
            started.set()
            end = time.monotonic() + 5
            while not stop():
                assert time.monotonic() < end, "nobody stopped it"
                time.sleep(0.005)
            return None
        shown.append((job.view, job.full))
        return job.full

    thread = RenderThread(render, pytest.fail, "test")
    thread.ask("slow")
    assert started.wait(5)
    thread.ask("next", moving=True)
    end = time.monotonic() + 5
    while ("next", True) not in shown:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert shown == [("next", False), ("next", True)]
    thread.stop()
    thread.join(5)


def test_the_thread_survives_views_that_fail():
    failures, shown = [], threading.Event()

    def render(job, stop):
        if job.view == "bad":
            raise RuntimeError("no such view")
        shown.set()
        return True

    thread = RenderThread(render, failures.append, "test")
    thread.ask("bad")
    end = time.monotonic() + 5
    while not failures and time.monotonic() < end:
        time.sleep(0.01)
    thread.ask("good")
    assert shown.wait(5)
    assert str(failures[0]) == "no such view"
    thread.stop()


def test_speed_leaves_out_pauses():
    meter = SpeedMeter()
    for now in (0.0, 0.1, 0.2, 60.0, 60.1):
        speed = meter.shown(0.05, now)
    assert speed.milliseconds == pytest.approx(50) and speed.fps == pytest.approx(10)
