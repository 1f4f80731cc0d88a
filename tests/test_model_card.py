"""The card of a shipped model says what its file and the committed records say."""

import re
from pathlib import Path

import pytest

from redfree.files import sha256_of
from redfree.models.catalogue import MODELS
from redfree.models.weights import WEIGHTS
from redfree.records.store import read_record

RESULTS = Path(__file__).parents[1] / "results"
CARDS = sorted(WEIGHTS.glob("*.md"))


# Where the baseline of each shipped model that makes masks is recorded.
SUITES = {"sam_nano": "seg", "sam_nano256": "search", "sam2_nano": "seg"}
DOMAINS = ("natural", "medical", "camouflaged")


def baseline_score(model, dataset):
    """Test mIoU of a shipped model in the committed records, and the hash of the weights it belongs to."""
    folder = RESULTS / SUITES[model] / model / f"procedural-{dataset}" / "baseline"
    record = read_record(min(folder.glob("*.json")))
    return record.scores[0].value, record.spec.model.checkpoint_sha256


def test_every_shipped_model_has_a_card_and_records():
    shipped = {name: entry for name, entry in MODELS.items() if entry.ships}
    cards, files = ([path.stem for path in WEIGHTS.glob(f"*.{kind}")] for kind in ("md", "safetensors"))
    assert set(shipped) == set(cards) == set(files)
    assert set(SUITES) == {name for name, entry in shipped.items() if entry.promptable}


@pytest.mark.parametrize("card", CARDS, ids=lambda p: p.stem)
def test_card_names_the_hash_of_the_file(card):
    text, entry = card.read_text(), MODELS[card.stem]
    assert sha256_of(card.with_suffix(".safetensors")) in text
    assert f"| parameters | {entry.parameters:,} |" in text
    assert f"{card.with_suffix('.safetensors').stat().st_size:,} bytes" in text


@pytest.mark.parametrize("model", SUITES)
@pytest.mark.parametrize("dataset", DOMAINS)
def test_card_states_the_recorded_scores(model, dataset):
    value, sha256 = baseline_score(model, dataset)
    card = (WEIGHTS / f"{model}.md").read_text()
    assert re.search(rf"\| {dataset}.*\| {100 * value:.2f} \|", card)
    assert sha256 == sha256_of(WEIGHTS / f"{model}.safetensors")


@pytest.mark.parametrize("model", SUITES)
def test_the_natural_domain_is_learnt(model):
    assert baseline_score(model, "natural")[0] >= 0.78
