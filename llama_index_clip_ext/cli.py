"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import __version__
from .errors import ClipExtError, StoreError, printable

# Everything heavier is imported by the command that needs it: --help answers at once.
if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from .devices import Dtype
    from .dual_encoder import DualEncoderEmbedding
    from .ingest import IngestReport
    from .store import CLIPMilvusVectorStore

app = typer.Typer(
    name="clip-ext",
    help="Search pictures by words and by pictures, with CLIP, Chinese-CLIP and Milvus.\n\n"
    "Try it without downloading anything: clip-ext demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Uri = Annotated[
    str, typer.Option(help="A .db file for embedded Milvus Lite, or a server's http(s) address.")
]
Token = Annotated[
    str, typer.Option(envvar="MILVUS_TOKEN", help="user:password or API key of a server.")
]
Collection = Annotated[str, typer.Option(help="Name of the Milvus collection.")]
Device = Annotated[str, typer.Option(help="auto (CUDA if there is one), cpu, cuda, mps.")]
DtypeOption = Annotated[
    Literal["auto", "float32", "float16", "bfloat16", "int8"],
    typer.Option(help="Arithmetic of the model; auto is what is fast and safe on the device."),
]
Namespace = Annotated[
    str,
    typer.Option(
        help="Part of the images' ids, for computers that share a collection and have different "
        "files at one path."
    ),
]
Wait = Annotated[
    bool,
    typer.Option(help="Wait until a server has indexed what was written, if it is much."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines, for programs.")]


def main() -> None:
    """Run the command line; an error that we foresaw is one line, and exit code 1."""
    logging.getLogger("milvus_lite").setLevel(logging.CRITICAL)
    logging.getLogger("pymilvus").addFilter(lambda record: False)
    try:
        app()
    except Exception as err:
        # What the user's input can cause; anything else is a fault of ours, and shows its trace.
        foreseen = isinstance(err, (ClipExtError, ValueError, OSError))
        if not foreseen and not type(err).__module__.startswith("pymilvus."):
            raise
        print(f"clip-ext: {printable(' '.join(str(err).split()))}", file=sys.stderr)
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    """Take what goes before a command."""


@app.command()
def index(
    folder: Annotated[
        list[str], typer.Argument(help="Folders, patterns or images; any number of them.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Alias, hub id or directory; else the collection's own, or clip-ViT-B-32.",
            show_default=False,
        ),
    ] = None,
    uri: Uri = "./clip_ext.db",
    token: Token = "",
    collection: Collection = "clip_ext",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    recursive: Annotated[bool, typer.Option(help="Look into the folder's folders.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop the collection first, with all it holds.")
    ] = False,
    full_text: Annotated[
        Literal["standard", "english", "chinese"] | None,
        typer.Option(help="Search captions by words, too."),
    ] = None,
    namespace: Namespace = "",
    metadata: Annotated[
        Literal["keep", "replace"],
        typer.Option(help="Keep tags and captions that were stored with an image, or drop them."),
    ] = "keep",
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Embed images again whose vectors may not be an image tower's."
        ),
    ] = False,
    wait: Wait = True,
    device: Device = "auto",
    dtype: DtypeOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Embed the images of a folder and store them; run again, only what changed is embedded.

    Example: clip-ext index ./photos --model clip-ViT-B-32 --uri ./photos.db
    """
    from .ingest import IngestOptions, ingest_items
    from .interruption import stop_on_interrupt
    from .nodes import list_images, no_images
    from .store import create_vector_store

    token = _token_for(uri, token)
    options = IngestOptions(
        batch_size=batch_size, namespace=namespace, metadata=metadata, repair=repair
    )
    paths = [path for one in folder for path in list_images(one, recursive=recursive)]
    if not paths:
        raise no_images(" ".join(folder))
    if model is None and not overwrite:
        model = _model_of(uri, token, collection)
    embed_model = _load_model(model or "clip-ViT-B-32", device, dtype)
    with (
        create_vector_store(
            embed_model,
            uri=uri,
            token=token,
            collection_name=collection,
            overwrite=overwrite,
            full_text=full_text,
        ) as vector_store,
        _progress() as progress,
        stop_on_interrupt() as stop,
    ):
        task = progress.add_task("Indexing", total=len(paths))

        def show(report: IngestReport) -> None:
            progress.update(task, completed=report.total)
            if report.total == len(paths):
                progress.stop()  # A bar of the server's index may follow.

        with _reported(as_json):
            report = ingest_items(
                paths,
                embed_model=embed_model,
                vector_store=vector_store,
                options=options,
                on_progress=show,
                wait_for_index=wait,
                show_progress=sys.stderr.isatty(),
                stop=stop,
            )
    _print_report(report, as_json)
    if len(report.failed) == report.total:
        raise typer.Exit(1)


@app.command()
def sync(
    folder: Annotated[str, typer.Argument(help="The folder.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Alias, hub id or directory; else the collection's own, or clip-ViT-B-32.",
            show_default=False,
        ),
    ] = None,
    uri: Uri = "./clip_ext.db",
    token: Token = "",
    collection: Collection = "clip_ext",
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the rows of files that are gone.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    checksum: Annotated[
        bool,
        typer.Option(
            "--checksum",
            help="Read every file; else size and time of change count. Embed images again whose "
            "vectors may not be an image tower's.",
        ),
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="File for a line of JSON per image: what became of it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    recursive: Annotated[bool, typer.Option(help="Look into the folder's folders.")] = True,
    namespace: Namespace = "",
    wait: Wait = True,
    device: Device = "auto",
    dtype: DtypeOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Make a collection equal to a folder: add, replace, move, and with --delete, remove.

    Example: clip-ext sync ./photos --delete --uri ./photos.db
    """
    from .collection import passport_of
    from .nodes import no_images
    from .store import create_vector_store
    from .sync import resolve_folder, sync_images

    token = _token_for(uri, token)
    resolve_folder(folder)  # Before a collection is made.
    with ExitStack() as stack:
        if dry_run:  # No collection is made by it.
            stack.enter_context(passport_of(uri, token, collection))
        name = model or _model_of(uri, token, collection) or "clip-ViT-B-32"
        embed_model = _load_model(name, device, dtype)
        vector_store = stack.enter_context(
            create_vector_store(embed_model, uri=uri, token=token, collection_name=collection)
        )
        stack.enter_context(_reported(as_json))
        result = sync_images(
            folder,
            embed_model=embed_model,
            vector_store=vector_store,
            delete=delete,
            dry_run=dry_run,
            checksum=checksum,
            report_path=report,
            batch_size=batch_size,
            recursive=recursive,
            show_progress=sys.stderr.isatty(),
            namespace=namespace,
            wait_for_index=wait,
        )
    _print_report(result, as_json)
    if not result.total:
        raise no_images(folder)
    if len(result.failed) == result.total:
        raise typer.Exit(1)


@app.command()
def search(
    text: Annotated[str | None, typer.Argument(help="What the pictures should show.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="Find what is like this picture; with a TEXT, both count.")
    ] = None,
    minus: Annotated[
        list[str] | None, typer.Option(help="A text for what is not wanted; may be repeated.")
    ] = None,
    mode: Annotated[
        Literal["default", "text_search", "hybrid"],
        typer.Option(help="By vectors, by the words of captions, or by both."),
    ] = "default",
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Fuse hybrid hits by scores: weight of the vectors. Else by rank."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top-k", min=1, max=16384, help="Hits, at most.")] = 5,
    model: Annotated[
        str | None, typer.Option(help="The collection's model, if its directory has moved.")
    ] = None,
    uri: Uri = "./clip_ext.db",
    token: Token = "",
    collection: Collection = "clip_ext",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Find pictures by a text, by a picture, or by both.

    Example: clip-ext search "a cat on a sofa" -k 3 --uri ./photos.db

    Example: clip-ext search "red" --image shoe.jpg --minus blue
    """
    from .retriever import create_retriever

    if text is None and image is None:
        raise typer.BadParameter("give a TEXT, --image FILE, or both")
    if mode == "text_search" and (image or minus):
        raise typer.BadParameter("--mode text_search takes a TEXT alone; use hybrid or default")
    with _opened(model, device, uri, token, collection) as (embed_model, vector_store):
        retriever = create_retriever(
            embed_model,
            vector_store,
            similarity_top_k=k,
            vector_store_query_mode=mode,
            alpha=alpha,
        )
        if minus or (text and image):
            query = embed_model.compose_query(text=text, image=image, minus=minus or ())
            hits = retriever.retrieve(query)
        else:
            hits = retriever.retrieve_image(image) if image else retriever.retrieve(text or "")
    _print_hits(hits, as_json)


@app.command()
def bench(
    folder: Annotated[list[str], typer.Argument(help="Folders, patterns or images.")],
    model: Annotated[str, typer.Option(help="Alias, hub id or directory.")] = "clip-ViT-B-32",
    images: Annotated[int, typer.Option(min=1, help="Pictures to measure by.")] = 256,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per forward pass.", show_default="auto")
    ] = None,
    uri: Annotated[
        str | None,
        typer.Option(help="A server to store into, in a collection that is dropped afterwards."),
    ] = None,
    token: Token = "",
    device: Device = "auto",
    dtype: DtypeOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Time the steps of indexing on your own pictures, and say what bounds it.

    Example: clip-ext bench ./photos --model clip-ViT-B-32 --dtype float32
    """
    from .nodes import list_images
    from .throughput import measure_throughput

    report = measure_throughput(
        (path for one in folder for path in list_images(one)),
        embed_model=_load_model(model, device, dtype, batch_size),
        uri=uri,
        token=_token_for(uri or "", token),
        n_images=images,
    )
    print(json.dumps(asdict(report), ensure_ascii=False) if as_json else report)


@app.command(name="eval")
def evaluate(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="JSON lines or CSV with the columns text and image; paths are relative to it."
        ),
    ],
    k: Annotated[
        list[int] | None, typer.Option("-k", min=1, max=16384, help="Hits; may be repeated.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out images that were not indexed.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The collection's model, if its directory has moved.")
    ] = None,
    uri: Uri = "./clip_ext.db",
    token: Token = "",
    collection: Collection = "clip_ext",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure how often texts find their images and images their texts: recall@k and MRR.

    Example: clip-ext eval pairs.jsonl --uri ./photos.db
    """
    from .evaluation import evaluate_retrieval
    from .pairs import read_pairs
    from .retriever import create_retriever

    read = read_pairs(pairs)
    with _opened(model, device, uri, token, collection) as (embed_model, vector_store):
        result = evaluate_retrieval(
            create_retriever(embed_model, vector_store),
            read,
            ks=k or (1, 5, 10),
            on_missing="skip" if skip_missing else "raise",
        )
    print(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else result)


@app.command()
def info(
    uri: Uri = "./clip_ext.db",
    token: Token = "",
    collection: Collection = "clip_ext",
    as_json: AsJson = False,
) -> None:
    """Say which model made a collection, how it is compared, and how many rows it holds.

    Example: clip-ext info --uri ./photos.db
    """
    from .collection import read_passport
    from .connection import split_credentials

    token = _token_for(uri, token)
    passport, count = read_passport(uri=uri, token=token, collection_name=collection)
    address, _ = split_credentials(uri)
    facts: dict[str, Any] = {"uri": address, "collection": collection, "rows": count}
    if passport:
        facts |= {**asdict(passport.space), "metric": passport.metric, "package": passport.package}
        facts |= {"full_text": passport.full_text, "calibrated": bool(passport.calibration)}
        facts |= {"format": passport.format, "provenance": passport.provenance}
    else:
        facts["model"] = "unknown: not made by this package"
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _print_table(["", ""], [[key, str(value)] for key, value in facts.items()])


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models with a name of their own; any hub id or directory works, too.

    Example: clip-ext models --json
    """
    from .models import DEMO_MODELS, list_models

    specs = list_models()
    if as_json:
        for spec in (*specs, *DEMO_MODELS.values()):
            print(json.dumps(asdict(spec), ensure_ascii=False))
        return
    rows = [
        [spec.name, spec.checkpoint, str(spec.dim), str(spec.context_length), spec.advice]
        for spec in specs
    ]
    rows += [
        [name, "ships with the package", "", "", "drawn shapes and digits only"]
        for name in DEMO_MODELS
    ]
    _print_table(["model", "checkpoint", "dim", "context", "advice"], rows)


