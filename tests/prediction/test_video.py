"""Frames of videos: known by their times, turned as the file says, and lost one by one."""

import struct
import sys

import av
import numpy as np
import pytest

from paligemma_jax.prediction import video

NUM_FRAMES, RATE = 12, 10
MATRIX = slice(48, 84)  # of a picture's turn, counted from the name of the box "tkhd"


def write(path, **settings) -> None:
    """Writes a video whose frame n is gray level 20 n, with a white corner at the top left."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, **settings)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(NUM_FRAMES):
            pixels = np.full((48, 64, 3), 20 * number, np.uint8)
            pixels[:16, :16] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of which every frame stands for itself."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write(path, options={"g": "1", "crf": "10"})
    return path


def levels(path, frames) -> list[int | None]:
    """Returns the gray level in the middle of each frame, rounded to 20."""
    found = video.read(path, frames)
    return [None if x is None else round(int(x[24, 32, 0]) / 20) * 20 for x in found]


def test_frames_are_numbered_and_timed_without_decoding(clip):
    found = video.scan(clip)
    assert [frame.number for frame in found.frames] == list(range(NUM_FRAMES))
    assert [frame.time_s for frame in found.frames] == pytest.approx([n / 10 for n in range(12)])
    assert found.rate == pytest.approx(RATE)
    assert {frame.path for frame in found.frames} == {str(clip)}


def test_chosen_frames_come_with_their_own_pixels(clip):
    frames = video.scan(clip).frames
    assert levels(clip, frames[::5]) == [0, 100, 200]
    assert levels(clip, frames[7:9]) == [140, 160]
    pixels = next(video.read(clip, frames[:1]))
    assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8


def test_a_damaged_part_costs_its_own_frames_only(clip, tmp_path):
    with av.open(str(clip)) as file:
        packets = [p for p in file.demux(file.streams.video[0]) if p.size]
        start, size = packets[4].pos, packets[4].size
    content = bytearray(clip.read_bytes())
    content[start : start + size] = b"\xff" * size
    (tmp_path / "bad.mp4").write_bytes(content)
    found = levels(tmp_path / "bad.mp4", video.scan(tmp_path / "bad.mp4").frames)
    assert found == [0, 20, 40, 60, None, 100, 120, 140, 160, 180, 200, 220]


def test_frames_of_a_file_without_stamps_are_counted(tmp_path):
    path = tmp_path / "clip.avi"
    write(path, options={"bf": "3"})
    frames = video.scan(path).frames
    assert [frame.time_s for frame in frames] == pytest.approx([n / 10 for n in range(12)])
    assert levels(path, frames) == [20 * n for n in range(12)]


def test_a_frame_is_turned_as_players_do(clip, tmp_path):
    content = bytearray(clip.read_bytes())
    start = content.index(b"tkhd") + MATRIX.start - 4
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    content[start : start + 36] = quarter
    (tmp_path / "turned.mp4").write_bytes(content)
    frames = video.scan(tmp_path / "turned.mp4").frames
    pixels = next(video.read(tmp_path / "turned.mp4", frames))
    assert pixels.shape == (64, 48, 3)
    assert pixels[4, -4].min() > 200 > pixels[4, 4].max()


def test_what_is_no_video_is_said(clip, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"cannot read video .*text.mp4: Invalid data"):
        video.scan(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match=r"cannot read video .*gone.mp4: No such file"):
        video.scan(tmp_path / "gone.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    with pytest.raises(ValueError, match=r"sound.mp4: it has no pictures"):
        video.scan(tmp_path / "sound.mp4")


def test_without_pyav_the_extra_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'paligemma_jax\[video\]'"):
        video.scan(clip)


def test_videos_are_known_by_their_names():
    assert video.is_video("a/B.MP4") and video.is_video("c.webm")
    assert not video.is_video("a.gif") and not video.is_video("mp4")


def test_a_codec_without_a_decoder_is_said_with_its_remedy(tmp_path):
    path = tmp_path / "rare.mkv"
    write(path)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_RARE4/ISO/AVC"))
    with pytest.raises(ValueError, match=r"rare\.mkv: no decoder for its codec; .*ffmpeg"):
        video.scan(path)


def test_a_title_in_another_encoding_does_not_matter(tmp_path):
    path = tmp_path / "titled.mkv"
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "a plain title"
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        pixels = np.zeros((48, 64, 3), np.uint8)
        packets = stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
        for packet in (*packets, *stream.encode()):
            file.mux(packet)
    path.write_bytes(
        path.read_bytes().replace(b"a plain title", b"\xff\xfe plain \xe9\xe9\xe9\xe9\xe9")
    )
    assert len(video.scan(path).frames) == 1
