from tunerchecks import after_backward, check_gradients
from tunerworld import meta_vit_b, tiny_sam2, tune


def test_counts_on_vit_b():
    sam = meta_vit_b()
    attachment = tune("medsam", sam)
    assert (attachment.inserted_count, attachment.declared_count) == (0, 93_729_252)
    assert attachment.trained_count == 89_670_912 + 3_506_304


def test_the_prompt_encoder_is_not_counted_as_the_swap_paper_does():
    """The paper's 93,735K is all of SAM."""
    sam = meta_vit_b()
    whole = sum(p.numel() for p in sam.parameters())
    prompts = sum(p.numel() for p in sam.prompt_encoder.parameters())
    assert (whole, prompts) == (93_735_472, 6_220)
    assert tune("medsam", sam).declared_count == whole - prompts


def test_gradients(tiny_sam):
    check_gradients(after_backward(tiny_sam, "medsam"))


def test_gradients_in_sam2():
    check_gradients(after_backward(tiny_sam2(), "medsam"))
