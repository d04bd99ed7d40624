"""Broken videos, made from working ones: the same files every time, each with what may become of it."""

from __future__ import annotations

import itertools
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import video_files as vf

from pyoco_pipeline.data.cutting import CutOptions, cut_video

OPTIONS = CutOptions(num_frames=8, sizes=((64, 64), (48, 64)), fps=8.0, max_clips_per_row=8)
TERABYTE = 1 << 40
HUGE = 0x7FFFFFFF


@dataclass(frozen=True)
class Mutant:
    """A file and whether it can only end in quarantine; otherwise clips are as good an outcome."""

    path: Path
    kind: str
    is_hopeless: bool


def cut(path: Path) -> list[Any]:
    """The clips of a whole video, as ingest cuts them."""
    segment = {"row_id": "1", "path": path.name, "start": None, "end": None}
    return cut_video(path, segment, OPTIONS)


def peak_mb() -> float:
    """Most memory that this process had at a time. Linux."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def mutants(folder: Path, count: int, seed: int = 0, url: str = "http://127.0.0.1:9/v.ts") -> list[Mutant]:
    """`count` broken videos below `folder`: first one of each that is made by hand, then random damage.

    Playlists among them point at `url` and at a working video beside them.
    """
    sources = folder / "sources"
    sources.mkdir(parents=True)
    working = [*_working(sources), *vf.real_videos()]
    broken = itertools.chain(
        _written(folder, sources, url),
        _in_the_file_system(folder),
        _encoded(folder),
        _damaged(folder, working, seed),
    )
    return list(itertools.islice(broken, count))


def _working(folder: Path) -> list[Path]:
    def texture(k: int, height: int, width: int) -> np.ndarray:
        return np.random.default_rng(k // 4).integers(0, 256, (height, width, 3), np.uint8)

    special: dict[str, dict[str, Any]] = {
        "fast.mp4": {"faststart": True, "with_audio": True, "b_frames": 2},
        "v.gif": {"codec": "gif", "pix_fmt": "rgb8"},
        "v.apng": {"codec": "apng", "pix_fmt": "rgb24"},
        "vp9.webm": {"codec": "libvpx-vp9"},
        "vp8.ivf": {"codec": "libvpx"},
        "ffv1.mkv": {"codec": "ffv1"},
        "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        "v.flv": {"codec": "flv1"},
        "v.wmv": {"codec": "wmv2"},
    }
    plain: dict[str, dict[str, Any]] = {
        f"v.{suffix}": {} for suffix in ("mp4", "mkv", "avi", "ts", "mov", "h264")
    }
    return [
        _without_chance(vf.write_video(folder / name, 16, picture=texture, **how))
        for name, how in (plain | special).items()
    ]


def _without_chance(path: Path) -> Path:
    """Matroska files carry random numbers unless told not to."""
    if path.suffix not in (".mkv", ".webm"):
        return path
    aside = path.with_stem("aside")
    with av.open(str(path)) as source, av.open(str(aside), "w", options={"fflags": "bitexact"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return aside.replace(path)


def _written(folder: Path, sources: Path, url: str) -> Iterator[Mutant]:
    """Files of a few given bytes."""
    mp4, fast, mkv, avi, ts, gif, apng, ivf = (
        (sources / name).read_bytes()
        for name in ("v.mp4", "fast.mp4", "v.mkv", "v.avi", "v.ts", "v.gif", "v.apng", "vp8.ivf")
    )
    noise = np.random.default_rng(0).bytes(1 << 20)
    ftyp = _box(b"ftyp", b"isom\0\0\2\0isommp42")
    segment = b"\x18\x53\x80\x67"  # Matroska's; of unknown size below, and filled with elements of no bytes
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    hopeless: dict[str, bytes] = {
        "empty.mp4": b"",
        "one_byte.mp4": b"\0",
        "text.mp4": b"A dog runs on the beach.\n" * 50,
        "utf16.mkv": ("path,caption\n" * 50).encode("utf-16"),
        "page.mp4": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "subtitles.avi": b"1\n00:00:00,000 --> 00:00:02,000\nHello\n\n" * 20,
        "document.mp4": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n" + noise[:5000],
        "archive.mp4": b"PK\3\4\x14\0\0\0\x08\0" + noise[:5000],
        "noise_1k.mp4": noise[:1024],
        "noise_1m.mp4": noise,
        "zeros.mp4": bytes(1 << 20),
        "header_only.mp4": fast[:32],
        "index_only.mp4": fast[: fast.index(b"mdat") - 4],
        "index_missing.mp4": mp4[: mp4.index(b"moov") - 4],
        "header_only.mkv": mkv[:40],
        "huge_mdat.mp4": ftyp + struct.pack(">I4sQ", 1, b"mdat", TERABYTE) + mp4,
        "nested.mp4": ftyp + b"".join(struct.pack(">I4s", 8 * k, b"moov") for k in range(20_000, 0, -1)),
        "many_boxes.mp4": ftyp + struct.pack(">I4s", 8, b"free") * 1_000_000,
        "voids.mkv": mkv[: mkv.index(segment)] + segment + b"\x01" + b"\xff" * 7 + b"\xec\x80" * 2**21,
        "playlist.m3u8": playlist.format("sources/v.ts").encode(),
        "playlist_called.mp4": playlist.format("sources/v.ts").encode(),
        "playlist_of_url.m3u8": playlist.format(url).encode(),
        "playlist_of_itself.m3u8": playlist.format("playlist_of_itself.m3u8").encode(),
        "concat.ffconcat": b"ffconcat version 1.0\nfile sources/v.mp4\n",
        "concat_called.mp4": b"ffconcat version 1.0\nfile sources/v.mp4\n",
        "concat_of_url.mp4": f"ffconcat version 1.0\nfile {url}\n".encode(),
        "session.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "manifest.mpd": f'<?xml version="1.0"?><MPD><Period><BaseURL>{url}</BaseURL></Period></MPD>'.encode(),
    }
    doubtful: dict[str, bytes] = {
        "is_mp4.avi": mp4,
        "is_mkv.txt": mkv,
        "twice.mp4": mp4 + mp4,
        "twice.ts": ts + ts,
        "mp4_and_mkv.mp4": mp4 + mkv,
        "box_of_3_bytes.mp4": _put(mp4, 0, ">I", 3),
        "no_time_scale.mp4": _put(mp4, mp4.index(b"mdhd") + 16, ">I", 0),
        "no_time_between_frames.mp4": _put(mp4, mp4.index(b"stts") + 16, ">I", 0),
        "years_between_frames.mp4": _put(mp4, mp4.index(b"stts") + 16, ">I", HUGE),
        "lasts_68_years.mp4": _put(mp4, mp4.index(b"mdhd") + 16, ">II", 1, HUGE),
        "billions_of_times.mp4": _put(mp4, mp4.index(b"stts") + 8, ">I", HUGE),
        "billions_of_samples.mp4": _put(mp4, mp4.index(b"stsz") + 8, ">II", 1, HUGE),
        "other_file.mov": _put(mp4, mp4.index(b"url ") + 4, ">I", 0),
        "rate_0.avi": _put(avi, avi.index(b"strh") + 28, "<II", 1, 0),
        "scale_0.avi": _put(avi, avi.index(b"strh") + 28, "<II", 0, 25),
        "rate_100000.avi": _put(avi, avi.index(b"strh") + 28, "<II", 1, 100_000),
        "size_65535.gif": _put(gif, 6, "<HH", 65535, 65535),
        "size_2_billion.apng": _put(apng, 16, ">II", HUGE, HUGE),
        "size_16383.ivf": _put(ivf, 32 + 12 + 6, "<HH", 16383, 16383),
    }
    for is_hopeless, files in ((True, hopeless), (False, doubtful)):
        for name, data in files.items():
            (folder / name).write_bytes(data)
            yield Mutant(folder / name, "written by hand", is_hopeless)
    for name, data, is_hopeless in (("endless.mpg", b"\0\0\1\xba", True), ("endless.mp4", fast, False),
                                    ("endless.ts", ts, False), ("endless.mkv", mkv, False)):  # fmt: skip
        (folder / name).write_bytes(data)
        os.truncate(folder / name, TERABYTE)  # zeros that take no space
        yield Mutant(folder / name, "a terabyte", is_hopeless)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _put(data: bytes, at: int, layout: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, at, *values)
    return bytes(changed)


def _in_the_file_system(folder: Path) -> Iterator[Mutant]:
    """What is called like a video and is no file."""
    (folder / "folder.mp4").mkdir()
    (folder / "link_to_itself.mp4").symlink_to("link_to_itself.mp4")
    (folder / "link_to_nothing.mp4").symlink_to("nothing.mp4")
    (folder / "link_to_zeros.mp4").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.mp4")
    os.mknod(folder / "socket.mp4", stat.S_IFSOCK | 0o600)
    for name in ("folder", "link_to_itself", "link_to_nothing", "link_to_zeros", "pipe", "socket"):
        yield Mutant(folder / f"{name}.mp4", "no file", True)


def _encoded(folder: Path) -> Iterator[Mutant]:
    """Well-formed files of absurd videos."""
    formats = {"ffv1": "yuv444p", "png": "rgb24", "libx264": "yuv420p"}
    for name, codec, height, width, rate, num_frames in (
        ("fps_100000.mkv", "ffv1", 48, 64, 100_000, 32),
        ("fps_100000.mp4", "libx264", 48, 64, 100_000, 32),
        ("frame_a_day.mkv", "ffv1", 48, 64, Fraction(1, 86_400), 3),
        ("size_1x1.mov", "png", 1, 1, 8, 16),
        ("size_5000x1.mov", "png", 1, 5000, 8, 16),
        ("size_1x5000.mov", "png", 5000, 1, 8, 16),
        ("size_8k.mp4", "libx264", 4320, 7680, 1, 2),
    ):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            if codec == "libx264":
                stream.options = {"preset": "ultrafast"}
            stream.width, stream.height, stream.pix_fmt = width, height, formats[codec]
            for k in range(num_frames):
                frame = av.VideoFrame.from_ndarray(
                    np.full((height, width, 3), 3 * k, np.uint8), format="rgb24"
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        yield Mutant(folder / name, "absurd size or rate", False)
    vf.write_audio(folder / "sound.mp4")
    yield Mutant(folder / "sound.mp4", "sound only", True)


Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _flip_bits(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    at = random.integers(0, data.size, int(10 ** random.uniform(0, 3)))
    data[at] ^= (1 << random.integers(0, 8, at.size)).astype(np.uint8)
    return data


def _flip_header_bits(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The first and last bytes hold the headers and indices."""
    head = min(2048, data.size // 2)
    for part in (data[:head], data[-head:]):
        _flip_bits(part, random)
    return data


def _zero_a_part(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    start, end = np.sort(random.integers(0, data.size, 2))
    data[start:end] = 0
    return data


def _lose_a_part(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    start, end = np.sort(random.integers(0, data.size, 2))
    return np.delete(data, slice(start, end))


def _repeat_a_part(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    start, end = np.sort(random.integers(0, data.size, 2))
    return np.insert(data, end, data[start:end])


def _overwrite_the_head(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    head = int(random.integers(4, 256))
    data[:head] = np.frombuffer(random.bytes(head), np.uint8)
    return data


def _fill_with_noise(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """All but the headers."""
    start = min(4096, data.size // 4)
    data[start:] = np.frombuffer(random.bytes(data.size - start), np.uint8)
    return data


def _cut_off(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return data[: int(data.size * random.uniform(0.01, 0.99))]


def _damaged(folder: Path, sources: list[Path], seed: int) -> Iterator[Mutant]:
    """Without end: each source damaged in each way, then again with other draws."""
    ways: list[Damage] = [_cut_off, _flip_bits, _flip_header_bits, _zero_a_part, _lose_a_part, _repeat_a_part,
                          _overwrite_the_head, _fill_with_noise]  # fmt: skip
    for number in itertools.count():
        # The numbers of sources and ways have no common divisor, so that all pairs come.
        source, damage = sources[number % len(sources)], ways[number % len(ways)]
        data = np.fromfile(source, np.uint8)
        damaged = damage(data, np.random.default_rng([seed, number])).tobytes()
        path = folder / f"{number:04d}{damage.__name__}{source.suffix}"
        path.write_bytes(damaged)
        lacks_index = source.suffix in (".mp4", ".mov") and b"moov" not in damaged
        yield Mutant(path, damage.__name__.strip("_").replace("_", " "), lacks_index)
