"""The video of an episode."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments.common.errors import UserError
from experiments.common.wandb_mirror import VIDEO

logger = logging.getLogger("fire")


def record(episode: Iterable[tuple[np.ndarray, float]], frames_per_second: float, folder: Path) -> None:
    """Record an episode in a run's folder (MP4, H.264), whole or not at all. What goes wrong is a warning, since the
    run is worth more.

    Args:
        episode: of each step a picture, (height, width, 3) uint8, and the reward.
        frames_per_second: pictures a second.
        folder: of the run.
    """
    import imageio_ffmpeg

    path, temporary = folder / VIDEO, folder / f".video-{os.getpid()}.tmp"
    writer, total = None, 0.0
    try:
        for picture, reward in episode:
            if writer is None:
                height, width, _ = picture.shape
                writer = imageio_ffmpeg.write_frames(
                    str(temporary), (width, height), fps=frames_per_second, macro_block_size=2,
                    ffmpeg_log_level="error", output_params=["-f", "mp4"],
                )  # fmt: skip
                writer.send(None)
            writer.send(np.ascontiguousarray(picture))
            total += reward
        if writer is not None:
            writer.close()
            temporary.replace(path)
        logger.info("wrote %s, an episode with return %s", path, f"{total:,.0f}")
    except UserError:
        raise
    except Exception as error:  # of drivers and encoders there are many kinds
        reason = str(error).strip() or type(error).__name__
        logger.warning("warning: no video: %s", reason.splitlines()[0])
