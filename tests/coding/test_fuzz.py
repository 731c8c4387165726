import os
import time

import pytest
import torch

from comneck_hf.coding.bitstream import Bitstream, BitstreamError
from comneck_hf.evaluation.fuzz import fuzz, run_cases, tiny_codec_target
from comneck_hf.evaluation.mutations import MUTATIONS, mutated


CASES = 20_000


@pytest.fixture(scope="module")
def tiny():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tiny_codec_target()
    torch.set_num_threads(before)


def test_20000_broken_bitstreams_give_latents_or_a_bitstream_error(tiny):
    target, corpus = tiny
    report = run_cases(target, corpus, range(CASES))
    assert report.failures == []
    assert report.cases == sum(report.outcomes.values()) == CASES
    assert report.max_cpu_ms < 1000


def test_every_mutation_is_drawn_and_those_with_repaired_checksums_reach_the_decoder(tiny):
    target, corpus = tiny
    seen = dict.fromkeys(MUTATIONS, 0)
    messages = set()
    for number in range(1500):
        name, data = mutated(number, corpus, seed=1)
        seen[name] += 1
        if "repaired" in name:
            try:
                target(data)
                messages.add("latents")
            except BitstreamError as error:
                messages.update(word for word in ("entropy-coded", "limit", "another model") if word in str(error))
    assert min(seen.values()) > 10
    assert messages == {"latents", "entropy-coded", "limit", "another model"}


def test_a_case_has_the_same_bytes_every_time(tiny):
    _, corpus = tiny
    assert mutated(77, corpus, seed=3) == mutated(77, corpus, seed=3)
    assert mutated(77, corpus, seed=3) != mutated(77, corpus, seed=4)


def test_the_unbroken_bitstreams_decode(tiny):
    target, corpus = tiny
    assert len(corpus) >= 10
    for data in corpus:
        assert target(data).isfinite().all()


WEAK_CASES = {30: "crash", 31: "hang", 32: "IndexError", 33: "latents that are not finite"}


def weak_target():
    """Fails in every way that a decoder can, one way for each of four cases."""
    corpus = [Bitstream(1, 64, 64, bytes(range(size))).pack() for size in (30, 60)]
    outcomes = {mutated(number, corpus)[1]: outcome for number, outcome in WEAK_CASES.items()}

    def target(data: bytes) -> torch.Tensor:
        match outcomes.get(data):
            case "crash":
                os.abort()
            case "hang":
                while True:
                    time.process_time()
            case "IndexError":
                raise IndexError("read behind the end")
            case "latents that are not finite":
                return torch.tensor([float("nan")])
        raise BitstreamError("refused")

    return target, corpus


def test_crashes_hangs_wrong_exceptions_and_wrong_latents_of_a_worker_are_reported():
    progress = []
    report = fuzz(weak_target, cases=550, limit_s=0.3, on_progress=progress.append)
    assert {failure["number"]: failure["outcome"] for failure in report.failures} == WEAK_CASES
    assert report.cases == 550 == sum(progress)
    assert report.num_failures == 4
    assert set(report.to_dict()["outcomes"]) <= set(MUTATIONS)
