"""Save the frames of the videos as images, and write down what each video is.

    python 01-convert-video-to-image.py
    python 01-convert-video-to-image.py --frames-per-second 1
    python 01-convert-video-to-image.py --videos-dir my-videos --frames-per-video 30

Reads   videos/                                    any mix of the data sets below, at any depth
        data-sets.toml                             what they look like; add your own there
Writes  frames/<video_id>/<video_id>-000042.png    frame 42 of the video, resized by its width
        frames/videos.csv                          one row a video: what it is, how it went
        frames/left-out.csv                        each file that was not converted, and why
Next    02-crop-faces-with-mtcnn.py

FaceForensics++, Google DFD, Celeb-DF (v1, v2), DFDC (its preview and test sets too),
DeepFake-TIMIT with VidTIMIT, and plain `real/` and `fake/` folders are told apart by their own
folder and file names, or by the lists that come with them; the names of outer folders do not
matter. A folder directly below real/ or fake/ counts as one person: real/anna/1.mp4,
real/anna/2.mp4 and fake/anna/1.mp4 are all of anna. A file that fits nothing is left out and
written down: no label is guessed.

Frames are read one after another until none comes: the frame count and the rate that a file
claims are not believed. A run that was stopped goes on where it was. A video that was changed, or
whose settings were, is converted again, and the frames of one that is gone are deleted.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from hashlib import sha1
from pathlib import Path
from uuid import uuid4

import av
import cv2
import filelock
import imageio_ffmpeg
import numpy as np
import pandas as pd
import pebble
from tqdm import tqdm

from deepfake_detect import cli
from deepfake_detect import datasets as catalogue
from deepfake_detect import files as folders
from deepfake_detect.faces import WidthRule, resize_by_width
from deepfake_detect.files import claim_folder, write_whole
from deepfake_detect.pool import make_processes, open_pool, read_part, share_folder

# --------------------------------------------------------------------------------------------------
# folders
VIDEOS_DIR = Path("videos")  # the data sets, as they were unpacked
FRAMES_DIR = Path("frames")  # gets one folder a video
DATA_SETS = Path(__file__).with_name("data-sets.toml")  # what the data sets look like on disk
# sampling
FRAMES_PER_SECOND = None  # None: every frame; else so many of each second, evenly in time
FRAMES_PER_VIDEO = None  # None: every frame; else so many of each video, spread over its length
# images
WIDTH_RULE = ((300, 2.0), (1001, 1.0), (1901, 0.5), (math.inf, 0.33))  # below so many pixels: times
FULL_FRAMES = False  # True: frames keep their size, and 02 cuts faces with all their pixels
PNG_COMPRESSION = 1  # 0 to 9, all lossless: 1 writes 1.8 times as fast as 3, files 7 % larger
# machine
WORKERS = os.cpu_count() or 1  # videos converted side by side, one process each
SECONDS_PER_VIDEO = 3600  # a video that takes longer is given up and named; None: no limit
SCHEDULER = None  # "tcp://host:8786": the workers of that Dask cluster do it, on the same folders
PART = None  # "3/10": every tenth video from the third; a plain run, at last, writes the tables
# --------------------------------------------------------------------------------------------------

# Containers that FFmpeg may open. Playlists are excluded: they can point at other files.
CONTAINERS = "avi,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpegts,mpeg,flv,asf,ogg"
COVERS = {b"MJPG": "mjpeg", b"MPNG": "png"}  # codecs of pictures: OpenCV's name, FFmpeg's name
DEINTERLACE = "bwdif=send_frame:deint=interlaced"  # of each frame one with lines of one moment
FRAME_SECONDS = 1 / 25  # of a frame without a usable time stamp, and of a still
LONGEST_VIDEO = 864_000  # seconds, 10 days; a time stamp beyond that is not believed
MISSING_FRAMES = 0.02  # share of the frames claimed that may lack before we look for the reason
SAMPLE = 4096  # bytes at the start, middle and end of a file that tell it from another
SHOWN = 10  # videos of each kind of trouble that are printed; the tables have all
CONVERSION = ["width", "height", "fps", "frames", "status", "reason"]


def main(
    videos_dir: Path = VIDEOS_DIR,
    frames_dir: Path = FRAMES_DIR,
    data_sets: Path = DATA_SETS,
    frames_per_second: float | None = FRAMES_PER_SECOND,
    frames_per_video: int | None = FRAMES_PER_VIDEO,
    width_rule: WidthRule = WIDTH_RULE,
    full_frames: bool = FULL_FRAMES,
    png_compression: int = PNG_COMPRESSION,
    workers: int = WORKERS,
    seconds_per_video: float | None = SECONDS_PER_VIDEO,
    scheduler: str | None = SCHEDULER,
    part: str | None = PART,
) -> pd.DataFrame:
    """Save the frames of the videos as images, and write down what each video is.

    Args:
        videos_dir: the data sets, as they were unpacked
        frames_dir: gets one folder a video, and videos.csv
        data_sets: the table of what the data sets look like on disk
        frames_per_second: so many frames of each second; None is every frame
        frames_per_video: so many frames of each video, spread evenly; None is every frame
        width_rule: pairs of a width and a factor: frames below that width are resized by the factor
        full_frames: frames keep their size, whatever the rule
        png_compression: 0 (fast, large) to 9 (slow, small); lossless all
        workers: videos converted side by side
        seconds_per_video: a video that takes longer is given up; None is no limit
        scheduler: address of a Dask cluster that sees the same folders; None is this machine
        part: 3/10 is every tenth video from the third, and no tables; None is all of them

    Returns:
        The table videos.csv.

    Raises:
        ValueError: there is no video to convert, a number makes no sense, or frames_dir holds what
            this script did not make.
        OSError: frames_dir cannot be written to, such as when the disk is full.
    """
    settings = dict(locals())
    for name in ("frames_per_second", "frames_per_video", "workers", "seconds_per_video"):
        if settings[name] is not None and not 0 < settings[name] < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {settings[name]}; give a number above 0.")
    if frames_per_second is not None and frames_per_video is not None:
        raise ValueError("Give --frames-per-second or --frames-per-video, not both.")
    if not width_rule or width_rule[-1][0] != math.inf or not min(map(min, width_rule)) > 0:
        raise ValueError("--width-rule: give pairs of numbers above 0, the last as: inf FACTOR.")

    # What each video is follows from its path or a list; no file is decoded for it.
    videos, left_out = catalogue.make_catalogue(videos_dir, *catalogue.read_data_sets(data_sets))

    # From here on we write, as the only run in this folder. A folder of another kind is refused.
    lock = filelock.FileLock(frames_dir / ".lock", timeout=0)
    if part:
        lock, videos = share_folder(frames_dir, part), videos.iloc[read_part(part)]
    with suppress(FileNotFoundError):  # another part, begun at this moment, was faster
        claim_folder(frames_dir, "--frames-dir", Path(__file__).name)
    with lock:
        try:
            conversions = convert_videos(videos, frames_dir, settings)
            table = videos.join(conversions, on="video_id")
            if part:
                print(f"part {part} is done; after all of them a plain run writes the tables")
                return table
            for name, content in (("left-out.csv", left_out), ("videos.csv", table)):
                save = functools.partial(content.to_csv, index=False, errors="backslashreplace")
                write_whole(frames_dir / name, save)
        except OSError as error:
            raise OSError(
                f"{frames_dir}: stopped by an error ({error}); what is finished is kept, and the "
                "same command goes on once that is mended."
            ) from error
    print_summary(table, left_out, frames_dir)
    if not table["frames"].any():
        raise ValueError(f"{videos_dir}: not one frame could be read from the videos in it.")
    return table


# --- Conversion -----------------------------------------------------------------------------------


def convert_videos(videos: pd.DataFrame, frames_dir: Path, settings: dict) -> pd.DataFrame:
    """Convert the videos of the catalogue, several side by side, but for those already done.

    Returns:
        The columns of CONVERSION, one row a video, by video_id.

    Raises:
        ValueError: a folder that a video is to get was not made by this script.
        OSError: the frames cannot be written.
    """
    apart = ["videos_dir", "frames_dir", "data_sets", "workers", "seconds_per_video"]
    apart += ["scheduler", "part"]
    made_with = {name: value for name, value in settings.items() if name not in apart}
    own, conversions, jobs = find_own_folders(frames_dir), {}, []
    for video_id, source in zip(videos["video_id"], videos["source"], strict=True):
        path, target = settings["videos_dir"] / source, frames_dir / video_id
        if os.path.lexists(target) and video_id not in own:
            raise ValueError(f"{target}: this script did not make it; move it away.")
        checkpoint = note_inputs(catalogue.list_files(path), made_with)
        if row := finished_conversion(target, checkpoint):
            conversions[video_id] = row
        else:
            jobs.append((path.absolute(), target.absolute(), checkpoint, *made_with.values()))
    if conversions:
        print(f"{len(conversions):,} of {len(videos):,} videos were done", flush=True)

    # videos.csv may name frames that now change, so it goes first; the new one comes last.
    (frames_dir / "videos.csv").unlink(missing_ok=True)
    if settings["part"]:
        own &= set(videos["video_id"])
    with folders.open_run(frames_dir, settings["scheduler"], settings["part"]) as unfinished:
        for name in own - set(conversions):
            folders.delete_folder(frames_dir / name, unfinished / name)
        if not settings["part"]:
            rule = json.dumps({"frames": "full" if settings["full_frames"] else "reduced"})
            write_whole(frames_dir / "crop-rule.json", lambda path: path.write_text(rule))

        # The longest is taken first, so that no process ends with one all alone.
        jobs.sort(key=lambda job: (job[2]["bytes"], job[1]), reverse=True)
        limits = settings["workers"], settings["seconds_per_video"], settings["scheduler"]
        conversions |= convert_side_by_side(unfinished, jobs, *limits)
    return pd.DataFrame.from_dict(conversions, orient="index", columns=CONVERSION)


def convert_video(
    unfinished: Path,
    video_path: Path,
    target: Path,
    checkpoint: dict,
    frames_per_second: float | None,
    frames_per_video: int | None,
    width_rule: WidthRule,
    full_frames: bool,
    png_compression: int,
) -> dict:
    """Write the frames of one video into the folder `target`, which appears when all are there.

    Until then they are below `unfinished`, in a folder of their own.

    Returns:
        The columns of CONVERSION; they also go into target/video.json with `checkpoint`. status is
        ok, partial (some frames could not be had) or failed (none could); reason says why.

    Raises:
        OSError: the frames cannot be written. What is wrong with the video goes into the row.
    """
    folder = unfinished / f"{target.name}-{uuid4().hex}"  # a worker that was lost may have left one
    folder.mkdir()
    row = {"width": "", "height": "", "fps": "", "frames": 0, "status": "ok", "reason": ""}
    last = claimed = 0.0
    grabbed = undecoded = png_bytes = 0
    try:
        # To spread frames over a video, its frames are counted first, without converting them.
        video, chosen = open_video(video_path), None
        if frames_per_video:
            chosen = choose_evenly(sum(1 for _ in grab_frames(video)), frames_per_video)
            video = open_video(video_path)
        claimed = video.get(cv2.CAP_PROP_FRAME_COUNT)
        for index, seconds, wanted, frame in read_frames(video, frames_per_second, chosen):
            last, grabbed = seconds, index + 1
            if frame is None:
                undecoded += wanted
                continue
            if row["frames"] == 0:
                row |= {"width": frame.shape[1], "height": frame.shape[0]}
            image = frame if full_frames else resize_by_width(frame, width_rule)
            path = folder / f"{target.name}-{index:06d}.png"
            png_bytes += write_png(image, path, png_compression)
            row["frames"] += 1
        # All that could be read is written. Say what could not be read.
        if undecoded:
            row |= {"status": "partial", "reason": f"{undecoded:,} frames do not decode"}
        elif grabbed < (1 - MISSING_FRAMES) * claimed - 2 and lacks_frames(video_path):
            reason = f"ends after {grabbed:,} of the {claimed:,.0f} frames that it claims"
            row |= {"status": "partial", "reason": reason}
    except (ValueError, ArithmeticError, MemoryError, cv2.error, RuntimeError) as error:
        row |= {"status": "partial", "reason": " ".join(str(error).split()) or "too large"}
    if row["frames"] == 0:
        row |= {"status": "failed", "reason": row["reason"] or "no frame of it decodes"}
    if grabbed > 1:
        row["fps"] = round((grabbed - 1) / last, 3)
    side = checkpoint | {"png_bytes": png_bytes, "conversion": row}
    (folder / "video.json").write_text(json.dumps(side, indent=2) + "\n", encoding="utf-8")
    try:
        folder.rename(target)
    except OSError:
        if not finished_conversion(target, checkpoint):  # by a worker that was only thought lost
            raise
    return row


def open_video(path: Path) -> cv2.VideoCapture | Pictures:
    """Open a video for reading one frame after another, turned as its rotation flag says.

    OpenCV cannot decode AV1, takes a cover picture that comes first for the video, and gives noise
    for interlaced frames: such a video is decoded by FFmpeg in a process of its own.

    Raises:
        ValueError: there is no video stream in it that can be decoded.
    """
    if path.is_dir():
        files = catalogue.list_files(path)
        return Pictures(read_stills(files), [1000 * FRAME_SECONDS * n for n in range(len(files))])
    confine_decoder()
    # One decoding thread: the processes side by side use the other cores. An absolute path: FFmpeg
    # would take a name such as http:clip.mp4 for an address. Bytes: not every name is UTF-8.
    name = os.fsencode(path.absolute())
    video = cv2.VideoCapture(name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not video.isOpened():
        raise ValueError("does not open as a video")
    codec = (int(video.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF).to_bytes(4, "little")
    interlaced = is_interlaced(path)
    if interlaced or codec in (b"AV01", *COVERS):
        said = run_ffmpeg(path, "-v", "info").stderr.decode(errors="replace")
        streams = re.findall(r"Stream #0:(\d+).*?: Video: (\w+)", said)
        if interlaced or codec == b"AV01" or len(streams) > 1:
            stream, _ = min(streams, key=lambda stream: stream[1] in COVERS.values())
            filters = ("-vf", DEINTERLACE) if interlaced else ()
            pictures = decode_by_ffmpeg(path, stream, *filters)
            return Pictures(pictures, read_time_stamps(path, stream))
    video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return video


class Pictures:
    """Encoded pictures and the time of each, read as cv2.VideoCapture reads a video."""

    def __init__(self, pictures: Iterator[bytes], milliseconds: list[float]) -> None:
        self.pictures, self.milliseconds = pictures, milliseconds
        self.picture, self.position = b"", -1

    def grab(self) -> bool:
        self.picture, self.position = next(self.pictures, None), self.position + 1
        return self.picture is not None

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        data = np.frombuffer(self.picture, np.uint8)
        frame = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        return frame is not None, frame

    def get(self, what: int) -> float:
        times = self.milliseconds
        if what == cv2.CAP_PROP_POS_MSEC:
            return times[self.position] if self.position < len(times) else 0
        if what == cv2.CAP_PROP_FPS:
            seconds = (max(times, default=0) - min(times, default=0)) / 1000
            return (len(times) - 1) / seconds if seconds else 0
        return len(times)


def read_stills(paths: list[Path]) -> Iterator[bytes]:
    """Read pictures one after another; one that cannot be read is empty, and costs only itself."""
    for path in paths:
        try:
            yield path.read_bytes()
        except OSError:
            yield b""


def confine_decoder() -> None:
    """Let OpenCV's FFmpeg open files alone, of known containers, and say nothing by itself.

    It reads that in the environment, whose change can crash a thread that reads there: 06 calls
    this before it has any, and to call it again changes nothing.
    """
    options = f"format_whitelist;{CONTAINERS}|protocol_whitelist;file"
    wanted = {"OPENCV_FFMPEG_CAPTURE_OPTIONS": options, "OPENCV_FFMPEG_LOGLEVEL": "-8"}
    if not wanted.items() <= os.environ.items():
        os.environ |= wanted


def is_interlaced(path: Path) -> bool:
    """Tell whether a video's first frame has two fields, lines of two moments: headers do not know.

    OpenCV's VideoCapture would give what happened to be in memory for it, and say that it is well.
    """
    try:
        with open_container(path) as container:
            return next(container.decode(video=0)).interlaced_frame
    except (LookupError, ValueError, StopIteration, av.FFmpegError):  # OpenCV will say
        return False


def open_container(path: Path) -> av.container.InputContainer:
    """Open a video with PyAV, which may open what OpenCV may and nothing else."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    return av.open(f"file:{path.absolute()}", options=options)


