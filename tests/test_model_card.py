"""The card of a shipped model says what its file and the committed records say."""

import re
from pathlib import Path

import pytest

from redfree.files import sha256_of
from redfree.models.weights import WEIGHTS
from redfree.records.store import read_record

RESULTS = Path(__file__).parents[1] / "results"
CARDS = sorted(WEIGHTS.glob("*.md"))


def baseline_score(dataset):
    """Test mIoU of the shipped model in the committed default suite, and the hash of the weights it belongs to."""
    folder = RESULTS / "seg" / "sam_nano" / f"procedural-{dataset}" / "baseline"
    record = read_record(min(folder.glob("*.json")))
    return record.scores[0].value, record.spec.model.checkpoint_sha256


@pytest.mark.parametrize("card", CARDS, ids=lambda p: p.stem)
def test_card_names_the_hash_of_the_file(card):
    assert sha256_of(card.with_suffix(".safetensors")) in card.read_text()


@pytest.mark.parametrize("dataset", ["natural", "medical", "camouflaged"])
def test_card_states_the_recorded_scores(dataset):
    value, sha256 = baseline_score(dataset)
    card = (WEIGHTS / "sam_nano.md").read_text()
    assert re.search(rf"\| {dataset}.*\| {100 * value:.2f} \|", card)
    assert sha256 == sha256_of(WEIGHTS / "sam_nano.safetensors")


def test_the_natural_domain_is_learnt():
    assert baseline_score("natural")[0] >= 0.78
