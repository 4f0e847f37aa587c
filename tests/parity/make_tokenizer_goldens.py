#!/usr/bin/env python3
"""Makes the golden files of the tokenizers with the packages they must agree with.

    make_tokenizer_goldens.py DIR           writes DIR (tests/parity/goldens/tokenizers)
    make_tokenizer_goldens.py --check DIR   makes them anew in memory; exit 1 and a line per file that differs

Each sub-folder is a model folder with a tokenizer and an expected.json: for every text of texts.json the ids without
and with special tokens, and the text that those ids and their cut-off beginnings decode to; and for the blocks of
4,096 code points that hold characters a hash of the ids of a text that holds each of them in several contexts.

Versions are those of deploy/versions.env.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
import struct
import sys
import tempfile

import sentencepiece
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")

# The split of Llama 3; GPT-4's and Qwen's differ from it in details only.
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")

TEXTS = [
    "", " ", "  ", "\n", "\n\n", "\t", "a", " a", "a ", "  a  b   c    ", "\n\nHuman: Where is Lofan?\n\nAssistant:",
    "Human: What color is the bolin?\n\nAssistant: The bolin is red. I hope this helps.\n\nHuman:",
    "Query: How can I sleep better?\nQuery:", "it's I'll we'RE you'Ve don'T 'S 's  'd", "123 4567 8.9 1,000,000 ½ ² Ⅷ ٣٤ 五",
    "<|endoftext|>", "a<|endoftext|>b <|endoftext|>", "<s>a</s> <unk>", "<0x41><0xE4>", "▁a▁▁b", "Ġa Ċ Ġ",
    # Combining marks, composed and not, stacked, on a blank, and out of order.
    "e\u0301 \u00e9 a\u0308\u0323 a\u0323\u0308 \u0301 q\u0307\u0323\u0308\u0301\u0302\u0303\u0304 Z\u0351\u036b\u0343\u036a\u0302",
    "\u1100\u1161\u11a8 \uac01 각 가\u11a8 한국어 텍스트", "नमस्ते क्षत्रिय স্বাগতম ကြိုဆို ยินดีต้อนรับ", "ﬁ ﬀ ſ K Å Ⓐ ㎏ ﷺ １２３ ａｂｃ",
    # Emoji: joined by ZWJ, with skin tones, flags, keycaps, variation selectors, an unfinished join.
    "👩‍👩‍👧‍👦 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇫🇷🇩🇪🇺 1️⃣ ☺️ ☺︎ 👩‍ ‍👦 ❤️‍🔥",
    # Right to left, with marks and directional controls.
    "שָׁלוֹם עולם abc مَرْحَبًا بِالعالَم ١٢٣ \u202eabc\u202c \u2067אבג\u2069 \u200f\u200e",
    "你好，世界！ 日本語テキスト、カタカナ ﾊﾝｶｸ 漢字かな交じり文。 𠀀𠮷𪚥 ㍿ 〇 々",
    # Control characters, and what counts as a blank somewhere.
    "\x00\x01\x02\x07\x08\x0b\x0c\x0e\x1b\x1c\x1d\x1e\x1f\x7f\x80\x85\x9f", "a\r\nb\rc\n\rd\r\r\n\ne\x0bf\x0cg\x85h\u2028i\u2029j",
    "a\u00a0b\u1680c\u2000d\u2003e\u200af\u202fg\u205fh\u3000i\u200bj\u2060k\ufeffl\u180em", "\ufeffBOM first",
    # Astral, private use, unassigned, non-characters, assigned late.
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𒀀 𓀀 🜁 \U000f0000 \U0010ffff \ue000 \ufffe \uffff \ufdd0 \U0001fae8 \U0001faf8 \U00031350 \U0002ebf0 \u1c89 \U00010d40",
    "\ufffd \ufffd\ufffd a\ufffdb",
    # Runs of blanks of every length class, mixed.
    *[" " * n + "x" + " " * n for n in (2, 3, 4, 7, 8, 9, 15, 16, 17, 33)], "\n" * 5 + "x" + "\n" * 4, "\t\t x \t \n \t\n  y",
    " \n \n\n  \r\n \r\n\r\n x", "a  \n  b", "ａ　　ｂ", "a" * 100, "ab" * 50, "é" * 33, "!?" * 20 + "...", "-----\n\n-----",
    "def f(x):\n    return {'a': x ** 2}  # naïve\n", "https://example.org/a?b=c&d=%20#e", "snake_case camelCase ALLCAPS MiXeD x86_64",
]

# What the vocabularies are learnt from: enough for merges of letters, words, blanks, digits and several scripts.
CORPUS = [
    "Human: What color is the bolin?\n\nAssistant: The bolin is red. You can find it near the river.\n\n",
    "Human: How can I sleep better?\n\nAssistant: You can read a book, drink warm milk, and go to bed early. I hope this helps.\n\n",
    "It's what we'll do: they're here, I've seen 1234 of them, don't you know?  Two  blanks   three    four.\n",
    "Naïve café, déjà vu, Straße, señor, Привет мир, γειά σου κόσμε, שלום עולם, مرحبا بالعالم, 你好世界, こんにちは, 안녕하세요, नमस्ते. 👍🏽 🎉\n",
    "def main():\n    for i in range(10):\n        print(i, i * i)\n\treturn None\n",
]


# A stand-in for nmt_nfkc, whose table alone is 240 KB: code points in hexadecimal, longest match first.
NORMALIZATION = [("9", "20"), ("A", "20"), ("D", "20"), ("A0", "20"), ("3000", "20"), ("200B", "20"), ("FEFF", ""),
                 ("7F", ""), ("FF41", "61"), ("FB01", "66 69"), ("65 301", "E9"), ("E9", "E9"), ("BD", "31 2044 32"),
                 ("1100 1161", "AC00"), ("1100 1161 11A8", "AC01")]


def corpus():
    rng = random.Random(7)
    words = sorted(set(re.findall(r"\S+", " ".join(CORPUS))))
    return CORPUS * 3 + [" ".join(rng.choice(words) for _ in range(10)) for _ in range(100)]


def byte_level(vocab_size):
    """As common/text/hugging_face_tokenizer.h trains them."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.post_processor = processors.TemplateProcessing(
        single=["<|endoftext|>", "$A"], pair=["<|endoftext|>", "$A:0", "$B:1"], special_tokens=[("<|endoftext|>", 0)])
    return tok


