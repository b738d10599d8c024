"""Load every file of a folder, in a process of its own, and tell what came of each.

Run as ``python load_each.py FOLDER [LEAST_SIDE]``; by turns in full and reduced, if no side is
given. Prints a line of JSON for each file: its number in the sorted folder, first as it is begun,
so that what crashed is known, then with what came of it, the seconds of computing and the memory
that it took over what was taken before.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import sys
import time
import warnings

# Of one file, before it counts as hanging.
HANGS_AFTER = 120


def memory(field: str) -> int:
    """Return bytes that this process has (VmRSS), or had at most (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def forget_the_peak() -> None:
    # Not everywhere allowed: then each peak is the highest so far, which is no less strict.
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def outcome(path: str, least_side: int | None) -> dict[str, object]:
    from llama_index_clip_ext.errors import ImageLoadError, printable
    from llama_index_clip_ext.images import load_image

    try:
        picture = load_image(path, least_side=least_side)
    except ImageLoadError as err:
        named = printable(os.path.basename(path))
        is_named = named in err.source or "..." in err.source
        return {"failed": err.reason, "is_named": is_named, "text": str(err)}
    except BaseException as err:
        return {"raised": f"{type(err).__name__}: {err}"}
    return {"loaded": [picture.mode, *picture.size]}


def main(folder: str, *sides: str) -> None:
    # Whatever is warned of is an error here, and whatever is mapped is bounded.
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    import llama_index_clip_ext.images  # noqa: F401

    for number, name in enumerate(sorted(os.listdir(os.fsencode(folder)))):
        path = os.path.join(folder, os.fsdecode(name))
        print(json.dumps({"number": number}), flush=True)  # noqa: T201
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        forget_the_peak()
        before, started = memory("VmRSS"), time.process_time()
        least_side = int(sides[0]) if sides else (None, 448)[number % 2]
        result = outcome(path, least_side)
        result["seconds"] = round(time.process_time() - started, 3)
        result["megabytes"] = round((memory("VmHWM") - before) / 1e6, 1)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({"number": number, **result}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
