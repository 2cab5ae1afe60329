import io
import json
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import constants
from ml_collections import ConfigDict
from PIL import Image

from jaxcxr import bases, hub, interop
from jaxcxr.__main__ import main
from jaxcxr.data import tokens
from jaxcxr.data.prepare import prepare
from jaxcxr.data.settings import defaults
from jaxcxr.errors import UserError
from jaxcxr.hub import Name
from jaxcxr.interop import adapters, wanted
from jaxcxr.training.pinned import pinned
from tests import hub_server
from tests.hub_server import TOKEN

# Prints, for each name, where it lies or the error, as huggingface_hub reads its settings once in a process.
FIND = """
import json, sys
from jaxcxr import hub
from jaxcxr.errors import UserError
for name in json.loads(NAMES):
    try:
        print(json.dumps(["found", str(hub.find(name, lambda files: [file for file in files if file != "unneeded"]))]))
    except UserError as error:
        print(json.dumps(["error", str(error)]))
"""


def find(names, home, server=None, token=None, before="", **env):
    """What `hub.find` says of each name in a process of its own, and the process."""
    home.mkdir(exist_ok=True)
    code = f"NAMES = {json.dumps(names)!r}\n{before}\n{FIND}"
    done = hub_server.run(code, hub_server.environment(home, server, token, **env), cwd=home)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done


@pytest.fixture(scope="module")
def server():
    with hub_server.running() as hub:
        yield hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder that is huggingface_hub's cache in this process, which is offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    hub._look_up.cache_clear()
    yield tmp_path / "cache"
    hub._look_up.cache_clear()


@pytest.fixture(scope="module")
def phantom():
    return hub_server.files_of(bases.FOLDER / "phantom")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", Name("org/name")),
        ("org/name@main", Name("org/name", "main")),
        ("org/name@refs/pr/1:unet", Name("org/name", "refs/pr/1", "unet")),
        ("org/name:a/b.safetensors", Name("org/name", "", "a/b.safetensors")),
        ("org/name.v1_2-x:unet/", Name("org/name.v1_2-x", "", "unet")),
        ("org/base.ckpt@main", Name("org/base.ckpt", "main")),
    ],
)
def test_names_of_repositories(text, name):
    assert hub.parse(text) == name
    assert hub.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        *(
            "name",
            "a/b/c",
            "/a/b",
            "./a/b/c",
            "../a",
            "~/a",
            ".hidden/a",
            "a/",
            "a//b",
            "",
            "a b/c",
            "org/name@",
            "é/a",
        ),
        *("C:\\models\\sd", "C:/models", "C:/models/sd", "C:models/sd", "models\\sd", "\\\\host\\share", "org/a:C:/x"),
        *("gs://bucket/x", "https://huggingface.co/org/name", "host:80/x", "org/name:", "org/name@a@b", "org/name\n"),
        *(
            "out/model.safetensors",
            "a/b.ckpt",
            "runs/prompts.jsonl",
            "org/a--b",
            "org/a..b",
            "org/name@a..b",
            "a/b.git",
        ),
        "o/" + "n" * 95,
    ],
)
def test_paths_are_no_names(text):
    assert hub.parse(text) is None


def test_a_folder_here_goes_first(cache, capsys):
    (cache.parent / "org/name").mkdir(parents=True)
    assert str(hub.find("org/name", lambda files: [])) == "org/name"
    assert hub.pinned("org/name") == "org/name"
    assert str(hub.find("phantom", lambda files: [])) == str(bases.FOLDER / "phantom")
    assert capsys.readouterr() == ("", "")


