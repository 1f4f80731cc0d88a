import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from segment_anything import SamPredictor

import redfree
from redfree import cli
from redfree.bench import methods
from redfree.bench.adapt import AdaptOptions, adapt, write_adaptation
from redfree.channels import ChannelMap
from redfree.data.procedural.scenes import draw
from redfree.data.prompts import distance_transform
from redfree.data.reading import read_image, read_mask
from redfree.errors import UserError
from redfree.models import catalogue, weights
from redfree.models.sam import SamModel
from redfree.models.sam2_nano import build_sam2_nano
from redfree.records import statistics
from redfree.records.invariants import violations
from redfree.records.store import read_counts, read_record
from redfree.report.adaptation import render_page, verdict, write_report
from redfree.report.examples import Segmentation
from redfree.search.evaluate import SegmentationEvaluator
from redfree.tasks.segmentation import count_pixels

IMAGES = [f"scene{index}" for index in range(6)]


@pytest.fixture(autouse=True)
def checkpoint(monkeypatch, tmp_path, tiny_model, tiny_sam):
    """Weights of a tiny model that does not ship; intervals are of few resamples."""
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path / "nothing-ships")
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    save_file(tiny_sam.state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture(scope="session")
def scenes():
    return [draw("medical", "train", index) for index in range(len(IMAGES))]


def write_scene(scene, image, mask, point=None):
    for path, pixels in ((image, scene.image), (mask, scene.masks[0].astype(np.uint8) * 255)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    if point is not None:
        ((x, y),) = distance_transform(scene.masks[0]).points
        point.write_text(f"{x:g},{y:g}\n")


@pytest.fixture
def flat(tmp_path, scenes):
    def flat(name="flat", chosen=(0, 1, 2, 3, 4, 5)):
        folder = tmp_path / name
        for n in chosen:
            write_scene(scenes[n], *(folder / f"{IMAGES[n]}.{kind}" for kind in ("bmp", "png", "txt")))
        return folder

    return flat


@pytest.fixture
def run(tmp_path, checkpoint):
    """Adapts and writes everything, as the command does: the adaptation and its folder."""

    def run(name="out", cache="cache", **options):
        given = {"n_search": 3, "n_pairs": 2, "folds": 2, "threads": 1, "guard": "none", **options}
        chosen = AdaptOptions("tiny", tmp_path / name, checkpoint, **given)
        found = adapt(chosen, tmp_path / cache)
        write_adaptation(found, chosen.out)
        write_report(found, chosen.out)
        return found, chosen.out

    return run


@pytest.fixture
def judge(monkeypatch):
    """Fixes the guard's answer; the rest of its verdict stays as it is."""

    def judge(accepted):
        real = methods.cross_validate
        monkeypatch.setattr(methods, "cross_validate", lambda *given: replace(real(*given), accepted=accepted))

    return judge


def ids(evaluator):
    return [sample.id for sample in evaluator.samples]


def lasting(out):
    """The written record without what differs from run to run."""
    data = json.loads((out / "record.json").read_text())
    for name in ("created_at", "phases", "env"):
        del data[name]
    del data["cost"]["scoring_seconds"]
    for step in data["result"]["trace"]:
        del step["seconds"]
    return data


@pytest.mark.parametrize("guard", ["none", "one_standard_error"])
def test_what_is_written_is_sound_and_agrees(run, flat, guard):
    found, out = run(data=flat(), guard=guard)
    record = read_record(out / "record.json")
    counts = read_counts(out / "record.json", record.files["counts"])
    assert violations(record, counts) == []
    swap = redfree.load_swap(out / "swap.json")
    assert list(swap.pairs) == record.result.pairs
    extra = json.loads((out / "swap.json").read_text())
    assert extra["checkpoint_sha256"] == record.spec.model.checkpoint_sha256
    assert extra["run_id"] == record.run_id == record.spec.run_id()
    assert [tuple(pair) for pair in extra["searched_pairs"]] == record.result.searched_pairs != []
    assert (extra["guard"] is None) == (record.result.guard is None) == (guard == "none")
    assert record.spec.method.params["guard"] == guard
    assert counts["id"].tolist() == ids(found.measurement.setup.test)
    assert np.array_equal(counts[["tp", "fp", "fn", "tn"]], found.after)


def test_test_images_have_no_part_in_the_search(run, flat):
    setup = run(data=flat())[0].measurement.setup
    searched, tested = ids(setup.choosing), ids(setup.test)
    assert len(searched) == len(tested) == 3
    assert sorted(searched + tested) == IMAGES
    other = run("other", data=flat(), seed=1)[0].measurement.setup
    assert sorted(ids(other.test)) != sorted(tested), "the seed divides the folder"


def test_counts_are_those_of_the_official_predictor_with_and_without_the_swap(run, flat, checkpoint):
    found, out = run(data=flat())
    predictor = SamPredictor(redfree.load_sam("tiny", checkpoint))
    swap = redfree.load_swap(out / "swap.json")
    assert not swap.is_identity

    def predicted(id_):
        x, y = (float(n) for n in (flat() / f"{id_}.txt").read_text().split(","))
        predictor.set_image(read_image(flat() / f"{id_}.bmp"))
        mask = predictor.predict(np.array([[x, y]]), np.array([1]), multimask_output=False)[0][0]
        return count_pixels(mask, read_mask(flat() / f"{id_}.png", None))

    tested = ids(found.measurement.setup.test)
    before = np.array([predicted(id_) for id_ in tested])
    with swap.attach(predictor.model):
        after = np.array([predicted(id_) for id_ in tested])
    # Encoding in one batch rounds otherwise, which may move a pixel on the border.
    assert np.abs(before - found.before).max() <= 2
    assert np.abs(after - found.after).max() <= 2
    assert np.abs(before - after).max() > 20
    assert np.array_equal(found.after, found.searched)


def test_a_refused_swap_is_reported_but_not_handed_out(run, flat, judge):
    judge(accepted=False)
    found, out = run(data=flat(), guard="one_standard_error")
    swap, page = redfree.load_swap(out / "swap.json"), (out / "report.md").read_text()
    refused = found.measurement.choice.searched.channel_map
    assert swap.is_identity
    assert swap.channels == refused.channels == 16
    assert np.array_equal(found.after, found.before)
    assert not np.array_equal(found.searched, found.before)
    assert "channels replaced by the search: " + ", ".join(f"{i} <- {j}" for i, j in refused.pairs) in page
    assert "answers **no swap**" in verdict(found)
    assert verdict(found) in page
    assert "| what the search chose, refused |" in page
    record = read_record(out / "record.json")
    assert (record.result.pairs, record.result.searched_pairs) == ([], list(refused.pairs))
    assert violations(record, read_counts(out / "record.json", record.files["counts"])) == []


def test_an_accepted_swap_is_handed_out(run, flat, judge):
    judge(accepted=True)
    found, out = run(data=flat(), guard="one_standard_error")
    assert redfree.load_swap(out / "swap.json") == found.measurement.choice.searched.channel_map
    assert verdict(found).startswith("The guard accepts the swap: held-out gain")
    assert "refused" not in (out / "report.md").read_text()


def test_the_report_says_what_the_record_says(run, flat, judge):
    judge(accepted=True)
    found, out = run(data=flat(), guard="one_standard_error")
    record, page = read_record(out / "record.json"), (out / "report.md").read_text()
    rows = {c[0]: c[1:] for c in ([x.strip() for x in r.split("|")[1:-1]] for r in page.splitlines() if r[:2] == "| ")}
    metrics = rows[""][:4]
    scores = {score.metric: score for score in record.scores}
    assert rows["handed out (`swap.json`)"][:4] == [f"{100 * scores[name].value:.2f}" for name in metrics]
    before = 100 * found.before[:, 0] / found.before[:, :3].sum(1)
    after = 100 * found.after[:, 0] / found.after[:, :3].sum(1)
    assert rows["unchanged model"][0] == f"{before.mean():.2f}"
    assert rows["handed out (`swap.json`)"][4].startswith(f"{(after - before).mean():+.2f} [")
    result, guard = record.result, record.result.guard
    assert f"held-out gain {100 * guard.gain:+.2f} [{100 * guard.gain_ci95[0]:+.2f}," in page
    assert f"from {100 * result.search_baseline_score:.2f} to {100 * result.search_score:.2f} mIoU" in page
    cost = record.cost
    assert f"maps scored: {cost.candidates_scored}, decoder passes with the guard: {cost.decoder_passes}\n" in page
    assert f"Scores on {record.spec.protocol.n_test} test images" in page
    assert f"On the {record.spec.protocol.n_search} search images" in page
    assert f"run {record.run_id}, weights {record.spec.model.checkpoint_sha256[:16]}" in page
    assert page == render_page(found)


def test_the_picture_has_a_row_for_each_of_three_images(run, flat):
    out = run(data=flat())[1]
    with Image.open(out / "report.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (720, 756))
        assert len(picture.convert("RGB").getcolors(2**24)) > 1000, "photographs, not an empty page"


def test_images_and_masks_without_points_use_the_rule(run, tmp_path, scenes):
    for scene, name in zip(scenes, IMAGES, strict=True):
        write_scene(scene, tmp_path / "two/images" / f"{name}.png", tmp_path / "two/masks" / f"{name}.png")
    record = run(data=tmp_path / "two")[0].measurement.record
    assert record.spec.protocol.prompt == "distance_transform"
    assert record.spec.dataset.name == "folder/two"


def test_a_manifest_gives_the_same_scores_as_the_folder_it_names(run, flat, tmp_path):
    folder = flat()
    lines = [
        {
            "image": f"flat/{name}.bmp",
            "mask": f"flat/{name}.png",
            "point": [float(n) for n in (folder / f"{name}.txt").read_text().split(",")],
        }
        for name in IMAGES
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    by_list, by_folder = run("a", data=tmp_path / "list.jsonl")[0], run("b", data=folder)[0]
    assert by_list.measurement.record.spec.protocol.prompt == "file"
    first, second = (found.measurement.record.spec.dataset for found in (by_list, by_folder))
    assert first.split_sha256 == second.split_sha256
    assert np.array_equal(by_list.after, by_folder.after)


def test_two_folders_are_searched_and_tested_apart(run, flat):
    found, out = run(search=flat("mine", range(4)), test=flat("theirs", (4, 5)), n_search=None)
    setup, spec = found.measurement.setup, found.measurement.record.spec
    assert sorted(ids(setup.choosing)) == IMAGES[:4]
    assert sorted(ids(setup.test)) == IMAGES[4:]
    assert (spec.protocol.n_search, spec.protocol.n_test, spec.dataset.name) == (4, 2, "folder/mine+folder/theirs")
    record = read_record(out / "record.json")
    assert violations(record, read_counts(out / "record.json", record.files["counts"])) == []


def test_a_test_image_that_is_a_search_image_too_is_refused(run, flat, tmp_path):
    with pytest.raises(UserError, match="test image scene3 shows the same as search image scene3"):
        run(search=flat("mine", range(4)), test=flat("theirs", (3, 4, 5)), n_search=None)
    assert not (tmp_path / "out").exists()


def test_two_folders_of_different_prompt_rules_are_refused(run, flat):
    search, test = flat("mine", range(4)), flat("theirs", (4, 5))
    for path in test.glob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match=r"theirs: has no points, but .*mine has; give points in both or in neither"):
        run(search=search, test=test)


@pytest.mark.parametrize("strategy", ["greedy", "exhaustive"])
def test_a_killed_search_goes_on_to_the_same_record(run, flat, tmp_path, monkeypatch, strategy):
    scored, real, limit = [], SegmentationEvaluator._score_images, [10**9]

    def score_images(self, maps, images):
        if len(scored) == limit[0]:
            raise KeyboardInterrupt
        scored.append(images)
        return real(self, maps, images)

    monkeypatch.setattr(SegmentationEvaluator, "_score_images", score_images)
    options = {"data": flat(), "guard": "one_standard_error", "strategy": strategy}
    whole = run("whole", "one", **options)[1]
    total, limit[0] = len(scored), 5
    scored.clear()
    assert total > 10
    with pytest.raises(KeyboardInterrupt):
        run("resumed", "two", **options)
    assert not (tmp_path / "resumed").exists()
    limit[0] = 10**9
    resumed = run("resumed", "two", **options)[1]
    assert len(scored) == total, "what was scored before the end is not scored again"
    assert lasting(resumed) == lasting(whole)
    for name in ("swap.json", "record.counts.csv", "report.png"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_features_on_disk_spare_the_encoder_and_change_nothing(run, flat, tmp_path, monkeypatch):
    folder = flat()
    first, _ = run("a", data=folder)
    monkeypatch.setattr(SamModel, "_encode_batch", lambda *_: pytest.fail("an image was encoded"))
    second, _ = run("b", data=folder)
    reads = [{phase.name: phase.images_read for phase in found.measurement.record.phases} for found in (first, second)]
    assert [read["encode"] for read in reads] == [0, 6]
    assert all(read == 0 for counted in reads for name, read in counted.items() if name != "encode")
    assert second.measurement.record.scores == first.measurement.record.scores
    assert second.measurement.record.result == first.measurement.record.result


def test_without_the_feature_cache_nothing_is_kept(run, flat, tmp_path):
    run(data=flat(), feature_cache=False)
    assert not (tmp_path / "cache" / "features").exists()


def test_options_of_the_model_are_part_of_the_record(run, flat):
    plain, _ = run("a", data=flat())
    rounded, _ = run("b", data=flat(), model_options={"features": "float16", "attention": "official"})
    records = [found.measurement.record for found in (plain, rounded)]
    assert [r.spec.model.options for r in records] == [{}, {"features": "float16", "attention": "official"}]
    assert records[0].run_id != records[1].run_id
    maps = rounded.measurement.setup.test.features.maps
    assert torch.equal(maps, maps.half().float())


def test_a_sam2_is_adapted_in_the_same_way(run, flat, tmp_path, monkeypatch):
    arch = catalogue.Sam2NanoArchitecture(64, 16, 8, (1, 1, 2, 1), (4, 2, 4, 2), (3,), 2)
    monkeypatch.setitem(catalogue.SAM2_NANO_ARCHITECTURES, "tiny2", arch)
    monkeypatch.setitem(catalogue.MODELS, "tiny2", catalogue.ModelEntry("sam2", "tiny2", 0, 16))
    torch.save({"model": build_sam2_nano(arch).state_dict()}, tmp_path / "tiny2.pt")
    options = AdaptOptions(
        "tiny2", tmp_path / "out", tmp_path / "tiny2.pt", data=flat(), n_search=3, n_pairs=2, folds=2, threads=1
    )
    found = adapt(options, tmp_path / "cache")
    record, test = found.measurement.record, found.measurement.setup.test
    write_report(found, options.out)
    drawn = Segmentation("", test, ChannelMap(16), np.zeros((2, 4))).masks([0, 1])
    assert [count_pixels(mask, s.mask) for mask, s in zip(drawn, test.samples, strict=False)] == [
        tuple(counts) for counts in found.before[:2].tolist()
    ]
    assert record.spec.model.options == {"apply_postprocessing": False, "swap_at": "image_embed"}
    assert record.status == "ok"
    assert record.result.trace


def test_a_model_of_ones_own_is_adapted_in_the_same_way(flat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pooled.py").write_text(
        "import torch, torch.nn.functional as F\n"
        "from redfree.models.custom import FunctionModel\n"
        "def build(checkpoint, options):\n"
        "    def encode(images): return F.avg_pool2d(torch.cat([images, 1 - images], 1), 8)\n"
        "    def decode(maps, points, labels): return (maps[:, :3] - maps[:, 3:]).mean(1)\n"
        "    return FunctionModel('pooled', 6, 64, encode, decode, 'none')\n"
    )
    options = AdaptOptions("pooled:build", tmp_path / "out", data=flat(), n_search=3, n_pairs=2, folds=2, threads=1)
    found = adapt(options, tmp_path / "cache")
    write_adaptation(found, options.out)
    assert found.measurement.record.spec.model.name == "pooled:build"
    assert (options.out / "swap.json").is_file()
    sys.modules.pop("pooled")


def test_the_command_writes_all_and_says_the_verdict(run, flat, checkpoint, monkeypatch, capsys):
    data, folder = flat(), checkpoint.parent
    out = folder / "command"
    options = ["--n-search", "3", "--n-pairs", "2", "--folds", "2", "--threads", "1", "--cache", folder / "other"]
    where = ["--data", data, "--out", out, "--model", "tiny", "--checkpoint", checkpoint]
    monkeypatch.setattr(sys, "argv", ["redfree", "adapt", *map(str, [*where, *options])])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    found, direct = run(data=data, guard="one_standard_error")
    written = capsys.readouterr()
    assert written.out.splitlines() == [verdict(found), f"report: {out / 'report.md'}"]
    assert written.err == ""
    assert lasting(out) == lasting(direct)
    expected = ["record.counts.csv", "record.json", "report.md", "report.png", "swap.json"]
    assert sorted(path.name for path in out.iterdir()) == expected
