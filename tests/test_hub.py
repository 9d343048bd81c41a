"""Publishing to a Hub and loading from it, over HTTP with the real client, on loopback.

huggingface_hub reads its environment once, when it is imported, so everything here happens in child processes: one that
publishes, one that loads without the package, one that is offline. They do all they have to in one go, because starting
one takes seconds; the tests look at what they left.
"""

import json

import pytest
import tiny
import torch
from hub_server import HubServer, User
from processes import WITHOUT_PACKAGE, run_python
from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM

from hf_autoencoders import VARIANTS
from hf_autoencoders.publishing import save_for_hub

TOKEN, READ_TOKEN, OTHER_TOKEN = "alice-token-0123456789", "alice-reads-0123456789", "bob-token-0123456789"

SPEECH = ("voice_conversion", "speech_vqvae")
PRIORS = ("latent_prior", "code_prior")

PUBLISH = """
import logging
logging.basicConfig(level=logging.DEBUG)  # whatever the client has to say must not hold the token
sys.path.insert(0, args["root"])
import hf_autoencoders
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
from hf_autoencoders.publishing import check_folder, push_folder
api = HfApi()

def head(repo_id, revision=None):
    return api.model_info(repo_id, revision=revision).sha

# the whole folder, twice
for name in args["folders"]:
    done = push_folder(args["folders"][name], f"alice/{name}")
    answer[name] = {"oid": done.oid, "head": head(f"alice/{name}"), "files": api.list_repo_files(f"alice/{name}")}
    push_folder(args["folders"][name], f"alice/{name}")
    answer[name]["commits"] = len(api.list_repo_commits(f"alice/{name}"))
push_folder(args["folders"]["vae"], "alice/private-vae", private=True)

# tags and branches
folder = args["folders"]["vqvae"]
first = head("alice/vqvae")
api.create_tag("alice/vqvae", tag="v1")
model = AutoModel.from_pretrained("alice/vqvae")
assert type(model).__module__ == "hf_autoencoders.models.modeling_vqvae"
with __import__("torch").no_grad():
    for parameter in model.parameters():
        parameter.zero_()
model.push_to_hub("alice/vqvae", commit_message="All zero", revision="zeros")
request = model.push_to_hub("alice/vqvae", create_pr=True)
answer["revisions"] = {"first": first, "zeros": head("alice/vqvae", "zeros"), "main": head("alice/vqvae")}
answer["pull_request"] = request.pr_revision

# what users do: push_to_hub, on a model that came from the Hub
model = AutoModel.from_pretrained("alice/autoencoder")
model.save_pretrained("again")
check_folder("again")
model.push_to_hub("alice/pushed", tags=["mnist"])
answer["pushed"] = api.list_repo_files("alice/pushed")
card = ModelCard.load("alice/pushed")
answer["pushed_card"] = card.text
answer["pushed_tags"] = card.data.tags
model.push_to_hub("alice/pushed")
answer["pushed_commits"] = len(api.list_repo_commits("alice/pushed"))
api.upload_file(path_or_fileobj=b"Mine.", path_in_repo="README.md", repo_id="alice/pushed")
model.push_to_hub("alice/pushed")
answer["pushed_readme"] = ModelCard.load("alice/pushed").text
model.save_pretrained("saved", push_to_hub=True, repo_id="alice/saved", commit_message="While saving")
answer["saved"] = api.list_repo_files("alice/saved")

# a model of text and its tokenizer, each on its own, as transformers does; then the model once more
model = AutoModelForSeq2SeqLM.from_pretrained("alice/seq2seq2seq")
assert type(model).__module__ == "hf_autoencoders.models.modeling_seq2seq2seq"
model.push_to_hub("alice/pushed-text")
answer["pushed text card"] = ModelCard.load("alice/pushed-text").text
tokenizer = AutoTokenizer.from_pretrained("alice/seq2seq2seq")
tokenizer.push_to_hub("alice/pushed-text")
before = head("alice/pushed-text")
model.push_to_hub("alice/pushed-text")
answer["pushed text"] = [api.list_repo_files("alice/pushed-text"), before == head("alice/pushed-text")]
summarize = pipeline("text-summarization", model="alice/pushed-text", device="cpu", num_words=3)
answer["summaries with the package"] = summarize(args["sentences"])

# no right to
answer["refused"] = {}
for kind, token in args["other_tokens"].items():
    try:
        push_folder(args["folders"]["vae"], "alice/vae", token=token)
    except HfHubHTTPError as error:
        answer["refused"][kind] = [error.response.status_code, str(error)]
"""