def llama3():
    tok = Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=500, special_tokens=[], show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.add_special_tokens(["<s>", "</s>", "<|endoftext|>"])
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tok.token_to_id("<s>"))])])
    return tok


def llama2():
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    specials = ["<unk>", "<s>", "</s>"]
    # Merges within words only, or one line would become one token; the finished tokenizer has no such split.
    tok.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    # Other characters than ASCII become bytes. (A limit on the alphabet would choose among equally rare ones at random.)
    ascii_corpus = ["".join(c for c in text if ord(c) < 128) for text in corpus()]
    tok.train_from_iterator(ascii_corpus, trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials + [f"<0x{b:02X}>" for b in range(256)], show_progress=False))
    # The byte pieces are ordinary pieces, not special tokens.
    state = json.loads(tok.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in specials]
    state["pre_tokenizer"] = None
    tok = Tokenizer.from_str(json.dumps(state))
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tok


def sentencepiece_model(**options):
    out = io.BytesIO()
    lines = [line for text in corpus() for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, minloglevel=2, num_threads=1, **options)
    return out.getvalue()


# The planes that hold characters, and one block of tags, of private use, and of the last code points.
SWEPT_BLOCKS = list(range(0x32)) + [0xE0, 0xF0, 0x10F]


def contexts(block):
    """A text with each code point of the block at a word's end, after a blank, before and after a digit, and alone."""
    points = [c for c in range(block * 4096, (block + 1) * 4096) if not 0xD800 <= c < 0xE000]
    return "".join(f"a{chr(c)} {chr(c)}1{chr(c)} {chr(c)} " for c in points)


def sweep(encode):
    hashes = []
    for block in SWEPT_BLOCKS:
        ids = encode(contexts(block))
        hashes.append([block, hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()[:8]])
    return hashes


