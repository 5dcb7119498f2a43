"""What our plugins register, under the names that it has in ``hfadapt``: for type checkers, which call no hook.

``hfadapt`` itself finds these names by what is registered, ours and anybody's; a test holds the two to each other.
"""

from __future__ import annotations

from .formats.peft import load_peft as load_peft
from .methods.bottleneck.config import Bottleneck as Bottleneck
from .methods.bottleneck.presets import houlsby as Houlsby
from .methods.bottleneck.presets import pfeiffer as Pfeiffer
from .methods.design.config import Design as Design
from .methods.fusion.adding import add_fusion as add_fusion
from .methods.fusion.config import FusionConfig as FusionConfig
from .methods.fusion.recording import prune_fusion as prune_fusion
from .methods.fusion.recording import record_fusion as record_fusion
from .methods.fusion.regularizer import fusion_regularizer as fusion_regularizer
from .methods.invertible.config import Invertible as Invertible
from .methods.lhuc.config import LHUC as LHUC
from .methods.lora.config import LoRA as LoRA
from .methods.lora.peft_files import save_peft as save_peft
from .methods.low_rank.config import LowRank as LowRank
from .methods.mam.fork_checkpoint import load_unify as load_unify
from .methods.mam.preset import mam as MAM
from .methods.mtl_lora.config import MTLLoRA as MTLLoRA
from .methods.pal.config import PAL as PAL
from .methods.pal.script_checkpoint import load_bert_n_pals as load_bert_n_pals
from .methods.parallel.config import ParallelConfig as ParallelConfig
from .methods.pooler.config import Pooler as Pooler
from .methods.prefix.config import PrefixConfig as PrefixConfig
from .methods.prefix.flatten import flatten_prefix as flatten_prefix
from .methods.top.config import TopAttention as TopAttention
from .methods.top.config import TopFFN as TopFFN
from .methods.top.config import TopLayer as TopLayer
from .methods.top.config import TopLinear as TopLinear
from .methods.unipelt.preset import unipelt as UniPELT
from .mixing import Annealed as Annealed
from .mixing import Proportional as Proportional
from .mixing import RoundRobin as RoundRobin
from .mixing import SquareRoot as SquareRoot
from .mixing import Temperature as Temperature
from .regularizers.freeat import FreeAT as FreeAT
from .regularizers.freelb import FreeLB as FreeLB
from .regularizers.pgd import PGD as PGD
from .regularizers.r3f import R3F as R3F
from .regularizers.r4f import R4F as R4F
from .regularizers.r_drop import RDrop as RDrop
from .regularizers.sam import SAM as SAM
from .regularizers.smart import SMART as SMART
from .regularizers.vat import VAT as VAT
from .regularizers.yopo import YOPO as YOPO

__all__ = [
    "LHUC",
    "MAM",
    "PAL",
    "PGD",
    "R3F",
    "R4F",
    "SAM",
    "SMART",
    "VAT",
    "YOPO",
    "Annealed",
    "Bottleneck",
    "Design",
    "FreeAT",
    "FreeLB",
    "FusionConfig",
    "Houlsby",
    "Invertible",
    "LoRA",
    "LowRank",
    "MTLLoRA",
    "ParallelConfig",
    "Pfeiffer",
    "Pooler",
    "PrefixConfig",
    "Proportional",
    "RDrop",
    "RoundRobin",
    "SquareRoot",
    "Temperature",
    "TopAttention",
    "TopFFN",
    "TopLayer",
    "TopLinear",
    "UniPELT",
    "add_fusion",
    "flatten_prefix",
    "fusion_regularizer",
    "load_bert_n_pals",
    "load_peft",
    "load_unify",
    "prune_fusion",
    "record_fusion",
    "save_peft",
]
