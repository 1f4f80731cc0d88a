import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from redfree.errors import UserError
from redfree.files import cache_folder
from redfree.models.checkpoints import (
    Checkpoint,
    checkpoint_of,
    checkpoint_path,
    checkpoints,
    verified,
    weights_folder,
)
from redfree.published import MismatchError

BODY = b"weights" * 100
SHA256 = hashlib.sha256(BODY).hexdigest()
ENTRIES = list(checkpoints().values())
PUBLISHED = {
    "sam_vit_b": ("ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375042383),
    "sam_vit_l": ("3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1249524607),
    "sam_vit_h": ("a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2564550879),
    "sam2_hiera_base_plus": ("d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071", 323493298),
    "sam2.1_hiera_tiny": ("7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69", 156008466),
    "sam2.1_hiera_large": ("2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318", 898083611),
    "mobile_sam": ("6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f", 40728226),
    "dinov2_vits14": ("b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9", 88283115),
    "dinov2_vitb14_reg4": ("73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71", 346393545),
    "dinov2_vitg14_reg4": ("746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283", 4546140349),
    "clip_vit_b16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", None),
    "clip_vit_b32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", None),
    "clip_vit_l14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", None),
}


def entry(**changes):
    facts = {
        "name": "tiny",
        "family": "sam",
        "url": "https://example.org/tiny.pth",
        "filename": "tiny.pth",
        "bytes": len(BODY),
        "sha256": SHA256,
        "licence": "MIT",
        "source": "this test",
    }
    return Checkpoint(**{**facts, **changes})


def unpublished(**changes):
    return entry(**{"bytes": None, "sha256": None, **changes})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tiny.pth"
    path.write_bytes(BODY)
    return path


