"""Any bytes are a picture, or an `ImageLoadError`: a fuzz target.

Under atheris, which finds its way by what the code does (``pip install atheris``, Linux)::

    python tests/faults/fuzz_images.py CORPUS -max_total_time=600 -rss_limit_mb=2048

CORPUS is a folder, where what it finds is kept; an empty one is filled with sound files first. The
tests call the same function with bytes that hypothesis makes (`test_fuzz_images.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path


def load(content: bytes) -> None:
    """Load, hash and describe bytes; raise what no caller would expect."""
    from llama_index_clip_ext.errors import ImageLoadError, printable
    from llama_index_clip_ext.images import load_image, read_header
    from llama_index_clip_ext.sources import image_digest

    least_side = content[len(content) // 2] if content else None
    for source in (content, content.decode("latin-1")):
        for do in (lambda one: load_image(one, least_side=least_side), read_header, image_digest):
            said = ""
            try:
                assert do(source) is not None
            except ImageLoadError as err:
                said = str(err)
            # Neither the picture's bytes nor a line of its own making.
            assert printable(said) == said
            assert len(said) < 2000


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["PIL", "llama_index_clip_ext"]):
        import llama_index_clip_ext.images  # noqa: F401

    folders = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    if folders and folders[0].is_dir() and not any(folders[0].iterdir()):
        from hostile_files import seeds

        for name, content in seeds().items():
            (folders[0] / name).write_bytes(content)
    atheris.Setup(sys.argv, load)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
