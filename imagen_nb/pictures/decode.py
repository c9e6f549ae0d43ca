"""One file becomes an RGB picture, or the reason why it cannot."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # told by content, never by name
KINDS = "JPEG, PNG, WebP, BMP, GIF or TIFF"  # the same for people
MAX_PIXELS = 89_478_485  # of a picture: a quarter of a gigabyte as RGB, where Pillow warns
MIN_SIDE = 16  # of a picture's shorter side, in pixels
HEAD, TAIL = 2**16, 16  # bytes read from both ends of a file to look at it


class UnreadablePicture(ValueError):
    "What cannot become an RGB picture with a caption; the message is the reason."


def decode_picture(
    blob: bytes,  # a whole image file
):  # PIL.Image, RGB, upright; transparency on white
    "Decode the first frame of a picture; anything else raises `UnreadablePicture`."
    from PIL import ImageOps

    return _opened(blob, lambda image: _rgb(ImageOps.exif_transpose(image)))


def probe(
    head: bytes,  # the first bytes of a file, or all of it
    tail: bytes,  # its last bytes
    read: Callable[[], bytes],  # gives the whole file, where its ends leave a doubt
) -> tuple[int, int]:  # width and height
    "Size of a picture from its header. A file that does not end as its format ends is decoded to be sure."
    if len(head) == HEAD and head[:4] in (b"RIFF", b"II*\0", b"MM\0*"):
        head = read()
    if not _is_complete(head, tail):
        return decode_picture(read()).size
    if size := _jpeg_size(head) if head[:2] == b"\xff\xd8" else _png_size(head):
        _check_size(*size)
        return size
    try:
        return _opened(head, lambda image: image.size)
    except UnreadablePicture:
        if len(head) < HEAD:
            raise
        return decode_picture(read()).size  # a long header


def _is_complete(head: bytes, tail: bytes) -> bool:
    "Does a file end with its format's end mark?"
    if head[:2] == b"\xff\xd8":
        return tail.endswith(b"\xff\xd9")
    if head[:4] == b"\x89PNG":
        return tail.endswith(b"IEND\xaeB`\x82")
    if head[:4] == b"RIFF":
        return int.from_bytes(head[4:8], "little") + 8 == len(head)
    return False


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    "Width and height from a JPEG's frame header; None leaves it to Pillow, which takes ten times as long."
    at = 2
    while at + 9 < len(head) and head[at] == 0xFF:
        mark = head[at + 1]
        if mark in (0xC0, 0xC1, 0xC2):
            h, w = struct.unpack(">2H", head[at + 5 : at + 9])
            return (w, h) if w and h and head[at + 4] == 8 and head[at + 9] in (1, 3, 4) else None
        if not (0xC4 == mark or 0xDB <= mark <= 0xFE):
            return None
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def _png_size(head: bytes) -> tuple[int, int] | None:
    "Width and height of a PNG whose header's check sum is right."
    if head[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" or zlib.crc32(head[12:29]) != int.from_bytes(
        head[29:33], "big"
    ):
        return None
    return struct.unpack(">2I", head[16:24])


def _check_size(w: int, h: int):
    "Refuse what is too large or too small."
    if w * h > MAX_PIXELS:
        raise UnreadablePicture(f"more than {MAX_PIXELS:,} pixels")
    if min(w, h) < MIN_SIDE:
        raise UnreadablePicture(f"shorter side under {MIN_SIDE} pixels")


def _opened(blob: bytes, work: Callable):
    "What `work` makes of a picture whose header is sound; `UnreadablePicture` if that fails."
    from PIL import Image

    if not blob:
        raise UnreadablePicture("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(blob), formats=FORMATS)
            _check_header(image)
            return work(image)
    except Image.DecompressionBombError:
        raise UnreadablePicture(f"more than {MAX_PIXELS:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise UnreadablePicture(f"not {KINDS}") from None
    except UnreadablePicture:
        raise
    except Exception as e:  # Pillow's decoders raise many kinds
        raise UnreadablePicture("truncated or damaged") from e


def _check_header(image):
    "Refuse before decoding what is too large, too small, or in numbers without a known range."
    _check_size(*image.size)
    if image.mode in ("F", "LAB") or image.mode == "I" and image.format == "TIFF":
        raise UnreadablePicture(f"pixels without a known range (mode {image.mode})")


def _rgb(image):
    "RGB on white, from any mode that `_check_header` lets pass."
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits in one channel: 65535 becomes 255
        levels = (np.asarray(image).astype("int64") + 128) // 257
        return Image.fromarray(levels.astype("uint8")).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def reason(
    error: Exception,  # of the decoder or of the system
) -> str:  # a few words
    "Why a picture is left out."
    named = error if isinstance(error, UnreadablePicture) else getattr(error, "strerror", None)
    return str(named or "unreadable file")


def cause(
    error: Exception,  # of the decoder or of the system
) -> str:  # in brackets, or nothing
    "What a library said before we called it damage."
    return f" ({error.__cause__})" if str(error.__cause__ or "") else ""
