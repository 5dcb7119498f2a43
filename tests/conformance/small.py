"""Small sizes of the methods, for tests."""

import hfadapt

# Sizes are small where a method's own are for large models: hundreds of ReLU units would put many kinks into every
# difference quotient, and most of the time would go into random numbers.
SMALL = {
    "design": hfadapt.Design(r=4, modified=("ffn", "query"), non_linearity="gelu"),
    "low_rank": hfadapt.LowRank(8),
    "mtl_lora": hfadapt.MTLLoRA(r=4, n_up=2),
    "mam": hfadapt.MAM({"num_virtual_tokens": 3, "mlp_size": 8}, {"r": 8, "non_linearity": "gelu"}),
    "pal": hfadapt.PAL(8, num_heads=2),
    "parallel": hfadapt.ParallelConfig(8, non_linearity="gelu"),
    "prefix": hfadapt.PrefixConfig(3, mlp_size=8),
    "top_attention": hfadapt.TopAttention(8, 2, num_heads=2),
    "top_ffn": hfadapt.TopFFN(8, 2),
    "unipelt": hfadapt.UniPELT({"num_virtual_tokens": 3, "mlp_size": 8}, {"non_linearity": "gelu"}, {"r": 2}),
}