def expected(encode, encode_special, decode):
    """decode(ids, skip_special_tokens)"""
    cases = []
    front = encode_special("")
    for text in TEXTS:
        ids = encode(text)
        special = encode_special(text)
        assert special == front + ids
        # Beginnings cut anywhere: inside characters, runs of byte pieces, emoji.
        cuts = sorted({len(ids) * k // 5 for k in range(1, 5)})
        cases.append({"ids": ids, "decoded": decode(special, True), "kept": decode(special, False),
                      "cuts": [[cut, decode(ids[:cut], True)] for cut in cuts]})
    return {"front": front, "cases": cases, "sweep": sweep(encode)}


def from_tokenizers(tok):
    return expected(lambda t: tok.encode(t, add_special_tokens=False).ids, lambda t: tok.encode(t).ids,
                    lambda ids, skip: tok.decode(ids, skip_special_tokens=skip))


def from_sentencepiece(model, add_bos):
    """BOS in front as LlamaTokenizer of transformers has it. Without skipping, BOS is spelled out."""
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    bos = [sp.bos_id()] if add_bos else []
    def decode(ids, skip):
        text = sp.decode(ids)
        return text if skip or ids[:1] != [sp.bos_id()] else "<s>" + text
    return expected(sp.encode, lambda t: bos + sp.encode(t), decode)


def make():
    files = {}

    def put(path, value):
        files[path] = value if isinstance(value, bytes) else (
            json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n").encode()

    put("texts.json", TEXTS)
    for name, tok, config in (
            ("byte_level", byte_level(600), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
            ("llama3", llama3(), {"bos_token": "<s>", "eos_token": {
                "__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "rstrip": False,
                "single_word": False, "special": True}}),
            ("llama2", llama2(), {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})):
        put(f"{name}/tokenizer.json", tok.to_str().encode())
        put(f"{name}/tokenizer_config.json", config)
        put(f"{name}/expected.json", from_tokenizers(tok))
    put("corpus.json", corpus())

    # Fewer alphabets than the corpus has, so that some characters become bytes or unknown.
    llama = sentencepiece_model(
        model_type="bpe", vocab_size=560, byte_fallback=True, character_coverage=0.98, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        unk_surface=" \u2047 ")
    # The model records the name of the file with the rules: a relative one, to come out alike each time.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with open("rules.tsv", "w") as rules:
            rules.writelines(f"{source}\t{target}\n" for source, target in NORMALIZATION)
        unigram = sentencepiece_model(
            model_type="unigram", vocab_size=165, character_coverage=0.98, normalization_rule_tsv="rules.tsv",
            user_defined_symbols=["Human:", "🎉"], control_symbols=["<sep>"])
    for name, model, config, add_bos in (
            ("sentencepiece_bpe", llama, {}, True),
            ("sentencepiece_unigram", unigram, {"add_bos_token": False}, False)):
        put(f"{name}/tokenizer.model", model)
        put(f"{name}/tokenizer_config.json", config)
        put(f"{name}/expected.json", from_sentencepiece(model, add_bos))
    return files


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("dir")
    args = parser.parse_args()
    pinned = dict(re.findall(r"^(\w+)=(\S+)$", open(os.path.join(ROOT, "deploy", "versions.env")).read(), re.M))
    for package, wanted in ((tokenizers, pinned["TOKENIZERS_VERSION"]), (sentencepiece, pinned["SENTENCEPIECE_VERSION"])):
        if package.__version__ != wanted:
            sys.exit(f"{package.__name__} {wanted} is needed, found {package.__version__}")
    files = make()
    if args.check:
        differing = [path for path, contents in files.items()
                     if not os.path.exists(os.path.join(args.dir, path)) or open(os.path.join(args.dir, path), "rb").read() != contents]
        for path in differing:
            print(f"{os.path.join(args.dir, path)} differs from what {os.path.basename(__file__)} makes")
        print(f"{len(files) - len(differing)} of {len(files)} tokenizer goldens as made anew")
        sys.exit(1 if differing else 0)
    for path, contents in files.items():
        path = os.path.join(args.dir, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(contents)
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes")


if __name__ == "__main__":
    main()