@app.command()
def download(
    model: Annotated[str, typer.Argument(help="Alias or hub id.")],
    local_dir: Annotated[
        Path | None, typer.Option(help="A plain folder for the files, to copy elsewhere.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of a mirror of the hub.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Download a model, for use offline; prints the folder.

    Example: clip-ext download Chinese-CLIP-ViT-L --local-dir ./chinese-clip
    """
    from .checkpoint import download_model

    print(download_model(model, local_dir, endpoint=endpoint, revision=revision))


@app.command()
def quantize(
    images: Annotated[
        list[str], typer.Argument(help="Folders, patterns or images like those to be searched.")
    ],
    model: Annotated[str, typer.Option(help="Alias, hub id or directory.")] = "clip-ViT-B-32",
    n_images: Annotated[
        int, typer.Option(min=40, help="Pictures to use, at most; half of them to check.")
    ] = 300,
    min_cosine: Annotated[
        float, typer.Option(min=0, max=1, help="Of each checked picture, to float32.")
    ] = 0.999,
    min_top10_overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the 10 nearest found, too; mean.")
    ] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Make an int8 image tower from your pictures, for dtype="int8" on a CPU, and check it.

    Example: clip-ext quantize ./photos --model clip-ViT-B-32
    """
    from .nodes import list_images
    from .quantization import quantize_images

    report = quantize_images(
        _load_model(model, "cpu"),
        [path for one in images for path in list_images(one)],
        n_images=n_images,
        min_cosine=min_cosine,
        min_top10_overlap=min_top10_overlap,
        show_progress=not as_json,
    )
    facts = {**asdict(report), "folder": str(report.folder)}
    print(json.dumps(facts, ensure_ascii=False) if as_json else report)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the pictures and the result.")] = (
        Path("demo-output")
    ),
) -> None:
    """Draw pictures, index them, search in English, in Chinese and by picture; no download.

    Example: clip-ext demo --output ./demo-output
    """
    from .demo.run import run_demo

    print("Drawing pictures, indexing them with two models, and searching ...", flush=True)
    result = run_demo(output)
    print(result.note)
    for search_result in result.searches:
        print(f"\n{search_result.title}")
        _print_hits(search_result.hits, as_json=False)
    print(f"\n{result.correct} of {len(result.searches)} searches found the right picture first.")
    print(f"Contact sheet: {result.contact_sheet}")
    database = output / "demo.db"
    print(f'To go on: clip-ext search "a red heart" --uri {database} --collection demo_clip')
    if result.correct < len(result.searches):
        raise typer.Exit(1)


def _load_model(
    name: str, device: str, dtype: Dtype = "auto", batch_size: int | None = None
) -> DualEncoderEmbedding:
    from .embedding import load_embedding

    return load_embedding(name, device=device, dtype=dtype, embed_batch_size=batch_size)


def _model_of(uri: str, token: str, collection: str) -> str | None:
    """Return the model of a collection; ``None`` if there is no such collection yet."""
    from .collection import read_passport
    from .errors import StoreLockedError, StoreUnavailableError

    try:
        passport, _ = read_passport(uri=uri, token=token, collection_name=collection)
    except (StoreLockedError, StoreUnavailableError):
        raise
    except StoreError:
        return None  # What else is wrong is found, and said, where it is opened to be written.
    return passport.space.model if passport else None


@contextmanager
def _opened(
    model: str | None, device: str, uri: str, token: str, collection: str
) -> Iterator[tuple[DualEncoderEmbedding, CLIPMilvusVectorStore]]:
    """Open a collection that exists, with the model that made it unless another is named."""
    from .collection import passport_of
    from .store import create_vector_store

    token = _token_for(uri, token)
    with passport_of(uri, token, collection) as passport:
        if model is None and passport is None:
            raise typer.BadParameter("the collection does not say which model made it; --model?")
        embed_model = _load_model(model or (passport.space.model if passport else ""), device)
        with create_vector_store(
            embed_model, uri=uri, token=token, collection_name=collection
        ) as vector_store:
            yield embed_model, vector_store


def _token_for(uri: str, token: str) -> str:
    """Leave out a token of the environment, which is some server's, for an embedded file."""
    from .lite import is_lite

    return "" if is_lite(uri) and token == os.environ.get("MILVUS_TOKEN") else token


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    # On the error stream, so that what is printed can be piped.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    return Progress(*columns, console=Console(stderr=True))


@contextmanager
def _reported(as_json: bool) -> Iterator[None]:
    """After Ctrl-C, print what was done until then; exit as the shell has it."""
    from .errors import IngestInterrupted

    try:
        yield
    except IngestInterrupted as err:
        _print_report(err.report, as_json)
        print(f"clip-ext: {err}", file=sys.stderr)
        raise typer.Exit(130) from err


def _print_report(report: IngestReport, as_json: bool) -> None:
    if not as_json:
        print(report)
        return
    for failure in report.failed:
        print(json.dumps({"status": "failed", **asdict(failure)}, ensure_ascii=False))
    counts = {**asdict(report), "failed": len(report.failed), "seconds": round(report.seconds, 3)}
    counts["captions_skipped"] = len(report.captions_skipped)
    counts["images_per_second"] = round(report.images_per_second, 2)
    print(json.dumps({"status": "done", **counts}))


def _print_hits(hits: list[NodeWithScore], as_json: bool) -> None:
    from .notes import SIMILARITY_KEY

    rows = []
    for rank, hit in enumerate(hits, 1):
        metadata = hit.node.metadata
        path = metadata.get("file_path") or hit.node.node_id
        caption, cosine = hit.node.get_content(), metadata.get(SIMILARITY_KEY)
        if as_json:
            facts: dict[str, Any] = {"rank": rank, "score": hit.score, "id": hit.node.node_id}
            facts |= {"path": path, "caption": caption}
            facts |= {} if cosine is None else {"cosine": cosine}
            print(json.dumps(facts, ensure_ascii=False))
        shown = "" if cosine is None else f"{cosine:.3f}"
        rows.append([str(rank), f"{hit.score:.3f}", shown, printable(_shorten(path)), caption])
    if as_json:
        return
    if not rows:
        print("Nothing was found.")
        return
    header = ["", "score", "cosine", "image", "caption"]
    if not any(SIMILARITY_KEY in hit.node.metadata for hit in hits):
        del header[2]  # The score is the cosine.
        rows = [[*row[:2], *row[3:]] for row in rows]
    _print_table(header, rows)


def _shorten(path: str) -> str:
    """Name a file from here, if it lies below."""
    return os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A program that reads a pipe wants whole paths, not a terminal's width.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    table = Table(*header, box=box.SIMPLE, show_header=any(header), show_edge=False)
    for row in rows:
        # As text: a file may be called [red]. A caption may have several lines.
        cells = ("\n".join(map(printable, cell.splitlines())) for cell in row)
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    console.print(table)