def message_of(*arguments, kind=UserError):
    with pytest.raises(kind) as caught:
        verified(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestRegistry:
    def test_counts_of_a_family(self):
        counts = Counter(entry.family for entry in ENTRIES)
        assert counts == {"sam": 3, "sam2": 8, "mobile_sam": 1, "dinov2": 48, "dinov3": 8, "clip": 3, "mae": 1}
        heads = [entry for entry in ENTRIES if entry.name.endswith("_head")]
        assert Counter(entry.container for entry in heads) == {"plain": 16, "state_dict": 24}

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_published_hashes_and_bytes(self, name):
        found = checkpoint_of(name)
        assert (found.sha256, found.bytes) == PUBLISHED[name]

    def test_filenames_and_hashes_are_of_one_entry_each(self):
        assert len({entry.filename for entry in ENTRIES}) == len(ENTRIES)
        known = [entry.sha256 for entry in ENTRIES if entry.sha256]
        assert len(set(known)) == len(known) == 23

    @pytest.mark.parametrize("found", [e for e in ENTRIES if not e.gated], ids=lambda e: e.name)
    def test_a_url_is_https_and_ends_with_the_filename(self, found):
        assert found.url.startswith("https://")
        assert found.url.rsplit("/", 1)[-1] == found.filename
        assert found.container is not None

    def test_gated_entries_lead_to_a_page_only(self):
        gated = [entry for entry in ENTRIES if entry.gated]
        assert {entry.family for entry in gated} == {"dinov3"}
        assert all(entry.url is None and entry.page and entry.licence == "DINOv3 License" for entry in gated)
        assert all(entry.filename.endswith(f"-{entry.sha256_prefix}.pth") for entry in gated)

    def test_digits_in_file_names_are_of_md5(self):
        for name in ("sam_vit_b", "sam_vit_l", "sam_vit_h"):
            found = checkpoint_of(name)
            digits = Path(found.filename).stem.rsplit("_", 1)[-1]
            assert found.md5.startswith(digits)
            assert not found.sha256.startswith(digits)
        assert checkpoint_of("mae_vit_b").md5_prefix == "8cad7c"

    def test_clip_urls_hold_the_hash(self):
        for name in ("clip_vit_b16", "clip_vit_b32", "clip_vit_l14"):
            assert checkpoint_of(name).url.split("/")[-2] == checkpoint_of(name).sha256

    def test_dinov2_files_lie_in_the_folder_without_registers(self):
        for name in (n for n in checkpoints() if n.startswith("dinov2_")):
            assert checkpoint_of(name).url.split("/")[-2] == "_".join(name.split("_")[:2])
        url = checkpoint_of("dinov2_vitg14_reg4_linear_head").url
        assert url == "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/dinov2_vitg14_reg4_linear_head.pth"

    def test_heads_have_no_published_hash(self):
        assert all(e.sha256 is None and e.bytes is None for e in ENTRIES if e.name.endswith("_head"))

    def test_an_unknown_name_gives_the_nearest(self, tmp_path):
        with pytest.raises(UserError, match="unknown checkpoint 'sam_vitb'; did you mean 'sam_vit_b'"):
            checkpoint_path("sam_vitb", tmp_path)

    def test_path_in_a_folder(self, tmp_path):
        assert checkpoint_path("sam_vit_b", tmp_path) == tmp_path / "sam_vit_b_01ec64.pth"

    def test_nobody_can_change_it(self):
        with pytest.raises(TypeError):
            checkpoints()["sam_vit_b"] = entry()
        with pytest.raises(ValidationError):
            checkpoint_of("sam_vit_b").url = "https://example.org"

    def test_imports_no_torch(self):
        code = "import sys, redfree.models.checkpoints, redfree.models.fetch; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestEntry:
    @pytest.mark.parametrize(
        "changes",
        [
            {"sha256": SHA256[:-1]},
            {"sha256": SHA256.upper()},
            {"sha256": SHA256 + "\n"},
            {"md5": "0" * 31},
            {"bytes": 0},
            {"url": "file:///etc/passwd"},
            {"url": "ftp://example.org/tiny.pth"},
            {"filename": "../tiny.pth"},
            {"filename": ".tiny.pth"},
            {"family": "resnet"},
            {"container": "zip"},
            {"url": None},
            {"gated": True, "page": "https://example.org"},
            {"size": 3},
        ],
        ids=str,
    )
    def test_a_bad_fact_is_refused(self, changes):
        with pytest.raises(ValidationError):
            entry(**changes)


class TestFolders:
    def test_option_then_environment_then_cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("REDFREE_WEIGHTS", "/w")
        monkeypatch.setenv("REDFREE_CACHE", "/c")
        assert weights_folder(tmp_path) == tmp_path
        assert weights_folder() == Path("/w")
        monkeypatch.setenv("REDFREE_WEIGHTS", "")
        assert weights_folder() == Path("/c/weights")
        monkeypatch.delenv("REDFREE_CACHE")
        monkeypatch.setenv("HOME", "/home/user")
        assert weights_folder() == Path("/home/user/.cache/redfree/weights")
        assert cache_folder(tmp_path) == tmp_path


class TestVerified:
    def test_a_published_hash_needs_no_lock(self, path):
        assert verified(path, entry()) == SHA256
        assert list(path.parent.iterdir()) == [path]

    def test_a_wrong_size_is_found_before_the_hash(self, path):
        message = message_of(path, entry(bytes=3), kind=MismatchError)
        assert message == f"{path}: 700 bytes, but tiny has 3; remove the file and get tiny again"

    def test_a_wrong_hash(self, path):
        path.write_bytes(BODY[::-1])
        found = hashlib.sha256(BODY[::-1]).hexdigest()
        message = message_of(path, entry(), kind=MismatchError)
        assert f"SHA-256 is {found}, expected {SHA256} (published); remove" in message

    def test_a_missing_file(self, tmp_path):
        assert message_of(tmp_path / "none.pth", entry()).startswith(f"{tmp_path / 'none.pth'}: no such checkpoint")

    def test_the_first_hash_is_locked_and_enforced(self, path):
        lock = path.with_name("tiny.pth.sha256.json")
        assert verified(path, unpublished()) == SHA256
        written = json.loads(lock.read_text())
        assert written.keys() == {"sha256", "bytes", "date"}
        assert (written["sha256"], written["bytes"]) == (SHA256, len(BODY))
        assert verified(path, unpublished()) == SHA256
        path.write_bytes(BODY + b"more")
        message = message_of(path, unpublished(), kind=MismatchError)
        assert f"expected {SHA256} (locked on {written['date']} in {lock})" in message
        assert json.loads(lock.read_text()) == written

    def test_the_lock_may_lie_elsewhere_and_is_named_by_the_publisher(self, path, tmp_path):
        renamed = path.rename(tmp_path / "mine.pth")
        verified(renamed, unpublished(), tmp_path / "locks")
        assert [p.name for p in (tmp_path / "locks").iterdir()] == ["tiny.pth.sha256.json"]
        assert list(tmp_path.glob("*.json")) == []

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"sha256": "12"}'])
    def test_a_broken_lock_is_named(self, path, text):
        lock = path.with_name("tiny.pth.sha256.json")
        lock.write_text(text)
        assert message_of(path, unpublished()).startswith(f"{lock}: not a lock (")

    def test_known_prefixes_are_enforced_before_the_lock(self, path):
        md5 = hashlib.md5(BODY).hexdigest()
        verified(path, unpublished(md5_prefix=md5[:6], sha256_prefix=SHA256[:8]))
        lock = path.with_name("tiny.pth.sha256.json")
        lock.unlink()
        message = message_of(path, unpublished(md5_prefix="000000"), kind=MismatchError)
        assert f"MD5 is {md5}, expected 000000 (published)" in message
        message = message_of(path, unpublished(sha256_prefix="00000000"), kind=MismatchError)
        assert "expected 00000000 (published)" in message
        assert not lock.exists()

    def test_the_mend_can_be_said_otherwise(self, path):
        assert message_of(path, entry(bytes=3), None, "try again").endswith("; try again")
