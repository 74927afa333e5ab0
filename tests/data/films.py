"""Tiny videos and folders of frames for the tests of what reads them."""

from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 96, 128


def frame(number: int, level: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A grey frame whose left half says its number (8 levels each) and whose right half says `level`."""
    image = np.full((height, width, 3), level, np.uint8)
    image[:, : width // 2] = 8 * number + 10
    return image


def film(count: int, level: int = 0) -> list[np.ndarray]:
    return [frame(i, level) for i in range(count)]


def write_video(path: Path, images: list[np.ndarray], codec: str = "libx264", **options: str) -> Path:
    """An mp4 file; options go to the muxer."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_frames(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04d}.png")
    return folder
