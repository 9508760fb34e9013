"""Join the faces of each person in a video into tracks. Times are in seconds, not frames.

A face joins the track that it overlaps (as in Bochinski et al., "High-Speed Tracking-by-Detection
Without Using Image Information", AVSS 2017); where people meet, it joins the most similar track.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FRAMES_UNSEEN = 3  # scored frames that a face may be missing, at any distance in time
LIKENESS_FIRST = 0.1  # weight of the overlap; two people differ by more than this in likeness


@dataclass
class Last:
    """The last face of a track.

    Attributes:
        number: number of the track
        frame: index of the scored frame, and its time in seconds
        box: x, y, width, height in pixels
        speed: pixels per second for the four values of the box; a box keeps its size
        look: colour histogram, see faces.measure_look
    """

    number: int
    frame: int
    seconds: float
    box: np.ndarray
    speed: np.ndarray
    look: np.ndarray


def join_tracks(
    seconds: np.ndarray,
    boxes: np.ndarray,
    looks: np.ndarray,
    frames: np.ndarray | None = None,
    *,
    least_overlap: float,
    least_likeness: float,
    longest_gap: float,
) -> np.ndarray:
    """Return the track number of each face, from 1 by first appearance: int (n,).

    A face can join a track if it resembles the track's last face and overlaps this face's box, or
    the box predicted from its speed. If several pairs are possible, all faces of a frame are
    assigned together, mainly by likeness, so that people who cross keep their tracks.

    Args:
        seconds: time of each face's frame, in rising order (n,)
        boxes: x, y, width and height in pixels (n, 4)
        looks: colour histograms, see faces.measure_look (n, k)
        frames: index of each face's frame among all scored frames (n,), to count frames without the
            face; None: every scored frame has a face
        least_overlap: minimum intersection over union of two boxes in one track, 0 to 1
        least_likeness: minimum likeness of two faces in one track, 0 to 1
        longest_gap: seconds that a face may be missing; it may always be missing in up to
            FRAMES_UNSEEN scored frames
    """
    numbers = np.zeros(len(seconds), int)
    boxes, looks = np.asarray(boxes, float).reshape(-1, 4), np.asarray(looks, float)
    if frames is None:
        frames = np.unique(seconds, return_inverse=True)[1]
    tracks: list[Last] = []
    count = 0
    for frame in np.unique(frames):
        found = np.flatnonzero(frames == frame)
        now = float(seconds[found[0]])
        tracks = [
            track
            for track in tracks
            if now - track.seconds <= longest_gap + 1e-6 or frame - track.frame <= FRAMES_UNSEEN + 1
        ]
        worth = np.zeros((len(found), len(tracks)))
        for column, track in enumerate(tracks):
            moved = track.box + track.speed * (now - track.seconds)
            ahead = measure_overlap(boxes[found], moved)
            overlap = np.maximum(ahead, measure_overlap(boxes[found], track.box))
            likeness = looks[found] @ track.look
            may = (overlap >= least_overlap) & (likeness >= least_likeness)
            worth[:, column] = may * (likeness + LIKENESS_FIRST * ahead)
        joined = dict(assign(worth))
        for row, index in enumerate(found):
            box, look = boxes[index], looks[index]
            if row in joined:
                last = tracks[joined[row]]
                speed = (box - last.box) * (1, 1, 0, 0) / max(now - last.seconds, 1e-6)
                last.frame, last.seconds = int(frame), now
                last.box, last.speed, last.look = box, speed, look
            else:
                count += 1
                last = Last(count, int(frame), now, box, np.zeros(4), look)
                tracks.append(last)
            numbers[index] = last.number
    return numbers


def measure_overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes (n, 4) and a box; x, y, width, height."""
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], box[:2] + box[2:])
    shared = (high - low).clip(0).prod(axis=1)
    return shared / (boxes[:, 2:].prod(axis=1) + box[2:].prod() - shared)


def assign(worth: np.ndarray) -> list[tuple[int, int]]:
    """Pair rows and columns so that the sum of their worth is maximal.

    The Hungarian method with potentials, row by row (Kuhn, "The Hungarian Method for the Assignment
    Problem", 1955), like scipy.optimize.linear_sum_assignment, but without SciPy.

    Args:
        worth: (rows, columns), 0 for pairs that are not allowed, positive for the others

    Returns:
        pairs of row and column with positive worth, sorted by row
    """
    if worth.shape[0] > worth.shape[1]:
        return sorted((row, column) for column, row in assign(worth.T))
    rows, columns = worth.shape
    cost = np.zeros((rows + 1, columns + 1))
    cost[1:, 1:] = -worth
    of_row, of_column = np.zeros(rows + 1), np.zeros(columns + 1)  # the potentials
    owner = np.zeros(columns + 1, int)  # the row of each column; 0: not assigned
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        least, came_from = np.full(columns + 1, np.inf), np.zeros(columns + 1, int)
        used = np.zeros(columns + 1, bool)
        while owner[column]:
            used[column] = True
            slack = cost[owner[column]] - of_row[owner[column]] - of_column
            better = ~used & (slack < least)
            better[0] = False
            least[better], came_from[better] = slack[better], column
            free = np.where(used, np.inf, least)
            free[0] = np.inf
            nearest = int(free.argmin())
            step = free[nearest]
            of_row[owner[used]] += step
            of_column[used] -= step
            least[~used] -= step
            column = nearest
        while column:  # reverse the path
            owner[column], column = owner[came_from[column]], came_from[column]
    pairs = ((int(owner[column]) - 1, column - 1) for column in range(1, columns + 1))
    return sorted((row, column) for row, column in pairs if row >= 0 and worth[row, column] > 0)
