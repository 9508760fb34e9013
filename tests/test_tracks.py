"""Test tracks: people keep their tracks through gaps, uneven times and crossings."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect.tracks import assign, join_tracks, measure_overlap

RULES = {"least_overlap": 0.2, "least_likeness": 0.7, "longest_gap": 2.0}


def join(rows: list[tuple[float, float]], looks: list[list[float]] | None = None) -> list[int]:
    """Join faces of 100 x 100 pixels; a row has the time in seconds and the left edge."""
    seconds = np.array([row[0] for row in rows])
    boxes = np.array([(row[1], 0, 100, 100) for row in rows], float).reshape(-1, 4)
    alike = np.ones((len(rows), 1)) if looks is None else np.array(looks)
    return join_tracks(seconds, boxes, alike, **RULES).tolist()


@pytest.mark.parametrize(
    ("rows", "tracks"),
    [
        ([(0, 0), (0.5, 10), (1, 20)], [1, 1, 1]),
        ([(0, 0), (0.5, 90), (1, 180)], [1, 2, 3]),  # too far apart
        ([(0, 0), (0, 300), (0.5, 310), (0.5, 5)], [1, 2, 2, 1]),  # in any order within a frame
        ([(0, 0), (0, 30), (0.5, 25), (0.5, 55)], [1, 2, 1, 2]),  # all together, not best first
        ([(0, 0), (2, 0)], [1, 1]),
        ([(0, 0), (9, 0), (18, 0)], [1, 1, 1]),  # a time lapse: no scored frames in between
        ([], []),
    ],
)
def test_faces_are_joined_by_overlap(rows: list[tuple[float, float]], tracks: list[int]) -> None:
    assert join(rows) == tracks


@pytest.mark.parametrize(("unseen", "number"), [(1.5, 1), (2.5, 3)])
def test_a_gap_is_measured_in_seconds(unseen: float, number: int) -> None:
    """The many scored frames in between show another face."""
    others = [(round(0.1 * at, 1), 500) for at in range(1, round(unseen / 0.1))]
    assert join([(0, 0), *others, (unseen, 0)])[-1] == number


def test_a_gap_is_never_less_than_a_few_scored_frames() -> None:
    """In a slow video, four scored frames can span many seconds."""
    times = np.array([0.0, 40.0])
    boxes, looks = np.array([[0, 0, 100, 100.0]] * 2), np.ones((2, 1))
    near = join_tracks(times, boxes, looks, np.array([0, 4]), **RULES)
    far = join_tracks(times, boxes, looks, np.array([0, 5]), **RULES)
    assert near.tolist() == [1, 1] and far.tolist() == [1, 2]


def test_people_who_cross_keep_their_tracks() -> None:
    """Two people walk through each other; only their looks differ."""
    rows, looks = [], []
    for at in range(9):
        rows += [(at / 2, 30 * at), (at / 2, 240 - 30 * at)]
        looks += [[1, 0.2], [0.2, 1]]
    looks = [list(np.array(look) / np.linalg.norm(look)) for look in looks]
    assert join(rows, looks) == [1, 2] * 9


def test_uneven_times_keep_the_speed_of_a_face() -> None:
    """Half is sampled at ten frames per second and half at two; the speed is constant."""
    times = [*np.arange(0, 1, 0.1), *np.arange(1, 4, 0.5)]
    assert set(join([(time, 160 * time) for time in times])) == {1}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400)), max_size=25))
@settings(deadline=None)
def test_no_track_has_two_faces_of_a_frame(rows: list[tuple[int, int]]) -> None:
    rows = sorted((at / 2, x) for at, x in rows)
    tracks = join(rows)
    assert len({(row[0], track) for row, track in zip(rows, tracks, strict=True)}) == len(rows)
    assert sorted(set(tracks)) == list(range(1, len(set(tracks)) + 1))


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=200)
def test_pairs_are_as_good_as_pairs_of_scipy(rows: int, columns: int, seed: int) -> None:
    drawn = np.random.default_rng(seed)
    worth = drawn.random((rows, columns)) * (drawn.random((rows, columns)) < 0.7)
    pairs = assign(worth)
    best = worth[scipy.optimize.linear_sum_assignment(-worth)].sum()
    assert sum(worth[pair] for pair in pairs) == pytest.approx(best)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert all(worth[pair] > 0 for pair in pairs)


def test_overlap_is_intersection_over_union() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [20, 0, 5, 5]], float)
    assert measure_overlap(boxes, boxes[0]) == pytest.approx([1, 1 / 3, 0])