LOAD = """
import torch
from safetensors.torch import load_file
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoModelForAudioTokenization
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

def aligned(model):
    # Copied to where new tensors are: kernels of some processors round otherwise in the middle of a file in memory.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model

def expected_of(folder):
    return {name: tensor.clone() for name, tensor in load_file(f"{folder}/expected.st").items()}

def equal(model, folder):
    expected, model = expected_of(folder), aligned(model)
    with torch.no_grad():
        return torch.equal(model.eval()(expected["pixel_values"])[0], expected["latents"])

def load(name, **options):
    return AutoModel.from_pretrained(f"alice/{name}", trust_remote_code=True, **options)

def failure(function, *args, **options):
    try:
        function(*args, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]

# by name, with the processor; a connection that drops within a file is taken up again
for name in ("seq2seq2seq", "pushed-text"):
    tokenizer = AutoTokenizer.from_pretrained(f"alice/{name}", trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(f"alice/{name}", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    inputs = tokenizer(args["sentences"], padding=True, return_tensors="pt")
    codes = model.generate(**inputs, num_words=3, num_beams=4)
    answer[name] = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (codes, model.reconstruct(codes))]
for name, folder in args["speech"].items():
    extractor = AutoFeatureExtractor.from_pretrained(f"alice/{name}", trust_remote_code=True)
    model = AutoModel.from_pretrained(f"alice/{name}", trust_remote_code=True)
    if name == "speech_vqvae":
        model = AutoModelForAudioTokenization.from_pretrained(f"alice/{name}", trust_remote_code=True)
    assert {type(one).__module__.partition(".")[0] for one in (extractor, model)} == {"transformers_modules"}
    expected, model = expected_of(folder), aligned(model)
    features = extractor(expected["waveform"], sampling_rate=8000, return_tensors="pt").input_features.clone()
    answer[name] = torch.equal(model.convert(features, features), expected["features"])
for name, folder in args["priors"].items():
    expected, model = expected_of(folder), aligned(load(name)).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    log_prob = expected.pop("log_prob")
    answer[name] = torch.equal(model(**expected).log_prob, log_prob)
for name in args["folders"]:
    AutoImageProcessor.from_pretrained(f"alice/{name}", trust_remote_code=True)
    if name != "autoencoder":
        answer[name] = equal(load(name), args["folders"][name])
answer["pushed"] = equal(load("pushed"), args["folders"]["autoencoder"])

# by tag, commit and branch
for revision in ("v1", args["revisions"]["first"], args["revisions"]["first"][:10]):
    answer[f"vqvae@{revision}"] = equal(load("vqvae", revision=revision), args["folders"]["vqvae"])
answer["zeros"] = not any(parameter.any() for parameter in load("vqvae", revision="zeros").parameters())
answer["unknown revision"] = failure(load, "vqvae", revision="nowhere")

# private
answer["private"] = equal(load("private-vae", token=args["token"]), args["folders"]["vae"])
answer["private without token"] = failure(load, "private-vae", token=False, cache_dir="other-cache")
answer["not trusted"] = failure(AutoModel.from_pretrained, "alice/vae")

# a reset connection and a file that ends early are errors, and nothing of them stays in the cache
def weights(**options):
    return open(hf_hub_download("alice/classifier", "model.safetensors", cache_dir="faults", **options), "rb").read()

original = open(args["classifier"] + "/model.safetensors", "rb").read()
answer["truncated"] = failure(weights)
answer["reset"] = failure(weights)
# wrong bytes of the right number are not noticed by the client, but can be found out and cured
answer["corrupt"] = weights() != original
report = HfApi().verify_repo_checksums("alice/classifier", cache_dir="faults")
answer["verify"] = [getattr(item, "path", None) or item["path"] for item in report.mismatches]
answer["cured"] = weights(force_download=True) == original
"""

