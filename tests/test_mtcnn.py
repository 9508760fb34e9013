"""MTCNN on OpenCV finds the same faces as the mtcnn package with TensorFlow."""

import cv2
import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from frames import FACES, FRAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from mtcnn import MTCNN
from mtcnn.stages import StageONet, StagePNet, StageRNet
from mtcnn.utils.bboxes import smart_nms_from_bboxes
from mtcnn.utils.images import build_scale_pyramid, extract_patches

from deepfake_detect import mtcnn
from deepfake_detect.mtcnn import FaceDetector

PORTRAIT = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)


@pytest.fixture(scope="module")
def package() -> MTCNN:
    return MTCNN()


def find_with(package: MTCNN, frame: np.ndarray) -> list[tuple[tuple, float]]:
    found = package.detect_faces(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    faces = [(tuple(face["box"]), float(face["confidence"])) for face in found]
    return sorted(faces, key=lambda face: -face[1])


def test_faces_match_the_package(package: MTCNN) -> None:
    for name, frame, faces in zip(
        FRAMES, FRAMES.values(), FaceDetector().detect(FRAMES.values()), strict=True
    ):
        assert sum(face.confidence >= 0.95 for face in faces) == FACES[name], name
        theirs = find_with(package, frame) if name != "tiny frame" else []
        assert [face.box for face in faces] == [box for box, _ in theirs], name
        for face, (_, confidence) in zip(faces, theirs, strict=True):
            assert face.confidence == pytest.approx(confidence, abs=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_faces_match_the_package_in_odd_frame_sizes(package: MTCNN, seed: int) -> None:
    """Boxes of three portraits of random sizes on noise are within one pixel of the package."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(150, 420, 2)
    frame = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
    for _ in range(3):
        side = int(rng.integers(40, min(height, width)))
        top, left = rng.integers(0, (height - side + 1, width - side + 1))
        frame[top : top + side, left : left + side] = cv2.resize(PORTRAIT, (side, side))
    (faces,), theirs = FaceDetector().detect([frame]), find_with(package, frame)
    assert len(faces) == len(theirs)
    for face, (box, confidence) in zip(faces, theirs, strict=True):
        assert np.abs(np.subtract(face.box, box)).max() <= 1
        assert face.confidence == pytest.approx(confidence, abs=1e-3)


@pytest.mark.parametrize("size", [(12, 12), (13, 40), (57, 38), (64, 64), (101, 77), (40, 12)])
def test_p_net_matches_the_package(size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (3, *size, 3)).astype(np.float32)
    offsets, probabilities = StagePNet()._model(tf.constant(images))
    cells = mtcnn.run_network("pnet", images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(cells[:, :4], np.moveaxis(offsets, 3, 1), atol=1e-5)
    np.testing.assert_allclose(mtcnn.expit(cells[:, 4]), probabilities[..., 1], atol=1e-5)


@pytest.mark.parametrize(("name", "stage"), [("rnet", StageRNet), ("onet", StageONet)])
def test_r_net_and_o_net_match_the_package(name: str, stage: type) -> None:
    side = mtcnn.SIDES[name]
    patches = np.random.default_rng(0).uniform(-1, 1, (5, side, side, 3)).astype(np.float32)
    offsets, *_, probabilities = stage()._model(tf.constant(patches))
    output = mtcnn.run_network(name, patches.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(output[:, :4], offsets, atol=1e-5)
    np.testing.assert_allclose(mtcnn.expit(output[:, 4]), probabilities[:, 1], atol=1e-5)


@given(st.integers(0, 999), st.sampled_from([24, 48]))
@settings(max_examples=30)
def test_patches_match_the_package(seed: int, side: int) -> None:
    """Test boxes inside the image, across its edges and outside."""
    rng = np.random.default_rng(seed)
    smooth = rng.uniform(-1, 1, (2, 6, 7, 3)).astype(np.float32)
    images = [cv2.resize(image, (90, 70), interpolation=cv2.INTER_CUBIC) for image in smooth]
    low, sides = rng.uniform(-40, 100, (9, 2)), rng.uniform(3, 80, (9, 1))
    boxes = np.column_stack((rng.integers(0, 2, 9), low, low + sides, np.ones(9)))
    theirs = extract_patches(tf.constant(np.stack(images)), boxes, (side, side)).numpy()
    ours = mtcnn.cut_patches(images, boxes, side).transpose(0, 2, 3, 1)
    different = np.abs(ours - theirs).max(axis=3) > 1e-3
    # Pixels exactly on the edge may count as inside or outside.
    edges = [different[:, [0, -1]].sum(), different[:, :, [0, -1]].sum()]
    assert different.sum() <= sum(edges) <= 2 * side


@given(st.integers(0, 999), st.floats(0.1, 0.9), st.booleans())
def test_suppression_matches_the_package(seed: int, threshold: float, by_smaller: bool) -> None:
    rng = np.random.default_rng(seed)
    low, sides = rng.uniform(0, 50, (40, 2)), rng.uniform(5, 40, (40, 2))
    boxes = np.column_stack((rng.integers(0, 3, 40), low, low + sides, rng.permutation(40) / 40))
    method = "min" if by_smaller else "union"
    theirs = smart_nms_from_bboxes(boxes, threshold, method=method)
    np.testing.assert_array_equal(mtcnn.suppress(boxes, threshold, by_smaller), theirs)


def test_suppression_in_blocks_gives_the_same_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    low, sides = rng.uniform(0, 200, (300, 2)), rng.uniform(5, 40, (300, 2))
    boxes = np.column_stack((np.zeros(300), low, low + sides, rng.permutation(300) / 300))
    at_once = mtcnn.suppress(boxes, 0.3)
    monkeypatch.setattr(mtcnn, "BOXES_AT_ONCE", 7)
    np.testing.assert_array_equal(mtcnn.suppress(boxes, 0.3), at_once)


@given(st.integers(12, 2000), st.integers(12, 2000), st.integers(12, 400))
def test_scales_match_the_package(height: int, width: int, min_face_size: int) -> None:
    package = build_scale_pyramid(width, height, 20, 0.709)
    assert mtcnn.list_scales(height, width, 20, 0.709) == pytest.approx(package)
    ours = mtcnn.list_scales(height, width, min_face_size, 0.709)
    smallest = [int(min(height, width) * scale) for scale in ours[-1:]]
    assert all(12 <= size <= 17 for size in smallest)


@given(st.integers(0, 999), st.tuples(*[st.integers(12, 300)] * 2), st.floats(0.04, 1))
@settings(max_examples=30)
def test_images_are_averaged_as_in_opencv(seed: int, size: tuple[int, int], scale: float) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = mtcnn.normalise(frame)
    rows, columns = max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
    target = np.empty((3, rows, columns), np.float32)
    mtcnn.shrink(image, mtcnn.sum_rows(image), target)
    expected = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(target, expected.transpose(2, 0, 1), atol=2e-6)


@pytest.mark.parametrize("strip", [100, 3000, 20_000])
def test_strips_give_the_same_boxes(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = PORTRAIT[:301, :217], PORTRAIT[200:501, 200:417]
    images = np.stack([mtcnn.normalise(frame) for frame in frames]).transpose(0, 3, 1, 2)
    whole = mtcnn.scan(images, 0.5)
    monkeypatch.setattr(mtcnn, "STRIP_PIXELS", strip)
    strips = mtcnn.scan(images, 0.5)
    assert len(whole) == len(strips) > 5
    order = [np.lexsort(boxes[:, [1, 2, 0]].T) for boxes in (whole, strips)]
    np.testing.assert_allclose(strips[order[1]], whole[order[0]], atol=1e-3)


def test_faces_do_not_depend_on_the_batch() -> None:
    detector = FaceDetector()
    together = detector.detect(list(FRAMES.values()) * 2)
    for frame, first, second in zip(FRAMES.values(), together, together[7:], strict=False):
        (alone,) = detector.detect([frame])
        assert [face.box for face in alone] == [face.box for face in first]
        assert [face.box for face in alone] == [face.box for face in second]


def test_larger_min_face_size_keeps_large_faces() -> None:
    found = dict(zip(FRAMES, FaceDetector(80).detect(FRAMES.values()), strict=True))
    assert len(found["one"]) == 1 and len(found["small"]) == 0


def test_lower_thresholds_find_more_faces() -> None:
    frames = [FRAMES["two"], PORTRAIT]
    usual = FaceDetector().detect(frames)
    unsure = FaceDetector(thresholds=(0.3, 0.3, 0.05)).detect(frames)
    assert sum(map(len, unsure)) > sum(map(len, usual))
    for more, faces in zip(unsure, usual, strict=True):
        confidences = [face.confidence for face in more]
        assert confidences == sorted(confidences, reverse=True)
        assert min(confidences, default=1) > 0.05 and len(more) >= len(faces)