def run_ffmpeg(path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the FFmpeg that comes with imageio-ffmpeg on a video, and wait for its end."""
    return subprocess.run(ffmpeg_command(path, *arguments), capture_output=True)


def ffmpeg_command(path: Path, *arguments: str) -> list[str]:
    """Make a command for FFmpeg, which may open what OpenCV may and nothing else."""
    safe = ["-nostdin", "-hide_banner", "-v", "error", "-threads", "1"]
    safe += ["-format_whitelist", CONTAINERS, "-protocol_whitelist", "file,pipe"]
    return [imageio_ffmpeg.get_ffmpeg_exe(), *safe, "-i", f"file:{path.absolute()}", *arguments]


def decode_by_ffmpeg(path: Path, stream: str, *filters: str) -> Iterator[bytes]:
    """Decode a stream of a video: yields each frame as a BMP file, which begins with its size."""
    form = ["-fps_mode", "passthrough", "-pix_fmt", "bgr24", "-c:v", "bmp", "-f", "image2pipe", "-"]
    command = ffmpeg_command(path, "-map", f"0:{stream}", *filters, *form)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            while len(start := process.stdout.read(6)) == 6:
                yield start + process.stdout.read(int.from_bytes(start[2:], "little") - 6)
        finally:
            process.kill()


def read_time_stamps(path: Path, stream: str) -> list[float]:
    """Read the time stamps of a stream in milliseconds, in the order in which frames are shown."""
    copied = run_ffmpeg(path, "-map", f"0:{stream}", "-c", "copy", "-f", "mkvtimestamp_v2", "-")
    return sorted(float(line) for line in copied.stdout.split(b"\n") if line and line[:1] != b"#")


def choose_evenly(total: int, wanted: int) -> set[int]:
    """Choose the middle of each of `wanted` equal parts of `total` frames; all if fewer."""
    wanted = min(wanted, total)
    return {(2 * part + 1) * total // (2 * wanted) for part in range(wanted)}


def grab_frames(video: cv2.VideoCapture | Pictures) -> Iterator[tuple[int, float]]:
    """Step through a video without converting its frames.

    Yields:
        The index of each frame, and its time in seconds after the first. Where the time stamps
        stand still, run back or pass 10 days, a frame counts as 1/25 s.
    """
    index, seconds, first = 0, -FRAME_SECONDS, None
    while video.grab():
        stamp = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
        first = stamp if first is None else first
        usable = seconds < stamp - first < LONGEST_VIDEO
        seconds = stamp - first if usable else seconds + FRAME_SECONDS
        yield index, seconds
        index += 1


def read_frames(
    video: cv2.VideoCapture | Pictures,
    frames_per_second: float | None,
    chosen: set[int] | None,
) -> Iterator[tuple[int, float, bool, np.ndarray | None]]:
    """Step through a video and convert only the frames to keep.

    Yields:
        For every frame: its index in the video, its time in seconds, whether it is to be kept, and
        if so the frame, BGR uint8 (height, width, 3), or None if it does not decode.
    """
    due = 0.0
    for index, seconds in grab_frames(video):
        wanted = index in chosen if chosen is not None else True
        if frames_per_second:
            wanted = seconds > due - 1e-6
        if wanted and frames_per_second:
            # The next sampling time after this frame: a video with fewer frames a second than
            # asked for gives all it has, and a gap in it is not made up for.
            due = (math.floor(seconds * frames_per_second + 1e-6) + 1) / frames_per_second
        yield index, seconds, wanted, video.retrieve()[1] if wanted else None


def write_png(image: np.ndarray, path: Path, compression: int) -> int:
    """Write a frame, BGR uint8 (height, width, 3), without loss; returns the bytes of the file.

    Each row of pixels is stored as its difference from the one above. OpenCV by itself tries five
    kinds of difference for each row, which takes 1.6 times as long for files 2 % smaller.
    """
    settings = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    settings += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    return path.write_bytes(cv2.imencode(".png", image, settings)[1])


def lacks_frames(path: Path) -> bool:
    """Tell whether a video with fewer frames than it claims has lost them, as one cut off has.

    An AVI counts its frames. Others claim more than they have if they begin late, have no constant
    rate, or are a piece of a longer one: FFmpeg reads those to their end without complaint.
    """
    try:
        with path.open("rb") as file:
            counted = file.read(4) == b"RIFF"
        return counted or bool(run_ffmpeg(path, "-map", "0:V:0", "-f", "null", "-").stderr)
    except OSError:  # reading failed, which costs this video; only errors of writing end the run
        return True


def print_summary(table: pd.DataFrame, left_out: pd.DataFrame, frames_dir: Path) -> None:
    """Print how many videos and frames there are of each kind, and what went wrong."""
    print(f"{frames_dir}")
    print(f"  videos          {len(table):,} (videos.csv)")
    print(f"  frames          {table['frames'].sum():,}")
    for names, videos in table.groupby(["dataset", "label", "method"]):
        dataset, *kind = map(str, names)
        counts = f"{len(videos):,} videos, {videos['frames'].sum():,} frames"
        print(catalogue.printable(f"  {dataset:15} {' '.join(kind)}: {counts}"))
    for status in ("partial", "failed"):
        broken = table[table["status"] == status]
        for source, reason in broken[["source", "reason"]].head(SHOWN).itertuples(index=False):
            print(catalogue.printable(f"  {status:15} {source}: {reason}"))
        if len(broken) > SHOWN:
            print(f"  {status:15} {len(broken) - SHOWN:,} more, see videos.csv")
    catalogue.print_left_out(left_out)


# --- Machinery ------------------------------------------------------------------------------------


def note_inputs(files: list[Path], settings: dict) -> dict:
    """Note what a result depends on: if none of it has changed, it is not made again.

    A change that keeps the number, size and time of the files is noticed only where it touches
    the first, middle or last 4 KiB of one of them.
    """
    states, sample = [file.stat() for file in files], sha1()
    for file, state in zip(files, states, strict=True):
        with suppress(OSError), file.open("rb") as opened:  # the worker will say what is wrong
            for start in (0, state.st_size // 2, max(0, state.st_size - SAMPLE)):
                opened.seek(start)
                sample.update(opened.read(SAMPLE))
    rule = " ".join(f"{limit:g}:{factor:g}" for limit, factor in settings["width_rule"])
    return {
        "made_by": Path(__file__).name,
        "settings": settings | {"width_rule": rule},
        "files": len(states),
        "bytes": sum(state.st_size for state in states),
        "modified_ns": max((state.st_mtime_ns for state in states), default=0),
        "sample": sample.hexdigest(),
    }


def read_side_file(folder: Path) -> dict:
    """Read what this script wrote beside the frames of a video; empty if it did not."""
    try:
        content = json.loads((folder / "video.json").read_text(encoding="utf-8"))
        return content if content["made_by"] == Path(__file__).name else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def finished_conversion(target: Path, checkpoint: dict) -> dict | None:
    """Find the row of a video that was finished from the same file with the same settings."""
    side = read_side_file(target)
    sizes = [path.stat().st_size for path in target.glob("*.png")]
    try:
        row = side["conversion"]
        same = all(side[name] == value for name, value in checkpoint.items())
        whole = [row["frames"], side["png_bytes"]] == [len(sizes), sum(sizes)]
        return row if same and whole and list(row) == CONVERSION else None
    except (LookupError, TypeError):
        return None


def find_own_folders(frames_dir: Path) -> set[str]:
    """Find the folders of videos that earlier runs made: videos.csv names them, or a side file."""
    try:
        table = pd.read_csv(frames_dir / "videos.csv", usecols=["video_id"], dtype=str)
        named = set(table["video_id"])
    except (OSError, ValueError):
        named = set()
    folders = [path for path in frames_dir.iterdir() if path.is_dir()]
    return {path.name for path in folders if path.name in named or read_side_file(path)}


def convert_side_by_side(
    unfinished: Path,
    jobs: list[tuple],
    workers: int,
    seconds_per_video: float | None,
    scheduler: str | None,
) -> dict[str, dict]:
    """Convert videos in processes; one that dies or hangs costs its video.

    The jobs are the arguments of convert_video after `unfinished`, in the order to begin them.

    Returns:
        What convert_video gives for each video, by its video_id.

    Raises:
        OSError: convert_video raised it, or the processes could not go on.
    """
    if not jobs:
        return {}
    rows, work, probe = {}, functools.partial(convert_video, unfinished), jobs[0][0]
    pool = open_pool(start_pool, min(workers, len(jobs)), scheduler, unfinished, probe)
    with pool as run_tasks, tqdm(total=len(jobs), unit="video") as bar:
        for (_, target, *_), future in run_tasks(work, jobs, seconds_per_video):
            rows[target.name] = row_of(future, seconds_per_video)
            bar.update()
    return rows


def start_pool(workers: int) -> pebble.ProcessPool:
    """Make the processes; also on the workers of a cluster."""
    return make_processes(workers, ["cv2", "pandas", "tyro"], prepare_process)


def prepare_process() -> None:
    """Prepare a process: it converts one video with one thread, and prints nothing by itself."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def row_of(future: Future[dict], seconds_per_video: float | None) -> dict:
    """Get the row of a video; if its process died or was too slow, one that says so.

    That video gets no folder, so that the next run tries it again.
    """
    try:
        return future.result()
    except TimeoutError:
        reason = f"given up after {seconds_per_video:,} seconds (--seconds-per-video)"
    except pebble.ProcessExpired as error:
        reason = f"the process that read it crashed (exit code {error.exitcode})"
    row = dict.fromkeys(CONVERSION, "")
    return row | {"frames": 0, "status": "failed", "reason": f"{reason}; the next run tries again"}


if __name__ == "__main__":
    cli.run(main)
