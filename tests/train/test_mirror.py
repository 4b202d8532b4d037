"""Runs and pictures in a store: bit for bit what they are on disks, whatever is cut on the way."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commandline import TINY, mimkit, refused
from drills import tiny
from mimkit.core.errors import UserError
from mimkit.data import remote
from mimkit.train import mirror
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.mirror import Mirror, local_run, read_marker
from mimkit.train.prepare import Pretrain
from mimkit.train.pretrain import pretrain
from places import ROOT
from sets import packed
from stores import Store, store  # noqa: F401  a fixture

URL = "s3://bucket/runs/first"
FURTHER = ("tar", "folder", "shards")
SECRETS = ("hush", "Signature", "AKIA")


def same_weights(first: Path, second: Path) -> None:
    states = [load_checkpoint(checkpoints(folder)[-1]) for folder in (first, second)]
    assert states[0]["step"] == states[1]["step"]
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0, atol=0)
    torch.testing.assert_close(states[0]["optimizer"], states[1]["optimizer"], rtol=0, atol=0)


def train(config, folder: Path, **settings):
    return pretrain(config, folder, recipe="tiny", log=lambda line: None, **settings)


def another_machine(monkeypatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


@pytest.mark.parametrize("kind", ["zip", *(pytest.param(kind, marks=pytest.mark.slow) for kind in FURTHER)])
def test_a_run_on_pictures_in_a_store_is_that_on_a_disk(kind, forty, store, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(remote, "BLOCK", 1 << 13)
    path = packed(forty, tmp_path / f"set.{kind}") if kind in ("zip", "tar") else forty
    if kind == "shards":
        path = tmp_path / "shards"
        assert mimkit(f"shards pack {forty} --out {path} --shard-mb 0.02 --workers 0").status == 0
    url = store.put(path.name, path) if path.is_file() else store.put_folder("set", path)
    store.faults.errors, store.faults.cuts = {"GET": 2, "HEAD": 1}, {"GET": 1}

    def config(place) -> Pretrain:
        # In a store the order would by default be one of lanes.
        return replace(tiny(place, resident=False, workers=2), lanes=4)

    train(config(path), tmp_path / "near")
    train(config(url), tmp_path / "far", max_steps=7)
    first = store.gets("bucket")
    train(config(url), tmp_path / "far")
    same_weights(tmp_path / "near", tmp_path / "far")
    repeated = len(first) - len(set(first))
    assert first and repeated == (3 if path.is_file() else 0)  # the faults, which met the listing of a folder
    assert len(store.gets("bucket")) == len(first)  # resuming reads no block twice
    assert store.faults.errors["GET"] == store.faults.cuts["GET"] == 0


def test_a_run_goes_on_from_a_store_on_another_machine(forty, store, tmp_path, monkeypatch):  # noqa: F811
    train(tiny(forty), tmp_path / "whole")
    folder = local_run(URL, train=True)
    train(tiny(forty), folder, max_steps=7)
    assert f"runs/first/checkpoints/{checkpoints(folder)[-1].name}" in store.names()
    marker = read_marker(URL)
    assert marker is not None and marker.step == 7 and "config.json" in marker.files
    another_machine(monkeypatch, tmp_path, "second")
    there = local_run(URL, train=True)
    assert there != folder and [path.name for path in checkpoints(there)] == [path.name for path in checkpoints(folder)]
    train(tiny(forty), there)
    same_weights(tmp_path / "whole", there)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    copy = local_run(URL)
    for path in mirror.contents(there):
        assert (copy / path).read_bytes() == (there / path).read_bytes(), path
    with pytest.raises(UserError, match=f"is a copy of {URL}, to be read alone"):
        Mirror.of(copy, print)
    assert {key.removeprefix("runs/first/") for key in store.names()} == {*mirror.contents(there), mirror.MARKER}
    with pytest.raises(UserError, match="holds a finished run"):
        train(tiny(forty), local_run(URL, train=True))


@pytest.mark.parametrize("cut", ["checkpoints/", "export/model", mirror.MARKER])
def test_a_cut_upload_is_no_checkpoint(cut, forty, store, tmp_path, monkeypatch):  # noqa: F811
    train(tiny(forty), tmp_path / "whole")
    folder = local_run(URL, train=True)
    train(tiny(forty), folder, max_steps=5)
    filesystem = mirror.filesystem

    class Cut:
        """A store that takes nothing more from some name on, as if this process had died there."""

        def __init__(self, system) -> None:
            self.system = system

        def __getattr__(self, name: str):
            def call(*args):
                place = str(args[1] if name == "put_file" else args[0])
                if name in ("put_file", "pipe_file") and cut in place:
                    raise ValueError("cut")
                return getattr(self.system, name)(*args)

            return call

    monkeypatch.setattr(mirror, "filesystem", lambda url: Cut(filesystem(url)))
    with pytest.raises(UserError, match=r"cut; the run is complete in .*: run the same command again"):
        train(tiny(forty), folder, max_steps=8)
    monkeypatch.setattr(mirror, "filesystem", filesystem)
    another_machine(monkeypatch, tmp_path, "second")
    there = local_run(URL, train=True)
    assert [path.stem[-2:] for path in checkpoints(there)] == ["03", "05"]
    assert (there / "export").exists() == (cut == "checkpoints/")  # else it is half of the next one's
    train(tiny(forty), there)
    same_weights(tmp_path / "whole", there)
    # The first machine, whose newer checkpoint never came to the store, goes on with what is there.
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parents[3]))
    same_weights(local_run(URL, train=True), there)


def test_training_does_not_wait_for_uploads(forty, store, tmp_path):  # noqa: F811
    folder = local_run(URL, train=True)
    store.faults.pause = 0.3
    result = train(tiny(forty, save_every=1), folder)
    sent = [path for method, path, _ in store.requests if method == "PUT" and "checkpoints/" in path]
    assert 1 <= len(set(sent)) < result["steps"]  # those between were passed over
    assert read_marker(URL).step == result["steps"] and not list(folder.parent.glob("upload-*"))


def test_two_machines_do_not_write_one_run(forty, store, tmp_path, monkeypatch):  # noqa: F811
    here = local_run(URL, train=True)
    train(tiny(forty), here, max_steps=4)
    another_machine(monkeypatch, tmp_path, "second")
    train(tiny(forty), local_run(URL, train=True), max_steps=6)
    with pytest.raises(UserError, match=f"another process writes to {URL}"):
        train(tiny(forty), here, max_steps=8)


def test_a_cache_that_was_emptied_begins_nothing_anew(forty, store, tmp_path):  # noqa: F811
    folder = local_run(URL, train=True)
    train(tiny(forty), folder, max_steps=4)
    shutil.rmtree(folder)
    assert len(checkpoints(local_run(URL, train=True))) == 2
    for key in store.names():
        store.client().delete_object(Bucket="bucket", Key=key)
    with pytest.raises(UserError, match=f"{URL} holds nothing, and .* holds the run that was sent there"):
        local_run(URL, train=True)  # the store was emptied, or is another one
    assert len(checkpoints(folder)) == 2
    shutil.rmtree(folder)
    assert not local_run(URL, train=True).exists()
    store.put("other/thing.txt", b"")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        local_run("s3://bucket/other", train=True)


def test_what_a_marker_may_name(forty, store, tmp_path):  # noqa: F811
    for files, line in (
        ({"../outside": [1, ""]}, r"names \.\./outside, which is no file of a run"),
        ({"/etc/passwd": [1, ""]}, r"names /etc/passwd"),
        ({"config.json": 5}, r"mirror\.json is damaged"),
        ({"config.json": [4, "00"]}, r"config\.json is not what mirror\.json there says"),
    ):
        store.put("runs/first/mirror.json", json.dumps({"step": 1, "files": files}).encode())
        with pytest.raises(UserError, match=line):
            local_run(URL)
    with pytest.raises(UserError, match="holds no run of mimkit"):
        local_run("s3://bucket/nothing")
    with pytest.raises(UserError, match=r"cannot be written to https://example.org/run"):
        local_run("https://example.org/run", train=True)


@pytest.mark.slow
def test_commands_take_urls_and_tell_no_secrets(forty, store, tmp_path, capfd):  # noqa: F811
    data = store.put("set.zip", packed(forty, tmp_path / "set.zip"))
    signed = store.client().generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "set.zip"})
    said = [mimkit(f"pretrain mae_mini_28 --data '{signed}' --run {URL} --max-steps 3 $TINY")]
    assert said[0].status == 0 and f"go on with\n  mimkit pretrain --run {URL}" in said[0].out
    said.append(mimkit(f"pretrain mae_mini_28 --data '{signed}' --run {URL} $TINY"))
    assert f"in the store   {URL}" in said[-1].out
    said.append(mimkit(f"check {URL}"))
    said.append(mimkit(f"export {URL} --out {tmp_path / 'out'}"))
    assert (tmp_path / "out" / "model.safetensors").exists()
    said.append(mimkit(f"report {URL} --metrics none --data {data} --out {tmp_path / 'page.html'}"))
    said.append(mimkit(f"doctor {data}"))
    assert [answer.status for answer in said] == [0] * len(said), said
    store.faults.denied = True
    said.append(mimkit(f"pretrain mae_mini_28 --data '{signed.replace('set', 'new')}' --run {tmp_path / 'r'} $TINY"))
    said.append(
        mimkit(f"pretrain mae_mini_28 --data http://me:hush@{store.url[7:]}/x.zip --run {tmp_path / 'r'} $TINY")
    )
    store.faults.denied = False
    assert [answer.status for answer in said[-2:]] == [2, 2] and "access is denied" in said[-1].err
    output = "".join(answer.out + answer.err for answer in said) + "".join(capfd.readouterr())
    files = [path for folder in (tmp_path, Path(os.environ["XDG_CACHE_HOME"])) for path in folder.rglob("*")]
    texts = [path.read_bytes() for path in files if path.is_file()] + [output.encode()]
    texts += [store.client().get_object(Bucket="bucket", Key=key)["Body"].read() for key in store.names()]
    for secret in SECRETS:
        assert not any(secret.encode() in text for text in texts), secret
    assert "not s3://bucket/out" in refused(f"export {URL} --out s3://bucket/out")
    assert "takes a path on this machine" in refused(f"evaluate finetune {URL} --data {forty} --run s3://bucket/tuned")


@pytest.mark.slow
def test_two_processes_train_one_run_in_a_store(forty, store, tmp_path):  # noqa: F811
    """From a signed URL that both read; on a machine without the first one's cache it goes on."""
    store.put("set.zip", packed(forty, tmp_path / "set.zip"))
    signed = store.client().generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "set.zip"})
    small = shlex.split(TINY.replace("--batch-size 8", "--batch-size 8 --machine.save-every 2"))

    def launch(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mimkit.cli", "launch", "--processes", "2", "pretrain", "mae_mini_28"]
        env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        words = (*words, "--data", signed, *small)
        return subprocess.run([*command, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)

    first = launch("--run", URL, "--max-steps", "3")
    assert first.returncode == 0, first.stderr
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"]) / "mimkit" / "runs")
    second = launch("--run", URL)
    assert second.returncode == 0 and f"in the store   {URL}" in second.stdout, second.stderr
    assert launch("--run", str(tmp_path / "near")).returncode == 0
    same_weights(tmp_path / "near", local_run(URL))
    assert "Signature" not in first.stdout + first.stderr + second.stdout + second.stderr


def test_the_store_is_remembered_over_many_uploads_that_fail(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    mirror._write_state(folder, URL, ["in the store"])
    for number in range(50):  # each names what is in the store before it names what it tries to send
        mirror._write_state(folder, URL, [*mirror._read_state(folder), "in the store", f"try {number}"])
    assert mirror._read_state(folder)[-2:] == ["in the store", "try 49"] and len(mirror._read_state(folder)) == 20


def test_uploads_that_wait_make_room_for_newer_ones(tmp_path, monkeypatch):
    folder = tmp_path / "home" / "run"
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "config.json").write_text("{}")
    begun, gate, sent = threading.Event(), threading.Event(), []

    def send(self, copy: Path) -> None:
        begun.set()
        gate.wait(20)
        sent.append(copy.name)
        if copy.name == "upload-4":
            raise OSError(28, "No space left on device")

    said = []
    monkeypatch.setattr(Mirror, "_send", send)
    sender = Mirror(folder, URL, said.append)
    sender.save(1)
    assert begun.wait(20)
    for step in (2, 3, 4):
        sender.save(step)
    # The first is under way; of those that waited the newest alone is left.
    assert sorted(path.name for path in folder.parent.glob("upload-*")) == ["upload-1", "upload-4"]
    gate.set()
    sender.settle()
    assert sent == ["upload-1", "upload-4"] and len(said) == 1 and "step 4 is not in the store yet" in said[0]
    assert not [*folder.parent.glob("upload-*")]


def test_complete_checkpoints_alone_are_sent(tmp_path):
    for path in (
        *("checkpoints/step-000000002.pt", "checkpoints/step-000000004/shard-00001.safetensors"),
        *("checkpoints/step-000000004/state.json", "checkpoints/step-000000006/shard-00001.safetensors"),
        *("checkpoints/step-000000008.tmp/state.json", "checkpoints/step-000000009.pt.tmp", "config.json", ".lock"),
        *("export/model.safetensors", ".export.partial/model.safetensors", "checkpoints/step-000000001.pt.bad"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}")
    assert mirror.contents(tmp_path) == [
        *("checkpoints/step-000000002.pt", "checkpoints/step-000000004/shard-00001.safetensors"),
        *("checkpoints/step-000000004/state.json", "config.json", "export/model.safetensors"),
    ]


def test_a_folder_on_a_disk_is_mirrored_nowhere(tmp_path):
    lone = Mirror.of(tmp_path / "run", print)
    assert lone.url == "" and local_run(tmp_path / "run", train=True) == tmp_path / "run"
    lone.save(1)
    lone.finish()
    assert not list(tmp_path.iterdir())
