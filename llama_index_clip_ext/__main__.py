"""Run the command line as ``python -m llama_index_clip_ext``."""

from .cli import main

main()
