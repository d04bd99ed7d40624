"""No broken video stops an ingest: each gives clips or a reason for quarantine, in bounded time and memory."""

from __future__ import annotations

import socket
import time

import mutations
import psutil
import pytest

from pyoco_pipeline.data.isolation import Isolated, IsolationError
from pyoco_pipeline.data.video import VideoError

pytestmark = pytest.mark.slow

TIMEOUT_S = 5.0
COUNT = 120  # all that are made by hand, and sixty with random damage


@pytest.fixture(scope="module")
def listener():
    """What the playlists point at: a server of this test, which nobody must ask anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture(scope="module")
def videos(tmp_path_factory, listener):
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v.ts"
    with Isolated(timeout_s=None, memory_mb=None) as maker:  # so that encoding does not count as memory here
        return maker.call(mutations.mutants, tmp_path_factory.mktemp("faults") / "v", COUNT, 0, url)


def test_broken_videos_give_clips_or_a_reason_and_never_more_than_a_lost_child(videos, listener):
    clips, reasons, slowest, peak_mb = {}, {}, 0.0, 0.0
    with Isolated(timeout_s=TIMEOUT_S, memory_mb=1024) as decoder:
        before = psutil.Process().memory_info().rss
        for video in videos:
            start = time.monotonic()
            try:
                clips[video.path.name] = decoder.call(mutations.cut, video.path)
            except (VideoError, IsolationError) as error:
                reasons[video.path.name] = error.reason
            slowest = max(slowest, time.monotonic() - start)
            peak_mb = max(peak_mb, decoder.call(mutations.peak_mb))
        grown = psutil.Process().memory_info().rss - before

    assert len(clips) + len(reasons) == COUNT
    assert [video.path.name for video in videos if video.is_hopeless and video.path.name in clips] == []
    assert all(reason and "\n" not in reason and len(reason) < 200 for reason in reasons.values())
    assert all(clip.video.shape[0] == 8 for cut in clips.values() for clip in cut)
    assert slowest < TIMEOUT_S + 10  # the child that replaces a stuck one has to start
    assert peak_mb < 1200
    assert grown < 100 * 2**20
    with pytest.raises(BlockingIOError):
        listener.accept()
    # A test in which nothing is broken, or everything, would say little.
    assert {"is_mp4.avi", "twice.mp4", "size_8k.mp4", "size_1x1.mov"} <= clips.keys()
    assert reasons["endless.ts"] == "takes longer than 5 s to decode"


def test_a_video_too_large_for_the_memory_limit_goes_to_quarantine_and_the_next_is_decoded(videos):
    by_name = {video.path.name: video.path for video in videos}
    with Isolated(timeout_s=60, memory_mb=50) as decoder:
        with pytest.raises(
            (VideoError, IsolationError)
        ):  # FFmpeg does not always say that memory was missing
            decoder.call(mutations.cut, by_name["size_8k.mp4"])
        assert len(decoder.call(mutations.cut, by_name["is_mp4.avi"])) == 2


def test_the_same_mutants_are_made_each_time(tmp_path, videos):
    again = mutations.mutants(tmp_path / "v", COUNT)
    assert [(v.path.name, v.is_hopeless) for v in again] == [(v.path.name, v.is_hopeless) for v in videos]
    assert [v.path.read_bytes() for v in again[-20:]] == [v.path.read_bytes() for v in videos[-20:]]
