#!/bin/sh
# transformers 5.24.0 with tokenizers 0.23.3: a tokenizer that threads share cuts one thread's texts at the other's limit.
#
# How a text is cut and padded is a setting of the tokenizer that each call writes before it reads. Two threads that ask
# for other lengths (8 and 16 here) overwrite each other's: texts come back longer or shorter than asked for, without an
# error. tokenizers 0.22.2 under transformers 5.6.0 raised "Already borrowed" instead. Exit status 0: still so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT

check() {
    rm -rf "$venv/env"
    python3 -m venv "$venv/env"
    "$venv/env/bin/pip" install --quiet "transformers==$1" "tokenizers==$2"
    "$venv/env/bin/python" -W ignore - <<'PY'
import sys
import threading
from collections import Counter

import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

sys.setswitchinterval(1e-5)  # as often as busy threads of a server take turns
plain = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "word": 2}, unk_token="[UNK]"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
shared = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", pad_token="[PAD]")
text, found = " ".join(["word"] * 30), Counter()


def ask(limit):
    for _ in range(2000):
        try:
            length = len(shared(text, truncation=True, max_length=limit)["input_ids"])
        except RuntimeError as error:
            found[f"raised: {error}"] += 1
        else:
            found["right" if length == limit else f"{length} tokens where {limit} were asked for"] += 1


threads = [threading.Thread(target=ask, args=(limit,)) for limit in (8, 16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}: {dict(found)}")
silent = any("asked for" in said for said in found)
raised = any("raised" in said for said in found)
sys.exit((silent, raised) != ((False, True) if tokenizers.__version__ < "0.23" else (True, False)))
PY
}

check 5.24.0 0.23.3
check 5.6.0 0.22.2
