"""Data sets in Parquet as Hugging Face's datasets writes them: shards with a column of encoded pictures, and others.

pyarrow reads them; datasets is not needed. A picture is read with the row group that it is in.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from jaxcxr import parsing
from jaxcxr.data import folder as image_folder
from jaxcxr.data import images
from jaxcxr.data.prompts import check_templates
from jaxcxr.data.records import Candidate, Rejected, Where
from jaxcxr.data.source import Source
from jaxcxr.data.tables import names_to_print
from jaxcxr.errors import UserError, one_line

_TOPS = ("", "data")  # the folders that shards or folders named for splits are in
_SHARD = re.compile(r"([A-Za-z]+)(-\d+-of-\d+)?(-[0-9a-f]{16})?\.parquet")  # of a split; older ones end in a hash
_IMAGE, _LABEL = "image", "label"
_MOST_GROUP = 4 * 2**30  # bytes of a column of pictures in one row group, which is read as a whole


def split_of(name: str) -> str | None:
    """The split that a file's name in a data set says that it is of; None if it is no shard.

    `train-00000-of-00002.parquet` or `validation.parquet`, here or in `data/`, or any in a folder named for a split.
    Others there are of the split `train`.
    """
    path = PurePosixPath(name)
    if path.suffix != ".parquet" or path.name == image_folder.METADATA_PARQUET:
        return None
    top, named = ("" if str(each) == "." else str(each) for each in (path.parent, path.parent.parent))
    if top in _TOPS:
        found = _SHARD.fullmatch(path.name)
        return image_folder.SPLIT_NAMES.get(found[1], "train") if found else "train"
    return image_folder.SPLIT_NAMES.get(path.parent.name) if named in _TOPS else None


def find(source: Path) -> dict[Path, str]:
    """The shards of a folder, each with its split."""
    tops = [source / top / name for top in _TOPS for name in ("", *image_folder.SPLIT_NAMES)]
    files = sorted({file for top in tops for file in top.glob("*.parquet")})
    named = {file: split_of(file.relative_to(source).as_posix()) for file in files}
    return {file: split for file, split in named.items() if split}


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Yields a table that is open.

    Raises:
      UserError: pyarrow is not installed, or the file is damaged, now or later in the block.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{file}: pyarrow is not installed; type pip install 'jaxcxr[data]'") from error
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield table
    except UserError:
        raise
    except Exception as error:  # of pyarrow's own classes, and Python's where a text is not UTF-8 or a time is none
        raise UserError(f"{file}: cannot be read ({one_line(type(error).__name__)}); fetch it again") from error


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table as dicts of its `_columns`; numbers of classes become their names.

    Raises:
      UserError: as `opened`.
    """
    with opened(file) as table:
        names = _classes(file, table.schema_arrow.metadata)
        for batch in table.iter_batches(256, columns=_columns(table.schema_arrow)):
            for row in batch.to_pylist():
                yield {key: _named(value, names[key]) if key in names else value for key, value in row.items()}


