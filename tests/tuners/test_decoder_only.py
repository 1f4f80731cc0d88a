import torch
from tunerchecks import after_backward, check_gradients
from tunerworld import encode, meta_vit_b, shake, tiny_sam2, tune


def test_counts_on_vit_b():
    attachment = tune("decoder-only", meta_vit_b())
    assert (attachment.inserted_count, attachment.declared_count) == (0, 4_058_340)
    # Without three hypernetworks and the IoU head: 4,058,340 - 3 * 139,808 - 132,612.
    assert attachment.trained_count == 3_506_304


def test_the_decoder_is_freed_whole(tiny_sam):
    freed = tune("decoder-only", tiny_sam).freed
    assert freed.keys() == {f"mask_decoder.{name}" for name, _ in tiny_sam.mask_decoder.named_parameters()}


def test_gradients(tiny_sam):
    attachment = after_backward(tiny_sam, "decoder-only")
    check_gradients(attachment)
    idle = attachment.freed.keys() - attachment.trained().keys()
    assert {name.split(".")[1] for name in idle} == {"iou_prediction_head", "output_hypernetworks_mlps"}
    assert not [name for name in idle if name.startswith("mask_decoder.output_hypernetworks_mlps.0.")]


def test_gradients_in_sam2():
    attachment = after_backward(tiny_sam2(), "decoder-only")
    check_gradients(attachment)
    idle = attachment.freed.keys() - attachment.trained().keys()
    heads = {"iou_prediction_head", "output_hypernetworks_mlps", "pred_obj_score_head"}
    assert {name.split(".")[1] for name in idle} == heads


def test_features_stay_as_they_are(tiny_sam):
    features = encode(tiny_sam)
    shake(tune("decoder-only", tiny_sam))
    assert torch.equal(encode(tiny_sam), features)
