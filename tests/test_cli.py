import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from redfree import cli
from redfree.bench.run import jobs_of
from redfree.bench.suite import load_suite, plan
from redfree.models import weights
from redfree.search.evaluate import SegmentationEvaluator
from redfree.tuners.catalogue import TUNERS

ROOT = Path(__file__).parents[1]
REDFREE = Path(sys.executable).with_name("redfree")
SUITE = """
suite: trial
title: A trial
task: segmentation
models: [tiny]
datasets: [procedural/camouflaged]
methods: [{name: baseline}, {name: swap, params: {guard: none}}]
seeds: [0]
protocol: {n_search: 2, n_test: 1, n_pairs: 2, folds: 2, threads: 1}
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, tiny_model, tiny_sam):
    """A working folder with a tiny shipped model, a suite and six good images; no search may start in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDFREE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path / "weights")
    for work in ("score", "screen"):
        monkeypatch.setattr(SegmentationEvaluator, work, lambda *_: pytest.fail("a search was started"))
    for folder in ("weights", "benchmarks", "images"):
        Path(folder).mkdir()
    save_file(tiny_sam.state_dict(), "weights/tiny.safetensors")
    Path("benchmarks/trial.yaml").write_text(SUITE)
    Path("file").write_text("not a folder")
    for index in range(6):
        mask = np.zeros((24, 30), np.uint8)
        mask[6:18, 8:20] = 255
        Image.fromarray(mask).save(f"images/a{index}.png")
        Image.fromarray(mask // 2 + 10 * index).convert("RGB").save(f"images/a{index}.jpg")
        Path(f"images/a{index}.txt").write_text("12,11")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process: exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["redfree", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        written = capsys.readouterr()
        return left.value.code, written.out, written.err

    return call


@pytest.fixture
def refusal(call, workplace):
    """The one line with which a command is refused, having written nothing at all."""

    def refusal(*arguments):
        before = contents(workplace)
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        assert contents(workplace) == before
        return err

    return refusal


def adapt(*extra, data="images"):
    return ["adapt", "--data", data, "--out", "out", "--model", "tiny", "--folds", "2", "--threads", "1", *extra]


def mask_of(size, value=255):
    mask = np.zeros(size, np.uint8)
    mask[3:9, 3:9] = value
    return Image.fromarray(mask)


def grey_mask():
    return Image.fromarray(np.arange(24 * 30, dtype=np.uint16).reshape(24, 30).astype(np.uint8))


@pytest.mark.parametrize(
    ("spoil", "complaints"),
    [
        (lambda f: (f / "a3.png").unlink(), ("a3.jpg: has no mask", "add images/a3.png")),
        (lambda f: mask_of((24, 31)).save(f / "a3.png"), ("a3.png: the mask is 31x24", "30x24", "re-export")),
        (lambda f: mask_of((24, 30), 0).save(f / "a3.png"), ("a3.png: the mask is empty", "remove the image or draw")),
        (lambda f: grey_mask().save(f / "a3.png"), ("a3.png: the mask has 256 distinct", "pass --mask-threshold")),
        (
            lambda f: (f / "a3.txt").write_text("30,5"),
            ("a3.txt: the point 30,5 of the rule file is off the 30x24", "give x,y"),
        ),
        (lambda f: (f / "a3.txt").write_text("there"), ("a3.txt: the first line is 'there'", "write the point as x,y")),
        (lambda f: (f / "a3.txt").unlink(), ("a3.txt: the point is missing", "add it")),
        (lambda f: (f / "a3.jpg").write_bytes((f / "a3.jpg").read_bytes()[:-90]), ("a3.jpg: not a readable", "JPEG")),
        (lambda f: (f / "a3.jpg").write_bytes(b"text"), ("a3.jpg: not a readable image", "re-export it as JPEG")),
        (lambda f: [path.unlink() for path in f.iterdir()], ("images: holds no images", "put NAME.jpg")),
    ],
    ids=[
        "no mask",
        "mask size",
        "empty mask",
        "grey mask",
        "point outside",
        "bad point",
        "no point",
        "truncated JPEG",
        "no JPEG",
        "empty folder",
    ],
)
@pytest.mark.parametrize("n_search", ["2", "4"])
def test_a_defective_image_is_named_with_the_mend_and_nothing_is_written(refusal, spoil, complaints, n_search):
    spoil(Path("images"))
    line = refusal(*adapt("--n-search", n_search))
    assert all(complaint in line for complaint in complaints), line


@pytest.mark.parametrize(
    ("arguments", "complaints"),
    [
        (adapt(data="nowhere"), ("nowhere: no such folder or manifest", "correct the path")),
        (adapt(data="file"), ("file: is neither a folder nor a .jsonl", "put NAME.jpg")),
        (adapt("--n-search", "6"), ("images: has 6 images, 6 search images asked for", "--n-search must leave some")),
        (adapt("--n-search", "99"), ("images: has 6 images, 99 search images", "--n-search must leave some")),
        (adapt("--folds", "4", "--n-search", "3"), ("--folds 4 is more than the 3 search images", "lower it")),
        (adapt("--model", "tinny"), ("unknown model 'tinny'", "did you mean 'tiny'?")),
        (adapt("--guard", "one_standard_eror"), ("unknown guard", "did you mean 'one_standard_error'?")),
        (adapt("--strategy", "exhaustiv"), ("unknown strategy", "did you mean 'exhaustive'?")),
        (adapt("--checkpoint", "lost.pt"), ("lost.pt: no such weights file",)),
        (adapt("--out", "file/out"), ("file/out: cannot be written to (Not a directory)", "choose another folder")),
        (adapt("--cache", "file/cache"), ("file/cache: cannot be written to", "choose another folder")),
        (adapt("--test", "images"), ("give --data FOLDER, or --search", "not both")),
        (["adapt", "--out", "out", "--search", "images"], ("give --data FOLDER, or both --search",)),
        (
            ["adapt", "--out", "out", "--model", "tiny", "--search", "images", "--test", "images"],
            ("test image a0 shows the same as search image", "remove one"),
        ),
    ],
)
def test_a_bad_option_of_adapt_is_named_with_the_mend(refusal, arguments, complaints):
    line = refusal(*arguments)
    assert all(complaint in line for complaint in complaints), line


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def write_weights(kind, sam):
    path = Path(f"{kind}.safetensors" if kind == "cut" else f"{kind}.pt")
    state = sam.state_dict()
    if kind == "cut":
        path.write_bytes(Path("weights/tiny.safetensors").read_bytes()[:-100])
    elif kind == "cutpickle":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "renamed":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    elif kind == "bomb":
        torch.save({**state, "extra": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    return path


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("cut", "truncated or not safetensors"),
        ("cutpickle", "truncated"),
        ("renamed", "not the architecture of tiny: tensors"),
        ("bomb", "holds more than tensors, refused; save its state_dict as safetensors"),
        ("barebomb", "truncated, or a pickle that holds more than tensors, refused"),
    ],
)
def test_bad_weights_are_refused_and_their_code_does_not_run(refusal, tiny_sam, kind, complaint):
    path = write_weights(kind, tiny_sam)
    line = refusal(*adapt("--checkpoint", path))
    assert f"error: {path}: " in line
    assert complaint in line
    assert not Path("exploded").exists()


def test_the_bomb_of_these_tests_is_armed():
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("exploded").exists()


def test_weights_of_another_size_are_refused_by_tensor(refusal):
    line = refusal(*adapt("--model", "sam_nano", "--checkpoint", "weights/tiny.safetensors"))
    assert "weights/tiny.safetensors: not the architecture of sam_nano: tensors" in line
    assert re.search(r"\d+ of another shape \(.*\(32, 32\) for \(192, 192\)", line)


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[tiny]", "[tinny]", "models: unknown model 'tinny'; did you mean 'tiny'?"),
        ("camouflaged", "camoflage", "did you mean 'procedural/camouflaged'?"),
        ("name: swap", "name: swpa", "methods: unknown method 'swpa'; did you mean 'swap'?"),
        ("n_test", "n_tset", "unknown field 'protocol.n_tset'; did you mean 'protocol.n_test'?"),
        ("guard: none", "gaurd: none", "unknown field 'gaurd'; did you mean 'guard'?"),
        ("seeds: [0]", "seeds: [0", "trial.yaml: not a suite ("),
    ],
)
def test_an_unknown_name_in_a_suite_names_the_nearest(refusal, verb, old, new, complaint):
    assert old in SUITE
    Path("benchmarks/trial.yaml").write_text(SUITE.replace(old, new))
    assert complaint in refusal(verb, "trial")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "trail"], "unknown suite 'trail'; did you mean 'trial'?"),
        (["plan", "trail"], "unknown suite 'trail'; did you mean 'trial'?"),
        (["run", "trial", "--policy", "only-mising"], "unknown policy 'only-mising'; did you mean 'only-missing'?"),
        (["run", "trial", "--only", "nothing"], "--only 'nothing' matches none of 2 cells"),
        (["run", "trial", "--shard", "2/9"], "shard 2/9 is empty: the suite has 1 groups"),
        *((["run", "trial", "--shard", s], f"--shard {s!r} is not i/n") for s in ("0/2", "3/2", "x", "1/", "²/2")),
        (["run", "trial", "--set", "protocol.n_test"], "--set 'protocol.n_test' is not NAME=VALUE"),
        (["run", "trial", "--set", "=3"], "--set '' is not NAME=VALUE"),
        (["run", "trial", "--set", "seeds=[1"], "--set: a value is not YAML"),
        (["run", "trial", "--set", "protocol.n_tst=3"], "did you mean 'protocol.n_test'?"),
        (["run", "trial", "--set", "protocol.n_test=many"], "field protocol.n_test: Input should be"),
        (["run", "trial", "--results", "file/results"], "file/results: cannot be written to"),
        (["run", "trial", "--cache", "file/cache"], "file/cache: cannot be written to"),
        (["table", "trial"], "no records of suite trial in results; run `redfree run trial` first"),
        (["table", "trial", "--out", "file/boards"], "file/boards: cannot be written to"),
        (["sheet", "procedural/camoflaged", "--out", "x.png"], "did you mean 'procedural/camouflaged'?"),
        (["sheet", "procedural/natural", "--out", "x.png", "--split", "tset"], "did you mean 'test'?"),
        (["sheet", "procedural/natural", "--out", "file/x.png", "--count", "1"], "file: cannot be written to"),
        (["pretrain", "lost.yaml", "--out", "out"], "lost.yaml: no such recipe"),
        (["pretrain", "file", "--out", "out"], "file: "),
    ],
)
def test_a_bad_argument_is_one_line_that_names_it(refusal, arguments, complaint):
    assert complaint in refusal(*arguments)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("steps: [1", "not YAML ("),
        ("words", "not a recipe; it needs at least a line `model: NAME`"),
        ("{model: tiny, steps: many}", "field steps: Input should be a valid integer"),
        ("{steps: 1}", "field model: "),
        ("{model: tiny, setps: 1}", "unknown field 'setps'; did you mean 'steps'?"),
        ("{model: tinny}", "unknown model 'tinny'; did you mean 'tiny'?"),
        ("{model: tiny, domain: naturl}", "unknown domain 'naturl'; did you mean 'natural'?"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(refusal, text, complaint):
    Path("recipe.yaml").write_text(text)
    line = refusal("pretrain", "recipe.yaml", "--out", "out")
    assert line.startswith("error: recipe.yaml: ")
    assert complaint in line


@pytest.mark.parametrize("arguments", [["table"], ["run", "--policy", "only-missing"], ["plan"]])
def test_a_record_of_a_newer_schema_is_named(refusal, arguments):
    path = jobs_of(plan(load_suite("trial")), Path("results"))[0].path
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema_version": 2}))
    line = refusal(arguments[0], "trial", *arguments[1:])
    assert line == f"error: {path}: schema_version 2 is newer than 1; upgrade redfree to read it\n"


@pytest.mark.parametrize(
    "arguments",
    [["adapt"], ["plan"], ["nonsense"], adapt("--n-pairs", "17"), adapt("--n-search", "x"), adapt("--nothing")],
)
def test_a_wrong_usage_exits_2_without_a_traceback(call, workplace, arguments):
    before = contents(workplace)
    code, _, err = call(*arguments)
    assert code == 2
    assert "Usage: " in err
    assert "Traceback" not in err
    assert contents(workplace) == before


def test_the_process_itself_exits_2_with_one_line():
    command = [REDFREE, "adapt", "--data", "nowhere", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere: no such folder or manifest; correct the path\n"
    assert not Path("out").exists()


def test_list_names_everything_and_imports_no_torch():
    code = (
        "import sys, redfree.cli as c; sys.argv = ['redfree', 'list']\n"
        "try: c.main()\n"
        "finally: print(sorted({'torch', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    *lines, imported = done.stdout.splitlines()
    assert imported == "[]"
    named = {kind: names.split(", ") for kind, names in (line.split(": ") for line in lines)}
    assert {"seg", "smoke"} <= set(named["suites"])
    assert "sam_nano" in named["models"]
    assert "procedural/medical" in named["datasets"]
    tuned = {label for tuner in TUNERS for label in (tuner, f"{tuner}+swap")}
    assert set(named["methods"]) == {"baseline", "swap", "zero", "random-swap"} | tuned


def test_list_of_one_kind(call, monkeypatch, tmp_path):
    code, out, _ = call("list", "methods")
    (line,) = out.splitlines()
    assert code == 0
    assert line.startswith("methods: baseline, swap, zero, random-swap, ")
    assert {"samed", "samed+swap"} <= set(line.split(", "))
    monkeypatch.setenv("REDFREE_WEIGHTS", str(tmp_path / "w"))
    (tmp_path / "w").mkdir()
    with (tmp_path / "w" / "sam2.1_hiera_tiny.pt").open("wb") as file:
        file.truncate(156008466)
    rows = {line.split()[0]: line.split() for line in call("list", "models")[1].splitlines()[2:]}
    assert rows["sam_vit_b"][1:] == [
        "segment_anything",
        "93,735,472",
        "256",
        "sam_vit_b_01ec64.pth",
        "Apache-2.0",
        "no",
    ]
    assert rows["sam2.1_hiera_tiny"][-1] == "yes"
    assert rows["sam_nano"][-1] == "yes"


def test_list_of_datasets_is_a_table_and_imports_no_torch(tmp_path):
    (tmp_path / "d" / "busi" / "Dataset_BUSI_with_GT").mkdir(parents=True)
    code = (
        "import sys, redfree.cli as c; sys.argv = ['redfree', 'list', 'datasets', '--data-root', sys.argv[1]]\n"
        "try: c.main()\n"
        "finally: print(sorted({'torch', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, tmp_path / "d"]
    *lines, imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert imported == "[]"
    rows = {line.split()[0]: line.split() for line in lines[2:]}
    assert rows["isic2016"] == ["isic2016", "segmentation", "CC0-1.0", "train", "900,", "test", "379", "yes", "no"]
    assert rows["busi"][-2:] == ["no", "yes"]


def test_fetch_says_how_a_dataset_without_a_download_comes_here(call, tmp_path):
    root = tmp_path / "d"
    code, out, err = call("fetch", "busi", "digits", "--data-root", root)
    assert (code, err) == (1, "")
    assert "page:    https://scholar.cu.edu.eg/" in out
    assert f"unpack it into {root / 'busi'}, so that it holds:\n  Dataset_BUSI_with_GT/benign/benign (1).png\n" in out
    assert "digits: nothing to fetch" in out
    assert not root.exists()
    (root / "busi" / "Dataset_BUSI_with_GT").mkdir(parents=True)
    assert call("fetch", "busi", "--data-root", root) == (0, f"{root / 'busi'}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "model"], "unknown kind 'model'; did you mean 'models'?"),
        (["fetch", "sam_vit_c"], "unknown checkpoint or dataset 'sam_vit_c'; did you mean 'sam_vit_"),
        (["fetch", "digits", "isic2015"], "unknown checkpoint or dataset 'isic2015'; did you mean 'isic2016'?"),
        (["fetch", "dinov3_vitb16"], "dinov3_vitb16"),
        (
            ["adapt", "--out", "o", "--data", "images", "--option", "attention"],
            "--option 'attention' is not NAME=VALUE",
        ),
        (
            ["adapt", "--out", "o", "--data", "images", "--option", "attention=fast"],
            "options of sam_nano: field attention",
        ),
        (["adapt", "--out", "o", "--data", "images", "--option", "swap_at=x"], "options of sam_nano: unknown field"),
        (
            ["adapt", "--out", "o", "--data", "images", "--folds", "2", "--model", "sam_vit_b"],
            "run `redfree fetch sam_vit_b`",
        ),
        (
            ["adapt", "--out", "o", "--data", "images", "--folds", "2", "--model", "dino_nano"],
            "dino_nano gives tokens, not masks",
        ),
        (
            ["adapt", "--out", "o", "--data", "images", "--folds", "2", "--model", "no:where"],
            "--model no:where: No module named 'no'",
        ),
        (["exactness", "sam_nan"], "unknown model 'sam_nan'"),
        (["speed", "--encoder", "sam_nan"], "unknown encoder 'sam_nan'"),
        (["speed", "--tuners", "sam_nan"], "unknown model 'sam_nan'"),
        (["speed", "--tuners", "dino_nano"], "unknown model 'dino_nano'"),
        (["run", "trial", "--set", "models=[dino_nano]"], "unknown model 'dino_nano'"),
    ],
)
def test_mistakes_about_models_are_one_line(refusal, arguments, message, monkeypatch, tmp_path):
    monkeypatch.setenv("REDFREE_WEIGHTS", str(tmp_path / "w"))
    assert message in refusal(*arguments)


def test_cache_shows_and_removes_features_alone(call, workplace):
    folder = workplace / "cache" / "features" / "ab"
    folder.mkdir(parents=True)
    (folder / f"{'ab' * 32}.safetensors").write_bytes(b"x" * 2**20)
    (folder / "notes.txt").touch()
    code, out, _ = call("cache")
    assert (code, out) == (0, f"{folder.parent}: features of 1 images, 1.0 MiB\n")
    assert call("cache", "--clear")[1].endswith("features of 0 images, 0.0 MiB\n")
    assert (folder / "notes.txt").exists()


def test_plan_smoke_lists_each_cell_and_writes_nothing(call, monkeypatch, workplace):
    monkeypatch.setattr(weights, "WEIGHTS", ROOT / "redfree" / "weights")
    monkeypatch.chdir(ROOT)
    arguments = ("plan", "smoke", "--results", workplace / "results", "--set", "protocol.n_test=1")
    code, out, _ = call(*arguments, "--set", "protocol.n_search=2")
    *cells, summary = out.splitlines()
    assert code == 0
    assert summary == "12 cells, 12 open"
    titles, methods = [line.split()[2] for line in cells], ("baseline", "swap", "swap-unguarded", "random-swap", "zero")
    models = ("sam_nano", "sam2_nano")
    assert titles == [f"{m}/procedural/camouflaged/{label}/0" for m in models for label in (*methods, "oracle")]
    assert all(len(line.split()[0]) == 16 and line.split()[1] == "open" for line in cells)
    assert not (workplace / "results").exists()


@pytest.mark.parametrize(("count", "rows"), [(2, 1), (9, 2)])
def test_sheet_writes_a_png_of_eight_columns(call, count, rows):
    code, out, _ = call("sheet", "procedural/camouflaged", "--out", "deep/sheet.png", "--count", count)
    assert (code, out) == (0, "deep/sheet.png\n")
    with Image.open("deep/sheet.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (8 * 128, rows * 2 * 128))


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    from redfree import cli

    def full():
        raise OSError(28, "No space left on device", "out/record.json")

    monkeypatch.setattr("redfree.cli.app", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint == "error: out/record.json: No space left on device; free space or choose another folder\n"
