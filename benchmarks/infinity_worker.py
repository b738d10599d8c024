"""infinity's engine as a process: a line of JSON with files in, a file of rows out.

benchmarks/peers.py starts it with the Python that INFINITY_PYTHON names, whose packages are
older than those of this package; nothing of this repository is imported here.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

# What libraries print goes to the error stream; the answers keep the output to themselves.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def answer(message):
    ANSWERS.write(json.dumps(message) + "\n")
    ANSWERS.flush()


async def embed(engine, files):
    """Hand over the files' bytes, as its server does with what it is sent."""
    embeddings, _ = await engine.image_embed(images=[Path(file).read_bytes() for file in files])
    return embeddings


async def serve(directory):
    import numpy as np
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    settings = EngineArgs(
        model_name_or_path=directory,
        engine="torch",
        device="cpu",
        batch_size=32,
        model_warmup=False,
        # Optimum's; for CLIP there is nothing in it, and newer ones are without it.
        bettertransformer=False,
        # By default it leaves float32 only on CUDA; said so that it stays so.
        dtype="float32",
    )
    engine = AsyncEmbeddingEngine.from_args(settings)
    async with engine:
        answer({"ready": True})
        # Read off the loop, where the engine's own tasks run.
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            try:
                rows = []
                # A slice at a time, so that it need not hold thousands of pictures at once.
                for start in range(0, len(request["files"]), 320):
                    rows += await embed(engine, request["files"][start : start + 320])
                np.save(request["output"], np.stack(rows))
                answer({"rows": len(rows)})
            except Exception as err:
                answer({"error": f"{type(err).__name__}: {err}"})


def main():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # It reports how it is used to its makers unless it is told not to.
    os.environ["INFINITY_ANONYMOUS_USAGE_STATS"] = "0"
    os.environ["DO_NOT_TRACK"] = "1"
    try:
        asyncio.run(serve(sys.argv[1]))
    except Exception as err:
        answer({"error": f"{type(err).__name__}: {err}"})


if __name__ == "__main__":
    main()
