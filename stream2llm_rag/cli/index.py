"""``stream2llm index``: build, look at and search a DiskANN index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stream2llm_rag.cli.options import JsonFile, write_json
from stream2llm_rag.cli.terminal import spinner
from stream2llm_rag.documents import Document
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline.measures import seconds
from stream2llm_rag.timeline.text import clean

if TYPE_CHECKING:
    import numpy.typing as npt

    from stream2llm_rag.documents import Replace

_SUFFIXES = (".txt", ".md", ".rst")
_MAX_TEXT_CHARACTERS = 160
_STAGES = {
    "documents": "Storing documents",
    "vectors": "Writing vectors",
    "quantise": "Quantising",
    "graph": "Building the graph",
    "layout": "Laying out nodes",
    "done": "Done",
}

index_app = typer.Typer(no_args_is_help=True, help="Build, look at and search a vector index on disk.")


class Emit(StrEnum):
    """When documents are shown."""

    STABLE = "stable"
    EAGER = "eager"
    FINAL = "final"


IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.")]


@index_app.command()
def build(
    documents: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            exists=True,
            help="A folder of .txt, .md and .rst files, or a .jsonl file with a document on each line: text, source and, where "
            "there are any, title and metadata.",
        ),
    ],
    index: IndexFolder,
    vectors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy", exists=True, dir_okay=False, help="Their vectors, a row for each line of a .jsonl file."
        ),
    ] = None,
    metric: Annotated[str, typer.Option(help="`cosine`, `l2` or `inner_product`; for vectors of your own.")] = "cosine",
    num_dims: Annotated[int, typer.Option(min=1, max=4096, help="Dimensions of the built-in embedding.")] = 128,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take the place of what is in the folder.")] = False,
) -> None:
    """Build an index of documents.

    Without --vectors they are embedded by TF-IDF and a singular value decomposition: a stand-in for a real embedding model.
    """
    from stream2llm_rag.retrievers.diskann import BuildProgress, DiskANNIndex
    from stream2llm_rag.retrievers.diskann.embedding import embed_documents

    found = list(_documents(documents))
    if not found:
        raise InvalidInputError(
            f"{documents} has no document in it. Name a folder with {', '.join(_SUFFIXES)} files, or a .jsonl."
        )
    with spinner(Console(stderr=True), "Embedding") as progress:

        def show(stage: BuildProgress) -> None:
            progress.update(progress.task_ids[0], description=_STAGES[stage.stage])

        settings: dict[str, Any] = {"documents": found, "overwrite": overwrite, "on_progress": show}
        if vectors is not None:
            DiskANNIndex.build(_load(vectors), index, metric=metric, **settings)  # type: ignore[arg-type]
        else:
            embedding, embedded = embed_documents(found, num_dims)
            DiskANNIndex.build(embedded, index, metric="cosine", extras=embedding.save, **settings)
    Console().print(f"{len(found):,} documents in {index}", highlight=False, soft_wrap=True)


@index_app.command()
def info(
    index: IndexFolder,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file in full, and check it.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Say what an index holds. Exit code 2 where it is damaged."""
    from stream2llm_rag.retrievers.diskann import DiskANNIndex

    with DiskANNIndex.open(index) as opened:
        if verify:
            opened.verify()
        rows = {
            "points": opened.num_points,
            "dimensions": opened.num_dims,
            "metric": opened.metric,
            "documents": opened.has_documents,
            "reader": opened.reader,
            "calibrated_for": [
                {"top_k": row.top_k, "complexity": row.complexity, "beam_width": row.beam_width}
                for row in opened.calibration.rows
            ],
            "verified": verify,
        }
    write_json(json_file, rows)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), Text(clean(json.dumps(value).strip('"'))))
    Console().print(table)


@index_app.command()
def search(
    index: IndexFolder,
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    top_k: Annotated[int, typer.Option(min=1, help="How many documents.")] = 10,
    complexity: Annotated[int, typer.Option(min=1, help="How many candidates are kept: more find better documents.")] = 100,
    beam_width: Annotated[int, typer.Option(min=1, help="How many nodes are read at once.")] = 4,
    emit: Annotated[Emit, typer.Option(help="What is shown before the end.")] = Emit.STABLE,
    hop_delay_s: Annotated[float, typer.Option(min=0, help="Slow each hop down, to see the search stream.")] = 0.0,
) -> None:
    """Search an index with the embedding that is stored in it; what streams is told on the standard error."""
    from stream2llm_rag.retrievers.diskann import DiskANNIndex, DiskANNRetriever, LatentSemanticEmbedding

    embedding = LatentSemanticEmbedding.load(index)
    with DiskANNIndex.open(index, hop_delay_s=hop_delay_s) as opened:
        parameters: dict[str, Any] = {"top_k": top_k, "complexity": complexity, "beam_width": beam_width, "emit": emit.value}
        retriever = DiskANNRetriever(opened, embedding, **parameters)
        last = asyncio.run(_stream(retriever, question, Console(stderr=True)))
    console = Console()
    for rank, document in enumerate(last.documents, 1):
        title = clean(document.title or document.source)
        console.print(Text.assemble(f"{rank:>3}  {document.score:.4f}  ", (title, "bold")), soft_wrap=True)
        console.print(Text(f"     {clean(document.text, _MAX_TEXT_CHARACTERS)}", "dim"), soft_wrap=True)


async def _stream(retriever: Any, question: str, notes: Console) -> Replace:
    """The last delta; of each, a line on what it brought."""
    async with aclosing(retriever.stream(question)) as deltas:
        started_s: float | None = None
        async for delta in deltas:
            for event in delta.events:
                started_s = event.started_s if started_s is None else started_s
                words = f"{seconds(event.ended_s - started_s):>8}  {clean(event.title or event.kind)}"
                notes.print(Text(words, "dim"), soft_wrap=True)
            last: Replace = delta
    return last


def _documents(source: Path) -> Iterator[Document]:
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file() and (text := _read(path)).strip():
                yield Document(text, str(path.relative_to(source)), title=path.stem)
    elif source.suffix == ".jsonl":
        for number, line in enumerate(_read(source).splitlines(), 1):
            yield _document(line, f"{source}, line {number}")
    elif text := _read(source):
        yield Document(text, source.name, title=source.stem)


def _document(line: str, where: str) -> Document:
    try:
        match json.loads(line):
            case {"text": str(text), "source": str(name), **rest}:
                title, metadata = rest.get("title"), rest.get("metadata") or {}
                if (title is None or isinstance(title, str)) and isinstance(metadata, dict):
                    return Document(text, name, title, metadata=metadata)
    except ValueError:
        pass  # said below
    raise InvalidInputError(f'{where}: a document is an object such as {{"text": "...", "source": "..."}}.')


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as text: {error}.") from error


def _load(path: Path) -> npt.NDArray[Any]:
    import numpy as np

    try:
        loaded: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInputError(f"{path} holds no array of numpy's: {error}") from error
    return loaded
