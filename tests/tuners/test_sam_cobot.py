import pytest
import torch
from segment_anything import sam_model_registry
from tunerchecks import after_backward, check_gradients
from tunerworld import meta_vit_b, shake, tiny_eva, tiny_sam2, tiny_vit, tune

from redfree.errors import UserError
from redfree.tuners.catalogue import tuner_options

BOTH = pytest.mark.parametrize("flavour", ["lora", "adapter"])


def cobot(module, flavour="lora", **options):
    return tune("sam-cobot", module, flavour=flavour, **options)


@pytest.mark.parametrize(
    ("flavour", "inserted", "original"), [("lora", 148_320, 4_206_660), ("adapter", 324_048, 4_382_388)]
)
def test_counts_on_vit_b(flavour, inserted, original):
    paper, authors = (cobot(meta_vit_b(), flavour, variant=variant) for variant in ("paper", "original"))
    assert (paper.inserted_count, paper.declared_count) == (inserted, inserted)
    assert (authors.inserted_count, authors.declared_count) == (inserted, original)
    assert authors.trained_count == inserted + 3_506_304
    assert {name.split(".")[0] for name in authors.freed} == {"mask_decoder"}


@pytest.mark.parametrize(
    ("flavour", "count"),
    [
        ("lora", 24 * 2 * (2 * 1024 * 4 + 4 + 4) + 4 * 48 + 48**2),
        ("adapter", 24 * (2 * 1024 * 16 + 16 + 3 * 1024 + 16 + 64) + 16 * 24 + 24**2),
    ],
)
def test_the_relation_is_as_deep_as_the_model(flavour, count):
    with torch.device("meta"):
        sam = sam_model_registry["vit_l"](checkpoint=None)
    assert cobot(sam, flavour).inserted_count == count


@pytest.mark.parametrize(
    ("flavour", "rank", "count"),
    [
        ("lora", 8, 12 * 2 * (2 * 768 * 8 + 8 + 16) + 8 * 24 + 24**2),
        ("adapter", 4, 12 * (2 * 768 * 4 + 4 + 3 * 768 + 4 + 4) + 4 * 12 + 12**2),
    ],
)
def test_counts_of_other_ranks(flavour, rank, count):
    assert cobot(meta_vit_b(), flavour, rank=rank).inserted_count == count


def test_names_are_readable_and_shared_parameters_are_there_once(tiny_sam):
    updates = [f"blocks.{block}.{part}." for block in range(2) for part in "qv"]
    ends = ["A", "B", "link.gamma", "link.head.weight"]
    shared = ["relation.coefficients", "relation.matrix"]
    assert sorted(cobot(tiny_sam).inserted) == sorted([*shared, *(start + end for start in updates for end in ends)])


def test_names_of_the_adapter(tiny_sam):
    layers = ["norm", "down", "up"]
    ends = [*(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")), "link.gamma", "link.head.weight"]
    shared = ["relation.coefficients", "relation.matrix"]
    expected = sorted([*shared, *(f"blocks.{block}.{end}" for block in range(2) for end in ends)])
    assert sorted(cobot(tiny_sam, "adapter").inserted) == expected


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_gradients_of_lora_at_the_start_are_those_of_b_alone(tiny_sam, variant):
    attachment = after_backward(tiny_sam, "sam-cobot", variant=variant)
    check_gradients(attachment, zero=[name for name in attachment.inserted if not name.endswith(".B")])


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_gradients_of_the_adapter_at_the_start_are_those_of_the_way_up(tiny_sam, variant):
    attachment = after_backward(tiny_sam, "sam-cobot", flavour="adapter", variant=variant)
    check_gradients(attachment, zero=[name for name in attachment.inserted if ".up." not in name])


@BOTH
@pytest.mark.parametrize("variant", ["paper", "original"])
def test_gradients_after_a_step(tiny_sam, flavour, variant):
    check_gradients(after_backward(tiny_sam, "sam-cobot", 0.1, flavour=flavour, variant=variant))


@BOTH
def test_gradients_in_sam2(flavour):
    check_gradients(after_backward(tiny_sam2(), "sam-cobot", 0.1, flavour=flavour))


@BOTH
@pytest.mark.parametrize("build", [tiny_vit, tiny_eva])
def test_gradients_in_models_that_give_tokens(build, flavour):
    module = build()
    attachment = cobot(module, flavour)
    shake(attachment, 0.1)
    module(torch.randn(1, 3, 32, 32)).square().sum().backward()
    check_gradients(attachment)


@BOTH
def test_seeds_draw_the_same_start(tiny_sam, flavour):
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        attachment = cobot(tiny_sam, flavour)
        states.append(attachment.state())
        attachment.detach()
    same_start = [all(torch.equal(value, states[0][name]) for name, value in state.items()) for state in states]
    assert same_start == [True, True, False]


def test_ranks_by_default():
    ranks = [tuner_options("sam-cobot", {"flavour": flavour}).rank for flavour in ("lora", "adapter")]
    assert ranks == [4, 16]
    assert tuner_options("sam-cobot", {}) == tuner_options("sam-cobot", {"flavour": "lora", "rank": 4})


@pytest.mark.parametrize("rank", [0, -4, 6])
def test_a_rank_that_makes_no_quaternions(rank):
    with pytest.raises(UserError, match=r"^options of sam-cobot: field rank: Input should be [^\n]*$"):
        tuner_options("sam-cobot", {"rank": rank})


def test_a_flavour_that_does_not_exist():
    with pytest.raises(UserError, match=r"^options of sam-cobot: field flavour: Input should be 'lora' or 'adapter'$"):
        tuner_options("sam-cobot", {"flavour": "prefix"})


def test_an_encoder_without_blocks(tiny_sam):
    tiny_sam.image_encoder = torch.nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"^the encoder has no blocks with a linear attn\.qkv to tune; [^\n]*$"):
        cobot(tiny_sam)
    mend = "use segment_anything, sam2 or timm's vision transformers"
    with pytest.raises(UserError, match=f"^sam-cobot: Sam has no MLP in a block; {mend}$"):
        cobot(tiny_sam, "adapter")