PIPELINE = [
    *(
        "README.md",
        "model_index.json",
        "v1-4.ckpt",
        "v1-4.safetensors",
        "images/a.png",
        "scheduler/scheduler_config.json",
    ),
    *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"),
    *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_flax_model.msgpack", "unet/model.onnx"),
    *("unet/openvino_model.xml", "unet/diffusion_pytorch_model.non_ema.safetensors"),
    *("vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"),
    *("text_encoder/config.json", "text_encoder/pytorch_model.bin", "text_encoder/flax_model.msgpack"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"),
    *("safety_checker/config.json", "safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json"),
]
CONFIGS = [
    *("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/vocab.json"),
    *("tokenizer/merges.txt", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"),
]


def test_of_a_pipeline_one_file_of_weights_of_each_network_is_wanted():
    unet, vae = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"
    assert set(wanted.of_checkpoint()(PIPELINE)) == {*CONFIGS, unet, vae, "text_encoder/pytorch_model.bin"}
    assert set(wanted.of_checkpoint(("vae",))(PIPELINE)) == {*CONFIGS, vae}
    assert set(wanted.of_checkpoint(weights=False)(PIPELINE)) == set(CONFIGS)


def test_an_index_is_wanted_with_its_shards():
    files = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json"]
    shards = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    others = [f"unet/diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert set(wanted.of_checkpoint()([*files, *shards, *others])) == {*files, *shards}
    half = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.fp16.json", *others]
    assert set(wanted.of_checkpoint()(half)) == set(half)


def test_other_kinds_of_repositories():
    encoder = ["config.json", "vocab.txt", "model.safetensors"]
    assert set(wanted.of_checkpoint()([*encoder, "pytorch_model.bin", "tf_model.h5", "README.md"])) == set(encoder)
    control = ["config.json", "diffusion_pytorch_model.safetensors"]
    assert wanted.of_checkpoint(("controlnet",))([*control, "diffusion_pytorch_model.bin"]) == control
    flax = ["unet/config.json", "unet/diffusion_flax_model.msgpack"]
    assert wanted.of_checkpoint()(flax) == flax
    run = ["config.json", "model/unet/config.json", "checkpoints/2/params/x", "frozen/params/y"]
    assert wanted.of_checkpoint()([*run, "samples/a.png"]) == run
    assert wanted.of_adapter(["README.md", "pytorch_lora_weights.safetensors"]) == ["pytorch_lora_weights.safetensors"]
    assert tokens.wanted(["vocab.txt", "model.safetensors"]) == ["vocab.txt"]
    assert set(wanted.of_weights("own.pt")(["own.pt", "other.pt", "config.json"])) == {"own.pt", "config.json"}


@pytest.mark.parametrize(
    ("choose", "files", "said"),
    [
        (wanted.of_checkpoint(), ["README.md", "v1.ckpt", "v1-ema.ckpt"], r"name one .* v1\.ckpt, .* append :v1\.ckpt"),
        (wanted.of_checkpoint(), ["README.md"], "holds no folder of a checkpoint"),
        (wanted.of_checkpoint(), ["unet/config.json", "unet/model.onnx"], "has no unet/diffusion_pytorch_model"),
        (wanted.of_checkpoint(), [*PIPELINE, "text_encoder_2/config.json"], "has text_encoder_2/, which is no part"),
        (wanted.of_adapter, ["cxr.safetensors"], r"append :cxr\.safetensors"),
        (wanted.of_weights(), ["net.pth"], r"append :net\.pth"),
        (tokens.wanted, ["tokenizer/vocab.json"], "append :tokenizer"),
    ],
)
def test_what_a_repository_lacks_is_said_with_what_to_name(choose, files, said):
    with pytest.raises(hub.Absent, match=said):
        choose(files)


def test_offline_a_checkpoint_is_read_from_the_cache(cache, phantom):
    commit = hub_server.fill_cache(cache, "org/phantom", phantom)
    for name in ("org/phantom", "org/phantom@main", f"org/phantom@{commit}"):
        read = interop.read(name)
        own = interop.read("phantom")
        assert read.networks == own.networks
        assert read.files == own.files
    name = "unet.conv_in.kernel"
    np.testing.assert_array_equal(read.tensors[name].read(), own.tensors[name].read())
    assert interop.read("org/phantom", only=("vae",)).networks == ["vae"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/phantom@v2", r"org/phantom@v2: .* in the cache, .* type unset HF_HUB_OFFLINE"),
        ("runs/phantom", r"runs/phantom: no such file or folder here, and no model .* in the cache"),
        ("org/phantom:nothing", r"has no folder or file nothing in the cache; .* HF_HUB_OFFLINE is set"),
        ("org/phantom", r"has no unet/diffusion_pytorch_model\.safetensors.* HF_HUB_OFFLINE is set: read it once"),
    ],
)
def test_offline_what_the_cache_lacks_is_one_line(cache, phantom, name, said):
    hub_server.fill_cache(cache, "org/phantom", {k: v for k, v in phantom.items() if k != WEIGHTS})
    with pytest.raises(UserError, match=said) as error:
        interop.read(name)
    assert "\n" not in str(error.value)


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_a_run_keeps_the_commit_that_it_began_with(cache, tmp_path, phantom):
    first = hub_server.fill_cache(cache, "org/phantom", phantom)
    config = ConfigDict({"model": {"base": "org/phantom", "lpips": {"net": "vgg"}, "text_encoder_base": ""}})
    began = pinned(config, tmp_path / "run")
    assert began.model.base == f"org/phantom@{first}"
    assert pinned(began, tmp_path / "run") == began
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(began.to_dict()))

    moved = hub_server.fill_cache(cache, "org/phantom", {**phantom, "README.md": b"new"})
    hub._look_up.cache_clear()
    assert pinned(config, tmp_path / "run") == began
    assert pinned(config).model.base == f"org/phantom@{moved}"
    config.model.base = "org/phantom@main"  # which asks for the branch
    assert pinned(config, tmp_path / "run").model.base == f"org/phantom@{moved}"


def test_a_tokenizer_an_adapter_and_a_network_of_features_have_names_too(cache, phantom):
    own = {name.removeprefix("tokenizer/"): data for name, data in phantom.items() if name.startswith("tokenizer/")}
    hub_server.fill_cache(cache, "org/words", own)
    theirs, ours = tokens.load("org/words"), tokens.load(bases.FOLDER / "phantom" / "tokenizer")
    assert theirs.get_vocab() == ours.get_vocab()
    hub_server.fill_cache(cache, "org/phantom", phantom)
    assert tokens.load("org/phantom:tokenizer").get_vocab() == ours.get_vocab()

    hub_server.fill_cache(cache, "org/lora", {"pytorch_lora_weights.safetensors": b"broken"})
    with pytest.raises(UserError, match=r"pytorch_lora_weights\.safetensors: "):
        adapters.merged(interop.read("phantom"), ["org/lora"], [])
    from jaxcxr.evaluation.extractors import choose_all

    hub_server.fill_cache(cache, "org/clip", {"model.safetensors": b"broken"})
    with pytest.raises(UserError, match=r"model\.safetensors: "):
        choose_all(["clip-b-32"], ["clip-b-32=org/clip"])


def test_a_plan_and_an_evaluation_read_names_too(cache, phantom):
    from jaxcxr.evaluation.sets import open_set
    from jaxcxr.plan import networks

    without = {name: data for name, data in phantom.items() if not name.endswith(".safetensors")}
    hub_server.fill_cache(cache, "org/configs", without)
    assert networks._files("org/configs") == interop.read("phantom").files
    drawn = {f"{value}.png": png(value) for value in range(3)}
    hub_server.fill_cache(cache, "org/drawn", drawn, "datasets")
    assert len(open_set("org/drawn").items) == 3
    row = json.dumps({"file_name": "1.png", "text": "Small effusion."}).encode()
    hub_server.fill_cache(cache, "org/told", {**drawn, "metadata.jsonl": row}, "datasets")
    (item,) = open_set("org/told").items
    assert item.text == "Small effusion."
    hub_server.fill_cache(cache, "org/shards", {"data/train-00000-of-00001.parquet": b""}, "datasets")
    with pytest.raises(UserError, match="org/shards: is in Parquet; .* jaxcxr prepare --source"):
        open_set("org/shards")


def png(value):
    data = io.BytesIO()
    Image.fromarray(np.full((16, 16), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("address", ["hf://org/name", "https://huggingface.co/org/name"])
def test_an_address_of_the_hub_is_refused_with_the_form_of_a_name(address, capsys):
    assert main(["sample", "--checkpoint", address, "--prompt", "x", "--out", "o"]) == 2
    assert "give the repository's name alone, as ORG/NAME" in capsys.readouterr().err


def test_a_data_set_of_the_hub_is_prepared(cache, tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="is of jaxcxr[data]")
    rows = [{"file_name": f"{value}.png", "text": f"Small effusion number {value}."} for value in range(6)]
    files = {f"train/{value}.png": png(value) for value in range(6)}
    files["train/metadata.jsonl"] = "\n".join(map(json.dumps, rows)).encode()
    hub_server.fill_cache(cache, "org/films", {**files, "README.md": b"about"}, "datasets")
    config = ConfigDict({**defaults(), "size": 16, "views": (), "tokenizer_vocab": 600})
    summary = prepare(config, "org/films", tmp_path / "out", workers=1)
    assert (summary.source, summary.splits["train"]) == ("ImageFolder", 5)
    with pytest.raises(UserError, match="org/none: no such file or folder here, and no data set of that name"):
        prepare(config, "org/none", tmp_path / "other", workers=1)


def test_the_needed_files_are_downloaded_once_and_are_there_offline(server, tmp_path):
    files = {"a.txt": b"a" * 1000, "sub/b.txt": b"b", "unneeded": b"x", "odd[1].txt": b"c"}
    commit = server.add("org/plain", files).branches["main"]
    server.got.clear()
    names = ["org/plain", f"org/plain@{commit}", "org/plain:sub", "org/plain:sub/b.txt"]
    found, _ = find(names, tmp_path, server)
    snapshot = tmp_path / "hub/models--org--plain/snapshots" / commit
    assert [place for _, place in found] == [str(snapshot / part) for part in (".", ".", "sub", "sub/b.txt")]
    assert dict(server.got) == {"a.txt": 1, "sub/b.txt": 1, "odd[1].txt": 1}
    assert (snapshot / "a.txt").read_bytes() == files["a.txt"]
    assert not server.tokens

    offline, done = find(names, tmp_path)
    assert offline == found
    assert done.stderr == ""
    gone, done = find(["org/plain"], tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    assert gone == found[:1]
    assert "127.0.0.1:9 cannot be reached; commit" in done.stderr


def test_what_was_pinned_and_downloaded_is_there_offline(server, tmp_path):
    commit = server.add("org/pins", {"a.txt": b"a"}).branches["main"]
    code = "from jaxcxr import hub\nname = hub.pinned('org/pins')\nprint(name, hub.find(name, list))"
    for env in (hub_server.environment(tmp_path, server), hub_server.environment(tmp_path)):
        done = hub_server.run(code, env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        name, place = done.stdout.split()
        assert name == f"org/pins@{commit}"
        assert place == str(tmp_path / "hub/models--org--pins/snapshots" / commit)


def test_what_the_hub_refuses_is_one_line_that_says_what_to_type(server, tmp_path):
    server.add("org/plain", {"a.txt": b"a", "sub/b.txt": b"b"})
    server.add("org/gated", {"a.txt": b"a"}, gated=True)
    server.add("org/private", {"a.txt": b"a"}, private=True)
    server.add("org/lost", {"a.txt": b"a"}, lost=("a.txt",))
    said = {
        "org/none": "org/none: no such file or folder here, and no model of that name on 127.0.0.1",
        "org/private": "type hf auth login if it is private",
        "org/gated": "org/gated: is gated; ask for access at http",
        "org/lost": "org/lost: a file of it is missing",
        "org/plain@v9": "org/plain@v9: has no revision 'v9'",
        "org/plain:nothing": "has no folder or file nothing; at its top are a.txt, sub",
    }
    found, _ = find([*said], tmp_path, server)
    for (kind, message), part in zip(found, said.values(), strict=True):
        assert kind == "error"
        assert part in message
        assert "\n" not in message
    found, _ = find(["org/plain"], tmp_path / "other", server, "hf_notatoken")
    assert found[0][0] == "error"
    assert "does not take the token of this machine; type hf auth login" in found[0][1]


def test_a_token_opens_what_is_gated_or_private_and_goes_nowhere_else(server, tmp_path):
    server.add("org/gated", {"a.txt": b"a"}, gated=True)
    server.add("org/private", {"a.txt": b"a"}, private=True)
    server.tokens.clear()
    found, done = find(["org/gated", "org/private"], tmp_path, server, TOKEN)
    assert [kind for kind, _ in found] == ["found", "found"]
    assert server.tokens == {TOKEN}
    assert TOKEN not in done.stdout + done.stderr


def test_a_download_that_is_cut_resumes_where_it_was(server, tmp_path):
    data = bytes(range(256)) * (24 * 2**12)  # 24 MiB: huggingface_hub writes ten megabytes at once
    server.add("org/large", {"large.bin": data})
    server.cuts["large.bin"] = 1
    found, _ = find(["org/large:large.bin"], tmp_path, server)
    if found[0][0] == "error":  # versions of before 1.0 do not continue by themselves
        assert "the download broke off" in found[0][1]
        found, _ = find(["org/large:large.bin"], tmp_path, server)
    assert found[0][0] == "found"
    assert (tmp_path / found[0][1]).read_bytes() == data
    assert [file for file, start in server.ranges if start > 0] == ["large.bin"]


def test_a_download_that_is_always_cut_is_one_line_and_works_later(server, tmp_path):
    server.add("org/cut", {"cut.bin": b"c" * 1000, "a.txt": b"a"})
    server.cuts["cut.bin"] = 1000
    no_wait = "import time; time.sleep = lambda seconds: None"
    found, _ = find(["org/cut"], tmp_path, server, before=no_wait)
    assert found[0][0] == "error"
    assert "org/cut: the download broke off" in found[0][1]
    assert "run it again" in found[0][1]
    server.cuts.clear()
    found, _ = find(["org/cut"], tmp_path, server)
    assert found[0][0] == "found"


def test_an_error_of_the_transfer_by_xet_is_one_line(tmp_path, monkeypatch):
    def cut(*_, **__):
        raise RuntimeError("Data processing error: CAS service error")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_look_up", lambda *_: hub._Repository("0" * 40, ("a.bin",)))
    monkeypatch.setattr("huggingface_hub.snapshot_download", cut)
    with pytest.raises(UserError, match=r"org/xet: the download broke off .*CAS service error.*; run it again"):
        hub.find("org/xet", list)


def test_a_full_disk_is_one_line(server, tmp_path):
    server.add("org/wide", {"wide.bin": b"w" * 400_000})
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    found, _ = find(["org/wide"], tmp_path, server, before=full)
    assert found[0][0] == "error"
    assert f"the disk of {tmp_path}/hub is full; free space on it, or set HF_HOME" in found[0][1]


def test_without_a_connection_both_readings_of_a_name_are_said(tmp_path):
    found, _ = find(["runs/cxr"], tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    assert "runs/cxr: no such file or folder here, and 127.0.0.1:9 cannot be reached" in found[0][1]


def test_of_two_processes_one_downloads(server, tmp_path):
    server.add("org/shared", {"shared.bin": b"s" * 100_000})
    server.got.clear()
    server.delay = 1.0
    code = f"NAMES = {json.dumps(['org/shared'])!r}\n{FIND}"
    env = hub_server.environment(tmp_path, server)
    both = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) for _ in range(2)]
    said = [each.communicate(timeout=60)[0] for each in both]
    server.delay = 0.0
    assert said[0] == said[1]
    assert json.loads(said[0])[0] == "found"
    assert server.got["shared.bin"] == 1


PUSH = """
import sys
from pathlib import Path
from jaxcxr import hub
from jaxcxr.errors import UserError
for name, public in (("me/cxr", False), ("me/cxr", False), ("me/open", True), ("me/shown", False), ("no name", False)):
    try:
        hub.check_push(name)
        print(hub.push(Path("out"), name, public=public))
    except UserError as error:
        print(error)
"""


def test_a_folder_is_uploaded_privately_and_public_only_where_that_is_asked_for(server, tmp_path):
    (tmp_path / "out/unet").mkdir(parents=True)
    (tmp_path / "out/README.md").write_text("---\nlicense: other\n---\nabout\n")
    (tmp_path / "out/unet/config.json").write_text("{}")
    server.add("me/shown", {"a.txt": b"a"})
    env = hub_server.environment(tmp_path, server, TOKEN)
    done = hub_server.run(PUSH, env, cwd=tmp_path)
    said = done.stdout.splitlines()
    assert said[:3] == [f"{server.address}/{name}" for name in ("me/cxr", "me/cxr", "me/open")], done.stderr
    assert "--push me/shown: is public already" in said[3]
    assert "; out is written" in said[3]
    assert "hf upload" not in said[3], "that would publish it"
    assert "is no name of a repository" in said[4]
    made = server.repositories["models/me/cxr"], server.repositories["models/me/open"]
    assert [each.private for each in made] == [True, False]
    files = hub_server.files_of(tmp_path / "out")
    assert all(each.commits[each.branches["main"]] == files for each in made)
    assert list(server.repositories["models/me/shown"].commits.values()) == [{"a.txt": b"a"}]


def test_nothing_is_converted_where_it_could_not_be_uploaded(tmp_path, capsys):
    convert = ["convert", "phantom", str(tmp_path / "out"), "--to"]
    for options, said in (
        (["diffusers", "--push", "me/cxr"], "HF_HUB_OFFLINE is set"),
        (["diffusers", "--public"], "--public: is for --push"),
        (["orbax", "--push", "me/cxr"], "is for a folder with a card"),
    ):
        assert main([*convert, *options]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    env = hub_server.environment(tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    done = hub_server.run(PUSH, env, cwd=tmp_path)
    assert "nobody is logged in; type hf auth login" in done.stdout


def test_convert_reads_from_the_hub_and_pushes_to_it(server, tmp_path, phantom):
    server.add("org/phantom", {**phantom, "unet/diffusion_pytorch_model.bin": b"never read"})
    server.got.clear()
    env = hub_server.environment(tmp_path, server, TOKEN)
    command = ["convert", "org/phantom", "out", "--to", "diffusers", "--push", "me/converted", "--only", "vae"]
    done = hub_server.run(f"from jaxcxr.__main__ import main\nprint(main({command!r}))", env, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    assert f"{server.address}/me/converted: out is uploaded" in done.stdout
    repository = server.repositories["models/me/converted"]
    files = repository.commits[repository.branches["main"]]
    assert repository.private
    assert files == hub_server.files_of(tmp_path / "out")
    assert b"Converted without training" in files["README.md"]
    assert "unet/diffusion_pytorch_model.bin" not in server.got
    assert WEIGHTS not in server.got, "the autoencoder alone was asked for"


def test_a_manifest_names_the_commit_and_another_commit_is_another_job(cache, phantom, capsys):
    commit = hub_server.fill_cache(cache, "org/phantom", phantom)
    draw = ["sample", "--checkpoint", "org/phantom", "--prompt", "Small effusion.", "--steps", "1", "--out", "drawn"]
    assert main(draw) == 0
    rows = [json.loads(line) for line in (cache.parent / "drawn/manifest.jsonl").read_text().splitlines()]
    assert rows[0]["checkpoint"] == f"org/phantom@{commit}"
    assert main(draw) == 0
    assert "already sampled" in capsys.readouterr().out

    hub_server.fill_cache(cache, "org/phantom", {**phantom, "README.md": b"new"})
    hub._look_up.cache_clear()
    assert main(draw) == 2
    said = capsys.readouterr().err
    assert f"drawn: holds samples of other prompts or settings (org/phantom@{commit}, not org/phantom@" in said