OFFLINE = """
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer
for name in ("voice_conversion", "speech_vqvae"):
    AutoFeatureExtractor.from_pretrained(f"alice/{name}", trust_remote_code=True)
    AutoModel.from_pretrained(f"alice/{name}", trust_remote_code=True)
AutoTokenizer.from_pretrained("alice/seq2seq2seq", trust_remote_code=True)
AutoModelForSeq2SeqLM.from_pretrained("alice/seq2seq2seq", trust_remote_code=True)
for name in ("autoencoder", "vae", "vqvae"):
    AutoImageProcessor.from_pretrained(f"alice/{name}", trust_remote_code=True)
    if name != "autoencoder":
        AutoModel.from_pretrained(f"alice/{name}", trust_remote_code=True)
try:
    AutoModel.from_pretrained("alice/vae", trust_remote_code=True, cache_dir="empty")
except Exception as error:
    answer["cold"] = [type(error).__name__, str(error)]
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A complete folder of each variant, and of a classifier, with outputs to expect."""
    base, folders = tmp_path_factory.mktemp("folders"), {}
    for seed, variant in enumerate(VARIANTS.values()):
        torch.manual_seed(seed)
        if variant.modality == "text":
            model = tiny.model(tiny.FIRST[variant.name], max_source_tokens=80)
            metrics = {"metrics": {"length_deviation": 0.25}}
            folders[variant.name] = save_for_hub(
                model, base / variant.name, processor=tiny.tokenizer(), metrics=metrics
            )
            continue
        if variant.modality == "audio":
            model = tiny.model(tiny.FIRST[variant.name], seed)
            extractor = tiny.feature_extractor(model.config)
            folder = save_for_hub(
                model, base / variant.name, processor=extractor, metrics={"metrics": {"reconstruction_error": 0.25}}
            )
            folders[variant.name] = folder
            waveform = torch.linspace(0, 300, 1000).sin()
            features = extractor(waveform, sampling_rate=8000, return_tensors="pt").input_features.clone()
            expected = {"waveform": waveform, "features": model.convert(features, features)}
            save_file({name: value.contiguous() for name, value in expected.items()}, folder / "expected.st")
            continue
        if variant.modality == "latent":
            model = tiny.model(tiny.FIRST[variant.name], seed)
            folder = save_for_hub(model, base / variant.name, metrics={"metrics": {"prior_nll": 0.25}})
            folders[variant.name] = folder
            inputs = tiny.inputs(model.config)
            with torch.no_grad():
                expected = {**inputs, "log_prob": model(**inputs).log_prob.clone()}
            save_file({name: value.contiguous() for name, value in expected.items()}, folder / "expected.st")
            continue
        config = variant.config_class()(image_size=12, hidden_sizes=(8, 8))
        model = variant.model_class()(config).eval()
        metrics = {"metrics": {"mse": 0.25}, "corpus": {"name": "digits", "split": "validation", "rows": 180}}
        folder = folders[variant.name] = save_for_hub(model, base / variant.name, metrics=metrics)
        pixel_values = torch.rand(3, *config.input_shape)
        with torch.no_grad():
            latents = model(pixel_values).latents.clone()
        save_file({"pixel_values": pixel_values, "latents": latents}, folder / "expected.st")
        (folder / "checkpoints" / "step-1").mkdir(parents=True)
        (folder / "checkpoints" / "step-1" / "random_states_0.pkl").write_bytes(b"x")
        (folder / "optimizer.bin").write_bytes(b"x")
    variant = VARIANTS["hfae_autoencoder"]
    head = variant.head_classes()["AutoModelForImageClassification"]
    folders["classifier"] = save_for_hub(
        head(variant.config_class()(image_size=12, hidden_sizes=(8, 8), num_labels=10)), base / "classifier"
    )
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    users = [User("alice", TOKEN), User("alice", READ_TOKEN, "read"), User("bob", OTHER_TOKEN)]
    with HubServer(tmp_path_factory.mktemp("hub"), users) as hub:
        yield hub


@pytest.fixture(scope="module")
def published(hub, folders, tmp_path_factory, root):
    home = tmp_path_factory.mktemp("publisher")
    arguments = {"root": root, "folders": folders, "sentences": tiny.SENTENCES}
    arguments["other_tokens"] = {"read-only": READ_TOKEN, "another user's": OTHER_TOKEN, "unknown": "nobody-0123456789"}
    env = hub.env(TOKEN, home / "hf", HF_DEBUG="1")
    return {**run_python(PUBLISH, home, env, arguments), "home": home}


