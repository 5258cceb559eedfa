"""Pictures become a video that others read."""

import av
import numpy as np
from PIL import Image

from paligemma_jax.prediction import video


def gray(level: int, size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def test_pictures_of_odd_and_of_other_sizes_are_one_video_of_the_first_ones_size(tmp_path):
    path = tmp_path / "out.mp4"
    with video.VideoFile(path, rate=2.5) as file:
        for level, size in ((0, (65, 49)), (100, (65, 49)), (200, (130, 98))):
            file.append(gray(level, size))
    with av.open(str(path)) as found:
        stream = found.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in found.decode(stream)]
        assert float(stream.average_rate) == 2.5 and stream.codec.name == "h264"
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    np.testing.assert_allclose([frame.mean() for frame in frames], [0, 100, 200], atol=4)


def test_a_video_without_pictures_is_no_error(tmp_path):
    video.VideoFile(tmp_path / "out.mp4", rate=1).close()
