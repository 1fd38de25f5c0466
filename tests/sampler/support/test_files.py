import os

from stepsampler.support.files import write_text


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """After a power loss a file of that name is the old one or the new one, never an empty one."""
    synced, replace, fsync = [], os.replace, os.fsync

    def sync(handle):
        synced.append(os.fstat(handle).st_size)
        fsync(handle)

    def rename(source, target):
        assert synced == [3]
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    write_text(tmp_path / "x", "abc")
    assert (tmp_path / "x").read_text() == "abc"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