@pytest.fixture(scope="module")
def loaded(hub, folders, published, tmp_path_factory):
    home = tmp_path_factory.mktemp("loader")
    repo = hub.repos["models", "alice/classifier"]
    sha = repo.tree("main")["model.safetensors"]["lfs"]
    for kind in ("truncate", "reset", "corrupt"):  # in this order, one download each
        hub.add_fault(kind, f"/lfs/{sha}/*")
    drop = hub.repos["models", "alice/vae"].tree("main")["model.safetensors"]["lfs"]
    hub.add_fault("drop", f"/lfs/{drop}/*", after=1000)
    others = ("classifier", "seq2seq2seq", *SPEECH, *PRIORS)
    models = {name: folder for name, folder in folders.items() if name not in others}
    arguments = {
        "folders": models,
        "speech": {name: folders[name] for name in SPEECH},
        "priors": {name: folders[name] for name in PRIORS},
        "sentences": tiny.SENTENCES,
        "classifier": folders["classifier"],
        "token": TOKEN,
    }
    arguments["revisions"] = published["revisions"]
    hub.log.clear()
    answer = run_python(WITHOUT_PACKAGE + LOAD, home, hub.env(None, home / "hf"), arguments)
    return {**answer, "home": home, "log": list(hub.log)}


DISENTANGLED = {"configuration_disentangled_vae.py", "configuration_vae.py", "modeling_disentangled_vae.py"}
DISCRETE = {"configuration_discrete_autoencoder.py", "configuration_vae.py", "modeling_discrete_autoencoder.py"}
CODE = {
    **dict.fromkeys(("beta_vae", "beta_tcvae", "factor_vae", "dip_vae"), DISENTANGLED),
    **dict.fromkeys(("categorical_autoencoder", "binary_autoencoder", "joint_vae"), DISCRETE),
    "autoencoder": {"configuration_autoencoder.py", "modeling_autoencoder.py"},
    "vae": {"configuration_vae.py", "modeling_vae.py"},
    "vqvae": {"configuration_vqvae.py", "modeling_vqvae.py"},
    "image_codec": {"configuration_image_codec.py", "modeling_image_codec.py"},
    "seq2seq2seq": {"configuration_seq2seq2seq.py", "modeling_seq2seq2seq.py"},
    "voice_conversion": {
        "configuration_speech.py",
        "configuration_voice_conversion.py",
        "modeling_voice_conversion.py",
    },
    "speech_vqvae": {"configuration_speech.py", "configuration_speech_vqvae.py", "modeling_speech_vqvae.py"},
    "latent_prior": {"configuration_prior.py", "modeling_latent_prior.py"},
    "code_prior": {"configuration_prior.py", "modeling_code_prior.py"},
}
EVERYWHERE = {".gitattributes", "README.md", "config.json", "model.safetensors"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("name", CODE)
def test_exactly_these_files_are_pushed(published, name):
    """No pickle, no checkpoint, no file that loading does not need; the parts that all variants share, and its own."""
    files = set(published[name]["files"])
    code = {file for file in files if file.endswith(".py")}
    modality = VARIANTS[f"hfae_{name}"].modality
    processor = {*TOKENIZER, "generation_config.json"} if modality == "text" else {"preprocessor_config.json"}
    processor = set() if modality == "latent" else processor
    assert files - code == EVERYWHERE | {"metrics.json"} | processor
    assert {file for file in code if file.startswith(("configuration_", "modeling_"))} == CODE[name] | {
        "configuration_base.py"
    }
    assert ("image_processing_autoencoder.py" in code) == (modality == "image")
    assert ("feature_extraction_speech.py" in code) == (modality == "audio")
    assert set(published["saved"]) == set(published["pushed"])
    assert set(published["pushed"]) == set(published["autoencoder"]["files"]) - {"metrics.json"}


def test_every_variant_is_listed_here():
    assert set(CODE) == {variant.name for variant in VARIANTS.values()}


def test_a_second_push_of_the_same_makes_no_commit(published):
    for name in CODE:
        assert published[name]["commits"] == 2  # the Hub's own first one, and ours
        assert published[name]["oid"] == published[name]["head"]
    assert published["pushed_commits"] == 2


def test_pushed_card_is_ours(hub, published, folders):
    tree = hub.repos["models", "alice/vqvae"].tree("main")
    card = hub.read(tree, "README.md")
    assert 'model_id = "alice/vqvae"' in card and "0.25" in card
    assert 'model_id = "alice/pushed"' in published["pushed_card"]
    assert "Not measured" in published["pushed_card"] and "More Information Needed" not in published["pushed_card"]
    assert {"mnist", "autoencoder"} <= set(published["pushed_tags"])


def test_a_card_on_the_hub_survives_push_to_hub(published):
    assert published["pushed_readme"].strip() == "Mine."


def test_branch_and_pull_request(published):
    revisions = published["revisions"]
    assert revisions["main"] == revisions["first"] != revisions["zeros"]
    assert published["pull_request"] == "refs/pr/1"


def test_no_right_to_write(published):
    refused = published["refused"]
    assert {kind: status for kind, (status, _) in refused.items()} == {
        "read-only": 403,
        "another user's": 403,
        "unknown": 401,
    }
    assert "write" in refused["read-only"][1]


def test_the_token_is_nowhere(hub, published, loaded, folders):
    """Not in what the client prints at its most talkative, in no file, in no request to another server."""
    for token in (TOKEN, READ_TOKEN, OTHER_TOKEN):
        assert token not in published["output"] and token not in json.dumps(published, default=str)
        homes = [published["home"], loaded["home"], hub.root, *folders.values()]
        for home in homes:
            for file in hub.root.__class__(home).rglob("*"):
                assert not file.is_file() or token.encode() not in file.read_bytes(), file
    assert not any(request["token"] for request in hub.log + loaded["log"] if request["server"] == "cdn")


def test_a_text_model_and_its_tokenizer_meet_on_the_hub(published):
    """`model.push_to_hub` sends a card that says what is missing; what the repository has stays."""
    files, same = published["pushed text"]
    assert set(files) == set(published["seq2seq2seq"]["files"]) - {"metrics.json"} and same
    assert 'tokenizer.push_to_hub("alice/pushed-text")' in published["pushed text card"]


def test_same_summaries_with_and_without_the_package(published, loaded, folders):
    model = AutoModelForSeq2SeqLM.from_pretrained(folders["seq2seq2seq"])
    inputs = tiny.tokenizer()(tiny.SENTENCES, padding=True, return_tensors="pt")
    summary_ids = model.generate(**inputs, num_words=3, num_beams=4)
    summaries = tiny.tokenizer().batch_decode(summary_ids, skip_special_tokens=True)
    restored = tiny.tokenizer().batch_decode(model.reconstruct(summary_ids), skip_special_tokens=True)
    assert loaded["seq2seq2seq"] == loaded["pushed-text"] == [summaries, restored]
    by_pipeline = [result["summary_text"] for result in published["summaries with the package"]]
    assert by_pipeline == [" ".join(summary.split()) for summary in summaries]


@pytest.mark.parametrize("name", ["vae", "vqvae", "voice_conversion", "speech_vqvae", *PRIORS, "pushed"])
def test_loads_by_name_without_the_package(loaded, name):
    assert loaded[name] is True


def test_loads_by_tag_commit_and_branch(published, loaded):
    first = published["revisions"]["first"]
    assert loaded["vqvae@v1"] and loaded[f"vqvae@{first}"] and loaded[f"vqvae@{first[:10]}"]
    assert loaded["zeros"] is True
    assert "nowhere" in loaded["unknown revision"][1]


def test_private_repository(loaded):
    assert loaded["private"] is True
    kind, message = loaded["private without token"]
    assert kind == "OSError" and "private-vae" in message and "token" in message


def test_code_is_run_only_when_trusted(loaded):
    kind, message = loaded["not trusted"]
    assert kind == "ValueError" and "trust_remote_code=True" in message


def test_dropped_connection_is_taken_up_again(loaded):
    assert [request["fault"] for request in loaded["log"] if request["fault"] == "drop"] == ["drop"]
    assert loaded["vae"] is True


def test_reset_and_truncated_files_are_errors(loaded):
    assert loaded["truncated"][0] == "OSError" and "Consistency check failed" in loaded["truncated"][1]
    assert loaded["reset"] is not None
    assert not list(loaded["home"].rglob("*.incomplete"))


def test_corrupt_file_of_the_right_size(loaded):
    """The client takes it; `HfApi().verify_repo_checksums` finds it, `force_download=True` cures it."""
    assert loaded["corrupt"] is True
    assert loaded["verify"] == ["model.safetensors"]
    assert loaded["cured"] is True


def test_offline(hub, loaded):
    """From the cache without a single request; without a cache, a clear error."""
    hub.log.clear()
    env = hub.env(None, loaded["home"] / "hf", HF_HUB_OFFLINE="1")
    answer = run_python(WITHOUT_PACKAGE + OFFLINE, loaded["home"], env)
    assert hub.log == []
    kind, message = answer["cold"]
    assert kind == "OSError" and "couldn't find them in the cached files" in message