def _classes(file: Path, metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names of the classes of each column that has numbers of them, as datasets describes it in the schema."""
    described = (metadata or {}).get(b"huggingface")
    if described is None:
        return {}
    where = f"{file}: its schema's description"
    info: dict[str, Any] = parsing.parse_json(described, dict[str, Any], where, remedy="fetch it again")
    features = (info.get("info") or {}).get("features") if isinstance(info.get("info") or {}, dict) else None
    found: dict[str, list[str]] = {}
    for name, feature in (features or {}).items() if isinstance(features, dict) else ():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            found[name] = parsing.convert(inner.get("names") or [], list[str], f"{where}: {one_line(name)}")
    return found


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None  # −1 is a class that is not known
    return value


class _Row(NamedTuple):
    file: Path
    number: int  # from 0
    split: str
    values: dict[str, Any]


class ParquetFolder(Source):
    """Shards with a column of pictures: other columns as in an `ImageFolder`; `label` is a label too."""

    signs = "train-….parquet (here, in data/ or in train/)"
    licence = "That of the images and texts it was made of."

    @classmethod
    def tables(cls, folder: Path) -> list[Path]:
        """The shards."""
        return list(find(folder))

    def rows(self) -> Iterator[tuple[Where, _Row]]:
        """The rows of the shards; see the base class."""
        for file, split in find(self.folder).items():
            with opened(file) as table:
                _pictures(file, table.schema_arrow)
                columns = _columns(table.schema_arrow)
            offered = {image_folder.field_of(name) for name in columns if image_folder.is_field(name)}
            check_templates(self.settings.prompts, offered, str(file))
            for number, values in enumerate(read_rows(file)):
                yield self.where(file, number + 1), _Row(file, number, split, values)

    def candidate(self, row: _Row) -> Candidate:
        """See the base class. Rows without `patient` are each their own patient."""
        name = f"{row.file.relative_to(self.folder).as_posix()}:{row.number + 1}"
        values = row.values
        if isinstance(label := values.get(_LABEL), str) and "labels" not in values:
            values = {**values, "labels": [label]}
        elif isinstance(label, list) and "labels" not in values:
            values = {**values, "labels": [each for each in label if each is not None]}
        return image_folder.candidate(self, name, f"{row.file}:{row.number}", row.split, values)

    def picture(self, candidate: Candidate) -> Image.Image:
        """See the base class; raises Rejected where a row has none."""
        file, _, number = candidate.image.rpartition(":")
        begin, cells = self._group(Path(file), int(number))
        if not (data := cells[int(number) - begin].as_py()):
            raise Rejected("missing_image")
        return images.picture_in(data, self.settings.max_pixels)

    @functools.cached_property
    def _starts(self) -> Any:
        return functools.lru_cache(maxsize=4096)(_starts)

    @functools.cached_property
    def _encoded(self) -> Any:
        return functools.lru_cache(maxsize=2)(_encoded)

    def _group(self, file: Path, number: int) -> tuple[int, Any]:
        """The first row of the row group that row `number` is in, and its encoded pictures."""
        starts = self._starts(file)
        group = next(place for place in reversed(range(len(starts))) if starts[place] <= number)
        return starts[group], self._encoded(file, group)


def _starts(file: Path) -> list[int]:
    """The first row of each row group."""
    with opened(file) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    return [sum(sizes[:group]) for group in range(len(sizes))]


def _encoded(file: Path, group: int) -> Any:
    """The encoded pictures of a row group."""
    with opened(file) as table:
        if (size := table.metadata.row_group(group).total_byte_size) > _MOST_GROUP:
            raise UserError(f"{file}: row group {group} has {size:,} bytes, and is read as a whole; write smaller ones")
        column = _pictures(file, table.schema_arrow)
        read = table.read_row_group(group, columns=[f"{column}.bytes"])
        return read.column(column).combine_chunks().field("bytes")


def _pictures(file: Path, schema: Any) -> str:
    """The name of the column of pictures: `image`, or the only one of that kind."""
    found = [field.name for field in schema if _is_pictures(field.type)]
    if _IMAGE in found or len(found) == 1:
        return _IMAGE if _IMAGE in found else found[0]
    what = f"several columns of pictures, {names_to_print(found)}, and none is" if found else "no column of pictures,"
    raise UserError(
        f"{file}: has {what} image, a struct of bytes and path; its columns are {names_to_print(schema.names)}"
    )


def _columns(schema: Any) -> list[str]:
    """The columns of texts, numbers and lists of these: neither pictures nor other bytes, which may be large."""
    from pyarrow import types

    def is_plain(kind: Any) -> bool:
        if types.is_list(kind) or types.is_large_list(kind):
            return is_plain(kind.value_type)
        return not (types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))

    return [field.name for field in schema if is_plain(field.type)]


def _is_pictures(kind: Any) -> bool:
    import pyarrow

    if not pyarrow.types.is_struct(kind):
        return False
    place = kind.get_field_index("bytes")
    return place >= 0 and (pyarrow.types.is_binary(kind[place].type) or pyarrow.types.is_large_binary(kind[place].type))
