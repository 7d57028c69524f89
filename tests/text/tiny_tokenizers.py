"""Small tokenizers of the families that checkpoints bring, made with the ``tokenizers`` package."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = ["the naïve café serves tea", "東京の茶 is tea in 東京", "the the the tea", "user assistant system"] * 20
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "[INST]", "[/INST]"]


def byte_level() -> Tokenizer:
    """Byte-level BPE, as of GPT-2, Llama 3 and Qwen."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return made


def byte_level_with_prefix() -> Tokenizer:
    """The same with a blank put before every text, as of RoBERTa and some GPT models."""
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


def _pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        pieces[f"<0x{byte:02X}>"] = len(pieces)
    for piece in ["▁", "t", "h", "e", "a", "s", "▁t", "▁th", "▁the", "ea", "▁tea", "es", "."]:
        pieces[piece] = len(pieces)
    return pieces, [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("e", "a"), ("▁t", "ea"), ("e", "s")]


_SENTENCEPIECE_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def _pieces_and_bytes() -> Tokenizer:
    pieces, merges = _pieces()
    return Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))


def metaspace() -> Tokenizer:
    """BPE over pieces with a marked leading blank, and single bytes for what it has no pieces for: Llama 2, Mistral."""
    made = _pieces_and_bytes()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([*_SENTENCEPIECE_DECODER, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(SPECIAL)
    return made


def prepended() -> Tokenizer:
    """The same as older files write it: a normalizer puts a blank before the text, and behind each special token."""
    made = _pieces_and_bytes()
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([*_SENTENCEPIECE_DECODER, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(SPECIAL)
    return made


def unmarked() -> Tokenizer:
    """BPE over pieces without a blank put before the text: Gemma."""
    made = _pieces_and_bytes()
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence(_SENTENCEPIECE_DECODER)
    made.add_special_tokens(SPECIAL)
    return made


def unigram() -> Tokenizer:
    """Unigram over pieces with a marked leading blank: XLNet, T5 and their like."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>")
    )
    return made


def wordpiece() -> Tokenizer:
    """WordPiece: BERT."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", *SPECIAL]))
    return made


MADE: dict[str, Callable[[], Tokenizer]] = {
    made.__name__: made
    for made in (byte_level, byte_level_with_prefix, metaspace, prepended, unmarked, unigram, wordpiece)
}


def with_bos(tokenizer: Tokenizer, *, eos: bool = False) -> Tokenizer:
    """A tokenizer that puts ``<s>`` before a text, and ``</s>`` behind it where wanted."""
    tokens = [(text, tokenizer.token_to_id(text)) for text in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if eos else "<s> $A", special_tokens=tokens
    )
    return tokenizer
