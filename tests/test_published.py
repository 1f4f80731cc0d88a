import hashlib

import pytest

from redfree.published import MismatchError, PublishedFile, verify_file

BODY = b"images" * 100
SHA256, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()


def published(**facts):
    return PublishedFile("tiny.zip", "tiny.zip", **facts)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tiny.zip"
    path.write_bytes(BODY)
    return path


def test_a_published_md5_is_checked_and_needs_no_lock(path):
    assert verify_file(path, published(md5=MD5)) == SHA256
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(MismatchError) as caught:
        verify_file(path, published(md5="0" * 32))
    assert str(caught.value) == (
        f"{path}: MD5 is {MD5}, expected {'0' * 32} (published); remove the file and get tiny.zip again"
    )


def test_a_sha256_goes_before_an_md5(path):
    assert verify_file(path, published(sha256=SHA256, md5="0" * 32)) == SHA256
    with pytest.raises(MismatchError, match="SHA-256 is"):
        verify_file(path, published(sha256="0" * 64, md5=MD5))


@pytest.mark.parametrize(("facts", "hashed"), [({}, False), ({"md5_prefix": MD5[:6]}, False), ({"md5": MD5}, True)])
def test_only_a_whole_hash_tells_a_file_from_any_other(facts, hashed):
    assert published(**facts).hashed is hashed
