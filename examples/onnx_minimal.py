"""Score one face in a picture with only the ONNX file, onnxruntime and OpenCV.

    python examples/onnx_minimal.py photo.png X Y WIDTH HEIGHT

X, Y, WIDTH and HEIGHT are the face's box from MTCNN; docs/onnx.md explains how to cut a crop.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

MODEL = Path(__file__).parents[1] / "weights" / "deepfake-detector.onnx"
session = onnxruntime.InferenceSession(MODEL)
rule = json.loads(session.get_modelmeta().custom_metadata_map["decision"])
x, y, width, height = map(int, sys.argv[2:])
side = round(max(width, height) * (1 + 2 * rule["margin"]))  # a square around the box
left, top = round(x + (width - side) / 2), round(y + (height - side) / 2)
frame = cv2.imread(sys.argv[1])  # BGR, all its pixels
crop = frame[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
size = rule["image_size"]
shrinks = min(crop.shape[:2]) > size
crop = cv2.resize(crop, (size, size), interpolation=3 if shrinks else 1)  # by area, or linear
images = crop[np.newaxis, ..., ::-1].astype(np.float32)  # RGB, 0 to 255
p_fake = session.run(["p_fake"], {"rgb_0_to_255": images})[0][0, 0]
print(f"{p_fake:.4f}")
