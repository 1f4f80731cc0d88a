import pytest
import torch

from redfree.models.decoding import decode_all_masks, decode_features, embed_points, sam_layers


def official(sam, features, points, labels):
    """The official decoder's first output for each pair of one feature map and one prompt."""
    logits, iou = [], []
    for image, point, label in zip(features, points, labels, strict=True):
        sparse, dense = sam.prompt_encoder(points=(point[None], label[None]), boxes=None, masks=None)
        masks, quality = sam.mask_decoder(
            image_embeddings=image[None],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        logits.append(masks[0, 0])
        iou.append(quality[0, 0])
    return torch.stack(logits), torch.stack(iou)


@pytest.mark.parametrize(
    ("prompts", "labels"),
    [
        (1, [1]),
        (1, [1, 0, 1]),
        (5, [1]),
        (5, [1, 1, 1]),
        (5, [0, 1]),
    ],
    ids=["one prompt", "one prompt of three points", "B prompts", "B prompts of three points", "negative label"],
)
def test_logits_and_iou_equal_the_official_decoder(tiny_sam, prompts, labels):
    features = torch.randn(5, 16, 4, 4)
    points = torch.randint(0, 64, (prompts, len(labels), 2)).float()
    labels = torch.tensor([labels] * prompts)
    logits, iou = decode_features(sam_layers(tiny_sam), features, embed_points(tiny_sam.prompt_encoder, points, labels))
    expected = official(tiny_sam, features, points.expand(5, -1, -1), labels.expand(5, -1))
    assert logits.shape == (5, 16, 16)
    assert iou.shape == (5,)
    torch.testing.assert_close((logits, iou), expected, atol=1e-5, rtol=1e-5)
    assert logits.std() > 1e-2, "the comparison must not be of constants"


def test_one_feature_map_equals_the_official_decoder(tiny_sam):
    features, points, labels = torch.randn(1, 16, 4, 4), torch.tensor([[[10.0, 50.0]]]), torch.ones(1, 1)
    decoded = decode_features(sam_layers(tiny_sam), features, embed_points(tiny_sam.prompt_encoder, points, labels))
    torch.testing.assert_close(decoded, official(tiny_sam, features, points, labels), atol=1e-5, rtol=1e-5)


def test_a_negative_label_is_another_prompt(tiny_sam):
    layers, features, points = sam_layers(tiny_sam), torch.randn(1, 16, 4, 4), torch.tensor([[[10.0, 50.0]]])
    positive, negative = (
        decode_features(layers, features, embed_points(layers.prompt_encoder, points, torch.tensor([[label]])))[0]
        for label in (1, 0)
    )
    assert not torch.allclose(positive, negative, atol=1e-3)


def test_all_masks_equal_the_official_multimask_outputs(tiny_sam):
    layers, features, points = sam_layers(tiny_sam), torch.randn(1, 16, 4, 4), torch.tensor([[[10.0, 50.0]]])
    sparse = embed_points(layers.prompt_encoder, points, torch.ones(1, 1))
    masks, iou = decode_all_masks(layers, features, sparse)
    dense = tiny_sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, 4, 4)
    expected = tiny_sam.mask_decoder.predict_masks(features, tiny_sam.prompt_encoder.get_dense_pe(), sparse, dense)
    torch.testing.assert_close((masks, iou), expected, atol=1e-5, rtol=1e-5)
