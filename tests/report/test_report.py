"""The report: escaping, size, several runs, what is missing, the cache, and the server that follows a run."""

import http.client
import io
import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from builders import structured
from commandline import mimkit, refused
from mimkit.analysis.metrics import METRICS
from mimkit.core.errors import UserError
from mimkit.core.grids import GAP, TITLE, titled_grid
from mimkit.data.sources import open_pictures
from mimkit.evaluate.features import extract
from mimkit.evaluate.target import open_target
from mimkit.report import page as page_module
from mimkit.report.images import clear
from mimkit.report.page import Depth, cached, embedded, render, report
from mimkit.report.record import (
    CURVES,
    POINTS,
    class_tables,
    curves,
    differing,
    frames,
    names,
    read_run,
    results,
    short,
    thin,
)
from mimkit.report.serve import Follower, Server
from mimkit.report.words import READINGS

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny finished run whose pictures lie in folders with HTML for names."""
    place = tmp_path_factory.mktemp("report")
    for number in range(24):
        folder = place / "data" / EVIL if number % 2 else place / "data" / "a&b"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(structured(number, 28)).save(folder / f"<i>{number}.png")
    said = mimkit(f"pretrain mae_mini_28 --data {place / 'data'} --run {place / 'run'} $TINY --machine.evals 2")
    assert said.status == 0, said.err
    return place / "run"


@pytest.fixture(scope="module")
def text(run) -> str:
    return report([run], pictures=4)[0]


def data_of(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_page_has_every_part_and_loads_nothing(text):
    run = data_of(text)["runs"][0]
    assert len(run["look"]["pictures"]) == 4 and len(run["look"]["masks"]["src"]) == 4
    assert len(run["look"]["layers"]) == 1 and run["look"]["attention"]["heads"] == [2]
    assert run["film"] and run["curves"] and run["metrics"]["metrics"]["attention_distance"]["layer"] == [0]
    assert not re.search(r'(src|href)="(?!#|data:)', text)  # nothing from elsewhere
    assert "default-src 'none'" in text and "connect-src 'none'" in text
    assert set(re.findall(r"https?://[\w./]*", text)) == {"http://www.w3.org/2000/svg"}
    assert len(text.encode()) < 400_000


def test_names_with_html_are_only_text(text, run):
    assert EVIL in {one["label"] for one in data_of(text)["runs"][0]["look"]["pictures"]}
    assert EVIL not in text and "<i>" not in text
    found = read_run(run)
    found |= Depth(pictures=4).parts(run, found["data"], str, cached_only=True)
    found |= {"name": EVIL, "recipe": EVIL, "film": [], "settings": {EVIL: EVIL}}
    found["facts"] = found["environment"] = [[EVIL, EVIL]]
    found["results"] = [dict.fromkeys(("what", "value", "interval", "on", "by", "file"), EVIL)]
    found["look"] = {"failed": EVIL, "left": {}}
    made = render(page_module.assemble([found, found | {"settings": {EVIL: 1}}]))
    assert made.count("&lt;img src=x") > 10 and "<img" not in made.split('id="data"')[0]
    assert EVIL not in made


def test_embedded_json_cannot_be_left_and_knows_no_nan():
    text = str(embedded({"a": "</script><!--&", "b": [float("nan"), float("inf"), 1.5]}))
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script><!--&", "b": [None, None, 1.5]}


def test_the_policy_names_the_style_and_the_script(text):
    import base64
    import hashlib

    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in text


def test_two_runs_stand_side_by_side(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    config["config"]["seed"] = 7
    (other / "config.json").write_text(json.dumps(config))
    text, about = report([run, other], pictures=4, metrics="none")
    found = data_of(text)
    assert [one["name"] for one in found["runs"]] == [run.parent.name, tmp_path.name]
    assert ["seed", "0", "7"] in found["differing"] and "<h3>Differences</h3>" in text
    assert about["bytes"] == len(text.encode())


def test_what_is_missing_is_said(run, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "config.json", bare)
    text, about = report([bare])
    assert "no export yet" in about["left_out"]["bare"]["look"]
    assert "Left out: the run" in text and "No step was logged" not in text.split("<script>")[0]
    (bare / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.0, "seconds": 3}\n{"st')
    assert data_of(report([bare])[0])["runs"][0]["curves"][0]["value"] == [None, 1.0]
    without = tmp_path / "without"
    shutil.copytree(run, without)
    shutil.rmtree(without / "checkpoints")
    left = report([without], pictures=4, metrics="none")[1]["left_out"]["without"]
    assert left == {"masks": "the run keeps no checkpoint, and an export has no masks"}


def test_a_second_report_looks_at_nothing_until_the_weights_change(tmp_path):
    made = []
    file = tmp_path / "deep" / "look.json"

    def make() -> dict:
        made.append(1)
        return {"a": 1}

    def get(version: str, how=make) -> dict:
        return cached(file, version, how, "looking", str)

    assert get("1")["a"] == get("1")["a"] == 1 and len(made) == 1
    assert get("2")["stamp"] == "2" and len(made) == 2
    assert get("3", None)["stamp"] == "2"  # what there is serves
    file.write_text("{")
    assert "failed" in get("3", None)

    def fail() -> dict:
        raise UserError("no")

    assert get("3", fail)["failed"] == "no" and file.read_text() == "{"  # a failure is not kept


def test_a_page_that_is_too_large_gets_thinner(run, monkeypatch):
    found = read_run(run)
    found |= Depth(pictures=4).parts(run, found["data"], str, cached_only=True)
    found["film"] = [{"step": step, "src": "data:," + "x" * 50_000} for step in range(20)]
    monkeypatch.setattr(page_module, "LIMIT", 400_000)
    text = page_module.fit(page_module.assemble([found]))
    kept = [one["step"] for one in data_of(text)["runs"][0]["film"]]
    assert len(text.encode()) <= 400_000 and 2 <= len(kept) < 8 and kept[0] == 0 and kept[-1] == 19
    monkeypatch.setattr(page_module, "LIMIT", 100)
    with pytest.raises(UserError, match="name fewer runs"):
        page_module.fit(page_module.assemble([found]))


def test_thinning_keeps_ends_and_spikes():
    points = [(step, 0.0, 1.0) for step in range(5000)]
    points[1234] = (1234, 0.0, 99.0)
    kept = thin(points)
    assert len(kept) <= POINTS + 2 and points[1234] in kept and kept[0] == points[0] and kept[-1] == points[-1]
    assert thin(points[:10]) == points[:10]
    found = curves([{"step": 1, "zoo": 2.0, "loss": 1.0, "ok": True}, {"step": 2, "loss": float("inf")}])
    assert [one["key"] for one in found] == ["loss", "zoo"] and found[0]["value"] == [1.0, None]


def test_frames_are_spread_with_both_ends(tmp_path):
    (tmp_path / "pictures").mkdir()
    for step in (*range(10, 110, 10), "x"):
        (tmp_path / "pictures" / f"step-{step if step == 'x' else f'{step:09d}'}.png").touch()
    assert frames(tmp_path, 4) == [10, 40, 70, 100] and len(frames(tmp_path)) == 10 and frames(tmp_path, 1) == [100]


def test_results_come_from_all_json_of_the_folder(tmp_path):
    scores = {"mean": {"accuracy": 0.4124, "low": 0.3986, "high": 0.4258}}
    one = {"kind": "knn", "data": "here", "train": 10, "test": 5, "results": scores}
    (tmp_path / "evaluation.json").write_text(json.dumps({"results": [one]}))
    (tmp_path / "result.json").write_text(json.dumps({"accuracy": 0.5, "top5": 0.75, "test": 9}))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    found = results(tmp_path, [{"step": 1, "knn": 0.25}, {"step": 2, "effective_rank": 7.123}])
    assert [(row["what"], row["value"], row["interval"]) for row in found] == [
        ("online kNN", "25.0%", ""),
        ("effective rank", "7.1", ""),
        ("kNN", "41.2%", "39.9% to 42.6%"),
        ("fine-tuned accuracy", "50.0%", ""),
        ("fine-tuned top-5 accuracy", "75.0%", ""),
    ]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"results": [{"kind": "knn", "results": {"mean": {"accuracy": "x"}}}]}, "results.0.results.mean.accuracy"),
        ({"results": [{"kind": "knn", "results": {}}, 3]}, "results.1: expected an object, got 3"),
        ({"accuracy": 1.5}, "accuracy: expected a number between 0 and 1, got 1.5"),
        ({"accuracy": 0.5, "per_class": {"a": {"accuracy": 0.5}}}, "per_class.a.pictures is missing"),
    ],
)
def test_a_damaged_evaluation_is_named_and_not_shown(tmp_path, content, place):
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"evaluation.json: {re.escape(place)}"):
        results(tmp_path, [])


def test_classes_stand_worst_first_and_at_most_twenty(run, tmp_path):
    per_class = {f"c{n}": {"accuracy": n / 30, "pictures": 3, "taken_for": None} for n in reversed(range(25))}
    per_class[EVIL] = {"accuracy": 0.0, "pictures": 1200, "taken_for": "c1"}
    scores = {"mean": {"accuracy": 0.4, "per_class": {}}, "class": {"accuracy": 0.4, "per_class": per_class}}
    old = {"kind": "probe", "headline": "mean", "results": {"mean": {"accuracy": 0.4}}}  # of version 0.2
    measured = {"results": [{"kind": "knn", "headline": "class", "results": scores}, old]}
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(measured))
    few = {"a": {"accuracy": 0.5, "pictures": 2, "taken_for": "b"}}
    (tmp_path / "run" / "tuned.json").write_text(json.dumps({"accuracy": 0.5, "per_class": few}))
    knn, tuned = class_tables(tmp_path / "run")
    assert (knn["what"], knn["file"], knn["more"], len(knn["rows"])) == ("kNN, class", "evaluation.json", 6, 20)
    assert knn["rows"][:3] == [[EVIL, "0.0%", "1,200", "c1"], ["c0", "0.0%", "3", ""], ["c1", "3.3%", "3", ""]]
    assert tuned == {"what": "fine-tuned", "file": "tuned.json", "rows": [["a", "50.0%", "2", "b"]], "more": 0}
    text = report([tmp_path / "run"], pictures=4, metrics="none")[0]
    assert "Classes: kNN, class (evaluation.json)" in text and "... and 6 more." in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;</th>") == 1 and EVIL not in text


def test_the_online_knn_has_levels_to_be_compared_with(run, text, tmp_path):
    (knn,) = (curve for curve in data_of(text)["runs"][0]["curves"] if curve["key"] == "knn")
    start = json.loads((run / "config.json").read_text())["resolved"]["start"]
    assert knn["levels"] == [
        ["chance", pytest.approx(start["chance"], abs=1e-5)],
        ["pixels", pytest.approx(start["knn_pixels"], abs=1e-5)],
        ["untrained", pytest.approx(start["knn_start"], abs=1e-5)],
    ]
    assert not any("levels" in curve for curve in data_of(text)["runs"][0]["curves"] if curve["key"] != "knn")
    other = tmp_path / "run"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    config["config"]["encoder"]["weights"] = "timm"
    del config["resolved"]["start"]["knn_pixels"]
    (other / "config.json").write_text(json.dumps(config))
    (knn,) = (curve for curve in read_run(other)["curves"] if curve["key"] == "knn")
    assert [name for name, _ in knn["levels"]] == ["chance", "start"]
    del config["resolved"]["start"]  # of version 0.1
    (other / "config.json").write_text(json.dumps(config))
    assert [curve["levels"] for curve in read_run(other)["curves"] if curve["key"] == "knn"] == [[]]


def test_the_home_folder_is_nobodys_business(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert short(["/home/ann/pets", "/home/anna", 3]) == ["~/pets", "/home/anna", 3]


def test_runs_of_one_name_are_told_apart_by_the_folders_above(monkeypatch):
    def called(*folders: str) -> list[str]:
        return names([Path(one) for one in folders])

    assert called("/runs/mae") == ["mae"] and called("/runs/mae", "/other/emae") == ["mae", "emae"]
    assert called("/study/mae/seed-0", "/study/simclr/seed-0") == ["mae", "simclr"]
    assert called("/study/mae/seed-0") == ["mae"] and called("/study/mae/seed-0", "/runs/emae") == ["mae", "emae"]
    assert called("/study/mae/seed-0", "/study/mae/seed-1") == ["seed-0", "seed-1"]
    assert called("/s/mae/seed-0", "/s/mae/seed-1", "/s/emae/seed-0") == ["mae/seed-0", "mae/seed-1", "emae/seed-0"]
    assert called("/runs/mae", "/runs/mae") == ["mae", "mae"]  # which `assemble` numbers
    monkeypatch.setenv("HOME", "/home/ann")
    assert called("/home/ann/run", "/data/run") == ["~", "data"]


def test_a_sheet_of_looks_has_no_white_of_its_own():
    gray = torch.full((4, 3, 8, 8), 0.5)
    gray[0, :, 2:6, 2:6] = 1.0  # white inside a picture stays
    sheet = clear(titled_grid([("original", gray), ("masked", gray)], sets=2))
    pixels = np.asarray(sheet)
    assert sheet.mode == "RGBA" and not pixels[TITLE:, :GAP, 3].any() and not pixels[-GAP:, :, 3].any()
    assert pixels[TITLE + 30, GAP + 50].tolist() == [255, 255, 255, 255]
    assert 0 < (pixels[:TITLE, :, 3] > 0).mean() < 0.3 and (pixels[:TITLE, :, :3] == pixels[0, 0, 0]).all()


def test_the_shape_of_an_encoder_is_told_where_an_export_was_tuned_too(run, tmp_path):
    (told,) = (value for name, value in read_run(run)["facts"] if name == "encoder")
    shutil.copytree(run, tmp_path / "tuned")
    file = tmp_path / "tuned/config.json"
    saved = json.loads(file.read_text())
    encoder = saved["config"]["encoder"]
    names = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "patch": "patch_size"}
    encoder["model_args"] = {timm_name: encoder[name] for name, timm_name in names.items()}
    encoder |= dict.fromkeys(names)
    file.write_text(json.dumps(saved))
    (tuned,) = (value for name, value in read_run(tmp_path / "tuned")["facts"] if name == "encoder")
    assert tuned == told and re.search(r"width \d+, depth \d+, heads \d+, patches of \d+ px", told)


def test_the_table_of_results_names_each_run_once_measured(run):
    found = read_run(run)
    found |= {"film": [], "look": {"failed": "none", "left": {}}}
    row = {"what": "kNN", "value": "31.1%", "interval": "", "on": "here", "by": "mean", "file": "evaluation.json"}
    one, two, three = (
        found | {"name": name, "results": rows} for name, rows in (("a", [row]), ("b", [row]), ("c", []))
    )
    table = render(page_module.assemble([one, two, three])).split('id="evaluation"')[1].split("</section>")[0]
    assert table.count("<table") == 1 and table.count("31.1%") == 2 and table.count('<th scope="row">') == 2
    assert "<b>c</b>: Not evaluated yet" in table and table.count("Not evaluated") == 1
    alone = render(page_module.assemble([one])).split('id="evaluation"')[1].split("</section>")[0]
    assert '<th scope="col">run</th>' in table and '<th scope="col">run</th>' not in alone


def test_differences_name_what_one_run_lacks():
    assert differing([{"settings": {"a": 1, "b": 2}}, {"settings": {"a": 1}}]) == [["b", "2", "-"]]


def test_every_metric_has_its_words():
    assert set(READINGS) == set(METRICS)
    assert all(text.endswith(".") for one in READINGS.values() for text in one)
    assert all(title and says.endswith(".") for title, says in CURVES.values())


@pytest.mark.parametrize("recipe", ["simclr", "swin"])
def test_methods_without_masks_or_class_attention(recipe, run, tmp_path):
    data = run.parent / "data"
    flags = {
        "simclr": "simclr_mini_32 --encoder.width 16 --encoder.depth 1 --encoder.heads 2",
        "swin": "simmim_swin_mini_32",
    }[recipe]
    said = mimkit(
        f"pretrain {flags} --data {data} --run {tmp_path / 'run'} --batch-size 8 --epochs 1 --machine.device cpu "
        "--machine.precision float32 --machine.attention fused --machine.threads 1 --machine.workers 0 "
        "--machine.evals 0 --machine.tensorboard False"
    )
    assert said.status == 0, said.err
    text, about = report([tmp_path / "run"], pictures=4)
    left = about["left_out"]["run"]
    look = data_of(text)["runs"][0]["look"]
    assert len(look["neighbors"]["queries"]) == 4 and look["layers"]
    target = open_target(str(tmp_path / "run"), size=(1, 1), channels=3)
    pictures = open_pictures([str(data)], "all", target.reading)
    pool = {"simclr": "class", "swin": "mean"}[recipe]  # what was trained
    unit = F.normalize(extract(target, pictures, device="cpu", pools=[pool]).values[pool], dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).max(dim=1).values
    for query in look["neighbors"]["queries"]:
        assert (nearest - query["items"][0]["cosine"]).abs().min() < 1e-3
    assert ("masks" in left) == (recipe == "simclr") and ("attention" in left) == (recipe == "swin")
    assert all(f"Left out: {reason}"[:40] in text for reason in left.values())


def test_the_command_writes_a_file_and_says_what_is_left_out(run, tmp_path):
    out = tmp_path / "page.html"
    said = mimkit(f"report {run} --out {out} --pictures 4 --json -")
    assert said.status == 0 and json.loads(said.out)["bytes"] == out.stat().st_size
    assert refused(f"report {tmp_path}").startswith(f"mimkit: {tmp_path} holds no run")
    assert "there is no folder" in refused(f"report {run} --out {tmp_path}/no/page.html")
    assert "wanted: mimkit report RUN" in refused("report")
    assert "at least 2" in refused(f"report {run} --out {out} --pictures 1")
    assert "view follows one run" in refused(f"view {run} {run}")
    assert "--port is a number" in refused(f"view {run} --port 70000")


def test_without_jinja_the_extra_is_named(run, monkeypatch):
    monkeypatch.setattr("mimkit.cli.report.find_spec", lambda name: None)
    assert "pip install 'mimkit[report]'" in refused(f"report {run}")
    assert "pip install 'mimkit[report]'" in refused(f"view {run}")


@pytest.fixture
def server(run, tmp_path):
    live = tmp_path / "live"
    shutil.copytree(run, live)
    made = Server(Follower(live, Depth(pictures=4, metrics="none")), "127.0.0.1", 0)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_served_page_follows_its_run(server):
    folder = server.follower.folder
    status, body = ask(server, "/")
    assert status == 200 and b"connect-src 'self'" in body and data_of(body.decode())["live"] is True
    before = json.loads(ask(server, "/live.json")[1])
    assert before["looked"] == "" and before["checkpoint"]
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "loss": 0.5, "seconds": 9.0}\n{"step": 100, "lo')
    shutil.copy(folder / "pictures" / "reconstruction.png", folder / "pictures" / "step-000000099.png")
    now = json.loads(ask(server, "/live.json")[1])
    assert now["curves"][0]["step"][-1] == 99 and now["film"] == [*before["film"], 99]
    with (
        Image.open(io.BytesIO(ask(server, "/film/99")[1])) as given,
        Image.open(folder / "pictures" / "step-000000099.png") as drawn,
    ):
        assert given.mode == "RGBA" and given.size == drawn.size
    assert ask(server, "/look.json")[0] == 200
    server.follower._work.join(300)
    now = json.loads(ask(server, "/live.json")[1])
    assert now["looked"] == now["checkpoint"] and not now["problem"] and not now["working"]


def test_a_server_gives_nothing_else(server):
    port = server.server_address[1]
    wrong = "/config.json /film/ /film/7 /film/../config.json /../config.json /film/1%2F.. //film/"
    for path in wrong.split():
        assert ask(server, path)[0] == 404, path
    assert ask(server, "/", "POST")[0] == ask(server, "/", "PUT")[0] == 501
    for host, status in (
        ("evil.example", 403),
        (f"evil.example:{port}", 403),
        ("127.0.0.1:1", 403),
        ("", 403),
        (f"localhost:{port}", 200),
        (f"[::1]:{port}", 200),
    ):
        assert ask(server, "/live.json", Host=host)[0] == status, host
    assert ask(server, "/look.json", Sec_Fetch_Site="cross-site")[0] == 403 and not server.follower.working
    with pytest.raises(UserError, match=f"cannot listen on port {port}"):
        Server(server.follower, "127.0.0.1", port)


def test_loopback_is_the_default():
    from mimkit.cli.view import ViewArguments

    arguments = ViewArguments(run=Path("run"))
    assert arguments.host == "127.0.0.1" and arguments.port == 0
