"""The sets that papers on quantization calibrate with."""

from __future__ import annotations

from woqfx import HubSet

_C4 = {"data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}}
# The repository's own form is a script, which `datasets` does not run; the Hub keeps a copy as tables.
_PTB = {"name": "penn_treebank", "revision": "refs/convert/parquet"}

#: `c4-new` and `ptb-new` are GPTQ's names. Its c4-new differs from c4 only in the texts that it evaluates on; its
#: ptb-new joins sentences by spaces where ptb joins them by empty lines.
HUB_SETS = (
    HubSet("pile-10k", "NeelNanda/pile-10k", column="text"),
    HubSet("wikitext2", "Salesforce/wikitext", column="text", join="", arguments={"name": "wikitext-2-raw-v1"}),
    HubSet("c4", "allenai/c4", column="text", arguments=_C4),
    HubSet("c4-new", "allenai/c4", column="text", arguments=_C4),
    HubSet("ptb", "ptb-text-only/ptb_text_only", column="sentence", join="\n\n", arguments=_PTB),
    HubSet("ptb-new", "ptb-text-only/ptb_text_only", column="sentence", join=" ", arguments=_PTB),
)
