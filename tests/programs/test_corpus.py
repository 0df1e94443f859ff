"""Documents become tokens once, and every rank sees its share of the same order."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rackscale.errors import RackscaleError
from rackscale.programs.corpus import Batches, Corpus, documents_of, prepare
from rackscale.programs.grammar import ASSISTANT, END, USER, project_text


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return prepare(None, vocab=1024, cache=None)


def row(*lengths: int) -> Corpus:
    """Documents of these lengths whose tokens are 0, 1, 2 ..."""
    starts = torch.tensor([sum(lengths[:i]) for i in range(len(lengths))])
    tokens = torch.arange(sum(lengths), dtype=torch.int32)
    return Corpus(digest="", tokens=tokens, starts=starts, vocab=len(tokens), tokenizer="")


def test_the_projects_text_is_the_same_every_time_and_varied() -> None:
    documents = project_text()
    assert documents == project_text()
    assert documents != project_text(seed=1)
    assert all(document.endswith(END) for document in documents)
    asked = {document.split(END)[0] for document in documents if document.startswith(USER)}
    answered = {document.split(ASSISTANT)[1] for document in documents if ASSISTANT in document}
    assert len(asked) > 500
    assert len(answered) > 60


def test_no_question_has_two_answers() -> None:
    answers: dict[str, set[str]] = {}
    for document in project_text():
        if document.startswith(USER):
            question, _, answer = document.partition(END)
            answers.setdefault(question.lower().rstrip("?.!"), set()).add(answer)
    assert {question: given for question, given in answers.items() if len(given) > 1} == {}


def test_tokens_are_the_text(corpus: Corpus) -> None:
    tokenizer = Tokenizer.from_str(corpus.tokenizer)
    text = tokenizer.decode(corpus.tokens.tolist(), skip_special_tokens=False)
    assert text == "".join(project_text())
    begun = {tokenizer.id_to_token(int(corpus.tokens[start])) for start in corpus.starts[:200]}
    assert USER in begun
    assert int(corpus.tokens.max()) < corpus.vocab <= 1024


def test_any_text_survives_the_tokenizer(corpus: Corpus) -> None:
    tokenizer = Tokenizer.from_str(corpus.tokenizer)
    text = "NVLink 数据 — naïve\n\t🙂 {x}"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_users_documents_are_what_blank_lines_separate(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("one\nstill one\n\n\n\ntwo\n", encoding="utf-8")
    assert documents_of(file) == [f"one\nstill one{END}", f"two{END}"]


@pytest.mark.parametrize("content", [None, b"", b" \n\n \n", b"\xff\xfe\x00"])
def test_a_text_that_says_nothing_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RackscaleError, match=r"notes\.txt"):
        documents_of(file)


def test_the_cache_is_read_and_not_made_again(tmp_path: Path) -> None:
    made = prepare(None, vocab=512, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    read = prepare(None, vocab=512, cache=tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert torch.equal(read.tokens, made.tokens)
    assert torch.equal(read.starts, made.starts)
    assert (read.vocab, read.tokenizer, read.digest) == (made.vocab, made.tokenizer, made.digest)


def test_another_text_or_vocabulary_is_another_corpus(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("a gang starts whole or not at all\n" * 20)
    digests = {prepare(text, vocab=vocab, cache=None).digest for text in (None, file) for vocab in (300, 400)}
    assert len(digests) == 4


def test_ranks_may_race_for_the_cache(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from rackscale.programs.corpus import prepare; "
        "input(); print(prepare(None, vocab=512, cache=Path(sys.argv[1])).tokens.sum().item())"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    sums = {rank.communicate("go\n", timeout=60)[0] for rank in ranks}
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert sums == {f"{prepare(None, vocab=512, cache=None).tokens.sum().item()}\n"}
    assert [path.name[:7] for path in tmp_path.iterdir()] == ["corpus-"], "one folder, and no drafts"


@given(step=st.integers(0, 10_000), world_size=st.sampled_from([1, 2, 3, 4, 6, 12]), seed=st.integers(0, 3))
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(
    step: int, world_size: int, seed: int
) -> None:
    batches = Batches(row(5, 40, 3, 17, 9), seq=8, global_batch=12, seed=seed)
    whole, _ = batches.at(step, rank=0, world_size=1)
    shares = [batches.at(step, rank=rank, world_size=world_size)[0] for rank in range(world_size)]
    assert torch.equal(torch.cat(shares), whole)


def test_the_order_depends_on_the_seed_and_the_pass() -> None:
    corpus = row(*[7] * 60)
    orders = [
        Batches(corpus, seq=8, global_batch=60, seed=seed).at(step, rank=0, world_size=1)[0][:, 0].tolist()
        for seed in (0, 1)
        for step in (0, 1)
    ]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_a_pass_draws_each_sample_once_and_leaves_no_token_out() -> None:
    corpus = row(5, 40, 3, 17, 9)
    batches = Batches(corpus, seq=8, global_batch=1, seed=0)
    passed = [batches.at(step, rank=0, world_size=1)[0] for step in range(1 + 5 + 1 + 3 + 2)]
    assert Counter(int(inputs[0, 0]) for inputs in passed).most_common(1)[0][1] == 1
    assert set(torch.cat(passed).flatten().tolist()) == set(range(74))


def test_targets_are_the_tokens_that_follow() -> None:
    inputs, targets = Batches(row(5, 40, 3), seq=8, global_batch=4, seed=0).at(0, rank=0, world_size=1)
    assert inputs.shape == targets.shape == (4, 8)
    assert torch.equal(targets, (inputs + 1) % 48), "after the last document comes the first"
