"""The TFDS half of preparing: candidates to ArrayRecord, without TensorFlow, since images come encoded."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tqdm import tqdm

from jaxcxr.data import tokens
from jaxcxr.data.records import SPLITS, Candidate, Ledger, Made, NotSelected, Rejected, Settings, make_record

Outcome = Made | Rejected | NotSelected


def features(size: int) -> tfds.features.FeaturesDict:
    """Returns the fields of a record: a (size, size, 1) uint8 image, its prompts and where it comes from."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
            "prompts": tfds.features.Sequence(tfds.features.Text()),
            "id": tfds.features.Text(),
            "patient": tfds.features.Text(),
            "view": tfds.features.Text(),
            "labels": tfds.features.Sequence(tfds.features.Text()),
        }
    )


class RadiographBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the candidates that a source lists; a subclass lists them.

    Attributes:
      signs: what a folder of this source has, for the error about one of none.
      licence: what may be done with its data, for the data card.
      splits: the values that `data.split` may have.
    """

    signs: ClassVar[str]
    licence: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("official",)

    VERSION = tfds.core.Version("2.0.0")
    url_infos: ClassVar[dict[str, Any]] = {}  # TFDS need not look for checksums of downloads

    def __init__(self, *, source: Path, settings: Settings, ledger: Ledger, data_dir: Path, workers: int):
        self.source, self.settings, self.ledger, self.workers = source, settings, ledger, workers
        self._counter = tokens.load(settings.tokenizer) if any(settings.tokens) else None
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    @classmethod
    def tables(cls, source: Path) -> list[Path]:
        """The tables that define a source of this kind; none if `source` is of another."""
        raise NotImplementedError

    def candidates(self) -> list[Candidate]:
        """Lists the selected images and books the others in the ledger; raises UserError on bad tables."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=features(self.settings.size),
            description=f"{type(self).__name__}: gray radiographs and prompts.",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        by_split: dict[str, list[Candidate]] = {split: [] for split in SPLITS}
        listed = self.candidates()
        for candidate in listed:
            by_split[candidate.split].append(candidate)
        bar = tqdm(total=len(listed), unit="img", desc="prepare")
        generators = {}
        for split, members in by_split.items():
            # TFDS fails on a split that yields nothing, so a split exists once its first record does.
            records = self._generate_examples(members, bar)
            first = next(records, None)
            if first is not None:
                generators[split] = itertools.chain([first], records)
        if not generators:
            self.ledger.check(self.source, self.settings.max_bad_share)
        return generators

    def _generate_examples(self, members: Iterable[Candidate], bar: tqdm) -> Iterator[tuple[str, dict[str, Any]]]:
        for candidate, outcome in _in_order(members, self._attempt, self.workers):
            bar.update()
            if isinstance(outcome, Made):
                self.ledger.keep(candidate, outcome)
                yield candidate.id, outcome.record
            else:
                self.ledger.refuse(candidate.id, outcome)
        if bar.n == bar.total:
            bar.close()

    def _attempt(self, candidate: Candidate) -> Outcome:
        try:
            return make_record(candidate, self.settings, self._counter)
        except (Rejected, NotSelected) as refusal:
            return refusal


def _in_order(
    members: Iterable[Candidate], attempt: Callable[[Candidate], Outcome], workers: int
) -> Iterator[tuple[Candidate, Outcome]]:
    """Makes records on threads (Pillow decodes outside the GIL), a bounded number ahead of the writer."""
    remaining = iter(members)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque((c, pool.submit(attempt, c)) for c in itertools.islice(remaining, 4 * workers))
        while waiting:
            candidate, future = waiting.popleft()
            yield candidate, future.result()
            waiting.extend((c, pool.submit(attempt, c)) for c in itertools.islice(remaining, 1))
