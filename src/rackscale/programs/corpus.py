"""What is learned: documents as tokens, the tokenizer trained on them, and the order in which ranks see them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rackscale.errors import RackscaleError
from rackscale.programs.grammar import ASSISTANT, END, USER, project_text

FORMAT = b"corpus 1"
"""Part of every corpus's digest: raise the number when the same text would become other tokens."""


def documents_of(file: Path) -> list[str]:
    """A user's text: documents are what blank lines separate."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RackscaleError(f"the text {file} can't be read: {error}") from error
    documents = [f"{document.strip()}{END}" for document in text.split("\n\n") if document.strip()]
    if not documents:
        raise RackscaleError(f"the text {file} is empty")
    return documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Tokens of all documents in one row, where documents start, and the tokenizer as its JSON text."""

    digest: str
    """Names the text and the size of its vocabulary."""
    tokens: Tensor
    """int32 [n]"""
    starts: Tensor
    """int64 [documents]: where in `tokens` each begins."""
    vocab: int
    tokenizer: str

    @classmethod
    def make(cls, documents: Sequence[str], *, vocab: int, digest: str) -> Corpus:
        # Seldom needed: a resume reads the tokens from the cache.
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[END, USER, ASSISTANT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(documents, trainer)
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(documents))]
        lengths = torch.tensor([len(row) for row in rows])
        return cls(
            digest=digest,
            tokens=torch.tensor([token for row in rows for token in row], dtype=torch.int32),
            starts=lengths.cumsum(0) - lengths,
            vocab=tokenizer.get_vocab_size(),
            tokenizer=tokenizer.to_str(),
        )

    @classmethod
    def read(cls, folder: Path) -> Corpus:
        arrays = load_file(folder / "tokens.safetensors")
        return cls(
            digest=folder.name.removeprefix("corpus-"),
            tokens=arrays["tokens"],
            starts=arrays["starts"],
            vocab=int(arrays["vocab"]),
            tokenizer=(folder / "tokenizer.json").read_text(encoding="utf-8"),
        )

    def write(self, folder: Path) -> None:
        vocab = torch.tensor(self.vocab)
        save_file(
            {"tokens": self.tokens, "starts": self.starts, "vocab": vocab}, folder / "tokens.safetensors"
        )
        (folder / "tokenizer.json").write_text(self.tokenizer, encoding="utf-8")


def prepare(text: Path | None, *, vocab: int, cache: Path | None) -> Corpus:
    """The corpus of `text` (None: the project's own), from `cache` where some attempt or rank has put it.

    Every rank may call this at once: the first to finish publishes its work, and all read what is published.
    Raises RackscaleError where the text can't be read or says nothing.
    """
    documents = project_text() if text is None else documents_of(text)
    digest = _digest(documents, vocab)
    if cache is None:
        return Corpus.make(documents, vocab=vocab, digest=digest)
    folder = cache / f"corpus-{digest}"
    if not folder.is_dir():
        _publish(Corpus.make(documents, vocab=vocab, digest=digest), folder)
    return Corpus.read(folder)


def _digest(documents: Sequence[str], vocab: int) -> str:
    digest = hashlib.sha256(b"%s %d\0" % (FORMAT, vocab))
    for document in documents:
        digest.update(document.encode() + b"\0")
    return digest.hexdigest()[:16]


def _publish(corpus: Corpus, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".corpus-", dir=folder.parent))
    try:
        corpus.write(draft)
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft)
        if not folder.is_dir():  # else another rank was first
            raise


class Batches:
    """What each rank sees at each step: a pure function of (seed, step), whatever the number of ranks.

    A sample is `seq` tokens and their successors, from the start of a document, or of each `seq` tokens inside a long
    one, running on into the documents behind it. Each pass draws all samples once, in an order of its own.
    """

    def __init__(self, corpus: Corpus, *, seq: int, global_batch: int, seed: int) -> None:
        self._tokens, self._global_batch, self._seed = corpus.tokens, global_batch, seed
        self._window = torch.arange(seq + 1)
        ends = torch.cat((corpus.starts[1:], torch.tensor([len(corpus.tokens)])))
        samples = (ends - corpus.starts + seq - 1) // seq
        first = (samples.cumsum(0) - samples).repeat_interleave(samples)
        nth = torch.arange(len(first)) - first
        self._samples = corpus.starts.repeat_interleave(samples) + nth * seq
        self._pass, self._order = -1, self._samples

    def at(self, step: int, *, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets [global_batch / world_size, seq] of `rank` at `step` (steps count from 0)."""
        share = self._global_batch // world_size
        first = step * self._global_batch + rank * share
        chosen = torch.stack([self._sample(n) for n in range(first, first + share)])
        rows = self._tokens[(chosen[:, None] + self._window) % len(self._tokens)].long()
        return rows[:, :-1], rows[:, 1:]

    def _sample(self, number: int) -> Tensor:
        """Where the sample begins that is `number`-th since training began."""
        nth_pass, place = divmod(number, len(self._samples))
        if nth_pass != self._pass:
            dice = torch.Generator().manual_seed(self._seed * 1_000_003 + nth_pass)
            self._order = self._samples[torch.randperm(len(self._samples), generator=dice)]
            self._pass = nth_pass
        return self._order[place]
