"""Write the copy of a video or picture with a box on every face, for 06-detect-deepfake.py.

FFmpeg encodes it, as H.264 that browsers play, and copies the sound.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pandas as pd
from tqdm import tqdm

from deepfake_detect import inputs as media
from deepfake_detect.inputs import spell

convert = importlib.import_module("01-convert-video-to-image")

PIPE_BYTES = 2**20  # of the pipe to FFmpeg, on Linux; through the usual 64 KiB it takes longer
AHEAD = 4  # frames that are decoded while those before are drawn on


def write_marked_picture(result: dict, most_pixels: int, path: Path) -> None:
    """Write the picture with its faces marked."""
    picture = media.read_picture(Path(result["file"]), most_pixels, [])
    mark_faces(picture, find_boxes(arrange_tracks(result), 0))
    path.write_bytes(cv2.imencode(".png", picture)[1])


def mark_faces(frame: np.ndarray, faces: Iterable[tuple[int, list[float]]]) -> None:
    """Draw a box, its number and p_fake on each face (see find_boxes) into a frame, BGR uint8."""
    line = max(2, round(frame.shape[1] / 400))
    font, size = cv2.FONT_HERSHEY_SIMPLEX, line / 3
    for number, (x, y, width, height, p_fake) in faces:
        color = 0, int(255 * min(1, 2 - 2 * p_fake)), int(255 * min(1, 2 * p_fake))  # green to red
        left, top = round(x), round(y)
        cv2.rectangle(frame, (left, top), (round(x + width), round(y + height)), color, line)
        text = f"{number}: {p_fake:.2f}"
        (text_width, text_height), _ = cv2.getTextSize(text, font, size, line)
        top = max(0, top - text_height - 3 * line)
        below = left + text_width + 2 * line, top + text_height + 3 * line
        cv2.rectangle(frame, (left, top), below, color, cv2.FILLED)
        at = left + line, top + text_height + line
        cv2.putText(frame, text, at, font, size, (0, 0, 0), max(1, line // 2))


def find_boxes(tracks: dict[int, np.ndarray], frame: int) -> Iterator[tuple[int, list[float]]]:
    """Yield number and x, y, width, height and p_fake of the tracks in a frame.

    Between two frames that were scored they are interpolated.
    """
    for number, (frames, *values) in tracks.items():
        if frames[0] <= frame <= frames[-1]:
            yield number, [np.interp(frame, frames, of) for of in values]


def arrange_tracks(result: dict) -> dict[int, np.ndarray]:
    """Arrange the faces of each track for drawing: frame, x, y, width, height, p_fake (6, n)."""
    sides = ["frame", "x", "y", "width", "height", "p_fake"]
    return {
        track["track"]: pd.DataFrame(track["faces"])[sides].to_numpy(float).T
        for track in result["tracks"]
    }


def write_marked_video(result: dict, path: Path) -> None:
    """Write every frame of the video, marked, and its sound where ffmpeg can copy that.

    Raises:
        ValueError, OSError: the video cannot be read any more, or ffmpeg does not write it.
    """
    try:
        encode_video(result, path, with_sound=True)
    except OSError as error:
        encode_video(result, path, with_sound=False)
        result["notes"].append(f"the marked copy has no sound: {error}")


def encode_video(result: dict, path: Path, with_sound: bool) -> None:
    """Write the marked video as H.264 that browsers play.

    It plays at the average frame rate, so the sound of one of varying rate may drift a little.

    Raises:
        ValueError, OSError: the video cannot be read any more, or ffmpeg does not write it.
    """
    source, size = Path(result["file"]), (result["width"], result["height"])
    media.check_file(source)
    video, tracks = convert.open_video(source), arrange_tracks(result)
    rate = video.get(cv2.CAP_PROP_FPS)
    rate = rate if 1 <= rate <= 240 else 25  # what players can do; some headers know nothing
    odd = size[0] % 2, size[1] % 2  # H.264 has a colour for two by two pixels
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo"]
    command += ["-pix_fmt", "yuv420p", "-s", f"{size[0] + odd[0]}x{size[1] + odd[1]}"]
    command += ["-r", str(rate), "-i", "-"]
    if with_sound:  # as it is where browsers play it
        command += ["-protocol_whitelist", "file", "-format_whitelist", convert.CONTAINERS]
        said = convert.run_ffmpeg(source, "-v", "info").stderr.decode(errors="replace")
        codec = "copy" if set(re.findall(r"Audio: (\w+)", said)) == {"aac"} else "aac"
        command += ["-i", f"file:{source.absolute()}", "-map", "0:v", "-map", "1:a?", "-c:a", codec]
    # At this preset the file is twice as large as at "veryfast", and there in 40 % of the time.
    # One quantiser throughout takes a quarter less time than the search for each frame's, and looks
    # as good (SSIM 0.993 for 0.994).
    # A player that is led to a moment, such as by a point in the report, decodes 60 frames at most.
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "22", "-g", "60"]
    command += ["-movflags", "+faststart", f"file:{path.absolute()}"]
    # Its messages go to a file: a pipe, which nobody reads meanwhile, would fill and stop both.
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=messages, pipesize=PIPE_BYTES
        ) as encoder,
    ):
        try:
            frames = media.read_ahead(convert.read_frames(video, None, None), AHEAD)
            total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None
            bar = tqdm(frames, spell(source.name), total, unit="frame", leave=False)
            for index, _, _, frame in bar:
                if frame is not None:
                    mark_faces(frame, find_boxes(tracks, index))
                    if frame.shape[1::-1] != size:
                        frame = cv2.resize(frame, size)
                    if any(odd):
                        frame = cv2.copyMakeBorder(frame, 0, odd[1], 0, odd[0], cv2.BORDER_CONSTANT)
                    # OpenCV's conversion takes a third of the time of FFmpeg's, for half the bytes.
                    encoder.stdin.write(cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420).data)
            encoder.stdin.close()
        except BrokenPipeError:  # ffmpeg has ended, and says why
            with suppress(BrokenPipeError):
                encoder.stdin.close()  # it would be tried again at the end of `with`
        if encoder.wait():
            messages.seek(0)
            said = messages.read().decode(errors="replace").strip().splitlines()
            raise OSError(said[-1] if said else f"ffmpeg was ended ({encoder.returncode})")
