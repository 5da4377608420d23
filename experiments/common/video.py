"""The video of an episode."""

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from experiments.common.errors import UserError
from experiments.common.wandb_mirror import VIDEO

logger = logging.getLogger("fire")


def check() -> None:
    """Raise UserError, before training starts, if no video could be written."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"record_video=true needs a package that is not there ({error}): pip install imageio-ffmpeg"
        ) from error


def write(path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], frames_per_second: float) -> None:
    """Write pictures, (height, width, 3) uint8, to `path` (MP4, H.264), whole or not at all.

    `size` is (width, height).
    """
    import imageio_ffmpeg

    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp")
    writer = imageio_ffmpeg.write_frames(
        str(temporary), size, fps=frames_per_second, macro_block_size=2, ffmpeg_log_level="error",
        output_params=["-f", "mp4"],
    )  # fmt: skip
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    temporary.replace(path)


def record_once(play: Callable[[Path], float], folder: Path) -> None:
    """Record an episode of a finished run, unless there is a video of it already."""
    if (folder / VIDEO).exists():
        logger.info("video: %s", folder / VIDEO)
    else:
        record(play, folder)


def record(play: Callable[[Path], float], folder: Path) -> None:
    """Record an episode in a run's folder: `play` writes the file and returns the return. What goes wrong is a warning,
    since the run is worth more."""
    path = folder / VIDEO
    try:
        total = play(path)
        logger.info("wrote %s, an episode with return %s", path, f"{total:,.0f}")
    except UserError:
        raise
    except Exception as error:  # of drivers and encoders there are many kinds
        reason = str(error).strip() or type(error).__name__
        logger.warning("warning: no video: %s", reason.splitlines()[0])
